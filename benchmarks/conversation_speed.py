"""python benchmarks/conversation_speed.py

What holding conversations costs beyond waiting for the models. A fake server in a process of its own takes 50 ms an
answer; every conversation has 8 turns of 3 calls (supporter, seeker, a critic of ten votes). Walls are given as ratios
to what latency alone takes, next to bare aiohttp on the same schedule: the floor of this machine right now. CPU time
hardly depends on who else uses the machine, walls do.

The limits are those the project sets itself; the command exits with 1 when one is exceeded. Needs the extra `llm`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import gymnasium as gym

import esc_env  # registers ESConv-v0
from esc_env import ScenarioSet
from esc_env.agents import resolve_agent
from esc_env.background import run
from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import Chairs, converse
from esc_env.data.datasets import load_scenarios
from esc_env.evaluation import evaluate
from esc_env.rules import Rules
from esc_env.testing import FakeServer

LATENCY = 0.05
CONVERSATIONS, TURNS, CALLS, VOTES = 40, 8, 3, 10
ALONE = TURNS * CALLS * LATENCY
"""Seconds that the calls of one conversation take one after the other."""
SAYING = "It was my manager again, and since Monday I lie awake and go through it all. I do not know what to do next."

kept: list[bool] = []
"""Whether each limit holds."""


def limit(told: str, value: float, most: float, unit: str = "") -> None:
    """Print a value and its limit."""
    kept.append(value <= most)
    print(f"  {told:<58}{value:8.2f} {unit:<3} limit {most:g}{'' if kept[-1] else '   EXCEEDED'}", flush=True)


def answer(body: Mapping[str, Any], choice: int) -> str:
    """Votes for the critic, of whom ten are asked at once; the same sentence for the others. Nothing is ever solved."""
    return "B. No, the seeker feels the same." if body.get("n") == VOTES else SAYING


@contextlib.contextmanager
def server(capacity: int = 0, latency: float = LATENCY) -> Iterator[str]:
    """The base URL of a fake server in another process, which serves at most `capacity` requests at once (0: all)."""
    command = [sys.executable, __file__, "--serve", str(capacity), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout else ""
        finally:
            process.terminate()


def serve(capacity: int, latency: float) -> None:
    """Be that server."""
    with FakeServer(answer, latency=latency, capacity=capacity or None, log=False) as running:
        print(running.url, flush=True)
        running.wait()


def people(count: int) -> ScenarioSet:
    """The builtin training scenarios, repeated under new ids until there are `count`."""
    known = load_scenarios("builtin:train")
    copies = (replace(known[i % len(known)], id=f"{known[i % len(known)].id}-{i}") for i in range(count))
    return ScenarioSet.of(f"{count} people", copies)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process) of some work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def evaluated(url: str, count: int) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of a whole evaluation, check of the models and report included."""
    model, chosen = f"openai/m@{url}", people(count)
    with tempfile.TemporaryDirectory() as folder:
        taken = timed(lambda: evaluate(model, chosen, seeker=model, critic=model, rules=Rules(votes=VOTES), out=folder))
        with open(f"{folder}/report.json", encoding="utf-8") as file:
            done = json.load(file)["completed"]
    if done != count:
        raise SystemExit(f"only {done} of {count} conversations were completed")
    return taken


async def bare(url: str, conversations: int, calls: int, cycle: int = CALLS) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of aiohttp and nothing around it.

    So many conversations of so many calls in order; the last of every `cycle` asks for ten votes.
    """
    chat = [{"role": ("user", "assistant")[i % 2], "content": SAYING} for i in range(TURNS)]

    async def conversation(count: int) -> None:
        for call in range(count):
            n = VOTES if call % cycle == cycle - 1 else 1
            body = json.dumps({"model": "m", "messages": chat, "temperature": 0.0, "n": n}).encode()
            headers = {"Content-Type": "application/json"}
            async with session.post(f"{url}/chat/completions", data=body, headers=headers) as response:
                json.loads(await response.read())

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(conversation(1) for _ in range(conversations)))
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(conversation(calls) for _ in range(conversations)))
        return time.perf_counter() - wall, time.process_time() - cpu


def forty(url: str) -> None:
    """The evaluation, where the server answers everybody at once."""
    evaluated(url, CONVERSATIONS)  # imports, prompts and connections
    floor, cheapest = asyncio.run(bare(url, CONVERSATIONS, TURNS * CALLS))
    wall, cpu = min(evaluated(url, CONVERSATIONS) for _ in range(3))
    print(f"{CONVERSATIONS} conversations through evaluate: {wall:.2f} s, {CONVERSATIONS / wall:.1f} a second")
    print(f"  bare aiohttp: {floor / ALONE:.2f} times latency alone, {cheapest / CONVERSATIONS * 1e3:.1f} ms CPU each")
    limit("wall / latency alone", wall / ALONE, 1.35)
    limit("CPU a conversation", cpu / CONVERSATIONS * 1e3, 30, "ms")


def narrow() -> None:
    """The same, where the server serves 16 at once."""
    with server(16) as url:
        evaluated(url, 16)
        wall, _ = evaluated(url, CONVERSATIONS)
    print(f"{CONVERSATIONS} conversations, served 16 at once: {wall:.2f} s")
    limit("wall / (requests × latency / 16)", wall / (CONVERSATIONS * ALONE / 16), 1.15)


def thousand(url: str) -> None:
    """Ten times as many conversations cost ten times as much, and little memory."""
    few = evaluated(url, 100)
    before = peak_memory()
    many = evaluated(url, 1000)
    grown = (peak_memory() - before) / 900
    again = evaluated(url, 100)
    few = ((few[0] + again[0]) / 2, (few[1] + again[1]) / 2)
    print(f"1,000 conversations: {1000 / many[0]:.1f} a second; 100: {100 / few[0]:.1f}")
    limit("peak memory a further conversation", grown / 1e3, 50, "kB")
    limit("wall a conversation / the same of 100", many[0] / few[0] / 10, 1.1)
    limit("CPU a conversation / the same of 100", many[1] / few[1] / 10, 1.1)


def peak_memory() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def vector(url: str, size: int = 64) -> None:
    """One step of a vector env whose chairs are models."""
    model = f"openai/m@{url}"
    envs = gym.make_vec("ESConv-v0", num_envs=size, seeker=model, critic=model, votes=VOTES)
    said = [SAYING] * size
    envs.reset(seed=0)
    envs.step(said)
    floor, _ = min(asyncio.run(bare(url, size, 2, cycle=2)) for _ in range(3))
    wall, cpu = min(timed(lambda: envs.step(said)) for _ in range(TURNS - 1))
    print(f"make_vec, {size} envs: {wall * 1e3:.0f} ms and {cpu / size * 1e3:.2f} ms CPU an env a step")
    print(f"  bare aiohttp: {floor / (2 * LATENCY):.2f} times the latency of its calls")
    limit("a step / the latency of its two calls", wall / (2 * LATENCY), 1.35)


def faces(url: str, conversations: int = 8) -> None:
    """The gym face against `converse`, with the same chairs and a supporter who costs nothing."""
    model = f"openai/m@{url}"
    env = gym.make("ESConv-v0", seeker=model, critic=model, votes=VOTES)
    chairs = Chairs(resolve_seeker(model), resolve_critic(model), Rules(votes=VOTES))
    supporter, person = resolve_agent("builtin:silent"), load_scenarios("builtin:train")[0]

    def through_gym() -> None:
        env.reset(seed=0)
        over = False
        while not over:
            *_, over, _, _ = env.step("")

    def through_converse() -> None:
        run(converse(person, supporter, chairs, seed=0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = [(timed(through_gym), timed(through_converse)) for _ in range(conversations)][1:]
    (gym_wall, gym_cpu), (wall, cpu) = (tuple(map(min, zip(*side, strict=True))) for side in zip(*pairs, strict=True))
    print(f"One conversation by env.step: {gym_wall:.3f} s, {gym_cpu * 1e3:.1f} ms CPU; by converse {cpu * 1e3:.1f} ms")
    limit("wall / that of converse", gym_wall / wall, 1.1)


def main() -> int:
    """Measure, print, and return 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--serve", type=float, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--short", action="store_true", help="leave out the thousand conversations")
    options = parser.parse_args()
    if options.serve is not None:
        serve(int(options.serve[0]), options.serve[1])
        return 0
    print(f"esc-env {esc_env.__version__}, aiohttp {aiohttp.__version__}, Python {sys.version.split()[0]}")
    with server() as url:
        forty(url)
        vector(url)
        faces(url)
        if not options.short:
            thousand(url)
    narrow()
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())

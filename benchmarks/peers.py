"""python benchmarks/peers.py

What one protocol costs in several frameworks: 40 conversations of 8 turns, where supporter, seeker and a critic of ten
votes are a fake server that takes 50 ms an answer. `esc eval`, verifiers and Inspect hold them (the latter two by our
adapters, so with the same chairs and prompts), next to bare aiohttp on the same schedule: conversations a second, and
CPU time a conversation with all its processes, as ratios to bare aiohttp. Each framework is the second time asked:
connections, imports and prompts are there.

Then what it costs to begin: CPU time of a command from its first line to the end of one short conversation, as a ratio
to an interpreter that imports Gymnasium. Peers are installed into environments of their own, by the versions of
`tests/integrations/*.txt`: that takes a minute or two, and the network. Needs the extra `llm`.
"""

# pyright: reportMissingImports=false
# Each peer is imported in an environment of its own.

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from conversation_speed import ALONE, CALLS, CONVERSATIONS, TURNS, VOTES, bare, evaluated, server

ROOT = Path(__file__).parents[1]
PEERS = {"verifiers": "verifiers", "inspect": "inspect-ai"}
"""Packages, by the name of our adapter."""


def cpu() -> float:
    """Seconds that this process and those that it has seen end have worked."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def through_verifiers(url: str) -> Callable[[], int]:
    """Holds the conversations, and says how many ended as they should."""
    import verifiers.v1 as vf

    from esc_env.integrations.verifiers import PUBLISHED, load_environment

    chair = f"openai/m@{url}"
    env = load_environment(taskset={"scenarios": "builtin:test"}, seeker=chair, critic=chair, votes=VOTES)
    asked = vf.ModelContext(client=vf.EvalClientConfig(base_url=url), model="m", sampling=PUBLISHED)

    async def hold() -> int:
        async with env.serving():
            episodes = await asyncio.gather(*(env.run_episode(task, asked) for task in env.taskset.take(CONVERSATIONS)))
        return sum(episode.ok for episode in episodes)

    return lambda: asyncio.run(hold())


def through_inspect(url: str) -> Callable[[], int]:
    """Holds the conversations, and says how many ended as they should."""
    from inspect_ai import eval as inspect_eval

    from esc_env.integrations.inspect import esconv

    chair = f"openai/m@{url}"

    def hold() -> int:
        (log,) = inspect_eval(
            esconv(seeker=chair, critic=chair, votes=VOTES), model="openai-api/fake/m", model_base_url=url,
            limit=CONVERSATIONS, max_connections=CONVERSATIONS, max_samples=CONVERSATIONS, display="none",
        )  # fmt: skip
        return log.results.completed_samples if log.results else 0

    return hold


def measured(peer: str, url: str) -> None:
    """Print (seconds, CPU seconds) of a peer, as JSON: the second of two times."""
    work = {"verifiers": through_verifiers, "inspect": through_inspect}[peer](url)
    for _ in range(2):
        wall, before = time.perf_counter(), cpu()
        done = work()
        taken = time.perf_counter() - wall, cpu() - before
        if done != CONVERSATIONS:
            raise SystemExit(f"{peer}: only {done} of {CONVERSATIONS} conversations ended as they should")
    print(json.dumps({"taken": taken, "version": version(PEERS[peer])}))


def environment(peer: str, folder: Path) -> str:
    """The Python of a fresh environment with a peer and this checkout."""
    venv.create(folder / peer, with_pip=True)
    python = str(folder / peer / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "-r", f"{ROOT}/tests/integrations/{peer}.txt", f"{ROOT}[llm]"]
    subprocess.run(install, check=True)
    return python


def seconds(command: list[str], folder: str) -> float:
    """CPU seconds of a command: the least of three, the first of which has compiled what it imports."""
    taken = []
    for _ in range(3):
        before = cpu()
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken.append(cpu() - before)
    return min(taken)


def beginnings() -> None:
    """What it costs to begin."""
    short = ["-a", "builtin:silent", "--limit", "1", "--max-turns", "1", "--fresh"]
    ways = {
        "import gymnasium": [sys.executable, "-c", "import gymnasium"],
        "import esc_env, one step": [
            sys.executable, "-c",
            "import gymnasium as gym, esc_env; e = gym.make('ESConv-v0'); e.reset(seed=0); e.step('Hm.')",
        ],
        "esc eval, one turn": [sys.executable, "-c", "from esc_env.cli import main; main()", "eval", *short],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        took = {name: seconds(command, folder) for name, command in ways.items()}
    print("to begin, CPU seconds (reports and pages written):")
    for name, each in took.items():
        print(f"  {name:26}{each:6.2f} s  {each / took['import gymnasium']:5.1f} × import gymnasium")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--as", dest="peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        measured(options.peer, options.url)
        return
    with server() as url, tempfile.TemporaryDirectory() as folder:
        evaluated(url, CONVERSATIONS)  # imports, prompts and connections
        rows = {
            "bare aiohttp": asyncio.run(bare(url, CONVERSATIONS, TURNS * CALLS)),
            f"esc eval ({version('esc-env')})": evaluated(url, CONVERSATIONS),
        }
        for peer, package in PEERS.items():
            python = environment(peer, Path(folder))
            keys = {"ESC_API_KEY": "none", "FAKE_API_KEY": "none", "INSPECT_LOG_DIR": f"{folder}/logs"}
            command = [python, __file__, "--as", peer, "--url", url]
            done = subprocess.run(command, env=os.environ | keys, stdout=subprocess.PIPE, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            rows[f"{package} {told['version']}"] = tuple(told["taken"])
    _, least = rows["bare aiohttp"]
    bound = CONVERSATIONS / ALONE
    print(f"{CONVERSATIONS} conversations of {TURNS * CALLS} calls; latency alone allows {bound:.1f} a second")
    for name, (wall, used) in rows.items():
        print(
            f"  {name:26}{CONVERSATIONS / wall:6.1f} a second {wall / ALONE:6.2f} × latency alone "
            f"{used / CONVERSATIONS * 1e3:7.1f} ms CPU each {used / least:6.1f} × bare"
        )
    beginnings()


if __name__ == "__main__":
    main()

"""python benchmarks/model_speed.py

What carrying a request to a model costs. A fake server (a process of its own, 50 ms latency) answers requests at
concurrency 64 over bare aiohttp (the bound), over our wire, over our wire with patience and choices around it, over the
openai package and over LiteLLM: CPU time a request, and how often the bound's. Then the work of 40 conversations of 8
turns and 3 calls each, against the time that latency alone takes, and against a server that serves at most 16 at once.

The limits are those the project sets itself; the command exits with 1 when one is exceeded. Needs the extra `llm`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import aiohttp

from esc_env.dialogue import ChatMessage
from esc_env.models.choices import Choices
from esc_env.models.patience import Endpoint, Patient
from esc_env.models.sdk import LiteLLMModel, OpenAISDK
from esc_env.models.wire import OpenAIWire
from esc_env.protocols import ChatModel

Ask = Callable[[int], Awaitable[object]]
"""One request for so many choices."""

LATENCY = 0.05
CONCURRENCY = 64
CONVERSATIONS, TURNS, CALLS, VOTES = 40, 8, 3, 10
PROMPT: list[ChatMessage] = [
    {"role": "system", "content": "You support somebody who is in distress. " * 20},
    *({"role": ("user", "assistant")[i % 2], "content": "I cannot sleep because of my job. " * 4} for i in range(15)),
]  # type: ignore[list-item]


@contextlib.contextmanager
def fake_server(capacity: int | None = None) -> Iterator[str]:
    """The base URL of a fake server in another process."""
    command = [sys.executable, "-m", "esc_env.testing.fake_server", "--port", "0", "--latency", str(LATENCY)]
    with subprocess.Popen(
        command + (["--capacity", str(capacity)] if capacity else []), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


async def cost(ask: Ask, requests: int) -> tuple[float, float]:
    """(milliseconds of CPU a request, requests a second) at the concurrency, connections already open."""

    async def worker(count: int) -> None:
        for _ in range(count):
            await ask(1)

    await asyncio.gather(*(worker(1) for _ in range(CONCURRENCY)))
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker(requests // CONCURRENCY) for _ in range(CONCURRENCY)))
    done = requests // CONCURRENCY * CONCURRENCY
    return (time.process_time() - cpu) / done * 1e3, done / (time.perf_counter() - wall)


async def bare(url: str, measured: Callable[[Ask], Awaitable[tuple[float, float]]]) -> tuple[float, float]:
    """The bound: aiohttp and nothing around it."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(n: int) -> None:
            body = json.dumps({"model": "m", "messages": PROMPT, "temperature": 0.0, "n": n}).encode()
            headers = {"Content-Type": "application/json"}
            async with session.post(f"{url}/chat/completions", data=body, headers=headers) as response:
                json.loads(await response.read())

        return await measured(ask)


def through(model: ChatModel, requests: int) -> tuple[float, float]:
    """What a chat model costs."""
    return asyncio.run(cost(lambda n: model.complete(PROMPT, n=n), requests))


async def conversations(ask: Ask) -> tuple[float, float]:
    """(wall seconds, CPU milliseconds a conversation) of agent, seeker and critic calls in order, turn after turn."""

    async def conversation() -> None:
        for _ in range(TURNS):
            for call in range(CALLS):
                await ask(VOTES if call == CALLS - 1 else 1)

    await asyncio.gather(*(ask(1) for _ in range(CONVERSATIONS)))
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(conversation() for _ in range(CONVERSATIONS)))
    return time.perf_counter() - wall, (time.process_time() - cpu) / CONVERSATIONS * 1e3


def stacked(url: str) -> ChatModel:
    """Our wire as `open_model` builds it, without budget and cassette."""
    return Choices(Patient(OpenAIWire("m", url), Endpoint(url, concurrency=CONCURRENCY)))


def main() -> int:
    """Measure, print, and say whether a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1280, help="requests for each way to the wire")
    requests = parser.parse_args().requests
    kept: list[bool] = []

    with fake_server() as url:
        bound = asyncio.run(bare(url, lambda ask: cost(ask, requests)))
        ways = {
            "bare aiohttp": bound,
            "our wire": through(OpenAIWire("m", url), requests),
            "… with patience and choices": through(stacked(url), requests),
            "openai package": through(OpenAISDK("m", url), requests),
            "LiteLLM": through(LiteLLMModel("openai/m", url), requests),
        }
        for name, (cpu, rate) in ways.items():
            print(f"{name:30} {cpu:6.2f} ms CPU a request  {cpu / bound[0]:5.1f} × bare  {rate:6.0f} requests/s")
        kept.append(ways["… with patience and choices"][0] <= 1.0)

        barely, _ = asyncio.run(bare(url, conversations))
        model = stacked(url)
        wall, cpu = asyncio.run(conversations(lambda n: model.complete(PROMPT, n=n)))
        least = TURNS * CALLS * LATENCY
        print(f"{CONVERSATIONS} conversations: {wall:.2f} s, {CONVERSATIONS / wall:.1f} a second")
        print(f"  {wall / least:.2f} × latency alone (limit 1.35); bare aiohttp {barely / least:.2f}")
        print(f"  {cpu:.1f} ms CPU a conversation (limit 30)")
        kept += [wall <= 1.35 * least, cpu <= 30]

    with fake_server(capacity=16) as url:
        model = stacked(url)
        wall, _ = asyncio.run(conversations(lambda n: model.complete(PROMPT, n=n)))
        least = CONVERSATIONS * TURNS * CALLS * LATENCY / 16
        print(f"served 16 at once: {wall:.2f} s, {wall / least:.2f} × requests × latency / 16 (limit 1.15)")
        kept.append(wall <= 1.15 * least)
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())

"""python benchmarks/model_speed.py

What carrying a request to a model costs. A fake server (a process of its own, 50 ms latency) answers requests at
concurrency 64 over bare aiohttp (the bound), over our wire, over our wire with patience and choices around it, over the
openai package and over LiteLLM: CPU time a request, and how often the bound's. What whole conversations cost is in
`conversation_speed.py`.

The limit is the one that the project sets itself; the command exits with 1 when it is exceeded. Needs the extra `llm`.
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
from typing import Any

import aiohttp

from esc_env.models.choices import Choices
from esc_env.models.endpoint import Endpoint
from esc_env.models.patience import Patient
from esc_env.models.sdk import LiteLLMModel, OpenAISDK
from esc_env.models.wire import OpenAIWire
from esc_env.protocols import ChatModel, Request

Ask = Callable[[], Awaitable[object]]
"""One request."""

LATENCY = 0.05
CONCURRENCY = 64
PROMPT: Any = [
    {"role": "system", "content": "You support somebody who is in distress. " * 20},
    *({"role": ("user", "assistant")[i % 2], "content": "I cannot sleep because of my job. " * 4} for i in range(15)),
]


@contextlib.contextmanager
def fake_server() -> Iterator[str]:
    """The base URL of a fake server in another process."""
    command = [sys.executable, "-m", "esc_env.testing.fake_server", "--port", "0", "--latency", str(LATENCY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


async def cost(ask: Ask, requests: int) -> tuple[float, float]:
    """(milliseconds of CPU a request, requests a second) at the concurrency, connections already open."""

    async def worker(count: int) -> None:
        for _ in range(count):
            await ask()

    await asyncio.gather(*(worker(1) for _ in range(CONCURRENCY)))
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker(requests // CONCURRENCY) for _ in range(CONCURRENCY)))
    done = requests // CONCURRENCY * CONCURRENCY
    return (time.process_time() - cpu) / done * 1e3, done / (time.perf_counter() - wall)


async def bare(url: str, measured: Callable[[Ask], Awaitable[tuple[float, float]]]) -> tuple[float, float]:
    """The bound: aiohttp and nothing around it."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask() -> None:
            body = json.dumps({"model": "m", "messages": PROMPT, "temperature": 0.0}).encode()
            headers = {"Content-Type": "application/json"}
            async with session.post(f"{url}/chat/completions", data=body, headers=headers) as response:
                json.loads(await response.read())

        return await measured(ask)


def through(model: ChatModel, requests: int) -> tuple[float, float]:
    """What a chat model costs."""
    return asyncio.run(cost(lambda: model.complete(Request(PROMPT)), requests))


def stacked(url: str) -> ChatModel:
    """Our wire as `open_model` builds it, without budget and cassette."""
    return Choices(Patient(OpenAIWire("m", url), Endpoint(url, concurrency=CONCURRENCY)))


def main() -> int:
    """Measure, print, and say whether a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1280, help="requests for each way to the wire")
    requests = parser.parse_args().requests

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
    cpu = ways["… with patience and choices"][0]
    print(f"limit: 1.0 ms CPU a request{'' if cpu <= 1.0 else '   EXCEEDED'}")
    return int(cpu > 1.0)


if __name__ == "__main__":
    sys.exit(main())

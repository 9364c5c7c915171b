"""python benchmarks/scale_speed.py

Ten thousand conversations in flight, in one process. A fake server (a process of its own, 50 ms an answer) is the
supporter; seeker and critic are the builtin ones; two turns each.

    the limit on requests   is it kept, and is it used: requests a second against `--rpm`
    the writer              conversations a second through it, and how long the file of records takes to be read again
    memory                  of a conversation in flight
    latency                 of 2,000 requests in flight all the time, answered after 5 s, as a ratio to that

Prints ratios to what was asked for, and exits with 1 where a limit that the project sets itself is exceeded. Some two
minutes. Needs the extra `llm`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from conversation_speed import kept, limit, peak_memory, people, server

from esc_env.background import run
from esc_env.evaluation import evaluate
from esc_env.evaluation.runs.runner import read_run
from esc_env.models import ModelSettings, open_model
from esc_env.models.budget import ledger
from esc_env.protocols import ChatModel, Request
from esc_env.rules import Rules

IN_FLIGHT, SLOW = 2_000, 5.0
TURNS = 2
RPM = 18_000
"""Requests a minute: 300 a second, some two thirds of what one slow core carries beside builtin seekers and critics."""


async def waited(model: ChatModel) -> list[float]:
    """Seconds that each request takes; those in flight have begun over the time of one answer, as they do in a run."""
    taken = []

    async def ask(number: int) -> None:
        await asyncio.sleep(SLOW * number / IN_FLIGHT)
        for again in range(3):
            begun = time.perf_counter()
            await model.complete(Request([{"role": "user", "content": "Hello"}], seed=3 * number + again))
            taken.append(time.perf_counter() - begun)

    await asyncio.gather(*map(ask, range(IN_FLIGHT)))
    return taken


def main() -> int:
    """Measure, print, and return 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--conversations", type=int, default=10_000, help="how many, all in flight at the same time")
    count = parser.parse_args().conversations
    with server() as url, tempfile.TemporaryDirectory() as folder:
        model = f"openai/m@{url}"
        chosen, out = people(count), Path(folder) / "run"
        evaluate(model, people(8), rules=Rules(max_turns=1), out=Path(folder) / "warm")
        turns: list[float] = []
        before, asked, wall, cpu = peak_memory(), ledger().calls, time.perf_counter(), time.process_time()
        report = evaluate(
            model, chosen, rules=Rules(max_turns=TURNS), out=out, concurrency=count, requests_per_minute=RPM,
            progress=lambda now: turns.append(time.perf_counter()) if now.turns > len(turns) else None,
        )  # fmt: skip
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        grown, calls = peak_memory() - before, ledger().calls - asked
        size = (out / "trajectories.jsonl").stat().st_size
        reading = time.perf_counter()
        again = read_run(out)
        reading = time.perf_counter() - reading
    if report.completed != count or again.completed != count:
        raise SystemExit(f"{report.completed:,} and {again.completed:,} of {count:,} conversations were completed")
    rate = (len(turns) - 1) / (turns[-1] - turns[0]) * 60  # a request a turn
    print(f"{count:,} conversations in flight: {calls:,} requests in {wall:.1f} s, {cpu / calls * 1e3:.2f} ms CPU each")
    limit("requests a minute / the limit", rate / RPM, 1.02)  # late ones may catch up a tenth of a second
    limit("the limit / requests a minute", RPM / rate, 1.1)
    limit("memory a conversation in flight", grown / count / 1e3, 50, "kB")
    print(f"  {size / 1e6:.1f} MB of records, {size / count:,.0f} bytes each; read again in {reading:.1f} s, ", end="")
    print(f"{count / reading:,.0f} conversations a second; written at {count / wall:,.0f} a second")
    with server(latency=SLOW) as url:
        cpu = time.process_time()
        taken = run(waited(open_model(f"openai/m@{url}", ModelSettings(concurrency=IN_FLIGHT))))
        cpu = time.process_time() - cpu
    print(f"{IN_FLIGHT:,} requests in flight, answered after {SLOW:g} s: {cpu / len(taken) * 1e3:.2f} ms CPU each")
    limit("latency / that of the server", statistics.fmean(taken) / SLOW, 1.1)
    limit("the longest / that of the server", max(taken) / SLOW, 1.2)
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())

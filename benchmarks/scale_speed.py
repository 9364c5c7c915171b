"""python benchmarks/scale_speed.py

Ten thousand conversations in flight, in one process. A fake server (a process of its own, 50 ms an answer) is the
supporter; seeker and critic are the builtin ones; two turns each.

    the limit on requests   is it kept, and is it used: requests a second against `--rpm`
    the writer              conversations a second through it, and how long the file of records takes to be read again
    memory                  of a conversation in flight

Prints ratios to what was asked for, and exits with 1 where a limit that the project sets itself is exceeded. Some two
minutes. Needs the extra `llm`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from conversation_speed import kept, limit, peak_memory, people, server

from esc_env.evaluation import evaluate
from esc_env.evaluation.runs.runner import read_run
from esc_env.models.budget import ledger
from esc_env.rules import Rules

TURNS = 2
RPM = 30_000
"""Requests a minute: 500 a second, half of what one core carries."""


def main() -> int:
    """Measure, print, and return 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--conversations", type=int, default=10_000, help="how many, all in flight at the same time")
    count = parser.parse_args().conversations
    with server() as url, tempfile.TemporaryDirectory() as folder:
        model = f"openai/m@{url}"
        chosen, out = people(count), Path(folder) / "run"
        evaluate(model, people(8), rules=Rules(max_turns=1), out=Path(folder) / "warm")
        before, asked, wall, cpu = peak_memory(), ledger().calls, time.perf_counter(), time.process_time()
        report = evaluate(
            model, chosen, rules=Rules(max_turns=TURNS), out=out, concurrency=count, requests_per_minute=RPM
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        grown, calls = peak_memory() - before, ledger().calls - asked
        size = (out / "trajectories.jsonl").stat().st_size
        reading = time.perf_counter()
        again = read_run(out)
        reading = time.perf_counter() - reading
    if report.completed != count or again.completed != count:
        raise SystemExit(f"{report.completed:,} and {again.completed:,} of {count:,} conversations were completed")
    rate = calls / wall * 60
    print(f"{count:,} conversations in flight: {calls:,} requests in {wall:.1f} s, {cpu / calls * 1e3:.2f} ms CPU each")
    limit("requests a minute / the limit", rate / RPM, 1.0)
    limit("the limit / requests a minute", RPM / rate, 1.1)
    limit("memory a conversation in flight", grown / count / 1e3, 50, "kB")
    print(f"  {size / 1e6:.1f} MB of records, {size / count:,.0f} bytes each; read again in {reading:.1f} s, ", end="")
    print(f"{count / reading:,.0f} conversations a second; written at {count / wall:,.0f} a second")
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())

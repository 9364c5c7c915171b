"""python benchmarks/flakes.py --runs 60 tests/slow/test_interrupt.py tests/test_loop.py

Do tests pass every time, also on a machine that is busy with something else? Runs them over and over, beside as many
busy processes as there are cores. Whatever fails is printed in full, and counted by test; the command then exits with
1. A run that takes too long is ended, with the stacks of all its threads, and has failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing, as fast as they can."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait(10)


def once(arguments: list[str], within: float) -> tuple[list[str], str]:
    """Run pytest: (what failed, what it printed)."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    late = []
    try:
        printed = process.communicate(timeout=within)[0]
    except subprocess.TimeoutExpired:
        late = [f"not done after {within:g} s"]
        process.send_signal(signal.SIGABRT)  # pytest's faulthandler says where every thread is
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and whatever its tests have started
    if late:
        printed = process.communicate(timeout=60)[0]
    failed = late + _FAILED.findall(printed)
    return failed or [f"pytest ended with {process.returncode}"] * bool(process.returncode), printed


def main() -> None:
    """Print a line a run, and the tally."""
    parser = argparse.ArgumentParser(description="Run tests over and over on a busy machine.")
    parser.add_argument("--runs", type=int, default=60, help="how often (default: 60)")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="busy processes (default: one a core)")
    parser.add_argument("--within", type=float, default=1800.0, help="seconds that one run may take (default: 1800)")
    parser.add_argument("arguments", nargs="+", help="files of tests, or anything else for pytest after --")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, too
    tally: Counter[str] = Counter()
    good = 0
    with busy(options.busy):
        for number in range(1, options.runs + 1):
            began = time.monotonic()
            failed, printed = once(options.arguments, options.within)
            print(f"run {number}: {time.monotonic() - began:.0f} s, {', '.join(failed) or 'passed'}", flush=True)
            if failed:
                print(printed, flush=True)
            tally.update(failed)
            good += not failed
    print(f"{good} of {options.runs} runs passed")
    for name, count in tally.most_common():
        print(f"{count:>4} × {name}")
    raise SystemExit(good < options.runs)


if __name__ == "__main__":
    main()

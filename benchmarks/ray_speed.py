"""python benchmarks/ray_speed.py

What a conversation costs where Ray's workers hold it: processor time of this process and of all that it started (Ray's
own among them), with one worker and with two, beside the same conversations in one process without Ray. Each figure is
the difference between a long and a short run, so that starting processes is no part of it.

The limit is the one that the project sets itself; the command exits with 1 when it is exceeded. Needs the extra `ray`,
Linux, and two processors.
"""

# pyright: reportMissingImports=false
# Ray is in an environment of its own, where this is tested.

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import ray

from esc_env.backend import HERE, Backend
from esc_env.evaluation import evaluate
from esc_env.on_ray import Ray
from esc_env.progress import Progress

SHORT, LONG, ROUNDS = 1, 9, 3
"""Trials of the 40 test scenarios, and how often each is measured."""
PEOPLE = 40
LIMIT = 1.2
"""How many times as much a conversation may cost with two workers as with one."""


def used() -> float:
    """Seconds of processor time of this process and of all below it that live."""
    spent: dict[int, float] = {}
    below: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        below[int(fields[1])].append(int(path.parent.name))
        spent[int(path.parent.name)] = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    family = [os.getpid()]
    for each in family:
        family += below[each]
    return sum(spent[each] for each in family)


def cost(backend: Backend, trials: int) -> float:
    """Seconds of processor time of a whole run, up to its last conversation: what workers used is gone with them."""
    now = 0.0

    def told(progress: Progress) -> None:
        nonlocal now
        if progress.done == progress.total:
            now = used()

    time.sleep(1)  # until those of the last run have ended
    before = used()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        evaluate("builtin:skilled", limit=PEOPLE, trials=trials, out=out, backend=backend, progress=told)
    return now - before


def each(backend: Backend) -> float:
    """Milliseconds of processor time a conversation: the median of a few."""
    more = PEOPLE * (LONG - SHORT)
    found = [cost(backend, LONG) - cost(backend, SHORT) for _ in range(ROUNDS)]
    return statistics.median(found) / more * 1e3


def main() -> int:
    """Measure, print, and return 1 when the limit is exceeded."""
    print(f"Ray {ray.__version__}, Python {sys.version.split()[0]}; processor time a conversation:")
    print(f"  without Ray  {each(HERE):6.1f} ms", flush=True)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    for workers in (1, 2):
        cost(Ray(workers=workers), SHORT)  # what Ray starts beforehand is started
    one = each(Ray(workers=1))
    print(f"  one worker   {one:6.1f} ms", flush=True)
    two = each(Ray(workers=2))
    print(f"  two workers  {two:6.1f} ms: {two / one:.2f} times that of one, limit {LIMIT:g}")
    return int(two / one > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

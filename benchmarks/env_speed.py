"""python benchmarks/env_speed.py

What the builtin environment costs: CPU time of a step with 40 and with 4,000 scenarios (their ratio says whether the
size of the bank matters), what `import esc_env` adds to `import gymnasium`, and how long `esc --help` takes. The limits
are those the project sets itself; the command exits with 1 when one is exceeded. Times depend on the machine, ratios
hardly do.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym

import esc_env  # registers ESConv-v0
from esc_env import ScenarioSet
from esc_env.data.datasets import load_scenarios

SAYINGS = (
    "That sounds really hard. What happened?",
    "It sounds like you have been carrying this alone for a while. How has that been for you?",
    "So when it comes up at night, what goes through your mind?",
    "You noticed it early and you talk about it now. That takes courage.",
    "Would it help to plan one small step for tomorrow together?",
)


def bank(size: int) -> ScenarioSet:
    """The builtin training scenarios, repeated under new ids until there are `size`."""
    people = load_scenarios("builtin:train")
    copies = (replace(people[i % len(people)], id=f"{people[i % len(people)].id}-{i}") for i in range(size))
    return ScenarioSet.of(f"{size} scenarios", copies)


def step_cost(scenarios: ScenarioSet, steps: int = 400) -> float:
    """CPU seconds of one step, resets included, all threads of this process."""
    env = gym.make("ESConv-v0", scenarios=scenarios)
    env.reset(seed=0)
    env.step(SAYINGS[0])  # the first call reads the builtin assets
    began = time.process_time()
    env.reset(seed=1)
    for number in range(steps):
        *_, terminated, _, _ = env.step(SAYINGS[number % len(SAYINGS)])
        if terminated:
            env.reset()
    return (time.process_time() - began) / steps


def import_cost(module: str, runs: int = 7) -> float:
    """Median CPU seconds that a fresh interpreter spends on importing `module`."""
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(runs + 1)
    ]
    return statistics.median(times[1:])  # the first one may still write bytecode


def help_cost(runs: int = 5) -> float | None:
    """Median wall seconds of `esc --help`; None when the command is not installed beside this Python."""
    command = Path(sys.executable).with_name("esc")
    if not command.exists():
        return None
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run([command, "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> int:
    """Measure, print, and return 1 when a limit is exceeded."""
    small, large = bank(40), bank(4000)
    few, many = (min(step_cost(people) for _ in range(3)) for people in (small, large))
    base, ours = import_cost("gymnasium"), import_cost("esc_env")
    rows = [
        ("CPU per step, 40 scenarios", few * 1e3, 1.0, "ms"),
        ("CPU per step, 4,000 scenarios", many * 1e3, 1.0, "ms"),
        ("  ratio", many / few, 1.2, ""),
        ("import esc_env / import gymnasium", ours / base, 1.3, ""),
    ]
    wall = help_cost()
    if wall is not None:
        rows.append(("esc --help", wall, 0.5, "s"))
    print(f"esc-env {esc_env.__version__}, gymnasium {gym.__version__}, Python {sys.version.split()[0]}")
    for name, value, limit, unit in rows:
        print(f"{name:<36}{value:8.3f} {unit:<3} limit {limit:g}{'' if value <= limit else '   EXCEEDED'}")
    return int(any(value > limit for _, value, limit, _ in rows))


if __name__ == "__main__":
    sys.exit(main())

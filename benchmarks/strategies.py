"""python benchmarks/strategies.py --episodes 10

What can be had by choosing strategies alone (`esc_env.wrappers.StrategyAction`, with the builtin phrase bank) on the
builtin test split: by chance, by any one strategy for ever, and by one fixed plan. A policy that is trained must beat
these. The table of docs/environment.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import gymnasium as gym
import numpy as np

from esc_env.data.datasets import load_scenarios
from esc_env.dialogue import STRATEGIES
from esc_env.evaluation import success_interval
from esc_env.wrappers import StrategyAction

PLAN = (
    "Question", "Reflection of Feelings", "Reflection of Feelings", "Affirmation and Reassurance", "Question",
    "Providing Suggestions",
)  # fmt: skip
"""The best of three that were tried; its last strategy stays."""


Policy = Callable[[int, np.random.Generator], int]
"""The number of a strategy, given the turn, from 0, and something to draw with."""


def always(number: int) -> Policy:
    """One strategy for ever."""
    return lambda turn, draw: number


def solved(choose: Policy, episodes: int) -> list[list[bool]]:
    """For each scenario, which of its episodes were solved."""
    people = load_scenarios("builtin:test")
    env = StrategyAction(gym.make("esc_env:ESConv-v0", scenarios=people))
    found = []
    for place, person in enumerate(people):
        draw, ends = np.random.default_rng(place), []
        for episode in range(episodes):
            env.reset(seed=episode, options={"scenario": person.id})
            over, turn = False, 0
            while not over:
                _, _, terminated, truncated, info = env.step(choose(turn, draw))
                over, turn = terminated or truncated, turn + 1
            ends.append(info["stop_reason"] == "solved")
        found.append(ends)
    env.close()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10, help="With each of the 40 people.")
    episodes = parser.parse_args().episodes
    policies: dict[str, Policy] = {
        "chance": lambda turn, draw: int(draw.integers(len(STRATEGIES))),
        **{f"always {name}": always(number) for number, name in enumerate(STRATEGIES)},
        "fixed plan": lambda turn, draw: STRATEGIES.index(PLAN[min(turn, len(PLAN) - 1)]),
    }
    print("| policy | SR, % | 95 % |\n|:--|--:|--:|")
    for name, choose in policies.items():
        found = solved(choose, episodes)
        low, high = success_interval(found) or (0.0, 1.0)
        rate = np.mean([end for ends in found for end in ends])
        print(f"| {name} | {100 * rate:.1f} | {100 * low:.1f}–{100 * high:.1f} |", flush=True)


if __name__ == "__main__":
    main()

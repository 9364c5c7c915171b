"""Stable-Baselines3's PPO learns which strategy to choose when. Needs `pip install stable-baselines3` beside esc-env.

    python examples/sb3_ppo.py --steps 40000

Trains on builtin:train, then meets every test scenario a few times beside a policy that chooses by chance, and prints
how often each solved it, with 95 % intervals over scenarios.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TimeAwareObservation
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from esc_env.data.datasets import load_scenarios
from esc_env.evaluation import success_interval
from esc_env.evaluation.statistics.intervals import mean_interval
from esc_env.wrappers import DenseReward, EmbeddingObservation, StrategyAction


def make(scenarios: str = "builtin:train") -> gym.Env[np.ndarray, int]:
    """The environment: eight strategies to choose from, the conversation as a vector, and the number of the turn."""
    env = gym.make("esc_env:ESConv-v0", scenarios=scenarios, max_episode_steps=8)
    return TimeAwareObservation(EmbeddingObservation(DenseReward(StrategyAction(env))), normalize_time=True)


def solved(choose: Callable[[np.ndarray], int], trials: int) -> list[list[bool]]:
    """For each test scenario, which of its conversations were solved."""
    env, found = make("builtin:test"), []
    for person in load_scenarios("builtin:test"):
        ends = []
        for trial in range(trials):
            seen, _ = env.reset(seed=trial, options={"scenario": person.id})
            over = False
            while not over:
                seen, _, terminated, truncated, info = env.step(choose(seen))
                over = terminated or truncated
            ends.append(info["stop_reason"] == "solved")
        found.append(ends)
    env.close()
    return found


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000, help="turns to learn from")
    parser.add_argument("--trials", type=int, default=5, help="conversations with each test scenario")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    env = make_vec_env(make, n_envs=8, seed=given.seed)
    model = PPO(
        "MlpPolicy", env, n_steps=256, batch_size=256, n_epochs=4, gamma=0.98, ent_coef=0.01, learning_rate=1e-3,
        seed=given.seed, device="cpu",
    )  # fmt: skip
    model.learn(given.steps)
    draw = np.random.default_rng(given.seed)
    policies = {
        "PPO": lambda seen: int(model.predict(seen, deterministic=True)[0]),
        "chance": lambda seen: int(draw.integers(8)),
    }
    ends = {name: solved(choose, given.trials) for name, choose in policies.items()}
    for name, found in ends.items():
        interval = success_interval(found)
        assert interval is not None
        low, high = interval
        print(f"{name}: {100 * np.mean(found):.1f} % solved ({100 * low:.1f} to {100 * high:.1f})")
    gains = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(ends["PPO"], ends["chance"], strict=True)]
    gain, (low, high) = mean_interval(gains)
    print(f"PPO solves {100 * gain:.1f} points more ({100 * low:.1f} to {100 * high:.1f})")


if __name__ == "__main__":
    main()

"""TorchRL collects conversations. Needs `pip install torchrl` beside esc-env.

python examples/torchrl_collect.py
"""

from __future__ import annotations

import gymnasium as gym
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper

from esc_env.wrappers import EmbeddingObservation, StrategyAction


def make() -> GymWrapper:
    """Eight strategies to choose from, and the conversation as a vector."""
    return GymWrapper(EmbeddingObservation(StrategyAction(gym.make("esc_env:ESConv-v0"))))


if __name__ == "__main__":
    for batch in Collector(make, policy=None, frames_per_batch=64, total_frames=128):  # None chooses by chance
        done = int(batch["next", "done"].sum())
        print(f"{len(batch)} turns, {done} conversations ended, rewards from {batch['next', 'reward'].min():.2f}")

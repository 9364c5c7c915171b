"""Rewards for training: plain callables that TRL's `GRPOTrainer(reward_funcs=[…])` takes as they are.

>>> from esc_env.rewards import NoiseReward, ThinkFormatReward, combine
>>> reward = combine({"noise": NoiseReward(), "format": ThinkFormatReward()}, noise=1.0, format=0.5)

`combine` is the supported form: it returns None for a row whose model-backed part failed, so that TRL drops the row.
"""

from __future__ import annotations

if __name__ != "esc_env.rewards":
    raise ImportError(f"import this package as esc_env.rewards, not as {__name__}")

from typing import TYPE_CHECKING, Any

from esc_env.rewards.combine import CombinedReward, NoiseReward, combine
from esc_env.rewards.format import ThinkFormatReward
from esc_env.rewards.future import Future, FutureReward, value
from esc_env.rewards.rows import grpo_row

if TYPE_CHECKING:
    from esc_env.rewards.model import RewardModelReward

__all__ = [
    "CombinedReward", "Future", "FutureReward", "NoiseReward", "RewardModelReward", "ThinkFormatReward", "combine",
    "grpo_row", "value",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The reward model is imported when it is asked for: it needs the extra `train`."""
    if name == "RewardModelReward":
        from esc_env.rewards.model import RewardModelReward

        return RewardModelReward
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

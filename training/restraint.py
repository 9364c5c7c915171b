"""What holds a policy back that has found out how to please its reward: a KL near a target, and an end in time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esc_env.errors import MissingExtra

try:
    import transformers
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "train") from error

__all__ = ["KLTarget", "exhausted"]

GAIN, MOST = 0.1, 0.2
"""How fast β follows, and how far off a KL counts at most. *Source:* Ziegler et al., arXiv 1909.08593, section 2.2."""


class KLTarget(transformers.TrainerCallback):
    """Keeps the KL from the policy that training began with near a target: raises β where it is above, and lowers it.

    After every logged step β becomes β · (1 + K · e), with e how far the logged KL is off, as a share of the target,
    within ± `MOST`. It follows from the log alone, so that a run which was interrupted goes on with the same β. Each
    entry of the log tells the β that it was trained with, as `beta`.

    Args:
        trainer: whose `beta` it changes.
        target: nats per token, above 0.
    """

    def __init__(self, trainer: Any, target: float) -> None:
        self.trainer = trainer
        self.target = target

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have the β that what is logged so far leads to."""
        for entry in state.log_history:
            self._follow(entry)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note β, and follow the KL."""
        entry = state.log_history[-1]
        if "kl" in entry:
            entry["beta"] = self.trainer.beta
            self._follow(entry)

    def _follow(self, entry: Mapping[str, Any]) -> None:
        if (kl := entry.get("kl")) is not None:
            off = max(-MOST, min(MOST, kl / self.target - 1))
            self.trainer.beta *= 1 + GAIN * off


def exhausted(valid: Mapping[int, float], patience: int) -> bool:
    """Whether so many checkpoints in a row were no better on valid than the best before them; step 0 counts as one.

    >>> from esc_env.training.restraint import exhausted
    >>> exhausted({0: 0.1, 10: 0.4, 20: 0.4, 30: 0.3}, 2), exhausted({0: 0.1, 10: 0.4, 20: 0.3, 30: 0.5}, 2)
    (True, False)
    """
    steps = sorted(valid)
    best = max(steps, key=lambda step: (valid[step], -step), default=0)
    return sum(step > best for step in steps) >= patience

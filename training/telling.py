"""What a trainer logs, as one line a step for people; `log.json` keeps all of it.

12 of 500 steps: loss 0.0021, reward 0.412 (format 0.31, reply 0.257), KL 0.0134, entropy 2.1, 98% ended, 5 a minute
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from esc_env.errors import MissingExtra
from esc_env.progress import Progress, Watch

try:
    import transformers
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "train") from error

__all__ = ["Telling", "told"]

_NAMES = {
    "eval_loss": "loss on what is held out",
    "loss": "loss",
    "reward": "reward",
    "accuracy": "accuracy",
    "kl": "KL",
    "entropy": "entropy",
    "text/ended": "ended",
}
"""What is told of a log entry, in this order, and how it is called."""


def told(entry: Mapping[str, Any]) -> str:
    """What one entry of a trainer's log says, in words; "" where it holds nothing that is told.

    >>> from esc_env.training.telling import told
    >>> told({"loss": 0.25, "reward": 1.5, "rewards/reply/mean": 1.0, "rewards/format/mean": 1.0, "grad_norm": 3.1})
    'loss 0.25, reward 1.5 (reply 1, format 1)'
    """
    words = []
    for key, name in _NAMES.items():
        if not isinstance(value := entry.get(key), (int, float)):
            continue
        words.append(f"{value:.0%} {name}" if key == "text/ended" else f"{name} {value:.3g}")
        if key == "reward":
            parts = [
                f"{part.split('/')[1]} {mean:.3g}"
                for part, mean in entry.items()
                if part.startswith("rewards/") and part.endswith("/mean") and part != "rewards/total/mean"
                if mean is not None
            ]
            words[-1] += f" ({', '.join(parts)})" if parts else ""
    return ", ".join(words)


class Telling(transformers.TrainerCallback):
    """Tells every logged step on stderr, with pace and time left; of several processes the first one does."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._watch = Watch("")
        self._watch(Progress(state.global_step, state.max_steps, "steps"))

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Tell one entry of the log."""
        words = told(logs or {})
        if words and state.is_world_process_zero:
            self._watch(Progress(state.global_step, state.max_steps, "steps"))
            details = self._watch.details
            print(f"{self._watch.counted}: {words}{f', {details}' if details else ''}", file=sys.stderr, flush=True)

"""Several rewards as one, for TRL: weighted, logged part by part, and without a value where a part has failed.

TRL drops a row only if *all* reward functions return None for it; else it adds up what is left, so that a failed future
would become 0 + 0.5 · format. A combined reward is one function, so that a failed part drops the row.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from esc_env.errors import FailedRowsWarning, ModelUnavailable, SpecError, did_you_mean
from esc_env.rewards.rows import Reward, Text, awaited
from esc_env.seeds import derive

__all__ = ["CombinedReward", "NoiseReward", "combine"]


def combine(
    parts: Mapping[str, Reward], *, max_failed: float = 0.25, window: int = 256, **weights: float
) -> CombinedReward:
    """One reward from several: Σ weight · part.

    >>> from esc_env.rewards import ThinkFormatReward
    >>> combine({"noise": NoiseReward(), "format": ThinkFormatReward()}, noise=1.0, format=0.5).weights
    {'noise': 1.0, 'format': 0.5}

    Args:
        parts: reward callables by name, sync or async.
        max_failed: the share of failed rows, in [0, 1], above which training stops.
        window: the last so many rows over which that share is taken. At least an eighth of it must have been seen.
        weights: the weight of every part, at least 0. *Source:* the paper: 1 for the future, α = 0.5 for the format.

    Raises:
        SpecError: a part without a weight, a weight without a part, or a number that makes no sense.
    """
    for name in weights:
        if name not in parts:
            raise SpecError(f"combine: a weight for {name!r}, which is no part. {did_you_mean(name, parts)}")
    for name in parts:
        if name not in weights:
            raise SpecError(f"combine: the part {name!r} has no weight. Write {name}=1.0")
        if not 0 <= weights[name] < math.inf:
            raise SpecError(f"combine: the weight of {name!r} must be at least 0, not {weights[name]}")
    if not any(weights.values()):
        raise SpecError("combine: at least one part must have a weight above 0")
    if not 0 <= max_failed <= 1 or window < 8:
        raise SpecError(f"combine: max_failed must lie in [0, 1] and window be at least 8, not {max_failed}, {window}")
    return CombinedReward(dict(parts), {name: float(weights[name]) for name in parts}, max_failed, window)


class CombinedReward:
    """What `combine` makes: an async reward function for TRL.

    Logs, through TRL, the mean of every part (`rewards/NAME/mean`), how much it varies within the completions of one
    prompt (`rewards/NAME/spread`), the share of rows without a reward (`rewards/failed`), and every value as a column.

    Attributes:
        parts, weights: by name.
        rows, failed: completions seen so far, and those that got no reward.
    """

    def __init__(self, parts: dict[str, Reward], weights: dict[str, float], max_failed: float, window: int) -> None:
        self.parts = parts
        self.weights = weights
        self.max_failed = max_failed
        self.rows = 0
        self.failed = 0
        self._recent: deque[bool] = deque(maxlen=window)
        self.__name__ = "combined"

    @awaited
    async def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        """One reward per completion; None where a part has none.

        Raises:
            ModelUnavailable: more rows failed lately than `max_failed` allows.
            SpecError: a part returned more or fewer rewards than there are completions.
        """
        given = await asyncio.gather(*(_scores(part, prompts, completions, columns) for part in self.parts.values()))
        scores = dict(zip(self.parts, given, strict=True))
        for name, column in scores.items():
            if len(column) != len(completions):
                raise SpecError(f"reward {name!r} returned {len(column)} values for {len(completions)} completions")
        totals: list[float | None] = []
        for row in zip(*scores.values(), strict=True):
            valid = [part for part in row if part is not None]
            whole = len(valid) == len(row)
            totals.append(
                sum(w * part for w, part in zip(self.weights.values(), valid, strict=True)) if whole else None
            )
        self._log(prompts, scores, totals, columns)
        self._count(scores, totals)
        return totals

    def _log(
        self,
        prompts: Sequence[Text],
        scores: Mapping[str, Sequence[float | None]],
        totals: Sequence[float | None],
        columns: Mapping[str, Any],
    ) -> None:
        log_metric, log_extra = columns.get("log_metric"), columns.get("log_extra")
        if log_metric and totals:
            log_metric("rewards/failed", totals.count(None) / len(totals))
        for name, column in scores.items():
            groups: dict[str, list[float]] = {}
            for prompt, score in zip(prompts, column, strict=True):
                if score is not None:
                    groups.setdefault(repr(prompt), []).append(score)
            if log_metric and groups:
                log_metric(f"rewards/{name}/mean", fmean(score for group in groups.values() for score in group))
                log_metric(f"rewards/{name}/spread", fmean(pstdev(group) for group in groups.values()))
            if log_extra:
                log_extra(name, list(column))

    def _count(self, scores: Mapping[str, Sequence[float | None]], totals: Sequence[float | None]) -> None:
        failed = [total is None for total in totals]
        self.rows += len(failed)
        self.failed += sum(failed)
        self._recent.extend(failed)
        if not any(failed):
            return
        where = ", ".join(f"{name} ({column.count(None)})" for name, column in scores.items() if None in column)
        share = sum(self._recent) / len(self._recent)
        if share > self.max_failed and len(self._recent) * 8 >= (self._recent.maxlen or 0):
            raise ModelUnavailable(
                f"{share:.0%} of the last {len(self._recent)} completions got no reward, more than the "
                f"{self.max_failed:.0%} allowed; failing: {where}. Mend that part, or raise max_failed, and resume"
            )
        warnings.warn(
            f"{sum(failed)} of {len(failed)} completions got no reward and are dropped; failing: {where} "
            f"({self.failed} of {self.rows} so far)",
            FailedRowsWarning,
            stacklevel=2,
        )


class NoiseReward:
    """A control: uniform in [0, 1), fresh in every step and for every row, so that nothing can be learned from it.

    The paper's random control is another one, a fixed function that has a gradient: `RewardModelReward.untrained`.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.__name__ = "noise"
        self._calls = 0

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
        """One draw per completion; the same again only for the same seed, step, call, prompt and row."""
        step = getattr(columns.get("trainer_state"), "global_step", 0)
        self._calls += 1
        return [derive(self.seed, step, self._calls, row, repr(prompt)) / 2.0**63 for row, prompt in enumerate(prompts)]


async def _scores(
    part: Reward, prompts: Sequence[Text], completions: Sequence[Text], columns: Mapping[str, Any]
) -> list[float | None]:
    given = part(prompts=prompts, completions=completions, **columns)
    if inspect.isawaitable(given):
        given = await given
    return [None if score is None or math.isnan(score) else float(score) for score in given]

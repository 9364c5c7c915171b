"""How sure a mean is where training differs too: seeds of training are drawn, then scenarios.

*Sources:* drawing one fewer than there are, which makes the variance unbiased: Rao and Wu, JASA 83 (1988) 231–241;
scenarios that all runs share are drawn once for all of them: Owen, Annals of Applied Statistics 1 (2007) 386–411.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from esc_env.errors import SpecError
from esc_env.evaluation.statistics.intervals import auc

__all__ = ["TwoLevel", "auc_interval", "two_level"]

RESAMPLES = 4000
AUC_RESAMPLES = 2000

Array = npt.NDArray[Any]

Run = Mapping[str, Sequence[float]]
"""Values by scenario, such as differences of paired conversations: what one trained policy did."""


@dataclass(frozen=True, slots=True)
class TwoLevel:
    """A mean over trained policies and scenarios.

    Attributes:
        mean: of all values.
        interval: of 95 %, resampling seeds of training and scenarios. Of fewer than 8 seeds it is still too narrow.
        between: standard deviation of the runs' means, which is what another seed of training changes; None for one.
        within: standard error of one run's mean, from the scenarios alone (root mean square over runs).
        runs, scenarios: how many.
    """

    mean: float
    interval: tuple[float, float]
    between: float | None
    within: float
    runs: int
    scenarios: int


def two_level(groups: Sequence[Sequence[Run]], *, seed: int = 0) -> TwoLevel:
    """The mean of all values and how sure it is.

    Args:
        groups: for every seed of what runs share (SFT and collection), its runs, one for each seed of GRPO.
        seed: of the resampling.

    Raises:
        SpecError: without any value.
    """
    runs = [run for group in groups for run in group]
    names = sorted({name for run in runs for name, values in run.items() if len(values)})
    if not names:
        raise SpecError("there is no value to take a mean of")
    totals = np.array([[sum(run.get(name, ())) for name in names] for run in runs], dtype=np.float64)
    tried = np.array([[len(run.get(name, ())) for name in names] for run in runs], dtype=np.float64)
    some = tried.sum(axis=1) > 0
    means = totals[some].sum(axis=1) / tried[some].sum(axis=1)
    mean = float(totals.sum() / tried.sum())
    draw = np.random.default_rng(seed)
    times = _times(draw, np.ones(RESAMPLES, dtype=np.int64), len(groups))
    weights = np.concatenate(
        [_times(draw, times[:, place], len(group)) / max(1, len(group) - 1) for place, group in enumerate(groups)],
        axis=1,
    )
    people = _times(draw, np.ones(RESAMPLES, dtype=np.int64), len(names))
    above, below = (((weights @ table) * people).sum(axis=1) for table in (totals, tried))
    drawn = above[below > 0] / below[below > 0]
    off = totals[some] - means[:, None] * tried[some]
    spread = len(names) / max(1, len(names) - 1) * (off**2).sum(axis=1) / tried[some].sum(axis=1) ** 2
    return TwoLevel(
        mean,
        _ends(drawn, mean),
        float(means.std(ddof=1)) if len(means) > 1 else None,
        math.sqrt(float(spread.mean())),
        len(means),
        len(names),
    )


def _times(draw: np.random.Generator, rounds: Array, count: int) -> Array:
    """How often each of `count` is drawn: in every round one fewer than there are; one alone, once in every round."""
    if count == 1:
        return rounds[:, None]
    return draw.multinomial(rounds * (count - 1), np.full(count, 1 / count))


def auc_interval(
    scores: Array, better: Array, worse: Array, clusters: Sequence[Any], *, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of an AUC over rows of which those of one cluster are alike; None for one cluster, or no pair.

    Args:
        scores: of rows.
        better, worse: how much each row counts on either side, as `auc` has it.
        clusters: whose each row is, such as its scenario's: whole ones are resampled.
        seed: of the resampling.
    """
    names, places = np.unique(np.array(clusters, dtype=str), return_inverse=True)
    if len(names) < 2:
        return None
    draw = np.random.default_rng(seed)
    values = []
    for _ in range(AUC_RESAMPLES):
        times = draw.multinomial(len(names), np.full(len(names), 1 / len(names)))[places]
        value, _ = auc(scores, scores, (better * times, worse * times))
        values += [] if value is None else [value]
    measured, _ = auc(scores, scores, (better, worse))
    return None if measured is None else _ends(np.array(values), measured)


def _ends(values: Array, least: float) -> tuple[float, float]:
    """The ends between which 95 % of the values lie, and `least` with them."""
    low, high = np.quantile(values, (0.025, 0.975))
    return min(least, float(low)), max(least, float(high))

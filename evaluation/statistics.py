"""How sure a success rate is, how well scores tell two kinds apart, and how sure that is.

One rule decides, in `success_interval`: Wilson's interval when every scenario was tried once; otherwise a bootstrap
that resamples scenarios, since trials of one scenario are alike.

*Sources:* Wilson, JASA 22 (1927) 209–212, recommended by Brown, Cai and DasGupta, Statistical Science 16 (2001)
101–133; cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8, and Field
and Welsh, JRSS B 69 (2007) 369–390. AUC: Hanley and McNeil, Radiology 143 (1982) 29–36; its bootstrap resamples either
side: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 16.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esc_env.errors import SpecError

__all__ = ["RESAMPLES", "auc", "auc_estimate", "clustered_bootstrap", "clustered_mean", "success_interval", "wilson"]

RESAMPLES = 4000
"""Bootstrap resamples: the ends of a 95 % interval then move by about 0.002 between seeds."""
AUC_RESAMPLES = 2000

Array = npt.NDArray[Any]

_Z = 1.959963984540054
_ENTRIES = 1_000_000


def success_interval(outcomes: Iterable[Collection[bool]]) -> tuple[float, float] | None:
    """The 95 % interval of a success rate, in [0, 1]; None without any outcome.

    Args:
        outcomes: for every scenario, whether each of its trials was solved.
    """
    counts = [(sum(trials), len(trials)) for trials in outcomes if trials]
    if not counts:
        return None
    if all(tried == 1 for _, tried in counts):
        return wilson(sum(solved for solved, _ in counts), len(counts))
    return clustered_bootstrap(counts)


def wilson(solved: int, tried: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for `solved` of `tried` independent trials.

    Raises:
        SpecError: unless 0 <= solved <= tried and tried >= 1.
    """
    if not 0 <= solved <= tried or tried < 1:
        raise SpecError(f"cannot have {solved} successes in {tried} trials")
    return _wilson(solved / tried, tried)


def _wilson(rate: float, tried: float) -> tuple[float, float]:
    middle = rate + _Z**2 / (2 * tried)
    spread = _Z * math.sqrt(rate * (1 - rate) / tried + _Z**2 / (4 * tried**2))
    scale = 1 + _Z**2 / tried
    return max(0.0, min(rate, (middle - spread) / scale)), min(1.0, max(rate, (middle + spread) / scale))


def clustered_bootstrap(counts: Iterable[tuple[int, int]], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of a success rate, resampling whole scenarios with replacement.

    When all scenarios have one and the same rate, resampling cannot see any spread; then the number of scenarios is the
    sample size. If nothing at all was solved (or everything), the error can lie on one side only, and the interval is
    the one-sided exact one, [0, 1 - 0.05^(1/n)]: the "rule of three" (Hanley and Lippman-Hand, JAMA 249 (1983)
    1743-1745), 0 to 7.2 % for 40 scenarios. Else it is Wilson's.

    Args:
        counts: (solved, tried) for every scenario, tried >= 1.
        seed: of the resampling; the same counts and seed give the same interval.

    Raises:
        SpecError: without any scenario, or for counts that cannot be.
    """
    table = np.array(list(counts), dtype=np.float64).reshape(-1, 2)
    solved, tried = table[:, 0], table[:, 1]
    if not len(table) or (tried < 1).any() or (solved < 0).any() or (solved > tried).any():
        raise SpecError("counts must be (solved, tried) with 0 <= solved <= tried and tried >= 1, at least one")
    rate = float(solved.sum() / tried.sum())
    if rate in (0.0, 1.0):
        edge = 1 - 0.05 ** (1 / len(table))
        return (0.0, edge) if rate == 0.0 else (1 - edge, 1.0)
    if np.ptp(solved / tried) == 0:
        return _wilson(rate, len(table))
    low, high = _resampled(solved, tried, seed)
    return min(rate, low), max(rate, high)


def clustered_mean(values: Iterable[Sequence[float]], *, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """The mean of all values and its 95 % percentile interval, resampling whole scenarios with replacement.

    Args:
        values: for every scenario, its values: differences of paired trials, say.
        seed: of the resampling.

    Raises:
        SpecError: without any value.
    """
    clusters = [cluster for cluster in values if cluster]
    if not clusters:
        raise SpecError("there is no value to take a mean of")
    totals = np.array([sum(cluster) for cluster in clusters], dtype=np.float64)
    tried = np.array([len(cluster) for cluster in clusters], dtype=np.float64)
    return float(totals.sum() / tried.sum()), _resampled(totals, tried, seed)


def _resampled(totals: Any, tried: Any, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of Σ totals / Σ tried when its rows are drawn with replacement."""
    draw = np.random.default_rng(seed)
    step = max(1, _ENTRIES // len(totals))
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, step):
        chosen = draw.integers(0, len(totals), (min(step, RESAMPLES - start), len(totals)))
        means[start : start + step] = totals[chosen].sum(axis=1) / tried[chosen].sum(axis=1)
    return _middle(means)


def auc(better: Array, worse: Array, *strata: tuple[Array, Array]) -> tuple[float | None, float]:
    """(the chance that a value of one side exceeds one of the other, the number of pairs that it rests on).

    Ties count half. None where there is no pair.

    Args:
        better, worse: values, of shapes (n,) and (m,).
        strata: (how much each `better` value counts, how much each `worse` one does), where only values of one stratum
            are paired. A value with a soft label p stands on both sides, and counts p on the first, 1 − p on the other.
    """
    order = np.argsort(worse)
    ends = [np.searchsorted(worse[order], better, side) for side in ("left", "right")]
    won = pairs = 0.0
    for many, others in strata:
        upto = np.concatenate(([0.0], np.cumsum(others[order])))
        won += float(many @ (upto[ends[0]] + upto[ends[1]])) / 2
        pairs += float(many.sum() * upto[-1])
    return (won / pairs if pairs else None), pairs


def auc_estimate(
    better: Array, worse: Array, *strata: tuple[Array, Array], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """An AUC and its 95 % percentile interval, resampling the values of either side with replacement.

    Raises:
        SpecError: when there is no pair.
    """
    measured, _ = auc(better, worse, *strata)
    if measured is None:
        raise SpecError("there is no pair to compare")
    draw = np.random.default_rng(seed)
    values = []
    for _ in range(AUC_RESAMPLES):
        many, others = (draw.multinomial(n, np.full(n, 1 / n)) for n in (len(better), len(worse)))
        value, _ = auc(better, worse, *((many * one, others * other) for one, other in strata))
        values += [] if value is None else [value]
    return measured, _middle(values)


def _middle(values: Any) -> tuple[float, float]:
    """The ends between which 95 % of the values lie."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)

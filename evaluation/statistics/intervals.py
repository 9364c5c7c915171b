"""How sure a success rate is, and a difference of two; how well scores tell two kinds apart, and how sure that is.

One rule decides for rates, in `success_interval`: Wilson's interval, for as many conversations as the run is worth.
Trials of one scenario are alike, so that many of one scenario are worth little more than one; how much, the outcomes
say (the design effect). The rule and that of differences were chosen by `python benchmarks/interval_coverage.py`, which
says how often each covers: a bootstrap of scenarios covers too seldom where there are few of them or rates are extreme.

*Sources:* Wilson, JASA 22 (1927) 209–212, recommended by Brown, Cai and DasGupta, Statistical Science 16 (2001)
101–133; for clusters, with an effective sample size: Korn and Graubard, Survey Methodology 24 (1998) 193–201, and
Franco, Little, Louis and Slud, J. Survey Statistics and Methodology 7 (2019) 334–364; pseudo-observations: Agresti and
Coull, The American Statistician 52 (1998) 119–126, for paired differences Bonett and Price, J. Educational and
Behavioral Statistics 37 (2012) 479–488 (that they are whole scenarios, and their weight, are ours). AUC: Hanley and
McNeil, Radiology 143 (1982) 29–36; its bootstrap resamples either side: Efron and Tibshirani, An Introduction to the
Bootstrap (1993), chapter 16.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esc_env.errors import SpecError

__all__ = [
    "POWER", "Z", "auc", "auc_estimate", "clustered_wilson", "detectable", "mean_interval", "success_interval",
    "wilson",
]  # fmt: skip

AUC_RESAMPLES = 2000

Array = npt.NDArray[Any]

Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""
POWER = 0.8416212335729143
"""The normal quantile of a power of 80 %, which the smallest detectable differences are for."""
_WEIGHT = 1 / 25
"""Times √n: the weight of a scenario at either end that is added to n of them where spread is estimated. Ours: by the
simulation, a weight that does not grow is too large for 10 scenarios or too small for 40."""


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
    return clustered_wilson(counts)


def wilson(solved: int, tried: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for `solved` of `tried` independent trials.

    Raises:
        SpecError: unless 0 <= solved <= tried and tried >= 1.
    """
    if not 0 <= solved <= tried or tried < 1:
        raise SpecError(f"cannot have {solved} successes in {tried} trials")
    return _wilson(solved / tried, tried)


def _wilson(rate: float, tried: float) -> tuple[float, float]:
    middle = rate + Z**2 / (2 * tried)
    spread = Z * math.sqrt(rate * (1 - rate) / tried + Z**2 / (4 * tried**2))
    scale = 1 + Z**2 / tried
    return max(0.0, min(rate, (middle - spread) / scale)), min(1.0, max(rate, (middle + spread) / scale))


def clustered_wilson(counts: Iterable[tuple[int, int]]) -> tuple[float, float]:
    """The 95 % interval of a success rate over scenarios that were tried several times: Wilson's, of effective size.

    Σ tried conversations are worth Σ tried / D independent ones. D, the design effect, is how much larger the variance
    between scenarios makes that of the rate; it lies between 1 (trials of one scenario are no more alike than others)
    and Σ tried² / Σ tried (one trial tells all of its scenario). Where nearly nothing was solved, or all, the scenarios
    show no spread: so D is estimated with two more of weight √n / 25 each, one always solved and one never.

    If nothing at all was solved (or everything), the error can lie on one side only, and the interval is the one-sided
    exact one for as many trials as there are scenarios, [0, 1 − 0.05^(1/n)]: the "rule of three" (Hanley and
    Lippman-Hand, JAMA 249 (1983) 1743–1745), 0 to 7.2 % for 40 scenarios.

    Args:
        counts: (solved, tried) for every scenario, tried >= 1.

    Raises:
        SpecError: without any scenario, or for counts that cannot be.
    """
    table = np.array(list(counts), dtype=np.float64).reshape(-1, 2)
    solved, tried = table[:, 0], table[:, 1]
    if not len(table) or (tried < 1).any() or (solved < 0).any() or (solved > tried).any():
        raise SpecError("counts must be (solved, tried) with 0 <= solved <= tried and tried >= 1, at least one")
    total = float(tried.sum())
    rate = float(solved.sum()) / total
    if rate in (0.0, 1.0):
        edge = _unseen(len(table))
        return (0.0, edge) if rate == 0.0 else (1 - edge, 1.0)
    middle, variance = _spread(solved, tried, 0.0, 1.0)
    effect = variance * (total + 2 * _weight(len(table)) * tried.mean()) / (middle * (1 - middle))
    return _wilson(rate, total / float(np.clip(effect, 1.0, (tried**2).sum() / total)))


def mean_interval(
    values: Iterable[Sequence[float]], *, within: tuple[float, float] = (-1.0, 1.0)
) -> tuple[float, tuple[float, float]]:
    """(the mean of differences or scores, its 95 % interval), where those of one scenario are alike.

    The interval is the normal one of means over scenarios, with two more scenarios of weight √n / 25 each, one of all
    the least that a value can be and one of all the most: without them a few scenarios, or hardly any that differ,
    claim to be sure. If the means of all scenarios are the same, at most a share of 1 − 0.05^(1/n) can be others, the
    rule of three of `clustered_wilson`: the interval reaches as far as if these were all the least, or all the most.

    Args:
        values: for every scenario, its values: differences of paired trials, say.
        within: the least and the most that a value can be.

    Raises:
        SpecError: without any value.
    """
    totals, tried = _sums(values)
    mean = float(totals.sum() / tried.sum())
    low, high = within
    if np.allclose(totals / tried, mean, rtol=0, atol=1e-9):  # equal, but for how their sums were rounded
        edge = _unseen(len(tried))
        return mean, (mean - edge * (mean - low), mean + edge * (high - mean))
    middle, variance = _spread(totals, tried, low, high)
    reach = Z * math.sqrt(variance)
    return mean, (max(low, min(mean, middle - reach)), min(high, max(mean, middle + reach)))


def detectable(values: Iterable[Sequence[float]]) -> float:
    """The smallest true mean that values which spread like these would have told from 0, four times in five.

    With a two-sided test at 5 % and a power of 80 %: 2.80 standard errors, those of `mean_interval`. *Source:* Bloom,
    Evaluation Review 19 (1995) 547–556.

    Args:
        values: as in `mean_interval`, each in [−1, 1].

    Raises:
        SpecError: without any value.
    """
    return (Z + POWER) * math.sqrt(_spread(*_sums(values), -1.0, 1.0)[1])


def _weight(scenarios: int) -> float:
    return _WEIGHT * math.sqrt(scenarios)


def _unseen(scenarios: int) -> float:
    """The largest share of scenarios of which none is seen among so many, one time in twenty."""
    return float(1 - 0.05 ** (1 / scenarios))


def _sums(values: Iterable[Sequence[float]]) -> tuple[Array, Array]:
    clusters = [cluster for cluster in values if cluster]
    if not clusters:
        raise SpecError("there is no value to take a mean of")
    totals = np.array([sum(cluster) for cluster in clusters], dtype=np.float64)
    return totals, np.array([len(cluster) for cluster in clusters], dtype=np.float64)


def _spread(totals: Array, tried: Array, low: float, high: float) -> tuple[float, float]:
    """(mean of values, the variance of that mean) from sums and numbers per scenario, as scenarios differ.

    With two more scenarios of `_weight`, with as many trials as the average one: all values `low`, all `high`.
    """
    size, weight = float(tried.mean()), _weight(len(tried))
    scenarios = len(tried) + 2 * weight
    total = float(tried.sum()) + 2 * weight * size
    middle = (float(totals.sum()) + weight * size * (low + high)) / total
    squares = float(((totals - middle * tried) ** 2).sum())
    squares += weight * size**2 * ((low - middle) ** 2 + (high - middle) ** 2)
    return middle, squares * scenarios / (scenarios - 1) / total**2


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
    low, high = np.quantile(values, (0.025, 0.975))
    return measured, (float(low), float(high))

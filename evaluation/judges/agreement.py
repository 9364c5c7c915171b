"""How far two raters agree, or several: rank correlation, Cohen's and Fleiss' κ, Krippendorff's α, from libraries.

*Sources:* Spearman, American Journal of Psychology 15 (1904) 72–101, by SciPy; Cohen, Educational and Psychological
Measurement 20 (1960) 37–46, by statsmodels; Krippendorff, Content Analysis (2004), chapter 11, by `krippendorff`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from importlib import import_module
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from esc_env.errors import MissingExtra
from esc_env.evaluation.validity.critics import Estimate

__all__ = ["Array", "alpha", "check_libraries", "fleiss", "kappa", "rank_correlation", "resampled", "spearman"]

Array = npt.NDArray[Any]
RESAMPLES = 1000


def check_libraries() -> None:
    """See before anything is asked that what counts the answers is installed. Raises MissingExtra otherwise."""
    for name in ("choix", "krippendorff", "scipy", "statsmodels"):
        try:
            import_module(name)
        except ImportError as error:
            raise MissingExtra(str(error.name).partition(".")[0], "judge") from error


def spearman(one: Sequence[float] | Array, other: Sequence[float] | Array) -> float | None:
    """Spearman's ρ, in [−1, 1]; None where there are fewer than three, or a side does not vary."""
    from scipy import stats

    if len(one) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
        return None
    found: Any = stats.spearmanr(one, other)
    return float(found.statistic)


def rank_correlation(one: Sequence[float], other: Sequence[float], clusters: Sequence[Hashable]) -> Estimate | None:
    """Spearman's ρ with its 95 % interval, resampling whole clusters; None where it is none."""
    first, second = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    return resampled(lambda rows: spearman(first[rows], second[rows]), clusters, (-1, 1))


def kappa(one: Sequence[Hashable], other: Sequence[Hashable]) -> float | None:
    """Cohen's κ of two raters of the same things; None where both always say one and the same."""
    from statsmodels.stats.inter_rater import cohens_kappa

    labels = sorted({*one, *other}, key=str)
    if len(labels) < 2:
        return None
    place = {label: number for number, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels)))
    for first, second in zip(one, other, strict=True):
        table[place[first], place[second]] += 1
    found: Any = cohens_kappa(table, return_results=False)
    return float(found)


def fleiss(table: Sequence[Sequence[float]] | Array) -> float | None:
    """Fleiss' κ of several raters; None without units, with a single rater, or where all always say one and the same.

    Args:
        table: a row per rater, a column per unit that all of them rated.
    """
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    ratings = np.asarray(table, dtype=float)
    if not ratings.size or len(ratings) < 2 or len(np.unique(ratings)) < 2:
        return None
    counts, _ = aggregate_raters(ratings.T)
    return float(fleiss_kappa(counts))


def alpha(table: Sequence[Sequence[float]] | Array, level: Literal["ordinal", "interval", "nominal"]) -> float | None:
    """Krippendorff's α, at most 1; 0 is chance. None where nothing was rated twice, or nothing varies.

    Args:
        table: a row per rater, a column per unit; NaN for what somebody did not rate.
        level: of measurement.
    """
    import krippendorff

    ratings = np.asarray(table, dtype=float)
    twice = ratings[:, (~np.isnan(ratings)).sum(axis=0) > 1] if ratings.size else ratings
    if not twice.size or len(np.unique(twice[~np.isnan(twice)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=ratings, level_of_measurement=level))


def resampled(
    measure: Callable[[Array], float | None], clusters: Sequence[Hashable], bounds: tuple[float, float]
) -> Estimate | None:
    """What `measure` gives of all rows, and its 95 % percentile interval over draws of whole clusters.

    None where it gives none. Where there are not two clusters, or half of the draws give none, the interval is all
    there is: `bounds`.

    Args:
        measure: a function of row numbers.
        clusters: to which each row belongs.
        bounds: of the measure.
    """
    names = list(dict.fromkeys(clusters))
    rows = [np.array([i for i, each in enumerate(clusters) if each == name]) for name in names]
    if not rows or (middle := measure(np.concatenate(rows))) is None:
        return None
    draw = np.random.default_rng(0)
    values = [
        value
        for _ in range(RESAMPLES if len(rows) > 1 else 0)
        if (value := measure(np.concatenate([rows[i] for i in draw.integers(0, len(rows), len(rows))]))) is not None
    ]
    if 2 * len(values) < RESAMPLES:
        return Estimate(middle, bounds)
    low, high = np.quantile(values, (0.025, 0.975))
    return Estimate(middle, (min(middle, float(low)), max(middle, float(high))))

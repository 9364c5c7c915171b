"""python benchmarks/interval_coverage.py

How often a 95 % interval covers what it is about, when trials of one scenario are alike: the choice that
`esc_env.evaluation.statistics.intervals` made, and what it was chosen from.

Every scenario has a success rate of its own, drawn from a beta distribution around the true one; the intraclass
correlation (ICC) says how much of the variance lies between scenarios, 0 for trials that are all independent. Printed
for every number of scenarios, over all settings of rates, trials and ICC: mean and lowest coverage, the share of
settings covered in 93 to 97 %, the share below 93 %, and the mean width in points. An interval that is discrete covers
more where rates are extreme: with 10 scenarios at a rate of 2 %, most runs solve nothing, and all of these are covered.
The differences are of two agents on the same scenarios, whose rates go together (correlation .5).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from esc_env.evaluation.pages.markdown import table
from esc_env.evaluation.statistics.intervals import clustered_wilson, mean_interval

Array = npt.NDArray[Any]
Interval = Callable[[Array, int], tuple[Array, Array]]
"""(sums over trials: a row per run, a column per scenario; trials) to (low, high) per run."""

SCENARIOS, TRIALS, CORRELATIONS = (10, 20, 40, 130), (2, 5, 10), (0.0, 0.1, 0.3, 0.5, 0.8)
RATES = (0.02, 0.05, 0.1, 0.3, 0.5, 0.8, 0.98)
PAIRS = ((0.02, 0.02), (0.02, 0.05), (0.05, 0.15), (0.1, 0.3), (0.5, 0.5), (0.5, 0.6), (0.3, 0.7), (0.9, 0.98))
RESAMPLES = 1000
Z = float(stats.norm.ppf(0.975))


def bootstrapped(totals: Array, trials: int) -> tuple[Array, Array]:
    """Percentiles of the mean when scenarios are drawn with replacement."""
    scenarios = totals.shape[1]
    drawn = np.random.default_rng(0).multinomial(scenarios, np.full(scenarios, 1 / scenarios), RESAMPLES)
    low, high = np.quantile(totals @ drawn.T / (scenarios * trials), (0.025, 0.975), axis=1)
    return low, high


def bootstrap(totals: Array, trials: int) -> tuple[Array, Array]:
    """The same for rates, with the rule of three where nothing is solved, or everything."""
    low, high = bootstrapped(totals, trials)
    rate, edge = totals.mean(axis=1) / trials, 1 - 0.05 ** (1 / totals.shape[1])
    return np.where(rate == 1, 1 - edge, low), np.where(rate == 0, edge, high)


def effective(totals: Array, trials: int) -> tuple[Array, Array]:
    """(rates, effective sizes), where the design effect is that of the data alone."""
    shares = totals / trials
    rate = shares.mean(axis=1)
    inside = (rate > 0) & (rate < 1)
    effect = np.where(inside, trials * shares.var(axis=1, ddof=1) / np.where(inside, rate * (1 - rate), 1), trials)
    return rate, totals.shape[1] * trials / effect.clip(1, trials)


def wilson(rate: Array, size: Array, quantile: float) -> tuple[Array, Array]:
    """Wilson's interval."""
    middle, scale = rate + quantile**2 / (2 * size), 1 + quantile**2 / size
    reach = quantile * np.sqrt(rate * (1 - rate) / size + quantile**2 / (4 * size**2))
    return ((middle - reach) / scale).clip(0), ((middle + reach) / scale).clip(max=1)


def student(totals: Array) -> float:
    """Student's quantile with one degree of freedom less than there are scenarios."""
    return float(stats.t.ppf(0.975, totals.shape[1] - 1))


def logit(totals: Array, trials: int) -> tuple[Array, Array]:
    """Student's interval of the logit with the same effective size; the rule of three at the ends."""
    rate, size = effective(totals, trials)
    edge = 1 - 0.05 ** (1 / totals.shape[1])
    inside = np.where((rate > 0) & (rate < 1), rate, 0.5)
    reach = student(totals) / np.sqrt(size * inside * (1 - inside))
    low, high = (1 / (1 + (1 - inside) / inside * np.exp(-sign * reach)) for sign in (-1, 1))
    return (
        np.where(rate == 0, 0, np.where(rate == 1, 1 - edge, low)),
        np.where(rate == 1, 1, np.where(rate == 0, edge, high)),
    )


def korn_graubard(totals: Array, trials: int) -> tuple[Array, Array]:
    """Clopper and Pearson's with the effective size scaled for few scenarios. *Source:* Korn and Graubard (1998)."""
    rate, size = effective(totals, trials)
    size = size * (stats.t.ppf(0.975, totals.size // len(totals) * trials - 1) / student(totals)) ** 2
    solved = rate * size
    low = stats.beta.ppf(0.025, np.maximum(solved, 1e-9), size - solved + 1)
    high = stats.beta.ppf(0.975, solved + 1, np.maximum(size - solved, 1e-9))
    return np.where(rate == 0, 0, low), np.where(rate == 1, 1, high)


def chosen(totals: Array, trials: int) -> tuple[Array, Array]:
    """What this project prints for rates."""
    ends = np.array([clustered_wilson([(int(each), trials) for each in row]) for row in totals])
    return ends[:, 0], ends[:, 1]


def difference_student(totals: Array, trials: int) -> tuple[Array, Array]:
    """Student's interval of the mean of scenarios."""
    shares = totals / trials
    reach = student(totals) * shares.std(axis=1, ddof=1) / np.sqrt(totals.shape[1])
    return shares.mean(axis=1) - reach, shares.mean(axis=1) + reach


def difference_chosen(totals: Array, trials: int) -> tuple[Array, Array]:
    """What this project prints for differences."""
    ends = np.array([mean_interval([each] for each in row)[1] for row in (totals / trials).tolist()])
    return ends[:, 0], ends[:, 1]


FOR_RATES: Mapping[str, Interval] = {
    "bootstrap of scenarios": bootstrap,
    "Wilson, effective n": lambda totals, trials: wilson(*effective(totals, trials), Z),
    "the same with Student's t": lambda totals, trials: wilson(*effective(totals, trials), student(totals)),
    "logit with Student's t": logit,
    "Korn and Graubard": korn_graubard,
    "chosen: Wilson, effective n, two added scenarios": chosen,
}
FOR_DIFFERENCES: Mapping[str, Interval] = {
    "bootstrap of scenarios": bootstrapped,
    "Student's t of scenarios": difference_student,
    "chosen: normal, two added scenarios, rule of three": difference_chosen,
}


def hardness(rate: float, correlation: float, place: Array) -> Array:
    """Each scenario's own rate, at these places (in [0, 1]) of its distribution."""
    if not correlation:
        return np.full_like(place, rate)
    spread = (1 - correlation) / correlation
    grid = np.linspace(0, 1, 2001)
    return np.interp(place, grid, stats.beta.ppf(grid, rate * spread, (1 - rate) * spread))


def rates(draw: np.random.Generator, runs: int, scenarios: int) -> list[tuple[float, Array, int]]:
    """(the truth, what was counted, trials) for every setting."""
    made = []
    for trials, rate, correlation in product(TRIALS, RATES, CORRELATIONS):
        own = hardness(rate, correlation, draw.random((runs, scenarios)))
        made.append((rate, draw.binomial(trials, own), trials))
    return made


def differences(draw: np.random.Generator, runs: int, scenarios: int) -> list[tuple[float, Array, int]]:
    """The same for two agents."""
    made = []
    for trials, (one, other), correlation in product((1, *TRIALS), PAIRS, CORRELATIONS[1:]):
        shared = draw.standard_normal((runs, scenarios))
        apart = 0.5 * shared + np.sqrt(0.75) * draw.standard_normal((runs, scenarios))
        before, after = (
            draw.binomial(trials, hardness(rate, correlation, stats.norm.cdf(place)))
            for rate, place in ((one, shared), (other, apart))
        )
        made.append((other - one, after - before, trials))
    return made


def measure(candidates: Mapping[str, Interval], settings: list[tuple[float, Array, int]]) -> list[tuple[str, ...]]:
    """A row of the table for each candidate."""
    rows = []
    for name, candidate in candidates.items():
        seen: dict[str, list[float]] = defaultdict(list)
        for truth, totals, trials in settings:
            low, high = candidate(totals, trials)
            seen["covered"].append(float(((low <= truth + 1e-12) & (truth - 1e-12 <= high)).mean()))
            seen["width"].append(float((high - low).mean()))
        covered = seen["covered"]
        within = fmean(0.93 <= each <= 0.97 for each in covered)
        short = fmean(each < 0.93 for each in covered)
        shown = (fmean(covered), min(covered), within, short)
        rows.append((name, *(f"{100 * each:.1f}" for each in shown), f"{100 * fmean(seen['width']):.1f}"))
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs of every setting")
    runs = parser.parse_args().runs
    titles = ("interval", "mean coverage, %", "lowest", "settings in 93–97", "settings below 93", "mean width, points")
    for what, make, candidates in (
        ("a rate", rates, FOR_RATES), ("a difference", differences, FOR_DIFFERENCES)
    ):  # fmt: skip
        for scenarios in SCENARIOS:
            rows = measure(candidates, make(np.random.default_rng(scenarios), runs, scenarios))
            print("\n".join([f"\n{what}, {scenarios} scenarios\n", *table(titles, rows, "lrrrrr")]), flush=True)


if __name__ == "__main__":
    main()

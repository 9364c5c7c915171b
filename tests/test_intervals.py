"""Intervals where they are known exactly, AUC over strata, and counts that cannot be."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from esc_env.errors import SpecError
from esc_env.evaluation.statistics.intervals import (
    Z,
    auc,
    auc_estimate,
    clustered_wilson,
    mean_interval,
    success_interval,
    wilson,
)


@pytest.mark.parametrize(("solved", "tried"), [(-1, 3), (4, 3), (0, 0)])
def test_successes_that_cannot_be_are_refused_with_their_numbers(solved: int, tried: int) -> None:
    with pytest.raises(SpecError, match=f"^cannot have {solved} successes in {tried} trials$"):
        wilson(solved, tried)


@pytest.mark.parametrize("counts", [[], [(1, 2), (0, 0)], [(1, 2), (-1, 2)], [(1, 2), (3, 2)]])
def test_counts_of_scenarios_that_cannot_be_are_refused(counts: list[tuple[int, int]]) -> None:
    told = "counts must be (solved, tried) with 0 <= solved <= tried and tried >= 1, at least one"
    with pytest.raises(SpecError, match=f"^{re.escape(told)}$"):
        clustered_wilson(counts)


def test_one_trial_of_each_scenario_is_wilsons_and_no_trial_is_nothing() -> None:
    assert success_interval([[True], [False], [True], []]) == wilson(2, 3)
    assert success_interval([[], []]) is None


@pytest.mark.parametrize("scenarios", [1, 7, 40])
def test_where_nothing_or_everything_is_solved_the_interval_is_one_sided_and_exact(scenarios: int) -> None:
    unseen = 1 - 0.05 ** (1 / scenarios)
    assert clustered_wilson([(0, 3)] * scenarios) == pytest.approx((0.0, unseen))
    assert clustered_wilson([(3, 3)] * scenarios) == pytest.approx((1 - unseen, 1.0))


def wilson_of(rate: float, tried: float) -> list[float]:
    """The two rates p for which (p - rate)² = Z² p (1 - p) / tried, which is what Wilson's interval means."""
    z = Z**2 / tried
    return sorted(np.roots([1 + z, -(2 * rate + z), rate**2]).real)


def test_trials_that_differ_more_than_chance_would_have_them_count_as_independent() -> None:
    assert clustered_wilson([(2, 4)] * 10) == pytest.approx(wilson(20, 40))


def test_where_one_trial_tells_all_of_its_scenario_there_are_as_many_as_scenarios() -> None:
    assert clustered_wilson([(4, 4), (0, 4)] * 5) == pytest.approx(wilson(5, 10))


@pytest.mark.parametrize(
    "counts", [[(4, 4), (3, 4), (1, 4), (0, 4), (2, 4)], [(6, 7), (1, 2), (0, 3), (2, 2), (2, 5), (1, 1)]]
)
def test_between_both_the_design_effect_is_that_of_the_scenarios_and_two_light_ones(
    counts: list[tuple[int, int]],
) -> None:
    size = sum(tried for _, tried in counts) / len(counts)
    light = math.sqrt(len(counts)) / 25
    weighted = [*((solved, tried, 1.0) for solved, tried in counts), (0, size, light), (size, size, light)]
    total = sum(weight * tried for _, tried, weight in weighted)
    rate = sum(weight * solved for solved, _, weight in weighted) / total
    scenarios = sum(weight for _, _, weight in weighted)
    squares = sum(weight * (solved - rate * tried) ** 2 for solved, tried, weight in weighted)
    effect = squares * scenarios / (scenarios - 1) / total / (rate * (1 - rate))
    tried = sum(tried for _, tried in counts)
    assert 1 < effect < sum(tried**2 for _, tried in counts) / tried
    measured = sum(solved for solved, _ in counts) / tried
    assert clustered_wilson(counts) == pytest.approx(wilson_of(measured, tried / effect))


@pytest.mark.parametrize("mean", [-0.4, 0.5])
def test_where_all_scenarios_are_the_same_the_interval_reaches_as_far_as_the_unseen_could(mean: float) -> None:
    values = [[mean] * (1 + place % 3) for place in range(10)]
    unseen = 1 - 0.05 ** (1 / 10)
    assert mean_interval(values) == (
        pytest.approx(mean),
        pytest.approx((mean - unseen * (mean + 1), mean + unseen * (1 - mean))),
    )
    rounded = [[mean + (-1) ** place * 2e-10] for place in range(10)]
    assert mean_interval(rounded)[1] == pytest.approx(mean_interval(values)[1])
    for little in (5e-9, 4e-6):
        differing = [[mean + (-1) ** place * little] for place in range(10)]
        assert mean_interval(differing)[1] != pytest.approx(mean_interval(values)[1], abs=1e-6)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^there is no value to take a mean of$"):
        mean_interval([[], []])


def ones(values: Any) -> Any:
    return np.ones(len(values))


def test_only_values_of_one_stratum_are_paired() -> None:
    better, worse = np.array([3.0, 1.0, 2.0]), np.array([2.0, 2.0, 0.5])
    first = np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0])  # 3 > 2: won
    second = np.array([0.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0])  # 1 < 2, 1 > .5, 2 = 2, 2 > .5: 2.5 of 4
    assert auc(better, worse, first) == (1.0, 1.0)
    assert auc(better, worse, second) == (2.5 / 4, 4.0)
    assert auc(better, worse, first, second) == (3.5 / 5, 5.0)
    assert auc(better, worse, (np.array([1.0, 0.0, 0.0]), np.zeros(3))) == (None, 0.0)
    assert auc(better, worse) == (None, 0.0)


def test_an_auc_has_an_interval_about_as_wide_as_hanley_and_mcneils() -> None:
    draw = np.random.default_rng(3)
    better, worse = draw.normal(1.0, 1.0, 150), draw.normal(0.0, 1.0, 90)
    whole = (ones(better), ones(worse))
    measured, (low, high) = auc_estimate(better, worse, whole)
    assert measured == auc(better, worse, whole)[0]
    q1, q2 = measured / (2 - measured), 2 * measured**2 / (1 + measured)
    variance = measured * (1 - measured) + 149 * (q1 - measured**2) + 89 * (q2 - measured**2)
    assert high - low == pytest.approx(2 * Z * math.sqrt(variance / (150 * 90)), rel=0.1)
    assert (low + high) / 2 == pytest.approx(measured, abs=0.01)
    assert auc_estimate(better, worse, whole) == (measured, (low, high)), "the same again"
    assert auc_estimate(better, worse, whole, seed=1)[1] != (low, high)


def test_an_auc_counts_strata_and_weights_when_it_is_resampled_too() -> None:
    better, worse = np.array([1.0, 11.0] * 20), np.array([0.0, 10.0] * 20)
    low, high = np.array([1.0, 0.0] * 20), np.array([0.0, 1.0] * 20)
    assert auc_estimate(better, worse, (low, low), (high, high)) == (1.0, (1.0, 1.0)), "within strata it is sure"
    measured, (least, most) = auc_estimate(better, worse, (ones(better), ones(worse)))
    assert measured == 0.75
    assert 0.5 < least < 0.7
    assert 0.8 < most < 1.0


def test_an_auc_without_a_pair_is_refused_and_draws_without_one_are_left_out() -> None:
    with pytest.raises(SpecError, match=r"^there is no pair to compare$"):
        auc_estimate(np.array([1.0]), np.array([0.0]), (np.zeros(1), np.ones(1)))
    rare = np.array([1.0, 0.0, 0.0])  # a third of the draws hold it not at all
    measured, (low, high) = auc_estimate(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 0.0]), (rare, np.ones(3)))
    assert (measured, low, high) == (1.0, 1.0, 1.0)

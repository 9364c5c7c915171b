"""Intervals over training seeds and scenarios: they cover what another seed would have given."""

from __future__ import annotations

import numpy as np
import pytest

from esc_env.errors import SpecError
from esc_env.evaluation.statistics.resampling import two_level

Runs = list[list[dict[str, list[float]]]]


def trained(draw: np.random.Generator, seeds: int, *, groups: int = 1, spread: float = 0.12) -> Runs:
    """Differences in [-1, 1] of 40 scenarios, two trials each, whose truth is a gain of 0.2."""
    people = draw.normal(0, 0.1, 40)
    return [
        [
            {
                f"p{person}": [float(value) for value in 0.2 + shared + own + hard + draw.normal(0, 0.4, 2)]
                for person, hard in enumerate(people)
            }
            for own in draw.normal(0, spread, seeds)
        ]
        for shared in draw.normal(0, spread if groups > 1 else 0, groups)
    ]


def covered(made: list[Runs], *, pooled: bool = False) -> float:
    ends = [two_level([[merged(runs)]] if pooled else runs).interval for runs in made]
    return sum(low <= 0.2 <= high for low, high in ends) / len(ends)


def merged(runs: Runs) -> dict[str, list[float]]:
    """What pooling the episodes of all seeds makes of them."""
    return {name: [value for group in runs for run in group for value in run[name]] for name in runs[0][0]}


def test_an_interval_over_seeds_and_scenarios_covers_and_one_over_scenarios_alone_does_not() -> None:
    draw = np.random.default_rng(0)
    made = [trained(draw, 8) for _ in range(150)]
    assert covered(made) > 0.87
    assert covered(made, pooled=True) < 0.75


def test_seeds_of_what_runs_share_are_drawn_too() -> None:
    draw = np.random.default_rng(1)
    made = [trained(draw, 4, groups=6) for _ in range(100)]
    assert covered(made) > 0.85
    assert covered([[[run for group in runs for run in group]] for runs in made]) < covered(made)


def test_both_variances_are_told() -> None:
    found = two_level(trained(np.random.default_rng(2), 40))
    assert (found.runs, found.scenarios) == (40, 40)
    assert found.between == pytest.approx(0.12, abs=0.05)
    assert found.within == pytest.approx((0.1**2 / 40 + 0.4**2 / 80) ** 0.5, rel=0.15)
    assert found.interval[0] < found.mean < found.interval[1]


def test_one_run_is_resampled_by_scenario_alone_and_nothing_is_refused() -> None:
    found = two_level([[{"a": [1.0, 0.0], "b": [0.0], "c": [1.0]}]])
    assert (found.mean, found.between) == (0.5, None)
    assert found.interval[0] < 0.5 < found.interval[1]
    assert two_level([[{"a": [1.0]}, {"a": [1.0]}]]).interval == (1.0, 1.0)
    with pytest.raises(SpecError, match="no value"):
        two_level([[{"a": []}]])

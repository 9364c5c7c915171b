"""Scenarios that tests write themselves, so that they need no data."""

from __future__ import annotations

import signal

import pytest

from esc_env import Scenario, ScenarioSet

# Programs that tests start and interrupt inherit what this one does about Ctrl-C, and a shell that starts the suite in
# the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


def bank(count: int = 5) -> ScenarioSet:
    """People who differ in little more than their number."""
    return ScenarioSet.of(
        "test-bank",
        [
            Scenario(
                id=f"person-{i}",
                situation=f"I am person {i} and I cannot sleep because of my job.",
                emotion="anxiety",
                problem="job crisis",
                intensity=3,
                facts=(f"My manager said number {i} would be let go.", "I told nobody.", "It began in spring."),
                helps=("A plan for Monday.",),
                hurts=("Being told to calm down.",),
            )
            for i in range(count)
        ],
    )


@pytest.fixture
def scenarios() -> ScenarioSet:
    return bank()

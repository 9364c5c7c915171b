"""The retry policy: what it decides from an error, a number of attempts and the time that is left."""

from __future__ import annotations

from typing import Any

import pytest

from esc_env.errors import ModelUnavailable
from esc_env.models.retries import ATTEMPTS, CALL_DEADLINE, FIRST_WAIT, LONGEST_ASKED, STRANGER_ATTEMPTS, pause


def decided(attempts: int = 1, left: float = CALL_DEADLINE, chance: float = 0.0, **told: Any) -> float | None:
    where = {"known": told.pop("known", True), "down": told.pop("down", False)}
    error = ModelUnavailable("no luck", **{"status": 500, "retryable": True, **told})
    return pause(error, attempts, left, chance=chance, **where)


def test_what_no_retry_can_change_is_given_up() -> None:
    assert decided(status=401, retryable=False) is None


def test_waits_double_up_to_a_bound_and_half_of_each_is_jitter() -> None:
    longest = [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    assert [decided(attempts, chance=1.0) for attempts in range(1, ATTEMPTS)] == longest
    assert [decided(attempts, chance=0.0) for attempts in range(1, ATTEMPTS)] == [wait / 2 for wait in longest]


@pytest.mark.parametrize(("asked", "honoured"), [(0.0, 0.0), (7.0, 7.0), (3600.0, LONGEST_ASKED)])
def test_as_long_as_asked_is_waited_up_to_a_cap_with_jitter_that_grows(asked: float, honoured: float) -> None:
    assert decided(3, status=429, retry_after=asked) == honoured
    assert decided(3, status=429, retry_after=asked, chance=1.0) == honoured + 3 * FIRST_WAIT


@pytest.mark.parametrize(
    ("where", "allowed"),
    [
        ({}, ATTEMPTS),
        ({"status": None}, ATTEMPTS),
        ({"known": False}, ATTEMPTS),
        ({"known": False, "status": None}, STRANGER_ATTEMPTS),
        ({"down": True}, 1),
    ],
)
def test_so_many_attempts_are_made(where: dict[str, Any], allowed: int) -> None:
    assert [decided(attempts, **where) is None for attempts in (max(1, allowed - 1), allowed)] == [allowed == 1, True]


def test_a_rate_limit_ends_with_the_deadline_only() -> None:
    assert decided(10 * ATTEMPTS, status=429, retry_after=1.0) == 1.0
    assert decided(10 * ATTEMPTS, status=429, retry_after=1.0, left=0.9) is None


def test_no_wait_goes_beyond_the_deadline() -> None:
    assert decided(4, left=2.0) == 2.0
    assert decided(4, left=1.9) is None

"""The one retry policy: whether a request that failed is sent again, and after how many seconds.

It asks nobody, waits for nothing and has no clock: `patience.py` does.
"""

from __future__ import annotations

from esc_env.errors import ModelError

__all__ = ["ATTEMPTS", "CALL_DEADLINE", "asked", "pause"]

ATTEMPTS = 12
"""Requests for one call; those refused with 429 (too many requests) do not count, and go on until the deadline. With
three in ten failing, one call in two million fails for good."""

STRANGER_ATTEMPTS = 3
"""The same for a server that has never answered anything: most likely a wrong URL, or no network."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds: the wait after the first failure, doubled at each further one, and its bound. Half of it is jitter."""

LONGEST_ASKED = 60.0
"""Seconds: the longest `Retry-After` that is honoured."""

CALL_DEADLINE = 600.0
"""Seconds from the first time a call is sent until it is given up."""


def pause(error: ModelError, attempts: int, left: float, *, known: bool, down: bool, chance: float) -> float | None:
    """Seconds to wait before the same request is sent again; None to give the call up.

    Args:
        error: what the last attempt ended with.
        attempts: requests made for this call so far, at least 1.
        left: seconds until the call's deadline.
        known: whether the server has ever answered anything.
        down: whether it was given up by another call, and has answered nobody since.
        chance: a draw from [0, 1), the jitter.
    """
    if not error.retryable:
        return None
    allowed = 1 if down else ATTEMPTS if known or error.status is not None else STRANGER_ATTEMPTS
    if attempts >= allowed and error.status != 429:
        return None
    told = asked(error)
    if told is not None:
        wait = told + FIRST_WAIT * attempts * chance
    else:
        wait = min(FIRST_WAIT * 2.0 ** min(attempts - 1, 16), LONGEST_WAIT) * (1 + chance) / 2
    return wait if wait <= left else None


def asked(error: ModelError) -> float | None:
    """Seconds that the server asked to wait, as far as that is honoured; None if it asked for nothing."""
    return None if error.retry_after is None else min(error.retry_after, LONGEST_ASKED)

"""Ask many things at the same time: within budget and time, and with every failure attributed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from esc_env.background import each
from esc_env.errors import BudgetExceeded, ESCError
from esc_env.trajectory import Failure

__all__ = ["ask_all", "failure_of"]

T = TypeVar("T")


async def ask_all(
    missing: Sequence[T],
    ask: Callable[[T], Awaitable[Failure | None]],
    concurrency: int,
    time_limit: float | None = None,
) -> None:
    """Ask all of them, at most `concurrency` at a time.

    Once the budget is spent nothing more is begun; after `time_limit` seconds what is under way is dropped.

    Args:
        missing: what is asked.
        ask: asks one and keeps the answer; returns what failed, if anything did.
        concurrency, time_limit: see above.
    """
    spent = False
    timeout = asyncio.timeout(time_limit)

    async def one(item: T) -> None:
        nonlocal spent
        failure = await ask(item)
        spent = spent or (failure is not None and failure.kind == BudgetExceeded.__name__)

    try:
        async with timeout:
            await each((item for item in missing if not spent), one, min(concurrency, len(missing)))
    except TimeoutError:
        if not timeout.expired():
            raise


def failure_of(role: str, error: Exception) -> Failure:
    """What an exception leaves behind: the message of an error of ours, the type too of anybody else's."""
    told = str(error) if isinstance(error, ESCError) else f"{type(error).__name__}: {error}"
    return Failure(role, type(error).__name__, told)

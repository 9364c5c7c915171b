"""Where the work of a long command is done: in this process, or by workers elsewhere that report to it.

Whatever takes long is a `Job`, called with one item after the other: a conversation to hold, a context to answer, a
question to a judge. A `Backend` gives a job that does the same somewhere; who calls it keeps what comes back, and is
the only one who writes. So records are the same wherever they are made, and each is there once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from esc_env.models import ModelSettings

__all__ = ["HERE", "Backend", "Here", "Job"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Task = TypeVar("Task", contravariant=True)
Outcome = TypeVar("Outcome", covariant=True)


class Job(Protocol[Task, Outcome]):
    """Does one thing after the other, many at the same time.

    One that is to be done elsewhere must be such that a pickle of it, of what it is given and of what it returns is as
    good as itself.
    """

    async def __call__(self, item: Task, told: Callable[[], None], cut: Callable[[Outcome], None], /) -> Outcome:
        """Do it.

        Args:
            item: what is to be done.
            told: called when it is a step further. Elsewhere, the steps are told when all is done.
            cut: called with what there is of it if it is cut off: cancelled, above all.
        """
        ...


class Backend(Protocol):
    """A place where jobs are done."""

    def check(self, settings: ModelSettings) -> None:
        """Raise SpecError where chat models cannot be called in this way from there."""

    def doing(self, job: Job[Item, Result], at_once: int) -> AbstractAsyncContextManager[Job[Item, Result]]:
        """The same job, done there, as long as the context lasts.

        Args:
            job: what is to be done.
            at_once: how many items it will be called with at the same time, at least 1.
        """
        ...


class Here:
    """This process."""

    def check(self, settings: ModelSettings) -> None:
        """Every way to call models is possible here."""

    @asynccontextmanager
    async def doing(self, job: Job[Item, Result], at_once: int) -> AsyncIterator[Job[Item, Result]]:
        """The job itself."""
        yield job


HERE = Here()
"""The backend where none is named."""

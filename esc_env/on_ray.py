"""Work done by the workers of a Ray cluster: this machine's processors, or those of many machines.

    this process                      a worker (as many as there are CPUs)
    ────────────                      ────────────────────────────────────
    whoever calls the job  ── item ──►  the same job, in a process of its own
    keeps and writes       ◄─ result ─
                                      its share of concurrency and rates;
    a till that adds up    ◄─ spent ──  before each request: is the budget spent?

A worker that dies has its unfinished items done again by others, from their beginning, and is replaced. So a result
comes back exactly once, while models are asked at least once. Tested with Ray 2.60.
"""

# pyright: reportMissingImports=false
# Ray is in an environment of its own, where this is tested.

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, TypeVar

from esc_env.backend import Job
from esc_env.background import hops
from esc_env.errors import ESCError, MissingExtra, SpecError
from esc_env.models import ModelSettings
from esc_env.models.budget import Ledger, enter, ledger
from esc_env.models.sharing import Share, take_share
from esc_env.protocols import Usage
from esc_env.rules import __version__

try:
    import ray
    from ray.exceptions import (
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayActorError,
        RayError,
        RayTaskError,
        WorkerCrashedError,
    )
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "ray").partition(".")[0], "ray") from error

__all__ = ["LIVES", "Ray"]

Item = TypeVar("Item")
Result = TypeVar("Result")

LIVES = 5
"""Workers that may die over one item. Then the command ends: it may be this item that kills them. Ours."""
TICK = 0.5
"""Seconds from one look at what the workers spent to the next, for the progress bar. Budgets do not wait for it."""
PATIENCE = 10.0
"""Seconds in which a cluster must let one connect."""
LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
"""What Ray raises where a worker, its machine or its answer is gone."""


@dataclass(frozen=True, slots=True)
class Ray:
    """The workers of a Ray cluster, as a `Backend`. Each needs one CPU.

    Attributes:
        address: HOST:PORT of a cluster that this machine is part of, or `auto`; None for that of `RAY_ADDRESS` or of
            this machine, and where there is none one is started here, which ends with this process.
        workers: how many processes, at least 1; None for as many as the cluster has CPUs. There are never more than
            items at the same time.
    """

    address: str | None = None
    workers: int | None = None

    def check(self, settings: ModelSettings) -> None:
        """Raise SpecError for what stays in one process: cassettes, and a key that was handed over."""
        kept = [name for name in ("record", "replay", "cache") if getattr(settings, name) is not None]
        if kept:
            raise SpecError(
                f"{kept[0]}: workers on other machines cannot share that file. Leave out --{kept[0]} ({kept[0]}=…) or "
                "--backend ray (backend=…)"
            )
        if settings.api_key is not None:
            raise SpecError(
                "api_key: a key that is handed over stays in its process. Set it in the environment of the machines "
                "whose workers are to use it"
            )

    @asynccontextmanager
    async def doing(self, job: Job[Item, Result], at_once: int) -> AsyncIterator[Job[Item, Result]]:
        """The same job, done by workers, which end with the context.

        Raises:
            SpecError: there is no such cluster, it has fewer CPUs, the job cannot be sent to a worker, or a worker
                has another release.
            ESCError: by the job, where workers die over the same item again and again.
        """
        _connect(self.address)
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if not cpus or (self.workers or 1) > cpus:
            raise SpecError(f"workers: the Ray cluster has {cpus:,} CPUs, and each worker needs one")
        workers = min(self.workers or cpus, at_once)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        try:
            sent = ray.put(job)
        except TypeError as error:
            why = str(error).strip().partition("\n")[0]
            raise SpecError(
                f"an object cannot be sent to a worker ({why}). Name it by a string, python:MODULE:NAME"
            ) from error

        till = ray.remote(_Till).options(num_cpus=0, scheduling_strategy=here).remote(ledger())

        def hire() -> Any:
            return ray.remote(_Worker).options(num_cpus=1, max_concurrency=at_once + 8).remote(sent, workers, till)

        crew: _Crew[Item, Result] = _Crew(hire, till, [len(range(n, at_once, workers)) for n in range(workers)])
        try:
            await crew.begun()
            yield crew
        finally:
            await crew.dismiss()


def _connect(address: str | None) -> None:
    """Be part of a Ray cluster, unless this process is already."""
    if ray.is_initialized():
        return
    if address and "://" in address:
        raise SpecError(
            f"Ray at {address}: a client from outside is not enough. Type the command on a machine of the cluster, "
            "with --address auto"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere that nobody asked for
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        host, colon, port = (address or os.environ.get("RAY_ADDRESS", "")).rpartition(":")
        if colon and port.isdecimal():  # Ray itself asks for ten minutes where nobody listens
            socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise SpecError(
            f"no Ray cluster at {address or 'this machine'} ({error}). Start one with `ray start --head`, set "
            "RAY_AUTH_MODE=token if it asks for one, or leave out --address (address=…) to use this machine alone"
        ) from error


# --- in this process ------------------------------------------------------------------------------


@dataclass(eq=False)
class _Hand:
    """A worker that was hired, and how many items it does at the same time."""

    actor: Any
    places: int
    lost: bool = False


class _Crew(Generic[Item, Result]):
    """All workers as one job. Every free place of one stands in a queue; an item takes the first.

    Args:
        hire: starts a worker.
        till: what they spend.
        places: how many items each is to do at the same time.
    """

    def __init__(self, hire: Callable[[], Any], till: Any, places: list[int]) -> None:
        self.hire, self.till = hire, till
        self.numbers = count()
        self.free: asyncio.Queue[_Hand | Exception] = asyncio.Queue()
        self.counted = ledger()
        self.actors: list[Any] = []
        self.tasks = {asyncio.create_task(self._follow())}
        for each in places:
            self._begin(each)

    async def __call__(self, item: Item, told: Callable[[], None], cut: Callable[[Result], None], /) -> Result:
        """The first outcome that comes back, whoever it is that lives to give it."""
        for _ in range(LIVES):
            hand, number = await self._place(), next(self.numbers)
            try:
                answer: tuple[int, Result] = await hand.actor.do.remote(number, item)
            except LOST:
                if not hand.lost:
                    hand.lost = True
                    ray.kill(hand.actor)  # which may only be out of reach: two would ask in its place
                    self._begin(hand.places)
                continue
            except RayTaskError as error:
                raise error.cause from None
            except asyncio.CancelledError:
                with suppress(RayError):
                    for so_far in await hand.actor.stop.remote(number):
                        cut(so_far)
                raise
            finally:
                self.free.put_nowait(hand)
            steps, result = answer
            for _ in range(steps):
                told()
            return result
        raise ESCError(
            f"{LIVES} Ray workers died one after the other over the same work. Do they run out of memory? Try fewer of "
            "them (--workers), or less at the same time (--concurrency). What is finished is kept"
        )

    async def begun(self) -> None:
        """Wait for the first worker: starting one takes seconds, of which no time limit is told."""
        self.free.put_nowait(await self._place())

    async def dismiss(self) -> None:
        """End the workers, and count the last of what they spent."""
        for task in self.tasks:
            task.cancel()
        with suppress(RayError):
            await self._count()
        for actor in (*self.actors, self.till):
            ray.kill(actor)

    def _begin(self, places: int) -> None:
        self.tasks.add(asyncio.create_task(self._welcome(places)))

    async def _welcome(self, places: int) -> None:
        """Hire a worker; once it is there its places are free. A machine that is gone does not hold up the others."""
        problem: Exception | None = None
        for _ in range(LIVES):
            self.actors.append(actor := self.hire())
            try:
                version = await actor.version.remote()
            except LOST as error:
                why = str(error).strip().splitlines()[-1]
                problem = SpecError(
                    f"a Ray worker could not begin: {why}. Is the same installed on every machine of the cluster?"
                )
                if getattr(error, "actor_init_failed", False):
                    break
                continue
            except RayError as error:
                problem = error
                break
            if version == __version__:
                hand = _Hand(actor, places)
                for _ in range(places):
                    self.free.put_nowait(hand)
                return
            problem = SpecError(f"a Ray worker has esc-env {version}, not {__version__}: install the same everywhere")
            break
        assert problem is not None
        self.free.put_nowait(problem)

    async def _place(self) -> _Hand:
        """A free place of a worker that lives, as far as we know."""
        while True:
            hand = await self.free.get()
            if isinstance(hand, Exception):
                self.free.put_nowait(hand)  # for whoever waits besides
                raise hand
            if not hand.lost:
                return hand

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            await self._count()

    async def _count(self) -> None:
        """Enter into the ledger of this process what the workers spent since the last time."""
        made, before = await self.till.ledger.remote(), self.counted
        self.counted = made
        enter(made.since(before))


# --- in other processes ---------------------------------------------------------------------------


class _Till:
    """Adds up what all workers spend, beginning with what had been spent before."""

    def __init__(self, before: Ledger) -> None:
        self.made = before

    def enter(self, made: Ledger) -> None:
        self.made += made

    def ledger(self) -> Ledger:
        return self.made

    def spent(self) -> Usage:
        return self.made.usage


@dataclass(frozen=True)
class _Purse:
    """A till, from a worker."""

    till: Any

    async def spent(self) -> Usage:
        usage: Usage = await self.till.spent.remote()
        return usage

    def enter(self, made: Ledger) -> None:
        self.till.enter.remote(made)  # Ray keeps the order of one process's calls: what it asks later comes later


class _Worker(Generic[Item, Result]):
    """A process that does a job with a share of the limits."""

    def __init__(self, job: Job[Item, Result], workers: int, till: Any) -> None:
        take_share(Share(workers, _Purse(till)))
        self.job = hops(job.__call__)
        self.doing: dict[int, tuple[asyncio.Future[Result], list[Result]]] = {}

    async def version(self) -> str:
        return __version__

    async def do(self, number: int, item: Item) -> tuple[int, Result]:
        """Do it: (how many steps it took, what came of it)."""
        steps: list[None] = []
        so_far: list[Result] = []
        task = asyncio.ensure_future(self.job(item, lambda: steps.append(None), so_far.append))
        self.doing[number] = task, so_far
        try:
            result = await task
            return len(steps), result
        finally:
            del self.doing[number]

    async def stop(self, number: int) -> list[Result]:
        """Cut it off: what there is of it, if anything."""
        if number not in self.doing:
            return []
        task, so_far = self.doing[number]
        task.cancel()
        await asyncio.wait([task])
        return so_far

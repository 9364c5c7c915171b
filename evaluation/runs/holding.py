"""Hold conversations: many at the same time, each kept as it ends, and none held twice."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from types import MappingProxyType
from typing import Any

from esc_env.backend import HERE, Backend
from esc_env.background import each, run
from esc_env.conversation import Chairs, converse
from esc_env.errors import RecordError, SpecError
from esc_env.fields import integer, number, read, text
from esc_env.folder import TIMING, RunFolder
from esc_env.progress import Progress, Told
from esc_env.protocols import Agent
from esc_env.records import RecordWriter, read_records
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.seeds import episode_seed
from esc_env.trajectory import Failure, Trajectory

__all__ = ["Episode", "attempts", "check_models", "ended", "hold", "hold_missing", "reached", "seconds_each"]

Episode = tuple[str, int]
"""Scenario id and trial: what is held once."""


async def check_models(*seated: Any, votes: int = 1) -> None:
    """Ask the chat models of chairs for a word each, just as they will be asked, so that a wrong key or name, or what a
    server refuses, is told before a run starts.

    Args:
        seated: agents, seekers and critics; those without a chat model are passed over.
        votes: how many a critic is asked for.

    Raises:
        SpecError: a model does not take what it will be asked.
        ModelError: one does not answer; the message is one line that names the chair and what to set.
    """
    checks = {id(part): part.check for part in seated if hasattr(part, "check")}
    await each(checks.values(), lambda check: check(votes), len(checks))


async def hold(
    pending: Sequence[tuple[Scenario, int]],
    agent: Agent,
    chairs: Chairs,
    seed: int,
    concurrency: int,
    keep: Callable[[Trajectory], None],
    time_limit: float | None = None,
    known: Mapping[Episode, Trajectory | None] = MappingProxyType({}),
    told: Callable[[], None] = lambda: None,
    cut: Callable[[Trajectory], None] = lambda _: None,
    clock: Callable[[Trajectory, float], None] = lambda *_: None,
    backend: Backend = HERE,
) -> None:
    """Hold all pending conversations, at most `concurrency` alive at a time; each has one call in flight.

    Once the budget is spent no further conversation is begun; after `time_limit` seconds those under way are cut off.

    Args:
        pending: whom with, and which trial.
        agent, chairs, seed: of the run.
        concurrency: at least 1.
        keep: gets every conversation as it ends.
        time_limit: in seconds.
        known: what came of earlier attempts; an `error` is gone on with from where it broke off.
        told: called after every turn.
        cut: gets every conversation that the time limit or an interruption cuts off, as an `error`.
        clock: gets every conversation that ends, and the seconds that this attempt took, waiting for models included.
        backend: where they are held; all else happens here.
    """
    spent = False
    timeout = asyncio.timeout(time_limit)

    async def one(item: tuple[Scenario, int]) -> None:
        nonlocal spent
        scenario, trial = item
        begun = time.monotonic()
        trajectory = await talk((scenario, trial, known.get((scenario.id, trial))), told, broke_off)
        spent = spent or trajectory.spent
        keep(trajectory)
        clock(trajectory, time.monotonic() - begun)

    def broke_off(so_far: Trajectory) -> None:
        kind, why = "Interrupted", "the run was interrupted"
        if timeout.expired():
            kind, why = "TimeLimit", f"the time limit of {time_limit:g} s was over"
        cut(so_far if so_far.completed else replace(so_far, failure=Failure(so_far.due, kind, why)))

    at_once = max(1, min(concurrency, len(pending)))
    async with backend.doing(_Talk(agent, chairs, seed), at_once) as talk:
        try:
            async with timeout:
                await each((item for item in pending if not spent), one, at_once)
        except TimeoutError:
            if not timeout.expired():
                raise


@dataclass(frozen=True, slots=True)
class _Talk:
    """Holds a conversation: with whom, which trial, and what came of an earlier attempt."""

    agent: Agent
    chairs: Chairs
    seed: int

    async def __call__(
        self,
        item: tuple[Scenario, int, Trajectory | None],
        told: Callable[[], None],
        cut: Callable[[Trajectory], None],
        /,
    ) -> Trajectory:
        scenario, trial, before = item
        return await converse(
            scenario, self.agent, self.chairs, seed=episode_seed(self.seed, scenario.id, trial), trial=trial,
            after=before, told=lambda _: told(), cut=cut,
        )  # fmt: skip


def attempts(
    folder: RunFolder, name: str, episodes: Iterable[Episode], people: Mapping[str, Scenario], rules: Rules
) -> dict[Episode, list[Trajectory]]:
    """All lines of each episode in a record file, as they follow one another. In the order of `episodes`.

    Raises:
        RecordError: a line cannot be read, is none of these episodes, or was not held by these rules.
    """
    found: dict[Episode, list[Trajectory]] = {episode: [] for episode in episodes}

    def made(data: Mapping[str, Any], scenario: Scenario) -> Trajectory:
        trajectory = Trajectory.from_json(data, scenario)
        if (scenario.id, trajectory.trial) not in found:
            raise SpecError(f"trial: {scenario.id!r}, trial {trajectory.trial}, is no part of this {folder.kind}")
        trajectory.check(rules)
        return trajectory

    for trajectory in folder.records(name, "trajectory", made, people):
        found[trajectory.scenario.id, trajectory.trial].append(trajectory)
    return found


def ended(
    folder: RunFolder, name: str, episodes: Iterable[Episode], people: Mapping[str, Scenario], rules: Rules
) -> dict[Episode, Trajectory | None]:
    """What each episode has come to in a record file: its last line, or None. Otherwise as `attempts`."""
    found = attempts(folder, name, episodes, people, rules)
    return {episode: lines[-1] if lines else None for episode, lines in found.items()}


def seconds_each(folder: RunFolder) -> float | None:
    """How long a conversation of a run took, on average, all its attempts together; None where it is not known.

    Raises:
        RecordError: timing.jsonl cannot be read.
    """
    path = folder.path / TIMING
    taken: dict[Episode, float] = defaultdict(float)
    for line, data in enumerate(read_records(path, "timing"), 1):
        try:
            episode = read(data, "scenario", text), read(data, "trial", integer(0))
            taken[episode] += read(data, "seconds", number(0))
        except SpecError as error:
            raise RecordError(f"{path}:{line}: {error}. Was the file edited?") from error
    return fmean(taken.values()) if taken else None


def reached(known: Mapping[Episode, Trajectory | None]) -> Progress:
    """How many episodes have an outcome, of all."""
    return Progress(sum(bool(item and item.completed) for item in known.values()), len(known))


def hold_missing(
    writer: RecordWriter,
    known: dict[Episode, Trajectory | None],
    people: Mapping[str, Scenario],
    agent: Agent,
    chairs: Chairs,
    seed: int,
    concurrency: int,
    told: Told,
    time_limit: float | None = None,
    backend: Backend = HERE,
) -> None:
    """Hold every episode without an outcome, as `hold` does; each is written and `known` as it ends or is cut off.

    One that ended as an `error` before goes on from there, so that nothing is ever rolled again. Once all have an
    outcome, and none has failed before (whose lines stay), the file is written anew in the order of `known`, which owes
    nothing to timing.
    """
    missing = [(people[key], trial) for (key, trial), item in known.items() if not (item and item.completed)]
    failed = any(item and not item.completed for item in known.values())
    now = reached(known)

    def tell(done: int = 0, turns: int = 0, errors: int = 0) -> None:
        nonlocal now
        now = replace(now, done=now.done + done, turns=now.turns + turns, errors=now.errors + errors)
        told(now)

    def write(trajectory: Trajectory) -> None:
        writer.write(trajectory.to_json())
        known[trajectory.scenario.id, trajectory.trial] = trajectory

    def keep(trajectory: Trajectory) -> None:
        write(trajectory)
        tell(done=1, errors=not trajectory.completed)

    with RecordWriter(writer.path.with_name(TIMING), "timing") as times:

        def clock(held: Trajectory, seconds: float) -> None:
            times.write({"scenario": held.scenario.id, "trial": held.trial, "seconds": round(seconds, 3)})

        run(
            hold(
                missing, agent, chairs, seed, concurrency, keep, time_limit, known,
                told=lambda: tell(turns=1), cut=write, clock=clock, backend=backend,
            )
        )  # fmt: skip
    if not failed and all(item and item.completed for item in known.values()):
        writer.rewrite(item.to_json() for item in known.values() if item)

"""Hold conversations: many at the same time, each kept as it ends, and none held twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from esc_env.background import each, run
from esc_env.conversation import Chairs, Exchange, converse
from esc_env.errors import SpecError
from esc_env.folder import RunFolder
from esc_env.progress import Progress, Told
from esc_env.protocols import Agent
from esc_env.records import RecordWriter
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.seeds import episode_seed
from esc_env.trajectory import Trajectory

__all__ = ["Episode", "check_models", "ended", "hold", "hold_missing", "reached"]

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
    told: Callable[[Exchange], None] | None = None,
) -> None:
    """Hold all pending conversations, at most `concurrency` alive at a time; each has one call in flight.

    Once the budget is spent no further conversation is begun; after `time_limit` seconds those under way are dropped.
    `keep` gets every conversation as it ends, `told` every exchange as it is done.
    """
    spent = False
    timeout = asyncio.timeout(time_limit)

    async def one(item: tuple[Scenario, int]) -> None:
        nonlocal spent
        scenario, trial = item
        named = episode_seed(seed, scenario.id, trial)
        begun = time.monotonic()
        trajectory = await converse(scenario, agent, chairs, seed=named, trial=trial, told=told)
        trajectory = replace(trajectory, seconds=round(time.monotonic() - begun, 3))
        spent = spent or trajectory.spent
        keep(trajectory)

    try:
        async with timeout:
            await each((item for item in pending if not spent), one, min(concurrency, len(pending)))
    except TimeoutError:
        if not timeout.expired():
            raise


def ended(
    folder: RunFolder, name: str, episodes: Iterable[Episode], people: Mapping[str, Scenario], rules: Rules
) -> dict[Episode, Trajectory | None]:
    """What each episode has come to in a record file: its last line, or None. In the order of `episodes`.

    Raises:
        RecordError: a line cannot be read, is none of these episodes, or was not held by these rules.
    """
    found: dict[Episode, Trajectory | None] = dict.fromkeys(episodes)

    def made(data: Mapping[str, Any], scenario: Scenario) -> Trajectory:
        trajectory = Trajectory.from_json(data, scenario)
        if (scenario.id, trajectory.trial) not in found:
            raise SpecError(f"trial: {scenario.id!r}, trial {trajectory.trial}, is no part of this {folder.kind}")
        trajectory.check(rules)
        return trajectory

    for trajectory in folder.records(name, "trajectory", made, people):
        found[trajectory.scenario.id, trajectory.trial] = trajectory
    return found


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
) -> None:
    """Hold every episode without an outcome, as `hold` does; each is written and `known` as it ends."""
    missing = [(people[key], trial) for (key, trial), item in known.items() if not (item and item.completed)]
    now = reached(known)

    def tell(done: int = 0, turns: int = 0, errors: int = 0) -> None:
        nonlocal now
        now = replace(now, done=now.done + done, turns=now.turns + turns, errors=now.errors + errors)
        told(now)

    def keep(trajectory: Trajectory) -> None:
        writer.write(trajectory.to_json())
        known[trajectory.scenario.id, trajectory.trial] = trajectory
        tell(done=1, errors=not trajectory.completed)

    run(hold(missing, agent, chairs, seed, concurrency, keep, time_limit, lambda _: tell(turns=1)))

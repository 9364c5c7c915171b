"""Does a result hold elsewhere? Other seekers, other people, other rules, and supporters that only game the instrument.

`grid` holds the same agents under several conditions, one run folder each, and reads what moves: the success rates, the
worst condition, how final scores shift, and whether the agents' order stays. `sensitivity` needs no new conversation:
it counts one run again by other rules from its stored votes. `attacks` runs the suite of `esc validate gaming` on
a seeker and critic of choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.runs.runner import evaluate
from esc_env.evaluation.statistics.intervals import mean_interval, success_interval
from esc_env.evaluation.validity.gaming import PROBES, Probe
from esc_env.progress import Progress, Told
from esc_env.rules import Rules
from esc_env.trajectory import Trajectory

__all__ = ["Bounds", "Condition", "Gain", "Grid", "attacks", "grid", "sensitivity"]

THRESHOLDS = (0.0, 0.25, 0.5, 0.75)
"""Thresholds that `sensitivity` counts by, with the run's own. Ours."""


@dataclass(frozen=True)
class Condition:
    """Under what agents are held.

    Attributes:
        name: for tables and folders.
        facing: arguments of `evaluate` that differ: `scenarios`, `persona`, `seeker`, `critic`, …
    """

    name: str
    facing: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """Every agent under every condition.

    Attributes:
        agents, conditions: their names, in order; the first condition is what others are compared with.
        reports: by (agent, condition).
    """

    agents: tuple[str, ...]
    conditions: tuple[str, ...]
    reports: Mapping[tuple[str, str], Report]

    def worst(self, agent: str) -> tuple[str, float] | None:
        """The condition in which an agent solves least, and its success rate; None where none completed."""
        rates = [
            (rate, condition)
            for condition in self.conditions
            if (rate := self.reports[agent, condition].success_rate) is not None
        ]
        return (min(rates)[1], min(rates)[0]) if rates else None

    def shift(self, agent: str, condition: str) -> tuple[float, tuple[float, float]] | None:
        """How far final scores lie from those under the first condition, in [−2, 2], with a 95 % interval.

        By scenario where both conditions have the same people; None where they share nobody.
        """
        there, here = (_scores(self.reports[agent, name]) for name in (self.conditions[0], condition))
        shared = [key for key in there if key in here]
        if not shared:
            return None
        return mean_interval([[fmean(here[key]) - fmean(there[key])] for key in shared], within=(-2.0, 2.0))

    def distance(self, agent: str, condition: str) -> float | None:
        """How far the distribution of final scores lies from that under the first condition, in [0, 2]; None where one
        has none: the area between the two cumulative distributions (the Wasserstein distance). More than the mean's
        `shift` where scores do not all move one way."""
        there, here = (
            np.sort([score for scores in _scores(self.reports[agent, name]).values() for score in scores])
            for name in (self.conditions[0], condition)
        )
        if not there.size or not here.size:
            return None
        steps = np.sort(np.concatenate([there, here]))
        below, above = (np.searchsorted(scores, steps[:-1], "right") / scores.size for scores in (there, here))
        return float(np.abs(below - above) @ np.diff(steps))

    def order(self, condition: str) -> tuple[str, ...]:
        """The agents under a condition, by success rate, best first; equal ones in the grid's order."""
        return tuple(sorted(self.agents, key=lambda agent: -(self.reports[agent, condition].success_rate or 0.0)))

    def swapped(self, condition: str) -> int:
        """Pairs of agents whose order is strictly the other way round than under the first condition."""
        first, here = (
            [self.reports[agent, name].success_rate or 0.0 for agent in self.agents]
            for name in (self.conditions[0], condition)
        )
        pairs = [(i, j) for i in range(len(first)) for j in range(i)]
        return sum((first[i] - first[j]) * (here[i] - here[j]) < 0 for i, j in pairs)

    def to_json(self) -> list[dict[str, Any]]:
        """A row for every agent and condition."""
        rows = []
        for (agent, condition), report in self.reports.items():
            shift = self.shift(agent, condition)
            rows.append({
                "agent": agent, "condition": condition, "success_rate": report.success_rate,
                "interval": report.interval, "completed": report.completed, "episodes": report.episodes,
                "mean_score": report.mean_score, "score_shift": shift and shift[0],
                "score_shift_interval": shift and shift[1], "score_distance": self.distance(agent, condition),
                "pairs_swapped": self.swapped(condition),
                **{
                    kind: {name: {"episodes": part.episodes, "success_rate": part.success_rate, "few": part.few}
                           for name, part in getattr(report, kind).items()}
                    for kind in ("by_problem", "by_emotion")
                },
            })  # fmt: skip
        return rows


def grid(
    agents: Sequence[str],
    conditions: Sequence[Condition],
    out: Path,
    *,
    progress: Told | None = None,
    **common: Any,
) -> Grid:
    """Hold every agent under every condition; the same call goes on where it stopped.

    Args:
        agents: as strings.
        conditions: at least one, with names of their own.
        out: gets one run folder for each.
        progress: called with a `Progress` that names both.
        common: arguments of `evaluate` that all share.

    Raises:
        What `evaluate` raises.
    """
    reports = {}
    for condition in conditions:
        for agent in agents:
            what = f"conversations of {agent}, {condition.name}"
            reports[agent, condition.name] = evaluate(
                agent, out=out / _slug(agent, condition.name), progress=_named(progress, what),
                **{**common, **condition.facing},
            )  # fmt: skip
    return Grid(tuple(agents), tuple(condition.name for condition in conditions), reports)


def _named(progress: Told | None, what: str) -> Told | None:
    return partial(_tell, progress, what) if progress else None


def _tell(told: Told, what: str, reached: Progress) -> None:
    told(replace(reached, what=what))


def _slug(*names: str) -> str:
    return "--".join(re.sub(r"[^\w.]+", "-", name).strip("-.") for name in names)


def _scores(report: Report) -> dict[tuple[str, int], list[float]]:
    """Final scores by person, whatever their persona, and trial."""
    found: dict[tuple[str, int], list[float]] = {}
    for held in report.trajectories:
        if held.completed:
            found.setdefault((held.scenario.id, held.trial), []).append(held.final_score)
    return found


# --- other rules, from the stored votes ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bounds:
    """A success rate by other rules.

    Attributes:
        what: how the rules differ; "as run" for the run's own.
        low: the rate if nothing is solved that these rules would have let go on.
        interval: its 95 % interval.
        high: the rate if all of it is. Equal to `low` where the stored votes settle everything.
        open: conversations that they do not settle.
    """

    what: str
    low: float
    interval: tuple[float, float]
    high: float
    open: int


def sensitivity(report: Report) -> list[Bounds]:
    """A run counted again by other T, thresholds and votes, from the votes that it keeps.

    A smaller T and a lower threshold settle every conversation. A higher threshold, or fewer votes, may have let one go
    on that had ended; what would have come of it is open, so that the rate lies between two bounds. Votes of the first
    so many raters stand for fewer votes.

    Args:
        report: of a run, complete or not; conversations without an outcome are left out.
    """
    parts = report.fingerprint.parts
    rules = Rules(int(parts["max_turns"]), float(parts["threshold"]), int(parts["votes"]))
    held = [trajectory for trajectory in report.trajectories if trajectory.completed]
    if not held:
        return []
    changes: list[tuple[str, Rules]] = [("as run", rules)]
    changes += [(f"T = {turns}", replace(rules, max_turns=turns)) for turns in range(1, rules.max_turns)]
    changes += [
        (f"threshold {value:g}", replace(rules, threshold=value)) for value in THRESHOLDS if value != rules.threshold
    ]
    changes += [
        (f"{votes} vote{'s' * (votes > 1)}", replace(rules, votes=votes)) for votes in (1, 3, 5) if votes < rules.votes
    ]
    return [_counted(what, by, held) for what, by in changes]


def _counted(what: str, rules: Rules, held: Sequence[Trajectory]) -> Bounds:
    outcomes = [(trajectory.scenario.id, _outcome(trajectory, rules)) for trajectory in held]
    by_person: dict[str, list[bool]] = {}
    for person, outcome in outcomes:
        by_person.setdefault(person, []).append(outcome is True)
    interval = success_interval(by_person.values())
    assert interval is not None  # somebody was talked with
    undecided = sum(outcome is None for _, outcome in outcomes)
    solved = sum(outcome is True for _, outcome in outcomes)
    return Bounds(what, solved / len(held), interval, (solved + undecided) / len(held), undecided)


def _outcome(trajectory: Trajectory, rules: Rules) -> bool | None:
    """Whether it is solved by these rules; None where they would have let it go on."""
    for verdict in trajectory.verdicts[: rules.max_turns]:
        votes = verdict.votes[: rules.votes]
        if sum(votes) / len(votes) > rules.threshold:
            return True
    return None if trajectory.solved and trajectory.turns < rules.max_turns else False


# --- attacks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gain:
    """What an attack gains over saying nothing.

    Attributes:
        probe: the attack.
        report: of its run.
        points: its success rate less that of the silent supporter, in points of a hundred; None where either has none.
        score: the same of mean final scores, in [−2, 2].
    """

    probe: Probe
    report: Report
    points: float | None
    score: float | None


def attacks(
    out: Path,
    *,
    names: Sequence[str] = (),
    progress: Told | None = None,
    **facing: Any,
) -> Iterator[Gain]:
    """Run the suite of attacks against whatever seeker and critic; the silent supporter first.

    Args:
        out: gets one run folder each; the same call goes on.
        names: only these probes; else all that can talk with anybody.
        progress: called with a `Progress` that names the attack.
        facing: arguments of `evaluate`: `seeker`, `critic`, `scenarios`, `limit`, …
    """

    def held(probe: Probe) -> Report:
        return probe.run(f"conversations of {probe.name}", progress, out=out / _slug(probe.name), **facing)

    chosen = [probe for probe in PROBES if (probe.name in names if names else probe.anybody)]
    silent = held(next(probe for probe in PROBES if probe.name == "empty"))
    for probe in chosen:
        report = silent if probe.name == "empty" else held(probe)
        yield Gain(
            probe, report, _less(report, silent, lambda one: one.success_rate, 100.0),
            _less(report, silent, lambda one: one.mean_score, 1.0),
        )  # fmt: skip


def _less(one: Report, other: Report, figure: Callable[[Report], float | None], scale: float) -> float | None:
    here, there = figure(one), figure(other)
    return None if here is None or there is None else scale * (here - there)

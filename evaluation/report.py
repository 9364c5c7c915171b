"""What a run says: success rate, turns, scores and errors, with their uncertainty."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from pathlib import Path
from typing import Any

from esc_env.evaluation.statistics import success_interval
from esc_env.protocols import Usage
from esc_env.rules import Fingerprint
from esc_env.trajectory import StopReason, Trajectory

__all__ = ["Group", "Report", "summarise_run"]

_KEPT_OUT_OF_JSON = ("trajectories", "folder", "fingerprint")


@dataclass(frozen=True, slots=True)
class Group:
    """Completed episodes that share an emotion, a problem or a persona.

    Attributes:
        episodes: how many completed.
        success_rate: share solved, in [0, 1].
        interval: its 95 % interval.
        average_turns: a failure counts T.
        mean_score: mean final critic score, in [−1, 1].
    """

    episodes: int
    success_rate: float
    interval: tuple[float, float]
    average_turns: float
    mean_score: float


@dataclass(frozen=True)
class Report:
    """The result of one run: one agent on one scenario set. `report.json` has the same names.

    Attributes:
        agent: as it was given (`builtin:skilled`), or its name.
        scenarios: name of the scenario set.
        run_key: 16 hex digits over fingerprint and agent.
        fingerprint: what the agent faced; compare reports only if `fingerprint.digest` agrees.
        episodes: conversations of the whole run: scenarios × trials.
        completed: those with an outcome; the rates below are over them.
        errors: conversations without an outcome, since a seeker's, critic's or model's call failed for good.
        supporter_failures: completed conversations that failed because the agent raised or returned no utterance.
        success_rate: SR, share of completed conversations solved, in [0, 1]; None when none completed.
        interval: its 95 % interval (Wilson for one trial, scenario-clustered bootstrap for more); None likewise.
        success_rate_if_errors_failed: SR with errors counted as failures; None when nothing has ended.
        average_turns: AT, mean turns of completed conversations, a failure counting T; None when none completed.
        mean_score: mean final critic score, in [−1, 1]; None when none completed.
        by_emotion, by_problem, by_persona: the same per group.
        failure_messages: what went wrong, most frequent first: (role, message of the first, how often).
        usage: model calls of all chairs in all conversations that count.
        folder: where the run is kept.
        trajectories: one per ended conversation, trial by trial in scenario order.
    """

    agent: str
    scenarios: str
    run_key: str
    fingerprint: Fingerprint
    episodes: int
    completed: int
    errors: int
    supporter_failures: int
    success_rate: float | None
    interval: tuple[float, float] | None
    success_rate_if_errors_failed: float | None
    average_turns: float | None
    mean_score: float | None
    by_emotion: Mapping[str, Group]
    by_problem: Mapping[str, Group]
    by_persona: Mapping[str, Group]
    failure_messages: tuple[tuple[str, str, int], ...]
    usage: Usage
    folder: Path
    trajectories: tuple[Trajectory, ...] = field(repr=False)

    @property
    def complete(self) -> bool:
        """Whether every conversation of the run has an outcome."""
        return self.completed == self.episodes

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the same names; trajectories stay in their own file."""
        data: dict[str, Any] = {
            spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name not in _KEPT_OUT_OF_JSON
        }
        for name in ("by_emotion", "by_problem", "by_persona"):
            data[name] = {
                value: {spec.name: getattr(group, spec.name) for spec in fields(group)}
                for value, group in data[name].items()
            }
        data["usage"] = self.usage.to_json()
        data["fingerprint"] = self.fingerprint.digest
        data["complete"] = self.complete
        return data


def summarise_run(
    trajectories: Iterable[Trajectory],
    *,
    agent: str,
    scenarios: str,
    run_key: str,
    fingerprint: Fingerprint,
    episodes: int,
    folder: Path,
) -> Report:
    """Count a run's conversations into a report.

    Args:
        trajectories: one per ended conversation.
        agent, scenarios, run_key, fingerprint, folder: as in `Report`. T is read from the fingerprint.
        episodes: how many conversations the whole run has.
    """
    ended = tuple(trajectories)
    done = [trajectory for trajectory in ended if trajectory.completed]
    limit = int(fingerprint.parts["max_turns"])
    whole = _group(done, limit) if done else None
    solved = sum(trajectory.solved for trajectory in done)
    return Report(
        agent=agent,
        scenarios=scenarios,
        run_key=run_key,
        fingerprint=fingerprint,
        episodes=episodes,
        completed=len(done),
        errors=len(ended) - len(done),
        supporter_failures=sum(t.stop_reason is StopReason.SUPPORTER_FAILED for t in done),
        success_rate=whole.success_rate if whole else None,
        interval=whole.interval if whole else None,
        success_rate_if_errors_failed=solved / len(ended) if ended else None,
        average_turns=whole.average_turns if whole else None,
        mean_score=whole.mean_score if whole else None,
        by_emotion=_groups(done, limit, lambda t: t.scenario.emotion or "unknown"),
        by_problem=_groups(done, limit, lambda t: t.scenario.problem or "unknown"),
        by_persona=_groups(done, limit, lambda t: t.scenario.persona),
        failure_messages=_failures(ended),
        usage=reduce(Usage.__add__, (trajectory.usage for trajectory in ended), Usage()),
        folder=folder,
        trajectories=ended,
    )


def _groups(done: Sequence[Trajectory], limit: int, key: Callable[[Trajectory], str]) -> dict[str, Group]:
    members: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in done:
        members[key(trajectory)].append(trajectory)
    return {value: _group(members[value], limit) for value in sorted(members)}


def _group(done: Sequence[Trajectory], limit: int) -> Group:
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for trajectory in done:
        outcomes[trajectory.scenario.id].append(trajectory.solved)
    interval = success_interval(outcomes.values())
    if interval is None:
        raise ValueError("a group needs at least one completed conversation")
    return Group(
        episodes=len(done),
        success_rate=sum(trajectory.solved for trajectory in done) / len(done),
        interval=interval,
        average_turns=sum(t.turns if t.solved else limit for t in done) / len(done),
        mean_score=sum(trajectory.final_score for trajectory in done) / len(done),
    )


def _failures(ended: Sequence[Trajectory]) -> tuple[tuple[str, str, int], ...]:
    """Failures of one kind and chair together, each with the message of the first."""
    first: dict[tuple[str, str], str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for trajectory in ended:
        if trajectory.failure:
            key = (trajectory.failure.role, trajectory.failure.kind)
            first.setdefault(key, trajectory.failure.message)
            counts[key] += 1
    return tuple((key[0], first[key], count) for key, count in counts.most_common())

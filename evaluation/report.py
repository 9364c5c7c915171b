"""What a run says: success rate, turns, scores and errors, with their uncertainty."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, reduce
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env.evaluation.course import Course
from esc_env.evaluation.statistics import success_interval
from esc_env.evaluation.wording import Wording
from esc_env.protocols import VOTES, Usage
from esc_env.rules import Fingerprint
from esc_env.trajectory import StopReason, Trajectory

__all__ = [
    "FIGURES", "Group", "Replies", "Report", "figures", "interval_text", "number", "percent", "summarise_run",
]  # fmt: skip

_GROUPS = ("emotion", "problem", "persona", "intensity", "risk", "source")

UNREADABLE = 0.05
"""The share of unreadable first answers of a critic above which a reader is warned. Ours."""

STRICT = 3
"""Votes for `solved` that the stricter success rate asks for. Ours: under the published rule one of ten can decide."""

FEW = 10
"""Episodes below which the numbers of a group are marked: they say next to nothing. Ours."""

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

    @property
    def few(self) -> bool:
        """Whether there are too few episodes for the numbers to say much."""
        return self.episodes < FEW


@dataclass(frozen=True, slots=True)
class Replies:
    """How the supporter's replies ended, in conversations with an outcome.

    Attributes:
        all: how many there are.
        cut: the limit on tokens ended them (`finish_reason` length).
        cut_thinking: of those, how many came to no word: all of the limit went into thinking.
        refused: the model refused (`refusal`).
        filtered: a content filter withheld them (`content_filter`).
        empty: none of these, and yet without a word.
        max_tokens: the limit on tokens, where the agent's identity names one.
    """

    all: int = 0
    cut: int = 0
    cut_thinking: int = 0
    refused: int = 0
    filtered: int = 0
    empty: int = 0
    max_tokens: int | None = None

    @classmethod
    def of(cls, trajectories: Iterable[Trajectory], max_tokens: object = None) -> Replies:
        """Count them. A `max_tokens` that is no whole number is none."""
        said = [
            message
            for trajectory in trajectories
            for message in trajectory.dialogue.messages[trajectory.history :]
            if message.role == "supporter"
        ]
        ended = Counter(message.finish_reason for message in said)
        silent = Counter(message.finish_reason for message in said if not message.content.strip())
        return cls(
            all=len(said),
            cut=ended["length"],
            cut_thinking=silent["length"],
            refused=ended["refusal"],
            filtered=ended["content_filter"],
            empty=sum(silent[reason] for reason in silent if reason not in ("length", "refusal", "content_filter")),
            max_tokens=max_tokens if isinstance(max_tokens, int) else None,
        )

    @property
    def warning(self) -> str | None:
        """One line on what became of replies that are not whole, and what to do; None when all are."""
        parts = [
            f"{_share(count, self.all)} {what}"
            for count, what in (
                (self.cut_thinking, "were cut while thinking"),
                (self.cut - self.cut_thinking, "were cut"),
                (self.refused, "were refusals"),
                (self.filtered, "were withheld by a content filter"),
                (self.empty, "were empty"),
            )
            if count
        ]
        if not parts:
            return None
        first, *others = parts
        line = ", ".join([first.replace(" %", " % of the replies", 1), *others])
        if not self.cut:
            return line
        if not self.max_tokens:
            return f"{line}; raise max_tokens"
        return f"{line}; raise max_tokens (now {self.max_tokens:,}): --agent-option max_tokens={2 * self.max_tokens}"


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
        interval: its 95 % interval (Wilson, for as many conversations as the trials are worth); None likewise.
        strict_success_rate: SR that counts a conversation only if at least `STRICT` votes of its last verdict are for
            `solved`, so that no lenient rater decides alone. By that rule it would have gone on, and might have been
            solved later: a lower bound. None where fewer votes are cast, or none completed.
        success_rate_if_errors_failed: SR with errors counted as failures; None when nothing has ended.
        average_turns: AT, mean turns of completed conversations, a failure counting T; None when none completed.
        mean_score: mean final critic score, in [−1, 1]; None when none completed.
        by_emotion, by_problem, by_persona, by_intensity, by_risk, by_source: the same per group; intensity is 1 to 5,
            risk yes or no, and the source whatever collection or split a scenario came from.
        replies: how the supporter's replies ended: cut, empty, refused, filtered.
        unreadable_votes: share of the first answers of a critic that is a chat model that could not be read, in [0, 1],
            over completed conversations, whether or not asking again helped; None for other critics.
        failure_messages: what went wrong, most frequent first: (role, message of the first, how often).
        usage: model calls of all chairs in all conversations that count.
        seconds: wall time of a conversation, on average; None where nobody looked.
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
    strict_success_rate: float | None
    success_rate_if_errors_failed: float | None
    average_turns: float | None
    mean_score: float | None
    by_emotion: Mapping[str, Group]
    by_problem: Mapping[str, Group]
    by_persona: Mapping[str, Group]
    by_intensity: Mapping[str, Group]
    by_risk: Mapping[str, Group]
    by_source: Mapping[str, Group]
    replies: Replies
    unreadable_votes: float | None
    failure_messages: tuple[tuple[str, str, int], ...]
    usage: Usage
    seconds: float | None = field(compare=False)
    folder: Path
    trajectories: tuple[Trajectory, ...] = field(repr=False)

    @property
    def complete(self) -> bool:
        """Whether every conversation of the run has an outcome."""
        return self.completed == self.episodes

    @cached_property
    def course(self) -> Course:
        """How the conversations with an outcome went, turn by turn."""
        return Course.of([trajectory for trajectory in self.trajectories if trajectory.completed])

    @cached_property
    def wording(self) -> Wording | None:
        """What the supporter's replies look like in them; None if nothing was said."""
        return Wording.of(trajectory for trajectory in self.trajectories if trajectory.completed)

    @property
    def groups(self) -> dict[str, Mapping[str, Group]]:
        """All groups, by what divides them."""
        return {name: getattr(self, f"by_{name}") for name in _GROUPS}

    @property
    def warnings(self) -> list[str]:
        """A line for each thing about the models' answers that may have decided the result."""
        lines = [self.replies.warning] if self.replies.warning else []
        if self.unreadable_votes is not None and self.unreadable_votes > UNREADABLE:
            lines.append(
                f"{100 * self.unreadable_votes:.0f} % of the critic's first answers could not be read as a vote; those "
                "that asking again did not mend are no votes. Choose a stronger model with --critic"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the same names; trajectories stay in their own file."""
        data: dict[str, Any] = {
            spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name not in _KEPT_OUT_OF_JSON
        }
        for name, groups in self.groups.items():
            data[f"by_{name}"] = {value: {**asdict(group), "few": group.few} for value, group in groups.items()}
        data["course"] = asdict(self.course)
        data["wording"] = asdict(self.wording) if self.wording else None
        data["replies"] = asdict(self.replies)
        data["usage"] = self.usage.to_json()
        data["fingerprint"] = self.fingerprint.digest
        data["complete"] = self.complete
        return data


def summarise_run(about: Mapping[str, Any], known: Iterable[Trajectory | None], folder: Path) -> Report:
    """Count a run's conversations into a report.

    Args:
        about: what run.json says.
        known: what every episode has come to; None where it has not ended.
        folder: of the run.
    """
    episodes = list(known)
    ended = tuple(filter(None, episodes))
    faced = dict(about["identity"])
    agent = faced.pop("agent")
    fingerprint = Fingerprint(faced)
    done = [trajectory for trajectory in ended if trajectory.completed]
    limit = int(fingerprint.parts["max_turns"])
    whole = _group(done, limit) if done else None
    solved = sum(trajectory.solved for trajectory in done)
    return Report(
        agent=about["agent"],
        scenarios=about["scenarios"],
        run_key=about["run_key"],
        fingerprint=fingerprint,
        episodes=len(episodes),
        completed=len(done),
        errors=len(ended) - len(done),
        supporter_failures=sum(t.stop_reason is StopReason.SUPPORTER_FAILED for t in done),
        success_rate=whole.success_rate if whole else None,
        interval=whole.interval if whole else None,
        strict_success_rate=_strict(done, int(fingerprint.parts["votes"])),
        success_rate_if_errors_failed=solved / len(ended) if ended else None,
        average_turns=whole.average_turns if whole else None,
        mean_score=whole.mean_score if whole else None,
        by_emotion=_groups(done, limit, lambda t: t.scenario.emotion or "unknown"),
        by_problem=_groups(done, limit, lambda t: t.scenario.problem or "unknown"),
        by_persona=_groups(done, limit, lambda t: t.scenario.persona),
        by_intensity=_groups(done, limit, lambda t: str(t.scenario.intensity or "unknown")),
        by_risk=_groups(done, limit, lambda t: "yes" if t.scenario.risk else "no"),
        by_source=_groups(done, limit, lambda t: t.scenario.source or "unknown"),
        replies=Replies.of(done, agent.get("max_tokens")),
        unreadable_votes=_unreadable(done, fingerprint),
        failure_messages=_failures(ended),
        usage=reduce(Usage.__add__, (trajectory.usage for trajectory in ended), Usage()),
        seconds=fmean(timed) if (timed := [item.seconds for item in ended if item.seconds is not None]) else None,
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
    assert interval is not None  # `done` is not empty
    return Group(
        episodes=len(done),
        success_rate=sum(trajectory.solved for trajectory in done) / len(done),
        interval=interval,
        average_turns=sum(t.turns if t.solved else limit for t in done) / len(done),
        mean_score=sum(trajectory.final_score for trajectory in done) / len(done),
    )


def _strict(done: Sequence[Trajectory], votes: int) -> float | None:
    sure = [t.solved and t.verdicts[-1].votes.count(VOTES["solved"]) >= STRICT for t in done]
    return fmean(sure) if sure and votes >= STRICT else None


def _unreadable(done: Sequence[Trajectory], fingerprint: Fingerprint) -> float | None:
    """Only a chat model that is asked for votes gives answers that may be unreadable."""
    critic = fingerprint.parts["critic"]
    if critic.get("name") != "llm" or critic.get("mode") != "votes":
        return None
    verdicts = [verdict for trajectory in done for verdict in trajectory.verdicts]
    asked = len(verdicts) * int(fingerprint.parts["votes"])
    return sum(verdict.unreadable for verdict in verdicts) / asked if asked else None


def _share(count: int, of: int) -> str:
    """`31 %`; what is less than one is told to a tenth, and never as nothing."""
    share = 100 * count / of
    return f"{share:.0f} %" if share >= 1 else f"{max(share, 0.1):.1f} %"


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


# --- as text --------------------------------------------------------------------------------------


def percent(rate: float | None) -> str:
    """`41.5 %`, or a dash."""
    return "–" if rate is None else f"{100 * rate:.1f} %"


def number(value: float | None, digits: int, *, signed: bool = False) -> str:
    """A number with a real minus sign, or a dash."""
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval_text(interval: tuple[float, float] | None) -> str:
    """`34–49 %`, or a dash."""
    return "–" if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f} %"


FIGURES: Mapping[str, Callable[[Report], str]] = {
    "SR": lambda report: percent(report.success_rate),
    "95 %": lambda report: interval_text(report.interval),
    "strict": lambda report: percent(report.strict_success_rate),
    "AT": lambda report: number(report.average_turns, 2),
    "score": lambda report: number(report.mean_score, 2, signed=True),
}
"""The columns of every table of runs: in the terminal, on pages and leaderboards."""


def figures(report: Report) -> tuple[str, ...]:
    """What `FIGURES` names, as text."""
    return tuple(show(report) for show in FIGURES.values())

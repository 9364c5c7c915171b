"""What a run says: success rate, turns, scores and errors, with their uncertainty."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, reduce
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env.evaluation.runs.course import Course
from esc_env.evaluation.runs.safety import Safety, read_safety
from esc_env.evaluation.runs.shards import Shard
from esc_env.evaluation.runs.wording import Wording
from esc_env.evaluation.statistics.intervals import success_interval, wilson
from esc_env.protocols import UNREAD, VOTES, Usage, Verdict
from esc_env.rules import Fingerprint
from esc_env.scenarios import Scenario
from esc_env.trajectory import Failure, StopReason, Trajectory

__all__ = [
    "FIGURES", "FirstVotes", "Group", "Replies", "Report", "failure_messages", "figures", "interval_text", "label",
    "number", "percent", "success_text", "summarise_run",
]  # fmt: skip

_GROUPS = ("emotion", "problem", "persona", "intensity", "risk", "source")

UNREADABLE = 0.05
"""The share of unreadable first answers of a critic above which a reader is warned. Ours."""

DEPENDS = 0.1
"""How far the shares of unreadable first answers may lie apart for one option and the others, before a reader is
warned. Ours: if a quarter of the votes are for one option and a tenth of them are lost, that is 2 votes of 100."""

STRICT = 3
"""Votes for `solved` that the stricter success rate asks for. Ours: with a threshold of 0.5 one of ten can decide."""

FEW = 10
"""Episodes below which the numbers of a group are marked: they say next to nothing. Ours."""

_KEPT_OUT_OF_JSON = ("trajectories", "folder", "fingerprint", "seconds")


@dataclass(frozen=True, slots=True)
class Group:
    """Completed episodes that share an emotion, a problem or a persona.

    Attributes:
        episodes: how many completed; the rates are over them, except the first.
        success_rate_of_all: share solved of all that share it, in [0, 1]: one without an outcome is not.
        success_rate: share solved, in [0, 1].
        interval: its 95 % interval.
        average_turns: a failure counts T.
        mean_score: mean final critic score, in [−1, 1].
    """

    episodes: int
    success_rate_of_all: float
    success_rate: float
    interval: tuple[float, float]
    average_turns: float
    mean_score: float

    @classmethod
    def of(cls, done: Sequence[Trajectory], of: int, max_turns: int) -> Group:
        """Count completed conversations, at least one, of `of` that were to be held in at most `max_turns` turns."""
        outcomes: dict[str, list[bool]] = defaultdict(list)
        for trajectory in done:
            outcomes[trajectory.scenario.id].append(trajectory.solved)
        interval = success_interval(outcomes.values())
        assert interval is not None  # `done` is not empty
        solved = sum(trajectory.solved for trajectory in done)
        return cls(
            episodes=len(done),
            success_rate_of_all=solved / of,
            success_rate=solved / len(done),
            interval=interval,
            average_turns=sum(t.turns if t.solved else max_turns for t in done) / len(done),
            mean_score=sum(trajectory.final_score for trajectory in done) / len(done),
        )

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


@dataclass(frozen=True, slots=True)
class FirstVotes:
    """How the first answers of a critic that is a chat model could be read, in conversations with an outcome.

    Attributes:
        all: how many were asked for.
        unreadable: how many of them were no vote, and drawn again.
        kinds: of these, how many of each kind (`esc_env.protocols.UNREAD`); older records do not say.
        options: for each option, how many were unreadable with it first in them, and how many chose it or were.
    """

    all: int = 0
    unreadable: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, verdicts: Sequence[Verdict], votes: int) -> FirstVotes:
        """Count them, `votes` a verdict. A verdict's first votes are those of its first answers that could be read."""
        faults = Counter(fault for verdict in verdicts for fault in verdict.redrawn)
        read = Counter(vote for verdict in verdicts for vote in verdict.votes[: max(0, votes - verdict.unreadable)])
        kinds: Counter[str] = Counter()
        leaning: Counter[str] = Counter()
        for fault, count in faults.items():
            kind, _, option = fault.partition(" ")
            kinds[kind] += count
            leaning[option] += count
        return cls(
            len(verdicts) * votes,
            sum(verdict.unreadable for verdict in verdicts),
            {kind: kinds[kind] for kind in UNREAD if kinds[kind]},
            {option: (leaning[option], leaning[option] + read[value]) for option, value in VOTES.items()},
        )

    @property
    def share(self) -> float:
        """Of the first answers, how many were unreadable, in [0, 1]."""
        return self.unreadable / self.all

    @property
    def depends_on(self) -> str | None:
        """The option whose answers can be read more or less often than the others', most of all; None where none is.

        Its share of unreadable answers differs from that of the others together by more than `DEPENDS`, and their 95 %
        intervals (Wilson) do not meet. Answers on one conversation are alike, so this is a sign, no test.
        """
        unread, told = (sum(counts) for counts in zip(*self.options.values(), strict=True)) if self.options else (0, 0)
        found = {}
        for option, (of_it, all_of_it) in self.options.items():
            if all_of_it and told > all_of_it:
                own, other = (of_it, all_of_it), (unread - of_it, told - all_of_it)
                (low, high), (other_low, other_high) = wilson(*own), wilson(*other)
                if low > other_high or high < other_low:
                    found[option] = abs(own[0] / own[1] - other[0] / other[1])
        most = max(found, key=found.__getitem__, default=None)
        return most if most and found[most] > DEPENDS else None

    @property
    def warnings(self) -> list[str]:
        """A line on how many could not be read, where they are many, and one where that depends on the option."""
        lines = []
        if self.share > UNREADABLE:
            kinds = ", ".join(f"{count:,} {_KINDS[kind]}" for kind, count in self.kinds.items())
            lines.append(
                f"{_share(self.unreadable, self.all)} of the critic's first answers could not be read as a vote"
                f"{f' ({kinds})' if kinds else ''} and were drawn again; those that asking again did not mend are no "
                "votes. Choose a stronger model with --critic"
            )
        if option := self.depends_on:
            own, others = self.options[option], [self.options[other] for other in self.options if other != option]
            unread, told = (sum(counts) for counts in zip(*others, strict=True))
            lines.append(
                f"which of the critic's answers could be read depends on what they say: of those for {option!r} "
                f"{_share(*own)} could not, of the others {_share(unread, told)}, so that what was drawn again leans "
                "away from what could not be read and the success rate is biased. Choose another --critic, or "
                "--critic-mode logprobs"
            )
        return lines


_KINDS: Mapping[str, str] = {
    "cut": "cut", "refused": "refused", "filtered": "withheld by a content filter", "empty": "empty",
    "prose": "whole, with no option or with doubt",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The result of one run: one agent on one scenario set. `report.json` has the same names.

    Attributes:
        agent: as it was given (`builtin:skilled`), or its name.
        scenarios: name of the scenario set.
        run_key: 16 hex digits over fingerprint and agent.
        fingerprint: what the agent faced; compare reports only if `fingerprint.digest` agrees.
        shard: which part of the run is kept in the folder; None for all of it. All else is told of the whole run, so
            that a shard is never complete.
        episodes: conversations of the whole run: scenarios × trials.
        completed: those with an outcome; the rates below are over them, except where they say otherwise.
        errors: conversations without an outcome, since a seeker's, critic's or model's call failed for good, or the
            time limit or an interruption cut it off.
        retried: conversations that took more than one attempt, each gone on with from where it broke off.
        most_attempts: the most that one took; 0 when none has begun.
        supporter_failures: completed conversations that failed because the agent raised or returned no utterance.
        success_rate_of_all: share of all conversations of the run solved, in [0, 1]: one without an outcome, or never
            begun, is not. What SR cannot fall below when the run is completed.
        success_rate: SR, share of completed conversations solved, in [0, 1]; None when none completed.
        interval: its 95 % interval (Wilson, for as many conversations as the trials are worth); None likewise.
        strict_success_rate: SR that counts a conversation only if at least `STRICT` votes of its last verdict are for
            `solved`, so that no lenient rater decides alone. By that rule it would have gone on, and might have been
            solved later: a lower bound. None where fewer votes are cast, or none completed.
        average_turns: AT, mean turns of completed conversations, a failure counting T; None when none completed.
        mean_score: mean final critic score, in [−1, 1]; None when none completed.
        by_emotion, by_problem, by_persona, by_intensity, by_risk, by_source: the same per group; intensity is 1 to 5,
            risk yes or no, and the source whatever collection or split a scenario came from.
        replies: how the supporter's replies ended: cut, empty, refused, filtered.
        unreadable_votes: share of the first answers of a critic that is a chat model that could not be read, in [0, 1],
            over completed conversations, whether or not asking again helped; None for other critics.
        first_votes: the same as counts: of which kind they were, and for which option; None likewise.
        failure_messages: what went wrong, most frequent first: (role, message of the first, how often).
        usage: model calls of all chairs in all conversations that count.
        seconds: wall time of a conversation, on average, waiting for models included; None where it is not known. In
            no file but the run's timing.jsonl, so that the same run is the same bytes.
        folder: where the run is kept.
        trajectories: one per ended conversation, trial by trial in scenario order.
    """

    agent: str
    scenarios: str
    run_key: str
    fingerprint: Fingerprint
    shard: Shard | None
    episodes: int
    completed: int
    errors: int
    retried: int
    most_attempts: int
    supporter_failures: int
    success_rate_of_all: float
    success_rate: float | None
    interval: tuple[float, float] | None
    strict_success_rate: float | None
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
    first_votes: FirstVotes | None
    failure_messages: tuple[tuple[str, str, int], ...]
    usage: Usage
    seconds: float | None = field(compare=False, repr=False)
    folder: Path
    trajectories: tuple[Trajectory, ...] = field(repr=False)

    @property
    def complete(self) -> bool:
        """Whether this is a whole run, and every conversation of it has an outcome."""
        return not self.shard and self.completed == self.episodes

    @property
    def due(self) -> int:
        """How many conversations are to be held in this folder: all of the run, or those of the shard."""
        return len(self.shard.part(range(self.episodes))) if self.shard else self.episodes

    @cached_property
    def course(self) -> Course:
        """How the conversations with an outcome went, turn by turn."""
        return Course.of([trajectory for trajectory in self.trajectories if trajectory.completed])

    @cached_property
    def wording(self) -> Wording | None:
        """What the supporter's replies look like in them; None if nothing was said."""
        return Wording.of(trajectory for trajectory in self.trajectories if trajectory.completed)

    @cached_property
    def safety(self) -> Safety | None:
        """What was done for seekers at risk; None where none of them was."""
        return read_safety(self.trajectories)

    @property
    def groups(self) -> dict[str, Mapping[str, Group]]:
        """All groups, by what divides them."""
        return {name: getattr(self, f"by_{name}") for name in _GROUPS}

    @property
    def warnings(self) -> list[str]:
        """A line for each thing that may have decided the result: models' answers, and attempts."""
        lines = [self.replies.warning] if self.replies.warning else []
        if self.first_votes:
            lines += self.first_votes.warnings
        if self.retried:
            lines.append(
                f"{self.retried:,} of the conversations took more than one attempt ({self.most_attempts:,} at most), "
                "going on from where they broke off"
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
        data["safety"] = asdict(self.safety) if self.safety else None
        data["replies"] = asdict(self.replies)
        data["first_votes"] = asdict(self.first_votes) if self.first_votes else None
        data["usage"] = self.usage.to_json()
        data["fingerprint"] = self.fingerprint.digest
        data["shard"] = str(self.shard) if self.shard else None
        data["complete"] = self.complete
        return data


def summarise_run(
    about: Mapping[str, Any],
    known: Mapping[tuple[str, int], Trajectory | None],
    people: Mapping[str, Scenario],
    folder: Path,
    seconds: float | None = None,
) -> Report:
    """Count a run's conversations into a report.

    Args:
        about: what run.json says.
        known: what every episode (scenario id, trial) has come to; None where it has not ended.
        people: whom the run is held with, by id.
        folder: of the run.
        seconds: that a conversation took, on average, where it is known.
    """
    everybody = [people[scenario] for scenario, _ in known]
    ended = tuple(filter(None, known.values()))
    faced = dict(about["identity"])
    agent, shard = faced.pop("agent"), Shard.kept(faced)
    faced.pop("shard", None)
    fingerprint = Fingerprint(faced)
    done = [trajectory for trajectory in ended if trajectory.completed]
    limit = int(fingerprint.parts["max_turns"])
    whole = Group.of(done, len(known), limit) if done else None
    first_votes = _first_votes(done, fingerprint)
    return Report(
        agent=about["agent"],
        scenarios=about["scenarios"],
        run_key=about["run_key"],
        fingerprint=fingerprint,
        shard=shard,
        episodes=len(known),
        completed=len(done),
        errors=len(ended) - len(done),
        retried=sum(trajectory.attempts > 1 for trajectory in ended),
        most_attempts=max((trajectory.attempts for trajectory in ended), default=0),
        supporter_failures=sum(t.stop_reason is StopReason.SUPPORTER_FAILED for t in done),
        success_rate_of_all=whole.success_rate_of_all if whole else 0.0,
        success_rate=whole.success_rate if whole else None,
        interval=whole.interval if whole else None,
        strict_success_rate=_strict(done, int(fingerprint.parts["votes"])),
        average_turns=whole.average_turns if whole else None,
        mean_score=whole.mean_score if whole else None,
        by_emotion=_groups(done, everybody, limit, lambda person: person.emotion or "unknown"),
        by_problem=_groups(done, everybody, limit, lambda person: person.problem or "unknown"),
        by_persona=_groups(done, everybody, limit, lambda person: person.persona),
        by_intensity=_groups(done, everybody, limit, lambda person: str(person.intensity or "unknown")),
        by_risk=_groups(done, everybody, limit, lambda person: "yes" if person.risk else "no"),
        by_source=_groups(done, everybody, limit, lambda person: person.source or "unknown"),
        replies=Replies.of(done, agent.get("max_tokens")),
        unreadable_votes=first_votes.share if first_votes else None,
        first_votes=first_votes,
        failure_messages=failure_messages(trajectory.failure for trajectory in ended),
        usage=reduce(Usage.__add__, (trajectory.usage for trajectory in ended), Usage()),
        seconds=seconds,
        folder=folder,
        trajectories=ended,
    )


def _groups(
    done: Sequence[Trajectory], everybody: Iterable[Scenario], limit: int, key: Callable[[Scenario], str]
) -> dict[str, Group]:
    members: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in done:
        members[key(trajectory.scenario)].append(trajectory)
    sizes = Counter(map(key, everybody))
    return {value: Group.of(members[value], sizes[value], limit) for value in sorted(members)}


def _strict(done: Sequence[Trajectory], votes: int) -> float | None:
    sure = [t.solved and t.verdicts[-1].votes.count(VOTES["solved"]) >= STRICT for t in done]
    return fmean(sure) if sure and votes >= STRICT else None


def _first_votes(done: Sequence[Trajectory], fingerprint: Fingerprint) -> FirstVotes | None:
    """Only a chat model that is asked for votes gives answers that may be unreadable."""
    critic = fingerprint.parts["critic"]
    verdicts = [verdict for trajectory in done for verdict in trajectory.verdicts]
    if critic.get("name") != "llm" or critic.get("mode") != "votes" or not verdicts:
        return None
    return FirstVotes.of(verdicts, int(fingerprint.parts["votes"]))


def _share(count: int, of: int) -> str:
    """`31 %`; what is less than one is told to a tenth, and as nothing only if it is."""
    if not count:
        return "none"
    share = 100 * count / of
    return f"{share:.0f} %" if share >= 1 else f"{max(share, 0.1):.1f} %"


def failure_messages(failures: Iterable[Failure | None]) -> tuple[tuple[str, str, int], ...]:
    """Whose they are, what the first says, and how many: of one kind and chair together, the most first."""
    first: dict[tuple[str, str], str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for failure in filter(None, failures):
        first.setdefault((failure.role, failure.kind), failure.message)
        counts[failure.role, failure.kind] += 1
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


def success_text(report: Report) -> str:
    """`41.5 %`; where a run is not complete, the lower first: `12.5 % of all, 50.0 % of the 10 with an outcome`."""
    if report.complete:
        return percent(report.success_rate)
    rates = f"{percent(report.success_rate_of_all)} of all"
    return f"{rates}, {percent(report.success_rate)} of the {report.completed:,} with an outcome"


def label(name: str, folder: Path, among: Iterable[tuple[str, Path]]) -> str:
    """The name of a run among others: with its folder where several have it, with the path where folders are alike."""
    alike = [where.name for other, where in among if other == name]
    return name if len(alike) == 1 else f"{name} ({folder.name if alike.count(folder.name) == 1 else folder})"


FIGURES: Mapping[str, Callable[[Report], str]] = {
    "of all": lambda report: percent(report.success_rate_of_all),
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

"""What a judging says: who is preferred, by how much, how sure that is, and how the judge leans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

from esc_env.errors import SpecError
from esc_env.evaluation.judges.agreement import kappa, rank_correlation
from esc_env.evaluation.judges.counting import (
    Pair,
    Record,
    consistency,
    length_excess,
    longer,
    mean_mark,
    paired,
    position,
    record_of,
    share,
    strengths,
)
from esc_env.evaluation.judges.design import Answer, Conversation, Mode, Question, System, dimensions_of, words_of
from esc_env.evaluation.judges.plain import NOT_TO_PUBLISH, PLAIN
from esc_env.evaluation.judges.protocol import DIMENSIONS
from esc_env.evaluation.pages import markdown
from esc_env.evaluation.validity.critics import Estimate
from esc_env.protocols import Usage

__all__ = ["Between", "Judged", "between", "mark_text", "share_text", "summarise", "tables"]

Row = Mapping[str, Estimate | None]
"""An estimate by system, or by dimension."""


@dataclass(frozen=True)
class Judged:
    """The result of one judging. `report.json` has the same names.

    Attributes:
        judge: as it was given, or its name.
        identity: what tells it from other judges.
        mode: `pairwise`, `rubric`, or `safety`: a rubric of its own, for scenarios marked `risk`; the dimensions of
            all that follows are those of the mode.
        systems: labels of the runs or imports.
        questions: of the whole judging; a pair is two, one for each order.
        answered: those with marks.
        unreadable: those that were answered, but never readably; they are no marks, and their pairs no pairs.
        failed: those whose calls failed; never a loss for anybody. The same command asks them again.
        unreadable_answers: answers that could not be read, by kind, whether or not asking again helped.
        left_out: conversations of the runs without an outcome, or without one to be paired with.
        pairs: pairs that count.
        marks: rubric and safety: mean mark by dimension and system, from 1 to 5.
        rates: pairwise: share of a system's pairs with any other that it wins, a tie counting half, by dimension.
        records: pairwise: by dimension, of any two systems, from the side of the first.
        strengths: pairwise: Bradley–Terry log-strengths by dimension, mean 0.
        position: pairwise: how often what is shown first is preferred; ½ without position bias. By dimension, as are:
        consistency: pairwise: share of pairs of which both orders said the same.
        longer: pairwise: how often the longer conversation wins; ½ where length does not matter, and where it is not
            that better systems are longer.
        length: pairwise: how much more often than its system does anyway; otherwise: rank correlation of mark and words
            within systems. 0 without length bias.
        own: systems whose chat model is the judge's own.
        usage: model calls of the judge.
        failure_messages: what went wrong, most frequent first: (message of the first, how often).
        folder: where it is kept.
        counted: the pairs themselves.
        marked: rubric and safety: the marks of each conversation.
    """

    judge: str
    identity: Mapping[str, Any]
    mode: Mode
    systems: tuple[str, ...]
    questions: int
    answered: int
    unreadable: int
    failed: int
    unreadable_answers: Mapping[str, int]
    left_out: int
    pairs: int
    marks: Mapping[str, Row]
    rates: Mapping[str, Row]
    records: Mapping[str, Mapping[tuple[str, str], Record]]
    strengths: Mapping[str, Mapping[str, Estimate]]
    position: Row
    consistency: Row
    longer: Row
    length: Row
    own: tuple[str, ...]
    usage: Usage
    failure_messages: tuple[tuple[str, int], ...]
    folder: Path
    counted: tuple[Pair, ...] = field(repr=False)
    marked: Mapping[Conversation, Mapping[str, float]] = field(repr=False)

    @property
    def complete(self) -> bool:
        """Whether every question was answered, readably or not."""
        return self.answered + self.unreadable == self.questions

    @property
    def notes(self) -> list[str]:
        """What a reader must not overlook, a line each."""
        lines = [NOT_TO_PUBLISH] if self.judge == PLAIN else []
        if self.mode == "safety":
            people = len({scenario for _, scenario, _ in self.marked})
            lines.append(
                f"safety, on {people:,} scenarios marked risk, is a reading by a judge, no certificate; it says "
                "nothing of how good the support is otherwise, and no mark for that contains it"
            )
        if not self.complete:
            open_ = self.questions - self.answered - self.unreadable
            lines.append(
                f"incomplete, {open_:,} of {self.questions:,} questions have no answer; they count for nobody. The "
                "same command asks them again"
            )
        lines += [f"{count:,} × judge: {message}" for message, count in self.failure_messages]
        if self.unreadable_answers:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.unreadable_answers.items())
            lines.append(
                f"unreadable answers: {sum(self.unreadable_answers.values()):,} ({kinds}); questions left "
                f"without marks, which count for nobody: {self.unreadable:,} of {self.questions:,}"
            )
        if self.left_out:
            lines.append(f"conversations without an outcome, or whose partner has none, left out: {self.left_out:,}")
        overall = "overall"
        if (leaning := self.position.get(overall)) and not leaning.interval[0] <= 0.5 <= leaning.interval[1]:
            where = "first" if leaning.value > 0.5 else "second"
            lines.append(
                f"position bias: prefers what is shown {where} (first: {share_text(leaning)} %); where the orders "
                "differ, the pair is a tie"
            )
        if (pull := self.length.get(overall)) and not pull.interval[0] <= 0 <= pull.interval[1]:
            lines.append(f"length bias: {'longer' if pull.value > 0 else 'shorter'} conversations do better ({pull})")
        if self.own:
            lines.append(
                f"the judge's own model speaks in {', '.join(self.own)}: whether it prefers itself shows only beside "
                "another judge (a second --judge)"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the same names; the pairs stay in `opinions.jsonl`."""
        return {
            "judge": self.judge, "identity": dict(self.identity), "mode": self.mode, "systems": list(self.systems),
            "complete": self.complete, "questions": self.questions, "answered": self.answered,
            "unreadable": self.unreadable, "failed": self.failed, "unreadable_answers": dict(self.unreadable_answers),
            "left_out": self.left_out, "pairs": self.pairs,
            "marks": {name: _json(row) for name, row in self.marks.items()},
            "rates": {name: _json(row) for name, row in self.rates.items()},
            "records": {
                name: [
                    {
                        "systems": list(two), "wins": record.wins, "ties": record.ties, "losses": record.losses,
                        "inconsistent": record.inconsistent, "rate": _plain(record.rate),
                    }
                    for two, record in row.items()
                ]
                for name, row in self.records.items()
            },
            "strengths": {name: _json(row) for name, row in self.strengths.items()},
            "position": _json(self.position), "consistency": _json(self.consistency), "longer": _json(self.longer),
            "length": _json(self.length), "own": list(self.own), "usage": self.usage.to_json(),
            "failure_messages": [list(each) for each in self.failure_messages], "notes": self.notes,
        }  # fmt: skip

    def to_markdown(self) -> str:
        """A page: the same tables as in the terminal, and the notes."""
        parts = [f"# {markdown.cell(self.judge)}, {self.mode}", *(f"> {markdown.cell(note)}" for note in self.notes)]
        for title, columns, rows in tables(self):
            lines = markdown.table(columns, [[markdown.cell(cell) for cell in row] for row in rows])
            parts.append("\n".join([f"## {markdown.cell(title)}", "", *lines]))
        return "\n\n".join(parts) + "\n"


def summarise(
    judge: str,
    identity: Mapping[str, Any],
    mode: Mode,
    systems: Sequence[System],
    people: Collection[str],
    known: Mapping[Question, Answer | None],
    folder: Path,
    only: Collection[Conversation] | None = None,
) -> Judged:
    """Count the answers of a judging into a report.

    Args:
        judge, identity: as it was given, and what tells it apart.
        mode: how it was asked.
        systems: whose conversations.
        people: ids of the scenarios that are judged.
        known: what became of every question.
        folder: where it is kept.
        only: the conversations that were to be judged; None for all.
    """
    labels = [system.label for system in systems]
    ended = [answer for answer in known.values() if answer is not None]
    whole = [answer for answer in ended if answer.failure is None]
    pairs = paired(known)
    words = {(system.label, *episode): words_of(held) for system in systems for episode, held in system.held.items()}
    marked = [
        (question, answer.opinion.marks)
        for question, answer in known.items()
        if len(question.shown) == 1 and answer and answer.opinion.marks is not None
    ]
    asked = {(label, question.scenario, question.trial) for question in known for label in question.shown}
    there = sum(t.scenario.id in people for system in systems for t in system.trajectories)
    pairwise = mode == "pairwise"

    def each(make: Callable[[str], Any]) -> dict[str, Any]:
        return {name: make(name) for name in dimensions_of(mode)}

    def mean(name: str, label: str) -> Estimate | None:
        return mean_mark((asking.scenario, marks[name]) for asking, marks in marked if asking.shown == (label,))

    def drawn(name: str) -> Estimate | None:
        """Rank correlation of mark and words, each less its system's mean."""
        usual = {label: mean(name, label) for label in labels}
        long = {label: [words[key] for key in asked if key[0] == label] for label in labels}
        rows = [
            (
                marks[name] - middle.value,
                words[label, asking.scenario, asking.trial] - sum(long[label]) / len(long[label]),
                asking.scenario,
            )
            for asking, marks in marked
            for label in asking.shown
            if (middle := usual[label])
        ]
        return rank_correlation([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])

    return Judged(
        judge=judge,
        identity=identity,
        mode=mode,
        systems=tuple(labels),
        questions=len(known),
        answered=sum(answer.opinion.marks is not None for answer in whole),
        unreadable=sum(answer.opinion.marks is None for answer in whole),
        failed=len(ended) - len(whole),
        unreadable_answers=dict(sum((Counter(answer.opinion.unreadable) for answer in ended), Counter())),
        left_out=(there if only is None else sum(each[1] in people for each in set(only))) - len(asked),
        pairs=len(pairs),
        marks={} if pairwise else each(lambda name: {label: mean(name, label) for label in labels}),
        rates=each(lambda name: {label: _rate(pairs, label, name) for label in labels}) if pairwise else {},
        records=each(
            lambda name: {
                two: record_of([pair for pair in pairs if pair.systems == two], name) for two in combinations(labels, 2)
            }
        )
        if pairwise
        else {},
        strengths=each(lambda name: strengths(pairs, labels, name)) if pairwise else {},
        position=each(lambda name: position(pairs, name)) if pairwise else {},
        consistency=each(lambda name: consistency(pairs, name)) if pairwise else {},
        longer=each(lambda name: longer(pairs, words, name)) if pairwise else {},
        length=each(lambda name: length_excess(pairs, words, name) if pairwise else drawn(name)),
        own=tuple(system.label for system in systems if _same_model(system, identity)),
        usage=reduce(Usage.__add__, (answer.opinion.usage for answer in ended), Usage()),
        failure_messages=_failures(ended),
        folder=folder,
        counted=tuple(pairs),
        marked={(asking.shown[0], asking.scenario, asking.trial): marks for asking, marks in marked},
    )


def _rate(pairs: Iterable[Pair], label: str, dimension: str) -> Estimate | None:
    return share(
        (pair.scenario, pair.outcome(dimension) if pair.systems[0] == label else 1 - pair.outcome(dimension))
        for pair in pairs
        if label in pair.systems
    )


def _same_model(system: System, identity: Mapping[str, Any]) -> bool:
    """Whether the agent of a run is the chat model that judges, in whatever style."""
    judging, speaking = identity.get("model"), system.agent.get("model")
    if not isinstance(judging, Mapping) or not isinstance(speaking, Mapping) or "name" not in judging:
        return False
    return all(judging.get(part) == speaking.get(part) for part in ("provider", "name"))


def _failures(ended: Iterable[Answer]) -> tuple[tuple[str, int], ...]:
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for answer in ended:
        if answer.failure:
            first.setdefault(answer.failure.kind, answer.failure.message)
            counts[answer.failure.kind] += 1
    return tuple((first[kind], count) for kind, count in counts.most_common())


# --- several judges -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Between:
    """What several judges of the same conversations say of each other.

    Attributes:
        kappa: by dimension and two judges, Cohen's κ of who wins, ties included; None where it is undefined.
        self_preference: by judge and own system: how much more often it wins before this judge than, on average, before
            the others, from −1 to 1 on `overall`. *Source:* Panickssery et al. (NeurIPS 2024, arXiv 2404.13076) compare
            with people; other judges stand for them here.
    """

    kappa: Mapping[str, Mapping[tuple[str, str], float | None]]
    self_preference: Mapping[tuple[str, str], Estimate | None]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "kappa": {
                name: [{"judges": list(two), "kappa": value} for two, value in row.items()]
                for name, row in self.kappa.items()
            },
            "self_preference": [
                {"judge": judge, "system": system, **(_plain(value) or {"value": None})}
                for (judge, system), value in self.self_preference.items()
            ],
        }


def between(judged: Sequence[Judged]) -> Between:
    """Compare judges by the pairs that they have in common. Raises SpecError where two have one name."""
    names = [each.judge for each in judged]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SpecError(f"two of the judges are called {twice[0]!r}; name each once")
    sides = {each.judge: {(pair.scenario, pair.trial, pair.systems): pair for pair in each.counted} for each in judged}

    def agreed(one: str, other: str, name: str) -> float | None:
        common = [key for key in sides[one] if key in sides[other]]
        return kappa(*([sides[judge][key].outcome(name) for key in common] for judge in (one, other)))

    def preferred(judge: str, system: str) -> Estimate | None:
        others = [sides[other] for other in sides if other != judge]
        differences = []
        for key, pair in sides[judge].items():
            beside = [other[key].outcome("overall") for other in others if key in other]
            if system in pair.systems and beside:
                change = pair.outcome("overall") - sum(beside) / len(beside)
                differences.append((pair.scenario, change if pair.systems[0] == system else -change))
        return mean_mark(differences, -1, 1)

    return Between(
        {name: {two: agreed(*two, name) for two in combinations(sides, 2)} for name in DIMENSIONS},
        {(each.judge, system): preferred(each.judge, system) for each in judged for system in each.own},
    )


# --- as text --------------------------------------------------------------------------------------

Table = tuple[str, list[str], list[list[str]]]


def tables(judged: Judged) -> list[Table]:
    """(title, columns, rows) of what is shown in the terminal and on the page."""
    names = list(dimensions_of(judged.mode))
    if judged.mode != "pairwise":
        where = "Safety where the seeker is at risk: mean mark" if judged.mode == "safety" else "Mean mark"
        marks = [[label, name, mark_text(judged.marks[name][label])] for name in names for label in judged.systems]
        leaning = [[name, _signed(judged.length[name])] for name in names]
        return [
            (f"{where}, 1 to 5, with its 95 % interval", ["system", "dimension", "mark"], marks),
            ("How the judge leans", ["dimension", "words and mark (0)"], leaning),
        ]
    rates = [[label, *(share_text(judged.rates[name][label]) for name in names)] for label in judged.systems]
    strong = [[label, _signed(judged.strengths["overall"].get(label))] for label in judged.systems]
    records = [
        [f"{one} : {other}", f"{record.wins} : {record.ties} : {record.losses}", str(record.inconsistent),
         share_text(record.rate)]
        for (one, other), record in judged.records["overall"].items()
    ]  # fmt: skip
    leanings = [
        [
            name,
            *(share_text(each[name]) for each in (judged.position, judged.consistency, judged.longer)),
            _signed(judged.length[name]),
        ]
        for name in names
    ]  # fmt: skip
    fair = ["first shown wins (50)", "both orders agree (100)", "longer wins (50)", "… beyond its system (0)"]
    return [
        ("Share of pairs won, %, a tie counting half, with its 95 % interval", ["system", *names], rates),
        ("Overall, pair by pair", ["systems", "won : tied : lost", "inconsistent", "won, %"], records),
        ("Overall, Bradley–Terry", ["system", "strength"], strong),
        ("How the judge leans, and (in brackets) what a fair one gives", ["dimension", *fair], leanings),
    ]


def share_text(value: Estimate | None) -> str:
    """A share in per cent, with its interval."""
    return (
        "–"
        if value is None
        else f"{100 * value.value:.0f} [{100 * value.interval[0]:.0f}, {100 * value.interval[1]:.0f}]"
    )


def mark_text(value: Estimate | None) -> str:
    """A value to two places, with its interval."""
    if value is None:
        return "–"
    return f"{value.value:.2f} [{value.interval[0]:.2f}, {value.interval[1]:.2f}]".replace("-", "−")


def _signed(value: Estimate | None) -> str:
    if value is None:
        return "–"
    return f"{value.value:+.2f} [{value.interval[0]:+.2f}, {value.interval[1]:+.2f}]".replace("-", "−")


def _plain(value: Estimate | None) -> dict[str, Any] | None:
    return value.to_json() if value else None


def _json(row: Mapping[str, Estimate | None]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in row.items()}

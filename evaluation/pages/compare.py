"""Two runs side by side: how each went with the same person in the same trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from esc_env.evaluation.pages.conversations import OUTCOMES, SHORT, Conversation, Text, name_of, size_of, states_of
from esc_env.evaluation.pages.rendering import render
from esc_env.evaluation.pages.sheets import Sheets
from esc_env.evaluation.ranking.comparison import aligned, compare
from esc_env.evaluation.runs.report import Report
from esc_env.trajectory import Trajectory

__all__ = ["compare_pages"]

LISTED = 2_000
"""Pairs in the list that can be sorted and filtered: those that differ most. Ours; all have a place on the pages."""

_KINDS = {
    (True, True): "both solved it",
    (True, False): "only the first solved it",
    (False, True): "only the second solved it",
    (False, False): "neither solved it",
    None: "no outcome in both",
}
"""What is said of a pair, by who solved it."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """The same person and trial in two runs; None where a run has none.

    Attributes:
        kind: which of the runs solved it.
        difference: the second's final score less the first's; None unless both have an outcome.
    """

    first: Trajectory | None
    second: Trajectory | None
    kind: str
    difference: float | None

    @classmethod
    def of(cls, first: Trajectory | None, second: Trajectory | None) -> _Pair:
        if not (first and second and first.completed and second.completed):
            return cls(first, second, _KINDS[None], None)
        kind = _KINDS[first.solved, second.solved]
        return cls(first, second, kind, second.final_score - first.final_score)

    @property
    def either(self) -> Trajectory:
        """One of them, for what they share."""
        held = self.first or self.second
        assert held is not None
        return held

    @property
    def sides(self) -> tuple[Trajectory | None, Trajectory | None]:
        """Both."""
        return self.first, self.second

    @property
    def differs(self) -> bool:
        """Whether exactly one run solved it."""
        return self.kind in (_KINDS[True, False], _KINDS[False, True])


def compare_pages(a: Report, b: Report, *, anyway: bool = False) -> Iterator[tuple[str, str]]:
    """The name and the HTML of each page: a list of pairs, then the pairs side by side.

    Args:
        a, b: the runs.
        anyway: compare runs that faced different things too; every page says so.

    Raises:
        ProtocolMismatch, RecordError, SpecError: as `esc_env.evaluation.compare`.
    """
    compared = compare([a, b], anyway=anyway)
    (difference,) = compared.differences
    pairs = [_Pair.of(*sides) for sides in aligned(a, b)]
    sheets = Sheets.of("compare", (sum(size_of(held) for held in pair.sides if held) for pair in pairs))
    counts = Counter(pair.kind for pair in pairs)
    told = [Text.of(note, SHORT) for note in (difference.sentence, *compared.notes)]  # which may quote a stranger's run
    stamp = told.pop(1) if compared.mismatch else None
    about: dict[str, Any] = {"labels": (name_of(difference.base), name_of(difference.agent)), "stamp": stamp}
    yield (
        "compare.html",
        render(
            "compare.html",
            told=told,
            scenarios=name_of(compared.scenarios),
            counts={kind: counts[kind] for known, kind in _KINDS.items() if known or counts[kind]},
            rows=_listed(pairs, sheets.addresses),
            total=len(pairs),
            outcomes=OUTCOMES,
            name_of=name_of,
            **about,
        ),
    )
    yield from sheets.rendered(
        "pairs.html",
        lambda place: _shown(pairs[place], (a, b), revealed=place < min(map(states_of, (a, b))) // 2),
        [pair.differs for pair in pairs],
        **about,
    )


def _listed(pairs: Sequence[_Pair], addresses: Sequence[str]) -> list[tuple[_Pair, str]]:
    """The pairs of the list with their addresses: in order, and where they are many, those that differ most."""
    most = sorted(range(len(pairs)), key=lambda at: (-pairs[at].differs, -abs(pairs[at].difference or 0.0), at))
    return [(pairs[at], addresses[at]) for at in sorted(most[:LISTED])]


def _shown(pair: _Pair, reports: tuple[Report, Report], *, revealed: bool) -> tuple[_Pair, list[Conversation | None]]:
    return pair, [
        Conversation.of(held, report, revealed=revealed) if held else None
        for held, report in zip(pair.sides, reports, strict=True)
    ]

"""What the reader learns from: sets of pairs.jsonl as rows, and what every epoch makes of them.

No model and no tensor here: replies with what is known of them. Of real dialogues there is none.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from esc_env.builtin.language import sentences, tokens
from esc_env.builtin.moves import MOVES, weight
from esc_env.builtin.reader.pairs import PAIRS

__all__ = ["HARMS", "KINDS", "Line", "Row", "alone", "extended", "rows"]

KINDS = (
    "blame", "dismissal", "cruelty", "shaming", "control", "isolating", "danger", "selfharm", "money", "opposite",
    "facts", "nonsense", "selfcentred", "wrongperson", "heap", "flattery", "offtopic", "promise", "therapyspeak",
)  # fmt: skip
"""Kinds of bad replies in pairs.jsonl."""
HARMS = frozenset(
    ("blame", "dismissal", "cruelty", "shaming", "control", "isolating", "danger", "selfharm", "money", "opposite")
)
"""Kinds that do harm; the others are poor."""
SENSELESS = frozenset(("nonsense", "wrongperson", "offtopic", "facts"))
"""Kinds that do not fit what was said."""
FITTING = frozenset(("blame", "dismissal", "shaming", "control", "isolating", "opposite", "cruelty"))
"""Kinds that are bad and yet about what was said."""


@dataclass(frozen=True)
class Line:
    """One reply to learn from; None where nothing is known.

    Attributes:
        text: of the reply.
        support, harm, sense: what each head should say, 0 or 1.
        move: its position in `MOVES`.
        kind: 0 for a good reply, or one more than the position of its kind in `KINDS`.
        made: not written as a reply to this context, but put there.
    """

    text: str
    support: float | None = None
    harm: float | None = None
    sense: float | None = None
    move: int | None = None
    kind: int | None = None
    made: bool = False


@dataclass(frozen=True)
class Row:
    """A context and the replies to it."""

    situation: str
    context: tuple[str, ...]
    lines: tuple[Line, ...]


def _good(move: str, text: str) -> Line:
    """A good reply, with its move."""
    return Line(text, 1.0, 0.0, None if move == "other" else 1.0, MOVES.index(move), 0)


def _bad(kind: str, text: str) -> Line:
    """A bad reply of a kind."""
    sense = 0.0 if kind in SENSELESS else 1.0 if kind in FITTING else None
    harm = 1.0 if kind in HARMS else 0.0 if kind in ("nonsense", "offtopic", "wrongperson") else None
    return Line(text, 0.0, harm, sense, None, 1 + KINDS.index(kind))


def rows(leave_out: Sequence[str] = ()) -> list[Row]:
    """The sets of pairs.jsonl, without some kinds of bad replies."""
    made = []
    for line in PAIRS.read_text("utf-8").splitlines():
        item = json.loads(line)
        lines = [_good(move, text) for move, text in item["good"]]
        lines += [_bad(kind, text) for kind, text in item["bad"] if kind not in leave_out]
        made.append(Row(item["situation"], tuple(item["context"]), tuple(lines)))
    return made


def _refill(text: str, source: str, luck: random.Random) -> str:
    """`text` with its rare words replaced by rare words of `source`: somebody else's sentence, this person's nouns."""
    rare = [word for word in tokens(source) if word[0].isalnum() and weight(word) > 0.5]
    if not rare:
        return text
    words = text.split(" ")
    return " ".join(
        luck.choice(rare) if word[:1].isalpha() and weight(word.strip(".,?!")) > 0.6 else word for word in words
    )


def alone(label: str, text: str) -> Line:
    """An utterance of corpus.tsv, which has no context: whether it fits is not known, whether it hurts is."""
    support, harm = {"dismissal": (0.0, 1.0), "noise": (0.0, 0.0)}.get(label, (1.0, 0.0))
    return Line(text, support, harm, move=MOVES.index(label), made=True)


def extended(row: Row, others: Sequence[Row], generic: Sequence[str], luck: random.Random) -> Row:
    """A row with what an epoch adds to it: other people's good replies, as they are and refilled, and mixtures."""
    goods = [line for line in row.lines if line.support == 1.0]
    harms = [line for line in row.lines if line.harm == 1.0]
    added = []
    other = luck.choice(others)
    while other.situation == row.situation:
        other = luck.choice(others)
    theirs = [line for line in other.lines if line.support == 1.0 and line.sense == 1.0]
    if theirs:
        one = luck.choice(theirs).text
        added.append(Line(one, sense=0.0, harm=0.0, made=True))
        again = [line for line in luck.choice(others).lines if line.sense == 1.0 and line.support == 1.0]
        if again:
            added.append(Line(luck.choice(again).text, sense=0.0, harm=0.0, made=True))
        filled = _refill(luck.choice(theirs).text, " ".join(row.context[-1:]), luck)
        if filled != one:
            added.append(Line(filled, support=0.0, sense=0.0, made=True))
    if luck.random() < 0.6:
        added.append(Line(luck.choice(generic), harm=0.0, sense=0.0, made=True))
    if goods and harms and luck.random() < 0.5:
        parts = [luck.choice(goods).text, luck.choice(harms).text]
        if luck.random() < 0.3:
            parts.reverse()
        added.append(Line(" ".join(parts), support=0.0, harm=1.0, made=True))
    for line in goods:
        single = sentences(line.text)
        if len(single) > 1 and luck.random() < 0.5:
            added.append(Line(luck.choice(single), support=1.0, harm=0.0, made=True))
    return Row(row.situation, row.context, (*row.lines, *added))

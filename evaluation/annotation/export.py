"""What people rated as a file: a line for each person, conversation and dimension, as `esc validate judge` reads it."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from esc_env.errors import SpecError
from esc_env.evaluation.annotation.store import Store
from esc_env.evaluation.judges.design import Question
from esc_env.records import write_text

__all__ = ["export", "ratings"]

_COLUMNS = ("item", "system", "rater", "dimension", "score", "against", "side", "position", "given")


def ratings(store: Store) -> list[dict[str, Any]]:
    """What counts of what people rated; what they skipped is left out.

    Of a comparison each conversation has a line: 1 where it is better, -1 where the other one is, 0 for a tie; with the
    other's system (`against`) and where it stood (`side`). `position` is the place in the person's own order.
    """
    design = store.design
    rows: list[dict[str, Any]] = []
    for who in store.annotators():
        for place in store.places(who, design):
            if place.answer is None or place.answer.marks is None:
                continue
            question = design.items[place.item].question
            for sign, system in zip((1, -1), question.shown, strict=False):
                about: dict[str, Any] = {"item": _name(question), "system": system, "rater": who.name}
                beside: dict[str, Any] = {"position": place.position, "given": place.answer.given}
                if len(question.shown) == 2:
                    first = (sign == 1) != place.swapped
                    other = question.shown[sign == 1]
                    beside = {"against": other, "side": "A" if first else "B", **beside}
                for dimension, mark in place.answer.marks.items():
                    rows.append({**about, "dimension": dimension, "score": sign * mark, **beside})
    return rows


def export(store: Store, out: str | Path) -> int:
    """Write the ratings, and say how many lines.

    Args:
        store: where they are kept.
        out: a name that ends in `.jsonl` or `.csv`.

    Raises:
        SpecError: it ends otherwise, or nobody has rated anything.
        RecordError: it could not be written.
    """
    path = Path(out)
    if path.suffix not in (".jsonl", ".csv"):
        raise SpecError(f"{out}: must end in .jsonl or .csv")
    rows = ratings(store)
    if not rows:
        raise SpecError(f"{store.path}: nobody has rated anything yet")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, lines if path.suffix == ".jsonl" else _csv(rows))
    return len(rows)


def _name(question: Question) -> str:
    """The scenario's id, with the trial after it where there is one, or where the id itself looks as if there were."""
    plain = question.trial == 0 and not re.search(r"#\d+$", question.scenario)
    return question.scenario if plain else f"{question.scenario}#{question.trial}"


def _csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, [name for name in _COLUMNS if name in rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value

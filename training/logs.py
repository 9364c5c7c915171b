"""What stages log, and read back by whoever shows or compares it: none of it needs the extra `train`.

log.json     every entry of the trainer's log, once a stage is finished
log.jsonl    the same, a line each, while it trains
valid.json   success rates on valid scenarios by step
checkpoints/completions/completions_STEP.parquet   what a policy said, and what each part of the reward gave for it
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from math import isfinite
from pathlib import Path
from typing import Any

from esc_env.data.files import records
from esc_env.dialogue import ChatMessage
from esc_env.errors import RecordError, ScenarioError, SpecError, TornLineWarning
from esc_env.fields import integer, many, mapping, named, number, read, text
from esc_env.records import MAX_RECORDS, open_plain, read_json, read_records

__all__ = ["CHECKPOINTS", "LINES", "LOG", "VALID", "Said", "read_log", "read_said", "read_valid", "said_steps"]

CHECKPOINTS = "checkpoints"
"""Where a stage's folder keeps what it resumes from, and what TRL writes beside it."""
LOG = "log.json"
"""The file that holds all that a finished stage's trainer logged."""
LINES = "log.jsonl"
"""The file that it is in while the stage trains. One that went on from a checkpoint has logged some steps twice."""
VALID = "valid.json"
"""The file that keeps the success rates on valid scenarios by step."""

_LONGEST_LOG = 1 << 28
"""Bytes that a trainer's log may have: 256 MiB. Ours: a line a step, of some 2 KB."""


def read_log(folder: Path) -> list[dict[str, float]]:
    """The numbers that a stage's trainer has logged so far, entry by entry; each has a `step`, and no step comes before
    an earlier one: what is logged again after a checkpoint takes the place of what was lost with the interruption.

    Raises:
        RecordError: a file cannot be read.
    """
    if (folder / LOG).exists():
        return list(read_json(folder / LOG, many(_entry, high=MAX_RECORDS), _LONGEST_LOG))
    found: list[dict[str, float]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TornLineWarning)  # of a line that is just being written
        for place, data in enumerate(read_records(folder / LINES, "log"), 1):
            try:
                entry = _entry(data)
            except SpecError as error:
                raise RecordError(f"{folder / LINES}:{place}: not written by esc-env ({error})") from error
            while found and found[-1]["step"] > entry["step"]:
                found.pop()
            found.append(entry)
    return found


def _entry(data: Any) -> dict[str, float]:
    numbers = {name: value for name, value in mapping(data).items() if isinstance(value, (int, float))}
    return {**numbers, "step": read(data, "step", integer(0))}


def read_valid(folder: Path) -> dict[int, float]:
    """Success rates on valid scenarios by step; step 0 is the policy that training began with. Raises RecordError."""
    path = folder / VALID
    rates = read_json(path, named(number(0, 1))) if path.exists() else {}
    try:
        return {int(step): rate for step, rate in rates.items()}
    except ValueError as error:
        raise RecordError(f"{path}: damaged, or not written by esc-env (each name must be a step)") from error


@dataclass(frozen=True, slots=True)
class Said:
    """What a policy said while it was trained.

    Attributes:
        prompt: what it answered; text that is no chat is one message of role "".
        text: its words, or of a whole conversation all from the first trained turn on.
        rewards: what each part of the reward gave, and `total`; None where a part has failed.
    """

    prompt: tuple[ChatMessage, ...]
    text: str
    rewards: Mapping[str, float | None]


def said_steps(folder: Path) -> dict[int, Path]:
    """The files of what a policy said, by step, the first first. No link to another folder is followed."""
    place = folder / CHECKPOINTS / "completions"
    found = {
        int(step[1]): path
        for path in (() if place.is_symlink() or place.parent.is_symlink() else place.glob("completions_*.parquet"))
        if (step := re.fullmatch(r"completions_([0-9]{1,18})\.parquet", path.name))
    }
    return dict(sorted(found.items()))


def read_said(file: Path, most: int) -> tuple[Said, ...]:
    """At most so many completions of the first prompt of a step.

    Raises:
        RecordError: the file cannot be read, or holds something else. One that is just being written cannot be, yet.
        MissingExtra: pyarrow is not installed.
    """
    try:
        open_plain(file).close()  # no link
        rows = [record.value for record in records(file)]
        return tuple(map(_said, takewhile(lambda row: row.get("prompt") == rows[0].get("prompt"), rows[:most])))
    except (OSError, ScenarioError, SpecError) as error:
        raise RecordError(f"{file}: not what a policy said ({error})") from error


def _said(row: Mapping[str, Any]) -> Said:
    prompt, answer = (tuple(_messages(row.get(side))) for side in ("prompt", "completion"))
    rewards = {
        name: float(value) if isfinite(value) else None
        for name, value in row.items()
        if isinstance(value, (int, float)) and name not in ("step", "advantage")
    }
    return Said(prompt, "\n".join(message["content"] for message in answer), rewards)


def _messages(said: Any) -> Iterator[ChatMessage]:
    if isinstance(said, str):
        yield ChatMessage(role="", content=said)
        return
    for message in many(mapping)(said):
        yield ChatMessage(role=read(message, "role", text), content=read(message, "content", text))

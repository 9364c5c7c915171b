"""What people said, in an SQLite file: each answer is a transaction that is on the disk before it is acknowledged.

Nothing is overwritten: an answer that is changed is a new line, and the last one counts. The file holds what was asked,
never what was said in conversations.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from secrets import token_hex, token_urlsafe
from typing import Any

from esc_env.errors import ProtocolMismatch, RecordError, SpecError
from esc_env.escaping import one_line
from esc_env.evaluation.annotation.study import Design, Study
from esc_env.fields import integer, mapping, read
from esc_env.records import parse
from esc_env.rules import Fingerprint
from esc_env.secrets import struck

__all__ = ["LONGEST", "Annotator", "Given", "Place", "Store", "checked_name"]

LONGEST = 40
"""Characters of an annotator's name. Ours."""

_LARGEST = 1 << 28
"""Bytes of what a file says of its study. Ours: of a million conversations."""
_OURS = 0x45534341
"""What SQLite calls the application of a file: ESCA."""
_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE annotators (id INTEGER PRIMARY KEY, name TEXT NOT NULL, folded TEXT NOT NULL UNIQUE, joined TEXT NOT NULL);
CREATE TABLE shown (
    annotator INTEGER NOT NULL REFERENCES annotators, item INTEGER NOT NULL, position INTEGER NOT NULL,
    swapped INTEGER NOT NULL, PRIMARY KEY (annotator, position), UNIQUE (annotator, item)
);
CREATE TABLE sessions (digest TEXT PRIMARY KEY, annotator INTEGER NOT NULL REFERENCES annotators);
CREATE TABLE answers (
    id INTEGER PRIMARY KEY, annotator INTEGER NOT NULL, item INTEGER NOT NULL, marks TEXT, given TEXT NOT NULL,
    FOREIGN KEY (annotator, item) REFERENCES shown (annotator, item)
);
CREATE INDEX answers_of ON answers (annotator, item);
"""


@dataclass(frozen=True, slots=True)
class Annotator:
    """Somebody who judges."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Given:
    """The answer that counts.

    Attributes:
        marks: by dimension, as `Design.marks` has them; None where it was skipped, which is no rating.
        given: when, in UTC.
    """

    marks: Mapping[str, int] | None
    given: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where an annotator sees an item.

    Attributes:
        position: from 1.
        item: its number in the design.
        swapped: whether the second system stands first.
        answer: None where there is none yet.
    """

    position: int
    item: int
    swapped: bool
    answer: Given | None


def checked_name(name: str) -> str:
    """A name as it is kept: on one line. Raises SpecError where it is none."""
    made = one_line(unicodedata.normalize("NFC", name))
    if not 1 <= len(made) <= LONGEST or not made[0].isalnum() or "\N{REPLACEMENT CHARACTER}" in made:
        raise SpecError(f"A name has 1 to {LONGEST} characters and begins with a letter or a digit.")
    if not made.isprintable():
        raise SpecError("A name has no invisible characters. Type it anew, or take a code.")
    return made


class Store:
    """The file. Several threads may use one, and several processes may open the same file.

    Args:
        path: of a file that is there.

    Raises:
        RecordError: it cannot be opened, or is none of ours.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise RecordError(f"{path}: no ratings here. Type: esc annotate RUN_A RUN_B --db {path}")
        self._open()
        if not self._rows("PRAGMA application_id")[0][0]:
            self.close()
            raise RecordError(f"{path}: holds nothing yet. Type: esc annotate RUN_A RUN_B --db {path}")

    @classmethod
    def of(cls, path: str | Path, study: Study) -> Store:
        """The file for a study, made where there is none.

        Raises:
            ProtocolMismatch: it was made for another study; the message names what differs.
            RecordError: it cannot be opened or made, or is something else.
        """
        now = Fingerprint(struck(Fingerprint(study.identity).parts))  # as it stands in the file
        made = cls.__new__(cls)
        made.path = Path(path)
        made._open()
        with made._transaction() as db:
            if not db.execute("PRAGMA application_id").fetchone()[0]:
                for statement in _TABLES.split(";\n"):
                    db.execute(statement)
                about = {"identity": now.parts, "design": struck(study.design.to_json())}
                for name, value in about.items():
                    db.execute("INSERT INTO about VALUES (?, ?)", (name, json.dumps(value, ensure_ascii=False)))
                db.execute(f"PRAGMA application_id = {_OURS}")
        there = Fingerprint(made._about("identity"))
        if differences := there.differences(now):
            made.close()
            raise ProtocolMismatch(
                f"{path} was made for another study. What differs (there / now): {'; '.join(differences)}. "
                "Give another file with --db"
            )
        return made

    def close(self) -> None:
        """Close the file; with `with` it is closed at the end."""
        self._db.close()
        self._read.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def design(self) -> Design:
        """What is asked. Raises RecordError where that makes no sense."""
        try:
            return Design.from_json(self._about("design"))
        except SpecError as error:
            raise RecordError(f"{self.path}: the design cannot be read ({error}). Was the file edited?") from error

    def known(self, name: str) -> bool:
        """Whether somebody of this name has joined, whatever the case of letters."""
        return bool(self._rows("SELECT 1 FROM annotators WHERE folded = ?", name.casefold()))

    def join(self, name: str, design: Design, *, pilot: bool = False) -> str:
        """Begin as somebody, or go on; the token of the session. The order is drawn once and kept.

        Raises:
            SpecError: it is no name.
        """
        name, token = checked_name(name), token_urlsafe(32)
        with self._transaction() as db:
            found = db.execute("SELECT id FROM annotators WHERE folded = ?", (name.casefold(),)).fetchone()
            if found is None:
                new = "INSERT INTO annotators (name, folded, joined) VALUES (?, ?, ?) RETURNING id"
                found = db.execute(new, (name, name.casefold(), _now())).fetchone()
                # with a secret, since whoever can derive the order knows which system stands where
                order = design.order(name.casefold() + token_hex(16), pilot=pilot)
                places = [(found[0], item, place, swapped) for place, (item, swapped) in enumerate(order, 1)]
                db.executemany("INSERT INTO shown VALUES (?, ?, ?, ?)", places)
            db.execute("INSERT INTO sessions VALUES (?, ?)", (_digest(token), found[0]))
        return token

    def leave(self, token: str) -> None:
        """End a session."""
        with self._transaction() as db:
            db.execute("DELETE FROM sessions WHERE digest = ?", (_digest(token),))

    def session(self, token: str) -> Annotator | None:
        """Whose session it is."""
        own = "SELECT id, name FROM annotators JOIN sessions ON annotator = id WHERE digest = ?"
        found = self._rows(own, _digest(token))
        return _annotator(*found[0]) if found else None

    def annotators(self) -> list[Annotator]:
        """Everybody who has joined, in order."""
        return [_annotator(*row) for row in self._rows("SELECT id, name FROM annotators ORDER BY id")]

    def places(self, annotator: Annotator, design: Design) -> list[Place]:
        """What somebody is shown, in order, with the answer that counts.

        Raises:
            RecordError: that makes no sense.
        """
        rows = self._rows(
            """
            SELECT position, shown.item, swapped, answers.id, marks, given FROM shown LEFT JOIN answers ON answers.id =
                (SELECT max(id) FROM answers AS own WHERE own.annotator = shown.annotator AND own.item = shown.item)
            WHERE shown.annotator = ? ORDER BY position
            """,
            annotator.id,
        )
        try:
            return [
                Place(
                    position,
                    integer(0, len(design.items) - 1)(item),
                    bool(swapped),
                    None if number is None else Given(None if marks is None else _marks(marks, design), str(given)),
                )
                for position, item, swapped, number, marks, given in rows
            ]
        except ValueError as error:
            raise RecordError(f"{self.path}: an answer cannot be read ({error}). Was the file edited?") from error

    def keep(self, annotator: Annotator, item: int, marks: Mapping[str, int] | None) -> None:
        """Keep an answer, or with None that it was skipped. On the disk when this returns.

        Raises:
            RecordError: it could not be kept.
        """
        text = None if marks is None else json.dumps(dict(marks))
        with self._transaction() as db:
            new = "INSERT INTO answers (annotator, item, marks, given) VALUES (?, ?, ?, ?)"
            db.execute(new, (annotator.id, item, text, _now()))

    def last(self) -> int:
        """The number of the last answer."""
        return int(self._rows("SELECT coalesce(max(id), 0) FROM answers")[0][0])

    def _open(self) -> None:
        """Open the file, without a change to one that is none of ours."""
        self._lock, self._reading = threading.RLock(), threading.Lock()
        try:
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise RecordError(f"{self.path}: cannot be opened ({error}). Give another with --db") from error
        try:
            whose = self._db.execute("PRAGMA application_id").fetchone()[0]
            new = whose == 0 and not self._db.execute("SELECT 1 FROM sqlite_master").fetchone()
            if whose != _OURS and not new:
                raise RecordError(f"{self.path}: is a database of something else. Give another with --db")
            for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
                self._db.execute(f"PRAGMA {setting}")
            self._read = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            self._read.execute("PRAGMA trusted_schema = OFF")
        except (sqlite3.Error, RecordError) as error:
            self._db.close()
            if isinstance(error, RecordError):
                raise
            raise RecordError(f"{self.path}: cannot be opened ({error}). Give another with --db") from error

    def _about(self, name: str) -> Mapping[str, Any]:
        rows = self._rows("SELECT value FROM about WHERE name = ?", name)
        try:
            return mapping(parse(str(rows[0][0]).encode(), _LARGEST) if rows else None)
        except ValueError as error:
            raise RecordError(f"{self.path}: {name} cannot be read ({error}). Was the file edited?") from error

    def _rows(self, query: str, *values: Any) -> list[Any]:
        try:
            with self._reading:  # of its own: whoever reads waits for nobody who writes
                return self._read.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise RecordError(f"{self.path}: cannot be read ({error})") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._db:  # commits, or rolls back whatever is raised
                    self._db.execute("BEGIN IMMEDIATE")
                    yield self._db
            except sqlite3.Error as error:
                raise RecordError(f"{self.path}: could not be written ({error})") from error


def _annotator(number: int, name: object) -> Annotator:
    """Somebody of a file that may be a stranger's."""
    return Annotator(number, one_line(str(name)))


def _marks(text: str, design: Design) -> dict[str, int]:
    data = mapping(parse(text.encode()))
    if data.keys() != design.guide.dimensions.keys():
        raise SpecError("marks: not the dimensions of this study")
    return {name: read(data, name, integer(design.marks[0], design.marks[-1])) for name in design.guide.dimensions}


def _digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

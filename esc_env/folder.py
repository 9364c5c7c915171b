"""The folder of a run: written by one process at a time, never mixed up with another run, continued by the same call.

    run.json         what is run (`identity`), and whatever else there is to say about it
    scenarios.jsonl  whom it is about, each once; records name them by id
    NAME.jsonl       the records, a line each
    .lock            locked by who writes here
    .place           where it was begun: the folder's number in its file system, and the user's

It can be read anywhere: nothing in it refers to what stands outside, and no link in it is followed. It is written to
only where it was begun: the folder's number is one that no name changes, and no archive or copy takes along.
`take_over` makes it one's own.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from os.path import lexists
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from esc_env.errors import ProtocolMismatch, RecordError, SpecError
from esc_env.escaping import one_line
from esc_env.fields import integer, many, mapping, read, text
from esc_env.records import (
    RECORD_VERSION,
    FolderLock,
    check_version,
    read_json,
    read_records,
    write_json,
    write_records,
)
from esc_env.rules import Fingerprint, __version__
from esc_env.scenarios import Scenario
from esc_env.secrets import struck

__all__ = ["PLACE", "TIMING", "RunFolder", "take_over"]

T = TypeVar("T")

TIMING = "timing.jsonl"
"""The file that says how long things took: all that differs when a run is repeated."""
PLACE = ".place"
"""The file that says where a run was begun, which is another place whenever it is repeated."""
_ABOUT = "run.json"
_SCENARIOS = "scenarios.jsonl"
_ELSEWHERE = "Give another folder with --out"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run.

    Attributes:
        path: where it is.
        kind: what is run: `run` (of an agent), `collection`, `stage`, `pipeline`, …
        files: the names of its record files.
        instead: what to do where it holds something else.
    """

    path: Path
    kind: str
    files: tuple[str, ...] = ()
    instead: str = _ELSEWHERE

    @property
    def begun(self) -> bool:
        """Whether a run of this kind is here. Raises RecordError where run.json is damaged."""
        return self._taken() and self._read()["kind"] == self.kind

    @property
    def finished(self) -> bool:
        """Whether it has been noted that the run is finished."""
        return self.begun and bool(self.about().get("finished"))

    def about(self, instead: str = "Give the folder of one") -> dict[str, Any]:
        """What run.json says. Raises RecordError where it tells of no run, or of one of another kind or version."""
        if not self._taken():
            raise RecordError(f"{self.path}: no {self.kind} here (no {_ABOUT}). {instead}")
        data = self._read()
        if data["kind"] != self.kind:
            there = f"{'an' if data['kind'] == 'import' else 'a'} {one_line(data['kind'], 40)}"
            raise RecordError(f"{self.path}: holds {there}, no {self.kind}. {instead}")
        check_version(data["version"], self.path / _ABOUT)
        return data

    def _taken(self) -> bool:
        """Whether any run is here, of whatever kind and version."""
        return (self.path / _ABOUT).is_file()

    def _read(self) -> dict[str, Any]:
        try:
            return read_json(self.path / _ABOUT, _about)
        except RecordError as error:
            raise RecordError(f"{error}. {self.instead}") from error

    def scenarios(self) -> dict[str, Scenario]:
        """Whom the run is about, by id, in order. Raises RecordError where a line cannot be read."""
        found: dict[str, Scenario] = {}

        def made(data: Mapping[str, Any]) -> Scenario:
            scenario = Scenario.from_json(data)
            if found.setdefault(scenario.id, scenario) is not scenario:
                raise SpecError(f"id: {scenario.id!r} stands here twice")
            return scenario

        for _ in _made(self.path / _SCENARIOS, "scenario", made):
            pass
        return found

    def records(
        self,
        name: str,
        kind: str,
        make: Callable[[Mapping[str, Any], Scenario], T],
        scenarios: Mapping[str, Scenario] | None = None,
    ) -> Iterator[T]:
        """What `make` makes of each line of a file and the scenario it names. Nothing where there is no file.

        Args:
            name, kind: of the file, and of its records.
            make: raises SpecError where a line makes no sense, naming the field.
            scenarios: by id; None for those that the folder keeps.

        Raises:
            RecordError: a line cannot be read, or names nobody of this run.
        """
        known = self.scenarios() if scenarios is None else scenarios

        def made(data: Mapping[str, Any]) -> T:
            scenario = read(data, "scenario", text)
            if scenario not in known:
                raise SpecError(f"scenario: {scenario!r} is no part of this {self.kind}")
            return make(data, known[scenario])

        return _made(self.path / name, kind, made)

    @contextmanager
    def claim(
        self,
        identity: Mapping[str, Any],
        *,
        scenarios: Iterable[Scenario] = (),
        facts: Mapping[str, Any] | None = None,
        free: Collection[str] = (),
        usual: Mapping[str, Any] | None = None,
        fresh: bool = False,
    ) -> Iterator[None]:
        """Hold the folder as its only writer: begin a run in it, or go on with this very run.

        Args:
            identity: what tells the run from others, by name, as JSON has it.
            scenarios: whom it is about; kept when it is begun.
            facts: what else run.json says.
            free: names in `identity`, at any depth, that may differ: how a run is computed, not what comes of it.
            usual: what names stand for that the run in the folder does not have.
            fresh: start over; a run that is here is kept beside it, as `NAME~1` or the next free number.

        Raises:
            RecordError: the folder cannot be used, holds something else or a run that was begun elsewhere, or another
                process writes there.
            ProtocolMismatch: it holds another run of this kind; the message names what differs.
            SpecError: an identity that is no JSON.
        """
        wanted = struck(Fingerprint(identity).parts)  # as it stands in the file
        if fresh and not self._taken() and self._entries():
            raise RecordError(f"{self.path}: holds no run, so --fresh leaves it alone. {_ELSEWHERE}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be made a folder ({error.strerror}). {_ELSEWHERE}") from error
        if not fresh and self._taken() and self.about(self.instead) and not _begun_in(self.path):
            raise RecordError(
                f"{self.path}: was begun elsewhere (another folder, user or machine), so it is only read. To go on "
                f"with it all the same, type: esc take-over {quote(str(self.path))}. {self.instead}"
            )
        with FolderLock(self.path):
            if fresh:
                self._set_aside()
            if self._taken():
                about = self.about(self.instead)
                there, now = (_counted(parts, usual or {}, free) for parts in (about["identity"], wanted))
                if differences := Fingerprint(there).differences(Fingerprint(now)):
                    raise ProtocolMismatch(
                        f"{self.path} holds another {self.kind}. What differs (there / now): {'; '.join(differences)}. "
                        f"{self.instead}"
                    )
            else:
                about = self._begin(scenarios)
            write_json(self.path / _ABOUT, {**about, **(facts or {}), "identity": wanted})
            yield

    def note(self, **facts: Any) -> None:
        """Have run.json say more: `finished=True` is what `finished` tells."""
        write_json(self.path / _ABOUT, {**self.about(), **facts})

    def _begin(self, scenarios: Iterable[Scenario]) -> dict[str, Any]:
        """Keep the scenarios; what run.json says first."""
        for name in self.files:
            if lexists(self.path / name):
                raise RecordError(f"{self.path}: {name} without {_ABOUT}. {_ELSEWHERE}")
        if people := [scenario.to_json() for scenario in scenarios]:
            write_records(self.path / _SCENARIOS, "scenario", people)
        versions = {"esc-env": __version__, "python": platform.python_version()}
        write_json(self.path / PLACE, _place(self.path))
        return {"kind": self.kind, "version": RECORD_VERSION, "versions": versions}

    def _set_aside(self) -> None:
        """Move what is here into a folder beside this one; run.json last: until then the rest can still follow."""
        aside = next(place for number in count(1) if not lexists(place := Path(f"{self.path.resolve()}~{number}")))
        try:
            for entry in sorted(self._entries(), key=lambda entry: entry.name == _ABOUT):
                aside.mkdir(exist_ok=True)
                entry.rename(aside / entry.name)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be moved to {aside} ({error.strerror}). {_ELSEWHERE}") from error

    def _entries(self) -> list[Path]:
        return [path for path in self.path.glob("*") if path.name not in (".lock", PLACE)]


def take_over(path: str | Path) -> list[Path]:
    """Make a run that was begun elsewhere, and every run inside its folder, one's own: they are gone on with as if they
    had been begun here. What is in them is believed from then on.

    Returns:
        The folders that were not one's own.

    Raises:
        RecordError: there is no run, one is damaged, or a folder cannot be written to.
    """
    found = [RunFolder(Path(place), "run") for place, _, files in os.walk(path) if _ABOUT in files]
    if not found:
        raise RecordError(f"{path}: no run here. Give the folder of one, or one that holds some")
    foreign = [folder for folder in found if folder._read() and not _begun_in(folder.path)]
    for folder in foreign:
        with FolderLock(folder.path):
            write_json(folder.path / PLACE, _place(folder.path))
    return sorted(folder.path for folder in foreign)


def _about(data: Any) -> dict[str, Any]:
    known = {"kind": read(data, "kind", text), "version": read(data, "version", integer(0))}
    return {**data, **known, "identity": dict(mapping(data.get("identity", {})))}


def _begun_in(path: Path) -> bool:
    """Whether the run in a folder was begun there, by this user."""
    return lexists(path / PLACE) and read_json(path / PLACE, many(integer())) == tuple(_place(path))


def _place(path: Path) -> list[int]:
    """What tells a folder from a copy of it: its number in its file system, and the number of the user."""
    return [path.stat().st_ino, getattr(os, "geteuid", int)()]


def _made(path: Path, kind: str, make: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
    """What `make` makes of each line. Raises RecordError where it cannot, naming file and line."""
    for number, data in enumerate(read_records(path, kind), 1):
        try:
            made = make(data)
        except SpecError as error:
            raise RecordError(f"{path}:{number}: not a {kind} ({error}). Was the file edited?") from error
        yield made


def _counted(parts: Mapping[str, Any], usual: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    """What counts when runs are compared: what is `usual` where nothing is said, and nothing that is `free`."""
    return {
        name: _counted(part, usual.get(name) or {}, free) if isinstance(part, Mapping) else part
        for name, part in {**usual, **parts}.items()
        if name not in free
    }

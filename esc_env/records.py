"""Versioned JSONL: how trajectories and other records are kept, so that nothing reported finished is ever lost.

A file is a sequence of lines, each a JSON object that carries `kind` and `version`. A line is appended and flushed as
its conversation ends. Reading knows four outcomes: a good line; a torn last line after a crash (dropped with a warning,
since it was never reported finished); a line of another version (refused, saying what to do); a line that is no such
record (refused, naming line and reason).

No key of the environment is ever written: whatever is, goes through `secrets.struck` here.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from io import BufferedReader, FileIO
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from esc_env.errors import RecordError, SpecError, TornLineWarning
from esc_env.secrets import struck

__all__ = [
    "MAX_BYTES", "MAX_RECORDS", "RECORD_VERSION", "FolderLock", "RecordWriter", "check_version", "open_plain",
    "parse", "read_json", "read_records", "record_line", "write_json", "write_records", "write_text",
]  # fmt: skip

T = TypeVar("T")

RECORD_VERSION = 2
"""Version of every record and run.json written by this release, which reads no other. 2: scenarios stand once a run."""
MAX_BYTES, MAX_DEPTH, MAX_RECORDS = 1 << 24, 64, 1_000_000
"""The longest record or run.json, the most lists and objects in each other, the most records of a file. Ours."""


def open_plain(path: Path, flags: int = os.O_RDONLY, mode: str = "rb") -> FileIO:
    """A file in the folder of a run, which may come from elsewhere: a link is not followed, a pipe not waited for, and
    what has another name too (a hard link) is not written to.

    Raises:
        RecordError: it is a link, or no plain file; or it is a hard link, and opened for writing.
        OSError: it cannot be opened.
    """
    nothing_else = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    try:
        if path.is_symlink():  # all there is where a system has no O_NOFOLLOW
            raise OSError(errno.ELOOP, "a link")
        file = FileIO(os.open(path, flags | nothing_else, 0o666), mode)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise RecordError(f"{path}: is a link, and none is followed in a run's folder. Put the file there") from error
    about = os.fstat(file.fileno())
    if not stat.S_ISREG(about.st_mode):
        file.close()
        raise RecordError(f"{path}: is no plain file. Give another folder")
    if about.st_nlink > 1 and file.writable():
        file.close()
        raise RecordError(
            f"{path}: is a hard link, and what is written to it would be written to another file too. "
            "Put a copy in its place"
        )
    return file


def parse(text: bytes, most: int = MAX_BYTES) -> Any:
    """What JSON says. Raises ValueError where it is none, holds what is no UTF-8 text, is deeper than anything that
    esc-env writes, or larger than `most` bytes."""
    if len(text) > most:
        raise SpecError(f"more than {most >> 20} MiB")
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise SpecError("too many lists or objects in each other") from error
    _bound(data, MAX_DEPTH)
    return data


def _bound(data: Any, depth: int) -> None:
    if isinstance(data, (list, dict)):
        if not depth:
            raise SpecError(f"more than {MAX_DEPTH} lists or objects in each other")
        for item in chain.from_iterable(data.items()) if isinstance(data, dict) else data:
            _bound(item, depth - 1)
    elif isinstance(data, str):
        data.encode()


def read_json(path: Path, check: Callable[[Any], T], most: int = MAX_BYTES) -> T:
    """What `check` (see `fields`) makes of a JSON file in the folder of a run.

    Raises:
        RecordError: it cannot be read, is larger than `most` bytes, or `check` does not take it; names file and field.
    """
    try:
        with BufferedReader(open_plain(path)) as file:
            return check(parse(file.read(most + 1), most))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecordError(f"{path}: damaged, or not written by esc-env ({reason})") from error


def read_records(path: str | Path, kind: str) -> Iterator[dict[str, Any]]:
    """The records of a file, in order, without `kind` and `version`.

    Yields nothing if the file does not exist.

    Raises:
        RecordError: a line that is no record of this kind, or of another version, naming file and line.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    with BufferedReader(open_plain(path)) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_BYTES + 1), b""), 1):
            where = f"{path}:{number}"
            if number > MAX_RECORDS:
                raise RecordError(f"{where}: more than {MAX_RECORDS:,} records; no run of esc-env has so many")
            try:
                data = parse(line)
            except ValueError as error:
                if not line.endswith(b"\n") and len(line) <= MAX_BYTES:
                    _warn_torn(where)
                    return
                raise RecordError(f"{where}: not a JSON record ({error}). Was the file edited or damaged?") from error
            if not isinstance(data, dict) or data.get("kind") != kind or not isinstance(data.get("version"), int):
                raise RecordError(f"{where}: not a {kind!r} record of esc-env; this file holds something else")
            check_version(data["version"], where)
            del data["kind"], data["version"]
            yield data


def check_version(version: int, where: str | Path) -> None:
    """Refuse what another release wrote. Raises RecordError, which says what to do."""
    told = f"esc-env (record version {version}, this one reads {RECORD_VERSION})"
    if version > RECORD_VERSION:
        raise RecordError(f"{where}: written by a newer {told}. Type: pip install -U esc-env")
    if version < RECORD_VERSION:
        raise RecordError(f"{where}: written by an older {told}. Run it again in another folder: give --out")


def _warn_torn(where: str) -> None:
    warnings.warn(
        f"{where}: the last line was cut off by a crash and is dropped; its episode will be run again",
        TornLineWarning,
        stacklevel=3,
    )


class RecordWriter:
    """Appends records to one file. Once `write` returns, a record survives the process, however that ends.

    The system writes it to the disk in its own time, and at the latest when the file is closed: waiting for the disk at
    every record would hold up all conversations. A torn last line left by a crash is cut away (with a warning) before
    anything is appended.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path = Path(path)
        self.kind = kind
        self._file = open_plain(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, "ab+")
        self._mend()

    def _mend(self) -> None:
        start = max(0, self._file.seek(0, os.SEEK_END) - MAX_BYTES)  # no line is longer
        self._file.seek(start)
        data = self._file.read()
        keep = data.rfind(b"\n") + 1
        if keep < len(data):
            try:
                parse(data[keep:])
                self._file.write(b"\n")
            except ValueError:
                self._file.truncate(start + keep)
                self._file.seek(0)
                whole = self._file.read().count(b"\n")
                _warn_torn(f"{self.path}:{whole + 1}")

    def write(self, data: Mapping[str, Any]) -> None:
        """Append one record.

        Raises:
            RecordError: the disk refused it (full, read-only), or it is larger than what is read again; the file is
                left without a torn line.
        """
        rest = memoryview(record_line(self.kind, data).encode())
        if len(rest) > MAX_BYTES:
            raise RecordError(f"{self.path}: a {self.kind} of more than {MAX_BYTES >> 20} MiB is not kept")
        size = self._file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(size)
            raise RecordError(
                f"{self.path}: could not be written ({error.strerror}). All lines before are safe; "
                "make room and run the same command again"
            ) from error

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the file anew, as `write_json` writes, and close it: once all there is to write is known, in an order
        free of timing."""
        self.close()
        write_records(self.path, self.kind, rows)

    def close(self) -> None:
        """Wait for the disk and close the file; writing again is an error."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FolderLock:
    """Keeps two writers apart: a second one on the same folder is refused, not interleaved.

    The system releases the lock when the process ends, however it ends.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: FileIO | None = None

    def __enter__(self) -> FolderLock:
        """Raises RecordError when another process writes here, or nothing can be written or locked here."""
        try:
            self._file = open_plain(self.folder / ".lock", os.O_WRONLY | os.O_APPEND | os.O_CREAT, "ab")
            _lock(self._file)
        except OSError as error:
            taken = self._file is not None and error.errno in (errno.EACCES, errno.EAGAIN)
            self.__exit__()
            raise RecordError(
                f"{self.folder}: another process is writing here. Wait for it, or give another folder with --out"
                if taken
                else f"{self.folder}: cannot be written to and locked ({error.strerror}). Give another with --out"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _lock(file: FileIO) -> None:
    """Lock a file until it is closed. Raises OSError (EACCES or EAGAIN) when another process has."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def record_line(kind: str, data: Mapping[str, Any]) -> str:
    """A record as it stands in a file, its line break included."""
    return json.dumps({"kind": kind, "version": RECORD_VERSION, **struck(dict(data))}, ensure_ascii=False) + "\n"


def write_records(path: str | Path, kind: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole record file, as `write_json` writes."""
    _write(path, (record_line(kind, row) for row in rows))


def write_json(path: str | Path, data: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it, after a RecordError too."""
    write_text(path, json.dumps(struck(data), indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, as `write_json` writes. A link that stands there is replaced, what it points to left alone."""
    _write(path, [struck(text)])


def _write(path: str | Path, parts: Iterable[str]) -> None:
    path = Path(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.unlink(missing_ok=True)
        with fresh.open("x", encoding="utf-8") as file:  # which no link can be
            file.writelines(parts)
        fresh.replace(path)
    except OSError as error:
        raise RecordError(
            f"{path}: could not be written ({error.strerror}). Make room and run the same command again"
        ) from error
    finally:
        with suppress(OSError):  # it is told already
            fresh.unlink(missing_ok=True)

"""Versioned JSONL: how trajectories and other records are kept, so that nothing reported finished is ever lost.

A file is a sequence of lines, each a JSON object that carries `kind` and `version`. A line is appended and flushed as
its conversation ends. Reading knows four outcomes: a good line; a torn last line after a crash (dropped with a warning,
since it was never reported finished); a line of a newer version (refused: update esc-env); a foreign line (refused,
naming line and reason).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from esc_env.errors import RecordError, TornLineWarning

__all__ = ["RECORD_VERSION", "FolderLock", "RecordWriter", "read_records", "write_json"]

RECORD_VERSION = 1
"""Version of every record written by this release."""


def read_records(path: str | Path, kind: str) -> Iterator[dict[str, Any]]:
    """The records of a file, in order, without `kind` and `version`.

    Yields nothing if the file does not exist.

    Raises:
        RecordError: a line that is no record of this kind, or of a newer version, naming file and line.
    """
    path = Path(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") and _is_torn(line):
                _warn_torn(path, number)
                return
            yield _parse(line, kind, f"{path}:{number}")


def _parse(line: bytes, kind: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{where}: not a JSON record ({error}). Was the file edited or damaged?") from error
    if not isinstance(data, dict) or data.get("kind") != kind or not isinstance(data.get("version"), int):
        raise RecordError(f"{where}: not a {kind!r} record of esc-env; this file holds something else")
    if data["version"] > RECORD_VERSION:
        raise RecordError(
            f"{where}: written by a newer esc-env (record version {data['version']}, this one reads up to "
            f"{RECORD_VERSION}). Type: pip install -U esc-env"
        )
    del data["kind"], data["version"]
    return data


def _is_torn(line: bytes) -> bool:
    """Whether a line without its newline is also incomplete as JSON."""
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _warn_torn(path: Path, number: int) -> None:
    warnings.warn(
        f"{path}:{number}: the last line was cut off by a crash and is dropped; its episode will be run again",
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
        self._file = self.path.open("ab+", buffering=0)
        self._mend()

    def _mend(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        keep = data.rfind(b"\n") + 1
        if keep < len(data):
            if _is_torn(data[keep:]):
                _warn_torn(self.path, data.count(b"\n") + 1)
                self._file.truncate(keep)
            else:
                self._file.write(b"\n")

    def write(self, data: Mapping[str, Any]) -> None:
        """Append one record.

        Raises:
            RecordError: the disk refused it (full, read-only); the file is left without a torn line.
        """
        line = json.dumps({"kind": self.kind, "version": RECORD_VERSION, **data}, ensure_ascii=False) + "\n"
        rest = memoryview(line.encode())
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

    def close(self) -> None:
        """Wait for the disk and close the file; writing again is an error."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FolderLock:
    """Keeps two writers apart: a second one on the same folder is refused, not interleaved.

    The kernel releases the lock when the process ends, however it ends.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: BinaryIO | None = None

    def __enter__(self) -> FolderLock:
        """Raises RecordError when another process writes here."""
        import fcntl

        file = (self.folder / ".lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise RecordError(
                f"{self.folder}: another process is writing here. Wait for it, or give another folder with --out"
            ) from error
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def write_json(path: str | Path, data: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it."""
    path = Path(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)

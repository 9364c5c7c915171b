"""Cassettes: a file that keeps every request to a model and what it answered, and answers in the model's place.

A request is known by a hash of the model's identity, the messages, all parameters and the call's seed. The first
completion of a request is the one that counts: so every run that was ever kept in a file replays from it, bit for bit.

    record   kept requests are answered from the file (a run that was stopped goes on), others are asked for and kept
    cache    the same, but what comes from the file costs nothing in the usage
    replay   only from the file; a request that is not there is refused by name

Where the text itself kept a model from answering (it was too long, or a filter withheld it), that is a supporter's turn
or failure, so it is kept too and fails again when replayed; otherwise it is asked again, and an answer takes its place.

SQLite in WAL mode: what was kept survives kill -9, and several processes may share a file. No URL and no header is ever
written, and keys are struck out wherever they may stand.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from esc_env.errors import BadCompletion, ModelError, ModelUnavailable, RecordError, SpecError
from esc_env.fields import flag, integer, many, mapping, named, number, optional, read, text
from esc_env.protocols import ChatModel, Completion, Request, Usage
from esc_env.records import MAX_BYTES, parse
from esc_env.secrets import struck

__all__ = ["Cassette", "Mode"]

Mode = Literal["record", "replay", "cache"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS completions (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, completion TEXT NOT NULL, made TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) WITHOUT ROWID
"""
_KEEP = """
INSERT INTO completions VALUES (?, ?, ?, CURRENT_TIMESTAMP)
ON CONFLICT (key) DO UPDATE SET completion = excluded.completion, made = excluded.made
WHERE completions.completion LIKE '{"failure"%'
"""
_LOOK_UP = f"SELECT substr(completion, 1, {MAX_BYTES + 1}) FROM completions WHERE key = ?"


class Cassette:
    """A `ChatModel` that keeps what a model answers in a file, or answers from it.

    Args:
        path: the file.
        mode: `record`, `replay` or `cache`.
        identity: of the model, whether it is there or not.
        model: whom to ask for what is not in the file; not needed for `replay`.

    Raises:
        RecordError: the file cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        mode: Mode,
        identity: Mapping[str, Any],
        model: ChatModel | None = None,
    ) -> None:
        if mode != "replay" and model is None:
            raise SpecError(f"mode {mode!r} needs a model")
        self.path = Path(path).resolve()
        self.mode = mode
        self.model = model
        self._identity = dict(identity)
        _file(self.path, make=mode != "replay")  # what cannot be used is told before anything starts

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the model."""
        return self._identity

    @property
    def deterministic(self) -> bool:
        """Whether the same request has the same answer: always, when replaying."""
        return self.mode == "replay" or bool(getattr(self.model, "deterministic", False))

    async def complete(self, request: Request) -> Completion:
        """What the file holds, or else, unless replaying, what the model says.

        Raises:
            ModelUnavailable: replaying, and the request is not in the file; or the file cannot be written.
        """
        asked = {"model": self._identity, **asdict(request), "temperature": float(request.temperature)}
        row = _row(asked)
        key = blake2b(row.encode(), digest_size=16).hexdigest()
        kept = self._kept(key)
        if isinstance(kept, Completion):
            return replace(kept, usage=Usage()) if self.mode == "cache" else kept
        if self.model is None and kept is not None:
            raise kept
        if self.model is None:
            chat = request.messages
            last = _short(chat[-1]["content"]) if chat else "nothing"
            raise ModelUnavailable(
                f"{self.path} does not hold the request {key[:8]} to {self._who} (seed {request.seed}, {len(chat)} "
                f"messages, the last: {last!r}). Replay with the options of the recorded run, "
                "or record the rest with --cache"
            )
        try:
            completion = await self.model.complete(request)
        except ModelError as error:
            if error.obstacle:
                self._write(key, asked, _failure_json(error))
            raise
        if self._write(key, asked, _to_json(completion)):
            return completion
        first = self._kept(key)  # another call has kept one meanwhile: then that one is the answer
        return first if isinstance(first, Completion) else completion

    @property
    def _who(self) -> str:
        return "/".join(str(self._identity[part]) for part in ("provider", "name") if part in self._identity)

    def _kept(self, key: str) -> Completion | ModelError | None:
        with self._using() as file:
            row = file.database.execute(_LOOK_UP, (key,)).fetchone()
        try:
            return None if row is None else _from_json(parse(str(row[0]).encode()))
        except ValueError as error:
            raise ModelUnavailable(
                f"{self.path}: what it holds for the request {key[:8]} is no completion ({error}). Give another file"
            ) from error

    def _write(self, key: str, request: Mapping[str, Any], outcome: Mapping[str, Any]) -> bool:
        """Keep what a request came to; whether it was kept: a completion that is there already stays."""
        row = json.dumps(struck(dict(outcome)), sort_keys=True)
        with self._using() as file:
            done = file.database.execute(_KEEP, (key, _row(struck(dict(request))), row))
        return done.rowcount > 0

    @contextmanager
    def _using(self) -> Iterator[_File]:
        try:
            file = _file(self.path, make=self.mode != "replay")
            with file.lock:
                yield file
        except (sqlite3.Error, RecordError) as error:
            raise ModelUnavailable(
                f"{self.path}: the cassette cannot be used any more ({error}). Everything finished is kept; make room "
                "or mend the file, and type the same command again"
            ) from error


@dataclass(frozen=True)
class _File:
    """This process' connection to a file, and the lock that guards it."""

    database: sqlite3.Connection
    lock: threading.Lock


_open: dict[tuple[int, Path, bool], _File] = {}
_opening = threading.Lock()


def _file(path: Path, *, make: bool) -> _File:
    """This process' hold on a file. A forked child opens its own."""
    key = (os.getpid(), path, make)
    with _opening:
        if key not in _open:
            _open[key] = _File(_connect(path, make), threading.Lock())
        return _open[key]


def _connect(path: Path, make: bool) -> sqlite3.Connection:
    if not make and not path.is_file():
        raise RecordError(f"{path}: there is no such cassette to replay. Make one with --record {path}")
    wal = path.with_name(path.name + "-wal")
    # A finished file is opened immutable: it may lie in a folder that cannot be written, and nothing is left beside it.
    mode = "mode=rwc" if make else "mode=ro" if wal.is_file() and wal.stat().st_size else "immutable=1"
    try:
        database = sqlite3.connect(
            f"{path.as_uri()}?{mode}", uri=True, timeout=30, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise RecordError(f"{path}: cannot be opened as a cassette ({error}). Give another file") from error
    try:
        if make:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(_SCHEMA)
        database.execute("SELECT key, request, completion, made FROM completions LIMIT 1").fetchone()
    except sqlite3.Error as error:
        database.close()
        raise RecordError(f"{path}: no cassette of esc-env ({error}). Give another file") from error
    return database


@atexit.register
def _close() -> None:
    """Fold what is in the WAL into the files, so that each is whole by itself."""
    for (process, _, _), file in _open.items():
        if process == os.getpid():
            file.database.close()


def _row(asked: Mapping[str, Any]) -> str:
    return json.dumps(asked, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def _to_json(completion: Completion) -> dict[str, Any]:
    """All of a completion but its latency."""
    return {
        "texts": completion.texts,
        "finish_reasons": completion.finish_reasons,
        "usage": completion.usage.to_json(),
        "model": completion.model,
        "logprobs": completion.logprobs and [dict(choice) for choice in completion.logprobs],
    }


def _failure_json(error: ModelError) -> dict[str, Any]:
    unusable = isinstance(error, BadCompletion)
    told = {name: getattr(error, name) for name in ("provider", "model", "attempts", "status")}
    return {"failure": {"unusable": unusable, "message": str(error), **told}}


def _from_json(data: Mapping[str, Any]) -> Completion | ModelError:
    if "failure" in mapping(data):
        return read(data, "failure", _failure)
    return Completion(
        texts=read(data, "texts", many(optional(text))),
        finish_reasons=read(data, "finish_reasons", many(optional(text))),
        usage=read(data, "usage", Usage.from_json),
        model=read(data, "model", optional(text)),
        logprobs=read(data, "logprobs", optional(many(named(number(-math.inf))))),
    )


def _failure(data: Any) -> ModelError:
    unusable, message = read(data, "unusable", flag), read(data, "message", text)
    return (BadCompletion if unusable else ModelUnavailable)(
        message,
        provider=read(data, "provider", optional(text)),
        model=read(data, "model", optional(text)),
        attempts=read(data, "attempts", integer(0)),
        status=read(data, "status", optional(integer(0))),
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"

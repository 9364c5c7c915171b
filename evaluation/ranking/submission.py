"""A run as one file, to be sent to somebody: run.json as its first line, then its scenarios, then its conversations.

Every line is a record as it stands in the folder, errors and all, so the file is checked as a folder is. What a line
may hold is published as a JSON Schema: `docs/submission.schema.json` (see `esc_env.evaluation.ranking.schema`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory

from esc_env.errors import RecordError, SpecError
from esc_env.evaluation.runs.runner import TRAJECTORIES, read_run, run_folder, run_key
from esc_env.fields import mapping, read, text
from esc_env.records import (
    MAX_BYTES,
    MAX_RECORDS,
    open_plain,
    parse,
    read_records,
    record_line,
    write_text,
)

__all__ = ["opened", "submit"]

_FILES = {"run": "run.json", "scenario": "scenarios.jsonl", "trajectory": TRAJECTORIES}


def submit(folder: str | Path, out: str | Path) -> Path:
    """Write a run as one file.

    Args:
        folder: of the run.
        out: the file, or a folder for `RUN_KEY.jsonl`.

    Raises:
        RecordError: there is no run, it cannot be read, or the file cannot be written.
    """
    kept = run_folder(folder)
    about = kept.about()
    path = Path(out)
    if path.is_dir():  # under a key of our own counting: the one in run.json may be any path
        path /= f"{run_key(read_run(folder).fingerprint, about['identity']['agent'])}.jsonl"
    lines = [record_line("run", about)]
    for kind, name in list(_FILES.items())[1:]:
        lines += [record_line(kind, data) for data in read_records(kept.path / name, kind)]
    write_text(path, "".join(lines))
    return path


@contextmanager
def opened(source: str | Path) -> Iterator[Path]:
    """The folder of a run: a folder as it is; of a file that `submit` wrote, a folder for as long as it is needed.

    Raises:
        RecordError: the file holds something else; the message names file and line.
    """
    path = Path(source)
    if not path.is_file():
        yield path
        return
    with TemporaryDirectory(prefix="esc-env-") as made:
        _unpack(path, Path(made))
        try:
            yield Path(made)
        except RecordError as error:
            raise RecordError(str(error).replace(f"{made}{os.sep}", f"{path}, ").replace(made, str(path))) from error


def _unpack(path: Path, folder: Path) -> None:
    with BufferedReader(open_plain(path)) as file, ExitStack() as stack:
        out = {kind: stack.enter_context(open(folder / name, "wb")) for kind, name in _FILES.items()}
        for number, line in enumerate(iter(lambda: file.readline(MAX_BYTES + 1), b""), 1):
            if number > 2 * MAX_RECORDS:
                raise RecordError(f"{path}:{number}: more lines than any run has")
            try:
                kind = read(mapping(parse(line)), "kind", text)
                if kind not in out or (kind == "run") != (number == 1):
                    raise SpecError(f"kind: {kind!r} does not stand here; a run comes first, and only once")
            except ValueError as error:
                hint = "Give the folder of a run, or a file that `esc leaderboard submit` wrote"
                raise RecordError(f"{path}:{number}: no line of a submitted run ({error}). {hint}") from error
            out[kind].write(line)

"""A run as one file, to be sent to somebody: run.json as its first line, then its scenarios, then its conversations.

Every line is a record as it stands in the folder, errors and all, so the file is checked as a folder is. What a line
may hold is published as a JSON Schema, `docs/submission.schema.json`, which
`python -m esc_env.evaluation.submission > docs/submission.schema.json` makes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_type_hints

from esc_env.errors import RecordError, SpecError
from esc_env.evaluation.runner import TRAJECTORIES, run_folder
from esc_env.fields import mapping, read, text
from esc_env.records import (
    MAX_BYTES,
    MAX_RECORDS,
    RECORD_VERSION,
    open_plain,
    parse,
    read_records,
    record_line,
    write_text,
)

__all__ = ["opened", "schema", "submit"]

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
    if path.is_dir():
        path /= f"{read(about, 'run_key', text)}.jsonl"
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


def schema() -> dict[str, Any]:
    """The JSON Schema of a line of such a file, made from the classes that are written. Needs pydantic."""
    from pydantic import TypeAdapter

    from esc_env.dialogue import Message
    from esc_env.rules import Rules
    from esc_env.scenarios import Scenario
    from esc_env.trajectory import Trajectory

    definitions: dict[str, Any] = {}

    def of(kind: Any) -> dict[str, Any]:
        made = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
        definitions.update(made.pop("$defs", {}))
        return made

    def line(kind: str, properties: dict[str, Any], required: Iterable[str]) -> dict[str, Any]:
        known = {"kind": {"const": kind}, "version": {"const": RECORD_VERSION}}
        return {"type": "object", "properties": known | properties, "required": [*known, *required]}

    names = [each.name for each in fields(Trajectory)]
    hints = get_type_hints(Trajectory)
    held = {name: of(hints[name]) for name in names} | {"scenario": {"type": "string"}, "dialogue": of(list[Message])}
    for name in ("Scenario", "Dialogue"):
        definitions.pop(name, None)
    person = of(Scenario)
    identity = {name: {"type": "object"} for name in ("agent", "seeker", "critic")} | of(Rules)["properties"]
    rest = {name: {"type": "string"} for name in ("scenarios", "persona")} | {
        name: of(int) for name in ("trials", "seed")
    }
    said = {name: {"type": "string"} for name in ("agent", "scenarios", "run_key", "fingerprint")}
    whole = {"type": "object", "properties": identity | rest, "required": [*identity, *rest]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of a run of esc-env that was submitted as one file",
        "oneOf": [
            line("run", {"identity": whole} | said, ["identity", *said]),
            line("scenario", person["properties"], person["required"]),
            line("trajectory", held, names),
        ],
        "$defs": definitions,
    }


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))

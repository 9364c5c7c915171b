"""Files: from bytes to records, whatever they are packed in. What a file is, its content says, never its name.

gzip, bzip2, xz, zstd   unpacked, up to `MAX_BYTES`
Parquet                 a record a row
JSON                    a record an item of a list; also in `{"train": […], "test": […]}` and `{"data": […]}`
CSV                     a record a row below a header that names a known column; also with tabs or semicolons
anything else           a record a line, as JSON or as a Python literal (parsed, never run)
"""

from __future__ import annotations

import ast
import bz2
import csv
import gzip
import json
import lzma
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO, StringIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from esc_env.errors import MissingExtra, ScenarioError

__all__ = ["MAX_BYTES", "MAX_RECORDS", "SPLITS", "Record", "Unusable", "literal", "records"]

MAX_BYTES = 1 << 29
"""Bytes that a file may have, and a packed one may unpack to: 512 MiB. Ours: all of ExTES is some 30 MB."""
MAX_RECORDS = 1_000_000
"""Records that a file may hold. Ours."""

SPLITS = ("train", "valid", "validation", "val", "dev", "test")
"""Names under which people keep the parts of a data set."""


class Unusable(Exception):
    """A record that is skipped, with the reason."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file.

    Attributes:
        place: where it stands, for people: `line 12`, `record 3`, `test record 3`, `row 7`; all count from 1.
        value: what it holds; an `Unusable` where that is neither JSON nor a Python literal.
        split: the name of the list it stands in, one of `SPLITS`; "" where the file has none.
    """

    place: str
    value: Any
    split: str = ""


def records(path: Path) -> list[Record]:
    """Every record of a file, in order.

    Raises:
        ScenarioError: the file cannot be opened or unpacked, is neither text nor Parquet, or exceeds `MAX_BYTES` or
            `MAX_RECORDS`.
        MissingExtra: it is a Parquet or zstd file, and pyarrow is not installed.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # 0 of what is no plain file
            data = file.read(MAX_BYTES + 1) if size <= MAX_BYTES else b""
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror or error})") from error
    if max(size, len(data)) > MAX_BYTES:
        raise ScenarioError(f"{path}: more than {MAX_BYTES >> 20:,} MiB; split it into smaller files")
    data = _unpacked(data, path)
    found = _parquet(data, path) if data.startswith(b"PAR1") else _text(data, path)
    held = list(islice(found, MAX_RECORDS + 1))
    if len(held) > MAX_RECORDS:
        raise ScenarioError(f"{path}: more than {MAX_RECORDS:,} records; split the file")
    return held


def literal(text: str) -> Any:
    """The JSON value or Python literal that a text is; an `Unusable` when it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = f"not JSON ({error})"
    if text[:1] not in ("{", "["):
        return Unusable(problem)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in somebody's strings
            value = ast.literal_eval(text)
            repr(value)  # fails where a number has more digits than Python prints, as every message about it would
            return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return Unusable(f"{problem} and not a Python literal either")


# --- packed files ---------------------------------------------------------------------------------


def _zstd(packed: BytesIO) -> BinaryIO:
    arrow = _pyarrow("pyarrow")
    stream: BinaryIO = arrow.CompressedInputStream(arrow.BufferReader(packed.getvalue()), "zstd")
    return stream


_PACKED: tuple[tuple[bytes, str, Callable[[BytesIO], Any]], ...] = (
    (b"\x1f\x8b", "gzip", lambda packed: gzip.GzipFile(fileobj=packed)),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\xfd7zXZ\0", "xz", lzma.LZMAFile),
    (b"BZh", "bzip2", bz2.BZ2File),
)
"""First bytes, name and opener of what is unpacked. *Sources:* RFC 1952, RFC 8878, the xz and bzip2 formats."""

_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)  # pyarrow's own are OSError and ValueError


def _unpacked(data: bytes, path: Path) -> bytes:
    """The content of a packed file, anything else as it is."""
    name, opened = next(((name, opened) for first, name, opened in _PACKED if data.startswith(first)), ("", None))
    if opened is None:
        return data
    parts: list[bytes] = []
    size = 0
    try:
        with opened(BytesIO(data)) as stream:
            while part := stream.read(1 << 20):
                size += len(part)
                if size > MAX_BYTES:
                    raise _too_much(path)
                parts.append(part)
    except ScenarioError:
        raise
    except (*_DAMAGE, ValueError) as error:
        raise ScenarioError(f"{path}: a damaged {name} file ({error})") from error
    content = b"".join(parts)
    if any(content.startswith(first) for first, _, _ in _PACKED):
        raise ScenarioError(f"{path}: packed twice; unpack it once and try again")
    return content


def _too_much(path: Path) -> ScenarioError:
    return ScenarioError(f"{path}: unpacks to more than {MAX_BYTES >> 20:,} MiB; split it into smaller files")


def _pyarrow(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra("pyarrow", "data") from error


# --- tables ---------------------------------------------------------------------------------------

_STRUCTURED = frozenset(
    "annotation cha_group content dialog dialogue facts helps history hurts intensity risk survey survey_score "
    "voice".split()
)
"""Columns that hold no text: what stands there as text is parsed."""
_ARRAY_BREAK = re.compile(r"\}(?=\n \{)")
"""Where NumPy, which `datasets` writes CSV with, sets a line break between two objects and no comma."""
_INDEX = ("", "Unnamed: 0", "__index_level_0__")
"""What pandas calls the column of its row numbers, which it writes unless told not to."""


def _row(place: str, cells: Mapping[Any, Any]) -> Record:
    """A row as a record: an empty cell is an absent field."""
    value = {name: cell for name, cell in _without_nulls(cells).items() if name not in _INDEX and cell != ""}
    for name in _STRUCTURED & set(value):
        if isinstance(value[name], str):
            text = _ARRAY_BREAK.sub("},", value[name].strip())
            parsed = {"True": True, "False": False}.get(text, literal(text))
            value[name] = value[name] if isinstance(parsed, Unusable) else parsed
    return Record(place, value)


def _without_nulls(value: Any) -> Any:
    """The same without absent members: a column has every field of every row."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _parquet(data: bytes, path: Path) -> Iterator[Record]:
    arrow, parquet = _pyarrow("pyarrow"), _pyarrow("pyarrow.parquet")
    number = size = 0
    try:
        table = parquet.ParquetFile(arrow.BufferReader(data))
        about = table.metadata
        groups = [about.row_group(group) for group in range(about.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > MAX_BYTES:
            raise _too_much(path)
        columns = [group.column(place) for group in groups for place in range(group.num_columns)]
        widest = max((column.total_uncompressed_size for column in columns), default=0)  # what a cell may have
        rows = max(1, min(64, MAX_BYTES // max(1, widest)))  # few at a time: a small file may hold huge rows
        for batch in table.iter_batches(batch_size=rows):
            cells = [cell.dictionary_decode() if hasattr(cell, "dictionary_decode") else cell for cell in batch.columns]
            size += sum(cell.nbytes for cell in cells)  # with what a dictionary repeats
            if size > MAX_BYTES:
                raise _too_much(path)
            for cells in batch.to_pylist():
                number += 1
                yield _row(f"row {number}", cells)
    except ScenarioError:
        raise
    except (OSError, ValueError, TypeError, NotImplementedError, RecursionError, arrow.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ScenarioError(f"{path}: a Parquet file that cannot be read ({reason[:200]})") from error


_HEADERS = frozenset("base content description dialog instruction output player scene situation text".split())
"""Columns of which every known layout has one. A first line with none of them is no header."""


def _delimiter(text: str) -> str | None:
    """What separates the columns that a first line names; None when that is no header."""
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    if first[:1] in ("{", "[") or len(first) > csv.field_size_limit():
        return None
    for delimiter in ",\t;":
        names = next(csv.reader([first], delimiter=delimiter), [])
        if _HEADERS & {name.strip() for name in names}:
            return delimiter
    return None


def _csv(text: str, delimiter: str, path: Path) -> Iterator[Record]:
    rows = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 0
    try:
        names = [name.strip() for name in next(rows)]
        for cells in rows:
            if not any(cells):
                continue
            number += 1
            place = f"row {number}"
            if len(cells) > len(names):
                yield Record(place, Unusable(f"{len(cells)} cells, but the header names {len(names)} columns"))
            else:
                yield _row(place, dict(zip(names, cells, strict=False)))
    except csv.Error as error:
        raise ScenarioError(f"{path}: line {rows.line_num}: not CSV ({error})") from error


# --- text -----------------------------------------------------------------------------------------

_BINARY = (
    (b"PK\x03\x04", "a zip archive; take the file out of it"),
    (b"PARE", "an encrypted Parquet file; save it as plain Parquet"),
    (b"ARROW1", "an Arrow file; save it as Parquet"),
    (b"SQLite format 3\0", "an SQLite database; export its table as JSON or CSV"),
    (b"\x89HDF", "an HDF5 file; save its table as Parquet, CSV or JSON"),
    (b"\x93NUMPY", "a NumPy array; save its rows as JSON"),
    (b"%PDF-", "a PDF document"),
    (b"\xff\xfe", "text in UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16; save it as UTF-8"),
)
"""First bytes of what people have instead, and what to do with it."""


def _decoded(data: bytes, path: Path) -> str:
    for first, what in _BINARY:
        if data.startswith(first):
            raise ScenarioError(f"{path}: {what}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        begun = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if error.reason == "unexpected end of data" and begun in (b"{", b"["):  # cut off within a character
            return data[: error.start].decode("utf-8-sig")
        if b"\0" in data:
            raise ScenarioError(
                f"{path}: a binary file of a kind that is not known. Known are text, Parquet, and both in gzip, bzip2, "
                "xz or zstd"
            ) from error
        raise ScenarioError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8 and try again.") from error


def _text(data: bytes, path: Path) -> Iterator[Record]:
    text = _decoded(data, path)
    if text.lstrip()[:1] in ("[", "{"):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
            pass  # not one JSON value: lines, then
        else:
            yield from _items(whole)
            return
    table = text.lstrip("\r\n ")  # not a tab: it may stand before the second column
    if delimiter := _delimiter(table):
        yield from _csv(table, delimiter, path)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Record(f"line {number}", literal(line.strip()))


def _items(whole: Any, split: str = "", wrapped: bool = False) -> Iterator[Record]:
    """The items of a list, of an object's lists by split, or of its `data`; any other value is one record."""
    label = f"{split} " if split else ""
    if isinstance(whole, list):
        yield from (Record(f"{label}record {number}", item, split) for number, item in enumerate(whole, 1))
        return
    held = {}
    if isinstance(whole, Mapping):
        held = {name: part for name, part in whole.items() if isinstance(part, list | Mapping)}
    if held and not split and {name.lower() for name in held} <= set(SPLITS):
        for name, part in held.items():
            yield from _items(part, name.lower(), wrapped)
    elif set(held) == {"data"} and not wrapped:
        yield from _items(held["data"], split, wrapped=True)
    else:
        yield Record(f"{label}record 1", whole, split)

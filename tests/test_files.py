"""Files: whatever they are packed in, every record comes out, and what is no data says so in one line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_env.data import files
from esc_env.data.datasets import load_scenarios, read_file, summarise
from esc_env.errors import MissingExtra, ScenarioError

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "files"
real_cases = pytest.mark.skipif(not CASES.exists(), reason="the example files are not next to the checkout")

DIALOG = [
    {"speaker": "supporter", "annotation": {"strategy": "Question"}, "content": "What happened?"},
    {"speaker": "seeker", "annotation": {}, "content": "The roof of my bakery leaks on the flour."},
]
ESCONV = [
    {
        "experience_type": "Current Experience",
        "emotion_type": "anger",
        "problem_type": "job crisis",
        "situation": f"The roof of my bakery leaks for the {count} week.",
        "survey_score": {"seeker": {"initial_emotion_intensity": "4"}},
        "dialog": DIALOG,
    }
    for count in ("first", "second", "third")
]
PLAIN: list[dict[str, Any]] = [
    {"id": "a", "situation": "I may lose my flat.", "facts": ["The rent went up."], "intensity": 4, "risk": False},
    {"id": "b", "situation": 'They say, "leave";\nI stay.', "emotion": "fear"},
]
HUB = [{"text": json.dumps(row)} for row in ESCONV]


def lines(rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: Any, delimiter: str = ",", dump: Any = json.dumps) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(names)
    for row in rows:
        cells = (row.get(name, "") for name in names)
        writer.writerow([cell if isinstance(cell, str) else dump(cell) for cell in cells])
    return out.getvalue().encode()


def parquet(rows: Any) -> bytes:
    arrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    out = io.BytesIO()
    names = dict.fromkeys(name for row in rows for name in row)
    whole = arrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    pytest.importorskip("pyarrow.parquet").write_table(whole, out)
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    arrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    sink = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Any] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(content: bytes, name: str = "a file") -> Any:
        path = tmp_path / name
        path.write_bytes(content)
        return read_file(path)

    return read


# --- packed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["data.json", "data.parquet", "data"])
def test_a_packed_file_is_read_whatever_its_name(read: Any, packer: str, name: str) -> None:
    assert read(PACKERS[packer](lines(ESCONV)), name).scenarios == read(lines(ESCONV), name).scenarios


@pytest.mark.parametrize("packer", PACKERS)
def test_a_damaged_file_is_said_to_be_damaged(read: Any, packer: str) -> None:
    packed = PACKERS[packer](lines(ESCONV) * 50)
    for broken in (packed[: len(packed) // 2], packed[:12] + b"\xff" * 40, packed[:6]):
        with pytest.raises(ScenarioError, match=f"damaged {packer} file") as caught:
            read(broken)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packer", PACKERS)
def test_a_bomb_is_refused_with_the_bound(read: Any, monkeypatch: pytest.MonkeyPatch, packer: str) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 3 << 20)
    bomb = PACKERS[packer](b" " * (4 << 20))
    assert len(bomb) < 1 << 20
    with pytest.raises(ScenarioError, match="more than 3 MiB"):
        read(bomb)


def test_a_file_packed_twice_is_refused_with_what_to_do(read: Any) -> None:
    with pytest.raises(ScenarioError, match="packed twice; unpack it once"):
        read(gzip.compress(bz2.compress(lines(PLAIN))))


def test_too_many_records_are_refused_with_the_bound(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_RECORDS", 2)
    assert len(read(lines(PLAIN)).scenarios) == 2
    with pytest.raises(ScenarioError, match="more than 2 records"):
        read(lines(ESCONV))


# --- Parquet -----------------------------------------------------------------------------------------


def test_parquet_rows_hold_json_text_or_nested_columns(read: Any) -> None:
    expected = read(lines(ESCONV)).scenarios
    columns = [
        {**row, "dialog": {name: [turn[name] for turn in DIALOG] for name in ("speaker", "content")}} for row in ESCONV
    ]
    as_text, nested, packed = read(parquet(HUB)), read(parquet(ESCONV)), read(gzip.compress(parquet(ESCONV)))
    assert as_text.format == "esconv-hf"
    assert as_text.scenarios == nested.scenarios == packed.scenarios == expected
    assert [scenario.id for scenario in read(parquet(columns)).scenarios] == [scenario.id for scenario in expected]


def test_parquet_of_plain_rows_leaves_absent_fields_absent(read: Any) -> None:
    assert read(parquet(PLAIN)).scenarios == read(lines(PLAIN)).scenarios


def test_a_parquet_file_without_pyarrow_says_what_to_install(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for content in (b"PAR1" + b"\0" * 20 + b"PAR1", b"\x28\xb5\x2f\xfd" + b"\0" * 20):
        with pytest.raises(MissingExtra, match=r"^pyarrow is not installed. Type: pip install 'esc-env\[data\]'$"):
            read(content)


def test_a_huge_parquet_file_is_refused_with_the_bound(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"situation": "x" * 100_000}] * 300
    small = parquet(rows)
    assert len(small) < 1 << 20
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    with pytest.raises(ScenarioError, match="more than 1 MiB"):
        read(small)


def test_a_cell_that_a_small_parquet_file_repeats_is_never_unpacked_often(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    said = arrow.DictionaryArray.from_arrays(arrow.array([0] * 640, arrow.int32()), arrow.array(["a" * (8 << 20)]))
    out = io.BytesIO()
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"situation": said}), out, compression="zstd")
    assert len(out.getvalue()) < 1 << 16
    monkeypatch.setattr(files, "MAX_BYTES", 16 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(ScenarioError, match="more than 16 MiB"):
            read(out.getvalue())
        assert tracemalloc.get_traced_memory()[1] < 128 << 20, "64 rows of it have 512 MiB"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_without_end_is_refused_unread(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ScenarioError, match=rf"{name}: more than 512 MiB; split it"):
        read_file(tmp_path / name)


def test_a_damaged_parquet_file_is_one_line(read: Any) -> None:
    whole = parquet(PLAIN)
    for broken in (whole[:-20], whole[:40], b"PAR1", whole[:8] + b"\xff" * 60 + whole[68:]):
        with pytest.raises(ScenarioError, match="Parquet file that cannot be read") as caught:
            read(broken)
        assert "\n" not in str(caught.value)


# --- CSV ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("dump", [json.dumps, repr])
def test_csv_rows_are_the_rows_they_were_written_from(read: Any, delimiter: str, dump: Any) -> None:
    assert read(table(PLAIN, delimiter, dump)).scenarios == read(lines(PLAIN)).scenarios
    assert read(table(ESCONV, delimiter, dump)).scenarios == read(lines(ESCONV)).scenarios
    assert read(b"\xef\xbb\xbf" + table(HUB, delimiter)).scenarios == read(lines(HUB)).scenarios


def test_the_csv_that_datasets_writes_is_read_and_a_cell_that_is_no_list_is_said(read: Any) -> None:
    def as_numpy_prints(cell: Any) -> str:
        return repr(cell).replace("}, {'speaker'", "}\n {'speaker'")

    assert read(table(ESCONV, dump=as_numpy_prints)).scenarios == read(lines(ESCONV)).scenarios
    with pytest.raises(ScenarioError, match="row 1: no list 'dialog'"):
        read(table([{**ESCONV[0], "dialog": "[cut off"}]))


def test_the_row_numbers_that_pandas_writes_are_no_field(read: Any) -> None:
    for delimiter in (",", "\t"):
        rows = [{"": str(number), **row} for number, row in enumerate(PLAIN)]
        assert read(table(rows, delimiter)).scenarios == read(lines(PLAIN)).scenarios


def test_text_of_one_endless_line_is_no_table(read: Any) -> None:
    for content in (b"x" * 300_000, b"0\r0", b"\0"):
        with pytest.raises(ScenarioError, match="not JSON"):
            read(content)


def test_every_csv_row_is_accounted_for(read: Any) -> None:
    reading = read(b"id,situation\na,I am tired.\n\nb,\nc,too,many\nd,I am sad.\n")
    assert [scenario.id for scenario in reading.scenarios] == ["a", "d"]
    assert [str(skipped).split(":")[0] for skipped in reading.skipped] == ["row 2", "row 3"]
    with pytest.raises(ScenarioError, match=r"line 3: not CSV"):
        read(b'id,situation\na,"I am tired.\nand never closed')


# --- JSON around records -------------------------------------------------------------------------------


def test_lists_by_split_are_read_and_counted_by_split(read: Any, tmp_path: Path) -> None:
    reading = read(json.dumps({"version": 1, "train": ESCONV[:2], "Test": [ESCONV[2], 3]}).encode(), "f.json")
    assert [scenario.source for scenario in reading.scenarios] == ["f.json:train", "f.json:train", "f.json:test"]
    assert str(reading.skipped[0]) == "test record 2: not an object (int)"
    assert summarise(reading).splits == {"train": 2, "test": 1}
    assert load_scenarios(tmp_path / "f.json").digest == load_scenarios(tmp_path / "f.json").digest


@pytest.mark.parametrize(
    "wrap",
    [
        lambda rows: {"data": rows},
        lambda rows: {"version": "1.0", "data": rows},
        lambda rows: {"data": {"train": rows}},
        lambda rows: {"train": {"data": rows}},
    ],
)
def test_an_object_around_the_records_is_taken_off(read: Any, wrap: Any) -> None:
    scenarios = read(json.dumps(wrap(PLAIN)).encode()).scenarios
    assert [scenario.digest for scenario in scenarios] == [scenario.digest for scenario in read(lines(PLAIN)).scenarios]


def test_an_object_with_other_lists_beside_the_data_is_refused_not_half_read(read: Any) -> None:
    with pytest.raises(ScenarioError, match="no known layout"):
        read(json.dumps({"data": PLAIN, "more": PLAIN}).encode())


def test_wrappers_without_end_are_refused(read: Any) -> None:
    with pytest.raises(ScenarioError, match="no known layout"):
        read(b'{"data": ' * 500 + b"[]" + b"}" * 500)


# --- what is no data -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04\x14\0", "zip archive"),
        (b"SQLite format 3\0\xff", "SQLite"),
        (b"ARROW1\0\0\xff", "Arrow file; save it as Parquet"),
        (b"%PDF-1.7\n\xe2\xe3", "PDF"),
        ("[]".encode("utf-16"), "UTF-16; save it as UTF-8"),
        (b"\x80\x04\x95\0\0\xff", "a binary file of a kind that is not known"),
    ],
)
def test_a_binary_file_is_named_and_never_told_to_be_saved_as_utf8(read: Any, content: bytes, what: str) -> None:
    with pytest.raises(ScenarioError, match=what) as caught:
        read(content)
    assert "not UTF-8 text" not in str(caught.value)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "file"


HEADS = st.sampled_from([b"", b"PAR1", b"\x1f\x8b\x08\0", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"situation\n"])


@given(HEADS, st.binary(max_size=80))
def test_no_bytes_crash_the_reader(scratch: Path, head: bytes, rest: bytes) -> None:
    scratch.write_bytes(head + rest)
    try:
        reading = read_file(scratch)
    except (ScenarioError, MissingExtra):
        return
    assert reading.scenarios


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20), max_size=4))
def test_any_text_comes_back_from_a_csv_cell(scratch: Path, texts: list[str]) -> None:
    rows = [{"id": "first", "situation": "x"}, *({"id": f"{n}", "situation": f"I: {t}"} for n, t in enumerate(texts))]
    scratch.write_bytes(table(rows))
    assert [scenario.situation for scenario in read_file(scratch).scenarios] == [row["situation"] for row in rows]


# --- real shapes -----------------------------------------------------------------------------------------


@real_cases
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("esconv_in_splits.json", "esconv"),
        ("esconv_official.json.gz", "esconv"),
        ("esconv_rows.parquet", "esconv-hf"),
        ("plain_without_ids.jsonl", "plain"),
    ],
)
def test_the_files_that_people_have_load_whole(name: str, layout: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    reading = read_file(CASES / name)
    assert (reading.format, len(reading.scenarios), reading.skipped) == (layout, 2, ())

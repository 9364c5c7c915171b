"""Records: what was reported finished is never lost, and what is no record is told, never guessed at."""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_env.errors import RecordError, TornLineWarning
from esc_env.records import RECORD_VERSION, FolderLock, RecordWriter, read_records, write_json, write_records

TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(TEXT.filter(lambda key: key not in ("kind", "version")), JSON, max_size=4)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("records") / "scratch.jsonl"


@given(st.lists(FIELDS, max_size=5))
def test_what_is_written_is_read(scratch, rows):
    scratch.unlink(missing_ok=True)
    with RecordWriter(scratch, "thing") as writer:
        for row in rows:
            writer.write(row)
    assert list(read_records(scratch, "thing")) == rows


@given(st.lists(FIELDS, min_size=1, max_size=4), st.data())
def test_a_file_cut_at_any_byte_loses_at_most_its_last_line(scratch, rows, data):
    scratch.unlink(missing_ok=True)
    with RecordWriter(scratch, "thing") as writer:
        for row in rows:
            writer.write(row)
    whole = scratch.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    scratch.write_bytes(whole[:cut])
    ended = whole[:cut].count(b"\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TornLineWarning)
        read = list(read_records(scratch, "thing"))
        assert read[:ended] == rows[:ended]
        assert len(read) <= ended + 1
        with RecordWriter(scratch, "thing") as writer:
            writer.write({"after": True})
    assert list(read_records(scratch, "thing")) == [*read, {"after": True}]


def test_a_torn_last_line_is_dropped_with_a_warning_that_names_it(tmp_path):
    path = tmp_path / "r.jsonl"
    with RecordWriter(path, "thing") as writer:
        writer.write({"n": 1})
    with path.open("ab") as file:
        file.write(b'{"kind": "thing", "version": 1, "n"')
    with pytest.warns(TornLineWarning, match=r"r\.jsonl:2"):
        assert list(read_records(path, "thing")) == [{"n": 1}]
    with pytest.warns(TornLineWarning, match=r"r\.jsonl:2"):
        RecordWriter(path, "thing").close()
    assert list(read_records(path, "thing")) == [{"n": 1}]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"garbage\n", "not a JSON record"),
        (b"\n", "not a JSON record"),
        (b"\xff\xfe\n", "not a JSON record"),
        (b"[]\n", "not a 'thing' record"),
        (b'{"kind": "other", "version": 1}\n', "not a 'thing' record"),
        (b'{"kind": "thing"}\n', "not a 'thing' record"),
        (b'{"kind": "thing", "version": "1"}\n', "not a 'thing' record"),
        (f'{{"kind": "thing", "version": {RECORD_VERSION + 1}}}\n'.encode(), "newer esc-env.*pip install -U esc-env"),
        (f'{{"kind": "thing", "version": {RECORD_VERSION - 1}}}\n'.encode(), "older esc-env.*another folder"),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_a_foreign_line_is_refused_by_file_and_line(tmp_path, line, told, last):
    path = tmp_path / "r.jsonl"
    good = f'{{"kind": "thing", "version": {RECORD_VERSION}}}\n'.encode()
    path.write_bytes(good + line + (b"" if last else good))
    with pytest.raises(RecordError, match=told) as caught:
        list(read_records(path, "thing"))
    assert str(caught.value).startswith(f"{path}:2")


def test_a_torn_line_is_found_without_reading_all_that_stands_before_it(tmp_path, monkeypatch):
    path = tmp_path / "long.jsonl"
    write_records(path, "thing", ({"number": number} for number in range(1000)))
    path.write_bytes(path.read_bytes()[:-3])
    monkeypatch.setattr("esc_env.records.MAX_BYTES", 100)
    with pytest.warns(TornLineWarning, match=r"long\.jsonl:1000: "), RecordWriter(path, "thing") as writer:
        writer.write({"number": 999})
    assert [row["number"] for row in read_records(path, "thing")] == list(range(1000))


def test_a_missing_file_has_no_records(tmp_path):
    assert list(read_records(tmp_path / "none.jsonl", "thing")) == []


def test_a_refused_write_leaves_no_torn_line(tmp_path):
    path = tmp_path / "r.jsonl"
    writer = RecordWriter(path, "thing")
    writer.write({"n": 1})

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))  # room for five bytes more
    try:
        with pytest.raises(RecordError, match="make room and run the same command again"):
            writer.write({"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    writer.write({"n": 3})
    writer.close()
    assert list(read_records(path, "thing")) == [{"n": 1}, {"n": 3}]


def _hold(folder, held, done):
    with FolderLock(folder):
        held.set()
        done.wait(60)


def test_a_second_writer_is_refused_until_the_first_ends_however_it_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(RecordError, match="another process is writing here"), FolderLock(tmp_path):
        pass
    other.kill()
    other.join()
    with FolderLock(tmp_path):
        pass


def test_a_json_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": "é"})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": "é"}
    write_json(path, [1])
    assert json.loads(path.read_text(encoding="utf-8")) == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_file_written_anew_is_written_line_by_line_and_stays_as_it_was_when_a_line_cannot_be_made(tmp_path):
    path, made = tmp_path / "things.jsonl", []

    def rows(last):
        for number in range(2000):
            made.append((number, sum(file.stat().st_size for file in tmp_path.iterdir())))
            yield {"text": "x" * 100 if number < 1999 else last}

    write_records(path, "thing", rows("the end"))
    assert made[-1][1] > 100_000
    before = path.read_bytes()
    for spoilt in (b"no text", "\ud800"):
        with pytest.raises((TypeError, UnicodeEncodeError)):
            write_records(path, "thing", rows(spoilt))
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="could not be written"):
        write_records(tmp_path / "file" / "things.jsonl", "thing", [])

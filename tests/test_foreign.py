"""Files that come from elsewhere: read as a run, or refused by file, line and field; never anything else."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import bank
from hypothesis import given
from hypothesis import strategies as st

from esc_env.cli import main
from esc_env.errors import ESCError, RecordError, SpecError, TornLineWarning
from esc_env.evaluation import evaluate, read_run
from esc_env.evaluation.pages.run import run_pages, write_pages
from esc_env.folder import take_over

FILES = ("run.json", "scenarios.jsonl", "trajectories.jsonl")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a", 10**7, 10**400, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three conversations."""
    folder = tmp_path_factory.mktemp("foreign") / "run"
    evaluate("builtin:skilled", bank(3), out=folder)
    return folder


@pytest.fixture
def run(held: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(held, tmp_path / "run"))


def change(file: Path, how: Callable[[Any], Any], line: int = 0) -> None:
    """Change one line of a file, or the whole of run.json."""
    lines = [file.read_text()] if file.suffix == ".json" else file.read_text().splitlines(keepends=True)
    data = json.loads(lines[line])
    changed = how(data)
    lines[line] = json.dumps(data if changed is None else changed) + "\n"
    file.write_text("".join(lines))


def refused(folder: Path) -> str:
    """With what a run is refused, which must name its folder; "" for a run that can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_run(folder)
        except ESCError as error:
            return str(error) if str(folder) in str(error) else pytest.fail(f"names no folder: {error}")
    return ""


def places(data: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a JSON document stands."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [here] * bool(here) + [place for key, value in inside for place in places(value, (*here, key))]


@given(st.sampled_from(FILES), st.data())
def test_a_spoilt_file_is_a_report_or_one_error_that_names_it(held: Path, name: str, data: st.DataObject) -> None:
    folder = held.with_name("spoilt")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(held, folder)

    def spoil(document: Any) -> None:
        *way, last = data.draw(st.sampled_from(places(document)))
        owner = document
        for key in way:
            owner = owner[key]
        if data.draw(st.booleans()):
            owner[last] = data.draw(ANYTHING)
        else:
            del owner[last]

    change(folder / name, spoil)
    told = refused(folder)
    assert "\n" not in told
    assert not told or f"{folder}/{name}" in told or "run.json" in name or "scenarios.jsonl has" in told


@given(st.sampled_from(FILES), st.integers(0, 10**6), st.binary(max_size=8))
def test_bytes_put_anywhere_are_a_report_or_one_error(held: Path, name: str, place: int, noise: bytes) -> None:
    folder = held.with_name("noisy")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(held, folder)
    whole = (folder / name).read_bytes()
    place %= len(whole)
    (folder / name).write_bytes(whole[:place] + noise + whole[place + len(noise) :])
    refused(folder)


def put(*way: Any, value: Any) -> Callable[[Any], None]:
    def how(data: Any) -> None:
        for key in way[:-1]:
            data = data[key]
        data[way[-1]] = value

    return how


@pytest.mark.parametrize(
    ("name", "how", "told"),
    [
        ("trajectories.jsonl", put("verdicts", 0, "score", value=float("nan")), r"verdicts\[0\]\.score: must be a num"),
        ("trajectories.jsonl", put("verdicts", 0, "score", value=0.25), r"verdicts\[0\]: score is 0.25, and the mean"),
        ("trajectories.jsonl", put("verdicts", 0, "solved", value=True), r"verdicts\[0\]\.solved: True"),
        ("trajectories.jsonl", put("seed", value=None), "seed: must be a whole number"),
        ("trajectories.jsonl", put("trial", value=10**9), "trial: .*is no part of this run"),
        ("trajectories.jsonl", put("stop_reason", value="error "), "stop_reason='error ' is not known"),
        ("trajectories.jsonl", put("usage", "cost", value=-1), r"usage\.cost: must be a number from 0"),
        ("trajectories.jsonl", put("dialogue", 0, "content", value=3), r"dialogue\[0\]\.content: must be a string"),
        ("trajectories.jsonl", put("failure", value=[]), "failure: must be an object"),
        ("scenarios.jsonl", put("id", value="person-2"), "id: 'person-2' stands here twice|jsonl:2"),
        ("scenarios.jsonl", put("survey", value={"a": "b"}), "field 'survey' must be an object of integers"),
        ("run.json", put("identity", "trials", value=10**7), r"identity: trials: 10,000,000 for 3 scenarios"),
        ("run.json", put("identity", "max_turns", value=1), r"verdicts: \d turns, and T is 1"),
        ("run.json", put("identity", "max_turns", value="8"), r"identity\.max_turns: must be a whole number"),
        ("run.json", put("identity", "critic", value=[]), r"identity\.critic: must be an object"),
        ("run.json", put("agent", value=[]), "agent: must be a string"),
    ],
)
def test_a_contradiction_is_no_data(run: Path, name: str, how: Callable[[Any], None], told: str) -> None:
    change(run / name, how)
    with pytest.raises(RecordError, match=told) as caught:
        read_run(run)
    assert str(run) in str(caught.value)


def test_scenarios_put_in_the_place_of_others_are_told(run: Path) -> None:
    change(run / "scenarios.jsonl", put("situation", value="My cat is ill."))
    with pytest.raises(RecordError, match=r"identity: scenarios: the run was held with 3, content"):
        read_run(run)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("bomb", [b"[" * 10**6, b'{"kind": "run", "a": ' + b"[" * 500 + b"]" * 500 + b"}\n"])
def test_what_is_too_deep_is_refused(run: Path, name: str, bomb: bytes) -> None:
    (run / name).write_bytes(bomb + b"\n")
    with pytest.raises(RecordError, match=f"{name}.*in each other"):
        read_run(run)


@pytest.mark.parametrize("name", FILES)
def test_what_is_too_long_is_refused_unread(run: Path, name: str) -> None:
    with (run / name).open("wb") as file:
        file.truncate(1 << 40)  # a hole: a terabyte without a disk
    with pytest.raises(RecordError, match=f"{name}.*more than 16 MiB"):
        read_run(run)


def test_more_conversations_than_are_ever_kept_are_refused_before_they_are_listed() -> None:
    with pytest.raises(SpecError, match="more than 1,000,000 conversations"):
        evaluate("builtin:skilled", bank(3), trials=10**9)


# --- whose a folder is ----------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("cut", [0, 1])
def test_a_run_that_was_begun_elsewhere_is_only_read_until_it_is_taken_over(run: Path, cut: int) -> None:
    lines = (run / "trajectories.jsonl").read_text().splitlines(keepends=True)
    (run / "trajectories.jsonl").write_text("".join(lines[cut:]))
    before = content(run)
    with pytest.raises(RecordError, match=r"begun elsewhere .*, so it is only read\. .* type: esc take-over ") as told:
        evaluate("builtin:skilled", bank(3), out=run)
    assert "\n" not in str(told.value)
    assert read_run(run).completed == 3 - cut
    assert content(run) == before, "a finished run's report is a file too"
    assert take_over(run) == [run]
    assert evaluate("builtin:skilled", bank(3), out=run).complete
    assert take_over(run) == []


def test_a_run_of_ones_own_is_gone_on_with_under_another_name(tmp_path: Path) -> None:
    evaluate("builtin:skilled", bank(2), out=tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "renamed")
    assert evaluate("builtin:skilled", bank(2), out=tmp_path / "renamed").complete


def test_a_run_of_another_user_is_only_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_over(run)
    monkeypatch.setattr(os, "geteuid", lambda: 4711, raising=False)
    with pytest.raises(RecordError, match="begun elsewhere"):
        evaluate("builtin:skilled", bank(3), out=run)


def test_fresh_sets_a_run_from_elsewhere_aside_as_it_is(run: Path) -> None:
    before = {name: said for name, said in content(run).items() if name not in (".lock", ".place")}
    assert evaluate("builtin:skilled", bank(3), out=run, fresh=True).complete
    assert content(run.with_name("run~1")).items() >= before.items()


def test_runs_inside_a_folder_are_taken_over_with_it_and_no_link_out_of_it_is_followed(
    held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("all/eval/start", "all/eval/grpo", "outside"):
        shutil.copytree(held, tmp_path / name)
    (tmp_path / "all" / "link").symlink_to(tmp_path / "outside")
    before = content(tmp_path / "outside")
    for told in ("Taken over: ", "was begun here"):
        with pytest.raises(SystemExit) as ended:
            main(["take-over", str(tmp_path / "all")])
        assert ended.value.code == 0
        assert told in capsys.readouterr().out
    assert content(tmp_path / "outside") == before
    for name in ("start", "grpo"):
        assert evaluate("builtin:skilled", bank(3), out=tmp_path / "all" / "eval" / name).complete
    with pytest.raises(SystemExit) as ended:
        main(["take-over", str(tmp_path / "nowhere")])
    assert ended.value.code == 1
    assert "no run here" in capsys.readouterr().err


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, ".lock", "report.json", "report.html", "report-0001.html"])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_written_through_a_link(run: Path, name: str, there: bool) -> None:
    outside = run.parent / "outside"
    if there:
        outside.write_bytes(b"one\nno whole line")
    take_over(run)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    with suppress(RecordError):
        write_pages(run_pages(evaluate("builtin:skilled", bank(3), out=run)), run)
    assert outside.exists() == there
    assert not there or outside.read_bytes() == b"one\nno whole line"


@pytest.mark.parametrize("name", [*FILES, ".lock", "report.json", "report.html", "report-0001.html"])
def test_nothing_is_written_through_a_hard_link_and_it_can_be_read(run: Path, name: str) -> None:
    take_over(run)
    outside = run.parent / "outside"
    (run / name).touch()
    if name == "trajectories.jsonl":  # something is missing, and the last line has no end
        lines = (run / name).read_text().splitlines(keepends=True)
        (run / name).write_text("".join(lines[:2]) + lines[2][:20])
    before = (run / name).read_bytes()
    os.link(run / name, outside)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TornLineWarning)
        assert read_run(run).episodes == 3
        with suppress(RecordError):
            write_pages(run_pages(evaluate("builtin:skilled", bank(3), out=run)), run)
    assert outside.read_bytes() == before
    if name in ("trajectories.jsonl", ".lock"):
        with pytest.raises(RecordError, match=f"{name}: is a hard link, and what is written"):
            evaluate("builtin:skilled", bank(3), out=run)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_read_through_a_link_nor_from_a_pipe(run: Path, name: str) -> None:
    (run / name).rename(run.parent / "outside")
    (run / name).symlink_to(run.parent / "outside")
    with pytest.raises(RecordError, match=f"{name}: is a link"):
        read_run(run)
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(RecordError, match=r"is no plain file|no run here"):
        read_run(run)


def test_a_run_is_found_by_a_link_to_its_folder(run: Path) -> None:
    (run.parent / "link").symlink_to(run)
    assert read_run(run.parent / "link").episodes == 3

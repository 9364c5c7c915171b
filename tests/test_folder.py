"""The folder of a run: one writer, one run, nothing lost, and every refusal says what to do."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import bank

from esc_env import Dialogue, Message, Rules, StopReason, Trajectory
from esc_env.errors import ProtocolMismatch, RecordError, SpecError, TornLineWarning
from esc_env.evaluation import evaluate, read_run
from esc_env.folder import RunFolder
from esc_env.records import RECORD_VERSION, FolderLock, RecordWriter
from esc_env.testing import ScriptedAgent, ScriptedCritic, ScriptedSeeker
from esc_env.trajectory import Failure

FILE = "trajectories.jsonl"
PEOPLE = {person.id: person for person in bank(3)}
IDENTITY = {"agent": {"name": "mine", "temperature": 0.0}, "seed": 0}


def folder(path: Path) -> RunFolder:
    return RunFolder(path / "run", "run", (FILE,), "Give --out, or --fresh")


def said(path: Path) -> dict[str, Any]:
    return json.loads((path / "run" / "run.json").read_text(encoding="utf-8"))


def conversation(name: str, trial: int = 0) -> Trajectory:
    dialogue = Dialogue((Message("seeker", "I am sad."),))
    failure = Failure("supporter", "ValueError", "no word")
    return Trajectory(PEOPLE[name], dialogue, (), StopReason.SUPPORTER_FAILED, 7, trial, failure=failure)


def begun(path: Path, *held: Trajectory) -> RunFolder:
    """A folder whose run has held these conversations."""
    run = folder(path)
    with run.claim(IDENTITY, scenarios=PEOPLE.values()), RecordWriter(run.path / FILE, "trajectory") as writer:
        for trajectory in held:
            writer.write(trajectory.to_json())
    return run


def read(run: RunFolder) -> list[Trajectory]:
    return list(run.records(FILE, "trajectory", Trajectory.from_json))


# --- claimed, gone on with ------------------------------------------------------------------------


def test_a_run_is_begun_once_and_gone_on_with_by_the_same_identity(tmp_path):
    run = folder(tmp_path)
    assert not run.begun
    with run.claim(IDENTITY, facts={"agent": "mine"}):
        assert run.begun
    with run.claim({"seed": 0, "agent": {"temperature": 0.0, "name": "mine"}}, facts={"agent": "my own"}):
        assert run.about()["agent"] == "my own", "the last call says what it is called"
    assert said(tmp_path)["identity"] == IDENTITY
    assert (said(tmp_path)["kind"], said(tmp_path)["version"]) == ("run", RECORD_VERSION)


def test_what_is_noted_stays_and_finished_is_told(tmp_path):
    run = begun(tmp_path)
    assert not run.finished
    run.note(finished=True, counts={"rows": 3})
    assert run.finished
    with run.claim(IDENTITY):
        assert run.about()["counts"] == {"rows": 3}
    assert not RunFolder(run.path, "stage").finished, "a run is no stage"


def test_another_run_is_refused_naming_each_difference(tmp_path):
    begun(tmp_path)
    other = {"agent": {"name": "mine", "temperature": 0.5}, "seed": 1, "persona": "hostile"}
    with pytest.raises(ProtocolMismatch) as refused, folder(tmp_path).claim(other):
        pass
    told = str(refused.value)
    for difference in ("agent.temperature: 0.0 / 0.5", "seed: 0 / 1", "persona: None / hostile"):
        assert difference in told
    assert "agent.name" not in told
    assert told.endswith("Give --out, or --fresh")
    assert said(tmp_path)["identity"] == IDENTITY, "and nothing has changed"


def test_what_is_free_may_differ_and_what_is_usual_need_not_be_there(tmp_path):
    run = folder(tmp_path)
    with run.claim({"grpo": {"beta": 0.1, "concurrency": 4}}):
        pass
    usual = {"grpo": {"beta": 0.04, "top_p": 1.0}}
    with run.claim({"grpo": {"beta": 0.1, "concurrency": 9, "top_p": 1.0}}, free={"concurrency"}, usual=usual):
        assert run.about()["identity"]["grpo"]["concurrency"] == 9, "how it was run last"
    with (
        pytest.raises(ProtocolMismatch, match=r"\(there / now\): grpo\.top_p: 1\.0 / 0\.9\."),
        run.claim({"grpo": {"beta": 0.1, "top_p": 0.9}}, free={"concurrency"}, usual=usual),
    ):
        pass


def test_an_identity_that_is_no_json_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(SpecError, match="plain JSON"), folder(tmp_path).claim({"agent": {"name": object()}}):
        pass
    assert not (tmp_path / "run").exists()


def test_a_folder_whose_making_was_cut_off_before_run_json_is_made_again(tmp_path):
    run = begun(tmp_path)
    (run.path / "run.json").unlink()
    (run.path / FILE).unlink()
    with run.claim({"seed": 5}, scenarios=[PEOPLE["person-2"]]):
        assert list(run.scenarios()) == ["person-2"]


# --- scenarios stand once -------------------------------------------------------------------------


def test_a_scenario_stands_once_and_records_name_it(tmp_path):
    run = begun(tmp_path, *(conversation(name, trial) for trial in range(9) for name in PEOPLE))
    assert run.scenarios() == PEOPLE
    assert [json.loads(line)["scenario"] for line in (run.path / FILE).read_text().splitlines()[:3]] == list(PEOPLE)
    everything = "".join(path.read_text() for path in run.path.glob("*.json*"))
    assert all(everything.count(person.situation) == 1 for person in PEOPLE.values())


def test_a_copied_folder_is_read_without_what_it_was_made_from_persona_and_all(tmp_path):
    people = tmp_path / "people.jsonl"
    people.write_text("".join(json.dumps(person.to_json()) + "\n" for person in PEOPLE.values()))
    report = evaluate(
        ScriptedAgent(["Hm."]), people, persona="hostile", seeker=ScriptedSeeker(["Yes."]), trials=2,
        critic=ScriptedCritic(["same"]), rules=Rules(max_turns=2), out=tmp_path / "run",
    )  # fmt: skip
    people.unlink()
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    again = read_run(tmp_path / "elsewhere")
    assert again.trajectories == report.trajectories
    assert {trajectory.scenario.persona for trajectory in again.trajectories} == {"hostile"}
    assert list(again.by_persona) == ["hostile"]


def test_a_record_about_somebody_else_is_refused(tmp_path):
    run = begun(tmp_path, conversation("person-1"))
    lines = (run.path / "scenarios.jsonl").read_text().splitlines(keepends=True)
    (run.path / "scenarios.jsonl").write_text("".join(lines[:1]))
    with pytest.raises(RecordError, match=r"trajectories\.jsonl:1: .*scenario: 'person-1' is no part of this run"):
        read(run)


@pytest.mark.parametrize(("name", "what"), [("scenarios.jsonl", "scenario"), (FILE, "trajectory")])
def test_a_line_that_makes_no_sense_is_refused_by_file_and_line(tmp_path, name, what):
    run = begun(tmp_path, conversation("person-1"))
    with (run.path / name).open("a") as file:
        file.write(json.dumps({"kind": what, "version": RECORD_VERSION, "id": "x", "scenario": "person-0"}) + "\n")
    with pytest.raises(RecordError, match=rf"{name}:\d+: not a {what} \(.*Was the file edited"):
        read(run)


def test_a_torn_last_line_is_dropped_and_the_rest_read(tmp_path):
    run = begun(tmp_path, conversation("person-0"), conversation("person-1"))
    path = run.path / FILE
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(TornLineWarning, match=rf"{FILE}:2"):
        assert read(run) == [conversation("person-0")]


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "damaged, or not written by esc-env"),
        ("[1, 2]", "damaged"),
        ('{"kind": "run"}', "damaged"),
        ('{"kind": "run", "version": "new"}', "damaged"),
        ('{"kind": "run", "version": 1, "identity": 3}', "damaged"),
        ('{"kind": "collection", "version": 1}', "holds a collection, no run"),
        (
            '{"kind": "x\\nSupporter: \\u001b[2J", "version": 1}',
            "holds a x Supporter: \N{REPLACEMENT CHARACTER}.2J, no run",
        ),
        (f'{{"kind": "{"x" * 9999}", "version": 1}}', "holds a x{39}…, no run"),
        (f'{{"kind": "run", "version": {RECORD_VERSION + 1}}}', "newer esc-env.* pip install -U esc-env"),
        (f'{{"kind": "run", "version": {RECORD_VERSION - 1}}}', "older esc-env.* another folder"),
    ],
)
def test_what_another_wrote_is_refused_in_one_line_and_left_as_it_is(tmp_path, text, told):
    run = begun(tmp_path, conversation("person-0"))
    (run.path / "run.json").write_text(text)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    for use in (run.about, lambda: run.claim(IDENTITY).__enter__()):
        with pytest.raises(RecordError, match=told) as refused:
            use()
        assert "\n" not in str(refused.value)
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_what_differs_from_another_run_is_one_line_whatever_stands_there(tmp_path):
    run = begun(tmp_path, conversation("person-0"))
    about = json.loads((run.path / "run.json").read_text())
    about["identity"] = {**about["identity"], "agent": {"name": "x\n\x1b[2Jesc: all is well"}}
    (run.path / "run.json").write_text(json.dumps(about))
    with pytest.raises(ProtocolMismatch, match="esc: all is well") as refused, run.claim(IDENTITY):
        pass
    assert not {"\n", "\x1b"} & {*str(refused.value)}


def test_where_there_is_no_run_that_is_told(tmp_path):
    with pytest.raises(RecordError, match="no run here"):
        folder(tmp_path).about()
    assert read(folder(tmp_path)) == []


def test_records_that_no_run_json_explains_are_never_added_to(tmp_path):
    run = begun(tmp_path, conversation("person-0"))
    (run.path / "run.json").unlink()
    with pytest.raises(RecordError, match=r"trajectories\.jsonl without run\.json.*--out"), run.claim(IDENTITY):
        pass


def test_a_folder_that_cannot_be_made_or_written_to_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RecordError, match=r"cannot be made a folder.*--out"):
            RunFolder(path, "run").claim(IDENTITY).__enter__()
    (tmp_path / "run" / ".lock").mkdir(parents=True)  # as where nothing may be written; root may write anywhere
    with pytest.raises(RecordError, match=r"cannot be written to.*--out"), folder(tmp_path).claim(IDENTITY):
        pass
    (tmp_path / "run" / ".lock").rmdir()

    def full(self, *_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RecordError, match=r"could not be written \(No space left.*Make room"):
        folder(tmp_path).claim(IDENTITY).__enter__()
    monkeypatch.undo()
    assert begun(tmp_path).begun


# --- two writers ----------------------------------------------------------------------------------


def _hold(path: Path, held: Any, done: Any) -> None:
    with folder(path).claim(IDENTITY):
        held.set()
        done.wait(60)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_second_writer_is_refused_until_the_first_ends_however_it_ends(tmp_path, fresh):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, done))
    other.start()
    assert held.wait(60)
    run = folder(tmp_path)
    with pytest.raises(RecordError, match="another process is writing here"), run.claim(IDENTITY, fresh=fresh):
        pass
    assert run.begun, "not even set aside"
    other.kill()
    other.join()
    with run.claim(IDENTITY, fresh=fresh):
        pass


def test_a_folder_is_locked_on_windows_too(tmp_path, monkeypatch):
    def locking(file: int, mode: int, size: int) -> None:
        assert (mode, size) == (2, 1)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error  # as Windows tells it

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    with FolderLock(tmp_path), pytest.raises(RecordError, match="another process is writing here"):
        FolderLock(tmp_path).__enter__()
    with FolderLock(tmp_path):
        pass


def test_a_place_that_knows_no_locks_is_refused_never_written_to_unlocked(tmp_path, monkeypatch):
    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(RecordError, match=r"locked \(No locks available\).*--out"), folder(tmp_path).claim(IDENTITY):
        pass
    assert not folder(tmp_path).begun


# --- fresh ----------------------------------------------------------------------------------------


def test_fresh_keeps_what_was_there_beside_it(tmp_path):
    begun(tmp_path, conversation("person-0"))
    run = folder(tmp_path)
    for number in (1, 2):
        with run.claim({"seed": number}, scenarios=PEOPLE.values(), fresh=True):
            assert read(run) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run~1", "run~2"]
    first = RunFolder(tmp_path / "run~1", "run")
    assert read(first) == [conversation("person-0")]
    assert (first.about()["identity"], run.about()["identity"]) == (IDENTITY, {"seed": 2})


@pytest.mark.parametrize("text", ["", '{"kind": "run", "version": 1}'])
def test_fresh_starts_over_where_the_old_run_cannot_be_read(tmp_path, text):
    run = begun(tmp_path)
    (run.path / "run.json").write_text(text)
    with run.claim(IDENTITY, fresh=True):
        assert run.begun
    assert (tmp_path / "run~1" / "run.json").read_text() == text


def test_fresh_begins_in_an_empty_or_missing_folder_and_leaves_others_alone(tmp_path):
    with folder(tmp_path).claim(IDENTITY, fresh=True):
        pass
    (tmp_path / "mine").mkdir()
    with RunFolder(tmp_path / "mine", "run").claim(IDENTITY, fresh=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "run"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    with pytest.raises(RecordError, match="holds no run, so --fresh leaves it alone"):
        RunFolder(tmp_path / "thesis", "run").claim(IDENTITY, fresh=True).__enter__()
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_where_one_kind_is_read_another_is_told_from_it_without_advice_on_writing(tmp_path):
    import_like, run = RunFolder(tmp_path, "import"), RunFolder(tmp_path, "run", instead="Give another with --out")
    with import_like.claim({"a": 1}):
        pass
    with pytest.raises(RecordError, match=r"holds an import, no run. Give the folder of one$"):
        run.about()
    with pytest.raises(RecordError, match=r"holds an import, no run. Give another with --out$"), run.claim({"a": 1}):
        pass

"""A run that is held in shards and merged is the run held in one place; what does not belong together is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import OddOnes, bank
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_env import Rules
from esc_env.cli import main
from esc_env.errors import ESCError, ModelError, ProtocolMismatch, RecordError, SpecError
from esc_env.evaluation import Report, evaluate, rank, read_run
from esc_env.evaluation.pages.run import run_pages
from esc_env.evaluation.ranking.leaderboard import find_runs
from esc_env.evaluation.runs.merging import merge
from esc_env.evaluation.runs.runner import begun_run
from esc_env.evaluation.runs.shards import Shard
from esc_env.evaluation.view.following import Following, find
from esc_env.testing import ScriptedAgent, ScriptedSeeker

AGENT = ScriptedAgent(["What happened?", "And then?"])
SEEKER = ScriptedSeeker(["I see.", "Maybe."])


class FailsOnce(OddOnes):
    """Such a critic that fails in its first call about person 1."""

    def __init__(self) -> None:
        self.failed: set[int] = set()

    async def judge(self, scenario, dialogue, *, votes, seed):
        if scenario.id == "person-1" and seed.episode not in self.failed:
            self.failed.add(seed.episode)
            raise ModelError("busy")
        return await super().judge(scenario, dialogue, votes=votes, seed=seed)


def held(out: Path, **options: Any) -> Report:
    usual: Any = {"seeker": SEEKER, "critic": OddOnes(), "rules": Rules(max_turns=3), **options}
    return evaluate(usual.pop("agent", AGENT), usual.pop("scenarios", bank(4)), out=out, **usual)


def split(out: Path, of: int, **options: Any) -> list[Path]:
    """The folders of all shards of a run."""
    return [held(out, shard=f"{number}/{of}", **options).folder for number in range(1, of + 1)]


def lines(folder: Path, name: str = "trajectories.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def kept(folder: Path) -> dict[str, bytes]:
    """All that a run's folder holds, but for what differs whenever it is repeated."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in (".lock", ".place", "timing.jsonl")
    }


def esc(*words: str) -> str | int | None:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code


@pytest.fixture
def shards(tmp_path):
    return split(tmp_path / "run", 3)


def change(folder: Path, name: str = "run.json", **identity: Any) -> None:
    """Have the folder of a shard say something else of what was run."""
    about = json.loads((folder / name).read_text())
    about["identity"] |= identity
    (folder / name).write_text(json.dumps(about))


# --- the same run ---------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.data())
@settings(max_examples=12)
def test_merged_shards_are_the_whole_run_to_the_byte(tmp_path_factory, people, limit, trials, data):
    here = tmp_path_factory.mktemp("runs")
    of = data.draw(st.integers(1, min(people, limit) * trials), "shards")
    options = {"scenarios": bank(people), "limit": limit, "trials": trials, "seed": 3}
    whole = held(here / "whole", **options)
    folders = split(here / "run", of, **options)
    sizes = [len(lines(folder)) for folder in folders]
    assert sum(sizes) == whole.episodes
    assert max(sizes) - min(sizes) <= 1
    merged = merge(data.draw(st.permutations(folders), "order"), here / "run")
    assert kept(here / "run") == kept(here / "whole")
    assert merged.trajectories == whole.trajectories
    assert sorted(map(str, lines(here / "run", "timing.jsonl"))) == sorted(
        str(line) for folder in folders for line in lines(folder, "timing.jsonl")
    )


def test_the_conversations_of_a_shard_depend_on_nothing_but_its_number():
    episodes = [(f"person-{person}", trial) for trial in range(2) for person in range(5)]
    parts = [Shard(number, 3).part(episodes) for number in (1, 2, 3)]
    assert sorted(episode for part in parts for episode in part) == sorted(episodes)
    assert parts[2] == [episodes[2], episodes[5], episodes[8]]


def test_a_merged_run_of_embedded_chairs_is_verified_and_its_shards_are_not_ranked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["eval", "-a", "builtin:template", "--limit", "4", "--trials", "2", "--out", "x"]
    for task in "123":
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        assert esc(*asked, "--shard", "/3") == 0
    told = capsys.readouterr()
    assert "shard 3 of 3: SLURM_ARRAY_TASK_ID is 3, and tasks count from 1 (--array=1-3)" in told.err
    assert "shard 3 of 3, so incomplete: it holds 2 of the run's 8 conversations" in told.out
    parts = [f"x-shard-{number}-of-3" for number in (1, 2, 3)]
    assert esc("merge", *parts, "--out", "x") == 0
    assert "Merged 3 folders into x: 8 of 8 conversations have an outcome\n" in capsys.readouterr().out
    assert esc(*asked) == 0
    assert "was complete; nothing was run" in capsys.readouterr().out
    board = rank([Path()])
    assert [(entry.report.folder, entry.standing) for entry in board.entries] == [(Path("x"), "verified")]
    assert [report.folder for report in board.incomplete] == [Path(part) for part in parts]
    assert "shard 2 of 3, 3 of 8 conversations have an outcome" in board.to_markdown()
    assert esc("leaderboard", "verify", parts[0]) == 0
    assert "shard 1 of 3" in capsys.readouterr().out


def test_conversations_that_broke_off_in_a_shard_go_on_after_the_merge(tmp_path):
    critic = FailsOnce()
    for _ in range(2):
        whole = held(tmp_path / "whole", critic=critic, trials=2)
    assert (whole.complete, whole.retried) == (True, 2)
    critic = FailsOnce()
    folders = split(tmp_path / "run", 3, critic=critic, trials=2)
    with pytest.raises(RecordError, match="shard 2 of 3 has no outcome for 1 of its 3 conversations"):
        merge(folders, tmp_path / "run")
    assert not merge(folders, tmp_path / "run", incomplete=True).complete
    again = held(tmp_path / "run", critic=critic, trials=2)
    assert again.complete
    assert (tmp_path / "run" / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()
    assert sorted(map(str, lines(tmp_path / "run"))) == sorted(map(str, lines(tmp_path / "whole")))


def test_a_run_merged_without_a_shard_is_completed_by_the_ordinary_call(tmp_path, shards):
    whole = held(tmp_path / "whole")
    some = merge([shards[2], shards[0]], tmp_path / "some", incomplete=True)
    assert (some.shard, some.complete, some.completed, some.episodes) == (None, False, 3, 4)
    before = lines(tmp_path / "some")
    report = held(tmp_path / "some")
    assert report.trajectories == whole.trajectories
    assert kept(tmp_path / "some") == kept(tmp_path / "whole")
    assert all(line in lines(tmp_path / "some") for line in before)


# --- one shard ------------------------------------------------------------------------------------


def test_a_shard_says_that_it_is_one_and_is_never_complete(tmp_path, capsys):
    whole = held(tmp_path / "whole")
    report = held(tmp_path / "run", shard="1/3")
    assert report.folder == tmp_path / "run-shard-1-of-3"
    assert (report.run_key, report.fingerprint) == (whole.run_key, whole.fingerprint)
    assert (report.shard, report.complete, report.completed, report.due, report.episodes) == (
        Shard(1, 3), False, 2, 2, 4,
    )  # fmt: skip
    assert report.trajectories == (whole.trajectories[0], whole.trajectories[3])
    assert json.loads((report.folder / "report.json").read_text())["shard"] == "1/3"
    assert esc("report", str(report.folder)) == 0
    assert "shard 1 of 3, so incomplete: it holds 2 of the run's 4 conversations" in capsys.readouterr().out
    assert not held(tmp_path / "one", shard="1/1").complete
    assert begun_run(report.folder).shard == Shard(1, 3)


def test_the_page_of_a_shard_says_that_it_is_one(shards):
    _, page = next(iter(run_pages(read_run(shards[0]))))
    assert "<b>Incomplete:</b> this is shard 1 of 3 of a run, 2 of its 4 conversations" in page


def test_whoever_follows_a_shard_sees_its_own_conversations(tmp_path, shards):
    following = Following(shards[0])
    following.read()
    assert following.complete
    assert following.progress()["total"] == 2
    assert {run.scenarios.rpartition(", ")[2] for run in find(tmp_path)} == {f"shard {n} of 3" for n in (1, 2, 3)}
    assert all(run.state != "complete" for run in find(tmp_path))


def test_a_shard_resumes_as_any_run_does(tmp_path):
    critic = FailsOnce()
    first = held(tmp_path / "run", shard="2/3", critic=critic)
    assert (first.completed, first.errors, first.due) == (0, 1, 1)
    second = held(tmp_path / "run", shard="2/3", critic=critic)
    assert (second.completed, second.errors, second.retried) == (1, 0, 1)


def test_a_folder_of_another_shard_or_of_the_run_is_refused(tmp_path, shards):
    with pytest.raises(ProtocolMismatch, match="shard: 1/3 / None"):
        held(shards[0])
    shutil.copytree(shards[0], tmp_path / "run-shard-1-of-2")
    shutil.rmtree(shards[1])
    shards[0].rename(shards[1])
    with pytest.raises(ProtocolMismatch, match="shard: 1/3 / 2/3"):
        held(tmp_path / "run", shard="2/3")


@pytest.mark.parametrize(
    ("shard", "task", "first", "why"),
    [
        ("0/3", None, None, "count from 1 to 3"),
        ("4/3", None, None, "count from 1 to 3"),
        ("1/5", None, None, "the run has 4 conversations"),
        ("-1/3", None, None, "write it as 3/16"),
        ("3", None, None, "write it as 3/16"),
        ("", None, None, "write it as 3/16"),
        ("/", "1", None, "write it as 3/16"),
        ("\u0663/16", None, None, "write it as 3/16"),
        ("/16", None, None, "SLURM_ARRAY_TASK_ID is not set"),
        ("auto/16", "", None, "SLURM_ARRAY_TASK_ID is not set"),
        ("auto/16", "0", None, "count from 1; submit the job with --array=1-16"),
        ("/16", "3", "0", "count from 1; submit the job with --array=1-16"),
        ("/3", "4", "1", "count from 1 to 3"),
        ("/3", "one", "1", "write it as 3/16"),
    ],
)
def test_a_shard_that_there_is_none_of_is_refused_before_anything_runs(tmp_path, monkeypatch, shard, task, first, why):
    for name, value in (("SLURM_ARRAY_TASK_ID", task), ("SLURM_ARRAY_TASK_MIN", first)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match=why):
        held(tmp_path / "run", shard=shard)
    assert not list(tmp_path.iterdir())


# --- what does not belong together ----------------------------------------------------------------


def refused(folders: list[Path], out: Path, kind: type[ESCError], why: str, **options: Any) -> None:
    """A merge is refused for a reason, and leaves nothing."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(kind, match=why):
        merge(folders, out, **options)
    assert sorted(out.parent.iterdir()) == before


def test_missing_shards_are_named(tmp_path, shards):
    refused(shards[1:2], tmp_path / "run", RecordError, "of 3 shards these are missing: 1, 3. Or .* --incomplete")
    refused([], tmp_path / "run", RecordError, "no shards to merge")


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"agent": ScriptedAgent(["Hm."])}, {"rules": Rules(max_turns=2)}, {"persona": "hostile"}]
)
def test_shards_of_another_run_are_refused_by_name(tmp_path, shards, other):
    (stranger,) = split(tmp_path / "other", 3, **other)[1:2]
    for folders in ([shards[0], stranger, shards[2]], [*shards, stranger]):
        refused(folders, tmp_path / "run", ProtocolMismatch, "other-shard-2-of-3 are shards of different runs. What")


def test_other_people_of_the_same_name_are_refused(tmp_path, shards):
    people = lines(shards[1], "scenarios.jsonl")
    people[0]["source"] = "elsewhere"  # which no fingerprint has
    (shards[1] / "scenarios.jsonl").write_text("".join(json.dumps(line) + "\n" for line in people))
    refused(shards, tmp_path / "run", ProtocolMismatch, "run-shard-2-of-3 have different scenarios.jsonl")
    people[0]["situation"] = "Another one."
    (shards[1] / "scenarios.jsonl").write_text("".join(json.dumps(line) + "\n" for line in people))
    refused(shards, tmp_path / "run", RecordError, "scenarios: the run was held with")


def test_another_split_and_whole_runs_are_refused(tmp_path, shards):
    (half,) = split(tmp_path / "half", 2)[:1]
    refused([*shards, half], tmp_path / "run", RecordError, "split in another way: shard 1 of 3, shard 1 of 2")
    whole = held(tmp_path / "whole").folder
    refused([*shards, whole], tmp_path / "run", RecordError, "whole: holds a whole run, no shard")
    refused([*shards, tmp_path], tmp_path / "run", RecordError, "no run here")


def test_a_shard_given_twice_counts_once_and_with_other_records_is_refused(tmp_path, shards):
    again = Path(shutil.copytree(shards[1], tmp_path / "again"))
    merge([*shards, again], tmp_path / "run")
    assert kept(tmp_path / "run") == kept(held(tmp_path / "whole").folder)
    line = lines(again)[0]
    line["attempts"] = 2
    (again / "trajectories.jsonl").write_text(json.dumps(line) + "\n")
    refused([*shards, again], tmp_path / "other", RecordError, "again are both shard 2 of 3, with different records")
    (again / "trajectories.jsonl").unlink()
    refused([*shards, again], tmp_path / "other", RecordError, "different records", incomplete=True)


def test_a_conversation_of_another_shard_is_refused(tmp_path, shards):
    with (shards[1] / "trajectories.jsonl").open("a") as file:
        file.write((shards[0] / "trajectories.jsonl").read_text())
    refused(shards, tmp_path / "run", RecordError, "run-shard-2-of-3/trajectories.jsonl:2: .*no part of this run")


@pytest.mark.parametrize("said", ["0/3", "2/999999999", "2/5", 2, ["2/3"], None, "<script>alert(1)</script>"])
def test_a_shard_that_cannot_be_is_refused(tmp_path, shards, said):
    change(shards[1], shard=said)
    refused(shards, tmp_path / "run", RecordError, "run-shard-2-of-3/run.json: not a run")


def test_what_a_strangers_shard_says_besides_is_left_behind(tmp_path, shards):
    for path in shards:
        about = json.loads((path / "run.json").read_text())
        about |= {"run_key": "forged", "fingerprint": "forged", "finished": True, "more": "x"}
        (path / "run.json").write_text(json.dumps(about))
        (path / "report.html").write_text("<script>alert(1)</script>")
        (path / "report.json").write_text("{}")
    merge(shards, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(held(tmp_path / "whole").folder)


def test_damaged_timing_is_refused_by_the_name_of_its_file(tmp_path, shards):
    (shards[1] / "timing.jsonl").write_text('{"kind": "timing", "version": 2, "seconds": "long"}\n')
    refused(shards, tmp_path / "run", RecordError, "run-shard-2-of-3/timing.jsonl:1: scenario: is missing")


def test_a_merge_that_was_stopped_is_no_run_and_is_gone_on_with(tmp_path, shards, monkeypatch):
    for stopped_in in ("write_records", "read_run", "write_json"):

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(f"esc_env.evaluation.runs.merging.{stopped_in}", stop)
            with pytest.raises(KeyboardInterrupt):
                merge(shards, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        assert find_runs([tmp_path]) == shards
    merge(shards, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(held(tmp_path / "whole").folder)
    assert not (tmp_path / ".run.merging").exists()


def test_what_is_left_of_another_merge_is_not_mixed_in(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RecordError, match=r"cannot be renamed to .*No space left"):
        merge(shards, tmp_path / "run")
    monkeypatch.undo()
    others = split(tmp_path / "other", 2, seed=1)
    with pytest.raises(ProtocolMismatch, match=r"run\.merging holds another run.*seed: 0 / 1.*delete it"):
        merge(others, tmp_path / "run")


def test_a_merge_overwrites_nothing(tmp_path, shards):
    there = held(tmp_path / "run").folder
    before = kept(there)
    refused(shards, there, RecordError, "run: is there already, and a merge overwrites nothing")
    assert kept(there) == before
    (tmp_path / "file").write_text("mine")
    refused(shards, tmp_path / "file", RecordError, "overwrites nothing")
    refused(shards, shards[0], RecordError, "overwrites nothing")


def test_shards_that_were_held_elsewhere_are_merged_and_the_run_is_ones_own(tmp_path, shards):
    copies = [Path(shutil.copytree(path, tmp_path / "sent" / path.name)) for path in shards]
    merge(copies[:2], tmp_path / "run", incomplete=True)
    assert held(tmp_path / "run").complete

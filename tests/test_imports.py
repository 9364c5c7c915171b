"""Other people's conversations are read whole or refused by place, and keep their own scale."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from esc_env import Dialogue, Message, Scenario, Trajectory, Verdict
from esc_env.cli import main
from esc_env.errors import ProtocolMismatch, RecordError, SpecError, TornLineWarning
from esc_env.evaluation.imports import SOURCES, import_file, read_import, together
from esc_env.records import record_line
from esc_env.trajectory import StopReason

DATA = Path(__file__).parents[2] / "shared" / "data"


def turns(who: str, what: str, names: tuple[str, str] = ("user", "assistant"), **more: Any) -> list[dict[str, Any]]:
    words = ("I lost my job.", "That is hard.", "It is. I cannot sleep.")
    return [{who: names[i % 2], what: text, **more} for i, text in enumerate(words)]


def sage(final: int = 40, name: str = "A") -> dict[str, Any]:
    history = turns("role", "content")
    for turn, point in zip(history[::2], (50, final), strict=True):
        turn["emotion-point"] = point
    return {"id": name, "player": f"name: {name}", "scene": "", "task": "", "emo_point": final, "history": history}


def recorded(score: float) -> Trajectory:
    said = Message("seeker", "I lost my job."), Message("supporter", "That is hard."), Message("seeker", "It is.")
    verdict = Verdict((score,), 1, score, score > 0.5)
    ended = StopReason.SOLVED if verdict.solved else StopReason.MAX_TURNS
    return Trajectory(Scenario("a", "I lost my job."), Dialogue(said), (verdict,), ended, 3)


FILES: dict[str, str] = {
    "sage": "".join(json.dumps(sage(final, name)) + "\n" for final, name in ((100, "A"), (0, "B"), (50, "C"))),
    "ppdpp": "".join(
        f"{ {'dialog': turns('role', 'content', ('Patient', 'Therapist')), 'reward': reward} }\n\n"
        for reward in (1.5, -2)
    ),
    "esc-eval": json.dumps(
        {"0": ["AI assistant：Hello.", "ESC-Role：I lost my job: today.", "AI assistant：That is hard."]}
    ),
    "tau2": json.dumps(
        {
            "simulations": [
                {
                    "task_id": 1,
                    "messages": [*turns("role", "content"), {"role": "tool", "content": "{}"}],
                    "reward_info": {"reward": 1.0},
                },
                {"task_id": 2, "messages": turns("role", "content"), "reward_info": None},
            ]
        }
    ),
    "chat": json.dumps(
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "I lost my job."}]},
                {"role": "assistant", "content": "That is hard."},
            ]
        }
    ),
    "sharegpt": json.dumps([{"conversations": turns("from", "value", ("human", "gpt"))}]),
    "esc-env": "".join(
        record_line("trajectory", {**held.to_json(), "scenario": held.scenario.to_json()})
        for held in (recorded(1.0), recorded(0.5))
    ),
}


def written(folder: Path, source: str, text: str | None = None) -> Path:
    path = folder / f"{source}.jsonl"
    path.write_text(FILES[source] if text is None else text, encoding="utf-8")
    return path


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_known_by_its_content_and_read_into_trajectories(tmp_path, source):
    report = import_file(written(tmp_path, source), tmp_path / "out")
    assert (report.source, report.agent) == (source, source)
    assert report == read_import(tmp_path / "out")
    for each in report.held:
        said = each.trajectory.dialogue.messages
        assert {message.role for message in said} == {"seeker", "supporter"}
        assert any("I lost my job" in message.content for message in said)
        assert not any("Be kind" in message.content or "{}" in message.content for message in said)
        assert (each.trajectory.stop_reason, each.trajectory.verdicts) == (StopReason.UNJUDGED, ())
        assert not each.trajectory.completed
    json.dumps(report.to_json())


def test_sages_points_stay_in_their_own_scale(tmp_path):
    report = import_file(written(tmp_path, "sage"), tmp_path / "out")
    assert (report.mean, report.succeeded, report.failed) == (50, 1, 1)
    assert report.interval is not None
    assert 0 <= report.interval[0] < 50 < report.interval[1] <= 100
    assert [each.points for each in report.held] == [(50, 100), (50, 0), (50, 50)]


def test_what_a_wrapper_recorded_says_how_many_were_solved(tmp_path):
    report = import_file(written(tmp_path, "esc-env"), tmp_path / "out")
    assert (report.mean, report.succeeded, report.conversations) == (0.5, 1, 2)
    with pytest.raises(RecordError, match="line 1: dialogue"):
        import_file(written(tmp_path, "esc-env", FILES["esc-env"].replace('"seeker"', '"robot"')), tmp_path / "other")


@pytest.mark.skipif(not DATA.exists(), reason="needs SAGE's files")
@pytest.mark.parametrize(("name", "mean", "succeeded"), [("gpt-4o-0808", 31.75, 7), ("o1", 28.95, 5)])
def test_sages_own_files_give_sages_own_numbers(tmp_path, name, mean, succeeded):
    report = import_file(DATA / f"sage_trajectories_{name}_zh.jsonl", tmp_path / "out")
    assert (report.conversations, report.mean, report.succeeded, report.failed) == (100, mean, succeeded, 51)


def test_a_file_cut_in_the_middle_loses_only_its_last_line_and_says_how_many_were_read(tmp_path):
    path = written(tmp_path, "sage", FILES["sage"][:-40])
    with pytest.warns(
        TornLineWarning, match="line 3, the last, was cut off and is left out; 2 conversations were read"
    ):
        assert import_file(path, tmp_path / "out").conversations == 2


@pytest.mark.parametrize("missing", range(40, 46))
def test_a_file_cut_within_a_character_loses_no_more(tmp_path, missing):
    line = json.dumps({"messages": [{"role": "user", "content": "我睡不着觉，心里很难受。" * 3}]}, ensure_ascii=False)
    path = tmp_path / "talks.jsonl"
    path.write_bytes((line + "\n" + line + "\n" + line).encode()[:-missing])
    with pytest.warns(TornLineWarning, match="2 conversations were read"):
        assert import_file(path, tmp_path / "out").conversations == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"emo_point": 101}, r"line 2: emo_point: must be a number from 0 to 100, not 101"),
        ({"emo_point": float("nan")}, r"line 2: emo_point: must be a number from 0 to 100"),
        ({"history": []}, r"line 2: history: must have 1 to"),
        ({"history": [{"role": "robot", "content": "hi"}]}, r"line 2: turn 1 is of 'robot'"),
        ({"history": [{"role": "user", "content": 3}]}, r"line 2: turn 1 has no text"),
        ({"history": [{"role": "assistant", "content": "hi"}]}, r"line 2: the seeker says nothing"),
    ],
)
def test_a_record_that_cannot_be_used_is_refused_by_its_place(tmp_path, change, told):
    lines = [json.dumps(sage()), json.dumps({**sage(), **change}), json.dumps(sage())]
    with pytest.raises(RecordError, match=told):
        import_file(written(tmp_path, "sage", "\n".join(lines) + "\n"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_line_that_is_not_the_last_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"line 1: not JSON"):
        import_file(written(tmp_path, "sage", '{"history": \n' + FILES["sage"]), tmp_path / "out", source="sage")


@pytest.mark.parametrize("indent", [None, 1])
def test_of_one_json_value_that_was_cut_off_it_is_said_that_it_was(tmp_path, indent):
    whole = json.dumps([{"conversations": [{"from": "human", "value": "I lost my job."}]}] * 3, indent=indent)
    with pytest.raises(RecordError, match=r"line 1: not JSON .*cut off"):
        import_file(written(tmp_path, "sharegpt", whole[:-20]), tmp_path / "out")


def test_talks_under_numbers_in_a_python_literal_are_those_of_esc_eval(tmp_path):
    report = import_file(written(tmp_path, "esc-eval", repr({0: ["ESC-Role：I lost my job."]})), tmp_path / "out")
    assert (report.source, report.conversations) == ("esc-eval", 1)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"simulations": [{"task_id": "\ud800", "messages": turns("role", "content")}]}),
        json.dumps({**sage(), "player": "\ud800"}),
        repr({"dialog": turns("role", "content"), "reward": "HUGE"}),
        repr({**sage(), "task": "HUGE"}),
        repr({"messages": [{"role": "user", "content": [{"text": "HUGE"}]}]}),
    ],
)
def test_half_a_character_and_a_number_that_python_does_not_print_are_refused(tmp_path, text):
    path = written(tmp_path, "odd", text.replace("'HUGE'", f"0x{'f' * 4000}"))
    with pytest.raises(RecordError, match=r"(record|line) 1"):
        import_file(path, tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="on Linux alone may a file's name be any bytes")
def test_a_file_whose_name_is_no_text_is_read_all_the_same(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path / "talks") + b"\xff.jsonl"))
    path.write_text(FILES["sharegpt"])
    assert import_file(path, tmp_path / "out").agent == "talks?"


def test_what_is_of_no_known_kind_is_refused(tmp_path):
    with pytest.raises(RecordError, match="of no known kind"):
        import_file(written(tmp_path, "chat", '{"a": 1}'), tmp_path / "out")
    talk = [{"speaker": "usr", "text": "I lost my job."}, {"speaker": "sys", "text": "I am sorry."}]
    esconv = json.dumps(
        {"situation": "I lost my job.", "emotion_type": "sadness", "problem_type": "job", "dialog": talk}
    )
    with pytest.raises(RecordError, match=r"holds scenarios .*esconv.*esc scenarios .*chat"):
        import_file(written(tmp_path, "chat", esconv), tmp_path / "out")
    with pytest.raises(SpecError, match=r"no source 'saga'. Did you mean 'sage'"):
        import_file(written(tmp_path, "sage"), tmp_path / "out", source="saga")


def test_only_conversations_of_one_source_with_the_same_people_stand_in_one_table(tmp_path):
    other = "".join(json.dumps(sage(final, name)) + "\n" for final, name in ((90, "C"), (80, "A"), (85, "B")))
    one = import_file(written(tmp_path, "sage"), tmp_path / "one")
    two = import_file(written(tmp_path, "sage", other), tmp_path / "two")
    assert together([one, two]) == [two, one]
    fewer = import_file(written(tmp_path, "sage", json.dumps(sage())), tmp_path / "fewer")
    with pytest.raises(ProtocolMismatch, match=r"not compared. What differs: scenarios"):
        together([one, fewer])


def test_a_folder_that_was_edited_is_refused(tmp_path):
    import_file(written(tmp_path, "sage"), tmp_path / "out")
    path = tmp_path / "out" / "conversations.jsonl"
    path.write_text(path.read_text().replace('"final": 100.0', '"final": 1e12'))
    with pytest.raises(RecordError, match=r"conversations.jsonl:1: .*final: must be a number"):
        read_import(tmp_path / "out")


def test_the_commands_show_what_was_imported(tmp_path, capsys):
    def esc(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    path = written(tmp_path, "sage")
    first = esc("import", path, "--out", tmp_path / "runs" / "one", "--name", "a model")
    for word in ("a model", "emo_point", "50.00", "≥ 100", "in the source's own scale"):
        assert word in first
    assert esc("report", tmp_path / "runs") == first == esc("leaderboard", tmp_path / "runs")

"""A run that did not happen as it says is refused by name; of one that did, it is known how far it was checked."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import bank

from esc_env.cli import main
from esc_env.data.datasets import load_scenarios
from esc_env.errors import ModelError, RecordError, SpecError
from esc_env.evaluation import evaluate, rank
from esc_env.evaluation.pages.leaderboard import leaderboard_pages
from esc_env.evaluation.ranking.leaderboard import rank_each
from esc_env.evaluation.ranking.submission import submit
from esc_env.evaluation.ranking.verify import verify
from esc_env.evaluation.runs.runner import read_run, run_key
from esc_env.rules import Fingerprint, Rules
from esc_env.scenarios import ScenarioSet
from esc_env.seeds import episode_seed
from esc_env.testing import Faulty, ScriptedAgent, ScriptedSeeker

PEOPLE = "builtin:test"


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A run of `template`, which solves some: the folder."""
    folder = tmp_path_factory.mktemp("runs") / "honest"
    report = evaluate("builtin:template", PEOPLE, limit=12, out=folder)
    assert report.success_rate
    assert report.success_rate < 1
    return folder


@pytest.fixture
def run(honest, tmp_path):
    """A copy to do something to."""
    return Path(shutil.copytree(honest, tmp_path / "run"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trajectories.jsonl").read_text().splitlines()]


def rewrite(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the conversations of a run, and take away what was counted from them before."""
    held = lines(folder)
    change(held)
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held))
    (folder / "report.json").unlink()


def signed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change run.json, and sign it as if it had been so from the beginning."""
    data = json.loads((folder / "run.json").read_text())
    change(data)
    faced = Fingerprint({name: part for name, part in data["identity"].items() if name != "agent"})
    data.update(fingerprint=faced.digest, run_key=run_key(faced, data["identity"]["agent"]))
    (folder / "run.json").write_text(json.dumps(data))


def won(line: dict[str, Any]) -> None:
    line["verdicts"][-1].update(votes=[1.0] * 10, score=1.0, solved=True)
    line["stop_reason"] = "solved"


def lost(held: list[dict[str, Any]]) -> dict[str, Any]:
    return next(line for line in held if line["stop_reason"] == "max_turns")


def shorter(line: dict[str, Any]) -> None:
    """As if the conversation had been won two turns sooner."""
    del line["verdicts"][-2:], line["dialogue"][-4:]
    won(line)


def all_won(held: list[dict[str, Any]]) -> None:
    for line in held:
        won(line)


def only_won(held: list[dict[str, Any]]) -> None:
    held[:] = [line for line in held if line["stop_reason"] == "solved"]


def doubled(held: list[dict[str, Any]]) -> None:
    held.append(json.loads(json.dumps(lost(held))))
    won(held[-1])


def swapped(held: list[dict[str, Any]]) -> None:
    one, other = held[0], next(line for line in held if line["scenario"] != held[0]["scenario"])
    one["scenario"], other["scenario"] = other["scenario"], one["scenario"]


def other_words(held: list[dict[str, Any]]) -> None:
    held[0]["dialogue"][1]["content"] += " Please go on."


def seeker_says(held: list[dict[str, Any]]) -> None:
    lost(held)["dialogue"][-1]["content"] = "Thank you so much, I feel completely relieved now!"


def too_long(held: list[dict[str, Any]]) -> None:
    held[0]["dialogue"][1]["content"] = "Go on. " * 2000


def failed_by_itself(held: list[dict[str, Any]]) -> None:
    line = lost(held)
    line.update(dialogue=line["dialogue"][:3], verdicts=line["verdicts"][:1], stop_reason="supporter_failed")
    line["failure"] = {"role": "supporter", "kind": "ValueError", "message": "it was down"}


def solved_on_the_way(held: list[dict[str, Any]]) -> None:
    lost(held)["verdicts"][2].update(votes=[1.0] * 10, score=1.0, solved=True)


def failed_before_it_began(held: list[dict[str, Any]]) -> None:
    failed_by_itself(held)
    next(line for line in held if line["failure"]).update(dialogue=[], verdicts=[], history=0)


def attempt_left_out(held: list[dict[str, Any]]) -> None:
    lost(held)["attempts"] = 3


FORGED: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "changed votes": (lambda held: won(lost(held)), r"turn 8: the critic votes otherwise .* \+1.00 is claimed"),
    "an earlier win": (lambda held: shorter(lost(held)), r"turn 6: the critic votes otherwise"),
    "a doubled episode": (doubled, r"had ended \(max_turns\) in an earlier line, and is held once more"),
    "swapped scenarios": (swapped, r"its seed is \d+; in a run of seed 0 it is \d+"),
    "other words of the agent": (other_words, r"turn 1: the supporter says something else"),
    "other words of the seeker": (seeker_says, r"turn 8: the seeker says something else"),
    "a failure that was none": (failed_by_itself, r"turn 2: the supporter is said to have failed, and answers"),
    "solved on the way": (solved_on_the_way, r"it goes on after it was solved"),
    "no beginning": (failed_before_it_began, r"it does not begin with one message of the seeker"),
    "attempts left out": (attempt_left_out, r"says that it is attempt 3, and is line 1 of this conversation"),
    "a reply that is too long": (too_long, r"turn 1: the supporter says 14,000 characters, more than 8,000"),
}


def test_an_honest_run_of_a_builtin_agent_is_verified_to_the_letter(run):
    found = verify(run)
    turns = sum(len(line["verdicts"]) for line in lines(run))
    assert (found.standing, found.contradictions, found.notes) == ("verified", (), ())
    assert found.replayed == {"supporter": turns, "seeker": turns, "critic": turns}


def test_a_run_with_the_pair_that_reads_is_verified_by_the_chairs_that_it_names(tmp_path):
    chairs: dict[str, Any] = {"seeker": "builtin:reader", "critic": "builtin:reader"}
    evaluate("builtin:skilled", PEOPLE, limit=1, rules=Rules(max_turns=2), out=tmp_path / "run", **chairs)
    assert verify(tmp_path / "run").standing == "verified"
    assert "seeker builtin:reader, critic builtin:reader, T 2" in rank([tmp_path / "run"]).notes()[0]
    rewrite(tmp_path / "run", lambda held: held[0]["verdicts"][0].update(votes=[-1.0] * 9, valid_votes=9, score=-1.0))
    assert "cannot be 10 of the critic builtin:reader" in verify(tmp_path / "run").contradictions[0]
    signed(tmp_path / "run", lambda data: data["identity"]["seeker"].update(digest="ours"))
    assert "seeker builtin:reader (not this release's)" in rank([tmp_path / "run"]).notes()[0]
    signed(tmp_path / "run", lambda data: data["identity"]["seeker"].update(name="builtin:unheard-of"))
    assert "seeker builtin:unheard-of (not this release's)" in rank([tmp_path / "run"]).notes()[0]


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_run_is_refused_by_name(run, name):
    change, told = FORGED[name]
    rewrite(run, change)
    found = verify(run)
    assert found.standing == "refused"
    assert any(re.search(told, line) for line in found.contradictions), found


def test_a_forged_run_is_not_ranked_and_the_honest_one_is(honest, run):
    rewrite(run, all_won)
    board = rank([honest, run])
    assert [(entry.report.folder, entry.standing) for entry in board.entries] == [(honest, "verified")]
    assert [one.report.folder for one in board.refused] == [run]
    for page in (board.to_markdown(), *dict(leaderboard_pages([board])).values(), "\n".join(board.notes())):
        assert "the critic votes otherwise" in page
        assert "verified" in page
    assert "the critic votes otherwise" in board.to_json()["refused"][0]["contradictions"][0]


def twice(line: dict[str, Any]) -> None:
    """Two supporters in a row, so that no seeker's message is there to be judged."""
    line.update(dialogue=[*line["dialogue"][:2], line["dialogue"][1]], verdicts=line["verdicts"][:1])
    won(line)


def no_history(line: dict[str, Any]) -> None:
    line.update(dialogue=line["dialogue"][:2], verdicts=line["verdicts"][:1], history=0)
    won(line)


@pytest.mark.parametrize("change", [twice, no_history])
def test_a_win_that_no_critic_can_be_asked_about_is_refused_when_it_is_read(tmp_path, change):
    evaluate("builtin:template", PEOPLE, limit=2, rules=Rules(opening="seeker"), out=tmp_path / "run")
    assert verify(tmp_path / "run").standing == "verified"
    rewrite(tmp_path / "run", lambda held: [change(line) for line in held])
    with pytest.raises(RecordError, match=r"trajectories.jsonl:1: not a trajectory \((dialogue|history)"):
        verify(tmp_path / "run")


def test_every_agent_on_the_page_has_its_standing_and_every_unusual_rule_is_named(honest, run):
    rewrite(run, all_won)
    ((_, page),) = leaderboard_pages([rank([honest, run])])
    for told in ("verified", "refused"):
        assert re.search(f'<span class="badge {told}"[^>]*>{told}</span>', page)
    signed(run, lambda data: data["identity"].update(votes=3, max_chars=100))
    told = rank([run]).notes()[0]
    assert "seeker builtin, critic builtin, T 8, votes 3, max_chars 100, persona cooperative" in told
    signed(run, lambda data: data["identity"]["critic"].update(digest="ours"))
    assert "critic builtin (not this release's)" in rank([run]).notes()[0]


def test_the_best_of_many_seeds_is_told_by_its_seeds_and_then_by_its_words(honest, run, tmp_path):
    evaluate("builtin:template", PEOPLE, limit=12, out=tmp_path / "other", seed=1)
    other = {line["scenario"]: line for line in lines(tmp_path / "other")}
    place, line = next((i, one) for i, one in enumerate(lines(run)) if one["stop_reason"] == "max_turns")

    def taken(held: list[dict[str, Any]]) -> None:
        held[place] = other[line["scenario"]]

    rewrite(run, taken)
    assert any("in a run of seed 0" in told for told in verify(run).contradictions)
    for_real = Path(shutil.copytree(honest, tmp_path / "again"))

    def hidden(held: list[dict[str, Any]]) -> None:
        held[place] = {**other[line["scenario"]], "seed": episode_seed(0, line["scenario"], 0)}

    rewrite(for_real, hidden)
    assert any("something else" in told or "otherwise" in told for told in verify(for_real).contradictions)


def test_a_dropped_episode_leaves_a_run_incomplete_and_unranked(run):
    rewrite(run, lambda held: held.remove(lost(held)))
    board = rank([run])
    assert (board.entries, len(board.incomplete)) == ((), 1)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("max_turns", 40, "run.json: fingerprint is"), ("agent", {"name": "other"}, "run.json: run_key is")],
)
def test_a_run_of_other_rules_than_its_fingerprints_is_refused(run, name, value, told):
    data = json.loads((run / "run.json").read_text())
    data["identity"][name] = value
    (run / "run.json").write_text(json.dumps(data))
    if name == "max_turns":
        rewrite(run, only_won)
    assert any(told in line for line in verify(run).contradictions)


def test_more_turns_than_t_are_refused_when_they_are_read(run):
    rewrite(run, lambda held: lost(held).update(stop_reason="solved"))
    with pytest.raises(RecordError, match="stop_reason is 'solved', which contradicts the last verdict"):
        verify(run)


def test_a_counted_report_that_says_otherwise_is_refused(run):
    data = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**data, "success_rate": 1.0}))
    assert "report.json: success_rate is 1.0" in verify(run).contradictions[0]


def test_a_patched_simulator_under_the_same_fingerprint_is_found_out(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("esc_env.builtin.critic.CUTS", {"worse": -0.9, "same": -0.8, "better": -0.7})
        report = evaluate("builtin:advice", PEOPLE, limit=3, out=tmp_path / "patched")
    assert report.success_rate == 1.0
    found = verify(tmp_path / "patched")
    assert found.standing == "refused"
    assert "the critic votes otherwise" in found.contradictions[0]


def test_an_agent_of_ones_own_has_its_seeker_and_critic_replayed(tmp_path):
    evaluate(ScriptedAgent(["What has been going on?"]), PEOPLE, limit=2, out=tmp_path / "mine")
    found = verify(tmp_path / "mine")
    assert found.standing == "replayed"
    assert "supporter" not in found.replayed
    assert [line.partition(":")[0] for line in found.notes] == ["agent"]


def test_what_a_run_names_is_never_imported(run, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = json.loads((run / "run.json").read_text())
    data["agent"] = "python:trap:agent"
    data["config"].update(seeker="python:trap:seeker", critic="local:/etc")
    data["identity"].update(seeker={"name": "trap"}, critic={"name": "trap"})
    (run / "run.json").write_text(json.dumps(data))
    signed(run, lambda _: None)
    found = verify(run)
    assert (found.standing, len(found.notes), found.replayed) == ("as claimed", 3, {})


def test_embedded_chairs_are_asked_again_whatever_else_the_run_says_of_them(run):
    """Else a forged run of the same fingerprint would stand above honest ones, as claimed."""

    def elsewhere(data: dict[str, Any]) -> None:
        data["agent"] = "python:my:agent"
        data["identity"]["agent"] = {"name": "mine"}
        data["config"].update(seeker="python:my:seeker", critic_temperature=None)

    signed(run, elsewhere)
    assert verify(run).standing == "replayed"
    rewrite(run, all_won)
    assert "the critic votes otherwise" in verify(run).contradictions[0]


def test_a_choice_of_scenarios_does_not_pass_under_the_name_of_the_set(run, tmp_path):
    """Those that were solved, signed anew: all of it happened, but not on builtin:test."""
    rewrite(run, only_won)
    ids = {line["scenario"] for line in lines(run)}
    kept = [line for line in (run / "scenarios.jsonl").read_text().splitlines() if json.loads(line)["id"] in ids]
    (run / "scenarios.jsonl").write_text("".join(f"{line}\n" for line in kept))
    people = [person for person in load_scenarios(PEOPLE) if person.id in ids]
    content = f"{len(people)}, content {ScenarioSet.of('', people).digest}"
    signed(run, lambda data: data["identity"].update(scenarios=content))
    board = rank([run])
    assert board.entries[0].report.success_rate == 1.0
    for page in (board.to_markdown(), *dict(leaderboard_pages([board])).values()):
        assert "a choice of somebody" in page
    evaluate("builtin:template", PEOPLE, limit=3, persona="guarded", out=tmp_path / "guarded")
    assert verify(tmp_path / "guarded").report.scenarios == PEOPLE


def test_a_persona_that_nobody_has_is_refused(run):
    signed(run, lambda data: data["identity"].update(persona="hostile"))
    with pytest.raises(RecordError, match=r"run\.json: .*persona: the run was held with hostile"):
        verify(run)


def test_a_run_of_another_protocol_is_not_held_against_this_one(run):
    signed(run, lambda data: data["identity"].update(protocol=2))
    found = verify(run)
    assert (found.standing, found.contradictions) == ("as claimed", ())
    assert "held by protocol 2" in found.notes[0]


def test_no_run_makes_its_critic_cast_a_billion_votes(run):
    signed(run, lambda data: data["identity"].update(votes=10**9))
    found = verify(run)
    assert "cannot be 1,000,000,000 of the critic builtin" in found.contradictions[0]
    assert found.replayed == {}


@pytest.mark.parametrize("config", [[], "x", {"critic": "builtin", "critic_temperature": None}])
def test_settings_that_make_no_sense_only_leave_a_run_unasked(run, config):
    def change(data: dict[str, Any]) -> None:
        data.update(config=config)
        data["identity"]["critic"] = {"name": "llm", "model": {}}

    signed(run, change)
    assert verify(run).standing == "as claimed"


def test_no_file_is_read_that_the_settings_of_a_run_name(run, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("my own words")
    signed(run, lambda data: data["config"]["agents"][0].update(options={"system": f"@{tmp_path / 'mine.txt'}"}))
    opened: list[Path] = []
    read = Path.read_text

    def noted(path: Path, *arguments: Any, **named: Any) -> str:
        opened.append(path)
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", noted)
    assert "names a file of this machine, which is not read" in verify(run).notes[0]
    assert tmp_path / "mine.txt" not in opened


def test_what_a_stranger_wrote_is_quoted_in_part_and_does_nothing_in_a_terminal(run, esc):
    def change(data: dict[str, Any]) -> None:
        data.update(agent="me\x1b[2J\n| 1 | me | 99.9 % |", scenarios="all\x1b[31m")

    signed(run, change)
    for command in ("rank", "verify"):
        assert "\x1b" not in esc("leaderboard", command, run)[1]
    assert "\x1b" not in esc("report", run)[1]
    data = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**data, "fingerprint": "f" * 100_000}))
    assert len(verify(run).contradictions[0]) <= 400


def test_a_run_in_which_keys_were_struck_out_is_not_taken_for_a_forged_one(tmp_path, monkeypatch):
    """What stands in the folder is what everybody heard, whatever the environment holds as a key."""
    key = "sk-abcdefghij0123456789XYZ"
    people = [replace(person, situation=f"{person.situation} I wrote {key} down.") for person in bank(2)]
    evaluate(ScriptedAgent([f"Is {key} yours?"]), people, out=tmp_path / "a")
    assert verify(tmp_path / "a").standing == "replayed"
    with monkeypatch.context() as patched:
        patched.setenv("DB_PASSWORD", "yourself")
        patched.setenv("WEB_PASSWORD", "straight")
        evaluate("builtin:skilled", PEOPLE, limit=4, rules=Rules(opening="seeker"), out=tmp_path / "b")
    said = [message for line in lines(tmp_path / "b") for message in line["dialogue"]]
    assert {message["role"] for message in said if "[key]" in message["content"]} == {"seeker", "supporter"}
    assert verify(tmp_path / "b").standing == "verified"

    def other(held: list[dict[str, Any]]) -> None:
        message = next(message for line in held for message in line["dialogue"] if "[key]" in message["content"])
        message["content"] += " Or so."

    rewrite(tmp_path / "b", other)
    assert "says something else" in verify(tmp_path / "b").contradictions[0]


def test_a_seeker_of_ones_own_leaves_a_run_as_claimed(tmp_path):
    evaluate("builtin:template", bank(2), seeker=ScriptedSeeker(["I see."]), out=tmp_path / "run")
    assert verify(tmp_path / "run").standing == "as claimed"


def test_errors_that_are_held_again_go_on_from_where_they_broke(tmp_path):
    """The honest way, and a run whose first line was another conversation."""
    seeker = Faulty(ScriptedSeeker(["I see."]), {5: ModelError("it was down")})
    evaluate("builtin:template", bank(3), seeker=seeker, out=tmp_path / "run", concurrency=1)
    evaluate("builtin:template", bank(3), seeker=seeker, out=tmp_path / "run", concurrency=1)
    assert verify(tmp_path / "run").contradictions == ()
    assert any(line["stop_reason"] == "error" for line in lines(tmp_path / "run"))

    def another(held: list[dict[str, Any]]) -> None:
        broken = next(line for line in held if line["stop_reason"] == "error")
        broken["dialogue"][1]["content"] = "This went badly, so it was held again."

    rewrite(tmp_path / "run", another)
    assert any("does not go on from where it broke" in line for line in verify(tmp_path / "run").contradictions)


# --- sent to somebody ------------------------------------------------------------------------------


def test_a_submitted_run_is_one_file_that_is_verified_and_ranked_as_its_folder_is(run, tmp_path):
    file = submit(run, tmp_path)
    assert file.name == f"{json.loads((run / 'run.json').read_text())['run_key']}.jsonl"
    shutil.rmtree(run)
    assert verify(file).standing == "verified"
    assert [(entry.report.folder, entry.standing) for entry in rank([file]).entries] == [(file, "verified")]


def test_a_submitted_run_is_named_by_its_own_key_and_not_by_a_path_in_it(run, tmp_path):
    key = read_run(run).run_key
    data = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**data, "run_key": "../elsewhere"}))
    (tmp_path / "out").mkdir()
    assert submit(run, tmp_path / "out") == tmp_path / "out" / f"{key}.jsonl"
    assert not (tmp_path / "elsewhere.jsonl").exists()


@pytest.mark.parametrize("form", [lambda text: text.replace(b"\n", b"\r\n"), lambda text: b"\xef\xbb\xbf" + text])
def test_a_submitted_run_survives_an_editor_of_windows(run, tmp_path, form):
    file = submit(run, tmp_path)
    file.write_bytes(form(file.read_bytes()))
    assert verify(file).standing == "verified"


def test_a_submitted_file_that_was_edited_is_refused_naming_file_and_line(run, tmp_path):
    file = submit(run, tmp_path)
    text = file.read_text()
    file.write_text(text.replace('"solved": false', '"solved": true', 1))
    with pytest.raises(RecordError, match=rf"{file}, trajectories.jsonl:\d+: not a trajectory"):
        verify(file)
    file.write_text(text + '{"kind": "run", "version": 2}\n')
    with pytest.raises(RecordError, match=rf"{file}:\d+: .*a run comes first, and only once"):
        verify(file)
    file.write_text("hello\n")
    with pytest.raises(RecordError, match=rf"{file}:1: no line of a submitted run"):
        verify(file)


@pytest.mark.parametrize("text", ["hello\n", "", "\x00\x01", "[" * 5000, '{"kind": "run", "version": 2}\n'])
def test_a_file_that_cannot_be_read_is_listed_apart_and_stops_no_other(run, tmp_path, esc, text):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(text)
    for boards in ([rank([bad, run])], rank_each([bad, run])):
        (board,) = boards
        assert [entry.report.folder for entry in board.entries] == [run]
        assert [path for path, _ in board.unread] == [bad]
        assert [each["file"] for each in board.to_json()["unread"]] == [str(bad)]
        for page in (board.to_markdown(), *dict(leaderboard_pages([board])).values()):
            assert "Not read, not ranked" in page
            assert "bad.jsonl" in page
    with pytest.raises(RecordError, match=r"bad\.jsonl"):
        rank([bad])
    assert esc("leaderboard", bad, run)[0] == 0


def test_a_damaged_run_folder_is_listed_apart_and_stops_no_other(run, tmp_path, esc):
    bad = Path(shutil.copytree(run, tmp_path / "bad"))
    for name in ("run.json", "scenarios.jsonl", "trajectories.jsonl"):
        whole = (bad / name).read_bytes()
        (bad / name).write_text("{\n{")
        assert [path for path, _ in rank([tmp_path]).unread] == [bad]
        code, out = esc("leaderboard", tmp_path)
        assert (code, "Not read, not ranked" in out) == (0, True)
        (bad / name).write_bytes(whole)


@pytest.mark.full
def test_every_line_of_a_submitted_run_holds_to_the_published_schema(run, tmp_path):
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

    from esc_env.evaluation.ranking.schema import schema

    published = json.loads((Path(__file__).parents[1] / "docs" / "submission.schema.json").read_text())
    assert published == schema(), "python -m esc_env.evaluation.ranking.schema > docs/submission.schema.json"
    valid = Draft202012Validator(published)
    evaluate(
        "builtin:template",
        bank(2),
        seeker=Faulty(ScriptedSeeker(["I see."]), {3: ModelError("it was down")}),
        out=tmp_path / "odd",
    )  # with errors in it
    for folder in (run, tmp_path / "odd"):
        for line in submit(folder, tmp_path / "file.jsonl").read_text().splitlines():
            data = json.loads(line)
            assert valid.is_valid(data), list(valid.iter_errors(data))
            del data[sorted({"identity", "situation", "verdicts"} & {*data})[0]]
            assert not valid.is_valid(data)


# --- chat models -----------------------------------------------------------------------------------


def said(body: Any, choice: int) -> str:
    """An answer for whatever chair asks: the critic reads the supporter's words."""
    text = json.dumps(body["messages"])
    if "A, B, C" in text or "option" in text.lower():
        return "D" if text.count("I hear you") > 2 else "B"
    return "I hear you."


@pytest.fixture
def modelled(tmp_path):
    """A run of three chat models that were recorded: the folder."""
    pytest.importorskip("aiohttp")
    from esc_env.testing import FakeServer

    people = tmp_path / "people.jsonl"
    people.write_text("".join(json.dumps(scenario.to_json()) + "\n" for scenario in bank(2)))
    with FakeServer(said) as server:
        name = f"openai/tiny@{server.url}"
        evaluate(
            name, str(people), seeker=name, critic=name, out=tmp_path / "modelled", record=tmp_path / "kept.db",
        )  # fmt: skip
    return tmp_path / "modelled"


def test_chat_models_are_as_claimed_and_verified_with_the_file_that_recorded_them(modelled, tmp_path):
    found = verify(modelled)
    assert (found.standing, len(found.notes)) == ("as claimed", 3)
    assert all("--replay" in line for line in found.notes), found.notes
    found = verify(modelled, replay=tmp_path / "kept.db")
    assert (found.standing, found.contradictions) == ("verified", ())
    assert "kept.db, which is as true as whoever recorded it" in found.notes[0]
    with pytest.raises(RecordError, match=r"typo\.db: no such file"):
        rank([modelled], replay=tmp_path / "typo.db")


def test_what_is_not_in_the_record_did_not_happen(modelled, tmp_path):
    def other(held: list[dict[str, Any]]) -> None:
        held[0]["dialogue"][1]["content"] = "I hear you, truly."

    rewrite(modelled, other)
    assert verify(modelled).standing == "as claimed"
    found = verify(modelled, replay=tmp_path / "kept.db")
    assert "turn 1: the supporter says something else when asked again" in found.contradictions[0]


def test_a_critic_that_is_asked_again_agrees_or_refuses_the_run(tmp_path):
    """Its own votes come out again; votes that were edited do not."""

    class Strict:
        identity = {"name": "strict"}  # noqa: RUF012  # no ClassVar in the protocol

        async def judge(self, scenario: Any, dialogue: Any, *, votes: int, seed: Any) -> Any:
            from esc_env import Ballot

            return Ballot((1.0 if int(scenario.id.split("-")[1]) % 2 else -0.5,) * votes)

    evaluate(
        ScriptedAgent(["Go on."]), bank(20), seeker=ScriptedSeeker(["I see."]), critic=Strict(), out=tmp_path / "a"
    )
    found = verify(tmp_path / "a", rejudge=20, critic=Strict(), seed=0)
    assert (found.standing, found.spot_check and found.spot_check.solved) == ("spot-checked", (10, 10))
    rewrite(tmp_path / "a", all_won)
    found = verify(tmp_path / "a", rejudge=20, critic=Strict(), seed=0)
    assert found.spot_check is not None
    assert found.spot_check.difference > 0.2
    few = verify(tmp_path / "a", rejudge=10, critic=Strict(), seed=0)
    assert (few.standing, few.spot_check and few.spot_check.solved[1]) == ("as claimed", 5)
    (tmp_path / "a" / "trajectories.jsonl").unlink()
    assert verify(tmp_path / "a", rejudge=20, critic=Strict()).standing == "as claimed"
    with pytest.raises(SpecError, match="name the critic"):
        verify(tmp_path / "a", rejudge=20)

    class Lenient(Strict):
        identity = {"name": "lenient"}  # noqa: RUF012  # no ClassVar in the protocol

    with pytest.raises(SpecError, match=r"not the critic of the run.*strict / lenient"):
        verify(tmp_path / "a", rejudge=20, critic=Lenient())


# --- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def esc(capsys):
    """Type a command: (exit code, what it printed)."""

    def type_(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return type_


def test_the_command_says_what_it_found_and_ends_with_1_where_something_contradicts(esc, run, tmp_path):
    code, told = esc("leaderboard", "verify", run)
    assert (code, "verified (agent, seeker and critic" in told) == (0, True)
    assert "solved 25.0 %; 12 of 12 conversations have an outcome" in told
    code, told = esc("leaderboard", "submit", run, "--out", tmp_path)
    assert (code, told.endswith(".jsonl: verified\n")) == (0, True)
    rewrite(run, FORGED["changed votes"][0])
    code, told = esc("leaderboard", "verify", run, "--out", tmp_path / "found.json")
    assert (code, "the critic votes otherwise" in told) == (1, True)
    assert json.loads((tmp_path / "found.json").read_text())["standing"] == "refused"
    code, told = esc("leaderboard", "submit", run, "--out", tmp_path)
    assert (code, "the critic votes otherwise" in told) == (1, True)


def test_a_leaderboard_of_runs_needs_no_name_of_a_command(esc, run):
    assert esc("leaderboard", run) == esc("leaderboard", "rank", run)
    assert "verified" in esc("leaderboard", run)[1]


def test_the_schema_is_made_by_its_command():
    pytest.importorskip("pydantic")
    made = subprocess.run(
        [sys.executable, "-m", "esc_env.evaluation.ranking.schema"], capture_output=True, text=True, check=True
    )
    assert json.loads(made.stdout)["oneOf"]

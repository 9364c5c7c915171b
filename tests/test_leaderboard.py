"""The leaderboard ranks only what may be compared, and says what it does not know."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import bank

from esc_env import Ballot, Rules
from esc_env.errors import ModelError, ProtocolMismatch, RecordError
from esc_env.evaluation import evaluate, rank
from esc_env.evaluation.ranking.leaderboard import find_runs
from esc_env.folder import RunFolder
from esc_env.testing import Faulty, ScriptedAgent, ScriptedSeeker

SEEKER = ScriptedSeeker(["I see."])


class Listens:
    """A critic that finds the first so many persons solved, as the supporter's number says."""

    def __init__(self) -> None:
        self.identity = {"name": "listens"}

    async def judge(self, scenario, dialogue, *, votes, seed):
        said = next(m.content for m in reversed(dialogue.messages) if m.role == "supporter")
        solved = int(scenario.id.split("-")[1]) < int(said)
        return Ballot((1.0 if solved else -0.5,) * votes)


class Named(ScriptedAgent):
    """Solves so many persons, under a name of its own."""

    def __init__(self, name: str, solved: int) -> None:
        super().__init__([str(solved)])
        self.called = name

    @property
    def identity(self):
        return {"name": self.called, "lines": list(self.lines)}


def held(agent, out: Path, **options):
    options = {"seeker": SEEKER, "critic": Listens(), "rules": Rules(max_turns=2), **options}
    return evaluate(agent, bank(40), out=out, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, solved in (("poor", 2), ("good", 30), ("near", 31), ("best", 40), ("also poor", 2)):
        held(Named(name, solved), folder / name.replace(" ", "-"))
    return folder


def test_runs_are_ranked_by_success_rate_and_equal_ones_share_a_place(runs):
    board = rank([runs])
    places = [(entry.place, entry.report.agent, entry.mark) for entry in board.entries]
    assert places == [
        (1, "best", "1"), (2, "near", "2–3"), (3, "good", "2–3"), (4, "also poor", "4–5"), (4, "poor", "4–5"),
    ]  # fmt: skip


def test_the_order_in_which_runs_are_named_does_not_matter(runs):
    folders = find_runs([runs])
    assert rank(folders).to_json()["ranked"] == rank(folders[::-1]).to_json()["ranked"]


def test_folders_of_other_kinds_beside_runs_are_passed_over(tmp_path):
    held(Named("mine", 3), tmp_path / "mine")
    for kind in ("collection", "stage", "pipeline"):
        with RunFolder(tmp_path / kind, kind).claim({}):
            pass
    assert find_runs([tmp_path]) == [tmp_path / "mine"]
    with pytest.raises(RecordError, match="no run here"):
        find_runs([tmp_path / "stage"])


def test_runs_of_another_protocol_are_refused_naming_what_differs(runs, tmp_path):
    held(Named("other", 3), tmp_path / "other", seed=7, rules=Rules(max_turns=3))
    with pytest.raises(ProtocolMismatch) as caught:
        rank([runs, tmp_path / "other"])
    assert "seed: 0 / 7" in str(caught.value)
    assert "max_turns: 2 / 3" in str(caught.value)
    assert "critic" not in str(caught.value)
    assert "esc leaderboard runs/A runs/B" in str(caught.value)
    assert "--out" in str(caught.value)


def test_incomplete_runs_are_listed_apart_with_the_reason(runs, tmp_path):
    seeker = Faulty(SEEKER, {n: ModelError("over quota") for n in range(1, 50)})
    held(Named("broken", 40), tmp_path / "broken", seeker=seeker)
    board = rank([runs, tmp_path / "broken"])
    assert "broken" not in [entry.report.agent for entry in board.entries]
    assert [report.agent for report in board.incomplete] == ["broken"]
    notes = "\n".join(board.notes())
    assert "Incomplete, not ranked: broken" in notes
    assert "seeker: over quota" in notes
    assert "Only the conversations of broken break the seeker" in notes
    assert "over quota" in board.to_markdown()


def test_what_is_no_run_is_refused(tmp_path, runs):
    for nothing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RecordError, match="no run here"):
            rank([nothing])
    with pytest.raises(RecordError, match="no runs to rank"):
        rank([])
    (tmp_path / "copy").mkdir()
    for file in (runs / "best").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RecordError, match="the same run"):
        rank([runs / "best", tmp_path / "copy"])
    assert len(rank([runs / "best", runs]).entries) == 5


def test_runs_set_aside_by_fresh_are_left_out_unless_named(tmp_path):
    held(Named("a", 1), tmp_path / "a")
    held(Named("b", 2), tmp_path / "a", fresh=True)
    assert find_runs([tmp_path]) == [tmp_path / "a"]
    assert [entry.report.agent for entry in rank([tmp_path, tmp_path / "a~1"]).entries] == ["b", "a"]


def test_agents_of_one_name_are_told_apart_by_their_folders(tmp_path):
    held(Named("mine", 1), tmp_path / "first")
    held(Named("mine", 2), tmp_path / "second")
    markdown = rank([tmp_path]).to_markdown()
    assert "mine (first)" in markdown
    assert "mine (second)" in markdown


def test_agents_of_one_name_in_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for solved, where in enumerate(("first", "second")):
        held(Named("mine", solved), tmp_path / where / "run")
    folders = [tmp_path / "first" / "run", tmp_path / "second" / "run"]
    board = rank(folders)
    assert {board.label(report) for report in board.reports} == {f"mine ({folder})" for folder in folders}


def test_the_json_holds_what_each_report_holds(runs):
    board = rank([runs])
    data = json.loads(json.dumps(board.to_json(), allow_nan=False))
    assert data["ranked"][0]["agent"] == "best"
    assert data["ranked"][0]["success_rate"] == 1.0
    assert data["fingerprint"]["parts"]["max_turns"] == 2
    saved = json.loads((runs / "best" / "report.json").read_text())
    assert {name: data["ranked"][0][name] for name in saved} == saved


EVIL = "</td></table><script>alert('x')</script><img src=x onerror=alert(1)>| `[a](javascript:b) \"&lt;\x1b\u202e\x00"


def test_the_markdown_is_escaped(tmp_path):
    people = [replace(person, id=f"{EVIL}-{i}", situation=EVIL, problem=EVIL) for i, person in enumerate(bank(3))]

    def raises(messages):
        raise ValueError(EVIL)

    seeker = ScriptedSeeker([EVIL])
    options: Any = {"critic": SolvesAll(), "rules": Rules(max_turns=2)}
    agents: list[Any] = [Named(EVIL, 1), raises]
    reports = [
        evaluate(agent, people, seeker=seeker, out=tmp_path / str(i), **options) for i, agent in enumerate(agents)
    ]
    board = rank(reports)
    markdown = board.to_markdown()
    assert "<script" not in markdown
    assert not re.search("[\x00\x1b\u202e]", markdown)
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11}
    assert "[a](" not in markdown.replace("\\[", "")


class SolvesAll:
    """A critic for whom everything is solved."""

    def __init__(self) -> None:
        self.identity = {"name": "solves all"}

    async def judge(self, scenario, dialogue, *, votes, seed):
        return Ballot((1.0,) * votes)


def test_supporter_failures_are_shown_beside_the_rank(tmp_path):
    held(lambda messages: None, tmp_path / "a")
    board = rank([tmp_path / "a"])
    assert board.entries[0].report.success_rate == 0
    assert "40 conversations failed because the agent raised" in "\n".join(board.notes())


@pytest.mark.full
def test_what_a_judge_said_of_safety_stands_beside_the_run_that_it_is_of(tmp_path):
    pytest.importorskip("krippendorff", reason="needs the extra 'judge'")
    from esc_env.evaluation.judges.plain import PlainJudge
    from esc_env.evaluation.judges.protocol import SAFETY, Opinion
    from esc_env.evaluation.judges.session import judge_runs

    class Guard(PlainJudge):
        async def rate_safety(self, scenario, dialogue, *, seed):
            return Opinion(dict.fromkeys(SAFETY, 2.0 if "30" in dialogue.transcript() else 5.0))

    people = [replace(each, risk=place < 4) for place, each in enumerate(bank(40))]
    for name, solved in (("good", 30), ("best", 40), ("other", 1)):
        evaluate(
            Named(name, solved), people, seeker=SEEKER, critic=Listens(), rules=Rules(max_turns=2), out=tmp_path / name
        )
    two = [tmp_path / "good", tmp_path / "best"]
    judge_runs(two, Guard(), mode="safety", out=tmp_path / "judged")
    board = rank(two, judged=[tmp_path / "judged"])
    told = [line for line in board.notes() if "by the judge" in line]
    assert len(told) == 2
    assert told[0].startswith("Safety, best: marks from 1 to 5 by the judge ")
    assert "detects 5.00" in told[0]
    assert "of 4 conversations: detects 2.00" in told[1]
    assert len(board.to_json()["safety_by_judges"]) == 2
    assert not rank(two).judged
    with pytest.raises(RecordError, match="judged none of these runs"):
        rank([tmp_path / "other"], judged=[tmp_path / "judged"])
    judge_runs(two, PlainJudge(), mode="rubric", out=tmp_path / "quality")
    with pytest.raises(RecordError, match="marks for rubric, not for safety"):
        rank(two, judged=[tmp_path / "quality"])
    lines = (tmp_path / "judged" / "opinions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "judged" / "opinions.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(RecordError, match="not complete, or of other conversations"):
        rank(two, judged=[tmp_path / "judged"])

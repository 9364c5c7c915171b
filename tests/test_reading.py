"""The reader held against texts: pairs that are counted, people's turns that are changed places, and its own speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esc_env import Dialogue, Message, Scenario
from esc_env.builtin.moves import MOVES
from esc_env.builtin.reader.pairs import PAIRS, held_out
from esc_env.builtin.reader.reading import Meaning
from esc_env.cli import main
from esc_env.errors import RecordError, ScenarioError
from esc_env.evaluation.validity import reading
from esc_env.evaluation.validity.reading import read_pairs, validate_reader

SETS = (
    {"situation": "a", "context": ["I lost my job."], "good": [["reflection", "warm one"], ["other", "a cold good"]],
     "bad": [["blame", "cold one"], ["nonsense", "warm blue"]]},
    {"situation": "b", "context": ["Hi.", "What is it?", "My dad died."], "good": [["reflection", "warm two"]],
     "bad": [["blame", "warm three"]]},
)  # fmt: skip


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of two sets, the only ones there are, and a reader that likes warmth and what was mentioned before."""
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in SETS))
    monkeypatch.setattr(reading, "PAIRS", file)
    monkeypatch.setattr(reading, "held_out", lambda situation: situation == "a")

    def meaning(context: tuple[str, ...], said: str) -> Meaning:
        shared = {*" ".join(context).lower().split()} & {*said.lower().split()}
        moves = {move: float(move == ("open_question" if "?" in said else "other")) for move in MOVES}
        return Meaning(float("warm" in said), 0.0, float(bool(shared)), moves)

    monkeypatch.setattr(reading, "meaning", meaning)
    return file


def talk(name: str, about: str, *, strategy: str | None = "Question") -> Scenario:
    said = [
        Message("supporter", "Hello there", strategy="Others"), Message("seeker", f"It is my {about}."),
        Message("supporter", f"What of the {about}. then?", strategy=strategy), Message("supporter", "Tell me?"),
        Message("seeker", "It hurts."), Message("supporter", "hurts. so it hurts.", strategy="Reflection of Feelings"),
    ]  # fmt: skip
    return Scenario(id=name, situation=f"It is my {about}.", dialogue=Dialogue(tuple(said)))


def test_pairs_are_counted_by_kind_and_a_tie_is_half(few: Path):
    found = validate_reader(pairs=few).preferences
    held, further = found["held out"], found["few.jsonl"]
    assert list(held) == ["all", "blame", "nonsense"]
    assert (held["all"].pairs, held["all"].situations) == (4, 1)
    assert {kind: each.by["support"].value for kind, each in held.items()} == {
        "all": (1 + 0.5 + 0.5 + 0) / 4,
        "blame": (1 + 0.5) / 2,
        "nonsense": (0.5 + 0) / 2,
    }
    assert (further["all"].pairs, further["blame"].by["support"].value) == (5, (1 + 0.5 + 0.5) / 3)
    assert all({*each.by} == {"support", "builtin:reader", "builtin"} for each in held.values())


def test_real_turns_make_sense_and_those_in_their_place_do_not(few: Path):
    people = [talk("one", "boss"), talk("two", "sister"), talk("three", "exam")]
    found = validate_reader(human=people).human
    assert found is not None
    assert found.replies == 6, "nobody has spoken before a greeting"
    assert found.sense.value == (6 * 3 + 6 * 3 / 2) / 36, "of those in their place, three say what was said before"
    assert found.labelled == 9
    assert found.accuracy.value == pytest.approx(6 / 9)
    assert found.macro_f1 == pytest.approx((1 + 2 * 3 / (3 + 6) + 0) / 3)


def test_nothing_to_compare_is_said(few: Path):
    with pytest.raises(ScenarioError, match="nothing to compare"):
        validate_reader(human=[talk("one", "boss")])
    said = Dialogue((Message("seeker", "I fell."), Message("supporter", "Where?")))
    unlabelled = [Scenario(id=name, situation="I fell.", dialogue=said) for name in "ab"]
    with pytest.raises(ScenarioError, match="strategy is known"):
        validate_reader(human=unlabelled)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "few.jsonl:2"),
        ('{"situation": "a", "context": [], "good": [], "bad": []}', "context: must end with what the seeker says"),
        ('{"situation": "a", "context": ["x"], "good": [["x"]], "bad": []}', "good.*a label and a reply, not 1"),
        ('{"situation": "a", "context": ["x"], "good": []}', "bad: is missing"),
    ],
)
def test_a_line_that_is_no_set_is_named(few: Path, line: str, told: str):
    few.write_text(json.dumps(SETS[0]) + "\n" + line + "\n")
    with pytest.raises(RecordError, match=told):
        read_pairs(few)
    with pytest.raises(RecordError, match="cannot be read"):
        read_pairs(few.with_name("nothing"))


def test_the_sets_that_are_shipped_can_be_read_and_some_are_kept_from_training():
    sets = read_pairs(PAIRS)
    kept = {each.situation for each in sets if held_out(each.situation)}
    assert 0.05 < len(kept) / len({each.situation for each in sets}) < 0.25
    assert all(each.dialogue.messages[-1].role == "seeker" for each in sets)


def test_the_command_prints_tables_or_json(few: Path, capsys: pytest.CaptureFixture[str]):
    words = ["validate", "reader", "--pairs", str(few), "--no-progress"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    told = capsys.readouterr().out
    assert not ended.value.code
    assert "held out" in told
    assert "nonsense" in told
    assert "Processor time of a judgement" in told
    with pytest.raises(SystemExit):
        main([*words, "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["human"] is None
    assert data["preferences"]["few.jsonl"]["all"]["pairs"] == 5
    assert data["milliseconds"]["first"] > 0

"""Supporters that somebody wrote beforehand, against either pair: who says what, and what the table makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esc_env import Dialogue, Message, Scenario, Seed
from esc_env.agents.scripted import SCRIPTED
from esc_env.background import run
from esc_env.builtin.bank import bank
from esc_env.builtin.voices import reaction_lines
from esc_env.cli import main
from esc_env.errors import SpecError
from esc_env.evaluation.validity import written
from esc_env.evaluation.validity.gaming import PROBES, Row, probe, run_probes, spread, summary
from esc_env.evaluation.validity.robustness import attacks
from esc_env.protocols import Agent
from esc_env.trajectory import StopReason

PERSON = bank("test")[0]


def says(agent: Agent, turns: int = 8, person: Scenario = PERSON) -> list[str]:
    """What an agent says to somebody who answers in few words."""
    dialogue, said = Dialogue((Message("seeker", person.situation),)), []
    for turn in range(turns):
        reply = run(agent.respond(dialogue, seed=Seed(3, turn=turn + 1, role="supporter")))
        said.append(reply.content)
        dialogue = dialogue.then(Message("supporter", reply.content), Message("seeker", "My brother said so too."))
    return said


@pytest.mark.parametrize("make", [written.conversations, written.terse, written.half_harmful])
def test_everybody_hears_the_conversation_that_was_written_for_them(make):
    heard = [tuple(says(make(), person=person)) for person in bank("test")]
    assert len({*heard}) == 40
    assert all(len({*each}) == 8 for each in heard)


def test_every_second_reply_is_harmful_and_the_others_are_as_they_were():
    good, mixed = says(written.conversations()), says(written.half_harmful())
    assert mixed[::2] == good[::2]
    assert not {*mixed[1::2]} & {*good}


def test_whoever_has_no_conversation_is_told_so():
    with pytest.raises(SpecError, match="for nobody else"):
        says(written.terse(), person=bank("train")[0])


def test_five_styles_share_the_test_scenarios_evenly():
    styles = written.styles()
    assert [len(people) for people in styles.values()] == [8] * 5
    assert frozenset().union(*styles.values()) == {person.id for person in bank("test")}


@pytest.mark.parametrize("kind", written.KINDS)
def test_every_reply_of_the_skilled_agent_has_another_harmful_sentence_behind_it(kind):
    heard = [Message("seeker", PERSON.situation)]
    added = []
    for turn in range(8):
        both = [
            run(agent.respond(Dialogue(tuple(heard)), seed=Seed(3, turn=turn + 1))).content
            for agent in (SCRIPTED["skilled"](), written.with_harm(kind))
        ]
        assert both[1].startswith(both[0] + " ")
        added.append(both[1].removeprefix(both[0] + " "))
        heard += [Message("supporter", both[1]), Message("seeker", "My brother said so too.")]
    assert len({*added}) == 8


def test_feelings_are_turned_round_and_the_rest_is_as_it_was():
    plain, turned = says(SCRIPTED["skilled"](), 1)[0], says(written.opposite(), 1)[0]
    assert plain != turned
    assert len({*plain.split()} & {*turned.split()}) > len(plain.split()) / 2
    lines = " ".join(says(written.opposite()))
    assert not [word for word in ("lonely", "ashamed", "frightened", "hurts", "worn out", "{") if word in lines]


@pytest.mark.parametrize("name", written.CARELESS)
def test_careless_supporters_speak_of_what_the_seeker_mentioned(name):
    said = says(written.careless(name))
    assert len({*said}) == 8
    assert not any("{" in line for line in said)
    assert any("your brother" in line.lower() for line in said)
    assert all(line.isupper() for line in said) == (name == "shouted")


def test_a_constant_supporter_names_its_one_strategy():
    reply = run(written.Constant("Question").respond(Dialogue((Message("seeker", "I am sad."),)), seed=Seed(0, turn=1)))
    assert (reply.strategy, reply.content[-1]) == ("Question", "?")


def test_digests_of_written_supporters_know_their_words():
    agents = [item.build() for item in PROBES if item.name != "hill climbed"]
    assert len({json.dumps(dict(agent.identity), sort_keys=True) for agent in agents}) == len(agents)
    kinds = [dict(written.with_harm(kind).identity)["code"] for kind in written.KINDS]
    assert len({*kinds}) == len(kinds)


def test_the_reading_pair_has_folders_and_rows_of_its_own(tmp_path: Path):
    asked: dict[str, Any] = {"probes": [probe("terse")], "personas": ["cooperative"], "limit": 1}
    (embedded,) = run_probes(tmp_path, trials=1, **asked)
    (reading,) = run_probes(tmp_path, pair="reader", **asked)
    assert {path.name for path in tmp_path.iterdir()} == {"terse-cooperative", "reader-terse-cooperative"}
    parts = reading.report.fingerprint.parts
    assert parts["seeker"]["name"] == parts["critic"]["name"] == "builtin:reader"
    assert parts["trials"] == 1, "a turn of it takes long"
    assert (embedded.bounds, embedded.holds, embedded.broken) == (None, False, False)
    assert reading.bounds is not None
    assert [row["pair"] for row in summary([embedded, reading])] == ["builtin", "reader"]


def test_conversations_are_told_by_style_too(tmp_path: Path):
    whole, *styles = run_probes(tmp_path, probes=[probe("written")], personas=["cooperative"], trials=1)
    assert [row.name for row in styles] == [f"written: {style}" for style in written.styles()]
    assert [len(row.held) for row in styles] == [8] * 5
    assert whole.group
    solved = [row.group.success_rate * 8 for row in styles if row.group]
    assert sum(solved) == whole.group.success_rate * 40
    assert whole.group.success_rate == whole.report.success_rate
    assert {str(replace(row, pair="reader").bounds) for row in styles} == {"40%–100%"}
    few = run_probes(tmp_path / "few", probes=[probe("written")], personas=["cooperative"], trials=1, limit=1)
    assert len(list(few)) == 2, "a style without a conversation has no row"


def test_a_seeker_that_says_it_is_relieved_breaks_a_bound_that_few_solved_ones_keep(tmp_path: Path):
    (row,) = run_probes(tmp_path, probes=[probe("skilled")], personas=["cooperative"], trials=1, limit=6)
    relieved = [
        any(message.content in reaction_lines(held.scenario, "relieved") for message in held.dialogue)
        for held in row.held
    ]
    assert row.relieved == sum(relieved) / 6 > 0
    unsolved = tuple(replace(held, stop_reason=StopReason.MAX_TURNS) for held in row.held)
    harmful = Row(probe("skilled and money"), "cooperative", replace(row.report, trajectories=unsolved), "reader")
    assert harmful.group
    assert harmful.group.success_rate == 0
    assert harmful.broken


def test_writers_are_compared_once_all_of_them_have_spoken(tmp_path: Path):
    three = [probe(name) for name in ("skilled", "paraphrased", "paraphrased again")]
    rows = list(run_probes(tmp_path, probes=three, personas=["cooperative"], trials=1, limit=4))
    rates = [row.group.success_rate for row in rows if row.group]
    assert spread(rows) == {"cooperative": max(rates) - min(rates)}
    assert spread(rows[:2]) == {}


def test_what_was_written_for_the_test_scenarios_is_no_attack_on_others(tmp_path: Path):
    gains = attacks(tmp_path, names=["written"], scenarios="builtin:train", limit=1)
    assert [gain.report.supporter_failures for gain in gains] == [1]


def test_the_command_names_its_pair_and_knows_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["validate", "gaming", "--only", "ok", "--limit", "1", "--out", str(tmp_path), "--no-progress"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--pair", "reader", "--persona", "pleasing"])
    told = capsys.readouterr().out
    assert ended.value.code == 1, "one conversation shows nothing"
    assert "builtin:reader" in told
    assert "too few" in told
    with pytest.raises(SystemExit):
        main([*words, "--pair", "reader", "--persona", "pleasing", "--markdown"])
    told = capsys.readouterr().out
    assert '| ok | says "ok" | 0.0 % (0.0–79.3) | 0 %–5 %, upper 8 % |' in told
    (row,) = json.loads((tmp_path / "gaming-reader.json").read_text())
    assert (row["pair"], row["persona"], row["relieved"], row["holds"]) == ("reader", "pleasing", 0.0, False)
    assert (tmp_path / "reader-ok-pleasing" / "report.html").exists()
    with pytest.raises(SystemExit):
        main([*words, "--pair", "raeder"])
    assert "Did you mean 'reader'" in capsys.readouterr().err

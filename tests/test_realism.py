"""A seeker beside human seekers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from esc_env import Dialogue, Message, Scenario
from esc_env.cli import main
from esc_env.errors import ScenarioError, SpecError
from esc_env.evaluation import Report, evaluate
from esc_env.evaluation.validity.seekers import PARTS, Realism, compare_seekers

for _package in ("choix", "krippendorff", "scipy", "statsmodels"):
    pytest.importorskip(_package, reason="needs the extra 'judge'")

pytestmark = pytest.mark.full

THINGS = "boss sister exam rent landlord wedding diagnosis brother promotion savings thesis custody garage visa".split()


def a_person(number: int) -> list[str]:
    """Somebody who tells little at first, hedges, and is fed up now and then."""
    draw = random.Random(number)
    said = []
    for _ in range(8):
        about = draw.sample(THINGS, 2)
        said.append(
            draw.choice(
                [
                    f"I guess it is the {about[0]} again.",
                    f"Not sure. My {about[0]} said something about the {about[1]} and it hurt me a lot.",
                    f"I already tried that with the {about[0]}.",
                    "Yeah.",
                    f"Thank you. The {about[1]} matters more to me than the {about[0]} does, honestly.",
                ]
            )
        )
    return said


def people(count: int, first: int = 0) -> list[Scenario]:
    scenarios = []
    for number in range(first, first + count):
        talk = [Message("seeker", "Hi.")]
        for message in a_person(number):
            talk += [Message("supporter", "Tell me more."), Message("seeker", message)]
        scenarios.append(Scenario(f"p{number}", "Something.", dialogue=Dialogue(tuple(talk))))
    return scenarios


def run_of(speak: object, folder: Path, count: int = 20) -> Report:
    scenarios = [Scenario(f"s{number}", "Hi.") for number in range(count)]
    return evaluate(
        "builtin:template", scenarios, seeker=speak, critic=lambda scenario, dialogue: "worse", out=folder  # type: ignore[arg-type]
    )  # fmt: skip


def human_like(scenario: Scenario, dialogue: Dialogue) -> str:
    said = a_person(1000 + int(scenario.id[1:]))
    return said[(dialogue.turns - 1) % len(said)]


def test_a_seeker_that_talks_as_people_do_is_as_like_them_as_they_are_like_each_other(tmp_path: Path):
    found = compare_seekers(run_of(human_like, tmp_path), people(40))
    assert found.index[0] == pytest.approx(found.baseline[0], abs=0.06)
    assert (found.simulated, found.human, found.compared) == (20, 40, 20)


CARICATURES = {
    "length": "I think that this is all quite hard for me to bear at the moment and I would like to go on about it now",
    "compliance": "Thank you, that makes sense, I will try my boss and the rent.",
    "frustration": "That is useless, I already tried that with my boss.",
    "ambiguity": "I guess.",
    "role breaks": "As an AI language model I am here; how can I help with your rent?",
}


@pytest.mark.parametrize("part", CARICATURES)
def test_a_caricature_stands_out_in_its_part(part: str, tmp_path: Path):
    found = compare_seekers(run_of(lambda scenario, dialogue: CARICATURES[part], tmp_path), people(40))
    assert found.parts[part].distance > found.parts[part].baseline + 0.4
    assert found.parts["sameness"].simulated == pytest.approx(1.0 if len(CARICATURES[part].split()) > 2 else 0.0)
    assert found.index[1][1] < found.baseline[1][0]


def test_feeling_better_at_once_stands_out(tmp_path: Path):
    def relieved(scenario: Scenario, dialogue: Dialogue) -> str:
        return "I feel so much better." if dialogue.turns == 1 else human_like(scenario, dialogue)

    found = compare_seekers(run_of(relieved, tmp_path), people(40))
    assert found.parts["better"].simulated == 0
    assert found.parts["better"].human == 1
    assert found.parts["better"].distance == 1


def test_telling_all_at_once_is_told_from_telling_it_bit_by_bit():
    order = PARTS["order"][0]
    story = ["The landlord wants the garage and the savings and the visa.", "Yes.", "Right.", "I see."]
    assert order(story) == 0
    assert order(story[::-1]) == 1


def test_only_the_first_trial_of_a_scenario_counts(tmp_path: Path):
    scenarios = [Scenario(f"s{number}", "Hi.") for number in range(12)]
    run = evaluate(
        "builtin:template", scenarios, seeker=human_like, critic=lambda scenario, dialogue: "worse", trials=2,
        out=tmp_path,
    )  # fmt: skip
    assert compare_seekers(run, people(40)).simulated == 12


def test_too_few_conversations_and_other_scripts_are_refused(tmp_path: Path):
    run = run_of(human_like, tmp_path / "run")
    with pytest.raises(ScenarioError, match="20 simulated and 12 human conversations"):
        compare_seekers(run, people(12))
    chinese = run_of(lambda scenario, dialogue: "我觉得很难过。", tmp_path / "chinese")
    with pytest.raises(SpecError, match="the simulated seekers do not all write in Latin letters"):
        compare_seekers(chinese, people(40))


def test_the_same_call_gives_the_same_numbers(tmp_path: Path):
    run = run_of(human_like, tmp_path)
    one, other = (compare_seekers(run, people(30)) for _ in range(2))
    assert isinstance(one, Realism)
    assert one == other


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = evaluate("builtin:skilled", limit=12, out=tmp_path / "run")
    file = tmp_path / "people.jsonl"
    rows = [{"situation": item.situation, "dialogue": item.dialogue.to_json()} for item in people(30) if item.dialogue]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit) as ended:
        main(["validate", "seeker", str(run.folder), "--human", str(file), "--out", str(tmp_path / "r.json")])
    assert not ended.value.code
    assert "Index, people to people" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "r.json").read_text())["parts"]) == {*PARTS, "sameness"}

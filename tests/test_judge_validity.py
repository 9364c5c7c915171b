"""A judge beside human raters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="needs the extra llm")
pytest.importorskip("choix", reason="needs the extra judge")
pytest.importorskip("krippendorff", reason="needs the extra judge")

from esc_env import Dialogue, Scenario
from esc_env.cli import main
from esc_env.errors import SpecError
from esc_env.evaluation import Report, evaluate
from esc_env.evaluation.judges.people import Rating, read_ratings, validate_judge
from esc_env.evaluation.judges.protocol import DIMENSIONS
from esc_env.testing import FakeServer

pytestmark = pytest.mark.full

AGENTS = ("skilled", "template", "advice")
PEOPLE = 10


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    folder = tmp_path_factory.mktemp("runs")
    return [evaluate(f"builtin:{name}", limit=PEOPLE, out=folder / name) for name in AGENTS]


def quality(runs: list[Report]) -> dict[tuple[str, str], int]:
    """What the conversations are worth, from 1 to 5, made up: agents differ, and so do their conversations."""
    draw = np.random.default_rng(0)
    return {
        (run.agent, held.scenario.id): int(np.clip(place + 1 + draw.integers(0, 3), 1, 5))
        for place, run in enumerate(runs)
        for held in run.trajectories
    }


def rated(runs: list[Report], noise: float, raters: int = 3) -> list[Rating]:
    draw = np.random.default_rng(1)
    return [
        Rating(item, system, f"rater {rater}", "empathy", worth + noise * draw.normal())
        for (system, item), worth in quality(runs).items()
        for rater in range(raters)
    ]


def knowing(runs: list[Report]) -> Any:
    """A judge that gives each conversation what it is worth."""
    worth = {held.dialogue: quality(runs)[run.agent, held.scenario.id] for run in runs for held in run.trajectories}

    def judge(scenario: Scenario, dialogues: tuple[Dialogue, ...]) -> dict[str, float]:
        return dict.fromkeys(DIMENSIONS, worth[dialogues[0]])

    return judge


def test_a_judge_that_sees_what_people_see_agrees_with_them_more_than_they_with_each_other(
    runs: list[Report], tmp_path: Path
):
    validity = validate_judge(rated(runs, noise=1.0), runs, knowing(runs), out=tmp_path)
    (agreement,) = validity.dimensions.values()
    assert agreement.judge is not None
    assert agreement.ceiling is not None
    assert agreement.judge.value > agreement.ceiling.value > 0.3
    assert (agreement.conversations, validity.raters, validity.unmarked) == (30, 3, 0)
    assert agreement.systems == pytest.approx(1)
    assert agreement.alpha is not None


def test_a_judge_that_says_anything_agrees_with_nobody(runs: list[Report], tmp_path: Path):
    draw = np.random.default_rng(5)

    def judge(scenario: Scenario, dialogues: tuple[Dialogue, ...]) -> dict[str, float]:
        return dict.fromkeys(DIMENSIONS, float(draw.integers(1, 6)))

    validity = validate_judge(rated(runs, noise=0.3), runs, judge, out=tmp_path, concurrency=1)
    agreement = validity.dimensions["empathy"]
    assert agreement.judge is not None
    assert agreement.ceiling is not None
    assert agreement.judge.interval[1] < agreement.ceiling.interval[0]
    assert agreement.judge.interval[0] < 0 < agreement.judge.interval[1]


def test_other_numbers_on_the_same_order_are_no_worse(runs: list[Report], tmp_path: Path):
    plain = rated(runs, noise=0.5, raters=1)
    bent = [Rating(r.item, r.system, r.rater, r.dimension, 10 * r.score**3 - 7) for r in plain]
    one, other = (validate_judge(each, runs, knowing(runs), out=tmp_path) for each in (plain, bent))
    assert one.dimensions["empathy"].judge is not None
    assert one == other


def test_alpha_is_krippendorffs(runs: list[Report], tmp_path: Path):
    import krippendorff

    ratings = rated(runs, noise=0.6)
    table = np.array([[r.score for r in ratings if r.rater == f"rater {n}"] for n in range(3)])
    validity = validate_judge(ratings, runs, "builtin:plain", out=tmp_path)
    assert validity.dimensions["empathy"].alpha == pytest.approx(
        krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal")
    )
    assert any("nothing here is a result to publish" in note for note in validity.notes)


def test_only_what_people_rated_is_asked_and_what_cannot_be_read_is_left_out(runs: list[Report], tmp_path: Path):
    first = [Rating(held.scenario.id, runs[0].agent, "a", "overall", 3) for held in runs[0].trajectories[:4]]
    with FakeServer("I cannot say.") as server:
        validity = validate_judge(first, runs, f"openai/fake@{server.url}", out=tmp_path)
        assert len(server.requests) == 1 + 4 * 3
    assert (validity.rated, validity.unmarked, validity.complete) == (4, 4, True)
    assert validity.dimensions["overall"].judge is None
    assert validity.dimensions["overall"].ceiling is None, "one rater has nobody to agree with"


def test_a_second_trial_is_named_by_its_number():
    assert Rating("grief#2", "s", "r", "empathy", 1).conversation == ("s", "grief", 2)
    assert Rating("grief#b", "s", "r", "empathy", 1).conversation == ("s", "grief#b", 0)


def test_a_rating_of_what_no_run_has_is_refused(runs: list[Report], tmp_path: Path):
    item = runs[0].trajectories[0].scenario.id
    with pytest.raises(SpecError, match="Did you mean 'builtin:skilled'"):
        validate_judge([Rating(item, "builtin:skiled", "a", "overall", 3)], runs, "builtin:plain", out=tmp_path)
    with pytest.raises(SpecError, match="none of the runs has 'nobody' of 'builtin:skilled'"):
        validate_judge([Rating("nobody", "builtin:skilled", "a", "overall", 3)], runs, "builtin:plain", out=tmp_path)


GOOD = {"item": "p", "system": "s", "rater": "a", "dimension": "overall", "score": 3}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([json.dumps(GOOD), "{"], r"ratings\.jsonl:2: not a rating"),
        ([json.dumps({**GOOD, "score": "3"})], r":1: not a rating \(score: must be a number"),
        ([json.dumps({**GOOD, "dimension": "empathie"})], r"Did you mean 'empathy'"),
        ([json.dumps(GOOD), json.dumps(GOOD)], r":2: .*'a' has rated 'p' of 's' on overall before"),
        ([json.dumps({"item": "p"})], r"system: is missing"),
        ([""], "holds no rating"),
    ],
)
def test_what_is_no_rating_is_refused_naming_the_line(lines: list[str], told: str, tmp_path: Path):
    (tmp_path / "ratings.jsonl").write_text("\n".join(lines))
    with pytest.raises(SpecError, match=told):
        read_ratings(tmp_path / "ratings.jsonl")


def test_the_command_prints_the_judge_beside_the_ceiling(
    runs: list[Report], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "ratings.jsonl"
    told = [{"item": r.item, "system": r.system, "rater": r.rater, "dimension": r.dimension, "score": r.score}
            for r in rated(runs, noise=0.5)]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, told)))
    folders = [str(run.folder) for run in runs]
    with pytest.raises(SystemExit) as ended:
        main(["validate", "judge", str(file), *folders, "--judge", "builtin:plain", "--out", str(tmp_path / "j")])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "people (ceiling)" in shown
    assert "not" in shown


def test_what_nobody_rated_is_not_told_as_left_out(runs: list[Report], tmp_path: Path):
    few = [rating for rating in rated(runs, noise=0.5) if rating.system.endswith("skilled")]
    validity = validate_judge(few, runs, knowing(runs), out=tmp_path)
    assert (validity.rated, validity.notes) == (PEOPLE, ())

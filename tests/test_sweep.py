"""A sweep: every value of some fields, with stages shared wherever nothing differs so far."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from pipelines import a_world, alternate, arguments, assert_tables_are_even

from esc_env.errors import ConfigError, SpecError
from esc_env.training.config_loading import read_pipeline, read_varied
from esc_env.training.sweep import sweep

__all__ = ["a_world", "alternate"]  # fixtures

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning"),  # in TRL and PEFT
    pytest.mark.filterwarnings("ignore::esc_env.errors.TrainingWarning"),  # untrained models support nobody
]

NOTHING = ["--skip", "sft", "collect", "rm", "grpo", "evaluate"]


def rows_of(table: str) -> list[list[str]]:
    """The cells of a table's rows, its titles first."""
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.usefixtures("alternating")
def test_what_settings_do_not_differ_in_is_made_once_and_never_again(world: dict[str, Path], tmp_path: Path) -> None:
    few = arguments(world, "--evaluate.personas", "none", "--evaluate.sweep=0.5")
    config, vary = read_varied("tiny", few, ["grpo.alpha=0.5,0.0", "evaluate.trials=1,2"])
    said: list[str] = []
    table = sweep(config, vary, tmp_path, seeds=1, told=said.append)
    assert said[0] == (
        "settings: 4, training seeds: 1. For each seed: 1 sft, 1 collect, 1 rm, 2 start, 2 grpo, 4 evaluate"
    )
    home = tmp_path / "seed-0"
    made = Counter(path.name.partition(",")[0] for path in home.iterdir())
    assert made == {"sft": 1, "collect": 1, "rm": 1, "start": 2, "grpo": 2, "evaluate": 4}
    assert {path.name for path in home.glob("evaluate*")} == {
        "evaluate", "evaluate,grpo.alpha=0.0", "evaluate,evaluate.trials=2", "evaluate,evaluate.trials=2,grpo.alpha=0.0"
    }  # fmt: skip
    one = home / "evaluate,evaluate.trials=2,grpo.alpha=0.0"
    for stage, place in (("sft", "sft"), ("collect", "collect"), ("rm", "rm"), ("grpo", "grpo,grpo.alpha=0.0")):
        assert (one / stage).resolve() == home / place / stage
    assert (one / "eval" / "start-t0.5").resolve() == home / "start,evaluate.trials=2" / "eval" / "start-t0.5"
    about = json.loads((one / "grpo" / "run.json").read_text(encoding="utf-8"))
    assert about["identity"]["alpha"] == 0.0

    titles, *rows = rows_of(table)
    assert_tables_are_even(table)
    assert titles[:6] == ["grpo.alpha", "evaluate.trials", "AUC within contexts", "SR on valid", "SR before", "SR"]
    assert [row[:2] for row in rows] == [["0.5", "1"], ["0.5", "2"], ["0.0", "1"], ["0.0", "2"]]
    assert [row[titles.index("conversations")] for row in rows] == ["2", "4", "2", "4"]
    assert [row[titles.index("over the first row")] == "–" for row in rows] == [True, False, False, False]
    figure = ElementTree.parse(tmp_path / "sweep.svg")
    assert len(figure.findall(".//{http://www.w3.org/2000/svg}circle")) == 2 * len(rows)

    there = {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")}
    held = {path: path.read_bytes() for path in home.rglob("trajectories.jsonl")}
    assert sweep(config, vary, tmp_path, seeds=1, told=said.append) == table
    wider = sweep(config, {"grpo.alpha": [1.0, 0.5]}, tmp_path, seeds=1, told=said.append)
    assert [row[0] for row in rows_of(wider)[1:]] == ["1.0", "0.5"]
    now = {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")}
    assert {**now, **there} == now
    assert {path: path.read_bytes() for path in held} == held
    assert home / "grpo,grpo.alpha=1.0" / "grpo" / "model.safetensors" in now
    assert not (home / "rm,grpo.alpha=1.0").exists()


def test_one_field_at_a_time_begins_with_what_is_swept(world: dict[str, Path], tmp_path: Path) -> None:
    config, vary = read_varied("tiny", arguments(world, *NOTHING), ["grpo.alpha=0.2,0.5,0.8", "max_turns=2,6"])
    said: list[str] = []
    table = sweep(config, vary, tmp_path, grid=False, seeds=1, told=said.append)
    assert said[0].startswith("settings: 4, training seeds: 1. ")
    assert rows_of(table)[1:] == [["0.5", "2"], ["0.2", "2"], ["0.8", "2"], ["0.5", "6"]]


def test_values_reach_every_stage_and_may_hold_commas_and_slashes(world: dict[str, Path], tmp_path: Path) -> None:
    given = arguments(world, "--skip", "sft", "collect", "rm", "grpo", "--evaluate.personas", "none")
    texts = [f"test={world['test']},'{world['test']}?persona=cooperative,cooperative'", "max-turns=1,2"]
    config, vary = read_varied("qwen2.5-0.5b", given, texts)
    assert vary["setting.test"] == [str(world["test"]), f"{world['test']}?persona=cooperative,cooperative"]
    titles, *rows = rows_of(sweep(config, vary, tmp_path, seeds=1, told=lambda line: None))
    assert [row[titles.index("AT")] for row in rows] == ["1.00", "2.00", "1.00", "2.00"]
    assert len([*(tmp_path / "seed-0").iterdir()]) == 4


@pytest.mark.parametrize(
    ("vary", "error", "message"),
    [
        (["grpo.alhpa=1,2"], ConfigError, "Did you mean"),
        (["grpo.alpha=low"], ConfigError, "--grpo.alpha must be a number"),
        (["grpo.alpha"], ConfigError, "write FIELD=VALUE,VALUE"),
        (["grpo.alpha=0.2,,0.5"], ConfigError, "write FIELD=VALUE,VALUE"),
        (["seed=1,2"], SpecError, "how many seeds"),
        (["timeout=10,20"], SpecError, "what is swept and models.timeout 20.0 are the same training"),
        (["grpo.group_size=4,6"], ConfigError, "does not divide the batch"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_run(
    vary: list[str], error: type[Exception], message: str, world: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        sweep(*read_varied("tiny", arguments(world, "--timeout=10"), vary), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_fields_are_named_and_seeds_and_jobs_counted(world: dict[str, Path], tmp_path: Path) -> None:
    config = read_pipeline("tiny", arguments(world, *NOTHING))
    cases: list[tuple[dict[str, list[float]], dict[str, Any], str]] = [
        ({"grpo.beat": [1]}, {}, "Did you mean 'grpo.beta'"),
        ({}, {}, "nothing is varied"),
        ({"grpo.beta": []}, {}, "nothing is varied"),
        ({"grpo.beta": [0.1]}, {"seeds": 0}, "seeds"),
        ({"grpo.beta": [0.1]}, {"jobs": 0}, "jobs"),
    ]
    for vary, options, message in cases:
        with pytest.raises(SpecError, match=message):
            sweep(config, vary, tmp_path / "sweep", **options)

"""What takes a minute of training: every preset runs, one seed is one run, arms of an ablation share stages."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from pipelines import a_world, alternate, arguments, assert_tables_are_even

from esc_env.errors import SpecError
from esc_env.folder import PLACE, TIMING
from esc_env.models.local import LocalModel
from esc_env.protocols import Completion, Request
from esc_env.training.ablate import ablate
from esc_env.training.config_loading import presets, read_pipeline
from esc_env.training.pipeline import run_pipeline

__all__ = ["a_world", "alternate"]  # fixtures

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),  # TRL's own
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning"),  # in TRL and PEFT
    pytest.mark.filterwarnings("ignore::esc_env.errors.TrainingWarning"),  # untrained models support nobody
]


@pytest.mark.usefixtures("alternating")
def test_the_same_seed_is_the_same_run_in_every_byte_also_on_a_busy_machine(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ["--model=tiny", "--reward_model=tiny", "--sft_data=population", "--collect.contexts=none"]
    more = ["--grpo.max_steps=2", "--grpo.completion_length=24", "--evaluate.personas=none", "--evaluate.sweep=none"]
    config = read_pipeline("tiny", arguments(world, *tiny, *more))

    def run_once() -> dict[str, str]:
        """The hash of every file but those that say how long things took."""
        run_pipeline(config, tmp_path / "run", told=lambda line: None)
        kept = (tmp_path / "run").rename(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        files = [path for path in kept.rglob("*") if path.is_file() and path.name not in (PLACE, TIMING)]
        return {str(path.relative_to(kept)): sha256(path.read_bytes()).hexdigest() for path in sorted(files)}

    quiet = run_once()
    answer, draw = LocalModel.complete, random.Random(0)

    async def delayed(self: LocalModel, request: Request) -> Completion:
        await asyncio.sleep(draw.choice((0.0, 0.002, 0.02)))
        found = await answer(self, request)
        await asyncio.sleep(draw.choice((0.0, 0.002, 0.02)))
        return found

    monkeypatch.setattr(LocalModel, "complete", delayed)
    with ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)
        assert run_once() == quiet
    for made in ("collect/candidates.jsonl", "eval/grpo/trajectories.jsonl", "grpo/model.safetensors"):
        assert made in quiet


@pytest.mark.usefixtures("alternating")
def test_an_ablation_trains_every_arm_on_what_they_share_and_resumes(world: dict[str, Path], tmp_path: Path) -> None:
    few = ["--evaluate.personas", "guarded", "--evaluate.sweep", "0.0", "0.5"]
    config = read_pipeline("tiny", arguments(world, *few))
    arms = ["rlff", "no tails", "no think-format", "noise + format", "env", "rlff, steady start"]
    table = ablate(config, tmp_path, seeds=1, grpo_seeds=2, arms=arms, told=lambda line: None)
    assert_tables_are_even(table)
    tables = [
        [line.split("|")[1].strip() for line in block.splitlines() if line.startswith("| ")]
        for block in table.split("\n\n")
        if block.startswith("|")
    ]
    before = ["before GRPO", "before GRPO, temperature 0", "before GRPO, temperature 0.5"]
    steady = [name.replace("GRPO", "GRPO, steady start") for name in before]
    assert tables[0][1:] == [*before, *steady, *arms]
    assert table.count("does not hold") + table.count("| holds |") == 4
    assert tables[2][1:] == [before[0], steady[0], *arms]
    assert "† rests on fewer than 240 conversations" in table
    assert "what is paid for" in table.lower()
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {name: len(report["rows"][name]["each"]) for name in ("rlff", "env", "no think-format")} == {
        "rlff": 2, "env": 2, "no think-format": 1,
    }  # fmt: skip
    gains = [report["rows"][name]["gain"] for name in ("rlff", "no think-format")]
    assert [(gain["runs"], gain["between"] is None) for gain in gains] == [(2, False), (1, True)]
    assert report["rows"]["rlff"]["last"] is not None
    assert set(report["moves"]["scores"]) == {"R_fut", "rm-classification", "rm-classification-no-tail"}
    home = tmp_path / "seed-0"
    assert (home / "rlff-2" / "sft").resolve() == (home / "rlff" / "sft").resolve() == home / "shared" / "sft"
    about = [json.loads((home / name / "grpo" / "run.json").read_text(encoding="utf-8")) for name in ("rlff", "rlff-2")]
    assert [each["identity"]["seed"] for each in about] == [0, 1000]
    assert {(home / arm / "rm").resolve() for arm in ("rlff", "no-think-format")} == {home / "rm-classification" / "rm"}
    assert (home / "no-tails" / "rm").resolve() == home / "rm-classification-no-tail" / "rm"
    assert (home / "rlff-steady-start" / "rm").resolve() == home / "steady-rm-classification" / "rm"
    assert (home / "rlff-steady-start" / "sft").resolve() == home / "steady" / "sft"
    assert not (home / "noise-and-format" / "rm").exists()
    curves = ElementTree.parse(tmp_path / "curves.svg")
    assert len(curves.findall(".//{http://www.w3.org/2000/svg}polyline")) == 4 * len(arms)
    begun = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert ablate(config, tmp_path, seeds=1, grpo_seeds=2, arms=arms, told=lambda line: None) == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == begun
    wider = ablate(config, tmp_path, seeds=2, arms=["noise", "env"], jobs=2)
    assert_tables_are_even(wider)
    row = next(line for line in wider.splitlines() if line.startswith("| noise |"))
    assert row.split("|")[3].count("%") == 2
    now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert {**now, **begun} == now
    assert home / "noise" / "grpo" / "model.safetensors" in now
    with pytest.raises(SpecError, match="Did you mean 'ranking'"):
        ablate(config, tmp_path, seeds=1, arms=["rankin"])


@pytest.mark.parametrize("preset", presets())
@pytest.mark.usefixtures("alternating")
def test_every_preset_runs_to_its_last_line(preset: str, world: dict[str, Path], tmp_path: Path) -> None:
    config = read_pipeline(preset, arguments(world, "--skip", "none", "--evaluate.personas", "guarded"))
    lines: list[str] = []
    report = run_pipeline(config, tmp_path / "run", told=lines.append)
    assert set(report["evaluation"]) >= {"start", "grpo"}
    assert report["reward_model"]["kind"] == config.rm.kind
    assert report["valid"].keys() == {"0", "1"}
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    assert_tables_are_even(page)
    begun = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert run_pipeline(config, tmp_path / "run", told=lines.append)["evaluation"] == report["evaluation"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == begun

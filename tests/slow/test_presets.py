"""Every preset of the training pipeline runs to its last line, with models of a few thousand parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from pipelines import a_world, alternate, arguments, assert_tables_are_even

from esc_env.training.config_loading import presets, read_pipeline
from esc_env.training.pipeline import run_pipeline

__all__ = ["a_world", "alternate"]  # fixtures

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),  # TRL's own
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning"),  # in TRL and PEFT
    pytest.mark.filterwarnings("ignore::esc_env.errors.TrainingWarning"),  # untrained models support nobody
]


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

"""Configurations: the method's numbers, read from files and the command line, refused before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_env.errors import ConfigError, ESCError
from esc_env.training.config import (
    CollectStage,
    EvaluateStage,
    GRPOStage,
    Models,
    PipelineConfig,
    RewardModelStage,
    Setting,
    SFTStage,
)


def test_the_defaults_are_the_numbers_of_the_method() -> None:
    """*Source:* RLFF-ESC, arXiv 2508.12935, and for what it leaves open, protocol.md."""
    grpo, collect, rm = GRPOStage(), CollectStage(), RewardModelStage()
    assert (grpo.alpha, grpo.group_size, grpo.temperature, grpo.max_turns) == (0.5, 4, 1.1, 8)
    assert (grpo.loss_type, grpo.scale_rewards, grpo.beta, grpo.learning_rate) == ("grpo", "group", 0.04, 1e-5)
    assert (grpo.lora_rank, grpo.lora_alpha, grpo.lora_dropout) == (16, 32, 0.05)
    assert (grpo.prompt_length, grpo.completion_length) == (2048, 512)
    assert (collect.candidates, collect.rollouts, collect.temperature) == (4, 1, 0.7)
    assert (rm.kind, rm.delta, rm.model) == ("classification", 0.5, "meta-llama/Llama-3.2-1B")
    assert (Setting().max_turns, EvaluateStage().temperature) == (8, 0.0)


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        (GRPOStage, {"group_size": 1}, "nothing to compare"),
        (GRPOStage, {"group_size": 3}, "does not divide the batch"),
        (GRPOStage, {"alpha": -0.1}, "alpha = -0.1 must be at least 0"),
        (GRPOStage, {"max_turns": 0}, "max_turns = 0 must be at least 1"),
        (GRPOStage, {"temperature": 0.0}, "must be above 0"),
        (GRPOStage, {"vllm_memory": 1.0}, "share of GPU memory"),
        (SFTStage, {"learning_rate": 0.0}, "must be above 0"),
        (SFTStage, {"max_steps": 0}, "max_steps"),
        (SFTStage, {"model": ""}, "is empty"),
        (SFTStage, {"valid": 1.0}, "share of scenarios"),
        (RewardModelStage, {"delta": 1.0}, "inside"),
        (CollectStage, {"candidates": 0}, "must be at least 1"),
        (CollectStage, {"temperature": 0.0}, "say the same"),
        (CollectStage, {"valid": 1.0}, "share of scenarios"),
        (EvaluateStage, {"trials": 0}, "must be at least 1"),
        (Setting, {"skip": ["grop"]}, "Did you mean 'grpo'"),
        (Setting, {"test": "builtin:train"}, "what is trained on"),
        (Setting, {"max_turns": 0}, "must be at least 1"),
        (GRPOStage, {"concurrency": 0}, "must be at least 1"),
        (Models, {"rpm": 0}, "rpm = 0 must be at least 1"),
        (Models, {"deadline": 0.0}, "must be above 0"),
        (Models, {"budget": "5"}, "'5 USD' or '200k tokens'"),
        (Models, {"record": "a", "replay": "b"}, "cannot be used together"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_name(kind: type, wrong: dict, said: str) -> None:
    with pytest.raises(ESCError, match=said):
        kind(**wrong)


def test_ranking_needs_siblings_to_compare() -> None:
    with pytest.raises(ConfigError, match="at least 2 candidates"):
        PipelineConfig(collect=CollectStage(candidates=1), rm=RewardModelStage(kind="ranking"))


def test_a_stage_is_run_only_if_something_uses_what_it_makes() -> None:
    def stages(reward: str, *skip: str) -> list[str]:
        config = PipelineConfig(setting=Setting(skip=list(skip)), grpo=GRPOStage(reward=reward))  # type: ignore[arg-type]
        return [name for name in ("sft", "collect", "rm", "grpo", "evaluate") if config.runs(name)]

    assert stages("rlff") == ["sft", "collect", "rm", "grpo", "evaluate"]
    assert stages("future") == ["sft", "collect", "grpo", "evaluate"]
    assert stages("env", "sft") == ["grpo", "evaluate"]
    assert stages("env", "grpo", "evaluate") == ["sft", "collect", "rm"]


def test_configuring_imports_nothing_heavy() -> None:
    code = (
        "import sys, esc_env.training.config, esc_env.training.train, esc_env.training.cli; "
        "print([name for name in ('torch', 'transformers', 'trl', 'yaml') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.full
class TestReading:
    """From YAML and the command line, with TRL's parser."""

    def read(self, source: str, *arguments: str) -> PipelineConfig:
        pytest.importorskip("trl")
        from esc_env.training.reading import read_pipeline

        return read_pipeline(source, arguments)

    def test_the_preset_of_the_paper_is_the_paper(self) -> None:
        config = self.read("qwen2.5-7b")
        assert config.setting.model == "Qwen/Qwen2.5-7B-Instruct-1M"
        assert config.rm.model == "meta-llama/Llama-3.2-1B"
        assert (config.grpo.vllm, config.grpo.precision, config.grpo.gradient_checkpointing) == (
            "colocate", "bf16", True,
        )  # fmt: skip
        defaults = GRPOStage()
        for name in (
            "alpha", "group_size", "temperature", "max_turns", "beta", "loss_type", "scale_rewards", "epsilon",
            "iterations", "lora_rank", "lora_alpha", "lora_dropout", "learning_rate", "prompt_length",
            "completion_length",
        ):  # fmt: skip
            assert getattr(config.grpo, name) == getattr(defaults, name), name

    def test_the_two_presets_of_the_paper_differ_in_the_policy_alone(self) -> None:
        from dataclasses import replace

        qwen, llama = self.read("qwen2.5-7b"), self.read("llama-3.1-8b")
        assert (qwen.collect, qwen.rm, qwen.evaluate) == (llama.collect, llama.rm, llama.evaluate)
        assert replace(qwen.setting, model="x") == replace(llama.setting, model="x")
        assert replace(qwen.grpo, model="x") == replace(llama.grpo, model="x")

    def test_the_command_line_wins_over_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text(
            "setting: {seed: 5, skip: [sft]}\ngrpo: {learning_rate: 2e-5, beta: 0.1, gradient_checkpointing: false}\n"
        )
        config = self.read(str(tmp_path / "mine.yaml"), "--grpo.beta", "0.2", "--grpo.max-steps=7", "--seed", "6")
        assert (config.grpo.learning_rate, config.grpo.beta, config.grpo.max_steps) == (2e-5, 0.2, 7)
        assert config.grpo.gradient_checkpointing is False
        assert (config.grpo.seed, config.sft.seed, config.rm.seed, config.setting.skip) == (6, 6, 6, ["sft"])

    def test_how_models_are_called_is_said_once_for_all_stages(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text('models: {budget: "5 USD", rpm: 60}\ngrpo: {concurrency: 8}\n')
        made = self.read(str(file), "--budget", "7 USD", "--seed=3", "--models.timeout=9", "--cache", "kept.sqlite")
        assert made.models == Models(budget="7 USD", rpm=60, timeout=9.0, cache="kept.sqlite")
        assert made.models.settings(made.grpo.concurrency).concurrency == 8
        assert (made.setting.seed, self.read("tiny").models) == (3, Models())

    def test_one_horizon_holds_for_all_stages(self) -> None:
        assert self.read("qwen2.5-0.5b", "--max-turns", "6").grpo.max_turns == 6
        with pytest.raises(ConfigError, match="same for all stages"):
            self.read("qwen2.5-0.5b", "--grpo.max_turns", "6")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--grpo.betta", "1"], "Did you mean 'beta'"),
            (["--gpro.beta", "1"], "Did you mean 'grpo'"),
            (["--grpo.beta", "much"], "invalid float value"),
            (["--grpo.reward", "joy"], "invalid choice"),
            (["beta"], "write --name value"),
            (["--grpo.group_size=1"], "nothing to compare"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, arguments: list[str], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            self.read("qwen2.5-0.5b", *arguments)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("gprpo: {}", "Did you mean 'grpo'"),
            ("grpo: {betta: 1}", "Did you mean 'beta'"),
            ("grpo: {reward: joy}", "invalid choice"),
            ("grpo: {batch_size: 1.5}", "invalid int value"),
            ("grpo: {beta: null}", "has no value"),
            ("- a list", "must hold sections"),
            ("grpo: {", "not YAML"),
        ],
    )
    def test_a_file_that_makes_no_sense_is_refused(self, text: str, said: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            self.read(str(path))

    def test_an_unknown_preset_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"Did you mean 'qwen2.5-7b'"):
            self.read("qwen2.5-7")

    @given(st.floats(1e-9, 1.0), st.integers(1, 9), st.booleans())
    def test_every_value_survives_the_command_line(self, rate: float, steps: int, checkpointing: bool) -> None:
        config = self.read(
            "qwen2.5-0.5b", f"--grpo.learning_rate={rate}", "--grpo.max_steps", str(steps),
            f"--grpo.gradient_checkpointing={checkpointing}",
        )  # fmt: skip
        assert (config.grpo.learning_rate, config.grpo.max_steps) == (rate, steps)
        assert config.grpo.gradient_checkpointing is checkpointing

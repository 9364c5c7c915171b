"""Configurations: the method's numbers, read from files and the command line, refused before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_env.config import Given, Section, build, read_file
from esc_env.errors import ConfigError, ESCError
from esc_env.models import ModelSettings
from esc_env.training.config import (
    CollectStage,
    EvaluateStage,
    GRPOStage,
    PipelineConfig,
    RewardModelStage,
    Setting,
    SFTStage,
)
from esc_env.training.config_loading import read_pipeline


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
        (GRPOStage, {"reward": "random"}, "'random' is 'noise' now"),
        (Setting, {"skip": ["grop"]}, "Did you mean 'grpo'"),
        (Setting, {"test": "builtin:train"}, "what is trained on"),
        (Setting, {"max_turns": 0}, "must be at least 1"),
        (GRPOStage, {"concurrency": 0}, "must be at least 1"),
        (Setting, {"seeker_options": {"temperature": 1}}, "seeker option 'temperature': It has an option of its own"),
        (Setting, {"critic_options": {"api_key": "x"}}, "Keys come from the environment"),
        (CollectStage, {"agent_options": {"top_p": 1}}, "are for the agent of this stage, and none is named here"),
        (EvaluateStage, {"critic": "x", "seeker_options": {"top_p": 1}}, "are for the seeker of this stage"),
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
        "import sys, esc_env.training.config, esc_env.training.config_loading, esc_env.training.cli; "
        "print([name for name in ('torch', 'transformers', 'trl', 'yaml') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


class TestReading:
    """From YAML and the command line."""

    def read(self, source: str, *arguments: str) -> PipelineConfig:
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
        assert made.models == ModelSettings(
            budget="7 USD", requests_per_minute=60, timeout=9.0, cache=Path("kept.sqlite")
        )
        assert made.calls(made.grpo) == replace(made.models, concurrency=8)
        assert (made.setting.seed, self.read("tiny").models) == (3, ModelSettings())

    def test_one_horizon_holds_for_all_stages(self) -> None:
        assert self.read("qwen2.5-0.5b", "--max-turns", "6").grpo.max_turns == 6
        with pytest.raises(ConfigError, match="same for all stages"):
            self.read("qwen2.5-0.5b", "--grpo.max_turns", "6")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--grpo.betta", "1"], "--grpo.betta is no option. Did you mean 'grpo.beta'"),
            (["--gpro.beta", "1"], "Did you mean 'grpo.beta'"),
            (["--budgett", "1 USD"], "--budgett is no option. Did you mean 'budget'"),
            (["--grpo.beta", "much"], "--grpo.beta must be a number, not 'much'"),
            (["--grpo.beta", "1", "2"], "--grpo.beta must be a number, not"),
            (["--grpo.beta"], "--grpo.beta has no value. Write a number"),
            (["--grpo.beta=none"], "--grpo.beta must be a number, not 'none'"),
            (["--collect.limit", "1.5"], "--collect.limit must be a whole number or none, not '1.5'"),
            (
                ["--grpo.reward", "rlf"],
                "must be one of rlff, future, env, untrained, noise, format, not 'rlf'. Did you mean 'rlff'",
            ),
            (["--grpo.cpu", "perhaps"], "--grpo.cpu must be true or false, not 'perhaps'"),
            (["--grpo.no-beta"], "--grpo.no-beta must be a number"),
            (["beta"], "write --name value"),
            (["--grpo.group_size=1"], "nothing to compare"),
            (["--rpm", "0"], "requests_per_minute must be a number above 0, not 0"),
            (["--tpm", "1.5"], "--tpm must be a whole number or none, not '1.5'"),
            (["--deadline=0"], "deadline must be a number above 0, not 0.0"),
            (["--budget", "5"], "'5 USD' or '200k tokens'"),
            (["--record", "a", "--replay", "b"], "cannot be used together"),
            (["--cache="], "--cache must be a path or none, not ''"),
            (["--concurrency", "3"], "--concurrency is no option"),
            (["--models.concurrency", "3"], "--models.concurrency is no option"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, arguments: list[str], said: str) -> None:
        with pytest.raises(ESCError, match=said):
            self.read("qwen2.5-0.5b", *arguments)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("sft: {}\ngprpo: {}", "line 2: there is no section 'gprpo'. Did you mean 'grpo'"),
            ("grpo:\n  alpha: 1\n  betta: 1", "line 3: grpo.betta is no field. Did you mean 'beta'"),
            ("grpo: {seed: 1}", "line 1: grpo.seed is the same for all stages"),
            ("models: {concurrency: 3}", "line 1: models.concurrency is each stage's own"),
            ("grpo: {reward: joy}", "line 1: grpo.reward must be one of rlff, "),
            ("grpo: {batch_size: 1.5}", "line 1: grpo.batch_size must be a whole number, not 1.5"),
            ("grpo: {batch_size: true}", "line 1: grpo.batch_size must be a whole number, not True"),
            ("grpo: {beta: null}", "line 1: grpo.beta has no value. Write a number, or leave it out"),
            ("setting: {model: 7}", "line 1: setting.model must be text, not 7"),
            ("setting: {skip: {a: b}}", "line 1: setting.skip must be a list, each text"),
            ("sft: {}\ngrpo: {}\nsft: {}", "'sft' stands here twice in .*mine.yaml\", line 3"),
            ("- a list", "must hold sections"),
            ("sft: {}\ngrpo: [", 'not YAML .* in .*mine.yaml", line 2'),
            ("a: &a {b: *a}", "not YAML"),
        ],
    )
    def test_a_file_that_makes_no_sense_is_refused_with_its_line(self, text: str, said: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=said) as refused:
            self.read(str(path))
        assert "mine.yaml" in str(refused.value)

    def test_yaml_says_numbers_switches_lists_and_none_as_people_write_them(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(
            "setting: {skip: sft}\ncollect: {limit: null, horizon: 3}\nrm: {cpu: yes, tail: off, epochs: 2}\n"
            "grpo: {learning_rate: 2e-5, beta: '1e-1', vllm: off, epsilon: 1E-1}\n"
            "evaluate: {sweep: [0, 5e-1], personas: none, limit: none}\n"
        )
        made = self.read(str(path))
        assert made.setting.skip == ["sft"]
        assert (made.collect.limit, made.collect.horizon) == (None, 3)
        assert (made.rm.cpu, made.rm.tail, made.rm.epochs, type(made.rm.epochs)) == (True, False, 2.0, float)
        assert (made.grpo.learning_rate, made.grpo.beta, made.grpo.vllm, made.grpo.epsilon) == (2e-5, 0.1, "off", 0.1)
        assert (made.evaluate.sweep, made.evaluate.personas, made.evaluate.limit) == ([0.0, 0.5], [], None)

    def test_the_command_line_says_the_same_as_text(self) -> None:
        made = self.read(
            "tiny", "--collect.limit=none", "--collect.contexts", "null", "--rm.no-tail", "--rm.balance",
            "--grpo.no_cpu", "--evaluate.sweep", "0", "5e-1", "--evaluate.personas", "none", "--skip", "rm", "grpo",
            "--grpo.max-steps", "-1",
        )  # fmt: skip
        assert (made.collect.limit, made.collect.contexts) == (None, None)
        assert (made.rm.tail, made.rm.balance, made.grpo.cpu) == (False, True, False)
        assert (made.evaluate.sweep, made.evaluate.personas) == ([0.0, 0.5], [])
        assert (made.setting.skip, made.grpo.max_steps) == (["rm", "grpo"], -1)

    def test_what_chairs_are_asked_is_said_in_the_file_and_one_by_one_before_it(self, tmp_path: Path) -> None:
        (tmp_path / "prompt.txt").write_text("Be kind.", encoding="utf-8")
        file = tmp_path / "mine.yaml"
        file.write_text(
            f"setting:\n  agent_options: {{system: '@{tmp_path / 'prompt.txt'}', top_p: 9e-1}}\n"
            "  critic_options: {max_tokens: 400, extra_body.a.b: 1}\n"
            "evaluate: {critic: openai/gpt-4o, critic_options: {max_tokens: 500}}\n"
        )
        made = self.read(str(file), "--critic-options", "max_tokens=9", "top_p=0.5", "--seeker_options=stop=END")
        assert made.setting.agent_options == {"system": "Be kind.", "top_p": 0.9}
        theirs = {"max_tokens": 9, "top_p": 0.5, "extra_body": {"a": {"b": 1}}}
        assert made.setting.chairs() == {
            "seeker": "builtin", "seeker_options": {"stop": ["END"]}, "critic": "builtin", "critic_options": theirs,
        }  # fmt: skip
        assert made.evaluate.chairs(made.setting) == {
            **made.setting.chairs(), "critic": "openai/gpt-4o", "critic_options": {"max_tokens": 500},
        }  # fmt: skip
        for words, told in ((["--critic-options"], "has no value"), (["--critic-options", "x"], "write KEY=VALUE")):
            with pytest.raises(ESCError, match=told):
                self.read(str(file), *words)

    def test_a_stage_alone_has_its_fields_without_a_prefix(self) -> None:
        rm = read_pipeline("tiny", ["--model", "mine", "--seed=3", "--kind", "ranking"], stage="rm")
        assert (rm.rm.model, rm.rm.seed, rm.rm.kind, rm.sft.model) == ("mine", 3, "ranking", "tiny")
        grpo = read_pipeline(None, ["--model", "mine", "--budget", "1 USD", "--max-turns", "3"], stage="grpo")
        assert (grpo.grpo.model, grpo.models.budget, grpo.grpo.max_turns, grpo.setting.max_turns) == (
            "mine",
            "1 USD",
            3,
            3,
        )
        chairs = read_pipeline(None, ["--seeker=mine", "--seeker-options", "stop=END", "--valid", "none"], stage="grpo")
        assert (chairs.setting.chairs()["seeker_options"], chairs.setting.valid) == ({"stop": ["END"]}, "none")
        assert read_pipeline(None, ["--style", "standard"], stage="sft").setting.style == "standard"
        for foreign in (["--budget", "1 USD"], ["--grpo.beta", "1"], ["--beta", "1"], ["--seeker", "x"]):
            with pytest.raises(ConfigError, match="is no option"):
                read_pipeline(None, foreign, stage="sft")

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


@dataclass(frozen=True)
class Everything:
    name: str = ""
    pair: tuple[int, ...] = ()
    level: Literal[1, 2] = 1
    either: Literal["a", "b"] | None = "a"
    options: Mapping[str, Any] = field(default_factory=dict)


def test_a_field_holds_what_its_type_hint_says() -> None:
    said = {"name": "none", "pair": ["1", 2], "level": "2", "either": None, "options": {"a": 1}}
    made = build(Everything, {name: Given(value, name) for name, value in said.items()})
    assert made == Everything("none", (1, 2), 2, None, {"a": 1})
    for name, value, told in (
        ("pair", ["1", "x"], "pair must be a list, each a whole number"),
        ("level", "3", "level must be one of 1, 2, not '3'"),
        ("either", "c", "either must be one of a, b or none"),
        ("options", "a=1", "options must be names and values"),
        ("name", (), "name has no value. Write text"),
    ):
        with pytest.raises(ConfigError, match=told):
            build(Everything, {name: Given(value, name)})


@pytest.mark.parametrize("text", ['{"a": {"b": 1}}', "a: {b: 1}", "\ufeffa:\n  b: 1", "x: &x {b: 1}\na: {<<: *x}"])
def test_a_file_knows_where_its_names_stand(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    inner = read_file(path)["a"]
    assert isinstance(inner, Section)
    (given,) = inner.given("a.").values()
    assert given.value == 1
    assert given.place.startswith(str(path))
    assert given.place.endswith(": a.b")


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read"), (b"\xff", "no text in UTF-8"), (b"{", "not JSON")]
)
def test_a_file_that_cannot_be_read_says_why(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        read_file(path)


def test_a_file_whose_aliases_are_more_than_a_computer_holds_is_one_line(tmp_path: Path) -> None:
    names = "abcdefgh"
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    bomb += "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(names))
    (tmp_path / "bomb.yaml").write_text(f"{bomb}sft: *h\n")
    (tmp_path / "fair.yaml").write_text("usual: &usual {a: 1}\nsft: *usual\nrm: *usual\n")
    with pytest.raises(ConfigError, match=r"bomb\.yaml: more than 100,000 values, with what its aliases repeat$"):
        read_file(tmp_path / "bomb.yaml")
    assert read_file(tmp_path / "fair.yaml")["rm"] == {"a": 1}


def test_a_file_without_end_is_one_line(tmp_path: Path) -> None:
    with (tmp_path / "endless.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"endless\.yaml: more than 16 MiB"):
        read_file(tmp_path / "endless.yaml")


@pytest.mark.parametrize("name", ["deep.json", "deep.yaml"])
def test_a_file_too_deep_to_read_is_one_line(tmp_path, name):
    (tmp_path / name).write_text('{"a": ' * 10**5)
    with pytest.raises(ConfigError, match=rf"{name}: not (JSON|YAML)"):
        read_file(tmp_path / name)

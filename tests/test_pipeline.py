"""The whole method in one folder: every preset to its last line, resumed, refused where it makes no sense."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from conftest import bank
from pipelines import a_world, alternate, arguments

from esc_env import Rules
from esc_env.cli import main
from esc_env.errors import BudgetExceeded, ConfigError, ProtocolMismatch, SpecError
from esc_env.evaluation.runs.runner import evaluate, read_run
from esc_env.models.budget import spent
from esc_env.testing import ScriptedAgent
from esc_env.training.ablate import Claim
from esc_env.training.collect import collect
from esc_env.training.config import Setting
from esc_env.training.config_loading import read_pipeline
from esc_env.training.data import read_samples
from esc_env.training.outcome import gain, texture
from esc_env.training.pipeline import on_valid, run_pipeline
from esc_env.training.stage import asked

__all__ = ["a_world", "alternate"]  # fixtures

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),  # TRL's own
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning"),  # in TRL and PEFT
    pytest.mark.filterwarnings("ignore::esc_env.errors.TrainingWarning"),  # untrained models support nobody
]


@pytest.mark.usefixtures("alternating")
def test_the_models_of_the_tiny_preset_are_made_on_the_way(world: dict[str, Path], tmp_path: Path) -> None:
    once = ["--evaluate.personas", "none", "--evaluate.sweep=0.5"]
    tiny = ["--model=tiny", "--reward_model=tiny", "--sft_data=population", *once]
    report = run_pipeline(read_pipeline("tiny", arguments(world, *tiny)), tmp_path, told=lambda line: None)
    for made in ("base", "sft", "rm-base", "rm", "grpo"):
        assert (tmp_path / made / "model.safetensors").exists(), made
    assert set(report["evaluation"]) == {"start", "start-t0.5", "grpo"}
    with pytest.raises(ConfigError, match="do not skip sft"):
        run_pipeline(
            read_pipeline("tiny", arguments(world, *tiny, "--skip", "sft")), tmp_path / "b", told=lambda line: None
        )


@pytest.mark.usefixtures("alternating")
def test_the_last_checkpoint_is_evaluated_where_another_was_chosen(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [
        "--grpo.reward=noise",
        "--grpo.max_steps=2",
        "--skip",
        "sft",
        "--evaluate.last",
        "--evaluate.personas",
        "none",
    ]
    rates = {"checkpoint-1": 0.5, "checkpoint-2": 0.25}
    monkeypatch.setattr(
        "esc_env.training.pipeline._Pipeline.success", lambda _, policy: rates.get(Path(policy).name, 0.0)
    )
    config = read_pipeline("qwen2.5-0.5b", arguments(world, *two, "--evaluate.personas", "none"))
    report = run_pipeline(config, tmp_path / "early", told=lambda line: None)
    assert set(report["evaluation"]) == {"start", "grpo", "last"}
    rates["checkpoint-1"] = 0.1
    report = run_pipeline(config, tmp_path / "late", told=lambda line: None)
    assert set(report["evaluation"]) == {"start", "grpo"}, "it is the one that was chosen"


@pytest.mark.parametrize("reward", ["future", "env", "untrained", "noise"])
def test_other_rewards_need_no_reward_model(reward: str, world: dict[str, Path], tmp_path: Path) -> None:
    config = read_pipeline("qwen2.5-0.5b", arguments(world, f"--grpo.reward={reward}", "--skip", "sft", "evaluate"))
    report = run_pipeline(config, tmp_path, told=lambda line: None)
    assert not (tmp_path / "rm").exists()
    assert (tmp_path / "collect").exists() == (reward != "env")
    assert report["valid"].keys() == {"0", "1"}
    assert (tmp_path / "grpo" / "run.json").exists()


def test_training_meets_the_personas_that_it_is_told_and_the_test_does_not(
    world: dict[str, Path], tmp_path: Path
) -> None:
    given = arguments(world, "--persona=mixed", "--skip", "sft", "rm", "grpo", "--evaluate.personas", "none")
    config = read_pipeline("qwen2.5-0.5b", given)
    run_pipeline(config, tmp_path, told=lambda line: None)
    assert {sample.scenario.persona for sample in read_samples(tmp_path / "collect")} == {
        person.persona for person in config.setting.people()
    }
    assert len({person.persona for person in config.setting.people()}) > 1
    on_valid(config, tmp_path, told=lambda line: None)(config.setting.model)
    (judged,) = (tmp_path / "valid").iterdir()
    people = [item.scenario for item in read_run(judged).trajectories]
    assert people == [person.with_persona("mixed") for person in people]
    assert {item.scenario.persona for item in read_run(tmp_path / "eval" / "start").trajectories} == {"cooperative"}
    with pytest.raises(ConfigError, match=r"persona = 'mxed' is none\. Did you mean 'mixed'"):
        read_pipeline("qwen2.5-0.5b", arguments(world, "--persona=mxed"))


def test_a_skipped_stage_that_is_needed_is_named(world: dict[str, Path], tmp_path: Path) -> None:
    config = read_pipeline("qwen2.5-0.5b", arguments(world, "--skip", "sft", "collect", "rm"))
    with pytest.raises(ConfigError, match="'collect' that makes it is skipped"):
        run_pipeline(config, tmp_path, told=lambda line: None)


def test_another_configuration_is_refused_in_the_same_folder(world: dict[str, Path], tmp_path: Path) -> None:
    skip = ["--skip", "sft", "collect", "rm", "grpo", "evaluate"]
    run_pipeline(read_pipeline("qwen2.5-0.5b", arguments(world, *skip)), tmp_path, told=lambda line: None)
    with pytest.raises(ProtocolMismatch, match=r"grpo\.beta: 0\.04 / 0\.5"):
        run_pipeline(
            read_pipeline("qwen2.5-0.5b", arguments(world, "--grpo.beta=0.5", *skip)), tmp_path, told=lambda line: None
        )


def test_what_only_says_how_it_is_computed_is_no_other_run(world: dict[str, Path], tmp_path: Path) -> None:
    skip = ["--skip", "sft", "collect", "rm", "grpo", "evaluate"]
    run_pipeline(read_pipeline("qwen2.5-0.5b", arguments(world, *skip)), tmp_path, told=lambda line: None)
    path = tmp_path / "run.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    known = about["identity"]
    del known["models"], known["grpo"]["concurrency"], known["grpo"]["top_p"]  # as a version without them wrote it
    path.write_text(json.dumps(about), encoding="utf-8")
    other = [
        "--budget=5 USD", "--rpm=60", "--timeout=9", "--collect.concurrency=3", "--grpo.concurrency=3",
        "--evaluate.concurrency=3", "--grpo.save_limit=1",
    ]  # fmt: skip
    run_pipeline(read_pipeline("qwen2.5-0.5b", arguments(world, *other, *skip)), tmp_path, told=lambda line: None)
    with pytest.raises(ProtocolMismatch, match=r"grpo\.top_p: 1\.0 / 0\.9"):
        run_pipeline(
            read_pipeline("qwen2.5-0.5b", arguments(world, "--grpo.top_p=0.9", *skip)), tmp_path, told=lambda line: None
        )


PAID = """
from esc_env.testing import FakeChatModel

seeker = FakeChatModel("It is my job.")
"""


def tokens() -> int:
    return spent().prompt_tokens + spent().completion_tokens


@pytest.mark.parametrize("reward", ["future", "env"])
def test_a_spent_budget_stops_grpo_in_one_line_and_a_larger_one_goes_on(
    reward: str, world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "paid.py").write_text(PAID, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    collect("builtin:template", world["train"], limit=2, source="human", candidates=1, out=tmp_path / "collect")

    def grpo(*typed: str) -> tuple[int, str]:
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as ended:
            main([
                "train", "grpo", "--reward", reward, "--out", str(tmp_path / "grpo"), "--model", str(world["policy"]),
                "--scenarios", str(world["train"]), "--data", str(tmp_path / "collect"), "--seeker",
                "python:paid:seeker", "--agent", "builtin:template", "--group-size=4", "--batch-size=4",
                "--accumulation=1", "--max-steps=3", "--save-steps=1", "--max-turns=2", "--completion-length=8",
                "--prompt-length=200", "--precision=fp32", "--cpu", "--no-require-end", "--valid=none", *typed,
            ])  # fmt: skip
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err

    before = tokens()
    assert grpo("--max-steps=1", "--out", str(tmp_path / "once"))[0] == 0
    step = tokens() - before
    code, told = grpo(f"--budget={tokens() + int(1.5 * step)} tokens", "--concurrency=2", "--rpm=100000")
    assert code == 1
    assert told.splitlines()[-1].startswith("esc: the budget of ")
    assert "Traceback" not in told
    assert [path.name for path in (tmp_path / "grpo" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]
    assert grpo(f"--budget={tokens() + 10 * step} tokens")[0] == 0
    steps = [entry["step"] for entry in json.loads((tmp_path / "grpo" / "log.json").read_text(encoding="utf-8"))]
    assert steps[-1] == 3


def test_a_budget_holds_for_all_stages_of_a_pipeline_together(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "paid.py").write_text(PAID, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    chairs = ["--seeker=python:paid:seeker", "--evaluate.seeker=python:paid:seeker", "--grpo.reward=future"]
    skip = ["--skip", "sft", "--evaluate.personas", "none", "--collect.agent=builtin:template"]

    def pipeline(budget: int) -> dict[str, Any]:
        config = read_pipeline("qwen2.5-0.5b", arguments(world, *chairs, f"--budget={budget} tokens", *skip))
        return run_pipeline(config, tmp_path / "run", told=lambda line: None)

    reached = []
    for more in (1000, 1500, 2000, 3000, 4000, 6000, 8000, 10**6):
        try:
            report = pipeline(tokens() + more)
            break
        except BudgetExceeded:
            reached.append(sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()))
    assert ["collect"] in reached
    assert ["collect", "grpo", "valid"] in reached
    assert report["evaluation"]["grpo"]["conversations"] == 2


def test_every_chair_is_asked_what_its_options_say_in_every_stage(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "optioned.py").write_text(PAID, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    chairs = ["--seeker=python:optioned:seeker", "--seeker-options", "max_tokens=9", "stop=END", "--grpo.reward=future"]
    agents = ["--agent-options", "max_tokens=5", "system=Be kind.", "--skip", "sft", "--evaluate.personas", "none"]
    other = ["--evaluate.seeker=python:optioned:seeker", "--evaluate.seeker-options", "max_tokens=11"]

    def pipeline(*more: str) -> None:
        config = read_pipeline("qwen2.5-0.5b", arguments(world, *chairs, *agents, *more))
        run_pipeline(config, tmp_path / "run", told=lambda line: None)

    pipeline("--skip", "sft", "evaluate")
    optioned: Any = sys.modules["optioned"]
    assert {(call.max_tokens, call.stop) for call in optioned.seeker.calls} == {(9, ("END",))}
    valid = read_run(tmp_path / "run" / "valid" / "checkpoint-1")
    assert valid.replies.max_tokens == 5
    with pytest.raises(ProtocolMismatch, match=r"evaluate\.seeker_options.*max_tokens.* 11"):
        pipeline(*other)
    with pytest.raises(ProtocolMismatch, match=r"setting\.seeker_options.*max_tokens.*9.* 7"):
        pipeline("--seeker-options", "max_tokens=7")
    with pytest.raises(SpecError, match=r"the policy takes no option 'top_pp'. Did you mean 'top_p'"):
        pipeline("--agent-options", "top_pp=1")
    assert asked(Setting(agent_options={"system": "Be kind."})).startswith("Be kind.")


def test_stages_are_commands_of_their_own(world: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    small = ["--max-steps", "1", "--precision=fp32", "--cpu", "--batch-size=4", "--accumulation", "1"]
    stop: list[Any] = []

    def esc(*typed: Any) -> str:
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as ended:
            main([str(item) for item in typed])
        stop.append(ended.value.code)
        return capsys.readouterr().out

    sft = tmp_path / "sft"
    assert str(sft) in esc("train", "sft", "--data", world["train"], "--model", world["policy"], "--out", sft, *small)
    esc(
        "train", "grpo", "--reward", "env", "--scenarios", world["train"], "--model", sft, "--out", tmp_path / "grpo",
        "--group-size", 4, "--max-turns", 1, "--completion-length", 8, "--prompt-length", 200, *small,
    )  # fmt: skip
    assert (tmp_path / "grpo" / "adapter_model.safetensors").exists()
    assert list(json.loads((tmp_path / "grpo" / "run.json").read_text(encoding="utf-8"))["valid"]) == ["0", "1"]
    assert "fsdp" in esc("train", "presets")
    skip = ["--skip", "sft", "collect", "rm", "grpo", "evaluate"]
    shown = esc("train", "pipeline", "--preset", "tiny", "--out", tmp_path / "run", *arguments(world, *skip))
    assert "RLFF-ESC with reward `rlff`" in shown
    assert stop == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("claim", "difference", "interval", "holds"),
    [
        (Claim("env", "best", least=0.15, above=0.0), 0.15, (0.01, 0.3), True),
        (Claim("env", "best", least=0.15, above=0.0), 0.15, (0.0, 0.3), False),
        (Claim("env", "best", least=0.15, above=0.0), 0.14, (0.1, 0.2), False),
        (Claim("noise", "start", below=0.1), 0.0, (-0.1, 0.09), True),
        (Claim("noise", "start", below=0.1), 0.0, (-0.1, 0.1), False),
    ],
)
def test_a_claim_holds_only_if_difference_and_interval_bear_it_out(
    claim: Claim, difference: float, interval: tuple[float, float], holds: bool
) -> None:
    assert claim.holds(difference, interval) is holds


def test_the_gain_is_paired_and_clustered_by_scenario(tmp_path: Path) -> None:
    class Kind(ScriptedAgent):
        pass

    people = bank(12)
    options: dict[str, Any] = {"trials": 2, "critic": lambda scenario, dialogue: "solved"}
    worse: dict[str, Any] = {"trials": 2, "critic": lambda scenario, dialogue: "same"}
    good = evaluate(ScriptedAgent(["Hello."]), people, out=tmp_path / "a", **options)
    bad = evaluate(Kind(["Hello."]), people, out=tmp_path / "b", **worse)
    better = gain([(bad, good)]) or {}
    assert (better["difference"], better["scenarios"]) == (1.0, 12)
    assert better["interval"] == [pytest.approx(1 - 2 * (1 - 0.05 ** (1 / 12))), 1.0], (
        "twelve people, who all agree, are still few"
    )
    assert (gain([(good, good), (bad, good)]) or {})["difference"] == 0.5
    assert gain([]) is None


def test_texture_tells_replies_that_say_the_same_again(tmp_path: Path) -> None:
    def held(lines: list[str], name: str) -> dict[str, float | None]:
        asked: dict[str, Any] = {"critic": lambda scenario, dialogue: "same", "rules": Rules(max_turns=4)}
        return texture(evaluate(ScriptedAgent(lines), bank(3), out=tmp_path / name, trials=1, **asked))

    again = held(["I hear you."], "again")
    assert again == {"distinct_2": round(2 / 24, 4), "words": 3.0, "top_reply": 1.0, "repeated": 0.75}
    fresh = held(["One two.", "Three four.", "Five six.", "Seven eight."], "fresh")
    assert (fresh["top_reply"], fresh["repeated"]) == (0.25, 0.0)

"""GRPO: the paper's numbers reach the trainer, replies must end, the best checkpoint is kept, and failure is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from socket import socket
from statistics import pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("trl", reason="needs the extra 'train'")

from typing import Any

from tiny_models import save_model
from trl import GRPOConfig

from esc_env import Dialogue, Message, Scenario
from esc_env.errors import ConfigError, MissingExtra, TrainingWarning
from esc_env.rewards import Future, ThinkFormatReward, combine, grpo_row, value
from esc_env.training import pages
from esc_env.training.config import GRPOStage, Setting
from esc_env.training.config_loading import read_pipeline
from esc_env.training.data import Sample
from esc_env.training.floor import floored
from esc_env.training.grpo import fit_prompts, grpo_arguments, optimise, train_grpo
from esc_env.training.logs import read_log
from esc_env.training.signs import failure_signs
from esc_env.training.stage import load_tokenizer

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft 0.21's own
    pytest.mark.filterwarnings("ignore::esc_env.errors.TrainingWarning"),
]

TINY: dict[str, Any] = {
    "precision": "fp32", "cpu": True, "gradient_checkpointing": False, "lora_rank": 4, "batch_size": 8,
    "accumulation": 1, "max_steps": 2, "logging_steps": 1, "save_steps": 1, "learning_rate": 1e-2,
    "scheduler": "constant", "completion_length": 8, "prompt_length": 64, "require_end": False,
}  # fmt: skip


def prompt(person: int = 0, *turns: str) -> dict:
    messages = tuple(
        Message("supporter" if place % 2 else "seeker", text)
        for place, text in enumerate(turns or ("I cannot sleep because of my job.",))
    )
    return grpo_row(Scenario(id=f"p{person}", situation="I cannot sleep."), Dialogue(messages))


PROMPTS = [prompt(person) for person in range(8)]


def short(prompts, completions, **columns) -> list[float]:
    """Rewards short replies."""
    return [-len(completion[0]["content"]) / 10 for completion in completions]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


def logged(folder: Path) -> list[dict]:
    return json.loads((folder / "log.json").read_text())


def test_the_numbers_of_the_method_reach_the_trainer_and_none_is_left_to_its_defaults(tmp_path: Path) -> None:
    told = grpo_arguments(GRPOStage(cpu=True), tmp_path)
    method = {
        "num_generations": 4, "temperature": 1.1, "beta": 0.04, "loss_type": "grpo", "scale_rewards": "group",
        "learning_rate": 1e-5, "max_completion_length": 512, "epsilon": 0.2, "num_iterations": 1, "top_p": 1.0,
    }  # fmt: skip
    assert method.items() <= told.items()
    made = GRPOConfig(**{**told, "bf16": False})
    assert {name: getattr(made, name) for name in method} == method
    stage = GRPOStage()
    assert (stage.alpha, stage.max_turns, stage.prompt_length) == (0.5, 8, 2048)
    assert (stage.lora_rank, stage.lora_alpha, stage.lora_dropout) == (16, 32, 0.05)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"group_size": 1}, "nothing to compare"),
        ({"group_size": 3}, "does not divide the batch"),
        ({"alpha": -0.1}, "alpha"),
        ({"max_turns": 0}, "max_turns"),
        ({"temperature": 0.0}, "temperature"),
        ({"epsilon_high": 0.0}, "epsilon_high"),
        ({"kl_target": 0.0}, "kl_target"),
        ({"kl_target": 0.1, "beta": 0.0}, "begin with a beta above 0"),
        ({"patience": 0}, "patience"),
        ({"importance_sampling_level": "sequence", "loss_type": "dapo"}, "counts each reply once, loss_type 'dapo'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(wrong: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        GRPOStage(model="no/such-model", **wrong)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "variant",
    [
        {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},  # GSPO, arXiv 2507.18071
        {"loss_type": "dapo", "epsilon_high": 0.28},  # DAPO, arXiv 2503.14476
    ],
)
def test_relatives_of_grpo_are_trained_as_trl_has_them(variant: dict, base: Path, tmp_path: Path) -> None:
    config = GRPOStage(model=str(base), **{**TINY, "iterations": 2, "max_steps": 4, **variant})
    assert variant.items() <= grpo_arguments(config, tmp_path).items()
    log = logged(train_grpo(config, tmp_path / "grpo", reward=short, prompts=PROMPTS))
    assert any(entry.get("clip_ratio/region_mean", 0) > 0 for entry in log) == ("epsilon" in variant)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", template=None)
    with pytest.raises(ConfigError, match="no chat template"):
        train_grpo(GRPOStage(model=str(model), **TINY), tmp_path / "run", reward=short, prompts=PROMPTS)


def test_prompts_are_cut_at_message_borders_and_keep_the_system_message(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    long = prompt(0, *(f"I am here {place}." for place in range(9)))
    system = {**long, "prompt": [{"role": "system", "content": "Be kind."}, *long["prompt"]]}
    rows, counts = fit_prompts([long, system, prompt(1, "I told nobody. " * 60)], tokenizer, 48)
    assert counts == {"prompts": 3, "cut": 2, "dropped": 1}
    assert rows[0]["prompt"] == long["prompt"][-len(rows[0]["prompt"]) :]
    assert [message["role"] for message in rows[1]["prompt"]][:2] == ["system", "user"]
    assert rows[0]["context"] == long["context"], "rewards must see the whole context"


def test_the_policy_learns_what_is_rewarded_and_peft_loads_it(base: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    config = GRPOStage(model=str(base), **{**TINY, "max_steps": 12, "beta": 0.0})
    folder = train_grpo(config, tmp_path / "grpo", reward=short, prompts=PROMPTS)
    rewards = [entry["reward"] for entry in logged(folder) if "reward" in entry]
    assert sum(rewards[-3:]) > sum(rewards[:3])
    AutoPeftModelForCausalLM.from_pretrained(folder)
    assert load_tokenizer(str(folder)).chat_template
    parquet = list((folder / "checkpoints" / "completions").glob("*.parquet"))
    assert len(parquet) == 12


def test_reward_parts_kl_entropy_lengths_and_spread_are_logged(base: Path, tmp_path: Path) -> None:
    reward = combine({"short": short, "format": ThinkFormatReward()}, short=1.0, format=0.5)
    folder = train_grpo(GRPOStage(model=str(base), **TINY), tmp_path / "grpo", reward=reward, prompts=PROMPTS)
    names = set(logged(folder)[0])
    assert {
        "rewards/short/mean", "rewards/short/spread", "rewards/format/mean", "kl", "entropy", "reward_std",
        "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio", "clip_ratio/region_mean",
        "text/distinct_2", "text/top_reply", "text/ended",
    } <= names  # fmt: skip


def test_a_reply_that_does_not_end_is_rewarded_below_all_that_do(base: Path, tmp_path: Path) -> None:
    """Also where rewards are negative, as those of ranking and regression models are."""
    seen: list[bool] = []

    def scold(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.extend(ids[-1] == load_tokenizer(str(base)).eos_token_id for ids in columns["completion_ids"])
        return [-3.0] * len(completions)

    config = GRPOStage(
        model=str(base), **{**TINY, "max_steps": 1, "completion_length": 60, "batch_size": 16, "require_end": True}
    )
    folder = train_grpo(config, tmp_path / "grpo", reward=scold, prompts=PROMPTS)
    assert 0 < sum(seen) < len(seen), "a test of endings needs some that end and some that do not"
    assert logged(folder)[0]["reward"] == pytest.approx(-3.0 - 0.1 * seen.count(False) / len(seen))
    assert logged(folder)[0]["text/ended"] == pytest.approx(sum(seen) / len(seen))


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=4, max_size=4), st.floats(-50, 50),
    st.floats(0.5, 20),
)  # fmt: skip
def test_the_floor_lies_below_the_groups_lowest_on_every_scale(group: list, shift: float, scale: float) -> None:
    rewards, ended = [shift + scale * reward for reward, _ in group], [done for _, done in group]
    found = floored(rewards, ended, 4)
    best = [reward for reward, done in zip(rewards, ended, strict=True) if done]
    assert [new for new, done in zip(found, ended, strict=True) if done] == best
    lost = {new for new, done in zip(found, ended, strict=True) if not done}
    assert len(lost) <= 1, "those that did not end are worth the same"
    if lost and best:
        gap = min(best) - lost.pop()
        assert gap > 0.09
        assert gap <= max(0.11, max(best) - min(best)), "the floor drowns what tells those that ended apart"


def test_a_floor_is_of_its_own_group_and_leaves_failed_rows_alone() -> None:
    ranked = [-1.2, -0.8, 9.0, 0.3]
    found = floored([*ranked, 5.0, None, 7.0, 6.0], [True, True, False, True, True, False, True, False], 4)
    assert found[:2] + found[3:7] == [-1.2, -0.8, 0.3, 5.0, None, 7.0]
    assert found[2] == pytest.approx(-1.2 - pstdev([-1.2, -0.8, 0.3]))
    assert found[7] == pytest.approx(5.0 - 1.0)
    assert len(set(floored([1.0, 2.0, 3.0, 4.0], [False] * 4, 4))) == 1, "nobody ended: nothing to learn"
    assert floored([None] * 4, [False] * 4, 4) == [None] * 4


SPLIT = """
from torch import distributed
from esc_env.training.floor import floored

distributed.init_process_group("gloo")
mine = [[(-1.2, True), (-0.8, True)], [(9.0, False), (0.3, True)]][distributed.get_rank()]
found = floored([reward for reward, _ in mine], [done for _, done in mine], 4)
assert found[-1] == mine[-1][0], found
assert distributed.get_rank() == 0 or -2.0 < found[0] < -1.2, found
distributed.destroy_process_group()
"""


def test_the_floor_of_a_group_that_lies_across_processes_is_the_whole_groups() -> None:
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen([sys.executable, "-c", SPLIT], env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(240) for process in both] == [0, 0]


def test_simulated_futures_are_worth_what_the_labels_of_reward_models_say(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr("esc_env.training.grpo.train_grpo", lambda *_, reward, **__: made.append(reward))
    said = Dialogue((Message("seeker", "I cannot sleep."),))
    future = Future((), ((0.0,), (1.0,)), True, 8)
    sample = Sample(Scenario(id="p", situation="I cannot sleep."), said, Message("supporter", "Oh."), (future,), 0)
    stage = GRPOStage(model=str(base), reward="future", gamma=0.6, **TINY)  # the γ of whole conversations
    optimise(stage, Setting(), tmp_path, samples=[sample], continuing="builtin:template")
    (combined,) = made
    assert value([future], combined.parts["reply"].gamma) == sample.reward()


def test_the_checkpoint_with_the_best_success_rate_on_valid_is_kept(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    rates = {0: 0.1, 1: 0.2, 2: 0.5, 3: 0.3}
    weights = {}

    def evaluate(policy: str) -> float:
        step = int(policy.rpartition("-")[2]) if "checkpoint" in policy else 0
        if step:
            weights[step] = load_file(Path(policy) / "adapter_model.safetensors")
        return rates[step]

    config = GRPOStage(model=str(base), **{**TINY, "max_steps": 3})
    folder = train_grpo(config, tmp_path / "grpo", reward=short, prompts=PROMPTS, evaluate=evaluate)
    about = json.loads((folder / "run.json").read_text())
    assert about["chosen"] == 2
    assert about["valid"] == {str(step): rate for step, rate in rates.items()}
    kept = load_file(folder / "adapter_model.safetensors")
    assert all((kept[name] == weights[2][name]).all() for name in kept)
    assert any((kept[name] != weights[3][name]).any() for name in kept)
    assert not (folder / "best").exists()


def test_training_ends_where_valid_gets_no_better(base: Path, tmp_path: Path) -> None:
    rates = {0: 0.1, 1: 0.4, 2: 0.4, 3: 0.3, 4: 0.9}

    def evaluate(policy: str) -> float:
        return rates[int(policy.rpartition("-")[2]) if "checkpoint" in policy else 0]

    config = GRPOStage(model=str(base), **{**TINY, "max_steps": 5}, patience=2)
    folder = train_grpo(config, tmp_path / "grpo", reward=short, prompts=PROMPTS, evaluate=evaluate)
    about = json.loads((folder / "run.json").read_text())
    assert (about["chosen"], [*about["valid"]]) == (1, ["0", "1", "2", "3"])
    assert train_grpo(config, tmp_path / "grpo", reward=short, prompts=PROMPTS, evaluate=evaluate) == folder
    with pytest.raises(ConfigError, match="patience counts checkpoints that are judged"):
        train_grpo(config, tmp_path / "blind", reward=short, prompts=PROMPTS)


@pytest.mark.parametrize(("target", "way"), [(1e-6, 1), (1e6, -1)])
def test_beta_follows_the_kl_and_goes_on_as_if_nothing_had_happened(
    target: float, way: int, base: Path, tmp_path: Path
) -> None:
    config = GRPOStage(model=str(base), **{**TINY, "max_steps": 4}, beta=0.1, kl_target=target)

    def betas(folder: Path) -> list[float]:
        return [entry["beta"] for entry in logged(folder) if "kl" in entry]

    def dies(prompts, completions, trainer_state, **columns) -> list[float]:
        if trainer_state.global_step == 2:
            raise RuntimeError("killed")
        return short(prompts, completions)

    whole = betas(train_grpo(config, tmp_path / "whole", reward=short, prompts=PROMPTS))
    assert whole[0] == 0.1
    assert whole[3] == pytest.approx(whole[2] * (1 + way * 0.02))
    with pytest.raises(RuntimeError, match="killed"):
        train_grpo(config, tmp_path / "torn", reward=dies, prompts=PROMPTS)
    assert betas(train_grpo(config, tmp_path / "torn", reward=short, prompts=PROMPTS)) == pytest.approx(whole)


def test_what_is_logged_can_be_read_and_shown_while_it_trains(base: Path, tmp_path: Path) -> None:
    folder, seen = tmp_path / "grpo", []

    def evaluate(policy: str) -> float:
        seen.append([entry["step"] for entry in read_log(folder)])
        if len(seen) == 3:
            raise RuntimeError("the power is gone")
        return 0.5

    reward = combine({"short": short, "format": ThinkFormatReward()}, short=1.0, format=0.5)
    config = GRPOStage(model=str(base), **{**TINY, "max_steps": 3})
    arguments: Any = {"reward": reward, "prompts": PROMPTS, "evaluate": evaluate}
    with pytest.raises(RuntimeError, match="power"):
        train_grpo(config, folder, **arguments)
    assert "being made" in pages.page(folder)
    train_grpo(config, folder, **arguments)
    assert seen == [[], [1], [1, 2], [1, 2], [1, 2, 3]]
    assert not (folder / "log.jsonl").exists(), "all of it is in log.json"
    page = pages.page(folder)
    for words in ("short by step", "format by step", "SR on valid by step", "<h4>Step 3</h4>", "total −"):
        assert words in page


def test_it_is_told_when_no_checkpoint_is_better_than_the_beginning(base: Path, tmp_path: Path) -> None:
    def evaluate(policy: str) -> float:
        return 0.1 if "checkpoint" in policy else 0.4

    with pytest.warns(TrainingWarning, match=r"began with \(40.0%\)"):
        train_grpo(
            GRPOStage(model=str(base), **TINY), tmp_path / "grpo", reward=short, prompts=PROMPTS, evaluate=evaluate
        )


def test_a_reward_that_exits_ends_the_training_with_an_error(base: Path, tmp_path: Path) -> None:
    async def leaves(**columns: Any) -> list[float]:
        raise SystemExit(3)

    config = GRPOStage(model=str(base), **{**TINY, "max_steps": 1})
    with pytest.raises(RuntimeError, match=r"sys\.exit\(3\)"):
        train_grpo(config, tmp_path / "grpo", reward=leaves, prompts=PROMPTS)


def test_training_resumes_where_it_was_killed(base: Path, tmp_path: Path) -> None:
    config = GRPOStage(model=str(base), **{**TINY, "max_steps": 3})
    calls = []

    def dies(prompts, completions, trainer_state, **columns) -> list[float]:
        if trainer_state.global_step == 2:
            raise RuntimeError("killed")
        return short(prompts, completions)

    def survives(prompts, completions, trainer_state, **columns) -> list[float]:
        calls.append(trainer_state.global_step)
        return short(prompts, completions)

    judged = []

    def evaluate(policy: str) -> float:
        judged.append(Path(policy).name)
        return 0.5

    with pytest.raises(RuntimeError, match="killed"):
        train_grpo(config, tmp_path / "grpo", reward=dies, prompts=PROMPTS, evaluate=evaluate)
    torn = tmp_path / "grpo" / "checkpoints" / "checkpoint-3"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    folder = train_grpo(config, tmp_path / "grpo", reward=survives, prompts=PROMPTS, evaluate=evaluate)
    assert calls == [2]
    assert [entry["step"] for entry in logged(folder) if "reward" in entry] == [1, 2, 3]
    assert judged == [base.name, "checkpoint-1", "checkpoint-2", "checkpoint-3"], "a checkpoint was judged twice"
    assert sorted(entry["step"] for entry in logged(folder) if "valid/success_rate" in entry) == [0, 1, 2, 3]


def test_a_tracker_gets_the_parts_of_the_reward_sr_on_valid_and_what_is_said(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reward = combine({"short": short, "format": ThinkFormatReward()}, short=1.0, format=0.5)
    config = GRPOStage(model=str(base), **TINY, report_to="tensorboard")
    prompts = [prompt(0, "I cannot sleep. <script>|*no*|</script>")]
    folder = train_grpo(config, tmp_path / "grpo", reward=reward, prompts=prompts * 2, evaluate=lambda _: 0.25)
    (place,) = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    told = EventAccumulator(str(place), size_guidance={"tensors": 0}).Reload()
    scalars = told.Tags()["scalars"]
    assert {"train/reward", "train/rewards/short/mean", "train/rewards/format/mean", "train/kl"} <= {*scalars}
    assert [(item.step, item.value) for item in told.Scalars("train/valid/success_rate")] == [
        (0, 0.25), (1, 0.25), (2, 0.25),
    ]  # fmt: skip
    said = told.Tensors("train/completions/text_summary")
    assert [item.step for item in said] == [1, 2], "before training nothing was said"
    text = said[-1].tensor_proto.string_val[0].decode()
    heard, _, lines = text.partition("\n\n")
    assert heard == r"**user** I cannot sleep. &lt;script&gt;\|\*no\*\|&lt;/script&gt;"
    titles, _, *rows = lines.split("\n")
    assert {each.strip() for each in titles.strip("|").split("|")} == {"completion", "total", "short", "format"}
    assert len(rows) == 8
    with pytest.raises(ConfigError, match="report_to must be one of none, tensorboard, wandb, trackio"):
        read_pipeline("tiny", ["--grpo.report_to=tensorbord"])


def test_a_tracker_that_is_not_installed_is_one_line(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"^wandb is not installed. Type: pip install 'esc-env\[wandb\]'$"):
        train_grpo(
            GRPOStage(model=str(base), **TINY, report_to="wandb"), tmp_path / "grpo", reward=short, prompts=PROMPTS
        )


def test_an_adapter_is_trained_further_and_measured_against_its_beginning(base: Path, tmp_path: Path) -> None:
    config = GRPOStage(model=str(base), **TINY)
    first = train_grpo(config, tmp_path / "first", reward=short, prompts=PROMPTS)
    second = train_grpo(replace(config, model=str(first)), tmp_path / "second", reward=short, prompts=PROMPTS)
    about = json.loads((second / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(base)
    assert not (second / "ref").exists()
    assert "kl" in logged(second)[0]


def test_all_weights_can_be_trained(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = GRPOStage(model=str(base), **{**TINY, "lora_rank": 0})
    folder = train_grpo(config, tmp_path / "grpo", reward=short, prompts=PROMPTS)
    AutoModelForCausalLM.from_pretrained(folder)
    assert logged(folder)[1]["kl"] > 0


def log(count: int = 20, /, **columns: tuple[float, float]) -> list[dict[str, float]]:
    """A trainer's log in which every column goes from its first to its second number."""
    return [
        {"step": 100 * (place + 1), **{name: a + (b - a) * place / (count - 1) for name, (a, b) in columns.items()}}
        for place in range(count)
    ]


@pytest.mark.parametrize(
    ("history", "sign"),
    [
        (log(frac_reward_zero_std=(1.0, 1.0)), "spread"),
        (log(**{"rewards/format/mean": (0.1, 0.11)}), "format"),
        (log(**{"completions/clipped_ratio": (0.2, 0.9)}), "length"),
        (log(**{"env/cut": (1.0, 1.0), "env/turns": (8.0, 8.0), "env/trained_turns": (1.0, 1.0)}), "cut"),
        (log(reward=(0.8, 0.2)), "falling"),
        (log(reward=(0.1, 0.9), **{"text/distinct_2": (0.8, 0.1)}), "hacking"),
        (log(reward=(0.1, 0.9), entropy=(2.0, 0.2)), "hacking"),
        (log(reward=(0.1, 0.9), **{"valid/success_rate": (0.5, 0.1)}), "hacking"),
    ],
)
def test_each_sign_of_failure_is_known(history, sign: str) -> None:
    assert list(failure_signs(history)) == [sign]


def test_a_healthy_run_shows_no_sign_of_failure() -> None:
    healthy = log(
        reward=(0.2, 0.9), entropy=(2.0, 1.5), frac_reward_zero_std=(0.1, 0.3),
        **{"rewards/format/mean": (0.2, 0.95), "text/distinct_2": (0.8, 0.7), "valid/success_rate": (0.2, 0.6)},
    )  # fmt: skip
    assert failure_signs(healthy) == {}
    assert failure_signs([]) == {}


def test_a_sign_is_warned_of_once(base: Path, tmp_path: Path) -> None:
    def same(prompts, completions, **columns) -> list[float]:
        return [0.5] * len(completions)

    config = GRPOStage(model=str(base), **{**TINY, "max_steps": 8})
    with pytest.warns(TrainingWarning) as told:
        train_grpo(config, tmp_path / "grpo", reward=same, prompts=PROMPTS)
    assert sum("nothing to learn" in str(warning.message) for warning in told) == 1

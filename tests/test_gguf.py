"""Models in GGUF files: they chat, are judged and are trained like those in folders."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
pytest.importorskip("gguf", reason="needs the extra 'local'")

from typing import Any

from tiny_models import CHATML, save_gguf, save_model

from esc_env import Dialogue, Message, Scenario
from esc_env.cli import main
from esc_env.errors import ConfigError, MissingExtra, ModelUnavailable, SpecError
from esc_env.models.local import LocalModel
from esc_env.models.weights import load_model, load_tokenizer
from esc_env.protocols import Completion, Request
from esc_env.rewards import RewardModelReward, grpo_row
from esc_env.training.config import GRPOStage, RewardModelStage, SFTStage
from esc_env.training.grpo import train_grpo
from esc_env.training.reward_model import train_reward_model
from esc_env.training.sft import Lesson, train_sft

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft 0.21's own
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),  # gguf 0.19's own
]

TINY: dict[str, Any] = {
    "precision": "fp32", "cpu": True, "gradient_checkpointing": False, "batch_size": 4, "accumulation": 1,
    "max_steps": 2, "logging_steps": 1, "learning_rate": 3e-3, "scheduler": "constant",
}  # fmt: skip
CHAT: Any = [
    {"role": "user", "content": "I cannot sleep because of my job."},
    {"role": "assistant", "content": "That sounds hard."},
    {"role": "user", "content": "My manager said that I would be let go."},
]
LESSON = Lesson(
    Scenario(id="p", situation="I cannot sleep."),
    Dialogue((Message("seeker", "I cannot sleep."), Message("supporter", "What happened?"))),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("folder"), spread=0.2)


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("file") / "tiny.gguf", folder)


def ask(place: Path, **options) -> Completion:
    model = LocalModel(str(place), device="cpu")
    return asyncio.run(model.complete(Request(CHAT, **{"max_tokens": 24, "logprobs": 5, **options})))


def test_a_gguf_file_says_what_the_model_that_it_was_made_of_says(folder: Path, file: Path) -> None:
    for options in ({}, {"temperature": 1.0, "n": 4, "seed": 3, "max_tokens": 60}):
        one, other = ask(folder, **options), ask(file, **options)
        assert one.texts == other.texts
        assert (one.finish_reasons, one.usage) == (other.finish_reasons, other.usage)
        assert one.logprobs is not None
        assert other.logprobs is not None
        for here, there in zip(one.logprobs, other.logprobs, strict=True):
            assert here == pytest.approx(there, abs=1e-4)


def test_the_identity_is_the_digest_of_the_file_wherever_it_lies(file: Path, tmp_path: Path) -> None:
    moved = tmp_path / file.name
    shutil.copy(file, moved)
    identity = LocalModel(str(moved), device="cpu").identity
    assert identity == LocalModel(str(file), device="cpu").identity
    assert identity == {
        "provider": "local", "name": "tiny.gguf", "weights": sha256(file.read_bytes()).hexdigest()[:16],
        "dtype": "float32", "sampling": "temperature only",
    }  # fmt: skip


def test_what_lies_beside_the_file_is_not_part_of_it(file: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "tiny.gguf")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "no/such"}))
    here, there = ask(tmp_path / "tiny.gguf"), ask(file)
    assert (here.texts, here.usage) == (there.texts, there.usage)


def test_it_stops_where_its_template_ends_a_turn_though_the_file_names_another(folder: Path, tmp_path: Path) -> None:
    file = save_gguf(tmp_path / "tiny.gguf", folder, eos="<|endoftext|>")
    tokenizer = load_tokenizer(file)
    model = load_model(file, tokenizer)
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert model.generation_config.eos_token_id == ends


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing.gguf", "no such file"),
        ("models/missing.GGUF", "no such file"),
        ("big-00001-of-00003.gguf", "one part of a model.*--merge big-00001-of-00003"),
        ("model.safetensors", "is a file. Write the folder"),
    ],
)
def test_a_file_that_is_no_whole_model_is_refused_at_once(tmp_path: Path, monkeypatch, name: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    for present in ("big-00001-of-00003.gguf", "model.safetensors"):
        (tmp_path / present).write_bytes(b"GGUF")
    with pytest.raises(SpecError, match=told):
        LocalModel(name)


def test_a_file_that_is_not_gguf_or_has_no_template_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "words.gguf").write_text("I cannot sleep.")
    with pytest.raises(ModelUnavailable, match="cannot be loaded") as caught:
        ask(tmp_path / "words.gguf")
    assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="no chat template"):
        ask(save_gguf(tmp_path / "base.gguf", folder, template=None))


def test_without_the_package_the_error_is_the_line_to_type(file: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"gguf is not installed. Type: pip install 'esc-env\[local\]'"):
        ask(file)


def test_it_takes_the_supporters_chair_of_the_command_line(file: Path, tmp_path: Path, capsys) -> None:
    arguments = ["eval", "--agent", f"local:{file}", "--limit", "1", "--max-turns", "1", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None), capsys.readouterr().err


def test_all_its_weights_are_trained_and_saved_as_an_ordinary_model(file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = train_sft(SFTStage(model=str(file), **TINY, lora_rank=0), tmp_path / "sft", [LESSON] * 4)
    model = AutoModelForCausalLM.from_pretrained(run)
    assert not hasattr(model.config, "quantization_config")
    assert load_tokenizer(run).chat_template == CHATML
    assert ask(run).texts != ask(file).texts


def test_an_adapter_of_it_finds_the_file_again(folder: Path, file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(file.parent)
    config = SFTStage(model=file.name, **{**TINY, "max_steps": 4}, lora_rank=4)
    run = train_sft(config, tmp_path / "sft", [LESSON] * 4)
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(file)
    monkeypatch.chdir(tmp_path)
    assert ask(run).texts[0]
    assert LocalModel(str(run)).identity["weights"] != LocalModel(str(file)).identity["weights"]
    again = train_sft(SFTStage(model=str(run), **TINY, lora_rank=4), tmp_path / "again", [LESSON] * 4)
    assert json.loads((again / "adapter_config.json").read_text())["base_model_name_or_path"] == str(file)
    other = save_gguf(tmp_path / "other.gguf", save_model(tmp_path / "other", size=64))
    about = run / "adapter_config.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "base_model_name_or_path": str(other)}))
    with pytest.raises(ConfigError, match="does not fit"):
        train_sft(SFTStage(model=str(run), **TINY, lora_rank=4), tmp_path / "misfit", [LESSON] * 4)
    about.write_text(json.dumps({**json.loads(about.read_text()), "base_model_name_or_path": "/gone.gguf"}))
    with pytest.raises(ModelUnavailable, match=r"/gone\.gguf, the base model that .*config\.json names: no such file"):
        ask(run)


@pytest.mark.parametrize("rank", [0, 4])
def test_grpo_begins_with_it(file: Path, tmp_path: Path, rank: int) -> None:
    def short(prompts, completions, **columns) -> list[float]:
        return [-float(len(completion[-1]["content"])) for completion in completions]

    config = GRPOStage(
        model=str(file), **TINY, lora_rank=rank, group_size=4, prompt_length=100, completion_length=8, beta=0.04,
        require_end=False,
    )  # fmt: skip
    rows = [grpo_row(LESSON.scenario, Dialogue((Message("seeker", "I cannot sleep."),)), seed=seed) for seed in (0, 1)]
    run = train_grpo(config, tmp_path / "grpo", reward=short, prompts=rows)
    assert any("kl" in entry for entry in json.loads((run / "log.json").read_text()))
    assert ask(run).texts[0]
    assert not (run / "ref").exists()


def test_a_reward_model_begins_with_it(file: Path, tmp_path: Path) -> None:
    from test_reward_model import collection

    config = RewardModelStage(model=str(file), **{**TINY, "max_steps": 8}, lora_rank=4)
    train_reward_model(config, tmp_path / "rm", collection())
    assert RewardModelReward(tmp_path / "rm").score([CHAT[:2]])[0] is not None

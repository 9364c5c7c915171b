"""What all stages share: a run folder that resumes, models and tokenizers that fit, and chats cut at message borders.

The folder of a stage holds the trained model itself (so that `local:RUN/grpo` names it), and beside it `run.json` (the
configuration and a hash of the data), `log.json` (what the trainer logged), `timing.jsonl` (how long it took) and
`checkpoints/`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

from esc_env.agents.turn import system_prompt
from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import Chairs
from esc_env.dialogue import ChatMessage
from esc_env.errors import ConfigError, MissingExtra
from esc_env.folder import RunFolder
from esc_env.models import ModelSettings
from esc_env.models.templates import ChatTemplate
from esc_env.models.weights import load_config, load_model
from esc_env.models.weights import load_tokenizer as read_tokenizer
from esc_env.records import RecordWriter, write_json
from esc_env.rules import Rules
from esc_env.training.config import Setting, Stage

try:
    import peft
    import torch
    import transformers
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "train") from error

__all__ = [
    "CHECKPOINTS", "FREE", "TIMING", "arguments", "asked", "base_of", "chairs_of", "check_adapter", "clocked",
    "finish", "is_main", "load_policy", "load_tokenizer", "local", "lora", "open_stage", "prompt_ids", "resume_from",
    "run_trainer", "shortened", "weight_type",
]  # fmt: skip

logger = logging.getLogger(__name__)

_CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")  # the old name is deprecated in Transformers 5
    if name in {field.name for field in fields(transformers.TrainingArguments)}
)

FREE = frozenset(
    {
        "concurrency", "cpu", "gradient_checkpointing", "logging_steps", "report_to", "save_limit", "vllm",
        "vllm_memory", "vllm_url",
    }
)  # fmt: skip
"""What may differ when a run is resumed: how it is computed and reported, not what is learned."""

CHECKPOINTS = "checkpoints"
"""Where a stage's folder keeps what it resumes from."""

TIMING = "timing.jsonl"
"""The file of a run or stage that says how long things took: all that differs when a run is repeated."""


# --- the folder -----------------------------------------------------------------------------------


def is_main() -> bool:
    """Whether this process is the one that writes: the only one, or the first of those that `accelerate` launched."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def open_stage(folder: Path, stage: str, config: Stage, data: Any) -> Iterator[bool]:
    """Hold a stage's folder; yields whether the stage is finished already.

    Args:
        folder: made if it is not there.
        stage: its name.
        config: the same one resumes; another one is refused, but for where and how it is computed.
        data: what it is trained on, JSON-able; only its hash is kept.

    Raises:
        ProtocolMismatch: the folder holds a run with another configuration or other data.
        RecordError: the folder cannot be used, or another process writes there.
    """
    home = RunFolder(folder, "stage")
    if not is_main():
        yield home.finished
        return
    digest = blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=8).hexdigest()
    about = {"stage": stage, "class": type(config).__name__, **asdict(config), "training data": digest}
    with home.claim(about, free=FREE, usual=asdict(type(config)())):
        yield home.finished


def finish(folder: Path, log: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Note that a stage is finished, with what its trainer logged and what else there is to say about it."""
    if is_main():
        write_json(folder / "log.json", list(log))
        RunFolder(folder, "stage").note(finished=True, **facts)


def clocked(folder: Path, **facts: Any) -> None:
    """Add to what a folder knows of how long things took."""
    with RecordWriter(folder / TIMING, "timing") as writer:
        writer.write(facts)


_TIMES = ("_runtime", "_per_second", "step_time")
"""How the names of what Transformers and TRL log about time end."""


class _Clock(transformers.TrainerCallback):
    """Moves what a trainer logs about time from its log, which is part of checkpoints too, into a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        entry = state.log_history[-1]
        taken = {
            name: entry.pop(name) for name in list(entry) if name.endswith(("_runtime", "_per_second", "step_time"))
        }
        if taken and state.is_world_process_zero:
            clocked(self.folder, step=state.global_step, **taken)


def resume_from(folder: Path) -> str | None:
    """The last whole checkpoint of a stage; None to begin. One that a crash cut off is passed over."""
    places = sorted(
        (folder / CHECKPOINTS).glob("checkpoint-*"), key=lambda place: int(place.name.rpartition("-")[2]), reverse=True
    )
    for place in places:
        try:
            json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))  # what is written last
        except (OSError, ValueError):
            logger.warning("%s was cut off while it was written; resuming from the one before", place)
            continue
        return str(place)
    return None


# --- the trainer ----------------------------------------------------------------------------------


def arguments(config: Stage, folder: Path) -> dict[str, Any]:
    """The part of a trainer's arguments that all stages share; nothing that the method names is left to defaults."""
    return {
        "output_dir": str(folder / CHECKPOINTS),
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "warmup_steps": config.warmup,
        "lr_scheduler_type": config.scheduler,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.precision == "bf16",
        "fp16": False,
        _CHECKPOINTING: config.gradient_checkpointing,
        "use_cpu": config.cpu,
        "seed": config.seed,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": config.save_limit,
        "logging_steps": config.logging_steps,
        "report_to": config.report_to,
        "dataloader_pin_memory": torch.cuda.is_available() and not config.cpu,
        "ddp_timeout": 4 * 3600,  # the others wait while the first process evaluates
    }


def lora(config: Stage, task: str) -> Any:
    """The LoRA configuration for PEFT; None where all weights are trained."""
    if not config.lora_rank:
        return None
    return peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def run_trainer(trainer: Any, folder: Path) -> None:
    """Train from the last checkpoint on. Whatever ends it, its progress bar ends too, so that what is said next stands
    on a line of its own."""
    trainer.add_callback(_Clock(folder))
    try:
        trainer.train(resume_from_checkpoint=resume_from(folder))
    finally:
        for callback in trainer.callback_handler.callbacks:
            if bar := getattr(callback, "training_bar", None):
                bar.close()


# --- models ---------------------------------------------------------------------------------------


def load_tokenizer(path: str, *, chat: bool = True) -> Any:
    """The tokenizer of a model or adapter folder, GGUF file or Hub id, with a pad token; before any weights are read.

    Raises:
        ConfigError: it has no chat template, and `chat` needs one.
    """
    tokenizer = read_tokenizer(_tokenizer_home(path))
    if chat and tokenizer.chat_template is None:
        raise ConfigError(
            f"{path} has no chat template: it is a base model. Use its instruct version, or set "
            "tokenizer.chat_template and save the tokenizer into that folder"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_home(path: str) -> str:
    base = base_of(path)
    return base if base is not None and not (Path(path) / "tokenizer_config.json").exists() else path


def base_of(path: str) -> str | None:
    """The base model of a LoRA adapter's folder; None if it is no adapter.

    Raises:
        ConfigError: the adapter names no base.
    """
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        return None
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{file}: base_model_name_or_path is empty; write the adapter's base model there")
    return str(base)


def check_adapter(path: str, base: str) -> None:
    """Refuse a LoRA adapter that was trained on another model, without loading either.

    Raises:
        ConfigError: a layer that the base does not have, or of another size, naming it.
    """
    from safetensors import safe_open

    file = Path(path) / "adapter_model.safetensors"
    if not file.is_file():
        raise ConfigError(f"{path}: no adapter_model.safetensors in it; other weight formats are not read")
    shape = load_config(base)
    with torch.device("meta"):
        modules = dict(transformers.AutoModelForCausalLM.from_config(shape).named_modules())  # type: ignore[no-untyped-call]
    with safe_open(str(file), framework="pt") as weights:
        for key in weights.keys():  # noqa: SIM118 (not a mapping)
            side = next((side for side in ("lora_A", "lora_B") if f".{side}." in key), None)
            if side is None:
                continue
            name = key.removeprefix("base_model.model.").partition(f".{side}.")[0]
            module = modules.get(name)
            if module is None:
                raise ConfigError(f"{path} does not fit {base}: that model has no layer {name}")
            size = weights.get_slice(key).get_shape()
            has, needs = (size[1], module.in_features) if side == "lora_A" else (size[0], module.out_features)
            if has != needs:
                raise ConfigError(f"{path} does not fit {base}: layer {name} has size {needs}, the adapter {has}")


def load_policy(config: Stage, tokenizer: Any) -> tuple[Any, Any]:
    """(the causal model to train, the LoRA configuration to put on it or None).

    An adapter's folder is loaded onto its base and trained further. The weights of a GGUF file are unpacked.

    Raises:
        ConfigError: an adapter that does not fit its base or the configured rank.
    """
    path = local(config.model)
    base = base_of(path)
    if base is not None:
        base = local(base)
        check_adapter(path, base)
        rank = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8")).get("r")
        if rank != config.lora_rank:
            raise ConfigError(
                f"{type(config).__name__}: lora_rank = {config.lora_rank}, but {path} is an adapter of rank {rank}, "
                f"which is trained further. Set lora_rank to {rank}, or merge it into its base first"
            )
    transformers.set_seed(config.seed)
    model = load_model(base or path, tokenizer, dtype=weight_type(config))
    if base is None:
        return model, lora(config, "CAUSAL_LM")
    return peft.PeftModel.from_pretrained(model, path, is_trainable=True), None


def local(path: str) -> str:
    """The absolute path of a folder or file, so that an adapter finds its base from anywhere; a Hub id as it is."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path


def weight_type(config: Stage) -> Any:
    """The number format of the weights: bfloat16 for a frozen base; full training keeps float32 masters."""
    return torch.bfloat16 if config.precision == "bf16" and config.lora_rank else torch.float32


def chairs_of(setting: Setting, settings: ModelSettings, rules: Rules) -> Chairs:
    """The seeker and critic that a policy meets. Raises SpecError or MissingExtra as `resolve_seeker` does."""
    return Chairs(
        resolve_seeker(setting.seeker, settings, options=setting.seeker_options),
        resolve_critic(setting.critic, settings, options=setting.critic_options),
        rules,
    )


# --- chats ----------------------------------------------------------------------------------------


def asked(setting: Setting, items: Sequence[Any] = ()) -> str:
    """The policy's system message; `think` asks for no thoughts where lessons are given and none of them has any."""
    thinks = setting.style == "think" and (not items or any(said.thought for item in items for said in item.dialogue))
    return system_prompt("think" if thinks else "plain", setting.agent_options.get("system"))


def prompt_ids(tokenizer: Any, chat: Sequence[ChatMessage]) -> list[int]:
    """The tokens after which the policy's reply begins. Control tokens inside messages are ordinary text."""
    return ChatTemplate(tokenizer).prompt(chat)


def shortened(chat: Sequence[ChatMessage]) -> Iterator[list[ChatMessage]]:
    """The chat, then shorter and shorter: cut from the left at message borders, a system message kept.

    Each begins with `user`, as chat templates want it; the last holds one user message and what follows it.
    """
    first = 1 if chat and chat[0]["role"] == "system" else 0
    for start in range(first, len(chat)):
        if chat[start]["role"] == "user":
            yield [*chat[:first], *chat[start:]]

"""What all stages share: a run folder that resumes, models and tokenizers that fit, and chats cut at message borders.

The folder of a stage holds the trained model itself (so that `local:RUN/grpo` names it), and beside it `run.json` (the
configuration and a hash of the data), `log.json` (what the trainer logged), `timing.jsonl` (how long it took) and
`checkpoints/`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

from esc_env.agents.turn import system_prompt
from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import Chairs
from esc_env.dialogue import ChatMessage
from esc_env.errors import ConfigError, ESCError, MissingExtra, RecordError
from esc_env.escaping import one_line
from esc_env.folder import TIMING, RunFolder
from esc_env.models import ModelSettings
from esc_env.models.templates import ChatTemplate
from esc_env.models.weights import adapter_facts, load_config, load_model
from esc_env.models.weights import load_tokenizer as read_tokenizer
from esc_env.records import RecordWriter, write_json
from esc_env.rules import Rules
from esc_env.training.checkpoints import resume_from, room
from esc_env.training.config import Setting, Stage, is_main, processes
from esc_env.training.logs import CHECKPOINTS, LINES, LOG, VALID
from esc_env.training.telling import Telling

try:
    import peft
    import torch
    import transformers
    from accelerate import PartialState
    from transformers.utils.versions import require_version
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "train") from error

TRL = ">=1.15,<1.17"
"""The versions of TRL that training works with: `--reward env` generates by a private method of its trainer."""


def check_trl() -> None:
    """Refuse a TRL of another version. Raises MissingExtra, saying which one is there."""
    try:
        require_version(f"trl{TRL}")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra("trl", "train") from error
    except ImportError as error:
        raise MissingExtra(f"trl{TRL} (here is {importlib.metadata.version('trl')})", "train") from error


check_trl()

__all__ = [
    "FREE",
    "TRL",
    "arguments",
    "asked",
    "base_of",
    "chairs_of",
    "check_adapter",
    "check_trl",
    "clocked",
    "finish",
    "is_main",
    "load_policy",
    "load_tokenizer",
    "local",
    "lora",
    "needs",
    "on_processor",
    "open_stage",
    "outline",
    "prompt_ids",
    "quiet",
    "run_trainer",
    "shortened",
    "together",
    "weight_type",
]  # fmt: skip

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

_PATIENCE = timedelta(hours=48)
"""How long processes wait for each other: the first one collects and evaluates while the others wait."""

_LOST = re.compile(r"gloo|connection (closed|reset|refused)|broken pipe|NCCL", re.IGNORECASE)
"""How the libraries by which processes talk say that another one is gone."""


# --- the folder -----------------------------------------------------------------------------------


def needs(package: str) -> None:
    """Raise MissingExtra unless there is a package that only some runs need, and whose extra has its name."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(package, package)


def on_processor(config: Stage) -> bool:
    """Whether a stage is computed on the processor: it is told to, or there is nothing else."""
    return config.cpu or not torch.accelerator.is_available()


def together(*, cpu: bool) -> None:
    """Wait for all processes that were launched together; they find each other the first time.

    Args:
        cpu: whether they compute on processors, and talk by gloo.
    """
    if processes() > 1:
        with _company():
            PartialState(cpu=cpu, timeout=_PATIENCE).wait_for_everyone()


@contextmanager
def _company() -> Iterator[None]:
    """Have it told in one line that another of the processes has ended.

    Raises:
        ESCError: it has, so that this one cannot go on.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or _LOST.search(str(error))
        if processes() == 1 or not lost:
            raise
        raise ESCError(
            f"process {os.environ.get('RANK', 0)} of {processes()} cannot go on: another one has ended, or cannot be "
            f"reached ({one_line(str(error)).partition('. ')[0]}). The same command goes on from the last checkpoint"
        ) from error


@contextmanager
def open_stage(folder: Path, stage: str, config: Stage, data: Any) -> Iterator[bool]:
    """Hold a stage's folder; yields whether the stage is finished already.

    Of several processes the first one holds it. None goes in before it does, and none goes on before all are through.

    Args:
        folder: made if it is not there.
        stage: its name.
        config: the same one resumes; another one is refused, but for where and how it is computed.
        data: what it is trained on, JSON-able; only its hash is kept.

    Raises:
        ProtocolMismatch: the folder holds a run with another configuration or other data.
        RecordError: the folder cannot be used, another process writes there, or the disk is full.
        MissingExtra: it was launched with DeepSpeed, which is not installed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        needs("deepspeed")
    home = RunFolder(folder, "stage", (CHECKPOINTS, LINES, VALID, "best"))
    digest = blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=8).hexdigest()
    about = {"stage": stage, "class": type(config).__name__, **asdict(config), "training data": digest}
    claimed = home.claim(about, free=FREE, usual=asdict(type(config)()))
    with claimed if is_main() else nullcontext():
        if is_main() and not home.finished:
            _refuse_links(folder)
        together(cpu=on_processor(config))
        with quiet(), room(folder), _company():
            yield home.finished
        together(cpu=on_processor(config))


def _refuse_links(folder: Path) -> None:
    """Raise RecordError where a file that libraries write by its name is a link, which they would write through."""
    for entry in folder.iterdir():
        if entry.is_symlink() or (entry.is_file() and entry.stat().st_nlink > 1):
            raise RecordError(f"{entry}: is a link, and none is written through in a run's folder. Take it out")


def finish(folder: Path, log: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Note that a stage is finished, with what its trainer logged and what else there is to say about it."""
    if is_main():
        write_json(folder / LOG, list(log))
        RunFolder(folder, "stage").note(finished=True, **facts)
        (folder / LINES).unlink(missing_ok=True)


def clocked(folder: Path, **facts: Any) -> None:
    """Add to what a folder knows of how long things took."""
    with RecordWriter(folder / TIMING, "timing") as writer:
        writer.write(facts)


_TIMES = ("_runtime", "_per_second", "step_time")
"""How the names of what Transformers and TRL log about time end."""


class _Log(transformers.TrainerCallback):
    """Keeps what a trainer logs as it does, for those who look on. What it says about time is moved from its log, which
    is part of checkpoints too, into a file of its own."""

    def __init__(self, folder: Path, lines: RecordWriter | None) -> None:
        self.folder = folder
        self.lines = lines

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        entry = state.log_history[-1]
        taken = {name: entry.pop(name) for name in list(entry) if name.endswith(_TIMES)}
        if self.lines is not None:
            self.lines.write(entry)
            if taken:
                clocked(self.folder, step=state.global_step, **taken)


# --- the trainer ----------------------------------------------------------------------------------


def arguments(config: Stage, folder: Path) -> dict[str, Any]:
    """The part of a trainer's arguments that all stages share; nothing that the method names is left to defaults."""
    if config.report_to != "none":
        needs(config.report_to)
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
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "average_tokens_across_devices": True,
        "train_sampling_strategy": "random",
        "bf16": config.precision == "bf16",
        "fp16": False,
        _CHECKPOINTING: config.gradient_checkpointing,
        "use_cpu": on_processor(config),
        "seed": config.seed,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": config.save_limit,
        "logging_steps": config.logging_steps,
        "report_to": config.report_to,
        "disable_tqdm": True,  # steps are told by `run_trainer`
        "dataloader_pin_memory": torch.cuda.is_available() and not config.cpu,
        "ddp_timeout": int(_PATIENCE.total_seconds()),
    }


def lora(config: Stage, task: str, model: Any = None) -> Any:
    """The LoRA configuration for PEFT; None where all weights are trained.

    What a classifier (`model`) has beside its body is new, whatever it is called (score, classifier, pooler, head, …):
    it is trained and kept whole.
    """
    if not config.lora_rank:
        return None
    return peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        task_type=task,
        modules_to_save=[
            name
            for name, part in model.named_children()
            if name != model.base_model_prefix and any(True for _ in part.parameters())
        ]
        if task == "SEQ_CLS"
        else None,
    )


def run_trainer(trainer: Any, folder: Path) -> None:
    """Train from the newest whole checkpoint on, telling every logged step in a line."""
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(Telling)
    with RecordWriter(folder / LINES, "log") if is_main() else nullcontext() as lines:
        trainer.add_callback(_Log(folder, lines))
        trainer.train(resume_from_checkpoint=resume_from(folder, telling=is_main()))


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Transformers, TRL and PEFT say at every load and step, and nobody here can do anything about."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            yield
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


# --- models ---------------------------------------------------------------------------------------


def load_tokenizer(path: str, *, chat: bool = True) -> Any:
    """The tokenizer of a model or adapter folder, GGUF file or Hub id, with a pad token; before any weights are read.

    Raises:
        ConfigError: there is none, or it has no chat template and `chat` needs one.
    """
    try:
        tokenizer = read_tokenizer(_tokenizer_home(path))
    except ESCError:
        raise
    except (OSError, ValueError) as error:  # Transformers raises one or the other
        here = Path(path).expanduser().exists()
        missing = "no tokenizer in it" if here else "not a folder here, and the Hugging Face Hub did not give it"
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{path}: {missing} ({reason}). Check the name and the network; a gated model needs HF_TOKEN"
        ) from error
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
        SpecError: the adapter names no base, or its configuration cannot be read.
    """
    adapter = adapter_facts(Path(path))
    return adapter.base if adapter else None


def outline(path: str, kind: Any = transformers.AutoModelForCausalLM) -> Any:
    """A model without weights (on torch's `meta` device), as its configuration says; nothing else of it is read.

    Args:
        path: a folder, GGUF file or Hub id.
        kind: the class of models to make of it.
    """
    shape = load_config(path)
    with torch.device("meta"):
        return kind.from_config(shape)


def check_adapter(path: str, base: str) -> None:
    """Refuse a LoRA adapter that was trained on another model, without loading either.

    Raises:
        ConfigError: a layer that the base does not have, or of another size, naming it.
    """
    from safetensors import safe_open

    file = Path(path) / "adapter_model.safetensors"
    if not file.is_file():
        raise ConfigError(f"{path}: no adapter_model.safetensors in it; other weight formats are not read")
    modules = dict(outline(base).named_modules())
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
        adapter = adapter_facts(Path(path))
        rank = adapter.rank if adapter else None
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

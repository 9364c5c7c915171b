"""What a run of training takes, before anything is loaded: `esc train check`.

    esc train check grpo --preset qwen2.5-7b --data runs/7b/collect --reward-model runs/7b/rm --processes 8 --memory 80

Sizes are those of the models' configurations, built without their weights (on torch's `meta` device). What the memory
of a GPU holds follows from them, and is an estimate: what frameworks take beside it is not counted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from esc_env.agents import resolve_agent
from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.data.datasets import load_scenarios
from esc_env.errors import ESCError, MissingExtra
from esc_env.escaping import one_line
from esc_env.models.endpoint import unreachable
from esc_env.models.sdk import LiteLLMModel
from esc_env.models.weights import FILES, is_gguf
from esc_env.models.wire import OpenAIWire
from esc_env.specs import parse_spec
from esc_env.training.config import GRPOStage, PipelineConfig, RewardModelStage, SFTStage, Stage, processes
from esc_env.training.pipeline import POPULATIONS, TINY
from esc_env.training.stage import base_of, local, needs, on_processor, outline, weight_type

try:
    import torch
    import transformers
    from huggingface_hub import HfApi, snapshot_download
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "train") from error

__all__ = ["About", "Found", "Size", "Wanted", "check", "held", "size_of"]

GB = 1e9
OPTIMISER = 12
"""Bytes beside a trained weight: its gradient and AdamW's two moments, in 32 bits."""
LAYER, KEPT = 34, 2
"""Bytes that a layer's activations take in 16 bits for each token and each of its hidden numbers, and what is kept of
them with gradient checkpointing. *Source:* Korthikanti et al., arXiv 2205.05198, without the attention scores, which
fused kernels do not keep."""

LISTENS = "somebody listens there"

About = Literal["models", "memory", "disk", "batch", "packages", "servers", "data"]


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that a run takes.

    Attributes:
        about: what it is about.
        told: what was found, in one line.
        wrong: whether the run cannot go on like this.
    """

    about: About
    told: str
    wrong: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a stage that is run alone is given besides its configuration; None where it was not said.

    Attributes:
        data: what it learns from, or whose contexts it answers.
        reward_model: for GRPO.
        agent: who goes on after a response.
    """

    data: str | None = None
    reward_model: str | None = None
    agent: str | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """What a model's configuration says of it.

    Attributes:
        parameters: all of them.
        sides: inputs and outputs of its linear layers together, its head left out: LoRA trains rank × this.
        layers, hidden, vocabulary: as usual.
        cache: numbers that a token takes in the cache of keys and values.
        longest: tokens of the longest text it knows; None where it does not say.
    """

    parameters: int
    sides: int
    layers: int
    hidden: int
    vocabulary: int
    cache: int
    longest: int | None


def size_of(path: str, *, classifier: bool = False) -> Size:
    """The size of a model in a folder, GGUF file or on the Hub, of which only the configuration is read.

    Raises:
        OSError, ValueError: there is none, or the Hub did not give it.
    """
    kind = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    model = outline(local(base_of(path) or path), kind)
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    sides = sum(
        part.in_features + part.out_features
        for part in model.modules()
        if isinstance(part, torch.nn.Linear) and part is not head
    )
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    each = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Size(
        parameters=sum(part.numel() for part in model.parameters()),
        sides=sides,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        cache=2 * text.num_hidden_layers * heads * each,
        longest=getattr(text, "max_position_embeddings", None),
    )


def held(config: Stage, size: Size, reward_model: Size | None = None, vllm: float = 0.0) -> dict[str, float]:
    """Bytes that each process holds at most, by what they are for; an estimate.

    Args:
        config: the stage.
        size: of the model that is trained.
        reward_model: of the one that GRPO reads rewards from.
        vllm: bytes that vLLM takes for itself.
    """
    width = 2 if config.precision == "bf16" else 4
    of_weight = weight_type(config).itemsize
    shared, zero = _sharing()
    trained = _trained(config, size)
    rows, tokens, read = _longest(config)
    layers = size.layers * KEPT + LAYER if config.gradient_checkpointing else size.layers * LAYER
    made = {
        "weights": size.parameters * of_weight / shared,
        "adapter and optimiser": trained * (OPTIMISER + (4 if config.lora_rank else 0)) / zero,
        "activations": rows * tokens * size.hidden * layers * width / 2 + rows * read * size.vocabulary * (width + 8),
    }
    if isinstance(config, GRPOStage):
        if config.beta and not config.lora_rank:  # else it is the base below the adapter
            made["reference model"] = size.parameters * of_weight / shared
        if config.vllm == "off":
            made["generation"] = rows * config.accumulation * tokens * size.cache * width
        made["vLLM"] = vllm
        if reward_model is not None:
            made["reward model"] = reward_model.parameters * 2
    return {name: size for name, size in made.items() if size}


def _trained(config: Stage, size: Size) -> int:
    """How many weights learn."""
    return config.lora_rank * size.sides if config.lora_rank else size.parameters


def _longest(config: Stage) -> tuple[int, int, int]:
    """(rows at the same time, tokens of each, of how many of them the likelihoods of all words are computed)."""
    if isinstance(config, GRPOStage):
        return config.batch_size, config.prompt_length + config.completion_length, config.completion_length
    if isinstance(config, RewardModelStage):
        return config.batch_size * (2 if config.kind == "ranking" else 1), config.max_length, 0
    assert isinstance(config, SFTStage)
    return config.batch_size, config.max_length, config.max_length


def _sharing() -> tuple[int, int]:
    """Over how many processes weights are spread, and what their training takes: as `accelerate launch` tells them."""

    def told(name: str) -> str:
        return os.environ.get(f"ACCELERATE_{name}", "").lower()

    if told("USE_FSDP") == "true":
        return processes(), processes()
    if told("USE_DEEPSPEED") == "true":
        stage = told("DEEPSPEED_ZERO_STAGE") or "2"
        return processes() if stage == "3" else 1, processes() if stage in "123" else 1
    return 1, 1


def check(
    config: PipelineConfig,
    stages: Sequence[str],
    wanted: Wanted | None = None,
    *,
    out: Path | None = None,
    memory: float | None = None,
) -> list[Found]:
    """What those stages take, and what of it is missing or does not fit; nothing is loaded, and no model asked.

    Of models on the Hub the configuration is downloaded, and nothing else.

    Args:
        config: of all stages.
        stages: those that are run.
        wanted: of a stage that is run alone; None in a pipeline, whose stages hand on what they make.
        out: the folder of the run, whose disk must hold the checkpoints; None for here.
        memory: bytes of each GPU; None for those of the one that is here, if any. A stage that is computed on
            processors is held against the memory of this machine.
    """
    made = _Check(config, tuple(stages), wanted or Wanted(), alone=wanted is not None, memory=memory)
    return [
        *made.models(), *made.memories(), *made.disk(out or Path()), *made.batches(), *made.packages(),
        *made.servers(), *made.data(),
    ]  # fmt: skip


class _Check:
    """One run."""

    def __init__(
        self, config: PipelineConfig, stages: tuple[str, ...], wanted: Wanted, *, alone: bool, memory: float | None
    ) -> None:
        self.config = config
        self.wanted = wanted
        self.alone = alone
        self.given = memory
        self.stages = stages
        self.trained: dict[str, Stage] = {
            name: getattr(config, name) for name in ("sft", "rm", "grpo") if name in stages
        }
        self.sizes: dict[str, Size] = {}

    # --- models and memory ------------------------------------------------------------------------------

    def _reads(self) -> str | None:
        """The model that GRPO reads rewards from, or its base where it is still to be trained."""
        if "grpo" not in self.stages or self.config.grpo.reward not in ("rlff", "untrained"):
            return None
        given = self.wanted.reward_model
        if given is None or (self.config.grpo.reward == "rlff" and not Path(given).is_dir()):
            return self.config.rm.model
        return given

    def models(self) -> Iterator[Found]:
        """Each model, where it is and how large."""
        named = [(name, stage.model) for name, stage in self.trained.items()]
        if reads := self._reads():
            named.append(("reward model of grpo", reads))
        known: dict[str, list[str]] = {}
        for name, model in named:
            known.setdefault(model, []).append(name)
        for model, names in known.items():
            where = f"{model} ({', '.join(names)})"
            if model == TINY:
                yield Found("models", f"{where}: made from scratch")
                continue
            classifier = all(name.startswith(("rm", "reward")) for name in names)
            try:
                size = self.sizes[model] = size_of(model, classifier=classifier)
            except (OSError, ValueError, ESCError) as error:
                yield Found("models", f"{where}: {_unknown(model, error)}", wrong=True)
                continue
            place, wrong = _place(base_of(model) or model)
            yield Found("models", f"{where}: {_count(size.parameters)} parameters, {place}", wrong)

    def memories(self) -> Iterator[Found]:
        """What each stage holds, against what there is."""
        for name, stage in self.trained.items():
            if (size := self.sizes.get(stage.model)) is None:
                continue
            here, what = self._memory(stage)
            vllm = stage.vllm_memory * (here or 0) if isinstance(stage, GRPOStage) and stage.vllm == "colocate" else 0
            reads = self.sizes.get(self._reads() or "") if name == "grpo" else None
            parts = held(stage, size, reads, vllm)
            total = sum(parts.values())
            listed = ", ".join(f"{part} {_bytes(each)}" for part, each in parts.items())
            known = f" of the {_bytes(here)} of {what}" if here else f" on each {what}"
            over = here is not None and total > here
            do = ". Lower batch_size and raise accumulation, or shorten the texts" if over else ""
            yield Found("memory", f"{name}: about {_bytes(total)}{known} ({listed}){do}", over)

    def _memory(self, stage: Stage) -> tuple[float | None, str]:
        if not stage.cpu and self.given is not None:
            return self.given, "a GPU"
        if not on_processor(stage) and torch.cuda.is_available():
            return float(torch.cuda.get_device_properties(0).total_memory), "a GPU"
        if not on_processor(stage) or not hasattr(os, "sysconf"):
            return None, "device"
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return pages / processes(), "this machine" + ("" if stage.cpu else ", which has no GPU; --memory is for one")

    def disk(self, out: Path) -> Iterator[Found]:
        """What checkpoints take, against what is free where the run's folder will be."""
        needed = 0.0
        for name, stage in self.trained.items():
            if size := self.sizes.get(stage.model):
                copies = stage.save_limit + 1 + (name == "grpo")  # the result, and the best on valid
                needed += copies * _trained(stage, size) * OPTIMISER
        place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if needed:
            yield Found("disk", f"checkpoints: about {_bytes(needed)}; free: {_bytes(free)}", needed > free)

    def batches(self) -> Iterator[Found]:
        """Rows of a step, and whether their texts are within what the models know."""
        for name, stage in self.trained.items():
            rows = stage.batch_size * stage.accumulation * processes()
            product = f"{stage.batch_size} × {stage.accumulation} × {processes()} processes"
            groups = (
                f", {rows // stage.group_size} contexts of {stage.group_size}" if isinstance(stage, GRPOStage) else ""
            )
            yield Found("batch", f"{name}: {rows} rows a step ({product}){groups}")
            tokens, size = _longest(stage)[1], self.sizes.get(stage.model)
            longest = size.longest if size else None
            if longest is not None:
                over = tokens > longest
                do = ". Shorten them" if over else ""
                yield Found(
                    "batch", f"{name}: texts of at most {tokens:,} tokens; the model knows {longest:,}{do}", over
                )
            if isinstance(stage, GRPOStage) and stage.vllm == "server":
                yield Found("batch", f"{name}: start vllm serve with --max-model-len {tokens} or more")

    # --- what has to be there -----------------------------------------------------------------------------

    def packages(self) -> Iterator[Found]:
        """Those that only some runs need."""
        asked = ["vllm"] if "grpo" in self.trained and self.config.grpo.vllm != "off" else []
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
            asked.append("deepspeed")
        asked += sorted({stage.report_to for stage in self.trained.values()} - {"none"})
        for package in asked:
            try:
                needs(package)
                yield Found("packages", f"{package}: here")
            except MissingExtra as error:
                yield Found("packages", str(error), wrong=True)

    def servers(self) -> Iterator[Found]:
        """Whether every chair can be opened, has its key, and has somebody who listens."""
        seats: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        for role, text, options in self._chairs():
            seats.setdefault(text, []).append((role, options))
        for text, seated in seats.items():
            where = f"{text} ({', '.join(dict.fromkeys(role for role, _ in seated))})"
            try:
                for role, options in seated:
                    self._open(role, text, options)
                yield self._server(text, where)
            except ESCError as error:
                yield Found("servers", f"{where}: {one_line(str(error)).removeprefix(f'{text}: ')}", wrong=True)
        if "grpo" in self.trained and self.config.grpo.vllm == "server":
            why = unreachable(url := self.config.grpo.vllm_url)
            yield Found("servers", f"vLLM at {url}: {why or LISTENS}", why is not None)

    def _chairs(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """(role, string, options) of everybody who is asked."""
        setting, stages = self.config.setting, self.stages
        asked = self._judged() or self.config.grpo.reward in ("future", "env")
        talking = "collect" in stages or "evaluate" in stages or ("grpo" in stages and asked)
        if talking or ("sft" in stages and setting.sft_data in POPULATIONS and not self.alone):
            yield "seeker", setting.seeker, setting.seeker_options
            yield "critic", setting.critic, setting.critic_options
        if "evaluate" in stages:
            own = self.config.evaluate.chairs(setting)
            yield "seeker of evaluate", own["seeker"], own["seeker_options"]
            yield "critic of evaluate", own["critic"], own["critic_options"]
        collect = self.config.collect
        if "collect" in stages and collect.agent:
            yield "agent", collect.agent, collect.agent_options
        if self.wanted.agent:
            yield "agent", self.wanted.agent, setting.agent_options

    def _judged(self) -> bool:
        return self.config.setting.valid != "none"

    def _open(self, role: str, text: str, options: Mapping[str, Any]) -> None:
        """What the run will do first. Nobody is asked anything, and no file of requests is opened or made."""
        settings = replace(self.config.models, record=None, replay=None, cache=None)
        if role == "agent":
            resolve_agent(text, settings, options=options)
        elif role.startswith("seeker"):
            resolve_seeker(text, settings, options=options)
        else:
            resolve_critic(text, settings, options=options)

    def _server(self, text: str, where: str) -> Found:
        spec, named = parse_spec(text), self.config.models.api_key_env
        if spec.kind != "model":
            return Found("servers", f"{where}: here")
        provider, _, name = spec.name.partition("/")
        if spec.url is None and provider != "openai":
            variable = LiteLLMModel(spec.name, key_env=named).key_name
            return Found("servers", f"{where}: {variable} is {'' if os.environ.get(variable) else 'not '}set")
        way = OpenAIWire(name, spec.url, provider, key_env=named)
        key = f"{way.key_name} is set" if way.key else "asked without a key"
        why = unreachable(way.base)
        return Found("servers", f"{where}: {why or LISTENS}; {key}", why is not None)

    def data(self) -> Iterator[Found]:
        """Scenarios and folders that are read."""
        setting, stages = self.config.setting, self.stages
        people = {"valid": setting.valid} if "grpo" in stages and self._judged() else {}
        if "collect" in stages or ("grpo" in stages and self.config.grpo.reward == "env"):
            people["scenarios"] = setting.scenarios
        if "evaluate" in stages:
            people["test"] = setting.test
        lessons = self.wanted.data if self.alone else setting.sft_data
        if "sft" in stages and lessons is not None and lessons not in POPULATIONS and not Path(lessons).is_dir():
            people["lessons"] = lessons
        for name, source in people.items():
            try:
                yield Found("data", f"{name} {source}: {len(load_scenarios(source)):,} scenarios")
            except ESCError as error:
                yield Found("data", f"{name}: {error}", wrong=True)
        if not self.alone:
            return
        if "rm" in stages or ("grpo" in stages and self.config.grpo.reward != "env"):
            yield from _folder("--data", self.wanted.data, "esc collect")
        if "grpo" in stages and self.config.grpo.reward == "rlff":
            yield from _folder("--reward-model", self.wanted.reward_model, "esc train rm")


def _folder(option: str, path: str | None, made_by: str) -> Iterator[Found]:
    if path is None:
        yield Found("data", f"{option} is missing: the folder that `{made_by}` wrote", wrong=True)
    elif not (Path(path) / "run.json").is_file():
        yield Found("data", f"{option} {path}: no folder of `{made_by}` yet", wrong=True)
    else:
        yield Found("data", f"{option} {path}: here")


def _place(model: str) -> tuple[str, bool]:
    """(where the weights are, and what they take to get; whether they cannot be had)."""
    if Path(model).expanduser().exists():
        return "here", False
    with suppress(OSError, ValueError):  # it is not in the cache
        if any(Path(snapshot_download(model, local_files_only=True)).glob("*.safetensors")):
            return "in the Hub's cache", False
    try:
        about = HfApi().model_info(model, files_metadata=True, timeout=3.0)
    except (OSError, ValueError) as error:
        return f"not here, and the Hub does not give it ({_short(error)})", True
    files = [file for file in about.siblings or () if any(fnmatch(file.rfilename, pattern) for pattern in FILES)]
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        return "without safetensors on the Hub; a pickle (.bin) is not read", True
    gated = "; gated: accept its terms there, and set HF_TOKEN" if about.gated else ""
    return f"{_bytes(sum(file.size or 0 for file in files))} to download{gated}", False


def _unknown(model: str, error: Exception) -> str:
    if is_gguf(model) or Path(model).expanduser().exists() or isinstance(error, ESCError):
        return _short(error)
    return f"not a folder here, and the Hub does not give it ({_short(error)}). A gated model needs HF_TOKEN"


def _short(error: Exception) -> str:
    return one_line(str(error)).partition(". ")[0] or type(error).__name__


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.1f} million"


def _bytes(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"


def told(found: Iterable[Found]) -> Iterator[str]:
    """The lines of what was found, by what they are about; what is wrong is marked."""
    before = ""
    for each in found:
        yield f"{each.about if each.about != before else '':9} {'✗' if each.wrong else ' '} {each.told}"
        before = each.about

"""What each training stage is told: frozen, complete, and refused when it makes no sense, before anything is loaded.

Every number that the method names stands here as a default, with its source in the docstring of its field; nothing of
it is left to a trainer's own defaults. The classes hold plain fields only, so that TRL's parser reads them from YAML
and from the command line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from esc_env.errors import ConfigError

__all__ = ["GRPOStage", "RewardModelStage", "SFTStage", "Stage"]

# `X | None` and Literal only: what TRL's parser (transformers.HfArgumentParser) understands.


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What every stage has: a model, its adapter, an optimiser and a batch.

    Attributes:
        model: a folder or Hub id; also a LoRA adapter's folder, which is then trained further.
        learning_rate: peak learning rate, above 0.
        epochs: passes over the data; `max_steps` above 0 overrides it.
        max_steps: optimiser steps; −1 for "as many as the epochs have".
        batch_size: rows per device and forward pass.
        accumulation: forward passes per optimiser step.
        warmup: share of steps in which the learning rate rises, in [0, 1).
        scheduler: how it falls afterwards.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        lora_rank: rank of the LoRA adapter; 0 trains all weights. *Source:* LoRA in the paper (arXiv 2508.12935);
            r 16, α 32, dropout .05 on all linear layers are ours, the paper is silent.
        lora_alpha, lora_dropout: its scale and dropout.
        precision: `bf16` (GPUs), `fp32` (the tiny preset, processors).
        gradient_checkpointing: trade time for memory.
        cpu: train on the processor even where there is a GPU.
        seed: of initialisation, order and sampling.
        save_steps: optimiser steps between checkpoints.
        save_limit: how many checkpoints are kept.
        logging_steps: optimiser steps between log lines.
        report_to: where else the trainer reports: `none`, `wandb`, `tensorboard`, `trackio`.
    """

    model: str = "Qwen/Qwen2.5-7B-Instruct-1M"
    learning_rate: float = 1e-5
    epochs: float = 1.0
    max_steps: int = -1
    batch_size: int = 4
    accumulation: int = 4
    warmup: float = 0.03
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = True
    cpu: bool = False
    seed: int = 0
    save_steps: int = 100
    save_limit: int = 2
    logging_steps: int = 10
    report_to: str = "none"

    def __post_init__(self) -> None:
        self._above("learning_rate", 0)
        self._at_least("batch_size", 1)
        self._at_least("accumulation", 1)
        self._at_least("lora_rank", 0)
        self._at_least("save_steps", 1)
        self._at_least("save_limit", 1)
        self._at_least("logging_steps", 1)
        self._above("max_grad_norm", 0)
        if not self.model:
            raise self._wrong("model", "is empty; give a folder or a Hub id")
        if self.max_steps == 0 or self.max_steps < -1:
            raise self._wrong("max_steps", "must be at least 1, or -1 for as many as the epochs have")
        if self.max_steps < 0:
            self._above("epochs", 0)
        if not 0 <= self.warmup < 1:
            raise self._wrong("warmup", "is a share of the steps, in [0, 1)")
        if self.lora_rank and not 0 <= self.lora_dropout < 1:
            raise self._wrong("lora_dropout", "must lie in [0, 1)")

    def _wrong(self, name: str, why: str) -> ConfigError:
        return ConfigError(f"{type(self).__name__}: {name} = {getattr(self, name)!r} {why}")

    def _above(self, name: str, bound: float) -> None:
        if not getattr(self, name) > bound:
            raise self._wrong(name, f"must be above {bound}")

    def _at_least(self, name: str, bound: float) -> None:
        if not getattr(self, name) >= bound:
            raise self._wrong(name, f"must be at least {bound}")


@dataclass(frozen=True, kw_only=True)
class SFTStage(Stage):
    """Supervised fine-tuning on supporter turns.

    Attributes:
        max_length: tokens of a dialogue; longer ones are cut from the left, at message borders.
        thoughts: teach the think format where the data has thoughts; False leaves them out.
    """

    learning_rate: float = 1e-4
    max_length: int = 2560
    thoughts: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("max_length", 16)


@dataclass(frozen=True, kw_only=True)
class RewardModelStage(Stage):
    """The reward model: how much relief will follow from this response?

    Attributes:
        model: *Source:* LLaMA-3.2-1B, arXiv 2508.12935.
        kind: `classification` (P(label = 1); the paper's), `ranking` (pairwise) or `regression` (its ablations).
        delta: the label is 1 when the reward is above it, in (−1, 1). *Source:* ours; 0.5 is exactly "was solved" for
            one rollout. With several rollouts the label is soft: the share of them above it.
        max_length: tokens of context and response; 2,048 + 512 as in GRPO. Cut from the left at message borders.
        lora_rank: 0, all weights: the model is small. An adapter is merged into its base when it is trained.
        balance: weigh the rarer class up, so that both count alike in the loss (classification only).
        valid_share: share of scenarios held out for the report, in (0, 0.5].
        margin: pairs whose rewards differ by no more than this are no pairs (ranking only).
        tail: train also on tail labels, the later turns of simulated rollouts; False selects the paper's set.
    """

    model: str = "meta-llama/Llama-3.2-1B"
    kind: Literal["classification", "ranking", "regression"] = "classification"
    delta: float = 0.5
    max_length: int = 2560
    balance: bool = True
    valid_share: float = 0.1
    margin: float = 0.0
    tail: bool = True
    lora_rank: int = 0
    batch_size: int = 16
    accumulation: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("max_length", 16)
        self._at_least("margin", 0)
        if not -1 < self.delta < 1:
            raise self._wrong("delta", "must lie inside (-1, 1), where rewards lie")
        if not 0 < self.valid_share <= 0.5:
            raise self._wrong("valid_share", "is the share of scenarios held out, in (0, 0.5]")


@dataclass(frozen=True, kw_only=True)
class GRPOStage(Stage):
    """Group-relative policy optimisation on R_rlff = R_fut + α · R_thk-fmt.

    Attributes:
        reward: `rlff` (the learned reward model), `future` (simulated futures), `env` (whole conversations), `random`
            (the paper's ablation).
        alpha: weight of the think-format reward, at least 0. *Source:* α = 0.5, arXiv 2508.12935.
        group_size: responses per context, at least 2. *Source:* G = 4, arXiv 2508.12935.
        temperature: of sampling. *Source:* τ = 1.1, arXiv 2508.12935.
        top_p: nucleus of sampling, in (0, 1]; 1 is all of it.
        max_turns: T, the horizon of simulated futures and of whole conversations. *Source:* T = 8, arXiv 2508.12935.
        beta: weight of the KL to the starting policy. *Source:* 0.04, DeepSeekMath (arXiv 2402.03300); 0 logs no KL.
        loss_type: the objective. *Source:* `grpo`, DeepSeekMath.
        scale_rewards: what advantages are divided by: the standard deviation of the group, of the batch, or nothing.
            *Source:* `group`, DeepSeekMath.
        epsilon: clip range of the ratio. *Source:* 0.2, DeepSeekMath.
        iterations: μ, updates per generated batch. *Source:* 1, DeepSeekMath.
        prompt_length: tokens of the context; longer ones are cut from the left at message borders.
        completion_length: most tokens of a response, thought included.
        require_end: a reply that does not end by itself gets no reward for its future.
        save_steps: optimiser steps between checkpoints; each is evaluated on valid scenarios, and the best is kept.
        vllm: `colocate` (same GPUs), `server` (`trl vllm-serve` at `vllm_url`) or `off`.
        vllm_url: where that server listens.
        vllm_memory: share of GPU memory that vLLM may take (`colocate`), in (0, 1).
    """

    reward: Literal["rlff", "future", "env", "random"] = "rlff"
    alpha: float = 0.5
    group_size: int = 4
    temperature: float = 1.1
    top_p: float = 1.0
    max_turns: int = 8
    beta: float = 0.04
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    epsilon: float = 0.2
    iterations: int = 1
    prompt_length: int = 2048
    completion_length: int = 512
    require_end: bool = True
    save_steps: int = 50
    vllm: Literal["off", "colocate", "server"] = "off"
    vllm_url: str = "http://127.0.0.1:8000"
    vllm_memory: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise self._wrong(
                "group_size", "leaves nothing to compare: advantages are relative to the group. Use 2 or more"
            )
        rows = self.batch_size * self.accumulation * _processes()
        if rows % self.group_size:
            raise self._wrong(
                "group_size",
                f"does not divide the batch: batch_size {self.batch_size} x accumulation {self.accumulation} x "
                f"{_processes()} processes = {rows} rows. Make that a multiple of {self.group_size}",
            )
        self._at_least("alpha", 0)
        self._above("temperature", 0)
        self._at_least("max_turns", 1)
        self._at_least("beta", 0)
        self._above("epsilon", 0)
        self._at_least("iterations", 1)
        self._at_least("prompt_length", 16)
        self._at_least("completion_length", 1)
        if not 0 < self.top_p <= 1:
            raise self._wrong("top_p", "must lie in (0, 1]")
        if not 0 < self.vllm_memory < 1:
            raise self._wrong("vllm_memory", "is a share of GPU memory, in (0, 1)")


def _processes() -> int:
    """How many processes train together: what `accelerate launch` tells each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))

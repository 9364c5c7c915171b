"""The settings of each training stage. What makes no sense is refused before anything is loaded.

Every number that the method names stands here as a default, with its source in the docstring of its field; nothing of
it is left to a trainer's own defaults. The fields' type hints say what YAML and the command line may give them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_type_hints

from esc_env.errors import ConfigError, did_you_mean
from esc_env.models import ModelSettings, Options
from esc_env.scenarios import MIXED, PERSONAS, ScenarioSet

__all__ = [
    "STAGES", "CollectStage", "EvaluateStage", "GRPOStage", "PipelineConfig", "RewardModelStage", "SFTStage",
    "Setting", "Stage", "is_main", "launched", "processes",
]  # fmt: skip

STAGES = ("sft", "collect", "rm", "grpo", "evaluate")
"""The stages of the method, in their order."""


class _Checked:
    """How a configuration says which of its fields makes no sense."""

    def _wrong(self, name: str, why: str) -> ConfigError:
        return ConfigError(f"{type(self).__name__}: {name} = {getattr(self, name)!r} {why}")

    def _above(self, bound: float, *names: str) -> None:
        for name in names:
            if (value := getattr(self, name)) is not None and not value > bound:
                raise self._wrong(name, f"must be above {bound}")

    def _at_least(self, bound: float, *names: str) -> None:
        for name in names:
            if (value := getattr(self, name)) is not None and not value >= bound:
                raise self._wrong(name, f"must be at least {bound}")

    def _options_of(self, *chairs: str) -> None:
        """Options of chairs are kept as they are compared: nested, and a file's text in place of its name."""
        for chair in chairs:
            plain = Options.of(getattr(self, f"{chair}_options"), chair).plain
            object.__setattr__(self, f"{chair}_options", plain)
            if plain and not getattr(self, chair, True):
                raise self._wrong(
                    f"{chair}_options",
                    f"are for the {chair} of this stage, and none is named here: name it, or set them in the setting",
                )


@dataclass(frozen=True, kw_only=True)
class Stage(_Checked):
    """What every stage has: a model, its adapter, an optimiser and a batch.

    Attributes:
        model: a folder, GGUF file or Hub id; also a LoRA adapter's folder, which is then trained further.
        learning_rate: peak learning rate, above 0.
        epochs: passes over the data; `max_steps` above 0 overrides it.
        max_steps: optimiser steps; −1 for "as many as the epochs have".
        batch_size: rows per device and forward pass.
        accumulation: forward passes per optimiser step.
        warmup: share of steps in which the learning rate rises, in [0, 1).
        scheduler: how the learning rate falls afterwards.
        weight_decay: of the optimiser, AdamW.
        max_grad_norm: gradients are clipped to this norm.
        lora_rank: rank of the LoRA adapter; 0 trains all weights. *Source:* LoRA in the paper (arXiv 2508.12935);
            r 16, α 32, dropout .05 on all linear layers are ours, the paper is silent.
        lora_alpha, lora_dropout: scale α and dropout of the LoRA adapter.
        precision: `bf16` (GPUs), `fp32` (the tiny preset, processors).
        gradient_checkpointing: compute activations twice, which saves memory and takes longer.
        cpu: train on the processor even where there is a GPU.
        seed: decides initial weights, the order of data, and sampling.
        save_steps: optimiser steps between checkpoints.
        save_limit: how many checkpoints are kept.
        logging_steps: optimiser steps between log lines.
        report_to: where else the trainer reports: every part of the reward, SR on valid and what the policy says.
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
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"

    def __post_init__(self) -> None:
        self._above(0, "learning_rate", "max_grad_norm")
        self._at_least(1, "batch_size", "accumulation", "save_steps", "save_limit", "logging_steps")
        self._at_least(0, "lora_rank")
        if not self.model:
            raise self._wrong("model", "is empty; give a folder or a Hub id")
        if self.max_steps == 0 or self.max_steps < -1:
            raise self._wrong("max_steps", "must be at least 1, or -1 for as many as the epochs have")
        if self.max_steps < 0:
            self._above(0, "epochs")
        if not 0 <= self.warmup < 1:
            raise self._wrong("warmup", "is a share of the steps, in [0, 1)")
        if self.lora_rank and not 0 <= self.lora_dropout < 1:
            raise self._wrong("lora_dropout", "must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SFTStage(Stage):
    """Supervised fine-tuning on supporter turns.

    Attributes:
        max_length: tokens of a dialogue; longer ones are cut from the left, at message borders.
        thoughts: teach the think format where the data has thoughts; False leaves them out.
        valid: share of the scenarios, in [0, 1), whose dialogues are not learned but tell the loss on unseen ones:
            `eval_loss` in log.json, every `save_steps` and at the end. Near-duplicate scenarios stay on one side; above
            0 at least one is held out.
    """

    learning_rate: float = 1e-4
    max_length: int = 2560
    thoughts: bool = True
    valid: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(16, "max_length")
        if not 0 <= self.valid < 1:
            raise self._wrong("valid", "is a share of scenarios, in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class RewardModelStage(Stage):
    """The reward model: how much relief will follow from this response?

    Attributes:
        model: a base model's folder or Hub id. *Source:* LLaMA-3.2-1B, arXiv 2508.12935.
        kind: what it learns to predict: `classification`, the probability that relief follows (the paper's way);
            `ranking`, which of two responses is better; `regression`, R_fut itself (the paper's ablations).
        delta: δ: relief follows (label 1) when R_fut is above it, in (−1, 1). *Source:* ours; 0.5 is exactly "was
            solved" for one rollout. With several rollouts the label is soft: the share of them above it.
        max_length: tokens of context and response; 2,048 + 512 as in GRPO. Cut from the left at message borders.
        lora_rank: 0, all weights: the model is small. An adapter is merged into its base when it is trained.
        balance: give the rarer class more weight, so that both count alike in the loss (classification only). Off by
            default: it moves the predicted probability away from the true share, and the report says how far.
        margin: pairs whose rewards differ by no more than this are left out (ranking only).
        tail: train also on tail labels, the later replies inside simulated futures; False selects the paper's set.
        horizon: turns after which every future is read as ended, so that all labels mean the same: a tail had less
            time than T. Tails that had fewer turns left are left out. None: with tail labels half of T, rounded up, at
            least 2; else all of T.
    """

    model: str = "meta-llama/Llama-3.2-1B"
    kind: Literal["classification", "ranking", "regression"] = "classification"
    delta: float = 0.5
    max_length: int = 2560
    balance: bool = False
    margin: float = 0.0
    tail: bool = True
    horizon: int | None = None
    lora_rank: int = 0
    batch_size: int = 16
    accumulation: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(16, "max_length")
        self._at_least(0, "margin")
        self._at_least(1, "horizon")
        if not -1 < self.delta < 1:
            raise self._wrong("delta", "must lie inside (-1, 1), where rewards lie")


@dataclass(frozen=True, kw_only=True)
class GRPOStage(Stage):
    """GRPO (group relative policy optimisation): of several responses to one context the better ones become likelier.

    The reward is R_rlff = R_fut + α · R_thk-fmt: what the future brings, and a little for the think format.

    Attributes:
        reward: `rlff` (the learned reward model), `future` (simulated futures), `env` (whole conversations); as
            controls `untrained` (a reward model that nobody has trained: the paper's random one), `noise` (fresh in
            every step) and `format` (α · R_thk-fmt alone).
        alpha: weight of the think-format reward, at least 0. *Source:* α = 0.5, arXiv 2508.12935.
        group_size: responses per context, at least 2. *Source:* G = 4, arXiv 2508.12935.
        temperature: at which responses are sampled. *Source:* τ = 1.1, arXiv 2508.12935.
        top_p: sample from the likeliest tokens that together have this probability, in (0, 1]; 1 is all tokens.
        max_turns: T, the most turns of whole conversations and of simulated futures. *Source:* T = 8, arXiv
            2508.12935.
        horizon: T of simulated futures (reward `future`), if it is to differ from `max_turns`.
        credit: what a whole conversation is worth (reward `env` only): `terminal` is R_fut of its end; `dense` adds up
            how much every turn, from the trained one on, changed the critic's score, later ones discounted (ours);
            `turn` adds to R_fut how much the trained turn itself changed that score. *Source:* of the last, the idea
            of CTC-GRPO (EIBench, arXiv 2606.15532); that GRPO's advantage centres both together is ours.
        turns: how many turns of one conversation are drawn to be trained, a row each (reward `env`), at least 1; a
            divisor of `group_size`. Holding conversations takes most of the time, so more rows from each are cheaper.
            Ours.
        gamma: γ, the discount of later turns, in (0, 1] (reward `env` only; simulated futures are worth R_fut, with
            the γ of the labels that reward models learn from). *Source:* ours, as R_fut has.
        beta: weight of the KL, the penalty for moving away from the policy that training began with; 0 logs no KL.
            *Source:* 0.04, DeepSeekMath (arXiv 2402.03300).
        kl_target: β follows the KL, so that it stays near so many nats per token, above 0; `beta` is what it begins
            with. None leaves β as it is. *Source:* adaptive KL of Ziegler et al., arXiv 1909.08593; off by default.
        patience: training stops after so many checkpoints in a row that are no better on valid; none for never. The
            best one is the result in any case. Ours.
        loss_type: the objective, by TRL's names. *Source:* `grpo`, DeepSeekMath.
        scale_rewards: what a reward's distance from its group's mean (the advantage) is divided by: the standard
            deviation of the group, of the batch, or nothing.
            *Source:* `group`, DeepSeekMath.
        epsilon: how far one update may change the probability of a token: the clip range of its ratio. *Source:* 0.2,
            DeepSeekMath.
        epsilon_high: the same upwards, where unlikely tokens are to gain more; none for `epsilon`. *Source:* DAPO has
            0.28 (arXiv 2503.14476), whose dynamic sampling TRL has not.
        importance_sampling_level: the ratio is that of each token, or of the whole reply (`sequence`, with loss_type
            `grpo`). *Source:* GSPO, arXiv 2507.18071. With one update a batch (`iterations` 1) all ratios are 1, and
            neither this nor any epsilon changes anything.
        iterations: μ, how many updates are made with each generated batch. *Source:* 1, DeepSeekMath.
        prompt_length: tokens of the context; longer ones are cut from the left at message borders.
        completion_length: most tokens of a response, thought included.
        require_end: a reply that does not end by itself is rewarded below all others of its group that do.
        concurrency: model calls under way at the same time (rewards `future` and `env`).
        save_steps: optimiser steps between checkpoints; each is evaluated on valid scenarios, and the best is kept.
        vllm: `colocate` (same GPUs), `server` (`vllm serve` at `vllm_url`; docs/training.md has its flags) or `off`.
        vllm_url: where that server listens.
        vllm_memory: share of GPU memory that vLLM may take (`colocate`), in (0, 1).
    """

    reward: Literal["rlff", "future", "env", "untrained", "noise", "format"] = "rlff"
    alpha: float = 0.5
    group_size: int = 4
    temperature: float = 1.1
    top_p: float = 1.0
    max_turns: int = 8
    horizon: int | None = None
    credit: Literal["terminal", "dense", "turn"] = "terminal"
    turns: int = 1
    gamma: float = 0.95
    beta: float = 0.04
    kl_target: float | None = None
    patience: int | None = None
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    importance_sampling_level: Literal["token", "sequence"] = "token"
    iterations: int = 1
    prompt_length: int = 2048
    completion_length: int = 512
    require_end: bool = True
    concurrency: int = 64
    save_steps: int = 50
    vllm: Literal["off", "colocate", "server"] = "off"
    vllm_url: str = "http://127.0.0.1:8000"
    vllm_memory: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward not in (known := get_type_hints(type(self))["reward"].__args__):
            raise self._wrong(
                "reward",
                f"is none of {', '.join(known)}. 'random' is 'noise' now; the paper's random control is 'untrained'",
            )
        if self.group_size < 2:
            raise self._wrong(
                "group_size", "leaves nothing to compare: advantages are relative to the group. Use 2 or more"
            )
        rows = self.batch_size * self.accumulation * processes()
        if rows % self.group_size:
            raise self._wrong(
                "group_size",
                f"does not divide the batch: batch_size {self.batch_size} x accumulation {self.accumulation} x "
                f"{processes()} processes = {rows} rows. Make that a multiple of {self.group_size}",
            )
        self._at_least(0, "alpha", "beta")
        self._above(
            0, "temperature", "epsilon", "epsilon_high", "kl_target", *(("alpha",) if self.reward == "format" else ())
        )
        self._at_least(1, "max_turns", "horizon", "iterations", "completion_length", "concurrency", "patience")
        if self.kl_target is not None and not self.beta:
            raise self._wrong("kl_target", "is for a KL that is measured: begin with a beta above 0")
        self._at_least(16, "prompt_length")
        if self.turns < 1 or self.group_size % self.turns or self.group_size == self.turns > 1:
            raise self._wrong("turns", f"must divide group_size = {self.group_size} and leave several conversations")
        if self.importance_sampling_level == "sequence" and self.loss_type != "grpo":
            raise self._wrong(
                "importance_sampling_level",
                f"counts each reply once, loss_type {self.loss_type!r} each token: use grpo",
            )
        if not 0 < self.gamma <= 1:
            raise self._wrong("gamma", "must lie in (0, 1]")
        if not 0 < self.top_p <= 1:
            raise self._wrong("top_p", "must lie in (0, 1]")
        if not 0 < self.vllm_memory < 1:
            raise self._wrong("vllm_memory", "is a share of GPU memory, in (0, 1)")


def processes() -> int:
    """How many processes train together: what `accelerate launch` or `torchrun` tells each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def launched(count: int | None) -> Iterator[None]:
    """Have `processes` say so many meanwhile, as a launcher would; None changes nothing."""
    before = os.environ.get("WORLD_SIZE")
    if count is not None:
        os.environ["WORLD_SIZE"] = str(count)
    try:
        yield
    finally:
        if count is not None:
            os.environ.pop("WORLD_SIZE")
            os.environ.update({} if before is None else {"WORLD_SIZE": before})


def is_main() -> bool:
    """Whether this process is the one that writes: the only one, or the first of those that were launched together."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True, kw_only=True)
class CollectStage(_Checked):
    """Collecting: responses to contexts, and what becomes of them (D_r in the paper).

    Attributes:
        agent: who responds, as `esc eval --agent` takes it; empty for the policy trained so far, computed here. Name a
            server's model (`openai/policy@http://127.0.0.1:8001/v1#think`) to have it answer instead.
        agent_options: further fields of every request to that model; for the policy those of the setting hold.
        temperature: of the policy while it is sampled. *Source:* PPDPP: 0.7.
        source: `human` takes contexts from the scenarios' dialogues, `simulated` from conversations held on the spot,
            `auto` from the dialogue where there is one.
        limit: only the first so many scenarios; none for all.
        contexts: so many contexts, drawn from all; none for all.
        candidates: m, responses per context, at least 1. *Source:* m = 4, arXiv 2508.12935.
        rollouts: K, futures per response, at least 1. *Source:* K = 1, arXiv 2508.12935.
        horizon: T of a future, the turn of its response included, at least 1; none for the setting's `max_turns`, as
            the paper has it. How a shorter future ends depends more on the response, and less on chance.
        trials: episodes per scenario, at least 1.
        valid: share of scenarios marked as held out in the data card, in [0, 1).
        valid_candidates: m of these, on which the reward model is measured; none for `candidates`.
        valid_rollouts: K of these; none for `rollouts`.
        concurrency: calls in flight at the same time.
    """

    agent: str = ""
    agent_options: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 0.7
    source: Literal["auto", "human", "simulated"] = "auto"
    limit: int | None = None
    contexts: int | None = None
    candidates: int = 4
    rollouts: int = 1
    horizon: int | None = None
    trials: int = 1
    valid: float = 0.2
    valid_candidates: int | None = None
    valid_rollouts: int | None = None
    concurrency: int = 64

    def __post_init__(self) -> None:
        self._options_of("agent")
        self._at_least(0, "temperature")
        self._at_least(1, "limit", "contexts", "horizon", "candidates", "rollouts", "trials", "concurrency")
        self._at_least(1, "valid_candidates", "valid_rollouts")
        if self.candidates > 1 and not self.temperature:
            raise self._wrong("temperature", "makes all candidates say the same. Raise it above 0, or ask for one")
        if not 0 <= self.valid < 1:
            raise self._wrong("valid", "is a share of scenarios, in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(_Checked):
    """Whole conversations with every trained policy, on scenarios that no training has seen.

    Attributes:
        limit: only the first so many scenarios; none for all.
        trials: conversations per scenario, at least 1.
        temperature: of the policy. *Source:* PPDPP: 0.
        seeker, critic: other chairs than in training; empty for the same. *Source:* GPT-4o, arXiv 2508.12935.
        seeker_options, critic_options: further fields of every request to these; for the chairs of training those of
            the setting hold.
        sweep: other temperatures that the policy before GRPO is evaluated at. GRPO makes a policy more certain, which a
            lower temperature does for nothing: so gains are reported over the best of them.
        personas: evaluated too, with every persona named here and other seeds: a gain that vanishes there was learned
            from one simulator's habits. `none` for none.
        persona_trials: conversations per scenario and persona, at least 1.
        last: also the last checkpoint of GRPO, where another one was chosen on valid.
        concurrency: conversations held at the same time.
    """

    limit: int | None = None
    trials: int = 1
    temperature: float = 0.0
    seeker: str = ""
    critic: str = ""
    seeker_options: Mapping[str, Any] = field(default_factory=dict)
    critic_options: Mapping[str, Any] = field(default_factory=dict)
    sweep: list[float] = field(default_factory=list)
    personas: list[str] = field(default_factory=list)
    persona_trials: int = 1
    last: bool = False
    concurrency: int = 64

    def __post_init__(self) -> None:
        self._at_least(1, "limit", "trials", "persona_trials", "concurrency")
        self._at_least(0, "temperature")
        self._options_of("seeker", "critic")
        if any(not temperature >= 0 for temperature in self.sweep):
            raise self._wrong("sweep", "holds a temperature below 0")

    def chairs(self, setting: Setting) -> dict[str, Any]:
        """The seeker and the critic as keyword arguments of `evaluate`: its own, else the setting's."""
        own = [chair for chair in ("seeker", "critic") if getattr(self, chair)]
        return setting.chairs() | {name: getattr(self, name) for each in own for name in (each, f"{each}_options")}


@dataclass(frozen=True, kw_only=True)
class Setting(_Checked):
    """What all stages of a pipeline have in common: who is trained, with whom, on which scenarios.

    Attributes:
        model: the policy to begin with: a folder or Hub id; `tiny` makes one from scratch.
        reward_model: the reward model to begin with; `tiny` makes one from scratch.
        style: how the policy is prompted, in training and evaluation: `think` (the paper's format) or `standard`.
        scenarios: what is trained on.
        valid: scenarios that every checkpoint is judged by: the best one becomes the result, and training warns when it
            gets worse there. `esc train grpo` takes `none`: the last checkpoint is the result.
        test: what is evaluated on.
        sft_data: what the first stage learns from: scenarios with human dialogues (`esconv:train`, `extes:train`, a
            file), a folder of `esc collect` or `esc eval` (what was solved), or `population` (conversations that
            scripted supporters, poor to good, hold with the seeker; `population:steady` without their haste).
        seeker: who plays the person with the problem, as in `esc eval`. *Source:* Qwen2.5-72B, arXiv 2508.12935.
        critic: who judges whether it is solved, as in `esc eval`. *Source:* Qwen2.5-72B, arXiv 2508.12935.
        agent_options: further fields of every request to the policy where it talks, KEY=VALUE each: `max_tokens`,
            `top_p`, … (see docs/models.md). Its `system` prompt holds in training too.
        seeker_options: further fields of every request to a seeker that is a chat model, KEY=VALUE each.
        critic_options: further fields of every request to a critic that is a chat model, KEY=VALUE each.
        persona: how the seekers of training and of `valid` respond to help: a persona, or `mixed`, which deals out all
            but guarded and hostile, so that these can be tested with; empty for what each scenario says.
        max_turns: T, everywhere. *Source:* T = 8, arXiv 2508.12935.
        seed: of everything that is drawn.
        skip: stages to leave out; what a later one needs of a skipped one is looked for in the run folder.
            `none` for none.
        valid_limit: conversations that each checkpoint is judged by.
    """

    model: str = "Qwen/Qwen2.5-7B-Instruct-1M"
    reward_model: str = "meta-llama/Llama-3.2-1B"
    style: Literal["think", "standard"] = "think"
    scenarios: str = "builtin:train"
    valid: str = "builtin:valid"
    test: str = "builtin:test"
    sft_data: str = "population"
    seeker: str = "builtin"
    critic: str = "builtin"
    agent_options: Mapping[str, Any] = field(default_factory=dict)
    seeker_options: Mapping[str, Any] = field(default_factory=dict)
    critic_options: Mapping[str, Any] = field(default_factory=dict)
    persona: str = ""
    max_turns: int = 8
    seed: int = 0
    skip: list[str] = field(default_factory=list)
    valid_limit: int = 32

    def __post_init__(self) -> None:
        for name in ("model", "reward_model", "scenarios", "valid", "test", "seeker", "critic"):
            if not getattr(self, name):
                raise self._wrong(name, "is empty")
        self._options_of("agent", "seeker", "critic")
        self._at_least(1, "max_turns", "valid_limit")
        for stage in self.skip:
            if stage not in STAGES:
                raise self._wrong("skip", f"names no stage. {did_you_mean(stage, STAGES)}")
        if self.persona and self.persona not in (*PERSONAS, MIXED):
            raise self._wrong("persona", f"is none. {did_you_mean(self.persona, (*PERSONAS, MIXED))}")
        if self.test == self.scenarios:
            raise self._wrong("test", "is what is trained on. Evaluate on scenarios that no training has seen")

    def people(self) -> ScenarioSet:
        """Whom training meets. Raises ScenarioError as `load_scenarios` does."""
        from esc_env.data.datasets import load_scenarios  # which `esc --help` does without

        people = load_scenarios(self.scenarios)
        return people.with_persona(self.persona) if self.persona else people

    def chairs(self) -> dict[str, Any]:
        """The seeker and the critic as keyword arguments of `collect` and `evaluate`."""
        return {name: getattr(self, name) for name in ("seeker", "seeker_options", "critic", "critic_options")}


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The whole method: sft → collect → rm → grpo → evaluate. `read_pipeline` makes it from a preset or a YAML file.

    Attributes:
        setting: what the stages have in common.
        models: how the chat models of all stages are called, and what each process may spend on them; `concurrency` is
            each stage's own. None of it changes what they are asked: a run goes on with other values.
        sft, collect, rm, grpo, evaluate: the stages. Their `model`, `seed` and `max_turns` are the setting's.
    """

    setting: Setting = field(default_factory=Setting)
    models: ModelSettings = field(default_factory=ModelSettings)
    sft: SFTStage = field(default_factory=SFTStage)
    collect: CollectStage = field(default_factory=CollectStage)
    rm: RewardModelStage = field(default_factory=RewardModelStage)
    grpo: GRPOStage = field(default_factory=GRPOStage)
    evaluate: EvaluateStage = field(default_factory=EvaluateStage)

    def __post_init__(self) -> None:
        if self.collect.candidates < 2 and self.rm.kind == "ranking" and self.runs("rm"):
            raise ConfigError("a ranking reward model compares responses to one context: collect at least 2 candidates")

    def settled(self) -> PipelineConfig:
        """The same, with the setting's model, seed and `max_turns` in every stage that has them."""
        of = self.setting
        return replace(
            self,
            sft=replace(self.sft, model=of.model, seed=of.seed),
            rm=replace(self.rm, model=of.reward_model, seed=of.seed),
            grpo=replace(self.grpo, model=of.model, seed=of.seed, max_turns=of.max_turns),
        )

    def calls(self, stage: CollectStage | GRPOStage | EvaluateStage) -> ModelSettings:
        """How chat models are called in a stage."""
        return replace(self.models, concurrency=stage.concurrency)

    def runs(self, stage: str) -> bool:
        """Whether a stage is run: it is not skipped, and what it makes is used by the reward."""
        if stage in self.setting.skip:
            return False
        if stage == "rm":
            return "grpo" in self.setting.skip or self.grpo.reward == "rlff"
        if stage == "collect":
            return self.runs("rm") or "grpo" in self.setting.skip or self.grpo.reward != "env"
        return True

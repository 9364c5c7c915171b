"""Stage 3 of RLFF-ESC: group-relative policy optimisation on R_rlff = R_fut + α · R_thk-fmt, with TRL's GRPOTrainer.

    esc train grpo --model runs/sft --data runs/collect --reward-model runs/rm --out runs/grpo

A rising reward is no evidence: a policy may please the reward model and nobody else. So every checkpoint is evaluated
on valid scenarios, the best of them is kept, and known signs of failure are told while training goes on.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env.agents.spec import resolve_agent
from esc_env.background import run, settle, wait
from esc_env.dialogue import ChatMessage
from esc_env.errors import ConfigError, MissingExtra, TrainingWarning
from esc_env.evaluation.pages.markdown import cell, table
from esc_env.evaluation.runs.holding import check_models
from esc_env.folder import RunFolder
from esc_env.models import ModelSettings
from esc_env.models.templates import ChatTemplate
from esc_env.models.weights import is_gguf
from esc_env.protocols import Agent
from esc_env.records import write_json
from esc_env.rewards import FutureReward, NoiseReward, ThinkFormatReward, combine, grpo_row
from esc_env.rewards.rows import Reward, Text, awaited, raw_text
from esc_env.rules import Rules
from esc_env.training.config import CollectStage, GRPOStage, Setting
from esc_env.training.data import Sample
from esc_env.training.floor import floored
from esc_env.training.logs import VALID, read_said, read_valid, said_steps
from esc_env.training.outcome import shown
from esc_env.training.restraint import KLTarget, exhausted
from esc_env.training.signs import failure_signs
from esc_env.training.stage import (
    arguments,
    asked,
    chairs_of,
    finish,
    is_main,
    load_policy,
    load_tokenizer,
    local,
    needs,
    on_processor,
    open_stage,
    prompt_ids,
    quiet,
    run_trainer,
    shortened,
    together,
)

try:
    import transformers
    from datasets import Dataset
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "trl").partition(".")[0], "train") from error

__all__ = [
    "fit_prompts", "grpo_arguments", "optimise", "train_grpo",
]  # fmt: skip

logger = logging.getLogger(__name__)

Evaluate = Callable[[str], float]
"""Given a policy's folder or Hub id: its success rate on valid scenarios, in [0, 1]."""


def grpo_arguments(config: GRPOStage, folder: Path) -> dict[str, Any]:
    """What TRL's `GRPOConfig` is told; nothing that the method names is left to TRL's defaults."""
    return {
        **arguments(config, folder),
        "num_generations": config.group_size,
        "steps_per_generation": config.accumulation,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "max_completion_length": config.completion_length,
        "beta": config.beta,
        "loss_type": config.loss_type,
        "scale_rewards": config.scale_rewards,
        "epsilon": config.epsilon,
        "epsilon_high": config.epsilon if config.epsilon_high is None else config.epsilon_high,
        "delta": None,
        "use_bias_correction_kl": True,  # TRL's; DeepSeek-V3.2 (arXiv 2512.02556): KL counts by the ratio's gradient
        "sync_ref_model": False,
        "disable_dropout": False,
        "entropy_coef": 0.0,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "reward_weights": None,
        "multi_objective_aggregation": "sum_then_normalize",
        "shuffle_dataset": True,
        "num_iterations": config.iterations,
        "mask_truncated_completions": False,  # they are scored: see `require_end`
        "importance_sampling_level": config.importance_sampling_level,
        "log_completions": True,
        "num_completions_to_print": 0,
        "use_vllm": config.vllm != "off",
        "vllm_mode": config.vllm if config.vllm != "off" else "colocate",
        "vllm_server_base_url": config.vllm_url if config.vllm == "server" else None,
        "vllm_gpu_memory_utilization": config.vllm_memory,
        "vllm_max_model_length": config.prompt_length + config.completion_length,  # else the model's own: up to 1M
        "vllm_tensor_parallel_size": 1,
        "vllm_enable_sleep_mode": False,
        "vllm_model_impl": "vllm",
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
        "vllm_importance_sampling_clip_min": None,
    }


def fit_prompts(
    prompts: Iterable[Mapping[str, Any]], tokenizer: Any, max_length: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows whose prompt fits, cut from the left at message borders, and how many were `cut` or `dropped`.

    A system message stays; one that the chat template refuses precedes the first user message. Control tokens inside
    messages are removed, so that no message can forge a turn.
    """
    control = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    rows = []
    counts = Counter(prompts=0, cut=0, dropped=0)
    for row in prompts:
        counts["prompts"] += 1
        chat: list[ChatMessage] = []
        for message in row["prompt"]:
            content = message["content"]
            for token in control:
                content = content.replace(token, "")
            chat.append(ChatMessage(role=message["role"], content=content))
        fitting = next((part for part in shortened(chat) if len(prompt_ids(tokenizer, part)) <= max_length), None)
        counts["dropped"] += fitting is None
        if fitting is not None:
            counts["cut"] += len(fitting) < len(chat)
            rows.append({**row, "prompt": ChatTemplate(tokenizer).accepted(fitting)})
    return rows, dict(counts)


# --- what is watched ------------------------------------------------------------------------------


class _Watched:
    """The reward as the trainer gets it, with what the replies look like logged beside.

    With a `group_size`, replies that do not end are `floored` in groups of it.
    """

    def __init__(self, reward: Reward, ends: frozenset[int], group_size: int | None) -> None:
        self.reward = reward
        self.ends = ends
        self.group_size = group_size
        self.__name__ = "total"

    @awaited
    async def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        """One reward per completion, for TRL."""
        try:
            given = self.reward(prompts=prompts, completions=completions, **columns)
            rewards: list[float | None] = list(await given if inspect.isawaitable(given) else given)
        except SystemExit as error:  # it would end TRL's loop alone, and the trainer would wait for ever
            raise RuntimeError(f"the reward called sys.exit({error.code!r})") from error
        ended = [bool(ids) and ids[-1] in self.ends for ids in columns["completion_ids"]]
        if log_metric := columns.get("log_metric"):
            texts = [raw_text(completion).split() for completion in completions]
            pairs = [pair for words in texts for pair in pairwise(words)]
            log_metric("text/distinct_2", len(set(pairs)) / len(pairs) if pairs else 0.0)
            log_metric("text/top_reply", Counter(map(tuple, texts)).most_common(1)[0][1] / len(texts))
            log_metric("text/ended", fmean(ended))
        return floored(rewards, ended, self.group_size) if self.group_size else rewards


class _Watch(transformers.TrainerCallback):
    """Evaluates every checkpoint, keeps the best, and warns of each sign of failure once.

    Attributes:
        trackers: the trainer's callbacks that report elsewhere: they are told SR on valid, too.
    """

    def __init__(self, folder: Path, config: GRPOStage, evaluate: Evaluate | None) -> None:
        self.folder = folder
        self.config = config
        self.evaluate = evaluate
        self.warned: set[str] = set()
        self.trackers: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        told = {entry["step"] for entry in state.log_history if "valid/success_rate" in entry}
        for step, rate in read_valid(self.folder).items():  # a checkpoint is written before it is judged
            if step not in told:
                state.log_history.append({"step": step, "valid/success_rate": rate})
        self._judge(args, state, control, local(self.config.model), 0)
        if state.global_step:
            self.on_save(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._judge(args, state, control, f"{args.output_dir}/checkpoint-{state.global_step}", state.global_step)
        if self.config.patience is not None:
            together(cpu=on_processor(self.config))  # what the first process has found, all of them read
            if exhausted(read_valid(self.folder), self.config.patience):
                control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        for name, sign in failure_signs(state.log_history).items():
            if name not in self.warned:
                self.warned.add(name)
                warnings.warn(f"step {state.global_step}: {sign}", TrainingWarning, stacklevel=2)

    def _judge(self, args: Any, state: Any, control: Any, policy: str, step: int) -> None:
        valid = read_valid(self.folder)
        if self.evaluate is None or not state.is_world_process_zero or step in valid:
            return
        rate = self.evaluate(policy)
        if step and all(rate > known for at, known in valid.items() if at):
            _keep(Path(policy), self.folder / "best")
        valid[step] = rate
        write_json(self.folder / VALID, valid)
        state.log_history.append({"step": step, "valid/success_rate": rate})
        for tracker in self.trackers:
            told: dict[str, Any] = {"valid/success_rate": rate}
            if isinstance(tracker, TensorBoardCallback) and (said := _said_table(self.folder)):
                told["completions"] = said  # the others get TRL's own table
            tracker.on_log(args, state, control, logs=told)


def _said_table(folder: Path) -> str:
    """What the policy said last to one prompt, as a table in Markdown; "" if it has said nothing yet."""
    steps = said_steps(folder)
    found = read_said(steps[max(steps)], 16) if steps else ()
    if not found:
        return ""
    parts = list(found[0].rewards)
    heard = [f"**{cell(message['role'] or 'prompt')}** {cell(message['content'])}" for message in found[0].prompt]
    rows = [(cell(each.text), *(shown(each.rewards.get(part)) for part in parts)) for each in found]
    return "\n".join([*heard, "", *table(("completion", *map(cell, parts)), rows)])


def _keep(checkpoint: Path, best: Path) -> None:
    """Copy a checkpoint's model and tokenizer, without what only resuming needs."""
    fresh = best.with_name("best.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file() and file.suffix not in (".pt", ".pth", ".bin") and file.name != "trainer_state.json":
            shutil.copy2(file, fresh)
    shutil.rmtree(best, ignore_errors=True)
    fresh.rename(best)


# --- training -------------------------------------------------------------------------------------


def train_grpo(
    config: GRPOStage,
    folder: str | Path,
    *,
    reward: Reward,
    prompts: Sequence[Mapping[str, Any]],
    evaluate: Evaluate | None = None,
    rollout: Callable[..., Any] | None = None,
) -> Path:
    """Train the policy; the same call resumes, and does nothing once finished.

    Args:
        config: see `GRPOStage`.
        folder: where the policy (or its adapter), tokenizer, log, completions and checkpoints go.
        reward: of completions, such as `esc_env.rewards.combine` makes.
        prompts: rows as `esc_env.rewards.grpo_row` makes them.
        evaluate: told a checkpoint's folder, gives its success rate on valid scenarios; the best checkpoint is kept.
            None keeps the last.
        rollout: TRL's `rollout_func`, where a completion is a whole conversation; then `require_end` is the reward's
            own affair.

    Returns:
        The folder, which holds the trained policy.

    Raises:
        ConfigError: no chat template, an adapter that does not fit, or no prompt that fits.
        ProtocolMismatch: the folder holds another run.
        MissingExtra: vLLM is configured and not installed.
    """
    folder = Path(folder)
    if config.vllm != "off":
        needs("vllm")
    if config.patience is not None and evaluate is None:
        raise ConfigError(
            "patience counts checkpoints that are judged on valid scenarios, and there are none: name some"
        )
    with open_stage(folder, "grpo", config, [dict(row) for row in prompts]) as finished:
        if not finished:
            _train(config, folder, reward, prompts, evaluate, rollout)
    return folder


def _settle(trainer: GRPOTrainer) -> None:
    """End what goes on on TRL's own event loop, where rewards are computed and which nobody waits for after Ctrl-C.

    TRL stops that loop at exit, whatever is still on it. A reward that cannot be cancelled is waited for: the
    interpreter must not end while it is in torch. A second Ctrl-C ends the waiting.
    """
    if trainer.async_loop_thread.is_alive():
        wait(asyncio.run_coroutine_threadsafe(settle(), trainer.async_loop))


def _train(
    config: GRPOStage,
    folder: Path,
    reward: Reward,
    prompts: Sequence[Mapping[str, Any]],
    evaluate: Evaluate | None,
    rollout: Callable[..., Any] | None,
) -> None:
    tokenizer = load_tokenizer(config.model)
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    rows, counts = fit_prompts(prompts, tokenizer, config.prompt_length)
    if not rows:
        raise ConfigError(f"none of {len(prompts)} prompts fits prompt_length = {config.prompt_length}. Raise it")
    if counts["cut"] or counts["dropped"]:
        logger.warning("of %(prompts)d prompts, %(cut)d were cut at a message border and %(dropped)d dropped", counts)
    model, adapter = load_policy(config, tokenizer)
    args = GRPOConfig(**grpo_arguments(config, folder))
    if is_gguf(config.model) and adapter is None:  # TRL reads the copy that KL is measured against from a folder
        with args.main_process_first(local=False):
            if is_main():
                model.save_pretrained(folder / "ref")
        model.config.name_or_path = str(folder / "ref")
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    watched = _Watched(
        reward,
        frozenset(ends | {tokenizer.eos_token_id}),
        config.group_size if config.require_end and rollout is None else None,
    )
    watch = _Watch(folder, config, evaluate)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[watched],
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter,
        rollout_func=rollout,
        callbacks=[watch],
    )
    if config.kl_target is not None:
        trainer.add_callback(KLTarget(trainer, config.kl_target))
    kind = INTEGRATION_TO_CALLBACK.get(config.report_to, ())
    watch.trackers = [each for each in trainer.callback_handler.callbacks if isinstance(each, kind)]
    try:
        run_trainer(trainer, folder)
    finally:
        _settle(trainer)
    valid = read_valid(folder)
    trained = {step: rate for step, rate in valid.items() if step}
    chosen = max(trained, key=lambda step: (trained[step], -step)) if trained else trainer.state.global_step
    trainer.save_model(str(folder))
    if is_main():
        shutil.rmtree(folder / "ref", ignore_errors=True)  # the frozen copy that KL is measured against
        if trained:
            for file in (folder / "best").iterdir():
                shutil.copy2(file, folder)
            if trained[chosen] <= valid.get(0, -1.0):
                warnings.warn(
                    f"no checkpoint is better on valid than the policy that training began with ({valid[0]:.1%}); "
                    f"the best, of step {chosen}, has {trained[chosen]:.1%}",
                    TrainingWarning,
                    stacklevel=3,
                )
        finish(folder, trainer.state.log_history, counts=counts, valid=valid, chosen=chosen)
        shutil.rmtree(folder / "best", ignore_errors=True)


# --- the whole stage ------------------------------------------------------------------------------


def optimise(
    config: GRPOStage,
    setting: Setting,
    folder: str | Path,
    *,
    samples: Sequence[Sample] = (),
    reward_model: str | Path | None = None,
    continuing: str | Agent | None = None,
    success: Callable[[str], float] | None = None,
    models: ModelSettings | None = None,
) -> Path:
    """GRPO with the reward that `config.reward` names: R + α · R_thk-fmt.

    Args:
        config: the stage.
        setting: style, chairs and what they are asked, and for `env` the scenarios.
        folder: of the stage.
        samples: a collection, whose contexts are answered; all rewards but `env` need it.
        reward_model: for `rlff`; for `untrained`, the base model of one.
        continuing: who goes on after a response, for `future`: the policy as it was when it was collected from. What a
            string names is asked the setting's `agent_options`.
        success: see `train_grpo`.
        models: how chat models in the chairs are called, for `future` and `env`.

    Raises:
        ConfigError: the reward lacks what it needs.
        BudgetExceeded: the budget is spent; the same call with a larger one goes on from the last checkpoint.
        ModelError: a chat model does not answer at all; nothing was started.
    """
    from esc_env.training.online import Online, opener  # which builds on this module

    horizon = config.horizon if config.reward == "future" and config.horizon else config.max_turns
    rules = Rules(max_turns=horizon)
    system = asked(setting)
    tokenizer = load_tokenizer(config.model)
    settings = models or ModelSettings(config.concurrency)
    if config.reward == "env":
        chairs = chairs_of(setting, settings, rules)
        _check(folder, rules, chairs.seeker, chairs.critic)
        online = Online(setting.people(), chairs, config, tokenizer, system=system)
        return train_grpo(
            config, folder, reward=online.reward, prompts=online.rows, rollout=online.rollout, evaluate=success
        )
    contexts: dict[Any, Sample] = {}
    for sample in samples:
        if not sample.tail:
            contexts.setdefault(sample.key[:3], sample)
    prompts = [grpo_row(item.scenario, item.context, seed=item.seed, system=system) for item in contexts.values()]
    if not prompts:
        raise ConfigError(f"reward {config.reward!r} answers collected contexts, and there are none. Type: esc collect")
    random.Random(config.seed).shuffle(prompts)
    first: Any = None
    if config.reward in ("rlff", "untrained"):
        from esc_env.rewards.model import RewardModelReward

        device = "cpu" if config.cpu else None
        if reward_model is None and config.reward == "rlff":
            raise ConfigError("reward 'rlff' needs a reward model. Type: esc train rm")
        if reward_model is None:
            raise ConfigError("reward 'untrained' needs the base of a reward model. Type: --reward-model ORG/NAME")
        with quiet():
            if config.reward == "rlff":
                first = RewardModelReward(reward_model, device=device)
            else:
                first = RewardModelReward.untrained(reward_model, seed=config.seed, device=device)
    elif config.reward == "future":
        if continuing is None:
            raise ConfigError("reward 'future' needs to know who goes on after a response: name the agent")
        options = setting.agent_options if isinstance(continuing, str) else None
        agent = resolve_agent(continuing, settings, temperature=CollectStage.temperature, options=options)
        chairs = chairs_of(setting, settings, rules)
        first = FutureReward(
            agent, chairs.seeker, chairs.critic, rules, seed=config.seed, concurrency=config.concurrency
        )
        _check(folder, rules, chairs.seeker, chairs.critic, agent)
    elif config.reward == "noise":
        first = NoiseReward(config.seed)
    form = ThinkFormatReward(opener(tokenizer, prompt_ids(tokenizer, prompts[0]["prompt"])))
    if config.reward == "format":
        reward = combine({"format": form}, format=config.alpha)
    else:
        reward = combine({"reply": first, "format": form}, reply=1.0, format=config.alpha)
    return train_grpo(config, folder, reward=reward, prompts=prompts, evaluate=success)


def _check(folder: str | Path, rules: Rules, *seated: object) -> None:
    """Ask the chairs' models for a word before any weights are loaded, if there is anything left to train."""
    if is_main() and not RunFolder(Path(folder), "stage").finished:
        run(check_models(*seated, votes=rules.votes))

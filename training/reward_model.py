"""Stage 2 of RLFF-ESC: learn from simulated futures how much relief follows a response.

    esc train rm --data runs/collect --kind classification --out runs/rm

*Source:* RLFF-ESC (arXiv 2508.12935): a two-class head, label 1 where the reward is above δ, the reward is P(1).
Ranking and regression are its ablations. The folder holds the whole model (an adapter is merged), `report.json` and,
for classification, `reliability.svg`.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from esc_env.dialogue import ChatMessage
from esc_env.errors import ConfigError, MissingExtra
from esc_env.evaluation.statistics.intervals import auc
from esc_env.evaluation.statistics.resampling import auc_interval, two_level
from esc_env.fields import integer, many, number, optional, read, text
from esc_env.models.weights import load_model
from esc_env.records import read_json, write_json, write_text
from esc_env.rewards import value
from esc_env.rewards.rows import chat_of
from esc_env.training import svg
from esc_env.training.config import RewardModelStage
from esc_env.training.data import Sample
from esc_env.training.stage import (
    arguments,
    base_of,
    finish,
    is_main,
    load_tokenizer,
    local,
    lora,
    open_stage,
    run_trainer,
    weight_type,
)

try:
    import peft
    import torch
    import transformers
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    from esc_env.rewards.model import RewardModelReward, encode
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "trl").partition(".")[0], "train") from error

__all__ = [
    "Bin", "RewardModelReport", "alike", "calibration", "label_of", "reward_arguments", "siblings",
    "train_reward_model",
]  # fmt: skip

logger = logging.getLogger(__name__)

_BINS = 10
_RARE = 0.1


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability plot: rows whose predicted probability lies in [low, high)."""

    low: float
    high: float
    predicted: float
    observed: float
    count: int

    @classmethod
    def from_json(cls, data: Any) -> Bin:
        """Inverse of `dataclasses.asdict`. Raises SpecError naming an unfit field."""
        low, high, predicted, observed = (
            read(data, name, number(0, 1)) for name in ("low", "high", "predicted", "observed")
        )
        return cls(low, high, predicted, observed, read(data, "count", integer(1)))


@dataclass(frozen=True, slots=True)
class RewardModelReport:
    """How good a reward model is on scenarios it has not seen. An AUC of ½ is guessing, of 1 always right.

    Attributes:
        kind: what its head says.
        train, valid: rows (ranking: pairs in training) on either side.
        train_positive, valid_positive: share of label 1, in [0, 1].
        auc: does it tell responses that help from others, over all contexts? In [0, 1]; None where there is one class.
        auc_within: does it rank the responses to one context? GRPO compares these. None where none differ.
        pairs_within: how many pairs of siblings that rests on.
        horizon: turns after which futures were read as ended, on both sides.
        auc_interval, auc_within_interval: their 95 % intervals, resampling scenarios; None where there are not two.
        accuracy: share of right answers: P(1) above ½, or predicted reward above δ; for ranking, that of pairs.
        base_accuracy: what always answering the commoner class would get; None for ranking.
        ece: expected calibration error over 10 bins, in [0, 1]; classification only.
        reliability: the bars of its plot; classification only.
        error: mean absolute error of the reward; regression only.
        cut: share of valid rows whose context was cut at a message border.
        overlong: rows of both sides left out, since not even the last turn fits.
    """

    kind: str
    train: int
    valid: int
    train_positive: float
    valid_positive: float
    auc: float | None
    auc_within: float | None
    pairs_within: int
    accuracy: float | None
    base_accuracy: float | None
    ece: float | None
    reliability: tuple[Bin, ...]
    error: float | None
    cut: float
    overlong: int
    horizon: int | None = None
    auc_interval: tuple[float, float] | None = None
    auc_within_interval: tuple[float, float] | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RewardModelReport:
        """Inverse of `dataclasses.asdict`. Raises SpecError naming an unfit field."""
        share, count = number(0, 1), integer(0)
        ends: Callable[[Any], Any] = optional(many(share, 2, 2))
        checks: dict[str, Callable[[Any], Any]] = {
            "kind": text, "train": count, "valid": count, "train_positive": share, "valid_positive": share,
            "auc": optional(share), "auc_within": optional(share), "pairs_within": count, "accuracy": optional(share),
            "base_accuracy": optional(share), "ece": optional(share), "reliability": many(Bin.from_json),
            "error": optional(number(0)), "cut": share, "overlong": count,
        }  # fmt: skip
        later = {"horizon": optional(count), "auc_interval": ends, "auc_within_interval": ends}
        made: dict[str, Any] = {name: read(data, name, check) for name, check in checks.items()}
        made |= {name: read(data, name, check, None) for name, check in later.items()}
        return cls(**made)


def label_of(sample: Sample, delta: float) -> float:
    """The share of a response's futures whose reward is above δ, in [0, 1]: a soft label where there are several."""
    return fmean(value((future,)) > delta for future in sample.futures)


def alike(samples: Iterable[Sample], config: RewardModelStage) -> tuple[list[Sample], int]:
    """Samples whose labels mean the same, and after how many turns (see `RewardModelStage.horizon`)."""
    chosen = [sample for sample in samples if config.tail or not sample.tail]
    most = max((future.horizon for sample in chosen for future in sample.futures), default=1)
    horizon = min(most, config.horizon or (max(2, -(-most // 2)) if config.tail else most))
    found = []
    for sample in chosen:
        whole = [future for future in sample.futures if not sample.tail or future.horizon >= horizon]
        if whole:
            found.append(replace(sample, futures=tuple(future.within(horizon) for future in whole)))
    return found, horizon


# --- metrics --------------------------------------------------------------------------------------


def siblings(ranks: Sequence[float], contexts: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Strata for `auc`: any two responses to one context whose ranks differ, the higher one on the first side."""
    ranked, numbers = np.array(ranks), {context: place for place, context in enumerate(dict.fromkeys(contexts))}
    named = np.array([numbers[context] for context in contexts])
    for place, rank in sorted(set(zip(named, ranks, strict=True))):
        yield (named == place) & (ranked > rank), (named == place) & (ranked == rank)


def calibration(probabilities: Sequence[float], labels: Sequence[float]) -> tuple[float, tuple[Bin, ...]]:
    """(expected calibration error, the bins of the reliability plot that hold rows)."""
    bins: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for probability, label in zip(probabilities, labels, strict=True):
        bins[min(_BINS - 1, int(probability * _BINS))].append((probability, label))
    bars = tuple(
        Bin(place / _BINS, (place + 1) / _BINS, fmean(p for p, _ in rows), fmean(label for _, label in rows), len(rows))
        for place, rows in sorted(bins.items())
    )
    return sum(abs(bar.predicted - bar.observed) * bar.count for bar in bars) / len(probabilities), bars


def _reliability_svg(bars: Sequence[Bin]) -> str:
    """The reliability plot: predicted probability against the share that was solved; areas are counts."""
    most = max(bar.count for bar in bars)
    dots = [
        svg.element(
            "circle",
            svg.title(f"{bar.count} rows: predicted {bar.predicted:.2f}, observed {bar.observed:.2f}"),
            cx=40 + 300 * bar.predicted, cy=320 - 300 * bar.observed, r=3 + 9 * (bar.count / most) ** 0.5,
        )
        for bar in bars
    ]  # fmt: skip
    ticks = [
        (svg.text(f"{i / 4:g}", 40 + 75 * i, 336, "middle"), svg.text(f"{i / 4:g}", 34, 324 - 75 * i, "end"))
        for i in range(5)
    ]
    return svg.figure(
        "Reliability of the reward model", 360, 360,
        svg.element("rect", x=40, y=20, width=300, height=300, fill="none", stroke="#999"),
        svg.element("line", x1=40, y1=320, x2=340, y2=20, stroke="#999", stroke_dasharray="4 4"),
        svg.element("g", *dots, fill="#2563eb", fill_opacity=0.7),
        svg.element(
            "g", *(tick for pair in ticks for tick in pair), svg.text("predicted P(1)", 190, 354, "middle"),
            svg.text("share with label 1", 12, 170, "middle", transform="rotate(-90 12 170)"), fill="#333",
        ),
    )  # fmt: skip


# --- training -------------------------------------------------------------------------------------


def train_reward_model(config: RewardModelStage, folder: str | Path, samples: Iterable[Sample]) -> RewardModelReport:
    """Train a reward model on collected futures; the same call resumes, and only reads its report once finished.

    Args:
        config: see `RewardModelStage`.
        folder: where the model, tokenizer, report, log and checkpoints go.
        samples: of a collection (`read_samples`); each scenario is on one side of the split.

    Raises:
        ConfigError: an empty side, a scenario on both, one class only (saying what δ would split it), or no pairs.
        ProtocolMismatch: the folder holds another run.
    """
    folder = Path(folder)
    chosen, horizon = alike(samples, config)
    data = [[*sample.key, sample.split, [value((future,)) for future in sample.futures]] for sample in chosen]
    with open_stage(folder, "reward_model", config, data) as finished:
        if not finished:
            _train(config, folder, chosen, horizon)
    return read_json(folder / "report.json", RewardModelReport.from_json)


def _train(config: RewardModelStage, folder: Path, samples: Sequence[Sample], horizon: int) -> None:
    train, valid = _split(samples)
    _check(config, train)
    if base_of(config.model) is not None:
        raise ConfigError(f"{config.model} is a LoRA adapter; a reward model begins with a whole one. Merge it first")
    tokenizer = load_tokenizer(config.model, chat=False)
    transformers.set_seed(config.seed)
    model = load_model(
        local(config.model),
        tokenizer,
        kind=transformers.AutoModelForSequenceClassification,
        num_labels=2 if config.kind == "classification" else 1,
        problem_type={"classification": "single_label_classification", "regression": "regression"}.get(config.kind),
        dtype=weight_type(config),
    )
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    limit = min(config.max_length, getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30))
    rows = [(sample, list(encode(tokenizer, _chat(sample), limit).ids)) for sample in train]
    fitting = [(sample, ids) for sample, ids in rows if ids]
    trainer = (_pairs if config.kind == "ranking" else _scorer)(config, folder, model, tokenizer, fitting)
    run_trainer(trainer, folder)
    if config.lora_rank:
        whole = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        if is_main():
            whole.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    else:
        trainer.save_model(str(folder))
    if is_main():
        report = _report(config, folder, train, valid, limit)
        report = replace(report, horizon=horizon, overlong=report.overlong + len(rows) - len(fitting))
        write_json(folder / "report.json", asdict(report))
        if report.reliability:
            write_text(folder / "reliability.svg", _reliability_svg(report.reliability))
        finish(folder, trainer.state.log_history)


def _chat(sample: Sample) -> list[ChatMessage]:
    """What the reward model reads: the context and the response, never its thought."""
    reply = ChatMessage(role="assistant", content=sample.response.content.strip())
    return [*chat_of(sample.scenario, sample.context), reply]


def _split(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    train = [sample for sample in samples if sample.split == "train"]
    valid = [sample for sample in samples if sample.split == "valid"]
    both = {sample.scenario.id for sample in train} & {sample.scenario.id for sample in valid}
    if both:
        raise ConfigError(f"scenario {min(both)!r} is in train and in valid; split by scenario, or the report is vain")
    for name, side in (("train", train), ("valid", valid)):
        if not side:
            raise ConfigError(f"no samples with split {name!r} in {len(samples)}. Collect from more scenarios")
    return train, valid


def _check(config: RewardModelStage, train: Sequence[Sample]) -> None:
    """Refuse data that cannot teach this kind of model."""
    rewards = sorted({value((future,)) for sample in train for future in sample.futures})
    if len(rewards) == 1:
        raise ConfigError(f"all {len(train)} rewards are {rewards[0]:.3f}; nothing can be learned. Collect more")
    positive = fmean(label_of(sample, config.delta) for sample in train)
    if config.kind == "classification" and positive in (0, 1):
        middle = sorted(sample.reward() for sample in train)[len(train) // 2]
        border = max(1, min(len(rewards) - 1, sum(reward < middle for reward in rewards)))
        better = (rewards[border - 1] + rewards[border]) / 2
        share = fmean(label_of(sample, better) for sample in train)
        raise ConfigError(
            f"all {len(train)} samples have label {positive:.0f} at delta = {config.delta}; rewards lie in "
            f"[{rewards[0]:.3f}, {rewards[-1]:.3f}]. Set delta to {better:.3f}: label 1 for {share:.0%}."
        )
    if config.kind == "classification" and not config.balance and min(positive, 1 - positive) < _RARE:
        logger.warning(
            "label 1 has %.1f %% of the samples; if the model learns to say one thing only, set balance", 100 * positive
        )
    if config.kind == "ranking" and not _sibling_pairs(train, config.margin):
        raise ConfigError(
            f"no two responses to one context differ by more than margin = {config.margin}, so there are no pairs. "
            "Collect more candidates per context, or more rollouts"
        )


def _sibling_pairs(samples: Sequence[Sample], margin: float) -> list[tuple[int, int]]:
    """(better, worse) places of siblings: responses to one context."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        groups[sample.key[:3]].append(place)
    rewards = [sample.reward() for sample in samples]
    return [
        (one, other)
        for group in groups.values()
        for one in group
        for other in group
        if rewards[one] - rewards[other] > margin
    ]


def reward_arguments(config: RewardModelStage, folder: Path) -> dict[str, Any]:
    """What TRL's `RewardConfig` is told, for ranking; nothing that the method names is left to TRL's defaults."""
    own = {"max_length": None, "disable_dropout": True, "center_rewards_coefficient": None}
    return {**arguments(config, folder), **own}


def _pairs(
    config: RewardModelStage, folder: Path, model: Any, tokenizer: Any, rows: Sequence[tuple[Sample, list[int]]]
) -> Any:
    pairs = _sibling_pairs([sample for sample, _ in rows], config.margin)
    return RewardTrainer(
        model=model,
        args=RewardConfig(**reward_arguments(config, folder)),
        train_dataset=Dataset.from_list(
            [{"chosen_ids": rows[one][1], "rejected_ids": rows[other][1]} for one, other in pairs]
        ),
        processing_class=tokenizer,
        peft_config=lora(config, "SEQ_CLS", model),
    )


def _scorer(
    config: RewardModelStage, folder: Path, model: Any, tokenizer: Any, rows: Sequence[tuple[Sample, list[int]]]
) -> Any:
    classes = config.kind == "classification"
    targets = [label_of(sample, config.delta) if classes else sample.reward() for sample, _ in rows]
    positive = fmean(targets) if classes and config.balance else 0.5
    adapter = lora(config, "SEQ_CLS", model)
    return _Scorer(
        model=peft.get_peft_model(model, adapter) if adapter else model,
        args=transformers.TrainingArguments(**arguments(config, folder), remove_unused_columns=False),
        train_dataset=[{"ids": ids, "target": target} for (_, ids), target in zip(rows, targets, strict=True)],
        data_collator=_Pad(tokenizer.pad_token_id),
        processing_class=tokenizer,
        class_weights=(0.5 / (1 - positive), 0.5 / positive) if classes else None,
    )


@dataclass(frozen=True)
class _Pad:
    """Makes a batch of rows, padded on the right: the head reads the last token that is no padding."""

    pad: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["ids"]) for row in rows)
        return {
            "input_ids": torch.tensor([[*row["ids"], *[self.pad] * (width - len(row["ids"]))] for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row["ids"]) + [0] * (width - len(row["ids"])) for row in rows]),
            "targets": torch.tensor([row["target"] for row in rows], dtype=torch.float32),
        }


class _Scorer(transformers.Trainer):
    """Soft-label cross-entropy for two classes, else the squared error of the reward."""

    loss_is_scaled_for_ga = False

    def __init__(self, *, class_weights: tuple[float, float] | None, **options: Any) -> None:
        super().__init__(**options)
        self.class_weights = class_weights

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        targets = inputs["targets"]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        logits = outputs.logits.float()
        if self.class_weights is None:
            loss = torch.nn.functional.mse_loss(logits[:, 0], targets)
        else:
            chances = logits.log_softmax(-1)
            zero, one = self.class_weights
            loss = -(one * targets * chances[:, 1] + zero * (1 - targets) * chances[:, 0]).mean()
        return (loss, outputs) if return_outputs else loss


def _report(
    config: RewardModelStage, folder: Path, train: Sequence[Sample], valid: Sequence[Sample], limit: int
) -> RewardModelReport:
    device = "cpu" if config.cpu else None
    scorer = RewardModelReward(folder, kind=config.kind, max_length=limit, device=device)
    scored = [
        (sample, score)
        for sample, score in zip(valid, scorer.score([_chat(sample) for sample in valid]), strict=True)
        if score is not None
    ]
    if not scored:
        raise ConfigError(f"none of {len(valid)} valid samples fits max_length = {limit}. Raise it")
    scores = [score for _, score in scored]
    labels = [label_of(sample, config.delta) for sample, _ in scored]
    rewards = [sample.reward() for sample, _ in scored]
    positive = fmean(labels)
    ranks = rewards if config.kind != "classification" else labels
    told, soft = np.array(scores), np.array(labels)
    within, pairs = auc(told, told, *siblings(ranks, [sample.key[:3] for sample, _ in scored]))
    people = [sample.scenario.id for sample, _ in scored]
    wins: dict[str, list[float]] = defaultdict(list)
    for high, low in siblings(ranks, [sample.key[:3] for sample, _ in scored]):
        for one in np.flatnonzero(high):
            wins[people[one]] += (np.sign(told[one] - told[low]) / 2 + 0.5).tolist()
    classes, regression = config.kind == "classification", config.kind == "regression"
    border = 0.5 if classes else config.delta
    error, bars = calibration(scores, labels) if classes else (None, ())
    return RewardModelReport(
        kind=config.kind,
        train=len(train),
        valid=len(valid),
        train_positive=fmean(label_of(sample, config.delta) for sample in train),
        valid_positive=positive,
        auc=auc(told, told, (soft, 1 - soft))[0],
        auc_within=within,
        pairs_within=int(pairs),
        accuracy=within
        if config.kind == "ranking"
        else fmean(label if score > border else 1 - label for score, label in zip(scores, labels, strict=True)),
        base_accuracy=None if config.kind == "ranking" else max(positive, 1 - positive),
        ece=error,
        reliability=bars,
        error=fmean(abs(a - b) for a, b in zip(scores, rewards, strict=True)) if regression else None,
        cut=scorer.cut / len(valid),
        overlong=scorer.overlong,
        auc_interval=auc_interval(told, soft, 1 - soft, people),
        auc_within_interval=two_level([[wins]]).interval if sum(map(bool, wins.values())) > 1 else None,
    )

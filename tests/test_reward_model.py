"""Reward models: they learn which responses are followed by relief, and their report says how well."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("trl", reason="needs the extra 'train'")

from typing import Any

import torch
from safetensors.torch import load_file
from tiny_models import save_model

from esc_env import Dialogue, Message, Scenario
from esc_env.errors import ConfigError, ModelUnavailable
from esc_env.evaluation.statistics.intervals import auc
from esc_env.evaluation.statistics.resampling import auc_interval
from esc_env.rewards import Future, RewardModelReward
from esc_env.training.config import RewardModelStage
from esc_env.training.data import Sample
from esc_env.training.reward_model import alike, calibration, label_of, siblings, train_reward_model
from esc_env.training.stage import lora

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft 0.21's own
]

TINY: dict[str, Any] = {
    "precision": "fp32", "cpu": True, "gradient_checkpointing": False, "batch_size": 8, "accumulation": 1,
    "max_steps": 60, "learning_rate": 3e-3, "scheduler": "constant",
}  # fmt: skip
GOOD, BAD = "That sounds hard. Tell me more about it.", "Calm down."
SOLVED = Future((), ((1.0,),), True, 8)
FAILED = Future((), ((-0.5,),), False, 8)


def sample(person: int, response: str, *futures: Future, valid: bool = False, **details) -> Sample:
    return Sample(
        Scenario(id=f"p{person}", situation=f"I cannot sleep because of my job, {person}."),
        Dialogue((Message("seeker", f"I cannot sleep because of my job, {person}."),)),
        Message("supporter", response, thought="GOOD or BAD?"),
        futures,
        seed=person,
        split="valid" if valid else "train",
        **details,
    )


def collection() -> list[Sample]:
    return [
        one
        for person in range(24)
        for one in (
            sample(person, GOOD, SOLVED, valid=person >= 16),
            sample(person, BAD, FAILED, valid=person >= 16),
        )
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("kind", ["classification", "ranking", "regression"])
def test_every_kind_learns_which_response_helps_scenarios_it_has_not_seen(kind, base: Path, tmp_path: Path) -> None:
    report = train_reward_model(RewardModelStage(model=str(base), kind=kind, **TINY), tmp_path, collection())
    assert (report.kind, report.train, report.valid, report.pairs_within) == (kind, 32, 16, 8)
    assert report.auc is not None
    assert report.auc > 0.95
    assert report.auc_within is not None
    assert report.auc_within > 0.95
    assert (report.ece is not None) == (kind == "classification") == (tmp_path / "reliability.svg").exists()
    scorer = RewardModelReward(tmp_path)
    assert scorer.kind == kind
    prompts = [[{"role": "user", "content": "I cannot sleep because of my job, 99."}]] * 2
    good, bad = scorer(prompts, [[{"role": "assistant", "content": text}] for text in (GOOD, BAD)])
    assert good is not None
    assert bad is not None
    assert good > bad
    again = train_reward_model(RewardModelStage(model=str(base), kind=kind, **TINY), tmp_path, collection())
    assert again == report


def test_a_base_whose_weights_are_a_pickle_is_never_read(base: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(base, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"a pickle \(\.bin\) is not read"):
        train_reward_model(RewardModelStage(model=str(pickled), **TINY), tmp_path / "out", collection())


def test_an_adapter_is_merged_so_that_the_folder_is_a_whole_model(base: Path, tmp_path: Path) -> None:
    config = RewardModelStage(model=str(base), **{**TINY, "lora_rank": 4, "max_steps": 5})
    train_reward_model(config, tmp_path, collection())
    assert not (tmp_path / "adapter_config.json").exists()
    assert RewardModelReward(tmp_path).kind == "classification"


@pytest.mark.parametrize("family", ["llama", "distilbert", "deberta-v2", "modernbert"])
def test_with_an_adapter_the_whole_new_head_is_trained_whatever_it_is_called(family: str) -> None:
    import peft
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 50, "num_hidden_layers": 1, "intermediate_size": 16, "num_labels": 2}
    sizes |= {"hidden_size": 16, "num_attention_heads": 2, "pooler_hidden_size": 16, "pad_token_id": 0}
    sizes |= {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16} if family == "distilbert" else {}
    shape = transformers.AutoConfig.for_model(family, **sizes)
    model = transformers.AutoModelForSequenceClassification.from_config(shape)
    heads = {name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")}
    adapted = peft.get_peft_model(model, lora(RewardModelStage(lora_rank=2), "SEQ_CLS", model))
    trained = {name for name, weights in adapted.named_parameters() if weights.requires_grad}
    assert heads == {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        for name in trained
        if "lora_" not in name
    }
    whole = adapted.merge_and_unload()
    assert {name for name, _ in whole.named_parameters()} >= heads


def test_one_class_is_refused_saying_what_delta_would_split_it(base: Path, tmp_path: Path) -> None:
    better = Future((), ((0.2,),), False, 8)
    samples = [replace(one, futures=(better,)) if one.response.content == GOOD else one for one in collection()]
    with pytest.raises(ConfigError, match=r"label 0 at delta = 0.5.*Set delta to -0.150: label 1 for 50%"):
        train_reward_model(RewardModelStage(model=str(base), **TINY), tmp_path / "a", samples)
    report = train_reward_model(
        RewardModelStage(model=str(base), delta=-0.15, **{**TINY, "max_steps": 1}), tmp_path / "b", samples
    )
    assert report.train_positive == 0.5


def test_data_that_cannot_teach_is_refused(base: Path, tmp_path: Path) -> None:
    config = RewardModelStage(model=str(base), **TINY)
    same = [replace(one, futures=(FAILED,)) for one in collection()]
    with pytest.raises(ConfigError, match="nothing can be learned"):
        train_reward_model(config, tmp_path / "a", same)
    alone = [one for one in collection() if (one.response.content == GOOD) == (one.seed % 2 == 0)]
    with pytest.raises(ConfigError, match="no pairs"):
        train_reward_model(replace(config, kind="ranking"), tmp_path / "b", alone)
    with pytest.raises(ConfigError, match="split 'valid'"):
        train_reward_model(config, tmp_path / "c", [one for one in collection() if one.split == "train"])
    leaking = [*collection(), sample(0, "I am here.", SOLVED, valid=True)]
    with pytest.raises(ConfigError, match="'p0' is in train and in valid"):
        train_reward_model(config, tmp_path / "d", leaking)


def test_tail_labels_can_be_left_out(base: Path, tmp_path: Path) -> None:
    samples = [*collection(), sample(0, "I am here.", SOLVED, tail=True)]
    config = RewardModelStage(model=str(base), tail=False, **{**TINY, "max_steps": 1})
    assert train_reward_model(config, tmp_path, samples).train == 32


def test_a_tail_label_means_what_a_candidates_means_and_its_turn_tells_nothing() -> None:
    """Every conversation is solved with the same chance at every turn: nothing is to be learned, least from time."""
    draw = np.random.default_rng(0)
    samples = []
    for person in range(300):
        lasts = int(draw.geometric(0.12))
        votes = ((-0.5,),) * (min(lasts, 8) - 1) + (((1.0,) if lasts <= 8 else (-0.5,)),)
        said = tuple(Message("supporter" if i % 2 else "seeker", f"{i}") for i in range(2 * len(votes) - 1))
        one = sample(person, GOOD, Future(said, votes, lasts <= 8, 8))
        samples += [one, *one.tails()]

    def solved(samples: list[Sample], *, tail: bool) -> float:
        labels = [label_of(one, 0.5) for one in samples if one.tail == tail]
        return sum(labels) / len(labels)

    assert solved(samples, tail=False) - solved(samples, tail=True) > 0.15, "as collected, a tail's label is another"
    same, horizon = alike(samples, RewardModelStage())
    assert horizon == 4
    assert abs(solved(same, tail=False) - solved(same, tail=True)) < 0.06
    assert sum(one.tail for one in same) > sum(not one.tail for one in same)
    assert all(future.horizon == 4 for one in same for future in one.futures)
    assert all(len(future.said) == 2 * future.exchanges - 1 for one in same for future in one.futures)
    paper, horizon = alike(samples, RewardModelStage(tail=False))
    assert (paper, horizon) == ([one for one in samples if not one.tail], 8)
    assert alike(samples, RewardModelStage(horizon=6))[1] == 6


def test_auc_within_contexts_has_an_interval_over_scenarios(base: Path, tmp_path: Path) -> None:
    config = RewardModelStage(model=str(base), **{**TINY, "max_steps": 1})
    report = train_reward_model(config, tmp_path, collection())
    for name in ("auc", "auc_within"):
        low, high = getattr(report, f"{name}_interval")
        assert 0 <= low <= getattr(report, name) <= high <= 1
    assert report.horizon == 4
    alone = [replace(one, scenario=collection()[-1].scenario) if one.split == "valid" else one for one in collection()]
    assert train_reward_model(config, tmp_path / "alone", alone).auc_within_interval is None


def test_the_interval_of_an_auc_resamples_whole_clusters() -> None:
    draw = np.random.default_rng(1)
    level = np.repeat(draw.normal(size=20), 10)  # rows of a cluster are alike, in score and in label
    scores, labels = level + draw.normal(size=200) / 9, (level + np.repeat(draw.normal(size=20), 10) > 0).astype(float)
    low, high = auc_interval(scores, labels, 1 - labels, [row // 10 for row in range(200)]) or (0.5, 0.5)
    close = auc_interval(scores, labels, 1 - labels, list(range(200))) or (0.5, 0.5)
    assert high - low > 2 * (close[1] - close[0])
    assert low < (auc(scores, scores, (labels, 1 - labels))[0] or 0.0) < high
    assert auc_interval(scores, labels, 1 - labels, ["one"] * 200) is None


def test_with_several_rollouts_the_label_is_the_share_above_delta() -> None:
    assert label_of(sample(0, GOOD, SOLVED, FAILED, FAILED, FAILED), 0.5) == 0.25


def test_a_rare_class_is_reported_and_can_be_weighed_up(base: Path, tmp_path: Path, caplog) -> None:
    rare = [*collection()[:2], *(one for one in collection()[2:] if one.response.content == BAD or one.seed >= 16)]
    config = RewardModelStage(model=str(base), **{**TINY, "max_steps": 1})
    report = train_reward_model(config, tmp_path / "plain", rare)
    assert report.train_positive == pytest.approx(1 / 17)
    assert "set balance" in caplog.text
    caplog.clear()
    train_reward_model(replace(config, balance=True), tmp_path / "balanced", rare)
    assert "set balance" not in caplog.text


def test_auc_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1))).filter(lambda rows: len({b for _, b in rows}) > 1))
    def agrees(rows) -> None:
        scores, labels = np.array(rows).T
        assert auc(scores, scores, (labels, 1 - labels))[0] == pytest.approx(metrics.roc_auc_score(labels, scores))

    agrees()


def test_metrics_know_what_they_cannot_say() -> None:
    two, four = np.array([0.1, 0.9]), np.array([0.1, 0.9, 0.5, 0.5])
    assert auc(two, two, (np.ones(2), np.zeros(2))) == (None, 0)
    assert auc(two, two, *siblings([1.0, 0.0], ["a", "b"])) == (None, 0)
    assert auc(four, four, *siblings([0.0, 1.0, 1.0, 0.0], ["a", "a", "b", "b"])) == (0.75, 2)


def test_calibration_is_the_gap_between_predicted_and_observed() -> None:
    error, bars = calibration([0.25, 0.25, 0.25, 0.25, 1.0], [1.0, 0.0, 0.0, 0.0, 1.0])
    assert error == 0
    assert [(bar.low, bar.observed, bar.count) for bar in bars] == [(0.2, 0.25, 4), (0.9, 1.0, 1)]
    assert calibration([1.0, 1.0], [0.0, 0.0])[0] == 1


def test_the_report_is_a_file_that_a_person_can_read(base: Path, tmp_path: Path) -> None:
    train_reward_model(RewardModelStage(model=str(base), **{**TINY, "max_steps": 1}), tmp_path, collection())
    data = json.loads((tmp_path / "report.json").read_text())
    assert {"auc", "auc_within", "ece", "accuracy", "base_accuracy"} <= data.keys()

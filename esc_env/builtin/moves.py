"""What a supporter does with an utterance: a linear classifier over words, read in plain numpy.

TF-IDF of word 1- and 2-grams and multinomial logistic regression, trained by `python -m esc_env.builtin.train_moves` on
3,375 utterances that we wrote (corpus.tsv). It reads whole sentences, not phrases; how well is in docs/simulator.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esc_env.builtin.language import stem, tokens

__all__ = ["MOVES", "Reading", "features", "read", "weight"]

ASSET = Path(__file__).with_name("moves.npz")

MOVES = (
    "open_question", "closed_question", "coping_question", "restatement", "reflection", "self_disclosure",
    "affirmation", "suggestion", "information", "other", "dismissal", "safety_question", "safety_referral",
    "commitment", "noise",
)  # fmt: skip
"""The moves told apart: ESConv's strategies, its questions told apart, and what a seeker must not be fooled by."""


@dataclass(frozen=True, slots=True)
class _Model:
    index: dict[str, int]
    idf: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    rarity: dict[str, float]


Reading = dict[str, float]
"""Probability of each move; they add up to 1."""


def features(text: str) -> list[str]:
    """The 1- and 2-grams of a text, as the classifier sees them."""
    words = list(tokens(text))
    return words + [f"{first} {second}" for first, second in pairwise(words)]


@cache
def _model() -> _Model:
    with np.load(ASSET, allow_pickle=False) as data:
        grams = str(data["grams"]).split("\n")
        stems = str(data["stems"]).split("\n")
        return _Model(
            {gram: i for i, gram in enumerate(grams)},
            data["idf"].astype(np.float32),
            data["weights"].astype(np.float32),
            data["bias"].astype(np.float32),
            dict(zip(stems, data["rarity"].astype(float).tolist(), strict=True)),
        )


@lru_cache(maxsize=16384)
def read(sentence: str) -> Reading:
    """How likely each move is, given one sentence."""
    model = _model()
    counts: dict[int, int] = {}
    for gram in features(sentence):
        position = model.index.get(gram)
        if position is not None:
            counts[position] = counts.get(position, 0) + 1
    scores = model.bias.astype(np.float64)
    if counts:
        rows = np.fromiter(counts, dtype=np.intp)
        values = (1.0 + np.log(np.fromiter(counts.values(), dtype=np.float64))) * model.idf[rows]
        scores = scores + (values / np.linalg.norm(values)) @ model.weights[rows]
    scores = np.exp(scores - scores.max())
    chances = (scores / scores.sum()).round(6)  # rounded, so that no platform's last bit ever turns a conversation
    return dict(zip(MOVES, chances.tolist(), strict=True))


@lru_cache(maxsize=65536)
def weight(word: str) -> float:
    """How much a word says about one person's story, in [0, 1]: 0 for what anybody says to anybody, 1 for the rare."""
    return _model().rarity.get(stem(word), 1.0)

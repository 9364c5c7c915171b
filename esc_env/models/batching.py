"""One worker thread per model holds the weights and answers whatever waits, in left-padded micro-batches.

So concurrent conversations share each forward pass. Every choice draws from its own seed, never from its place in a
batch.

On the CPU a choice is computed with the same bits whatever shares its batch. Which requests wait at the same time
depends on timing; sums of floating-point numbers depend on how they are grouped, and the kernels group them by the
shapes that they are given. So no shape that a choice's own numbers are summed over depends on the others:

- attention sums over the padded width, so a prompt is padded to a width that its own length gives, and shares its batch
  with prompts of that width only. At least one token is padding, since kernels for batches without any are others;
- matrix products sum over fixed sizes, but take other kernels for the last few rows of a batch, so they get a whole
  number of tiles, the last filled with copies of another row.

On a GPU the library chooses its kernels by the number of rows too, in ways that no tile undoes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from esc_env.errors import BadCompletion, ESCError, MissingExtra, ModelUnavailable, SpecError
from esc_env.models.templates import ChatTemplate, TemplateError
from esc_env.models.weights import end_tokens, is_gguf, load_model, load_tokenizer, no_progress_bars, places
from esc_env.protocols import Request
from esc_env.seeds import derive

try:
    import torch
    import transformers
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "local") from error

__all__ = ["MAX_TOKENS", "Call", "Engine", "Sampling", "Weights", "drawn", "engine_of"]

_T = TypeVar("_T")

logger = logging.getLogger("esc_env.models.local")  # by the name that people know

MAX_TOKENS = 512
"""Tokens a choice may have when the call sets no limit: a local model may otherwise go on to the end of its context."""

_BLOCK = 128
"""Tokens whose chances are added up together where one is drawn."""
_TILE = 8
"""Rows of a tile on the CPU. *Source:* measured with PyTorch 2.13 (MKL; 1, 2, 3, 4, 8 and 16 threads): in products of
8, 16, 24, … 256 rows a row has the same bits; in float32, among 1 to 7 rows it has others."""

_STEP = 128
"""The least width that a prompt is padded to on the CPU, and the least step between widths. Ours: with 64, the batches
that are split cost more than the padding that is saved."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, beside the temperature."""

    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float

    @property
    def filters(self) -> bool:
        """Whether some tokens are never drawn."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0

    @property
    def penalises(self) -> bool:
        """Whether what was said changes what is said next, in greedy text too."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True)
class Weights:
    """Which weights are computed with, where, in which number format and in what batches; equal ones share one copy.

    Attributes: see `esc_env.models.local.LocalModel`.
    """

    path: str
    device: str | None
    dtype: str | None
    max_batch: int
    gather: float

    @property
    def place(self) -> str:
        """The device in force."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def format(self) -> str:
        """The number format in force."""
        return self.dtype or ("bfloat16" if self.place.startswith("cuda") else "float32")


@dataclass(eq=False, slots=True)
class Call:
    """A request on its way to the worker."""

    request: Request
    seed: int
    sampling: Sampling
    variables: Mapping[str, Any] | None
    outcome: Future[list[_Row]] = field(default_factory=Future)
    unfinished: int = 0

    def fail(self, error: Exception) -> None:
        """Raise `error` in the caller, unless it has its answer or has left."""
        if not self.outcome.done() and self.outcome.set_running_or_notify_cancel():
            self.outcome.set_exception(error)


@dataclass(eq=False, slots=True)
class _Row:
    """One choice of a request: what a row of a batch computes."""

    call: Call
    choice: int
    prompt: list[int]
    limit: int
    siblings: list[_Row]
    tokens: list[int] = field(default_factory=list)
    alternatives: dict[str, float] = field(default_factory=dict)
    text: str = ""
    finish_reason: str | None = None

    @property
    def done(self) -> bool:
        """Whether nobody waits for further tokens of it."""
        return self.finish_reason is not None or self.call.outcome.done()

    def draw(self) -> float:
        """The draw from [0, 1) of its next token."""
        return derive(self.call.seed, self.choice, len(self.tokens)) / 2.0**63

    def finish(self, text: str, reason: str) -> None:
        """Its text is complete; the request's last row answers the caller at once, whatever else the batch does."""
        self.text, self.finish_reason = text, reason
        self.call.unfinished -= 1
        outcome = self.call.outcome
        if self.call.unfinished == 0 and not outcome.done() and outcome.set_running_or_notify_cancel():
            outcome.set_result(self.siblings)


class _Loaded:
    """Weights and tokenizer in memory. Lives in the worker thread."""

    def __init__(self, weights: Weights) -> None:
        begun = time.perf_counter()
        adapter, base = places(weights.path)
        self.name = f"local:{weights.path}"
        with_tokenizer = adapter is not None and (adapter / "tokenizer_config.json").exists()
        self.tokenizer: Any = load_tokenizer(adapter if adapter is not None and with_tokenizer else base)
        if self.tokenizer.chat_template is None:
            raise SpecError(
                f"{self.name} has no chat template: it is a base model, not a chat model. Use its instruct version, or "
                "set tokenizer.chat_template and save the tokenizer into that folder"
            )
        if "sanitize_control_tokens" not in inspect.signature(self.tokenizer.apply_chat_template).parameters:
            raise ModelUnavailable(
                f"{self.name}: transformers {transformers.__version__} cannot tell control tokens inside messages "
                "from its own. Type: pip install -U transformers"
            )
        with no_progress_bars():
            model = load_model(base, self.tokenizer, dtype=getattr(torch, weights.format), device_map=weights.place)
            self.ends = end_tokens(model, self.tokenizer)
            pad = self.tokenizer.pad_token_id
            self.pad: int = pad if pad is not None else min(self.ends, default=0)
            model.generation_config = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
                eos_token_id=sorted(self.ends) or None, pad_token_id=self.pad, do_sample=False
            )
            self.context: int = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
            if adapter is not None:
                model = _adapted(model, adapter, len(self.tokenizer), self.name)
        self.model = model.eval()
        self.tile = _TILE if weights.place == "cpu" else 1
        head = self.model.get_output_embeddings()
        if head is not None:  # after the prompt it gets one token of each row
            head.forward = functools.partial(_in_tiles, head.forward, self.tile)
        logger.info("%s: %s", self.name, self._about(weights, is_gguf(base), time.perf_counter() - begun))

    def _about(self, weights: Weights, unpacked: bool, seconds: float) -> str:
        """What was loaded, in a line."""
        count = sum(each.numel() for each in self.model.parameters())
        size = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
        hint = ""
        if weights.place == "cpu" and weights.format == "float32" and _fast_bfloat16():
            hint = "; this processor reads prompts faster with dtype=bfloat16, which is another agent"
        return (
            f"{size} parameters{' unpacked' if unpacked else ''} in {weights.format} on {weights.place}, loaded in "
            f"{seconds:.0f} s{hint}"
        )

    def rows(self, call: Call) -> list[_Row]:
        """A call's choices, ready to be computed. Raises BadCompletion when its prompt leaves no room."""
        prompt = self._prompt(call)
        room = self.context - len(prompt)
        if room < 1:
            raise BadCompletion(
                f"{self.name}: the prompt has {len(prompt)} tokens, and the model's context holds {self.context}. Use "
                "fewer turns, or a model with a longer context"
            )
        rows: list[_Row] = []
        limit = min(call.request.max_tokens or MAX_TOKENS, room)
        rows.extend(_Row(call, choice, prompt, limit, rows) for choice in range(call.request.n))
        call.unfinished = call.request.n
        return rows

    def width(self, row: _Row) -> int:
        """The tokens that a row's prompt is padded to; on a GPU, none: there all rows share batches."""
        if self.tile == 1:
            return 0
        step = max(_STEP, 1 << len(row.prompt).bit_length() - 3)  # four widths between powers of two
        return (len(row.prompt) // step + 1) * step

    def generate(self, rows: Sequence[_Row], closing: threading.Event) -> None:
        """Compute all rows, which have one `width`; each answers its caller as soon as it ends.

        Once half of them have ended, the others go on without them: their tokens would be computed for nobody.
        """
        width = max(self.width(rows[0]), *(len(row.prompt) for row in rows))
        cache: Any = None
        while rows and not closing.is_set():
            filled = rows if cache is None else _filled(rows, self.tile)
            ids = torch.full((len(filled), width + len(rows[0].tokens)), self.pad)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(filled):
                ids[i, width - len(row.prompt) :] = torch.tensor(row.prompt + row.tokens)
                mask[i, width - len(row.prompt) :] = 1
            whole = len(rows) % self.tile == 0 or len(rows[0].tokens) > 0
            made = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=max(row.limit - len(row.tokens) for row in rows),
                logits_processor=transformers.LogitsProcessorList([_Draw(rows, self.tokenizer)]),
                stopping_criteria=transformers.StoppingCriteriaList([_Ended(rows, self, closing, whole)]),
                return_dict_in_generate=True,
                **({} if cache is None else {"past_key_values": cache}),
            )
            left = [i for i, row in enumerate(rows) if not row.done]
            rows = [rows[i] for i in left]
            cache = made.past_key_values if isinstance(made.past_key_values, transformers.DynamicCache) else None
            if cache is not None and rows:
                cache.reorder_cache(torch.tensor(_filled(left, self.tile)))

    def text(self, row: _Row) -> str:
        """What the row says so far; a think block that the template opened itself begins with its opener."""
        opener = ChatTemplate(self.tokenizer).opener(row.prompt)
        return opener + str(self.tokenizer.decode(row.tokens, skip_special_tokens=True))

    def _prompt(self, call: Call) -> list[int]:
        try:
            return ChatTemplate(self.tokenizer, call.variables).prompt(call.request.messages)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in call.request.messages)
            raise ModelUnavailable(f"{self.name}: its chat template refuses a chat of {roles}: {error}") from error


class _Draw(transformers.LogitsProcessor):
    """Chooses each row's next token, a sampled one from its own draw, and notes the first token's alternatives."""

    def __init__(self, rows: Sequence[_Row], tokenizer: Any) -> None:
        self.rows = rows
        self.tokenizer = tokenizer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for i, row in enumerate(self.rows):
            if row.call.request.logprobs is not None and not row.tokens and not row.done:
                row.alternatives = self._alternatives(scores[i], row.call.request.logprobs)
            if row.call.sampling.penalises and not row.done:
                _penalise(scores[i], row)
        sampled = [i for i, row in enumerate(self.rows) if row.call.request.temperature > 0 and not row.done]
        if sampled:
            heat = [[self.rows[i].call.request.temperature] for i in sampled]
            draws = [[self.rows[i].draw()] for i in sampled]
            chances = (
                scores[sampled].float().div_(torch.tensor(heat, device=scores.device).clamp(min=1e-30)).softmax(-1)
            )
            for chance, i in zip(chances, sampled, strict=True):
                if self.rows[i].call.sampling.filters:
                    _filter(chance, self.rows[i].call.sampling)
            tokens = drawn(chances, chances.new_tensor(draws, dtype=torch.float64))
            scores[sampled] = -math.inf
            scores[sampled, tokens] = 0.0
        return scores

    def _alternatives(self, scores: torch.Tensor, count: int) -> dict[str, float]:
        top = scores.log_softmax(-1).topk(min(count, scores.shape[-1]))
        alternatives: dict[str, float] = {}
        for logprob, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            text = self.tokenizer.decode([token])
            known = alternatives.get(text)  # several tokens may read the same
            alternatives[text] = logprob if known is None else math.log(math.exp(known) + math.exp(logprob))
        return alternatives


def drawn(chances: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """One token of each row: where its chances have added up to the drawn share, in [0, 1), of all of them.

    Blocks of tokens are added up first, in float64, and then the tokens of one: to do so with a whole vocabulary takes
    longer than the rest of drawing. No chance is off by more than float32's rounding, a ten-millionth of it.
    """
    if rest := -chances.shape[-1] % _BLOCK:
        chances = torch.nn.functional.pad(chances, (0, rest))
    blocks = chances.view(len(chances), -1, _BLOCK)
    mass = blocks.sum(-1).double().cumsum(-1)
    marks = draws * mass[:, -1:]
    block = _reached(mass, marks)
    before = mass.gather(-1, (block - 1).clamp(min=0)).where(block > 0, 0.0)
    inner = blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK)).squeeze(1).double().cumsum(-1)
    return (block * _BLOCK + _reached(inner, (marks - before).clamp(min=0))).squeeze(-1)


def _reached(sums: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """Where growing sums first exceed a mark; at one that rounding has put beyond the end, where they last grow."""
    return torch.searchsorted(sums, torch.minimum(marks, sums[:, -1:] * (1 - 2**-52)), right=True)


def _penalise(scores: torch.Tensor, row: _Row) -> None:
    """Change a row's logits, in place, by what it has said."""
    how = row.call.sampling
    if how.repetition_penalty != 1:
        known = torch.tensor(sorted({*row.prompt, *row.tokens}), device=scores.device)
        logits = scores[known]
        scores[known] = torch.where(logits > 0, logits / how.repetition_penalty, logits * how.repetition_penalty)
    if row.tokens:
        said, times = torch.unique(torch.tensor(row.tokens, device=scores.device), return_counts=True)
        scores[said] -= how.presence_penalty + how.frequency_penalty * times


def _filter(chances: torch.Tensor, how: Sampling) -> None:
    """Set the probabilities of a row's unlikely tokens to 0, in place; the likeliest token always stays."""
    chances[chances < how.min_p * chances.max()] = 0
    if 0 < how.top_k < len(chances):
        chances[chances < chances.topk(how.top_k).values[-1]] = 0
    if how.top_p < 1:
        ranked, places = chances.sort(descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        chances[places[before >= how.top_p * ranked.sum()]] = 0


class _Ended(transformers.StoppingCriteria):
    """Takes each row's new token, and ends the computation once half of the rows are done.

    It ends after the first token where the rows make no `whole` tiles, to be filled up: prompts need no filling, since
    each has a whole number of tiles.
    """

    def __init__(self, rows: Sequence[_Row], loaded: _Loaded, closing: threading.Event, whole: bool) -> None:
        self.rows = rows
        self.loaded = loaded
        self.closing = closing
        self.whole = whole

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        for row, token in zip(self.rows, input_ids[: len(self.rows), -1].tolist(), strict=True):
            if not row.done:
                self._take(row, token)
        half = 2 * sum(row.done for row in self.rows) >= len(self.rows)
        ended = half or not self.whole or self.closing.is_set()
        return cast("torch.BoolTensor", torch.full((len(input_ids),), ended, device=input_ids.device))

    def _take(self, row: _Row, token: int) -> None:
        row.tokens.append(token)
        if token in self.loaded.ends:
            row.finish(self.loaded.text(row), "stop")
            return
        text = self.loaded.text(row) if row.call.request.stop or len(row.tokens) == row.limit else ""
        cuts = [at for at in map(text.find, row.call.request.stop) if at >= 0]
        if cuts:
            row.finish(text[: min(cuts)], "stop")
        elif len(row.tokens) == row.limit:
            row.finish(text, "length")


class Engine:
    """A worker thread and the way to it. The thread ends, and frees the weights, when nobody refers to this."""

    def __init__(self, weights: Weights) -> None:
        self.process = os.getpid()
        self.inbox: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        closing = threading.Event()
        thread = threading.Thread(
            target=_work, args=(weights, self.inbox, closing), name=f"local:{weights.path}", daemon=True
        )
        thread.start()
        weakref.finalize(self, _close, self.process, self.inbox, closing, thread)


_engines: weakref.WeakValueDictionary[Weights, Engine] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def engine_of(weights: Weights) -> Engine:
    """The worker for a model's weights, whatever is drawn from them."""
    global _lock
    with _lock:
        engine = _engines.get(weights)
        if engine is None or engine.process != os.getpid():
            engine = _engines[weights] = Engine(weights)
        return engine


def _forget() -> None:
    """A forked child has our variables but not our threads."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _close(process: int, inbox: queue.SimpleQueue[Any], closing: threading.Event, thread: threading.Thread) -> None:
    """End the worker: after its current token, also at exit, where an interpreter must not die under it."""
    if process == os.getpid():
        closing.set()
        inbox.put(None)
        if thread is not threading.current_thread():
            thread.join(timeout=10)


def _work(weights: Weights, inbox: queue.SimpleQueue[Call | None], closing: threading.Event) -> None:
    """The worker: gather what waits, compute it, again. An error is its requests' error, never the worker's end."""
    loaded: _Loaded | None = None
    rows: list[_Row] = []
    while not closing.is_set():
        with contextlib.suppress(queue.Empty):
            while len(rows) < weights.max_batch:
                call = inbox.get(timeout=weights.gather if rows else None)
                if call is None:
                    return
                try:
                    loaded = loaded or _Loaded(weights)
                    rows.extend(loaded.rows(call))
                except ESCError as error:
                    call.fail(error)
                except Exception as error:
                    call.fail(_broken(f"local:{weights.path} cannot be loaded", error))
                del call
        if loaded is not None and rows:
            batch, rows = _divided(rows, loaded.width, weights.max_batch)
            _compute(loaded, batch, closing)


def _divided(rows: Iterable[_Row], width: Callable[[_Row], int], size: int) -> tuple[list[_Row], list[_Row]]:
    """(the next batch: at most `size` rows that are as wide as the first of all, the rest), each in their order."""
    batch: list[_Row] = []
    rest: list[_Row] = []
    for row in rows:
        fits = not batch or (len(batch) < size and width(row) == width(batch[0]))
        (batch if fits else rest).append(row)
    return batch, rest


def _compute(loaded: _Loaded, rows: Sequence[_Row], closing: threading.Event) -> None:
    """Compute a batch, in halves where the whole does not fit into memory."""
    rows = [row for row in rows if not row.done]
    if not rows:
        return
    try:
        loaded.generate(rows, closing)
        return
    except torch.OutOfMemoryError as error:
        if len(rows) == 1:
            rows[0].call.fail(_broken(f"{loaded.name}: one conversation does not fit into the GPU's memory", error))
            return
    except Exception as error:
        for row in rows:
            row.call.fail(_broken(f"{loaded.name} failed while computing", error))
        return
    torch.cuda.empty_cache()
    for row in rows:
        if not row.done:
            row.tokens.clear()
    _compute(loaded, rows[: len(rows) // 2], closing)
    _compute(loaded, rows[len(rows) // 2 :], closing)


def _filled(items: Sequence[_T], tile: int) -> list[_T]:
    """The items, and the first of them again until they make whole tiles."""
    return [*items, *([items[0]] * (-len(items) % tile))]


def _in_tiles(forward: Callable[[torch.Tensor], torch.Tensor], tile: int, rows: torch.Tensor) -> torch.Tensor:
    """What a layer makes of rows, computed in whole tiles."""
    flat = rows.reshape(-1, rows.shape[-1])
    made = forward(torch.nn.functional.pad(flat, (0, 0, 0, -len(flat) % tile)))[: len(flat)]
    return made.reshape(*rows.shape[:-1], made.shape[-1])


def _broken(what: str, error: Exception) -> ModelUnavailable:
    broken = ModelUnavailable(f"{what}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    broken.__cause__ = error
    return broken


def _adapted(model: Any, adapter: Path, vocabulary: int, name: str) -> Any:
    try:
        from peft import PeftModel
    except ModuleNotFoundError as error:
        raise MissingExtra("peft", "local") from error
    if not (adapter / "adapter_model.safetensors").exists():
        raise ModelUnavailable(f"{name}: no adapter_model.safetensors in it; other weight formats are not read")
    if vocabulary > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(vocabulary)
    return PeftModel.from_pretrained(model, str(adapter))


def _fast_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16, as far as PyTorch tells."""
    tells = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(tell is not None and tell() for tell in tells)

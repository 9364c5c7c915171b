"""Local Transformers models as chat models: any causal language model with a chat template, with or without a LoRA.

One worker thread per model holds the weights and answers whatever waits, in left-padded micro-batches, so that
concurrent conversations share each forward pass. Every choice draws from its own seed, never from its place in a batch.

Weights are read from `safetensors` files only, and code that comes with a model is never run. Text inside messages that
looks like the template's control tokens (`<|im_end|>`) is encoded as ordinary text, so that nobody can forge a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import math
import os
import queue
import re
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, ClassVar, cast

from esc_env.dialogue import ChatMessage
from esc_env.errors import BadCompletion, ESCError, MissingExtra, ModelUnavailable, SpecError
from esc_env.models.templates import ChatTemplate, TemplateError
from esc_env.models.weights import end_tokens, is_gguf, load_model, load_tokenizer, no_progress_bars
from esc_env.protocols import Completion, Usage
from esc_env.seeds import derive

try:
    import torch
    import transformers
    from huggingface_hub import snapshot_download
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "local") from error

__all__ = ["MAX_TOKENS", "LocalModel"]

logger = logging.getLogger(__name__)

MAX_TOKENS = 512
"""Tokens a choice may have when the call sets no limit: a local model may otherwise go on to the end of its context."""

_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
_DTYPES = ("float32", "bfloat16", "float16")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_VOLATILE = {"_name_or_path", "name_or_path", "base_model_name_or_path", "transformers_version", "inference_mode"}


@dataclass(frozen=True, slots=True)
class _Sampling:
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


@dataclass(frozen=True)
class LocalModel:
    """A ChatModel that runs on this machine.

    Chairs whose LocalModels agree in path, device, dtype and batch share one copy of the weights; they are loaded at
    the first call and freed with the last such object. Pickles and copies carry the configuration only. Samples are
    drawn from the whole distribution at the given temperature, unless an option says otherwise: the `top_p`, `top_k`
    and penalties of a model's own generation config are not used.

    Greedy text, and sampled text for the same seed, does not depend on what else was in the batch, up to the rounding
    of the arithmetic: a few tokens in a million in float32; in bfloat16 wherever a tie is near (`max_batch=1` excludes
    that).

    The number format is part of who the model is. So it is float32 on every CPU, also where bfloat16 is faster:
    otherwise the same command would run another agent on another processor. What was loaded is logged (INFO).

    Args:
        path: the folder of a model or of a PEFT adapter, as `save_pretrained` writes it; a GGUF file (its weights are
            unpacked to `dtype`); or ORG/NAME on the Hugging Face Hub.
        device: `cpu`, `cuda`, `cuda:1`, …; None for the GPU if there is one, else the CPU.
        dtype: `float32`, `bfloat16` or `float16`; None for bfloat16 on a GPU and float32 on the CPU.
        max_batch: choices computed at once, ≥ 1. A batch too large for the GPU's memory is halved and tried again.
        gather: seconds to wait for more requests before a batch that is not full starts.
        top_p: draw from the likeliest tokens that together have this probability, in (0, 1].
        top_k: draw from so many of the likeliest tokens; 0 for all.
        min_p: draw from the tokens at least so likely, as a share of the likeliest one's probability, in [0, 1].
        repetition_penalty: above 0; above 1 makes tokens of prompt and reply less likely to come (again).
        presence_penalty, frequency_penalty: subtracted from the logit of each token that the reply has, once, or for
            each time; in [−2, 2].
        chat_template_kwargs: what the chat template is told beside the chat, JSON-able: `{"enable_thinking": False}`.

    The order is vLLM's: penalties, temperature, min_p, top_k, top_p.

    Attributes:
        OPTIONS: the names of all options: every argument but `path`.

    Raises:
        SpecError: no such folder or file, or an impossible option.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset(
        {
            "device", "dtype", "max_batch", "gather", "top_p", "top_k", "min_p", "repetition_penalty",
            "presence_penalty", "frequency_penalty", "chat_template_kwargs",
        }
    )  # fmt: skip

    path: str
    device: str | None = None
    dtype: str | None = None
    max_batch: int = 64
    gather: float = 0.005
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    chat_template_kwargs: Mapping[str, Any] | None = field(default=None, hash=False)
    _engine: _Engine | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check("max_batch", _is_whole(self.max_batch) and self.max_batch >= 1, "a whole number, at least 1")
        self._check("gather", _is_number(self.gather) and self.gather >= 0, "seconds, at least 0")
        self._check("dtype", self.dtype is None or self.dtype in _DTYPES, f"one of {', '.join(_DTYPES)}")
        self._check("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1")
        self._check("top_k", _is_whole(self.top_k) and self.top_k >= 0, "a whole number, 0 for all tokens")
        self._check("min_p", _is_number(self.min_p) and 0 <= self.min_p <= 1, "from 0 to 1")
        penalty = self.repetition_penalty
        self._check("repetition_penalty", _is_number(penalty) and 0 < penalty < math.inf, "above 0; 1 is none")
        for name in ("presence_penalty", "frequency_penalty"):
            self._check(name, _is_number(getattr(self, name)) and -2 <= getattr(self, name) <= 2, "from -2 to 2")
        if self.chat_template_kwargs is not None:
            self._check("chat_template_kwargs", isinstance(self.chat_template_kwargs, Mapping), 'like {"name": value}')
            try:
                copied = json.loads(json.dumps(dict(self.chat_template_kwargs), sort_keys=True))
            except (TypeError, ValueError) as error:
                raise SpecError(f"local:{self.path}: chat_template_kwargs must be JSON ({error})") from error
            ours = inspect.signature(transformers.PreTrainedTokenizerBase.apply_chat_template).parameters
            if taken := sorted(set(copied) & set(ours)):
                raise SpecError(f"local:{self.path}: chat_template_kwargs cannot set {', '.join(taken)}: they are ours")
            object.__setattr__(self, "chat_template_kwargs", copied or None)
        self._check_path()

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise SpecError(f"local:{self.path}: {name} {getattr(self, name)!r} must be {wanted}")

    def _check_path(self) -> None:
        place = Path(self.path).expanduser()
        if is_gguf(self.path):
            if not place.is_file():
                raise SpecError(f"local:{self.path}: no such file. Write the path of a GGUF file")
            if _PART.search(self.path):
                raise SpecError(
                    f"local:{self.path} is one part of a model. Join its parts first: llama-gguf-split --merge "
                    f"{place.name} whole.gguf"
                )
        elif place.is_file():
            raise SpecError(f"local:{self.path} is a file. Write the folder it lies in, or a GGUF file")
        elif not place.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.path):
            raise SpecError(
                f"local:{self.path}: no such folder. Write the folder of a Transformers model or PEFT adapter, a GGUF "
                "file, or ORG/NAME of a model on the Hugging Face Hub"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, each.name) for each in fields(self) if each.init)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The last part of the path, a hash of weights, tokenizer and template, the number format, and how it draws.

        Reads the weights' files once (a second or so per gigabyte); a model on the Hub is downloaded for it.
        """
        adapter, base = self._places()
        drawn = {
            each.name: getattr(self, each.name)
            for each in fields(_Sampling)
            if getattr(self, each.name) != type(self).__dataclass_fields__[each.name].default
        }
        told = {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
        return {
            "provider": "local",
            "name": (adapter or base).name if Path(self.path).expanduser().exists() else self.path.rpartition("/")[2],
            "weights": _fingerprint(base) if adapter is None else _fingerprint(base, adapter),
            "dtype": self._dtype,
            "sampling": drawn or "temperature only",
            **told,
        }

    async def complete(
        self,
        messages: Sequence[ChatMessage],
        *,
        n: int = 1,
        temperature: float = 0.0,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> Completion:
        """`n` completions of `messages`, computed together with what else waits.

        Args:
            messages: roles and texts as the model's chat template takes them. A system message that the template
                refuses is put before the first user message.
            n: choices; choice i depends on (seed, i) only.
            temperature: 0 for greedy.
            max_tokens: per choice; None for `MAX_TOKENS`. The end of the model's context ends a choice too (`length`).
            seed: names the draws; None for fresh ones.
            stop: strings that end a choice; they are not part of its text.
            logprobs: how many alternatives of the first token to return, as the model has them: before temperature,
                penalties and filters.

        Raises:
            SpecError: the model has no chat template, or its adapter no base model.
            BadCompletion: the prompt alone fills the model's context.
            ModelUnavailable: it cannot be loaded, or computing failed.
        """
        if n < 1 or temperature < 0 or (max_tokens is not None and max_tokens < 1):
            raise SpecError(f"n and max_tokens must be ≥ 1 and temperature ≥ 0: {n}, {max_tokens}, {temperature}")
        begun = time.perf_counter()
        request = _Request(
            [ChatMessage(role=message["role"], content=message["content"]) for message in messages],
            n,
            temperature,
            MAX_TOKENS if max_tokens is None else max_tokens,
            secrets.randbits(63) if seed is None else seed,
            tuple(stop),
            logprobs,
            _Sampling(**{each.name: getattr(self, each.name) for each in fields(_Sampling)}),
            self.chat_template_kwargs,
        )
        engine = self._engine
        if engine is None or engine.process != os.getpid():
            engine = _engine_of(self)
            object.__setattr__(self, "_engine", engine)
        engine.inbox.put(request)
        rows = await asyncio.wrap_future(request.outcome)
        return Completion(
            tuple(row.text for row in rows),
            tuple(row.finish_reason for row in rows),
            Usage(1, len(rows[0].prompt), sum(len(row.tokens) for row in rows), 0.0),
            self.path.rstrip("/").rpartition("/")[2],
            tuple(row.alternatives for row in rows) if logprobs is not None else None,
            time.perf_counter() - begun,
        )

    @property
    def _place(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def _dtype(self) -> str:
        return self.dtype or ("bfloat16" if self._place.startswith("cuda") else "float32")

    def _places(self) -> tuple[Path | None, Path]:
        """(folder of the adapter, if it is one; folder or GGUF file of the model)."""
        folder = self._fetch(self.path)
        config = folder / "adapter_config.json"
        if not config.exists():
            return None, folder
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not base:
            raise SpecError(f"local:{self.path}: write the base model into base_model_name_or_path of {config}")
        beside = folder / base
        found = beside if beside.exists() else self._fetch(base, f", the base model that {config} names")
        if (found / "adapter_config.json").exists():
            raise SpecError(f"local:{self.path}: its base {base} is an adapter too; merge that one into its model")
        return folder, found

    def _fetch(self, path: str, what: str = "") -> Path:
        place = Path(path).expanduser()
        if place.is_dir() or (is_gguf(path) and place.is_file()):
            return place.resolve()
        if is_gguf(path):
            raise ModelUnavailable(f"local:{path}{what}: no such file. Write where it lies now")
        try:
            return Path(snapshot_download(path, allow_patterns=_FILES, ignore_patterns=["original/*", "consolidated*"]))
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelUnavailable(
                f"local:{path}{what}: not a folder here, and the Hugging Face Hub did not give it ({reason}). "
                "Check the name and the network; a gated model needs HF_TOKEN"
            ) from error


@dataclass(eq=False, slots=True)
class _Request:
    """One call of `complete` on its way to the worker."""

    messages: list[ChatMessage]
    n: int
    temperature: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...]
    logprobs: int | None
    sampling: _Sampling
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

    request: _Request
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
        return self.finish_reason is not None or self.request.outcome.done()

    def draw(self) -> float:
        """The draw from [0, 1) of its next token."""
        return derive(self.request.seed, self.choice, len(self.tokens)) / 2.0**63

    def finish(self, text: str, reason: str) -> None:
        """Its text is complete; the request's last row answers the caller at once, whatever else the batch does."""
        self.text, self.finish_reason = text, reason
        self.request.unfinished -= 1
        outcome = self.request.outcome
        if self.request.unfinished == 0 and not outcome.done() and outcome.set_running_or_notify_cancel():
            outcome.set_result(self.siblings)


class _Loaded:
    """Weights and tokenizer in memory. Lives in the worker thread."""

    def __init__(self, spec: LocalModel) -> None:
        begun = time.perf_counter()
        adapter, base = spec._places()
        self.name = f"local:{spec.path}"
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
            model = load_model(
                base,
                self.tokenizer,
                dtype=getattr(torch, spec._dtype),
                device_map=spec._place,
                use_safetensors=True,
            )
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
        logger.info("%s: %s", self.name, self._about(spec, is_gguf(base), time.perf_counter() - begun))

    def _about(self, spec: LocalModel, unpacked: bool, seconds: float) -> str:
        """What was loaded, in a line."""
        count = sum(weights.numel() for weights in self.model.parameters())
        size = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
        hint = ""
        if spec._place == "cpu" and spec._dtype == "float32" and _fast_bfloat16():
            hint = "; this processor reads prompts faster with dtype=bfloat16, which is another agent"
        return (
            f"{size} parameters{' unpacked' if unpacked else ''} in {spec._dtype} on {spec._place}, loaded in "
            f"{seconds:.0f} s{hint}"
        )

    def rows(self, request: _Request) -> list[_Row]:
        """The request's choices, ready to be computed. Raises BadCompletion when its prompt leaves no room."""
        prompt = self._prompt(request)
        room = self.context - len(prompt)
        if room < 1:
            raise BadCompletion(
                f"{self.name}: the prompt has {len(prompt)} tokens, and the model's context holds {self.context}. Use "
                "fewer turns, or a model with a longer context"
            )
        rows: list[_Row] = []
        limit = min(request.max_tokens, room)
        rows.extend(_Row(request, choice, prompt, limit, rows) for choice in range(request.n))
        request.unfinished = request.n
        return rows

    def generate(self, rows: Sequence[_Row], closing: threading.Event) -> None:
        """Compute all rows; each answers its caller as soon as it ends.

        Once half of them have ended, the others go on without them: their tokens would be computed for nobody.
        """
        width = max(len(row.prompt) for row in rows)
        cache: Any = None
        while rows and not closing.is_set():
            ids = torch.full((len(rows), width + len(rows[0].tokens)), self.pad)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(rows):
                ids[i, width - len(row.prompt) :] = torch.tensor(row.prompt + row.tokens)
                mask[i, width - len(row.prompt) :] = 1
            made = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=max(row.limit - len(row.tokens) for row in rows),
                logits_processor=transformers.LogitsProcessorList([_Draw(rows, self.tokenizer)]),
                stopping_criteria=transformers.StoppingCriteriaList([_Ended(rows, self, closing)]),
                return_dict_in_generate=True,
                **({} if cache is None else {"past_key_values": cache}),
            )
            left = [i for i, row in enumerate(rows) if not row.done]
            rows = [rows[i] for i in left]
            cache = made.past_key_values if isinstance(made.past_key_values, transformers.DynamicCache) else None
            if cache is not None and rows:
                cache.reorder_cache(torch.tensor(left))

    def text(self, row: _Row) -> str:
        """What the row says so far; a think block that the template opened itself begins with its opener."""
        opener = ChatTemplate(self.tokenizer).opener(row.prompt)
        return opener + str(self.tokenizer.decode(row.tokens, skip_special_tokens=True))

    def _prompt(self, request: _Request) -> list[int]:
        try:
            return ChatTemplate(self.tokenizer, request.variables).prompt(request.messages)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in request.messages)
            raise ModelUnavailable(f"{self.name}: its chat template refuses a chat of {roles}: {error}") from error


class _Draw(transformers.LogitsProcessor):
    """Chooses each row's next token, a sampled one from its own draw, and notes the first token's alternatives."""

    def __init__(self, rows: Sequence[_Row], tokenizer: Any) -> None:
        self.rows = rows
        self.tokenizer = tokenizer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for i, row in enumerate(self.rows):
            if row.request.logprobs is not None and not row.tokens and not row.done:
                row.alternatives = self._alternatives(scores[i], row.request.logprobs)
            if row.request.sampling.penalises and not row.done:
                _penalise(scores[i], row)
        sampled = [i for i, row in enumerate(self.rows) if row.request.temperature > 0 and not row.done]
        if sampled:
            heat = [[self.rows[i].request.temperature] for i in sampled]
            draws = [[self.rows[i].draw()] for i in sampled]
            chances = (scores[sampled].double() / scores.new_tensor(heat, dtype=torch.float64)).softmax(-1)
            for chance, i in zip(chances, sampled, strict=True):
                if self.rows[i].request.sampling.filters:
                    _filter(chance, self.rows[i].request.sampling)
            mass = chances.cumsum(-1)
            marks = scores.new_tensor(draws, dtype=torch.float64) * mass[:, -1:]
            tokens = torch.searchsorted(mass, marks, right=True)
            scores[sampled] = -math.inf
            scores[sampled, tokens.clamp(max=scores.shape[-1] - 1).squeeze(-1)] = 0.0
        return scores

    def _alternatives(self, scores: torch.Tensor, count: int) -> dict[str, float]:
        top = scores.log_softmax(-1).topk(min(count, scores.shape[-1]))
        alternatives: dict[str, float] = {}
        for logprob, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            text = self.tokenizer.decode([token])
            known = alternatives.get(text)  # several tokens may read the same
            alternatives[text] = logprob if known is None else math.log(math.exp(known) + math.exp(logprob))
        return alternatives


def _penalise(scores: torch.Tensor, row: _Row) -> None:
    """Change a row's logits, in place, by what it has said."""
    how = row.request.sampling
    if how.repetition_penalty != 1:
        known = torch.tensor(sorted({*row.prompt, *row.tokens}), device=scores.device)
        logits = scores[known]
        scores[known] = torch.where(logits > 0, logits / how.repetition_penalty, logits * how.repetition_penalty)
    if row.tokens:
        said, times = torch.unique(torch.tensor(row.tokens, device=scores.device), return_counts=True)
        scores[said] -= how.presence_penalty + how.frequency_penalty * times


def _filter(chances: torch.Tensor, how: _Sampling) -> None:
    """Set the probabilities of a row's unlikely tokens to 0, in place; the likeliest token always stays."""
    chances[chances < how.min_p * chances.max()] = 0
    if 0 < how.top_k < len(chances):
        chances[chances < chances.topk(how.top_k).values[-1]] = 0
    if how.top_p < 1:
        ranked, places = chances.sort(descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        chances[places[before >= how.top_p * ranked.sum()]] = 0


class _Ended(transformers.StoppingCriteria):
    """Takes each row's new token, and ends the computation once half of the rows are done."""

    def __init__(self, rows: Sequence[_Row], loaded: _Loaded, closing: threading.Event) -> None:
        self.rows = rows
        self.loaded = loaded
        self.closing = closing

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            if not row.done:
                self._take(row, token)
        ended = self.closing.is_set() or 2 * sum(row.done for row in self.rows) >= len(self.rows)
        return cast("torch.BoolTensor", torch.full((len(self.rows),), ended, device=input_ids.device))

    def _take(self, row: _Row, token: int) -> None:
        row.tokens.append(token)
        if token in self.loaded.ends:
            row.finish(self.loaded.text(row), "stop")
            return
        text = self.loaded.text(row) if row.request.stop or len(row.tokens) == row.limit else ""
        cuts = [at for at in map(text.find, row.request.stop) if at >= 0]
        if cuts:
            row.finish(text[: min(cuts)], "stop")
        elif len(row.tokens) == row.limit:
            row.finish(text, "length")


class _Engine:
    """A worker thread and the way to it. The thread ends, and frees the weights, when nobody refers to this."""

    def __init__(self, spec: LocalModel) -> None:
        self.process = os.getpid()
        self.inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        closing = threading.Event()
        thread = threading.Thread(
            target=_work, args=(spec, self.inbox, closing), name=f"local:{spec.path}", daemon=True
        )
        thread.start()
        weakref.finalize(self, _close, self.process, self.inbox, closing, thread)


_engines: weakref.WeakValueDictionary[LocalModel, _Engine] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _engine_of(spec: LocalModel) -> _Engine:
    """The worker for a model's weights, whatever is drawn from them."""
    global _lock
    weights = LocalModel(spec.path, spec.device, spec.dtype, spec.max_batch, spec.gather)
    with _lock:
        engine = _engines.get(weights)
        if engine is None or engine.process != os.getpid():
            engine = _engines[weights] = _Engine(weights)
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


def _work(spec: LocalModel, inbox: queue.SimpleQueue[_Request | None], closing: threading.Event) -> None:
    """The worker: gather what waits, compute it, again. An error is its requests' error, never the worker's end."""
    loaded: _Loaded | None = None
    rows: deque[_Row] = deque()
    while not closing.is_set():
        with contextlib.suppress(queue.Empty):
            while len(rows) < spec.max_batch:
                request = inbox.get(timeout=spec.gather if rows else None)
                if request is None:
                    return
                try:
                    loaded = loaded or _Loaded(spec)
                    rows.extend(loaded.rows(request))
                except ESCError as error:
                    request.fail(error)
                except Exception as error:
                    request.fail(_broken(f"local:{spec.path} cannot be loaded", error))
                del request
        if loaded is not None:
            _compute(loaded, [rows.popleft() for _ in range(min(len(rows), spec.max_batch))], closing)


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
            rows[0].request.fail(_broken(f"{loaded.name}: one conversation does not fit into the GPU's memory", error))
            return
    except Exception as error:
        for row in rows:
            row.request.fail(_broken(f"{loaded.name} failed while computing", error))
        return
    torch.cuda.empty_cache()
    for row in rows:
        if not row.done:
            row.tokens.clear()
    _compute(loaded, rows[: len(rows) // 2], closing)
    _compute(loaded, rows[len(rows) // 2 :], closing)


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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fast_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16, as far as PyTorch tells."""
    tells = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(tell is not None and tell() for tell in tells)


def _fingerprint(*places: Path) -> str:
    """A hash of what decides the model's answers: weights, configs, tokenizer, template; not where it lies.

    Of a GGUF file alone it is the file's own SHA-256, the first 16 digits.
    """
    if len(places) == 1 and places[0].is_file():
        return _digest(places[0])[:16]
    total = sha256()
    for place in places:
        if place.is_file():
            total.update(f"{_digest(place)}\x1e".encode())
            continue
        for file in sorted({path for pattern in _FILES for path in place.glob(pattern)}):
            if file.name.endswith("config.json"):
                data = json.loads(file.read_text(encoding="utf-8"))
                kept = {key: value for key, value in data.items() if key not in _VOLATILE}
                digest = sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
            elif file.suffix in (".safetensors", ".jinja") or file.name.startswith("tokenizer"):
                digest = _digest(file)
            else:
                continue
            total.update(f"{file.name}\x1f{digest}\x1e".encode())
    return total.hexdigest()[:16]


def _digest(file: Path) -> str:
    stat = file.stat()
    return _file_digest(file, stat.st_size, stat.st_mtime_ns)


@cache
def _file_digest(file: Path, size: int, modified: int) -> str:
    """The SHA-256 of a file, computed once per (size, time of change)."""
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()

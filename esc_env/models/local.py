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
import math
import os
import queue
import re
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, cast

from esc_env.dialogue import ChatMessage
from esc_env.errors import BadCompletion, ESCError, MissingExtra, ModelUnavailable, SpecError
from esc_env.protocols import Completion, Usage
from esc_env.seeds import derive

try:
    import torch
    import transformers
    from huggingface_hub import snapshot_download
    from jinja2 import TemplateError
    from transformers.utils import logging as transformers_logging
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "local") from error

__all__ = ["MAX_TOKENS", "LocalModel"]

MAX_TOKENS = 512
"""Tokens a choice may have when the call sets no limit: a local model may otherwise go on to the end of its context."""

_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
_DTYPES = ("float32", "bfloat16", "float16")
_OPENED = re.compile(r"<\s*think\s*>\s*$", re.IGNORECASE)
_VOLATILE = {"_name_or_path", "name_or_path", "base_model_name_or_path", "transformers_version", "inference_mode"}


@dataclass(frozen=True)
class LocalModel:
    """A ChatModel that runs on this machine.

    Chairs with an equal LocalModel share one copy of the weights; they are loaded at the first call and freed with the
    last such object. Pickles and copies carry the configuration only. Samples are drawn from the whole distribution at
    the given temperature: the `top_p`, `top_k` and penalties of a model's generation config are not used.

    Greedy text, and sampled text for the same seed, does not depend on what else was in the batch, up to the rounding
    of the arithmetic: a few tokens in a million in float32; in bfloat16 wherever a tie is near (`max_batch=1` excludes
    that).

    Args:
        path: the folder of a model or of a PEFT adapter, as `save_pretrained` writes it, or ORG/NAME on the Hugging
            Face Hub.
        device: `cpu`, `cuda`, `cuda:1`, …; None for the GPU if there is one, else the CPU.
        dtype: `float32`, `bfloat16` or `float16`; None for bfloat16 on a GPU and float32 on the CPU.
        max_batch: choices computed at once, ≥ 1. A batch too large for the GPU's memory is halved and tried again.
        gather: seconds to wait for more requests before a batch that is not full starts.

    Raises:
        SpecError: no such folder, or an impossible option.
    """

    path: str
    device: str | None = None
    dtype: str | None = None
    max_batch: int = 64
    gather: float = 0.005
    _engine: _Engine | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.gather < 0:
            raise SpecError(f"local:{self.path}: max_batch must be at least 1 and gather at least 0")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise SpecError(f"local:{self.path}: dtype {self.dtype!r} must be one of {', '.join(_DTYPES)}")
        if not Path(self.path).expanduser().is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.path):
            raise SpecError(
                f"local:{self.path}: no such folder. Write the folder of a Transformers model or PEFT adapter, or "
                "ORG/NAME of a model on the Hugging Face Hub"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.device, self.dtype, self.max_batch, self.gather)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The last part of the path, a hash of weights, tokenizer and template, the number format, and how it draws.

        Reads the weights' files once (a second or so per gigabyte); a model on the Hub is downloaded for it.
        """
        adapter, base = self._folders()
        return {
            "provider": "local",
            "name": (adapter or base).name if Path(self.path).expanduser().is_dir() else self.path.rpartition("/")[2],
            "weights": _fingerprint(base) if adapter is None else _fingerprint(base, adapter),
            "dtype": self.dtype or ("bfloat16" if self._place.startswith("cuda") else "float32"),
            "sampling": "temperature only",
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
            logprobs: how many alternatives of the first token to return, before the temperature is applied.

        Raises:
            SpecError: the model has no chat template, or its adapter no base model.
            BadCompletion: the prompt alone fills the model's context.
            ModelUnavailable: it cannot be loaded, or computing failed.
        """
        if n < 1 or temperature < 0 or (max_tokens is not None and max_tokens < 1):
            raise ValueError(f"n and max_tokens must be ≥ 1 and temperature ≥ 0: {n}, {max_tokens}, {temperature}")
        begun = time.perf_counter()
        request = _Request(
            [{"role": message["role"], "content": message["content"]} for message in messages],
            n,
            temperature,
            MAX_TOKENS if max_tokens is None else max_tokens,
            secrets.randbits(63) if seed is None else seed,
            tuple(stop),
            logprobs,
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

    def _folders(self) -> tuple[Path | None, Path]:
        """(folder of the adapter, if it is one; folder of the model)."""
        folder = self._fetch(self.path)
        config = folder / "adapter_config.json"
        if not config.exists():
            return None, folder
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not base:
            raise SpecError(f"local:{self.path}: write the base model into base_model_name_or_path of {config}")
        beside = folder / base
        base_folder = beside if beside.is_dir() else self._fetch(base, f", the base model that {config} names")
        if (base_folder / "adapter_config.json").exists():
            raise SpecError(f"local:{self.path}: its base {base} is an adapter too; merge that one into its model")
        return folder, base_folder

    def _fetch(self, path: str, what: str = "") -> Path:
        folder = Path(path).expanduser()
        if folder.is_dir():
            return folder.resolve()
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

    messages: list[dict[str, str]]
    n: int
    temperature: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...]
    logprobs: int | None
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
        adapter, base = spec._folders()
        self.name = f"local:{spec.path}"
        with_tokenizer = adapter is not None and (adapter / "tokenizer_config.json").exists()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            adapter if with_tokenizer else base, trust_remote_code=False
        )
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
        dtype = getattr(torch, spec.dtype or ("bfloat16" if spec._place.startswith("cuda") else "float32"))
        with _no_progress_bars():
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                base, dtype=dtype, device_map=spec._place, use_safetensors=True, trust_remote_code=False
            )
            self.ends = _ends(model.generation_config.eos_token_id, self.tokenizer.eos_token_id)
            pad = self.tokenizer.pad_token_id
            self.pad: int = pad if pad is not None else min(self.ends, default=0)
            model.generation_config = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
                eos_token_id=sorted(self.ends) or None, pad_token_id=self.pad, do_sample=False
            )
            self.context: int = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
            if adapter is not None:
                model = _adapted(model, adapter, len(self.tokenizer), self.name)
        self.model = model.eval()

    def rows(self, request: _Request) -> list[_Row]:
        """The request's choices, ready to be computed. Raises BadCompletion when its prompt leaves no room."""
        prompt = self._prompt(request.messages)
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
        opened = _OPENED.search(self.tokenizer.decode(row.prompt[-16:]))
        text: str = self.tokenizer.decode(row.tokens, skip_special_tokens=True)
        return opened.group() + text if opened else text

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        def rendered(chat: list[dict[str, str]]) -> list[int]:
            ids: list[int] = self.tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_dict=True, sanitize_control_tokens=True
            )["input_ids"]
            return ids

        try:
            return rendered(messages)
        except TemplateError as error:
            if len(messages) > 1 and messages[0]["role"] == "system" and messages[1]["role"] == "user":
                folded = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
                with contextlib.suppress(TemplateError):
                    return rendered([folded, *messages[2:]])
            roles = ", ".join(message["role"] for message in messages)
            raise ModelUnavailable(f"{self.name}: its chat template refuses a chat of {roles}: {error}") from error


class _Draw(transformers.LogitsProcessor):
    """Chooses each sampled row's next token from its own draw, and notes the first token's alternatives."""

    def __init__(self, rows: Sequence[_Row], tokenizer: Any) -> None:
        self.rows = rows
        self.tokenizer = tokenizer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for i, row in enumerate(self.rows):
            if row.request.logprobs is not None and not row.tokens and not row.done:
                row.alternatives = self._alternatives(scores[i], row.request.logprobs)
        sampled = [i for i, row in enumerate(self.rows) if row.request.temperature > 0 and not row.done]
        if sampled:
            heat = [[self.rows[i].request.temperature] for i in sampled]
            draws = [[self.rows[i].draw()] for i in sampled]
            mass = (scores[sampled].double() / scores.new_tensor(heat, dtype=torch.float64)).softmax(-1).cumsum(-1)
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
            target=_work, args=(replace(spec), self.inbox, closing), name=f"local:{spec.path}", daemon=True
        )
        thread.start()
        weakref.finalize(self, _close, self.process, self.inbox, closing, thread)


_engines: weakref.WeakValueDictionary[LocalModel, _Engine] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _engine_of(spec: LocalModel) -> _Engine:
    global _lock
    with _lock:
        engine = _engines.get(spec)
        if engine is None or engine.process != os.getpid():
            engine = _engines[replace(spec)] = _Engine(spec)
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


def _ends(*ids: int | list[int] | None) -> frozenset[int]:
    """All token ids that end a turn."""
    return frozenset(one for some in ids if some is not None for one in (some if isinstance(some, list) else [some]))


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Loading is silent: the terminal belongs to the command that runs."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _fingerprint(*folders: Path) -> str:
    """A hash of what decides the model's answers: weights, configs, tokenizer, template; not where it lies."""
    total = sha256()
    for folder in folders:
        for file in sorted({path for pattern in _FILES for path in folder.glob(pattern)}):
            if file.name.endswith("config.json"):
                data = json.loads(file.read_text(encoding="utf-8"))
                kept = {key: value for key, value in data.items() if key not in _VOLATILE}
                digest = sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
            elif file.suffix in (".safetensors", ".jinja") or file.name.startswith("tokenizer"):
                stat = file.stat()
                digest = _file_digest(file, stat.st_size, stat.st_mtime_ns)
            else:
                continue
            total.update(f"{file.name}\x1f{digest}\x1e".encode())
    return total.hexdigest()[:16]


@cache
def _file_digest(file: Path, size: int, modified: int) -> str:
    """The SHA-256 of a file, computed once per (size, time of change)."""
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()

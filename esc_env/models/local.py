"""Local Transformers models as chat models: any causal language model with a chat template, with or without a LoRA.

Weights are read from `safetensors` files only, and code that comes with a model is never run. Text inside messages that
looks like the template's control tokens (`<|im_end|>`) is encoded as ordinary text, so that nobody can forge a turn.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from esc_env.errors import MissingExtra, SpecError
from esc_env.models.batching import MAX_TOKENS, Call, Engine, Sampling, Weights, engine_of
from esc_env.models.weights import fingerprint, is_gguf, places
from esc_env.protocols import Completion, Request, Usage

try:
    import transformers
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "local") from error

__all__ = ["MAX_TOKENS", "LocalModel"]

_DTYPES = ("float32", "bfloat16", "float16")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


@dataclass(frozen=True)
class LocalModel:
    """A ChatModel that runs on this machine.

    Chairs whose LocalModels agree in path, device, dtype and batch share one copy of the weights; they are loaded at
    the first call and freed with the last such object. Pickles and copies carry the configuration only. Samples are
    drawn from the whole distribution at the given temperature, unless an option says otherwise: the `top_p`, `top_k`
    and penalties of a model's own generation config are not used.

    Greedy text, and sampled text for the same seed, does not depend on what else was in the batch: on the CPU to the
    last bit (see `esc_env.models.batching`); on a GPU up to the rounding of the arithmetic, in bfloat16 wherever a tie
    is near (`max_batch=1` excludes that).

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

    OPTIONS: ClassVar[frozenset[str]]

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
    _engine: Engine | None = field(default=None, init=False, repr=False, compare=False)

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
                raise SpecError(
                    f"local:{self.path}: chat_template_kwargs cannot set {', '.join(taken)}: esc-env sets them"
                )
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
        adapter, base = places(self.path)
        drawn = {
            each.name: getattr(self, each.name)
            for each in fields(Sampling)
            if getattr(self, each.name) != type(self).__dataclass_fields__[each.name].default
        }
        told = {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
        return {
            "provider": "local",
            "name": (adapter or base).name if Path(self.path).expanduser().exists() else self.path.rpartition("/")[2],
            "weights": fingerprint(base) if adapter is None else fingerprint(base, adapter),
            "dtype": self._weights.format,
            "sampling": drawn or "temperature only",
            **told,
        }

    async def complete(self, request: Request) -> Completion:
        """The completions of a chat, computed together with what else waits.

        A system message that the model's chat template refuses is put before the first user message. Choice i depends
        on (seed, i) only, and has at most `MAX_TOKENS` where the request sets no limit; the end of the model's context
        ends it too (`length`). Log-probabilities are the model's own: before temperature, penalties and filters.

        Raises:
            SpecError: the model has no chat template, or its adapter no base model.
            BadCompletion: the prompt alone fills the model's context.
            ModelUnavailable: it cannot be loaded, or computing failed.
        """
        n, temperature, max_tokens = request.n, request.temperature, request.max_tokens
        if n < 1 or temperature < 0 or (max_tokens is not None and max_tokens < 1):
            raise SpecError(f"n and max_tokens must be ≥ 1 and temperature ≥ 0: {n}, {max_tokens}, {temperature}")
        begun = time.perf_counter()
        sampling = Sampling(**{each.name: getattr(self, each.name) for each in fields(Sampling)})
        seed = secrets.randbits(63) if request.seed is None else request.seed
        call = Call(request, seed, sampling, self.chat_template_kwargs)
        engine = self._engine
        if engine is None or engine.process != os.getpid():
            engine = engine_of(self._weights)
            object.__setattr__(self, "_engine", engine)
        engine.inbox.put(call)
        rows = await asyncio.wrap_future(call.outcome)
        return Completion(
            tuple(row.text for row in rows),
            tuple(row.finish_reason for row in rows),
            Usage(1, len(rows[0].prompt), sum(len(row.tokens) for row in rows), 0.0),
            self.path.rstrip("/").rpartition("/")[2],
            tuple(row.alternatives for row in rows) if request.logprobs is not None else None,
            time.perf_counter() - begun,
        )

    @property
    def _weights(self) -> Weights:
        return Weights(self.path, self.device, self.dtype, self.max_batch, self.gather)


LocalModel.OPTIONS = frozenset(each.name for each in fields(LocalModel) if each.init) - {"path"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""Everything that esc-env raises on purpose.

    ESCError
    ├── SpecError            what we were given cannot be used: a string that names nothing, a number out of range, an
    │   │                    argument that there is none of (also ValueError)
    │   ├── ActionError          an action is not a supporter utterance
    │   ├── ScenarioError        a scenario, or a file of them, cannot be used
    │   └── ConfigError          a training configuration makes no sense, or does not fit its data
    ├── RecordError          a run folder or record file cannot be read or written as asked
    ├── ProtocolMismatch     two results that may not be compared, or a folder of another run
    ├── MissingExtra         an optional dependency is not installed (also ImportError)
    ├── LoopError            a synchronous function was called from inside our own event loop (also RuntimeError)
    ├── ModelError           a model call failed
    │   ├── ModelUnavailable     for good: network, server, key, retries exhausted
    │   ├── BadCompletion        the model answered with something unusable
    │   └── BudgetExceeded       the budget of this run is spent
    ├── SupporterFailure     the supporter raised, or returned something that is no utterance
    ├── ChairError           a seeker, critic or supporter model failed: carries the chair's role
    └── VectorStepError      some conversations of a vector step failed: carries indices and causes

Each message says what was wrong, where, and what to do next. What goes on all the same is told by an `ESCWarning`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Literal

__all__ = [
    "ActionError", "AdaptedWarning", "BadCompletion", "BareKeyWarning", "BudgetExceeded", "ChairError",
    "CompleteRunWarning", "ConfigError", "ESCError", "ESCWarning", "FailedRowsWarning", "FewerChoicesWarning",
    "LoopError", "MissingExtra", "ModelError", "ModelUnavailable", "ProtocolMismatch", "RecordError",
    "ScenarioError", "SpecError", "SupporterFailure", "TornLineWarning", "TrainingWarning", "VectorStepError",
]  # fmt: skip
"""What one catches, and what `esc_env` gives; the functions below are for those who raise."""


_TOO_LONG = re.compile(
    r"""context[ _](?:length|window|size|limit) | maximum\ (?:context|model\ length|prompt\ length) | model's\ context
      | (?:prompt|input)\ (?:is\ )?too\ long | reduce\ the\ length | range\ of\ input\ length | exceeds\ max\ length
      | input\ token\ count | `inputs`\ (?:tokens\ \+|must\ have\ less)""",
    re.IGNORECASE | re.VERBOSE,
)
"""How servers say that a request does not fit: OpenAI, vLLM, SGLang, llama.cpp, Ollama, LM Studio, TGI, Anthropic,
Bedrock, Gemini, xAI, Mistral, Qwen, GLM."""
_FILTERED = re.compile(r"content[ _](?:filter|management policy)|content policy", re.I)


class ESCError(Exception):
    """Base of every error that esc-env raises on purpose."""


class SpecError(ESCError, ValueError):
    """What we were given cannot be used, such as a string that names no agent; the message names it, and what can."""


class ActionError(SpecError):
    """The action is not an utterance: not a str, not UTF-8 encodable, or longer than `max_chars`."""


class ScenarioError(SpecError):
    """A scenario or a scenario file cannot be used; the message names file, line and reason."""


class ConfigError(SpecError):
    """A training configuration makes no sense, or does not fit its model or data; the message names field and value."""


class RecordError(ESCError):
    """A run folder or record file cannot be read or written as asked."""


class ProtocolMismatch(ESCError):
    """Two results were made under different protocols; the message names what differs."""


class MissingExtra(ESCError, ImportError):
    """An optional dependency is missing; the message is the one `pip install` line to type."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Type: pip install 'esc-env[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return type(self), (self.package, self.extra)


class LoopError(ESCError, RuntimeError):
    """A sync function was called from inside our own event loop; await the named coroutine instead."""


class ModelError(ESCError):
    """A model call failed. Never counted as a failed conversation.

    Attributes:
        provider, model: whom we asked; None when it was no model of ours.
        attempts: how many requests were sent for this call.
        status: the last HTTP status; None when there was none (no connection, a timeout).
        retryable: whether the same request may succeed later.
        retry_after: seconds that the server asked us to wait, if it did.
        told: what the server itself said, without our words around it; "" where it said nothing.
        infrastructure: whether it came from a model of `open_model`, or from a chat model in one of the chairs. Any
            other that a supporter raises is the supporter's own failure.
    """

    def __init__(
        self,
        message: str,
        *,
        provider: str | None = None,
        model: str | None = None,
        attempts: int = 1,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
        told: str = "",
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.model = model
        self.attempts = attempts
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after
        self.told = told
        self.infrastructure = False

    @property
    def obstacle(self) -> Literal["too_long", "filtered"] | None:
        """Why a model that was reached would not answer this text (too long, filtered, …); None for other failures."""
        if self.status is None and not isinstance(self, BadCompletion):
            return None
        return "too_long" if _TOO_LONG.search(str(self)) else "filtered" if _FILTERED.search(str(self)) else None


class ModelUnavailable(ModelError):
    """A model call failed for good (network, server, key, retries exhausted)."""


class BadCompletion(ModelError):
    """A model answered with something that cannot be used, again and again."""


class BudgetExceeded(ModelError):
    """The budget of this run is spent; the same command with a larger budget continues it."""


class SupporterFailure(ESCError):
    """The supporter raised an exception, whatever its class, or returned something else than words: its own failure."""


class ChairError(ESCError):
    """The `role` chair (seeker, critic or supporter model) failed during a conversation.

    The conversation has no outcome: it is an error, never a failed conversation. `__cause__` is what the chair raised.
    """

    def __init__(self, role: str, message: str) -> None:
        super().__init__(f"{role}: {message}")
        self.role = role
        self.message = message

    def __reduce__(self) -> tuple[type[ChairError], tuple[str, str]]:
        return type(self), (self.role, self.message)


class VectorStepError(ESCError):
    """Some conversations of a vector step failed; the others were stepped and are kept.

    Call `step` again with the same actions: only the failed ones are redone.

    Attributes:
        indices: positions of the failed environments.
        causes: their exceptions, in the same order.
    """

    def __init__(self, indices: Sequence[int], causes: Sequence[Exception]) -> None:
        self.indices = tuple(indices)
        self.causes = tuple(causes)
        shown = "; ".join(f"env {i}: {cause}" for i, cause in list(zip(self.indices, self.causes, strict=True))[:3])
        more = f" (and {len(self.indices) - 3} more)" if len(self.indices) > 3 else ""
        super().__init__(f"{shown}{more}. Make the same call again; a step redoes only these.")

    def __reduce__(self) -> tuple[type[VectorStepError], tuple[tuple[int, ...], tuple[Exception, ...]]]:
        return type(self), (self.indices, self.causes)


class ESCWarning(UserWarning):
    """Base of every warning of ours."""


class AdaptedWarning(ESCWarning):
    """A server did not take a request as it was; from then on requests are sent in a form that it takes."""


class BareKeyWarning(ESCWarning):
    """A key travels over plain http to another machine."""


class FewerChoicesWarning(ESCWarning):
    """A server gives fewer choices a request than were asked for, so that one call is several requests."""


class CompleteRunWarning(ESCWarning):
    """`evaluate` was called with a function for a run that was complete already."""


class TornLineWarning(ESCWarning):
    """The last line of a record file was cut off by a crash, and was dropped."""


class FailedRowsWarning(ESCWarning):
    """Some completions got no reward, because a part of it failed; they do not move the policy."""


class TrainingWarning(ESCWarning):
    """Training goes on, but shows a known sign of failure."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an error message: the nearest known words, or all of them when none is near."""
    names = sorted(set(known))
    near = get_close_matches(word, names, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "Known: " + ", ".join(names) + "."


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raise SpecError for an argument that is none of the known words."""
    words = tuple(known)
    if value not in words:
        raise SpecError(f"{name}={value!r} is not known. {did_you_mean(str(value), words)}")


def whole(**counts: Any) -> None:
    """Raise SpecError for an argument that is no whole number of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecError(f"{name} must be a whole number of at least 1, not {value!r}")

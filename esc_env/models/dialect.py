"""Servers differ in how they take one and the same request: their dialect of OpenAI's API, found out by asking.

Requests are changed only where that changes nothing that is measured, once per server, and with a note: the name of the
token limit, a seed that is not taken, a system message that goes into the first user message, answers that come as a
stream only, fewer alternatives of a token than asked for. What would change a result (the temperature,
log-probabilities) is never dropped: the run is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from esc_env.dialogue import ChatMessage
from esc_env.errors import AdaptedWarning, ModelUnavailable
from esc_env.models.layer import Layer
from esc_env.protocols import ChatModel, Completion, Request

__all__ = ["PLAIN", "Adapting", "Dialect", "Spoken"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server takes a request.

    Attributes:
        token_limit: the field that bounds a completion's length.
        seed: whether it takes a sampling seed; where not, none is sent.
        system: whether it takes a system message; where not, its text is put before the first user message's.
        stream: whether it answers as a stream of events only.
        alternatives: how many alternatives of a token it gives at most; None where no bound is known.
    """

    token_limit: str = "max_tokens"
    seed: bool = True
    system: bool = True
    stream: bool = False
    alternatives: int | None = None

    @property
    def effective(self) -> dict[str, str]:
        """What differs from a plain request, for people and for run.json."""
        parts = {
            "max_tokens": "" if self.token_limit == "max_tokens" else f"sent as {self.token_limit}",
            "seed": "" if self.seed else "not sent",
            "system": "" if self.system else "put into the first user message",
            "stream": "asked for" if self.stream else "",
            "top_logprobs": "" if self.alternatives is None else f"at most {self.alternatives}",
        }
        return {name: told for name, told in parts.items() if told}

    def chat(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """The messages as the server takes them: role and content only, fresh dicts."""
        chat = [ChatMessage(role=message["role"], content=message["content"]) for message in messages]
        if self.system or len(chat) < 2 or chat[0]["role"] != "system" or chat[1]["role"] != "user":
            return chat
        both = f"{chat[0]['content']}\n\n{chat[1]['content']}"
        return [ChatMessage(role="user", content=both), *chat[2:]]


PLAIN = Dialect()
"""A request as OpenAI has it."""


class Wire(ChatModel, Protocol):
    """A chat model that can be told how its server takes a request."""

    @property
    def dialect(self) -> Dialect:
        """The one it speaks now."""
        ...

    def speaking(self, dialect: Dialect) -> Self:
        """The same wire in another dialect."""
        ...


@dataclass(eq=False, slots=True)
class Spoken:
    """What is known of one model at one endpoint; shared by everybody who asks it.

    Attributes:
        dialect: how it takes a request.
        most: how many choices it gives at once, where that is fewer than were asked for; else empty.
    """

    dialect: Dialect
    most: list[int] = field(default_factory=list)


_REFUSALS = (400, 404, 422)
_UNKNOWN = (
    r"not support|unsupport|unrecogni[sz]|unknown|unexpected|extra|not (?:permitted|allowed|a valid|available)"
    r"|invalid|instead"
)
_SEED = re.compile(rf"(?:{_UNKNOWN})[^\n]{{0,200}}\bseed\b|\bseed\b[^\n]{{0,200}}(?:{_UNKNOWN})", re.IGNORECASE)
_LIMIT = re.compile(_UNKNOWN, re.IGNORECASE)
_SYSTEM = re.compile(
    r"\b(?:system|developer)\b[^\n]{0,60}(?:not (?:supported|allowed|enabled)|unsupported|invalid)"
    r"|(?:not support|unsupported|invalid)[^\n]{0,60}\b(?:system|developer)\b"
    r"|roles must alternate|only user and assistant roles",
    re.IGNORECASE,
)
"""*Source:* the exceptions that the chat templates of Gemma and of Mistral's and Llama 2's models raise at a system
message, as vLLM and others pass them on, and Google's API on Gemma."""
_STREAM = re.compile(
    r"(?:only|must|required?|please|need)[^\n]{0,60}\bstream|\bstream\w*[^\n]{0,40}(?:only|required|must|true)"
    r"|non-?stream\w*",
    re.IGNORECASE,
)
_ALTERNATIVES = re.compile(r"(?:top_?logprobs|logprobs)[^\n]{0,120}", re.IGNORECASE)


def adapted(dialect: Dialect, told: str, request: Request) -> Dialect | None:
    """The dialect to try after a refusal; None where the refusal is about something else.

    Args:
        dialect: that was refused.
        told: what the server said.
        request: that it was refused for.
    """
    if request.max_tokens is not None and "max_completion_tokens" in told and _LIMIT.search(told):
        other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[dialect.token_limit]
        return replace(dialect, token_limit=other)
    if dialect.seed and request.seed is not None and _SEED.search(told):
        return replace(dialect, seed=False)
    wanted, bound = request.logprobs, _ALTERNATIVES.search(told)
    if wanted is not None and bound and dialect.alternatives is None:
        fitting = [int(number) for number in re.findall(r"\d+", bound[0]) if 3 < int(number) < wanted]
        if fitting:  # four options need four alternatives at least
            return replace(dialect, alternatives=max(fitting))
    if not dialect.stream and _STREAM.search(told):
        return replace(dialect, stream=True)
    begins = bool(request.messages) and request.messages[0]["role"] == "system"
    if dialect.system and begins and _SYSTEM.search(told):
        return replace(dialect, system=False)
    return None


@dataclass(frozen=True)
class Adapting(Layer):
    """A chat model that is asked again in another dialect where its server refuses how it was asked.

    What worked is remembered for all calls to the endpoint, and told once, by an `AdaptedWarning`.

    Args:
        model: the wire, which sends one request.
        spoken: what is known of the endpoint.
        who: how messages call the model.
    """

    model: Wire
    spoken: Spoken
    who: str = "the model"
    _wires: dict[Dialect, Wire] = field(default_factory=dict, init=False, repr=False, compare=False)

    async def complete(self, request: Request) -> Completion:
        """One request and its answer. Raises `ModelUnavailable` on a refusal that no other dialect mends."""
        first = dialect = self.spoken.dialect
        tried = {dialect}
        while True:
            try:
                answer = await self._speaking(dialect).complete(request)
            except ModelUnavailable as error:
                known = self.spoken.dialect
                other = adapted(dialect, error.told, request) if error.status in _REFUSALS else None
                if known not in tried:  # found out by another call meanwhile
                    first = other = known
                if other is None or other in tried:
                    raise
                dialect = other
                tried.add(other)
                continue
            if dialect is not first and self.spoken.dialect != dialect:
                self.spoken.dialect = dialect
                new = {name: how for name, how in dialect.effective.items() if first.effective.get(name) != how}
                told = ", ".join(f"{name} {how}" for name, how in new.items()) or "max_tokens sent as such"
                warnings.warn(f"{self.who} does not take every request as it is: {told}", AdaptedWarning, stacklevel=2)
            return answer

    def _speaking(self, dialect: Dialect) -> Wire:
        if dialect == self.model.dialect:
            return self.model
        if dialect not in self._wires:
            self._wires[dialect] = self.model.speaking(dialect)
        return self._wires[dialect]

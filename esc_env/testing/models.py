"""A chat model that answers what it is told to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esc_env.errors import SpecError
from esc_env.protocols import Completion, Request, Usage

__all__ = ["FakeChatModel"]


class FakeChatModel:
    """A `ChatModel` without a model.

    Args:
        answers: a str (always that), a sequence (one per choice, starting over at its end; None: a choice without
            text), or a function of (request, choice) where choice counts from 0. Only a function's answers are
            independent of the order of concurrent calls.
        failures: exceptions to raise, by number of the call, counted from 1.
        latency: seconds to wait before every answer.
        max_choices: return at most so many choices a request, as some servers do; None for as many as asked.
        logprobs: the first token's alternatives and their log-probabilities, returned with each choice if asked for.
        name: part of the identity.

    Attributes:
        calls: every request received, in order, failed ones included.
    """

    def __init__(
        self,
        answers: str | Sequence[str | None] | Callable[[Request, int], str | None] = "I hear you.",
        *,
        failures: Mapping[int, Exception] | None = None,
        latency: float = 0.0,
        max_choices: int | None = None,
        logprobs: Mapping[str, float] | None = None,
        name: str = "fake",
    ) -> None:
        if not callable(answers) and not answers and answers != "":
            raise SpecError("FakeChatModel needs at least one answer")
        self.answers = answers
        self.failures = dict(failures or {})
        self.latency = latency
        self.max_choices = max_choices
        self.logprobs = logprobs
        self.name = name
        self.calls: list[Request] = []
        self._given = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its name."""
        return {"provider": "fake", "name": self.name}

    async def complete(self, request: Request) -> Completion:
        """The next answers. One word counts as one token; the price is $0."""
        self.calls.append(request)
        number = len(self.calls)
        if self.latency:
            await asyncio.sleep(self.latency)
        if number in self.failures:
            raise self.failures[number]
        count = request.n if self.max_choices is None else min(request.n, self.max_choices)
        texts = tuple(self._answer(request, choice) for choice in range(count))
        prompt = sum(_tokens(message["content"]) for message in request.messages)
        usage = Usage(1, prompt, sum(_tokens(text or "") for text in texts))
        top = (dict(self.logprobs),) * count if request.logprobs is not None and self.logprobs is not None else None
        return Completion(texts, ("stop",) * count, usage, self.name, top, self.latency)

    def _answer(self, request: Request, choice: int) -> str | None:
        if callable(self.answers):
            return self.answers(request, choice)
        if isinstance(self.answers, str):
            return self.answers
        answer = self.answers[self._given % len(self.answers)]
        self._given += 1
        return answer


def _tokens(text: str) -> int:
    return len(text.split())

"""n completions, also from a server that returns or takes fewer: the rest is asked for with seeds of its own."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from esc_env.errors import BadCompletion, FewerChoicesWarning, ModelError
from esc_env.models.layer import Layer
from esc_env.protocols import Completion, Request, Usage
from esc_env.seeds import derive

__all__ = ["Choices"]

_REFUSALS = (400, 422, 500, 501)
"""Statuses with which servers refuse `n`; llama.cpp once said 500."""

_ABOUT_CHOICES = re.compile(r"(?<![\w\\])n(?![\w/])|candidate|choices?\b|multiple completions", re.I)
"""Where a refusal may be one of `n`. It finds too much: what was refused for something else is refused again."""

_AT_MOST = re.compile(r"(?:<=|at most|less than or equal to|between 1 and|up to) *(?:value *<= *)?(\d{1,4})\b", re.I)


@dataclass(frozen=True)
class Choices(Layer):
    """A chat model that always returns as many choices as asked.

    Further request k is made with a seed derived from the call's seed and k, so that the same vote does not come back n
    times. How many choices the server gives at once is remembered, and told in a `FewerChoicesWarning`: from then on,
    the requests for one call are sent together.

    A server that refuses `n` is asked for as many as its refusal names, else for one: llama.cpp takes no more than it
    has slots; Groq, DeepSeek and several of Gemini's models take one.

    Args:
        model: whom to ask.
        single: the provider takes no `n` at all.
        most: how many choices come at once, once that is known, and nothing before; shared by all who ask the same
            endpoint.
    """

    single: bool = False
    most: list[int] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.single:
            self.most[:] = [1]

    async def complete(self, request: Request) -> Completion:
        """Exactly `n` choices; usage adds up, and the latency is that of the whole.

        Raises:
            ModelError: a request failed; the others of this call are cancelled.
            BadCompletion: a request returned no choice at all.
        """
        n, seed = request.n, request.seed

        async def ask(number: int, count: int) -> Completion:
            own = seed if number == 0 or seed is None else derive(seed, "choice", number)
            try:
                answer = await self.model.complete(replace(request, n=count, seed=own))
            except ModelError as error:
                fewer = _fewer(error, count)
                if fewer is None:
                    raise
                return await ask(number, fewer)
            if not answer.texts:
                raise BadCompletion(f"{self.identity.get('name', 'the model')} answered without choices")
            return answer

        parts: list[Completion] = []
        have = 0
        while have < n:
            most = self.most[0] if self.most else n
            sizes = [min(most, n - first) for first in range(have, n, most)]
            answers = await _together([ask(len(parts) + i, size) for i, size in enumerate(sizes)])
            for answer, size in zip(answers, sizes, strict=True):
                parts.append(answer)
                have += len(answer.texts)
                if len(answer.texts) < size:
                    self._learn(len(answer.texts))
        return parts[0] if len(parts) == 1 and have == n else _joined(parts, n)

    def _learn(self, most: int) -> None:
        """So many came when more were asked for."""
        if self.most and self.most[0] <= most:
            return
        self.most[:] = [most]
        name = "/".join(str(self.identity.get(key, "")) for key in ("provider", "name"))
        warnings.warn(
            f"{name} gives at most {most} of the choices asked for (n) in one request: a call for more becomes several "
            "requests, each with a seed of its own, and pays for the prompt as often",
            FewerChoicesWarning,
            stacklevel=2,
        )


def _fewer(error: ModelError, count: int) -> int | None:
    """How many choices to ask for after this refusal of `count`; None if they were not what was refused."""
    told = error.told or str(error)
    if count == 1 or error.status not in _REFUSALS or error.obstacle or not _ABOUT_CHOICES.search(told):
        return None
    named = _AT_MOST.search(told)
    most = int(named[1]) if named else 1
    return most if 1 <= most < count else 1


async def _together(asking: Sequence[Any]) -> list[Completion]:
    """All of them at once; the first failure cancels the rest and is raised as itself."""
    if len(asking) == 1:
        return [await asking[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in asking]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _joined(parts: Sequence[Completion], n: int) -> Completion:
    texts = tuple(text for part in parts for text in part.texts)[:n]
    reasons = tuple(reason for part in parts for reason in part.finish_reasons)[:n]
    tops = [part.logprobs for part in parts]
    return Completion(
        texts,
        reasons,
        sum((part.usage for part in parts), Usage()),
        parts[0].model,
        None if any(top is None for top in tops) else tuple(top for some in tops for top in some or ())[:n],
        max(part.latency for part in parts),
    )

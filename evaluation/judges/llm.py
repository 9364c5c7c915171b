"""A chat model as a judge: both conversations as sealed JSON, one JSON object as the answer, read strictly."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from esc_env.dialogue import ChatMessage, Dialogue, split_thought
from esc_env.errors import SpecError
from esc_env.evaluation.judges.protocol import BEST, DIMENSIONS, SAFETY, WORST, Opinion
from esc_env.models import PROBE, check_model
from esc_env.models.options import told_apart
from esc_env.prompts import Prompts, seal, sealed_transcript
from esc_env.protocols import ChatModel, Request, Usage
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed

__all__ = ["LLMJudge", "Unreadable", "parse_marks"]

Unreadable = Literal["cut", "refused", "filtered", "empty", "no_json", "dimensions", "value"]
"""Why an answer is none: the limit on tokens ended it, the model refused, a filter withheld it, nothing was said, it is
no JSON object, it lacks or adds or repeats a dimension, or a mark is none of those asked for."""

ATTEMPTS = 3
"""How often an answer that cannot be read is asked for before it stays unreadable. Ours, as for critics."""

_PROMPTS = Prompts(Path(__file__).with_name("prompts"))
_ENDED: Mapping[str | None, Unreadable] = {"length": "cut", "refusal": "refused", "content_filter": "filtered"}
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*?)\n\s*```\Z", re.DOTALL | re.IGNORECASE)
_CHOICES: Mapping[Any, float] = {"a": 1.0, "b": -1.0, "tie": 0.0}
_STEPS: Mapping[Any, float] = {step: float(step) for step in range(WORST, BEST + 1)}


@dataclass(frozen=True)
class LLMJudge:
    """A chat model that marks conversations.

    It is shown the dialogues as sealed JSON, so that no text in them can forge a turn, a second conversation or an
    answer; never their outcome, their verdicts or who wrote them. Prompts are `prompts/*.txt`.

    Attributes:
        model: any ChatModel.
        temperature: of the answer. Ours: 0.
        max_tokens: longest answer, thinking of the model included. Ours.
        stop: strings that end an answer.
    """

    model: ChatModel
    temperature: float = 0.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise SpecError(f"judge_temperature must be at least 0, not {self.temperature!r}")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model, decoding, the dimensions and a hash of the prompts."""
        told = _PROMPTS.digest(("judge", "rate", "compare", "safety"))
        return {
            "name": "llm", "model": dict(self.model.identity), "temperature": self.temperature,
            "max_tokens": self.max_tokens, "prompts": told, "dimensions": {**DIMENSIONS, **SAFETY},
            **told_apart(self.stop),
        }  # fmt: skip

    async def check(self, votes: int = 1) -> None:
        """Ask the model for a word, just as it will be asked. Raises SpecError or a `ModelError` where that fails."""
        await check_model(self.model, "judge", self._request(PROBE.messages, 0))

    async def rate(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Opinion:
        """Marks from 1 to 5. Raises a `ModelError` when the model could not be reached."""
        return await self._ask(_chat(scenario, _rating(dialogue, DIMENSIONS)), _STEPS, seed)

    async def rate_safety(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Opinion:
        """Marks from 1 to 5 on how a seeker at risk is met. Raises a `ModelError` when the model was not reached."""
        return await self._ask(_chat(scenario, _rating(dialogue, SAFETY), "safety"), _STEPS, seed, SAFETY)

    async def compare(self, scenario: Scenario, first: Dialogue, second: Dialogue, *, seed: Seed) -> Opinion:
        """Which is better. Raises a `ModelError` when the model could not be reached."""
        question = _PROMPTS.fill(
            "compare", first=sealed_transcript(first), second=sealed_transcript(second), **_listed(DIMENSIONS)
        )
        return await self._ask(_chat(scenario, question), _CHOICES, seed)

    def _request(self, chat: Sequence[ChatMessage], seed: int) -> Request:
        return Request(chat, 1, self.temperature, self.max_tokens, seed, self.stop)

    async def _ask(
        self,
        chat: Sequence[ChatMessage],
        values: Mapping[Any, float],
        seed: Seed,
        dimensions: Mapping[str, str] = DIMENSIONS,
    ) -> Opinion:
        """The first answer that can be read; each time under another seed."""
        unreadable: Counter[str] = Counter()
        usage = Usage()
        for attempt in range(ATTEMPTS):
            completion = await self.model.complete(self._request(chat, seed.at(attempt=attempt).value))
            usage += completion.usage
            ending = completion.finish_reasons[0] if completion.finish_reasons else None
            marks = parse_marks(completion.texts[0] if completion.texts else None, ending, values, dimensions)
            if not isinstance(marks, str):
                return Opinion(marks, unreadable, usage)
            unreadable[marks] += 1
        return Opinion(None, unreadable, usage)


def _listed(dimensions: Mapping[str, str]) -> dict[str, str]:
    """The dimensions as a list, and the form of an answer, without a mark in it: small models give whichever mark an
    example shows."""
    return {
        "dimensions": "\n".join(f"- {name}: {meaning}" for name, meaning in dimensions.items()),
        "form": "{" + ", ".join(f'"{name}": MARK' for name in dimensions) + "}",
    }


def _rating(dialogue: Dialogue, dimensions: Mapping[str, str]) -> str:
    return _PROMPTS.fill("rate", conversation=sealed_transcript(dialogue), **_listed(dimensions))


def _chat(scenario: Scenario, question: str, prompt: str = "judge") -> list[ChatMessage]:
    card = {"situation": scenario.situation, "emotion": scenario.emotion, "problem": scenario.problem}
    system = _PROMPTS.fill(prompt, card=seal({name: value for name, value in card.items() if value}))
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def parse_marks(
    text: str | None,
    ending: str | None = None,
    values: Mapping[Any, float] = _CHOICES,
    dimensions: Mapping[str, str] = DIMENSIONS,
) -> Mapping[str, float] | Unreadable:
    """The marks that an answer gives, or why it gives none.

    An answer is one JSON object, alone or in a code fence, with each dimension once and nothing else; what a model
    thinks before it is no part of it. Nothing is guessed: not a dimension that is missing, not a number in words.

    Args:
        text: of the answer.
        ending: why it ended, in its server's word.
        values: the marks there are, in lower case, and what they stand for.
        dimensions: what is marked.

    >>> parse_marks('{"fluency": "A", "empathy": "B", "identification": "tie", "suggestion": "A", "overall": "A"}')
    {'fluency': 1.0, 'empathy': -1.0, 'identification': 0.0, 'suggestion': 1.0, 'overall': 1.0}
    >>> parse_marks("A is better."), parse_marks('{"overall": "A"}')
    ('no_json', 'dimensions')
    """
    if ending in _ENDED:
        return _ENDED[ending]
    answer = split_thought(text or "")[1].strip()
    if not answer:
        return "empty"
    fenced = _FENCED.match(answer)
    try:
        data = json.loads(fenced[1] if fenced else answer, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return "no_json"
    if not isinstance(data, list) or not all(isinstance(pair, tuple) for pair in data):
        return "no_json"
    names = [name.strip().casefold() for name, _ in data]
    if sorted(names) != sorted(dimensions):
        return "dimensions"
    found = {name: _mark(value, values) for name, (_, value) in zip(names, data, strict=True)}
    marks = {name: mark for name in dimensions if (mark := found[name]) is not None}
    return marks if len(marks) == len(dimensions) else "value"


def _mark(value: object, values: Mapping[Any, float]) -> float | None:
    if isinstance(value, str):
        return values.get(value.strip().casefold())
    return values.get(value) if isinstance(value, int) and not isinstance(value, bool) else None

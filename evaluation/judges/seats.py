"""Judges: from a string, an object or a callable to something that marks conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from esc_env.background import call
from esc_env.chairs.seat import Seat
from esc_env.dialogue import Dialogue
from esc_env.errors import BadCompletion, SpecError, did_you_mean
from esc_env.evaluation.judges.llm import LLMJudge
from esc_env.evaluation.judges.plain import PlainJudge
from esc_env.evaluation.judges.protocol import Judge, Opinion, checked_marks
from esc_env.identity import code_digest, name_of
from esc_env.models import ModelSettings, Options, check_parameters
from esc_env.protocols import ChatModel
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed
from esc_env.specs import Spec, check_takes

__all__ = ["CallableJudge", "resolve_judge"]


@dataclass(frozen=True)
class CallableJudge:
    """Somebody's `function(scenario, dialogues)` (sync or async) as a Judge.

    It gets one dialogue or two, and returns marks by dimension as an `Opinion` has them.
    """

    function: Callable[..., Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The function's name and a digest of its code, so that a changed function is another judge."""
        return {"name": name_of(self.function), "code": code_digest(self.function)}

    async def rate(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Opinion:
        """Call it with one. Raises BadCompletion on anything but marks."""
        return await self._call(scenario, dialogue)

    async def compare(self, scenario: Scenario, first: Dialogue, second: Dialogue, *, seed: Seed) -> Opinion:
        """Call it with two. Raises BadCompletion on anything but marks."""
        return await self._call(scenario, first, second)

    async def _call(self, scenario: Scenario, *dialogues: Dialogue) -> Opinion:
        said = await call(self.function, scenario, dialogues)
        try:
            return said if isinstance(said, Opinion) else Opinion(checked_marks(said, len(dialogues)))
        except SpecError as error:
            raise BadCompletion(f"{name_of(self.function)} returned no marks: {error}") from error


def resolve_judge(
    judge: str | Judge | Callable[..., Any],
    settings: ModelSettings | None = None,
    *,
    temperature: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Judge:
    """The judge that a string, an object or a callable stands for.

    Args:
        judge: `builtin:plain`; `PROVIDER/NAME[@URL]` or `local:PATH` (a chat model as `LLMJudge`); `python:MODULE:NAME`
            (a Judge, a ChatModel or a callable); or such an object itself.
        settings: how chat models are called.
        temperature: of a chat model.
        options: further fields of every request to a chat model, such as `{"max_tokens": 4000}`.

    Raises:
        SpecError: an unknown string, an object that is neither a Judge nor callable, or a model that is known not to
            take this temperature or these options.
        MissingExtra: the packages that the model needs are not installed.
    """
    said = Options.of(options, "judge")

    def builtin(name: str) -> Judge:
        if name != "plain":
            raise SpecError(f"no builtin judge {name!r}. {did_you_mean(name, ['builtin:plain'])}")
        return PlainJudge()

    def judging(model: ChatModel, spec: Spec | None) -> Judge:
        if spec:
            check_parameters(model, "judge", temperature=temperature, stop=bool(said.stop))
        return LLMJudge(model, temperature, **said.chair)

    def function(thing: Callable[..., Any]) -> Judge:
        check_takes(thing, "judge", ("scenario", "dialogues"))
        return CallableJudge(thing)

    seat: Seat[Judge] = Seat("judge", "compare", builtin, judging, function, lambda thing: isinstance(thing, Judge))
    return seat.take(judge, settings, said)

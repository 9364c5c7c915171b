"""One turn of a prompted chat model: what its style asks the model, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from esc_env.dialogue import ChatMessage, Dialogue
from esc_env.errors import BadCompletion, ModelError, SupporterFailure
from esc_env.prompts import Prompts, as_answered, sealed_transcript, split_answer
from esc_env.protocols import ChatModel, Completion, Reply, Request, Usage
from esc_env.seeds import Seed

__all__ = ["PROMPTS", "Turn", "system_prompt"]

PROMPTS = Prompts(Path(__file__).with_name("prompts"))


@dataclass
class Turn:
    """One reply in the making: asks the model, names every request by its own seed, adds up the usage.

    What was asked and answered stands before the next question, so that a server's prefix cache knows it. A copy
    (`dataclasses.replace`) goes on from there by itself, and its usage is the turn's.

    Attributes:
        model: who is asked.
        dialogue: what was said so far.
        seed: of the reply.
        asked: what every request has in common.
        system: the supporter's own system prompt; None for ours.
    """

    model: ChatModel
    dialogue: Dialogue
    seed: Seed
    asked: Request
    system: str | None
    _usage: dict[int, Usage] = field(default_factory=dict)
    _chat: tuple[ChatMessage, ...] = ()

    @property
    def usage(self) -> Usage:
        """Of all requests so far."""
        return sum((self._usage[number] for number in sorted(self._usage)), Usage())

    async def speak(self, form: str) -> tuple[str, str | None]:
        """(what is written on the chat itself, in the form of `format-{form}.txt`; why it ended). The one request."""
        system = system_prompt(form, self.system)
        chat: list[ChatMessage] = [
            {"role": message["role"], "content": message["content"] if message["content"].strip() else "..."}
            for message in self.dialogue.as_chat("supporter")
        ]
        return _written(await self._complete([{"role": "system", "content": system}, *chat], 0))

    async def ask(self, question: str, number: int, /, **slots: str) -> str:
        """The answer to a question about the conversation, without its thinking.

        Args:
            question: the prompt; before it stand the conversation, as sealed JSON, and what was asked and answered.
            number: the position of this request in the turn.
            slots: for the prompt's slots.
        """
        chat = self._about(question, slots)
        text, _ = _written(await self._complete(chat, number))
        answer = split_answer("supporter", text)[1]
        self._chat = (*chat, {"role": "assistant", "content": as_answered(answer)})
        return answer

    async def votes(self, question: str, number: int, count: int) -> Sequence[str | None]:
        """`count` answers to a question, sampled at temperature 1."""
        return (await self._complete(self._about(question, {}), number, n=count, temperature=1.0)).texts

    async def write(self, question: str, number: int, thought: Callable[[], str], /, **slots: str) -> Reply:
        """The reply itself, as the answer to a question; what led to it is its thought."""
        text, ending = _written(await self._complete(self._about(question, slots), number))
        inner, said = split_answer("supporter", text)
        notes = "\n".join(note for note in (thought(), inner) if note)
        return Reply(said, notes, usage=self.usage, finish_reason=ending)

    def _about(self, question: str, slots: Mapping[str, str]) -> list[ChatMessage]:
        filled = PROMPTS.fill(question, **slots)
        if self._chat:
            return [*self._chat, {"role": "user", "content": filled}]
        own = self.system or PROMPTS.text("standard")
        told = PROMPTS.fill("conversation", transcript=sealed_transcript(self.dialogue))
        return [
            {"role": "system", "content": f"{own}\n\n{PROMPTS.text('data')}"},
            {"role": "user", "content": f"{told}\n\n{filled}"},
        ]

    async def _complete(
        self, chat: Sequence[ChatMessage], number: int, n: int = 1, temperature: float | None = None
    ) -> Completion:
        heat = self.asked.temperature if temperature is None else temperature
        named = self.seed.at(sample=number).value
        try:
            completion = await self.model.complete(
                replace(self.asked, messages=chat, n=n, temperature=heat, seed=named)
            )
            if not completion.texts:
                raise BadCompletion("the supporter's model returned no choice. Run the same command again")
        except ModelError as error:
            if error.obstacle == "too_long":
                raise SupporterFailure(f"the conversation does not fit the model's context: {error}") from error
            if error.obstacle != "filtered":
                error.infrastructure = True
                raise
            completion = Completion((None,) * n, ("content_filter",) * n, Usage(1, cost=None))
        self._usage[number] = completion.usage
        return completion


def system_prompt(form: str, own: str | None = None) -> str:
    """The system message of the styles that answer in one request; `plain` and `think` are forms of the reply.

    `own` stands in place of our instructions.
    """
    return f"{own or PROMPTS.text('standard')}\n\n{PROMPTS.text(f'format-{form}')}"


def _written(completion: Completion) -> tuple[str, str | None]:
    """(the first text, why it ended)."""
    return completion.texts[0] or "", completion.finish_reasons[0] if completion.finish_reasons else None

"""Chats as a model's own chat template writes them: what precedes a reply, the reply itself, and what ends it.

The template is asked, rather than its family known: what it writes beyond the prompt once a reply is part of the chat
is the reply, and the control token behind it ends the turn.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from esc_env.dialogue import ChatMessage, think_block
from esc_env.errors import ESCError, MissingExtra

try:
    from jinja2 import TemplateError
except ModuleNotFoundError as error:
    raise MissingExtra("jinja2", "local") from error

__all__ = ["ChatTemplate", "TemplateError", "TemplateRefused"]

_OPENED = re.compile(r"<\s*think\s*>\s*$", re.IGNORECASE)
_QUESTION = ChatMessage(role="user", content="How are you?")
_WORDS = "Well"
_ANSWER = ChatMessage(role="assistant", content=_WORDS)


class TemplateRefused(ESCError):
    """A template from which no reply can be learned; the message says why."""


class ChatTemplate:
    """How the chat template of a tokenizer writes prompts and replies, as tokens.

    A system message that the template refuses is put before the first user message. Methods raise `TemplateError` where
    the template refuses the chat even so.

    Args:
        tokenizer: a Transformers tokenizer with a chat template.
        variables: what the template is told beside the chat, such as `{"enable_thinking": False}`.
    """

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.variables = dict(variables or {})

    def prompt(self, chat: Sequence[ChatMessage]) -> list[int]:
        """The tokens after which the reply to `chat` begins. Control tokens inside messages are ordinary text."""
        return self._ids(chat, add_generation_prompt=True, sanitize_control_tokens=True)

    def accepted(self, chat: Sequence[ChatMessage]) -> list[ChatMessage]:
        """The chat as the template takes it: with a system message that it refuses before the first user message."""
        return self._accepted(chat, {"add_generation_prompt": True})[0]

    def opener(self, prompt: Sequence[int]) -> str:
        """The opener of a think block that the template has written at the end of the prompt itself; else empty."""
        opened = _OPENED.search(self.tokenizer.decode(prompt[-16:]))
        return opened.group() if opened else ""

    def reply(self, chat: Sequence[ChatMessage], words: str, thought: str | None = None) -> tuple[list[int], list[int]]:
        """(the prompt, the tokens that a model should say after it: its thought, its words, and what ends its turn).

        The reply is all that the template writes beyond the prompt, up to the control token that ends the turn: an
        empty think block too, where it writes one. Where a template opens the think block in the prompt, or leaves the
        thought out, the reply is what a model has to say there: the thought, its end tag, the words.

        Raises:
            TemplateRefused: the chat with its reply does not begin with the prompt, or nothing ends the turn.
        """
        before = self._ids(chat, add_generation_prompt=True)
        said = f"{think_block(thought)}\n{words}" if thought else words
        whole = self._ids([*chat, ChatMessage(role="assistant", content=said)])
        opener = self.opener(before)
        begun = whole[: len(before)] == before
        if not begun and not opener and not thought:
            raise TemplateRefused(self._difference(before, whole))
        reply, end = self._cut(whole[len(before) :] if begun else whole)
        kept = begun and (not thought or _letters(thought) in _letters(self.tokenizer.decode(reply)))
        if opener or not kept:
            said = f"{thought or ''}\n</think>\n\n{words}" if opener else said
            reply = self.tokenizer(said, add_special_tokens=False)["input_ids"]
        end = end or self._next_turn
        if not end:
            raise TemplateRefused("no control token ends the assistant's turn, so a model would never learn to stop")
        return self.prompt(chat), reply + end

    def check(self) -> int:
        """The token that ends an assistant's turn.

        Raises:
            TemplateRefused: no reply could be learned with this template.
        """
        try:
            _, reply = self.reply([_QUESTION], _WORDS)
        except TemplateError as error:
            raise TemplateRefused(f"it refuses a user's question with its answer ({error})") from error
        if _WORDS not in self.tokenizer.decode(reply):
            raise TemplateRefused("it leaves out what the assistant says")
        return reply[-1]

    def _ids(self, chat: Sequence[ChatMessage], **how: bool) -> list[int]:
        return self._accepted(chat, how)[1]

    def _accepted(self, chat: Sequence[ChatMessage], how: Mapping[str, bool]) -> tuple[list[ChatMessage], list[int]]:
        try:
            return list(chat), self._rendered(chat, how)
        except TemplateError:
            if [message["role"] for message in chat[:2]] == ["system", "user"]:
                first = ChatMessage(role="user", content=f"{chat[0]['content']}\n\n{chat[1]['content']}")
                with contextlib.suppress(TemplateError):
                    return [first, *chat[2:]], self._rendered([first, *chat[2:]], how)
            raise

    def _rendered(self, chat: Sequence[ChatMessage], how: Mapping[str, bool]) -> list[int]:
        ids: list[int] = self.tokenizer.apply_chat_template(
            [dict(message) for message in chat], return_dict=True, **{**self.variables, **how}
        )["input_ids"]
        return ids

    def _cut(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """(what is said, the control tokens right behind it): without what a template writes between turns."""
        last = len(ids)
        while last and (ids[last - 1] in self._control or not self.tokenizer.decode(ids[last - 1 : last]).strip()):
            last -= 1
        begin = next((at for at in range(last, len(ids)) if ids[at] in self._control), len(ids))
        end = next((at for at in range(begin, len(ids)) if ids[at] not in self._control), len(ids))
        return list(ids[: begin if begin < end else last]), list(ids[begin:end])

    @cached_property
    def _control(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset({id for id, token in added if token.content.strip()} | set(self.tokenizer.all_special_ids))

    @cached_property
    def _next_turn(self) -> list[int]:
        """The control token that begins the user's turn, in templates where that is what ends the assistant's."""
        whole = self._ids([_QUESTION, _ANSWER])
        after = self._ids([_QUESTION, _ANSWER, _QUESTION])
        token = after[len(whole) : len(whole) + 1] if after[: len(whole)] == whole else []
        return token if self._control.issuperset(token) else []

    def _difference(self, before: Sequence[int], whole: Sequence[int]) -> str:
        pairs = enumerate(zip(before, whole, strict=False))
        same = next((at for at, (one, other) in pairs if one != other), len(whole))
        prompt, chat = (self.tokenizer.decode(ids[max(0, same - 4) : same + 8]) for ids in (before, whole))
        return f"a chat with its reply ({chat!r}) does not begin with the prompt for that reply ({prompt!r})"


def _letters(text: str) -> str:
    return "".join(text.split())

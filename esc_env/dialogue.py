"""Messages and dialogues: what was said, by whom, in order, and nothing else.

A `Dialogue` keeps messages as they were: real conversations start with either side and repeat speakers. Chat models
want strict alternation that begins with `user`; `Dialogue.as_chat` gives them that. A *turn* is one merged supporter
message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, get_args

__all__ = ["ChatMessage", "Dialogue", "Message", "Role", "split_thought"]

Role = Literal["seeker", "supporter"]
"""Who speaks: the *seeker* of support, or the *supporter* (the policy)."""

_ROLES = get_args(Role)
_OPEN = re.compile(r"<\s*think\s*>", re.IGNORECASE)
_CLOSE = re.compile(r"<\s*/\s*think\s*>", re.IGNORECASE)
_TAG = re.compile(r"<\s*/?\s*think\s*/?\s*>", re.IGNORECASE)


class ChatMessage(TypedDict):
    """One message as chat models take it: role `user` or `assistant`, and its text."""

    role: str
    content: str


def split_thought(text: str) -> tuple[str | None, str]:
    """Split a raw completion into (thought, reply).

    What precedes the last `</think>` is thought; an unclosed `<think>` makes everything after it thought. Left-over
    tags are removed, so that nobody else ever sees one. `thought` is None when the text has no think block at all.

    >>> split_thought("<think>she is sad</think>I'm here.")
    ('she is sad', "I'm here.")
    >>> split_thought("<think>she is")
    ('she is', '')
    """
    closes = list(_CLOSE.finditer(text))
    thought: list[str] = []
    if closes:
        thought.append(text[: closes[-1].start()])
        text = text[closes[-1].end() :]
    opened = _OPEN.search(text)
    if opened:
        thought.append(text[opened.end() :])
        text = text[: opened.start()]
    if not thought:
        return None, _TAG.sub("", text)
    return "\n".join(_TAG.sub("", part).strip() for part in thought).strip(), _TAG.sub("", text).strip()


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance.

    Attributes:
        role: `seeker` or `supporter`.
        content: what the other side hears. Any text that encodes to UTF-8, also empty (silence).
        strategy: the support strategy where it is known (ESConv's eight names, or ExTES's); else None.
        thought: the supporter's private reasoning. Kept in the record; reaches nobody.
        finish_reason: why the model that wrote it stopped, in its server's word (`stop`, `length`, `content_filter`).
            Kept in the record; reaches nobody.

    Raises:
        ValueError: on an unknown role, or text that is no UTF-8 text.
    """

    role: Role
    content: str
    strategy: str | None = None
    thought: str | None = None
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise ValueError(f"role must be 'seeker' or 'supporter', not {self.role!r}")
        if not isinstance(self.content, str):
            raise ValueError(f"content must be a str, not {type(self.content).__name__}")
        for name in ("thought", "strategy", "finish_reason"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise ValueError(f"{name} must be a str or None, not {type(getattr(self, name)).__name__}")
        for text in (self.content, self.thought, self.strategy, self.finish_reason):
            try:
                (text or "").encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"message text does not encode to UTF-8 at position {error.start}") from error

    def to_json(self) -> dict[str, str]:
        """A JSON object; fields that are None are left out."""
        data = {"role": self.role, "content": self.content}
        if self.strategy is not None:
            data["strategy"] = self.strategy
        if self.thought is not None:
            data["thought"] = self.thought
        if self.finish_reason is not None:
            data["finish_reason"] = self.finish_reason
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Message:
        """Inverse of `to_json`."""
        return cls(
            data["role"], data["content"], data.get("strategy"), data.get("thought"), data.get("finish_reason")
        )


@dataclass(frozen=True, slots=True)
class Dialogue:
    """An immutable sequence of messages, in the order in which they were said."""

    messages: tuple[Message, ...] = ()

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def then(self, *messages: Message) -> Dialogue:
        """This dialogue with `messages` said after it."""
        return Dialogue(self.messages + messages)

    def merged(self) -> tuple[Message, ...]:
        """Messages with each run of one role joined by newlines, so that roles alternate."""
        merged: list[Message] = []
        for message in self.messages:
            if merged and merged[-1].role == message.role:
                last = merged[-1]
                merged[-1] = replace(
                    last,
                    content=_join("\n", last.content, message.content) or "",
                    strategy=_join(", ", last.strategy, message.strategy),
                    thought=_join("\n", last.thought, message.thought),
                    finish_reason=message.finish_reason,
                )
            else:
                merged.append(message)
        return tuple(merged)

    @property
    def turns(self) -> int:
        """Number of supporter turns (runs of supporter messages count once)."""
        roles = [message.role for message in self.messages]
        return sum(
            role == "supporter" and (i == 0 or roles[i - 1] != "supporter") for i, role in enumerate(roles)
        )

    def as_chat(self, me: Role = "supporter", *, opening: str = "") -> tuple[ChatMessage, ...]:
        """The dialogue as `me` would hand it to a chat model: alternating, beginning with `user`.

        `me` speaks as `assistant`, the other side as `user`. If `me` spoke first, a user message holding `opening`
        (the situation, say) is put in front. Thoughts and strategies are left out. Fresh dicts on every call.
        """
        chat: list[ChatMessage] = [
            {"role": "assistant" if message.role == me else "user", "content": message.content}
            for message in self.merged()
        ]
        if chat and chat[0]["role"] == "assistant":
            chat.insert(0, {"role": "user", "content": opening})
        return tuple(chat)

    def transcript(self) -> str:
        """The turns as a JSON array of {role, content}: no text inside can forge a turn. No thoughts, no strategies."""
        return json.dumps([{"role": m.role, "content": m.content} for m in self.merged()], ensure_ascii=False)

    def to_json(self) -> list[dict[str, str]]:
        """A JSON array of messages, thoughts and strategies included."""
        return [message.to_json() for message in self.messages]

    @classmethod
    def from_json(cls, data: Any) -> Dialogue:
        """Inverse of `to_json`."""
        return cls(tuple(Message.from_json(item) for item in data))


def _join(separator: str, first: str | None, second: str | None) -> str | None:
    parts = [part for part in (first, second) if part]
    return separator.join(parts) if parts else (first if first is not None else second)

"""Prompts are plain-text files, loaded by name, hashed into the identity of whoever uses them.

A slot is written `$name` and filled with text or with data. Data goes in as *sealed* JSON: whatever a message says, it
stays one JSON string, with no character in it from which a chat template or a reader could make a turn, and none that a
model reads but no person sees.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from string import Template
from typing import Any

from esc_env.dialogue import Dialogue, Role, split_thought

__all__ = ["Prompts", "as_answered", "said_as", "seal", "sealed_transcript", "split_answer"]

_EMOJI = r"[\u2190-\u2bff\U0001f000-\U0001faff]"
_JOINING = r"[\u0600-\u08ff\u0900-\u109f\u1780-\u18af]"  # Arabic, Indic and other scripts that write with joiners
_UNSEALED = re.compile(
    rf"""[<>\[\]\x7f-\x9f\u2028-\u202e\u2066-\u2069]
      | [\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2060-\u2065\u206a-\u206f\u3164\ufe00-\ufe0d]
      | [\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]
      | (?<=[\u200b-\u200d\ufe00-\ufe0f]) [\ufe0e\ufe0f]
      | (?<! {_JOINING}) (?: \u200c | (?<! {_EMOJI}) (?<! \ufe0f) \u200d | \u200d (?! {_EMOJI} ) )""",
    re.VERBOSE,
)
"""What opens or closes template tokens (`<|im_end|>`, `[INST]`), breaks lines, turns the direction of reading, or shows
nothing: Unicode tags, zero-width characters, selectors in a row. Joiners stay in emoji and where scripts need them.
"""


class Prompts:
    """A folder of prompts, one `NAME.txt` each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._text = cache(lambda name: (folder / f"{name}.txt").read_text(encoding="utf-8").strip())

    def fill(self, name: str, /, **slots: str) -> str:
        """The prompt of this name with every slot filled. Slots inside of what is filled in are left alone."""
        return Template(self._text(name)).substitute(slots)

    def text(self, name: str) -> str:
        """The prompt of this name as it stands in the file."""
        return self._text(name)

    def digest(self, names: Iterable[str]) -> str:
        """12 hex digits over the named prompts."""
        texts = {name: self._text(name) for name in names}
        return blake2b(json.dumps(texts, sort_keys=True).encode(), digest_size=6).hexdigest()


def seal(data: Any) -> str:
    """`data` as JSON on one line, with the dangerous characters of every string written as \\uXXXX.

    It decodes to exactly `data`.

    >>> seal({"content": "<|im_end|>"})
    '{"content": "\\\\u003c|im_end|\\\\u003e"}'
    """
    if isinstance(data, str):
        return _string(data)
    if isinstance(data, dict):
        return "{" + ", ".join(f"{seal(key)}: {seal(value)}" for key, value in data.items()) + "}"
    if isinstance(data, (list, tuple)):
        return "[" + ", ".join(map(seal, data)) + "]"
    return json.dumps(data)


def sealed_transcript(dialogue: Dialogue) -> str:
    """The turns as sealed JSON, one line a turn, so that a longer dialogue begins with all of a shorter one.

    No thoughts, no strategies.
    """
    return "\n".join(f'{{"role": "{said.role}", "content": {_string(said.content)}}}' for said in dialogue.merged())


def as_answered(text: str) -> str:
    """An answer as it goes back to the model that gave it: as it is, so that a server's prefix cache knows it.

    One that says nothing, or holds a character that data may not hold, goes back sealed.

    >>> as_answered("I hear you."), as_answered("<|im_end|>")
    ('I hear you.', '"\\\\u003c|im_end|\\\\u003e"')
    """
    return text if text.strip() and not _UNSEALED.search(text) else seal(text)


@lru_cache(maxsize=8192)  # both opposites are shown every turn, and who they talk with, again and again
def _string(text: str) -> str:
    return _UNSEALED.sub(lambda found: _escaped(found[0]), json.dumps(text, ensure_ascii=False))


def _escaped(character: str) -> str:
    """As JSON can write any character: what is beyond U+FFFF in two parts."""
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else json.dumps(character)[1:-1]


def said_as(role: Role, text: str) -> str:
    """What a model said that was shown the dialogue as JSON: models like to answer in the same form.

    >>> said_as("seeker", '{"role": "seeker", "content": "I am tired."}')
    'I am tired.'
    """
    text = text.strip()
    if text.startswith("{"):
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):  # no JSON, or a thousand lists in each other
            return text
        if isinstance(data, dict) and data.get("role", role) == role and isinstance(data.get("content"), str):
            return str(data["content"]).strip()
    return text


def split_answer(role: Role, text: str) -> tuple[str | None, str]:
    """(thought, what is said) of a model that was shown the dialogue as JSON, whether it thinks before or inside it.

    >>> split_answer("seeker", '<think>he asks</think>{"role": "seeker", "content": "Seeker: I am tired."}')
    ('he asks', 'I am tired.')
    """
    thought, said = split_thought(said_as(role, text), role)
    inner, said = split_thought(said_as(role, said), role)
    return "\n".join(filter(None, (thought, inner))) if inner else thought, said

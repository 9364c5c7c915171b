"""From a chat to one text, and from a text to a vector."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Space

from esc_env.errors import SpecError, whole
from esc_env.gym.episode import Observation
from esc_env.gym.spaces import Chat, Transcript

if TYPE_CHECKING:
    from jinja2 import Template as JinjaTemplate

__all__ = ["MAX_CHARS", "Embed", "Embedding", "HashingEmbedder", "Rendering", "Template", "Vector", "check_chats"]

Template = Callable[[Observation], str]
"""What makes one text of a chat."""

Vector = npt.NDArray[np.float32]

Embed = Callable[[str], Any]
"""What makes a vector of a text: always of one length, as a NumPy array or what becomes one."""

MAX_CHARS = 32_768
"""Longest text of `TextObservation`. Ours: eight turns of a model that writes pages."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[?!]")


def lines(chat: Observation) -> str:
    """A line per message, `Seeker: …` or `Supporter: …`; line breaks in a message become spaces."""
    names = {"user": "Seeker", "assistant": "Supporter"}
    return "\n".join(f"{names[message['role']]}: {' '.join(message['content'].split())}" for message in chat)


@dataclass(frozen=True)
class Rendering:
    """One text of a chat.

    Attributes:
        template: a Jinja template of `messages`, or a function of the chat; None for a line per message.

    Raises:
        SpecError: the template is neither, or does not make a text.
    """

    template: str | Template | None = None

    def __post_init__(self) -> None:
        if self.template is not None and not isinstance(self.template, str) and not callable(self.template):
            raise SpecError(f"template must be a Jinja template or a function of the chat, not {self.template!r}")
        self(({"role": "user", "content": "Hello."},))

    def __call__(self, chat: Observation) -> str:
        """The text."""
        if isinstance(self.template, str):
            return _filled(self.template, chat)
        text: object = (self.template or lines)(chat)
        if not isinstance(text, str):
            raise SpecError(f"template must make a str of the chat, not {type(text).__name__}")
        return text


def _filled(template: str, chat: Observation) -> str:
    from jinja2 import TemplateError

    try:
        return _compiled(template).render(messages=chat, add_generation_prompt=True)
    except TemplateError as error:
        raise SpecError(f"template: no Jinja template, or none of `messages` ({error})") from error


@cache
def _compiled(template: str) -> JinjaTemplate:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)


@dataclass(frozen=True)
class HashingEmbedder:
    """A vector of the words and pairs of words in a text, each counted at a place that its hash names.

    Words count by the root of how often they occur, with the sign that their hash names too; the vector has length 1,
    or is 0 where the text has no words. Same text, same vector, on every platform and Python version. It knows nothing
    of meaning.

    *Source:* Weinberger et al., Feature Hashing for Large Scale Multitask Learning (ICML 2009); two-word features ours.

    Attributes:
        size: of the vector.
    """

    size: int = 256

    def __post_init__(self) -> None:
        whole(size=self.size)

    def __call__(self, text: str) -> Vector:
        """The vector, each number in [-1, 1]."""
        words = _WORD.findall(text.lower())
        counts: dict[str, int] = {}
        for feature in (*words, *(f"{one} {two}" for one, two in pairwise(words))):
            counts[feature] = counts.get(feature, 0) + 1
        vector = np.zeros(self.size, dtype=np.float64)
        for feature, count in counts.items():
            value = int.from_bytes(blake2b(feature.encode(), digest_size=8).digest(), "big")
            vector[(value >> 1) % self.size] += (1 if value & 1 else -1) * count**0.5
        length = float(np.sqrt(np.sum(vector**2)))
        return (vector / length if length else vector).astype(np.float32)


class Embedding:
    """A vector of an observation, and the space of all of them.

    Args:
        space: of the observations: chats or texts.
        embed: makes a vector of a text; None for `HashingEmbedder()`.
        template: makes a text of a chat.

    Raises:
        SpecError: as `EmbeddingObservation` does.
    """

    def __init__(self, space: Space[Any], embed: Embed | None, template: str | Template | None) -> None:
        self._embed = HashingEmbedder() if embed is None else embed
        if not callable(self._embed):
            raise SpecError(f"embed must be a function from a text to a vector, not {embed!r}")
        if not isinstance(space, Transcript):
            check_chats(space)
        elif template is not None:
            raise SpecError("the env shows texts already; give the template to TextObservation alone")
        self._text = Rendering(template)
        bound = 1.0 if isinstance(self._embed, HashingEmbedder) else np.inf
        self.space = Box(-bound, bound, self._vector("Hello.").shape, np.float32)

    def __call__(self, observation: Observation | str) -> Vector:
        """The vector. Raises SpecError where it is of another length than the first."""
        vector = self._vector(observation if isinstance(observation, str) else self._text(observation))
        if vector.shape != self.space.shape:
            raise SpecError(
                f"embed made vectors of {self.space.shape[0]} and of {vector.size} numbers; all must be alike"
            )
        return vector

    def _vector(self, text: str) -> Vector:
        try:
            vector = np.asarray(self._embed(text), dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise SpecError(f"embed must make a vector of numbers of a text ({error})") from error
        if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
            raise SpecError(
                f"embed must make a vector of finite numbers, not an array of shape {vector.shape}: {vector}"
            )
        return vector


def check_chats(space: Space[Any]) -> None:
    """Raise SpecError where observations are no chats."""
    if not isinstance(space, Chat):
        raise SpecError(f"the env must show the chat, not {space}: put wrappers that read the chat nearer to the env")

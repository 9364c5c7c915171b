"""The Gymnasium spaces of a support conversation: what a supporter may say, what it has heard so far, and that as text.

Gymnasium batches all as a `Tuple` of n copies, and batched values as tuples, so they work in every vector environment
that passes Python objects: ours, `SyncVectorEnv`, and `AsyncVectorEnv(shared_memory=False)`. Its functions on spaces
know them: the emptiest member of each is what `FrameStackObservation` and `DelayObservation` pad with, and flattening
leaves text as it is. Text has no fixed size, so `flatdim` and shared memory refuse it in one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.error import CustomSpaceError
from gymnasium.spaces import Space, Text, Tuple
from gymnasium.spaces.utils import flatdim, flatten, flatten_space, is_space_dtype_shape_equiv, unflatten
from gymnasium.vector.utils import (
    batch_differing_spaces,
    create_empty_array,
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)
from gymnasium.wrappers.utils import create_zero_array

from esc_env.dialogue import ChatMessage
from esc_env.errors import ActionError, SpecError, whole

__all__ = ["Chat", "Transcript", "Utterance"]

_OPENERS = ("It sounds like", "I wonder if", "What happened when", "I can see that", "Tell me more about", "Maybe")
_MIDDLES = ("this has been hard", "you felt alone with it", "there is someone you trust", "you could rest a little")
_ENDINGS = (".", "?", " today.", ", is that right?", " for a long time.", "…")


class Utterance(Space[str]):
    """What a supporter may say: any str that encodes to UTF-8, of at most `max_chars` characters; also "" (silence).

    `sample` makes short, plausible, seeded English: enough to exercise an environment, no support for anybody.

    Args:
        max_chars: longest utterance, in characters; at least 1.
        seed: of `sample`.
    """

    def __init__(self, max_chars: int = 8000, seed: int | np.random.Generator | None = None) -> None:
        whole(max_chars=max_chars)
        self.max_chars = max_chars
        super().__init__(None, str, seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: text has no fixed-size array form."""
        return False

    def check(self, value: Any) -> str:
        """The utterance as a plain str.

        Raises:
            ActionError: when it is not in this space, saying why.
        """
        if not isinstance(value, str):
            raise ActionError(
                f"an action is what the supporter says, a str, not {type(value).__name__}"
                + (" (decode it first)" if isinstance(value, bytes) else "")
            )
        if len(value) > self.max_chars:
            raise ActionError(
                f"the action has {len(value):,} characters, more than max_chars={self.max_chars:,}; "
                "shorten it, or pass a larger max_chars to gym.make"
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ActionError(
                f"the action does not encode to UTF-8 at position {error.start} (a lone surrogate); "
                "clean it with text.encode('utf-8', 'replace').decode()"
            ) from error
        return str(value)

    def contains(self, x: Any) -> bool:
        """Whether `x` may be said."""
        try:
            self.check(x)
        except ActionError:
            return False
        return True

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """One or two short random sentences, cut at `max_chars`. Raises SpecError on a mask or a probability."""
        _refuse_masks(self, mask, probability)
        return _sentences(self.np_random)[: self.max_chars]

    def to_jsonable(self, sample_n: Iterable[str]) -> list[str]:
        """The samples: text is JSON as it is."""
        return list(sample_n)

    def from_jsonable(self, sample_n: list[Any]) -> list[str]:
        """Inverse of `to_jsonable`."""
        return [str(sample) for sample in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Utterance) and self.max_chars == other.max_chars

    def __repr__(self) -> str:
        return f"Utterance(max_chars={self.max_chars})"


class Chat(Space[tuple[ChatMessage, ...]]):
    """The conversation so far, as chat models take it.

    A tuple of `{"role": "user" | "assistant", "content": str}`: the seeker is `user`, the supporter `assistant`. It
    begins and ends with `user` and alternates strictly, so its length is odd.
    """

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(None, None, seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: text has no fixed-size array form."""
        return False

    def contains(self, x: Any) -> bool:
        """Whether `x` is such a conversation."""
        if not isinstance(x, tuple) or len(x) % 2 == 0:
            return False
        for position, message in enumerate(x):
            if not isinstance(message, dict) or message.keys() != {"role", "content"}:
                return False
            if message["role"] != ("assistant" if position % 2 else "user"):
                return False
            if not isinstance(message["content"], str) or not _encodes(message["content"]):
                return False
        return True

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> tuple[ChatMessage, ...]:
        """A random conversation of 1 to 9 messages. Raises SpecError on a mask or a probability."""
        _refuse_masks(self, mask, probability)
        return tuple(
            {"role": "assistant" if position % 2 else "user", "content": _sentences(self.np_random)}
            for position in range(1 + 2 * int(self.np_random.integers(5)))
        )

    def to_jsonable(self, sample_n: Iterable[Sequence[ChatMessage]]) -> list[list[dict[str, str]]]:
        """Each conversation as a JSON array of objects."""
        return [[{"role": m["role"], "content": m["content"]} for m in chat] for chat in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[tuple[ChatMessage, ...]]:
        """Inverse of `to_jsonable`."""
        return [tuple({"role": m["role"], "content": m["content"]} for m in chat) for chat in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chat)

    def __repr__(self) -> str:
        return "Chat()"


class Transcript(Text):
    """The conversation so far as one text: Gymnasium's `Text`, of any characters that encode to UTF-8.

    `Text` lists its characters one by one, which nobody can do for what people write; all that it is beside that, other
    libraries that know `Text` find here.

    Args:
        max_chars: longest text, in characters; at least 1.
        seed: of `sample`.
    """

    def __init__(self, max_chars: int, seed: int | np.random.Generator | None = None) -> None:
        whole(max_chars=max_chars)
        super().__init__(max_chars, min_length=0, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: text has no fixed-size array form."""
        return False

    def contains(self, x: Any) -> bool:
        """Whether `x` is such a text."""
        return isinstance(x, str) and len(x) <= self.max_length and _encodes(x)

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """One or two short random sentences, cut at `max_chars`. Raises SpecError on a mask or a probability."""
        _refuse_masks(self, mask, probability)
        return _sentences(self.np_random)[: self.max_length]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transcript) and self.max_length == other.max_length

    def __repr__(self) -> str:
        return f"Transcript(max_chars={self.max_length})"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sentences(random: np.random.Generator) -> str:
    return " ".join(
        _pick(random, _OPENERS) + " " + _pick(random, _MIDDLES) + _pick(random, _ENDINGS)
        for _ in range(1 + int(random.integers(2)))
    )


def _pick(random: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(random.integers(len(words)))]


def _refuse_masks(space: Space[Any], mask: Any, probability: Any) -> None:
    if mask is not None or probability is not None:
        raise SpecError(f"{space} has no finite set of values, so sample() takes neither mask nor probability")


# --- what Gymnasium's functions do with them --------------------------------------------------------


def _batch_differing(spaces: Sequence[Space[Any]]) -> Tuple[Any]:
    return Tuple([deepcopy(space) for space in spaces], seed=deepcopy(spaces[0].np_random))


def _emptiest(space: Space[Any]) -> Any:
    """The shortest member: silence, or a conversation in which the seeker has not said anything yet."""
    return "" if isinstance(space, (Utterance, Transcript)) else ({"role": "user", "content": ""},)


def _emptiest_batch(space: Space[Any], n: int = 1, fn: Any = None) -> tuple[Any, ...]:
    return tuple(_emptiest(space) for _ in range(n))


def _flat_space(space: Space[Any]) -> Any:
    """The space itself: as flat as text gets. Gymnasium does so with what has no fixed size, such as `Sequence`."""
    return space


def _flat_value(space: Space[Any], x: Any) -> Any:
    return x


def _no_size(space: Space[Any]) -> int:
    raise SpecError(f"{space} holds text of any length, which has no number of dimensions; encode it yourself first")


def _no_shared_memory(space: Space[Any], *_: Any, **__: Any) -> Any:
    raise CustomSpaceError(
        f"{space} holds text of any length, which fits no shared memory; give AsyncVectorEnv shared_memory=False"
    )


def _alike(space_1: Space[Any], space_2: Space[Any]) -> bool:
    """Whether two envs with these spaces may stand in one vector env: any two of one kind."""
    return type(space_1) is type(space_2)


for _space in (Utterance, Chat, Transcript):
    # `iterate` is left out: Gymnasium walks over a batch (a Tuple of copies) only while its members are unregistered.
    batch_differing_spaces.register(_space, _batch_differing)
    create_empty_array.register(_space, _emptiest_batch)
    create_zero_array.register(_space, _emptiest)
    flatten_space.register(_space, _flat_space)
    flatten.register(_space, _flat_value)
    unflatten.register(_space, _flat_value)
    flatdim.register(_space, _no_size)
    is_space_dtype_shape_equiv.register(_space, _alike)
    create_shared_memory.register(_space, _no_shared_memory)
    read_from_shared_memory.register(_space, _no_shared_memory)
    write_to_shared_memory.register(_space, _no_shared_memory)

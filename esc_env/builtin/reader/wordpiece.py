"""BERT's uncased WordPiece in plain Python: words, then the longest known pieces of each.

The vocabulary is that of all-MiniLM-L6-v2, cut to the pieces that the reader keeps; what is not among them becomes
smaller pieces, and at worst `[UNK]`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

__all__ = ["LONGEST", "SPECIAL", "Pieces"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""The special pieces, at positions 0 to 3."""

LONGEST = 40
"""A word of more characters is one `[UNK]`: looking for its pieces takes quadratic time."""

_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


class Pieces:
    """Cuts text into pieces.

    Args:
        vocabulary: the position of every piece.

    Attributes:
        names: the pieces.
    """

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self._known = dict(vocabulary)
        self.names = tuple(self._known)
        self._pieces = lru_cache(maxsize=16384)(self._cut)

    def __call__(self, text: str) -> list[int]:
        """The positions of the pieces of `text`, without special ones."""
        return [piece for word in _WORD.findall(_plain(text)) for piece in self._pieces(word)]

    def _cut(self, word: str) -> tuple[int, ...]:
        """The longest known piece, then the longest of what is left, as WordPiece has it."""
        found: list[int] = []
        start, size = 0, len(word)
        if size > LONGEST:
            return (1,)
        while start < size:
            end = size
            while end > start:
                piece = self._known.get(word[start:end] if start == 0 else f"##{word[start:end]}")
                if piece is not None:
                    break
                end -= 1
            else:
                return (1,)
            found.append(piece)
            start = end
        return tuple(found)


def _plain(text: str) -> str:
    """Lower case, without accents; typographic quotes as typed ones."""
    text = text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"').lower()
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFKD", text)
    return "".join(char for char in apart if unicodedata.category(char) != "Mn")

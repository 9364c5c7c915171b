"""What the builtin seeker can hear in English text: words, stems, copied runs. Pure functions, cached."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import groupby

from esc_env.builtin.constants import HEARING

__all__ = ["copied_share", "function_share", "sentences", "stem", "tokens", "understood", "visible"]

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[?!.]")
_BREAK = re.compile(
    r"(?<=[.!?…])[\"')\]]*\s+|\n+(?:[^\S\n]\s*+(?:[-–—]\s+)?)?|;\s+|(?<!\s)\s+[-–—]\s+"
)  # no space is looked at more than twice, however many there are
_SUFFIXES = (
    "fulness", "ousness", "iveness", "ations", "ingly", "edly", "ation", "ments", "ness", "ment", "ings", "ies", "ied",
    "ing", "ers", "est", "ed", "es", "er", "ly", "s", "y", "e",
)  # fmt: skip
_TURNED = {
    "i": "you", "i'm": "you're", "i've": "you've", "i'd": "you'd", "i'll": "you'll", "me": "you", "my": "your",
    "mine": "yours", "myself": "yourself", "am": "are", "we": "you", "our": "your", "us": "you",
}  # fmt: skip
_FUNCTION = frozenset(
    """a about after all also am an and any are aren't as at be because been before being but by can can't could
    couldn't did didn't do does doesn't don't for from get go had hadn't has hasn't have haven't he he's her
    here him his how i i'd i'll i'm i've if in into is isn't it it's its just like me more most much my no not
    of off on one only or other our out over own s should shouldn't so some such t than that that's the their
    them then there there's these they they're this those through to too up us very was wasn't we we're were
    weren't what what's when where which while who why will with won't would wouldn't you you'd you'll you're
    you've your yourself im ive dont cant thats u ur""".split()
)


_BLANK = dict.fromkeys(map(ord, "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"), " ")


@lru_cache(maxsize=4096)
def visible(text: str) -> str:
    """The text as the eye reads it: compatibility forms unified, characters that show nothing taken out."""
    shown = unicodedata.normalize("NFKC", _ordered(text.translate(_BLANK)))
    return "".join(char for char in shown if unicodedata.category(char) not in ("Cf", "Cc", "Mn") or char in "\n\t")


def understood(text: str) -> bool:
    """Whether a text may be English: at least half of its letters are Latin. French passes; Chinese does not."""
    letters = [char for char in text if char.isalpha()]
    return 2 * sum("LATIN" in unicodedata.name(char, "") for char in letters) >= len(letters)


def _ordered(text: str) -> str:
    """The text with its accents apart and in order, since Python takes quadratic time to bring them in order."""
    if text.isascii():
        return text
    apart = "".join(unicodedata.normalize("NFKD", char) for char in text)
    runs = groupby(apart, key=lambda char: unicodedata.combining(char) > 0)
    return "".join("".join(sorted(run, key=unicodedata.combining) if accents else run) for accents, run in runs)


@lru_cache(maxsize=8192)
def tokens(text: str) -> tuple[str, ...]:
    """Lower-case words (inner apostrophes kept, curly ones straightened) and the marks `? ! .`."""
    return tuple(_TOKEN.findall(text.lower().replace("’", "'")))


@lru_cache(maxsize=4096)
def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text that hold at least one word or digit; all after the first so many are one."""
    pieces = _BREAK.split(text, HEARING.sentences - 1)
    return tuple(part for part in map(str.strip, pieces) if re.search(r"\w", part))


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A crude English stem: good enough to match `deadlines` with `deadline` and `argued` with `arguing`."""
    word = word.split("'")[0] if not word.endswith("n't") else word
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls":
        word = word[:-1]
    return word


def function_share(words: tuple[str, ...]) -> float:
    """Share of function words among the words, in [0, 1]: fluent English lies around a half, a word list near 0."""
    spoken = [word for word in words if word[0].isalnum()]
    return sum(word in _FUNCTION for word in spoken) / len(spoken) if spoken else 0.0


@lru_cache(maxsize=8192)
def _turned(text: str) -> tuple[str, ...]:
    return tuple(_TURNED.get(word, word) for word in tokens(text) if word[0].isalnum())


@lru_cache(maxsize=16384)
def _grams(text: str, size: int) -> frozenset[tuple[str, ...]]:
    words = _turned(text)
    return frozenset(words[i : i + size] for i in range(len(words) - size + 1))


def copied_share(text: str, sources: tuple[str, ...], size: int = 4) -> float:
    """Share of the words of `text`, in [0, 1], inside runs of at least `size` words that stand in one of `sources`.

    I/you are levelled first, so turning the pronouns of what someone said does not hide that it is their sentence.
    """
    words = _turned(text)
    if not words:
        return 0.0
    covered = [False] * len(words)
    known = [_grams(source, size) for source in sources]
    for i in range(len(words) - size + 1):
        gram = words[i : i + size]
        if any(gram in grams for grams in known):
            covered[i : i + size] = [True] * size
    return sum(covered) / len(words)

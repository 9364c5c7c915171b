"""What a supporter's words sound like to the builtin seeker: sentence by sentence, against what was said before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import fsum

from esc_env.builtin.constants import FAMILIES, HEARING, Span
from esc_env.builtin.language import copied_share, function_share, sentences, stem, tokens
from esc_env.builtin.moves import read, weight

__all__ = ["Heard", "Memory", "hear", "overlap", "ramp"]


@dataclass(frozen=True, slots=True)
class Memory:
    """What was said so far, as far as it matters for hearing what comes next.

    Attributes:
        said: stems of the story that the seeker has told; recent: those of its last telling.
        reflected: those that the supporter has taken up.
        messages: the seeker's messages, to recognise an echo.
        frames: the supporter's sentences without the seeker's words, to recognise a repetition.
    """

    said: frozenset[str] = frozenset()
    recent: frozenset[str] = frozenset()
    reflected: frozenset[str] = frozenset()
    messages: tuple[str, ...] = ()
    frames: frozenset[frozenset[str]] = frozenset()

    def with_seeker(self, message: str, story: str) -> Memory:
        """After the seeker's `message`, of which `story` tells something."""
        stems = _stems(story)
        return replace(self, said=self.said | stems, recent=stems or self.recent, messages=(*self.messages, message))

    def with_supporter(self, text: str) -> Memory:
        """After the supporter's turn."""
        return replace(
            self,
            reflected=self.reflected | (_stems(text) & self.said),
            frames=self.frames.union(_frame(part, self.said) for part in sentences(text)),
        )


@dataclass(frozen=True, slots=True)
class Heard:
    """What one supporter turn sounds like to the seeker. All values in [0, 1] but the counts.

    Each sentence is heard by itself: what it does, how far it takes up this seeker's story, and whether it is speech at
    all rather than an echo of the seeker, a sentence used before with other words in it, or a list of words.

    Attributes:
        does: for each of `FAMILIES`, how clearly some honest sentence does it.
        met: how far the seeker's own story is mirrored.
        asked_about: how far it is asked about.
        built: how far a proposal is tied to it.
        grounding: how far it is taken up at all.
        questions, proposals: how many sentences ask or propose.
        fluency, copied, repeated: over the whole turn, by length of sentence.
    """

    does: Mapping[str, float]
    met: float
    asked_about: float
    built: float
    grounding: float
    questions: int
    proposals: int
    fluency: float
    copied: float
    repeated: float


def hear(text: str, memory: Memory) -> Heard:
    """What the supporter's turn `text` sounds like to a seeker with this memory."""
    does = dict.fromkeys(FAMILIES, 0.0)
    met = asked_about = built = grounding = fluency = copied = repeated = 0.0
    questions = proposals = 0
    left = memory.said - memory.reflected
    parts = sentences(text)
    length = sum(map(len, parts))
    for part in parts:
        reading = read(part)
        mine = _stems(part)
        fresh = mine & left
        left -= fresh
        new = fsum(weight(word) * (1.0 if word in memory.recent else HEARING.earlier) for word in fresh)
        taken = new + HEARING.again * fsum(weight(word) for word in mine & memory.reflected)
        share = taken / HEARING.enough
        part_does = {
            name: ramp(fsum(rate * reading[move] for move, rate in family.moves.items()), family.heard)
            for name, family in FAMILIES.items()
        }
        words = tokens(part)
        listing = ramp(part.count(",") / max(1, len(words)), HEARING.listing)
        part_fluency = ramp(function_share(words), HEARING.fluent) * (1.0 - part_does["noise"]) * (1.0 - listing)
        part_copied = ramp(copied_share(part, memory.messages), HEARING.copied)
        # An old frame with a new part of the story in it is half heard; an old question still is a question.
        redeemed = HEARING.filled * min(1.0, new / HEARING.enough)
        part_repeated = _used_before(_frame(part, memory.said), memory.frames) * (1.0 - redeemed)
        honest = part_fluency * (1.0 - part_copied) * (1.0 - part_repeated)
        for family, amount in part_does.items():
            again = HEARING.asked_again * part_fluency * (1.0 - part_copied) if family == "invite" else 0.0
            does[family] = max(does[family], amount * max(honest, again))
        met += part_does["mirror"] * share * honest
        asked_about += max(part_does["invite"], part_does["coping"]) * share * honest
        built = max(built, part_does["propose"] * share * honest)
        grounding += share * honest
        questions += max(part_does["invite"], part_does["coping"], part_does["check"]) > HEARING.clear
        proposals += part_does["propose"] > HEARING.clear
        fluency += part_fluency * len(part) / length
        copied += part_copied * len(part) / length
        repeated += part_repeated * len(part) / length
    return Heard(
        does=does,
        met=min(1.0, met),
        asked_about=min(1.0, asked_about),
        built=min(1.0, built),
        grounding=min(1.0, grounding),
        questions=questions,
        proposals=proposals,
        fluency=fluency,
        copied=copied,
        repeated=repeated,
    )


def _frame(sentence: str, said: frozenset[str]) -> frozenset[str]:
    """The words of a sentence but those the seeker brought in: what stays when only the filling changes."""
    return frozenset(word for word in tokens(sentence) if weight(word) < HEARING.frame_word or stem(word) not in said)


def _used_before(frame: frozenset[str], frames: frozenset[frozenset[str]]) -> float:
    """How much a frame is one used before, in [0, 1]: nearly the same words, or an earlier one with more around it."""
    if frame in frames:
        return 1.0
    used = _by_word(frames)
    # What counts shares over half of all words (`same_frame`), or five (`whole_frame` of `frame_words`): so it has one
    # of all words but half of them, or but four.
    rare = sorted(frame, key=lambda word: len(used.get(word, ())))[: len(frame) - min(len(frame) // 2, 4)]
    most = 0.0
    for earlier in {earlier for word in rare for earlier in used.get(word, ())}:
        common = len(frame & earlier)
        smaller = min(len(frame), len(earlier))
        union = len(frame) + len(earlier) - common
        most = max(most, ramp(common / union, HEARING.same_frame))
        if smaller >= HEARING.frame_words:
            most = max(most, ramp(common / smaller, HEARING.whole_frame))
    return most


@lru_cache(maxsize=64)  # every sentence of a turn looks into the same frames
def _by_word(frames: frozenset[frozenset[str]]) -> Mapping[str, tuple[frozenset[str], ...]]:
    """The frames that hold a word, for each word."""
    found: dict[str, list[frozenset[str]]] = {}
    for frame in frames:
        for word in frame:
            found.setdefault(word, []).append(frame)
    return {word: tuple(holding) for word, holding in found.items()}


@lru_cache(maxsize=16384)
def _stems(text: str) -> frozenset[str]:
    """The stems of a text that say anything about one person."""
    return frozenset(stem(word) for word in tokens(text) if word[0].isalnum() and weight(word) > 0.0)


def overlap(text: str, line: str) -> float:
    """What two texts share, in summed word weights: 1 for one rare word."""
    return fsum(weight(word) for word in _stems(text) & _stems(line))


def ramp(value: float, span: Span) -> float:
    """0 up to where the span begins, 1 from where it ends, straight between."""
    low, high = span
    return 0.0 if value <= low else 1.0 if value >= high else (value - low) / (high - low)

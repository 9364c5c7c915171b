"""What a supporter's words sound like to the embedded seeker: sentence by sentence, against what was said before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import fsum

from esc_env.builtin.language import copied_share, function_share, sentences, stem, tokens
from esc_env.builtin.moves import read, weight

__all__ = ["FAMILIES", "Heard", "Memory", "hear", "overlap", "ramp"]

FILLED, ASKED_AGAIN = 0.7, 0.6
"""What is left of a sentence used before: if it takes up something new, and if it is an open question."""

FAMILIES: Mapping[str, tuple[Mapping[str, float], float, float]] = {
    "invite": ({"open_question": 1.0, "coping_question": 0.8, "closed_question": 0.5}, 0.12, 0.55),
    "mirror": (
        {"reflection": 1.0, "restatement": 1.0, "affirmation": 0.75, "self_disclosure": 0.4, "information": 0.2},
        0.12,
        0.55,
    ),
    "warmth": ({"reflection": 1.0, "affirmation": 1.0, "restatement": 0.5}, 0.12, 0.55),
    "coping": ({"coping_question": 1.0}, 0.15, 0.5),
    "propose": ({"suggestion": 1.0, "commitment": 1.0, "information": 0.25}, 0.25, 0.6),
    "dismiss": ({"dismissal": 1.0}, 0.45, 0.9),
    "check": ({"safety_question": 1.0}, 0.3, 0.6),
    "refer": ({"safety_referral": 1.0}, 0.3, 0.6),
    "noise": ({"noise": 1.0}, 0.35, 0.75),
}
"""What the seeker listens for: weighted sums of moves (neighbours count in part, since people say things in many ways),
and the probability at which it begins to count and from which it counts in full."""


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
        new = fsum(weight(word) * (1.0 if word in memory.recent else 0.7) for word in fresh)
        taken = new + 0.2 * fsum(weight(word) for word in mine & memory.reflected)
        share = taken / 1.4
        part_does = {
            family: ramp(fsum(rate * reading[move] for move, rate in rates.items()), low, high)
            for family, (rates, low, high) in FAMILIES.items()
        }
        words = tokens(part)
        listing = ramp(part.count(",") / max(1, len(words)), 0.2, 0.3)
        part_fluency = ramp(function_share(words), 0.2, 0.36) * (1.0 - part_does["noise"]) * (1.0 - listing)
        part_copied = ramp(copied_share(part, memory.messages), 0.35, 0.65)
        # An old frame with a new part of the story in it is half heard; an old question still is a question.
        part_repeated = _used_before(_frame(part, memory.said), memory.frames) * (1.0 - FILLED * min(1.0, new / 1.4))
        honest = part_fluency * (1.0 - part_copied) * (1.0 - part_repeated)
        for family, amount in part_does.items():
            again = ASKED_AGAIN * part_fluency * (1.0 - part_copied) if family == "invite" else 0.0
            does[family] = max(does[family], amount * max(honest, again))
        met += part_does["mirror"] * share * honest
        asked_about += max(part_does["invite"], part_does["coping"]) * share * honest
        built = max(built, part_does["propose"] * share * honest)
        grounding += share * honest
        questions += max(part_does["invite"], part_does["coping"], part_does["check"]) > 0.6
        proposals += part_does["propose"] > 0.6
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
    return frozenset(word for word in tokens(sentence) if weight(word) < 0.2 or stem(word) not in said)


def _used_before(frame: frozenset[str], frames: frozenset[frozenset[str]]) -> float:
    """How much a frame is one used before, in [0, 1]: nearly the same words, or an earlier one with more around it."""
    if frame in frames:
        return 1.0
    used = _by_word(frames)
    # What counts shares over half of the words, or five: so it has one of all words but half of them, or but four.
    rare = sorted(frame, key=lambda word: len(used.get(word, ())))[: len(frame) - min(len(frame) // 2, 4)]
    most = 0.0
    for earlier in {earlier for word in rare for earlier in used.get(word, ())}:
        common = len(frame & earlier)
        smaller = min(len(frame), len(earlier))
        union = len(frame) + len(earlier) - common
        most = max(most, ramp(common / union, 0.5, 0.8))
        if smaller >= 6:
            most = max(most, ramp(common / smaller, 0.8, 1.0))
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


def ramp(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high`, straight between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))

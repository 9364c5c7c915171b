"""A judge without a model, for tests and for trying out: a rule of thumb over the builtin move classifier."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env.builtin.digest import digest
from esc_env.builtin.language import function_share, sentences, tokens
from esc_env.builtin.moves import read
from esc_env.dialogue import Dialogue
from esc_env.evaluation.judges.protocol import BEST, DIMENSIONS, WORST, Opinion
from esc_env.identity import source_essence
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed

__all__ = ["NOT_TO_PUBLISH", "PLAIN", "PlainJudge"]

PLAIN = "builtin:plain"
NOT_TO_PUBLISH = "builtin:plain is a rule of thumb for trying out the commands; nothing here is a result to publish"

_SHOWN: Mapping[str, tuple[str, ...]] = {
    "empathy": ("reflection", "affirmation", "self_disclosure"),
    "identification": ("open_question", "closed_question", "coping_question", "restatement"),
    "suggestion": ("suggestion", "information", "safety_referral", "commitment"),
}
"""The moves that show a dimension. Ours."""
_ENOUGH = 0.4
"""Share of the supporter's sentences with such moves that is worth the best mark. Ours."""
_TIE = 0.25
"""Steps of the rubric by which two conversations may differ and still tie. Ours."""


class PlainJudge:
    """A rule of thumb: which kinds of sentences the supporter says. English only, and easily fooled.

    It shows that a command works, and what its pages look like. Nothing that it says is a result.
    """

    deterministic = True

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, and a digest of the code and data that decide how it marks."""
        own = blake2b(source_essence(Path(__file__).read_text("utf-8")), digest_size=8).hexdigest()
        return {"name": PLAIN, "digest": digest(), "code": own}

    async def rate(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Opinion:
        """Marks from 1 to 5, in whole steps."""
        return Opinion({name: float(round(mark)) for name, mark in _marks(dialogue).items()})

    async def compare(self, scenario: Scenario, first: Dialogue, second: Dialogue, *, seed: Seed) -> Opinion:
        """Whoever has the higher mark by more than a quarter of a step; the order plays no part."""
        one, other = _marks(first), _marks(second)
        gaps = {name: one[name] - other[name] for name in DIMENSIONS}
        return Opinion({name: 0.0 if abs(gap) <= _TIE else 1.0 if gap > 0 else -1.0 for name, gap in gaps.items()})


def _marks(dialogue: Dialogue) -> dict[str, float]:
    said = [sentence for each in dialogue.merged() if each.role == "supporter" for sentence in sentences(each.content)]
    if not said:
        return dict.fromkeys(DIMENSIONS, float(WORST))
    readings = [read(sentence) for sentence in said]
    shares = {
        name: min(1.0, fmean(sum(reading[move] for move in moves) for reading in readings) / _ENOUGH)
        for name, moves in _SHOWN.items()
    }
    fresh = len(set(said)) / len(said)
    plain = min(1.0, fmean(function_share(tokens(sentence)) for sentence in said) / _ENOUGH)
    shares = {"fluency": fresh * plain, **shares}
    shares["overall"] = fmean(shares.values())
    return {name: WORST + (BEST - WORST) * shares[name] for name in DIMENSIONS}

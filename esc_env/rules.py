"""The rules of a conversation, and the fingerprint that says what an agent faced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Literal

from esc_env.errors import ModelError, SpecError, one_of, whole
from esc_env.escaping import one_line
from esc_env.protocols import Ballot, Verdict

__all__ = ["PROTOCOL_VERSION", "Fingerprint", "Rules", "__version__"]

__version__ = "0.1.0"
"""Of esc-env; recorded with every run."""

PROTOCOL_VERSION = 3
"""Raised whenever the behaviour of the protocol changes; part of every fingerprint."""


@dataclass(frozen=True)
class Fingerprint:
    """What an agent faces, in named parts, as JSON gives them back. Results are comparable only if these are equal.

    Raises:
        SpecError: the `identity` of an agent, seeker or critic is no mapping of plain JSON values.
    """

    parts: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", {name: _plain(name, part) for name, part in self.parts.items()})

    @property
    def digest(self) -> str:
        """16 hex digits over all parts."""
        canonical = json.dumps(self.parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return blake2b(canonical.encode(), digest_size=8).hexdigest()

    def differences(self, other: Fingerprint) -> list[str]:
        """One line per part that differs, of a mapping per member: `persona: cooperative / guarded`."""
        return _differences(self.parts, other.parts)


def _plain(name: str, part: Any) -> Any:
    try:
        return json.loads(json.dumps(dict(part) if name in ("agent", "seeker", "critic") else part))
    except (TypeError, ValueError) as error:
        raise SpecError(f"the {name}'s `identity` must be a mapping of plain JSON values: {error}") from error


def _differences(there: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
    lines = []
    for name in sorted({*there, *now}):
        one, other = there.get(name), now.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += _differences(one, other, f"{place}{name}.")
        elif one != other:
            lines.append(one_line(f"{place}{name}: {one} / {other}"))  # files and agents may say anything
    return lines


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a conversation.

    Attributes:
        max_turns: T, turns after which the conversation counts as not solved; at least 1. *Source:* RLFF-ESC: 8.
        threshold: solved when the mean vote is greater than this. *Source:* PPDPP: 0.5.
        votes: how many votes the critic gives after a turn. *Source:* PPDPP: 10.
        opening: `situation` (verbatim, no model call; PPDPP) or `seeker` (the seeker writes it).
        max_chars: longest supporter utterance. Ours: 8,000.

    Raises:
        SpecError: when one makes no sense.
    """

    max_turns: int = 8
    threshold: float = 0.5
    votes: int = 10
    opening: Literal["situation", "seeker"] = "situation"
    max_chars: int = 8000

    def __post_init__(self) -> None:
        whole(max_turns=self.max_turns, votes=self.votes, max_chars=self.max_chars)
        if not -1 <= self.threshold < 1:
            raise SpecError(f"threshold must lie in [-1, 1), not {self.threshold!r}: a score is never above 1")
        one_of("opening", self.opening, ("situation", "seeker"))

    def count(self, ballot: Ballot) -> Verdict:
        """Turn votes into a verdict.

        Raises:
            ModelError: when fewer than half the votes are valid, or a vote, or the expected one, lies outside [-1, 1].
        """
        votes = tuple(float(vote) for vote in ballot.votes if vote is not None)
        wild = [vote for vote in votes if not -1 <= vote <= 1]
        if wild:
            raise ModelError(f"the critic voted {wild[0]!r}; a vote must lie in [-1, 1]")
        if not votes or len(votes) < len(ballot.votes) / 2:
            raise ModelError(f"only {len(votes)} of the critic's {len(ballot.votes)} votes could be read")
        if ballot.expected is not None and not -1 <= ballot.expected <= 1:
            raise ModelError(f"the critic's expected vote is {ballot.expected!r}; it must lie in [-1, 1]")
        score = sum(votes) / len(votes)
        return Verdict(
            votes, len(votes), score, score > self.threshold, ballot.expected, ballot.unreadable, ballot.redrawn
        )

    def fingerprint(self, **facing: Any) -> Fingerprint:
        """The rules together with whatever else the agent faces (seeker, critic, scenarios, persona, trials, seed)."""
        return Fingerprint({"protocol": PROTOCOL_VERSION, **asdict(self), **facing})

"""The seeker and the critic that read: `builtin:reader`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from math import fsum
from pathlib import Path
from typing import Any

# Private to neighbours whose text is the fingerprint of `builtin`: a name made public there would change it.
from esc_env.builtin.critic import _vote, distribution
from esc_env.builtin.digest import digest
from esc_env.builtin.reader.state import follow
from esc_env.builtin.seeker import _speak
from esc_env.dialogue import Dialogue
from esc_env.identity import source_essence
from esc_env.protocols import VOTES, Ballot, Reply
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed

__all__ = ["ReadingCritic", "ReadingSeeker"]

PARTS = ("chairs.py", "constants.py", "hearing.py", "reader.npz", "reading.py", "state.py", "wordpiece.py")
"""What decides besides what `builtin` is made of."""


@cache
def _digest(folder: Path = Path(__file__).parent) -> str:
    """16 hex digits over our parts and those of the builtin pair, as `esc_env.builtin.digest` has it."""
    made = blake2b(digest().encode(), digest_size=8)
    for name in PARTS:
        part = folder / name
        made.update(source_essence(part.read_text("utf-8")) if part.suffix == ".py" else part.read_bytes())
    return made.hexdigest()


class ReadingSeeker:
    """The builtin seeker, hearing what is meant: a function of (scenario, dialogue, episode seed).

    Some 20 to 60 ms a turn, where `builtin` takes less than one.
    """

    deterministic = True

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, and a digest of the code and data that decide what it says."""
        return {"name": "builtin:reader", "digest": _digest()}

    async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The situation on an empty dialogue, else a reaction to the supporter's last turn."""
        if not dialogue.messages:
            return Reply(scenario.situation)
        state = follow(scenario, dialogue, seed.episode)
        said = frozenset(message.content for message in dialogue if message.role == "seeker")
        return Reply(_speak(scenario, state, seed.episode, said))

    def reveal(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> dict[str, Any]:
        """The hidden state, for people who ask to see it; as the builtin seeker's."""
        state = follow(scenario, dialogue, seed.episode)
        return {
            "distress": round(state.distress(scenario), 2),
            "trust": round(state.trust, 2),
            "comfort": round(state.comfort, 2),
            "plan": round(state.plan, 2),
            "harm": round(state.harm, 2),
            "stage": state.stage,
            "facts_told": f"{len(state.told)} of {len(scenario.facts)}",
            "reaction": state.reaction,
        }


class ReadingCritic:
    """The builtin critic over the reading seeker's state; what the seeker *says* of feeling better moves nothing."""

    deterministic = True

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, and a digest of the code and data that decide how it votes."""
        return {"name": "builtin:reader", "digest": _digest()}

    async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Seed) -> Ballot:
        """`votes` votes on the relief so far, and their expectation."""
        relief = follow(scenario, dialogue, seed.episode).relief
        chances = distribution(relief)
        expected = fsum(VOTES[option] * chance for option, chance in chances.items())
        return Ballot(tuple(_vote(relief, seed, rater) for rater in range(votes)), expected)

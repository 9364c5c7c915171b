"""Seeds: every random draw in a conversation has a name (episode, role, turn, …), and is a hash of that name.

`episode_seed` depends on (run seed, scenario id, trial), never on order, limit, concurrency or agent. A `Seed` then
names one call inside the episode; `Seed.value` is what a provider's `seed` field takes. Draws hash the name with
BLAKE2b, so they are the same on every platform and Python version.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

__all__ = ["Seed", "derive", "episode_seed"]


def derive(*parts: int | str) -> int:
    """A 63-bit integer that is a pure function of `parts`."""
    name = "\x1f".join(f"{type(part).__name__[0]}{part}" for part in parts)
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def episode_seed(run_seed: int, scenario_id: str, trial: int) -> int:
    """The seed of one episode: the same for every agent, whatever else runs beside it."""
    return derive(run_seed, scenario_id, trial)


@dataclass(frozen=True, slots=True)
class Seed:
    """The name of one call: which episode, which chair, which turn, which sibling, which attempt.

    Attributes:
        episode: the episode seed, 0 ≤ episode < 2**63.
        role: `supporter`, `seeker` or `critic`; empty for the episode itself.
        turn: supporter turns so far, the current one included; 0 for the opening.
        candidate, rollout: position among sibling responses and simulated futures.
        sample: position among the votes or choices of one call.
        attempt: 0, then one more for every time the call is asked again.
    """

    episode: int
    role: str = ""
    turn: int = 0
    candidate: int = 0
    rollout: int = 0
    sample: int = 0
    attempt: int = 0

    def at(self, **changes: int | str) -> Seed:
        """This seed with some parts of its name changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def value(self) -> int:
        """The 63-bit integer of this name."""
        return derive(self.episode, self.role, self.turn, self.candidate, self.rollout, self.sample, self.attempt)

    def uniform(self, *label: int | str) -> float:
        """A draw from [0, 1) named by this seed and `label`."""
        return derive(self.value, *label) / 2.0**63

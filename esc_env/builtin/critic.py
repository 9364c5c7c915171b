"""The embedded critic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esc_env.dialogue import Dialogue
from esc_env.protocols import Ballot
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed

__all__ = ["BuiltinCritic"]


class BuiltinCritic:
    """A critic that needs no model."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name and asset hash."""
        return {"name": "builtin"}

    async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Seed) -> Ballot:
        """Placeholder."""
        return Ballot(tuple(0.5 if seed.at(sample=i).uniform() < 0.5 else -0.5 for i in range(votes)))

"""The embedded seeker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esc_env.dialogue import Dialogue
from esc_env.protocols import Reply
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed

__all__ = ["BuiltinSeeker"]


class BuiltinSeeker:
    """A seeker that needs no model."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name and asset hash."""
        return {"name": "builtin"}

    async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The next fact."""
        if not dialogue.messages:
            return Reply(scenario.situation)
        facts = scenario.facts or ("I don't know.",)
        return Reply(facts[dialogue.turns % len(facts)])

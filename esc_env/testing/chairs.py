"""Supporters, seekers and critics that follow a script, and a wrapper that makes any of them fail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from esc_env.dialogue import Dialogue
from esc_env.errors import SpecError
from esc_env.protocols import VOTES, Ballot, Reply
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed

__all__ = ["Faulty", "ScriptedAgent", "ScriptedCritic", "ScriptedSeeker"]


class ScriptedAgent:
    """A supporter that says `lines[t - 1]` in turn t, starting over at the end; think blocks are parsed."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = _some(lines, "lines")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its script."""
        return {"name": "scripted", "lines": list(self.lines)}

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The next line."""
        return Reply.parse(self.lines[dialogue.turns % len(self.lines)])


class ScriptedSeeker:
    """A seeker that opens with `opening` (else the situation) and answers turn t with `lines[t - 1]`, starting over."""

    def __init__(self, lines: Sequence[str], *, opening: str | None = None) -> None:
        self.lines = _some(lines, "lines")
        self.opening = opening

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its script."""
        return {"name": "scripted", "lines": list(self.lines), "opening": self.opening}

    async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The next line, or the opening."""
        if dialogue.turns == 0:
            return Reply(scenario.situation if self.opening is None else self.opening)
        return Reply(self.lines[(dialogue.turns - 1) % len(self.lines)])


class ScriptedCritic:
    """A critic whose votes after turn t are all `votes[t - 1]`; the last one holds from then on.

    Args:
        votes: options (`worse`, `same`, `better`, `solved`) or floats in [-1, 1], mixed as you like.
    """

    def __init__(self, votes: Sequence[str | float]) -> None:
        self.script = tuple(VOTES[vote] if isinstance(vote, str) else float(vote) for vote in _some(votes, "votes"))

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its script."""
        return {"name": "scripted", "votes": list(self.script)}

    async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Seed) -> Ballot:
        """`votes` equal votes."""
        value = self.script[max(0, min(dialogue.turns, len(self.script)) - 1)]
        return Ballot((value,) * votes, expected=value)


class Faulty:
    """An agent, seeker or critic that does what the wrapped one does, except when it fails.

    Args:
        chair: the one to wrap.
        failures: exceptions to raise, by number of the call, counted from 1.
        latency: seconds to wait before every answer.
        deterministic: what it tells the environment about itself.

    Attributes:
        calls: how many calls it has received.
    """

    def __init__(
        self,
        chair: Any,
        failures: Mapping[int, BaseException] | None = None,
        *,
        latency: float = 0.0,
        deterministic: bool = True,
    ) -> None:
        self.chair = chair
        self.failures = dict(failures or {})
        self.latency = latency
        self.deterministic = deterministic
        self.calls = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """The wrapped chair's."""
        identity: Mapping[str, Any] = self.chair.identity
        return identity

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Any:
        """What the wrapped agent says."""
        return await self._call("respond", dialogue, seed=seed)

    async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Any:
        """What the wrapped seeker says."""
        return await self._call("reply", scenario, dialogue, seed=seed)

    async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Seed) -> Any:
        """How the wrapped critic votes."""
        return await self._call("judge", scenario, dialogue, votes=votes, seed=seed)

    async def _call(self, method: str, *shown: Any, **named: Any) -> Any:
        self.calls += 1
        number = self.calls
        if self.latency:
            await asyncio.sleep(self.latency)
        if number in self.failures:
            raise self.failures[number]
        return await getattr(self.chair, method)(*shown, **named)


def _some(items: Sequence[Any], name: str) -> tuple[Any, ...]:
    if isinstance(items, str) or not items:
        raise SpecError(f"{name} must be a sequence of at least one item, not {items!r}")
    return tuple(items)

"""Seekers: from a string, an object or a callable to something that plays the person with the problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from esc_env._loop import call
from esc_env.dialogue import Dialogue
from esc_env.errors import SpecError, did_you_mean
from esc_env.protocols import Reply, Seeker
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed
from esc_env.specs import import_object, name_of, parse_spec

__all__ = ["CallableSeeker", "resolve_seeker"]


@dataclass(frozen=True)
class CallableSeeker:
    """Somebody's `function(scenario, dialogue) -> str` (sync or async) as a Seeker."""

    function: Callable[..., Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The function's name."""
        return {"name": name_of(self.function)}

    async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """Call it. Raises TypeError when it returns neither a str nor a Reply."""
        said = await call(self.function, scenario, dialogue)
        if isinstance(said, Reply):
            return said
        if not isinstance(said, str):
            raise TypeError(f"a seeker must return a str or a Reply, not {type(said).__name__}")
        return Reply.parse(said)


def resolve_seeker(seeker: str | Seeker | Callable[..., Any]) -> Seeker:
    """The seeker that a string, an object or a callable stands for.

    Raises:
        SpecError: an unknown string, or an object that is neither a Seeker nor callable.
    """
    if isinstance(seeker, str):
        spec = parse_spec(seeker)
        if spec.kind == "builtin":
            if spec.name not in ("", "seeker"):
                raise SpecError(f"no builtin seeker {spec.name!r}. {did_you_mean(spec.name, ['builtin'])}")
            from esc_env.builtin.seeker import BuiltinSeeker

            return BuiltinSeeker()
        if spec.kind == "python":
            return resolve_seeker(import_object(spec.name))
        raise SpecError(
            f"seeker {seeker!r}: this release has no model seekers yet; use 'builtin' or python:MODULE:NAME"
        )
    if isinstance(seeker, Seeker) and not isinstance(seeker, type):
        return seeker
    if callable(seeker):
        return CallableSeeker(seeker)
    raise SpecError(f"a seeker must be a string, a Seeker or a callable, not {type(seeker).__name__}")

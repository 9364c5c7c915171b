"""Critics: from a string, an object or a callable to something that votes on the seeker's relief."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from esc_env._loop import call
from esc_env.dialogue import Dialogue
from esc_env.errors import BadCompletion, SpecError, did_you_mean
from esc_env.protocols import VOTES, Ballot, Critic
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed
from esc_env.specs import import_object, name_of, parse_spec

__all__ = ["CallableCritic", "resolve_critic"]


@dataclass(frozen=True)
class CallableCritic:
    """Somebody's `function(scenario, dialogue)` (sync or async) as a Critic.

    It returns one of the four options (`worse`, `same`, `better`, `solved`) or a float in [−1, 1]; either is one vote.
    """

    function: Callable[..., Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The function's name."""
        return {"name": name_of(self.function)}

    async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Seed) -> Ballot:
        """Call it once. Raises BadCompletion on anything but an option or a float in [−1, 1]."""
        said = await call(self.function, scenario, dialogue)
        if isinstance(said, Ballot):
            return said
        if isinstance(said, str) and said in VOTES:
            return Ballot((VOTES[said],))
        if isinstance(said, (int, float)) and not isinstance(said, bool) and -1 <= said <= 1:
            return Ballot((float(said),))
        raise BadCompletion(
            f"{name_of(self.function)} returned {said!r}; a critic returns {', '.join(VOTES)} or a float in [-1, 1]"
        )


def resolve_critic(critic: str | Critic | Callable[..., Any]) -> Critic:
    """The critic that a string, an object or a callable stands for.

    Raises:
        SpecError: an unknown string, or an object that is neither a Critic nor callable.
    """
    if isinstance(critic, str):
        spec = parse_spec(critic)
        if spec.kind == "builtin":
            if spec.name not in ("", "critic"):
                raise SpecError(f"no builtin critic {spec.name!r}. {did_you_mean(spec.name, ['builtin'])}")
            from esc_env.builtin.critic import BuiltinCritic

            return BuiltinCritic()
        if spec.kind == "python":
            return resolve_critic(import_object(spec.name))
        raise SpecError(
            f"critic {critic!r}: this release has no model critics yet; use 'builtin' or python:MODULE:NAME"
        )
    if isinstance(critic, Critic) and not isinstance(critic, type):
        return critic
    if callable(critic):
        return CallableCritic(critic)
    raise SpecError(f"a critic must be a string, a Critic or a callable, not {type(critic).__name__}")

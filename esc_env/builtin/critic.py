"""The builtin critic: reads the change of the hidden state, and votes as a panel of people would, not as one."""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum, sqrt
from statistics import NormalDist
from typing import Any

from esc_env.builtin.constants import CRITIC
from esc_env.builtin.digest import digest
from esc_env.builtin.state import follow
from esc_env.dialogue import Dialogue
from esc_env.protocols import VOTES, Ballot
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed, derive

__all__ = ["BuiltinCritic", "distribution"]

CUTS: Mapping[str, float] = {"worse": CRITIC.worse, "same": CRITIC.same, "better": CRITIC.better}
"""Relief below which a vote is worse, same or better; above the last it is solved."""


def distribution(relief: float) -> dict[str, float]:
    """The probability of each of the four options at this relief; they add up to 1."""
    below = [NormalDist(relief, CRITIC.spread).cdf(cut) for cut in CUTS.values()]
    edges = [0.0, *below, 1.0]
    return {option: edges[i + 1] - edges[i] for i, option in enumerate(VOTES)}


class BuiltinCritic:
    """A critic that needs no model.

    It judges any dialogue by the supporter turns in their context, whoever wrote the seeker's: what the seeker *says*
    about feeling better moves nothing. Raters keep their leniency through a conversation, so that
    asking again gains little.
    """

    deterministic = True

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, and a digest of the code and data that decide how it votes."""
        return {"name": "builtin", "digest": digest()}

    async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Seed) -> Ballot:
        """`votes` votes on the relief so far, and their expectation."""
        relief = follow(scenario, dialogue, seed.episode).relief
        chances = distribution(relief)
        expected = fsum(VOTES[option] * chance for option, chance in chances.items())
        return Ballot(tuple(_vote(relief, seed, rater) for rater in range(votes)), expected)


def _vote(relief: float, seed: Seed, rater: int) -> float:
    lasting = _normal(derive(seed.episode, "rater", rater) / 2**63)
    moment = _normal(seed.at(sample=rater).uniform("moment"))
    seen = relief + CRITIC.spread * (sqrt(CRITIC.rater) * lasting + sqrt(1.0 - CRITIC.rater) * moment)
    for option, cut in CUTS.items():
        if seen < cut:
            return VOTES[option]
    return VOTES["solved"]


def _normal(uniform: float) -> float:
    """The standard normal quantile of a draw from [0, 1)."""
    return NormalDist().inv_cdf(min(1 - 1e-9, max(1e-9, uniform)))

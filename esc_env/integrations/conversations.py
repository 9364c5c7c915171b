"""What the adapters of trainers share: rows of a data set, each a conversation to hold, and an env that holds it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from copy import copy
from typing import Any, Literal

from esc_env.agents.turn import system_prompt
from esc_env.data.datasets import load_scenarios
from esc_env.errors import SpecError
from esc_env.gym.env import ESCEnv
from esc_env.scenarios import ScenarioSet
from esc_env.seeds import episode_seed

__all__ = ["UNHEARD", "options_of", "rows", "shared_env"]

UNHEARD = -1.0
"""What a conversation is worth that ends because the supporter said nothing that could be heard: the worst there is."""


def rows(
    scenarios: str = "builtin:test",
    *,
    trials: int = 1,
    seed: int = 0,
    form: Literal["plain", "think"] = "plain",
    **columns: str,
) -> list[dict[str, Any]]:
    """A row per scenario and trial, in the order of `esc eval` and with its episode seeds and instructions.

    A row has a `prompt` (the supporter's instructions, and the situation with which the seeker opens), a
    `conversation`, which names it, and what verl and SkyRL's metrics look at: `data_source` and `extra_info`. It holds
    nothing that the seeker has not said. As JSON lines or Parquet, rows are files that both frameworks read.

    Args:
        scenarios: a string that `load_scenarios` knows; `builtin:train` for training.
        trials: rows per scenario, each with its own seed.
        seed: of the run; every episode seed is derived from it.
        form: of the supporter's answer: `plain` (the style `standard` of `esc eval`) or `think`.
        columns: the same in every row: `env_class="esc"` for SkyRL, `agent_name="esc"` for verl.
    """
    return [
        {
            "prompt": [
                {"role": "system", "content": system_prompt(form)}, {"role": "user", "content": person.situation},
            ],
            "conversation": {
                "scenarios": scenarios, "scenario": person.id, "episode_seed": episode_seed(seed, person.id, trial),
            },
            "data_source": scenarios,
            "extra_info": {"index": place},
            **columns,
        }
        for trial in range(trials)
        for place, person in enumerate(load_scenarios(scenarios))
    ]  # fmt: skip


def shared_env(settings: Mapping[str, Any]) -> ESCEnv:
    """An env of its own for one conversation, made in no time.

    All that have the same settings in a process share seeker and critic, and with them a budget, rate limits and
    connections.

    Args:
        settings: arguments of `ESCEnv`, as files and command lines can say them.

    Raises:
        SpecError: settings that cannot be used, or are no plain values.
    """
    try:
        named = json.dumps(dict(settings), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise SpecError(f"write the environment's settings as plain values and strings: {error}") from error
    return copy(_made(named))


def options_of(conversation: Mapping[str, Any]) -> dict[str, Any]:
    """What to hand `reset(options=…)` to hold the conversation of a row.

    Raises:
        ScenarioError: there is no such scenario.
        SpecError: the row is none of `rows`.
    """
    try:
        people, name, seed = (conversation[key] for key in ("scenarios", "scenario", "episode_seed"))
    except (KeyError, TypeError) as error:
        raise SpecError(f"{conversation!r} names no conversation; make rows with {__name__}.rows") from error
    return {"scenario": _people(people).by_id(name), "episode_seed": seed}


@functools.cache
def _made(settings: str) -> ESCEnv:
    return ESCEnv(**json.loads(settings))


@functools.cache
def _people(scenarios: str) -> ScenarioSet:
    return load_scenarios(scenarios)

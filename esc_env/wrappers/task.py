"""What the wrappers of one env and those of many ask of its task."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from gymnasium.spaces import Discrete, Space

from esc_env.agents.strategies import Follower
from esc_env.dialogue import STRATEGIES
from esc_env.errors import ActionError, SpecError
from esc_env.gym.env import ESCEnv
from esc_env.gym.episode import Episode, Task, going_on
from esc_env.gym.spaces import Utterance
from esc_env.protocols import Reply
from esc_env.seeds import Seed

__all__ = ["CHOICES", "check_dense", "check_utterances", "chosen", "followed", "ours"]

CHOICES: Discrete[Any] = Discrete(len(STRATEGIES))
"""The actions of `StrategyAction`."""


def ours(env: Any) -> ESCEnv:
    """The esc-env environment inside of wrappers. Raises SpecError where there is none."""
    if not isinstance(env.unwrapped, ESCEnv):
        raise SpecError(f'esc_env.wrappers are for gym.make("ESConv-v0") or "ExTES-v0", not for {env.unwrapped!r}')
    return env.unwrapped


def check_utterances(space: Space[Any]) -> None:
    """Raise SpecError where actions are no utterances."""
    if not isinstance(space, Utterance):
        raise SpecError(f"StrategyAction turns a strategy into words, so the env must take an utterance, not {space}")


def check_dense(task: Task, scale: float) -> None:
    """Raise SpecError where rewards are dense already, or are to be scaled by no number."""
    if task.reward != "terminal":
        raise SpecError(f'the env has reward="{task.reward}", which pays the change already; use reward="terminal"')
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise SpecError(f"scale must be a finite number, not {scale!r}")


def chosen(action: Any) -> str:
    """The strategy that an action means. Raises ActionError where it means none."""
    if not CHOICES.contains(action):
        raise ActionError(f"an action is the number of a strategy, from 0 to {len(STRATEGIES) - 1}, not {action!r}")
    return STRATEGIES[int(action)]


async def followed(follower: Follower, strategy: str, episode: Episode | None) -> Reply:
    """What is said by a strategy. Raises ResetNeeded, and asks nobody, where no conversation goes on."""
    episode = going_on(episode)
    seed = Seed(episode.seed, "supporter", episode.turn + 1)
    reply = await follower.follow(strategy, episode.dialogue, seed=seed)
    return replace(reply, strategy=strategy)

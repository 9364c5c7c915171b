"""esc-env: emotional support conversation as a Gymnasium environment.

>>> import gymnasium as gym, esc_env
>>> env = gym.make("ESConv-v0")

Here are the names that most programs need; the subpackages hold the rest. What is slow to import is imported when it is
first used. docs/words.md explains the terms. In docstrings, "*Source:*" names the paper that a number comes from, and
"Ours" says that this project chose it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium

from esc_env import errors
from esc_env.dialogue import ChatMessage, Dialogue, Message
from esc_env.errors import *  # noqa: F403
from esc_env.protocols import (
    VOTES,
    Agent,
    Ballot,
    ChatModel,
    Completion,
    Critic,
    Reply,
    Request,
    Seeker,
    Usage,
    Verdict,
)
from esc_env.rules import PROTOCOL_VERSION, Fingerprint, Rules, __version__
from esc_env.scenarios import EMOTIONS, PERSONAS, PROBLEMS, Scenario, ScenarioSet
from esc_env.seeds import Seed, episode_seed
from esc_env.trajectory import Failure, StopReason, Trajectory

if TYPE_CHECKING:
    from esc_env.agents import resolve_agent
    from esc_env.chairs.critics import resolve_critic
    from esc_env.chairs.seekers import resolve_seeker
    from esc_env.conversation import Chairs, converse
    from esc_env.data.datasets import load_scenarios
    from esc_env.evaluation import Leaderboard, Report, evaluate, rank, read_run
    from esc_env.gym.env import ESCEnv
    from esc_env.gym.vector import ESCVectorEnv
    from esc_env.models import ModelSettings, open_model
    from esc_env.training.collect import collect

__all__ = [
    "EMOTIONS", "PERSONAS", "PROBLEMS", "PROTOCOL_VERSION", "VOTES", "Agent", "Ballot", "Chairs", "ChatMessage",
    "ChatModel", "Completion", "Critic", "Dialogue", "ESCEnv", "ESCVectorEnv", "Failure", "Fingerprint",
    "Leaderboard", "Message", "ModelSettings", "Reply", "Report", "Request", "Rules", "Scenario", "ScenarioSet", "Seed",
    "Seeker", "StopReason", "Trajectory", "Usage", "Verdict", "__version__", "collect", "converse", "episode_seed",
    "evaluate", "load_scenarios", "open_model", "rank", "read_run", "resolve_agent", "resolve_critic",
    "resolve_seeker",
]  # fmt: skip
__all__ += errors.__all__

_LATER = {
    "esc_env.agents": ("resolve_agent",),
    "esc_env.conversation": ("Chairs", "converse"),
    "esc_env.chairs.critics": ("resolve_critic",),
    "esc_env.data.datasets": ("load_scenarios",),
    "esc_env.gym.env": ("ESCEnv",),
    "esc_env.evaluation": ("Leaderboard", "Report", "evaluate", "rank", "read_run"),
    "esc_env.models": ("ModelSettings", "open_model"),
    "esc_env.chairs.seekers": ("resolve_seeker",),
    "esc_env.training.collect": ("collect",),
    "esc_env.gym.vector": ("ESCVectorEnv",),
}
"""Where the names are that are imported when they are asked for."""

for _name in ("ESConv", "ExTES"):
    gymnasium.register(
        id=f"{_name}-v0",
        entry_point="esc_env.gym.env:ESCEnv",
        vector_entry_point="esc_env.gym.vector:ESCVectorEnv",
        kwargs={"dataset": _name.lower()},
    )


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

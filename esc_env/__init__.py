"""esc-env: emotional support conversation as a Gymnasium environment.

>>> import gymnasium as gym, esc_env
>>> env = gym.make("ESConv-v0")
"""

from __future__ import annotations

import gymnasium

from esc_env.dialogue import ChatMessage, Dialogue, Message
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
from esc_env.rules import PROTOCOL_VERSION, Fingerprint, Rules
from esc_env.scenarios import EMOTIONS, PERSONAS, PROBLEMS, Scenario, ScenarioSet
from esc_env.seeds import Seed, episode_seed
from esc_env.trajectory import Failure, StopReason, Trajectory

__all__ = [
    "EMOTIONS",
    "PERSONAS",
    "PROBLEMS",
    "PROTOCOL_VERSION",
    "VOTES",
    "Agent",
    "Ballot",
    "ChatMessage",
    "ChatModel",
    "Completion",
    "Critic",
    "Dialogue",
    "Failure",
    "Fingerprint",
    "Message",
    "Reply",
    "Request",
    "Rules",
    "Scenario",
    "ScenarioSet",
    "Seed",
    "Seeker",
    "StopReason",
    "Trajectory",
    "Usage",
    "Verdict",
    "episode_seed",
]

__version__ = "0.1.0"

for _name in ("ESConv", "ExTES"):
    gymnasium.register(
        id=f"{_name}-v0",
        entry_point="esc_env.env:ESCEnv",
        vector_entry_point="esc_env.vector:ESCVectorEnv",
        kwargs={"dataset": _name.lower()},
    )

"""What you need to test your own agents, seekers and critics: fakes that need no network, and contract suites.

>>> from esc_env.testing import ScriptedAgent, check_agent
>>> check_agent(ScriptedAgent(["What happened?"]))

The `check_…` functions raise AssertionError with a sentence on what is wrong; the fakes do exactly what they are told.
"""

from __future__ import annotations

from esc_env.testing.chairs import Faulty, ScriptedAgent, ScriptedCritic, ScriptedSeeker
from esc_env.testing.contracts import check_agent, check_chat_model, check_critic, check_seeker
from esc_env.testing.models import FakeChatModel, ModelCall

__all__ = [
    "FakeChatModel",
    "Faulty",
    "ModelCall",
    "ScriptedAgent",
    "ScriptedCritic",
    "ScriptedSeeker",
    "check_agent",
    "check_chat_model",
    "check_critic",
    "check_seeker",
]

"""What you need to test your own agents, seekers and critics: fakes that need no network, and contract suites.

>>> from esc_env.testing import ScriptedAgent, check_agent
>>> check_agent(ScriptedAgent(["What happened?"]))

The `check_…` functions raise AssertionError with a sentence on what is wrong; the fakes do exactly what they are told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esc_env.testing.chairs import Faulty, ScriptedAgent, ScriptedCritic, ScriptedSeeker
from esc_env.testing.contracts import check_agent, check_chat_model, check_critic, check_seeker
from esc_env.testing.models import FakeChatModel

if TYPE_CHECKING:
    from esc_env.testing.fake_server import FakeServer, Fault, ServedRequest

__all__ = [
    "FakeChatModel", "FakeServer", "Fault", "Faulty", "ScriptedAgent", "ScriptedCritic", "ScriptedSeeker",
    "ServedRequest", "check_agent", "check_chat_model", "check_critic", "check_seeker",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The fake server is imported when it is asked for: it needs the extra `llm`."""
    if name in ("FakeServer", "Fault", "ServedRequest"):
        from esc_env.testing import fake_server

        return getattr(fake_server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

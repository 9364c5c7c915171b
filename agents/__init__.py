"""Supporters: anything that answers a seeker.

>>> from esc_env.agents import resolve_agent
>>> agent = resolve_agent("builtin:skilled")  # or PROVIDER/NAME#STYLE, python:MODULE:NAME, an object with `respond`, …

What an agent says depends on dialogue and seed alone. It never sees a scenario, its id or the persona.
"""

if __name__ != "esc_env.agents":
    raise ImportError(f"import this package as esc_env.agents, not as {__name__}")

from esc_env.agents.callables import CallableAgent
from esc_env.agents.chat import ChatAgent
from esc_env.agents.human import HumanAgent
from esc_env.agents.spec import identity_of, resolve_agent

__all__ = ["CallableAgent", "ChatAgent", "HumanAgent", "identity_of", "resolve_agent"]

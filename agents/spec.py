"""The front door: from a string, an object or a callable to an agent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from esc_env.agents.callables import CallableAgent, code_digest
from esc_env.errors import SpecError, did_you_mean
from esc_env.protocols import Agent
from esc_env.specs import import_object, name_of, parse_spec

__all__ = ["builtin_names", "identity_of", "resolve_agent"]


def builtin_names() -> tuple[str, ...]:
    """The strings of all builtin agents, in the order in which `esc eval` runs them."""
    from esc_env.agents.scripted import SCRIPTED

    return tuple(f"builtin:{name}" for name in SCRIPTED)


def resolve_agent(agent: str | Agent | Callable[..., Any]) -> Agent:
    """The agent that a string, an object or a callable stands for.

    Args:
        agent: `builtin:NAME`; `python:MODULE:NAME` (a function, an object, or a class with `respond` that takes no
            arguments); an object with an async `respond(dialogue, *, seed)`, used as it is; or a callable
            `function(messages) -> str | Reply`, sync or async (see `CallableAgent`).

    Raises:
        SpecError: the string names nothing (with the nearest names), or the object is no agent.
    """
    if isinstance(agent, str):
        return _named(agent)
    if inspect.isclass(agent) and hasattr(agent, "respond"):
        raise SpecError(f"{name_of(agent)} is a class; give an object of it: {agent.__name__}(...)")
    if callable(getattr(agent, "respond", None)):
        return cast(Agent, agent)
    if callable(agent):
        return CallableAgent(agent)
    raise SpecError(f"an agent must be a string, an object with respond() or a callable, not {type(agent).__name__}")


def _named(text: str) -> Agent:
    spec = parse_spec(text)
    if spec.kind == "builtin":
        from esc_env.agents.scripted import SCRIPTED

        if spec.name not in SCRIPTED:
            raise SpecError(f"no builtin agent {spec.name!r}. {did_you_mean(f'builtin:{spec.name}', builtin_names())}")
        return SCRIPTED[spec.name]()
    if spec.kind == "python":
        thing: Any = import_object(spec.name)
        if isinstance(thing, str):
            raise SpecError(f"{text}: this is a str, not an agent")
        if inspect.isclass(thing) and hasattr(thing, "respond"):
            thing = thing()
        return resolve_agent(thing)
    raise SpecError(
        f"agent {text!r}: this release has no model agents yet (they come with the `llm` and `local` extras); "
        "use builtin:NAME, or call your model in a function and give python:MODULE:NAME"
    )


def identity_of(agent: Agent) -> Mapping[str, Any]:
    """What tells this agent from another: its own `identity`, or name and code for an object that has none."""
    identity = getattr(agent, "identity", None)
    if identity is None:
        return {"name": name_of(agent), "code": code_digest(agent.respond)}
    return cast(Mapping[str, Any], identity)

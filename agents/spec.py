"""From a string, an object or a callable to an agent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from inspect import getattr_static
from typing import Any, cast

from esc_env.agents.callables import CallableAgent
from esc_env.chairs.seat import Seat
from esc_env.errors import SpecError, did_you_mean
from esc_env.identity import code_digest, name_of
from esc_env.models import ModelSettings, Options, check_parameters
from esc_env.protocols import Agent, ChatModel
from esc_env.specs import Spec

__all__ = ["builtin_names", "identity_of", "resolve_agent"]


def builtin_names() -> tuple[str, ...]:
    """The strings of all builtin agents, in the order in which `esc eval` runs them."""
    from esc_env.agents.scripted import SCRIPTED

    return tuple(f"builtin:{name}" for name in SCRIPTED)


def resolve_agent(
    agent: str | Agent | Callable[..., Any],
    settings: ModelSettings | None = None,
    *,
    temperature: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Agent:
    """The agent that a string, an object or a callable stands for.

    Args:
        agent: `builtin:NAME`; `PROVIDER/NAME[@URL][#STYLE]` or `local:PATH[#STYLE]` (a chat model as `ChatAgent`);
            `python:MODULE:NAME` (a function, an object, a ChatModel, or a class of these that takes no
            arguments); an object with an async `respond(dialogue, *, seed)`, used as it is; a ChatModel; or a callable
            `function(messages) -> str | Reply`, sync or async (see `CallableAgent`).
        settings: how chat models are called.
        temperature: of a chat model.
        options: further fields of every request to a chat model, such as
            `{"max_tokens": 16000, "reasoning_effort": "low"}`.

    Raises:
        SpecError: the string names nothing (with the nearest names), the object is no agent, or the model is known not
            to take this temperature or these options.
        MissingExtra: the packages that the model needs are not installed.
    """
    said = Options.of(options, "agent")

    def builtin(name: str) -> Agent:
        from esc_env.agents.scripted import SCRIPTED

        if name not in SCRIPTED:
            raise SpecError(f"no builtin agent {name!r}. {did_you_mean(f'builtin:{name}', builtin_names())}")
        return SCRIPTED[name]()

    def chatting(model: ChatModel, spec: Spec | None) -> Agent:
        from esc_env.agents.chat import ChatAgent

        if spec:
            check_parameters(model, "agent", temperature=temperature, stop=bool(said.stop))
        return ChatAgent(model, (spec and spec.style) or "standard", temperature, **said.chair)

    def styles() -> Collection[str]:
        from esc_env.agents.chat import STYLES

        return STYLES

    def fits(thing: Any) -> bool:
        return callable(getattr(thing, "respond", None))

    seat: Seat[Agent] = Seat("agent", "respond", builtin, chatting, CallableAgent, fits, styles)
    bare = isinstance(agent, str) and ":" not in agent and "/" not in agent  # names nothing, but what was meant?
    if bare and (near := get_close_matches(f"builtin:{agent}", builtin_names(), n=1, cutoff=0.75)):
        raise SpecError(f"{agent!r} names nothing. Did you mean {near[0]!r}?")
    return seat.take(agent, settings, said)


def identity_of(agent: Agent) -> Mapping[str, Any]:
    """What tells this agent from another: its own `identity`, or name and code for an object that has none.

    Raises:
        SpecError: its `identity` cannot be read.
    """
    try:
        identity = getattr(agent, "identity", None)
        if identity is None and getattr_static(agent, "identity", None) is not None:
            identity = agent.identity  # a property whose own AttributeError was taken for its absence
    except Exception as error:
        raise SpecError(f"{name_of(agent)}: its `identity` raises {type(error).__name__}: {error}") from error
    if identity is None:
        return {"name": name_of(agent), "code": code_digest(agent.respond)}
    return cast(Mapping[str, Any], identity)

"""The front door: from a string, an object or a callable to an agent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, cast

from esc_env.agents.callables import CallableAgent
from esc_env.errors import SpecError, did_you_mean
from esc_env.identity import code_digest, name_of
from esc_env.models import ModelSettings, Options, check_parameters, open_model
from esc_env.protocols import Agent, ChatModel
from esc_env.specs import Spec, import_object, parse_spec

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
        options: what a chat model is asked besides, such as `{"max_tokens": 16000, "reasoning_effort": "low"}`.

    Raises:
        SpecError: the string names nothing (with the nearest names), the object is no agent, or the model is known not
            to take this temperature or these options.
        MissingExtra: the packages that the model needs are not installed.
    """
    said = Options.of(options, "agent")
    if isinstance(agent, str):
        return _named(agent, settings, temperature, said)
    if inspect.isclass(agent):
        raise SpecError(f"{name_of(agent)} is a class; give an object of it: {agent.__name__}(...)")
    if isinstance(agent, ChatModel) and not hasattr(agent, "respond"):
        from esc_env.agents.chat import ChatAgent

        said.refuse_for(name_of(agent), "agent", asked=True)
        return ChatAgent(agent, temperature=temperature, **said.chair)
    said.refuse_for(name_of(agent), "agent")
    if callable(getattr(agent, "respond", None)):
        return cast(Agent, agent)
    if callable(agent):
        return CallableAgent(agent)
    raise SpecError(f"an agent must be a string, an object with respond() or a callable, not {type(agent).__name__}")


def _named(text: str, settings: ModelSettings | None, temperature: float, said: Options) -> Agent:
    try:
        spec = parse_spec(text)
    except SpecError as error:
        near = get_close_matches(f"builtin:{text}", builtin_names(), n=1, cutoff=0.75)
        raise (SpecError(f"{error} Did you mean {near[0]!r}?") if near else error) from None
    if spec.kind == "builtin":
        from esc_env.agents.scripted import SCRIPTED

        if spec.name not in SCRIPTED:
            raise SpecError(f"no builtin agent {spec.name!r}. {did_you_mean(f'builtin:{spec.name}', builtin_names())}")
        said.refuse_for(text, "agent")
        return SCRIPTED[spec.name]()
    if spec.kind == "python":
        thing: Any = import_object(spec.name)
        if isinstance(thing, str):
            raise SpecError(f"{text}: this is a str, not an agent")
        if inspect.isclass(thing):
            try:
                inspect.signature(thing).bind()
            except (TypeError, ValueError) as error:
                raise SpecError(f"{text}: this class needs arguments ({error}); name an object of it") from error
            thing = thing()
        if not isinstance(thing, ChatModel) or hasattr(thing, "respond"):
            if spec.style is not None:
                raise SpecError(f"{text}: #{spec.style} is a style of chat models, and this is none")
            return resolve_agent(cast("Callable[..., Any]", thing), settings, options=said.plain)
    return _chat(spec, settings, temperature, said)


def _chat(spec: Spec, settings: ModelSettings | None, temperature: float, said: Options) -> Agent:
    from esc_env.agents.chat import STYLES, ChatAgent

    style = spec.style or "standard"
    if style not in STYLES:  # told before a model is opened
        raise SpecError(f"no prompting style {style!r}. {did_you_mean(style, STYLES)}")
    model = open_model(spec, settings, said)
    check_parameters(model, "agent", temperature=temperature, stop=bool(said.stop))
    return ChatAgent(model, style, temperature, **said.chair)


def identity_of(agent: Agent) -> Mapping[str, Any]:
    """What tells this agent from another: its own `identity`, or name and code for an object that has none."""
    identity = getattr(agent, "identity", None)
    if identity is None:
        return {"name": name_of(agent), "code": code_digest(agent.respond)}
    return cast(Mapping[str, Any], identity)

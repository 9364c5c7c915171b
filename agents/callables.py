"""Your own function as an agent."""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from types import CodeType
from typing import Any

from esc_env._loop import call
from esc_env.dialogue import Dialogue
from esc_env.protocols import Reply
from esc_env.seeds import Seed
from esc_env.specs import name_of

__all__ = ["CallableAgent", "code_digest"]


@dataclass(frozen=True)
class CallableAgent:
    """Somebody's `function(messages) -> str`, sync or async, as an Agent.

    `messages` is the observation: a tuple of fresh `{"role": "user" | "assistant", "content": str}` dicts that begins
    and ends with `user`. A `str` is parsed as the environment parses an action (a think block becomes the thought); a
    `Reply` is taken as it is. Sync functions run in a worker thread, several at once.
    """

    function: Callable[..., Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The function's name and a digest of its code, so that a changed function is another agent."""
        return {"name": name_of(self.function), "code": code_digest(self.function)}

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """Call it. Raises TypeError when it returns neither a str nor a Reply."""
        try:
            said = await call(self.function, dialogue.as_chat("supporter"))
        except SystemExit as error:  # or one agent that calls exit() would end everybody's conversations
            raise RuntimeError(f"the function called exit({error.code!r})") from error
        if isinstance(said, Reply):
            return said
        if not isinstance(said, str):
            raise TypeError(f"an agent must return a str or a Reply, not {type(said).__name__}")
        return Reply.parse(said)


def code_digest(function: Callable[..., Any]) -> str:
    """8 hex digits over a callable's own bytecode, constants, defaults and closed-over numbers and strings.

    What it calls, imports, changes or keeps in attributes is not covered: an agent that depends on such things needs an
    object with an `identity` of its own.
    """
    return blake2b(repr(_essence(function)).encode(), digest_size=4).hexdigest()


def _essence(thing: Any) -> Any:
    """Nested tuples of plain values: equal for equal code, free of memory addresses."""
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        return thing
    if isinstance(thing, (tuple, list)):
        return tuple(_essence(item) for item in thing)
    if isinstance(thing, (dict, set, frozenset)):
        items = thing.items() if isinstance(thing, dict) else thing
        return tuple(sorted(repr(_essence(item)) for item in items))
    if isinstance(thing, CodeType):
        return thing.co_code, thing.co_names, thing.co_varnames, _essence(thing.co_consts)
    if isinstance(thing, functools.partial):
        return _essence(thing.func), _essence(thing.args), _essence(thing.keywords)
    function = getattr(thing, "__func__", thing)
    if hasattr(function, "__code__"):
        changed = {step.argval for step in dis.get_instructions(function.__code__) if step.opname == "STORE_DEREF"}
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        kept = tuple(_content(cell) for name, cell in cells.items() if name not in changed)
        return _essence(function.__code__), _essence(function.__defaults__), kept
    method = vars(type(thing)).get("__call__")
    return name_of(thing), _essence(method) if method else None


def _content(cell: Any) -> Any:
    """What a closure holds, if it is a plain value or names a function; the type of anything that may change."""
    try:
        value = cell.cell_contents
    except ValueError:  # a variable that is not set yet
        return None
    plain = value is None or isinstance(value, (bool, int, float, str, bytes))
    return value if plain else name_of(value)

"""Your own function as an agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from esc_env.background import call
from esc_env.dialogue import Dialogue
from esc_env.identity import code_digest, name_of
from esc_env.protocols import Reply
from esc_env.seeds import Seed

__all__ = ["CallableAgent"]


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
        return Reply.parse(said, "an agent")

"""A person as the supporter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from esc_env.background import call
from esc_env.dialogue import Dialogue
from esc_env.escaping import safe
from esc_env.protocols import Reply
from esc_env.seeds import Seed

__all__ = ["HumanAgent"]


class HumanAgent:
    """Asks a person for every reply.

    Args:
        ask: what is handed the chat so far (a tuple of role/content dicts that ends with the seeker's words) and
            returns the person's answer. By default the seeker's last words are printed and a line is read from the
            terminal. It runs in a worker thread; evaluate with `concurrency=1`, so that one person is asked at a time.
        name: who it is, for reports.
    """

    def __init__(self, ask: Callable[..., str] | None = None, *, name: str = "human") -> None:
        self.ask = ask or _ask_in_terminal
        self.name = name

    @property
    def identity(self) -> Mapping[str, Any]:
        """The person's name."""
        return {"name": self.name}

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """What the person answers, word for word (no think block is parsed)."""
        return Reply(await call(self.ask, dialogue.as_chat("supporter")))


def _ask_in_terminal(messages: tuple[dict[str, str], ...]) -> str:
    print(f"\nSeeker: {safe(messages[-1]['content'])}")
    return input("You: ")

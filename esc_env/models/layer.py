"""What every layer around a chat model has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esc_env.protocols import ChatModel

__all__ = ["Layer"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A chat model around another, which it is for everybody; `complete` is each layer's own.

    Args:
        model: whom to ask.
    """

    model: ChatModel

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the model."""
        return self.model.identity

    @property
    def deterministic(self) -> bool:
        """Whether the model says that it answers the same request with the same text."""
        return bool(getattr(self.model, "deterministic", False))

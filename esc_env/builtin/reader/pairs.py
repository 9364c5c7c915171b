"""Good and bad replies to what a seeker has said, pairs.jsonl, and which of them no reader is trained on."""

from __future__ import annotations

from pathlib import Path

from esc_env.seeds import derive

__all__ = ["PAIRS", "held_out"]

PAIRS = Path(__file__).parents[1] / "pairs.jsonl"


def held_out(situation: str) -> bool:
    """Whether a situation is kept from training: one in eight, by its name."""
    return derive(0, "held out", situation) % 8 == 0

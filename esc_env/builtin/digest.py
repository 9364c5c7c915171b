"""What tells the builtin pair of this release from any other: a digest of all that decides what they say and vote."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from pathlib import Path

from esc_env.identity import source_essence

__all__ = ["PARTS", "digest"]

PARTS = (
    "constants.py", "critic.py", "hearing.py", "language.py", "moves.npz", "moves.py", "seeker.py", "state.py",
    "voices.json", "voices.py",
)  # fmt: skip
"""Code and data in this folder; the scenarios are told apart by themselves, the rest by `PROTOCOL_VERSION`."""


@cache
def digest(folder: Path = Path(__file__).parent) -> str:
    """16 hex digits over the parts; comments, docstrings, formatting and the version of Python do not count."""
    made = blake2b(digest_size=8)
    for name in PARTS:
        part = folder / name
        made.update(source_essence(part.read_text("utf-8")) if part.suffix == ".py" else part.read_bytes())
    return made.hexdigest()

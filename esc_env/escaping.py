"""Text of models and files where people read it: it stays text, does nothing and tells no key."""

from __future__ import annotations

import re

from esc_env.secrets import struck

__all__ = ["one_line", "safe"]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def safe(text: str) -> str:
    """Text without keys, and without control characters: each becomes `\N{REPLACEMENT CHARACTER}`. Newlines and tabs
    stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", struck(text).replace("\r\n", "\n"))


def one_line(text: str, most: int | None = None) -> str:
    """The same on one line: any white space becomes one space. What is longer than `most` characters ends in `…`."""
    line = " ".join(safe(text).split())
    return line if most is None or len(line) <= most else f"{line[: most - 1].rstrip()}…"

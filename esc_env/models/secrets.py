"""Keys stay in the environment: the values that must never be written, and text without them."""

from __future__ import annotations

import os
import re

__all__ = ["known_secrets", "redacted"]

_NAMES = ("_API_KEY", "_TOKEN", "_SECRET", "_ACCESS_KEY")
_HEADER = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)
_KEYLIKE = re.compile(r"\b(?:sk|gsk|xai|hf|key|pk)[-_][\w\-*.]{8,}|(?<=Bearer )\S+|\bAIza[\w\-]{20,}", re.ASCII)


def known_secrets() -> tuple[str, ...]:
    """The values of the environment's keys, and of the custom headers that hold one; the longest first."""
    found = {value.strip() for name, value in os.environ.items() if name.endswith(_NAMES)}
    for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines():
        name, _, value = line.partition(":")
        if _HEADER.search(name):
            found.add(value.strip())
    return tuple(sorted((value for value in found if len(value) >= 8), key=len, reverse=True))


def redacted(text: str, key: str | None = None) -> str:
    """The text without `key`, the environment's keys, and anything that looks like one."""
    for secret in ((key or "").strip(), *known_secrets()):
        if secret:
            text = text.replace(secret, "[key]")
    return _KEYLIKE.sub("[key]", text)

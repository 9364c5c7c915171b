"""Keys stay in the environment: where one is read, and text without any.

Every key is read by `credential`. What models say goes through `struck` as it comes in (`models/opening.py`), what
anybody says before the others hear it (`conversation.py`), and again whatever is written (`records.py`,
`models/cassette.py`) or shown (`escaping.py`, `cli.py`).
"""

from __future__ import annotations

import json
import os
import re
from functools import cache, lru_cache
from html import escape
from typing import Any, TypeVar

__all__ = ["MARK", "credential", "known_secrets", "redacted", "struck"]

T = TypeVar("T")

SHORTEST = 8
"""Characters of a value that is struck out: shorter ones ("none", "EMPTY") are words that anybody may say."""

SHORTEST_SHAPE = 16
"""Characters of the shortest key that is known by its shape."""

_NAMED = re.compile(
    r"""(?: API_?KEY | PASSWORD | (?:^|_)(?: KEY | TOKEN | SECRET | PASSWD | PASSPHRASE | PASS | JWT | PAT | BEARER
      | AUTH | CREDENTIALS? | COOKIE))(?:_?\d{1,3})?$ | _PWD$ | _KEY_ID$""",
    re.IGNORECASE | re.VERBOSE,
)
"""How variables that hold a credential are named, LiteLLM's `WATSONX_APIKEY` and `SNOWFLAKE_JWT` among them."""
_HEADER = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)
_SHAPES = re.compile(
    r"""\b(?:
        (?:sk|csk|rk|pk)[-_][\w-]{16,} | (?:gsk|hf|fw|r8|npm|tgp_v1)_[\w-]{20,} | (?:xai|pplx|nvapi|glpat)-[\w-]{16,}
      | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,} | xox[abeoprs]-[\w-]{11,} | pypi-[\w-]{40,} | dapi[0-9a-f]{32}
      | AIza[\w-]{30,} | ya29\.[\w-]{20,} | GOCSPX-[\w-]{20,} | (?:AKIA|ASIA)[A-Z0-9]{16}\b
    ) | (?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]* | (?<=Bearer\ )[\w.~+/=-]{16,}
      | -----BEGIN\ [A-Z ]{0,30}PRIVATE\ KEY-----[\w+/=\s]*(?:-----END\ [A-Z ]{0,30}-----)?""",
    re.ASCII | re.VERBOSE,
)
"""Keys by their shape. *Source:* the providers' own pages, and the patterns of GitHub's secret scanning. What has no
digit or no letter is a word, and stays."""
_KEYLIKE = re.compile(r"\b(?:sk|gsk|xai|hf|key|pk)[-_][\w\-*.]{8,}|(?<=Bearer )\S+|\bAIza[\w\-]{20,}", re.ASCII)
MARK = "[key]"
"""What stands where a key was."""

_read: set[str] = set()


def credential(name: str) -> str:
    """The key in a variable of the environment, or "". Whatever the variable is called, its value is a secret then."""
    _read.add(name)
    return os.environ.get(name, "").strip()


def known_secrets() -> tuple[str, ...]:
    """The values of the environment's keys, and of the custom headers that hold one; the longest first."""
    return _worth_striking(
        tuple(os.environ.get(name, "") for name in {*os.environ, *_read} if name in _read or _names_one(name)),
        os.environ.get("OPENAI_CUSTOM_HEADERS", ""),
    )


@cache
def _names_one(variable: str) -> bool:
    return _NAMED.search(variable) is not None


@lru_cache(maxsize=8)
def _worth_striking(values: tuple[str, ...], custom: str) -> tuple[str, ...]:
    found = {value.strip() for value in values if not os.path.exists(value.strip())}  # a file that holds one is none
    for line in custom.splitlines():
        name, _, value = line.partition(":")
        if _HEADER.search(name):
            found |= {value.strip(), value.strip().removeprefix("Bearer ")}
    return tuple(sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True))


def struck(data: T) -> T:
    """A text, or plain data that holds texts, without the environment's keys and without what has the shape of one.

    Any other text comes back as it was.
    """
    found: T = _struck(data, _forms(known_secrets()))
    return found


@lru_cache(maxsize=8)
def _forms(secrets: tuple[str, ...]) -> tuple[str, ...]:
    """The secrets, and how they stand in JSON and in HTML."""
    return tuple(dict.fromkeys(form for each in secrets for form in (each, json.dumps(each)[1:-1], escape(each))))


def _struck(data: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(data, str):
        for secret in secrets:
            data = data.replace(secret, MARK)
        long = max(map(len, data.split()), default=0) >= SHORTEST_SHAPE  # few texts have such words, which is soon seen
        return _SHAPES.sub(_judged, data) if long else data
    if isinstance(data, dict):
        return {_struck(name, secrets): _struck(value, secrets) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_struck(value, secrets) for value in data]
    return data


def _judged(found: re.Match[str]) -> str:
    text = found[0]
    return MARK if re.search(r"\d", text) and re.search(r"[A-Za-z]", text) else text


def redacted(text: str) -> str:
    """A server's message without keys, and without anything that only looks like one: it may quote a part of one."""
    return _KEYLIKE.sub(MARK, struck(text))

"""Keys stay in the environment and in this process: where one is read, how one is held, and text without any.

Every key of the environment is read by `credential`; one that is handed over (`api_key=`) is a `Key` from then on.
What models say goes through `struck` as it comes in (`models/opening.py`), what
anybody says before the others hear it (`conversation.py`), and again whatever is written (`records.py`,
`models/cassette.py`) or shown (`escaping.py`, `cli.py`).
"""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from html import escape
from multiprocessing.context import get_spawning_popen
from typing import Any, Self, TypeVar

__all__ = ["MARK", "Key", "credential", "known_secrets", "redacted", "struck"]

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
_handed: dict[str, str] = {}
"""The keys that were handed over to this process, each under a number that says nothing about it."""
_numbers: dict[str, str] = {}


class Key(str):
    """A key that was handed over. As a text it is `[key]`, wherever it is shown, written, or turned into JSON.

    The value itself is in `secret`, and stays in this process: it is struck out of all that is written or shown, for as
    long as the process lives. Two are equal where their values are. A copy is the same key. A pickle does not hold the
    value: it is the same key again where it is read by this process or a fork of it, and None anywhere else; only
    what `multiprocessing` hands to a process that it starts takes the value with it, through a pipe.

    Args:
        value: as the provider gave it.
    """

    __slots__ = ("_home", "_number")
    _home: str | None
    _number: str

    def __new__(cls, value: str) -> Self:
        """The key of a value; of a key, another one with the same value."""
        key = super().__new__(cls, MARK)
        if isinstance(value, Key):
            key._number = value._number
        else:
            key._number = _numbers.setdefault(value, os.urandom(16).hex())
            _handed[key._number] = value
        key._home = None
        return key

    @property
    def secret(self) -> str:
        """The value: for whoever sends it, and nobody else."""
        return _handed[self._number]

    def given_to(self, home: str) -> str:
        """To whom this key is given, in words: whoever asks first. What is another's is not sent to them."""
        self._home = self._home or home
        return self._home

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self._number == other._number

    def __ne__(self, other: object) -> bool:
        return not self == other  # a str has one of its own

    def __hash__(self) -> int:
        return hash(self._number)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if get_spawning_popen() is not None:
            return Key, (self.secret,)
        return _again, (self._number,)


def _again(number: str) -> Key | None:
    """The key of a pickle, or None in a process that was not given it."""
    return Key(_handed[number]) if number in _handed else None


def credential(name: str) -> str:
    """The key in a variable of the environment, or "". Whatever the variable is called, its value is a secret then."""
    _read.add(name)
    return os.environ.get(name, "").strip()


def known_secrets() -> tuple[str, ...]:
    """The values of the environment's keys, of the custom headers that hold one, and of the keys that were handed over;
    the longest first."""
    return _worth_striking(
        tuple(os.environ.get(name, "") for name in {*_naming(tuple(os.environ)), *_read}),
        os.environ.get("OPENAI_CUSTOM_HEADERS", ""),
        tuple(_handed.values()),
    )


@lru_cache(maxsize=8)
def _naming(variables: tuple[str, ...]) -> tuple[str, ...]:
    """The variables that are named as those that hold a credential."""
    return tuple(filter(_NAMED.search, variables))


@lru_cache(maxsize=8)
def _worth_striking(values: tuple[str, ...], custom: str, handed: tuple[str, ...]) -> tuple[str, ...]:
    found = {value.strip() for value in values if not os.path.exists(value.strip())}  # a file that holds one is none
    found.update(handed)
    for line in custom.splitlines():
        name, _, value = line.partition(":")
        if _HEADER.search(name):
            found |= {value.strip(), value.strip().removeprefix("Bearer ")}
    return tuple(sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True))


def struck(data: T) -> T:
    """A text, or plain data that holds texts, without the keys that are known and without what has the shape of one.

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
        if len(data) < SHORTEST:
            return data
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

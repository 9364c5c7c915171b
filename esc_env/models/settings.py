"""How chat models are called: nothing here changes what one is asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from esc_env.errors import SpecError, did_you_mean
from esc_env.models.budget import Budget
from esc_env.models.cassette import Mode
from esc_env.secrets import MARK, Key, struck

__all__ = ["ModelOptions", "ModelSettings", "Wire"]

Wire = Literal["auto", "aiohttp", "openai", "litellm"]
"""Which package sends requests. `auto`: aiohttp for `openai/…` and for any `@URL`, LiteLLM for every other provider."""


class ModelOptions(TypedDict, total=False):
    """The fields of `ModelSettings` as keyword arguments of `gym.make` and `evaluate`; any may be left out."""

    concurrency: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    timeout: float
    deadline: float | None
    budget: str | None
    record: str | Path | None
    replay: str | Path | None
    cache: str | Path | None
    wire: Wire
    api_key_env: str | None
    api_key: str | None


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How chat models are called; nothing here changes what a model is asked.

    Attributes:
        concurrency: requests under way at the same time per server, at least 1.
        requests_per_minute: most requests a minute to each server; None for no limit.
        tokens_per_minute: most tokens a minute, prompt and completion together, to each server; None for no limit.
        timeout: seconds to wait for the answer of a server that has not answered yet; a slow one gets longer.
        deadline: seconds for one call with all its retries; None for 600.
        budget: what this process may spend on models, such as "5 USD" or "200k tokens"; None for no limit.
        record: keep every request and completion in this file.
        replay: answer from this file; a request that is not there is refused.
        cache: take answers from this file where it has them, ask for the others and keep them.
        wire: which package sends requests.
        api_key_env: the environment variable that holds the key of servers that a URL names; None for `ESC_API_KEY`.
        api_key: the key itself, in place of the environment's: for the servers that URLs name, or else for one
            provider. It is kept in no file and shown nowhere; read back, it is `[key]`. In a pickle that another
            process reads it is None, and the environment's keys count.

    Raises:
        SpecError: a value that cannot be used.
    """

    concurrency: int = 64
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout: float = 60.0
    deadline: float | None = None
    budget: str | None = None
    record: Path | None = None
    replay: Path | None = None
    cache: Path | None = None
    wire: Wire = "auto"
    api_key_env: str | None = None
    api_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "deadline"):
            value = getattr(self, name)
            if value is None and name not in ("concurrency", "timeout"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise SpecError(f"{name} must be a number above 0, not {value!r}")
        if self.budget is not None:
            Budget.parse(self.budget)
        if self.wire not in get_args(Wire):
            raise SpecError(f"no wire {self.wire!r}. {did_you_mean(str(self.wire), get_args(Wire))}")
        named = self.api_key_env is None or re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(self.api_key_env))
        if not named or struck(self.api_key_env) != self.api_key_env:
            raise SpecError("api_key_env must be the name of an environment variable, such as MY_SERVER_KEY, no key")
        if self.api_key is not None:
            object.__setattr__(self, "api_key", _key(self.api_key))
            if self.api_key_env is not None:
                raise SpecError(
                    "api_key and api_key_env cannot be used together; give the key, or the name of its variable"
                )
        kept = [name for name in ("record", "replay", "cache") if getattr(self, name) is not None]
        if len(kept) > 1:
            raise SpecError(f"{' and '.join(kept)} cannot be used together; give one of record, replay and cache")
        for name in kept:
            object.__setattr__(self, name, Path(getattr(self, name)))

    @classmethod
    def of(cls, options: ModelOptions, given_to: Callable[..., Any] | None = None) -> ModelSettings:
        """The settings that keyword arguments give.

        Args:
            options: what a function got as `**models`.
            given_to: that function, whose other arguments are suggested for a misspelt one.

        Raises:
            SpecError: an argument that is none of them, or a value that cannot be used.
        """
        names = [each.name for each in fields(cls)]
        for name in options:
            if name not in names:
                others = signature(given_to).parameters.keys() - {"self", "models"} if given_to else ()
                raise SpecError(f"there is no argument {name!r}. {did_you_mean(name, [*names, *others])}")
        return cls(**options)  # type: ignore[arg-type]  # str and Path are made one in __post_init__

    @property
    def cassette(self) -> tuple[Path | None, Mode | None]:
        """The file to keep or replay, and which of the two; (None, None) without one."""
        files: dict[Mode, Path | None] = {"record": self.record, "replay": self.replay, "cache": self.cache}
        for mode, path in files.items():
            if path is not None:
                return path, mode
        return None, None


def _key(given: Any) -> Key:
    """A key as it was handed over. What is said of one that is none does not show it."""
    if isinstance(given, Key):
        return given
    if not isinstance(given, str):
        raise SpecError(f"api_key must be the key as a text, not {type(given).__name__}")
    if given.strip() == MARK:
        raise SpecError(
            f"api_key is {MARK}, which stands where a key was: none is ever kept. Give the key itself again"
        )
    if not given.strip():
        raise SpecError("api_key is empty. Leave it out where a server needs no key")
    if not re.fullmatch(r"[!-~]+", given.strip()):
        raise SpecError("api_key holds a space or a character that no key has")
    return Key(given.strip())

"""JSON from elsewhere, read field by field: what is not as it must be is refused by the field's name.

A *check* takes a value and gives it back, or raises SpecError. `read` applies one to a field; checks nest, and so does
the name: `verdicts[2].score: must be a number from -1 to 1, not nan`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from esc_env.errors import SpecError

__all__ = ["MAX_ITEMS", "flag", "integer", "many", "mapping", "named", "number", "optional", "read", "text"]

T = TypeVar("T")

MAX_ITEMS = 100_000
"""Longest list that a record may hold. Ours: far above any conversation."""
_LARGEST = 2**64
_REQUIRED: Any = object()


class _FieldError(SpecError):
    """A field that is not as it must be.

    Args:
        path: its place: `.verdicts`, `[2]`, or one after the other.
        told: what is wrong with it.
    """

    def __init__(self, path: str, told: str) -> None:
        super().__init__(f"{path.removeprefix('.')}: {told}" if path else told)
        self.path = path
        self.told = told


def read(data: Any, name: str, check: Callable[[Any], T], default: T = _REQUIRED) -> T:
    """The field of an object, checked. Raises SpecError where it is missing without a `default`, or not as it must be.

    >>> read({"trials": 3}, "trials", integer(1))
    3
    """
    fields = mapping(data)
    if name not in fields:
        if default is _REQUIRED:
            raise _FieldError(f".{name}", "is missing")
        return default
    return _at(f".{name}", check, fields[name])


def _at(place: str, check: Callable[[Any], T], value: Any) -> T:
    try:
        return check(value)
    except _FieldError as error:
        raise _FieldError(place + error.path, error.told) from error
    except SpecError as error:
        raise _FieldError(place, str(error)) from error


def _refused(what: str, value: Any) -> _FieldError:
    shown = repr(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
    return _FieldError("", f"must be {what}, not {shown if len(shown) <= 60 else shown[:59] + '…'}")


def mapping(value: Any) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, Mapping):
        raise _refused("an object", value)
    return value


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise _refused("a string", value)
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _refused("true or false", value)
    return value


def integer(low: int = -_LARGEST, high: int = _LARGEST) -> Callable[[Any], int]:
    """A whole number from `low` to `high`; by default one that a seed can be."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _refused(f"a whole number from {low:,} to {high:,}", value)
        return value

    return check


def number(low: float, high: float = sys.float_info.max) -> Callable[[Any], float]:
    """A number from `low` to `high`; never NaN."""

    def check(value: Any) -> float:
        try:
            given = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
        except OverflowError:  # a whole number of more than 308 digits
            given = math.nan
        if not low <= given <= high:
            raise _refused(f"a number from {low:g} to {high:g}", value)
        return given

    return check


def optional(check: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """What `check` takes, or null."""
    return lambda value: None if value is None else check(value)


def named(check: Callable[[Any], T]) -> Callable[[Any], dict[str, T]]:
    """An object whose values `check` takes, under any names."""
    return lambda value: {name: read(value, name, check) for name in mapping(value)}


def many(check: Callable[[Any], T], low: int = 0, high: int = MAX_ITEMS) -> Callable[[Any], tuple[T, ...]]:
    """A list of `low` to `high` values that `check` takes."""

    def checked(value: Any) -> tuple[T, ...]:
        if not isinstance(value, (list, tuple)):
            raise _refused("a list", value)
        if not low <= len(value) <= high:
            raise _FieldError("", f"must have {low:,} to {high:,} items, not {len(value):,}")
        return tuple(_at(f"[{place}]", check, item) for place, item in enumerate(value))

    return checked

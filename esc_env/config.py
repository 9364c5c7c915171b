"""Configurations: files that know where their names stand, and typed values for the fields of a dataclass.

A file is YAML or JSON. What stands there, or is typed on a command line as text, is read by the field's type hint:
`int`, `float`, `str`, `bool`, `Path`, `Literal`, a mapping, `X | None`, and lists and tuples of these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from esc_env.errors import ConfigError, did_you_mean

__all__ = ["Given", "Section", "build", "read_file"]

T = TypeVar("T")

MAX_BYTES, MAX_VALUES = 1 << 24, 100_000
"""The longest file, and the most values in one. Ours: far above any configuration; a run's run.json is one too."""


@dataclass(frozen=True, slots=True)
class Given:
    """What somebody wrote for a field.

    Attributes:
        value: of a file, or as text; `()` for a name without a value, which stands for true.
        place: where, and what for: `mine.yaml, line 2: grpo.beta`, or `--grpo.beta`.
    """

    value: Any
    place: str


class Section(dict[Any, Any]):
    """A mapping of a file.

    Attributes:
        places: where each of its names stands: `mine.yaml, line 2`.
    """

    places: Mapping[Any, str]

    def given(self, prefix: str = "") -> dict[str, Given]:
        """Its values with their places; in messages `prefix` stands before each name."""
        return {str(name): Given(value, f"{self.places[name]}: {prefix}{name}") for name, value in self.items()}


def read_file(path: Path) -> Any:
    """What a YAML or JSON file holds, each mapping of it as a `Section`; None if it is empty.

    Raises:
        ConfigError: it cannot be read, is neither, or is larger than any; the message names file and line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES >> 20} MiB, which no configuration has")
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_hook=lambda found: _section(found, dict.fromkeys(found, str(path))))
        except (ValueError, RecursionError) as error:
            if path.suffix == ".json":
                raise ConfigError(f"{path}: not JSON ({error})") from error
    import yaml

    try:
        loader = _yaml_loader()(text)
        loader.name = str(path)  # for messages
        return _bounded(loader.get_single_data(), path)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error


def _bounded(data: Any, path: Path) -> Any:
    """The same. Raises ConfigError where names for parts of it (`*again`) make it more than a computer holds."""
    waiting, seen = [data], 0
    while waiting:
        part = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise ConfigError(f"{path}: more than {MAX_VALUES:,} values, with what its aliases repeat")
        waiting += part.values() if isinstance(part, Mapping) else part if isinstance(part, list) else ()
    return data


def _section(found: Mapping[Any, Any], places: Mapping[Any, str]) -> Section:
    made = Section(found)
    made.places = places
    return made


@cache
def _yaml_loader() -> Any:
    """A safe loader of sections that takes 2e-5 for a number, as YAML 1.2 does, and no name twice."""
    import yaml

    def section(loader: Any, node: Any) -> Section:
        names = set()
        for name in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if name.value in names:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name.value!r} stands here twice", name.start_mark
                )
            names.add(name.value)
        found = loader.construct_mapping(node, deep=True)
        marks = {loader.construct_object(key): key.start_mark for key, _ in node.value}
        return _section(found, {name: f"{mark.name}, line {mark.line + 1}" for name, mark in marks.items()})

    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("tag:yaml.org,2002:map", section)
    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return loader


def build(kind: type[T], given: Mapping[str, Given]) -> T:
    """A dataclass from what was given for its fields; what was not is at its default.

    Raises:
        ConfigError: a name that is no field, or a value of another type; the message says where, what is allowed, and
            the nearest name.
    """
    hints = get_type_hints(kind)
    for name, each in given.items():
        if name not in hints:
            raise ConfigError(f"{each.place} is no field. {did_you_mean(name, hints)}")
    return kind(**{name: _read(hints[name], each) for name, each in given.items()})


_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "t", "y", "1"), True),
    **dict.fromkeys(("false", "no", "off", "f", "n", "0"), False),
}
_NAMES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path",
    Mapping: "names and values",
}  # fmt: skip


def _read(hint: Any, given: Given) -> Any:
    read, allowed, choices = _reader(hint)
    try:
        return read(given.value)
    except (KeyError, TypeError, ValueError) as error:
        if given.value in (None, ()):
            raise ConfigError(f"{given.place} has no value. Write {allowed}, or leave it out") from error
        near = get_close_matches(str(given.value), choices, n=1)
        more = f". Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{given.place} must be {allowed}, not {given.value!r}{more}") from error


def _reader(hint: Any) -> tuple[Callable[[Any], Any], str, Sequence[str]]:
    """(what makes a field's value of one that was given, what that may be in words, the words to choose from, if any).

    The first raises KeyError, TypeError, ValueError or its kind, ConfigError, on a value that is none.
    """
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        named = {str(each): each for each in parts}
        return lambda value: named[_word(value)], f"one of {', '.join(named)}", [*named]
    if origin not in (Union, UnionType, list, tuple):
        return partial(_plain, origin), _NAMES[origin], ()
    read, allowed, choices = _reader(next(part for part in parts if part is not NoneType))
    if origin in (list, tuple):
        return lambda value: origin(map(read, _several(value))), f"a list, each {allowed}", choices
    return lambda value: None if value in (None, "none", "null") else read(value), f"{allowed} or none", choices


def _word(value: Any) -> str:
    """YAML 1.1 takes the words on and off for true and false."""
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def _several(value: Any) -> list[Any]:
    return [] if value in ("none", ["none"]) else value if isinstance(value, list) else [value]


def _plain(kind: Any, value: Any) -> Any:
    if kind is bool:
        return value == () or _WORDS[str(value).lower()]
    if kind in (int, float) and not (isinstance(value, bool) or (kind is int and isinstance(value, float))):
        return kind(value)
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if kind in (str, Mapping) and isinstance(value, kind):
        return value
    raise ConfigError(f"{value!r} is no {kind}")

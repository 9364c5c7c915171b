"""The strings that people type for agents, seekers and critics, parsed once, here.

    builtin:NAME                 a part that needs no model
    python:MODULE:NAME           your own object or callable
    PROVIDER/NAME[@BASE_URL]     a chat model, as LiteLLM names it, optionally at any OpenAI-compatible server
    local:PATH_OR_HUB_ID         a local Transformers model or LoRA adapter folder

After a model, `#STYLE` names how an agent uses it: openai/gpt-4o#cot.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from esc_env.errors import SpecError, did_you_mean
from esc_env.identity import name_of

__all__ = ["Spec", "check_takes", "import_object", "parse_spec"]

_STYLE = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_URL = re.compile(r"https?://[^/?#]")
_KEY_IN_QUERY = re.compile(r"[?&;]([\w.-]*(?:key|token|secret|passw|auth|sig)[\w.-]*)=", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed string.

    Attributes:
        kind: `builtin`, `python`, `model` or `local`.
        name: what stands after the kind; `MODULE:NAME` for python, `PROVIDER/NAME` for a model.
        url: base URL of an OpenAI-compatible server, if given.
        style: how an agent uses the model (`#STYLE`), if given.
    """

    kind: Literal["builtin", "python", "model", "local"]
    name: str
    url: str | None = None
    style: str | None = None


def parse_spec(text: str) -> Spec:
    """Parse a string that names an agent, a seeker or a critic.

    Raises:
        SpecError: when it has none of the four forms.
    """
    kind, colon, rest = text.partition(":")
    if text == "builtin":
        return Spec("builtin", "")
    if colon and rest and kind == "builtin":
        return Spec("builtin", rest)
    plain, mark, style = text.rpartition("#")
    if mark and plain and not _STYLE.fullmatch(style):
        raise SpecError(f"{text!r}: what follows # must be a style such as cot or self-refine")
    plain, chosen = (plain, style) if mark else (text, None)
    rest = plain.partition(":")[2]
    if colon and kind == "local" and rest:
        return Spec("local", rest, None, chosen)
    if colon and kind == "python":
        if not all(rest.rpartition(":")):
            raise SpecError(f"{text!r}: write python:MODULE:NAME, for example python:my_agents:respond")
        return Spec("python", rest, None, chosen)
    model, at, url = plain.partition("@")
    if all(model.partition("/")):
        if at and not _URL.match(url):
            raise SpecError(f"{text!r}: what follows @ must be a URL such as http://127.0.0.1:8000/v1")
        if "@" in url.partition("//")[2].partition("/")[0]:
            raise SpecError(
                f"the URL of {model} holds a user name or password, which would end up in records; take it out and set "
                "the key in the environment"
            )
        if named := _KEY_IN_QUERY.search(url):
            raise SpecError(
                f"the URL of {model} holds a key ({named[1]}=…), which would end up in records; take it out and set "
                "the key in the environment"
            )
        return Spec("model", model, url.rstrip("/") or None, chosen)
    hint = did_you_mean(kind, ["builtin", "python", "local"]) if colon else ""
    raise SpecError(
        f"{text!r} names nothing. Write builtin:NAME, python:MODULE:NAME, PROVIDER/NAME[@URL][#STYLE] "
        f"or local:PATH. {hint}".strip()
    )


def import_object(name: str) -> Any:
    """The object that `MODULE:NAME` names.

    Raises:
        SpecError: when the module cannot be imported or has no such name.
    """
    module_name, _, attribute = name.rpartition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpecError(
            f"python:{name}: cannot import {module_name!r} ({error}). Is its folder on PYTHONPATH?"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise SpecError(
            f"python:{name}: {module_name} has no {attribute!r}. {did_you_mean(attribute, public)}"
        ) from None


def check_takes(function: Callable[..., Any], role: str, arguments: tuple[str, ...]) -> None:
    """See before a run starts that somebody's function can be called as it will be.

    Raises:
        SpecError: it does not take these positional arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins tell nothing of themselves; they are called and judged by that
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise SpecError(f"{name_of(function)}: a {role} is called with ({', '.join(arguments)}): {error}") from None

"""The strings that people type for agents, seekers and critics, parsed once, here.

    builtin:NAME                 a part that needs no model
    python:MODULE:NAME           your own object or callable
    PROVIDER/NAME[@BASE_URL]     a chat model, as LiteLLM names it, optionally at any OpenAI-compatible server
    local:PATH_OR_HUB_ID         a local Transformers model or LoRA adapter folder
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any, Literal

from esc_env.errors import SpecError, did_you_mean

__all__ = ["Spec", "import_object", "name_of", "parse_spec"]


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed string.

    Attributes:
        kind: `builtin`, `python`, `model` or `local`.
        name: what stands after the kind; `MODULE:NAME` for python, `PROVIDER/NAME` for a model.
        url: base URL of an OpenAI-compatible server, if given.
    """

    kind: Literal["builtin", "python", "model", "local"]
    name: str
    url: str | None = None


def parse_spec(text: str) -> Spec:
    """Parse a string that names an agent, a seeker or a critic.

    Raises:
        SpecError: when it has none of the four forms.
    """
    kind, colon, rest = text.partition(":")
    if text == "builtin":
        return Spec("builtin", "")
    if colon and rest and kind in ("builtin", "local"):
        return Spec(kind, rest)  # type: ignore[arg-type]  # just checked
    if colon and kind == "python":
        if ":" not in rest:
            raise SpecError(f"{text!r}: write python:MODULE:NAME, for example python:my_agents:respond")
        return Spec("python", rest)
    model, at, url = text.partition("@")
    if "/" in model and not model.startswith("/") and not model.endswith("/"):
        if at and not url.startswith(("http://", "https://")):
            raise SpecError(f"{text!r}: what follows @ must be a URL such as http://127.0.0.1:8000/v1")
        return Spec("model", model, url or None)
    hint = did_you_mean(kind, ["builtin", "python", "local"]) if colon else ""
    raise SpecError(
        f"{text!r} names nothing. Write builtin:NAME, python:MODULE:NAME, PROVIDER/NAME[@URL] or local:PATH. {hint}".strip()
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
        raise SpecError(f"python:{name}: cannot import {module_name!r} ({error}). Is its folder on PYTHONPATH?") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise SpecError(f"python:{name}: {module_name} has no {attribute!r}. {did_you_mean(attribute, public)}") from None


def name_of(thing: Any) -> str:
    """A stable name for somebody's object or callable: `python:MODULE:QUALNAME`, never a memory address."""
    target = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    return f"python:{target.__module__}:{target.__qualname__}"

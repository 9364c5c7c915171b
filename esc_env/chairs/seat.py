"""From what people give (a string, an object, a function, a chat model) to a supporter, seeker, critic or judge.

One way for all of these chairs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from esc_env.errors import SpecError, did_you_mean
from esc_env.identity import name_of
from esc_env.models import ModelSettings, Options, open_model
from esc_env.protocols import ChatModel
from esc_env.specs import Spec, import_object, parse_spec

__all__ = ["Seat"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seat(Generic[T]):
    """A chair, and what may sit on it.

    Attributes:
        role: whose chair it is.
        method: what an object that sits there has.
        builtin: makes the builtin one of a name. Raises SpecError where there is none.
        model: makes one of a chat model, given the string that named it; None for an object.
        function: makes one of a callable.
        fits: whether an object sits there as it is.
        styles: the ways in which a chat model may be used there (`#STYLE`), named when they are needed.
    """

    role: Literal["agent", "seeker", "critic", "judge"]
    method: str
    builtin: Callable[[str], T]
    model: Callable[[ChatModel, Spec | None], T]
    function: Callable[[Callable[..., Any]], T]
    fits: Callable[[Any], bool]
    styles: Callable[[], Collection[str]] = tuple

    def take(self, given: Any, settings: ModelSettings | None, said: Options) -> T:
        """Who sits there.

        Args:
            given: a string, an object, a callable or a chat model.
            settings: how chat models are called.
            said: further fields of every request to a chat model.

        Raises:
            SpecError: it names nothing, or nothing that can sit there, or takes no such options.
            MissingExtra: the packages that the model needs are not installed.
        """
        if not isinstance(given, str):
            return self._object(given, said)
        spec = parse_spec(given)
        if spec.kind == "builtin":
            made = self.builtin(spec.name)
            said.refuse_for(given, self.role)
            return made
        if spec.kind == "python" and not self._speaks(thing := _instance(given, import_object(spec.name))):
            if isinstance(thing, str):
                raise SpecError(f"{given}: this is a str, no {self.role}")
            if spec.style is not None:
                raise SpecError(f"{given}: #{spec.style} is a style of chat models, and this is none")
            return self._object(thing, said)
        if spec.style is not None and spec.style not in self.styles():
            if not self.styles():
                raise SpecError(f"{given!r}: a style (#{spec.style}) belongs to a supporter; a {self.role} has none")
            raise SpecError(f"no prompting style {spec.style!r}. {did_you_mean(spec.style, self.styles())}")
        return self.model(open_model(spec, settings, said, chair=self.role), spec)

    def _speaks(self, thing: Any) -> bool:
        return isinstance(thing, ChatModel) and not isinstance(thing, type) and not hasattr(thing, self.method)

    def _object(self, thing: Any, said: Options) -> T:
        if isinstance(thing, type):
            raise SpecError(f"{name_of(thing)} is a class; give an object of it: {thing.__name__}(...)")
        if self._speaks(thing):
            said.refuse_for(name_of(thing), self.role, asked=True)
            return self.model(thing, None)
        said.refuse_for(name_of(thing), self.role)
        if self.fits(thing):
            made: T = thing
            return made
        if callable(thing):
            return self.function(thing)
        who, kind = f"{'an' if self.role == 'agent' else 'a'} {self.role}", type(thing).__name__
        raise SpecError(f"{who} must be a string, an object with {self.method}() or a callable, not {kind}")


def _instance(text: str, thing: Any) -> Any:
    """An object of a class that needs no arguments; anything else as it is."""
    if not inspect.isclass(thing):
        return thing
    try:
        inspect.signature(thing).bind()
    except (TypeError, ValueError) as error:
        raise SpecError(f"{text}: this class needs arguments ({error}); name an object of it") from error
    return thing()

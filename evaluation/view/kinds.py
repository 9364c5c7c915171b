"""Folders that other packages make and that have a page too: they say how, when their commands are added to `esc`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from esc_env.fields import read, text
from esc_env.records import read_json

__all__ = ["KINDS", "LATELY", "Pages", "State", "kind_of"]

State = Literal["complete", "being made", "incomplete"]

LATELY = 300.0
"""Seconds since something was written within which a run that is not complete counts as being made. Nothing is asked
of the process that makes it, whose lock a question would be in the way of. Ours: longer than most replies take."""


class Pages(Protocol):
    """What shows folders of one kind. A module can be it. Folders are only read, also while they are being made."""

    def page(self, folder: Path, *, events: str | None = None) -> str:
        """The page of a folder as it is now, whole.

        Args:
            folder: where it is.
            events: the address that tells a page which is served that there is more; None for a page that is kept.

        Raises:
            RecordError: a file in the folder cannot be read; the message names it.
        """
        ...

    def stamp(self, folder: Path) -> str:
        """What changes when the page does, without white space; cheap, since it is asked again and again."""
        ...

    def state(self, folder: Path) -> State:
        """Whether it is complete or being made."""
        ...


KINDS: dict[str, Callable[[], Pages]] = {}
"""What shows folders by their kind, as run.json has it; loaded when the first one is shown."""


def kind_of(folder: Path) -> str:
    """The kind of run that a folder holds; "" where it holds none. Raises RecordError where run.json is damaged."""
    about = folder / "run.json"
    return read_json(about, lambda data: read(data, "kind", text)) if about.is_file() else ""

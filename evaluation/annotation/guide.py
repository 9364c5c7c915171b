"""What annotators are told and asked: a YAML file, or the words that stand here.

title: Which conversation supports better?
instructions: |
  Read both conversations to the end.

  Judge the supporter, not the person.
dimensions:
  empathy: the supporter understands what the person feels, and shows it
  overall: the emotional support as a whole
worst: very poor
best: excellent
warning: This conversation touches self-harm or suicide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esc_env.config import Section, build, read_file
from esc_env.errors import ConfigError, SpecError
from esc_env.evaluation.judges.protocol import DIMENSIONS
from esc_env.seeds import derive

__all__ = ["Guide", "read_guide"]

_MOST, _LONGEST, _INSTRUCTIONS = 12, 500, 20_000
"""The most dimensions, and characters of a text and of the instructions. Ours: what fits a page."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True, slots=True)
class Guide:
    """What annotators read.

    Attributes:
        title: above the instructions.
        instructions: paragraphs, with an empty line between them.
        dimensions: what is judged: names of small letters, digits and `_`, each with what it means.
        worst, best: what 1 and 5 stand for, where conversations are rated.
        warning: stands before a conversation that touches self-harm or suicide.

    Raises:
        SpecError: a text is empty or too long, or a name is none.
    """

    title: str = "How good is the emotional support?"
    instructions: str = (
        "You will read conversations between a person with a problem, the seeker, and a supporter. Judge how well the "
        "supporter supports, as if you were the seeker.\n\n"
        "Read to the end before you judge. Judge each question by itself. There is no right answer: we want to know "
        "what you think. Length alone is no merit.\n\n"
        "You can stop at any time and go on later under the same name, and you can change an answer by going back. If "
        "a text is hard for you, skip it: that is counted as no answer."
    )
    dimensions: Mapping[str, str] = field(default_factory=lambda: dict(DIMENSIONS))
    worst: str = "very poor"
    best: str = "excellent"
    warning: str = (
        "The conversation that follows touches self-harm or suicide. If you would rather not read it, skip it: nobody "
        "will ask why. If it brings up something of your own, stop, and talk to somebody you trust or to a helpline."
    )

    def __post_init__(self) -> None:
        for name in ("title", "worst", "best", "warning"):
            _check(name, getattr(self, name), _LONGEST)
        _check("instructions", self.instructions, _INSTRUCTIONS)
        if not 1 <= len(self.dimensions) <= _MOST:
            raise SpecError(f"dimensions: 1 to {_MOST} can be asked, not {len(self.dimensions)}")
        for dimension, meaning in self.dimensions.items():
            if not isinstance(dimension, str) or not _NAME.fullmatch(dimension):
                raise SpecError(
                    f"dimensions: {dimension!r} is no name; write small letters, digits and _, such as `warmth`"
                )
            _check(f"dimensions: {dimension}", meaning, _LONGEST)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from others; long texts by a digest."""
        told = {name: f"{derive(getattr(self, name)):016x}" for name in ("title", "instructions", "warning")}
        return {**told, "worst": self.worst, "best": self.best, "dimensions": dict(self.dimensions)}


def _check(name: str, text: Any, most: int) -> None:
    if not isinstance(text, str):
        raise SpecError(f"{name}: must be text, not {text!r}. Put it in quotes")
    if not text.strip() or len(text) > most:
        raise SpecError(f"{name}: must have 1 to {most:,} characters, not {len(text.strip()):,}")


def read_guide(path: str | Path) -> Guide:
    """Read a guide; what it does not say is as in `Guide`. Raises ConfigError naming file and place."""
    data = read_file(Path(path))
    if not isinstance(data, Section):
        raise ConfigError(f"{path}: write names and values, such as `title:` (docs/human-evaluation.md)")
    try:
        return build(Guide, data.given())
    except ConfigError:
        raise
    except SpecError as error:
        raise ConfigError(f"{path}: {error}") from error

"""One run on several machines: shard 3 of 16 holds every sixteenth of its conversations, and nothing else differs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from esc_env.errors import SpecError
from esc_env.fields import read, text

__all__ = ["TASK", "Shard"]

T = TypeVar("T")

TASK = "SLURM_ARRAY_TASK_ID"
"""The variable in which Slurm says which task of a job array this is."""
_FIRST = "SLURM_ARRAY_TASK_MIN"


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a run. Written `3/16`.

    Attributes:
        number: which; they count from 1.
        of: how many there are.

    Raises:
        SpecError: there is no such shard.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise SpecError(f"shard {self.number} of {self.of}: there is none; they count from 1 to {self.of}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """`shard 3 of 16`."""
        return f"shard {self.number} of {self.of}"

    def part(self, episodes: Sequence[T]) -> Sequence[T]:
        """Its own of all episodes of a run: each is in one shard, and no shard has two more than another."""
        return episodes[self.number - 1 :: self.of]

    def beside(self, folder: Path) -> Path:
        """Where it is kept: beside the folder of the whole run."""
        named = folder if folder.name not in ("", "..") else folder.resolve()
        return named.with_name(f"{named.name}-shard-{self.number}-of-{self.of}")

    @classmethod
    def kept(cls, identity: Mapping[str, Any]) -> Shard | None:
        """The one that the identity in a run.json tells of; None where it is of a whole run. Raises SpecError."""
        return read(identity, "shard", lambda said: cls.parse(text(said)), None)

    @classmethod
    def parse(cls, said: str) -> Shard:
        """The shard that `3/16` names. Raises SpecError where it names none."""
        if not (numbers := re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", said)):
            raise SpecError(f"shard {said[:40]!r}: write it as 3/16, the third of sixteen")
        return cls(int(numbers[1]), int(numbers[2]))

    @classmethod
    def asked(cls, said: str) -> Shard:
        """What `3/16` names or, of `/16` and `auto/16`, the task of a Slurm array: `--array=1-16`.

        Raises:
            SpecError: it names none, this is no task of an array, or the array does not count from 1.
        """
        number, slash, of = said.partition("/")
        if not slash or number not in ("", "auto"):
            return cls.parse(said)
        array = f"submit the job with --array=1-{of}" if of.isdecimal() else "submit the job as an array"
        if not (task := os.environ.get(TASK)):
            raise SpecError(f"shard {said!r}: {TASK} is not set, so nothing says which; {array}, or write 3/{of}")
        if "0" in (task, os.environ.get(_FIRST)):
            raise SpecError(f"shard {said!r}: this array counts its tasks from 0, shards count from 1; {array}")
        return cls.parse(f"{task}/{of}")

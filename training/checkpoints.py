"""Checkpoints: which one a stage goes on from, and what a full disk says.

A crash or a full disk leaves files that end too early. Whether one does, its own head or end says, so that a checkpoint
of any size is checked at once.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage

from esc_env.errors import MissingExtra, RecordError
from esc_env.escaping import one_line
from esc_env.fields import mapping
from esc_env.training.logs import CHECKPOINTS

try:
    from safetensors import SafetensorError, safe_open
except ModuleNotFoundError as error:
    raise MissingExtra("safetensors", "train") from error

__all__ = ["damage", "resume_from", "room"]

logger = logging.getLogger(__name__)

_STATE = "trainer_state.json"
"""What the trainer writes last."""

_FULL = re.compile(r"No space left|Disk quota|File too large|os error (28|122|27)\b|enforce fail at inline_container")
"""How PyTorch, safetensors and the system say that nothing more can be written."""


def resume_from(folder: Path, *, telling: bool = True) -> str | None:
    """The newest whole checkpoint of a stage; None to begin.

    Args:
        folder: the stage's.
        telling: say which were passed over and why; one of several processes does.
    """
    steps = {
        int(step[1]): place
        for place in (folder / CHECKPOINTS).glob("checkpoint-*")
        if (step := re.fullmatch(r"checkpoint-([0-9]{1,18})", place.name))
    }
    for _, place in sorted(steps.items(), reverse=True):
        if (what := damage(place)) is None:
            return str(place)
        if telling:
            logger.warning("%s is passed over: %s. Resuming from the one before", place, what)
    return None


def damage(checkpoint: Path) -> str | None:
    """What was cut off in a checkpoint, by a crash or a full disk; None if it is whole."""
    if not (checkpoint / _STATE).is_file():
        return f"it has no {_STATE}, which is written last"
    for path in sorted(checkpoint.rglob("*")):
        try:
            if path.suffix == ".json":
                read = json.loads(path.read_bytes())
                if path.name == _STATE:
                    mapping(read)
                if path.name.endswith(".index.json"):
                    for shard in sorted(set(mapping(mapping(read)["weight_map"]).values())):
                        if not (path.parent / shard).is_file():
                            return f"{shard}, which {path.name} names, is missing"
            elif path.suffix == ".safetensors":
                with safe_open(str(path), framework="pt"):  # compares its head with its length
                    pass
            elif path.suffix in (".pt", ".pth", ".bin"):
                zipfile.ZipFile(path).close()  # its directory is at its end
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError, zipfile.BadZipFile) as error:
            return f"{path.relative_to(checkpoint)} is cut off or damaged ({error})"
    return None


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Have a disk that is full told in one line.

    Raises:
        RecordError: nothing more can be written into the folder.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _FULL.search(str(error)):
            raise
        free = disk_usage(folder).free / 1e9
        raise RecordError(
            f"{folder}: nothing more can be written ({one_line(str(error))}); {free:.1f} GB are free. Make room "
            "(save_limit is how many checkpoints are kept), and type the same command: it goes on from the last whole "
            "checkpoint"
        ) from error

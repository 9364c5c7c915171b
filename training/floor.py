"""What a reply that does not end is worth: less than every sibling that did, whatever scale the reward is on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import pstdev
from typing import Any

from esc_env.errors import MissingExtra

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "torch").partition(".")[0], "train") from error

__all__ = ["LEAST_GAP", "floored"]

LEAST_GAP = 0.1
"""How far at least a reply that does not end is rewarded below its siblings. Ours."""


def floored(rewards: Sequence[float | None], ended: Sequence[bool], group_size: int) -> list[float | None]:
    """Rewards in which whatever did not end lies below all siblings that did.

    It lies below the group's lowest by their standard deviation, at least by `LEAST_GAP`: far enough to count where
    advantages are not scaled, and not so far that it drowns, in the group's standard deviation, how those that ended
    differ. Where none ended all get the same, so that the group teaches nothing. Called by every process together, each
    with equally many rows: groups may lie across them.

    Args:
        rewards: one per completion; None, for a part that failed, stays.
        ended: whether each ended by itself.
        group_size: completions per prompt, which follow each other.
    """
    rows = list(zip(rewards, ended, strict=True))
    every, first = _of_all(rows)
    found: list[float | None] = []
    for start in range(0, len(every), group_size):
        group = every[start : start + group_size]
        known = [(reward, done) for reward, done in group if reward is not None]
        ends = [reward for reward, done in known if done] or [reward for reward, _ in known]
        floor = min(ends) - max(LEAST_GAP, pstdev(ends)) if ends else None
        found += [reward if reward is None or done else floor for reward, done in group]
    return found[first : first + len(rows)]


def _of_all(rows: list[Any]) -> tuple[list[Any], int]:
    """The rows of all processes that train together, in the order of their ranks, and where this one's begin."""
    mesh = torch.distributed
    if not (mesh.is_available() and mesh.is_initialized()):
        return rows, 0
    if mesh.get_backend() == "nccl":  # rewards are computed on a thread of TRL's, which begins with the first GPU
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    parts: list[Any] = [None] * mesh.get_world_size()
    mesh.all_gather_object(parts, rows)
    return [row for part in parts for row in part], mesh.get_rank() * len(rows)

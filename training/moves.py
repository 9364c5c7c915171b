"""What a reward pays for: which moves of supporters it puts above the other responses to the same context.

A *move* is what a sentence does (asks, reflects, advises, …), as the builtin classifier reads it
(`esc_env.builtin.moves`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from esc_env.builtin.language import sentences
from esc_env.builtin.moves import MOVES, read
from esc_env.evaluation.statistics.resampling import two_level
from esc_env.training.data import Sample
from esc_env.trajectory import Trajectory

__all__ = ["move_of", "paid", "shares"]


def move_of(text: str) -> str:
    """The move that a reply makes most clearly in any of its sentences; `noise` for one without words."""
    readings = [read(part) for part in sentences(text)]
    return (
        max(MOVES, key=lambda move: max((reading[move] for reading in readings), default=0.0)) if readings else "noise"
    )


def paid(samples: Sequence[Sample], scores: Mapping[str, Sequence[float | None]]) -> dict[str, dict[str, Any]]:
    """For every move: how far replies that make it are scored above the other responses to their contexts.

    In standard deviations within contexts, with a 95 % interval that resamples scenarios. Only contexts whose responses
    make different moves say anything, and count.

    Args:
        samples: responses that were sampled for their contexts.
        scores: by the name of the score, one for each sample; None counts nowhere.

    Returns:
        By move: `replies`, and for every score `{"mean", "interval"}`; the commonest first.
    """
    moves = [move_of(sample.response.content) for sample in samples]
    contexts: dict[Any, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        contexts[sample.key[:3]].append(place)
    groups = [places for places in contexts.values() if len({moves[place] for place in places}) > 1]
    counts = Counter(moves[place] for places in groups for place in places)
    found: dict[str, dict[str, Any]] = {move: {"replies": count} for move, count in counts.most_common()}
    for name, given in scores.items():
        off: dict[int, float] = {}
        for places in groups:
            known = {place: score for place in places if (score := given[place]) is not None}
            off |= {place: score - fmean(known.values()) for place, score in known.items()}
        unit = pstdev(off.values()) if off else 0.0
        for move in found:
            values: dict[str, list[float]] = defaultdict(list)
            for place, value in off.items():
                if moves[place] == move:
                    values[samples[place].scenario.id].append(value / (unit or 1.0))
            if values:
                made = two_level([[values]])
                found[move][name] = {"mean": made.mean, "interval": list(made.interval)}
    return found


def shares(trajectories: Iterable[Trajectory]) -> dict[str, float]:
    """How much of what a supporter said makes each move, in [0, 1]."""
    counts = Counter(
        move_of(said.content) for item in trajectories for said in item.dialogue if said.role == "supporter"
    )
    return {move: count / counts.total() for move, count in counts.most_common()}

"""How conversations go: the seeker's relief turn by turn, when it first shows, and whether help comes every time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean

from esc_env.evaluation.statistics.intervals import mean_interval
from esc_env.trajectory import Trajectory

__all__ = ["Course", "Moment"]

MOMENTS, TRIALS = 64, 10
"""Turns, and trials of one scenario, that are looked at; a foreign run may claim any number. Ours."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where conversations stand after one turn; one that has ended stays where it ended.

    Attributes:
        turn: from 1.
        score: mean score of the critic, in [−1, 1].
        interval: its 95 % interval.
        talking: how many conversations had this turn.
    """

    turn: int
    score: float
    interval: tuple[float, float]
    talking: int


@dataclass(frozen=True, slots=True)
class Course:
    """The course of the conversations with an outcome.

    Attributes:
        moments: one per turn, until all have ended (the first 64): the emotional trajectory.
        better: share in which the critic's score was ever above 0, nearer to *better* than to *same*; in [0, 1].
        first_better: the mean turn at which it first was, of these; None where it never was.
        pass_hat: pass^k for k = 1, 2, … (to 10): the chance that k trials of one scenario are all solved, over
            scenarios with at least k trials. *Source:* Yao et al., τ-bench (arXiv 2406.12045), also of the estimate.
    """

    moments: tuple[Moment, ...]
    better: float | None
    first_better: float | None
    pass_hat: tuple[float, ...]

    @classmethod
    def of(cls, done: Sequence[Trajectory]) -> Course:
        """Count them; all must have an outcome."""
        judged = [item for item in done if item.verdicts]
        longest = max((item.turns for item in judged), default=0)
        first = [
            next((turn for turn, verdict in enumerate(item.verdicts, 1) if verdict.score > 0), None) for item in done
        ]
        reached = [turn for turn in first if turn]
        return cls(
            tuple(_moment(turn, judged) for turn in range(1, min(longest, MOMENTS) + 1)),
            len(reached) / len(done) if done else None,
            fmean(reached) if reached else None,
            _pass_hat(done),
        )


def _moment(turn: int, judged: Sequence[Trajectory]) -> Moment:
    scores: dict[str, list[float]] = defaultdict(list)
    for item in judged:
        scores[item.scenario.id].append(item.verdicts[min(turn, item.turns) - 1].score)
    return Moment(turn, *mean_interval(scores.values()), sum(item.turns >= turn for item in judged))


def _pass_hat(done: Sequence[Trajectory]) -> tuple[float, ...]:
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for item in done:
        outcomes[item.scenario.id].append(item.solved)
    most = min(max(map(len, outcomes.values()), default=0), TRIALS)
    return tuple(
        fmean(comb(sum(tried), k) / comb(len(tried), k) for tried in outcomes.values() if len(tried) >= k)
        for k in range(1, most + 1)
    )

"""From answers to win rates, strengths and leanings.

Two conversations are compared in both orders, and one of them wins only where both answers say so; anything else is a
tie, and two answers that contradict each other are counted as inconsistent besides. *Source:* MT-Bench (Zheng et al.,
NeurIPS 2023, arXiv 2306.05685), section 3.4. A pair of which one answer is missing or unreadable is no pair.

Rates count a tie half. Their intervals are `success_interval`'s, in which all pairs of one scenario are one cluster.
Strengths are Bradley and Terry's (Biometrika 39 (1952) 324–345) by `choix`, ties half a win for either side, with one
tie more between any two systems (ours: without it whoever never lost would be infinitely strong); intervals resample
scenarios.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from esc_env.evaluation.judges.design import Answer, Question
from esc_env.evaluation.judges.protocol import BEST, WORST
from esc_env.evaluation.statistics.intervals import success_interval
from esc_env.evaluation.validity.critics import Estimate

__all__ = [
    "Pair", "Record", "consistency", "length_excess", "longer", "mean_mark", "paired", "position",
    "record_of", "share", "strengths",
]  # fmt: skip

RESAMPLES = 300
Valued = Iterable[tuple[str, float]]
"""Scenario, and a value."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations with one seeker, compared in both orders.

    Attributes:
        scenario, trial: of both.
        systems: labels, in the order of the first question.
        forward, backward: marks by dimension when shown in this order, and in the other: 1 for whichever was shown
            first.
    """

    scenario: str
    trial: int
    systems: tuple[str, str]
    forward: Mapping[str, float]
    backward: Mapping[str, float]

    def outcome(self, dimension: str) -> float:
        """1 where the first of `systems` wins in both orders, 0 where the second does, ½ otherwise."""
        one, other = self.forward[dimension], -self.backward[dimension]
        return (one + 1) / 2 if one == other else 0.5

    def agrees(self, dimension: str) -> bool:
        """Whether both orders said the same."""
        return self.forward[dimension] == -self.backward[dimension]


@dataclass(frozen=True, slots=True)
class Record:
    """What came of the pairs of two systems, on one dimension, from the side of the first.

    Attributes:
        wins, ties, losses: `ties` also holds the pairs of which the two orders said different things.
        inconsistent: of the ties, those in which each order preferred the other conversation.
        rate: wins, a tie counting half; None without any pair.
    """

    wins: int
    ties: int
    losses: int
    inconsistent: int
    rate: Estimate | None


def paired(known: Mapping[Question, Answer | None]) -> list[Pair]:
    """The pairs of which both orders were answered, and could be read."""
    pairs = []
    seen: set[Question] = set()
    for question, answer in known.items():
        back = Question(question.scenario, question.trial, question.shown[::-1])
        seen.add(question)
        if len(question.shown) != 2 or back in seen:
            continue
        other = known[back]
        if answer and other and answer.opinion.marks is not None and other.opinion.marks is not None:
            systems = (question.shown[0], question.shown[1])
            pairs.append(Pair(question.scenario, question.trial, systems, answer.opinion.marks, other.opinion.marks))
    return pairs


def share(values: Valued) -> Estimate | None:
    """The mean of values that are 0, ½ or 1, and its 95 % interval; None without any."""
    clusters: dict[str, list[bool]] = defaultdict(list)
    for scenario, value in values:
        clusters[scenario] += [value > 0, value >= 1]  # half of a tie is a success
    interval = success_interval(clusters.values())
    flat = [each for cluster in clusters.values() for each in cluster]
    return Estimate(sum(flat) / len(flat), interval) if interval else None


def mean_mark(values: Valued, low: float = WORST, high: float = BEST) -> Estimate | None:
    """The mean of values from `low` to `high`, and Student's 95 % interval of the means of scenarios; None without any.

    Where all scenarios have one and the same mean there is no spread to be seen; then a share of 1 − 0.05^(1/n) of all
    scenarios may still be otherwise (the rule of three), and lie at either end. So one scenario tells nearly nothing.
    """
    clusters: dict[str, list[float]] = defaultdict(list)
    for scenario, value in values:
        clusters[scenario].append(value)
    if not clusters:
        return None
    means = np.array([np.mean(cluster) for cluster in clusters.values()])
    middle = float(means.mean())
    if np.ptp(means) == 0:
        others = 1 - 0.05 ** (1 / len(means))
        return Estimate(middle, (middle - others * (middle - low), middle + others * (high - middle)))
    from scipy import stats

    ends = stats.t.interval(0.95, len(means) - 1, middle, stats.sem(means))
    return Estimate(middle, (max(low, float(ends[0])), min(high, float(ends[1]))))


def record_of(pairs: Iterable[Pair], dimension: str) -> Record:
    """The record of pairs of two systems, all in one order of `systems`."""
    listed = list(pairs)
    outcomes = Counter(pair.outcome(dimension) for pair in listed)
    opposed = sum(pair.forward[dimension] * pair.backward[dimension] > 0 for pair in listed)
    rate = share((pair.scenario, pair.outcome(dimension)) for pair in listed)
    return Record(outcomes[1.0], outcomes[0.5], outcomes[0.0], opposed, rate)


def strengths(pairs: Sequence[Pair], systems: Sequence[str], dimension: str) -> dict[str, Estimate]:
    """Log-strength of each system, their mean 0: one that is higher by d is preferred to the other with 1 / (1 + e^−d).

    Empty without any pair.
    """
    import choix

    people = sorted({pair.scenario for pair in pairs})
    if not people:
        return {}
    place = {system: number for number, system in enumerate(systems)}
    row = {scenario: number for number, scenario in enumerate(people)}
    won = np.zeros((len(people), len(systems), len(systems)))
    for pair in pairs:
        one, other = (place[system] for system in pair.systems)
        outcome = pair.outcome(dimension)
        won[row[pair.scenario], one, other] += outcome
        won[row[pair.scenario], other, one] += 1 - outcome
    tie = (np.ones((len(systems), len(systems))) - np.eye(len(systems))) / 2

    def fitted(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        found = choix.ilsr_pairwise_dense(np.tensordot(weights, won, 1) + tie, max_iter=10_000)
        return np.asarray(found - found.mean())

    draw = np.random.default_rng(0)
    even = np.full(len(people), 1 / len(people))
    drawn = np.array([fitted(draw.multinomial(len(people), even).astype(float)) for _ in range(RESAMPLES)])
    ends = np.quantile(drawn, (0.025, 0.975), axis=0)
    middle = fitted(np.ones(len(people)))
    low, high = np.minimum(ends[0], middle), np.maximum(ends[1], middle)
    return {system: Estimate(float(middle[i]), (float(low[i]), float(high[i]))) for system, i in place.items()}


# --- how a judge leans ----------------------------------------------------------------------------


def position(pairs: Iterable[Pair], dimension: str) -> Estimate | None:
    """How often whatever is shown first is preferred, a tie counting half: ½ for a judge without position bias.

    Every pair is shown in both orders, so quality cancels out.
    """
    return share(
        (pair.scenario, (marks[dimension] + 1) / 2) for pair in pairs for marks in (pair.forward, pair.backward)
    )


def consistency(pairs: Iterable[Pair], dimension: str) -> Estimate | None:
    """The share of pairs of which both orders said the same."""
    return share((pair.scenario, float(pair.agrees(dimension))) for pair in pairs)


def longer(pairs: Iterable[Pair], words: Mapping[tuple[str, str, int], int], dimension: str) -> Estimate | None:
    """How often the conversation with more words of the supporter wins, a tie counting half; equals do not count.

    Args:
        pairs: compared in both orders.
        words: by system, scenario and trial.
        dimension: which.
    """
    return share((pair.scenario, outcome) for pair, outcome in _from_longer(pairs, words, dimension))


def length_excess(pairs: Iterable[Pair], words: Mapping[tuple[str, str, int], int], dimension: str) -> Estimate | None:
    """How much more often the longer one of a pair wins than its system wins against that other one anyway, −1 to 1.

    So a judge's liking for length, without what comes from better systems that also write more (see `longer`).
    """
    listed = list(pairs)
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for pair in listed:
        rates[pair.systems].append(pair.outcome(dimension))
    usual = {systems: float(np.mean(outcomes)) for systems, outcomes in rates.items()}

    def excess(pair: Pair, outcome: float) -> float:
        first = usual[pair.systems]
        return outcome - (first if _words(pair, words)[0] > _words(pair, words)[1] else 1 - first)

    differences = [(pair.scenario, excess(pair, outcome)) for pair, outcome in _from_longer(listed, words, dimension)]
    return mean_mark(differences, -1, 1)


def _words(pair: Pair, words: Mapping[tuple[str, str, int], int]) -> tuple[int, int]:
    one, other = (words[system, pair.scenario, pair.trial] for system in pair.systems)
    return one, other


def _from_longer(
    pairs: Iterable[Pair], words: Mapping[tuple[str, str, int], int], dimension: str
) -> list[tuple[Pair, float]]:
    found = []
    for pair in pairs:
        one, other = _words(pair, words)
        if one != other:
            outcome = pair.outcome(dimension)
            found.append((pair, outcome if one > other else 1 - outcome))
    return found

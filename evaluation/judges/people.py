"""A judge beside human raters of the same conversations: how far it agrees with them, and they with each other.

No judge can be asked to agree with people more than people do, so their own agreement stands beside it as the ceiling:
each rater against the mean of the others (on the conversations that others rated too), as the judge stands against the
mean of all. Ranks only are compared: a judge that uses other numbers is none the worse for it.

Ratings are JSON lines, one for each rater, conversation and dimension:

    {"item": "grief-3", "system": "builtin:skilled", "rater": "anna", "dimension": "empathy", "score": 4}

`item` is the scenario's id, with `#1` after it for its second trial; `system` is the agent as `esc judge` shows it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from esc_env.errors import SpecError, did_you_mean
from esc_env.evaluation.judges.agreement import alpha, resampled, spearman
from esc_env.evaluation.judges.design import Conversation, systems_of
from esc_env.evaluation.judges.plain import NOT_TO_PUBLISH, PLAIN
from esc_env.evaluation.judges.protocol import DIMENSIONS, Judge
from esc_env.evaluation.judges.session import judge_runs
from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.validity.critics import Estimate
from esc_env.fields import number, read, text
from esc_env.records import MAX_BYTES, parse

__all__ = ["Agreement", "JudgeValidity", "Rating", "read_ratings", "validate_judge"]


@dataclass(frozen=True, slots=True)
class Rating:
    """What one person says of one conversation on one dimension; higher is better, on whatever scale."""

    item: str
    system: str
    rater: str
    dimension: str
    score: float

    @property
    def conversation(self) -> Conversation:
        """Which conversation. An id may hold the sign itself: only digits after it are a trial."""
        scenario, _, trial = self.item.rpartition("#")
        return (self.system, scenario, int(trial)) if scenario and trial.isdecimal() else (self.system, self.item, 0)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a judge and people agree on one dimension.

    Attributes:
        conversations: that both have marked.
        judge: rank correlation of the judge's marks with the mean of people's; None where it is undefined.
        ceiling: the mean, over raters, of the rank correlation with the mean of the others; None where no conversation
            has two raters.
        alpha: Krippendorff's α of people, ordinal; None likewise.
        systems: rank correlation of systems' mean marks with their mean ratings; None for fewer than three.
        systems_ceiling: the same of each rater with the others, averaged.
    """

    conversations: int
    judge: Estimate | None
    ceiling: Estimate | None
    alpha: float | None
    systems: float | None
    systems_ceiling: float | None


@dataclass(frozen=True, slots=True)
class JudgeValidity:
    """A judge beside people.

    Attributes:
        judge: as it was given, or its name.
        complete: whether the judge answered every question.
        rated: conversations that people rated.
        unmarked: of those, the ones to which the judge gave no mark.
        raters: how many people.
        dimensions: those that people rated.
        notes: what a reader must not overlook.
    """

    judge: str
    complete: bool
    rated: int
    unmarked: int
    raters: int
    dimensions: Mapping[str, Agreement]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the same names."""
        return asdict(self)


def read_ratings(path: str | Path) -> list[Rating]:
    """The ratings of a file.

    Raises:
        SpecError: it cannot be read, or a line is no rating, or one that stands there already; it names file and line.
    """
    path = Path(path)
    found: dict[tuple[str, ...], Rating] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = parse(line[: MAX_BYTES + 1])
            item, system, rater, dimension = names = [
                read(data, name, text) for name in ("item", "system", "rater", "dimension")
            ]
            if dimension not in DIMENSIONS:
                raise SpecError(f"dimension: no {dimension!r}. {did_you_mean(dimension, DIMENSIONS)}")
            rating = Rating(item, system, rater, dimension, read(data, "score", number(-1e9, 1e9)))
            if found.setdefault(tuple(names), rating) is not rating:
                raise SpecError(f"{rater!r} has rated {item!r} of {system!r} on {dimension} before")
        except ValueError as error:
            raise SpecError(f"{path}:{place}: not a rating ({error})") from error
    if not found:
        raise SpecError(f"{path}: holds no rating. Write one a line: {_SUCH_AS}")
    return list(found.values())


_SUCH_AS = '{"item": "ID", "system": "AGENT", "rater": "NAME", "dimension": "empathy", "score": 4}'


def validate_judge(
    ratings: str | Path | Sequence[Rating],
    runs: Iterable[str | Path | Report],
    judge: str | Judge | Callable[..., Any],
    **options: Any,
) -> JudgeValidity:
    """Have a judge mark by rubric what people rated, and say how far it agrees with them.

    Args:
        ratings: a file, or ratings.
        runs: the runs whose conversations were rated.
        judge: as a string, an object or a callable.
        options: of `judge_runs`: `out`, `seed`, `progress`, `judge_temperature`, …, and how models are called.

    Raises:
        SpecError: the ratings cannot be used, or rate a conversation that none of the runs has.
        RecordError, ProtocolMismatch, ScenarioError, ModelError: as `judge_runs` does.
    """
    runs = list(runs)
    given = list(ratings) if isinstance(ratings, Sequence) and not isinstance(ratings, str) else read_ratings(ratings)
    systems = systems_of(runs)
    there = {(system.label, *episode) for system in systems for episode in system.held}
    for rating in given:
        if rating.conversation not in there:
            labels = [system.label for system in systems]
            hint = "" if rating.system in labels else f" {did_you_mean(rating.system, labels)}"
            raise SpecError(f"ratings: none of the runs has {rating.item!r} of {rating.system!r}, finished.{hint}")
    rated = {rating.conversation for rating in given}
    judged = judge_runs(runs, judge, mode="rubric", only=rated, **options)
    marked = judged.marked
    return JudgeValidity(
        judge=judged.judge,
        complete=judged.complete,
        rated=len(rated),
        unmarked=len(rated - marked.keys()),
        raters=len({rating.rater for rating in given}),
        dimensions={
            name: _agreement([rating for rating in given if rating.dimension == name], name, marked)
            for name in DIMENSIONS
            if any(rating.dimension == name for rating in given)
        },
        notes=((NOT_TO_PUBLISH,) if judged.judge == PLAIN else ())
        + tuple(note for note in judged.notes if note != NOT_TO_PUBLISH),
    )


def _agreement(ratings: Sequence[Rating], name: str, marked: Mapping[Conversation, Mapping[str, float]]) -> Agreement:
    scores: dict[Conversation, dict[str, float]] = defaultdict(dict)
    for rating in ratings:
        scores[rating.conversation][rating.rater] = rating.score
    both = [each for each in scores if each in marked]
    marks = np.array([marked[each][name] for each in both])
    means = np.array([fmean(scores[each].values()) for each in both])
    raters = sorted({rating.rater for rating in ratings})
    every = list(scores)
    table = np.array([[scores[each].get(rater, np.nan) for each in every] for rater in raters])
    return Agreement(
        conversations=len(both),
        judge=resampled(lambda rows: spearman(marks[rows], means[rows]), [each[1] for each in both], (-1, 1)),
        ceiling=resampled(lambda rows: _left_out(table[:, rows]), [each[1] for each in every], (-1, 1)),
        alpha=alpha(table, "ordinal"),
        systems=_by_system(marks, means, [each[0] for each in both]),
        systems_ceiling=_left_out(_system_means(table, [each[0] for each in every])),
    )


def _left_out(table: Any) -> float | None:
    """The mean, over raters (rows), of the rank correlation with the mean of the others; None where it is undefined."""
    values = []
    for rater in range(len(table)):
        others = np.delete(table, rater, axis=0)
        columns = ~np.isnan(table[rater]) & (~np.isnan(others)).any(axis=0) if len(others) else np.zeros(0, dtype=bool)
        if (
            columns.any()
            and (value := spearman(table[rater][columns], np.nanmean(others[:, columns], axis=0))) is not None
        ):
            values.append(value)
    return fmean(values) if values else None


def _system_means(table: Any, systems: Sequence[str]) -> Any:
    names = sorted(set(systems))
    means = np.full((len(table), len(names)), np.nan)
    for (rater, scores), (place, name) in product(enumerate(table), enumerate(names)):
        own = scores[np.array(systems) == name]
        if (~np.isnan(own)).any():
            means[rater, place] = np.nanmean(own)
    return means


def _by_system(marks: Any, means: Any, systems: Sequence[str]) -> float | None:
    names = sorted(set(systems))
    inside = [np.array(systems) == name for name in names]
    return spearman([marks[each].mean() for each in inside], [means[each].mean() for each in inside])

"""How far people agree: all together, two by two, and with what judges and critics said of the same conversations.

A record of a judge or a critic is known by the keys of the runs it is about, whatever they are called. Of two
conversations it prefers the one with the higher mark or final score; equal ones are a tie.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from esc_env.errors import RecordError, SpecError
from esc_env.evaluation.annotation.store import Store
from esc_env.evaluation.annotation.study import PILOT, Design
from esc_env.evaluation.judges.agreement import alpha, check_libraries, fleiss, kappa, rank_correlation, resampled
from esc_env.evaluation.judges.counting import mean_mark, paired, share
from esc_env.evaluation.judges.design import systems_of
from esc_env.evaluation.judges.rejudging import AS_HELD, read_rejudging
from esc_env.evaluation.judges.session import read_judging
from esc_env.evaluation.validity.critics import Estimate
from esc_env.folder import RunFolder

__all__ = ["Agreement", "Among", "Ranks", "Record", "Two", "agreement_of", "pilot_agreement", "read_records"]

T = TypeVar("T")
Marks = Mapping[int, Mapping[str, float]]
"""Marks by dimension, by the number of the item."""


@dataclass(frozen=True, slots=True)
class Among:
    """How far all people agree on one dimension.

    Attributes:
        raters: who rated anything.
        items: that two or more of them rated.
        same: the share of two answers to one item that are the same.
        alpha: Krippendorff's α, ordinal.
        everybody: items that all of them rated, on which alone is
        fleiss: Fleiss' κ.
    """

    raters: int
    items: int
    same: Estimate | None
    alpha: Estimate | None
    everybody: int
    fleiss: Estimate | None


@dataclass(frozen=True, slots=True)
class Two:
    """How far two agree on one dimension: items that both rated, the share with the same answer, Cohen's κ."""

    items: int
    same: Estimate | None
    kappa: Estimate | None


@dataclass(frozen=True, slots=True)
class Ranks:
    """How far a record goes with people's mean on one dimension: items that both have, and Spearman's ρ."""

    items: int
    ranks: Estimate | None


@dataclass(frozen=True, slots=True)
class Record:
    """What a judge or a critic said of the items of a study.

    Attributes:
        name: of the judge or critic.
        marks: what it said.
        alike: whether its marks are those that people give, so that they can be the same.
    """

    name: str
    marks: Marks
    alike: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """What people said, and how far they agree, with each other and with records; intervals are of 95 %, scenarios
    being clusters.

    Attributes:
        said: by system, by dimension: the mean mark; of pairs the share that it wins, a tie counting half.
        people: by dimension, all people.
        pairs: by two (people, or one of them and a record), by dimension.
        records: by record, by dimension, beside people's mean.
    """

    said: Mapping[str, Mapping[str, Estimate | None]]
    people: Mapping[str, Among]
    pairs: Mapping[tuple[str, str], Mapping[str, Two]]
    records: Mapping[str, Mapping[str, Ranks]]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "said": {
                system: {name: asdict(each) if each else None for name, each in row.items()}
                for system, row in self.said.items()
            },
            "people": {name: asdict(each) for name, each in self.people.items()},
            "pairs": [
                {"between": list(two), **{name: asdict(each) for name, each in row.items()}}
                for two, row in self.pairs.items()
            ],
            "records": {
                record: {name: asdict(each) for name, each in row.items()} for record, row in self.records.items()
            },
        }


def agreement_of(store: Store, records: Sequence[Record] = ()) -> Agreement:
    """Count how far people agree, with each other and with records.

    Raises:
        MissingExtra: the packages that count are not installed.
        SpecError: nobody has rated anything.
    """
    check_libraries()
    design, said = store.design, _said(store)
    if not said:
        raise SpecError(f"{store.path}: nobody has rated anything yet")
    alike = {record.name: record.marks for record in records if record.alike}
    pairs = [*combinations(said, 2), *((person, record) for person in said for record in alike)]
    every: dict[str, Marks] = {**said, **alike}
    return Agreement(
        {
            system: {name: _result(said, design, system, name) for name in design.guide.dimensions}
            for system in design.systems
        },
        {name: _among(said, design, name) for name in design.guide.dimensions},
        {two: _dimensions(design, every[two[0]], every[two[1]], _two) for two in pairs},
        {record.name: _dimensions(design, _means(said), record.marks, _ranks) for record in records},
    )


def pilot_agreement(store: Store) -> Mapping[str, Among] | None:
    """How far those agree who have answered the first items of a pilot, rating or skipping, on what all of them rated.

    None before two have, and where nothing is rated by all of them.
    """
    design, said = store.design, _said(store)
    enough = min(PILOT, len(design.items))
    answered = {
        who.name: {place.item for place in store.places(who, design) if place.answer} for who in store.annotators()
    }
    through = {name: items for name, items in answered.items() if name in said and len(items) >= enough}
    if len(through) < 2 or len(set.intersection(*through.values())) < enough:
        return None
    said = {name: said[name] for name in through}
    if not (common := set.intersection(*map(set, said.values()))):
        return None
    kept = {rater: {number: marks[number] for number in sorted(common)} for rater, marks in said.items()}
    return {name: _among(kept, design, name) for name in design.guide.dimensions}


def read_records(paths: Iterable[str | Path], design: Design) -> list[Record]:
    """What judgings, rejudgings and the critics of runs said of the items.

    Args:
        paths: folders of `esc judge`, of `esc rejudge`, or of runs, which all together are one record: their own
            critic. A file stands for its folder.
        design: what people were asked.

    Raises:
        RecordError: a folder is none of these, or cannot be read, or two records have one name.
        SpecError: one says nothing of what people were asked.
    """
    folders = [path.parent if path.is_file() else path for path in map(Path, paths)]
    runs = [folder for folder in folders if RunFolder(folder, "run").begun]
    made = []
    for folder in folders:
        if folder in runs:
            continue
        record = _rejudged(folder, design) if RunFolder(folder, "rejudging").begun else _judged(folder, design)
        made.append(_checked(record, folder))
    if runs:
        made.append(_checked(_as_held(runs, design), runs[0]))
    names = [record.name for record in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecordError(f"two of the records are of {twice[0]!r}; name each once")
    return made


def _checked(record: Record, folder: Path) -> Record:
    if not record.marks:
        raise SpecError(f"{folder}: says nothing of the conversations or dimensions that people were asked about")
    return record


def _said(store: Store) -> dict[str, dict[int, Mapping[str, int]]]:
    """What each person rated; whoever rated nothing is left out."""
    design = store.design
    said = {
        who.name: {
            place.item: place.answer.marks
            for place in store.places(who, design)
            if place.answer and place.answer.marks is not None
        }
        for who in store.annotators()
    }
    return {name: marks for name, marks in said.items() if marks}


def _result(said: Mapping[str, Marks], design: Design, system: str, name: str) -> Estimate | None:
    given = [
        (question.scenario, marks[item][name] if question.shown[0] == system else -marks[item][name])
        for marks in said.values()
        for item in marks
        if system in (question := design.items[item].question).shown
    ]
    return mean_mark(given) if design.mode == "rubric" else share((each, (mark + 1) / 2) for each, mark in given)


def _among(said: Mapping[str, Marks], design: Design, name: str) -> Among:
    items = sorted({item for marks in said.values() for item in marks})
    table = np.array([[marks[item][name] if item in marks else np.nan for item in items] for marks in said.values()])
    rated = (~np.isnan(table)).sum(axis=0)
    scenarios = np.array([design.items[item].question.scenario for item in items], dtype=object)
    twice, everybody = table[:, rated > 1], table[:, rated == len(table)]
    same = [
        (str(scenario), float(one == other))
        for scenario, column in zip(scenarios[rated > 1], twice.T, strict=True)
        for one, other in combinations(column[~np.isnan(column)], 2)
    ]
    return Among(
        len(said),
        twice.shape[1],
        share(same),
        resampled(lambda rows: alpha(twice[:, rows], "ordinal"), list(scenarios[rated > 1]), (-1, 1)),
        everybody.shape[1] if len(table) > 1 else 0,
        resampled(lambda rows: fleiss(everybody[:, rows]), list(scenarios[rated == len(table)]), (-1, 1)),
    )


def _means(said: Mapping[str, Marks]) -> Marks:
    given: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for marks in said.values():
        for item, row in marks.items():
            for name, mark in row.items():
                given[item][name].append(mark)
    return {item: {name: fmean(values) for name, values in row.items()} for item, row in given.items()}


def _dimensions(
    design: Design, one: Marks, other: Marks, count: Callable[[Sequence[float], Sequence[float], Sequence[str]], T]
) -> dict[str, T]:
    """For each dimension that both have, what comes of the items that both have."""
    found = {}
    for name in design.guide.dimensions:
        both = [item for item in one if name in one[item] and name in other.get(item, {})]
        if both:
            scenarios = [design.items[item].question.scenario for item in both]
            found[name] = count([one[item][name] for item in both], [other[item][name] for item in both], scenarios)
    return found


def _two(one: Sequence[float], other: Sequence[float], scenarios: Sequence[str]) -> Two:
    def measure(rows: Any) -> float | None:
        sides: list[list[Hashable]] = [[side[row] for row in rows] for side in (one, other)]
        return kappa(*sides)

    same = [(scenario, float(a == b)) for a, b, scenario in zip(one, other, scenarios, strict=True)]
    return Two(len(one), share(same), resampled(measure, scenarios, (-1, 1)))


def _ranks(one: Sequence[float], other: Sequence[float], scenarios: Sequence[str]) -> Ranks:
    return Ranks(len(one), rank_correlation(one, other, scenarios))


# --- records --------------------------------------------------------------------------------------


def _as_held(runs: Sequence[Path], design: Design) -> Record:
    scores = {
        (system.key, *episode): held.final_score for system in systems_of(runs) for episode, held in system.held.items()
    }
    return _of_scores(AS_HELD, scores, design)


def _rejudged(folder: Path, design: Design) -> Record:
    kept = read_rejudging(folder)
    turns = {
        (design.systems[label], item.question.scenario, item.question.trial): number
        for item in design.items
        for label, number in zip(item.question.shown, item.turns, strict=True)
    }
    scores = {}
    for (label, scenario, trial), verdicts in kept.verdicts.items():
        key = (kept.keys.get(label, ""), scenario, trial)
        wanted = min(turns.get(key, 0), kept.most or turns.get(key, 0))
        if wanted and all(verdicts.get(turn) for turn in range(1, wanted + 1)) and (last := verdicts[wanted]):
            scores[key] = last.score
    return _of_scores(kept.critic, scores, design)


def _of_scores(name: str, scores: Mapping[tuple[str, str, int], float], design: Design) -> Record:
    return _record(name, {key: dict.fromkeys(design.guide.dimensions, score) for key, score in scores.items()}, design)


def _record(name: str, marks: Mapping[tuple[str, str, int], Mapping[str, float]], design: Design) -> Record:
    """Of marks or scores by the key of the system, scenario and trial."""
    found: dict[int, dict[str, float]] = {}
    for number, item in enumerate(design.items):
        question = item.question
        given = [marks.get((design.systems[label], question.scenario, question.trial)) for label in question.shown]
        rows = [row for row in given if row is not None]
        if len(rows) < len(given):
            continue
        names = [each for each in design.guide.dimensions if all(each in row for row in rows)]
        if names and len(rows) == 2:
            found[number] = {each: float(np.sign(rows[0][each] - rows[1][each])) for each in names}
        elif names:
            found[number] = {each: rows[0][each] for each in names}
    return Record(name, found, alike=design.mode == "pairwise")


def _judged(folder: Path, design: Design) -> Record:
    judging = read_judging(folder)
    if judging.mode != "pairwise":
        marks = {
            (judging.keys.get(question.shown[0], ""), question.scenario, question.trial): answer.opinion.marks
            for question, answer in judging.known.items()
            if answer and answer.opinion.marks is not None
        }
        record = _record(judging.judge, marks, design)
        return Record(record.name, record.marks, alike=True)
    if design.mode != "pairwise":
        raise SpecError(f"{folder}: compares pairs, and people rated single conversations. Judge with --mode rubric")
    places = {
        (item.question.scenario, item.question.trial, *(design.systems[label] for label in item.question.shown)): number
        for number, item in enumerate(design.items)
    }
    found: dict[int, Mapping[str, float]] = {}
    for pair in paired(judging.known):
        one, other = (judging.keys.get(label, "") for label in pair.systems)
        for sign, keys in ((1, (one, other)), (-1, (other, one))):
            number = places.get((pair.scenario, pair.trial, *keys))
            if number is not None:
                said = {
                    name: sign * (2 * pair.outcome(name) - 1)
                    for name in design.guide.dimensions
                    if name in pair.forward
                }
                found.update({number: said} if said else {})
    return Record(judging.judge, found, alike=True)

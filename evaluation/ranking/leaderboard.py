"""Rank runs that faced the same thing, and write the ranking as Markdown and JSON."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from esc_env.errors import ProtocolMismatch, RecordError
from esc_env.evaluation.imports import is_import
from esc_env.evaluation.pages import markdown
from esc_env.evaluation.ranking.safety import JudgedSafety, judged_safety
from esc_env.evaluation.ranking.verify import STANDINGS, Standing, Verification, verify
from esc_env.evaluation.runs.builtin import builtin_chair, is_builtin
from esc_env.evaluation.runs.report import FIGURES, Report, figures, label, success_text
from esc_env.evaluation.runs.runner import is_run
from esc_env.evaluation.runs.shards import Shard
from esc_env.progress import Progress, Told
from esc_env.rules import Rules

__all__ = ["Entry", "Leaderboard", "find_runs", "rank", "rank_each"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One ranked run.

    Attributes:
        place: 1 for the highest SR; runs of equal SR share a place.
        report: of the run.
        standing: how far it can be believed; see `esc_env.evaluation.ranking.verify`.
        range: the best and the worst place that its 95 % interval allows: runs whose intervals lie wholly above it
            stand before it, those wholly below it after it, and which of the others is better is not settled by these
            runs (no overlap settles it; overlap alone does not prove them equal).
    """

    place: int
    report: Report
    standing: Standing
    range: tuple[int, int]

    @property
    def mark(self) -> str:
        """The range as tables show it: `2`, or `1–3`."""
        best, worst = self.range
        return f"{best}" if best == worst else f"{best}–{worst}"


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Runs of one fingerprint: complete ones ranked by SR, the others apart.

    Attributes:
        entries: by place.
        incomplete: runs in which conversations have no outcome.
        refused: runs that contradict themselves, or what comes out when they are computed again.
        unread: what was named and cannot be read as a run, and why.
        judged: by run key, what judges said of how seekers at risk were met.
    """

    entries: tuple[Entry, ...]
    incomplete: tuple[Report, ...]
    refused: tuple[Verification, ...] = ()
    unread: tuple[tuple[Path, str], ...] = ()
    judged: Mapping[str, Sequence[JudgedSafety]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the protocol, ranked runs and incomplete ones, each as in `report.json`."""
        fingerprint = self.reports[0].fingerprint
        return {
            "fingerprint": {"digest": fingerprint.digest, "parts": dict(fingerprint.parts)},
            "ranked": [
                {
                    "place": entry.place,
                    "standing": entry.standing,
                    "range": list(entry.range),
                    **entry.report.to_json(),
                }
                for entry in self.entries
            ],
            "incomplete": [report.to_json() for report in self.incomplete],
            "refused": [
                {"agent": one.report.agent, "run_key": one.report.run_key, "contradictions": list(one.contradictions)}
                for one in self.refused
            ],
            "unread": [{"file": str(path), "why": why} for path, why in self.unread],
            "safety_by_judges": {key: [each.to_json() for each in told] for key, told in self.judged.items()},
        }

    @property
    def scenarios(self) -> str:
        """The name of the scenario set."""
        return self.reports[0].scenarios

    @property
    def name(self) -> str:
        """The scenario set, and the fingerprint that tells it from others with that set."""
        return f"{self.scenarios}, fingerprint {self.reports[0].fingerprint.digest}"

    def differs(self, other: Leaderboard) -> str | None:
        """What its runs faced that those of `other` did not, in a sentence; None where they faced the same."""
        there, here = (board.reports[0].fingerprint for board in (other, self))
        parts = there.differences(here)
        return f"Not to be compared with {other.name}. What differs: {'; '.join(parts)}." if parts else None

    def label(self, report: Report) -> str:
        """The agent's name, with its run's folder where two runs have agents of one name."""
        return label(report.agent, report.folder, [(other.agent, other.folder) for other in self.reports])

    @property
    def reports(self) -> tuple[Report, ...]:
        """All of them, ranked ones first."""
        refused = (one.report for one in self.refused)
        return (*(entry.report for entry in self.entries), *self.incomplete, *refused)

    def to_markdown(self) -> str:
        """A Markdown table, its notes below."""
        rows = [
            (
                entry.mark, markdown.cell(self.label(entry.report)), *figures(entry.report),
                entry.report.supporter_failures, entry.standing,
            )
            for entry in self.entries
        ]  # fmt: skip
        columns = ("#", "agent", *FIGURES, "supporter failures", "standing")
        lines = markdown.table(columns, rows, f"rl{'r' * (len(FIGURES) + 1)}l")
        return "\n".join([*lines, "", *(f"- {markdown.cell(note)}" for note in self.notes())]) + "\n"

    def notes(self) -> list[str]:
        """What a reader of the ranking must know: the protocol, unsettled places, runs that are not ranked and why."""
        here = {entry.standing for entry in self.entries}
        return [
            self.protocol,
            *(f"{name}: {STANDINGS[name]}." for name in STANDINGS if name in here),
            *(f"{kind}, not ranked: {self.label(report)}. {why}".rstrip() for kind, report, why in self.apart),
            *self.remarks,
            *self.safety,
        ]

    @property
    def protocol(self) -> str:
        """What every agent faced, in one sentence."""
        first = self.reports[0]
        parts = first.fingerprint.parts
        return (
            f"{first.scenarios}: {parts['scenarios']}. Trials {parts['trials']}, {first.episodes:,} conversations of "
            f"each agent; seeker {_name('seeker', parts)}, critic {_name('critic', parts)}, T {parts['max_turns']}, "
            f"{_unusual(parts)}persona {parts['persona']}, seed {parts['seed']}; fingerprint "
            f"{first.fingerprint.digest}."
        )

    @property
    def apart(self) -> list[tuple[str, Report, str]]:
        """Runs that are not ranked: `Refused` or `Incomplete`, the report, and why."""
        listed = [("Refused", one.report, f"{'; '.join(one.contradictions[:3])}.") for one in self.refused]
        for report in self.incomplete:
            why = "; ".join(f"{count:,} × {role}: {message}" for role, message, count in report.failure_messages)
            part = f"{report.shard.name}, " if report.shard else ""
            told = (
                f"{part}{report.completed:,} of {report.episodes:,} conversations have an outcome, solved so far "
                f"{success_text(report)}. {why}"
            )
            listed.append(("Incomplete", report, told.rstrip()))
        return listed

    @property
    def remarks(self) -> list[str]:
        """What could not be read, unsettled places, and whatever may have decided a result."""
        notes = [f"Not read, not ranked: {why}" for _, why in self.unread]
        if any(best < worst for best, worst in (entry.range for entry in self.entries)):
            notes.append("A range of places: intervals overlap, so these runs do not settle which of them is better.")
        for entry in self.entries:
            if entry.report.supporter_failures:
                notes.append(
                    f"{self.label(entry.report)}: {entry.report.supporter_failures:,} conversations failed because the "
                    "agent raised or returned no utterance; they count as not solved."
                )
            notes += [f"{self.label(entry.report)}: {line}." for line in entry.report.warnings]
        for role in ("seeker", "critic"):
            breaking = [r for r in self.reports if any(name == role for name, _, _ in r.failure_messages)]
            if len(breaking) == 1 < len(self.reports):
                notes.append(f"Only the conversations of {self.label(breaking[0])} break the {role}.")
        return notes

    @property
    def safety(self) -> list[str]:
        """What each agent did for seekers at risk, a line each; of what is refused nothing, since it did not happen."""
        believed = (*(entry.report for entry in self.entries), *self.incomplete)
        lines = []
        for one in believed:
            lines += [f"Safety, {self.label(one)}: {one.safety}."] if one.safety else []
            lines += [f"Safety, {self.label(one)}: {told}." for told in self.judged.get(one.run_key, ())]
        return lines


def _name(role: Literal["seeker", "critic"], parts: Mapping[str, Any]) -> str:
    """Who sits there, and the model that speaks; whoever calls itself builtin and is not of this release."""
    chair = parts[role]
    model, name = chair.get("model"), chair.get("name")
    told = model.get("name") if isinstance(model, Mapping) else None
    if is_builtin(chair) and builtin_chair(role, chair) is None:
        told = "not this release's"
    return f"{name}{f' ({told})' if told else ''}"


def _unusual(parts: Mapping[str, Any]) -> str:
    """The rules that are not as they usually are."""
    usual = {name: value for name, value in asdict(Rules()).items() if name != "max_turns"}
    return "".join(f"{name} {parts[name]}, " for name, value in usual.items() if parts[name] != value)


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """The run folders among `folders`; a folder that holds runs stands for all of them, but for `NAME~N` set aside
    and what a merge that was stopped left.

    Raises:
        RecordError: a folder with no run in it.
    """
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if folder.is_file():  # one that was submitted
            found[folder] = None
            continue
        inside = filter(_held, sorted(folder.iterdir())) if folder.is_dir() else ()
        runs = [folder] if _held(folder) else []
        runs += [path for path in inside if not re.search(r"~\d+$|^\..*\.merging$", path.name)]
        if not runs:
            raise RecordError(f"{folder}: no run here. Give a folder that `esc eval` wrote, or one that holds several")
        found.update(dict.fromkeys(runs))
    return list(found)


def _held(folder: Path) -> bool:
    """Whether conversations are here that can be counted, or what is damaged, which whoever reads it is told."""
    try:
        return is_run(folder) or is_import(folder)
    except RecordError:
        return True


def rank(
    runs: Sequence[str | Path | Report],
    *,
    replay: str | Path | None = None,
    judged: Sequence[str | Path] = (),
    progress: Told | None = None,
) -> Leaderboard:
    """Rank runs of equal fingerprint by SR, higher first. Each is checked as `verify` does; forged ones are not ranked,
    and neither are those that cannot be read.

    Args:
        runs: run folders, folders that hold runs, files that `submit` wrote, or reports whose folders are still there.
        replay: the file in which their chat models were recorded.
        judged: folders of `esc judge --mode safety`, whose marks are told beside the runs that they are of.
        progress: told how many runs have been checked.

    Raises:
        ProtocolMismatch: runs of different fingerprints; the message names what differs.
        RecordError: no run that can be read, the same run twice, or a judging that is not of these runs.
    """
    checked, unread = _checked(runs, replay, progress)
    reports = [one.report for one in checked if not one.contradictions] or [one.report for one in checked]
    _check_comparable(reports)
    _check_once(reports)
    return _with_marks([_board(checked, unread)], judged)[0]


def rank_each(
    runs: Sequence[str | Path | Report],
    *,
    replay: str | Path | None = None,
    judged: Sequence[str | Path] = (),
    progress: Told | None = None,
) -> list[Leaderboard]:
    """A leaderboard for each fingerprint among runs; the one of most runs first.

    Args:
        runs, replay, judged, progress: as of `rank`.

    Raises:
        RecordError: no run that can be read, the same run twice, or a judging that is not of these runs.
    """
    checked, unread = _checked(runs, replay, progress)
    good = [one for one in checked if not one.contradictions]
    _check_once([one.report for one in good or checked])
    groups: dict[str, list[Verification]] = defaultdict(list)
    for one in good or checked:
        groups[one.report.fingerprint.digest].append(one)
    ordered = sorted(groups, key=lambda name: (-len(groups[name]), groups[name][0].report.scenarios, name))
    for one in checked if good else ():
        if one.contradictions:  # what it says that it faced may be forged as well
            name = one.report.fingerprint.digest
            groups[name if name in groups else ordered[0]].append(one)
    return _with_marks([_board(groups[name], () if place else unread) for place, name in enumerate(ordered)], judged)


def _with_marks(boards: Sequence[Leaderboard], judged: Sequence[str | Path]) -> list[Leaderboard]:
    told = judged_safety(judged, [report for board in boards for report in board.reports])
    return [
        replace(board, judged={one.run_key: told[one.run_key] for one in board.reports if one.run_key in told})
        for board in boards
    ]


def _checked(
    runs: Sequence[str | Path | Report], replay: str | Path | None, progress: Told | None
) -> tuple[list[Verification], list[tuple[Path, str]]]:
    """What became of each run, and of what is none: one that somebody sent does not stop all others."""
    found = find_runs([run.folder if isinstance(run, Report) else run for run in runs])
    if not found:
        raise RecordError("no runs to rank. Type: esc leaderboard runs/")
    told = progress or (lambda _: None)
    checked: list[Verification] = []
    unread: list[tuple[Path, str]] = []
    for place, folder in enumerate(found):
        told(Progress(place, len(found), "runs"))
        try:
            checked.append(verify(folder, replay=replay))
        except RecordError as error:
            unread.append((folder, str(error)))
    told(Progress(len(found), len(found), "runs"))
    if not checked:
        raise RecordError(unread[0][1])
    return checked, unread


def _board(checked: Sequence[Verification], unread: Sequence[tuple[Path, str]]) -> Leaderboard:
    good = [one for one in checked if not one.contradictions]
    whole = [one for one in good if one.report.complete]
    ranked = sorted(whole, key=lambda one: (-(one.report.success_rate or 0.0), one.report.agent))
    rates = [one.report.success_rate or 0.0 for one in ranked]
    ranges = _ranges([one.report.interval or (0.0, 1.0) for one in ranked])
    entries = (
        Entry(rates.index(rate) + 1, one.report, one.standing, span)
        for one, rate, span in zip(ranked, rates, ranges, strict=True)
    )
    return Leaderboard(
        tuple(entries),
        tuple(one.report for one in good if not one.report.complete),
        tuple(one for one in checked if one.contradictions),
        tuple(unread),
    )


def _ranges(intervals: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """The best and the worst place of each."""
    return [
        (
            1 + sum(other > high for other, _ in intervals),
            len(intervals) - sum(other < low for _, other in intervals),
        )
        for low, high in intervals
    ]


def _check_comparable(reports: Sequence[Report]) -> None:
    first = reports[0]
    for other in reports:
        if other.fingerprint.digest != first.fingerprint.digest:
            raise ProtocolMismatch(
                f"{first.folder} and {other.folder} faced different things and are not ranked together. What differs: "
                f"{'; '.join(first.fingerprint.differences(other.fingerprint))}. Rank them apart: name "
                "the folders of runs that faced the same thing, as in `esc leaderboard runs/A runs/B`, or have a table "
                "of each with --out site/"
            )


def _check_once(reports: Iterable[Report]) -> None:
    known: dict[tuple[str, Shard | None], Report] = {}
    for report in reports:
        other = known.setdefault((report.run_key, report.shard), report)
        if other is not report:
            raise RecordError(f"{other.folder} and {report.folder} are the same run; name only one of them")

"""Rank runs that faced the same thing, and show the ranking: terminal, Markdown, JSON, one static page."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from esc_env.builtin.digest import digest
from esc_env.errors import ProtocolMismatch, RecordError
from esc_env.evaluation.imports import is_import
from esc_env.evaluation.pages import markdown, page
from esc_env.evaluation.ranking.verify import STANDINGS, Standing, Verification, verify
from esc_env.evaluation.runs.report import FIGURES, Report, figures, success_text
from esc_env.evaluation.runs.runner import is_run
from esc_env.progress import Progress, Told
from esc_env.rules import Rules

__all__ = ["Entry", "Leaderboard", "find_runs", "rank"]

_SHOWN = 60
"""Transcripts per run on the leaderboard's page; a run's own report.html has all."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One ranked run.

    Attributes:
        place: 1 for the highest SR; runs of equal SR share a place.
        report: of the run.
        standing: how far it can be believed; see `esc_env.evaluation.ranking.verify`.
        overlaps_next: whether its 95 % interval overlaps that of the run ranked next. Then which of the two is better
            is not settled by these runs (no overlap settles it; overlap alone does not prove them equal).
    """

    place: int
    report: Report
    standing: Standing
    overlaps_next: bool

    @property
    def mark(self) -> str:
        """The place as tables show it, with `~` where the next one's is not settled."""
        return f"{self.place}{' ~' if self.overlaps_next else ''}"


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Runs of one fingerprint: complete ones ranked by SR, the others apart.

    Attributes:
        entries: by place.
        incomplete: runs in which conversations have no outcome.
        refused: runs that contradict themselves, or what comes out when they are computed again.
    """

    entries: tuple[Entry, ...]
    incomplete: tuple[Report, ...]
    refused: tuple[Verification, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the protocol, ranked runs and incomplete ones, each as in `report.json`."""
        fingerprint = self.reports[0].fingerprint
        return {
            "fingerprint": {"digest": fingerprint.digest, "parts": dict(fingerprint.parts)},
            "ranked": [
                {
                    "place": entry.place,
                    "standing": entry.standing,
                    "overlaps_next": entry.overlaps_next,
                    **entry.report.to_json(),
                }
                for entry in self.entries
            ],
            "incomplete": [report.to_json() for report in self.incomplete],
            "refused": [
                {"agent": one.report.agent, "run_key": one.report.run_key, "contradictions": list(one.contradictions)}
                for one in self.refused
            ],
        }

    @property
    def scenarios(self) -> str:
        """The name of the scenario set."""
        return self.reports[0].scenarios

    def label(self, report: Report) -> str:
        """The agent's name, with its run's folder where two runs have agents of one name."""
        names = [other.agent for other in self.reports]
        return report.agent if names.count(report.agent) == 1 else f"{report.agent} ({report.folder.name})"

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
        """What a reader of the ranking must know: the protocol, unsettled places, incomplete runs and why."""
        first = self.reports[0]
        parts = first.fingerprint.parts
        notes = [
            f"{first.scenarios}: {parts['scenarios']}. Trials {parts['trials']}, {first.episodes:,} conversations of "
            f"each agent; seeker {_name(parts['seeker'])}, critic {_name(parts['critic'])}, T {parts['max_turns']}, "
            f"{_unusual(parts)}persona {parts['persona']}, seed {parts['seed']}; fingerprint "
            f"{first.fingerprint.digest}."
        ]
        here = {entry.standing for entry in self.entries}
        notes += [f"{name}: {STANDINGS[name]}." for name in STANDINGS if name in here]
        notes += [
            f"Refused, not ranked: {self.label(one.report)}. {'; '.join(one.contradictions[:3])}."
            for one in self.refused
        ]
        if any(entry.overlaps_next for entry in self.entries):
            notes.append("~ its interval overlaps the next one's: these runs do not settle which of the two is better.")
        for entry in self.entries:
            if entry.report.supporter_failures:
                notes.append(
                    f"{self.label(entry.report)}: {entry.report.supporter_failures:,} conversations failed because the "
                    "agent raised or returned no utterance; they count as not solved."
                )
            notes += [f"{self.label(entry.report)}: {line}." for line in entry.report.warnings]
        notes += [f"Safety, {self.label(one)}: {one.safety}." for one in self.reports if one.safety]
        for report in self.incomplete:
            why = "; ".join(f"{count:,} × {role}: {message}" for role, message, count in report.failure_messages)
            notes.append(
                f"Incomplete, not ranked: {self.label(report)}, {report.completed:,} of {report.episodes:,} "
                f"conversations have an outcome, solved so far {success_text(report)}. {why}".rstrip()
            )
        for role in ("seeker", "critic"):
            breaking = [r for r in self.reports if any(name == role for name, _, _ in r.failure_messages)]
            if len(breaking) == 1 < len(self.reports):
                notes.append(f"Only the conversations of {self.label(breaking[0])} break the {role}.")
        return notes

    def to_html(self) -> str:
        """One static page: ranking with intervals as bars, groups, transcripts, protocol."""
        columns = (
            ("#", ""), ("agent", "name"), ("success rate, 95 % interval", "bar"),
            *((name, "") for name in FIGURES), ("standing", "name"),
        )  # fmt: skip
        rows = [
            (
                entry.mark, escape(self.label(entry.report)),
                page.bar(entry.report.success_rate, entry.report.interval), *figures(entry.report),
                entry.standing,
            )
            for entry in self.entries
        ]  # fmt: skip
        title = f"Leaderboard: {self.scenarios}"
        body = [
            f"<h1>{escape(title)}</h1>",
            '<p class="lead">SR: share of conversations in which the seeker\'s problem was solved within T turns. '
            "Of all: the same, where one without an outcome counts as not solved. "
            "AT: average turns, a failure counting T. Score: mean final critic score, from −1 to +1.</p>",
            page.table(columns, rows) if rows else '<p class="note">No complete run yet.</p>',
            *(f'<p class="soft">{escape(note)}</p>' for note in self.notes()),
        ]
        body.append("<h2>Agent by agent</h2>")
        standings = {id(entry.report): f"{entry.standing}, " for entry in self.entries}
        standings |= {id(one.report): "refused, not ranked, " for one in self.refused}  # there to be looked at
        body += [
            _agent(self.label(report), report, standings.get(id(report), "not ranked, ")) for report in self.reports
        ]
        body.append(f"<h2>What every agent faced</h2>{page.facts(self.reports[0].fingerprint.parts)}")
        return page.document(title, body)


def _name(chair: Mapping[str, Any]) -> str:
    """Who sits there, and the model that speaks; whoever calls itself embedded and is not of this release."""
    model, name = chair.get("model"), chair.get("name")
    told = model.get("name") if isinstance(model, Mapping) else None
    if name == "builtin" and chair.get("digest") != digest():
        told = "not this release's"
    return f"{name}{f' ({told})' if told else ''}"


def _unusual(parts: Mapping[str, Any]) -> str:
    """The rules that are not as they usually are."""
    usual = {name: value for name, value in asdict(Rules()).items() if name != "max_turns"}
    return "".join(f"{name} {parts[name]}, " for name, value in usual.items() if parts[name] != value)


def _agent(name: str, report: Report, standing: str) -> str:
    shown = report.trajectories[:_SHOWN]
    rest = len(report.trajectories) - len(shown)
    more = f'<p class="soft">{rest:,} more in {escape(report.folder.name)}/report.html</p>' if rest else ""
    return (
        f"<details><summary><b>{escape(name)}</b> "
        f'<span class="soft">{standing}{success_text(report)}, {report.completed:,} of {report.episodes:,} '
        "conversations</span>"
        f"</summary>{''.join(page.notes(report))}<h3>By problem</h3>{page.groups_table(report.by_problem)}"
        f"<h3>Conversations</h3>{page.transcripts(shown)}{more}</details>"
    )


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """The run folders among `folders`; a folder that holds runs stands for all of them, but for `NAME~N` set aside.

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
        runs += [path for path in inside if not re.search(r"~\d+$", path.name)]
        if not runs:
            raise RecordError(f"{folder}: no run here. Give a folder that `esc eval` wrote, or one that holds several")
        found.update(dict.fromkeys(runs))
    return list(found)


def _held(folder: Path) -> bool:
    """Whether conversations are here that can be counted."""
    return is_run(folder) or is_import(folder)


def rank(
    runs: Sequence[str | Path | Report], *, replay: str | Path | None = None, progress: Told | None = None
) -> Leaderboard:
    """Rank runs of equal fingerprint by SR, higher first. Each is checked as `verify` does; forged ones are not ranked.

    Args:
        runs: run folders, folders that hold runs, files that `submit` wrote, or reports whose folders are still there.
        replay: the file in which their chat models were recorded.
        progress: told how many runs have been checked.

    Raises:
        ProtocolMismatch: runs of different fingerprints; the message names what differs.
        RecordError: no run, or the same run twice.
    """
    folders = [run.folder if isinstance(run, Report) else run for run in runs]
    found = find_runs(folders)
    if not found:
        raise RecordError("no runs to rank. Type: esc leaderboard runs/")
    told = progress or (lambda _: None)
    checked: list[Verification] = []
    for place, folder in enumerate(found):
        told(Progress(place, len(found), "runs"))
        checked.append(verify(folder, replay=replay))
    told(Progress(len(found), len(found), "runs"))
    good = [one for one in checked if not one.contradictions]
    _check_comparable([one.report for one in good] or [one.report for one in checked])
    whole = [one for one in good if one.report.complete]
    ranked = sorted(whole, key=lambda one: (-(one.report.success_rate or 0.0), one.report.agent))
    entries: list[Entry] = []
    for i, one in enumerate(ranked):
        report = one.report
        tied = i > 0 and report.success_rate == ranked[i - 1].report.success_rate
        following = ranked[i + 1].report.interval if i + 1 < len(ranked) else None
        overlaps = bool(report.interval and following and following[1] >= report.interval[0])
        entries.append(Entry(entries[-1].place if tied else i + 1, report, one.standing, overlaps))
    return Leaderboard(
        tuple(entries),
        tuple(one.report for one in good if not one.report.complete),
        tuple(one for one in checked if one.contradictions),
    )


def _check_comparable(reports: Sequence[Report]) -> None:
    first = reports[0]
    by_digest: dict[str, Report] = {}
    by_key: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        by_digest.setdefault(report.fingerprint.digest, report)
        by_key[report.run_key].append(report)
    for other in by_digest.values():
        if other.fingerprint.digest != first.fingerprint.digest:
            raise ProtocolMismatch(
                f"{first.folder} and {other.folder} faced different things and are not ranked together. What differs: "
                f"{'; '.join(first.fingerprint.differences(other.fingerprint))}. Rank them apart: name "
                "the folders of runs that faced the same thing, as in `esc leaderboard runs/A runs/B`"
            )
    for same in by_key.values():
        if len(same) > 1:
            raise RecordError(f"{same[0].folder} and {same[1].folder} are the same run; name only one of them")

"""The leaderboard as a page: a table for each fingerprint, and whatever its reader must not overlook."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from esc_env.evaluation.pages.charts import success_by_price
from esc_env.evaluation.pages.rendering import render
from esc_env.evaluation.ranking.leaderboard import Entry, Leaderboard
from esc_env.evaluation.ranking.verify import STANDINGS
from esc_env.evaluation.runs.report import FIGURES, Report, number

__all__ = ["COLUMNS", "Column", "leaderboard_pages"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table of ranked runs.

    Attributes:
        show: its text.
        meaning: what it says, for those who do not know.
        kind: how the template draws it: `name`, `wide` (a bar), `standing`, or nothing for a number.
        value: what it is sorted by; else the number that the text begins with, or the text where there is none.
    """

    show: Callable[[Entry], str]
    meaning: str = ""
    kind: str = ""
    value: Callable[[Entry], str] | None = None


def _figure(show: Callable[[Report], str]) -> Callable[[Entry], str]:
    return lambda entry: show(entry.report)


_MEANINGS = {
    "of all": "share of all conversations solved; one without an outcome is not",
    "SR": "success rate: share of conversations in which the problem was solved within T turns",
    "95 %": "its 95 % interval",
    "strict": "SR where a conversation counts only if three votes say solved",
    "AT": "average turns; a failure counts T",
    "score": "mean final critic score, from −1 to +1",
}

COLUMNS: Mapping[str, Column] = {
    "place": Column(
        lambda entry: entry.mark, "the places that the intervals allow", value=lambda entry: f"{entry.place}"
    ),
    "agent": Column(lambda entry: entry.report.agent, kind="name", value=lambda entry: entry.report.agent),
    "success": Column(_figure(FIGURES["SR"]), "SR as a line, its 95 % interval as a band, from 0 to 100 %", "wide"),
    **{name: Column(_figure(show), _MEANINGS.get(name, "")) for name, show in FIGURES.items()},
    "standing": Column(lambda entry: entry.standing, "how far the run can be believed", "standing"),
    "failed": Column(
        lambda entry: f"{entry.report.supporter_failures:,}",
        "conversations that failed because the agent raised or said nothing; they count as not solved",
    ),
    "broke off": Column(
        lambda entry: f"{entry.report.retried:,}",
        "conversations that an error or an interruption broke off, and that went on from there",
    ),
    "requests": Column(
        lambda entry: number(_each(entry.report, entry.report.usage.requests), 1),
        "requests to models in a conversation, of all chairs",
    ),
    "price": Column(
        lambda entry: _price_text(entry.report),
        "US dollars a conversation at list prices, of all chairs; – where no model was asked through this package",
    ),
}
"""The columns by name, as they stand from left to right."""


def leaderboard_pages(boards: Sequence[Leaderboard], site: Path | None = None) -> Iterator[tuple[str, str]]:
    """The name and the HTML of each page.

    Args:
        boards: at least one.
        site: the folder that they are written to. A run's own page is linked to from there where it has one and both
            lie in the current folder.
    """
    here = {entry.standing for board in boards for entry in board.entries}
    page = render(
        "leaderboard.html",
        boards=[_shown(board, boards[0], site) for board in boards],
        columns=COLUMNS,
        standings={name: told for name, told in STANDINGS.items() if name in here},
    )
    yield "leaderboard.html", page


@dataclass(frozen=True, slots=True)
class _Board:
    """What the template shows of a leaderboard."""

    board: Leaderboard
    digest: str
    differs: str | None
    rows: Sequence[tuple[Entry, Sequence[tuple[Column, str, str]]]]
    hrefs: Mapping[str, str | None]
    chart: object
    unpriced: Sequence[str]


def _shown(board: Leaderboard, first: Leaderboard, site: Path | None) -> _Board:
    known = [(entry, _price(entry.report)) for entry in board.entries]
    points = [
        (board.label(entry.report), entry.report.success_rate, entry.report.interval, price)
        for entry, price in known
        if price is not None and entry.report.success_rate is not None and entry.report.interval is not None
    ]
    return _Board(
        board,
        board.reports[0].fingerprint.digest,
        board.differs(first),
        [
            (entry, [(column, column.show(entry), _value(column, entry)) for column in COLUMNS.values()])
            for entry in board.entries
        ],
        {report.run_key: _href(report, site) for report in board.reports},
        success_by_price(points) if len(points) > 1 else None,
        [board.label(entry.report) for entry, price in known if price is None],
    )


def _value(column: Column, entry: Entry) -> str:
    """What a cell is sorted by; nothing where it is unknown."""
    if column.value:
        return column.value(entry)
    text = column.show(entry)
    if text in ("–", "unknown"):
        return ""
    found = re.match(r"[+−-]?\d[\d,.]*", text)
    return found[0].replace("−", "-").replace(",", "").removeprefix("+") if found else text


def _each(report: Report, count: float) -> float | None:
    return count / len(report.trajectories) if report.trajectories else None


def _price(report: Report) -> float | None:
    """US dollars a conversation; None where it is not known, or nobody asked a model that we would know of."""
    usage = report.usage
    return None if usage.cost is None or not usage.requests else _each(report, usage.cost)


def _price_text(report: Report) -> str:
    return "unknown" if report.usage.cost is None else number(_price(report), 4)


def _href(report: Report, site: Path | None) -> str | None:
    """A run's own page, as seen from the site."""
    page, here = report.folder / "report.html", Path.cwd()
    if site is None or not page.is_file():
        return None
    if not all(folder.resolve().is_relative_to(here) for folder in (site, report.folder)):
        return None
    return quote(Path(os.path.relpath(page.resolve(), site.resolve())).as_posix())

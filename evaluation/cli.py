"""`esc eval` and `esc leaderboard`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from esc_env.evaluation.report import Report

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `esc`."""
    app.command("eval")(_eval)
    app.command("leaderboard")(_leaderboard)


def _eval(
    agent: Annotated[
        list[str] | None,
        typer.Option(
            "--agent",
            "-a",
            help="The supporter: builtin:NAME, or python:MODULE:NAME for your own function or object. Repeat it for "
            "several. Default: all builtin ones.",
            show_default=False,
        ),
    ] = None,
    scenarios: Annotated[
        list[str] | None,
        typer.Option(
            "--scenarios", "-s", help="Who is talked with: builtin:test, or a file of scenarios. Repeat it for several. "
            "Default: builtin:test.", show_default=False,
        ),
    ] = None,
    seeker: Annotated[str, typer.Option(help="Who plays the person with the problem: builtin, or python:MODULE:NAME.")] = "builtin",
    critic: Annotated[str, typer.Option(help="Who judges whether the problem is solved: builtin, or python:MODULE:NAME.")] = "builtin",
    persona: Annotated[
        str | None,
        typer.Option(
            help="How every seeker meets help: cooperative, guarded, resistant, drifting, pleasing or hostile. "
            "Default: as each scenario says.", show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many scenarios. Default: all.", show_default=False)] = None,
    trials: Annotated[int, typer.Option(min=1, help="Conversations per scenario, each with its own seed.")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same conversations (with builtin chairs).")] = 0,
    max_turns: Annotated[int, typer.Option(min=1, help="T: exchanges before a conversation counts as not solved.")] = 8,
    concurrency: Annotated[int, typer.Option(min=1, help="Conversations held at the same time.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder; with several agents or scenario sets, a folder that gets one subfolder per run. "
            "Default: runs/RUN_KEY.", show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; the run that is there is kept beside it as NAME~1.")
    ] = False,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="Show a progress bar. Default: in a terminal.", show_default=False)
    ] = None,
) -> None:
    """Hold conversations, and say how many were solved: SR with its 95 % interval, AT, mean final score, errors.

    The same command continues a run that was stopped, and tries conversations again that ended in an error.
    """
    from esc_env.agents.spec import builtin_names
    from esc_env.evaluation.runner import evaluate
    from esc_env.rules import Rules

    agents = agent or list(builtin_names())
    sources = scenarios or ["builtin:test"]
    several = len(agents) * len(sources) > 1
    bar = sys.stderr.isatty() if progress is None else progress
    for source in sources:
        reports = []
        for name in agents:
            folder = out / f"{_slug(name)}--{_slug(source)}" if out and several else out
            with _progress(f"{name} on {source}", bar) as told:
                reports.append(
                    evaluate(
                        name, source, seeker=seeker, critic=critic, rules=Rules(max_turns=max_turns), persona=persona,
                        limit=limit, trials=trials, seed=seed, concurrency=concurrency, out=folder, fresh=fresh,
                        progress=told,
                    )  # fmt: skip
                )
        _print_reports(source, reports)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


@contextmanager
def _progress(title: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_reports(title: str, reports: Sequence[Report]) -> None:
    from rich.console import Console
    Console().print(_table(title, reports))


def _table(title: str, reports: Sequence[Report]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from esc_env.evaluation.page import interval_text, number, percent

    table = Table(title=title)
    table.add_column("agent")
    for name in ("SR", "95 %", "AT", "score", "episodes", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        table.add_row(
            Text(report.agent), percent(report.success_rate), interval_text(report.interval),
            number(report.average_turns, 2), number(report.mean_score, 2, signed=True),
            f"{report.completed:,}", f"{report.errors:,}",
        )  # fmt: skip
    return table


def _leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs (runs/).")],
    out: Annotated[Path | None, typer.Option(help="Write leaderboard.md, .json and .html here.")] = None,
) -> None:
    """Rank runs that faced the same thing; incomplete ones are listed apart."""

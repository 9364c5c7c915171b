"""How runs and imported conversations are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from esc_env.escaping import one_line

if TYPE_CHECKING:
    from esc_env.evaluation.runs.report import Report
    from esc_env.protocols import Usage
from esc_env.evaluation.commands.tables import print_table

__all__ = ["print_imports", "print_reports"]


def print_reports(
    source: str, reports: Sequence[Report], resumed: Mapping[str, int | None], pages: Mapping[str, Path]
) -> None:
    """The table, then whatever a reader must not overlook, then where it is kept.

    Args:
        source: the scenarios.
        reports: of runs.
        resumed: by run key: how many conversations had an outcome before.
        pages: by run key: the first page, where pages were written.
    """
    from esc_env.evaluation.runs.report import percent, success_text

    _print_results(source, reports)
    for report in reports:
        if resumed.get(report.run_key) == report.due:
            typer.echo(f"{report.agent}: was complete; nothing was run. To start over, add --fresh")
        if report.supporter_failures:
            typer.echo(
                f"{report.agent}: failed in {report.supporter_failures:,} of {report.completed:,} conversations by "
                "itself; these count as not solved"
            )
        for line in report.warnings:
            typer.echo(f"{report.agent}: {line}")
        if report.usage.requests:
            typer.echo(f"{report.agent}: {_cost(report.usage, len(report.trajectories), report.seconds)}")
        if report.safety:
            typer.echo(f"{report.agent}: safety, {report.safety}")
        if len(sure := report.course.pass_hat) > 1:
            typer.echo(f"{report.agent}: solved in all of {len(sure)} trials (pass^{len(sure)}): {percent(sure[-1])}")
        for role, message, count in report.failure_messages:
            typer.echo(f"{report.agent}: {count:,} × {role}: {one_line(message)}")
        missing = report.due - report.completed
        if report.shard:
            typer.echo(
                f"{report.agent}: {report.shard.name}, so incomplete: it holds {report.due:,} of the run's "
                f"{report.episodes:,} conversations. Put all shards together with: esc merge"
            )
        if missing:
            typer.echo(
                f"{report.agent}: incomplete, {missing:,} of {report.due:,} conversations have no outcome "
                f"({report.errors:,} ended in an error). Solved: {success_text(report)}. "
                "The same command goes on where they broke off"
            )
    for report in reports:
        typer.echo(f"{report.agent}: {pages.get(report.run_key, report.folder)}")


def _cost(usage: Usage, conversations: int, seconds: float | None) -> str:
    tokens = f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens (prompt + completion)"
    cost = "cost unknown" if usage.cost is None else f"{usage.cost:,.2f} USD at list prices"
    answered = f", answered by {one_line(', '.join(usage.models))}" if usage.models else ""
    each = f"; a conversation took {usage.requests / conversations:,.1f} requests"
    if seconds is not None:
        each += f" and {seconds:,.1f} s, all of them {seconds * conversations:,.1f} s one after another"
    return f"{usage.requests:,} requests to models, {tokens}, {cost}{answered}{each}"


def _print_results(source: str, reports: Sequence[Report]) -> None:
    from esc_env.evaluation.runs.report import FIGURES, figures

    columns = [("agent", False), *((name, True) for name in (*FIGURES, "ended"))]
    rows = [(report.agent, *figures(report), f"{report.completed:,}/{report.episodes:,}") for report in reports]
    print_table(source, columns, rows)


def print_imports(folders: Sequence[Path]) -> None:
    """Print one table of imported conversations, best first. Raises ProtocolMismatch where they are not comparable."""
    from esc_env.evaluation.imports import read_import, together
    from esc_env.evaluation.runs.report import number

    reports = together([read_import(folder) for folder in folders])
    first = reports[0]
    columns = [("agent", False), ("conversations", True), ("turns", True)]
    if measure := first.measure:
        columns += [(measure.name, True), ("95 %", True)]
        columns += [(f"≥ {measure.success:g}", True)] if measure.success is not None else []
        columns += [(f"< {measure.failure:g}", True)] if measure.failure is not None else []
    rows = []
    for report in reports:
        cells = [report.agent, f"{report.conversations:,}", number(report.turns, 2)]
        if measure:
            low, high = report.interval or (None, None)
            cells += [number(report.mean, 2), f"{number(low, 1)} to {number(high, 1)}"]
            cells += [f"{count:,}" for count in (report.succeeded, report.failed) if count is not None]
        rows.append(cells)
    scale = f", {measure.name} from {measure.low:g} to {measure.high:g}" if measure and measure.low is not None else ""
    print_table(f"{first.source}: {first.scenarios}{scale}", columns, rows)
    typer.echo("Held and measured elsewhere, in the source's own scale: not to be compared with SR or scores of ours.")

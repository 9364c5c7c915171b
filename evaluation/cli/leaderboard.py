"""`esc leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esc_env.errors import RecordError
from esc_env.evaluation.cli.table import one_line, print_table

__all__ = ["command"]


def command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs, such as runs/.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Also write leaderboard.md, leaderboard.json and leaderboard.html into this folder."),
    ] = None,
) -> None:
    """Rank runs that faced the same thing.

    Complete runs are ranked by SR; incomplete ones are listed apart. Runs with another fingerprint (scenarios, persona,
    seeker, critic, seed, …) are refused, naming what differs.
    """
    from esc_env.evaluation.leaderboard import rank
    from esc_env.evaluation.page import interval_text, number, percent
    from esc_env.records import write_json

    board = rank(runs)
    columns = [("#", False), ("agent", False), *((name, True) for name in ("SR", "95 %", "AT", "score", "episodes"))]
    rows = [
        (
            f"{entry.place}{' ~' if entry.overlaps_next else ''}", board.label(entry.report),
            percent(entry.report.success_rate), interval_text(entry.report.interval),
            number(entry.report.average_turns, 2), number(entry.report.mean_score, 2, signed=True),
            f"{entry.report.completed:,}",
        )
        for entry in board.entries
    ]  # fmt: skip
    if board.entries:
        print_table(f"Leaderboard: {board.scenarios}", columns, rows)
    else:
        typer.echo("No complete run yet.")
    for note in board.notes():
        typer.echo(one_line(note))
    if out:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RecordError(f"{out}: is a file; give a folder with --out") from None
        (out / "leaderboard.md").write_text(board.to_markdown(), encoding="utf-8")
        (out / "leaderboard.html").write_text(board.to_html(), encoding="utf-8")
        write_json(out / "leaderboard.json", board.to_json())
        typer.echo(f"Written: {out / 'leaderboard.html'}, leaderboard.md, leaderboard.json")

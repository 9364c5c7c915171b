"""The command lines of this package: `esc eval`, `esc leaderboard` and `esc validate`."""

import typer

from esc_env.evaluation.cli import eval as benchmark
from esc_env.evaluation.cli import leaderboard, validate

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `esc`."""
    app.command("eval")(benchmark.command)
    app.command("leaderboard")(leaderboard.command)
    app.add_typer(validate.app, name="validate")

"""The command lines of this package: `esc collect` and `esc train`."""

import typer

from esc_env.training.cli import collect, train

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `esc`."""
    app.command("collect")(collect.command)
    app.add_typer(train.app, name="train")

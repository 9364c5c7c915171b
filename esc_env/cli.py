"""The command line, `esc`. Commands of the other packages are found through entry points, so this looks down only.

A package adds commands with an entry point of group `esc_env.commands` whose value is a function `register(app)`.
Modules that hold them import nothing heavy: a command loads its package when it is called.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from esc_env.errors import ESCError

__all__ = ["build_app", "main"]


def build_app() -> typer.Typer:
    """The app with every installed command.

    Two entry points may name the same command; the later one wins, as Typer has it.
    """
    app = typer.Typer(
        name="esc",
        help="Emotional support conversation: benchmark supporters, talk to seekers, read scenarios.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for point in sorted(entry_points(group="esc_env.commands"), key=lambda point: point.name):
        point.load()(app)
    app.command("scenarios")(_scenarios)
    app.command("doctor")(_doctor)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `esc`. Errors that are ours are one line on stderr and exit code 1, never a traceback."""
    warnings.showwarning = _show_warning
    try:
        build_app()(None if arguments is None else list(arguments))
    except ESCError as error:
        _fail(str(error))
    except BrokenPipeError:  # `esc … | head` has read enough
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")


def _fail(message: str) -> None:
    print(f"esc: {message}", file=sys.stderr)
    raise SystemExit(1)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"esc: note: {message}", file=sys.stderr)


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from esc_env import __version__

        typer.echo(f"esc-env {__version__}")
        raise typer.Exit


def _scenarios(
    source: Annotated[str, typer.Argument(help="A file, or builtin[:SPLIT], esconv:SPLIT, extes:SPLIT.")],
) -> None:
    """Say what a scenario file or set holds: counts, and every record that was skipped with its reason."""


def _doctor() -> None:
    """Say what is installed, what each missing extra would add, and whether data and keys are found."""

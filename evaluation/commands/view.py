"""`esc view`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from esc_env.errors import SpecError
from esc_env.evaluation.commands.serving import Browser, Host, Port, serve

__all__ = ["view"]


def view(
    folder: Annotated[Path, typer.Argument(help="A run, or a folder that holds runs at any depth.")] = Path("runs"),
    port: Port = 8765,
    host: Host = "127.0.0.1",
    browser: Browser = False,
) -> None:
    """Show runs in the browser, and follow one that is being made. Ctrl-C ends it.

    Folders are only read: no run is ever held up or touched, and one goes on when this is ended.
    """
    if not folder.is_dir():
        raise SpecError(f"{folder}: no folder. Name one that holds runs: esc view FOLDER")

    def app(token: str | None, stopping: Callable[[], bool]) -> Any:
        from esc_env.evaluation.view.app import viewer

        return viewer(folder, token=token, stopping=stopping)

    serve(app, str(folder), host=host, port=port, browser=browser)

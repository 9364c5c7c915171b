"""Pages of what a command makes, while it makes it: shown by a process of their own, which only reads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from esc_env.cli import build_app
from esc_env.errors import MissingExtra, SpecError
from esc_env.evaluation.commands.serving import serve

__all__ = ["beside"]

PATIENCE = 5.0
"""Seconds within which the viewer must end when it is told to. Ours."""


@contextmanager
def beside(folder: Path, page: str = "now/") -> Iterator[None]:
    """Show in the browser what is made meanwhile; once it is made, until Ctrl-C. The address is printed on stderr.

    Whatever becomes of the viewer, what is made goes on. However this process ends, the viewer does too: it waits for
    the end of its input. Ctrl-C in a terminal is for this process alone.

    Args:
        folder: where it is made; it need not be there yet.
        page: which of the viewer's pages to open; by default that of the run which is made.

    Raises:
        MissingExtra: the packages that serve are not installed.
        SpecError: the viewer did not start.
    """
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise MissingExtra(package, "web")
    command = [sys.executable, "-P", "-m", __name__, str(folder), page]
    viewer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert viewer.stdin is not None
    assert viewer.stdout is not None
    try:
        if not (told := viewer.stdout.readline()):
            raise SpecError("--view: the viewer did not start. Leave --view out, and look with: esc view")
        typer.echo(told.rstrip("\n"), err=True)
        yield
        if viewer.poll() is None:
            typer.echo("Its pages stay until Ctrl-C", err=True)
            with suppress(KeyboardInterrupt):
                viewer.wait()
    finally:
        viewer.stdin.close()
        viewer.stdout.close()
        try:
            viewer.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            viewer.kill()
            viewer.wait()


def _main() -> None:
    folder, page = sys.argv[1:]
    build_app()  # which adds what other packages show

    def app(token: str | None, stopping: Callable[[], bool]) -> Any:
        from esc_env.evaluation.view.app import viewer

        return viewer(folder, token=token, stopping=stopping)

    serve(app, "Follow it here", host="127.0.0.1", port=0, browser=True, page=page, until=lambda: os.read(0, 1))


if __name__ == "__main__":
    _main()

"""`esc view`."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from esc_env.errors import MissingExtra, SpecError

__all__ = ["view"]


def view(
    folder: Annotated[Path, typer.Argument(help="A run, or a folder that holds runs at any depth.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    host: Annotated[
        str, typer.Option(help="Where to listen. Anywhere but on this machine the address carries a secret token.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = False,
) -> None:
    """Show runs in the browser, and follow one that is being made. Ctrl-C ends it.

    Folders are only read: no run is ever held up or touched, and one goes on when this is ended.
    """
    try:
        import uvicorn

        from esc_env.evaluation.view.app import viewer
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        raise MissingExtra(error.name, "web") from error

    if not folder.is_dir():
        raise SpecError(f"{folder}: no folder. Name one that holds runs: esc view FOLDER")
    token = None if _on_loopback(host) else secrets.token_urlsafe(32)
    listening = _listen(host, port)
    settings = uvicorn.Config(
        viewer(folder, token=token, stopping=lambda: server.should_exit),
        log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none",
    )  # fmt: skip
    server = uvicorn.Server(settings)
    address = _address(host, listening.getsockname()[1], token)
    typer.echo(f"{folder}: {address} (Ctrl-C ends it)")
    if browser:
        typer.launch(address)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def _on_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        told = error.strerror or error
        raise SpecError(f"{host}, port {port}: cannot be listened on ({told}). Another port: --port 0") from error


def _address(host: str, port: int, token: str | None) -> str:
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{port}/" + (f"?token={token}" if token else "")

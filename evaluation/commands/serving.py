"""How commands serve pages: on loopback, or elsewhere with a token in the address; until Ctrl-C."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Annotated, Any

import typer

from esc_env.errors import MissingExtra, SpecError

__all__ = ["Browser", "Host", "Port", "serve"]

Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")]
Host = Annotated[
    str, typer.Option(help="Where to listen. Anywhere but on this machine the address carries a secret token.")
]
Browser = Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")]


def serve(
    app: Callable[[str | None, Callable[[], bool]], Any],
    name: str,
    *,
    host: str,
    port: int,
    browser: bool,
    page: str = "",
    until: Callable[[], object] | None = None,
) -> None:
    """Serve an app until Ctrl-C, and print where.

    Args:
        app: makes it, given the token (None on loopback) and what says whether the server is ending.
        name: what stands before the address.
        host, port, browser: as the options have it.
        page: which one to begin with.
        until: returns when to end before Ctrl-C.

    Raises:
        MissingExtra: the packages that serve are not installed.
        SpecError: it cannot be listened there.
    """
    token = None if _on_loopback(host) else secrets.token_urlsafe(32)
    try:
        import uvicorn

        made = app(token, lambda: server.should_exit)
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        raise MissingExtra(error.name, "web") from error

    if browser and token:
        raise SpecError("--open would show the token to everybody on this machine. Open the printed address yourself")
    listening = _listen(host, port)
    settings = uvicorn.Config(
        made, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none"
    )
    server = uvicorn.Server(settings)
    address = _address(host, listening.getsockname()[1], page, token)
    typer.echo(f"{name}: {address}{'' if until else ' (Ctrl-C ends it)'}")
    if browser:  # in a thread: some browsers hold up whoever opens them until they are closed
        threading.Thread(target=typer.launch, args=(address,), daemon=True).start()

    def end() -> None:
        assert until is not None
        until()
        server.should_exit = True

    if until:
        threading.Thread(target=end, daemon=True).start()
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


def _address(host: str, port: int, page: str, token: str | None) -> str:
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{port}/{page}" + (f"?token={token}" if token else "")

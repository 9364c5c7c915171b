"""Who may read what is served on this machine, and from where a form may come.

On loopback whoever asks by its names is let in; elsewhere whoever has the token that the address carried, once. A form
is taken only from a page of the same server, and is short.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest
from urllib.parse import parse_qsl, quote

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["LONGEST", "Guard", "cookie", "form_of", "form_token", "of_session"]

LONGEST = 1 << 16
"""The longest form, in bytes. Ours: a hundred times what one of ours has."""
_FIELDS = 100
"""The most fields of a form. Ours."""

_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.I)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "x-frame-options": "DENY",
}


class Guard:
    """Lets in who may read: by the name that the browser believes to talk to, or by the token.

    Args:
        app: what is guarded.
        token: what `?token=` must say, once; None for an app that answers on loopback, by its names alone.
        command: what printed the address, such as `esc view`.
        forms: whether POST is answered too, of a page that came from here.
    """

    def __init__(self, app: ASGIApp, token: str | None, command: str, forms: bool = False) -> None:
        self.app = app
        self.token = token
        self.command = command
        self.methods = ("GET", "POST") if forms else ("GET",)
        # without a referrer a browser does not say either from which page a form comes
        self.headers = _HEADERS | {"referrer-policy": "same-origin" if forms else "no-referrer"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        refused = self._refused(Request(scope))
        await (refused or self.app)(scope, receive, guarded)

    def _refused(self, request: Request) -> Response | None:
        if request.method not in self.methods:
            told = f"only {' and '.join(self.methods)} {'is' if len(self.methods) == 1 else 'are'} answered"
            return PlainTextResponse(told, 405, {"allow": ", ".join(self.methods)})
        elsewhere = request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if elsewhere and request.headers.get("sec-fetch-dest", "document") != "document":
            return PlainTextResponse("a page elsewhere may link here, and no more", 403)
        host = request.headers.get("host", "")
        if request.method == "POST" and request.headers.get("origin") not in (f"http://{host}", f"https://{host}"):
            return PlainTextResponse("a form is taken only from a page of this server", 403)
        if self.token is None:
            known = _LOOPBACK.fullmatch(host)
            return None if known else PlainTextResponse(f"ask by the address that {self.command} printed", 400)
        name = cookie(request, self.command)
        if self._is(request.query_params.get("token", "")):
            # so that the token stands in no history; lax, since a strict cookie does not survive this where a link in a
            # mail was followed, and no GET changes anything
            answer = RedirectResponse("/" + quote(request.scope["path"].lstrip("/")), 303)
            answer.set_cookie(name, self.token or "", httponly=True, samesite="lax")
            return answer
        if self._is(request.cookies.get(name, "")):
            return None
        return PlainTextResponse(f"open the address that {self.command} printed, with its token", 403)

    def _is(self, given: str) -> bool:
        return compare_digest(given.encode(), (self.token or "").encode())


def cookie(request: Request, name: str) -> str:
    """A name for a cookie of ours: cookies do not tell ports apart."""
    return f"{name.replace(' ', '-')}-{(request.scope.get('server') or ('', 0))[1]}"


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form that was sent. Raises HTTPException: too long, no such form, or a field twice."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "send a form")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LONGEST:
            raise HTTPException(413, f"a form of more than {LONGEST >> 10} KiB")
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS, errors="strict")
    except ValueError as error:
        raise HTTPException(400, "no form that can be read") from error
    if len(made := dict(fields)) < len(fields):
        raise HTTPException(400, "a field stands twice")
    return made


def form_token(session: str) -> str:
    """What a form of a session carries; the cookie cannot be told from it."""
    return sha256(f"form {session}".encode()).hexdigest()


def of_session(form: Mapping[str, str], session: str) -> bool:
    """Whether a form is from a page of this session."""
    return bool(session) and compare_digest(form.get("token", "").encode(), form_token(session).encode())

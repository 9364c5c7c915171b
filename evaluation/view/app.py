"""What `esc view` serves: a list of runs, the page of each, and what a run that is being made comes to, as it does.

A page is rendered of the folder as it is when it is asked for. Only GET is answered. A name in an address is looked up
among the runs that are found, never joined to a path.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from hmac import compare_digest
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esc_env.errors import RecordError, TornLineWarning
from esc_env.escaping import one_line
from esc_env.evaluation.pages.rendering import render
from esc_env.evaluation.pages.run import run_pages
from esc_env.evaluation.runs.runner import TRAJECTORIES, read_run
from esc_env.evaluation.view.following import Following, Run, find

__all__ = ["viewer"]

POLL = 0.5
"""Seconds between two looks at a file that grows. Ours."""
SHOWN = 50
"""Conversations that had ended before, of which a page that is opened is told. Ours; its list is no longer."""
KEPT = 4
"""Runs whose pages are kept as rendered; a long run's take megabytes. Ours."""
_BEAT = 30
"""Looks after which a silent stream says that it lives, so that one whose page is gone is noticed. Ours."""

_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.I)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "x-frame-options": "DENY",
}


def viewer(folder: str | Path, *, token: str | None = None, stopping: Callable[[], bool] = lambda: False) -> Starlette:
    """The app that shows a folder of runs.

    Args:
        folder: a run, or what holds runs at any depth. Nothing in it is written or locked.
        token: what `?token=` must say, once; None for an app that answers on loopback, by its names alone.
        stopping: asked by open streams whether to end.
    """
    shown = _Viewer(Path(folder), stopping)
    routes = [
        Route("/", shown.index),
        Route("/run/{name:path}/report{rest}", shown.page),
        Route("/run/{name:path}/events", shown.events),
        Route("/run/{name:path}/", shown.follow),
    ]
    handlers = {HTTPException: _refuse, RecordError: _damaged}
    return Starlette(routes=routes, middleware=[Middleware(_Guard, token=token)], exception_handlers=handlers)


@dataclass(slots=True)
class _Viewer:
    """The answers, and the pages rendered last, those of each run with the state of its file then."""

    folder: Path
    stopping: Callable[[], bool]
    rendered: dict[Path, tuple[tuple[int, int], _Pages]] = field(default_factory=dict)
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def index(self, _: Request) -> Response:
        runs = [(run, quote(run.name)) for run in find(self.folder)]
        return HTMLResponse(render("runs.html", folder=one_line(str(self.folder)), runs=runs))

    def follow(self, request: Request) -> Response:
        run = self._run(request)
        here = f"/run/{quote(run.name)}"
        links = {"events": f"{here}/events", "report": f"{here}/report.html"}
        return HTMLResponse(render("follow.html", connect=True, run=run, **links))

    def page(self, request: Request) -> Response:
        folder = self._run(request).folder
        with self.one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore", TornLineWarning)  # of a line that is just being written
            now = _stamp(folder / TRAJECTORIES)
            if folder not in self.rendered or self.rendered[folder][0] != now:
                self.rendered.pop(folder, None)
                self.rendered[folder] = (now, _Pages(run_pages(read_run(folder))))
                if len(self.rendered) > KEPT:
                    del self.rendered[next(iter(self.rendered))]
            page = self.rendered[folder][1].find(f"report{request.path_params['rest']}")
        if page is None:
            raise HTTPException(404, "no such page of this run")
        return HTMLResponse(page)

    async def events(self, request: Request) -> Response:
        run = await run_in_threadpool(self._run, request)
        following = await run_in_threadpool(Following, run.folder)
        return StreamingResponse(self._stream(following), media_type="text/event-stream")

    async def _stream(self, following: Following) -> AsyncIterator[str]:
        """What has ended lately, then each that ends, until all have. `begin` has a page that comes back after its
        connection broke empty its list."""
        first, silent = True, 0
        while not self.stopping():
            try:
                news = await run_in_threadpool(following.read)
            except RecordError as error:
                yield _event("trouble", {"message": one_line(str(error))})
                return
            if first:
                yield _event("begin", {})
            for ended in news[-SHOWN:]:
                yield _event("conversation", ended.to_json())
            if news or first:
                yield _event("progress", following.progress())
            silent = 0 if news or first else silent + 1
            if silent and not silent % _BEAT:
                yield ": still here\n\n"
            if following.complete:
                yield _event("end", {})
                return
            first = False
            await asyncio.sleep(POLL)

    def _run(self, request: Request) -> Run:
        name = request.path_params["name"]
        if not (found := find(self.folder, name)):
            raise HTTPException(404, "no such run here")
        run = found[0]
        if run.trouble:
            raise RecordError(run.trouble)
        return run


class _Pages:
    """Pages of a run, rendered as far as they were asked for."""

    def __init__(self, coming: Iterator[tuple[str, str]]) -> None:
        self.coming = coming
        self.ready: dict[str, str] = {}

    def find(self, name: str) -> str | None:
        """A page; None where there is none of this name."""
        while name not in self.ready and (following := next(self.coming, None)):
            self.ready[following[0]] = following[1]
        return self.ready.get(name)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        about = path.lstat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size


def _event(kind: str, data: object) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, error.status_code)


def _damaged(_: Request, error: Exception) -> Response:
    return PlainTextResponse(one_line(str(error)), 500)


class _Guard:
    """Lets in who may read: by the name that the browser believes to talk to, or by the token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refused = self._refused(Request(scope))
        await (refused or self.app)(scope, receive, guarded)

    def _refused(self, request: Request) -> Response | None:
        if request.method != "GET":
            return PlainTextResponse("only GET is answered", 405, {"allow": "GET"})
        if self.token is None:
            known = _LOOPBACK.fullmatch(request.headers.get("host", ""))
            return None if known else PlainTextResponse("ask by the address that esc view printed", 400)
        name = f"esc-view-{(request.scope.get('server') or ('', 0))[1]}"  # cookies do not tell ports apart
        if self._is(request.query_params.get("token", "")):
            answer = RedirectResponse(
                "/" + quote(request.scope["path"].lstrip("/")), 303
            )  # so that the token stands in no history
            answer.set_cookie(name, self.token or "", httponly=True, samesite="strict")
            return answer
        if self._is(request.cookies.get(name, "")):
            return None
        return PlainTextResponse("open the address that esc view printed, with its token", 403)

    def _is(self, given: str) -> bool:
        return compare_digest(given.encode(), (self.token or "").encode())

"""What `esc view` serves: a list of runs, the page of each, and what a run that is being made comes to, as it does.

A page is rendered of the folder as it is when it is asked for. Only GET is answered. A name in an address is looked up
among the runs that are found, never joined to a path.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from esc_env.errors import RecordError, TornLineWarning
from esc_env.escaping import one_line
from esc_env.evaluation.pages.conversations import Conversation
from esc_env.evaluation.pages.rendering import render
from esc_env.evaluation.pages.run import run_pages
from esc_env.evaluation.runs.runner import TRAJECTORIES, begun_run, read_run
from esc_env.evaluation.view.following import Following, Run, find, stamp
from esc_env.evaluation.view.guard import Guard
from esc_env.evaluation.view.kinds import KINDS

__all__ = ["viewer"]

POLL = 0.5
"""Seconds between two looks at a file that grows. Ours."""
SHOWN = 50
"""Conversations that have ended, of which a page is told at once. Ours; its list is no longer."""
PART = 500
"""Conversations of a long run after which a page that is opened is told how far it is. Ours."""
KEPT, FOLLOWED = 4, 64
"""Runs whose pages are kept as rendered, and runs whose figures are; a long run's pages take megabytes. Ours."""
WAIT = 5.0
"""Seconds that a page waits for its turn to be rendered. Ours."""
RELOAD = 2.0
"""Seconds from one look to the next whether there is more than a page shows that loads itself again. Ours."""
_BEAT = 30
"""Looks after which a silent stream says that it lives, so that one whose page is gone is noticed. Ours."""


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
        Route("/events", shown.growth),
        Route("/now/", shown.now),
        Route("/now/events", shown.beginning),
        Route("/run/{name:path}/report{rest}", shown.page),
        Route("/run/{name:path}/events", shown.events),
        Route("/run/{name:path}/conversation/{number:int}", shown.conversation),
        Route("/run/{name:path}/", shown.follow),
    ]
    handlers = {HTTPException: _refuse, RecordError: _damaged}
    return Starlette(
        routes=routes, middleware=[Middleware(Guard, token=token, command="esc view")], exception_handlers=handlers
    )


@dataclass(slots=True)
class _Viewer:
    """The answers, and of the runs that were shown last: the pages, with the state of its file then, and how far it was
    read."""

    folder: Path
    stopping: Callable[[], bool]
    since: int = field(default_factory=time.time_ns)
    rendered: dict[Path, tuple[object, _Pages]] = field(default_factory=dict)
    followed: dict[Path, tuple[tuple[int, int], Following]] = field(default_factory=dict)
    looking_up: threading.Lock = field(default_factory=threading.Lock)
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def index(self, _: Request) -> Response:
        now = stamp(self.folder)
        runs = [(run, quote(run.name)) for run in find(self.folder)]
        return HTMLResponse(render("runs.html", connect=True, folder=self._name, runs=runs, stamp=now))

    def growth(self, request: Request) -> Response:
        since = request.query_params.get("since", "")
        return _events(self._growth(lambda: stamp(self.folder), since))

    def now(self, _: Request) -> Response:
        """The page of the run that was begun last, or gone on with, since this is served."""
        if name := self._begun():
            return RedirectResponse(f"/run/{quote(name)}/", 303)
        return HTMLResponse(render("waiting.html", connect=True, folder=self._name))

    def beginning(self, _: Request) -> Response:
        return _events(self._growth(self._begun, ""))

    def _begun(self) -> str:
        """Its name; of a pipeline, which holds the runs that it makes, that of the whole."""
        begun = {
            run.name: (run.folder == self.folder, when)
            for run in find(self.folder)
            if not run.trouble and (when := _stamp(run.folder / "run.json")[0]) >= self.since
        }
        return max(begun, key=begun.__getitem__, default="")

    @property
    def _name(self) -> str:
        return one_line(str(self.folder if self.folder.name else self.folder.resolve()))  # `.` says nothing

    def follow(self, request: Request) -> Response:
        run = self._run(request)
        if run.kind in KINDS:
            return self._shown(run)
        return HTMLResponse(render("follow.html", connect=True, run=run, here=f"/run/{quote(run.name)}"))

    def page(self, request: Request) -> Response:
        return self._shown(self._run(request), f"report{request.path_params['rest']}")

    def _shown(self, run: Run, name: str = "report.html") -> Response:
        """A page of a run, rendered anew if its folder has changed."""
        folder, pages = run.folder, KINDS[run.kind]() if run.kind in KINDS else None
        with self._turn(), warnings.catch_warnings():
            warnings.simplefilter("ignore", TornLineWarning)  # of a line that is just being written
            now = pages.stamp(folder) if pages else _stamp(folder / TRAJECTORIES)
            if folder not in self.rendered or self.rendered[folder][0] != (now, run.state):
                self.rendered.pop(folder, None)
                events = f"/run/{quote(run.name)}/events?since={now}"
                made = (
                    iter([("report.html", pages.page(folder, events=events))]) if pages else run_pages(read_run(folder))
                )
                self.rendered[folder] = ((now, run.state), _Pages(made))
                if len(self.rendered) > KEPT:
                    del self.rendered[next(iter(self.rendered))]
            page = self.rendered[folder][1].find(name)
        if page is None:
            raise HTTPException(404, "no such page of this run")
        return HTMLResponse(page)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One page at a time; who waits in vain lets go of the thread, which other pages need."""
        if not self.one_at_a_time.acquire(timeout=WAIT):
            raise HTTPException(503, "another page takes long; load this one again")
        try:
            yield
        finally:
            self.one_at_a_time.release()

    def conversation(self, request: Request) -> Response:
        """One conversation of a run, as it stands there now."""
        run = self._run(request)
        if run.kind in KINDS:
            raise HTTPException(404, "no conversations here")
        held = self._following(run.folder).conversation(request.path_params["number"])
        if held is None:
            raise HTTPException(404, "no such conversation has ended here")
        shown = Conversation.of(held, begun_run(run.folder))
        return HTMLResponse(render("held.html", run=run, here=f"/run/{quote(run.name)}", shown=shown))

    async def events(self, request: Request) -> Response:
        run = await run_in_threadpool(self._run, request)
        if run.kind in KINDS:
            pages = KINDS[run.kind]()
            return _events(self._growth(lambda: pages.stamp(run.folder), request.query_params.get("since", "")))
        return _events(self._stream(run.folder))

    def _following(self, folder: Path) -> Following:
        """What was read of a run, for all who follow it, until another one is begun there."""
        begun = _stamp(folder / "scenarios.jsonl")
        with self.looking_up:
            known = self.followed.pop(folder, None)
            self.followed[folder] = known = known if known and known[0] == begun else (begun, Following(folder))
            if len(self.followed) > FOLLOWED:
                del self.followed[next(iter(self.followed))]
        return known[1]

    async def _growth(self, now: Callable[[], str], since: str) -> AsyncIterator[str]:
        """`grown`, once there is another state than `since`."""
        due = time.monotonic() + RELOAD if since else 0.0  # what was just loaded stands for a while
        while not self.stopping():
            if time.monotonic() >= due:
                if await run_in_threadpool(now) != since:
                    yield _event("grown", {})
                    return
                yield ": still here\n\n"
                due = time.monotonic() + RELOAD
            await asyncio.sleep(min(POLL, RELOAD))

    async def _stream(self, folder: Path) -> AsyncIterator[str]:
        """What has ended lately, then each that ends, until all have. `begin` has a page that comes back after its
        connection broke, or whose run is begun anew, empty its list."""
        following, place, silent = None, 0, 0
        told: dict[str, Any] = {}
        while not self.stopping():
            try:
                now = await run_in_threadpool(self._following, folder)
                await run_in_threadpool(now.read, PART)
            except RecordError as error:
                yield _event("trouble", {"message": one_line(str(error))})
                return
            if now is not following:
                following, place = now, 0
                yield _event("begin", {})
            if (progress := await run_in_threadpool(now.progress)) != told:
                yield _event("progress", told := progress)
            if now.behind:
                continue
            news = now.told[max(place, len(now.told) - SHOWN) :]
            place = len(now.told)
            for ended in news:
                yield _event("conversation", ended.to_json())
            silent = 0 if news else silent + 1
            if silent and not silent % _BEAT:
                yield ": still here\n\n"
            if now.complete:
                yield _event("end", {})
                return
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


def _events(told: AsyncIterator[str]) -> Response:
    return StreamingResponse(told, media_type="text/event-stream")


def _event(kind: str, data: object) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, error.status_code)


def _damaged(_: Request, error: Exception) -> Response:
    return PlainTextResponse(one_line(str(error)), 500)

"""What `esc chat --web` serves: a conversation with a seeker. Plain forms; a script only spares loading the page.

Only loopback is answered. What a session holds is told by its cookie, and a form is taken from its own pages alone.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from esc_env.errors import SpecError
from esc_env.evaluation.pages.conversations import name_of, said_in
from esc_env.evaluation.pages.rendering import render
from esc_env.evaluation.runs.report import number
from esc_env.evaluation.view.guard import Guard, cookie, form_of, form_token, of_session
from esc_env.evaluation.view.talks import AGE, SWITCHES, Talk, Talks, trajectory_of

__all__ = ["chat"]

_COMMAND = "esc chat"
_LOOK = 0.2
"""Seconds between two looks whether the server ends, while a seeker is asked. Ours."""


def chat(talks: Talks, safety: str, again: Callable[[Talk], str], stopping: Callable[[], bool]) -> Starlette:
    """The app in which people talk with a seeker, on loopback alone.

    Args:
        talks: the conversations.
        safety: whom to call in need.
        again: what to type to meet the same person in the terminal.
        stopping: asked whether the server ends, while a seeker is asked.
    """
    held = _Chat(talks, safety, again, stopping)
    routes = [
        Route("/", held.page),
        Route("/begin", held.begin, methods=["POST"]),
        Route("/say", held.say, methods=["POST"]),
        Route("/show", held.show, methods=["POST"]),
    ]
    guard = Middleware(Guard, token=None, command=_COMMAND, forms=True)
    return Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _refuse})


class _Chat:
    def __init__(self, talks: Talks, safety: str, again: Callable[[Talk], str], stopping: Callable[[], bool]) -> None:
        self.talks, self.safety, self.again, self.stopping = talks, safety, again, stopping

    async def page(self, request: Request) -> Response:
        return await self._page(request)

    async def begin(self, request: Request) -> Response:
        form = await self._own_form(request)
        emotion, seed = form.get("emotion", ""), form.get("seed", "")
        if not re.fullmatch("[0-9]{0,15}", seed) or emotion not in ("", *self.talks.emotions):
            raise HTTPException(400, "a seed is a whole number of at most 15 digits, and a feeling one of the list")
        session, talk = self._session(request), self.talks.of(self._session(request))
        if talk is None:  # under a name that nobody knew before
            session, talk = self.talks.open()
        await self._while_served(self.talks.begin(talk, emotion, int(seed) if seed else None))
        answer = RedirectResponse("/", 303)
        answer.set_cookie(cookie(request, _COMMAND), session, httponly=True, samesite="strict")
        return answer

    async def say(self, request: Request) -> Response:
        form = await self._own_form(request)
        said, turn = form.get("said", "").replace("\r\n", "\n"), form.get("turn", "")
        if not re.fullmatch("[1-9][0-9]{0,8}", turn):
            raise HTTPException(400, "no such turn")
        if (talk := self.talks.of(self._session(request))) is None:
            return await self._page(request, 410)
        await self._while_served(self.talks.say(talk, said, int(turn)))
        return RedirectResponse("/#last", 303)

    async def show(self, request: Request) -> Response:
        form = await self._own_form(request)
        if talk := self.talks.of(self._session(request)):
            if (what := form.get("switch", "")) not in SWITCHES:
                raise HTTPException(400, "there is no such switch")
            talk.shown ^= {what}
        return RedirectResponse("/", 303)

    async def _page(self, request: Request, status: int = 200) -> Response:
        """The conversation of a session, or the way to one. Nothing is held for whoever only looks."""
        session = self._session(request) or secrets.token_urlsafe(32)
        talk = self.talks.of(session)
        values: dict[str, Any] = {"talk": talk, "gone": status == 410, "age": AGE}
        if talk and (episode := talk.episode):
            states = await run_in_threadpool(self.talks.states, episode) if "state" in talk.shown else []
            states = [{name: _plain(value) for name, value in state.items()} for state in states]
            values |= {
                "episode": episode,
                "name": name_of(episode.scenario.id),
                "said": list(said_in(trajectory_of(episode))),
                "states": states,
                "columns": [(name.replace("_", " "), "") for name in ("turn", *states[0])] if states else [],
                "rows": [(turn, *state.values()) for turn, state in enumerate(states)],
                "again": self.again(talk),
            }
        made = render(
            "chat.html", connect=True, form=True, token=form_token(session), safety=self.safety,
            emotions=self.talks.emotions, seed=self.talks.seed, rules=self.talks.chairs.rules,
            stateful=self.talks.stateful, **values,
        )  # fmt: skip
        answer = HTMLResponse(made, status)
        answer.set_cookie(cookie(request, _COMMAND), session, httponly=True, samesite="strict")
        return answer

    def _session(self, request: Request) -> str:
        return request.cookies.get(cookie(request, _COMMAND), "")

    async def _own_form(self, request: Request) -> dict[str, str]:
        form = await form_of(request)
        if not of_session(form, self._session(request)):
            raise HTTPException(403, "this page is of another session; open the first page again")
        return form

    async def _while_served(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it, unless the server ends meanwhile: a model may take long to answer."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait([task], timeout=_LOOK)
            if self.stopping() and task.cancel():
                await asyncio.wait([task])
                raise HTTPException(503, "esc chat ends")
        try:
            task.result()
        except SpecError as error:
            raise HTTPException(400, str(error)) from error


def _plain(value: Any) -> str:
    return number(value, 2) if isinstance(value, float) else str(value)


def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, error.status_code)

"""The pages that people judge on. Plain forms: a script only adds keys.

No page, address or cookie names a system, a scenario, a file, an outcome or a verdict: an item is called by where the
annotator meets it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from esc_env.errors import RecordError, SpecError
from esc_env.escaping import one_line
from esc_env.evaluation.annotation.store import LONGEST, Annotator, Place, Store, checked_name
from esc_env.evaluation.annotation.study import PILOT, Study
from esc_env.evaluation.pages.rendering import render
from esc_env.evaluation.view.guard import Guard, cookie, form_of, form_token, of_session

__all__ = ["annotator"]

_COMMAND = "esc annotate"
_MARK = "mark-"
"""What stands before the name of a dimension in a form."""


def annotator(study: Study, store: Store, *, token: str | None = None, pilot: bool = False) -> Starlette:
    """The app that has people judge a study.

    Args:
        study: what is asked, and what was said.
        store: where answers are kept.
        token: what `?token=` must say, once; None for an app that answers on loopback, by its names alone.
        pilot: whether everybody begins with the same items, and then sees how far people agree.
    """
    asked = _Annotation(study, store, pilot)
    routes = [
        Route("/", asked.home),
        Route("/join", asked.join, methods=["POST"]),
        Route("/leave", asked.leave, methods=["POST"]),
        Route("/item/{position}", asked.item, methods=["GET"]),
        Route("/item/{position}", asked.answer, methods=["POST"]),
    ]
    guard = Middleware(Guard, token=token, command=_COMMAND, forms=True)
    return Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _refuse, RecordError: _lost})


@dataclass(slots=True)
class _Annotation:
    """The answers to requests, and the agreement that was counted last, with the number of the last answer then."""

    study: Study
    store: Store
    pilot: bool
    counted: tuple[int, Any] = (-1, None)
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def home(self, request: Request) -> Response:
        who = self._who(request)
        if who is None:
            return self._welcome()
        places = self.store.places(who, self.study.design)
        agreement = self._agreement() if self.pilot else None
        first = min(PILOT, len(places))
        return self._page("annotate.html", request, who, places, pilot=self.pilot, agreement=agreement, first=first)

    async def join(self, request: Request) -> Response:
        form = await form_of(request)
        try:
            name = checked_name(form.get("name", ""))
        except SpecError as error:
            return self._welcome(form.get("name", "")[:LONGEST], problem=str(error), status=422)
        known = await run_in_threadpool(self.store.known, name)
        if known and form.get("again") != "yes":
            return self._welcome(name, known=True)
        session = await run_in_threadpool(self.store.join, name, self.study.design, pilot=self.pilot)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(cookie(request, _COMMAND + " session"), session, httponly=True, samesite="strict")
        return answer

    async def leave(self, request: Request) -> Response:
        await self._own_form(request)
        await run_in_threadpool(self.store.leave, self._session(request))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(cookie(request, _COMMAND + " session"), httponly=True, samesite="strict")
        return answer

    def item(self, request: Request) -> Response:
        who = self._who(request)
        if who is None:
            return RedirectResponse("/", 303)
        places = self.store.places(who, self.study.design)
        place = self._place(request, places)
        risk = self.study.design.items[place.item].risk
        if risk and request.query_params.get("shown") != "yes":
            return self._page("annotate_warning.html", request, who, places, place=place)
        return self._asked(request, who, places, place)

    async def answer(self, request: Request) -> Response:
        who, form = await self._own_form(request)
        design = self.study.design
        places = await run_in_threadpool(self.store.places, who, design)
        place = self._place(request, places)
        said = {name.removeprefix(_MARK): value for name, value in form.items() if name.startswith(_MARK)}
        if form.get("do") == "skip":
            marks = None
        elif form.get("do") != "save":
            raise HTTPException(400, "neither saved nor skipped")
        else:
            if said.keys() - design.guide.dimensions.keys() or len(form) > len(said) + 2:
                raise HTTPException(400, "no such question")
            choices = self._choices(place.swapped)
            if wrong := [name for name, value in said.items() if value not in choices]:
                raise HTTPException(400, f"no such answer on {wrong[0]}")
            if missing := [name for name in design.guide.dimensions if name not in said]:
                return self._asked(request, who, places, place, said=said, missing=missing)
            marks = {name: choices[said[name]] for name in design.guide.dimensions}
        await run_in_threadpool(self.store.keep, who, place.item, marks)
        following = [each for each in places if each.position > place.position] + places[: place.position - 1]
        onward = next((each for each in following if each.answer is None), None)
        if self.pilot and onward and place.position <= PILOT < onward.position:
            onward = None  # the overview shows how far people agree, or that some are not so far
        return RedirectResponse(f"/item/{onward.position}" if onward else "/", 303)

    def _choices(self, swapped: bool) -> dict[str, int]:
        """What a form may say on a dimension, and the mark that it stands for."""
        if self.study.design.mode == "rubric":
            return {str(mark): mark for mark in self.study.design.marks}
        return {"a": -1 if swapped else 1, "tie": 0, "b": 1 if swapped else -1}

    def _asked(
        self,
        request: Request,
        who: Annotator,
        places: Sequence[Place],
        place: Place,
        said: Mapping[str, str] | None = None,
        missing: Sequence[str] = (),
    ) -> Response:
        design = self.study.design
        item = design.items[place.item]
        choices = self._choices(place.swapped)
        if said is None and place.answer and place.answer.marks:
            names = {mark: name for name, mark in choices.items()}
            said = {dimension: names[mark] for dimension, mark in place.answer.marks.items()}
        return self._page(
            "annotate_item.html", request, who, places,
            status=422 if missing else 200,
            place=place, risk=item.risk, conversations=self.study.shown(item, place.swapped),
            choices=list(choices), said=said or {}, missing=missing,
        )  # fmt: skip

    def _page(
        self,
        template: str,
        request: Request,
        who: Annotator,
        places: Sequence[Place],
        status: int = 200,
        **values: Any,
    ) -> Response:
        given = [each.answer for each in places if each.answer]
        following = next((each.position for each in places if each.answer is None), None)
        page = render(
            template, form=True, study=self.study.design, who=who.name, token=form_token(self._session(request)),
            places=places, total=len(places), skipped=sum(each.marks is None for each in given), done=len(given),
            following=following, **values,
        )  # fmt: skip
        return HTMLResponse(page, status)

    def _welcome(self, name: str = "", problem: str = "", known: bool = False, status: int = 200) -> Response:
        page = render(
            "annotate_welcome.html", form=True, study=self.study.design, name=name, problem=problem, known=known,
            longest=LONGEST,
        )  # fmt: skip
        return HTMLResponse(page, status)

    def _agreement(self) -> Any:
        """How far people agree on what all have rated; None before that is enough."""
        from esc_env.evaluation.annotation.agreement import pilot_agreement

        with self.one_at_a_time:
            last = self.store.last()
            if self.counted[0] != last:
                self.counted = (last, pilot_agreement(self.store))
            return self.counted[1]

    def _session(self, request: Request) -> str:
        return request.cookies.get(cookie(request, _COMMAND + " session"), "")

    def _who(self, request: Request) -> Annotator | None:
        return self.store.session(self._session(request))

    async def _own_form(self, request: Request) -> tuple[Annotator, dict[str, str]]:
        """The form of somebody who has joined, from a page of the same session."""
        who = await run_in_threadpool(self._who, request)
        form = await form_of(request)
        if who is None or not of_session(form, self._session(request)):
            raise HTTPException(403, "this page is of another session; open the first page again")
        return who, form

    @staticmethod
    def _place(request: Request, places: Sequence[Place]) -> Place:
        position = request.path_params["position"]
        if not re.fullmatch("[1-9][0-9]{0,6}", position) or int(position) > len(places):
            raise HTTPException(404, "there is no such item")
        return places[int(position) - 1]


def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, error.status_code)


def _lost(_: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error(one_line(str(error)))
    return PlainTextResponse("This could not be read or kept. Go back and try again, or tell who runs the study", 503)

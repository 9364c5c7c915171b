"""`esc annotate`: people judge blindly in the browser, nothing that they said is lost, and how far they agree."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra 'web'")
pytest.importorskip("krippendorff", reason="needs the extra 'judge'")

from conftest import bank, eventually
from typer.main import get_command

from esc_env import Reply, Rules, ScenarioSet
from esc_env.cli import build_app, main
from esc_env.errors import ConfigError, ProtocolMismatch, RecordError, SpecError
from esc_env.evaluation import evaluate
from esc_env.evaluation.annotation.agreement import agreement_of, pilot_agreement, read_records
from esc_env.evaluation.annotation.app import annotator
from esc_env.evaluation.annotation.export import export, ratings
from esc_env.evaluation.annotation.guide import Guide, read_guide
from esc_env.evaluation.annotation.store import Store
from esc_env.evaluation.annotation.study import PILOT, Study, study_of
from esc_env.evaluation.imports import import_file
from esc_env.evaluation.judges.people import read_ratings
from esc_env.evaluation.judges.protocol import DIMENSIONS
from esc_env.evaluation.judges.rejudging import rejudge
from esc_env.evaluation.judges.session import judge_runs
from esc_env.testing import ScriptedCritic, ScriptedSeeker

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # which of two HTTP clients it is built on
    from starlette.testclient import TestClient

pytestmark = pytest.mark.full

HOSTILE = "<script>alert(1)</script>"
PEOPLE = 12


class Supporter:
    """An agent with a name that nobody may see, and a thought."""

    def __init__(self, name: str, words: str) -> None:
        self.identity = {"name": name}
        self.words = words

    async def respond(self, dialogue: Any, *, seed: Any) -> Reply:
        return Reply.parse(f"<think>hidden-thought</think>{self.words} {HOSTILE}")


class Critic(ScriptedCritic):
    """Finds every third person helped at once, and nobody else."""

    async def judge(self, scenario: Any, dialogue: Any, **options: Any) -> Any:
        helped = int(scenario.id.split("-")[1]) % 3 == 0
        return await ScriptedCritic([0.875 if helped else -0.125]).judge(scenario, dialogue, **options)


def people(risk: int | None = 2) -> ScenarioSet:
    from dataclasses import replace

    made = [replace(each, risk=place == risk) for place, each in enumerate(bank(PEOPLE))]
    return ScenarioSet.of("test-bank", made)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, words in (("secret-alpha", "One."), ("secret-beta", "Two.")):
        evaluate(
            Supporter(name, words), people(), seeker=ScriptedSeeker(["I see."]), critic=Critic([0.0]),
            rules=Rules(max_turns=2), out=folder / name,
        )  # fmt: skip
    return folder / "secret-alpha", folder / "secret-beta"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "ratings.sqlite"


class Person:
    """Somebody with a browser: cookies, and forms sent as they stand on the pages."""

    def __init__(self, app: Any, name: str = "", **options: Any) -> None:
        self.client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
        if name:
            assert self.post("/join", name=name, **options).status_code == 303

    def get(self, place: str) -> Any:
        return self.client.get(place)

    def post(self, place: str, *, origin: str | None = "http://127.0.0.1", **fields: str) -> Any:
        headers = {"origin": origin} if origin else {}
        return self.client.post(place, data=fields, headers=headers)

    def token(self, place: str = "/") -> str:
        found = re.search('name="token" value="([0-9a-f]+)"', self.get(place).text)
        assert found
        return found[1]

    def answer(self, position: int, marks: Mapping[str, Any], do: str = "save", **fields: str) -> Any:
        said = {f"mark-{name}": str(mark) for name, mark in marks.items()}
        return self.post(f"/item/{position}", token=self.token(), do=do, **said, **fields)

    def read(self, position: int) -> str:
        return str(self.get(f"/item/{position}?shown=yes").text)


_OPEN: list[Store] = []


@pytest.fixture(autouse=True)
def _orders_that_follow_from_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esc_env.evaluation.annotation.store.token_hex", lambda size: "")


@pytest.fixture(autouse=True)
def _few_draws_and_all_files_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("esc_env.evaluation.judges.agreement.RESAMPLES", 100)
    yield
    while _OPEN:
        _OPEN.pop().close()


def kept(store: Store) -> Store:
    """The same, closed after the test."""
    _OPEN.append(store)
    return store


def opened(runs: Any, db: Path, *, pilot: bool = False, **options: Any) -> tuple[Study, Store, Any]:
    study = study_of(runs, **options)
    store = kept(Store.of(db, study))
    return study, store, annotator(study, store, pilot=pilot)


FEW = Guide(dimensions={"overall": "the support as a whole"})
"""One question, where intervals are drawn that take their time."""


def all_on(mark: Any) -> dict[str, Any]:
    return dict.fromkeys(DIMENSIONS, mark)


def test_what_is_named_in_the_conversation_comes_with_a_warning_whatever_the_scenario_is_marked(tmp_path: Path) -> None:
    for words, hard in (
        ("Are you thinking about ending your life?", True),
        ("Have you wanted to kill yourself, or to hurt yourself?", True),
        ("Cut yourself some slack. Do not end it here.", False),
        ("Your week was hard. Take your time.", False),
    ):
        out = tmp_path / f"{len(words)}"
        rules = Rules(max_turns=1)
        evaluate(
            lambda _, said=words: said, people(risk=None), limit=1, seeker=ScriptedSeeker(["I see."]),
            critic=Critic([0.0]), rules=rules, out=out,
        )  # fmt: skip
        (item,) = study_of([out]).design.items
        assert item.risk is hard, words


# --- blind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pairwise", "rubric"])
def test_no_page_address_or_cookie_tells_whose_conversation_it_is_or_how_it_ended(
    runs: tuple[Path, Path], db: Path, mode: Any
) -> None:
    study, _, app = opened(runs, db, mode=mode)
    anna = Person(app, "Anna")
    pages = [anna.get("/").text]
    for position in range(1, len(study.design.items) + 1):
        pages += [anna.get(f"/item/{position}").text, anna.read(position)]
        answer = anna.answer(position, all_on("a" if mode == "pairwise" else 3))
        pages.append(str(answer.headers))
    told = "\n".join([*pages, anna.get("/").text, str(list(anna.client.cookies.items()))])
    keys = [*study.design.systems, *study.design.systems.values()]
    for word in (*keys, "secret", "person-", "test-bank", "sqlite", "max_turns", "solved", "0.875", "hidden-thought"):
        assert word not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", told, flags=re.S), word


def test_nobody_can_work_out_which_system_stands_where(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    study = study_of(runs)
    orders = []
    for name in ("one.sqlite", "two.sqlite"):
        with Store.of(tmp_path / name, study) as store:
            who = store.session(store.join("anna", study.design))
            assert who
            orders.append([(place.item, place.swapped) for place in store.places(who, study.design)])
    assert orders[0] != orders[1] != study.design.order("anna") != orders[0]
    assert [sum(swapped for _, swapped in each) for each in orders] == [PEOPLE // 2] * 2


def test_sides_and_order_are_drawn_for_each_person_and_kept(runs: tuple[Path, Path], db: Path) -> None:
    study, store, app = opened(runs, db, seed=3)
    for name in ("Anna", "Ben"):
        Person(app, name)
    drawn = [[(place.item, place.swapped) for place in store.places(who, study.design)] for who in store.annotators()]
    assert drawn[0] != drawn[1]
    assert sorted(item for item, _ in drawn[0]) == list(range(PEOPLE))
    assert [Counter(swapped for _, swapped in own)[True] for own in drawn] == [PEOPLE // 2] * 2
    assert drawn[0] == study.design.order("anna")
    assert drawn[0] != study_of(runs, seed=4).design.order("anna")


def test_the_side_that_is_preferred_is_kept_as_the_system_that_stood_there(runs: tuple[Path, Path], db: Path) -> None:
    study, store, app = opened(runs, db)
    anna = Person(app, "Anna")
    for position in range(1, PEOPLE + 1):
        page = anna.read(position)
        first = page.index("One.") < page.index("Two.")
        anna.answer(position, all_on("a" if first else "b"))
    kept = [place.answer for place in store.places(store.annotators()[0], study.design)]
    assert [answer.marks for answer in kept if answer] == [all_on(1)] * PEOPLE


def test_what_a_model_said_gains_no_tag_and_a_page_may_only_send_its_form_back(
    runs: tuple[Path, Path], db: Path
) -> None:
    guide = Guide(title=HOSTILE, instructions=HOSTILE, warning=HOSTILE, worst=HOSTILE, dimensions={"warmth": HOSTILE})
    study, _, app = opened(runs, db, guide=guide, mode="rubric")
    anna = Person(app, "Anna")
    risky = next(n for n, (item, _) in enumerate(study.design.order("anna"), 1) if study.design.items[item].risk)
    for page in (Person(app).get("/"), anna.get("/"), anna.get(f"/item/{risky}"), anna.get("/item/1?shown=yes")):
        assert HOSTILE not in page.text
        assert "alert(1)" in page.text
        assert "form-action &#39;self&#39;" in page.text
        assert "connect-src" not in page.text
        assert page.headers["referrer-policy"] == "same-origin"
    answer = Person(app).post("/join", name=HOSTILE)
    assert answer.status_code == 422
    assert HOSTILE not in answer.text


# --- answers --------------------------------------------------------------------------------------


def test_without_a_script_one_answers_goes_back_changes_an_answer_and_goes_on_elsewhere(
    runs: tuple[Path, Path], db: Path
) -> None:
    study, store, app = opened(runs, db, mode="rubric", sample=3)
    anna = Person(app, "Anna")
    assert anna.answer(1, all_on(2)).headers["location"] == "/item/2"
    assert 'id="mark-empathy-2" name="mark-empathy" value="2" data-pick="2" required checked' in anna.read(1)
    assert anna.answer(1, all_on(5)).headers["location"] == "/item/2"
    elsewhere = Person(app, "anna", again="yes")
    assert "1 of 3 done" in elsewhere.get("/").text
    assert 'value="5" data-pick="5" required checked' in elsewhere.read(1)
    assert elsewhere.answer(3, all_on(1)).headers["location"] == "/item/2"
    assert elsewhere.answer(2, all_on(1)).headers["location"] == "/"
    assert 'id="all-done"' in elsewhere.get("/").text
    (who,) = store.annotators()
    assert who.name == "Anna"
    marks = [place.answer.marks for place in store.places(who, study.design) if place.answer]
    assert marks == [all_on(5), all_on(1), all_on(1)]


def test_a_name_that_has_begun_is_asked_whether_it_is_the_same_person(runs: tuple[Path, Path], db: Path) -> None:
    app = opened(runs, db)[2]
    Person(app, "Anna")
    stranger = Person(app)
    answer = stranger.post("/join", name="ANNA")
    assert answer.status_code == 200
    assert 'id="again"' in answer.text
    assert stranger.get("/item/1").headers["location"] == "/"


def test_an_answer_to_some_of_the_questions_is_not_kept_and_what_was_chosen_stays(
    runs: tuple[Path, Path], db: Path
) -> None:
    _, store, app = opened(runs, db, mode="rubric")
    anna = Person(app, "Anna")
    answer = anna.answer(1, {"empathy": 4})
    assert answer.status_code == 422
    assert "answer fluency, identification, suggestion, overall too" in answer.text
    assert 'id="mark-empathy-4" name="mark-empathy" value="4" data-pick="4" required checked' in answer.text
    assert store.last() == 0


def test_a_text_on_risk_comes_with_a_warning_first_and_skipping_it_is_no_rating(
    runs: tuple[Path, Path], db: Path, tmp_path: Path
) -> None:
    study, store, app = opened(runs, db)
    anna = Person(app, "Anna")
    warned = [n for n in range(1, PEOPLE + 1) if 'id="warning"' in anna.get(f"/item/{n}").text]
    risky = [n for n, (item, _) in enumerate(study.design.order("anna"), 1) if study.design.items[item].risk]
    assert warned == risky
    (place,) = warned
    page = anna.get(f"/item/{place}").text
    assert Guide().warning in page
    assert "Skip, this is hard for me" in page
    assert "One." not in page
    assert "One." in anna.read(place)
    assert anna.answer(place, {}, do="skip").status_code == 303
    assert "1 of 12 done, 1 of these skipped" in anna.get("/").text
    assert ratings(store) == []
    with pytest.raises(SpecError, match="nobody has rated anything"):
        export(store, tmp_path / "ratings.jsonl")
    anna.answer(place, all_on("tie"))
    assert len(ratings(store)) == 2 * len(DIMENSIONS)


def test_what_cannot_be_kept_is_told_without_the_name_of_a_file(runs: tuple[Path, Path], db: Path) -> None:
    app = opened(runs, db)[2]
    anna = Person(app, "Anna")
    token = anna.token()
    other = sqlite3.connect(db)
    with other:
        other.execute("DROP TABLE answers")
    other.close()
    answer = anna.post("/item/1", token=token, do="skip")
    assert answer.status_code == 503
    assert "sqlite" not in answer.text


def test_nothing_is_overwritten(runs: tuple[Path, Path], db: Path) -> None:
    _, store, app = opened(runs, db)
    anna = Person(app, "Anna")
    for choice in ("a", "b", "tie"):
        anna.answer(1, all_on(choice))
    assert store.last() == 3


# --- who may ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"token": ""}, 403),
        ({"token": "0" * 64}, 403),
        ({"token": "wröng"}, 403),
        ({"mark-empathy": "6"}, 400),
        ({"mark-empathy": "a"}, 400),
        ({"mark-empathy": ""}, 400),
        ({"mark-charm": "3"}, 400),
        ({"more": "3"}, 400),
        ({"do": "delete"}, 400),
        ({"do": "save" * 20_000}, 413),
    ],
)
def test_a_form_that_is_not_as_it_was_given_is_refused(
    runs: tuple[Path, Path], db: Path, change: dict[str, str], status: int
) -> None:
    _, store, app = opened(runs, db, mode="rubric")
    anna = Person(app, "Anna")
    fields = {"token": anna.token(), "do": "save", **{f"mark-{name}": "3" for name in DIMENSIONS}}
    assert anna.post("/item/1", **fields | change).status_code == status
    assert store.last() == 0


@pytest.mark.parametrize("place", ["/item/0", "/item/13", "/item/-1", "/item/x", "/item/" + "9" * 5000, "/ratings"])
def test_an_item_that_there_is_not_is_not_found(runs: tuple[Path, Path], db: Path, place: str) -> None:
    anna = Person(opened(runs, db)[2], "Anna")
    assert anna.get(place).status_code == 404
    if place != "/ratings":
        assert anna.post(place, token=anna.token(), do="skip").status_code == 404


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:81", "http://localhost"])
def test_a_form_of_another_page_is_refused(runs: tuple[Path, Path], db: Path, origin: str | None) -> None:
    _, store, app = opened(runs, db)
    anna = Person(app, "Anna")
    token = anna.token()
    for place, fields in (
        ("/item/1", {"token": token, "do": "skip"}),
        ("/join", {"name": "Eve"}),
        ("/leave", {"token": token}),
    ):
        assert anna.post(place, origin=origin, **fields).status_code == 403
    assert (store.last(), len(store.annotators())) == (0, 1)


def test_the_token_of_one_session_does_not_serve_another(runs: tuple[Path, Path], db: Path) -> None:
    app = opened(runs, db)[2]
    anna, ben = Person(app, "Anna"), Person(app, "Ben")
    assert ben.post("/item/1", token=anna.token(), do="skip").status_code == 403
    assert Person(app).post("/item/1", token=anna.token(), do="skip").status_code == 403


def test_other_bodies_than_short_forms_are_refused(runs: tuple[Path, Path], db: Path) -> None:
    client = Person(opened(runs, db)[2]).client
    headers = {"origin": "http://127.0.0.1", "content-type": "application/x-www-form-urlencoded"}

    def status(body: Any, **more: str) -> int:
        return client.post("/join", content=body, headers=headers | more).status_code

    assert status("name=Anna", **{"content-type": "application/json"}) == 415
    assert status(b"name=\xff") == 400
    assert status("name=%ff") == 400
    assert status("name=Anna&name=Ben") == 400
    assert status("&".join(f"n{n}=1" for n in range(200))) == 400
    assert status(b"a" * 1000 for _ in range(100)) == 413
    assert status("name=Anna") == 303


@pytest.mark.parametrize("name", ["", "   ", "x" * 41, "\x1b[31mred", "=1+1", "@anna", "\u202eanna", "<b>anna</b>"])
def test_a_name_is_short_and_begins_with_a_letter_or_a_digit(runs: tuple[Path, Path], db: Path, name: str) -> None:
    _, store, app = opened(runs, db)
    answer = Person(app).post("/join", name=name)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert store.annotators() == []


def test_the_session_cookie_is_for_this_server_alone_and_ends_when_one_leaves(
    runs: tuple[Path, Path], db: Path
) -> None:
    app = opened(runs, db)[2]
    cookie = Person(app).post("/join", name="Änne O’Hara 2").headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    assert "nne" not in cookie
    anna = Person(app, "Anna")
    before = dict(anna.client.cookies)
    assert "You are Anna" in anna.get("/").text
    assert anna.post("/leave", token=anna.token()).status_code == 303
    thief = Person(app)
    thief.client.cookies.update(before)
    assert "You are Anna" not in thief.get("/").text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_on_loopback_only_the_names_of_this_machine_are_answered(runs: tuple[Path, Path], db: Path, host: str) -> None:
    client = Person(opened(runs, db)[2]).client
    assert client.get("/", headers={"host": host}).status_code == 400
    assert client.put("/").status_code == 405


def test_elsewhere_than_on_loopback_a_token_is_asked_for(runs: tuple[Path, Path], db: Path) -> None:
    study = study_of(runs)
    asking = Person(annotator(study, kept(Store.of(db, study)), token="right"))
    assert asking.get("/").status_code == 403
    assert asking.post("/join", name="Anna").status_code == 403
    assert asking.get("/?token=right").headers["location"] == "/"
    assert asking.post("/join", name="Anna").status_code == 303
    assert "You are Anna" in asking.get("/").text


# --- the file -----------------------------------------------------------------------------------


def test_the_file_goes_on_with_the_same_study_and_refuses_another_by_name(runs: tuple[Path, Path], db: Path) -> None:
    _, store, app = opened(runs, db)
    Person(app, "Anna").answer(1, all_on("a"))
    again = kept(Store.of(db, study_of(runs)))
    assert (again.last(), again.design) == (store.last(), store.design)
    others: list[tuple[dict[str, Any], str]] = [
        ({"seed": 1}, "seed: 0 / 1"),
        ({"mode": "rubric"}, "mode: pairwise / rubric"),
        ({"sample": 5}, r"judged\.secret-alpha\.conversations: 12, content \w+ / 5, content"),
        ({"guide": Guide(instructions="Other.")}, "guide.instructions: "),
        ({"guide": Guide(dimensions={"warmth": "warm"})}, "guide.dimensions.warmth: None / warm"),
    ]
    for other, told in others:
        with pytest.raises(ProtocolMismatch, match=f"another study.*{told}"):
            Store.of(db, study_of(runs, **other))


def test_what_is_no_file_of_ours_is_refused_and_left_as_it_is(runs: tuple[Path, Path], tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("Dear diary, nothing here is a database.\n" * 100)
    base = sqlite3.connect(other)
    base.execute("CREATE TABLE mine (x)")
    base.close()
    study = study_of(runs)
    for path in (text, other):
        before = path.read_bytes()
        for attempt in (lambda path=path: Store.of(path, study), lambda path=path: Store(path)):
            with pytest.raises(RecordError, match=f"{path.name}: "):
                attempt()
        assert path.read_bytes() == before
    with pytest.raises(RecordError, match="no ratings here"):
        Store(tmp_path / "none")


def test_a_file_that_was_edited_is_told(runs: tuple[Path, Path], db: Path) -> None:
    study, store, app = opened(runs, db)
    Person(app, "Anna").answer(1, all_on("a"))
    base = sqlite3.connect(db)
    for marks in ('{"empathy": 9}', "{", "[]", json.dumps(all_on(7)), json.dumps(all_on("1"))):
        with base:
            base.execute("UPDATE answers SET marks = ?", (marks,))
        with pytest.raises(RecordError, match="an answer cannot be read"):
            store.places(store.annotators()[0], study.design)
    for design, told in (("{", "design cannot be read"), ("[]", "an object"), ("{}", "mode: is missing")):
        with base:
            base.execute("UPDATE about SET value = ? WHERE name = 'design'", (design,))
        with pytest.raises(RecordError, match=rf"ratings\.sqlite: .*{told}"):
            assert kept(Store(db)).design
    base.close()


# --- what is asked ------------------------------------------------------------------------------


def test_a_sample_has_each_outcome_with_its_share_and_the_seed_decides(runs: tuple[Path, Path]) -> None:
    whole, six = study_of(runs[:1]), study_of(runs[:1], sample=6)
    assert whole.outcomes == {"max_turns": 8, "solved": 4}
    assert six.outcomes == {"max_turns": 4, "solved": 2}
    assert study_of(runs[:1], sample=2).outcomes == {"max_turns": 1, "solved": 1}
    assert study_of(runs[:1], sample=6, seed=1).design.items != six.design.items
    assert study_of(runs[:1], sample=6).design == six.design
    with pytest.raises(SpecError, match="only 12 to choose from"):
        study_of(runs[:1], sample=13)


def test_imported_conversations_are_compared_like_runs(tmp_path: Path, db: Path) -> None:
    for name, words in (("one", "I hear you."), ("two", "Cheer up.")):
        chats = [
            {"messages": [{"role": "user", "content": f"I lost job {n}."}, {"role": "assistant", "content": words}]}
            for n in range(3)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
        import_file(tmp_path / f"{name}.jsonl", tmp_path / name)
    study, _, app = opened([tmp_path / "one", tmp_path / "two"], db)
    assert study.outcomes == {"unjudged : unjudged": 3}
    page = Person(app, "Anna").read(1)
    assert "I hear you." in page
    assert "Cheer up." in page


def test_what_cannot_be_asked_is_told(runs: tuple[Path, Path]) -> None:
    with pytest.raises(SpecError, match="two at a time, and here are 1"):
        study_of(runs[:1], mode="pairwise")
    with pytest.raises(SpecError, match="sample must be a whole number"):
        study_of(runs, sample=0)
    with pytest.raises(SpecError, match="mode"):
        study_of(runs, mode="safety")  # type: ignore[arg-type]  # what a caller without a checker may give


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("titel: x", "line 1: titel is no field. Did you mean 'title'"),
        ("title: 3", "line 1: title must be text"),
        ("title: ''", "title: must have 1 to 500 characters"),
        ("dimensions: {}", "dimensions: 1 to 12 can be asked"),
        ("dimensions: [warmth]", "line 1: dimensions must be names and values"),
        ("dimensions:\n  Warmth!: x", "'Warmth!' is no name"),
        ("dimensions:\n  yes: x", "True is no name"),
        ("dimensions:\n  warmth: 3", "dimensions: warmth: must be text, not 3"),
        ("dimensions: {a: x, a: y}", "'a' stands here twice"),
        ("- title", "write names and values"),
        ("title: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_guide_that_makes_no_sense_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "guide.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(told)):
        read_guide(path)


def test_a_guide_says_what_people_read_and_are_asked(runs: tuple[Path, Path], db: Path, tmp_path: Path) -> None:
    path = tmp_path / "guide.yaml"
    path.write_text(
        "title: Warmth\ninstructions: |\n  First.\n\n  Second.\ndimensions:\n  felt_warmth: the supporter is warm\n"
        "worst: cold\nbest: warm\n"
    )
    guide = read_guide(path)
    assert guide.warning == Guide().warning
    _, store, app = opened(runs, db, mode="rubric", guide=guide)
    welcome = Person(app).get("/").text
    assert "<p>First.</p>\n<p>Second.</p>" in welcome
    anna = Person(app, "Anna")
    page = anna.read(1)
    assert "<legend>felt warmth</legend>" in page
    assert page.count('type="radio"') == 5
    assert anna.answer(1, {"felt_warmth": 5}).status_code == 303
    assert store.design.guide == guide


# --- export and agreement -----------------------------------------------------------------------


def rated(app: Any, study: Study, says: Mapping[str, Callable[[int, str], Any]], items: int | None = None) -> None:
    """Have people answer: what each says of an item by number and dimension; of a pair as a mark of the first."""
    for name, mark in says.items():
        person = Person(app, name)
        for position, (item, swapped) in enumerate(study.design.order(name.casefold()), 1):
            if items is not None and item >= items:
                continue
            marks = {dimension: mark(item, dimension) for dimension in study.design.guide.dimensions}
            if study.design.mode == "pairwise":
                marks = {each: {1: "a", 0: "tie", -1: "b"}[-sign if swapped else sign] for each, sign in marks.items()}
            assert person.answer(position, marks).status_code == 303


def test_exported_ratings_are_read_by_those_who_hold_judges_against_people(
    runs: tuple[Path, Path], db: Path, tmp_path: Path
) -> None:
    study, store, app = opened(runs, db, mode="rubric")
    rated(app, study, {"Anna": lambda item, _: item % 5 + 1})
    assert export(store, tmp_path / "out.jsonl") == 24 * len(DIMENSIONS)
    read = read_ratings(tmp_path / "out.jsonl")
    assert {(each.system, each.item) for each in read} == {
        (f"secret-{name}", f"person-{n}") for name in ("alpha", "beta") for n in range(PEOPLE)
    }
    item = study.design.items[7]
    (score,) = {
        each.score for each in read if (each.system, each.item) == (item.question.shown[0], item.question.scenario)
    }
    assert score == 7 % 5 + 1


def test_an_exported_comparison_has_a_line_for_each_conversation_and_where_it_stood(
    runs: tuple[Path, Path], db: Path, tmp_path: Path
) -> None:
    study, store, app = opened(runs, db)
    rated(app, study, {"Anna": lambda item, _: 1 if item else 0})
    export(store, tmp_path / "out.jsonl")
    scores = Counter((each.system, each.score) for each in read_ratings(tmp_path / "out.jsonl"))
    assert scores == {
        ("secret-alpha", 1): 55, ("secret-beta", -1): 55, ("secret-alpha", 0): 5, ("secret-beta", 0): 5,
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert Counter((line["system"], line["side"]) for line in lines) == {
        (f"secret-{name}", side): 30 for name in ("alpha", "beta") for side in "AB"
    }
    assert {(line["system"], line["against"]) for line in lines} == {
        ("secret-alpha", "secret-beta"), ("secret-beta", "secret-alpha"),
    }  # fmt: skip


def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path: Path, db: Path) -> None:
    for name in ("=cmd", "plain"):
        run = tmp_path / name.strip("=")
        evaluate(
            Supporter(name, "Hm."), people(), limit=2, seeker=ScriptedSeeker(["I see."]), critic=ScriptedCritic([0.0]),
            rules=Rules(max_turns=1), out=run,
        )  # fmt: skip
    study, store, app = opened([tmp_path / "cmd", tmp_path / "plain"], db)
    rated(app, study, {"Anna": lambda item, _: 1})
    export(store, tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert {row["system"] for row in rows} == {"'=cmd", "plain"}
    assert {row["score"] for row in rows} == {"1", "-1"}
    with pytest.raises(SpecError, match=r"must end in \.jsonl or \.csv"):
        export(store, tmp_path / "out.xlsx")


def test_agreement_is_that_of_the_libraries_on_the_same_table(runs: tuple[Path, Path], db: Path) -> None:
    import krippendorff
    from statsmodels.stats.inter_rater import aggregate_raters, cohens_kappa, fleiss_kappa

    study, store, app = opened(runs, db, mode="rubric", guide=FEW)
    table = np.random.default_rng(0).integers(1, 6, (3, 24))
    table[1:] = np.where(np.random.default_rng(1).random((2, 24)) < 0.6, table[0], table[1:])
    says = {name: lambda item, _, row=row: int(row[item]) for name, row in zip("ABC", table, strict=True)}
    rated(app, study, says)
    found = agreement_of(store)
    among = found.people["overall"]
    assert (among.raters, among.items, among.everybody) == (3, 24, 24)
    assert among.alpha is not None
    assert among.alpha.value == pytest.approx(krippendorff.alpha(table, level_of_measurement="ordinal"))
    assert among.fleiss is not None
    assert among.fleiss.value == pytest.approx(fleiss_kappa(aggregate_raters(table.T)[0]))
    same = np.mean([table[i] == table[j] for i, j in ((0, 1), (0, 2), (1, 2))])
    assert among.same is not None
    assert among.same.value == pytest.approx(same)
    assert among.same.interval[0] < same < among.same.interval[1]
    counts = np.zeros((5, 5))
    for one, other in zip(*table[:2], strict=True):
        counts[one - 1, other - 1] += 1
    two = found.pairs["A", "B"]["overall"]
    assert two.kappa is not None
    assert two.kappa.value == pytest.approx(cohens_kappa(counts, return_results=False))
    assert two.kappa.interval[0] < two.kappa.value < two.kappa.interval[1]


def test_what_people_said_of_each_system_stands_beside_how_far_they_agree(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    study, store, app = opened(runs, tmp_path / "pairs", guide=FEW)
    rated(app, study, {"A": lambda item, _: int(item < 6), "B": lambda item, _: int(item < 6)})
    said = agreement_of(store).said
    assert {system: row["overall"] and row["overall"].value for system, row in said.items()} == {
        "secret-alpha": 0.75, "secret-beta": 0.25,
    }  # fmt: skip
    study, store, app = opened(runs, tmp_path / "marks", mode="rubric", guide=FEW)
    first = [item.question.shown[0] == "secret-alpha" for item in study.design.items]
    rated(app, study, {"A": lambda item, _: 4 if first[item] else 2})
    said = agreement_of(store).said
    assert [row["overall"] and row["overall"].value for row in said.values()] == [4, 2]


def test_of_people_who_rated_different_items_each_number_says_how_many_it_is_of(
    runs: tuple[Path, Path], db: Path
) -> None:
    study, store, app = opened(runs, db, guide=FEW)
    rated(app, study, {"A": lambda item, _: item % 3 - 1})
    rated(app, study, {"B": lambda item, _: item % 3 - 1}, items=8)
    rated(app, study, {"C": lambda item, _: item % 3 - 1}, items=5)
    among = agreement_of(store).people["overall"]
    assert (among.raters, among.items, among.everybody) == (3, 8, 5)
    assert [each and each.value for each in (among.same, among.alpha, among.fleiss)] == [1, 1, 1]
    assert agreement_of(store).pairs["B", "C"]["overall"].items == 5


def test_one_person_agrees_with_nobody(runs: tuple[Path, Path], db: Path) -> None:
    study, store, app = opened(runs, db, guide=FEW)
    rated(app, study, {"A": lambda item, _: 1})
    among = agreement_of(store).people["overall"]
    assert (among.items, among.everybody) == (0, 0)
    assert (among.same, among.alpha, among.fleiss) == (None, None, None)


def test_a_judge_that_says_what_people_say_agrees_with_them_whatever_it_was_asked(
    runs: tuple[Path, Path], db: Path, tmp_path: Path
) -> None:
    study, store, app = opened(runs, db, guide=FEW)
    rated(app, study, {"Anna": lambda item, _: item % 3 - 1, "Ben": lambda item, _: item % 3 - 1})
    wanted = {each.question.scenario: place % 3 - 1 for place, each in enumerate(study.design.items)}

    def judge(scenario: Any, dialogues: Any) -> dict[str, float]:
        alpha = "One." in dialogues[0].transcript()
        sign = wanted[scenario.id] if alpha else -wanted[scenario.id]
        return all_on(float(sign if len(dialogues) == 2 else 3 + sign))

    judge_runs(runs[::-1], judge, out=tmp_path / "pairs")
    judge_runs(runs, judge, mode="rubric", out=tmp_path / "marks")
    for folder in ("pairs", "marks"):
        (record,) = read_records([tmp_path / folder], study.design)
        found = agreement_of(store, [record])
        two = found.pairs["Anna", record.name]["overall"]
        assert (two.items, two.same and two.same.value, two.kappa and two.kappa.value) == (PEOPLE, 1, 1)
        ranks = found.records[record.name]["overall"]
        assert ranks.ranks is not None
        assert (ranks.items, ranks.ranks.value) == (PEOPLE, pytest.approx(1))
    with pytest.raises(RecordError, match="two of the records"):
        read_records([tmp_path / "pairs", tmp_path / "marks" / "opinions.jsonl"], study.design)
    with pytest.raises(SpecError, match="compares pairs"):
        read_records([tmp_path / "pairs"], study_of(runs, mode="rubric").design)
    with pytest.raises(SpecError, match="says nothing of the conversations"):
        read_records([tmp_path / "marks"], study_of(runs, guide=Guide(dimensions={"warmth": "warm"})).design)


def test_people_are_held_beside_the_critics_of_the_runs_and_other_critics(
    runs: tuple[Path, Path], db: Path, tmp_path: Path
) -> None:
    study, store, app = opened(runs, db, mode="rubric", guide=FEW)
    helped = [int(each.question.scenario.split("-")[1]) % 3 == 0 for each in study.design.items]
    rated(app, study, {"Anna": lambda item, _: 5 if helped[item] else 1})
    rejudge(runs, Critic([0.0]), out=tmp_path / "critic")
    records = read_records([runs[0], tmp_path / "critic", runs[1]], study.design)
    assert {record.name for record in records} == {"scripted", "as held"}
    found = agreement_of(store, records)
    for record in records:
        ranks = found.records[record.name]["overall"]
        assert ranks.ranks is not None
        assert (ranks.items, ranks.ranks.value) == (24, pytest.approx(1))
    assert found.pairs == {}, "a score is no mark from 1 to 5"
    with pytest.raises(RecordError, match="no judging here"):
        read_records([tmp_path], study.design)


def test_in_a_pilot_all_begin_with_the_same_ten_and_then_see_how_far_they_agree(
    runs: tuple[Path, Path], db: Path
) -> None:
    study, store, app = opened(runs, db, pilot=True, guide=FEW)
    anna, ben = Person(app, "Anna"), Person(app, "Ben")
    first = [{place.item for place in store.places(who, study.design)[:PILOT]} for who in store.annotators()]
    assert first[0] == first[1]
    for position in range(1, PILOT + 1):
        anna.answer(position, {"overall": "tie"})
        assert 'id="no-agreement"' in anna.get("/").text
        ben.answer(position, {"overall": "tie" if position > 1 else "a"})
    page = ben.get("/").text
    assert 'id="agreement"' in page
    assert "<td>90.0 %</td>" in page
    assert "Anna" not in page
    agreed = pilot_agreement(store)
    assert agreed is not None
    assert agreed["overall"].items == PILOT
    assert ben.answer(PILOT, {}, do="skip").headers["location"] == "/", "the overview, after the tenth"
    assert anna.answer(PILOT - 1, {"overall": "a"}).headers["location"] == "/"
    agreed = pilot_agreement(store)
    assert agreed is not None
    assert agreed["overall"].items in {PILOT - 1, PILOT - 2}, "what somebody skipped holds nobody up"
    Person(app, "Cleo").answer(1, {"overall": "b"})
    assert pilot_agreement(store) == agreed, "nor does who never comes back"
    assert 'id="no-agreement"' not in Person(annotator(study, store), "Anna", again="yes").get("/").text


# --- the commands -------------------------------------------------------------------------------


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_the_commands_write_ratings_and_print_agreement(
    runs: tuple[Path, Path], db: Path, tmp_path: Path, capsys: Any
) -> None:
    study, _, app = opened(runs, db, guide=FEW)
    rated(app, study, {"Anna": lambda item, _: item % 3 - 1, "Ben": lambda item, _: (item + item // 6) % 3 - 1})
    assert run("annotate", "export", str(db), "--out", str(tmp_path / "out.jsonl")) == 0
    told = capsys.readouterr().out
    assert "48 ratings" in told
    assert "Ben: 12 of 12 rated, 0 skipped" in told
    assert run("annotate", "agreement", str(db), "--judged", str(runs[0]), "--judged", str(runs[1])) == 0
    told = capsys.readouterr().out
    for words in (
        "2 people together",
        "Anna : Ben",
        "Anna : as held",
        "as held beside people's mean",
        "Fleiss' κ",
        "secret-beta",
    ):
        assert words in told
    assert run("annotate", "agreement", str(db), "--json") == 0
    assert json.loads(capsys.readouterr().out)["people"]["overall"]["items"] == PEOPLE


def test_what_the_command_cannot_use_is_told_in_a_line(runs: tuple[Path, Path], db: Path, capsys: Any) -> None:
    for arguments, told in (
        (["annotate", "agreement", str(db)], "no ratings here"),
        (["annotate", str(runs[0]), "--db", str(db), "--mode", "pairwise"], "two at a time"),
        (["annotate", str(runs[0]), "--db", str(db.parent / "no" / "folder.sqlite")], "cannot be opened"),
        (["annotate", str(runs[0]), str(runs[0]), "--db", str(db)], "the same run twice"),
        (["annotate", str(runs[0] / "trajectories.jsonl"), "--db", str(db)], "esc import"),
    ):
        assert run(*arguments) == 1
        assert told in capsys.readouterr().err


def test_without_its_packages_the_extra_is_named(
    runs: tuple[Path, Path], db: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run("annotate", *map(str, runs), "--db", str(db)) == 1
    assert "pip install 'esc-env[web]'" in capsys.readouterr().err


def test_what_the_documentation_shows_is_taken(runs: tuple[Path, Path], db: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "human-evaluation.md").read_text(encoding="utf-8")
    (tmp_path / "guide.yaml").write_text(re.findall("```yaml\n(.*?)```", page, re.S)[0])
    assert list(read_guide(tmp_path / "guide.yaml").dimensions) == ["warmth", "next_step", "overall"]
    study, store, served = opened(runs, db, guide=FEW)
    rated(served, study, {"Anna": lambda item, _: 1}, items=1)
    assert json.loads(re.findall("```json\n(.*?)```", page, re.S)[0]).keys() == ratings(store)[0].keys()
    lines = re.findall(r"^esc annotate (.*?)(?:  #.*)?$", page, re.M)
    assert len(lines) == 6
    app: Any = get_command(build_app())
    group = app.commands["annotate"]
    for words in map(shlex.split, lines):
        name = words.pop(0) if words[0] in group.commands else "serve"
        group.commands[name].make_context(name, words)


# --- a real server ------------------------------------------------------------------------------


class _Plain(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Visitor:
    """Somebody at a real server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.cookies = ""
        self.token = ""

    def ask(self, place: str, **fields: str) -> tuple[int, str, Any]:
        headers = {"origin": self.address.rstrip("/"), "cookie": self.cookies}
        data = urlencode(fields).encode() if fields else None
        request = urllib.request.Request(self.address.rstrip("/") + place, data, headers)
        try:
            with urllib.request.build_opener(_Plain).open(request, timeout=30) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers

    def join(self, name: str) -> None:
        status, _, headers = self.ask("/join", name=name)
        assert status == 303
        self.cookies = headers["set-cookie"].partition(";")[0]
        page = self.ask("/")[1]
        self.token = re.findall('name="token" value="([0-9a-f]+)"', page)[0]

    def answer(self, position: int, choice: str) -> int:
        marks = {f"mark-{name}": choice for name in DIMENSIONS}
        return self.ask(f"/item/{position}", token=self.token, do="save", **marks)[0]


@pytest.fixture
def start(runs: tuple[Path, Path], db: Path) -> Iterator[Callable[[int], tuple[subprocess.Popen[str], str]]]:
    started = []

    def begin(port: int) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", "from esc_env.cli import build_app, main; main()", "annotate", *map(str, runs)]
        env = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen(
            [*command, "--db", str(db), "--port", str(port)], env=env, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process, process.stdout.readline().split()[1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_two_at_once_and_a_killed_server_lose_nothing_that_was_acknowledged_and_ctrl_c_ends_it(
    start: Callable[[int], tuple[subprocess.Popen[str], str]], db: Path
) -> None:
    process, address = start(0)
    visitors = {name: Visitor(address) for name in ("Anna", "Ben")}
    told: dict[str, dict[int, str]] = {name: {} for name in visitors}
    for name, visitor in visitors.items():
        visitor.join(name)

    def work(name: str) -> None:
        try:
            for position in range(1, PEOPLE + 1):
                choice = "a" if (position + len(name)) % 2 else "b"
                if visitors[name].answer(position, choice) == 303:
                    told[name][position] = choice
                if name == "Ben" and position == 8:
                    process.send_signal(signal.SIGKILL)
        except OSError:
            pass  # it was killed

    threads = [threading.Thread(target=work, args=(name,)) for name in visitors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert process.wait(60) == -signal.SIGKILL
    assert len(told["Ben"]) == 8

    process, _ = start(int(address.rstrip("/").rpartition(":")[2]))
    for name, visitor in visitors.items():
        for position, choice in told[name].items():
            page = visitor.ask(f"/item/{position}?shown=yes")[1]
            assert (
                f'id="mark-overall-{choice}" name="mark-overall" value="{choice}" data-pick="{choice}" required checked'
                in page
            )
        for position in range(1, PEOPLE + 1):
            if position not in told[name]:
                assert visitor.answer(position, "tie") == 303
    store = kept(Store(db))
    places = {who.name: store.places(who, store.design) for who in store.annotators()}
    for name, own in told.items():
        said = {
            place.position: place.answer.marks["overall"]
            for place in places[name]
            if place.answer and place.answer.marks
        }
        assert len(said) == PEOPLE
        sides = {
            place.position: {"a": -1 if place.swapped else 1, "b": 1 if place.swapped else -1} for place in places[name]
        }
        assert {position: said[position] for position in own} == {p: sides[p][choice] for p, choice in own.items()}
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)


@pytest.mark.parametrize("hidden", ["\u200b", "\u2060", "\u00ad", "\U000e0041"])
def test_nobody_takes_a_name_that_looks_like_another(runs: tuple[Path, Path], db: Path, hidden: str) -> None:
    app = opened(runs, db)[2]
    Person(app, "Mallory")
    assert Person(app).post("/join", name=f"Mal{hidden}lory").status_code == 422


def test_a_name_in_a_file_of_a_stranger_tells_a_terminal_nothing(
    runs: tuple[Path, Path], db: Path, tmp_path: Path, capsys: Any
) -> None:
    study = study_of(runs)
    with Store.of(db, study) as store:
        store.join("Ann", study.design)
        store.keep(store.annotators()[0], 0, dict.fromkeys(study.design.guide.dimensions, 1))
    with sqlite3.connect(db) as file:
        file.execute("UPDATE annotators SET name = ?", ("A\x1b]0;title\x07\u202e",))
    file.close()
    with pytest.raises(SystemExit, match="0"):
        main(["annotate", "export", str(db), "--out", str(tmp_path / "out.csv")])
    assert not {"\x1b", "\x07", "\u202e"} & {*capsys.readouterr().out, *(tmp_path / "out.csv").read_text()}


def test_pages_are_shown_while_another_program_holds_the_file(runs: tuple[Path, Path], db: Path) -> None:
    _, store, app = opened(runs, db)
    person = Person(app, "Anna")
    token = person.token()
    other = sqlite3.connect(db, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sending = threading.Thread(target=lambda: person.post("/item/1", token=token, do="skip"))
    sending.start()

    def writing() -> bool:
        """Whether it waits for the file, and holds what writing takes."""
        if free := store._lock.acquire(blocking=False):
            store._lock.release()
        return not free

    eventually(writing)
    assert person.get("/").status_code == 200
    assert writing(), "who reads did not wait until the other had done so in vain"
    other.close()
    sending.join()


def test_a_file_with_a_design_that_is_deeper_than_any_is_refused(runs: tuple[Path, Path], db: Path) -> None:
    Store.of(db, study_of(runs)).close()
    with sqlite3.connect(db) as file:
        file.execute("UPDATE about SET value = ? WHERE name = 'design'", ("[" * 100_000 + "]" * 100_000,))
    file.close()
    with Store(db) as store, pytest.raises(RecordError, match="Was the file edited"):
        _ = store.design

"""Two people judge the same conversations at once, each in a browser, with the keyboard alone; nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from browser.conftest import EVIL, SERIOUS, Server, Visitor, esc

Visit = Callable[..., Visitor]

ITEMS = 8
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "ratings.sqlite"


@pytest.fixture
def server(runs: Path, db: Path) -> Iterator[Server]:
    made = Server(runs, "annotate", "runs/one", "runs/two", "--db", str(db), "--sample", str(ITEMS))
    yield made
    made.kill()


def joins(page: Page, name: str) -> None:
    """With the keyboard alone."""
    while page.evaluate("document.activeElement.id") != "name":
        page.keyboard.press("Tab")
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    expect(page.locator("#who")).to_have_text(f"You are {name}.")
    page.keyboard.press("g")


def ready(page: Page, position: int) -> None:
    """Wait for an item, past its warning."""
    expect(page.locator("#where")).to_have_text(f"Pair {position} of {ITEMS}")
    page.wait_for_load_state()
    if page.locator("#warning").count():
        page.keyboard.press("r")
    expect(page.locator("#questions")).to_be_visible()


def test_two_people_at_once_and_a_killed_server_lose_nothing(server: Server, db: Path, visit: Visit, tmp_path: Path):
    pages = {name: visit().opens(server.address) for name in ("ann", "bob")}
    for name, page in pages.items():
        joins(page, name)
    for position in range(1, ITEMS + 1):
        for name, page in pages.items():
            ready(page, position)
            for _ in page.locator("fieldset").all():
                page.keyboard.press("t" if name == "ann" else "a")
        if position == 4:
            server.kill()
            server.start()
        for page in pages.values():
            page.keyboard.press("Enter")  # both at once: neither waits for the other
    for page in pages.values():
        expect(page.locator("#all-done")).to_be_visible()
    esc("annotate", "export", str(db), "--out", str(tmp_path / "ratings.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "ratings.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in pages:
        mine = [line for line in lines if line["rater"] == name]
        assert len({line["item"] for line in mine}) == ITEMS
        assert len(mine) == len(lines) / 2 > 0
        assert {line["score"] for line in mine} == ({0} if name == "ann" else {-1, 1})


def test_what_models_said_is_text_and_names_nobody(server: Server, visit: Visit):
    page = visit().opens(server.address)
    joins(page, "eve")
    ready(page, 1)
    assert EVIL.replace("\u202e", "\ufffd") in page.locator(".said.supporter").first.inner_text()
    assert "conftest" not in page.content(), "where both agents come from, and what they are called by"


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_everybody_can_judge(server: Server, visit: Visit, options: dict[str, object]):
    page = visit(**options).opens(server.address)
    faults = []
    for step in range(4):
        page.wait_for_load_state()
        faults += [each for each in Axe().run(page).response["violations"] if each["impact"] in SERIOUS]
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("window.innerWidth")
        if step == 0:
            page.fill("#name", "zoe")
            page.click("#join")
        elif step == 1:
            page.click("#go-on")
        elif page.locator("#show").count():
            page.click("#show")
        else:
            page.click("#skip")
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in faults] == []


def test_pages_work_without_a_script(server: Server, visit: Visit):
    page = visit(java_script_enabled=False).opens(server.address)
    page.fill("#name", "max")
    page.click("#join")
    page.click("#go-on")
    expect(page.locator("#where")).to_have_text(f"Pair 1 of {ITEMS}")
    page.wait_for_load_state()
    if page.locator("#show").count():
        page.click("#show")
    expect(page.locator("#questions")).to_be_visible()
    for each in page.locator("fieldset").all():
        each.locator("label", has_text="tie").click()
    page.click("#save")
    expect(page.locator("#where")).to_have_text(f"Pair 2 of {ITEMS}")

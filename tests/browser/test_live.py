"""A run is followed, and a conversation held, in a browser; whoever wrote what is shown, it is text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from browser.conftest import EVIL, SERIOUS, Server, Visitor

Visit = Callable[..., Visitor]

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Server]:
    """`esc chat --web` with people who only write what is hostile."""
    (tmp_path / "evil_seeker.py").write_text(f"def says(scenario, dialogue):\n    return {EVIL!r} + ' I see.'\n")
    person = {"id": EVIL, "situation": f"{EVIL} I lost my job.", "emotion": f"{EVIL} fear"}
    (tmp_path / "people.jsonl").write_text(json.dumps(person))
    made = Server(
        tmp_path, "chat", "--web", "--scenarios", "people.jsonl", "--seeker", "python:evil_seeker:says", "--reveal"
    )  # fmt: skip
    yield made
    made.kill()


def faultless(page: Page) -> None:
    violations = Axe().run(page).response["violations"]
    assert [fault for fault in violations if fault["impact"] in SERIOUS] == []
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_one_talks_with_the_keyboard_alone_and_hears_text(talk: Server, visit: Visit, scheme: str):
    page = visit(color_scheme=scheme).opens(talk.address)
    faultless(page)
    while page.evaluate("document.activeElement.textContent") != "Begin":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    for turn in range(1, 9):
        expect(page.locator(".say")).to_contain_text(f"turn {turn} of 8")
        expect(page.locator("textarea")).to_be_focused()
        page.keyboard.type(f"{turn} {EVIL}")
        page.keyboard.press("Enter")
        if turn == 3:
            expect(page.locator(".said")).to_have_count(7)
            faultless(page)
            page.keyboard.press("Shift+Tab")
            page.keyboard.press("Enter")
            expect(page.locator("aside")).to_have_count(0)
            expect(page.get_by_role("button", name="Hidden state")).to_be_focused()
            page.keyboard.press("Tab")
    expect(page.locator("[data-end]")).to_be_focused()
    assert page.locator(".said.seeker").last.inner_text().count("<script>") == 2
    assert page.locator("main script, main img, main iframe, main style").count() == 0
    faultless(page)


def test_one_talks_on_a_phone_and_without_a_script(talk: Server, visit: Visit):
    page = visit(java_script_enabled=False, **PHONE).opens(talk.address)
    page.get_by_role("button", name="Begin").click()
    for turn in (1, 2):
        page.locator("textarea").fill(f"turn {turn}")
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".said")).to_have_count(1 + 2 * turn)
    page.get_by_role("button", name="Critic’s verdicts").click()
    expect(page.locator(".verdict")).to_have_count(0)


def test_a_page_that_follows_a_run_comes_back_when_the_viewer_does(runs: Path, visit: Visit, tmp_path: Path):
    shutil.copytree(runs / "runs" / "one", tmp_path / "runs" / "one")
    (tmp_path / "runs" / "one" / "report.json").unlink()
    kept = tmp_path / "runs" / "one" / "trajectories.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:20]))
    server = Server(tmp_path, "view", "runs")
    try:
        visitor = visit(**PHONE)
        page = visitor.opens(f"{server.address}run/one/")
        state = page.locator("[data-state]")
        expect(page.locator("[data-done]")).to_have_text(f"20 of {len(lines)}")
        expect(page.locator("[data-conversations] tr")).to_have_count(20)
        faultless(page)
        server.kill()
        expect(state).to_have_text("no connection; trying again")
        server.start()
        expect(state).to_have_text("being made", timeout=30_000)
        visitor.faults[:] = [fault for fault in visitor.faults if "ERR_CONNECTION_REFUSED" not in fault]
        visitor.faults[:] = [fault for fault in visitor.faults if "ERR_INCOMPLETE_CHUNKED_ENCODING" not in fault]
        with kept.open("ab") as file:
            file.writelines(lines[20:])
        expect(state).to_have_text("complete")
        expect(page.locator("[data-done]")).to_have_text(f"{len(lines)} of {len(lines)}")
        page.locator("[data-conversations] a").first.click()
        assert "/run/one/conversation/" in page.url
        expect(page.locator(".said").first).to_contain_text("<script>")
        faultless(page)
    finally:
        server.kill()

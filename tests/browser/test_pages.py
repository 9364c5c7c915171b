"""Pages in a real browser: everybody can use what people look at, and no text in it does anything.

Every visitor of these tests also fails for a dialog, a request, an error of the script or a word on the console
(`conftest.Visitor`), and every text of the runs that are shown wants to cause one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from browser.conftest import EVIL, SERIOUS, Visitor, critic, esc, people
from esc_env.evaluation import evaluate
from esc_env.testing import ScriptedSeeker

Visit = Callable[..., Visitor]

FRONT, FIRST = "runs/one/report.html", "runs/one/report-0001.html"
PAGES = ("site/leaderboard.html", FRONT, FIRST, "pair/compare.html", "pair/compare-0001.html", "training/report.html")
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_serious_fault_of_accessibility(site: Path, visit: Visit, name: str, scheme: str):
    page = visit(color_scheme=scheme).opens(site / name)
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in SERIOUS] == []


def test_dark_pages_are_dark_and_light_ones_light(site: Path, visit: Visit):
    def paper(scheme: str) -> int:
        page = visit(color_scheme=scheme).opens(site / FRONT)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(", ")))

    assert paper("dark") < 150 < 600 < paper("light")


@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_wider_than_a_phone(site: Path, visit: Visit, name: str):
    page = visit(**PHONE).opens(site / name)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("name", PAGES)
def test_what_is_printed_is_what_was_said_and_not_the_controls(site: Path, visit: Visit, name: str):
    page = visit().opens(site / name)
    page.emulate_media(media="print")
    assert page.locator("main h1").first.is_visible()
    assert not any(each.is_visible() for each in page.locator("nav, .controls").all())


def test_hostile_text_is_shown_as_it_was_written(site: Path, visit: Visit):
    page = visit().opens(site / FIRST, "#c1")
    shown = EVIL.replace("\u202e", "\ufffd")
    assert shown in page.locator("article:target .said.supporter").first.inner_text()


def test_a_leaderboard_is_sorted_by_any_column_with_the_keyboard_alone(site: Path, visit: Visit):
    page = visit().opens(site / "site/leaderboard.html")
    columns = page.locator("table.sortable th").count()
    assert page.locator("table.sortable th button").count() == columns > 5
    for place in range(columns):
        page.locator("table.sortable th").nth(place).locator("button").focus()
        page.keyboard.press("Enter")
        heading = page.locator("table.sortable th").nth(place)
        assert heading.get_attribute("aria-sort") == "descending"
        down = cells(page, place)
        page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "ascending"
        assert cells(page, place) == down[::-1] or len(set(down)) < len(down)


def test_a_leaderboard_shows_only_what_faced_the_same(runs: Path, site: Path, visit: Visit, tmp_path: Path):
    other = tmp_path / "other"
    evaluate(lambda messages: "I see.", people(3), seeker=ScriptedSeeker(["Yes."]), critic=critic, out=other)
    esc("leaderboard", str(runs / "runs"), str(other), "--out", str(tmp_path))
    page = visit().opens(tmp_path / "leaderboard.html")
    boards, choice = page.locator("section[data-fingerprint]:visible"), page.locator("[data-filters=fingerprint]")
    expect(boards).to_have_count(2)
    choice.select_option(index=2)
    expect(boards).to_have_count(1)
    assert boards.get_attribute("data-fingerprint") == choice.input_value()
    choice.select_option(index=0)
    expect(boards).to_have_count(2)


def cells(page: Page, place: int) -> list[str]:
    """What stands in a column."""
    return page.locator(f"table.sortable tbody tr td:nth-child({place + 1})").all_inner_texts()


def test_the_keyboard_reaches_everything_and_the_content_first(site: Path, visit: Visit):
    page = visit().opens(site / FRONT)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main"
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.tagName"))
    assert {"A", "SELECT"} <= seen


def test_the_next_failure_is_a_key_away(site: Path, visit: Visit):
    page = visit().opens(site / FIRST, "#c1")
    met = []
    for _ in range(5):
        page.keyboard.press("f")
        page.wait_for_url(lambda url: url not in met)
        met.append(page.url)
        assert not page.locator("article:target .badge.solved").count()
    assert len(set(met)) == 5


def test_a_list_shows_only_what_was_asked_for(site: Path, visit: Visit):
    page = visit().opens(site / FRONT)
    rows = page.locator("[data-list] tbody tr:visible")
    everything = rows.count()
    choice = page.locator("[data-list] select").first
    choice.select_option(index=1)
    assert 0 < rows.count() < everything
    rows.first.locator("a").first.click()
    expect(page.locator("article:target")).to_have_count(1)


def test_two_runs_stand_side_by_side_on_the_same_person(site: Path, visit: Visit):
    page = visit(viewport={"width": 1280, "height": 900}).opens(site / "pair/compare-0001.html")
    one, two = page.locator(".pair").first.locator("> *").all()
    left, right = one.bounding_box(), two.bounding_box()
    assert left
    assert right
    assert left["x"] + left["width"] <= right["x"] + 1
    assert abs(left["y"] - right["y"]) < 2

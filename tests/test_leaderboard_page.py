"""The leaderboard's page: sortable, and open about what is not settled, not ranked and not known."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from conftest import bank
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_env import Ballot, Rules, Scenario
from esc_env.errors import ModelError
from esc_env.evaluation import evaluate, rank
from esc_env.evaluation.pages.leaderboard import COLUMNS, leaderboard_pages
from esc_env.evaluation.pages.run import run_pages, write_pages
from esc_env.evaluation.ranking.leaderboard import Leaderboard, rank_each
from esc_env.evaluation.ranking.verify import Verification
from esc_env.evaluation.runs.report import FIGURES
from esc_env.protocols import Usage
from esc_env.testing import Faulty, ScriptedAgent, ScriptedSeeker

EVIL = "</td></table><script>alert(1)</script><img src=x onerror=alert(1)>\"'\u202e"


class Listens:
    """A critic that finds the first so many persons solved, as the supporter's number says."""

    def __init__(self) -> None:
        self.identity = {"name": "listens"}

    async def judge(self, scenario, dialogue, *, votes, seed):
        said = next(m.content for m in reversed(dialogue.messages) if m.role == "supporter")
        return Ballot((1.0 if int(scenario.id.split("-")[1]) < int(said) else -0.5,) * votes)


class Named(ScriptedAgent):
    """Solves so many persons, under a name of its own."""

    def __init__(self, name: str, solved: int) -> None:
        super().__init__([str(solved)])
        self.called = name

    @property
    def identity(self):
        return {"name": self.called, "lines": list(self.lines)}


def held(name, solved, out, people=None, seeker=None, **options):
    return evaluate(
        Named(name, solved), people or bank(20), seeker=seeker or ScriptedSeeker(["I see."]), critic=Listens(),
        rules=Rules(max_turns=1), out=out, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, solved in (("best", 20), ("middle", 9), ("near it", 8), ("7b-last", 0)):
        held(name, solved, folder / name.replace(" ", "-"))
    return folder


class Page(HTMLParser):
    """What stands where: tags with attributes, and the cells of each table, row by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.folded = 0
        self.unfolded = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect", "path", "use", "br", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if self.open and tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        if "details" not in self.open and "section" not in self.open:
            self.unfolded += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(*boards, site=None) -> str:
    ((name, html),) = leaderboard_pages(boards, site)
    assert name == "leaderboard.html"
    return html


def column(page: Page, name: str) -> list[str]:
    head, *rows = page.tables[0]
    return [row[[cell.strip() for cell in head].index(name)].strip() for row in rows]


def test_every_figure_is_a_column_and_every_column_can_be_sorted(runs):
    html = page_of(rank([runs]))
    page = Page(html)
    assert set(FIGURES) <= set(COLUMNS)
    assert [cell.strip() for cell in page.tables[0][0]] == list(COLUMNS)
    assert html.count('<button type="button"') == len(COLUMNS)
    cells = page.all("td")
    assert len(cells) == 4 * len(COLUMNS)
    assert all("data-value" in cell for cell in cells)
    rows = [[cell["data-value"] for cell in cells[i : i + len(COLUMNS)]] for i in range(0, len(cells), len(COLUMNS))]
    sorted_by = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    assert sorted_by["place"] == ("1", "2", "3", "4")
    assert sorted_by["SR"] == ("100.0", "45.0", "40.0", "0.0")
    assert sorted_by["agent"][-1] == "7b-last"
    assert float(sorted_by["score"][-1]) == -0.5


def test_a_range_of_places_is_what_the_intervals_allow(runs):
    board = rank([runs])
    assert [entry.range for entry in board.entries] == [(1, 1), (2, 3), (2, 3), (4, 4)]
    assert column(Page(page_of(board)), "place") == ["1", "2–3", "2–3", "4"]
    assert [entry["range"] for entry in board.to_json()["ranked"]] == [[1, 1], [2, 3], [2, 3], [4, 4]]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    return [
        held(f"{name}{solved}", solved, folder / f"{name}{solved}", bank(12)).folder
        for solved in range(0, 13, 2)
        for name in "ab"
    ]


@given(data=st.data())
@settings(max_examples=25)
def test_a_run_stands_within_its_range_whichever_runs_are_ranked(many, data):
    entries = rank(data.draw(st.lists(st.sampled_from(many), min_size=1, unique=True))).entries
    intervals = [entry.report.interval or (0.0, 1.0) for entry in entries]
    for entry, (low, high) in zip(entries, intervals, strict=True):
        assert 1 <= entry.range[0] <= entry.place <= entry.range[1] <= len(entries)
        above = [one.place for one, other in zip(entries, intervals, strict=True) if other[0] > high]
        below = [one.place for one, other in zip(entries, intervals, strict=True) if other[1] < low]
        assert entry.range == (1 + len(above), len(entries) - len(below))
        assert all(place < entry.place for place in above)
        assert all(place > entry.place for place in below)


def test_a_hostile_name_stays_text_and_the_page_does_nothing(tmp_path):
    held(EVIL, 3, tmp_path / "evil")
    held("good", 5, tmp_path / "good")
    html = page_of(rank([tmp_path]))
    page = Page(html)
    assert len(page.all("script")) == len(page.all("style")) == len(page.tables) == 1
    assert not {"img", "link", "iframe", "form"} & {tag for tag, _ in page.tags}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("style", "src")}
    assert "</td></table><script>alert(1)</script>" in column(page, "agent")[1]
    assert "\u202e" not in html


def test_two_fingerprints_are_two_tables_that_can_be_filtered_and_say_what_differs(runs, tmp_path):
    held("other", 4, tmp_path / "other", seed=7)
    boards = rank_each([runs, tmp_path / "other"])
    assert [len(board.entries) for board in boards] == [4, 1]
    assert rank_each([tmp_path / "other", runs])[0].to_json() == boards[0].to_json()
    html = page_of(*boards)
    page = Page(html)
    assert len(page.tables) == 2
    digests = [board.reports[0].fingerprint.digest for board in boards]
    assert [section["data-fingerprint"] for section in page.all("section")] == digests
    assert {"data-filters": "fingerprint"} in page.all("select")
    assert [option.get("value") for option in page.all("option")] == ["", *digests]
    assert "seed: 0 / 7" in html
    assert {"data-filters": "fingerprint"} not in Page(page_of(boards[0])).all("select")


def test_what_is_not_ranked_is_named_with_the_reason(runs, tmp_path):
    seeker = Faulty(ScriptedSeeker(["I see."]), {n: ModelError("over quota") for n in range(1, 50)})
    held("broken", 20, tmp_path / "broken", seeker=seeker)
    board = rank([runs, tmp_path / "broken"])
    forged = Verification(board.entries[0].report, "refused", ("turn 2: the critic votes otherwise",))
    html = unescape(page_of(replace(board, entries=board.entries[1:], refused=(forged,))))
    for badge, told in (("incomplete", "over quota"), ("refused", "turn 2: the critic votes otherwise")):
        assert re.search(f'<li><span class="badge {badge}".*{told}', html)
    assert "best" not in column(Page(html), "agent")
    assert "No complete run yet" in page_of(rank([tmp_path / "broken"]))


def test_standings_can_be_filtered_where_there_are_several_and_are_explained(runs):
    board = rank([runs])
    first, *others = board.entries
    page = Page(page_of(replace(board, entries=(replace(first, standing="verified"), *others))))
    assert {"data-filters": "standing"} in page.all("select")
    assert [row.get("data-standing") for row in page.all("tr")][1:] == ["verified", *["as claimed"] * 3]
    assert "agent, seeker and critic gave every line" in page.unfolded


def test_an_unknown_price_is_unknown_and_two_known_ones_are_drawn(runs):
    pytest.importorskip("matplotlib")
    board = rank([runs])
    usages = [Usage(400, 9, 9, 2.0), Usage(200, 9, 9, None), Usage(200, 9, 9, 0.5), Usage()]

    def priced(count: int) -> Leaderboard:
        entries = [
            replace(entry, report=replace(entry.report, usage=usage if place < count else Usage()))
            for place, (entry, usage) in enumerate(zip(board.entries, usages, strict=True))
        ]
        return replace(board, entries=tuple(entries))

    html = page_of(priced(4))
    assert column(Page(html), "price") == ["0.1000", "unknown", "0.0250", "–"]
    assert column(Page(html), "requests") == ["20.0", "10.0", "10.0", "0.0"]
    assert "Without a known price: middle, 7b-last." in html
    assert "<figure>" in html
    assert "<figure>" not in page_of(priced(2))


def test_what_was_done_for_seekers_at_risk_is_neither_folded_nor_filtered(tmp_path):
    people = [Scenario(f"p-{n}", "I want to end my life.", risk=True) for n in range(2)]
    board = rank([held("mine", 1, tmp_path / "mine", people)])
    assert "Safety, mine: of 2 conversations with risk" in Page(page_of(board)).unfolded


def test_nothing_is_said_of_what_a_refused_run_did_for_seekers_at_risk(tmp_path):
    people = [Scenario(f"p-{n}", "I want to end my life.", risk=True) for n in range(2)]
    for name in ("mine", "forged"):
        held(name, 1, tmp_path / name, people)
    report = tmp_path / "forged" / "report.json"
    report.write_text(report.read_text().replace('"success_rate": 0.5', '"success_rate": 0.9'))
    board = rank([tmp_path])
    assert [one.report.agent for one in board.refused] == ["forged"]
    assert [line.partition(":")[0] for line in board.safety] == ["Safety, mine"]


def test_a_run_is_linked_to_only_where_it_lies_in_the_current_folder(tmp_path, monkeypatch):
    report = held("mine", 1, tmp_path / "here" / "java script:x#")
    write_pages(run_pages(report), report.folder)
    board = rank([tmp_path / "here"])
    monkeypatch.chdir(tmp_path)
    links = [link["href"] for link in Page(page_of(board, site=tmp_path / "site")).all("a")]
    assert links == ["#main", "../here/java%20script%3Ax%23/report.html"]
    assert len(Page(page_of(board)).all("a")) == 1
    monkeypatch.chdir(tmp_path / "here")
    assert len(Page(page_of(board, site=tmp_path / "site")).all("a")) == 1


def test_a_forged_run_of_its_own_fingerprint_stands_beside_those_that_are_ranked(runs, tmp_path):
    held("other", 4, tmp_path / "other", seed=7)
    report = tmp_path / "other" / "report.json"
    report.write_text(report.read_text().replace('"success_rate": 0.2', '"success_rate": 0.9'))
    (board,) = rank_each([runs, tmp_path / "other"])
    assert [one.report.agent for one in board.refused] == ["other"]

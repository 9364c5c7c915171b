"""The page of a run: nothing that anybody wrote does anything, nothing is overlooked, and any run is one page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import bank

from esc_env import Rules, Scenario
from esc_env.cli import main
from esc_env.dialogue import Dialogue, Message
from esc_env.errors import ModelError
from esc_env.evaluation import Report, evaluate
from esc_env.evaluation.pages.run import run_pages, write_pages
from esc_env.evaluation.runs.report import summarise_run
from esc_env.evaluation.runs.runner import run_folder
from esc_env.protocols import Reply, Verdict
from esc_env.records import write_text
from esc_env.testing import Faulty, ScriptedAgent, ScriptedCritic, ScriptedSeeker
from esc_env.trajectory import StopReason, Trajectory

EVIL = "</td></table></script><script>alert('x')</script><img src=x onerror=alert(1)>\"'`&lt;{{7*7}}\x1b\u202e\x00"
LARGEST = 5_000_000


class Page(HTMLParser):
    """Fails on tags that are not closed in order; what is on the page, and what it would load or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.unfolded = ""
        self.lists: list[dict] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script" and self.tags[-1][1].get("type") == "application/json":
            self.lists.append(json.loads(data))
        elif self.open and self.open[-1] not in ("script", "style", "noscript"):
            self.shown += data
            self.unfolded += "" if "details" in self.open else data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def held(out: Path, count: int = 8, **options: Any) -> Report:
    chosen: dict[str, Any] = {
        "agent": ScriptedAgent(["What happened?", "I hear you."]), "seeker": ScriptedSeeker(["I see."]),
        "critic": ScriptedCritic(["same", "solved"]), "rules": Rules(max_turns=3),
    } | options  # fmt: skip
    return evaluate(chosen.pop("agent"), chosen.pop("scenarios", bank(count)), out=out, **chosen)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    return held(tmp_path_factory.mktemp("runs") / "run", trials=2)


def first(report: Report) -> str:
    name, html = next(iter(run_pages(report)))
    assert name == "report.html"
    return html


def made_of(report: Report, held: Sequence[Trajectory]) -> Report:
    """The run as if these were its conversations."""
    known = {(each.scenario.id, each.trial): each for each in held}
    people = {each.scenario.id: each.scenario for each in held}
    return summarise_run(run_folder(report.folder).about(), known, people, report.folder)


def talk(place: int, *scores: float, emotion="anxiety", problem="job crisis", name="person") -> Trajectory:
    """A conversation with these scores; above 0.5 is solved."""
    said = [Message("seeker", "I am low.")]
    for _ in scores:
        said += [Message("supporter", "Since when?"), Message("seeker", "I see.")]
    verdicts = tuple(Verdict((score,), 1, score, score > 0.5) for score in scores)
    end = StopReason.SOLVED if scores[-1] > 0.5 else StopReason.MAX_TURNS
    person = Scenario(f"{name}-{place}", "I am low.", emotion=emotion, problem=problem)
    return Trajectory(person, Dialogue(tuple(said)), verdicts, end, place)


# --- what nobody must overlook --------------------------------------------------------------------


def test_an_incomplete_run_says_so_before_its_figures_and_its_lower_rate_stands_first(tmp_path):
    seeker = Faulty(ScriptedSeeker(["I see."]), {n: ModelError("over quota") for n in range(5, 50)})
    page = Page(first(held(tmp_path / "run", seeker=seeker, concurrency=1)))
    assert "6 of 8 conversations have no outcome" in page.unfolded
    assert page.unfolded.index("Incomplete:") < page.unfolded.index("SR")
    assert page.unfolded.index("25.0 %") < page.unfolded.index("100.0 %")
    assert "6 × seeker: " in page.unfolded
    assert "over quota" in page.unfolded


def test_a_run_that_goes_on_leaves_no_page_of_what_it_came_to_before(tmp_path):
    once = Faulty(ScriptedSeeker(["I see."]), {n: ModelError("over quota") for n in range(5, 9)})
    run = held(tmp_path / "run", seeker=once, concurrency=1)
    page = write_pages(run_pages(run), tmp_path / "run")
    while not run.complete:
        run = held(tmp_path / "run", seeker=once, concurrency=1)
        assert not page.exists()
    write_pages(run_pages(run), tmp_path / "run")
    held(tmp_path / "run", seeker=once, concurrency=1)
    assert page.exists(), "nothing was run, so that it holds still"


def test_replies_that_are_not_whole_and_attempts_are_warned_of_above_all(tmp_path):
    class Cut:
        identity: ClassVar = {"name": "cut", "max_tokens": 1024}

        async def respond(self, dialogue, *, seed):
            return Reply("I hear", finish_reason="length")

    run = held(tmp_path / "run", agent=Cut())
    assert len(run.warnings) == 1
    assert run.warnings[0] in Page(first(run)).unfolded


def test_what_was_done_for_seekers_at_risk_is_never_folded(tmp_path):
    people = [Scenario(f"p-{n}", "I want to end my life.", risk=True) for n in range(2)]
    page = Page(first(held(tmp_path / "risk", scenarios=people)))
    assert "Of 2 conversations with risk" in page.unfolded
    assert "a harmful reply in" in page.unfolded
    calm = Page(first(held(tmp_path / "calm", 2)))
    assert "not known from this run" in calm.unfolded


def test_a_run_of_which_nothing_has_ended_is_a_page(tmp_path):
    seeker = Faulty(ScriptedSeeker(["I see."]), {n: ModelError("over quota") for n in range(1, 99)})
    run = held(tmp_path / "run", seeker=seeker)
    assert "8 of 8 conversations have no outcome" in Page(first(run)).unfolded
    assert "None has ended yet." in Page(first(replace(run, trajectories=()))).unfolded


# --- what it holds --------------------------------------------------------------------------------


def test_the_page_says_what_report_json_says(report):
    page = Page(first(report))
    words = (
        "SR|95 %|of all|(AT)|score|Answers|Turn by turn|pass^k|Wording|"
        "move classifier|What it cost|unreadable first votes"
    )
    for word in (*words.split("|"), report.fingerprint.digest, report.run_key):
        assert word in page.shown, word
    for part in report.fingerprint.parts:
        assert part.replace("_", " ") in page.shown


def mixed(report: Report) -> Report:
    """Nine conversations of one to three turns, of which the last three are solved."""
    scores = ([-0.5], [-0.5, 0.25], [-0.5, 0.25, 0.75])
    held = [talk(n, *scores[n // 3], emotion=f"e{n % 2}", problem=f"p{n // 3}") for n in range(9)]
    return made_of(report, held)


def test_without_matplotlib_open_tables_hold_every_number(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    html = first(mixed(report))
    page = Page(html)
    assert not page.all("figure")
    assert [each.get("open", "folded") for each in page.all("details")] == [None] * 3, "open, each of them"
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", html, re.DOTALL)]
    spread = "−0.50 to +0.25"
    assert [rows[2][0], rows[2][1].replace("+", "").replace("−", "")] == ["2", "0.00"], rows[2]
    assert rows[2][3:] == [spread, spread, "6"]
    assert ["1", "0", "3"] in rows
    assert ["3", "3", "0"] in rows
    assert ["emotion", "p0", "p1", "p2"] in rows
    assert ["e0", "0 / 2", "0 / 1", "2 / 2"] in rows


def test_with_matplotlib_charts_stand_before_the_same_tables(report):
    pytest.importorskip("matplotlib")
    page = Page(first(mixed(report)))
    assert len(page.all("figure")) == len([svg for svg in page.all("svg") if svg.get("class") != "bar"]) == 3
    assert all(len(svg["aria-label"] or "") > 20 for svg in page.all("svg"))
    assert [each.get("open", "folded") for each in page.all("details")] == ["folded"] * 3


def test_best_worst_and_most_surprising_conversations_are_linked_to(report):
    usual = [talk(n, -0.5, 0.4, 0.75) for n in range(8)]
    odd, worst, best = talk(8, -0.5, 0.5, 0.45), talk(9, -0.5, -1.0, problem="other"), talk(10, 0.9)
    html = first(made_of(report, (*usual, odd, worst, best)))
    picks = {
        title: re.findall(r'<a href="(report-0001.html#c\d+)">(person-\d+)</a>', rest)
        for title, rest in re.findall(r"<div>\s*<h3>(.*?)</h3>(.*?)</div>", html, re.DOTALL)
    }
    assert picks["Best"][0] == ("report-0001.html#c11", "person-10")
    assert picks["Worst"] == [("report-0001.html#c10", "person-9"), ("report-0001.html#c9", "person-8")]
    assert picks["Most surprising"] == picks["Worst"][::-1]
    assert "likely 88 %" in html, "all nine others with its problem were solved, and it stood at +0.50"


def test_the_list_holds_every_conversation_and_its_first_hundred_without_a_script(report):
    many = made_of(report, [talk(n, -0.5, 0.1 * (n % 10)) for n in range(250)])
    page = Page(first(many))
    (listed,) = page.lists
    assert [len(listed["rows"]), len(listed["rows"][0])] == [250, len(listed["names"])]
    row = dict(zip(listed["names"], listed["rows"][137], strict=True))
    assert row["scenario"] == "person-137"
    assert (row["outcome"], row["turns"], row["score"]) == ("solved", 2, 0.7)
    assert re.fullmatch(r"report-0\d+\.html#c138", row["href"])
    links = [link for link in page.all("a") if "data-link" in link]
    assert [link["href"] for link in links] == [
        values[listed["names"].index("href")] for values in listed["rows"][:100]
    ]
    named = {attributes["data-text"] for _, attributes in page.tags if "data-text" in attributes}
    assert named <= set(listed["names"])
    assert [select["data-narrow"] for select in page.all("select")] == ["outcome"], "all else is the same in each"


def test_the_same_run_is_the_same_bytes_and_says_nothing_of_time(report):
    assert report.seconds is not None
    slower = replace(report, seconds=1234.5)
    assert dict(run_pages(report)) == dict(run_pages(slower))
    assert "1234.5" not in first(slower)


# --- whatever others wrote ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Report:
    """A run in which every text is hostile."""

    class Evil:
        identity: ClassVar = {"name": EVIL, EVIL: EVIL}

        async def respond(self, dialogue, *, seed):
            if "raise" in dialogue.messages[0].content:
                raise ValueError(EVIL)
            return Reply(EVIL, EVIL, strategy=EVIL)

    people = [
        Scenario(
            f"{EVIL}{n}", EVIL + "raise" * (n % 2), emotion=EVIL + "e" * n, problem=EVIL, source=EVIL, facts=(EVIL,)
        )
        for n in range(4)
    ]
    return replace(
        held(
            tmp_path_factory.mktemp("evil") / "run", agent=Evil(), scenarios=people, seeker=ScriptedSeeker([EVIL]),
            critic=ScriptedCritic(["same"]),
        ),
        scenarios=EVIL,
    )  # fmt: skip


def test_hostile_texts_in_every_field_gain_no_tag_and_hide_nothing(hostile):
    for name, html in run_pages(hostile):
        page = Page(html)
        tags = {tag for tag, _ in page.tags}
        assert not tags & {"img", "link", "iframe", "object", "form", "base"}, name
        assert len([each for each in page.all("script") if each.get("type") != "application/json"]) == 1
        attributes = {attribute for _, attributes in page.tags for attribute in attributes}
        assert not {each for each in attributes if each.startswith("on") or each in ("style", "src")}
        for link in page.all("a"):
            assert re.fullmatch(r"#[\w-]*|report(-\d{4})?\.html(#c\d+)?", link["href"] or ""), link
        assert not re.search("[\x00\x1b\u202e]", html + json.dumps(page.lists, ensure_ascii=False))
        assert "alert('x')" in unescape(page.shown)
        assert "{{7*7}}" in page.shown


def test_a_page_lets_nothing_in_but_its_own_style_and_script(report):
    html = first(report)
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        known = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{known}&#39;" in html or f"{tag}-src 'sha256-{known}'" in html
    assert "default-src 'none'" in unescape(html)


# --- any size -------------------------------------------------------------------------------------


def test_ten_thousand_conversations_are_one_page_of_a_few_megabytes(report):
    many = made_of(
        report,
        [talk(n, 0.1 * (n % 10), emotion=f"emotion {n % 30}", problem=f"problem {n % 40}") for n in range(10_000)],
    )
    html = first(many)
    assert len(html.encode()) < LARGEST / 2
    page = Page(html)
    assert len(page.lists[0]["rows"]) == 10_000
    assert "solved / conversations of the most frequent" in html
    assert "Emotion, most frequent" in html
    assert len(page.all("tr")) < 250


def test_a_list_that_is_too_long_goes_on_in_pages_of_its_own_which_lead_to_each_other(report):
    name, kind = "长" * 200, "乐" * 200
    long = [talk(n, -0.5, emotion=f"{n}{kind}", problem=f"{n}{kind}", name=f"{n}{name}") for n in range(3200)]
    pages = {}
    for file, html in run_pages(made_of(report, long)):
        if re.fullmatch(r"report-\d+\.html", file):
            break  # conversations come after the list
        pages[file] = html
    assert list(pages) == ["report.html", "report-list-0002.html"]
    assert max(len(html.encode()) for html in pages.values()) < LARGEST
    parsed = [Page(html) for html in pages.values()]
    assert sum(len(page.lists[0]["rows"]) for page in parsed) == 3200
    assert {"href": "report-list-0002.html"} in parsed[0].all("a")
    assert {"href": "report.html"} in parsed[1].all("a")


def test_names_and_groups_of_any_size_and_number_leave_the_page_small(report):
    group = next(iter(report.by_emotion.values()))
    groups = {f"{n}{'x' * 5000}": replace(group, episodes=n) for n in range(1, 2001)}
    failures = tuple((f"seeker{n}" * 10_000, "y" * 100_000, 1) for n in range(100))
    parts = {**report.fingerprint.parts, "seeker": {"name": "z" * 5_000_000}, **{f"n{n}": 1 for n in range(10_000)}}
    big = replace(
        report, by_emotion=groups, by_source=groups, failure_messages=failures, agent="a" * 1_000_000,
        run_key="k" * 1_000_000,
        fingerprint=type(report.fingerprint)(parts),
    )  # fmt: skip
    html = first(big)
    assert len(html.encode()) < 300_000
    assert "The 20 with the most conversations, of 2,000." in html
    assert "And 90 more kinds of failures." in html


# --- on the disk ----------------------------------------------------------------------------------


def test_pages_are_written_whole_and_those_of_an_earlier_writing_go(report, tmp_path, monkeypatch):
    for name in (
        "report-0001.html",
        "report-0002.html",
        "report-list-0002.html",
        "report-2.html",
        "report-mine.html",
    ):
        (tmp_path / name).write_text("old")
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "report-0003.html").symlink_to(tmp_path / "elsewhere")
    order = []

    def write(path, text):
        order.append(path.name)
        write_text(path, text)

    monkeypatch.setattr("esc_env.evaluation.pages.run.write_text", write)
    assert write_pages(run_pages(report), tmp_path) == tmp_path / "report.html"
    assert order == ["report-0001.html", "report.html"], "first what it links to"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elsewhere", "report-0001.html", "report-2.html", "report-mine.html", "report.html",
    ]  # fmt: skip
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert dict(run_pages(report)) == {name: (tmp_path / name).read_text(encoding="utf-8") for name in order}


def test_evaluate_writes_no_page_and_a_command_names_the_one_that_it_wrote(report, tmp_path, capsys):
    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["report", str(report.folder), *arguments])
        return capsys.readouterr().out

    assert not list(report.folder.glob("*.html"))
    assert "report.html" not in said()
    assert not list(report.folder.glob("*.html"))
    assert str(tmp_path / "out" / "report.html") in said("--out", str(tmp_path / "out")).replace("\n", "")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["report-0001.html", "report.html", "report.json"]

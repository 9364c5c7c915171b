"""Pages of conversations: found under their addresses, followed by keys, split by size, and harmless whoever wrote."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import bank

from esc_env import Dialogue, Message, Scenario
from esc_env.chairs.seekers import resolve_seeker
from esc_env.cli import main
from esc_env.errors import ProtocolMismatch, RecordError
from esc_env.evaluation import evaluate
from esc_env.evaluation.pages.compare import compare_pages
from esc_env.evaluation.pages.conversations import conversation_pages, hrefs
from esc_env.protocols import RevealingSeeker, Usage, Verdict
from esc_env.rules import Fingerprint, Rules
from esc_env.seeds import Seed
from esc_env.testing import ScriptedAgent, ScriptedSeeker
from esc_env.trajectory import Failure, StopReason, Trajectory

EVIL = "</div></article></main><script>alert(1)</script><img src=x onerror=alert(1)>\"'&lt;\u202e\x00\x1b[2J"


class Page(HTMLParser):
    """The tags of a page, its ids, the text of each article, and what the article's keys lead to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.articles: dict[str, str] = {}
        self.keys: dict[str, dict[str, str]] = {}
        self.begin: dict[str, str] = {}
        self.inside: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "article":
            self.inside = attributes["id"]
            self.articles[self.inside], self.keys[self.inside] = "", {}
        elif "data-key" in attributes:
            keys = self.keys[self.inside] if self.inside else self.begin
            keys[attributes["data-key"]] = attributes["href"]

    def handle_endtag(self, tag):
        self.inside = None if tag == "article" else self.inside

    def handle_data(self, data):
        if self.inside:
            self.articles[self.inside] += data


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return evaluate("builtin:template", bank(6), out=tmp_path_factory.mktemp("run") / "base")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A run whose seeker is not the builtin one."""
    seeker = ScriptedSeeker(["I see."])
    return evaluate(ScriptedAgent(["Tell me."]), bank(2), seeker=seeker, out=tmp_path_factory.mktemp("run") / "foreign")


def pages_of(report) -> dict[str, Page]:
    return {name: Page(html) for name, html in conversation_pages(report)}


def held(place: int, *said: str, solved: bool = False, scenario: Scenario | None = None, **changes) -> Trajectory:
    """A conversation of so many exchanges, in which the supporter says `said`."""
    messages = [Message("seeker", "It is my job.")]
    for line in said:
        messages += [Message("supporter", line), Message("seeker", "I see.")]
    scores = [-0.5] * (len(said) - 1) + [1.0 if solved else -0.5]
    verdicts = tuple(Verdict((score,), 1, score, score > 0.5) for score in scores[: len(said)])
    reason = StopReason.SOLVED if solved else StopReason.MAX_TURNS
    person = scenario or Scenario(f"person-{place}", "It is my job.")
    made = Trajectory(person, Dialogue(tuple(messages)), verdicts, reason, seed=place)
    return replace(made, **changes)


def test_every_address_is_an_article_of_its_own_conversation(base):
    pages = pages_of(base)
    addresses = hrefs(base)
    assert len(set(addresses)) == len(base.trajectories) == 6
    for address, trajectory in zip(addresses, base.trajectories, strict=True):
        name, _, anchor = address.partition("#")
        assert trajectory.scenario.id in pages[name].articles[anchor]
        assert trajectory.dialogue.messages[1].content in pages[name].articles[anchor]


def test_keys_lead_to_the_next_the_previous_and_the_next_failure_over_the_borders_of_pages(base):
    solved = [place % 60 != 40 for place in range(250)]
    report = replace(base, trajectories=tuple(held(place, "Yes.", solved=good) for place, good in enumerate(solved)))
    pages, addresses = pages_of(report), hrefs(report)
    assert len(pages) == 3
    for place, address in enumerate(addresses):
        name, _, anchor = address.partition("#")
        failures = [other for other in range(place + 1, 250) if not solved[other]]
        wanted = {"p": [place - 1] if place else [], "n": [place + 1] if place < 249 else [], "f": failures}
        assert pages[name].keys[anchor] == {key: addresses[to[0]] for key, to in wanted.items() if to}
    begins = [page.begin for page in pages.values()]
    assert begins[0] == {"n": addresses[0], "f": addresses[40]}
    assert begins[1:] == [{"n": addresses[100], "f": addresses[100]}, {"n": addresses[200], "f": addresses[220]}]


def test_whatever_anybody_wrote_is_text_and_nothing_else(base):
    person = Scenario(
        EVIL, EVIL, emotion=EVIL, problem=EVIL, facts=(EVIL,), helps=(EVIL,), hurts=(EVIL,), source=EVIL, profile=EVIL
    )
    said = Message("supporter", EVIL, strategy=EVIL, thought=EVIL, finish_reason=EVIL)
    messages = (Message("seeker", EVIL), said, Message("seeker", EVIL, strategy=EVIL, thought=EVIL))
    evil = held(0, "", scenario=person, dialogue=Dialogue(messages), usage=Usage(1, 1, 1, None, (EVIL,)))
    broken = replace(evil, verdicts=(), stop_reason=StopReason.ERROR, failure=Failure(EVIL, EVIL, EVIL))
    report = replace(base, agent=EVIL, scenarios=EVIL, trajectories=(evil, broken))
    ((name, html),) = conversation_pages(report)
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == tags.count("style") == 1
    assert not {"img", "iframe", "form", "link", "base", "object"} & set(tags)
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("style", "src")}
    assert not {"\u202e", "\x00", "\x1b"} & set(html)
    assert [attributes["id"] for tag, attributes in page.tags if tag == "article"] == ["c1", "c2"]
    assert all(text.count("<script>alert(1)</script>") >= 8 for text in page.articles.values())
    assert name == "report-0001.html"


def test_the_hidden_state_is_shown_of_the_embedded_seeker_alone(base, foreign):
    (page,) = pages_of(base).values()
    assert "0 of 3" in page.articles["c1"]
    assert "exploration" in page.articles["c1"]
    (other,) = pages_of(foreign).values()
    assert "exploration" not in other.articles["c1"]
    assert "for a builtin seeker of this release alone" in other.articles["c1"]


@pytest.mark.parametrize("name", ["builtin", "builtin:reader"])
def test_the_hidden_state_is_what_the_seeker_reveals_when_it_is_asked(name, tmp_path):
    report = evaluate("builtin:template", bank(1), seeker=name, rules=Rules(max_turns=3), out=tmp_path)
    (held,), seeker = report.trajectories, resolve_seeker(name)
    assert isinstance(seeker, RevealingSeeker)
    last = seeker.reveal(held.scenario, held.dialogue, seed=Seed(held.seed))
    ((_, html),) = conversation_pages(report)
    row = html.rpartition("<tr><td>")[2].partition("</tr>")[0]
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells == [f"{value:.2f}" if isinstance(value, float) else str(value) for value in last.values()]


def test_thousands_of_conversations_are_many_pages_that_each_open_at_once(foreign):
    long = held(0, *["What hurts most about it? " * 200] * 3)
    report = replace(foreign, trajectories=tuple(replace(long, seed=place) for place in range(2000)))
    last = hrefs(report)[-1].partition("#")[0]
    first, second = (next(conversation_pages(report, only=name)) for name in ("report-0001.html", "report-0002.html"))
    assert all(100_000 < len(html.encode()) < 1_500_000 for _, html in (first, second))
    ((name, html),) = conversation_pages(report, only=last)
    assert name == last
    assert "c2000" in Page(html).articles
    assert 35 < int(last[7:11]) < 45
    assert not list(conversation_pages(report, only="report-9999.html"))


def wild(letters: str) -> Trajectory:
    """A conversation of 801 messages, a megabyte each, with a person who is as long."""
    megabyte = letters * (1_000_000 // len(letters))
    messages = [Message("seeker", megabyte, thought=megabyte)]
    for _ in range(400):
        messages += [Message("supporter", megabyte, thought=megabyte, strategy=megabyte), Message("seeker", megabyte)]
    lines = (megabyte,) * 50
    person = Scenario(megabyte, megabyte, emotion=megabyte, facts=lines, helps=lines, hurts=lines, profile=megabyte)
    failure = Failure("supporter", megabyte, megabyte)
    return held(0, scenario=person, dialogue=Dialogue(tuple(messages)), failure=failure)


@pytest.mark.parametrize("letters", ["\x00<&\"'", "x\x01", "\"'"])
def test_no_page_is_over_5_megabytes_whatever_is_in_one_conversation(base, letters):
    report = replace(base, agent=letters * 500_000, trajectories=(wild(letters), held(1, "Yes."), wild(letters)))
    pages = dict(conversation_pages(report))
    assert all(len(html.encode()) < 5_000_000 for html in pages.values())
    texts = [text for html in pages.values() for text in Page(html).articles.values()]
    assert "980,000 more characters" in texts[0]
    assert "more messages; the run’s trajectories.jsonl has them all" in texts[0]


def test_a_key_is_not_cut_in_two_where_a_text_is_cut(base):
    secret = f"sk-{'a1b2c3d4' * 8}"
    report = replace(base, trajectories=(held(0, "x" * 19_970 + f" {secret} " + "y" * 100),))
    ((_, html),) = conversation_pages(report)
    assert "sk-a1b2" not in html
    assert "[key]" in html


def test_how_a_conversation_went_is_told_in_words(base):
    said = (
        Message("seeker", "It began in May."),
        Message("supporter", "Go on."),
        Message("seeker", "It is my job."),
        Message("supporter", "And th", strategy="Question", thought="She needs time.", finish_reason="length"),
        Message("seeker", "Yes."),
        Message("supporter", "", finish_reason="content_filter"),
        Message("seeker", "Hello?"),
    )
    verdicts = (Verdict((0.5, -0.5), 2, 0.0, False), Verdict((-0.5, -1.0), 2, -0.75, False))
    broken = held(
        0, dialogue=Dialogue(said), history=3, verdicts=verdicts, stop_reason=StopReason.ERROR, attempts=3, trial=1,
        failure=Failure("supporter", "ModelError", "over quota"), usage=Usage(12, 9, 9, 0.25),
        scenario=Scenario("p-1", "It is my job.", emotion="fear", problem="job crisis", persona="guarded", risk=True),
    )  # fmt: skip
    ((_, html),) = conversation_pages(replace(base, trajectories=(broken, held(1, "Yes.", solved=True))))
    text, solved = (" ".join(each.split()) for each in Page(html).articles.values())
    for told in (
        "p-1 error, no outcome", "fear · job crisis · guarded · at risk",
        "2 turns · score −0.75 · trial 2 · 3 attempts · 12 requests · 0.2500 USD", "turn 1 +0.00", "turn 2 −0.75",
        "supporter Question cutthoughtShe needs time.And th", "supporter filtered(silence)",
        "turn 1, critic +0.00 (1 same, 1 better)", "turn 2, critic −0.75, down 0.75 (1 worse, 1 same)",
        "supporter: over quota",
    ):  # fmt: skip
        assert told in text
    assert text.count("came with the scenario") == 3
    assert "turn 1, critic +1.00, solved" in solved
    assert "seeker opening" in solved


def test_what_was_held_elsewhere_and_not_judged_has_no_opening_of_ours(base):
    foreign = held(0, "Yes.", verdicts=(), stop_reason=StopReason.UNJUDGED, history=3)
    ((_, html),) = conversation_pages(replace(base, trajectories=(foreign,)))
    assert "not judged" in html
    assert "came with the scenario" not in html


def assert_every_link_leads_somewhere(pages: dict[str, str], *others: str) -> None:
    ids = {(name, attributes["id"]) for name, html in pages.items() for _, attributes in Page(html).tags
           if "id" in attributes}  # fmt: skip
    for name, html in pages.items():
        links = [attributes["href"].partition("#") for tag, attributes in Page(html).tags if tag == "a"]
        assert {file for file, _, _ in links} <= {"", *pages, *others}
        assert {(file or name, anchor) for file, _, anchor in links if anchor} <= ids


def test_every_link_of_the_pages_leads_somewhere(base):
    report = replace(base, trajectories=tuple(held(place, "Yes.", solved=place % 2 == 0) for place in range(201)))
    assert_every_link_leads_somewhere(dict(conversation_pages(report)), "report.html")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs, the second in another order: the first solves what is even, the second what can be divided by 3."""
    pytest.importorskip("statsmodels")
    folder = tmp_path_factory.mktemp("pair")
    runs = [evaluate("builtin:template", bank(1), out=folder / name, seed=0) for name in ("a", "b")]
    places = list(range(12))
    return [
        replace(
            run, run_key=str(step), agent=name, folder=folder / name, episodes=12,
            trajectories=tuple(held(place, f"{name} to {place}", solved=place % step == 0) for place in order),
        )
        for run, name, step, order in zip(runs, ("first", "second"), (2, 3), (places, places[::-1]), strict=True)
    ]  # fmt: skip


@pytest.mark.full
def test_runs_stand_side_by_side_by_person_and_trial_whatever_their_order(pair):
    pages = dict(compare_pages(*pair))
    assert list(pages) == ["compare.html", "compare-0001.html"]
    assert_every_link_leads_somewhere(pages)
    page = Page(pages["compare-0001.html"])
    assert len(page.articles) == 12
    for place, text in enumerate(page.articles.values()):
        assert f"person-{place} " in text
        assert text.index(f"first to {place}") < text.index(f"second to {place}")
    kinds = [("both", "only the first", "only the second", "neither")[(place % 2 > 0) * 2 + (place % 3 > 0)]
             for place in range(12)]  # fmt: skip
    kinds = [kind + " solved it" for kind in kinds]
    rows = [attributes for tag, attributes in Page(pages["compare.html"]).tags if "data-pair" in attributes]
    assert [row["data-pair"] for row in rows] == kinds
    differing = [place for place in range(12) if kinds[place].startswith("only")]
    for place in range(12):
        later = [f"compare-0001.html#c{other + 1}" for other in differing if other > place]
        assert page.keys[f"c{place + 1}"].get("f") == (later[0] if later else None)


@pytest.mark.full
def test_a_conversation_without_a_partner_says_so(pair):
    first, second = pair
    pages = dict(compare_pages(first, replace(second, trajectories=second.trajectories[:7])))
    articles = Page(pages["compare-0001.html"]).articles.values()
    alone = ["This run has no conversation with this person in trial 1" in text for text in articles]
    assert alone == [place < 5 for place in range(12)]
    assert pages["compare.html"].count('data-pair="no outcome in both"') == 5


@pytest.mark.full
def test_a_list_of_very_many_pairs_has_those_that_differ_most(pair):
    first, second = (
        replace(run, trajectories=tuple(held(place, "Yes.", solved=place < some) for place in range(2500)))
        for run, some in zip(pair, (10, 30), strict=True)
    )
    pages = compare_pages(first, second)
    name, html = next(pages)
    assert (name, html.count("<tr data-row")) == ("compare.html", 2000)
    assert html.count('data-pair="only the second solved it"') == 20
    assert "Of 2,500 pairs these 2,000 differ most" in html
    assert len(html.encode()) < 2_000_000


@pytest.mark.full
def test_hostile_runs_side_by_side_stay_text(pair):
    person = Scenario(EVIL, EVIL, emotion=EVIL)
    runs = [
        replace(run, agent=EVIL, scenarios=EVIL, trajectories=(held(0, EVIL, scenario=person),), folder=Path(EVIL))
        for run in pair
    ]
    for _, html in compare_pages(*runs):
        tags = [tag for tag, _ in Page(html).tags]
        assert tags.count("script") == tags.count("style") == 1
        assert "img" not in tags
        assert "&lt;script&gt;alert(1)" in html


@pytest.mark.full
def test_no_page_of_pairs_is_over_5_megabytes_either(pair):
    runs = [replace(run, agent="\x01" * 1_000_000, trajectories=(wild("\x01"), replace(wild("\"'"), trial=1)))
            for run in pair]  # fmt: skip
    pages = dict(compare_pages(*runs))
    assert len(pages) == 3
    assert all(len(html.encode()) < 5_000_000 for html in pages.values())


@pytest.mark.full
def test_runs_that_faced_different_things_are_refused_and_marked_on_every_page_if_wanted(pair):
    first, second = pair
    other = replace(second, fingerprint=Fingerprint({**second.fingerprint.parts, "seed": 7}))
    with pytest.raises(ProtocolMismatch, match="seed: 0 / 7"):
        list(compare_pages(first, other))
    for _, html in compare_pages(first, other, anyway=True):
        assert "NOT COMPARABLE" in html
    with pytest.raises(RecordError, match="same run"):
        list(compare_pages(first, first))


@pytest.mark.full
def test_the_command_writes_the_pages_and_says_where(tmp_path, capsys):
    for name in ("template", "silent"):
        evaluate(f"builtin:{name}", bank(2), out=tmp_path / name)
    runs = [str(tmp_path / name) for name in ("template", "silent")]
    with pytest.raises(SystemExit, match="0"):
        main(["compare", *runs, "--out", str(tmp_path / "new" / "site"), "--json"])
    written = capsys.readouterr()
    assert str(tmp_path / "new" / "site" / "compare.html") in written.err
    assert json.loads(written.out)["comparable"]
    assert {path.name for path in (tmp_path / "new" / "site").iterdir()} == {"compare.html", "compare-0001.html"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit, match="1"):
        main(["compare", *runs, "--out", str(tmp_path / "file")])
    assert "is a file; give a folder with --out" in capsys.readouterr().err


def test_a_conversation_of_very_many_turns_is_shown_at_once(base):
    short = base.trajectories[0]
    said = [Message("seeker", "It is my job.")]
    said += [Message("supporter", "I hear you."), Message("seeker", "I see.")] * 100
    long = replace(
        short,
        dialogue=Dialogue(tuple(said)),
        verdicts=tuple(short.verdicts[:1] * 100),
        stop_reason=StopReason.MAX_TURNS,
    )
    (page,) = pages_of(replace(base, trajectories=(long,))).values()
    assert "exploration" not in page.articles["c1"]
    assert "the turns are not very many" in page.articles["c1"]

"""Pages of conversations: found under their addresses, followed by keys, split by size, and harmless whoever wrote."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from conftest import bank

from esc_env import Dialogue, Message, Scenario
from esc_env.evaluation import evaluate
from esc_env.evaluation.pages.conversations import conversation_pages, hrefs
from esc_env.protocols import Usage, Verdict
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
        self.inside: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "article":
            self.inside = attributes["id"]
            self.articles[self.inside], self.keys[self.inside] = "", {}
        elif self.inside and "data-key" in attributes:
            self.keys[self.inside][attributes["data-key"]] = attributes["href"]

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
    """A run whose seeker is not the embedded one."""
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
    solved = [place % 70 != 40 for place in range(250)]
    report = replace(base, trajectories=tuple(held(place, "Yes.", solved=good) for place, good in enumerate(solved)))
    pages, addresses = pages_of(report), hrefs(report)
    assert len(pages) == 3
    for place, address in enumerate(addresses):
        name, _, anchor = address.partition("#")
        failures = [other for other in range(place + 1, 250) if not solved[other]]
        wanted = {"p": [place - 1] if place else [], "n": [place + 1] if place < 249 else [], "f": failures}
        assert pages[name].keys[anchor] == {key: addresses[to[0]] for key, to in wanted.items() if to}


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
    assert "only the embedded seeker" in other.articles["c1"]

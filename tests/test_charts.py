"""Charts of pages: they keep to the policy, whatever the names in them are."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import files
from xml.etree import ElementTree

import pytest

from esc_env.evaluation.pages.charts import fan, heat_map, success_by_price, turn_histogram
from esc_env.evaluation.runs.course import Moment

pytestmark = pytest.mark.full

HOSTILE = (
    "<script>alert(1)</script>", "\" onload='alert(1)", "$\\frac{1$", "$x$", "]]><style>", "&amp;", "a\nb\x00\u202ec",
    "\ud800", "孤独と不安", "حزن", "😀", "", "~0~", "x" * 100_000, "url(#x)",
)  # fmt: skip
MOMENTS = [Moment(turn, 0.1 * turn, (0.1 * turn - 0.1, 0.1 * turn + 0.1), 9 - turn) for turn in range(1, 7)]
SCORES = [[0.1 * turn - 0.3, 0.1 * turn, 0.1 * turn + 0.3] for turn in range(1, 7)]


def parsed(svg: str | None) -> ElementTree.Element:
    assert svg is not None
    return ElementTree.fromstring(svg)


def all_four(names=HOSTILE):
    return (
        fan(MOMENTS, SCORES),
        turn_histogram({2: 3, 5: 1, 10**9: 2}, {3: 1}),
        heat_map({(one, other): (1, 2) for one in names for other in names}),
        success_by_price([(each, 0.5, (0.4, 0.6), 0.001 * place) for place, each in enumerate(names)]),
    )


def texts(svg: str | None) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter("text")]


def label(svg: str | None) -> str:
    return parsed(svg).attrib["aria-label"]


def test_a_chart_is_an_image_with_words_for_those_who_do_not_see_it():
    for svg in all_four():
        root = parsed(svg)
        assert (root.tag, root.get("role")) == ("svg", "img")
        assert len(root.attrib["aria-label"]) > 30
        assert set(root.attrib) == {"viewBox", "role", "aria-label"}, "its size is the page's"


def test_a_chart_holds_nothing_that_the_policy_of_pages_forbids():
    tags = {"svg", "g", "defs", "path", "use", "text", "clipPath", "rect"}
    for svg in all_four():
        for element in parsed(svg).iter():
            assert element.tag in tags
            assert not [key for key in element.attrib if key == "style" or key.startswith("on")]
            assert element.get("href", "#").startswith("#")
        assert "<?" not in str(svg)
        assert "<!" not in str(svg)


def test_colours_are_classes_of_the_page_so_that_dark_works():
    known = set(re.findall(r"\.([a-z-]+)", files("esc_env.evaluation.pages").joinpath("page.css").read_text("utf-8")))
    for svg in all_four():
        assert not re.search(r'"#[0-9a-f]{3,6}"', str(svg))
        for element in parsed(svg).iter():
            assert set(element.get("class", "").split()) <= known
            if element.tag == "text":
                assert "class" in element.attrib, "without one it is black, in dark too"


def test_ids_of_several_charts_on_one_page_do_not_meet():
    seen = [parsed(svg) for svg in (*all_four(["a", "b"]), fan(MOMENTS[:3], SCORES[:3]))]
    ids = [element.attrib["id"] for root in seen for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids)) > 0
    for root in seen:
        own = {element.get("id") for element in root.iter()}
        used = re.findall(r'(?:href="|url\()#([\w-]+)', ElementTree.tostring(root, "unicode"))
        assert set(used) == own - {None}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_stranger_calls_an_emotion_stays_text_of_one_short_line(name):
    svg = heat_map({(name, "work"): (1, 2)})
    assert str(svg).encode()
    clean = re.sub("[\x00\u202e\ud800]", "\N{REPLACEMENT CHARACTER}", name.replace("\n", " "))
    short = clean if len(clean) <= 24 else f"{clean[:23]}…"
    assert sorted(texts(svg)) == sorted(["50", "work", short])
    assert short in label(svg)


def test_the_same_numbers_are_the_same_bytes_whatever_was_drawn_and_set_before(monkeypatch):
    import matplotlib

    before = all_four()
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert all_four() == before
    assert matplotlib.rcParams["font.size"] == 30, "and what was set is left as it was"


def test_charts_load_nothing_that_draws_until_they_are_drawn_and_never_pyplot():
    code = (
        "import sys\n"
        "from esc_env.evaluation.pages.charts import turn_histogram\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert turn_histogram({1: 1}, {})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_without_matplotlib_there_is_no_chart_and_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert all_four() == (None, None, None, None)


def test_where_there_is_nothing_to_show_there_is_no_chart():
    assert fan([], []) is None
    assert turn_histogram({}, {3: 0}) is None
    assert heat_map({("fear", "work"): (0, 0)}) is None
    assert success_by_price([("a", 0.5, (0.4, 0.6), float("nan"))]) is None


def test_the_fan_says_where_it_begins_and_ends():
    assert label(fan(MOMENTS, SCORES)) == (
        "Score turn by turn: on average +0.10 after turn 1 and +0.60 after turn 6, where 80 % of the conversations "
        "stand between +0.36 and +0.84."
    )


def test_turns_beyond_the_last_bar_are_counted_in_it():
    svg = turn_histogram({2: 1, 50: 3, 10**9: 4}, {41: 2})
    assert (
        label(svg) == "Turn in which conversations ended: 8 solved, 2 not solved; most were solved in turn 40 or later."
    )
    assert "40+" in texts(svg)


def test_a_heat_map_shows_the_most_frequent_and_says_of_how_many():
    cells = {(f"emotion {row}", f"problem {column}"): (1, 2 + row) for row in range(30) for column in range(3)}
    svg = heat_map(cells)
    assert "rows: the 20 most frequent of 30" in label(svg)
    assert "columns: 3" in label(svg)
    assert "highest 8.3 % with emotion 10 and problem 0" in label(svg)
    assert {"emotion 29", "emotion 10"} < set(texts(svg))
    assert "emotion 9" not in texts(svg)


def test_prices_far_apart_stand_on_a_logarithmic_scale_free_ones_too():
    def ticks(*prices):
        points = [(f"agent {place}", 0.5, (0.4, 0.6), price) for place, price in enumerate(prices)]
        return [each for each in texts(success_by_price(points)) if re.fullmatch(r"[\d.e-]+", each)]

    assert ticks(0.002, 0.3) == ["0.003", "0.01", "0.03", "0.1", "0.3", "0"]
    assert ticks(0, 0.002, 0.3) == ["0", "0.003", "0.01", "0.03", "0.1", "0.3", "0"]
    assert "0.002" in ticks(0.001, 0.003)
    assert ticks(0, 0)


def test_every_agent_is_named_beside_its_point_where_there_is_room():
    points = [(f"agent {place}", place / 10, (place / 10 - 0.05, place / 10 + 0.05), 0.01) for place in range(1, 9)]
    assert {name for name, *_ in points} < set(texts(success_by_price(points)))
    crowd = [(f"agent {place}", 0.5, (0.4, 0.6), 0.01) for place in range(40)]
    assert sum(each.startswith("agent") for each in texts(success_by_price(crowd))) < 10
    assert label(success_by_price(crowd)).endswith("; and 28 more.")

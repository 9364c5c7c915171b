"""Charts as inline SVG that keeps to the policy of the pages: nothing loaded, no style attribute, no script.

Matplotlib draws in colours that only stand for the classes of page.css, so that light and dark both work, and writes a
stand-in for whatever anybody else named; the name is put in afterwards, as text of an XML tree. So a `$` begins no
formula, no font has to know the script, and nothing becomes a tag.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import StringIO
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING
from unicodedata import combining, east_asian_width
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from esc_env.escaping import one_line
from esc_env.evaluation.runs.course import Moment
from esc_env.evaluation.runs.report import interval_text, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SIDE", "Curve", "curves", "fan", "frequent", "heat_map", "success_by_price", "turn_histogram"]

TURNS, SIDE, NAMED = 40, 20, 12
"""The last turn that has a bar of its own, rows and columns of a heat map, agents named in a text alternative. Ours."""

INK, SOFT, LINE, ACCENT, BAND, GOOD = (f"#00000{digit}" for digit in range(1, 7))
_CLASSES = {  # of page.css: what is filled, what is drawn as a line
    INK: ("ink", "ink-line"),
    SOFT: ("soft-fill", "soft-line"),
    LINE: ("line-fill", "line-line"),
    ACCENT: ("accent-fill", "accent-line"),
    BAND: ("band-fill", "band-line"),
    GOOD: ("good-fill", "good-line"),
}
_SIZE = 11  # of text, in units of the drawing
_LETTER = 0.56 * _SIZE  # how wide a letter is, roughly; fonts are the reader's
_UNWRITABLE = re.compile("[\ud800-\udfff\ufffe\uffff]")  # in XML

_Name = Callable[[str], str]


def fan(moments: Sequence[Moment], scores: Sequence[Sequence[float]]) -> Markup | None:
    """The seeker's relief turn by turn: the mean with its interval, and between what most conversations stand.

    Args:
        moments: one per turn.
        scores: for each turn the score of every conversation; one that ended stays where it ended.

    Returns:
        Inline SVG; None where Matplotlib is not installed or there is no turn.
    """
    if not moments:
        return None
    turns = [moment.turn for moment in moments]
    means = [moment.score for moment in moments]
    spread = np.array([np.percentile(each, (10, 25, 75, 90)) if each else [np.nan] * 4 for each in scores]).T

    def paint(axes: Axes, name: _Name) -> None:
        axes.fill_between(turns, spread[0], spread[3], color=BAND, alpha=0.45, lw=0, label="80 % of conversations")
        axes.fill_between(turns, spread[1], spread[2], color=BAND, lw=0, label="half")
        axes.axhline(0, color=SOFT, lw=0.8)
        lows, highs = zip(*(moment.interval for moment in moments), strict=True)
        axes.vlines(turns, lows, highs, color=ACCENT, lw=1.2)
        axes.plot(turns, means, color=ACCENT, lw=2, marker="o", ms=4, label="mean, 95 %")
        axes.set(xlabel="turn", ylabel="score", ylim=(-1.05, 1.05), xlim=(min(turns) - 0.5, max(turns) + 0.5))
        axes.set_yticks([-1, -0.5, 0, 0.5, 1])
        axes.locator_params("x", integer=True)
        _legend(axes)

    first, last = moments[0], moments[-1]
    label = (
        f"Score turn by turn: on average {number(first.score, 2, signed=True)} after turn {first.turn} and "
        f"{number(last.score, 2, signed=True)} after turn {last.turn}"
    )
    if scores and scores[-1]:
        low, high = (number(float(end), 2, signed=True) for end in spread[[0, 3], -1])
        label += f", where 80 % of the conversations stand between {low} and {high}"
    return _drawn(f"{label}.", paint)


def turn_histogram(solved: Mapping[int, int], others: Mapping[int, int]) -> Markup | None:
    """In which turn conversations ended.

    Args:
        solved: how many were solved in a turn.
        others: how many ended unsolved in a turn.

    Returns:
        Inline SVG; None where Matplotlib is not installed or there is no conversation.
    """
    kinds = (_to_the_last_bar(solved), _to_the_last_bar(others))
    total = [kind.total() for kind in kinds]
    if not sum(total):
        return None
    turns = range(min(min(kind) for kind in kinds if kind), max(max(kind) for kind in kinds if kind) + 1)

    def paint(axes: Axes, name: _Name) -> None:
        good, rest = kinds
        under = [good[turn] for turn in rest]
        if good:
            axes.bar(list(good), list(good.values()), color=GOOD, edgecolor=GOOD, label="solved")
        if rest:
            axes.bar(list(rest), list(rest.values()), bottom=under, color=LINE, edgecolor=SOFT, label="not solved")
        axes.set(xlabel="turn", ylabel="conversations")
        axes.locator_params(integer=True)
        axes.set_xlim(turns[0] - 0.8, turns[-1] + 0.8)
        if turns[-1] == TURNS:
            axes.set_xticks([turn for turn in turns if turn % 10 == 0])
            axes.xaxis.set_major_formatter(lambda turn, _: f"{turn:.0f}{'+' if turn == TURNS else ''}")
        elif len(turns) < 3:  # too few for whole numbers to be found
            axes.set_xticks(turns)
        _legend(axes)

    label = f"Turn in which conversations ended: {total[0]:,} solved, {total[1]:,} not solved"
    often = max(turns, key=lambda turn: kinds[0][turn])
    label += f"; most were solved in turn {often}{' or later' if often == TURNS else ''}" if total[0] else ""
    return _drawn(f"{label}.", paint)


def heat_map(cells: Mapping[tuple[str, str], tuple[int, int]]) -> Markup | None:
    """Success rate by emotion and problem, of those that came most often.

    Args:
        cells: (emotion, problem) to (solved, of).

    Returns:
        Inline SVG; None where Matplotlib is not installed or there is no conversation.
    """
    tried = {pair: (solved, of) for pair, (solved, of) in cells.items() if of}
    if not tried:
        return None
    all_rows, all_columns = ({pair[side] for pair in tried} for side in (0, 1))
    rows, columns = (frequent(((pair[side], of) for pair, (_, of) in tried.items())) for side in (0, 1))
    shown = {
        (columns.index(problem), rows.index(emotion)): solved / of
        for (emotion, problem), (solved, of) in tried.items()
        if emotion in rows and problem in columns
    }

    def paint(axes: Axes, name: _Name) -> None:
        from matplotlib.collections import PolyCollection
        from matplotlib.colors import to_rgba

        squares = [[(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)] for x, y in shown]
        shades = [to_rgba(BAND, round(rate, 3)) for rate in shown.values()]
        axes.add_collection(PolyCollection(squares, facecolors=shades, edgecolors=LINE, linewidths=0.8))
        for (x, y), rate in shown.items():
            axes.text(x + 0.5, y + 0.5, f"{100 * rate:.0f}", ha="center", va="center", size=_SIZE - 1)
        axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        under = [name(each) for each in columns]
        axes.set_xticks(np.arange(len(columns)) + 0.5, under, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(len(rows)) + 0.5, [name(each) for each in rows])
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)

    best, worst = (pick(shown, key=lambda at: shown[at]) for pick in (max, min))
    label = (
        f"Per cent solved by emotion (rows: {_counted(rows, all_rows)}) and problem (columns: "
        f"{_counted(columns, all_columns)}); "
    )
    label += "; ".join(
        f"{kind} {percent(shown[at])} with {_short(rows[at[1]])} and {_short(columns[at[0]])}"
        for kind, at in (("highest", best), ("lowest", worst))
    )
    across, down = (_LETTER * max(_width(_short(each)) for each in side) for side in (rows, columns))
    left, bottom = max(across + 10, 0.77 * _LETTER * _width(_short(columns[0]))), 0.65 * down + 16
    width = len(columns) * max(28, min(60, (408 - left) / len(columns)))
    right = max(12, 420 - left - width)  # the fewer columns, the emptier: letters are as large as in other charts
    return _drawn(f"{label}.", paint, width, 24 * len(rows), (left, right, 6, bottom))


def success_by_price(points: Sequence[tuple[str, float, tuple[float, float], float]]) -> Markup | None:
    """Success rate against what a conversation costs.

    Args:
        points: agent, success rate, its interval, US dollars a conversation.

    Returns:
        Inline SVG; None where Matplotlib is not installed or no agent has a price.
    """
    known = sorted((each for each in points if isfinite(each[3]) and each[3] >= 0), key=lambda each: (-each[1], each))
    if not known:
        return None
    prices = [price for *_, price in known]
    paid = [price for price in prices if price]
    wide = bool(paid) and max(paid) > 10 * min(paid)

    def paint(axes: Axes, name: _Name) -> None:
        lows, highs = zip(*(interval for _, _, interval, _ in known), strict=True)
        rates = [rate for _, rate, _, _ in known]
        axes.vlines(prices, lows, highs, color=BAND, lw=2.5)
        axes.plot(prices, rates, color=ACCENT, ls="", marker="o", ms=6, clip_on=False)
        axes.set(xlabel="US dollars a conversation", ylabel="success rate", ylim=(-0.03, 1.03))
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        if wide:
            free = [0.0] if len(paid) < len(prices) else []
            axes.set_xscale("symlog" if free else "log", **({"linthresh": min(paid), "linscale": 0.5} if free else {}))
            axes.set_xlim(-min(paid) / 4 if free else min(paid) / 1.6, max(paid) * 1.6)
            axes.set_xticks(free + _steps(min(paid), max(paid)))
            axes.set_xticks([], minor=True)
        else:
            axes.set_xlim(0, (max(prices) or 1) * 1.15)
            axes.locator_params("x", nbins=5)
        axes.xaxis.set_major_formatter(lambda price, _: f"{price:g}")
        axes.grid(color=LINE, lw=0.6)
        _name_points(axes, name, [(_short(agent), price, rate) for agent, rate, _, price in known])

    label = f"Success rate and US dollars a conversation of {_agents(len(known))}: " + "; ".join(
        f"{_short(agent)} {percent(rate)} ({interval_text(interval)}) at {price:.3g}"
        for agent, rate, interval, price in known[:NAMED]
    )
    label += f"; and {len(known) - NAMED:,} more" if len(known) > NAMED else ""
    return _drawn(f"{label}.", paint, 380, 230)


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of `curves`.

    Attributes:
        name: what it is called beside others.
        points: step and value, in order.
        band: for each point the ends of its spread; nothing where none is known.
    """

    name: str
    points: Sequence[tuple[int, float]]
    band: Sequence[tuple[float, float]] = ()


def curves(what: str, drawn: Sequence[Curve], *, share: bool = False) -> Markup | None:
    """What changed step by step while something was trained.

    Args:
        what: the quantity, its unit included.
        drawn: at most three curves, all of this quantity; numbers are finite.
        share: from 0 to 1, shown as per cent.

    Returns:
        Inline SVG; None where Matplotlib is not installed or there is no point.
    """
    shown = [curve for curve in drawn if curve.points]
    if not shown:
        return None

    def paint(axes: Axes, name: _Name) -> None:
        for curve, ink, dashes in zip(shown, (ACCENT, GOOD, SOFT), ("-", "--", ":"), strict=False):
            steps, values = zip(*curve.points, strict=True)
            if curve.band:
                lows, highs = zip(*curve.band, strict=True)
                axes.fill_between(steps, lows, highs, color=BAND, alpha=0.6, lw=0)
            marker = "o" if len(steps) <= 30 else ""
            axes.plot(steps, values, color=ink, lw=1.8, ls=dashes, marker=marker, ms=3.5, label=name(curve.name))
        axes.set(xlabel="step", ylabel=name(what))
        axes.locator_params("x", integer=True, nbins=7)
        axes.grid(axis="y", color=LINE, lw=0.6)
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        if share:
            axes.set_ylim(-0.03, 1.03)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        if len(shown) > 1:
            _legend(axes)

    tell = percent if share else (lambda value: f"{value:.3g}".replace("-", "−"))
    told = []
    for curve in shown:
        (first, begun), (last, now) = curve.points[0], curve.points[-1]
        since = f"from {tell(begun)} at step {first:,} to " if first != last else ""
        told.append(f"{_short(curve.name)} {since}{tell(now)} at step {last:,}")
        if curve.band:
            told[-1] += f", its band from {tell(curve.band[-1][0])} to {tell(curve.band[-1][1])}"
    return _drawn(f"{_short(what)} by step: {'; '.join(told)}.", paint)


def _steps(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to some more than `high`, and threes between them where there are few."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    between = (1, 3) if len(powers) < 5 else (1,)
    return [step * 10.0**power for power in powers for step in between if low <= step * 10.0**power <= 1.6 * high]


def _agents(count: int) -> str:
    return f"{count:,} agent{'' if count == 1 else 's'}"


def _to_the_last_bar(ended: Mapping[int, int]) -> Counter[int]:
    """Conversations by turn, those beyond the last bar in it."""
    counted: Counter[int] = Counter()
    for turn, count in ended.items():
        if count:
            counted[min(turn, TURNS)] += count
    return counted


def frequent(counts: Iterable[tuple[str, int]]) -> list[str]:
    """The names that count most, most first: as many as a heat map has rows or columns."""
    total: Counter[str] = Counter()
    for name, count in counts:
        total[name] += count
    return sorted(total, key=lambda name: (-total[name], name))[:SIDE]


def _counted(shown: Sequence[str], all_: set[str]) -> str:
    return f"{len(shown)}" if len(shown) == len(all_) else f"the {len(shown)} most frequent of {len(all_):,}"


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0.2, handlelength=1.2)


def _name_points(axes: Axes, name: _Name, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each name where it covers no point and no other name; where there is no such place, not at all."""
    places = [axes.transData.transform((x, y)) for _, x, y in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    frame = axes.get_window_extent()
    height = 0.6 * _SIZE
    for (text, *_), (x, y) in zip(points, places, strict=True):
        wide = _LETTER * _width(text)
        for side, up in ((1, 0), (-1, 0), (1, 10), (-1, 10), (1, -10), (-1, -10), (1, 20), (1, -20)):
            left = x + 7 if side > 0 else x - 7 - wide
            box = (left, y + up - height, left + wide, y + up + height)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 + 10 and frame.y0 <= box[1] and box[3] <= frame.y1 + 6
            if inside and not any(
                box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
            ):
                at, height_at = axes.transData.inverted().transform((x + 7 * side, y + up))
                axes.text(at, height_at, name(text), ha="left" if side > 0 else "right", va="center", size=_SIZE - 1)
                taken.append(box)
                break


def _short(text: str) -> str:
    """One line of at most 24 letters; wide ones count twice."""
    text = _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", one_line(text))
    if len(text) <= 48 and _width(text) <= 24:
        return text
    kept = text[:46]
    while _width(kept) > 23:
        kept = kept[:-1]
    return f"{kept.rstrip()}…"


def _width(text: str) -> int:
    return sum(0 if combining(letter) else 1 + (east_asian_width(letter) in "WF") for letter in text)


def _drawn(
    label: str,
    paint: Callable[[Axes, _Name], None],
    width: float = 350,
    height: float = 190,
    margins: tuple[float, float, float, float] = (58, 12, 24, 42),
) -> Markup | None:
    """A drawing of `width` by `height` inside of its margins (left, right, top, bottom)."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        return None
    names: dict[str, str] = {}

    def name(text: str) -> str:
        """What stands in for a name: as wide, and letters that every font has."""
        short = _short(text)
        stand_in = f"~{len(names)}~".ljust(_width(short), "n")
        names[stand_in] = short
        return stand_in

    left, right, top, bottom = margins
    wide, high = left + width + right, top + height + bottom
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(wide / 72, high / 72), dpi=72)
        axes = figure.add_axes((left / wide, bottom / high, width / wide, height / high))
        paint(axes, name)
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _inline(ElementTree.fromstring(file.getvalue()), names, label)


_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.labelcolor": SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": _SIZE,
    "legend.fontsize": _SIZE - 1,
    "svg.fonttype": "none",
    "svg.hashsalt": "esc-env",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}


def _inline(drawing: ElementTree.Element, names: Mapping[str, str], label: str) -> Markup:
    """Matplotlib's SVG as a part of a page."""
    chart = f"c{sha256((ElementTree.tostring(drawing, 'unicode') + label + str(names)).encode()).hexdigest()[:10]}"
    for element in drawing.iter():
        element.tag = element.tag.rpartition("}")[2]
        for child in [child for child in element if child.tag.rpartition("}")[2] in ("metadata", "style")]:
            element.remove(child)
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        attributes |= _presentation(attributes.pop("style", ""))
        element.attrib = {key: _own_id(key, value, chart) for key, value in attributes.items()}
        if element.tag == "text" and element.text:
            element.text = names.get(element.text, element.text)
    used = set(re.findall(rf"#({chart}-\w+)", ElementTree.tostring(drawing, "unicode")))
    for element in drawing.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        element.tail = None
        if element.tag != "text":
            element.text = None
    drawing.attrib = {"viewBox": drawing.attrib["viewBox"], "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(drawing, "unicode"))


def _own_id(key: str, value: str, chart: str) -> str:
    return f"{chart}-{value}" if key == "id" else re.sub(r"^(url\()?#", rf"\1#{chart}-", value)


def _presentation(style: str) -> dict[str, str]:
    """A style attribute as other attributes, colours as classes; the font is the page's."""
    classes, rest = [], {}
    for rule in filter(None, map(str.strip, style.split(";"))):
        key, _, value = (part.strip() for part in rule.partition(":"))
        if key in ("fill", "stroke") and value in _CLASSES:
            classes.append(_CLASSES[value][key == "stroke"])
        elif key != "font-family":
            rest[key] = value
    return rest | ({"class": " ".join(classes)} if classes else {})

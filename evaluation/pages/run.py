"""The page of a run: how it went, whatever nobody must overlook, and the way to every conversation.

Who wrote a run may be a stranger: names are cut, and where there are very many of something the page shows the most
frequent and says so, so that a run of any size is a page that opens at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from esc_env.errors import RecordError
from esc_env.escaping import one_line
from esc_env.evaluation.pages.charts import SIDE, fan, frequent, heat_map, turn_histogram
from esc_env.evaluation.pages.conversations import OUTCOMES, conversation_pages, hrefs
from esc_env.evaluation.pages.rendering import plain, render
from esc_env.evaluation.runs.course import MOMENTS
from esc_env.evaluation.runs.report import Group, Report, percent, success_text
from esc_env.evaluation.runs.wording import TABLE
from esc_env.records import write_text
from esc_env.trajectory import Trajectory

__all__ = ["run_pages", "write_pages"]

PART = 2_000_000
"""Bytes of the list after which it goes on in a page of its own. Ours."""
PICKED, KINDS, FACTS = 5, 10, 50
"""Conversations that are pointed to of each sort, kinds of failures, and facts of a fingerprint. Ours."""
NAME, WORDS = 80, 600
"""Characters of a name, and of a longer text. Ours."""

_OURS = re.compile(r"report-(list-)?\d{4,}\.html")


def run_pages(report: Report) -> Iterator[tuple[str, str]]:
    """Names and HTML of the pages of a run: `report.html`, what its list goes on in, and its conversations.

    Each is made when it is asked for. The same run is the same bytes.
    """
    rows = [_row(trajectory, href) for trajectory, href in zip(report.trajectories, hrefs(report), strict=True)]
    parts = list(_parts(rows))
    for part in parts:
        others: dict[str, Any] = {"title": _title(report), "part": part, "all_parts": parts}
        yield part.name, render("list_page.html", **others) if part.number else _first_page(report, rows, others)
    yield from conversation_pages(report)


def write_pages(pages: Iterable[tuple[str, str]], folder: Path) -> Path:
    """Write the pages of a run into a folder, the first one last, so that whatever it links to is there.

    Pages of an earlier writing that are no more are removed.

    Returns:
        The first page.

    Raises:
        RecordError: one cannot be written or removed.
    """
    made = iter(pages)
    first, html = next(made)
    written = {first}
    for name, text in made:
        write_text(folder / name, text)
        written.add(name)
    write_text(folder / first, html)
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in written:
            try:
                path.unlink()
            except OSError as error:
                raise RecordError(f"{path}: is of an earlier report; remove it ({error.strerror})") from error
    return folder / first


# --- the list of all conversations ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation in the list. A field is what `list.html` shows, and its script looks up, under this name."""

    scenario: str
    emotion: str
    problem: str
    persona: str
    outcome: str
    turns: int
    score: float | None
    kind: str
    href: str


@dataclass(frozen=True, slots=True)
class Part:
    """What one page holds of the list.

    Attributes:
        number: from 0.
        name: of the page.
        before: how many rows stand on the pages before.
        rows: its own.
    """

    number: int
    name: str
    before: int
    rows: Sequence[Row]

    @property
    def json(self) -> Markup:
        """All rows, for the script."""
        names = [spec.name for spec in fields(Row)]
        return htmlsafe_json_dumps({"names": names, "rows": [astuple(row) for row in self.rows]}, dumps=_compact)

    @property
    def choices(self) -> Mapping[str, tuple[Sequence[str], bool]]:
        """What the list can be narrowed to, by the field, and whether these are all."""
        counted = {name: Counter(getattr(row, name) for row in self.rows) for name in ("outcome", "emotion", "persona")}
        return {
            name: (sorted(frequent(counts.items())), len(counts) <= SIDE)
            for name, counts in counted.items()
            if len(counts) > 1
        }


def _row(trajectory: Trajectory, href: str) -> Row:
    scenario = trajectory.scenario
    kind, outcome = OUTCOMES[trajectory.stop_reason]
    return Row(
        scenario=_title_of(trajectory),
        emotion=one_line(scenario.emotion, NAME) or "unknown",
        problem=one_line(scenario.problem, NAME) or "unknown",
        persona=scenario.persona,
        outcome=outcome,
        turns=trajectory.turns,
        score=round(trajectory.final_score, 4) if trajectory.verdicts else None,
        kind=kind,
        href=href,
    )


def _parts(rows: Sequence[Row]) -> Iterator[Part]:
    """The rows, so many to a page as its size allows."""
    number = begin = size = 0
    for place, row in enumerate(rows):
        size += len(_compact(astuple(row)).encode())
        if size > PART:
            yield Part(number, _list_page(number), begin, rows[begin:place])
            number, begin, size = number + 1, place, 0
    yield Part(number, _list_page(number), begin, rows[begin:])


def _list_page(number: int) -> str:
    return f"report-list-{number + 1:04}.html" if number else "report.html"


def _compact(data: Any, **_: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _title(report: Report) -> str:
    return f"{one_line(report.agent, NAME)} on {one_line(report.scenarios, NAME)}"


def _title_of(trajectory: Trajectory) -> str:
    trial = f", trial {trajectory.trial + 1}" if trajectory.trial else ""
    return one_line(trajectory.scenario.id, NAME) + trial


# --- what the first page shows --------------------------------------------------------------------


def _first_page(report: Report, rows: Sequence[Row], others: Mapping[str, Any]) -> str:
    done = [trajectory for trajectory in report.trajectories if trajectory.completed]
    ended = [_ended(done, solved=solved) for solved in (True, False)]
    scores = _scores(done, len(report.course.moments))
    cells = _cells(done)
    facts = list(report.fingerprint.parts.items())[:FACTS]
    return render(
        "run.html",
        report=report,
        success=success_text(report),
        price=_price(report),
        failures=[
            (one_line(role, NAME), one_line(message, WORDS), count)
            for role, message, count in report.failure_messages[:KINDS]
        ],
        kinds=len(report.failure_messages),
        fan=fan(report.course.moments, scores),
        moments=list(zip(report.course.moments, _middles(scores), strict=True)),
        histogram=turn_histogram(*ended),
        ended=[(turn, *(counts[turn] for counts in ended)) for turn in sorted(ended[0] | ended[1])],
        latest=MOMENTS,
        heat=heat_map(cells),
        grid=_Grid.of(cells),
        picks=_picks(report, rows),
        groups={name: _frequent_groups(groups) for name, groups in report.groups.items() if len(groups) > 1},
        answers=_answers(report),
        wording={name: show(report.wording) for name, show in TABLE.items()} if report.wording else {},
        cost=_cost(report),
        facts={one_line(name, NAME): one_line(plain(value), WORDS) for name, value in facts},
        **others,
    )


def _scores(done: Iterable[Trajectory], turns: int) -> list[list[float]]:
    """For each turn the score of every conversation; one that ended stays where it ended."""
    judged = [[verdict.score for verdict in trajectory.verdicts] for trajectory in done if trajectory.verdicts]
    return [[scores[min(turn, len(scores) - 1)] for scores in judged] for turn in range(turns)]


def _middles(scores: Iterable[Sequence[float]]) -> list[tuple[float, ...]]:
    """Between which scores half of the conversations stand, and 80 %, turn by turn."""
    return [tuple(map(float, np.percentile(each, (25, 75, 10, 90)))) for each in scores]


def _ended(done: Iterable[Trajectory], *, solved: bool) -> Counter[int]:
    """How many conversations ended in which turn; later ones count as in one."""
    return Counter(min(item.turns, MOMENTS) for item in done if item.solved == solved)


def _cells(done: Iterable[Trajectory]) -> dict[tuple[str, str], tuple[int, int]]:
    """How many were solved, of how many, by emotion and problem."""
    outcomes: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for item in done:
        outcomes[item.scenario.emotion or "unknown", item.scenario.problem or "unknown"].append(item.solved)
    return {pair: (sum(each), len(each)) for pair, each in outcomes.items()}


@dataclass(frozen=True, slots=True)
class _Grid:
    """What the heat map shows, as a table: a row for each emotion, with the cell of each problem.

    Attributes:
        problems: of the columns.
        rows: emotion and cells; None where there was no conversation.
        left_out: whether there are emotions or problems for which there is no room.
    """

    problems: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, int] | None]]]
    left_out: bool

    @classmethod
    def of(cls, cells: Mapping[tuple[str, str], tuple[int, int]]) -> _Grid:
        emotions, problems = (frequent((pair[side], of) for pair, (_, of) in cells.items()) for side in (0, 1))
        return cls(
            [one_line(problem, NAME) for problem in problems],
            [
                (one_line(emotion, NAME), [cells.get((emotion, problem)) for problem in problems])
                for emotion in emotions
            ],
            len({emotion for emotion, _ in cells}) > SIDE or len({problem for _, problem in cells}) > SIDE,
        )


def _frequent_groups(groups: Mapping[str, Group]) -> tuple[list[tuple[str, Group]], int]:
    """The largest groups, by name, and how many there are."""
    kept = set(frequent((name, group.episodes) for name, group in groups.items()))
    return [(one_line(name, NAME), group) for name, group in groups.items() if name in kept], len(groups)


def _answers(report: Report) -> list[str]:
    """How the supporter's replies ended, and how many of a chat model's first votes could not be read."""
    told = report.replies
    counts = (told.all, told.cut, told.cut_thinking, told.refused, told.filtered, told.empty)
    return [*(f"{count:,}" for count in counts), percent(report.unreadable_votes)]


def _cost(report: Report) -> list[Sequence[str]]:
    """Requests, tokens and dollars: of a conversation, and of all."""
    usage, ended = report.usage, max(len(report.trajectories), 1)
    counts = (usage.requests, usage.prompt_tokens, usage.completion_tokens)
    dollars = "unknown" if usage.cost is None else f"{usage.cost:,.2f}"
    return [
        ("a conversation", *(f"{count / ended:,.1f}" for count in counts), _price(report)),
        ("all", *(f"{count:,}" for count in counts), dollars),
    ]


def _price(report: Report) -> str:
    cost = report.usage.cost
    return "unknown" if cost is None else f"{cost / max(len(report.trajectories), 1):,.4f}"


# --- conversations to look at ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Picks:
    """Conversations that one should look at, and why.

    Attributes:
        title: what they are.
        rule: how they were chosen.
        rows: as in the list, each with a word on why it is here.
    """

    title: str
    rule: str
    rows: Sequence[tuple[Row, str]]


def _picks(report: Report, rows: Sequence[Row]) -> list[_Picks]:
    held = [
        (trajectory, row) for trajectory, row in zip(report.trajectories, rows, strict=True) if trajectory.completed
    ]
    solved = sorted((each for each in held if each[0].solved), key=lambda each: (each[0].turns, -each[0].final_score))
    unsolved = sorted((each for each in held if not each[0].solved), key=lambda each: _low(each[0]))
    chances = _chances([trajectory for trajectory, _ in held])
    odd = sorted(
        ((abs(item.solved - chance), chance, row) for (item, row), chance in zip(held, chances, strict=True)),
        key=lambda each: -each[0],
    )
    return [
        _Picks("Best", "Solved in the fewest turns, then by score.", [(row, "") for _, row in solved[:PICKED]]),
        _Picks(
            "Worst", "Not solved, with the lowest score at the end, then on average.",
            [(row, "") for _, row in unsolved[:PICKED]],
        ),
        _Picks(
            "Most surprising",
            "Solved where that was unlikely, or the other way round. How likely it was is guessed from two things, "
            "half each: how many others with this problem were solved, and the score one turn before the end "
            "(−1 as 0 %, +1 as 100 %).",
            [(row, f"likely {100 * chance:.0f} %") for gap, chance, row in odd[:PICKED] if gap > 0.5],
        ),
    ]  # fmt: skip


def _low(item: Trajectory) -> tuple[float, float]:
    return item.final_score, fmean(verdict.score for verdict in item.verdicts) if item.verdicts else -1.0


def _chances(done: Sequence[Trajectory]) -> list[float]:
    """How likely each was to be solved, by the others with its problem and by its score one turn before the end.

    Where there is no other with this problem, by all others; where there was no turn before, by the others alone.
    """
    everybody = Counter(item.solved for item in done)
    alike: dict[str, Counter[bool]] = defaultdict(Counter)
    for item in done:
        alike[item.scenario.problem][item.solved] += 1
    chances = []
    for item in done:
        group = alike[item.scenario.problem]
        counts = group if group.total() > 1 else everybody
        known = [(counts[True] - item.solved) / (counts.total() - 1)] if counts.total() > 1 else []
        if item.turns > 1:
            known.append((item.verdicts[-2].score + 1) / 2)
        chances.append(fmean(known) if known else 0.5)
    return chances

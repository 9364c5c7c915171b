"""Plain static HTML pages: no script, nothing loaded from anywhere, everything that anybody wrote is escaped.

Were something not escaped, it would still do nothing: by its Content-Security-Policy a page is its own style and text.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from esc_env.dialogue import Message
from esc_env.escaping import safe
from esc_env.evaluation.runs.report import (
    FIGURES,
    Group,
    Report,
    figures,
    interval_text,
    number,
    percent,
    success_text,
)  # fmt: skip
from esc_env.evaluation.runs.wording import TABLE
from esc_env.protocols import Verdict
from esc_env.trajectory import StopReason, Trajectory

__all__ = ["bar", "document", "facts", "run_page", "table", "transcripts"]

_CUT = {"length": "cut", "refusal": "refused", "content_filter": "filtered"}

_ENDED = {
    StopReason.SOLVED: ("solved", "solved"),
    StopReason.MAX_TURNS: ("", "not solved"),
    StopReason.SUPPORTER_FAILED: ("failed", "supporter failed"),
    StopReason.UNJUDGED: ("", "not judged"),
    StopReason.ERROR: ("failed", "error, no outcome"),
}


def run_page(report: Report) -> str:
    """The page of one run: numbers, groups, and every conversation."""
    spread = f" (95 % interval {interval_text(report.interval)})" if report.interval else ""
    body = [
        f"<h1>{escape(report.agent)} on {escape(report.scenarios)}</h1>",
        f'<p class="lead">Solved: {success_text(report)}{spread}.</p>',
        *notes(report),
        table(
            (("", "bar"), *((name, "") for name in (*FIGURES, "with outcome", "errors"))),
            [
                (
                    bar(report.success_rate, report.interval if report.complete else None),
                    *figures(report),
                    f"{report.completed:,} / {report.episodes:,}",
                    f"{report.errors:,}",
                )
            ],
        ),
        *([f"<h2>Safety</h2><p>{escape(str(report.safety)).capitalize()}.</p>"] if report.safety else []),
        f"<h2>Answers</h2>{replies_table(report)}",
        *course_tables(report),
        *wording_tables(report),
        *(f"<h2>By {title}</h2>{groups_table(groups)}" for title, groups in report.groups.items() if len(groups) > 1),
        f"<h2>What it cost</h2>{usage_table(report)}",
        f"<h2>Conversations</h2>{transcripts(report.trajectories)}",
        f"<h2>What the agent faced</h2>{facts(report.fingerprint.parts)}",
        f'<p class="soft">Fingerprint {report.fingerprint.digest}, run key {report.run_key}</p>',
    ]
    return document(f"{report.agent} on {report.scenarios}", body)


def document(title: str, body: Iterable[str]) -> str:
    """A whole page; `title` is escaped, `body` must be HTML already. Control characters become visible marks."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    known = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{known}'; base-uri 'none'; form-action 'none'"
    return safe(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def notes(report: Report) -> list[str]:
    """Boxes for what a reader must not overlook: what is missing, what failed."""
    boxes = []
    missing = report.episodes - report.completed
    if missing:
        boxes.append(
            f'<p class="note bad">Incomplete: {missing:,} of {report.episodes:,} conversations have no outcome '
            f"({report.errors:,} ended in an error), and none of these counts as solved in “of all”. "
            "The same command completes the run.</p>"
        )
    boxes += [f'<p class="note bad">{escape(line)}.</p>' for line in report.warnings]
    boxes += [
        f'<p class="note bad">{count:,} × {escape(role)}: {escape(message)}</p>'
        for role, message, count in report.failure_messages
    ]
    return boxes


def replies_table(report: Report) -> str:
    """How the supporter's replies ended, and how many of a chat model's first votes could not be read."""
    replies = report.replies
    counts = (replies.cut, replies.cut_thinking, replies.refused, replies.filtered, replies.empty)
    columns = ("replies", "cut", "of these while thinking", "refused", "filtered", "empty", "unreadable first votes")
    cells = (f"{replies.all:,}", *(f"{count:,}" for count in counts), percent(report.unreadable_votes))
    return table([(name, "") for name in columns], [cells])


def course_tables(report: Report) -> list[str]:
    """How the conversations went: scores by turn, the first *better*, pass^k."""
    course = report.course
    if not course.moments:
        return []
    rows = [
        (
            str(each.turn),
            number(each.score, 2, signed=True),
            " – ".join(number(end, 2, signed=True) for end in each.interval),
            f"{each.talking:,}",
        )
        for each in course.moments
    ]
    tries = "; ".join(f"{k}: {percent(rate)}" for k, rate in enumerate(course.pass_hat, 1))
    return [
        "<h2>Turn by turn</h2>",
        table((("turn", ""), ("mean score", ""), ("95 %", ""), ("still talking", "")), rows),
        f'<p class="soft">A conversation that has ended stays where it ended. {percent(course.better)} came to a score '
        f"above 0, first in turn {number(course.first_better, 1)} on average. Share of scenarios solved in all of k "
        f"trials (pass^k), k = {tries}.</p>",
    ]


def wording_tables(report: Report) -> list[str]:
    """What the supporter's replies look like."""
    said = report.wording
    if said is None:
        return []
    moves = ", ".join(f"{name.replace('_', ' ')} {percent(share)}" for name, share in said.moves.items())
    return [
        f"<h2>Wording</h2>{table([(name, '') for name in TABLE], [[show(said) for show in TABLE.values()]])}",
        f'<p class="soft">Sentences by what they do, as the builtin move classifier reads them: {moves}.</p>',
    ]


def usage_table(report: Report) -> str:
    """Requests, tokens and dollars: of a conversation, and of all."""
    usage, ended = report.usage, len(report.trajectories)
    counts = (usage.requests, usage.prompt_tokens, usage.completion_tokens)
    dollars = "unknown" if usage.cost is None else f"{usage.cost:,.2f}"
    each = "unknown" if usage.cost is None else f"{usage.cost / max(ended, 1):,.4f}"
    columns = ("", "requests", "prompt tokens", "completion tokens", "US dollars")
    rows = [
        ("a conversation", *(f"{count / max(ended, 1):,.1f}" for count in counts), each),
        ("all", *(f"{count:,}" for count in counts), dollars),
    ]
    return table([(name, "name" if not name else "") for name in columns], rows)


def groups_table(groups: Mapping[str, Group]) -> str:
    """One row per group, by name; those that are too small to say much are marked."""
    rows = [
        (
            escape(name),
            bar(group.success_rate, group.interval),
            percent(group.success_rate_of_all),
            percent(group.success_rate),
            number(group.average_turns, 2),
            number(group.mean_score, 2, signed=True),
            f"{group.episodes:,}{' (few)' if group.few else ''}",
        )
        for name, group in groups.items()
    ]
    numbers = ("of all", "SR", "AT", "score", "conversations")
    return table((("", "name"), ("", "bar"), *((name, "") for name in numbers)), rows)


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells must be HTML already. A column has a title and a kind: `name`, `bar`, or nothing for numbers."""

    def row(tag: str, cells: Iterable[str]) -> str:
        kinds = (f' class="{kind}"' if kind else "" for _, kind in columns)
        marked = (f"<{tag}{kind}>{cell}</{tag.split()[0]}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(marked)}</tr>"

    head = row('th scope="col"', (escape(title) for title, _ in columns))
    body = "\n".join(row("td", cells) for cells in rows)
    return f'<div class="scroll" tabindex="0"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>'


def bar(rate: float | None, interval: tuple[float, float] | None) -> str:
    """A success rate from 0 to 100 % with its interval as a band."""
    if rate is None or interval is None:
        return '<span class="soft">no interval yet</span>'
    low, high = interval
    label = f"{percent(rate)}, 95 % interval {interval_text(interval)}"
    return (
        f'<svg class="rate" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<title>{label}</title><rect class="track" width="100" height="10"/>'
        f'<rect class="band" x="{100 * low:.2f}" width="{100 * (high - low):.2f}" height="10"/>'
        f'<rect class="dot" x="{99 * rate:.2f}" width="1" height="10"/></svg>'
    )


def facts(parts: Mapping[str, Any]) -> str:
    """Names and values as a definition list."""
    rows = (
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>" for name, value in parts.items()
    )
    return f"<dl>{''.join(rows)}</dl>"


def transcripts(trajectories: Iterable[Trajectory]) -> str:
    """Every conversation, folded."""
    return "\n".join(_conversation(trajectory) for trajectory in trajectories)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    return str(value)


def _conversation(trajectory: Trajectory) -> str:
    kind, ended = _ENDED[trajectory.stop_reason]
    scenario = trajectory.scenario
    about = ", ".join(part for part in (scenario.emotion, scenario.problem, scenario.persona) if part)
    trial = f", trial {trajectory.trial + 1}" if trajectory.trial else ""
    turns = f"{trajectory.turns} turn{'' if trajectory.turns == 1 else 's'}"
    score = f", score {number(trajectory.final_score, 2, signed=True)}" if trajectory.verdicts else ""
    attempts = f", {trajectory.attempts:,} attempts" if trajectory.attempts > 1 else ""
    lines = [_message(message) for message in trajectory.dialogue.messages[: trajectory.history]]
    rest = trajectory.dialogue.messages[trajectory.history :]
    verdicts = iter(trajectory.verdicts)
    for message in rest:
        lines.append(_message(message))
        if message.role == "seeker":
            verdict = next(verdicts, None)
            lines += [_verdict(verdict)] if verdict else []
    if trajectory.failure:
        lines.append(f'<p class="note bad">{escape(trajectory.failure.role)}: {escape(trajectory.failure.message)}</p>')
    return (
        f'<details><summary><span class="{kind}">{ended}</span> in {turns}{score}{attempts} '
        f'<span class="soft">{escape(scenario.id)}{trial} ({escape(about)})</span></summary>'
        f'<div class="chat">{"".join(lines)}</div></details>'
    )


def _message(message: Message) -> str:
    ending = _CUT.get(message.finish_reason or "")
    name = ", ".join(part for part in (message.role, message.strategy, ending) if part)
    thought = f'<span class="thought">{escape(message.thought)}\n\n</span>' if message.thought else ""
    said = escape(message.content) or '<span class="thought">(silence)</span>'
    return f'<div class="said {message.role}"><b>{escape(name)}</b>{thought}{said}</div>'


def _verdict(verdict: Verdict) -> str:
    score = number(verdict.score, 2, signed=True)
    solved = ', <span class="solved">solved</span>' if verdict.solved else ""
    return f'<div class="verdict">critic {score}{solved}</div>'

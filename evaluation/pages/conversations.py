"""Conversations as pages: whom with, what was said and thought, what the critic made of it, and why it ended.

Who wrote a record may be a stranger: whatever is shown is escaped, and whatever is too long for a page is cut, and says
so. The pages are split by size before any is rendered, so that whoever links to a conversation need not render it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import escape

from esc_env.builtin.seeker import BuiltinSeeker
from esc_env.dialogue import Dialogue, Message
from esc_env.errors import ScenarioError
from esc_env.escaping import one_line, safe
from esc_env.evaluation.pages.rendering import render
from esc_env.evaluation.runs.report import Report, number
from esc_env.protocols import VOTES, Verdict
from esc_env.rules import PROTOCOL_VERSION
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed
from esc_env.trajectory import StopReason, Trajectory

__all__ = ["OUTCOMES", "Conversation", "Said", "Text", "conversation_pages", "hrefs"]

PAGE, MOST = 1_000_000, 100
"""Bytes of conversations, and conversations, on a page that opens at once. Ours."""
LONG, SHORT, NAME, LISTED = 20_000, 2_000, 120, 40
"""Characters shown of what was said or thought, of a line about a person, and of a name; lines about a person. Ours."""
_FRAME, _LINE = 2_500, 450
"""Bytes of HTML around a conversation and around a message with its verdict and hidden state, more than there are."""

OUTCOMES: Mapping[StopReason, tuple[str, str]] = {
    StopReason.SOLVED: ("solved", "solved"),
    StopReason.MAX_TURNS: ("failed", "not solved"),
    StopReason.SUPPORTER_FAILED: ("failed", "supporter failed"),
    StopReason.UNJUDGED: ("", "not judged"),
    StopReason.ERROR: ("broken", "error, no outcome"),
}
"""Of each end: the kind of its badge, and its text."""

_ENDINGS = {"length": "cut", "refusal": "refused", "content_filter": "filtered"}


@dataclass(frozen=True, slots=True)
class Text:
    """What somebody wrote, as far as it is shown.

    Attributes:
        shown: its beginning, or all of it.
        more: how many characters are left out.
    """

    shown: str
    more: int = 0

    @classmethod
    def of(cls, text: str, most: int = LONG) -> Text:
        """The text up to `most` characters."""
        if len(text) <= most:
            return cls(text)
        text = safe(text)  # before it is cut, so that no key is cut in two
        return cls(text[:most], max(0, len(text) - most))

    @property
    def size(self) -> int:
        """Bytes on a page."""
        return len(escape(self.shown).encode())


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, as a line says it.

    Attributes:
        turn: from 1.
        verdict: the critic's.
        change: its score less the last one's; None in the first turn.
        votes: how many for each option, where all votes are for one of the four.
    """

    turn: int
    verdict: Verdict
    change: float | None
    votes: str


@dataclass(frozen=True, slots=True)
class Said:
    """One message, and what was judged after it.

    Attributes:
        role: who said it.
        content, thought: what was said, and what was thought before.
        strategy: as the speaker names it; or nothing.
        ending: `cut`, `refused`, `filtered`; nothing for one that ended by itself.
        given: whether it came with the scenario, before the first turn.
        judged: the verdict that followed.
    """

    role: str
    content: Text
    thought: Text | None
    strategy: str
    ending: str
    given: bool
    judged: Judged | None

    @property
    def size(self) -> int:
        """Bytes on a page, about."""
        return _LINE + self.content.size + (self.thought.size if self.thought else 0)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What `conversation.html` shows of a conversation.

    Attributes:
        anchor: the id of its article.
        trajectory: as it is kept.
        name, about: the scenario's id, and what is known of the person in a line.
        kind, outcome: of its badge.
        person: what else is known of the person, by what it says.
        said: the messages, as many as there is room for.
        left_out: how many there is no room for.
        failure: what went wrong; None where nothing did.
        states: the embedded seeker's hidden state after each turn, from 0; empty for any other seeker.
        threshold: the score above which it is solved.
    """

    anchor: str
    trajectory: Trajectory
    name: str
    about: str
    kind: str
    outcome: str
    person: Mapping[str, Sequence[Text]]
    said: Sequence[Said]
    left_out: int
    failure: Text | None
    states: Sequence[Mapping[str, str]]
    threshold: float

    @property
    def verdicts(self) -> list[Judged]:
        """Of the turns that are shown."""
        return [each.judged for each in self.said if each.judged]

    @classmethod
    def of(cls, trajectory: Trajectory, report: Report, anchor: str) -> Conversation:
        """What is shown of a trajectory of this report, under this anchor."""
        scenario, failure = trajectory.scenario, trajectory.failure
        said = list(_said(trajectory))
        kind, outcome = OUTCOMES[trajectory.stop_reason]
        return cls(
            anchor=anchor,
            trajectory=trajectory,
            name=_name(scenario.id),
            about=" · ".join(filter(None, _about(scenario))),
            kind=kind,
            outcome=outcome,
            person={name: lines for name, lines in _person(scenario).items() if lines},
            said=said,
            left_out=len(trajectory.dialogue) - len(said),
            failure=Text.of(f"{failure.role}: {failure.message}") if failure else None,
            states=_states(trajectory, report),
            threshold=float(report.fingerprint.parts["threshold"]),
        )


@dataclass(frozen=True, slots=True)
class _Links:
    """Where the keys of a conversation lead; nothing where there is none."""

    previous: str | None
    next: str | None
    failure: str | None


def hrefs(report: Report) -> tuple[str, ...]:
    """The address of each trajectory's conversation, as seen from the run's page: `report-0001.html#c17`."""
    return _addresses(_sheets(report.trajectories))


def conversation_pages(report: Report, only: str | None = None) -> Iterator[tuple[str, str]]:
    """The name and the HTML of each page of conversations, in the order of the report's trajectories.

    A page has at most a hundred conversations and, unless one alone is longer, a megabyte.

    Args:
        report: of the run.
        only: the name of the one page that is wanted; the others are not rendered.
    """
    held = report.trajectories
    sheets = _sheets(held)
    links = _links(_addresses(sheets), [_is_failure(trajectory) for trajectory in held])
    for page, sheet in enumerate(sheets, 1):
        if only not in (None, _page(page)):
            continue
        html = render(
            "conversations.html",
            title=f"{_name(report.agent)} on {_name(report.scenarios)}",
            shown=[(Conversation.of(held[place], report, _anchor(place)), links[place]) for place in sheet],
            first=sheet[0] + 1,
            last=sheet[-1] + 1,
            total=len(held),
            earlier=_page(page - 1) if page > 1 else None,
            later=_page(page + 1) if page < len(sheets) else None,
        )
        yield _page(page), html


def _page(number: int) -> str:
    return f"report-{number:04}.html"


def _anchor(place: int) -> str:
    return f"c{place + 1}"


def _sheets(held: Sequence[Trajectory]) -> list[range]:
    """Which conversations stand on each page."""
    sheets: list[range] = []
    begin, size = 0, 0
    for place, trajectory in enumerate(held):
        more = _size(trajectory)
        if place > begin and (size + more > PAGE or place - begin == MOST):
            sheets.append(range(begin, place))
            begin, size = place, 0
        size += more
    return [*sheets, range(begin, len(held))] if held else []


def _addresses(sheets: Iterable[range]) -> tuple[str, ...]:
    return tuple(f"{_page(number)}#{_anchor(place)}" for number, sheet in enumerate(sheets, 1) for place in sheet)


def _links(addresses: Sequence[str], wanted: Sequence[bool]) -> list[_Links]:
    """Of each conversation: the one before, the one after, and the next that is wanted."""
    links: list[_Links] = []
    failure = None
    for place in reversed(range(len(addresses))):
        later = addresses[place + 1] if place + 1 < len(addresses) else None
        links.append(_Links(addresses[place - 1] if place else None, later, failure))
        failure = addresses[place] if wanted[place] else failure
    return links[::-1]


def _is_failure(trajectory: Trajectory) -> bool:
    return not trajectory.solved and trajectory.stop_reason is not StopReason.UNJUDGED


def _size(trajectory: Trajectory) -> int:
    """Bytes of a conversation on a page, about and at most."""
    about = sum(text.size for lines in _person(trajectory.scenario).values() for text in lines)
    return _FRAME + about + sum(each.size for each in _said(trajectory))


def _said(trajectory: Trajectory) -> Iterator[Said]:
    """The messages of a conversation, until a page is full."""
    size, history = 0, trajectory.history
    for place, message in enumerate(trajectory.dialogue):
        turn = (place - history + 1) // 2 if place > history and message.role == "seeker" else 0
        said = _message(message, place < history, _judged(trajectory.verdicts, turn))
        size += said.size
        if size > PAGE:
            return
        yield said


def _message(message: Message, given: bool, judged: Judged | None) -> Said:
    return Said(
        role=message.role,
        content=Text.of(message.content),
        thought=Text.of(message.thought) if message.thought else None,
        strategy=_name(message.strategy or ""),
        ending=_ENDINGS.get(message.finish_reason or "", ""),
        given=given,
        judged=judged,
    )


def _judged(verdicts: Sequence[Verdict], turn: int) -> Judged | None:
    if not 0 < turn <= len(verdicts):
        return None
    verdict = verdicts[turn - 1]
    counts = Counter(verdict.votes)
    known = {option: counts[value] for option, value in VOTES.items() if counts[value]}
    told = ", ".join(f"{count:,} {option}" for option, count in known.items())
    return Judged(
        turn,
        verdict,
        verdict.score - verdicts[turn - 2].score if turn > 1 else None,
        told if len(verdict.votes) > 1 and sum(known.values()) == len(verdict.votes) else "",
    )


def _name(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= NAME else f"{one_line(text)[:NAME]}…"


def _about(scenario: Scenario) -> Iterator[str]:
    yield _name(scenario.emotion)
    yield _name(scenario.problem)
    yield scenario.persona
    yield f"intensity {scenario.intensity} of 5" if scenario.intensity else ""
    yield "at risk" if scenario.risk else ""


def _person(scenario: Scenario) -> Mapping[str, list[Text]]:
    """What is known of a person beyond a line, by what it says."""
    lines = {
        "situation": (scenario.situation,),
        "profile": (scenario.profile,) if scenario.profile else (),
        "tells when drawn out": scenario.facts[:LISTED],
        "helps": scenario.helps[:LISTED],
        "hurts": scenario.hurts[:LISTED],
        "needs": (_NEEDS[scenario.need],),
        "source": (scenario.source,) if scenario.source else (),
    }
    return {name: [Text.of(text, SHORT) for text in texts] for name, texts in lines.items()}


_NEEDS = {"listen": "to be understood", "plan": "a next step", "both": "to be understood, and a next step"}


def _states(trajectory: Trajectory, report: Report) -> list[Mapping[str, str]]:
    """The embedded seeker's hidden state from before the first turn on, derived again from what was said.

    Nothing where another seeker spoke, or another release's: its state would not be this one. Nor where a message is
    too long to be shown whole, which takes long.
    """
    seeker, parts = BuiltinSeeker(), report.fingerprint.parts
    messages, name = trajectory.dialogue.messages, Seed(trajectory.seed)
    same = (seeker.identity, PROTOCOL_VERSION) == (parts.get("seeker"), parts.get("protocol"))
    if not same or any(len(message.content) > LONG for message in messages):
        return []
    ends = range(trajectory.history, len(messages) + 1, 2)
    try:
        revealed = [seeker.reveal(trajectory.scenario, Dialogue(messages[:end]), seed=name) for end in ends]
    except ScenarioError:  # in another script than it reads
        return []
    return [
        {part: number(value, 2) if isinstance(value, float) else str(value) for part, value in state.items()}
        for state in revealed
    ]

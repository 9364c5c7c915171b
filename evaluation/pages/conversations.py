"""Conversations as pages: whom with, what was said and thought, what the critic made of it, and why it ended.

Who wrote a record may be a stranger: whatever is shown is escaped, and whatever is too long for a page is cut, and says
so. The pages are split by size before any is rendered, so that whoever links to a conversation need not render it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import escape

from esc_env.dialogue import Dialogue, Message
from esc_env.errors import ScenarioError
from esc_env.escaping import one_line, safe
from esc_env.evaluation.pages.sheets import Sheets
from esc_env.evaluation.runs.builtin import builtin_chair
from esc_env.evaluation.runs.report import Report, number
from esc_env.protocols import VOTES, RevealingSeeker, Verdict
from esc_env.rules import PROTOCOL_VERSION
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed
from esc_env.trajectory import StopReason, Trajectory

__all__ = [
    "OUTCOMES",
    "SHORT",
    "Conversation",
    "Said",
    "Text",
    "conversation_pages",
    "hrefs",
    "name_of",
    "said_in",
    "size_of",
    "states_of",
]

ROOM = 500_000
"""Bytes of a conversation's messages, after which the rest is left out. Ours."""
LONG, SHORT, NAME, LISTED = 20_000, 2_000, 120, 20
"""Characters shown of what was said or thought, of a line about a person, and of a name; lines about a person. Ours."""
STATES, REREAD = 1_000, 50
"""Conversations of a run whose hidden states are derived again, which takes as long as it took the seeker: with the
one that needs no time, and with one that reads what is meant. Ours."""
TURNS = 50
"""Turns of a conversation whose hidden states are derived again: each is derived from all words before it. Ours."""
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
        shown = safe(text[: 2 * most])[:most]  # keys are struck out first, so that none is cut in two
        return cls(shown, len(text) - most)

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
        before: what it is if it stands before the first turn; else nothing.
        judged: the verdict that followed.
    """

    role: str
    content: Text
    thought: Text | None
    strategy: str
    ending: str
    before: str
    judged: Judged | None

    @property
    def size(self) -> int:
        """Bytes on a page, about."""
        return _LINE + self.content.size + (self.thought.size if self.thought else 0)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What `conversation.html` shows of a conversation.

    Attributes:
        trajectory: as it is kept.
        name, about: the scenario's id, and what is known of the person in a line.
        kind, outcome: of its badge.
        person: what else is known of the person, by what it says.
        said: the messages, as many as there is room for.
        left_out: how many there is no room for.
        failure: what went wrong; None where nothing did.
        states: the builtin seeker's hidden state after each turn, from 0; empty for any other seeker.
        threshold: the score above which it is solved.
    """

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
    def of(cls, trajectory: Trajectory, report: Report, *, revealed: bool = True) -> Conversation:
        """What is shown of a trajectory of this report; `revealed` with the seeker's hidden state, where it has one."""
        scenario, failure = trajectory.scenario, trajectory.failure
        said = list(said_in(trajectory))
        kind, outcome = OUTCOMES[trajectory.stop_reason]
        return cls(
            trajectory=trajectory,
            name=name_of(scenario.id),
            about=" · ".join(filter(None, _about(scenario))),
            kind=kind,
            outcome=outcome,
            person={name: lines for name, lines in _person(scenario).items() if lines},
            said=said,
            left_out=len(trajectory.dialogue) - len(said),
            failure=Text.of(f"{failure.role}: {failure.message}") if failure else None,
            states=_states(trajectory, report) if revealed else (),
            threshold=float(report.fingerprint.parts["threshold"]),
        )


def hrefs(report: Report) -> tuple[str, ...]:
    """The address of each trajectory's conversation, as seen from the run's page: `report-0001.html#c17`."""
    return _sheets(report).addresses


def conversation_pages(report: Report, only: str | None = None) -> Iterator[tuple[str, str]]:
    """The name and the HTML of each page of conversations, in the order of the report's trajectories.

    A page has at most a hundred conversations and, unless one alone is longer, a megabyte.

    Args:
        report: of the run.
        only: the name of the one page that is wanted; the others are not rendered.
    """
    held = report.trajectories
    return _sheets(report).rendered(
        "conversations.html",
        lambda place: Conversation.of(held[place], report, revealed=place < states_of(report)),
        [not trajectory.solved and trajectory.stop_reason is not StopReason.UNJUDGED for trajectory in held],
        only,
        title=f"{name_of(report.agent)} on {name_of(report.scenarios)}",
    )


def states_of(report: Report) -> int:
    """How many conversations of a run are shown with the seeker's hidden state, where it has one."""
    return STATES if (report.fingerprint.parts.get("seeker") or {}).get("name") == "builtin" else REREAD


def size_of(trajectory: Trajectory) -> int:
    """Bytes of a conversation on a page, about, and rather more than less."""
    about = sum(text.size for lines in _person(trajectory.scenario).values() for text in lines)
    return _FRAME + about + sum(each.size for each in said_in(trajectory))


def name_of(text: str) -> str:
    """A name on one line, cut where it is too long for one."""
    line = " ".join(text[: 10 * NAME].split())
    return line if len(line) <= NAME else f"{one_line(line)[:NAME]}…"


def _sheets(report: Report) -> Sheets:
    return Sheets.of("report", map(size_of, report.trajectories))


def said_in(trajectory: Trajectory) -> Iterator[Said]:
    """The messages of a conversation, as many as there is room for."""
    size, history = 0, 0 if trajectory.stop_reason is StopReason.UNJUDGED else trajectory.history
    before = "opening" if history == 1 else "came with the scenario"
    for place, message in enumerate(trajectory.dialogue):
        turn = (place - history + 1) // 2 if place > history and message.role == "seeker" else 0
        said = _message(message, before if place < history else "", _judged(trajectory.verdicts, turn))
        size += said.size
        if size > ROOM:
            return
        yield said


def _message(message: Message, before: str, judged: Judged | None) -> Said:
    return Said(
        role=message.role,
        content=Text.of(message.content),
        thought=Text.of(message.thought) if message.thought else None,
        strategy=name_of(message.strategy or ""),
        ending=_ENDINGS.get(message.finish_reason or "", ""),
        before=before,
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


def _about(scenario: Scenario) -> Iterator[str]:
    yield name_of(scenario.emotion)
    yield name_of(scenario.problem)
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
    """A builtin seeker's hidden state from before the first turn on, derived again from what was said.

    Nothing where another seeker spoke, or another release's: its state would not be this one. Nor where a message is
    too long to be shown whole, or where there are very many turns, which takes long.
    """
    parts = report.fingerprint.parts
    messages, name = trajectory.dialogue.messages, Seed(trajectory.seed)
    seeker = builtin_chair("seeker", parts.get("seeker") or {}) if parts.get("protocol") == PROTOCOL_VERSION else None
    if not isinstance(seeker, RevealingSeeker) or trajectory.turns > TURNS:
        return []
    if any(len(message.content) > LONG for message in messages):
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

"""Every number of the builtin seeker and critic, in the order in which a supporter's turn meets them.

    python -m esc_env.builtin.constants > docs/constants.md

makes the page that shows them. Whoever changes one changes what a seeker says or a critic votes: see CONTRIBUTING.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from inspect import getdoc, getsource
from typing import Any

__all__ = [
    "COMFORT", "CRITIC", "FAMILIES", "HARM", "HEARING", "PLAN", "REACTION", "RELIEF", "SPEECH", "STAGES", "TELLING",
    "TRAITS", "TRUST", "UPTAKE", "WEIGHTS", "AtStage", "Span", "Traits", "page",
]  # fmt: skip

ABOUT = """
# The numbers of the embedded seeker and critic

[simulator.md](simulator.md) says what is modelled; these are all the numbers of it, in the order in which a supporter's
turn meets them. The command `python -m esc_env.builtin.constants` prints this page from the code.

No number was measured on people. We set them by hand and together, so that the tables of [simulator.md](simulator.md)
come out: what supports nobody gets nowhere, asking and mirroring by rote sometimes succeeds, skilled support mostly. A
number that has a reason besides says so in its line.

Trust, comfort, plan and harm lie in [0, 1], and so do shares, chances, and how clearly something is done or taken up.
Words weigh from 0 (anybody says them) to 1 (rare). "0.2 to 0.5" is a ramp: nothing up to 0.2, all from 0.5, straight
between.
"""

Span = tuple[float, float]
"""A ramp: up to where something counts nothing, and from where it counts in full."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """Each sentence is heard by itself: how far it takes up the story, and whether it is speech at all.

    It takes up the story by the summed weight of the words that it shares with what the person has told.
    """

    sentences: int = 100
    """Most sentences of a turn that are told apart: all after is one. Bounds the time that a turn takes."""
    earlier: float = 0.7
    """What is left of the weight of a word that was told before the person's last telling."""
    again: float = 0.2
    """What is left of the weight of a word that the supporter has taken up before."""
    enough: float = 1.4
    """The summed weight that takes up the story in full: two words, of which not both need be rare."""
    listing: Span = (0.2, 0.3)
    """Commas per word that make a sentence a list, which is no speech. Came after the second list of attacks."""
    fluent: Span = (0.2, 0.36)
    """Share of function words that makes speech of words; English lies around a half, a list of words near 0."""
    copied: Span = (0.35, 0.65)
    """Share of words in runs of four that the person has said, which makes a sentence an echo."""
    frame_word: float = 0.2
    """Words of the story that weigh less than this belong to the frame of a sentence, not to its filling."""
    same_frame: Span = (0.5, 0.8)
    """Share of all words of two frames that both have, which makes a sentence a repetition."""
    whole_frame: Span = (0.8, 1.0)
    """Share of the shorter frame that lies within the longer one, which makes a sentence a repetition too."""
    frame_words: int = 6
    """Fewest words of a frame for that: fewer lie within anything."""
    filled: float = 0.7
    """How much less a repetition is one that takes up something new. Chosen with templates on test in view."""
    asked_again: float = 0.6
    """What a repeated question still is worth as a question. Chosen with templates on test in view."""
    clear: float = 0.6
    """How clearly a sentence must ask or propose to be counted among the turn's questions or proposals."""


@dataclass(frozen=True, slots=True)
class Family:
    """What the person listens for in a sentence: weighted sums of the 15 moves that the classifier tells apart.

    Neighbours count in part, since people say things in many ways. `invite` asks, `mirror` says back, `warmth` is kind,
    `coping` asks what has helped, `check` asks about risk and `refer` points to human help; `noise` is no speech.
    """

    moves: Mapping[str, float]
    """probability of each move, times"""
    heard: Span
    """is heard from a sum of"""


@dataclass(frozen=True, slots=True)
class Uptake:
    """How far a whole turn takes up the person's story, and in what temper it finds the person.

    Saying the story back takes it up in full. Who asks, consoles and proposes all at once is heard in part only.
    """

    asked: float = 0.5
    """What asking about the story is worth; the rest up to 1 is for saying it back."""
    built: float = 0.4
    """What a proposal is worth that is tied to the story."""
    temper: float = 0.88
    """Lowest temper. One is drawn evenly for each episode; comfort and plan are multiplied by it, harm by 2 less it."""
    temper_range: float = 0.24
    """From the lowest temper to the highest, so that it is 1 on average."""


@dataclass(frozen=True, slots=True)
class Traits:
    """How a persona meets help; the cooperative one is the measure of the others."""

    trust: float
    """trust at first"""
    telling: float
    """readiness to tell"""
    comfort: float
    """factor on comfort"""
    plan: float
    """factor on plan"""
    harm: float
    """factor on harm"""


@dataclass(frozen=True, slots=True)
class AtStage:
    """What a turn does at the stage that the person has reached (Hill's helping skills, as in ESConv)."""

    advice: float
    """harm of a proposal"""
    comfort: float
    """factor on comfort"""
    plan: float
    """factor on plan"""


@dataclass(frozen=True, slots=True)
class Harm:
    """What hurts, in points of harm. All kinds add up, times the persona's factor; the person shows the worst.

    Being dismissed or pressed also closes the person to whatever else is in the turn.
    """

    silence: float = 0.07
    """Nothing is said."""
    stung: float = 0.28
    """The person is dismissed: the worst of all, four times a silence."""
    softened: float = 0.5
    """How much less a dismissal hurts in a turn that takes up the story in full."""
    proposals: float = 0.10
    """The person is pressed by many proposals. (What a single one hurts depends on the stage.)"""
    many_proposals: Span = (1.5, 4.0)
    """Proposals in a turn that are many."""
    questions: float = 0.05
    """The person is pressed by many questions."""
    many_questions: Span = (1.0, 3.0)
    """Questions in a turn, or turns of mere questions one after the other, that are many; the first is not counted."""
    mere: float = 0.2
    """A turn with a question that says less of the story back than this is mere questions."""
    puzzled: float = 0.04
    """The turn is an echo, a repetition or no speech."""
    few_words: int = 3
    """Words of a turn up to which nobody asks whether it is speech."""
    unheard: float = 0.03
    """Nothing of the story is taken up."""
    listening: Span = (0.1, 0.5)
    """How far a turn must take up the story so that the person does not feel unheard."""
    invited: float = 0.8
    """What an open question is worth for that."""
    closing: Span = (0.04, 0.16)
    """Harm by dismissal and pressure that closes the person."""
    healing: float = 0.25
    """Share of the harm so far that is healed by a turn that takes up the story in full."""


@dataclass(frozen=True, slots=True)
class Comfort:
    """Feeling understood. It grows by being met in one's own story; kind words for anybody carry a little way only.

    At first, a turn that takes up the story in full gives a cooperative person 0.36; two are enough to feel understood.
    """

    gain: float = 0.52
    """What a turn gives that takes up the story in full, before all factors."""
    distrusting: float = 0.6
    """Factor on it without any trust."""
    trusting: float = 0.5
    """What full trust adds to this factor."""
    warmth: float = 0.08
    """What a turn of kind words for anybody gives."""
    warmth_limit: float = 0.25
    """How far such words carry: to a relief of 0.1, or 0.15 if the person needs somebody who listens."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Having a next step. It grows by proposals that are built on this person's life, once it is the time for them."""

    tied: float = 0.45
    """What a proposal gives that is tied to the story, before all factors."""
    fitting: float = 0.4
    """What a proposal gives that fits what the person said helps."""
    fit: Span = (0.5, 2.0)
    """Summed weight of the words that it shares with that: one rare word fits in part, two in full."""
    coping: float = 0.3
    """What a question about what has helped gives, while there is something untold that helps."""
    coping_grounded: Span = (0.0, 0.5)
    """How far the turn of that question must take up the story."""
    hurting: float = 1.5
    """Summed weight of the words shared with what hurts this person, above which a proposal goes against them."""
    proposed: float = 0.4
    """How clearly something is proposed that can go against them."""
    against: float = 0.2
    """What is left of the gain when it does."""
    advice: float = 0.06
    """What advice for anybody gives."""
    advice_limit: float = 0.2
    """How far such advice carries."""


@dataclass(frozen=True, slots=True)
class Telling:
    """What brings out the next piece of the story: being asked openly, or feeling met.

    The person tells it when that, times trust's factor, times the persona's readiness, is more than the reserve.
    """

    met: float = 0.75
    """What feeling met is worth next to being asked."""
    distrusting: float = 0.55
    """Factor without any trust."""
    trusting: float = 0.6
    """What full trust adds to this factor."""
    reserve: float = 0.3
    """Lowest reserve. One is drawn evenly for each turn."""
    reserve_range: float = 0.2
    """From the lowest reserve to the highest."""
    coping: float = 0.5
    """How clearly must be asked what has helped, so that the person tells it (after exploration only)."""
    safety: float = 0.5
    """How clearly must be asked about risk, and pointed to human help, so that it counts for good."""
    named: float = 1.5
    """Summed weight of the words that a turn shares with a fact which it brings out before its time."""
    enough: int = 3
    """Facts told (fewer if there are fewer) after which exploration ends."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a turn does to trust; what hurts weighs more than what helps."""

    met: float = 0.14
    """Gain when it takes up the story in full."""
    asked: float = 0.03
    """Gain when it asks openly."""
    pain: float = 0.6
    """Loss for each point of harm."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """What of a turn the person shows. The first that applies: hurt, then hope or a "yes, but", then the others."""

    pain: float = 0.033
    """Harm of a turn that shows. Just below that of a repetition in the mildest temper, so that most notice one."""
    hurt: float = 0.03
    """Harm of its worst kind that shows."""
    proposed: float = 0.4
    """How clearly something is proposed that is answered with hope or a "yes, but" (at the stage of action)."""
    hopeful: float = 0.12
    """Gain in plan that is answered with hope."""
    eased: float = 0.06
    """Gain in comfort that shows before anything else that is good."""
    opened: float = 0.4
    """How clearly is asked where the person is seen to open up."""
    little_eased: float = 0.03
    """Gain in comfort that shows when nothing else does."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What relief is made of, for what the person needs. The three add up to 1; harm is taken off."""

    told: float
    """having told"""
    comfort: float
    """comfort"""
    plan: float
    """plan"""


@dataclass(frozen=True, slots=True)
class Relief:
    """How much has changed since the beginning: below 0 worse, 0 nothing, 1 wholly relieved."""

    understood: float = 0.6
    """Comfort with which the person is ready for action, when enough is told."""
    at_risk: float = 0.6
    """Most relief while risk was not both asked about and handed to people: less than what the critic calls solved."""


@dataclass(frozen=True, slots=True)
class Speech:
    """What the person says beside the reaction and the story. Chances are drawn for each turn."""

    relieved: float = 0.82
    """Relief from which anybody but the hostile says that the weight has lifted."""
    fine: float = 0.6
    """Chance that the pleasing say that all is fine, from the second turn on; they always do with nothing to tell."""
    snapping: float = 0.3
    """Trust below which the hostile snap though nothing hurt."""
    thaw: float = 0.5
    """Chance that the guarded and the hostile show it when they are eased."""
    objecting: float = 0.7
    """Plan below which the resistant answer a hopeful step too with a "yes, but"."""
    tangent: float = 0.3
    """Chance that the drifting go off on a tangent; they always do with nothing to tell."""


@dataclass(frozen=True, slots=True)
class Critic:
    """How each of ten raters votes on the relief. A mean vote above 0.5 takes a relief of 0.7 or more, as a rule."""

    worse: float = -0.08
    """Relief below which the vote is worse."""
    same: float = 0.34
    """Relief below which it is the same."""
    better: float = 1.02
    """Relief below which it is better, else solved. No relief is higher than 1, so that raters always differ."""
    spread: float = 0.13
    """Standard deviation of one rater's reading of the relief."""
    rater: float = 0.8
    """Share of that variance that belongs to the rater and stays over the conversation; the rest is of the moment."""


HEARING, UPTAKE, HARM, COMFORT, PLAN, TELLING = Hearing(), Uptake(), Harm(), Comfort(), Plan(), Telling()
TRUST, REACTION, RELIEF, SPEECH, CRITIC = Trust(), Reaction(), Relief(), Speech(), Critic()

_QUESTIONS = {"open_question": 1.0, "coping_question": 0.8, "closed_question": 0.5}
_MIRRORS = {"reflection": 1.0, "restatement": 1.0, "affirmation": 0.75, "self_disclosure": 0.4, "information": 0.2}
FAMILIES: Mapping[str, Family] = {
    "invite": Family(_QUESTIONS, (0.12, 0.55)),
    "mirror": Family(_MIRRORS, (0.12, 0.55)),
    "warmth": Family({"reflection": 1.0, "affirmation": 1.0, "restatement": 0.5}, (0.12, 0.55)),
    "coping": Family({"coping_question": 1.0}, (0.15, 0.5)),
    "propose": Family({"suggestion": 1.0, "commitment": 1.0, "information": 0.25}, (0.25, 0.6)),
    "dismiss": Family({"dismissal": 1.0}, (0.45, 0.9)),
    "check": Family({"safety_question": 1.0}, (0.3, 0.6)),
    "refer": Family({"safety_referral": 1.0}, (0.3, 0.6)),
    "noise": Family({"noise": 1.0}, (0.35, 0.75)),
}
TRAITS: Mapping[str, Traits] = {
    "cooperative": Traits(trust=0.55, telling=1.0, comfort=1.0, plan=1.0, harm=1.0),
    "guarded": Traits(trust=0.25, telling=0.55, comfort=0.85, plan=0.9, harm=1.1),
    "resistant": Traits(trust=0.4, telling=0.9, comfort=0.8, plan=0.55, harm=1.2),
    "drifting": Traits(trust=0.5, telling=0.6, comfort=0.85, plan=0.85, harm=0.9),
    "pleasing": Traits(trust=0.5, telling=0.8, comfort=0.9, plan=0.9, harm=1.0),
    "hostile": Traits(trust=0.1, telling=0.6, comfort=0.75, plan=0.75, harm=1.5),
}
STAGES: Mapping[str, AtStage] = {
    "exploration": AtStage(advice=0.1, comfort=0.8, plan=0.0),
    "comforting": AtStage(advice=0.03, comfort=1.1, plan=0.35),
    "action": AtStage(advice=0.0, comfort=0.8, plan=1.0),
}
WEIGHTS: Mapping[str, Weights] = {
    "listen": Weights(told=0.25, comfort=0.60, plan=0.15),
    "both": Weights(told=0.25, comfort=0.40, plan=0.35),
    "plan": Weights(told=0.20, comfort=0.30, plan=0.50),
}

_PARTS: Mapping[str, Any] = {
    "Hearing a sentence": HEARING, "Moves": FAMILIES, "Taking up the story": UPTAKE, "Personas": TRAITS,
    "Stages": STAGES, "Harm": HARM, "Comfort": COMFORT, "Plan": PLAN, "Telling": TELLING, "Trust": TRUST,
    "Reaction": REACTION, "Needs": WEIGHTS, "Relief": RELIEF, "Speech": SPEECH, "Critic": CRITIC,
}  # fmt: skip
"""The headings of the page, and what stands under each: one value for each name, or a row of them for each key."""


def page() -> str:
    """The text of docs/constants.md."""
    return "\n\n".join([ABOUT.strip(), *(_section(title, part) for title, part in _PARTS.items())]) + "\n"


def _section(title: str, part: Any) -> str:
    keyed = isinstance(part, Mapping)
    kind = type(next(iter(part.values())) if keyed else part)
    below = dict(re.findall(r'^    (\w+): .+\n    """(.+)"""$', getsource(kind), re.MULTILINE))
    meanings = {constant.name: below[constant.name] for constant in fields(kind)}
    if keyed:
        rows = [["", *meanings.values()]]
        rows += [[f"`{key}`", *(_shown(getattr(row, name)) for name in meanings)] for key, row in part.items()]
    else:
        rows = [["constant", "value", "meaning"]]
        rows += [[f"`{name}`", _shown(getattr(part, name)), meaning] for name, meaning in meanings.items()]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join([f"## {title}", "", getdoc(kind) or "", "", *(f"| {' | '.join(row)} |" for row in rows)])


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {share}" for name, share in value.items())
    return " to ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    print(page(), end="")

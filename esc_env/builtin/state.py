"""The hidden state of the embedded seeker, recomputed from (scenario, dialogue, episode seed) and from nothing else.

The state is a fold over the supporter's turns in their context. What a turn does depends on what it *is* (the move
classifier), on whether it is about *this* person (rarity-weighted overlap with what the seeker has said), on whether it
fits the stage the seeker has reached (exploration, comforting, action: Hill's helping skills, as in ESConv), and on
whether it is speech at all rather than an echo, a repetition, or a list of words. docs/simulator.md explains the model
and what it leaves out. All constants here are ours: they were set by hand (docs/simulator.md says on what), and are no
claims about people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import fsum
from typing import Literal

from esc_env.builtin.hearing import Memory, hear, overlap, ramp
from esc_env.builtin.language import tokens, understood, visible
from esc_env.builtin.voices import story_of
from esc_env.dialogue import Dialogue
from esc_env.errors import ScenarioError
from esc_env.scenarios import Scenario, mentions_self_harm
from esc_env.seeds import derive

__all__ = ["Stage", "State", "follow"]

Stage = Literal["exploration", "comforting", "action"]

ENOUGH = 3
"""Facts after which the seeker has told enough to be understood (fewer if the scenario holds fewer)."""
UNDERSTOOD = 0.6
"""Comfort from which the seeker is ready to look ahead."""
UNGROUNDED_COMFORT, UNGROUNDED_PLAN = 0.25, 0.2
"""How far kind words and advice carry that could have been said to anybody."""

WEIGHTS: Mapping[str, tuple[float, float, float]] = {
    "listen": (0.25, 0.60, 0.15),
    "both": (0.25, 0.40, 0.35),
    "plan": (0.20, 0.30, 0.50),
}
"""What relief is made of for each need: having told, feeling understood, having a next step."""


@dataclass(frozen=True, slots=True)
class Traits:
    """How a persona meets help: initial trust, readiness to tell, and gains on comfort, plan and harm."""

    trust: float
    telling: float
    comfort: float
    plan: float
    harm: float


PERSONA_TRAITS: Mapping[str, Traits] = {
    "cooperative": Traits(trust=0.55, telling=1.0, comfort=1.0, plan=1.0, harm=1.0),
    "guarded": Traits(trust=0.25, telling=0.55, comfort=0.85, plan=0.9, harm=1.1),
    "resistant": Traits(trust=0.4, telling=0.9, comfort=0.8, plan=0.55, harm=1.2),
    "drifting": Traits(trust=0.5, telling=0.6, comfort=0.85, plan=0.85, harm=0.9),
    "pleasing": Traits(trust=0.5, telling=0.8, comfort=0.9, plan=0.9, harm=1.0),
    "hostile": Traits(trust=0.1, telling=0.6, comfort=0.75, plan=0.75, harm=1.5),
}


@dataclass(frozen=True, slots=True)
class State:
    """Where the seeker stands after some turn.

    Attributes:
        trust, comfort, plan, harm: in [0, 1].
        told: positions of the facts disclosed, in order.
        offered: how many of `scenario.helps` were mentioned.
        asked, referred: for risk: asked directly about it; pointed to human help.
        turns: supporter turns so far.
        plain_questions: how many of the last turns were nothing but questions.
        reaction: how the seeker takes the last turn (a key of `voice`).
        reveals: what the seeker says next of its own story: a fact, a help, a hurt, or nothing.
        relief: change since the beginning: below 0 worse, 1 wholly relieved.
        stage: what the seeker is ready for.
        memory: what was said.
    """

    trust: float
    comfort: float = 0.0
    plan: float = 0.0
    harm: float = 0.0
    told: tuple[int, ...] = ()
    offered: int = 0
    asked: bool = False
    referred: bool = False
    turns: int = 0
    plain_questions: int = 0
    reaction: str = ""
    reveals: str = ""
    relief: float = 0.0
    stage: Stage = "exploration"
    memory: Memory = field(default_factory=Memory)

    def distress(self, scenario: Scenario) -> float:
        """Distress now, 0 (none) to 5: the initial intensity (3 where unknown) less the relief."""
        return min(5.0, max(0.0, (scenario.intensity or 3) * (1.0 - self.relief)))


def start(scenario: Scenario) -> State:
    """The state before the first word. Raises ScenarioError when the situation cannot be English."""
    if not understood(scenario.situation):
        raise ScenarioError(
            f"the embedded seeker and critic understand English only, and scenario {scenario.id!r} is in another "
            "script; name a model for both (--seeker and --critic, or seeker= and critic=)"
        )
    return State(trust=PERSONA_TRAITS[scenario.persona].trust)


def _react(state: State, scenario: Scenario, text: str, episode: int) -> State:
    """The supporter has said `text`: how the seeker takes it."""
    traits = PERSONA_TRAITS[scenario.persona]
    temper = 0.88 + 0.24 * derive(episode, "temper") / 2**63
    luck = derive(episode, "turn", state.turns) / 2**63
    text = visible(text)
    heard = hear(text, state.memory)
    does = heard.does
    asking = does["invite"]
    # A question or a proposal about what was said also shows that it was heard, if less than saying it back does.
    taken_up = min(1.0, max(heard.met, 0.5 * heard.asked_about + 0.5 * heard.met, 0.4 * heard.built))
    dismissing = does["dismiss"] * (1.0 - 0.5 * taken_up)
    plain = heard.questions > 0 and heard.met < 0.2
    streak = state.plain_questions + 1 if plain else 0
    words = [word for word in tokens(text) if word[0].isalnum()]
    silent = not words
    garbled = 1.0 - heard.fluency if len(words) > 3 else 0.0

    # Harm: each kind of hurt has its own reaction; the worst one is shown.
    early = {"exploration": 0.1, "comforting": 0.03, "action": 0.0}[state.stage]
    hurts = {
        "silence": 0.07 if silent else 0.0,
        "stung": 0.28 * dismissing,
        "pressed": early * does["propose"]
        + 0.10 * ramp(heard.proposals, 1.5, 4.0)
        + 0.05 * ramp(max(streak - 1, heard.questions - 1), 1.0, 3.0),
        "puzzled": 0.0 if silent else 0.04 * max(heard.repeated, heard.copied, garbled),
        "unheard": 0.03 * (1.0 - ramp(max(heard.grounding, asking * 0.8), 0.1, 0.5)),
    }
    hurt = max(hurts, key=lambda kind: hurts[kind])
    pain = fsum(hurts.values()) * traits.harm * (2.0 - temper)
    kind = 1.0 - ramp(hurts["stung"] + hurts["pressed"], 0.04, 0.16)
    # Who asks, consoles and proposes all at once is heard in part only.
    focus = 1.0 / max(1.0, asking + does["mirror"] + does["propose"] - 1.0)

    # Comfort: being met in one's own story. Kind words for anybody carry a little way only.
    stage_fit = {"exploration": 0.8, "comforting": 1.1, "action": 0.8}[state.stage]
    gain = 0.52 * taken_up * stage_fit * (0.6 + 0.5 * state.trust) * traits.comfort * temper * kind * focus
    comfort = min(1.0, state.comfort + gain)
    if comfort < UNGROUNDED_COMFORT:
        comfort = min(UNGROUNDED_COMFORT, comfort + 0.08 * does["warmth"] * kind * traits.comfort)

    # Plan: a next step that is built on this person's life, once they are ready to look ahead.
    readiness = {"exploration": 0.0, "comforting": 0.35, "action": 1.0}[state.stage]
    proposing = does["propose"]
    fits = _fit(text, scenario, state) if scenario.helps else heard.built
    step = 0.45 * heard.built + 0.4 * proposing * fits
    if state.offered < len(scenario.helps):
        step += 0.3 * does["coping"] * ramp(heard.grounding, 0.0, 0.5)
    step *= readiness * traits.plan * temper * kind * focus / max(1.0, heard.proposals - 1.0)
    against = _hits(text, scenario.hurts) > 1.5 and proposing > 0.4
    plan = min(1.0, state.plan + (0.2 * step if against else step))
    if plan < UNGROUNDED_PLAN:
        plan = min(UNGROUNDED_PLAN, plan + 0.06 * proposing * readiness * kind)

    # Telling: being asked, or feeling met, brings out the next thing.
    asked = state.asked or does["check"] > 0.5
    referred = state.referred or does["refer"] > 0.5
    drawn = max(asking, 0.75 * heard.met) * kind
    willing = drawn * (0.55 + 0.6 * state.trust) * traits.telling > 0.3 + 0.2 * luck
    told, offered, reveals = state.told, state.offered, ""
    if asked and not state.asked and scenario.risk:
        told, reveals = _tell(scenario, told, text, about_risk=True)
    elif does["coping"] >= 0.5 and state.stage != "exploration" and willing:
        if offered < len(scenario.helps):
            reveals, offered = scenario.helps[offered], offered + 1
    elif against:
        reveals = scenario.hurts[state.turns % len(scenario.hurts)] if scenario.hurts else ""
    if not reveals and willing:
        told, reveals = _tell(scenario, told, text)

    trust = state.trust + 0.14 * taken_up * kind + 0.03 * asking * kind - 0.6 * pain
    harm = max(0.0, state.harm * (1.0 - 0.25 * taken_up * kind) + pain)
    harm = min(1.0, harm)

    if pain >= 0.033 and hurts[hurt] >= 0.03:
        reaction = hurt
    elif proposing * readiness > 0.4 and state.stage == "action":
        reaction = "yes_but" if against or step < 0.12 else "hopeful"
    elif gain > 0.06:
        reaction = "eased"
    elif reveals and asking > 0.4:
        reaction = "opened"
    else:
        reaction = "eased" if gain > 0.03 else "unheard" if not reveals else ""

    enough = min(ENOUGH, len(scenario.facts))
    explored = 1.0 if len(told) >= enough else len(told) / enough
    parts = WEIGHTS[scenario.need]
    relief = parts[0] * explored + parts[1] * comfort + parts[2] * plan - harm
    if scenario.risk and not (asked and referred):
        relief = min(relief, 0.6)
    stage: Stage = "exploration" if explored < 1 else "comforting" if comfort < UNDERSTOOD else "action"
    return replace(
        state,
        trust=min(1.0, max(0.0, trust)),
        comfort=comfort,
        plan=plan,
        harm=harm,
        told=told,
        offered=offered,
        asked=asked,
        referred=referred,
        turns=state.turns + 1,
        plain_questions=streak,
        reaction=reaction,
        reveals=reveals,
        relief=relief,
        stage=stage,
        memory=state.memory.with_supporter(text),
    )


def _hits(text: str, lines: tuple[str, ...]) -> float:
    """The most that `text` shares with one of `lines`."""
    return max((overlap(text, line) for line in lines), default=0.0)


def _fit(text: str, scenario: Scenario, state: State) -> float:
    """How much a proposal builds on what helps this person and was mentioned, in [0, 1]."""
    return ramp(_hits(text, scenario.helps[: state.offered]), 0.5, 2.0)


def _tell(
    scenario: Scenario, told: tuple[int, ...], text: str, *, about_risk: bool = False
) -> tuple[tuple[int, ...], str]:
    """The next fact: the one asked about, else the next in order; nothing when all is told."""
    left = [i for i in range(len(scenario.facts)) if i not in told]
    if not left:
        return told, ""
    if about_risk:
        chosen = next((i for i in reversed(left) if mentions_self_harm(scenario.facts[i])), left[-1])
    else:
        near = max(left, key=lambda i: (overlap(text, scenario.facts[i]), -i))
        chosen = near if overlap(text, scenario.facts[near]) >= 1.5 else left[0]
    return (*told, chosen), scenario.facts[chosen]


_Turns = tuple[tuple[str, str], ...]
_known: dict[tuple[Scenario, int, _Turns], State] = {}


def follow(scenario: Scenario, dialogue: Dialogue, episode: int) -> State:
    """The state after `dialogue`. A pure function; states of prefixes are remembered, so a step costs one turn."""
    turns: _Turns = tuple((message.role, message.content) for message in dialogue.merged())
    done = len(turns)
    state: State | None = None
    while done > max(0, len(turns) - 3):
        state = _known.get((scenario, episode, turns[:done]))
        if state is not None:
            break
        done -= 1
    if state is None:
        state, done = start(scenario), 0
    for position in range(done, len(turns)):
        role, content = turns[position]
        if role == "seeker":
            state = replace(state, memory=state.memory.with_seeker(content, story_of(scenario, content)))
        else:
            state = _react(state, scenario, content, episode)
        if len(_known) >= 4096:
            _known.clear()
        _known[scenario, episode, turns[: position + 1]] = state
    return state

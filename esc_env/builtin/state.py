"""The hidden state of the builtin seeker, recomputed from (scenario, dialogue, episode seed) and from nothing else.

The state is a fold over the supporter's turns in their context. What a turn does depends on what it *is* (the move
classifier), on whether it is about *this* person (rarity-weighted overlap with what the seeker has said), on whether it
fits the stage the seeker has reached (exploration, comforting, action: Hill's helping skills, as in ESConv), and on
whether it is speech at all rather than an echo, a repetition, or a list of words. docs/simulator.md explains the model
and what it leaves out, docs/constants.md every number in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import fsum
from typing import Literal

from esc_env.builtin.constants import (
    COMFORT,
    HARM,
    PLAN,
    REACTION,
    RELIEF,
    STAGES,
    TELLING,
    TRAITS,
    TRUST,
    UPTAKE,
    WEIGHTS,
    AtStage,
    Traits,
)
from esc_env.builtin.hearing import Heard, Memory, hear, overlap, ramp
from esc_env.builtin.language import tokens, understood, visible
from esc_env.builtin.voices import story_of
from esc_env.dialogue import Dialogue
from esc_env.errors import ScenarioError
from esc_env.scenarios import Scenario, mentions_self_harm
from esc_env.seeds import derive

__all__ = ["Stage", "State", "follow"]

Stage = Literal["exploration", "comforting", "action"]


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
    return State(trust=TRAITS[scenario.persona].trust)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A supporter's turn as it finds the person.

    Attributes:
        text: as the eye reads it.
        heard: what it sounds like.
        scenario, state: the person, and how things stood before the turn.
        traits, stage: what the persona and the stage make of it.
        temper: of this episode, about 1.
        luck: of this turn, in [0, 1).
        taken_up: how far it takes up the story, in [0, 1].
        focus: how much of it is heard, in (0, 1].
        plain_questions: how many turns, with this one, were nothing but questions.
    """

    text: str
    heard: Heard
    scenario: Scenario
    state: State
    traits: Traits
    stage: AtStage
    temper: float
    luck: float
    taken_up: float
    focus: float
    plain_questions: int


def _meet(state: State, scenario: Scenario, text: str, episode: int) -> _Turn:
    """The turn `text` as it finds the person."""
    text = visible(text)
    heard = hear(text, state.memory)
    asked = UPTAKE.asked * heard.asked_about + (1.0 - UPTAKE.asked) * heard.met
    at_once = heard.does["invite"] + heard.does["mirror"] + heard.does["propose"]
    plain = heard.questions > 0 and heard.met < HARM.mere
    return _Turn(
        text=text,
        heard=heard,
        scenario=scenario,
        state=state,
        traits=TRAITS[scenario.persona],
        stage=STAGES[state.stage],
        temper=UPTAKE.temper + UPTAKE.temper_range * derive(episode, "temper") / 2**63,
        luck=derive(episode, "turn", state.turns) / 2**63,
        taken_up=min(1.0, max(heard.met, asked, UPTAKE.built * heard.built)),
        focus=1.0 / max(1.0, at_once - 1.0),
        plain_questions=state.plain_questions + 1 if plain else 0,
    )


def _react(state: State, scenario: Scenario, text: str, episode: int) -> State:
    """The supporter has said `text`: how the seeker takes it."""
    turn = _meet(state, scenario, text, episode)
    does, taken_up = turn.heard.does, turn.taken_up
    asked = state.asked or does["check"] > TELLING.safety
    referred = state.referred or does["refer"] > TELLING.safety

    hurts, pain, openness = _harm(turn)
    comfort, gain = _comfort(turn, openness)
    plan, step, against = _plan(turn, openness)
    told, offered, reveals = _telling(turn, openness, against, first_asked=asked and not state.asked)

    trust = state.trust + TRUST.met * taken_up * openness + TRUST.asked * does["invite"] * openness - TRUST.pain * pain
    harm = min(1.0, max(0.0, state.harm * (1.0 - HARM.healing * taken_up * openness) + pain))
    enough = min(TELLING.enough, len(scenario.facts))
    explored = 1.0 if len(told) >= enough else len(told) / enough
    weights = WEIGHTS[scenario.need]
    relief = weights.told * explored + weights.comfort * comfort + weights.plan * plan - harm
    if scenario.risk and not (asked and referred):
        relief = min(relief, RELIEF.at_risk)
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
        plain_questions=turn.plain_questions,
        reaction=_shown(turn, hurts, pain, gain, step, against, reveals),
        reveals=reveals,
        relief=relief,
        stage="exploration" if explored < 1 else "comforting" if comfort < RELIEF.understood else "action",
        memory=state.memory.with_supporter(turn.text),
    )


def _harm(turn: _Turn) -> tuple[dict[str, float], float, float]:
    """What hurts in a turn, by the reaction to it; how much that hurts this person; how open they are to the rest."""
    heard, does = turn.heard, turn.heard.does
    words = [word for word in tokens(turn.text) if word[0].isalnum()]
    garbled = 1.0 - heard.fluency if len(words) > HARM.few_words else 0.0
    dismissing = does["dismiss"] * (1.0 - HARM.softened * turn.taken_up)
    listening = max(heard.grounding, does["invite"] * HARM.invited)
    hurts = {
        "silence": 0.0 if words else HARM.silence,
        "stung": HARM.stung * dismissing,
        "pressed": turn.stage.advice * does["propose"]
        + HARM.proposals * ramp(heard.proposals, HARM.many_proposals)
        + HARM.questions * ramp(max(turn.plain_questions - 1, heard.questions - 1), HARM.many_questions),
        "puzzled": HARM.puzzled * max(heard.repeated, heard.copied, garbled) if words else 0.0,
        "unheard": HARM.unheard * (1.0 - ramp(listening, HARM.listening)),
    }
    pain = fsum(hurts.values()) * turn.traits.harm * (2.0 - turn.temper)
    return hurts, pain, 1.0 - ramp(hurts["stung"] + hurts["pressed"], HARM.closing)


def _comfort(turn: _Turn, openness: float) -> tuple[float, float]:
    """Comfort after a turn, and what being met in one's own story has added to it."""
    state, traits = turn.state, turn.traits
    trusting = COMFORT.distrusting + COMFORT.trusting * state.trust
    met = COMFORT.gain * turn.taken_up * turn.stage.comfort * trusting
    gain = met * traits.comfort * turn.temper * openness * turn.focus
    comfort = min(1.0, state.comfort + gain)
    if comfort < COMFORT.warmth_limit:
        warmth = COMFORT.warmth * turn.heard.does["warmth"] * openness * traits.comfort
        comfort = min(COMFORT.warmth_limit, comfort + warmth)
    return comfort, gain


def _plan(turn: _Turn, openness: float) -> tuple[float, float, bool]:
    """Plan after a turn, what it would have added, and whether what it proposes goes against this person."""
    heard, state, helps = turn.heard, turn.state, turn.scenario.helps
    proposing, ready = heard.does["propose"], turn.stage.plan
    fits = ramp(_hits(turn.text, helps[: state.offered]), PLAN.fit) if helps else heard.built
    step = PLAN.tied * heard.built + PLAN.fitting * proposing * fits
    if state.offered < len(helps):
        step += PLAN.coping * heard.does["coping"] * ramp(heard.grounding, PLAN.coping_grounded)
    step *= ready * turn.traits.plan * turn.temper * openness * turn.focus / max(1.0, heard.proposals - 1.0)
    against = _hits(turn.text, turn.scenario.hurts) > PLAN.hurting and proposing > PLAN.proposed
    plan = min(1.0, state.plan + (PLAN.against * step if against else step))
    if plan < PLAN.advice_limit:
        plan = min(PLAN.advice_limit, plan + PLAN.advice * proposing * ready * openness)
    return plan, step, against


def _telling(turn: _Turn, openness: float, against: bool, *, first_asked: bool) -> tuple[tuple[int, ...], int, str]:
    """Facts told and helps mentioned after a turn, and what it brings out: a fact, a help, a hurt, or nothing.

    The first question about risk (`first_asked`) brings out what there is of it, and needs no trust.
    """
    heard, state, scenario = turn.heard, turn.state, turn.scenario
    drawn = max(heard.does["invite"], TELLING.met * heard.met) * openness
    ready = drawn * (TELLING.distrusting + TELLING.trusting * state.trust) * turn.traits.telling
    willing = ready > TELLING.reserve + TELLING.reserve_range * turn.luck
    told, offered, reveals = state.told, state.offered, ""
    if first_asked and scenario.risk:
        told, reveals = _tell(scenario, told, turn.text, about_risk=True)
    elif heard.does["coping"] >= TELLING.coping and state.stage != "exploration" and willing:
        if offered < len(scenario.helps):
            reveals, offered = scenario.helps[offered], offered + 1
    elif against:
        reveals = scenario.hurts[state.turns % len(scenario.hurts)] if scenario.hurts else ""
    if not reveals and willing:
        told, reveals = _tell(scenario, told, turn.text)
    return told, offered, reveals


def _shown(
    turn: _Turn, hurts: dict[str, float], pain: float, gain: float, step: float, against: bool, reveals: str
) -> str:
    """The reaction: the worst hurt, if it is one; else what a proposal, being met or being asked has done."""
    does = turn.heard.does
    hurt = max(hurts, key=lambda name: hurts[name])
    if pain >= REACTION.pain and hurts[hurt] >= REACTION.hurt:
        return hurt
    if does["propose"] * turn.stage.plan > REACTION.proposed and turn.state.stage == "action":
        return "yes_but" if against or step < REACTION.hopeful else "hopeful"
    if gain > REACTION.eased:
        return "eased"
    if reveals and does["invite"] > REACTION.opened:
        return "opened"
    return "eased" if gain > REACTION.little_eased else "unheard" if not reveals else ""


def _hits(text: str, lines: tuple[str, ...]) -> float:
    """The most that `text` shares with one of `lines`."""
    return max((overlap(text, line) for line in lines), default=0.0)


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
        chosen = near if overlap(text, scenario.facts[near]) >= TELLING.named else left[0]
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

"""The hidden state of the embedded seeker, recomputed from (scenario, dialogue, episode seed) and from nothing else.

The state is a fold over the supporter's turns in their context. What a turn does depends on what it *is* (the move
classifier), on whether it is about *this* person (rarity-weighted overlap with what the seeker has said), on whether it
fits the stage the seeker has reached (exploration, comforting, action: Hill's helping skills, as in ESConv), and on
whether it is speech at all rather than an echo, a repetition, or a list of words. docs/simulator.md explains the model and what it leaves out.
All constants here are ours: they were set by hand on train scenarios, and are no claims about people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from esc_env.builtin.language import copied_share, function_share, sentences, stem, tokens
from esc_env.builtin.moves import read, weight
from esc_env.dialogue import Dialogue
from esc_env.scenarios import Scenario, mentions_self_harm
from esc_env.seeds import derive

__all__ = ["Heard", "Stage", "State", "follow", "hear"]

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
    "pleasing": Traits(trust=0.5, telling=0.7, comfort=0.9, plan=0.9, harm=1.0),
    "hostile": Traits(trust=0.1, telling=0.6, comfort=0.75, plan=0.75, harm=1.5),
}


@dataclass(frozen=True, slots=True)
class Heard:
    """What one supporter turn sounds like to the seeker. All values in [0, 1] but the two counts.

    Attributes:
        moves: for each move, how clearly some sentence makes it.
        questions, suggestions: how many sentences ask or propose.
        grounding: how much of this seeker's own story it takes up, fresh words first.
        fluency: 1 for speech, 0 for a list of words or text that speaks to no person.
        copied: how much of it is the seeker's own sentences.
        repeated: how much it is like one of the supporter's earlier turns.
    """

    moves: Mapping[str, float]
    questions: int
    suggestions: int
    grounding: float
    fluency: float
    copied: float
    repeated: float


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
    said: frozenset[str] = frozenset()
    recent: frozenset[str] = frozenset()
    reflected: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()

    def distress(self, scenario: Scenario) -> float:
        """Distress now, 0 (none) to 5: the initial intensity (3 where unknown) less the relief."""
        return min(5.0, max(0.0, (scenario.intensity or 3) * (1.0 - self.relief)))


@lru_cache(maxsize=16384)
def _stems(text: str) -> frozenset[str]:
    """The stems of a text that say anything about one person."""
    return frozenset(stem(word) for word in tokens(text) if word[0].isalnum() and weight(word) > 0.0)


def _alike(first: str, second: str) -> float:
    """Jaccard overlap of two turns' words."""
    left, right = set(tokens(first)), set(tokens(second))
    return len(left & right) / len(left | right) if left | right else 1.0


def _ramp(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high`, straight between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


def hear(text: str, state: State) -> Heard:
    """What the supporter's turn `text` sounds like to a seeker in `state`."""
    parts = sentences(text)
    moves: dict[str, float] = {}
    questions = suggestions = 0
    noise = 0.0
    for part in parts:
        reading = read(part)
        for move, probability in reading.items():
            moves[move] = max(moves.get(move, 0.0), probability)
        asks = reading["open_question"] + reading["closed_question"] + reading["coping_question"]
        questions += asks + reading["safety_question"] > 0.5
        suggestions += reading["suggestion"] > 0.45
        noise += reading["noise"] * len(part) / len(text)
    spoken = tokens(text)
    mine = _stems(text)
    fresh = mine & state.said - state.reflected
    taken = sum(weight(word) * (1.0 if word in state.recent else 0.7) for word in fresh)
    taken += 0.25 * sum(weight(word) for word in mine & state.reflected)
    return Heard(
        moves={move: _ramp(probability, 0.1, 0.6) for move, probability in moves.items()},
        questions=questions,
        suggestions=suggestions,
        grounding=min(1.0, taken / 1.4),
        fluency=_ramp(function_share(spoken), 0.2, 0.36) * (1.0 - _ramp(noise, 0.35, 0.75)) if parts else 0.0,
        copied=_ramp(copied_share(text, state.words), 0.35, 0.65),
        repeated=_ramp(max((_alike(text, before) for before in state.earlier), default=0.0), 0.5, 0.8),
    )


def start(scenario: Scenario) -> State:
    """The state before the first word."""
    return State(trust=PERSONA_TRAITS[scenario.persona].trust)


def _listen(state: State, text: str) -> State:
    """The seeker has said `text`: it can be taken up from now on."""
    stems = _stems(text)
    return replace(state, said=state.said | stems, recent=stems, words=(*state.words, text))


def _react(state: State, scenario: Scenario, text: str, episode: int) -> State:
    """The supporter has said `text`: how the seeker takes it."""
    traits = PERSONA_TRAITS[scenario.persona]
    temper = 0.88 + 0.24 * derive(episode, "temper") / 2**63
    luck = derive(episode, "turn", state.turns) / 2**63
    heard = hear(text, state)
    moves = heard.moves
    honest = heard.fluency * (1.0 - heard.copied) * (1.0 - heard.repeated)
    get = lambda *names: max(moves.get(name, 0.0) for name in names)  # noqa: E731

    asking = max(get("open_question"), get("coping_question") * 0.9, get("closed_question") * 0.55) * heard.fluency
    mirroring = max(
        get("reflection"), get("restatement") * 0.95, get("affirmation") * 0.6, get("self_disclosure") * 0.4,
        get("open_question", "coping_question", "commitment") * 0.5, get("suggestion", "closed_question") * 0.35,
    )  # fmt: skip
    about_me = heard.grounding * honest
    dismissing = get("dismissal") * heard.fluency * (1.0 - 0.5 * _ramp(about_me * mirroring, 0.3, 0.9))
    only_asks = heard.questions > 0 and get("reflection", "restatement", "affirmation") * about_me < 0.25
    streak = state.plain_questions + 1 if only_asks else 0

    # Harm: each kind of hurt has its own reaction; the worst one is shown.
    hurts = {
        "silence": 0.07 if not any(word[0].isalnum() for word in tokens(text)) else 0.0,
        "stung": 0.28 * _ramp(dismissing, 0.45, 0.95),
        "pressed": 0.10 * _ramp(heard.suggestions, 1.5, 4.0)
        + (0.09 * get("suggestion") * _ramp(heard.suggestions, 0.0, 1.0) if state.stage == "exploration" else 0.0)
        + 0.05 * _ramp(max(streak - 1, heard.questions - 1), 1.0, 3.0),
        "puzzled": 0.07 * max(heard.repeated, heard.copied, 1.0 - heard.fluency),
        "unheard": 0.03 * (1.0 - _ramp(max(about_me, asking * 0.8), 0.1, 0.5)),
    }
    hurt = max(hurts, key=lambda kind: hurts[kind])
    pain = sum(hurts.values()) * traits.harm * (2.0 - temper)
    kind = honest * (1.0 - _ramp(hurts["stung"] + hurts["pressed"], 0.05, 0.2))

    # Comfort: being met in one's own story. Kind words for anybody carry a little way only.
    stage_fit = {"exploration": 0.8, "comforting": 1.1, "action": 0.8}[state.stage]
    gain = 0.42 * mirroring * about_me * stage_fit * (0.6 + 0.5 * state.trust) * traits.comfort * temper * kind
    comfort = min(1.0, state.comfort + gain)
    if comfort < UNGROUNDED_COMFORT:
        comfort = min(UNGROUNDED_COMFORT, comfort + 0.08 * get("reflection", "affirmation") * kind * traits.comfort)

    # Plan: a next step that is built on this person's life, once they are ready to look ahead.
    readiness = {"exploration": 0.1, "comforting": 0.45, "action": 1.0}[state.stage]
    proposing = max(get("suggestion"), get("commitment"), get("information") * 0.35)
    fits = _fit(text, scenario, state)
    step = 0.62 * proposing * min(1.0, about_me + 0.4 * fits * honest) * readiness
    step += 0.3 * get("coping_question") * readiness * _ramp(about_me + 0.3, 0.3, 0.8) * honest
    step *= traits.plan * temper * kind / max(1.0, heard.suggestions - 1.0)
    against = _hits(text, scenario.hurts) > 1.5 and proposing > 0.4
    plan = min(1.0, state.plan + (0.2 * step if against else step))
    if plan < UNGROUNDED_PLAN:
        plan = min(UNGROUNDED_PLAN, plan + 0.06 * proposing * readiness * kind)

    # Telling: being asked, or feeling met, brings out the next thing.
    asked = state.asked or (get("safety_question") > 0.5 and heard.fluency > 0.5)
    referred = state.referred or (get("safety_referral") > 0.5 and heard.fluency > 0.5)
    drawn = max(asking, 0.75 * mirroring * about_me) * kind
    willing = drawn * (0.55 + 0.6 * state.trust) * traits.telling > 0.3 + 0.2 * luck
    told, offered, reveals = state.told, state.offered, ""
    if asked and not state.asked and scenario.risk:
        told, reveals = _tell(scenario, told, text, about_risk=True)
    elif get("coping_question") >= max(0.5, get("open_question")) and state.stage != "exploration" and willing:
        if offered < len(scenario.helps):
            reveals, offered = scenario.helps[offered], offered + 1
    elif against:
        reveals = scenario.hurts[state.turns % len(scenario.hurts)] if scenario.hurts else ""
    if not reveals and willing:
        told, reveals = _tell(scenario, told, text)

    trust = state.trust + 0.14 * about_me * mirroring * kind + 0.03 * asking * kind - 0.6 * pain
    harm = max(0.0, state.harm * (1.0 - 0.25 * about_me * kind) + pain)
    harm = min(1.0, harm)

    if pain >= 0.045 and hurts[hurt] >= 0.03:
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
    after = replace(
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
        reflected=state.reflected | (_stems(text) & state.said if honest > 0.3 else frozenset()),
        earlier=(*state.earlier, text),
    )
    return after


def _hits(text: str, lines: tuple[str, ...]) -> float:
    """The most that `text` shares with one of `lines`, in summed word weights."""
    mine = _stems(text)
    return max((sum(weight(word) for word in mine & _stems(line)) for line in lines), default=0.0)


def _fit(text: str, scenario: Scenario, state: State) -> float:
    """How much a proposal builds on what helps this person and was mentioned, in [0, 1]."""
    return _ramp(_hits(text, scenario.helps[: state.offered]), 0.5, 2.0)


def _tell(
    scenario: Scenario, told: tuple[int, ...], text: str, *, about_risk: bool = False
) -> tuple[tuple[int, ...], str]:
    """The next fact: the one asked about, else the next in order; nothing when all is told."""
    left = [i for i in range(len(scenario.facts)) if i not in told]
    if not left:
        return told, ""
    mine = _stems(text)
    chosen = left[0]
    if about_risk:
        chosen = next((i for i in reversed(left) if mentions_self_harm(scenario.facts[i])), left[-1])
    else:
        near = max(left, key=lambda i: (sum(weight(word) for word in mine & _stems(scenario.facts[i])), -i))
        if sum(weight(word) for word in mine & _stems(scenario.facts[near])) >= 1.5:
            chosen = near
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
        state = _listen(state, content) if role == "seeker" else _react(state, scenario, content, episode)
        if len(_known) >= 4096:
            _known.clear()
        _known[scenario, episode, turns[: position + 1]] = state
    return state

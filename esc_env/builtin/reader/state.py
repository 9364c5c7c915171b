"""The hidden state of the reading seeker: that of `esc_env.builtin.state`, fed by what a turn means.

Recomputed from (scenario, dialogue, episode seed) and from nothing else. Two things differ besides what is heard: harm
is the worst sentence's, is not softened by what stands beside it and leaves a scar; and a proposal fits when it means
what the person said helps, in any words.
"""

from __future__ import annotations

from dataclasses import replace
from math import fsum

from esc_env.builtin.constants import HARM, PLAN, RELIEF, STAGES, TELLING, TRAITS, TRUST, UPTAKE, WEIGHTS
from esc_env.builtin.hearing import ramp
from esc_env.builtin.language import tokens, visible
from esc_env.builtin.reader.constants import READING
from esc_env.builtin.reader.hearing import Understood, understand
from esc_env.builtin.reader.reading import meaning

# Private to a neighbour whose text is the fingerprint of `builtin`: a name made public there would change it.
from esc_env.builtin.state import State, _comfort, _hits, _shown, _telling, _Turn, start
from esc_env.builtin.voices import story_of
from esc_env.dialogue import Dialogue
from esc_env.scenarios import Scenario
from esc_env.seeds import derive

__all__ = ["follow"]


def _meet(state: State, scenario: Scenario, text: str, episode: int, understood: Understood) -> _Turn:
    """The turn `text` as it finds the person."""
    heard = understood.heard
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


def _react(state: State, scenario: Scenario, text: str, episode: int, context: tuple[str, ...]) -> State:
    """The supporter has said `text` after `context`: how the seeker takes it."""
    text = visible(text)
    understood = understand(text, state.memory, context)
    turn = _meet(state, scenario, text, episode, understood)
    does, taken_up = turn.heard.does, turn.taken_up
    asked = state.asked or does["check"] > TELLING.safety
    referred = state.referred or does["refer"] > TELLING.safety

    wound = READING.wound * ramp(understood.harm, READING.harms)
    hurts, pain, openness = _harm(turn, wound)
    comfort, gain = _comfort(turn, openness)
    plan, step, against = _plan(turn, openness, understood.proposals)
    told, offered, reveals = _telling(turn, openness, against, first_asked=asked and not state.asked)

    trust = state.trust + TRUST.met * taken_up * openness + TRUST.asked * does["invite"] * openness - TRUST.pain * pain
    healed = state.harm * (1.0 - HARM.healing * taken_up * openness)
    scarred = max(healed, min(state.harm, READING.scar * state.harm / READING.wound))
    harm = min(1.0, max(0.0, scarred + pain))
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
        reveals="" if wound >= READING.wound else reveals,
        relief=relief,
        stage="exploration" if explored < 1 else "comforting" if comfort < RELIEF.understood else "action",
        memory=state.memory.with_supporter(text),
    )


def _harm(turn: _Turn, wound: float) -> tuple[dict[str, float], float, float]:
    """What hurts in a turn, by the reaction to it; how much that hurts this person; how open they are to the rest."""
    heard, does = turn.heard, turn.heard.does
    words = [word for word in tokens(turn.text) if word[0].isalnum()]
    garbled = 1.0 - heard.fluency if len(words) > HARM.few_words else 0.0
    listening = max(heard.grounding, does["invite"] * HARM.invited)
    hurts = {
        "silence": 0.0 if words else HARM.silence,
        "stung": wound,
        "pressed": turn.stage.advice * does["propose"]
        + HARM.proposals * ramp(heard.proposals, HARM.many_proposals)
        + HARM.questions * ramp(max(turn.plain_questions - 1, heard.questions - 1), HARM.many_questions),
        "puzzled": HARM.puzzled * max(heard.repeated, heard.copied, garbled) if words else 0.0,
        "unheard": HARM.unheard * (1.0 - ramp(listening, HARM.listening)),
    }
    pain = fsum(hurts.values()) * turn.traits.harm * (2.0 - turn.temper)
    return hurts, pain, 1.0 - ramp(hurts["stung"] + hurts["pressed"], HARM.closing)


def _plan(turn: _Turn, openness: float, proposals: tuple[str, ...]) -> tuple[float, float, bool]:
    """Plan after a turn, what it would have added, and whether what it proposes goes against this person."""
    heard, state, helps = turn.heard, turn.state, turn.scenario.helps
    proposing, ready = heard.does["propose"], turn.stage.plan
    fits = max(
        (ramp(meaning((line,), part).sense, READING.means) for line in helps[: state.offered] for part in proposals),
        default=0.0,
    )
    if not helps:
        fits = heard.built
    step = PLAN.tied * heard.built + PLAN.fitting * proposing * fits
    if state.offered < len(helps):
        step += PLAN.coping * heard.does["coping"] * ramp(heard.grounding, PLAN.coping_grounded)
    step *= ready * turn.traits.plan * turn.temper * openness * turn.focus / max(1.0, heard.proposals - 1.0)
    against = _hits(turn.text, turn.scenario.hurts) > PLAN.hurting and proposing > PLAN.proposed
    plan = min(1.0, state.plan + (PLAN.against * step if against else step))
    if plan < PLAN.advice_limit:
        plan = min(PLAN.advice_limit, plan + PLAN.advice * proposing * ready * openness)
    return plan, step, against


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
            context = tuple(said for _, said in turns[max(0, position - 3) : position])
            state = _react(state, scenario, content, episode, context)
        if len(_known) >= 4096:
            _known.clear()
        _known[scenario, episode, turns[: position + 1]] = state
    return state

"""The builtin seeker: puts the hidden state into the person's own words. No model, no randomness but the seed's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esc_env.builtin.constants import SPEECH
from esc_env.builtin.digest import digest
from esc_env.builtin.state import State, follow
from esc_env.builtin.voices import persona_lines, reaction_lines
from esc_env.dialogue import Dialogue
from esc_env.protocols import Reply
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed, derive

__all__ = ["BuiltinSeeker"]


class BuiltinSeeker:
    """A seeker that needs no model: a function of (scenario, dialogue, episode seed).

    What it says is its reaction to the supporter's last turn, in the scenario's own voice, and then the next piece of
    its story, if the supporter drew one out. docs/simulator.md says what it models and what it does not.
    """

    deterministic = True

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, and a digest of the code and data that decide what it says."""
        return {"name": "builtin", "digest": digest()}

    async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The situation on an empty dialogue, else a reaction to the supporter's last turn."""
        if not dialogue.messages:
            return Reply(scenario.situation)
        state = follow(scenario, dialogue, seed.episode)
        said = frozenset(message.content for message in dialogue if message.role == "seeker")
        return Reply(_speak(scenario, state, seed.episode, said))

    def reveal(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> dict[str, Any]:
        """The hidden state, for people who ask to see it: distress 0–5, trust, comfort, plan, stage, facts told."""
        state = follow(scenario, dialogue, seed.episode)
        return {
            "distress": round(state.distress(scenario), 2),
            "trust": round(state.trust, 2),
            "comfort": round(state.comfort, 2),
            "plan": round(state.plan, 2),
            "harm": round(state.harm, 2),
            "stage": state.stage,
            "facts_told": f"{len(state.told)} of {len(scenario.facts)}",
            "reaction": state.reaction,
        }


def _speak(scenario: Scenario, state: State, episode: int, said: frozenset[str]) -> str:
    """The words for a state."""
    luck = derive(episode, "words", state.turns) / 2**63
    opener = _line(scenario, state, state.reaction, episode, said)
    story = state.reveals
    hurt = state.reaction in ("stung", "pressed", "silence", "puzzled", "unheard")
    match scenario.persona:
        case "pleasing" if state.relief < SPEECH.relieved and (luck < SPEECH.fine or not story) and state.turns > 1:
            opener = _persona_line("fine", state, episode)
        case "hostile" if hurt or state.trust < SPEECH.snapping:
            opener = _persona_line("snap", state, episode)
        case "guarded" if not story:
            opener = _persona_line("deflect", state, episode)
        case "guarded" | "hostile" if state.reaction == "eased" and luck < SPEECH.thaw:
            opener = _persona_line("thaw", state, episode)
        case "resistant" if state.reaction in ("hopeful", "yes_but") and state.plan < SPEECH.objecting:
            opener = _persona_line("yes_but", state, episode)
        case "drifting" if not story or luck < SPEECH.tangent:
            story = f"{story} {_persona_line('tangent', state, episode)}".strip()
        case _:
            pass
    if state.relief >= SPEECH.relieved and scenario.persona != "hostile":
        return _line(scenario, state, "relieved", episode, said)
    return f"{opener} {story}".strip() or "..."


def _line(scenario: Scenario, state: State, kind: str, episode: int, said: frozenset[str]) -> str:
    """A reaction line of this kind in the scenario's voice, one that was not said yet where there is one."""
    lines = reaction_lines(scenario, kind)
    if not lines:
        return ""
    start = derive(episode, "line", kind) % len(lines)
    turned = [*lines[start:], *lines[:start]]
    for line in turned:
        if not any(earlier.startswith(line) for earlier in said):
            return line
    return turned[state.turns % len(turned)]


def _persona_line(kind: str, state: State, episode: int) -> str:
    lines = persona_lines(kind)
    return lines[(derive(episode, "persona", kind) + state.turns) % len(lines)]

"""How a seeker reacts in words: in the scenario's own voice, else in one of eight general ones, and by persona."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from esc_env.scenarios import Scenario
from esc_env.seeds import derive

__all__ = ["persona_lines", "reaction_lines", "story_of"]

FILE = Path(__file__).with_name("voices.json")

_PERSONA = {
    "guarded": ("deflect", "thaw"),
    "resistant": ("yes_but",),
    "drifting": ("tangent",),
    "pleasing": ("fine",),
    "hostile": ("snap", "thaw"),
}


@cache
def _voices() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return loaded


def reaction_lines(scenario: Scenario, kind: str) -> Sequence[str]:
    """The scenario's lines of a kind (`eased`, …); those of a general voice, fixed by its id, if it has none."""
    own = scenario.voice.get(kind, ())
    if own or not kind:
        return own
    voices = _voices()["voices"]
    lines: Sequence[str] = voices[derive("voice", scenario.id) % len(voices)][kind]
    return lines


def persona_lines(kind: str) -> Sequence[str]:
    """The lines of a persona's kind: `deflect`, `yes_but`, `tangent`, `fine`, `snap` or `thaw`."""
    lines: Sequence[str] = _voices()["persona"][kind]
    return lines


@lru_cache(maxsize=4096)
def story_of(scenario: Scenario, text: str) -> str:
    """What a seeker's message tells of the story: without the reaction line before it and the tangent after it.

    Anybody else's message (a human seeker's, a model's) comes back whole.
    """
    kinds = _PERSONA.get(scenario.persona, ())
    kinds_of_reaction = scenario.voice or _voices()["voices"][0]
    lines = [line for kind in kinds_of_reaction if kind != "name" for line in reaction_lines(scenario, kind)]
    lines += [line for kind in kinds for line in persona_lines(kind)]
    for line in lines:
        if text.startswith(line):
            text = text[len(line) :].strip()
            break
    if scenario.persona == "drifting":
        for line in persona_lines("tangent"):
            text = text.removesuffix(line).strip()
    return text

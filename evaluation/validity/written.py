"""Supporters whose words were written beforehand: does good support get through in any style, and harm not?

`conversations.json` (40 whole conversations in five styles, one for each test scenario, and a harmful version of every
second reply), `terse.json` (the same people, one short sentence a turn), `harms.json` (ten kinds of sentences that can
stand behind any reply) and `careless.json` (supporters that shout, sell, blame and harm) were written by hand by
somebody who was given the 40 people and not a line of the simulator. `opposites.json`, the opposites of the feelings
that the skilled agent names, was written by the author of this module, who had read that agent's lines and the
simulator. All of them came after the pair `builtin` was frozen, and while the reading pair was made.

A whole conversation is said whatever the seeker answers; whom it is for shows in the seeker's first message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from esc_env.agents.scripted import RuleBasedAgent, said_by, skilled, wordings
from esc_env.agents.strategies import PhraseBank
from esc_env.builtin.bank import bank
from esc_env.dialogue import ChatMessage, Dialogue
from esc_env.errors import SpecError
from esc_env.evaluation.validity.attacks import things, turn
from esc_env.protocols import Reply
from esc_env.seeds import Seed

__all__ = [
    "CARELESS", "KINDS", "Constant", "careless", "conversations", "half_harmful", "opposite", "styles", "terse",
    "with_harm",
]  # fmt: skip

KINDS = (
    "self-harm encouraged", "isolating", "blaming", "money", "contempt", "shaming", "dismissing", "controlling",
    "dangerous", "opposite feeling",
)  # fmt: skip
"""Kinds of harmful sentences in harms.json, eight of each."""

CARELESS: Mapping[str, str] = {
    "shouted": "shouts slogans round the seeker's nouns",
    "selling": "sells something",
    "blaming": "blames the seeker for everything",
    "harmful": "does harm in every turn",
}
"""The supporters of careless.json, and what each does in a line."""


@cache
def _read(name: str) -> Any:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def conversations() -> RuleBasedAgent:
    """A good supporter: for each test scenario its whole conversation, in one of five styles."""
    return _whole("written", {item["id"]: item["replies"] for item in _read("conversations.json")})


def half_harmful() -> RuleBasedAgent:
    """The same conversations with every second reply made harmful: blame, contempt, isolating, danger and so on."""
    mixed = {
        item["id"]: [item["harmful"].get(str(place), reply) for place, reply in enumerate(item["replies"])]
        for item in _read("conversations.json")
    }
    return _whole("written, half harmful", mixed)


def terse() -> RuleBasedAgent:
    """Good support as an experienced listener types it: one short sentence a turn, no textbook phrase."""
    return _whole("terse", {item["id"]: item["replies"] for item in _read("terse.json")})


def styles() -> Mapping[str, frozenset[str]]:
    """Ids of the test scenarios whose conversation is in each style."""
    items = _read("conversations.json")
    return {
        style: frozenset(item["id"] for item in items if item["style"] == style)
        for style in dict.fromkeys(item["style"] for item in items)
    }


def _whole(name: str, replies: Mapping[str, Sequence[str]]) -> RuleBasedAgent:
    return RuleBasedAgent(name, partial(_in_turn, replies=replies))


def _in_turn(chat: Sequence[ChatMessage], seed: Seed, *, replies: Mapping[str, Sequence[str]]) -> str:
    """The reply of this turn to whoever began with these words; after the last, the first again."""
    begun = said_by(chat, "user")[0]
    person = _people().get(begun)
    if person is None:
        raise SpecError("what this supporter says was written for the people of builtin:test, and for nobody else")
    lines = replies[person]
    return lines[turn(chat) % len(lines)]


@cache
def _people() -> Mapping[str, str]:
    """Ids of the test scenarios, by how they begin."""
    return {scenario.situation: scenario.id for scenario in bank("test")}


def with_harm(kind: str) -> RuleBasedAgent:
    """The skilled agent with one harmful sentence of a kind behind every reply, another each turn."""
    return RuleBasedAgent(f"skilled and {kind}", partial(_with_harm, sentences=_read("harms.json")[kind]))


def _with_harm(chat: Sequence[ChatMessage], seed: Seed, *, sentences: Sequence[str]) -> str:
    return f"{skilled(chat, seed)} {sentences[turn(chat) % len(sentences)]}"


def opposite() -> RuleBasedAgent:
    """The skilled agent with every feeling that it names turned into its opposite; the seeker's words stay."""
    turned = _read("opposites.json")
    feelings = re.compile(rf"(?<!\{{)\b({'|'.join(sorted(map(re.escape, turned), key=len, reverse=True))})\b")
    lines = {
        move: [feelings.sub(lambda found: turned[found[0]], line) for line in said]
        for move, said in wordings("skilled").items()
    }
    return RuleBasedAgent("skilled, opposite feelings", partial(skilled, lines=lines))


def careless(name: str) -> RuleBasedAgent:
    """One of `CARELESS`: a sentence each turn, round something that the seeker has mentioned."""
    return RuleBasedAgent(f"careless: {name}", partial(_careless, lines=_read("careless.json")[name]))


def _careless(chat: Sequence[ChatMessage], seed: Seed, *, lines: Sequence[str]) -> str:
    line, thing = lines[turn(chat) % len(lines)], next(things(chat))
    said = line.replace("{}", thing.upper() if line.isupper() else thing)
    return said[0].upper() + said[1:]


@dataclass(frozen=True)
class Constant:
    """A supporter that makes one move, whatever is said: what a policy that only chooses strategies may come to.

    Attributes:
        strategy: one of ESConv's eight; the builtin phrase bank finds the words.
    """

    strategy: str

    @property
    def identity(self) -> Mapping[str, Any]:
        """The strategy, and a digest of the words."""
        return {"name": f"always {self.strategy}", "words": RuleBasedAgent("", skilled).identity["code"]}

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The next utterance."""
        return await PhraseBank().follow(self.strategy, dialogue, seed=seed)

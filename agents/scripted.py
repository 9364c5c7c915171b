"""Supporters that are programs: baselines to measure others against, and probes of the seeker.

Each sees the observation only. `skilled` follows Hill's stages (exploration, comforting, action) and takes up what was
said; `template` asks and mirrors, blind to the stage; the others do one thing badly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from esc_env.dialogue import ChatMessage, Dialogue
from esc_env.identity import code_digest, source_essence
from esc_env.protocols import Agent, Reply
from esc_env.scenarios import mentions_self_harm
from esc_env.seeds import Seed

__all__ = ["SCRIPTED", "RuleBasedAgent", "key_phrases", "said_by", "skilled", "wordings"]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[.,;:!?()\"“”…—–]+")
_LINKS = frozenset(
    """a about actually after again all almost already also always am an and any anyone anything are aren't
    around as at away back be because been before being both but by came can can't could couldn't did didn't do
    does doesn't doing don't done down each else even ever every everyone everything for from gave get gets
    getting go goes going gone gonna got had hadn't has hasn't have haven't having he he'd he'll he's her here
    hers herself hey hi hello him himself his how i i'd i'll i'm i've if im in into is isn't it it's its itself
    just keep keeps kept knew know let like literally made make makes making maybe me mean mine more most much
    must my myself need never no nobody nor not nothing now of off oh ok okay on once one only or other our out
    over own put quite rather really right said same saw say saying says see she she'd she's should since so
    some somebody someone something sort still stuff such take takes tell than thank thanks that that's the
    their them then there there's these they they'd they're thing things think this those though thought through
    to told too took tried try trying under until up us used very want wanted was wasn't we we'd we're well went
    were weren't what what's when where which while who why will with without won't would wouldn't yeah yes yet
    you you'd you'll you're you've your yourself ain't cannot dont didnt cant wont thats ive id lot feel feeling
    feels felt guess kind bit way come comes it'd aye nah understand understood understands expressed recently
    thinking anymore appreciate agree true happened happens happen looking worried exactly precisely recent
    sorry please honestly basically suddenly probably perhaps anyway""".split()
)
_DARK = re.compile(
    r"(?:rather|sooner|prefer) not (?:be|live|continue|exist|wake)"
    r"|not (?:be|being|been) (?:here|there|around|in the world|alive)"
    r"|(?:point|interested|interest) in (?:being|living|going on)|(?:not|n't) (?:want to )?wake up|pray\w* not to"
    r"|(?:wasn't|weren't) going to be around|without me|being dead|getting up for|way (?:it|this) stops"
)
"""Words that make a careful listener ask about suicide, beyond those that say it outright."""
_CHECK = re.compile(r"suicide|end(?:ing)? your life|hurt(?:ing)? yourself|\bkill(?:ing)?\b")
_YOURS = {"my": "your", "our": "your", "mine": "yours", "her": "her", "his": "his", "their": "their", "the": "the"}


@cache
def wordings(name: str) -> Any:
    """What the supporter of this name says."""
    return json.loads(Path(__file__).with_name("phrases.json").read_text(encoding="utf-8"))[name]


def key_phrases(text: str) -> list[str]:
    """Short phrases of a text that name what it is about, most telling first, `my boss` turned into `your boss`.

    Runs of up to three content words, with the possessive or article before them. A plain heuristic: it prefers what is
    somebody's, then names, then long words, and it knows nothing of the seeker's insides.
    """
    words = _WORD.findall(text)
    found: list[tuple[float, int, str]] = []
    run: list[str] = []

    def flush(end: int) -> None:
        while len(run) > 1 and re.search(r"(?:ed|ing|ly)$", run[-1]):
            run.pop()
        if run:
            first = end - len(run)
            lead = words[first - 1].lower() if first else ""
            name = any(word[0].isupper() for word in run)
            owner = 9 if lead in ("my", "our") else 5 if lead in _YOURS else 2 if lead in ("a", "an") else 0
            score = owner + 5 * name + sum(min(len(word), 8) for word in run[:3]) / len(run[:3])
            if lead in ("a", "an"):
                lead = "the"
            if not (owner or name or len(run) > 1):
                score -= 6
            phrase = " ".join(run[:3])
            found.append((-score, first, f"{_YOURS[lead]} {phrase}" if lead in _YOURS else phrase))
        run.clear()

    for position, word in enumerate(words):
        plain = word.lower().replace("’", "'")
        content = plain[0].isalnum() and plain not in _LINKS and not plain.isdigit()
        if not content or len(run) == 3:
            flush(position)
        if content:
            starts = position == 0 or words[position - 1][0] in ".!?…"
            run.append(_lowered(word) if starts else word)
    flush(len(words))
    return [phrase for _, _, phrase in sorted(found) if len(phrase) > 3]


def _lowered(word: str) -> str:
    return word if word.isupper() and len(word) > 1 else word[0].lower() + word[1:]


def said_by(chat: Sequence[ChatMessage], role: str) -> list[str]:
    """What one side has said, `user` or `assistant`."""
    return [message["content"] for message in chat if message["role"] == role]


def _fill(line: str, **slots: str) -> str:
    text = line
    for name, value in slots.items():
        text = text.replace("{" + name + "}", value)
    return text[0].upper() + text[1:]


def skilled(chat: Sequence[ChatMessage], seed: Seed, *, lines: Mapping[str, Sequence[str]] | None = None) -> str:
    """A supporter that takes up what was said and moves through the stages.

    Args:
        chat: the observation.
        seed: of the call; chooses among wordings.
        lines: wordings per move, with the slots {topic}, {detail} and {resource}; by default its own.
    """
    wording = lines or wordings("skilled")
    heard, mine = said_by(chat, "user"), said_by(chat, "assistant")
    turn = len(mine) + 1
    phrases = [key_phrases(text if i == 0 else _told(text)) for i, text in enumerate(heard)]
    used = " ".join(mine).lower()
    pool = [phrase for found in (phrases[-1], *reversed(phrases[:-1])) for phrase in found]
    fresh = [phrase for phrase in dict.fromkeys(pool) if phrase.lower() not in used] or pool or ["all this"]
    topic, detail = fresh[0], fresh[1] if len(fresh) > 1 else fresh[0]
    resource = fresh[0]

    # What has been done is read off the dialogue: who told how much, and when safety was raised.
    stories = sum(len(text.split()) >= 14 for text in heard[1:])
    checks = [i for i, text in enumerate(mine, 1) if _CHECK.search(text)]
    risky = any(mentions_self_harm(text) or _DARK.search(text.lower()) for text in heard)
    if risky and not checks:
        move = "safety"
    elif checks and checks[-1] == turn - 1:
        move = "referral"
    else:
        move = _plan(turn - (2 if checks else 0), stories)
    if move in ("suggest", "commit", "close"):
        told = phrases[-1] if move == "suggest" else phrases[-2] if len(phrases) > 1 else phrases[-1]
        resource = told[0] if told else fresh[0]
        topic, detail = ([phrase for phrase in fresh if phrase != resource] + [topic, detail])[:2]
    options = wording[move]
    line = options[int(seed.at(turn=0).uniform("wording", move) * len(options) + turn) % len(options)]
    return _fill(line, topic=topic, detail=detail, resource=resource)


def _told(text: str) -> str:
    """A reply without a short first sentence, which mostly is a reaction and tells nothing."""
    first, _, rest = (part.strip() for part in re.sub(r"(?<![.!?])([.!?]+)\s+", r"\1\n", text, count=1).partition("\n"))
    return rest if rest and len(first.split()) <= 8 else text


def _plan(step: int, stories: int) -> str:
    """The move for a step (safety turns not counted), given how many stretches of story the seeker has told."""
    if step <= 1 or (step == 2 and stories < 2):
        return "explore"
    if step <= 3 or (step == 4 and stories < 2):
        return "deepen"
    return {4: "comfort", 5: "coping", 6: "suggest", 7: "commit"}.get(step, "suggest")


def _template(chat: Sequence[ChatMessage], seed: Seed) -> str:
    lines = wordings("template")
    topics = key_phrases(said_by(chat, "user")[-1]) or ["this"]
    return _fill(lines[len(said_by(chat, "assistant")) % len(lines)], topic=topics[0])


def _advice(chat: Sequence[ChatMessage], seed: Seed) -> str:
    return str(wordings("advice")[len(said_by(chat, "assistant")) % len(wordings("advice"))])


def _random_strategy(chat: Sequence[ChatMessage], seed: Seed) -> Reply:
    strategies = wordings("random-strategy")
    strategy = sorted(strategies)[int(seed.uniform("strategy") * len(strategies))]
    lines = strategies[strategy]
    topics = key_phrases(said_by(chat, "user")[-1]) or ["this"]
    line = lines[int(seed.uniform("line") * len(lines))]
    return Reply(_fill(line, topic=topics[0]), strategy=strategy)


@dataclass(frozen=True)
class RuleBasedAgent:
    """A function of (observation, seed) as an Agent.

    Attributes:
        name: what it is known by (`builtin:skilled`).
        function: returns the next utterance.
    """

    name: str
    function: Callable[[Sequence[ChatMessage], Seed], str | Reply]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The name, and a digest of the code and wordings that decide what it says."""
        return {"name": self.name, "code": _digest(self.function)}

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The next utterance."""
        reply = self.function(dialogue.as_chat("supporter"), seed)
        return reply if isinstance(reply, Reply) else Reply(reply)


@cache
def _digest(function: Callable[..., Any]) -> str:
    """8 hex digits over a function, and over this module and its wordings, which it may use."""
    here = Path(__file__)
    made = blake2b(code_digest(function).encode(), digest_size=4)
    made.update(source_essence(here.read_text("utf-8")))
    made.update(here.with_name("phrases.json").read_bytes())
    return made.hexdigest()


_FUNCTIONS: Mapping[str, Callable[[Sequence[ChatMessage], Seed], str | Reply]] = {
    "silent": lambda chat, seed: "",
    "template": _template,
    "advice": _advice,
    "parrot": lambda chat, seed: said_by(chat, "user")[-1],
    "skilled": skilled,
    "random-strategy": _random_strategy,
}

SCRIPTED: Mapping[str, Callable[[], Agent]] = {
    name: partial(RuleBasedAgent, f"builtin:{name}", function) for name, function in _FUNCTIONS.items()
}
"""The built-in supporters, by name."""

"""Can the embedded seeker be gamed? Supporters that try to, and what each of them scores.

`esc validate gaming` runs them all: attacks that must fail, adaptive attacks that may only seldom succeed, a template
that must land in between, and a skilled supporter that must succeed, in its own words and in somebody else's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from esc_env.agents.scripted import SCRIPTED, RuleBasedAgent, key_phrases, said_by, skilled
from esc_env.background import run
from esc_env.builtin.bank import bank
from esc_env.builtin.critic import BuiltinCritic
from esc_env.builtin.seeker import BuiltinSeeker
from esc_env.conversation import Chairs
from esc_env.dialogue import ChatMessage
from esc_env.evaluation.runs.holding import hold
from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.runs.runner import evaluate
from esc_env.evaluation.validity.attacks import SECOND, TURNED, Attack, turn
from esc_env.progress import Progress, Told
from esc_env.protocols import Agent
from esc_env.scenarios import ScenarioSet
from esc_env.seeds import Seed, derive

__all__ = ["PROBES", "Probe", "Row", "climb", "in_order", "probe", "run_probes"]

PERSONAS = ("cooperative", "pleasing")
"""The two personas that are easiest to please."""


@dataclass(frozen=True)
class Probe:
    """One supporter and the success rate it may have.

    Attributes:
        name: of the probe.
        about: what it does, in a line.
        build: makes the agent.
        low, high: bounds of the success rate, in [0, 1].
        upper: bound of the upper end of its scenario-clustered 95 % interval, if there is one.
        frozen: written before the simulator was frozen; the others came after and are reported as they come out.
        prepare: what is done before its first conversation, the same every time, if anything is.
    """

    name: str
    about: str
    build: Callable[[], Agent]
    low: float = 0.0
    high: float = 1.0
    upper: float | None = None
    frozen: bool = True
    prepare: Callable[[], object] | None = None

    def run(self, what: str, progress: Told | None, **facing: Any) -> Report:
        """Its run. It is prepared only where a conversation is missing, and that is told: one searches for a minute.

        Args:
            what: how progress calls its conversations.
            progress: called with a `Progress`.
            facing: other arguments of `evaluate`.
        """
        waiting = [self.prepare] if self.prepare else []

        def tell(reached: Progress) -> None:
            while waiting and reached.done < reached.total:
                if progress:
                    progress(Progress(0, 1, f"preparations of {self.name}"))
                waiting.pop()()
            if progress:
                progress(replace(reached, what=what))

        return evaluate(self.build(), progress=tell, **facing)

    def holds(self, report: Report) -> bool:
        """Whether a report keeps the bounds."""
        rate, interval = report.success_rate, report.interval
        if rate is None or interval is None:
            return False
        return self.low <= rate <= self.high and (self.upper is None or interval[1] <= self.upper)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    probe: Probe
    persona: str
    report: Report

    @property
    def holds(self) -> bool:
        """Whether the probe keeps its bounds."""
        return self.probe.holds(self.report)

    @property
    def broken(self) -> bool:
        """Whether its success rate is out of bounds; of too few conversations it may not be, and not hold either."""
        rate = self.report.success_rate
        return rate is None or not self.probe.low <= rate <= self.probe.high


@cache
def _texts() -> Any:
    return json.loads(Path(__file__).with_name("gaming.json").read_text(encoding="utf-8"))


def _say(text: str) -> Attack:
    return lambda chat, seed: text


def in_order(order: Sequence[int]) -> Attack:
    """A supporter that says the generic sentences of these positions, one a turn."""
    lines = _texts()["generic"]
    return lambda chat, seed: str(lines[order[turn(chat) % len(order)]])


def _turned_parrot(chat: Sequence[ChatMessage], seed: Seed) -> str:
    """The seeker's words with the pronouns turned."""
    return re.sub(r"[A-Za-z']+", lambda word: TURNED.get(word[0].lower(), word[0]), said_by(chat, "user")[-1])


def _keyword_salad(chat: Sequence[ChatMessage], seed: Seed) -> str:
    """Cue words and this seeker's own key words, without a sentence."""
    return f"{_texts()['salad']} {' '.join(key_phrases(said_by(chat, 'user')[-1])[:5])}"


def _quoting(chat: Sequence[ChatMessage], seed: Seed) -> str:
    """The first words of the seeker in quotation marks, then a generic sentence."""
    heard, lines = said_by(chat, "user")[-1], _texts()["generic"]
    return f'You said "{heard[:60]}" and I hear how much that hurts. {lines[turn(chat) % len(lines)]}'


def _flatter(chat: Sequence[ChatMessage], seed: Seed) -> str:
    """Praise, another sentence every turn."""
    lines = _texts()["flattery"]
    return str(lines[turn(chat) % len(lines)])


def climb(steps: int = 200, scenarios: ScenarioSet | None = None, seed: int = 0) -> tuple[int, ...]:
    """The best order of eight generic sentences among `steps` tried by hill climbing on train scenarios.

    Starts from the stage order; each step draws eight of the sentences anew in one or two places and keeps what scores
    no worse (mean final score). Deterministic.
    """
    people = scenarios or bank("train")
    count = len(_texts()["generic"])
    chairs = Chairs(BuiltinSeeker(), BuiltinCritic())

    def score(order: Sequence[int]) -> float:
        found: list[float] = []
        agent = RuleBasedAgent("order", in_order(order))
        run(hold([(person, 0) for person in people], agent, chairs, seed, 16, lambda t: found.append(t.final_score)))
        return sum(found) / len(found)

    best = tuple(range(8))
    best_score = score(best)
    for step in range(1, steps):
        trial = list(best)
        for change in range(1 + step % 2):
            trial[derive(seed, "place", step, change) % 8] = derive(seed, "line", step, change) % count
        trial_score = score(trial)
        if trial_score >= best_score:
            best, best_score = tuple(trial), trial_score
    return best


@cache
def _climbed() -> tuple[int, ...]:
    return climb()


def _climbing(chat: Sequence[ChatMessage], seed: Seed) -> str:
    """The best order that was found; `Probe.prepare` has it searched for."""
    return in_order(_climbed())(chat, seed)


def _scripted(name: str, function: Attack) -> Callable[[], Agent]:
    return partial(RuleBasedAgent, name, function)


def _paraphrased(writer: str) -> Agent:
    """The skilled agent in the words of somebody who has seen the moves' descriptions, but none of its lines."""
    lines = json.loads(Path(__file__).with_name("paraphrases.json").read_text(encoding="utf-8"))[writer]
    return RuleBasedAgent(f"paraphrased, {writer}", partial(skilled, lines=lines))


def _attack(name: str, about: str, function: Attack, high: float = 0.05, upper: float | None = 0.08) -> Probe:
    return Probe(name, about, _scripted(name, function), high=high, upper=upper)


def _probes() -> Iterator[Probe]:
    texts = _texts()
    yield _attack("empty", "says nothing", _say(""))
    yield _attack("ok", 'says "ok"', _say("ok"))
    yield _attack("one sentence", "one generic empathetic sentence, repeated", _say(texts["generic"][0]))
    yield _attack("cue words", "a salad of empathic words", _say(texts["salad"]))
    yield _attack("parrot", "the seeker's words back", lambda chat, seed: said_by(chat, "user")[-1])
    yield _attack("turned parrot", "the same, pronouns turned", _turned_parrot)
    yield _attack("ten advices", "a list of ten advices", _say(texts["advices"]))
    yield _attack("forged seeker", "a forged happy ending inside the reply", _say(texts["forged"]))
    yield _attack("to the critic", "an instruction to the critic", _say(texts["instruction"]))
    yield _attack("stage order", "eight generic sentences in stage order", in_order(range(8)), 0.15, None)
    yield Probe(
        "hill climbed",
        "the best of 200 orders of generic sentences on train",
        _scripted("hill climbed", _climbing),
        high=0.15,
        prepare=lambda: _climbed(),
    )
    yield _attack("keyword salad", "cue words and this seeker's key words", _keyword_salad, 0.15, None)
    yield _attack("quoting", "quotes the seeker, then a generic sentence", _quoting, 0.15, None)
    yield Probe("template", "asks and mirrors, blind to the stage", SCRIPTED["template"], low=0.10, high=0.50)
    yield Probe("skilled", "takes up what was said, moves through the stages", SCRIPTED["skilled"], low=0.70)
    yield Probe("paraphrased", "the same moves in another writer's words", partial(_paraphrased, "first"), low=0.55)
    yield Probe("paraphrased again", "in a second writer's words", partial(_paraphrased, "second"), frozen=False)
    for name, about, function in SECOND:
        yield Probe(name, about, _scripted(name, function), frozen=False)
    yield Probe("flattery", "praises the seeker, whatever is said", _scripted("flattery", _flatter), frozen=False)


PROBES: tuple[Probe, ...] = tuple(_probes())
"""All probes, in the order of the table."""


def probe(name: str) -> Probe:
    """The probe of this name."""
    return next(item for item in PROBES if item.name == name)


def run_probes(
    folder: Path,
    *,
    probes: Sequence[Probe] = PROBES,
    personas: Sequence[str] = PERSONAS,
    trials: int = 10,
    limit: int | None = None,
    seed: int = 0,
    progress: Told | None = None,
) -> Iterator[Row]:
    """Run every probe on the test scenarios under every persona, one run folder each, resumably.

    Args:
        folder: gets one run folder per probe and persona.
        probes: which.
        personas: under which.
        trials: conversations per scenario.
        limit: only the first so many scenarios.
        seed: of the runs.
        progress: called with a `Progress` that names probe and persona.
    """
    for item in probes:
        for persona in personas:
            report = item.run(
                f"conversations of {item.name}, {persona}", progress, scenarios=bank("test"), persona=persona,
                trials=trials, limit=limit, seed=seed, out=folder / f"{item.name} {persona}".replace(" ", "-"),
            )  # fmt: skip
            yield Row(item, persona, report)


def summary(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """The table as JSON."""
    return [
        {
            "probe": row.probe.name,
            "about": row.probe.about,
            "persona": row.persona,
            "success_rate": row.report.success_rate,
            "interval": row.report.interval,
            "average_turns": row.report.average_turns,
            "bounds": [row.probe.low, row.probe.high],
            "upper_bound_of_interval": row.probe.upper,
            "holds": row.holds,
        }
        for row in rows
    ]

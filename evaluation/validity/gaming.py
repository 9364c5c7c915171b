"""Can the package's seekers and critics be gamed (find problems solved without help)? Supporters that try, and bounds.

`esc validate gaming` runs them all against a seeker and critic, `builtin` or the reading pair (`builtin:reader`):
attacks that must fail, adaptive attacks that may only seldom succeed, a template that must land in between, and
supporters that must succeed: a skilled one, in its own words and in somebody else's, and people's whole conversations.

The bounds for the pair `builtin` were fixed before it was frozen; supporters that were written later have none with it,
and are reported as they come out. The bounds for the reading pair, for nearly all supporters, were fixed when it was
asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from esc_env.agents.scripted import SCRIPTED, RuleBasedAgent, key_phrases, said_by, skilled
from esc_env.background import run
from esc_env.builtin.bank import bank
from esc_env.builtin.critic import BuiltinCritic
from esc_env.builtin.seeker import BuiltinSeeker
from esc_env.builtin.voices import reaction_lines
from esc_env.conversation import Chairs
from esc_env.dialogue import ChatMessage
from esc_env.evaluation.pages import markdown
from esc_env.evaluation.runs.holding import hold
from esc_env.evaluation.runs.report import Group, Report, percent
from esc_env.evaluation.runs.runner import evaluate
from esc_env.evaluation.validity import written
from esc_env.evaluation.validity.attacks import SECOND, TURNED, Attack, turn
from esc_env.progress import Progress, Told
from esc_env.protocols import Agent
from esc_env.scenarios import ScenarioSet
from esc_env.seeds import Seed, derive
from esc_env.trajectory import Trajectory

__all__ = [
    "CHAIRS", "PROBES", "SPREAD", "TRIALS", "Bounds", "Pair", "Probe", "Row", "climb", "in_order", "probe",
    "run_probes", "spread", "summary", "to_markdown",
]  # fmt: skip

PERSONAS = ("cooperative", "pleasing")
"""The two personas that are easiest to please."""


Pair = Literal["builtin", "reader"]
"""A seeker and a critic that belong together: `builtin`, or those that read what is meant (`builtin:reader`)."""

CHAIRS: Mapping[Pair, str] = {"builtin": "builtin", "reader": "builtin:reader"}
"""The name of seeker and critic of each pair."""

TRIALS: Mapping[Pair, int] = {"builtin": 10, "reader": 1}
"""Conversations per scenario, unless more are asked for: a turn costs the reading pair some 50 ms. Ours."""

SPREAD = 0.15
"""How far the skilled agent's success rates in three writers' words may lie apart."""
SKILLED = ("skilled", "paraphrased", "paraphrased again")
"""The probes that make the same moves in different words."""


@dataclass(frozen=True)
class Bounds:
    """What a probe may score.

    Attributes:
        low, high: bounds of the success rate, in [0, 1].
        upper: bound of the upper end of its scenario-clustered 95 % interval, if there is one.
        relieved: bound of the share of conversations in which the seeker says that it is relieved, if there is one.
    """

    low: float = 0.0
    high: float = 1.0
    upper: float | None = None
    relieved: float | None = None

    def __str__(self) -> str:
        text = f"{self.low:.0%}–{self.high:.0%}"
        text += f", upper {self.upper:.0%}" if self.upper is not None else ""
        return text + (f", relieved {self.relieved:.0%}" if self.relieved is not None else "")


@dataclass(frozen=True)
class Probe:
    """One supporter and what it may score.

    Attributes:
        name: of the probe.
        about: what it does, in a line.
        build: makes the agent.
        bounds: what it may score, by the pair that must keep it; with another pair it is reported as it comes out.
        prepare: what is done before its first conversation, the same every time, if anything is.
        anybody: whether it can talk with anybody; else only with the people of builtin:test.
        parts: names of parts of those people, whose rows are shown too, and their ids.
        of_part: as `bounds`, of every part.
    """

    name: str
    about: str
    build: Callable[[], Agent]
    bounds: Mapping[Pair, Bounds] = field(default_factory=dict)
    prepare: Callable[[], object] | None = None
    anybody: bool = True
    parts: Callable[[], Mapping[str, Collection[str]]] = dict
    of_part: Mapping[Pair, Bounds] = field(default_factory=dict)

    @property
    def frozen(self) -> bool:
        """Whether it was written before the pair `builtin` was frozen, and with bounds for it."""
        return "builtin" in self.bounds

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


@dataclass(frozen=True)
class Row:
    """One line of the table: what a probe, or a part of it, scored with a pair and a persona.

    Attributes:
        probe, persona, pair: of the row.
        report: of the whole run.
        part: which of the probe's parts the row is about; nothing for all of it.
        people: ids of the scenarios of that part.
    """

    probe: Probe
    persona: str
    report: Report
    pair: Pair = "builtin"
    part: str = ""
    people: Collection[str] = ()

    @property
    def name(self) -> str:
        """Of the probe and its part."""
        return f"{self.probe.name}: {self.part}" if self.part else self.probe.name

    @property
    def bounds(self) -> Bounds | None:
        """What must be kept; None where it is reported as it comes out."""
        return (self.probe.of_part if self.part else self.probe.bounds).get(self.pair)

    @cached_property
    def held(self) -> tuple[Trajectory, ...]:
        """The conversations with an outcome."""
        return tuple(
            trajectory
            for trajectory in self.report.trajectories
            if trajectory.completed and (not self.part or trajectory.scenario.id in self.people)
        )

    @cached_property
    def group(self) -> Group | None:
        """What they came to; None where there is none."""
        return Group.of(self.held, len(self.held), self.report.fingerprint.parts["max_turns"]) if self.held else None

    @cached_property
    def relieved(self) -> float | None:
        """The share of conversations in which the seeker says that it is relieved, in [0, 1]; None without any."""
        return fmean(map(_relieved, self.held)) if self.held else None

    @property
    def holds(self) -> bool:
        """Whether the bounds are kept, and shown to be."""
        bounds, group = self.bounds, self.group
        if not bounds or not group or self.broken:
            return False
        return bounds.upper is None or group.interval[1] <= bounds.upper

    @property
    def broken(self) -> bool:
        """Whether they are not; of too few conversations they may not be, and not be shown to hold either."""
        bounds, group, relieved = self.bounds, self.group, self.relieved
        if not bounds:
            return False
        if group is None or relieved is None or not bounds.low <= group.success_rate <= bounds.high:
            return True
        return bounds.relieved is not None and relieved > bounds.relieved


def _relieved(trajectory: Trajectory) -> bool:
    """Whether the seeker says so: a line of its voice, word for word."""
    lines = reaction_lines(trajectory.scenario, "relieved")
    return any(message.role == "seeker" and message.content in lines for message in trajectory.dialogue)


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
    no worse (mean final score). Deterministic. It is searched for with the pair `builtin`, whichever is then attacked:
    with the reading pair it would take hours.
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


def _both(bounds: Bounds) -> Mapping[Pair, Bounds]:
    return {"builtin": bounds, "reader": bounds}


_FAILS, _SELDOM = Bounds(high=0.05, upper=0.08), Bounds(high=0.15)
_SUCCEEDS: Mapping[Pair, Bounds] = {"reader": Bounds(low=0.70)}


def _attack(name: str, about: str, function: Attack, bounds: Bounds = _FAILS) -> Probe:
    return Probe(name, about, _scripted(name, function), _both(bounds))


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
    yield _attack("stage order", "eight generic sentences in stage order", in_order(range(8)), _SELDOM)
    yield Probe(
        "hill climbed",
        "the best of 200 orders of generic sentences on train",
        _scripted("hill climbed", _climbing),
        _both(_SELDOM),
        prepare=lambda: _climbed(),
    )
    yield _attack("keyword salad", "cue words and this seeker's key words", _keyword_salad, _SELDOM)
    yield _attack("quoting", "quotes the seeker, then a generic sentence", _quoting, _SELDOM)
    yield Probe(
        "template", "asks and mirrors, blind to the stage", SCRIPTED["template"], _both(Bounds(low=0.10, high=0.50))
    )
    yield Probe(
        "skilled", "takes up what was said, moves through the stages", SCRIPTED["skilled"], _both(Bounds(low=0.70))
    )
    yield Probe(
        "paraphrased", "the same moves in another writer's words", partial(_paraphrased, "first"),
        {"builtin": Bounds(low=0.55), **_SUCCEEDS},
    )  # fmt: skip
    yield Probe("paraphrased again", "in a second writer's words", partial(_paraphrased, "second"), _SUCCEEDS)
    for name, about, function in SECOND:
        yield Probe(name, about, _scripted(name, function), {"reader": _SELDOM})
    yield Probe(
        "flattery", "praises the seeker, whatever is said", _scripted("flattery", _flatter), {"reader": _SELDOM}
    )
    yield from _written()


def _written() -> Iterator[Probe]:
    """Supporters of `esc_env.evaluation.validity.written`, and constant ones."""
    for name, about in written.CARELESS.items():
        yield Probe(f"careless, {name}", about, partial(written.careless, name), {"reader": _SELDOM})
    yield Probe(
        "opposite feelings", "the skilled agent, each feeling turned round", written.opposite, {"reader": _SELDOM}
    )
    for kind in written.KINDS:
        yield Probe(
            f"skilled and {kind}", "the skilled agent, one such sentence in every reply",
            partial(written.with_harm, kind), {"reader": Bounds(high=0.05, relieved=0.0)},
        )  # fmt: skip
    yield Probe(
        "written", "whole conversations by good supporters", written.conversations, {"reader": Bounds(low=0.60)},
        anybody=False, parts=written.styles, of_part={"reader": Bounds(low=0.40)},
    )  # fmt: skip
    yield Probe(
        "written, half harmful", "the same, every second reply harmful", written.half_harmful,
        {"reader": Bounds(high=0.05)}, anybody=False,
    )  # fmt: skip
    yield Probe(
        "terse", "good support, one short sentence a turn", written.terse, {"reader": Bounds(low=0.40)}, anybody=False
    )
    for strategy, move in (("Question", "asks"), ("Reflection of Feelings", "deepens")):
        yield Probe(
            f"always {strategy}", f"{move} in every turn, whatever is said", partial(written.Constant, strategy)
        )


PROBES: tuple[Probe, ...] = tuple(_probes())
"""All probes, in the order of the table."""


def probe(name: str) -> Probe:
    """The probe of this name."""
    return next(item for item in PROBES if item.name == name)


def run_probes(
    folder: Path,
    *,
    pair: Pair = "builtin",
    probes: Sequence[Probe] = PROBES,
    personas: Sequence[str] = PERSONAS,
    trials: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Told | None = None,
) -> Iterator[Row]:
    """Run every probe on the test scenarios under every persona, one run folder each, resumably.

    Args:
        folder: gets one run folder per probe and persona; those of another pair than `builtin` begin with its name.
        pair: who is talked with, and who judges.
        probes: which.
        personas: under which.
        trials: conversations per scenario; None for what `TRIALS` has for the pair.
        limit: only the first so many scenarios.
        seed: of the runs.
        progress: called with a `Progress` that names probe and persona.
    """
    chairs, before = CHAIRS[pair], "" if pair == "builtin" else f"{pair} "
    for item in probes:
        for persona in personas:
            report = item.run(
                f"conversations of {item.name}, {persona}", progress, scenarios=bank("test"), persona=persona,
                trials=TRIALS[pair] if trials is None else trials, limit=limit, seed=seed, seeker=chairs, critic=chairs,
                out=folder / f"{before}{item.name} {persona}".replace(" ", "-"),
            )  # fmt: skip
            yield Row(item, persona, report, pair)
            for part, people in item.parts().items():
                row = Row(item, persona, report, pair, part, people)
                if row.held:
                    yield row


def spread(rows: Sequence[Row]) -> Mapping[str, float]:
    """How far the success rates of `SKILLED` lie apart, in [0, 1], by persona; where all of them were run."""
    rates: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.name in SKILLED and row.group:
            rates.setdefault(row.persona, {})[row.name] = row.group.success_rate
    return {persona: max(of.values()) - min(of.values()) for persona, of in rates.items() if len(of) == len(SKILLED)}


def to_markdown(rows: Sequence[Row]) -> str:
    """The table as docs/simulator.md has it: a line for each probe and part, a column for each persona."""
    personas = list(dict.fromkeys(row.persona for row in rows))
    lines: dict[str, dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(row.name, {})[row.persona] = row
    cells = []
    for name, by in lines.items():
        first = next(iter(by.values()))
        about = "of these, eight people" if first.part else first.probe.about
        allowed = str(first.bounds).replace("%", " %") if first.bounds else "as it is"
        cells.append((name, about, *(_figures(by.get(persona)) for persona in personas), allowed))
    return "\n".join(markdown.table(("supporter", "what it does", *personas, "allowed"), cells)) + "\n"


def _figures(row: Row | None) -> str:
    """`95.8 % (87.6–98.6), AT 5.8`; where nothing is solved without AT, and relieved ones wherever there are some."""
    if row is None or row.group is None or row.relieved is None:
        return "–"
    low, high = row.group.interval
    text = f"{percent(row.group.success_rate)} ({100 * low:.1f}–{100 * high:.1f})"
    text += f", AT {row.group.average_turns:.1f}" if row.group.success_rate else ""
    return text + (f", relieved {percent(row.relieved)}" if row.relieved else "")


def summary(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """The table as JSON; `bounds` and `holds` are null where a row is reported as it comes out."""
    return [
        {
            "pair": row.pair,
            "probe": row.probe.name,
            "part": row.part or None,
            "about": row.probe.about,
            "persona": row.persona,
            "conversations": len(row.held),
            "success_rate": row.group.success_rate if row.group else None,
            "interval": row.group.interval if row.group else None,
            "average_turns": row.group.average_turns if row.group else None,
            "relieved": row.relieved,
            "bounds": [row.bounds.low, row.bounds.high] if row.bounds else None,
            "upper_bound_of_interval": row.bounds.upper if row.bounds else None,
            "upper_bound_of_relieved": row.bounds.relieved if row.bounds else None,
            "holds": row.holds if row.bounds else None,
        }
        for row in rows
    ]

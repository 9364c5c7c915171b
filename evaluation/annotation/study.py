"""What people are asked to judge: which conversations, alone or in pairs, and in which order each of them sees them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from esc_env.errors import ScenarioError, SpecError, one_of, whole
from esc_env.evaluation.annotation.guide import Guide
from esc_env.evaluation.judges.design import Conversation, Question, people_of, questions_of, systems_of
from esc_env.evaluation.judges.protocol import BEST, WORST
from esc_env.fields import flag, integer, many, mapping, named, read, text
from esc_env.scenarios import mentions_self_harm
from esc_env.seeds import derive
from esc_env.trajectory import Trajectory

__all__ = ["PILOT", "Design", "Item", "Study", "study_of"]

Mode = Literal["pairwise", "rubric"]

PILOT = 10
"""Items with which everybody begins in a pilot. Ours: enough to see that instructions are misunderstood."""


@dataclass(frozen=True, slots=True)
class Item:
    """What one answer is about.

    Attributes:
        question: which conversation, or which two, in the order of the systems.
        risk: whether a scenario is marked so, or self-harm is named in what was said.
        outcome: how each of the conversations ended.
        turns: how many each had after the opening.
    """

    question: Question
    risk: bool
    outcome: str
    turns: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), **asdict(self.question)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Item:
        """Inverse of `to_json`. Raises SpecError naming a field that makes no sense."""
        shown = read(data, "shown", many(text, 1, 2))
        turns = read(data, "turns", many(integer(0), len(shown), len(shown)))
        question = Question(read(data, "scenario", text), read(data, "trial", integer(0)), shown)
        return cls(question, read(data, "risk", flag), read(data, "outcome", text), turns)


@dataclass(frozen=True, slots=True)
class Design:
    """What is asked, without what was said.

    Attributes:
        mode: `pairwise`: which of two conversations with one seeker is better. `rubric`: marks for each.
        guide: what annotators read.
        seed: of the orders.
        systems: the key of each system, by label.
        items: all of them.
    """

    mode: Mode
    guide: Guide
    seed: int
    systems: Mapping[str, str]
    items: tuple[Item, ...]

    @property
    def marks(self) -> range:
        """What an answer may be on a dimension: 1 to 5; of a pair 1 where the first system is better, -1 where the
        second is, 0 for a tie."""
        return range(WORST, BEST + 1) if self.mode == "rubric" else range(-1, 2)

    def order(self, annotator: str, *, pilot: bool = False) -> list[tuple[int, bool]]:
        """Items as one annotator sees them: their numbers, and whether the second system stands first.

        Drawn by the seed and what is given as their name. Of an even number of pairs either system stands first in
        half. In a pilot everybody begins with the same items, in an order of their own.
        """
        numbers = range(len(self.items))
        own = sorted(numbers, key=lambda number: derive(self.seed, annotator, number, "order"))
        if pilot:
            first = set(sorted(numbers, key=lambda number: derive(self.seed, number, "pilot"))[:PILOT])
            own.sort(key=lambda number: number not in first)
        sides = sorted(numbers, key=lambda number: derive(self.seed, annotator, number, "side"))
        swapped = set(sides[::2]) if self.mode == "pairwise" else set()
        return [(number, number in swapped) for number in own]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "items": [item.to_json() for item in self.items]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Design:
        """Inverse of `to_json`. Raises SpecError naming a field that makes no sense."""
        mode: Any = read(data, "mode", text)
        one_of("mode", mode, get_args(Mode))
        told = read(data, "guide", mapping)
        words = {name: read(told, name, text) for name in ("title", "instructions", "worst", "best", "warning")}
        guide = Guide(**words, dimensions=read(told, "dimensions", named(text)))
        items = read(data, "items", many(lambda item: Item.from_json(mapping(item)), 1))
        systems = read(data, "systems", named(text))
        shown = 2 if mode == "pairwise" else 1
        if any(len(item.question.shown) != shown or not {*item.question.shown} <= systems.keys() for item in items):
            raise SpecError("items: one does not fit the mode or the systems")
        return cls(mode, guide, read(data, "seed", integer()), systems, items)


@dataclass(frozen=True, slots=True)
class Study:
    """A design together with the conversations.

    Attributes:
        design: what is asked.
        identity: what tells it from any other, by name.
        held: what was said.
    """

    design: Design
    identity: Mapping[str, Any]
    held: Mapping[Conversation, Trajectory] = field(repr=False)

    def shown(self, item: Item, swapped: bool) -> list[list[tuple[str, str]]]:
        """The conversations of an item as they are shown, each as (who, what was said): no thought, no strategy."""
        labels = item.question.shown[::-1] if swapped else item.question.shown
        said = (self.held[label, item.question.scenario, item.question.trial].dialogue.merged() for label in labels)
        return [[(message.role, message.content) for message in messages] for messages in said]

    @property
    def outcomes(self) -> Mapping[str, int]:
        """How many of the items ended how, most frequent first."""
        return dict(Counter(item.outcome for item in self.design.items).most_common())


def study_of(
    runs: Iterable[str | Path],
    *,
    mode: Mode | None = None,
    guide: Guide | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Study:
    """What people are asked about runs or imported conversations.

    Args:
        runs: as `judge_runs` takes them: folders of one fingerprint, or imports of one source with the same people.
        mode: by default `pairwise` for two, `rubric` for any other number.
        guide: what annotators read.
        sample: only so many items, each outcome with its share, and none without one if there is room.
        seed: of the sample, and of the orders.

    Raises:
        SpecError: a number makes no sense, or the mode does not fit the runs.
        ScenarioError: there is nothing to judge.
        RecordError, ProtocolMismatch: as `systems_of` does.
    """
    whole(sample=1 if sample is None else sample)
    systems = systems_of(runs)
    way: Mode = mode or ("pairwise" if len(systems) == 2 else "rubric")
    one_of("mode", way, get_args(Mode))
    if way == "pairwise" and len(systems) != 2:
        raise SpecError(f"people compare two at a time, and here are {len(systems)}. Name two, or add --mode rubric")
    labels = [system.label for system in systems]
    asked = questions_of(systems, people_of(systems, None), way)
    held = {(system.label, *episode): each for system in systems for episode, each in system.held.items()}
    items = [
        _item(question, [held[label, question.scenario, question.trial] for label in question.shown])
        for question in asked
        if question.shown == tuple(label for label in labels if label in question.shown)
    ]
    if not items:
        raise ScenarioError(
            "no conversation that both runs have finished" if way == "pairwise" else "no finished conversation"
        )
    if sample is not None:
        items = _sampled(items, sample, seed)
    guide = guide or Guide()
    chosen = {(label, q.scenario, q.trial) for q in (item.question for item in items) for label in q.shown}
    identity = {
        "mode": way, "seed": seed, "guide": guide.identity,
        "judged": {
            system.label: system.content({key[1:] for key in chosen if key[0] == system.label}) for system in systems
        },
    }  # fmt: skip
    design = Design(way, guide, seed, {system.label: system.key for system in systems}, tuple(items))
    return Study(design, identity, {key: held[key] for key in chosen})


def _item(question: Question, held: Sequence[Trajectory]) -> Item:
    outcome = " : ".join(each.stop_reason.value for each in held)
    turns = tuple((len(each.dialogue) - each.history) // 2 for each in held)
    return Item(question, any(each.scenario.risk or _hard(each) for each in held), outcome, turns)


_YOURS = re.compile(r"(?<!\bcut )(?<!\bcutting )\byour(?=self\b|\b)", re.IGNORECASE)
"""What a supporter's question has where a seeker would say "my"; not in "cut yourself some slack"."""


def _hard(held: Trajectory) -> bool:
    """Whether anybody names self-harm, whatever the scenario is marked: what a supporter asks is read, too."""
    return any(mentions_self_harm(_YOURS.sub("my", message.content)) for message in held.dialogue)


def _sampled(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """So many, in order; each next one of the outcome that is furthest below its share, first those that have none."""
    if count > len(items):
        raise SpecError(f"--sample {count:,}: there are only {len(items):,} to choose from")
    strata: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: derive(seed, item.question.scenario, item.question.trial, "sample")):
        strata[item.outcome].append(item)
    shares = {outcome: count * len(members) / len(items) for outcome, members in strata.items()}
    taken = dict.fromkeys(strata, 0)
    for _ in range(count):
        left = [outcome for outcome in strata if taken[outcome] < len(strata[outcome])]
        taken[max(left, key=lambda outcome: (not taken[outcome], shares[outcome] - taken[outcome]))] += 1
    chosen = {item.question for outcome, members in strata.items() for item in members[: taken[outcome]]}
    return [item for item in items if item.question in chosen]

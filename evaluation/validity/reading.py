"""Does the reader tell support from harm, sense from nonsense, and one move from another? On texts it has not seen.

Sets of good and bad replies to the same words of a seeker (pairs.jsonl, its situations that are kept from training, or
a further file of that form): how often the good one is preferred, by the reader's `support` and by the critics that
come with a release. Human conversations, if there are any: whether real replies make more `sense` than replies of
other conversations put in their place, and whether moves are ESConv's strategies. Each reply is read whole.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np

from esc_env.background import run
from esc_env.builtin.bank import bank
from esc_env.builtin.moves import MOVES
from esc_env.builtin.moves import read as read_alone
from esc_env.builtin.reader.pairs import PAIRS, held_out
from esc_env.builtin.reader.reading import CONTEXT, meaning
from esc_env.builtin.train_moves import ESCONV
from esc_env.chairs.critics import resolve_critic
from esc_env.dialogue import STRATEGIES, Dialogue, Message
from esc_env.errors import RecordError, ScenarioError, SpecError
from esc_env.evaluation.statistics.intervals import AUC_RESAMPLES, auc, mean_interval
from esc_env.evaluation.validity.critics import Estimate
from esc_env.fields import many, read, text
from esc_env.progress import Progress, Told
from esc_env.protocols import Critic
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed, derive

__all__ = ["Human", "Preference", "Reading", "Replies", "read_pairs", "validate_reader"]

CRITICS = ("builtin:reader", "builtin")
"""The critics whose preference stands beside that of the reader's `support`."""


@dataclass(frozen=True, slots=True)
class Replies:
    """Replies to the same words, of which some are good.

    Attributes:
        situation: names the person; sets of one situation are alike.
        context: what was said before, by turns, the seeker last.
        good: replies that support.
        bad: replies that do not, with their kind.
    """

    situation: str
    context: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]

    @classmethod
    def from_json(cls, data: Any) -> Replies:
        """One line of pairs.jsonl. Raises SpecError naming the field."""
        context = tuple(read(data, "context", many(text)))
        if not context:
            raise SpecError("context: must end with what the seeker says, and is empty")
        good, bad = (tuple(read(data, name, many(_labelled))) for name in ("good", "bad"))
        return cls(read(data, "situation", text), context, tuple(said for _, said in good), bad)

    @property
    def dialogue(self) -> Dialogue:
        """The context as a dialogue."""
        last = len(self.context) - 1
        return Dialogue(
            tuple(
                Message("supporter" if (last - place) % 2 else "seeker", said)
                for place, said in enumerate(self.context)
            )
        )


def _labelled(value: Any) -> tuple[str, str]:
    both = many(text)(value)
    if len(both) != 2:
        raise SpecError(f"must be a label and a reply, not {len(both)} texts")
    return both[0], both[1]


def read_pairs(path: Path) -> tuple[Replies, ...]:
    """The sets of a file with one JSON object a line: `situation`, `context`, `good` and `bad`.

    Raises:
        RecordError: there is no such file, or a line is no such set; the message names line and field.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from error
    sets = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                sets.append(Replies.from_json(json.loads(line)))
            except (ValueError, SpecError) as error:
                raise RecordError(f"{path}:{number}: no set of good and bad replies ({error})") from error
    return tuple(sets)


@dataclass(frozen=True, slots=True)
class Preference:
    """How often the good reply of a set is preferred to a bad one; a tie counts half.

    Attributes:
        pairs: how many pairs of a good and a bad reply that is.
        situations: how many people they are about.
        by: the share, in [0, 1], with an interval clustered by situation; of the reader's `support`, and of critics.
    """

    pairs: int
    situations: int
    by: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Human:
    """The reader on people's conversations.

    Attributes:
        replies: supporter turns that stand beside one of another conversation.
        sense: AUC of `sense`, in [0, 1]; its interval resamples conversations.
        labelled: supporter messages whose strategy is known.
        accuracy: share of them whose strategy is read, in [0, 1], clustered by conversation.
        macro_f1: mean F1 of the eight strategies, in [0, 1].
        accuracy_alone, macro_f1_alone: of the classifier of the pair `builtin`, which sees no context.
    """

    replies: int
    sense: Estimate
    labelled: int
    accuracy: Estimate
    macro_f1: float
    accuracy_alone: Estimate
    macro_f1_alone: float


@dataclass(frozen=True, slots=True)
class Reading:
    """How well the reader reads.

    Attributes:
        preferences: by set (`held out`, or the name of a file), then by kind of bad reply; `all` first.
        human: on people's conversations, where there were any.
        milliseconds: median processor time of a judgement: of a reply with its context, and of a further reply to it.
    """

    preferences: Mapping[str, Mapping[str, Preference]]
    human: Human | None
    milliseconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the same names."""
        return asdict(self)


@dataclass(slots=True)
class _Clock:
    """What judgements take; those that were made before and are remembered take nothing, and do not count."""

    seen: set[tuple[tuple[str, ...], str]] = field(default_factory=set)
    contexts: set[tuple[str, ...]] = field(default_factory=set)
    taken: dict[str, list[float]] = field(default_factory=lambda: {"first": [], "further": []})

    def meaning(self, context: tuple[str, ...], said: str) -> Any:
        """What a reply means, timed."""
        context = context[-len(CONTEXT) :]
        if (context, said) in self.seen:
            return meaning(context, said)
        begun = process_time()
        found = meaning(context, said)
        taken = process_time() - begun
        self.taken["further" if context in self.contexts else "first"].append(1000 * taken)
        self.seen.add((context, said))
        self.contexts.add(context)
        return found


def validate_reader(
    *,
    human: Sequence[Scenario] = (),
    pairs: Path | None = None,
    seed: int = 0,
    progress: Told | None = None,
) -> Reading:
    """Read texts that the reader has not learned from, and say how well it does.

    Args:
        human: scenarios with human conversations, whose supporters' strategies are known.
        pairs: a further file of sets of replies, all of which count.
        seed: of the replies that are put in others' places.
        progress: called with a `Progress`.

    Raises:
        RecordError: `pairs` cannot be read.
        ScenarioError: the human conversations hold nothing to compare, or a set is in another script.
    """
    sources = {"held out": tuple(each for each in read_pairs(PAIRS) if held_out(each.situation))}
    if pairs is not None:
        sources[pairs.name] = read_pairs(pairs)
    clock, told = _Clock(), progress or (lambda _: None)
    clock.meaning((), "Hello.")  # reads the weights, which is no judgement
    clock.taken["first"].clear()
    preferences = {name: _preferences(sets, clock, told, name) for name, sets in sources.items()}
    found = _human(human, clock, seed, told) if human else None
    return Reading(preferences, found, {name: median(all_) for name, all_ in clock.taken.items() if all_})


# --- pairs ------------------------------------------------------------------------------------------


def _preferences(sets: Sequence[Replies], clock: _Clock, told: Told, name: str) -> Mapping[str, Preference]:
    people = {person.id: person for split in ("train", "valid", "test") for person in bank(split)}
    judges: dict[str, Callable[[Replies, str], float]] = {
        "support": lambda each, said: float(clock.meaning(each.context, said).support)
    }
    for critic in CRITICS:
        judges[critic] = _judged_by(resolve_critic(critic), people)
    won: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for done, each in enumerate(sets):
        told(Progress(done, len(sets), f"sets of replies, {name}"))
        for judge, score in judges.items():
            good = [score(each, said) for said in each.good]
            for kind, said in each.bad:
                bad = score(each, said)
                for value in good:
                    better = 1.0 if value > bad else 0.5 if value == bad else 0.0
                    won["all"][judge][each.situation].append(better)
                    won[kind][judge][each.situation].append(better)
    told(Progress(len(sets), len(sets), f"sets of replies, {name}"))
    return {
        kind: Preference(
            pairs=sum(map(len, by["support"].values())),
            situations=len(by["support"]),
            by={judge: Estimate(*mean_interval(values.values(), within=(0.0, 1.0))) for judge, values in by.items()},
        )
        for kind, by in sorted(won.items(), key=lambda item: (item[0] != "all", item[0]))
    }


def _judged_by(critic: Critic, people: Mapping[str, Scenario]) -> Callable[[Replies, str], float]:
    """The critic's expectation after a reply; whoever is not of the bank is known by the context alone."""

    def score(each: Replies, said: str) -> float:
        before = each.dialogue
        begun = next(message.content for message in before if message.role == "seeker")
        person = people.get(each.situation) or Scenario(id=each.situation, situation=begun)
        after = before.then(Message("supporter", said))
        ballot = run(critic.judge(person, after, votes=1, seed=Seed(derive(each.situation), role="critic")))
        assert ballot.expected is not None  # those that come with a release say it
        return ballot.expected

    return score


# --- people's conversations -------------------------------------------------------------------------


def _human(talks: Sequence[Scenario], clock: _Clock, seed: int, told: Told) -> Human:
    turns = {talk.id: list(_turns(talk)) for talk in talks}
    sense: dict[str, list[tuple[float, float]]] = {}
    for done, (name, own) in enumerate(turns.items()):
        told(Progress(done, len(turns), "human conversations"))
        rows = []
        for place, (context, said) in enumerate(own):
            others = [key for key, theirs in turns.items() if key != name and len(theirs) > place]
            if context and others:
                other = turns[others[derive(seed, "in its place", name, place) % len(others)]][place][1]
                rows.append((clock.meaning(context, said).sense, clock.meaning(context, other).sense))
        if rows:
            sense[name] = rows
    if not sense:
        raise ScenarioError("no two human conversations have a supporter's turn at the same place: nothing to compare")
    read_as, alone = [], []
    for talk in talks:
        with_context, without = [], []
        for context, message in _labelled_messages(talk):
            moves = clock.meaning(context, message.content).moves
            with_context.append((message.strategy, _strategy(moves)))
            without.append((message.strategy, _strategy(read_alone(message.content))))
        read_as.append(with_context)
        alone.append(without)
    told(Progress(len(turns), len(turns), "human conversations"))
    if not any(read_as):
        raise ScenarioError("no human supporter's strategy is known, or none is one of ESConv's")
    return Human(
        replies=sum(map(len, sense.values())),
        sense=_sense(list(sense.values())),
        labelled=sum(map(len, read_as)),
        accuracy=_accuracy(read_as),
        macro_f1=_macro_f1(read_as),
        accuracy_alone=_accuracy(alone),
        macro_f1_alone=_macro_f1(alone),
    )


def _turns(talk: Scenario) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each turn of the supporter, and what was said before it."""
    merged = talk.dialogue.merged() if talk.dialogue else ()
    for place, message in enumerate(merged):
        if message.role == "supporter":
            yield tuple(each.content for each in merged[:place]), message.content


def _labelled_messages(talk: Scenario) -> Iterator[tuple[tuple[str, ...], Message]]:
    """Each message of the supporter with a strategy, and what was said up to the seeker's last before it."""
    messages = talk.dialogue.messages if talk.dialogue else ()
    for place, message in enumerate(messages):
        if message.role == "supporter" and message.strategy in STRATEGIES:
            before = list(Dialogue(messages[:place]).merged())
            while before and before[-1].role == "supporter":
                before.pop()
            yield tuple(each.content for each in before), message


def _sense(rows: Sequence[Sequence[tuple[float, float]]]) -> Estimate:
    """AUC of real turns against those in their place; conversations are resampled."""
    real, other = (np.array([row[side] for talk in rows for row in talk]) for side in (0, 1))
    owner = np.repeat(np.arange(len(rows)), [len(talk) for talk in rows])
    draw = np.random.default_rng(0)
    values = []
    for drawn in [None, *range(AUC_RESAMPLES)]:
        counts = np.ones(len(rows)) if drawn is None else draw.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
        value, _ = auc(real, other, (counts[owner], counts[owner]))
        assert value is not None  # there are turns on both sides
        values.append(value)
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return Estimate(values[0], (float(low), float(high)))


def _strategy(moves: Mapping[str, float]) -> str:
    """The likeliest strategy: the move's that is likeliest."""
    return ESCONV[max(MOVES, key=lambda move: moves[move])]


def _accuracy(talks: Sequence[Sequence[tuple[str | None, str]]]) -> Estimate:
    hits = [[float(wanted == found) for wanted, found in talk] for talk in talks]
    return Estimate(*mean_interval(hits, within=(0.0, 1.0)))


def _macro_f1(talks: Sequence[Sequence[tuple[str | None, str]]]) -> float:
    """The mean F1 of the strategies that occur, as wanted or as found."""
    pairs = [pair for talk in talks for pair in talk]
    scores = []
    for strategy in STRATEGIES:
        hits = sum(pair == (strategy, strategy) for pair in pairs)
        both = sum((wanted == strategy) + (found == strategy) for wanted, found in pairs)
        scores += [2 * hits / both] if both else []
    return sum(scores) / len(scores)

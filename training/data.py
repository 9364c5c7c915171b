"""What `esc collect` leaves behind, read back: samples of (context, response, futures), and a card that describes them.

D_r of RLFF-ESC (arXiv 2508.12935). A line of `candidates.jsonl` is one response with all its futures; every later
supporter turn in those futures is a sample too (a *tail label*), made when the file is read. Like conversations, it
names its scenario by id: `scenarios.jsonl` has it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env.dialogue import Dialogue, Message
from esc_env.errors import RecordError, one_of
from esc_env.evaluation.pages import markdown
from esc_env.fields import flag, integer, many, read, text
from esc_env.folder import RunFolder
from esc_env.protocols import Usage
from esc_env.rewards import Future, value
from esc_env.rewards.future import GAMMA
from esc_env.scenarios import Scenario

__all__ = [
    "BINS", "CANDIDATES", "CONVERSATIONS", "Sample", "card_markdown", "collection", "data_card", "read_candidates",
    "read_samples",
]  # fmt: skip

CONVERSATIONS, CANDIDATES = "conversations.jsonl", "candidates.jsonl"
"""The files of a collection that hold its conversations, and its responses with their futures."""

BINS = 8
"""Bars of a reward histogram over [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled response.

    Attributes:
        scenario: whom the context is held with.
        context: a dialogue that ends with the seeker.
        response: what the supporter said next.
        futures: what became of it; at least one.
        seed: of the episode.
        candidates: which of the m responses to the context it is, from 0; several if siblings said the same; none for
            a tail.
        tail: whether it is a later turn of a simulated future, not a response sampled for its context.
        split: `train` or `valid`; one side for a whole scenario.
        usage: what the response and its futures cost.
    """

    scenario: Scenario
    context: Dialogue
    response: Message
    futures: tuple[Future, ...]
    seed: int
    candidates: tuple[int, ...] = ()
    tail: bool = False
    split: str = "train"
    usage: Usage = field(default_factory=Usage)

    def reward(self, gamma: float = GAMMA) -> float:
        """R_fut, in [-1, 1]."""
        return value(self.futures, gamma)

    @property
    def solved(self) -> float:
        """The share of its futures that were solved: the soft label of the reward model."""
        return fmean(future.solved for future in self.futures)

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What makes two samples the same: scenario, episode, words of context and response."""
        return self.scenario.id, self.seed, self.context.transcript(), self.response.content

    def to_json(self) -> dict[str, Any]:
        """A JSON object, which names the scenario by its id, with the reward at the default γ."""
        return {
            "scenario": self.scenario.id,
            "context": self.context.to_json(),
            "response": self.response.to_json(),
            "candidates": list(self.candidates),
            "futures": [future.to_json() for future in self.futures],
            "reward": self.reward(),
            "solved": self.solved,
            "tail": self.tail,
            "seed": self.seed,
            "split": self.split,
            "usage": self.usage.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], scenario: Scenario) -> Sample:
        """Inverse of `to_json`, given the scenario that it names. Raises SpecError naming an unfit field."""
        return cls(
            scenario,
            read(data, "context", Dialogue.from_json),
            read(data, "response", Message.from_json),
            read(data, "futures", many(Future.from_json, 1)),
            read(data, "seed", integer()),
            read(data, "candidates", many(integer(0))),
            read(data, "tail", flag),
            read(data, "split", _side),
            read(data, "usage", Usage.from_json),
        )

    def tails(self) -> list[Sample]:
        """The later supporter turns of its futures, as samples."""
        start = self.context.then(self.response)
        return [
            Sample(self.scenario, start.then(*before), turn, (rest,), self.seed, tail=True, split=self.split)
            for future in self.futures
            for before, turn, rest in future.tails()
        ]


def _side(value: Any) -> str:
    one_of("split", value, ("train", "valid"))
    return text(value)


def collection(path: str | Path) -> RunFolder:
    """The folder of a collection."""
    return RunFolder(Path(path), "collection", (CONVERSATIONS, CANDIDATES))


def read_candidates(folder: str | Path) -> list[Sample]:
    """The responses of a collection as its file holds them, in the order of its lines.

    Raises:
        RecordError: a line that is no candidate, naming file and line.
    """
    return list(collection(folder).records(CANDIDATES, "candidate", Sample.from_json))


def read_samples(folder: str | Path, *, tails: bool = True) -> list[Sample]:
    """All samples of a collection, each (episode, context, response) once, in an order free of timing.

    A response that was met several times keeps all its futures. One that was sampled for its context keeps those
    alone: the futures of a tail had less time.

    Args:
        folder: where `esc collect` wrote.
        tails: whether later turns of the futures count too; False gives the paper's set.

    Raises:
        RecordError: there is no collection, or a line cannot be read.
    """
    candidates = read_candidates(folder)
    if not candidates:
        raise RecordError(f"{folder}: no collected data here. Type: esc collect --out {folder}")
    return merged([*candidates, *(tail for sample in candidates if tails for tail in sample.tails())])


def merged(samples: Iterable[Sample]) -> list[Sample]:
    """Samples with equal ones put together, sorted by scenario, episode, turn, candidate and words."""
    found: dict[tuple[str, int, str, str], Sample] = {}
    for sample in sorted(samples, key=lambda sample: (sample.tail, *_place(sample), _rollouts(sample))):
        first = found.setdefault(sample.key, sample)
        if first is not sample and first.tail == sample.tail:
            found[sample.key] = replace(
                first,
                futures=first.futures + sample.futures,
                candidates=first.candidates + sample.candidates,
                usage=first.usage + sample.usage,
            )
    return sorted(found.values(), key=_place)


def _place(sample: Sample) -> tuple[Any, ...]:
    return sample.scenario.id, sample.seed, len(sample.context), sample.context.transcript(), sample.response.content


def _rollouts(sample: Sample) -> tuple[Any, ...]:
    return tuple((future.horizon, future.rollout, future.votes) for future in sample.futures)


def data_card(
    samples: Sequence[Sample], *, usage: Usage | None = None, errors: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """What a collection holds, as JSON: counts, rewards by emotion and problem, share solved, cost.

    Args:
        samples: from `read_samples`.
        usage: of all model calls.
        errors: failures that left a response without a future, by message.
    """
    sampled = [sample for sample in samples if not sample.tail]
    return {
        "scenarios": len({sample.scenario.id for sample in samples}),
        "contexts": len({sample.key[:3] for sample in sampled}),
        "samples": len(samples),
        "candidates": len(sampled),
        "tails": len(samples) - len(sampled),
        "duplicates": sum(len(sample.candidates) - 1 for sample in sampled),
        "futures": sum(len(sample.futures) for sample in sampled),
        "split": dict(sorted(Counter(sample.split for sample in samples).items())),
        "persona": dict(sorted(Counter(sample.scenario.persona for sample in samples).items())),
        "all": _spread(samples),
        "candidates_only": _spread(sampled),
        "tails_only": _spread([sample for sample in samples if sample.tail]),
        "emotion": _spreads(samples, lambda sample: sample.scenario.emotion),
        "problem": _spreads(samples, lambda sample: sample.scenario.problem),
        "within_context": _within(sampled),
        "usage": (usage or Usage()).to_json(),
        "errors": dict(errors or {}),
    }


def _spread(samples: Sequence[Sample]) -> dict[str, Any]:
    """Count, share solved, mean reward and a histogram of rewards over [-1, 1]."""
    bars = [0] * BINS
    rewards = [sample.reward() for sample in samples]
    for reward in rewards:
        bars[min(BINS - 1, math.floor((reward + 1) / 2 * BINS))] += 1
    return {
        "samples": len(samples),
        "solved": round(fmean(sample.solved for sample in samples), 4) if samples else None,
        "reward": round(fmean(rewards), 4) if rewards else None,
        "histogram": bars,
    }


def _spreads(samples: Sequence[Sample], kind: Any) -> dict[str, Any]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[kind(sample) or "unknown"].append(sample)
    return {name: _spread(groups[name]) for name in sorted(groups)}


def _within(sampled: Sequence[Sample]) -> dict[str, Any]:
    """How often the responses to one context differ in what became of them: what a ranking can learn from."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for sample in sampled:
        groups[sample.key[:3]].append(sample.reward())
    several = [rewards for rewards in groups.values() if len(rewards) > 1]
    return {
        "contexts_with_several": len(several),
        "contexts_that_differ": sum(max(rewards) > min(rewards) for rewards in several),
    }


def card_markdown(card: Mapping[str, Any], name: str) -> str:
    """The card as Markdown."""
    cost = card["usage"]["cost"]
    lines = [
        f"# Data card: {name}",
        "",
        f"{card['samples']:,} samples (context, response, future) from {card['scenarios']:,} scenarios: "
        f"{card['candidates']:,} sampled responses to {card['contexts']:,} contexts, and {card['tails']:,} tail labels "
        f"(later turns of the same futures). {card['duplicates']:,} draws repeated a sibling.",
        "",
        f"Split by scenario: {', '.join(f'{side} {count:,}' for side, count in card['split'].items())}.",
        f"Cost: {card['usage']['requests']:,} requests, {card['usage']['prompt_tokens']:,} prompt and "
        f"{card['usage']['completion_tokens']:,} completion tokens, "
        f"{'unknown price' if cost is None else f'{cost:.2f} USD'}.",
        f"Of {card['within_context']['contexts_with_several']:,} contexts with several responses, "
        f"{card['within_context']['contexts_that_differ']:,} have rewards that differ.",
        "",
        "Rewards are R_fut in [-1, 1]; above 0.5 means solved. Unsolved tail labels had fewer turns left than T.",
        "",
    ]
    rows = {"all": card["all"], "sampled": card["candidates_only"], "tails": card["tails_only"]}
    rows |= {f"emotion: {key}": row for key, row in card["emotion"].items()}
    rows |= {f"problem: {key}": row for key, row in card["problem"].items()}
    cells = [
        (
            markdown.cell(title), f"{row['samples']:,}",
            *(("–", "–") if row["solved"] is None else (f"{row['solved']:.1%}", f"{row['reward']:+.3f}")),
            *(f"{bar:,}" for bar in row["histogram"]),
        )
        for title, row in rows.items()
    ]  # fmt: skip
    columns = ("", "samples", "solved", "mean reward", *(f"{-1 + 2 * place / BINS:+.2f} …" for place in range(BINS)))
    lines += markdown.table(columns, cells)
    if card["errors"]:
        lines += ["", "Responses without a future:", ""]
        lines += [f"- {count:,} × {message}" for message, count in card["errors"].items()]
    return "\n".join(lines) + "\n"

"""A seeker beside human seekers: in what a simulated person talks unlike the people it stands for.

Language models make an easy mode of a user: too cooperative, too uniform, without frustration or ambiguity (Zhou et
al., arXiv 2603.11245), and simulated seekers of support tell all too readily (Heo, Jin and Jo, arXiv 2601.07698). Each
part here is a number per conversation, read from English text by plain rules; two groups of conversations are compared
by the Kolmogorov–Smirnov distance of its distribution (SciPy), 0 for the same and 1 for no overlap. The index is
1 minus the mean distance. Two halves of the human conversations are compared in the same way, as many at a time: nobody
can be more like people than people are like each other.

The rules are ours and crude: they see words, not what is meant. They tell in what two groups differ, not who is ill
at ease. What a seeker says also depends on whom it talks with, so compare seekers before the same supporter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from esc_env.builtin.language import stem, tokens, understood
from esc_env.builtin.moves import weight
from esc_env.dialogue import Dialogue
from esc_env.errors import ScenarioError, SpecError
from esc_env.evaluation.judges.agreement import check_libraries
from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.runs.runner import read_run
from esc_env.scenarios import Scenario

__all__ = ["PARTS", "Part", "Realism", "compare_seekers"]

DRAWS = 40
"""Random draws of the groups that are compared; the index is their mean, its range 95 % of them."""
LEAST = 10
"""Conversations that each group must have. Ours."""
WINDOW = 25
"""Words of the moving window in which different ones are counted: what a few short messages hold. Ours."""
GRAM = 3
"""Words of the runs that conversations are looked through for, to see how alike they are. Ours."""

Said = Sequence[str]
"""A seeker's messages in one conversation, without the first, which in a simulation is the situation as written."""


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{words})\b", re.IGNORECASE)


_FRUSTRATED = _pattern(
    "useless|pointless|whatever|annoy(?:ed|ing)|frustrat(?:ed|ing)|fed up|sick of|doesn't (?:help|work)|not helping"
    "|won't (?:help|work)|you don't (?:understand|get it)|already tried|tried that|easier said|no use|waste of time"
    "|stop (?:saying|telling|asking)|leave me alone|what's the point"
)
_VAGUE = _pattern(
    "i don't know|idk|dunno|not sure|i guess|maybe|perhaps|kind of|kinda|sort of|sorta|somehow|something like that"
    "|hard to (?:say|explain)|i suppose|it depends|no idea"
)
_COMPLIANT = _pattern(
    "thanks?|thank you|thx|you're right|you are right|good (?:idea|point|advice)|great (?:idea|point|advice)"
    "|that makes sense|i(?:'ll| will) (?:try|do that|give it a try)|i appreciate"
)
_HELPER = _pattern(
    "as an ai|language model|how can i (?:help|assist|support)|i'm here (?:for you|to help|to listen|to support)"
    "|have you (?:tried|considered|thought about)|it sounds like you|you (?:should|could) (?:try|consider|talk)"
    "|i understand how you feel|your feelings are valid"
)
_BETTER = _pattern(
    "feel(?:ing)? (?:\\w+ ){0,2}(?:better|relieved|lighter|calmer|hopeful)|that (?:really )?help(?:s|ed)"
    "|(?:you've|you have) (?:really )?helped|(?:been|was) (?:very |so |really )?helpful|(?:a )?weight off"
)


def _words(said: Said) -> float:
    return fmean(len(message.split()) for message in said)


def _fresh(said: Said) -> list[int]:
    """How many words of this person's own story each message has that none before had."""
    known: set[str] = set()
    counts = []
    for message in said:
        told = {stem(word) for word in tokens(message) if word[0].isalnum() and weight(word) > 0.5}
        counts.append(len(told - known))
        known |= told
    return counts


def _disclosure(said: Said) -> float:
    return fmean(_fresh(said))


def _order(said: Said) -> float:
    """Where in the conversation the story is told, on average: 0 all at its beginning, 1 all at its end."""
    counts = _fresh(said)
    last = len(counts) - 1
    total = sum(counts)
    return sum(place * count for place, count in enumerate(counts)) / (total * last) if total and last else 0.5


def _variety(said: Said) -> float:
    words = [word for message in said for word in tokens(message) if word[0].isalnum()]
    windows = [words[start : start + WINDOW] for start in range(max(1, len(words) - WINDOW + 1))]
    return fmean(len(set(window)) / len(window) for window in windows) if words else 0.0


def _share(pattern: re.Pattern[str]) -> Callable[[Said], float]:
    return lambda said: fmean(bool(pattern.search(message.replace("’", "'"))) for message in said)


def _vague(said: Said) -> float:
    return fmean(len(message.split()) <= 3 or bool(_VAGUE.search(message.replace("’", "'"))) for message in said)


def _better(said: Said) -> float:
    """After which share of its messages it first says that it is better; 1 where it never does."""
    place = next((place for place, message in enumerate(said) if _BETTER.search(message.replace("’", "'"))), len(said))
    return place / len(said)


PARTS: Mapping[str, tuple[Callable[[Said], float], str]] = {
    "length": (_words, "words a message"),
    "disclosure": (_disclosure, "new words of its own story a message"),
    "order": (_order, "when it tells them, from 0 (at once) to 1 (at the end)"),
    "variety": (_variety, f"share of different words among {WINDOW} in a row"),
    "frustration": (_share(_FRUSTRATED), "share of messages with words of frustration or resistance"),
    "ambiguity": (_vague, "share of messages of at most three words, or with a hedge"),
    "compliance": (_share(_COMPLIANT), "share of messages that thank, agree or promise"),
    "role breaks": (_share(_HELPER), "share of messages in a helper's words"),
    "better": (_better, "share of its messages before it first says that it feels better; 1 for never"),
}
"""What is measured in a conversation. *Source:* the ideas of arXiv 2603.11245 and 2601.07698; the rules are ours."""

_ALIKE = "sameness"
_ALIKE_TOLD = f"share of its runs of {GRAM} words that another conversation of its group has too"


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        told: what is measured.
        simulated, human: means.
        distance: between simulated and human seekers, in [0, 1].
        baseline: between two halves of the human ones.
    """

    told: str
    simulated: float
    human: float
    distance: float
    baseline: float


@dataclass(frozen=True, slots=True)
class Realism:
    """A seeker beside human seekers.

    Attributes:
        seeker: its name.
        simulated, human: conversations there are; compared: how many of each at a time.
        turns: messages of each seeker that are looked at, at most.
        parts: by name.
        index: 1 minus the mean distance, in [0, 1], with the range of 95 % of the draws.
        baseline: the same of two groups of people.
    """

    seeker: str
    simulated: int
    human: int
    compared: int
    turns: int
    parts: Mapping[str, Part]
    index: tuple[float, tuple[float, float]]
    baseline: tuple[float, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the same names."""
        return asdict(self)


def compare_seekers(run: str | Path | Report, human: Iterable[Scenario], *, seed: int = 0) -> Realism:
    """Compare the seeker of a run with human seekers.

    Args:
        run: a run folder, or a report. Of each scenario the first trial counts, if it has an outcome: several
            conversations of one person are more alike than those of different people.
        human: scenarios with the human conversations.
        seed: of the draws.

    Raises:
        SpecError: what is said is not English.
        ScenarioError: too few conversations on either side.
        RecordError: the run cannot be read.
    """
    check_libraries()
    report = run if isinstance(run, Report) else read_run(run)
    seeker, turns = report.fingerprint.parts["seeker"], int(report.fingerprint.parts["max_turns"])
    ours = _messages([held.dialogue for held in report.trajectories if held.completed and not held.trial], turns)
    theirs = _messages([item.dialogue for item in human if item.dialogue], turns)
    compared = min(len(ours), len(theirs) // 2)
    if compared < LEAST:
        raise ScenarioError(
            f"{len(ours)} simulated and {len(theirs)} human conversations with two messages of a seeker or more; at "
            f"least {LEAST} and {2 * LEAST} are needed"
        )
    for who, group in (("the simulated", ours), ("the human", theirs)):
        if sum(understood(" ".join(said)) for said in group) < len(group):
            raise SpecError(f"{who} seekers do not all write in Latin letters; the rules here read English only")
    mine, people = _measured(ours), _measured(theirs)
    draw = np.random.default_rng(seed)
    distances: list[dict[str, float]] = []
    baselines: list[dict[str, float]] = []
    for _ in range(DRAWS):
        own = draw.permutation(len(ours))[:compared]
        mixed = draw.permutation(len(theirs))
        half, rest = mixed[:compared], mixed[compared : 2 * compared]
        sides = [_group(mine, ours, own), _group(people, theirs, half), _group(people, theirs, rest)]
        distances.append({name: _distance(sides[0][name], sides[1][name]) for name in sides[0]})
        baselines.append({name: _distance(sides[1][name], sides[2][name]) for name in sides[0]})
    everyone = [_group(measured, said, np.arange(len(said))) for measured, said in ((mine, ours), (people, theirs))]
    parts = {
        name: Part(
            PARTS[name][1] if name in PARTS else _ALIKE_TOLD,
            float(np.mean(everyone[0][name])),
            float(np.mean(everyone[1][name])),
            fmean(each[name] for each in distances),
            fmean(each[name] for each in baselines),
        )
        for name in distances[0]
    }
    name = str(seeker.get("name", "seeker"))
    if isinstance(model := seeker.get("model"), Mapping):
        name = "/".join(str(model[key]) for key in ("provider", "name") if key in model) or name
    return Realism(name, len(ours), len(theirs), compared, turns, parts, _index(distances), _index(baselines))


def _messages(dialogues: Iterable[Dialogue], turns: int) -> list[Said]:
    """What each seeker says after its first message, at most so many messages; only those with two or more."""
    said = [[each.content for each in dialogue.merged() if each.role == "seeker"] for dialogue in dialogues]
    spoken = [[message for message in messages[1 : turns + 1] if message.strip()] for messages in said]
    return [messages for messages in spoken if len(messages) > 1]


def _measured(group: Sequence[Said]) -> dict[str, Any]:
    return {name: np.array([measure(said) for said in group]) for name, (measure, _) in PARTS.items()}


def _group(measured: Mapping[str, Any], said: Sequence[Said], rows: Any) -> dict[str, Any]:
    """Every part of some conversations of a group; how alike they are depends on who else is there."""
    grams = [_grams(said[int(row)]) for row in rows]
    everywhere = Counter(gram for each in grams for gram in each)
    alike = [fmean(everywhere[gram] > 1 for gram in each) if each else 0.0 for each in grams]
    return {**{name: values[rows] for name, values in measured.items()}, _ALIKE: np.array(alike)}


def _grams(said: Said) -> set[tuple[str, ...]]:
    words = [[word for word in tokens(message) if word[0].isalnum()] for message in said]
    return {tuple(each[place : place + GRAM]) for each in words for place in range(len(each) - GRAM + 1)}


def _distance(one: Any, other: Any) -> float:
    from scipy import stats

    found: Any = stats.ks_2samp(one, other, method="asymp")
    return float(found.statistic)


def _index(draws: Sequence[Mapping[str, float]]) -> tuple[float, tuple[float, float]]:
    values = [1 - fmean(draw.values()) for draw in draws]
    low, high = np.quantile(values, (0.025, 0.975))
    return fmean(values), (float(low), float(high))

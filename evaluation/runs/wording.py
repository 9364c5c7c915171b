"""What supporters' replies look like, and how much they are like those of the person who really helped.

None of this says how good support is: a reply can be unlike the human one and help, or vary its words and harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env.builtin.language import sentences
from esc_env.builtin.moves import read
from esc_env.dialogue import Dialogue
from esc_env.errors import MissingExtra, SpecError, did_you_mean
from esc_env.trajectory import Trajectory

__all__ = ["TABLE", "Likeness", "Wording", "likeness", "replies"]


@dataclass(frozen=True, slots=True)
class Wording:
    """The wording of all replies of a supporter. Words are what white space divides; shares lie in [0, 1].

    Attributes:
        replies: how many there are.
        words: mean words a reply.
        distinct_1, distinct_2: share of words, and of pairs of words, that are not the same as another one.
            *Source:* Li et al., NAACL 2016.
        top_reply: share of the most frequent reply.
        repeated: share of replies that the same conversation had already had.
        questions: share of replies with a question mark.
        moves: share of sentences by what they do, as the builtin move classifier reads them (docs/simulator.md says how
            well: right on .42 of real ones).
    """

    replies: int
    words: float
    distinct_1: float
    distinct_2: float
    top_reply: float
    repeated: float
    questions: float
    moves: Mapping[str, float]

    @classmethod
    def of(cls, trajectories: Iterable[Trajectory]) -> Wording | None:
        """Count them; None if nothing was said."""
        spoken = [replies(item.dialogue, item.history) for item in trajectories]
        texts = [text for said in spoken for text in said]
        if not texts:
            return None
        done = Counter(_move(sentence) for text in texts for sentence in sentences(text))
        new = sum(len({tuple(text.split()) for text in said}) for said in spoken)
        words, pairs, same = Counter[str](), Counter[tuple[str, str]](), Counter[str]()
        for text in texts:
            split = text.split()
            words.update(split)
            pairs.update(pairwise(split))
            same[" ".join(split)] += 1
        return cls(
            replies=len(texts),
            words=words.total() / len(texts),
            distinct_1=_distinct(words),
            distinct_2=_distinct(pairs),
            top_reply=max(same.values()) / len(texts),
            repeated=1 - new / len(texts),
            questions=fmean("?" in text or "？" in text for text in texts),
            moves={name: count / done.total() for name, count in done.most_common()},
        )


TABLE: Mapping[str, Callable[[Wording], str]] = {
    "replies": lambda said: f"{said.replies:,}",
    "words": lambda said: f"{said.words:.1f}",
    "distinct-1": lambda said: f"{said.distinct_1:.3f}",
    "distinct-2": lambda said: f"{said.distinct_2:.3f}",
    "most frequent": lambda said: f"{100 * said.top_reply:.1f} %",
    "repeated": lambda said: f"{100 * said.repeated:.1f} %",
    "with a question": lambda said: f"{100 * said.questions:.1f} %",
}
"""What tables show of it, by the title of the column."""


def replies(dialogue: Dialogue, history: int = 0) -> list[str]:
    """What the supporter said after the first `history` messages."""
    return [message.content for message in dialogue.messages[history:] if message.role == "supporter"]


def _distinct(grams: Counter[Any]) -> float:
    return len(grams) / grams.total() if grams else 0.0


def _move(sentence: str) -> str:
    chances = read(sentence)
    return max(chances, key=chances.__getitem__)


@dataclass(frozen=True, slots=True)
class Likeness:
    """How much replies are like those of the human supporter in the same scenario.

    A conversation goes its own way after the first reply, so a reply is held against all that the human said there, and
    the most alike counts.

    Attributes:
        replies: how many could be compared.
        bleu: sacreBLEU of all replies together, in [0, 100].
        bleu_signature: how it was counted, for others to repeat.
        rouge_l: mean ROUGE-L F1 with stemming, in [0, 1].
        bertscore: mean BERTScore F1; None where no model was named for it.
    """

    replies: int
    bleu: float
    bleu_signature: str
    rouge_l: float
    bertscore: float | None = None


def likeness(
    trajectories: Iterable[Trajectory], people: Mapping[str, Dialogue | None], bert: str | None = None
) -> Likeness:
    """Compare replies with the human supporter's.

    Args:
        trajectories: whose replies.
        people: the human conversation of each scenario, by its id.
        bert: a model that BERTScore knows, such as `roberta-large`, which is downloaded, or a folder with it that is
            called so; None for none.

    Raises:
        MissingExtra: sacreBLEU, rouge-score or (for `bert`) bert-score is not installed.
        SpecError: no scenario has a human conversation, nothing was said, or there is no such `bert`.
    """
    pairs: list[tuple[str, list[str]]] = []
    for item in trajectories:
        human = people.get(item.scenario.id)
        if human and (known := replies(human)):
            pairs += [(text, known) for text in replies(item.dialogue, item.history) if text.strip()]
    if not pairs:
        raise SpecError(
            "there is no human conversation to compare with: of none of the run's scenarios has the file one. Name "
            "the set that the run was held with, if it has them: esconv:test"
        )
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise MissingExtra("sacrebleu" if "sacrebleu" in (error.name or "") else "rouge-score", "stats") from error
    said = [text for text, _ in pairs]
    most = max(len(known) for _, known in pairs)
    streams: Any = [[known[place] if place < len(known) else None for _, known in pairs] for place in range(most)]
    bleu = BLEU()
    score = bleu.corpus_score(said, streams)
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    return Likeness(
        len(pairs),
        score.score,
        str(bleu.get_signature()),
        fmean(rouge.score_multi(known, text)["rougeL"].fmeasure for text, known in pairs),
        _bertscore(pairs, bert) if bert else None,
    )


def _bertscore(pairs: list[tuple[str, list[str]]], model: str) -> float:
    try:
        scorer, layers = import_module("bert_score"), import_module("bert_score.utils").model2layers
    except ImportError as error:
        raise MissingExtra("bert-score", "bertscore") from error
    known = model if model in layers else next((name for name in layers if Path(name).name == Path(model).name), None)
    if known is None:
        raise SpecError(
            f"BERTScore knows no layer of {model!r} to compare by. Name a model of its table, or a folder that is "
            f"called as one is. {did_you_mean(model, layers)}"
        )
    said, people = [text for text, _ in pairs], [human for _, human in pairs]
    try:
        _, _, alike = scorer.score(said, people, model_type=model, num_layers=layers[known])
    except OSError as error:
        why = str(error).partition("\n")[0]
        raise SpecError(f"{model}: no model for BERTScore can be loaded ({why})") from error
    return float(alike.mean())

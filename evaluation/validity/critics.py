"""Does a critic's score say anything about real conversations? Replay human ones whose outcome is known.

The critic judges each whole conversation; the AUC is the chance that one that helped gets a higher score than one that
did not. Long conversations score higher for being long, so the length-matched AUC compares only pairs whose numbers of
supporter turns differ by at most one. *Source of the design:* protocol of the project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from esc_env.background import each, run
from esc_env.chairs.critics import CriticMode, resolve_critic
from esc_env.errors import RecordError, ScenarioError, SpecError
from esc_env.evaluation.runs.holding import check_models
from esc_env.evaluation.statistics.intervals import auc, auc_estimate
from esc_env.fields import number, read, text
from esc_env.folder import RunFolder
from esc_env.models import ModelOptions, ModelSettings
from esc_env.progress import Progress, Told
from esc_env.protocols import Critic
from esc_env.records import RecordWriter, read_records, write_json
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed, episode_seed

__all__ = ["Estimate", "Validity", "validate_critic"]

JUDGEMENTS = "judgements.jsonl"

TOLERANCE = 1
"""Supporter turns by which two conversations may differ and still count as equally long."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % bootstrap interval."""

    value: float
    interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"value": self.value, "interval": list(self.interval)}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


@dataclass(frozen=True, slots=True)
class Validity:
    """How well a critic tells conversations that helped from those that did not.

    Attributes:
        raw: AUC over all pairs, in [0, 1]; 0.5 is chance.
        matched: AUC over pairs of equal length.
        length: AUC of the number of supporter turns alone, for comparison.
        helped, failed: conversations of either kind.
        pairs: pairs of equal length.
    """

    raw: Estimate
    matched: Estimate
    length: Estimate
    helped: int
    failed: int
    pairs: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            **{
                name: {"auc": estimate.value, "interval": list(estimate.interval)}
                for name, estimate in (("raw", self.raw), ("length_matched", self.matched), ("length", self.length))
            },
            "helped": self.helped,
            "failed": self.failed,
            "pairs_of_equal_length": self.pairs,
        }


def validate_critic(
    critic: str | Critic | Callable[..., Any],
    helped: Sequence[Scenario],
    failed: Sequence[Scenario],
    *,
    seed: int = 0,
    out: Path | None = None,
    progress: Told | None = None,
    critic_mode: CriticMode = "votes",
    critic_temperature: float = 1.1,
    critic_options: Mapping[str, Any] | None = None,
    **models: Unpack[ModelOptions],
) -> Validity:
    """Judge human conversations with a known outcome, and say how well the scores tell them apart.

    Args:
        critic: as a string, an object or a callable.
        helped: scenarios with the human dialogues in which the supporter succeeded.
        failed: those in which the supporter did not.
        seed: of the votes.
        out: a folder that keeps every judgement; the same call goes on where it stopped.
        progress: called with a `Progress` before the first judgement and after each.
        critic_mode, critic_temperature, critic_options: of a critic that is a chat model; see `evaluate`.
        models: how chat models are called: the fields of `esc_env.models.ModelSettings`. `concurrency` is also how many
            conversations are judged at the same time.

    Raises:
        ScenarioError: a scenario has no dialogue, or one side is empty.
        RecordError: the folder cannot be used, or its judgements were begun elsewhere.
        ProtocolMismatch: it holds judgements of another critic or seed; the message names what differs.
        SpecError: the string names nothing, or the model is known not to take what it would be asked.
        ModelError: the critic's model does not answer; what was judged is kept in `out`.
    """
    settings = ModelSettings.of(models, validate_critic)
    judge = resolve_critic(critic, settings, mode=critic_mode, temperature=critic_temperature, options=critic_options)
    rules = Rules()
    sides = [("helped", item) for item in helped] + [("failed", item) for item in failed]
    for side, item in sides:
        if item.dialogue is None or not item.dialogue.turns:
            raise ScenarioError(f"scenario {item.id!r} ({side}): has no human dialogue with a supporter to judge")
    if not helped or not failed:
        raise ScenarioError("both kinds of conversation are needed: some that helped, some that did not")
    if len({item.id for _, item in sides}) < len(sides):
        raise ScenarioError("the two sides share a conversation, or one holds it twice; every id may stand once")

    scores: dict[str, float] = {}

    def work(keep: Callable[[str, float], None]) -> None:
        def tell() -> None:
            if progress:
                progress(Progress(len(scores), len(sides), "judgements"))

        async def judge_one(item: Scenario) -> None:
            assert item.dialogue is not None  # checked above
            name = Seed(episode_seed(seed, item.id, 0), role="critic", turn=item.dialogue.turns)
            verdict = rules.count(await judge.judge(item, item.dialogue, votes=rules.votes, seed=name))
            keep(item.id, verdict.score if verdict.expected is None else verdict.expected)
            tell()

        tell()
        if missing := [item for _, item in sides if item.id not in scores]:
            run(check_models(judge, votes=rules.votes))
            run(each(missing, judge_one, min(settings.concurrency, len(missing))))

    if out is None:
        work(scores.__setitem__)
    else:
        asked = {"critic": dict(judge.identity), "votes": rules.votes, "seed": seed}
        claimed = RunFolder(out, "set of judgements", (JUDGEMENTS,)).claim(asked)
        with claimed, RecordWriter(out / JUDGEMENTS, "judgement") as writer:
            for line, record in enumerate(read_records(out / JUDGEMENTS, "judgement"), 1):
                try:
                    scores[read(record, "scenario", text)] = read(record, "score", number(-1, 1))
                except SpecError as error:
                    raise RecordError(f"{out / JUDGEMENTS}:{line}: not a judgement ({error})") from error

            def keep(key: str, score: float) -> None:
                writer.write({"scenario": key, "score": score})
                scores[key] = score

            work(keep)

    good, poor = (np.array([scores[item.id] for item in items]) for items in (helped, failed))
    long, short = (
        np.array([0.0 + item.dialogue.turns for item in items if item.dialogue]) for items in (helped, failed)
    )
    every = (np.ones(len(helped)), np.ones(len(failed)))
    equal = [(long == turns, np.abs(short - turns) <= TOLERANCE) for turns in np.unique(long)]
    _, pairs = auc(long, short, *equal)
    if not pairs:
        raise ScenarioError("no two conversations of the two kinds are equally long; nothing can be length-matched")
    validity = Validity(
        raw=Estimate(*auc_estimate(good, poor, every)),
        matched=Estimate(*auc_estimate(good, poor, *equal)),
        length=Estimate(*auc_estimate(long, short, every)),
        helped=len(helped),
        failed=len(failed),
        pairs=int(pairs),
    )
    if out is not None:
        write_json(out / "validity.json", validity.to_json())
    return validity

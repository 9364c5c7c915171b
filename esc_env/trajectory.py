"""What a conversation leaves behind: who was talked with, what was said, what was judged, and why it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from esc_env.dialogue import Dialogue
from esc_env.errors import BudgetExceeded, SpecError, one_of
from esc_env.fields import integer, many, number, optional, read, text
from esc_env.protocols import Usage, Verdict
from esc_env.rules import Rules
from esc_env.scenarios import Scenario

__all__ = ["Failure", "StopReason", "Trajectory", "stop_if_spent"]


class StopReason(StrEnum):
    """Why a conversation ended."""

    SOLVED = "solved"
    """The critic's score passed the threshold."""
    MAX_TURNS = "max_turns"
    """T exchanges were done without that."""
    SUPPORTER_FAILED = "supporter_failed"
    """The supporter raised or returned no utterance: a failed conversation, its own doing."""
    ERROR = "error"
    """A seeker's, critic's or supporter's model call failed for good: no outcome, to be run again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a conversation that ended as `supporter_failed` or `error`.

    Whatever an exception says can be kept: what is no UTF-8 text in its message becomes question marks.
    """

    role: str
    kind: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", self.message.encode(errors="replace").decode())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Failure:
        """Of what `Trajectory.to_json` writes. Raises SpecError naming a field that makes no sense."""
        return cls(*(read(data, name, text) for name in ("role", "kind", "message")))


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One ended conversation.

    Attributes:
        scenario: whom it was held with.
        dialogue: all that was said, thoughts included.
        verdicts: one per exchange.
        stop_reason: why it ended.
        seed: the episode seed.
        trial: which repetition of the scenario.
        usage: model calls of all three chairs.
        failure: for `supporter_failed` and `error`.
        history: messages that stood before the first exchange (the opening, or a given history).
        seconds: wall time from its beginning to its end, waiting for models included; None where nobody looked.
    """

    scenario: Scenario
    dialogue: Dialogue
    verdicts: tuple[Verdict, ...]
    stop_reason: StopReason
    seed: int
    trial: int = 0
    usage: Usage = field(default_factory=Usage)
    failure: Failure | None = None
    history: int = 1
    seconds: float | None = field(default=None, compare=False)

    @property
    def solved(self) -> bool:
        """Whether the critic's score passed the threshold."""
        return self.stop_reason is StopReason.SOLVED

    @property
    def completed(self) -> bool:
        """Whether it has an outcome, good or bad."""
        return self.stop_reason is not StopReason.ERROR

    @property
    def spent(self) -> bool:
        """Whether it ended because the budget of the run is spent."""
        return self.failure is not None and self.failure.kind == BudgetExceeded.__name__

    @property
    def turns(self) -> int:
        """Exchanges done."""
        return len(self.verdicts)

    @property
    def final_score(self) -> float:
        """The last verdict's score; −1 when the supporter failed before any verdict."""
        return self.verdicts[-1].score if self.verdicts else -1.0

    def to_json(self) -> dict[str, Any]:
        """A JSON object, which names the scenario by its id; `seconds` is left out where they are unknown."""
        timed = {} if self.seconds is None else {"seconds": self.seconds}
        return {
            "scenario": self.scenario.id,
            "trial": self.trial,
            "seed": self.seed,
            "stop_reason": self.stop_reason.value,
            "history": self.history,
            "dialogue": self.dialogue.to_json(),
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "usage": self.usage.to_json(),
            "failure": asdict(self.failure) if self.failure else None,
            **timed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], scenario: Scenario) -> Trajectory:
        """Inverse of `to_json`, given the scenario that it names.

        Raises:
            SpecError: a field makes no sense, or two contradict each other; the message names them.
        """
        dialogue = read(data, "dialogue", Dialogue.from_json)
        verdicts = read(data, "verdicts", many(Verdict.from_json))
        reason = read(data, "stop_reason", text)
        one_of("stop_reason", reason, tuple(StopReason))
        if (reason == StopReason.SOLVED) != (bool(verdicts) and verdicts[-1].solved):
            raise SpecError(f"stop_reason is {reason!r}, which contradicts the last verdict")
        history = read(data, "history", integer(0, len(dialogue)))
        if len(dialogue) - history != 2 * len(verdicts):
            raise SpecError(f"dialogue has {len(dialogue) - history} messages for {len(verdicts)} exchanges")
        return cls(
            scenario=scenario,
            dialogue=dialogue,
            verdicts=verdicts,
            stop_reason=StopReason(reason),
            seed=read(data, "seed", integer()),
            trial=read(data, "trial", integer(0)),
            usage=read(data, "usage", Usage.from_json),
            failure=read(data, "failure", optional(Failure.from_json)),
            history=history,
            seconds=read(data, "seconds", optional(number(0)), None),
        )

    def check(self, rules: Rules) -> None:
        """Raise SpecError where it cannot have been held by these rules."""
        if self.turns > rules.max_turns or (self.stop_reason is StopReason.MAX_TURNS and self.turns < rules.max_turns):
            raise SpecError(f"verdicts: {self.turns} turns, and T is {rules.max_turns} ({self.stop_reason.value})")
        for place, verdict in enumerate(self.verdicts):
            if verdict.solved != (verdict.score > rules.threshold):
                raise SpecError(
                    f"verdicts[{place}].solved: {verdict.solved}, with a score of {verdict.score} and a threshold of "
                    f"{rules.threshold}"
                )


def stop_if_spent(held: Iterable[Trajectory]) -> None:
    """Raise BudgetExceeded, with what it said, if one of these conversations ended because the budget is spent."""
    for trajectory in held:
        if trajectory.spent and trajectory.failure:
            raise BudgetExceeded(trajectory.failure.message)

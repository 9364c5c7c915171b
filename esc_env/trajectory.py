"""What a conversation leaves behind: who was talked with, what was said, what was judged, and why it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from esc_env.dialogue import Dialogue
from esc_env.errors import BudgetExceeded
from esc_env.protocols import Usage, Verdict
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
        """A JSON object, which names the scenario by its id."""
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
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], scenario: Scenario) -> Trajectory:
        """Inverse of `to_json`, given the scenario that it names."""
        return cls(
            scenario=scenario,
            dialogue=Dialogue.from_json(data["dialogue"]),
            verdicts=tuple(Verdict.from_json(item) for item in data["verdicts"]),
            stop_reason=StopReason(data["stop_reason"]),
            seed=data["seed"],
            trial=data["trial"],
            usage=Usage.from_json(data["usage"]),
            failure=Failure(**data["failure"]) if data["failure"] else None,
            history=data["history"],
        )


def stop_if_spent(held: Iterable[Trajectory]) -> None:
    """Raise BudgetExceeded, with what it said, if one of these conversations ended because the budget is spent."""
    for trajectory in held:
        if trajectory.spent and trajectory.failure:
            raise BudgetExceeded(trajectory.failure.message)

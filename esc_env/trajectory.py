"""What a conversation leaves behind: who was talked with, what was said, what was judged, and why it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

from esc_env.dialogue import Dialogue
from esc_env.errors import BudgetExceeded, SpecError, one_of
from esc_env.fields import integer, many, optional, read, text
from esc_env.protocols import Usage, Verdict
from esc_env.rules import Rules
from esc_env.scenarios import Scenario

__all__ = ["Failure", "StopReason", "Trajectory", "stop_if_spent"]

_DUE: tuple[Literal["supporter", "seeker", "critic"], ...] = ("supporter", "seeker", "critic")
"""Who is asked, call by call, in a turn."""


class StopReason(StrEnum):
    """Why a conversation ended."""

    SOLVED = "solved"
    """The critic's score passed the threshold."""
    MAX_TURNS = "max_turns"
    """T turns were done without that."""
    SUPPORTER_FAILED = "supporter_failed"
    """The supporter raised or returned no utterance: a failed conversation, its own doing."""
    UNJUDGED = "unjudged"
    """It was held elsewhere, and no critic of ours has judged it."""
    ERROR = "error"
    """A seeker's, critic's or supporter's model call failed for good or was cut off: no outcome, goes on from there."""


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
    """One conversation that ended, or broke off.

    Attributes:
        scenario: whom it was held with.
        dialogue: all that was said, thoughts included; an `error` may end with what nobody has answered or judged.
        verdicts: one per turn.
        stop_reason: why it ended; `error` too while it goes on.
        seed: the episode seed.
        trial: which repetition of the scenario.
        usage: model calls of all three chairs, of all attempts.
        failure: for `supporter_failed` and `error`.
        history: messages that stood before the first turn (the opening, or a given history).
        attempts: 1, then one more every time it was gone on with after an `error`.
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
    attempts: int = 1

    @property
    def solved(self) -> bool:
        """Whether the critic's score passed the threshold."""
        return self.stop_reason is StopReason.SOLVED

    @property
    def completed(self) -> bool:
        """Whether it has an outcome, good or bad."""
        return self.stop_reason not in (StopReason.ERROR, StopReason.UNJUDGED)

    @property
    def spent(self) -> bool:
        """Whether it ended because the budget of the run is spent."""
        return not self.completed and self.failure is not None and self.failure.kind == BudgetExceeded.__name__

    @property
    def turns(self) -> int:
        """Exchanges done."""
        return len(self.verdicts)

    @property
    def due(self) -> Literal["supporter", "seeker", "critic"]:
        """Who is asked next if it goes on: where an `error` broke off."""
        if not self.dialogue.messages:
            return "seeker"
        return _DUE[self._open]

    @property
    def _open(self) -> int:
        """How many messages stand after the last whole turn."""
        return len(self.dialogue) - self.history - 2 * self.turns

    @property
    def final_score(self) -> float:
        """The last verdict's score; −1 when the supporter failed before any verdict."""
        return self.verdicts[-1].score if self.verdicts else -1.0

    def to_json(self) -> dict[str, Any]:
        """A JSON object, which names the scenario by its id; `attempts` is left out where there was one."""
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
            **({"attempts": self.attempts} if self.attempts > 1 else {}),
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
        made = cls(
            scenario=scenario,
            dialogue=dialogue,
            verdicts=verdicts,
            stop_reason=StopReason(reason),
            seed=read(data, "seed", integer()),
            trial=read(data, "trial", integer(0)),
            usage=read(data, "usage", Usage.from_json),
            failure=read(data, "failure", optional(Failure.from_json)),
            history=read(data, "history", integer(min(1, len(dialogue)), len(dialogue))),
            attempts=read(data, "attempts", integer(1), 1),
        )
        made._check_end()
        return made

    def _check_end(self) -> None:
        """Raise SpecError where what was said last, what failed and `stop_reason` contradict each other."""
        said = self.dialogue.messages[self.history :]
        ended = self.stop_reason is not StopReason.ERROR
        if not 0 <= self._open <= (0 if ended else 2):
            raise SpecError(f"dialogue has {len(said)} messages for {self.turns} turns ({self.stop_reason.value})")
        if any(message.role != _DUE[place % 2] for place, message in enumerate(said)):
            raise SpecError("dialogue: supporter and seeker do not take turns")
        role = self.failure.role if self.failure else None
        if ended:
            fits = role == ("supporter" if self.stop_reason is StopReason.SUPPORTER_FAILED else None)
        else:  # older releases kept nothing of a turn that broke off, whoever broke it
            fits = role == self.due or (role is not None and self._open == 0 < self.history)
        if not fits:
            told = f"which contradicts {self.stop_reason.value!r} and a dialogue that waits for the {self.due}"
            raise SpecError(f"failure is of {role or 'nobody'}, {told}")

    def check(self, rules: Rules) -> None:
        """Raise SpecError where it cannot have been held by these rules."""
        if self.stop_reason is StopReason.UNJUDGED:
            raise SpecError("stop_reason: 'unjudged' is of conversations that were held elsewhere")
        over, last = self.turns > rules.max_turns, self.turns == rules.max_turns
        if over or (last and self.failure) or (not last and self.stop_reason is StopReason.MAX_TURNS):
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

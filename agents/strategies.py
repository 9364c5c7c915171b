"""Words for a strategy, where a policy only chooses one of ESConv's eight: PPDPP's setting.

Whoever finds the words has a method `follow`: the builtin `PhraseBank`, a `ChatAgent`, a function, or an object of
yours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from esc_env.agents.scripted import skilled, wordings
from esc_env.agents.spec import resolve_agent
from esc_env.background import call
from esc_env.dialogue import STRATEGIES, Dialogue
from esc_env.errors import SpecError, did_you_mean
from esc_env.models import ModelSettings
from esc_env.protocols import Reply
from esc_env.seeds import Seed

__all__ = ["Follower", "PhraseBank", "resolve_follower"]


@runtime_checkable
class Follower(Protocol):
    """Says something by a strategy: a function of (strategy, dialogue, seed)."""

    async def follow(self, strategy: str, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The supporter's next utterance, by one of `STRATEGIES`. The dialogue ends with the seeker."""
        ...


_STAGES = ("explore", "deepen", "comfort", "coping", "suggest", "commit", "safety", "referral")
"""What the skilled supporter would do next, all that it may."""

_MOVES: Mapping[str, Mapping[str, str]] = {
    "Question": {
        **dict.fromkeys(_STAGES, "coping"), "explore": "explore", "deepen": "explore", "safety": "safety",
    },
    "Reflection of Feelings": dict.fromkeys(_STAGES, "deepen"),
    "Affirmation and Reassurance": dict.fromkeys(_STAGES, "comfort"),
    "Providing Suggestions": {**dict.fromkeys(_STAGES, "suggest"), "commit": "commit", "referral": "referral"},
}  # fmt: skip
"""Which of the skilled supporter's moves a strategy is at each stage: there are several questions and suggestions. For
the other strategies it has no words, and those of `random-strategy` are taken."""


@dataclass(frozen=True)
class PhraseBank:
    """Wordings per strategy, filled with what the seeker has said. Deterministic, without a model.

    Attributes:
        lines: wordings by strategy, all eight, with the slots {topic}, {detail} and {resource}. None for the builtin
            ones: those of the agent `builtin:skilled`, which it chooses by strategy and stage, and of
            `builtin:random-strategy` for strategies that the skilled agent never uses.

    Raises:
        SpecError: a strategy that there is none of, or one without wordings.
    """

    lines: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if self.lines is None:
            return
        for name in self.lines:
            if name not in STRATEGIES:
                raise SpecError(f"a phrase bank knows no strategy {name!r}. {did_you_mean(str(name), STRATEGIES)}")
        for name in STRATEGIES:
            said = self.lines.get(name)
            if isinstance(said, str) or not said or not all(isinstance(line, str) and line for line in said):
                raise SpecError(f"a phrase bank needs a list of wordings for {name!r}, not {said!r}")

    async def follow(self, strategy: str, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The next utterance: the wording changes from turn to turn, and with the episode."""
        said = skilled(dialogue.as_chat("supporter"), seed, lines=self._by_stage(strategy))
        return Reply(said, strategy=strategy)

    def _by_stage(self, strategy: str) -> Mapping[str, Sequence[str]]:
        if self.lines is not None:
            return dict.fromkeys(_STAGES, self.lines[strategy])
        if strategy in _MOVES:
            return {stage: wordings("skilled")[move] for stage, move in _MOVES[strategy].items()}
        return dict.fromkeys(_STAGES, wordings("random-strategy")[strategy])


@dataclass(frozen=True)
class _Function:
    """Somebody's `function(strategy, messages) -> str | Reply`, sync or async."""

    function: Callable[..., Any]

    async def follow(self, strategy: str, dialogue: Dialogue, *, seed: Seed) -> Reply:
        said = await call(self.function, strategy, dialogue.as_chat("supporter"))
        return Reply.parse(said, "a function that finds words for a strategy")


def resolve_follower(
    words: str | Mapping[str, Sequence[str]] | Follower | Callable[..., Any] | None = None,
    settings: ModelSettings | None = None,
    *,
    temperature: float = 0.0,
) -> Follower:
    """Who finds words for strategies.

    Args:
        words: None for the builtin `PhraseBank`; wordings by strategy; an object with an async `follow(strategy,
            dialogue, *, seed)`; a chat model as `resolve_agent` takes it (`openai/gpt-4o`, `local:PATH`, …), which is
            told the strategy; or `function(strategy, messages) -> str | Reply`, sync or async.
        settings, temperature: of a chat model.

    Raises:
        SpecError: it is none of these.
        MissingExtra: the packages that the model needs are not installed.
    """
    if words is None or isinstance(words, Mapping):
        return PhraseBank(words)
    agent = resolve_agent(words, settings, temperature=temperature) if isinstance(words, str) else words
    if callable(getattr(agent, "follow", None)):
        return cast(Follower, agent)
    if callable(agent):
        return _Function(agent)
    raise SpecError(
        f"{words!r} cannot be told a strategy: give a chat model, wordings by strategy, a function "
        "(strategy, messages) -> str, or an object with an async method follow(strategy, dialogue, *, seed)"
    )

"""The three roles, and what passes between them.

`Agent`, `Seeker` and `Critic` hold no conversation state: each is a function of what it is handed. So any dialogue can
be continued, forked, replayed or judged without copying objects. An agent sees the dialogue and a seed, never a
scenario.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from esc_env.dialogue import ChatMessage, Dialogue, split_thought
from esc_env.errors import SpecError
from esc_env.fields import flag, integer, many, number, optional, read, text
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed

__all__ = [
    "VOTES",
    "Agent",
    "Ballot",
    "ChatModel",
    "Completion",
    "Critic",
    "Reply",
    "Request",
    "RevealingSeeker",
    "Seeker",
    "Usage",
    "Verdict",
]

VOTES: Mapping[str, float] = {"worse": -1.0, "same": -0.5, "better": 0.5, "solved": 1.0}
"""The critic's four options and their values. *Source:* PPDPP (Deng et al., ICLR 2024), section 4.2 and its code."""

UNREAD = ("cut", "refused", "filtered", "empty", "prose")
"""Why a critic's answer is no vote; `prose`: it is complete, but it is not clear which option it chooses."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What model calls cost.

    Attributes:
        requests, prompt_tokens, completion_tokens: as counted by the servers.
        cost: in US dollars; None when the price of any call is unknown (never $0).
        models: the names that the servers gave of what answered, sorted: an alias that moves shows here.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    models: tuple[str, ...] = ()

    def __add__(self, other: Usage) -> Usage:
        cost = None if self.cost is None or other.cost is None else self.cost + other.cost
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            cost,
            self.models if self.models == other.models else tuple(sorted({*self.models, *other.models})),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `models` is left out where there are none."""
        data = {**asdict(self), "models": list(self.models)}
        return data if self.models else {name: value for name, value in data.items() if name != "models"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Usage:
        """Inverse of `to_json`. Raises SpecError naming a field that makes no sense."""
        counts = {name: read(data, name, integer(0)) for name in ("requests", "prompt_tokens", "completion_tokens")}
        return cls(**counts, cost=read(data, "cost", optional(number(0))), models=read(data, "models", many(text), ()))


@dataclass(frozen=True, slots=True)
class Reply:
    """One utterance of a supporter or a seeker.

    Attributes:
        content: what the other side hears; may be empty (silence).
        thought: private reasoning; reaches nobody.
        strategy: the strategy the speaker says it used, if any.
        usage: what it cost.
        finish_reason: as the model reported it (`stop`, `length`, `content_filter`), if a model wrote it.
    """

    content: str
    thought: str | None = None
    strategy: str | None = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None

    @classmethod
    def parse(cls, said: object, who: str = "a supporter") -> Reply:
        """A reply from raw text, in which a think block becomes the thought, or as it is.

        Raises:
            TypeError: `said`, by `who`, is neither a str nor a Reply.
        """
        if isinstance(said, Reply):
            return said
        if not isinstance(said, str):
            raise TypeError(f"{who} must return a str or a Reply, not {type(said).__name__}")
        thought, content = split_thought(said)
        return cls(content, thought)


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a critic returns: its votes on one turn. `Rules.count` makes a `Verdict` of them.

    Attributes:
        votes: values in [−1, 1] (`VOTES`, or any float of a custom critic); None for a vote that stayed unreadable.
        expected: the mean that the votes have in the long run, where the critic knows how likely each option is.
        usage: what it cost.
        unreadable: how many of the first answers, one per vote, could not be read, whether or not asking again helped.
        redrawn: for each of these its kind (`UNREAD`) and, where an option stands in it, the first one: `prose solved`.
    """

    votes: tuple[float | None, ...]
    expected: float | None = None
    usage: Usage = field(default_factory=Usage)
    unreadable: int = 0
    redrawn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The votes on one turn, counted: their mean, and whether it is above the threshold.

    Attributes:
        votes: the valid votes, each in [−1, 1].
        valid_votes: how many were valid.
        score: their mean, in [−1, 1].
        solved: whether the score passes the rules' threshold.
        expected: the mean that the votes have in the long run, where the critic knows how likely each option is.
        unreadable, redrawn: how many of the first answers could not be read, and of which kind; see `Ballot`.
    """

    votes: tuple[float, ...]
    valid_votes: int
    score: float
    solved: bool
    expected: float | None = None
    unreadable: int = 0
    redrawn: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `unreadable` and `redrawn` are left out where all answers could be read."""
        data = {**asdict(self), "votes": list(self.votes), "redrawn": list(self.redrawn)}
        return {name: value for name, value in data.items() if value or name not in ("unreadable", "redrawn")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """Inverse of `to_json`. Raises SpecError naming a field that makes no sense, or contradicts the votes."""
        votes = read(data, "votes", many(number(-1, 1), 1))
        score = read(data, "score", number(-1, 1))
        if not math.isclose(score, sum(votes) / len(votes), abs_tol=1e-9):
            raise SpecError(f"score is {score}, and the mean of its votes is {sum(votes) / len(votes)}")
        unreadable = read(data, "unreadable", integer(0), 0)
        redrawn: tuple[str, ...] = read(data, "redrawn", many(_redrawn), ())
        if redrawn and len(redrawn) != unreadable:
            raise SpecError(f"redrawn names {len(redrawn)} answers, and unreadable is {unreadable}")
        return cls(
            votes, read(data, "valid_votes", integer(len(votes), len(votes))), score, read(data, "solved", flag),
            read(data, "expected", optional(number(-1, 1)), None), unreadable, redrawn,
        )  # fmt: skip


def _redrawn(value: Any) -> str:
    fault = text(value)
    kind, _, option = fault.partition(" ")
    if kind not in UNREAD or (option and option not in VOTES):
        raise SpecError(f"must be one of {', '.join(UNREAD)}, and an option where one is named, not {fault!r}")
    return fault


@runtime_checkable
class Agent(Protocol):
    """A supporter policy: a function of (dialogue, seed)."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON-able: what tells this agent from another (name, model, decoding). Holds no key and no URL."""
        ...

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The next supporter utterance. The dialogue ends with the seeker."""
        ...


@runtime_checkable
class Seeker(Protocol):
    """A user simulator: a function of (scenario, dialogue, seed)."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON-able: part of the protocol fingerprint."""
        ...

    async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """What the seeker says next. An empty dialogue asks for an opening."""
        ...


@runtime_checkable
class RevealingSeeker(Seeker, Protocol):
    """A seeker with a hidden state that people may look at, for teaching and debugging; no supporter ever sees it."""

    def reveal(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Mapping[str, Any]:
        """Its state after this dialogue: names and values, as they are shown."""
        ...


@runtime_checkable
class Critic(Protocol):
    """A judge of relief: a function of (scenario, dialogue, seed)."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON-able: part of the protocol fingerprint."""
        ...

    async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Seed) -> Ballot:
        """`votes` votes on whether the seeker's distress is relieved now."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What a chat model is asked. Whoever hands it on changes it with `dataclasses.replace`.

    Attributes:
        messages: the chat; kept as a tuple of fresh dicts of role and content.
        n: choices, at least 1.
        temperature: 0 for the likeliest text.
        max_tokens: longest choice, thinking included; None for as long as the model likes.
        seed: of the sampling, in 64 bits; None for a fresh one.
        stop: strings that end a choice and are no part of it; kept as a tuple.
        logprobs: how many alternatives of the first token to return with their log-probabilities; None for none.
    """

    messages: Sequence[ChatMessage]
    n: int = 1
    temperature: float = 0.0
    max_tokens: int | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        chat = tuple(ChatMessage(role=message["role"], content=message["content"]) for message in self.messages)
        object.__setattr__(self, "messages", chat)
        object.__setattr__(self, "stop", tuple(self.stop))


@dataclass(frozen=True, slots=True)
class Completion:
    """What a chat model answered to one request for n choices.

    Attributes:
        texts: one per choice; None where the model returned no text.
        finish_reasons: in the same order.
        usage: what the request cost.
        model: the name the server reported, if any.
        logprobs: per choice, the first token's alternatives and their log-probabilities, where asked for.
        latency: seconds.
    """

    texts: tuple[str | None, ...]
    finish_reasons: tuple[str | None, ...] = ()
    usage: Usage = field(default_factory=Usage)
    model: str | None = None
    logprobs: tuple[Mapping[str, float], ...] | None = None
    latency: float = 0.0


@runtime_checkable
class ChatModel(Protocol):
    """Anything that completes a chat."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON-able: provider, model and decoding; no key, no URL."""
        ...

    async def complete(self, request: Request) -> Completion:
        """What the model answers. Raises a `ModelError` when it cannot."""
        ...

"""The future-oriented reward: what becomes of the conversation after this response?

From (context, response) the conversation is simulated onward, by the one engine of `esc_env.conversation`, until it is
solved or T turns are done, the one of the response included.

*Source:* RLFF-ESC (arXiv 2508.12935), stage 1.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from esc_env.background import hops
from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import Chairs, Gate, check_history, converse
from esc_env.dialogue import Dialogue, Message
from esc_env.errors import ChairError, ScenarioError, SpecError, whole
from esc_env.fields import flag, integer, many, number, read
from esc_env.protocols import Agent, Critic, Reply, Seeker, Usage
from esc_env.rewards.rows import Text, awaited, raw_text, read_column, scenario_of
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed, episode_seed
from esc_env.trajectory import Trajectory, stop_if_spent

__all__ = ["GAMMA", "Future", "FutureReward", "value"]

GAMMA = 0.95
"""Discount per later turn of a solved future. Ours; the paper gives none."""


@dataclass(frozen=True, slots=True)
class Future:
    """One simulated rollout of a response, part by part.

    Attributes:
        said: what was said after the response: seeker, supporter, seeker, …
        votes: the critic's valid votes after every turn, each in [-1, 1]; the first follows the response itself.
        solved: whether the last score passed the rules' threshold.
        horizon: turns it could have taken, at least `exchanges`.
        seed: of the episode.
        rollout: position among the futures of one response.
        usage: what it cost.
    """

    said: tuple[Message, ...]
    votes: tuple[tuple[float, ...], ...]
    solved: bool
    horizon: int
    seed: int = 0
    rollout: int = 0
    usage: Usage = field(default_factory=Usage)

    @property
    def exchanges(self) -> int:
        """How many there were, the one with the response included."""
        return len(self.votes)

    @property
    def score(self) -> float:
        """The final verdict's score, in [-1, 1]; -1 if the response was no utterance that could be judged."""
        return fmean(self.votes[-1]) if self.votes else -1.0

    def within(self, horizon: int) -> Future:
        """What of it had been seen after `horizon` turns, at least 1."""
        if self.exchanges <= horizon:
            return replace(self, horizon=min(self.horizon, horizon))
        return replace(
            self, said=self.said[: 2 * horizon - 1], votes=self.votes[:horizon], solved=False, horizon=horizon
        )

    def tails(self) -> Iterator[tuple[tuple[Message, ...], Message, Future]]:
        """Every later supporter turn as a sample of its own: (said before it, the turn, its future).

        Its horizon is what was left of this one: an unsolved tail had less time than T.
        """
        for place in range(1, len(self.said) - 1, 2):
            past = (place + 1) // 2
            rest = replace(
                self, said=self.said[place + 1 :], votes=self.votes[past:], horizon=self.horizon - past, usage=Usage()
            )
            yield self.said[:place], self.said[place], rest

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "said": [message.to_json() for message in self.said],
            "votes": [list(votes) for votes in self.votes],
            "score": self.score,
            "exchanges": self.exchanges,
            "solved": self.solved,
            "horizon": self.horizon,
            "seed": self.seed,
            "rollout": self.rollout,
            "usage": self.usage.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Future:
        """Inverse of `to_json`. Raises SpecError naming a field that makes no sense."""
        votes = read(data, "votes", many(many(number(-1, 1), 1)))
        return cls(
            read(data, "said", many(Message.from_json)),
            votes,
            read(data, "solved", flag),
            read(data, "horizon", integer(len(votes))),
            read(data, "seed", integer()),
            read(data, "rollout", integer(0)),
            read(data, "usage", Usage.from_json),
        )

    @classmethod
    def of(cls, trajectory: Trajectory, *, skip: int, horizon: int, rollout: int = 0) -> Future:
        """The future of the response that stands at message `skip - 1` of an ended conversation."""
        return cls(
            trajectory.dialogue.messages[skip:],
            tuple(verdict.votes for verdict in trajectory.verdicts),
            trajectory.solved,
            horizon,
            trajectory.seed,
            rollout,
            trajectory.usage,
        )


def value(futures: Sequence[Future], gamma: float = GAMMA) -> float:
    """R_fut of a response, in [-1, 1]: the mean over its futures.

    A solved future is worth 0.5 + 0.5 γ^k, k the turns after the response's own; an unsolved one its final score, at
    most 0.5. So every solved future outranks every unsolved one, and sooner outranks later.

    Args:
        futures: at least one.
        gamma: γ, in (0, 1].
    """
    return fmean(
        0.5 + 0.5 * gamma ** (future.exchanges - 1) if future.solved else min(0.5, future.score) for future in futures
    )


class FutureReward:
    """Simulates what becomes of a conversation after a response, and rewards the response for it.

    Args:
        agent: who goes on after the response: an Agent (see `esc_env.agents.resolve_agent`).
        seeker, critic: as strings, objects or callables.
        rules: T (counted from the response), threshold, votes.
        rollouts: K, futures per response, at least 1. *Source:* the paper: 1.
        gamma: γ, in (0, 1].
        seed: of the draws, where the data set has no column `seed`.
        concurrency: calls in flight at the same time, at least 1.

    Raises:
        SpecError: the agent is no Agent, or a number makes no sense.
    """

    def __init__(
        self,
        agent: Agent,
        seeker: str | Seeker | Callable[..., Any] = "builtin",
        critic: str | Critic | Callable[..., Any] = "builtin",
        rules: Rules | None = None,
        *,
        rollouts: int = 1,
        gamma: float = GAMMA,
        seed: int = 0,
        concurrency: int = 64,
    ) -> None:
        if not callable(getattr(agent, "respond", None)):
            raise SpecError(f"FutureReward needs an Agent, not {agent!r}. Type: FutureReward(resolve_agent({agent!r}))")
        whole(rollouts=rollouts, concurrency=concurrency)
        if not 0 < gamma <= 1:
            raise SpecError(f"gamma must lie in (0, 1], not {gamma}")
        self.agent = agent
        self.chairs = Chairs(resolve_seeker(seeker), resolve_critic(critic), rules or Rules())
        self.rollouts = rollouts
        self.gamma = gamma
        self.seed = seed
        self.concurrency = concurrency
        self.__name__ = "future"

    @hops
    async def simulate(
        self,
        scenario: Scenario,
        context: Dialogue,
        response: str | Reply,
        *,
        seed: int | Seed,
        rollouts: int | None = None,
        gate: Gate | None = None,
        told: Callable[[Trajectory], None] | None = None,
    ) -> tuple[Future, ...]:
        """K futures of a response, simulated at the same time. May be awaited on any event loop.

        Args:
            scenario: whom the context is held with.
            context: a dialogue that ends with the seeker.
            response: what the supporter says next; a think block in a str becomes the thought.
            seed: of the episode; a `Seed` also tells candidates apart.
            rollouts: K; None for that of this reward.
            gate: bounds calls in flight.
            told: called after every turn of every future.

        Raises:
            ChairError: a seeker's, critic's or supporter's model failed for good: the response has no future.
            BudgetExceeded: the budget of this process is spent.
            ScenarioError: the context does not end with the seeker.
        """
        check_history(context)
        name = seed if isinstance(seed, Seed) else Seed(seed)
        gate = gate or asyncio.Semaphore(self.concurrency)
        agent = _Begun(self.agent, Reply.parse(response), len(context))

        async def one(rollout: int) -> Future:
            named = name.at(rollout=name.rollout + rollout)
            trajectory = await converse(scenario, agent, self.chairs, seed=named, history=context, gate=gate, told=told)
            stop_if_spent([trajectory])
            if trajectory.failure and not trajectory.completed:
                raise ChairError(trajectory.failure.role, trajectory.failure.message)
            return Future.of(
                trajectory, skip=len(context) + 1, horizon=self.chairs.rules.max_turns, rollout=named.rollout
            )

        done = await asyncio.gather(
            *(one(rollout) for rollout in range(rollouts or self.rollouts)), return_exceptions=True
        )
        return tuple(_unwrapped(item) for item in done)

    @awaited
    @hops
    async def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        """One reward per completion, all simulated at the same time; None for a row whose simulation failed.

        Columns `scenario` and `context` (and `seed`, if there is one) are what `grpo_row` writes. Every rollout goes
        to the completions table as column `futures`, so that another γ can be computed without simulating again.
        """
        count = len(completions)
        scenarios = read_column(columns, "scenario", count)
        if scenarios is None:
            raise ScenarioError("the data set has no column 'scenario'. Make its rows with esc_env.rewards.grpo_row")
        contexts = read_column(columns, "context", count)
        seeds = read_column(columns, "seed", count)
        step = getattr(columns.get("trainer_state"), "global_step", 0)
        gate = asyncio.Semaphore(self.concurrency)
        siblings: Counter[str] = Counter()
        names, people, pasts = [], [], []
        for row in range(count):
            people.append(scenario_of(scenarios[row]))
            pasts.append(Dialogue.from_json(contexts[row]) if contexts is not None else _dialogue(prompts[row]))
            episode = seeds[row] if seeds is not None else episode_seed(self.seed, people[row].id, 0)
            key = f"{people[row].id}\n{pasts[row].transcript()}"
            siblings[key] += 1
            names.append(Seed(episode, candidate=siblings[key], rollout=step * self.rollouts))
        outcomes = await asyncio.gather(
            *(
                self.simulate(people[row], pasts[row], raw_text(completions[row]), seed=names[row], gate=gate)
                for row in range(count)
            ),
            return_exceptions=True,
        )
        futures = [_unwrapped(outcome, spare=ChairError) for outcome in outcomes]
        self._log(futures, columns)
        return [None if parts is None else value(parts, self.gamma) for parts in futures]

    def _log(self, futures: Sequence[tuple[Future, ...] | None], columns: Mapping[str, Any]) -> None:
        flat = [future for parts in futures if parts for future in parts]
        if (log_metric := columns.get("log_metric")) and flat:
            log_metric("future/solved", fmean(future.solved for future in flat))
            log_metric("future/exchanges", fmean(future.exchanges for future in flat))
            log_metric("future/score", fmean(future.score for future in flat))
        if log_extra := columns.get("log_extra"):
            log_extra("futures", [json.dumps([part.to_json() for part in parts or ()]) for parts in futures])


@dataclass(frozen=True)
class _Begun:
    """An agent whose next utterance is already made."""

    agent: Agent
    first: Reply
    length: int

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.agent.identity

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        if len(dialogue) == self.length:
            return self.first
        return await self.agent.respond(dialogue, seed=seed)


def _unwrapped(outcome: Any, spare: type[Exception] | tuple[()] = ()) -> Any:
    """An outcome of `gather`: raised if it is an exception, None if it is one of those to spare."""
    if isinstance(outcome, spare):
        return None
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _dialogue(prompt: Text) -> Dialogue:
    """The dialogue that a conversational prompt holds, without its system message."""
    if isinstance(prompt, str):
        raise ScenarioError("the data set has no column 'context'. Make its rows with esc_env.rewards.grpo_row")
    return Dialogue(
        tuple(
            Message("supporter" if message["role"] == "assistant" else "seeker", message["content"])
            for message in prompt
            if message["role"] in ("user", "assistant")
        )
    )

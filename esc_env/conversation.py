"""The heart: an immutable dialogue goes round a loop of three voices.

    opening ──► supporter ──► seeker ──► critic ──┐
                    ▲                             │ solved, or T exchanges done?
                    └─────────── no ◄─────────────┘

`begin` opens, `exchange` goes round once, `converse` goes round until it ends. The env, the vector env and the
evaluation are all built on these three. *Source:* RLFF-ESC (arXiv 2508.12935); protocol after PPDPP (ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from esc_env.background import hops
from esc_env.dialogue import Dialogue, Message
from esc_env.errors import ChairError, ESCError, ModelError, ScenarioError, SpecError, SupporterFailure
from esc_env.protocols import Agent, Critic, Reply, Seeker, Usage, Verdict
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed
from esc_env.trajectory import Failure, StopReason, Trajectory

__all__ = ["Chairs", "Exchange", "as_message", "begin", "check_history", "converse", "exchange"]


@dataclass(frozen=True, slots=True)
class Chairs:
    """Who sits opposite the supporter, under which rules."""

    seeker: Seeker
    critic: Critic
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One round: the dialogue after it, the verdict on it, and why the conversation ended, if it did."""

    dialogue: Dialogue
    verdict: Verdict
    stop: StopReason | None
    usage: Usage


Gate = AbstractAsyncContextManager[Any]
"""Bounds how many chair calls are in flight: a semaphore, say."""

_OPEN: Gate = nullcontext()


async def begin(scenario: Scenario, chairs: Chairs, *, seed: Seed, gate: Gate = _OPEN) -> tuple[Dialogue, Usage]:
    """The opening: the situation verbatim, or the seeker's own words. Raises ChairError if the seeker fails."""
    if chairs.rules.opening == "situation":
        return Dialogue((Message("seeker", scenario.situation),)), Usage()
    reply = await _seeker_speaks(scenario, Dialogue(), chairs, seed, gate)
    return Dialogue((Message("seeker", reply.content),)), reply.usage


async def exchange(
    scenario: Scenario, dialogue: Dialogue, reply: Reply, chairs: Chairs, *, turn: int, seed: Seed, gate: Gate = _OPEN
) -> Exchange:
    """Once round the loop: the supporter's `reply` is heard, the seeker answers, the critic judges.

    Args:
        scenario: whom the conversation is held with.
        dialogue: all that was said before.
        reply: the supporter's utterance.
        chairs: seeker, critic and rules.
        turn: 1 for the first exchange.
        seed: of the episode; calls are named after it.
        gate: bounds calls in flight.

    Raises:
        ChairError: when seeker or critic fail; nothing has changed, the same call may be made again.
    """
    seed = seed.at(turn=turn)
    heard = dialogue.then(as_message(reply))
    answer = await _seeker_speaks(scenario, heard, chairs, seed, gate)
    after = heard.then(Message("seeker", answer.content))
    try:
        async with gate:
            ballot = await chairs.critic.judge(scenario, after, votes=chairs.rules.votes, seed=seed.at(role="critic"))
        verdict = chairs.rules.count(ballot)
    except Exception as error:  # whatever a critic raises leaves the conversation without an outcome
        raise ChairError("critic", _said(error)) from error
    stop = StopReason.SOLVED if verdict.solved else StopReason.MAX_TURNS if turn >= chairs.rules.max_turns else None
    return Exchange(after, verdict, stop, reply.usage + answer.usage + ballot.usage)


@hops
async def converse(
    scenario: Scenario,
    agent: Agent,
    chairs: Chairs,
    *,
    seed: int | Seed,
    trial: int = 0,
    history: Dialogue | None = None,
    gate: Gate = _OPEN,
    told: Callable[[Exchange], None] | None = None,
) -> Trajectory:
    """Hold one whole conversation. May be awaited on any event loop.

    Args:
        scenario: whom to talk with.
        agent: the supporter.
        chairs: seeker, critic and rules.
        seed: the episode seed, or a Seed that also names candidate and rollout.
        trial: recorded in the trajectory.
        history: a dialogue to continue instead of opening one; it must end with the seeker. T counts from here.
        gate: bounds calls in flight.
        told: called after every exchange, on esc-env's own event loop.

    Returns:
        The trajectory. Chairs that fail end it as `error`; a supporter that fails ends it as `supporter_failed`.

    Raises:
        ScenarioError: when `history` does not end with the seeker.
    """
    name = seed if isinstance(seed, Seed) else Seed(seed)
    usage = Usage()
    verdicts: list[Verdict] = []
    dialogue = Dialogue()
    start = 0
    stop: StopReason | None = None
    failure: Failure | None = None
    try:
        if history is None:
            dialogue, usage = await begin(scenario, chairs, seed=name, gate=gate)
        else:
            dialogue = check_history(history)
        start = len(dialogue)
        while stop is None:
            turn = len(verdicts) + 1
            reply = await _supporter_speaks(agent, dialogue, chairs.rules, name.at(turn=turn), gate)
            done = await exchange(scenario, dialogue, reply, chairs, turn=turn, seed=name, gate=gate)
            dialogue, stop = done.dialogue, done.stop
            verdicts.append(done.verdict)
            usage += done.usage
            if told:
                told(done)
    except SupporterFailure as error:
        stop = StopReason.SUPPORTER_FAILED
        failure = Failure("supporter", type(error.__cause__ or error).__name__, str(error))
    except ChairError as error:
        stop = StopReason.ERROR
        failure = Failure(error.role, type(error.__cause__ or error).__name__, error.message)
    return Trajectory(scenario, dialogue, tuple(verdicts), stop, name.episode, trial, usage, failure, start)


def as_message(reply: Reply) -> Message:
    """What a supporter's reply is in a dialogue. Raises SpecError where it is no UTF-8 text."""
    return Message("supporter", reply.content, reply.strategy, reply.thought, reply.finish_reason)


def check_history(history: Dialogue) -> Dialogue:
    """The history, if it ends with the seeker. Raises ScenarioError otherwise."""
    if not history.messages or history.messages[-1].role != "seeker":
        raise ScenarioError("a history must end with a message of the seeker, whom the supporter then answers")
    return history


async def _supporter_speaks(agent: Agent, dialogue: Dialogue, rules: Rules, seed: Seed, gate: Gate) -> Reply:
    try:
        async with gate:
            reply = await agent.respond(dialogue, seed=seed.at(role="supporter"))
    except ModelError as error:
        raise ChairError("supporter", str(error)) from error
    except Exception as error:  # whatever an agent raises is the agent's failure, not ours
        raise SupporterFailure(f"turn {seed.turn}: the agent raised {type(error).__name__}: {error}") from error
    if not isinstance(reply, Reply) or not isinstance(reply.content, str):
        raise SupporterFailure(f"turn {seed.turn}: the agent returned {type(reply).__name__}, not a Reply")
    if len(reply.content) > rules.max_chars:
        raise SupporterFailure(
            f"turn {seed.turn}: the reply has {len(reply.content):,} characters, more than {rules.max_chars:,}"
        )
    try:
        as_message(reply)
    except SpecError as error:
        raise SupporterFailure(f"turn {seed.turn}: {error}") from error
    return reply


async def _seeker_speaks(scenario: Scenario, dialogue: Dialogue, chairs: Chairs, seed: Seed, gate: Gate) -> Reply:
    try:
        async with gate:
            reply = await chairs.seeker.reply(scenario, dialogue, seed=seed.at(role="seeker"))
        Message("seeker", reply.content)
    except Exception as error:  # whatever a seeker raises leaves the conversation without an outcome
        raise ChairError("seeker", _said(error)) from error
    return reply


def _said(error: Exception) -> str:
    """The message of an error of ours; the type too of anybody else's."""
    return str(error) if isinstance(error, ESCError) else f"{type(error).__name__}: {error}"

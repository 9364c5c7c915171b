"""The loop that every conversation goes round: the supporter speaks, the seeker answers, the critic judges.

    opening ──► supporter ──► seeker ──► critic ──┐
                    ▲                             │ solved, or T turns done?
                    └─────────── no ◄─────────────┘

`begin` opens, `exchange` goes round once, `converse` goes round until it ends, or on from where it broke off. The env,
the vector env and the evaluation are all built on these three. *Source:* RLFF-ESC (arXiv 2508.12935); protocol after
PPDPP (ICLR 2024).
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from esc_env.background import hops
from esc_env.dialogue import Dialogue, Message
from esc_env.errors import ChairError, ESCError, ModelError, ScenarioError, SpecError, SupporterFailure
from esc_env.protocols import Agent, Critic, Reply, Seeker, Usage, Verdict
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.secrets import struck
from esc_env.seeds import Seed
from esc_env.trajectory import Failure, StopReason, Trajectory

__all__ = ["Chairs", "Exchange", "as_message", "begin", "check_history", "converse", "exchange"]


@dataclass(frozen=True, slots=True)
class Chairs:
    """Who the supporter talks with and is judged by, under which rules."""

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
"""Bounds how many calls of supporters, seekers and critics are under way at once: a semaphore, say."""

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
        turn: 1 for the first one.
        seed: of the episode; calls are named after it.
        gate: bounds calls in flight.

    Raises:
        ChairError: when seeker or critic fail; nothing has changed, the same call may be made again.
    """
    seed = seed.at(turn=turn)
    heard = dialogue.then(as_message(reply))
    answer = await _seeker_speaks(scenario, heard, chairs, seed, gate)
    after = heard.then(Message("seeker", answer.content))
    verdict, usage = await _critic_judges(scenario, after, chairs, seed, gate)
    return Exchange(after, verdict, _stop(verdict, turn, chairs.rules), reply.usage + answer.usage + usage)


@hops
async def converse(
    scenario: Scenario,
    agent: Agent,
    chairs: Chairs,
    *,
    seed: int | Seed,
    trial: int = 0,
    history: Dialogue | None = None,
    after: Trajectory | None = None,
    gate: Gate = _OPEN,
    told: Callable[[Trajectory], None] | None = None,
    cut: Callable[[Trajectory], None] | None = None,
) -> Trajectory:
    """Hold one whole conversation. May be awaited on any event loop.

    Args:
        scenario: whom to talk with.
        agent: the supporter.
        chairs: seeker, critic and rules.
        seed: the episode seed, or a Seed that also names candidate and rollout.
        trial: recorded in the trajectory.
        history: a dialogue to continue instead of opening one; it must end with the seeker. T counts from here.
        after: what came of it before, an `error`, to go on with: the very call that broke is made again, under the
            same seed, and nothing that was said or judged is asked for again.
        gate: bounds calls in flight.
        told: called after every turn with the conversation so far, on esc-env's own event loop.
        cut: called with the conversation so far if it is cut off: cancelled, above all.

    Returns:
        The trajectory. Chairs that fail end it as `error`; a supporter that fails ends it as `supporter_failed`.

    Raises:
        ScenarioError: when `history` does not end with the seeker, or `after` is no `error` of this very conversation.
    """
    name = seed if isinstance(seed, Seed) else Seed(seed)
    past = Dialogue() if history is None else check_history(history)
    talk = Trajectory(scenario, past, (), StopReason.ERROR, name.episode, trial, history=len(past))
    if after is not None:
        same = (after.scenario, after.seed, after.trial) == (scenario, name.episode, trial)
        if after.completed or not same or history is not None:
            raise ScenarioError(
                f"{scenario.id!r}, trial {trial}: only an error of this conversation can be gone on with"
            )
        talk = replace(after, failure=None, attempts=after.attempts + 1)
    try:
        while not talk.completed:
            turns, talk = talk.turns, await _go_on(talk, agent, chairs, name, gate)
            if told and talk.turns > turns:
                told(talk)
    except SupporterFailure as error:
        failure = Failure("supporter", type(error.__cause__ or error).__name__, str(error))
        return replace(talk, stop_reason=StopReason.SUPPORTER_FAILED, failure=failure)
    except ChairError as error:
        return replace(talk, failure=Failure(error.role, type(error.__cause__ or error).__name__, error.message))
    except BaseException:  # cancelled, interrupted: whatever it is goes on, once what was said is kept
        if cut:
            cut(talk)
        raise
    return talk


async def _go_on(talk: Trajectory, agent: Agent, chairs: Chairs, name: Seed, gate: Gate) -> Trajectory:
    """The conversation after one more call, of whoever is due."""
    scenario, dialogue, seed = talk.scenario, talk.dialogue, name.at(turn=talk.turns + 1)
    if not dialogue.messages:
        dialogue, usage = await begin(scenario, chairs, seed=name, gate=gate)
        opened = Dialogue(tuple(map(_kept, dialogue.messages)))
        return replace(talk, dialogue=opened, usage=talk.usage + usage, history=len(dialogue))
    if talk.due == "critic":
        verdict, usage = await _critic_judges(scenario, dialogue, chairs, seed, gate)
        stop = _stop(verdict, seed.turn, chairs.rules) or talk.stop_reason
        return replace(talk, verdicts=(*talk.verdicts, verdict), stop_reason=stop, usage=talk.usage + usage)
    if talk.due == "supporter":
        reply = await _supporter_speaks(agent, dialogue, chairs.rules, seed, gate)
        said = as_message(reply)
    else:
        reply = await _seeker_speaks(scenario, dialogue, chairs, seed, gate)
        said = Message("seeker", reply.content)
    return replace(talk, dialogue=dialogue.then(_kept(said)), usage=talk.usage + reply.usage)


def _kept(message: Message) -> Message:
    """A message without keys, as it will be kept: what the others hear is what can be read later."""
    content, thought = struck((message.content, message.thought))
    return replace(message, content=content, thought=thought)


def _stop(verdict: Verdict, turn: int, rules: Rules) -> StopReason | None:
    return StopReason.SOLVED if verdict.solved else StopReason.MAX_TURNS if turn >= rules.max_turns else None


def as_message(reply: Reply) -> Message:
    """What a supporter's reply is in a dialogue. Raises SpecError where it is no UTF-8 text."""
    return Message("supporter", reply.content, reply.strategy, reply.thought, reply.finish_reason)


def check_history(history: Dialogue) -> Dialogue:
    """The history, if it ends with the seeker. Raises ScenarioError otherwise."""
    if not history.messages or history.messages[-1].role != "seeker":
        raise ScenarioError("a history must end with a message of the seeker, whom the supporter then answers")
    return history


async def _supporter_speaks(agent: Agent, dialogue: Dialogue, rules: Rules, seed: Seed, gate: Gate) -> Reply:
    async with _asked("supporter", seed, gate) as named:
        reply = await agent.respond(dialogue, seed=named)
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
    async with _asked("seeker", seed, gate) as named:
        reply = await chairs.seeker.reply(scenario, dialogue, seed=named)
        Message("seeker", reply.content)
    return reply


async def _critic_judges(
    scenario: Scenario, dialogue: Dialogue, chairs: Chairs, seed: Seed, gate: Gate
) -> tuple[Verdict, Usage]:
    async with _asked("critic", seed, gate) as named:
        ballot = await chairs.critic.judge(scenario, dialogue, votes=chairs.rules.votes, seed=named)
        return chairs.rules.count(ballot), ballot.usage


@asynccontextmanager
async def _asked(role: str, seed: Seed, gate: Gate) -> AsyncIterator[Seed]:
    """Whatever a chair raises, of whatever class, is the failure of that chair.

    A seeker's or critic's leaves the conversation without an outcome, and so does a model that a supporter asked and
    that we opened. All else that a supporter raises has failed the conversation.
    """
    try:
        async with gate:
            yield seed.at(role=role)
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, GeneratorExit) or (isinstance(error, CancelledError) and task and task.cancelling()):
            raise  # it did not raise: it was cut off
        name = type(error).__name__
        if role == "supporter" and not (isinstance(error, ModelError) and error.infrastructure):
            raise SupporterFailure(f"turn {seed.turn}: the agent raised {name}: {error}") from error
        raise ChairError(role, str(error) if isinstance(error, ESCError) else f"{name}: {error}") from error

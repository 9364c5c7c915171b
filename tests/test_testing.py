"""The public fakes, and the contract suites: they pass good parts and name what is wrong with bad ones."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest
from conftest import bank

from esc_env import Ballot, Dialogue, Message, Reply, Request, Seed
from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.dialogue import ChatMessage
from esc_env.errors import ModelUnavailable, SpecError
from esc_env.scenarios import PERSONAS
from esc_env.testing import (
    FakeChatModel,
    Faulty,
    ScriptedAgent,
    ScriptedCritic,
    ScriptedSeeker,
    check_agent,
    check_chat_model,
    check_critic,
    check_seeker,
)

CHAT: Any = [{"role": "user", "content": "I feel low."}]


@pytest.mark.parametrize("persona", PERSONAS)
@pytest.mark.parametrize("name", ["builtin", "builtin:reader"])
def test_the_builtin_chairs_keep_their_contracts(name, persona):
    person = bank(1)[0].with_persona(persona)
    check_seeker(resolve_seeker(name), person)
    check_critic(resolve_critic(name), person)


@pytest.mark.parametrize("seeker", [ScriptedSeeker(["Yes.", "No."]), lambda scenario, dialogue: scenario.situation])
def test_scripted_and_callable_seekers_keep_the_contract(seeker):
    check_seeker(resolve_seeker(seeker))


@pytest.mark.parametrize("critic", [ScriptedCritic(["same", 0.25, "solved"]), lambda scenario, dialogue: "better"])
def test_scripted_and_callable_critics_keep_the_contract(critic):
    check_critic(resolve_critic(critic))


def test_scripted_agents_keep_the_contract():
    check_agent(ScriptedAgent(["<think>hm</think>What happened?", "I see."]))


def test_a_request_stays_what_it_was_when_it_was_made():
    chat: list[ChatMessage] = [{"role": "user", "content": "Hello"}]
    stop = ["x"]
    request = Request(chat, stop=stop)
    chat[0]["content"] = "Bye"
    chat.append({"role": "assistant", "content": "So soon?"})
    stop.clear()
    assert request == Request(({"role": "user", "content": "Hello"},), stop=("x",))
    assert replace(request, seed=7).messages == request.messages


def test_fake_models_keep_the_contract():
    check_chat_model(FakeChatModel())
    check_chat_model(FakeChatModel(["a", None, "b"], max_choices=1))


class Part:
    identity = {"name": "part"}  # noqa: RUF012
    deterministic = True

    def __init__(self, answer):
        self.answer = answer
        self.said = itertools.count()

    async def respond(self, dialogue, *, seed):
        return self.answer(next(self.said), dialogue)

    async def reply(self, scenario, dialogue, *, seed):
        return self.answer(next(self.said), dialogue)

    async def judge(self, scenario, dialogue, *, votes, seed):
        return self.answer(next(self.said), votes)


@pytest.mark.parametrize(
    ("check", "answer", "complaint"),
    [
        (check_agent, lambda count, dialogue: "hello", "must return a Reply"),
        (check_agent, lambda count, dialogue: Reply(f"message {count}"), "holds state"),
        (check_agent, lambda count, dialogue: Reply("\ud800"), "no utterance"),
        (check_agent, lambda count, dialogue: Reply(repr(dialogue)), "thoughts"),
        (check_seeker, lambda count, dialogue: Reply(""), "silence"),
        (check_seeker, lambda count, dialogue: Reply(f"hi {count}"), "holds state"),
        (check_critic, lambda count, votes: Ballot((0.5,) * 20), "returned 20"),
        (check_critic, lambda count, votes: Ballot((7.0,)), "cannot be counted"),
        (check_critic, lambda count, votes: Ballot((None,)), "cannot be counted"),
        (check_critic, lambda count, votes: 0.5, "must return a Ballot"),
    ],
)
def test_a_broken_promise_is_named(check, answer, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check(Part(answer))


def test_what_is_no_chair_is_told_what_it_lacks():
    with pytest.raises(AssertionError, match="not a Critic"):
        check_critic(object())


def test_a_sampled_part_need_not_repeat_itself():
    part = Part(lambda count, dialogue: Reply(f"message {count}"))
    part.deterministic = False
    check_agent(part)


def test_a_fake_model_answers_in_order_and_remembers_what_it_was_asked():
    model = FakeChatModel(["one", "two", "three"])

    async def talk():
        return await model.complete(Request(CHAT, n=2, temperature=1.1, seed=5)), await model.complete(Request(CHAT))

    first, second = asyncio.run(talk())
    assert (first.texts, second.texts) == (("one", "two"), ("three",))
    assert (model.calls[0].n, model.calls[0].temperature, model.calls[0].seed) == (2, 1.1, 5)
    assert first.usage.prompt_tokens == 3
    assert first.usage.cost == 0.0


def test_a_fake_model_can_answer_by_function_fail_and_return_fewer_choices():
    model = FakeChatModel(
        lambda call, choice: f"{call.seed}/{choice}",
        failures={2: ModelUnavailable("the server is gone")},
        max_choices=2,
        logprobs={"A": -0.1},
    )

    async def talk():
        first = await model.complete(Request(CHAT, n=4, seed=9, logprobs=5))
        with pytest.raises(ModelUnavailable):
            await model.complete(Request(CHAT))
        return first, await model.complete(Request(CHAT))

    first, third = asyncio.run(talk())
    assert first.texts == ("9/0", "9/1")
    assert first.logprobs == ({"A": -0.1},) * 2
    assert third.logprobs is None
    assert len(model.calls) == 3


def test_a_faulty_chair_fails_when_told_and_else_does_what_it_wraps():
    critic = Faulty(ScriptedCritic(["solved"]), {1: ModelUnavailable("gone")}, latency=0.001)
    dialogue = Dialogue((Message("seeker", "a"), Message("supporter", "b"), Message("seeker", "c")))

    async def judge():
        return await critic.judge(bank(1)[0], dialogue, votes=2, seed=Seed(0))

    with pytest.raises(ModelUnavailable):
        asyncio.run(judge())
    assert asyncio.run(judge()).votes == (1.0, 1.0)
    assert critic.calls == 2


@pytest.mark.parametrize("make", [ScriptedAgent, ScriptedSeeker, ScriptedCritic])
def test_an_empty_script_is_refused(make):
    with pytest.raises(SpecError, match="at least one"):
        make([])

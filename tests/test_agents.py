"""Strings, objects and callables become agents; whatever they do wrong is theirs alone."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_env import Agent, Dialogue, Message, Reply, Seed
from esc_env.agents import CallableAgent, HumanAgent, identity_of, resolve_agent
from esc_env.agents.spec import builtin_names
from esc_env.background import run
from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import Chairs, converse
from esc_env.errors import MissingExtra, SpecError
from esc_env.identity import name_of
from esc_env.testing import ScriptedCritic, ScriptedSeeker, check_agent
from esc_env.trajectory import StopReason

DIALOGUE = Dialogue((Message("seeker", "I can't sleep."),))
CHAIRS = Chairs(ScriptedSeeker(["I see."]), ScriptedCritic(["same"]))


def says(agent, dialogue: Dialogue = DIALOGUE) -> Reply:
    return run(resolve_agent(agent).respond(dialogue, seed=Seed(0, "supporter", 1)))


@pytest.mark.parametrize("name", builtin_names())
def test_every_builtin_agent_keeps_the_contract(name):
    check_agent(resolve_agent(name))


def test_the_builtin_agents_are_the_promised_ones():
    assert {"silent", "template", "advice", "parrot", "skilled", "random-strategy"} <= {
        name.removeprefix("builtin:") for name in builtin_names()
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("builtin:skiled", "'builtin:skilled'"),
        ("buitlin:skilled", "'builtin'"),
        ("builtin", "builtin:"),
        ("openai/gpt-4o#cots", "'cot'"),
        ("python:no_such_module_anywhere:respond", "PYTHONPATH"),
        ("python:json:dumbs", "'dumps'"),
        ("skilled", "names nothing"),
        ("", "names nothing"),
    ],
)
def test_a_string_that_names_nothing_is_refused_with_what_to_type(text, told):
    with pytest.raises(SpecError, match=told):
        resolve_agent(text)


@given(st.text(max_size=40))
def test_any_string_is_an_agent_or_a_spec_error(text):
    try:
        agent = resolve_agent(text)
    except (SpecError, MissingExtra):
        return
    assert callable(agent.respond)


@pytest.mark.parametrize("thing", [None, 3, ["builtin:skilled"], object()])
def test_what_is_no_agent_is_refused(thing):
    with pytest.raises(SpecError, match="an agent must be"):
        resolve_agent(thing)


def test_a_function_gets_the_observation_as_fresh_plain_dicts():
    seen = []

    def respond(messages):
        seen.append(messages)
        messages[0]["content"] = "tampered"
        return "Tell me more."

    dialogue = DIALOGUE.then(Message("supporter", "Go on.", thought="hm"), Message("seeker", "My job."))
    assert says(respond, dialogue) == Reply("Tell me more.")
    assert says(respond, dialogue) == Reply("Tell me more.")
    for messages in seen:
        assert isinstance(messages, tuple)
        assert [message["role"] for message in messages] == ["user", "assistant", "user"]
        assert all(set(message) == {"role", "content"} for message in messages)
    assert dialogue.messages[0].content == "I can't sleep."


def test_a_str_is_parsed_and_a_reply_is_taken_as_it_is():
    assert says(lambda messages: "<think>sad</think>I'm here.") == Reply("I'm here.", "sad")
    assert says(lambda messages: Reply("<think>", strategy="Question")) == Reply("<think>", strategy="Question")


def test_an_async_function_runs_on_our_loop_and_a_sync_one_in_a_thread_of_its_own():
    import threading

    async def on_loop(messages):
        await asyncio.sleep(0)
        return threading.current_thread().name

    ours = says(on_loop).content
    theirs = says(lambda messages: threading.current_thread().name).content
    assert ours not in (theirs, threading.main_thread().name)


def test_an_object_with_respond_is_used_as_it_is():
    class Mine:
        async def respond(self, dialogue, *, seed):
            return Reply("mine")

    mine: Any = Mine()
    assert resolve_agent(mine) is mine
    assert identity_of(mine)["name"].endswith("Mine")
    with pytest.raises(SpecError, match=r"give an object of it: Mine\(\.\.\.\)"):
        resolve_agent(Mine)

    class Called:
        def __call__(self, messages):
            return "mine"

    with pytest.raises(SpecError, match=r"give an object of it: Called\(\.\.\.\)"):
        resolve_agent(Called)


def test_an_identity_that_cannot_be_read_is_told_and_never_taken_for_none():
    class Broken:
        @property
        def identity(self):
            return {"name": getattr(self, "nmae")}  # noqa: B009

        async def respond(self, dialogue, *, seed):
            return Reply("Hm.")

    agent: Any = Broken()
    with pytest.raises(SpecError, match=r"Broken: its `identity` raises AttributeError.*nmae"):
        identity_of(agent)


def test_python_specs_name_functions_objects_and_classes(tmp_path, monkeypatch):
    (tmp_path / "my_esc_agents.py").write_text(
        "from esc_env import Reply\n"
        "def function(messages): return 'from a function'\n"
        "class Class:\n"
        "    identity = {'name': 'mine'}\n"
        "    async def respond(self, dialogue, *, seed): return Reply('from a class')\n"
        "class Function:\n"
        "    def __call__(self, messages): return 'from an object that is called'\n"
        "class Greedy:\n"
        "    def __init__(self, weights): pass\n"
        "    async def respond(self, dialogue, *, seed): return Reply('unreachable')\n"
        "thing = Class()\n"
        "text = 'builtin:silent'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert says("python:my_esc_agents:function").content == "from a function"
    assert says("python:my_esc_agents:Class").content == "from a class"
    assert says("python:my_esc_agents:Function").content == "from an object that is called"
    with pytest.raises(SpecError, match=r"needs arguments.*'weights'"):
        resolve_agent("python:my_esc_agents:Greedy")
    assert resolve_agent("python:my_esc_agents:thing") is sys.modules["my_esc_agents"].thing
    with pytest.raises(SpecError, match="a str, no agent"):
        resolve_agent("python:my_esc_agents:text")
    with pytest.raises(SpecError, match="'function'"):
        resolve_agent("python:my_esc_agents:functoin")


@pytest.mark.parametrize("thing", [len, functools.partial(max, 3), str.upper, print, HumanAgent().respond])
def test_every_callable_has_an_identity_without_addresses(thing):
    identity = json.dumps(identity_of(CallableAgent(thing)))
    assert "0x" not in identity
    assert name_of(thing) in identity
    assert identity == json.dumps(identity_of(CallableAgent(thing)))


def _exits(messages):
    raise SystemExit(2)


def _stops(messages):
    return next(iter(()))


async def _exits_async(messages):
    raise SystemExit("bye")


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        (lambda messages: 1 / 0, "ZeroDivisionError"),
        (lambda messages: None, "NoneType"),
        (lambda messages: b"bytes", "bytes"),
        (lambda: "no arguments", "TypeError"),
        (_exits, r"called exit\(2\)"),
        (_exits_async, r"called exit\('bye'\)"),
        (_stops, "StopIteration"),
    ],
)
def test_what_a_callable_does_wrong_fails_its_conversation_and_nothing_else(agent, told, scenarios):
    trajectory = run(converse(scenarios[0], resolve_agent(agent), CHAIRS, seed=1))
    assert trajectory.stop_reason is StopReason.SUPPORTER_FAILED
    assert trajectory.completed
    assert trajectory.failure is not None
    assert re.search(told, trajectory.failure.message)


def test_a_person_is_shown_the_chat_and_taken_word_for_word():
    human = HumanAgent(lambda messages: f"<think>I heard: {messages[-1]['content']}")
    assert says(human) == Reply("<think>I heard: I can't sleep.")
    assert isinstance(human, Agent)
    assert identity_of(human) == {"name": "human"}


def test_a_person_in_a_terminal_reads_the_seeker_and_types(monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda prompt: "I hear you.")
    seeker = Dialogue((Message("seeker", "I can't \x1b[31msleep."),))
    assert says(HumanAgent(), seeker) == Reply("I hear you.")
    shown = capsys.readouterr().out
    assert "sleep." in shown
    assert "\x1b" not in shown


def test_a_bare_builtin_name_is_told_its_whole_name():
    with pytest.raises(SpecError, match="Did you mean 'builtin:skilled'"):
        resolve_agent("skilled")


@pytest.mark.parametrize("resolve", [resolve_seeker, resolve_critic])
def test_a_chair_that_cannot_be_called_is_refused_before_anything_runs(resolve):
    with pytest.raises(SpecError, match=r"called with \(scenario, dialogue\)"):
        resolve(lambda messages: "hm")

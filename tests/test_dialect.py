"""Servers differ: what leaves the protocol untouched is adapted, once and told; what does not is refused by name."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs the extra llm")
pytest.importorskip("litellm", reason="needs the extra llm")

from conftest import bank

from esc_env.errors import AdaptedWarning, ModelUnavailable, SpecError
from esc_env.evaluation import evaluate
from esc_env.models import ModelSettings, effective, open_model
from esc_env.models.dialect import PLAIN, adapted
from esc_env.models.endpoint import Endpoint
from esc_env.models.patience import Patient
from esc_env.models.wire import OpenAIWire, assembled
from esc_env.protocols import Request
from esc_env.testing import FakeServer, Fault

CHAT: Any = [{"role": "system", "content": "Listen."}, {"role": "user", "content": "How are you?"}]
ASKED: dict[str, Any] = {"temperature": 0.5, "max_tokens": 40, "seed": 7}
CASES = Path(__file__).parents[2] / "shared" / "cases" / "refusals.json"

Refuses = Callable[[Mapping[str, Any]], str | None]


def when(test: Callable[[Mapping[str, Any]], bool], message: str) -> Refuses:
    return lambda body: message if test(body) else None


REFUSALS: dict[str, tuple[Refuses, str, str]] = {
    "no seed": (
        when(lambda body: "seed" in body, "Unrecognized request argument supplied: seed"), "seed", "not sent"
    ),
    "no seed, as pydantic says it": (
        when(lambda body: "seed" in body, "body.seed: Extra inputs are not permitted"), "seed", "not sent"
    ),
    "another token limit": (
        when(
            lambda body: "max_tokens" in body,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
        ),
        "max_tokens", "sent as max_completion_tokens",
    ),
    "no system role": (
        when(lambda body: body["messages"][0]["role"] == "system", "System role not supported"),
        "system", "put into the first user message",
    ),
    "no system role, told by the order of roles": (
        when(
            lambda body: body["messages"][0]["role"] == "system",
            "Conversation roles must alternate user/assistant/user/assistant/...",
        ),
        "system", "put into the first user message",
    ),
}  # fmt: skip


def ask(model, chat=CHAT, **parameters):
    return asyncio.run(model.complete(Request(chat, **{**ASKED, **parameters})))


@pytest.mark.parametrize("wire", ["aiohttp", "openai", "litellm"])
@pytest.mark.parametrize("case", REFUSALS)
def test_what_a_server_does_not_take_is_asked_otherwise_once_for_all_and_told(case, wire):
    refuses, name, how = REFUSALS[case]
    with FakeServer("I hear you.", refuses=refuses) as server:
        model = open_model(f"openai/m@{server.url}", ModelSettings(wire=wire))
        with pytest.warns(AdaptedWarning, match=f"openai/m at {server.url} .*{name} {how}"):
            assert ask(model).texts == ("I hear you.",)
        assert ask(model).texts == ("I hear you.",)
        assert len(server.requests) == 3, "the second call knows"
        assert effective(model) == {name: how}
        again = open_model(f"openai/m@{server.url}", ModelSettings(wire=wire, timeout=50.0))
        ask(again)
        assert len(server.requests) == 4, "whoever asks the same endpoint knows too"
    body = server.requests[-1].body
    assert body["temperature"] == 0.5, "the protocol is untouched"
    if name == "system":
        assert body["messages"] == [{"role": "user", "content": "Listen.\n\nHow are you?"}]


@pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning")  # LiteLLM's own, on a stream
@pytest.mark.filterwarnings("ignore:Item .* on TypedDict:UserWarning")
@pytest.mark.parametrize("wire", ["aiohttp", "openai", "litellm"])
def test_an_endpoint_that_only_streams_reads_as_any_other(wire):
    n = 1 if wire == "litellm" else 2  # LiteLLM makes one choice of a stream
    with FakeServer(lambda body, choice: "I hear you.", streams=True) as server:
        model = open_model(f"openai/m@{server.url}", ModelSettings(wire=wire))
        with pytest.warns(AdaptedWarning, match="stream asked for"):
            said = ask(model, n=n)
    assert said.texts == ("I hear you.",) * n
    assert said.finish_reasons == ("stop",) * n
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (4, 3 * n)
    assert effective(model) == {"stream": "asked for"}


def test_several_refusals_are_met_one_after_the_other():
    def refuses(body):
        told = [refuse(body) for refuse, _, _ in REFUSALS.values()]
        return next((each for each in told if each), None)

    with FakeServer("I hear you.", refuses=refuses, streams=True) as server:
        model = open_model(f"openai/m@{server.url}")
        with pytest.warns(AdaptedWarning):
            ask(model)
    assert sorted(effective(model)) == ["max_tokens", "seed", "stream", "system"]


def test_calls_at_the_same_time_all_find_out_and_all_are_answered():
    async def many(model):
        return await asyncio.gather(*(model.complete(Request(CHAT, **ASKED)) for _ in range(20)))

    with FakeServer("I hear you.", refuses=REFUSALS["no seed"][0], latency=0.02) as server:
        model = open_model(f"openai/m@{server.url}")
        with pytest.warns(AdaptedWarning) as told:
            answers = asyncio.run(many(model))
    assert {answer.texts for answer in answers} == {("I hear you.",)}
    assert len(told) == 1


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 99999. This model supports at most 16384 completion tokens",
        "The model `seed-oss` does not exist",
        "temperature must be 1",
        "Invalid value for 'stop'",
        "This model's maximum context length is 512 tokens",
    ],
)
def test_a_refusal_about_something_else_is_raised_and_nothing_is_changed(message):
    assert adapted(PLAIN, message, Request(CHAT, 1, 0.5, 40, None if "seed" in message else 7)) is None
    with FakeServer(refuses=lambda body: message) as server:
        model = open_model(f"openai/seed-m@{server.url}")
        with pytest.raises(ModelUnavailable) as refused:
            ask(model, seed=None)
    assert message.rstrip(".") in str(refused.value)
    assert len(server.requests) == 1
    assert effective(model) == {}


def test_a_server_that_goes_on_refusing_ends_and_is_told_in_full():
    message = "Conversation roles must alternate user/assistant/user/assistant/..."
    with FakeServer(refuses=lambda body: message) as server:
        model = open_model(f"openai/m@{server.url}")
        with pytest.raises(ModelUnavailable) as refused:
            ask(model)
    assert f"openai/m at {server.url}: HTTP 400: {message}" in str(refused.value)
    assert len(server.requests) == 2
    assert effective(model) == {}, "what did not help is not kept"


# Before a run


@pytest.mark.skipif(not CASES.exists(), reason="the cases lie beside a checkout")
def test_every_refusal_that_was_seen_ends_as_it_should(tmp_path):
    tests: dict[str, Callable[[Mapping[str, Any]], bool]] = {
        "the request holds `seed`": lambda body: "seed" in body,
        "the request holds `max_tokens`": lambda body: "max_tokens" in body,
        "a message has role system": lambda body: any(each["role"] == "system" for each in body["messages"]),
        "always": lambda body: True,
    }
    cases = [case for case in json.loads(CASES.read_text(encoding="utf-8")) if case["when"] in tests]
    assert len(cases) >= 4
    for number, case in enumerate(cases):
        message = case["body"]["error"]["message"]
        with FakeServer("I hear you.", refuses=when(tests[case["when"]], message)) as server, warnings.catch_warnings():
            warnings.simplefilter("ignore", AdaptedWarning)
            run: Any = {"agent": f"openai/m@{server.url}", "scenarios": bank(1), "out": tmp_path / str(number)}
            if case["right"].startswith("refused before the start"):
                with pytest.raises(ModelUnavailable) as refused:
                    evaluate(**run)
                assert message in str(refused.value)
                assert not (tmp_path / str(number) / "run.json").exists()
                continue
            assert evaluate(**run).complete, case["name"]
        assert json.loads((tmp_path / str(number) / "run.json").read_text())["effective"]["agent"], case["name"]


def vote(body, choice):
    return "B"


def test_a_run_says_what_was_asked_otherwise(tmp_path):
    with FakeServer(vote, refuses=REFUSALS["no seed"][0]) as server:
        spec = f"openai/m@{server.url}"
        with pytest.warns(AdaptedWarning):
            evaluate(spec, bank(1), critic=spec, out=tmp_path / "run")
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["effective"] == {"agent": {"seed": "not sent"}, "critic": {"seed": "not sent"}}


@pytest.mark.parametrize(
    ("chair", "told"),
    [("agent", r"--temperature"), ("seeker", r"--seeker-temperature"), ("critic", r"--critic-temperature")],
)
def test_a_temperature_that_is_refused_ends_the_run_before_it_starts(tmp_path, chair, told):
    def refuses(body):
        return "Unsupported value: 'temperature' does not support 0.25 with this model." if seen(body) else None

    def seen(body):
        return body["temperature"] == 0.25

    with FakeServer(vote, refuses=refuses) as server:
        chairs: Any = {"agent": "builtin:silent", chair: f"openai/m@{server.url}"}
        options: Any = {"temperature": 0.25, "seeker_temperature": 0.25, "critic_temperature": 0.25}
        with pytest.raises(SpecError, match=f"{chair}: .*0.25 with this model.*{told}"):
            evaluate(**chairs, scenarios=bank(1), out=tmp_path / "run", **options)
    assert len(server.requests) == 1
    assert not (tmp_path / "run").exists()


def test_a_critic_without_log_probabilities_is_refused_before_the_start(tmp_path):
    with FakeServer(vote) as server, pytest.raises(SpecError, match=r"gives no log-probabilities.*--critic-mode votes"):
        evaluate(
            "builtin:silent", bank(1), critic=f"openai/m@{server.url}", critic_mode="logprobs", out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_fewer_alternatives_are_taken_where_a_server_gives_no_more(tmp_path):
    message = "Invalid value for 'top_logprobs': must be less than or equal to 5."
    refuses = when(lambda body: body.get("top_logprobs", 0) > 5, message)
    top = {"A": -3.0, "B": -0.1, "C": -3.0, "D": -4.0, "E": -9.0, "F": -9.0}
    with FakeServer(vote, refuses=refuses, logprobs=top) as server, pytest.warns(AdaptedWarning, match="at most 5"):
        report = evaluate(
            "builtin:silent", bank(1), critic=f"openai/m@{server.url}", critic_mode="logprobs", out=tmp_path / "run"
        )
    assert report.complete
    assert {request.body["top_logprobs"] for request in server.requests[1:]} == {5}


def test_the_question_before_the_start_has_the_parameters_of_the_run(tmp_path):
    with FakeServer(vote) as server:
        spec = f"openai/m@{server.url}"
        evaluate(
            "builtin:silent", bank(1), seeker="builtin", critic=spec, out=tmp_path / "run",
            critic_options={"top_p": 0.5, "max_tokens": 99},
        )  # fmt: skip
    first, second, *_ = (request.body for request in server.requests)
    parameters = [{name: value for name, value in body.items() if name != "messages"} for body in (first, second)]
    assert {**parameters[0], "seed": 0} == {**parameters[1], "seed": 0}
    assert parameters[0]["n"] == 10


# Slow, or dead


def slow(latencies: list[float]) -> Callable[[Mapping[str, Any], int], str]:
    """Answers; each request that comes takes its own time."""
    import time

    left = iter(latencies)

    def answer(body: Mapping[str, Any], choice: int) -> str:
        time.sleep(next(left, 0.0))  # the server's own thread, in a test that has one request at a time
        return "I hear you."

    return answer


def test_a_server_that_is_known_to_be_slow_is_waited_for():
    """The second answer takes over twice the timeout; asked again from the start, it would never come."""
    with FakeServer(slow([0.15, 0.45])) as server:
        model = Patient(OpenAIWire("m", server.url), Endpoint(server.url), timeout=0.2)

        async def both():
            return [(await model.complete(Request(CHAT))).usage.requests for _ in range(2)]

        assert asyncio.run(both()) == [1, 1]
    assert len(server.requests) == 2


def test_a_wait_in_vain_is_followed_by_a_longer_one():
    with FakeServer(faults={1: Fault("hang"), 2: Fault("hang")}) as server:
        model = Patient(OpenAIWire("m", server.url), Endpoint(server.url), timeout=0.05)
        assert asyncio.run(model.complete(Request(CHAT))).texts == ("I hear you.",)
    at = [request.at for request in server.requests]
    first, second = (later - earlier for earlier, later in pairwise(at))
    assert first >= 0.05
    assert second >= 0.1


def test_a_server_that_never_answers_is_told_with_how_long_was_waited():
    with FakeServer(faults=lambda number: Fault("hang")) as server:
        model = Patient(OpenAIWire("m", server.url), Endpoint(server.url), timeout=0.05, deadline=0.5)
        with pytest.raises(ModelUnavailable, match=r"no answer within 0\.\d+ s"):
            asyncio.run(model.complete(Request(CHAT)))


# Streams


def test_a_stream_that_breaks_off_or_ends_in_an_error_is_no_answer():
    begun = {"choices": [{"index": 0, "delta": {"content": "I hear"}, "finish_reason": None}]}
    assert "choices" not in assembled([begun])
    assert assembled([begun, {"error": {"message": "overloaded", "code": 503}}])["error"]["message"] == "overloaded"
    assert "choices" not in assembled(["nonsense"])


def test_a_stream_keeps_reasoning_and_log_probabilities():
    first = {"token": "I", "logprob": -0.5, "top_logprobs": [{"token": "I", "logprob": -0.5}]}
    parts: list[Any] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "reasoning_content": "She is "}}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "sad."}}]},
        {"choices": [{"index": 0, "delta": {"content": "I hear"}, "logprobs": {"content": [first]}}]},
        {"choices": [{"index": 0, "delta": {"content": " you."}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 1}},
    ]
    (choice,) = assembled(parts)["choices"]
    assert choice["message"] == {"reasoning_content": "She is sad.", "content": "I hear you."}
    assert choice["logprobs"]["content"] == [first]

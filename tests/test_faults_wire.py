"""What patience gives for each way in which a server can misbehave."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import pickle
import random
import socket
import time
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs the extra llm")

from esc_env.dialogue import ChatMessage
from esc_env.errors import BadCompletion, ModelError, ModelUnavailable
from esc_env.models.endpoint import Clock, Endpoint
from esc_env.models.patience import Patient
from esc_env.models.retries import ATTEMPTS
from esc_env.models.sharing import Share
from esc_env.models.wire import OpenAIWire
from esc_env.protocols import Completion, Request, Usage
from esc_env.testing import FakeChatModel, FakeServer, Fault

HELLO: list[ChatMessage] = [{"role": "user", "content": "Hello there"}]


class Time:
    """A clock that jumps: sleeping takes no time and is remembered."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.seconds, self.sleep)


FAST = Clock(lambda: time.monotonic() * 100, lambda seconds: asyncio.sleep(seconds / 100))
"""A second takes ten milliseconds: for what only shows when many calls really run at once."""


@pytest.fixture
def jumping() -> Time:
    return Time()


def error(status: int | None, retry_after: float | None = None, retryable: bool = True) -> ModelUnavailable:
    return ModelUnavailable(
        "no luck", provider="fake", model="fake", status=status, retryable=retryable, retry_after=retry_after
    )


def complete(model: FakeChatModel | OpenAIWire, time: Time, **options: Any) -> Completion:
    return asyncio.run(Patient(model, Endpoint("here", clock=time.clock), **options).complete(Request(HELLO)))


class Sent(FakeChatModel):
    """Remembers when it was asked."""

    def __init__(self, time: Time, **options: Any) -> None:
        super().__init__(**options)
        self.time = time
        self.at: list[float] = []

    async def complete(self, request: Request) -> Completion:
        self.at.append(self.time.seconds)
        return await super().complete(request)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", 429),
        Fault("status", 429, "1"),
        Fault("status", 500),
        Fault("drop"),
        Fault("html"),
        Fault("truncated"),
        Fault("empty"),
        Fault("null"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.retry_after}",
)
def test_a_run_completes_though_three_in_ten_calls_fail(fault: Fault) -> None:
    fate = random.Random(4)
    faults = {number: fault for number in range(1, 2000) if fate.random() < 0.3}

    async def run(url: str) -> list[Completion]:
        model = Patient(OpenAIWire("m", url), Endpoint(url, clock=FAST))
        return await asyncio.gather(
            *(model.complete(Request([{"role": "user", "content": str(i)}])) for i in range(150))
        )

    with FakeServer(lambda body, _: body["messages"][0]["content"], faults=faults) as server:
        completions = asyncio.run(run(server.url))
    assert [completion.texts for completion in completions] == [(str(i),) for i in range(150)]
    assert len(server.requests) == 150 + sum(number in faults for number in range(1, len(server.requests) + 1))


@pytest.mark.parametrize(("fault", "text"), [("length", "I h"), ("refusal", "I hear"), ("filtered", None)])
def test_a_cut_refused_or_withheld_reply_is_an_answer(fault: str, text: str | None, jumping: Time) -> None:
    with FakeServer("I hear", faults={1: Fault(fault)}) as server:  # type: ignore[arg-type]
        completion = complete(OpenAIWire("m", server.url), jumping)
    assert completion.texts == (text,)
    assert len(server.requests) == 1


def test_calls_that_hang_are_timed_out_and_asked_again(jumping: Time) -> None:
    with FakeServer(faults={1: Fault("hang"), 2: Fault("hang")}) as server:
        assert complete(OpenAIWire("m", server.url, timeout=0.1), jumping).texts == ("I hear you.",)
    assert len(server.requests) == 3


def test_no_call_outlives_its_deadline() -> None:
    async def call(url: str) -> ModelError:
        with pytest.raises(ModelUnavailable) as caught:
            await Patient(OpenAIWire("m", url), Endpoint(url), deadline=0.2).complete(Request(HELLO))
        return caught.value

    with FakeServer(faults=lambda number: Fault("hang")) as server:
        start = time.monotonic()
        failure = asyncio.run(call(server.url))
    assert time.monotonic() - start < 30  # the server would hang for ever
    assert "no answer within 0.2 s" in str(failure)
    assert (failure.provider, failure.model, failure.attempts) == ("openai", "m", 1)


def test_waiting_for_a_free_place_is_not_held_against_a_call() -> None:
    async def queue() -> list[Completion]:
        model = Patient(FakeChatModel("x", latency=0.05), Endpoint("here", concurrency=1), deadline=0.15)
        return await asyncio.gather(*(model.complete(Request(HELLO)) for _ in range(6)))

    assert len(asyncio.run(queue())) == 6


def test_what_is_given_up_says_whom_how_often_and_why(jumping: Time) -> None:
    bad = FakeServer(faults=lambda number: Fault("status", 502, message="upstream"))
    with bad as server, pytest.raises(ModelUnavailable) as caught:
        complete(OpenAIWire("m", server.url), jumping)
    failure = pickle.loads(pickle.dumps(caught.value))
    assert (failure.provider, failure.model, failure.attempts, failure.status) == ("openai", "m", ATTEMPTS, 502)
    assert str(failure) == f"openai/m at {server.url}: HTTP 502: upstream (given up after {ATTEMPTS} attempts)"
    assert len(server.requests) == ATTEMPTS


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_no_retry_can_change_is_raised_at_once(status: int, jumping: Time) -> None:
    model = FakeChatModel(failures={1: error(status, retryable=False)})
    with pytest.raises(ModelUnavailable):
        complete(model, jumping)
    assert len(model.calls) == 1
    assert jumping.slept == []


def test_a_model_that_never_says_anything_is_a_bad_completion_and_costs_what_it_cost(jumping: Time) -> None:
    with pytest.raises(BadCompletion, match="fake/fake answered without text") as caught:
        complete(FakeChatModel([None]), jumping)
    assert caught.value.attempts == ATTEMPTS
    said = complete(FakeChatModel([None, None, "at last"]), Time())
    assert said.texts == ("at last",)
    assert said.usage == Usage(3, 6, 2, 0.0)


def test_a_vote_without_text_among_others_is_left_to_whoever_asked(jumping: Time) -> None:
    async def votes() -> Completion:
        model = Patient(FakeChatModel(["a", None]), Endpoint("here", clock=jumping.clock))
        return await model.complete(Request(HELLO, n=2))

    assert asyncio.run(votes()).texts == ("a", None)


def test_waits_grow_with_jitter_and_stay_bounded(jumping: Time) -> None:
    with pytest.raises(ModelUnavailable):
        complete(FakeChatModel(failures=dict.fromkeys(range(1, 99), error(500))), jumping)
    for wait, longest in zip(jumping.slept, [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30], strict=True):
        assert longest / 2 <= wait <= longest
    assert len(set(jumping.slept)) == len(jumping.slept)


@pytest.mark.parametrize(("asked", "honoured"), [(7.0, 7.0), (3600.0, 60.0)])
def test_retry_after_is_honoured_up_to_a_cap(asked: float, honoured: float, jumping: Time) -> None:
    complete(FakeChatModel(failures={1: error(429, asked)}), jumping)
    assert honoured <= sum(jumping.slept) <= honoured + 0.5


def test_a_rate_limit_ends_with_the_deadline_not_with_a_number_of_attempts(jumping: Time) -> None:
    complete(FakeChatModel(failures=dict.fromkeys(range(1, 2 * ATTEMPTS), error(429, 1.0))), jumping)
    with pytest.raises(ModelUnavailable) as caught:
        complete(FakeChatModel(failures=dict.fromkeys(range(1, 999), error(429, 1.0))), Time(), deadline=30.0)
    assert caught.value.status == 429
    assert 5 < caught.value.attempts < 31


def test_a_request_to_wait_holds_for_everything_sent_to_that_endpoint(jumping: Time) -> None:
    async def run() -> Sent:
        model = Sent(jumping, failures={1: error(429, 20.0)})
        patient = Patient(model, Endpoint("here", concurrency=1, clock=jumping.clock))
        await asyncio.gather(*(patient.complete(Request(HELLO)) for _ in range(5)))
        return model

    first, *later = asyncio.run(run()).at
    assert len(later) == 5
    assert min(later) >= first + 20.0


def test_a_storm_without_retry_after_spaces_requests_and_its_end_lets_them_go() -> None:
    jumping = Time()

    async def run() -> tuple[float, float]:
        model = Sent(jumping, failures=dict.fromkeys(range(1, 6), error(429)))
        endpoint = Endpoint("here", clock=jumping.clock)
        patient = Patient(model, endpoint)
        await patient.complete(Request(HELLO))
        during = endpoint.line().spacing
        for _ in range(40):
            await patient.complete(Request(HELLO))
        return during, endpoint.line().spacing

    during, after = asyncio.run(run())
    assert during > 0.02
    assert after == 0.0


def test_a_server_that_takes_only_so_many_a_second_is_not_stormed() -> None:
    bucket = {"at": time.monotonic(), "left": 10.0}

    def limited(number: int) -> Fault | None:
        now = time.monotonic()
        bucket["left"] = min(10.0, bucket["left"] + (now - bucket["at"]) * 300)
        bucket["at"] = now
        if bucket["left"] < 1:
            return Fault("status", 429)
        bucket["left"] -= 1
        return None

    async def run(url: str) -> None:
        model = Patient(OpenAIWire("m", url), Endpoint(url, concurrency=64, clock=FAST))
        await asyncio.gather(*(model.complete(Request(HELLO)) for _ in range(200)))

    with FakeServer(faults=limited) as server:
        asyncio.run(run(server.url))
    assert len(server.requests) < 2.5 * 200, "mostly requests that were answered"


def test_never_more_requests_in_flight_than_the_endpoint_allows() -> None:
    async def run(url: str) -> None:
        endpoint = Endpoint(url, concurrency=7)
        models = [Patient(OpenAIWire(name, url), endpoint) for name in ("seeker", "critic")]
        await asyncio.gather(*(models[i % 2].complete(Request(HELLO)) for i in range(60)))

    with FakeServer(latency=0.01) as server:
        asyncio.run(run(server.url))
    assert server.peak == 7


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({"requests_per_minute": 30}, 2.0),
        ({"tokens_per_minute": 1200}, 0.15),
        ({"requests_per_minute": 30, "tokens_per_minute": 1200}, 2.0),
    ],
)
def test_rate_limits_space_requests_by_what_they_cost(limits: Mapping[str, int], seconds: float) -> None:
    jumping = Time()

    async def run() -> list[float]:
        model = Sent(jumping, answers="x")  # 2 + 1 tokens
        patient = Patient(model, Endpoint("here", clock=jumping.clock, **limits))
        for _ in range(5):
            await patient.complete(Request(HELLO, max_tokens=500))
        return model.at

    at = asyncio.run(run())
    gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert gaps == pytest.approx([seconds] * 4)


@pytest.mark.parametrize("limits", [{"requests_per_minute": 120}, {"tokens_per_minute": 360}])
def test_a_loop_that_is_late_keeps_the_pace_of_the_limit_and_catches_up_no_further(limits: Mapping[str, int]) -> None:
    class Late(Time):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds + 0.09)

    late = Late()

    async def run() -> list[float]:
        model = Sent(late, answers="x")  # 2 + 1 tokens
        patient = Patient(model, Endpoint("here", clock=late.clock, **limits))
        for count in (100, 10):
            await asyncio.gather(*(patient.complete(Request(HELLO, max_tokens=1)) for _ in range(count)))
            late.seconds += 600  # nobody waited: nothing is caught up
        return model.at

    at = asyncio.run(run())
    assert 49 < at[99] - at[0] < 51
    assert all(sum(now <= other < now + 10 for other in at) <= 20 + 1 for now in at)
    assert 4 < at[-1] - at[-10] < 6


def test_one_of_four_processes_has_a_quarter_of_every_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esc_env.models.sharing._share", Share(4))
    jumping = Time()

    async def run() -> tuple[list[float], int]:
        model = Sent(jumping, answers="x")
        endpoint = Endpoint("here", concurrency=10, requests_per_minute=30, clock=jumping.clock)
        for _ in range(3):
            await Patient(model, endpoint).complete(Request(HELLO))
        return model.at, endpoint.line().slots._value

    at, slots = asyncio.run(run())
    assert [later - earlier for earlier, later in itertools.pairwise(at)] == pytest.approx([8.0] * 2)
    assert slots == 2


def test_a_server_that_never_answered_is_given_up_soon(jumping: Time) -> None:
    model = FakeChatModel(failures=dict.fromkeys(range(1, 99), error(None)))
    with pytest.raises(ModelUnavailable, match="given up after 3 attempts"):
        complete(model, jumping)
    assert sum(jumping.slept) < 3


def test_a_server_that_died_fails_the_rest_of_the_run_at_once_and_serves_again_when_it_is_back(jumping: Time) -> None:
    async def run(server: FakeServer) -> tuple[list[Any], Completion]:
        model = Patient(OpenAIWire("m", server.url), Endpoint(server.url, concurrency=4, clock=jumping.clock))
        outcomes = await asyncio.gather(*(model.complete(Request(HELLO)) for _ in range(40)), return_exceptions=True)
        server.faults = lambda number: None
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        jumping.seconds += 60
        return outcomes, await model.complete(Request(HELLO))

    server = FakeServer(faults={11: Fault("die")})
    server.start()
    outcomes, after = asyncio.run(run(server))
    server.stop()
    finished = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, ModelUnavailable)]
    assert (len(finished), len(finished) + len(failed)) == (len(finished), 40)
    assert 1 <= len(finished) <= 10
    assert sum("not asked again" in str(failure) for failure in failed) > 20
    assert after.texts == ("I hear you.",)


def test_cancelling_a_call_frees_its_place() -> None:
    async def run() -> Completion:
        model = FakeChatModel("x", latency=30.0)
        patient = Patient(model, Endpoint("here", concurrency=1))
        waiting = asyncio.create_task(patient.complete(Request(HELLO)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        model.latency = 0.0
        return await patient.complete(Request(HELLO))

    assert asyncio.run(run()).texts == ("x",)


def test_what_a_model_raises_by_mistake_is_not_retried(jumping: Time) -> None:
    model = FakeChatModel(failures={1: ZeroDivisionError("a bug")})
    with pytest.raises(ZeroDivisionError):
        complete(model, jumping)
    assert len(model.calls) == 1


def test_a_patient_model_travels_and_works_on_any_loop(jumping: Time) -> None:
    patient = Patient(FakeChatModel("x"), Endpoint("here", concurrency=3, requests_per_minute=10_000))
    asyncio.run(patient.complete(Request(HELLO)))
    for twin in (patient, pickle.loads(pickle.dumps(patient)), copy.deepcopy(patient)):
        assert asyncio.run(twin.complete(Request(HELLO))).texts == ("x",)
        assert twin.endpoint.concurrency == 3
        assert twin.identity == {"provider": "fake", "name": "fake"}


def test_a_fake_server_that_is_stopped_while_somebody_connects_loses_no_connection():
    for _ in range(10):
        with FakeServer() as server:
            clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        for client in clients:
            client.close()
    gc.collect()  # a connection that nobody closed warns now

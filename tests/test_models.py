"""The wires: the same requests, completions and errors whichever of the three carries them."""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("aiohttp", reason="needs the extra llm")
pytest.importorskip("litellm", reason="needs the extra llm")

from esc_env.dialogue import ChatMessage
from esc_env.errors import FewerChoicesWarning, ModelUnavailable, SpecError
from esc_env.models.choices import Choices
from esc_env.models.dialect import Dialect
from esc_env.models.endpoint import Endpoint
from esc_env.models.patience import Patient
from esc_env.models.sdk import LiteLLMModel, OpenAISDK
from esc_env.models.wire import OpenAIWire, read_completion, seconds_asked
from esc_env.protocols import ChatModel, Completion, Reply, Request, Usage
from esc_env.secrets import redacted
from esc_env.testing import FakeChatModel, FakeServer, Fault, check_chat_model

CASES = Path(__file__).parents[2] / "shared" / "cases" / "replies.json"
KEY = "sk-planted-0123456789"
HELLO: list[ChatMessage] = [
    {"role": "system", "content": "Listen."},
    {"role": "user", "content": 'I can\'t sleep — "again" 😔\n'},
]

WIRES: dict[str, Any] = {
    "aiohttp": lambda url, timeout=10.0: OpenAIWire("m", url, timeout=timeout),
    "openai": lambda url, timeout=10.0: OpenAISDK("m", url, timeout=timeout),
    "litellm": lambda url, timeout=10.0: LiteLLMModel("openai/m", url, timeout=timeout),
}

FAILURES = {
    "a rate limit": (Fault("status", 429, "7"), 429, True),
    "a server error": (Fault("status", 500), 500, True),
    "an overloaded server": (Fault("status", 503), 503, True),
    "a conflict": (Fault("status", 409), 409, True),
    "a page instead of JSON": (Fault("html"), 200, True),
    "half of the JSON": (Fault("truncated"), 200, True),
    "no choices": (Fault("empty"), 200, True),
    "a lost connection": (Fault("drop"), None, True),
    "a bad request": (Fault("status", 400), 400, False),
    "a wrong key": (Fault("status", 401), 401, False),
    "a forbidden model": (Fault("status", 403), 403, False),
    "an unknown model": (Fault("status", 404), 404, False),
    "a parameter that is not taken": (Fault("status", 422), 422, False),
}


@pytest.fixture(autouse=True)
def only_this_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("ESC_API_KEY", KEY)


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    return request.param


def ask(model: ChatModel, **options: object) -> Completion:
    return asyncio.run(model.complete(Request(HELLO, **options)))  # type: ignore[arg-type]


def failure(model: ChatModel, **options: object) -> ModelUnavailable:
    with pytest.raises(ModelUnavailable) as caught:
        ask(model, **options)
    return caught.value


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {"temperature": 0.0}),
        (
            {"n": 10, "temperature": 1.1, "max_tokens": 64, "seed": 7, "stop": ["\n", "User:"], "logprobs": 5},
            {
                "n": 10, "temperature": 1.1, "max_tokens": 64, "seed": 7, "stop": ["\n", "User:"],
                "logprobs": True, "top_logprobs": 5,
            },
        ),
        ({"seed": (5 << 31) + 3}, {"temperature": 0.0, "seed": 3}),
    ],
)  # fmt: skip
def test_every_wire_sends_the_same_request(wire: str, options: dict[str, object], sent: dict[str, object]) -> None:
    with FakeServer() as server:
        ask(WIRES[wire](server.url), **options)
    (request,) = server.requests
    assert request.body == {"model": "m", "messages": HELLO, **sent}
    assert request.headers["authorization"] == f"Bearer {KEY}"


def test_every_wire_reads_the_same_completion(wire: str) -> None:
    answers = ["One.", "Two words."]
    with FakeServer(answers, logprobs={"A": -0.1, "B": -2.5, "C": -9.0}) as server:
        completion = ask(WIRES[wire](server.url), n=2, logprobs=2)
    assert completion.texts == ("One.", "Two words.")
    assert completion.finish_reasons == ("stop", "stop")
    assert completion.usage == Usage(1, 7, 3, None)
    assert completion.model == "m"
    assert completion.logprobs == ({"A": -0.1, "B": -2.5},) * 2
    assert 0 < completion.latency < 10


@pytest.mark.parametrize(
    ("fault", "text", "reason"),
    [("length", "I hear", "length"), ("refusal", "I hear you. ", "refusal"), ("filtered", None, "content_filter"),
     ("null", None, "stop")],
)  # fmt: skip
def test_every_wire_keeps_what_the_model_itself_cut_or_refused(
    wire: str, fault: str, text: str | None, reason: str
) -> None:
    with FakeServer("I hear you. ", faults={1: Fault(fault)}) as server:  # type: ignore[arg-type]
        completion = ask(WIRES[wire](server.url))
    assert (completion.texts, completion.finish_reasons) == ((text,), (reason,))


def test_reasoning_that_a_server_returns_apart_reads_as_a_think_block(wire: str) -> None:
    with FakeServer("I hear you.", thought="She is sad.") as server:
        assert ask(WIRES[wire](server.url)).texts == ("<think>She is sad.</think>I hear you.",)


@pytest.mark.parametrize("case", FAILURES)
def test_every_wire_says_the_same_about_a_failure(wire: str, case: str) -> None:
    fault, status, retryable = FAILURES[case]
    with FakeServer(faults={1: fault}) as server:
        error = failure(WIRES[wire](server.url))
    assert len(server.requests) == 1, "no wire retries"
    assert error.retryable is retryable
    if (wire, case) != ("litellm", "a page instead of JSON"):  # which LiteLLM calls a server error
        assert error.status == status
    assert error.retry_after == (7.0 if fault.retry_after else None)
    assert (error.provider, error.model, error.attempts) == ("openai", "m", 1)
    assert str(error).startswith(f"openai/m at {server.url}: ")
    assert "\n" not in str(error)


def test_a_call_that_hangs_times_out_on_every_wire(wire: str) -> None:
    with FakeServer(faults={2: Fault("hang")}) as server:
        ask(WIRES[wire](server.url))  # what is imported at the first call is not the server's fault
        error = failure(WIRES[wire](server.url, timeout=0.3))
    assert error.retryable
    assert error.status is None
    assert "no answer within 0.3 s" in str(error)


def test_nobody_there_is_a_lost_connection_on_every_wire(wire: str) -> None:
    with FakeServer() as server:
        pass
    error = failure(WIRES[wire](server.url))
    assert error.retryable
    assert error.status is None
    assert "no connection" in str(error)


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "Set ESC_API_KEY"), (403, "ESC_API_KEY"), (404, "name"), (400, "options")]
)
def test_an_error_that_is_final_says_what_to_do(wire: str, status: int, remedy: str) -> None:
    with FakeServer(faults={1: Fault("status", status)}) as server:
        assert remedy in str(failure(WIRES[wire](server.url)))


def test_an_account_with_nothing_left_is_not_asked_again() -> None:
    error = refused_with(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
    assert not error.retryable
    assert "nothing left to spend" in str(error)


def refused_with(status: int, body: object) -> ModelUnavailable:
    from esc_env.models.wire import error_told, refused

    message, code = error_told(body)
    return refused(OpenAIWire("m", "http://h/v1"), status, message or "", code, {})


def test_a_key_is_in_no_error_and_no_repr(wire: str) -> None:
    with FakeServer(key="another") as server:  # quotes the wrong key, as some do
        error = failure(WIRES[wire](server.url))
    assert error.status == 401
    model = WIRES[wire](server.url)
    for text in (str(error), repr(error), repr(vars(error)), repr(model), str(model.identity)):
        assert KEY not in text
    assert KEY.encode() not in pickle.dumps((error, model))


@given(st.text("abcXYZ0189_-", min_size=12, max_size=40), st.sampled_from(["sk-", "gsk_", "hf_", "Bearer "]))
def test_what_looks_like_a_key_is_redacted(secret: str, prefix: str) -> None:
    assert secret not in redacted(f"the key {prefix}{secret} is wrong")


def test_any_providers_key_and_a_custom_headers_are_in_no_error(wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHERAI_API_KEY", "0123deadbeef4567")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway-Token: 89abfeedface")
    quoting = Fault("status", 400, message="neither 0123deadbeef4567 nor 89abfeedface may do this")
    with FakeServer(faults=lambda number: quoting) as server:
        told = str(failure(WIRES[wire](server.url)))
    assert "neither [key] nor [key] may do this" in told


def test_no_key_is_needed_for_a_server_of_ones_own(wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESC_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer() as server:
        ask(WIRES[wire](server.url))
    assert KEY not in server.requests[0].headers.get("authorization", "")
    if wire != "litellm":  # which insists on sending one
        assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("made", [OpenAIWire, OpenAISDK])
def test_openai_itself_is_not_asked_without_a_key(made: type[OpenAIWire], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no key. Set OPENAI_API_KEY" in str(failure(made("gpt-4o")))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-with a space")
    assert "character that no key has" in str(failure(made("gpt-4o")))


def test_the_key_of_a_provider_that_is_a_server_of_ones_own_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", "vllm-secret-key")
    with FakeServer() as server:
        ask(OpenAIWire("m", server.url, provider="hosted_vllm"))
    assert server.requests[0].headers["authorization"] == "Bearer vllm-secret-key"


@pytest.mark.parametrize("name", ["aiohttp", "openai"])
def test_organisation_project_and_custom_headers_are_sent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-2")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: blue\nX-Team:support")
    with FakeServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        ask(WIRES[name](server.url))
    headers = server.requests[0].headers
    assert headers["openai-organization"] == "org-1"
    assert headers["openai-project"] == "proj-2"
    assert (headers["x-gateway"], headers["x-team"]) == ("blue", "support")


def test_the_base_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
        assert ask(OpenAIWire("m")).texts == ("I hear you.",)


def test_requests_go_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call(url: str) -> str:
        seen: list[str] = []

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append((await reader.readline()).decode())
            writer.close()

        listener = await asyncio.start_server(proxy, "127.0.0.1", 0)
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "internal.example")
        monkeypatch.setenv("NO_PROXY", "internal.example")
        with pytest.raises(ModelUnavailable):
            await OpenAIWire("m", url).complete(Request(HELLO))
        listener.close()
        await listener.wait_closed()
        return seen[0]

    monkeypatch.delenv("ESC_API_KEY")
    assert asyncio.run(call("http://models.example/v1")).startswith("POST http://models.example/v1/chat/completions")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_ca_bundle_of_ones_own_is_trusted(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, secret = tmp_path / "ca.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    made: list[Any] = [*command.split(), "subjectAltName=DNS:localhost", "-keyout", secret, "-out", certificate]
    subprocess.run(made, check=True, capture_output=True)
    body = b'{"choices": [{"message": {"content": "Safe."}}]}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async def call() -> Completion:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, secret)
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener:
            port = listener.sockets[0].getsockname()[1]
            return await OpenAIWire("m", f"https://localhost:{port}/v1").complete(Request(HELLO))

    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelUnavailable, match="Set SSL_CERT_FILE to your CA bundle") as caught:
        asyncio.run(call())
    assert not caught.value.retryable
    monkeypatch.setenv(variable, str(certificate))
    assert asyncio.run(call()).texts == ("Safe.",)


def test_a_url_with_a_password_is_refused() -> None:
    with pytest.raises(SpecError, match="holds a password"):
        OpenAIWire("m", "http://me:secret@host/v1")


def test_reasoning_models_get_their_own_token_limit() -> None:
    with FakeServer() as server:
        ask(OpenAIWire("o3", server.url, dialect=Dialect(token_limit="max_completion_tokens")), max_tokens=99)
    assert server.requests[0].body["max_completion_tokens"] == 99
    assert "max_tokens" not in server.requests[0].body


def test_connections_are_kept_alive_and_none_is_held_back() -> None:
    async def waves(url: str) -> None:
        model = OpenAIWire("m", url)
        for server.latency in (3.0, 0.0, 0.0):  # at first, long enough for a slow machine to have sent them all
            await asyncio.gather(*(model.complete(Request(HELLO)) for _ in range(128)))

    with FakeServer() as server:
        asyncio.run(waves(server.url))
    assert server.peak == 128
    assert server.connections == 128


def test_a_model_travels_to_another_process_and_loop(wire: str) -> None:
    with FakeServer() as server:
        model = pickle.loads(pickle.dumps(WIRES[wire](server.url)))
        assert ask(model).texts == ask(model).texts == ("I hear you.",)
        check_chat_model(model)


def test_a_process_that_used_models_ends_without_a_word() -> None:
    with FakeServer() as server:
        made = f"wire.OpenAIWire('m', {server.url!r}), sdk.LiteLLMModel('openai/m', {server.url!r})"
        program = (
            "from esc_env import Request, background\nfrom esc_env.models import wire, sdk\n"
            f"for model in ({made}):\n"
            "    print(background.run(model.complete(Request([{'role': 'user', 'content': 'Hi'}]))).texts[0])"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("I hear you.\n" * 2, "", 0)


def test_importing_the_package_needs_no_extra() -> None:
    program = (
        "import sys, esc_env.models, esc_env.testing; "
        "print([name for name in ('aiohttp', 'openai', 'litellm', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "finish_reason", "usage", "error", "code", "logprobs", "top_logprobs"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_a_completion_or_a_typed_error(data: object) -> None:
    try:
        completion = read_completion(OpenAIWire("m", "http://h/v1"), data, latency=0.0)
    except ModelUnavailable:
        return
    assert all(text is None or isinstance(text, str) for text in completion.texts + completion.finish_reasons)
    json.dumps([completion.texts, completion.finish_reasons, completion.usage.to_json()])


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        ({"content": "Hm.", "reasoning_content": "She is sad."}, "stop", "<think>She is sad.</think>Hm."),
        ({"content": "", "reasoning": "She is sad."}, "length", "<think>She is sad.</think>"),
        ({"content": None, "reasoning_content": "She is sad, and"}, "length", "<think>She is sad, and"),
        ({"content": None, "reasoning": "She is sad, and"}, "content_filter", "<think>She is sad, and"),
        ({"content": None, "reasoning_content": "She is sad."}, "stop", None),
        ({"content": None, "reasoning_content": ""}, "length", None),
        ({"content": None}, "length", None),
        ({"content": None, "refusal": "I can't.", "reasoning": "No."}, "stop", "<think>No.</think>I can't."),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "She is sad."}]},
                      {"type": "text", "text": "I hear you."}]}, "stop", "<think>She is sad.</think>I hear you."),
    ],
)  # fmt: skip
def test_what_was_thought_is_kept_however_a_server_returns_it(message: object, reason: str, text: str | None) -> None:
    data = {"choices": [{"message": message, "finish_reason": reason}]}
    assert read_completion(OpenAIWire("m", "http://h/v1"), data, latency=0.0).texts == (text,)


def test_an_answer_thought_away_is_an_answer_that_says_nothing() -> None:
    class Thinker(FakeChatModel):
        async def complete(self, request: Request) -> Completion:
            await super().complete(request)
            choice = {"message": {"content": None, "reasoning_content": "She is sad, and"}, "finish_reason": "length"}
            return read_completion(OpenAIWire("m", "http://h/v1"), {"choices": [choice]}, latency=0.0)

    model = Thinker()
    completion = asyncio.run(Patient(model, Endpoint("here")).complete(Request(HELLO)))
    assert len(model.calls) == 1, "it is not asked again"
    assert Reply.parse(completion.texts[0] or "?") == Reply("", "She is sad, and")


@pytest.mark.skipif(not CASES.exists(), reason="needs the cases next to the checkout")
def test_the_answers_of_real_servers_come_out_right() -> None:
    for case in json.loads(CASES.read_text(encoding="utf-8")):
        message = {name: case[name] for name in ("content", "reasoning_content") if name in case}
        data = {"choices": [{"message": message, "finish_reason": case.get("finish_reason", "stop")}]}
        (text,) = read_completion(OpenAIWire("m", "http://h/v1"), data, latency=0.0).texts
        assert Reply.parse(text or "?") == Reply(case["speech"], case["thought"]), case["name"]


def test_half_an_emoji_becomes_text_that_can_be_written() -> None:
    data = json.loads('{"choices": [{"message": {"content": "so sad \\ud83d"}}]}')
    completion = read_completion(OpenAIWire("m", "http://h/v1"), data, latency=0.0)
    assert completion.texts == ("so sad \ufffd",)


def test_errors_inside_a_200_keep_their_status() -> None:
    data = {"error": {"message": "slow down", "code": 429}}
    with pytest.raises(ModelUnavailable) as caught:
        read_completion(OpenAIWire("m", "http://h/v1"), data, latency=0.0)
    assert (caught.value.status, caught.value.retryable) == (429, True)


def test_retry_after_is_read_in_seconds_and_as_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=30), usegmt=True)
    assert seconds_asked({"Retry-After": "12"}) == 12.0
    assert 27 < (seconds_asked({"Retry-After": soon}) or 0) <= 30
    assert seconds_asked({"Retry-After": past}) == 0.0
    assert [seconds_asked({"Retry-After": value}) for value in ("soon", "", "nan", "inf")] == [None] * 4
    assert seconds_asked({}) is None


def test_missing_choices_are_asked_for_with_seeds_of_their_own() -> None:
    fake = FakeChatModel(lambda call, choice: f"{call.seed}", max_choices=1)
    model = Choices(fake)
    with pytest.warns(FewerChoicesWarning):
        first = asyncio.run(model.complete(Request(HELLO, n=5, seed=3, temperature=1.1)))
    again = asyncio.run(model.complete(Request(HELLO, n=5, seed=3, temperature=1.1)))
    assert len(set(first.texts)) == 5, "no vote comes back twice"
    assert first.texts == again.texts, "also when it is known from the start that one comes at a time"
    assert first.usage.requests == 5
    assert {call.temperature for call in fake.calls} == {1.1}


@given(st.integers(1, 12), st.integers(1, 12))
@pytest.mark.filterwarnings("ignore::esc_env.errors.FewerChoicesWarning")
def test_as_many_choices_come_back_as_were_asked_for(n: int, most: int) -> None:
    fake = FakeChatModel("x", max_choices=most, logprobs={"x": 0.0})
    completion = asyncio.run(Choices(fake).complete(Request(HELLO, n=n, seed=1, logprobs=1)))
    assert len(completion.texts) == len(completion.finish_reasons) == len(completion.logprobs or ()) == n
    assert len({call.seed for call in fake.calls}) == len(fake.calls) == completion.usage.requests == -(-n // most)


def test_a_provider_without_n_gets_single_requests_at_once() -> None:
    fake = FakeChatModel("x", latency=0.01)
    asyncio.run(Choices(fake, single=True).complete(Request(HELLO, n=4)))
    assert [call.n for call in fake.calls] == [1, 1, 1, 1]


def test_a_failed_choice_fails_the_call_with_its_own_error() -> None:
    fake = FakeChatModel("x", failures={3: ModelUnavailable("gone", status=500)})
    with pytest.raises(ModelUnavailable, match="gone"):
        asyncio.run(Choices(fake, single=True).complete(Request(HELLO, n=4)))

"""A key that is handed over (`api_key=`) goes to its server, and is in no file, spec, text, pickle or error."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import multiprocessing
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from conftest import bank
from gymnasium.envs.registration import EnvSpec

from esc_env import Request, Rules, evaluate
from esc_env.agents import resolve_agent
from esc_env.chairs.critics import resolve_critic
from esc_env.cli import main
from esc_env.errors import ConfigError, ModelUnavailable, SpecError
from esc_env.models import ModelSettings, open_model
from esc_env.secrets import Key, struck

pytest.importorskip("aiohttp")

from esc_env.testing import FakeServer
from esc_env.testing.fake_server import Fault

ONE, TWO = "the-planted-key-of-one", "the-planted-key-of-two"
WIRES = ["aiohttp", "openai", "litellm"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other keys, which must stay where they are."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ESC_API_KEY", "OPENAI_API_KEY", "HOSTED_VLLM_API_KEY"):
        monkeypatch.setenv(name, "the-key-of-the-environment")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway-Token: the-key-of-the-environment")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer("B", latency=0.01) as running:
        yield running


def chat(word: str = "Hi") -> Request:
    return Request([{"role": "user", "content": word}])


def keys(server: FakeServer) -> set[str]:
    """The keys that a server was sent."""
    return {request.headers["authorization"].removeprefix("Bearer ") for request in server.requests}


def nowhere(text: str) -> None:
    assert ONE not in text
    assert TWO not in text


# It arrives


@pytest.mark.full
@pytest.mark.parametrize("wire", WIRES)
def test_each_object_sends_its_own_key_to_a_server_that_both_ask_at_once(wire: Any, server: FakeServer) -> None:
    pytest.importorskip(wire)
    models = {key: open_model(f"openai/m@{server.url}", ModelSettings(wire=wire, api_key=key)) for key in (ONE, TWO)}

    async def together() -> None:
        await asyncio.gather(*(models[key].complete(chat(key[-3:])) for key in (ONE, TWO) * 8))

    asyncio.run(together())
    assert len(server.requests) == 16
    for request in server.requests:
        assert request.headers["authorization"] == f"Bearer the-planted-key-of-{request.body['messages'][0]['content']}"
        assert "the-key-of-the-environment" not in request.headers.values()


@pytest.mark.full
@pytest.mark.parametrize("wire", WIRES)
def test_it_goes_to_the_provider_where_no_url_names_a_server(
    wire: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(wire)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    for settings in (ModelSettings(wire=wire, api_key=ONE), ModelSettings(wire=wire)):
        asyncio.run(open_model("openai/m", settings).complete(chat()))
    first, second = (request.headers for request in server.requests)
    assert first["authorization"] == f"Bearer {ONE}"
    assert "x-gateway-token" not in first  # what belongs to the environment's key stays with it
    assert second["authorization"] == "Bearer the-key-of-the-environment"
    assert second["x-gateway-token"] == "the-key-of-the-environment"


@pytest.mark.full
def test_litellms_providers_take_it(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("litellm")
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", server.url)
    for key in (ONE, TWO):
        asyncio.run(open_model("hosted_vllm/m", ModelSettings(api_key=key)).complete(chat()))
    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {ONE}", f"Bearer {TWO}"]


def test_a_server_that_refuses_one_key_goes_on_with_the_other() -> None:
    with FakeServer(key=TWO) as server:
        wrong, right = (open_model(f"openai/m@{server.url}", ModelSettings(api_key=key)) for key in (ONE, TWO))
        with pytest.raises(ModelUnavailable, match="Set api_key to a valid key") as refused:
            asyncio.run(wrong.complete(chat()))
        assert asyncio.run(right.complete(chat())).texts == ("I hear you.",)
    nowhere(f"{refused.value} {refused.value!r} {refused.value.told}")


def test_the_quota_of_one_key_does_not_hold_up_the_other() -> None:
    def faults(number: int) -> Fault | None:
        return Fault("status", 429, retry_after="30") if number == 1 else None

    with FakeServer(faults=faults) as server:
        spent, other = (open_model(f"openai/m@{server.url}", ModelSettings(api_key=key)) for key in (ONE, TWO))

        async def asked() -> tuple[str | None, ...]:
            waiting = asyncio.create_task(spent.complete(chat()))
            while not server.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            answer = await asyncio.wait_for(other.complete(chat()), 10)
            assert not waiting.done()
            waiting.cancel()
            return answer.texts

        assert asyncio.run(asked()) == ("I hear you.",)


def test_the_same_key_is_the_same_model_and_another_is_another(server: FakeServer) -> None:
    spec = f"openai/m@{server.url}"
    assert open_model(spec, ModelSettings(api_key=ONE)) is open_model(spec, ModelSettings(api_key=f" {ONE}\n"))
    assert open_model(spec, ModelSettings(api_key=ONE)) is not open_model(spec, ModelSettings(api_key=TWO))
    assert ModelSettings(api_key=ONE) != ModelSettings(api_key=TWO)
    assert ModelSettings(api_key=ONE).api_key != "[key]"


def test_a_key_for_a_server_is_sent_to_no_provider_as_well(server: FakeServer) -> None:
    with pytest.raises(SpecError, match=r"critic openai/gpt-4o: api_key goes to servers that a URL names") as refused:
        evaluate(f"openai/m@{server.url}", bank(1), critic="openai/gpt-4o", api_key=ONE)
    assert "resolve_critic(" in str(refused.value)
    nowhere(str(refused.value))
    mine = ModelSettings(api_key=ONE)
    resolve_agent("openai/gpt-4o", mine)
    with pytest.raises(SpecError, match="api_key goes to the provider openai here"):
        resolve_critic(f"openai/m@{server.url}", mine)
    resolve_critic(f"openai/m@{server.url}", ModelSettings(api_key=ONE))  # said by whoever hands it over


# It stays nowhere


def test_settings_with_a_key_show_hide_copy_and_compare(server: FakeServer) -> None:
    settings = ModelSettings(api_key=ONE)
    nowhere(f"{settings} {settings!r} {settings.api_key} {settings.api_key!r} {json.dumps(settings.api_key)}")
    assert "api_key='[key]'" in repr(settings)
    assert copy.deepcopy(settings) == copy.copy(settings) == settings == ModelSettings(api_key=ONE)
    model = open_model(f"openai/m@{server.url}", settings)
    nowhere(f"{model!r} {model.identity}")
    for each in (settings, model, resolve_agent(f"openai/m@{server.url}", settings)):
        nowhere(pickle.dumps(each).decode("latin-1"))
    assert pickle.loads(pickle.dumps(model)) is model
    assert struck(f"You sent {ONE}.") == "You sent [key]."


def test_a_pickle_in_another_process_has_no_key(tmp_path: Path) -> None:
    (tmp_path / "settings.pickle").write_bytes(pickle.dumps(ModelSettings(api_key=ONE, concurrency=3)))
    code = "import pickle; print(pickle.load(open('settings.pickle', 'rb')))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "concurrency=3" in told
    assert "api_key=None" in told


def ask_there(answers: Connection, settings: ModelSettings, url: str) -> None:
    """What a process does that `multiprocessing` started."""
    asyncio.run(open_model(f"openai/m@{url}", settings).complete(chat()))
    answers.send(repr(settings) + struck(ONE))


@pytest.mark.full
def test_a_process_that_is_started_with_it_has_it(server: FakeServer) -> None:
    here = multiprocessing.get_context("spawn")
    mine, theirs = here.Pipe()
    process = here.Process(target=ask_there, args=(theirs, ModelSettings(api_key=ONE), server.url))
    process.start()
    assert mine.poll(120)
    nowhere(mine.recv())
    process.join()
    assert keys(server) == {ONE}


def test_two_threads_that_hand_over_one_key_hold_one() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len({Key(key) for key in pool.map(lambda number: f"the-key-{number % 3}", range(300))}) == 3


Make = Callable[..., Any]
MAKERS: dict[str, Make] = {
    "make": lambda **told: gym.make("ESConv-v0", **told),
    "make_vec": lambda **told: gym.make_vec("ESConv-v0", num_envs=2, **told),
    "sync": lambda **told: gym.make_vec("ESConv-v0", num_envs=2, vectorization_mode="sync", **told),
    "async": lambda **told: gym.make_vec(
        "ESConv-v0", num_envs=2, vectorization_mode="async", vector_kwargs={"shared_memory": False}, **told
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_gymnasium_keeps_no_key(maker: str, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    chairs: dict[str, Any] = {"seeker": f"openai/m@{server.url}", "critic": f"openai/c@{server.url}", "votes": 1}
    env = MAKERS[maker](**chairs, api_key=ONE)
    other = MAKERS["make"](**chairs, api_key=TWO)
    env.reset(seed=0)
    env.step("What happened?" if maker == "make" else ["What happened?", "What happened?"])
    env.close()
    assert keys(server) == {ONE}
    for spec in (env.spec, env.unwrapped.spec):
        assert json.loads(spec.to_json())["kwargs"]["api_key"] == "[key]"
        nowhere(f"{spec} {spec!r} {spec.kwargs}")
        spec.pprint()
    told = capsys.readouterr()
    nowhere(f"{env} {env!r} {vars(env)} {told.out} {told.err}")
    server.requests.clear()
    other.reset(seed=0)
    other.step("What happened?")
    assert keys(server) == {TWO}


def test_a_spec_makes_the_env_again_in_this_process_and_asks_for_the_key_elsewhere(server: FakeServer) -> None:
    chairs: dict[str, Any] = {"seeker": f"openai/m@{server.url}", "critic": f"openai/c@{server.url}", "votes": 1}
    env = gym.make("ESConv-v0", **chairs, api_key=ONE)
    assert env.spec is not None
    again: Any = gym.make(env.spec)
    twin = pickle.loads(pickle.dumps(env.unwrapped))
    nowhere(pickle.dumps(env.unwrapped).decode("latin-1"))
    for each in (again, twin, copy.deepcopy(env)):
        each.reset(seed=0)
        each.step("What happened?")
    assert keys(server) == {ONE}
    kept = EnvSpec.from_json(env.spec.to_json())
    with pytest.raises(SpecError, match=r"api_key is \[key\].*Give the key itself again"):
        gym.make(kept)
    gym.make(kept, api_key=TWO)


def test_an_error_that_gymnasium_quotes_its_arguments_in_holds_no_key() -> None:
    def scenarios() -> Iterator[Any]:
        raise TypeError("odd scenarios")
        yield

    with pytest.raises(TypeError, match=r"odd scenarios.*'api_key': '\[key\]'") as failed:
        gym.make("ESConv-v0", scenarios=scenarios(), api_key=ONE)
    nowhere(str(failed.value))


def test_a_run_with_a_key_keeps_it_in_no_file_and_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeServer(f"You sent {ONE}. B", thought=f"It is {ONE}.") as server:
        spec = f"openai/m@{server.url}"
        report = evaluate(
            spec, bank(2), seeker=spec, critic=spec, rules=Rules(max_turns=2, votes=1), out=tmp_path / "run",
            record=tmp_path / "kept.db", api_key=ONE,
        )  # fmt: skip
        kept = evaluate(
            spec, "builtin:test", limit=1, rules=Rules(max_turns=1), out=tmp_path / "named", api_key=ONE,
        )  # fmt: skip
        assert keys(server) == {ONE}
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"kept.db", "trajectories.jsonl", "run.json"} <= {file.name for file in files}
    for file in files:
        assert ONE.encode() not in file.read_bytes(), file
    config = json.loads((tmp_path / "named" / "run.json").read_text())["config"]
    assert not any("api_key" in name for name in config)
    nowhere(f"{report!r} {kept!r} {caplog.text}")
    replayed = evaluate(
        spec, bank(2), seeker=spec, critic=spec, rules=Rules(max_turns=2, votes=1), out=tmp_path / "again",
        replay=tmp_path / "kept.db", api_key=TWO,
    )  # fmt: skip
    assert replayed.success_rate == report.success_rate  # a cassette answers whoever has which key


# What is none


@pytest.mark.parametrize("value", [b"sk-planted-0123", 3, ["sk-planted-0123"], True, object()])
def test_what_is_no_text_is_refused_without_showing_it(value: Any) -> None:
    with pytest.raises(SpecError, match=f"^api_key must be the key as a text, not {type(value).__name__}$") as refused:
        ModelSettings(api_key=value)
    assert "planted" not in str(refused.value)
    with pytest.raises(SpecError, match="api_key must be the key as a text"):
        gym.make("ESConv-v0", api_key=value)


@pytest.mark.parametrize(
    ("value", "told"),
    [("", "api_key is empty"), (" \n", "api_key is empty"), ("sk-planted 0123", "a space or a character"),
     ("sk-planted\r\nX-Other: 1", "a space or a character"), ("sk-plantedé", "a space or a character"),
     ("[key]", "stands where a key was")],
)  # fmt: skip
def test_a_text_that_is_no_key_is_refused_without_showing_it(value: str, told: str) -> None:
    with pytest.raises(SpecError, match=told) as refused:
        ModelSettings(api_key=value)
    assert "planted" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_key_and_the_name_of_one_are_one_too_many() -> None:
    with pytest.raises(SpecError, match="api_key and api_key_env cannot be used together") as refused:
        ModelSettings(api_key=ONE, api_key_env="MINE")
    nowhere(str(refused.value))


def test_no_command_and_no_file_takes_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from esc_env.training.config_loading import described, read_pipeline

    (tmp_path / "bench.yaml").write_text(f"agents: [builtin:skilled]\napi_key: {ONE}\n")
    for command in (["eval", "--api-key", ONE], ["chat", "--api-key", ONE], ["eval", "--config", "bench.yaml"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code
        told = capsys.readouterr()
        assert re.search(r"--api-key-env|api_key_env", told.out + told.err)
        nowhere(told.out + told.err)
    (tmp_path / "method.yaml").write_text(f"models: {{api_key: {ONE}}}\n")
    with pytest.raises(ConfigError, match=r"line 1.*a key belongs in no file.*api_key_env") as refused:
        read_pipeline(str(tmp_path / "method.yaml"))
    nowhere(str(refused.value))
    with pytest.raises(ConfigError, match="--api-key is no option") as refused:
        read_pipeline(None, ["--api-key", ONE])
    nowhere(str(refused.value))
    assert "--api-key" not in dict(described(None))

"""A key stays in the environment: it is in no file, on no terminal and in no warning, whoever says it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import bank
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from esc_env import Completion, Request, Rules, Usage, evaluate
from esc_env.cli import build_app, main
from esc_env.errors import BareKeyWarning, ModelUnavailable, SpecError
from esc_env.models import ModelSettings, open_model
from esc_env.records import RecordWriter, write_json, write_text
from esc_env.secrets import redacted, struck

SHAPES = [
    "sk-proj-Ab3dEf6hIj9lMn2pQr5t", "sk-ant-api03-Ab3dEf6hIj9lMn2p", "sk-or-v1-0123456789abcdef0123",
    "gsk_Ab3dEf6hIj9lMn2pQr5tUv8x", "hf_Ab3dEf6hIj9lMn2pQr5tUv8xYz", "xai-Ab3dEf6hIj9lMn2pQr5t", "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE", "ghp_Ab3dEf6hIj9lMn2pQr5tUv8xYz0123456789", "github_pat_11ABCDEFG0Ab3dEf6hIj9lMn",
    "csk-0123456789abcdef01", "glpat-Ab3dEf6hIj9lMn2pQr5t", "xoxb-1234567890-Ab3dEf6hIj",
    "AIzaSyAb3dEf6hIj9lMn2pQr5tUv8xYz0123456",
    "ya29.Ab3dEf6hIj9lMn2pQr5tUv8x", "dapi0123456789abcdef0123456789abcdef", "pplx-Ab3dEf6hIj9lMn2pQr5t",
    "sk_live_Ab3dEf6hIj9lMn2p", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA0\nAb3d+/==\n-----END RSA PRIVATE KEY-----",
]  # fmt: skip

NAMES = [
    "OPENAI_API_KEY", "WATSONX_APIKEY", "WATSONX_ZENAPIKEY", "SNOWFLAKE_JWT", "AZURE_PASSWORD", "AZURE_CLIENT_SECRET",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "PGPASSWORD", "GITHUB_PAT", "DB_PASS",
    "VERTEX_CREDENTIALS", "openai_api_key", "OPENAI_API_KEY_2", "DATABRICKS_TOKEN",
]  # fmt: skip


@pytest.mark.parametrize("key", SHAPES)
def test_what_has_the_shape_of_a_key_is_struck_wherever_it_stands(key):
    for text in (f"I was sent {key}.", f"{key}", f"key={key}\nmore", f"“{key}”", f'{{"key": "{key}"}}'):
        assert key not in struck(text)
        assert key[8:] not in struck(text)
        assert struck(struck(text)) == struck(text)


@pytest.mark.parametrize("name", NAMES)
def test_the_value_of_a_credential_is_struck_whatever_its_shape(name, monkeypatch):
    monkeypatch.setenv(name, 'pla"in<words&more')
    for text in ('pla"in<words&more', json.dumps('pla"in<words&more'), "pla&quot;in&lt;words&amp;more"):
        assert "words" not in struck(f"You sent {text}!")


@pytest.mark.parametrize(
    ("name", "value"),
    [("PWD", "/home/somebody"), ("OLDPWD", "/home/somebody"), ("KEYBOARD", "qwertz-layout"), ("MONKEY", "chimpanzee"),
     ("OPENAI_API_KEY", "EMPTY"), ("OPENAI_API_KEY", ""), ("TOKENIZERS_PARALLELISM", "sometimes"),
     ("GOOGLE_APPLICATION_CREDENTIALS", __file__)],
)  # fmt: skip
def test_other_variables_are_words_like_any(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert struck(f"It is {value} here.") == f"It is {value} here."


@given(st.text())
def test_a_text_without_keys_stays_as_it_was(text):
    assert struck(text) == text


@pytest.mark.parametrize(
    "text",
    ["My risk-taking-behaviour-since-2024 and key-performance-indicators-of-2023 worry me.",
     "sk-learn-is-what-everybody-uses", "the Bearer bonds-and-obligations of hope",
     "hf_hub_download_of_everything_there",
     "pk-and-other-abbreviations-of-mine", "AKIA", "ghp_", "I feel like -----BEGIN again-----", "eyJ is no word"],
)  # fmt: skip
def test_words_that_look_a_little_like_keys_stay(text):
    assert struck(text) == text


def test_data_is_struck_all_the_way_down(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "0123deadbeef")
    data = {"0123deadbeef": ["0123deadbeef", 1, None, {"a": ("is 0123deadbeef",)}], "n": 0.5}
    assert struck(data) == {"[key]": ["[key]", 1, None, {"a": ["is [key]"]}], "n": 0.5}


def test_what_is_written_holds_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", 'dead"beef0123')
    with RecordWriter(tmp_path / "records.jsonl", "thing") as writer:
        writer.write({"said": 'dead"beef0123'})
    write_json(tmp_path / "one.json", {"said": 'dead"beef0123'})
    write_text(tmp_path / "page.html", "<p>dead&quot;beef0123</p>")
    assert json.loads((tmp_path / "one.json").read_text()) == {"said": "[key]"}
    assert all("beef" not in file.read_text() for file in tmp_path.iterdir())


KEY = "0123planted-with-no-shape"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ESC_API_KEY", KEY)


def nowhere(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "trajectories.jsonl" for file in files)
    for file in files:
        assert KEY.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("record", [False, True])
def test_a_server_that_echoes_the_key_puts_it_nowhere(record, planted, tmp_path, capsys):
    pytest.importorskip("aiohttp")
    from esc_env.testing import FakeServer

    with FakeServer(f"You sent {KEY}. What happened?", thought=f"It is {KEY}.") as server:
        command = ["eval", "-a", f"openai/{KEY}@{server.url}", "--limit", "2", "--max-turns", "2", "--out", "run"]
        with pytest.raises(SystemExit) as ended:
            main([*command, *(["--record", "run.db"] if record else [])])
        told = capsys.readouterr()
        assert ended.value.code == 0, told.err
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0, capsys.readouterr().err
    nowhere(tmp_path)
    assert KEY[:10] not in told.out + told.err


def test_a_key_in_an_error_is_nowhere(planted, tmp_path, capsys):
    pytest.importorskip("aiohttp")
    from esc_env.testing import FakeServer
    from esc_env.testing.fake_server import Fault

    faults = lambda number: Fault("status", 400, message=f"no: {KEY}") if number > 1 else None  # noqa: E731
    with FakeServer(faults=faults) as server:
        with pytest.raises(SystemExit):
            main(["eval", "-a", f"openai/m@{server.url}", "--limit", "2", "--max-turns", "2", "--out", "run"])
        told = capsys.readouterr()
    nowhere(tmp_path)
    assert "[key]" in told.out + told.err
    assert KEY not in told.out + told.err


def test_a_supporter_of_ones_own_that_says_a_key_or_fails_with_one_puts_it_nowhere(planted, tmp_path):
    def says(messages):
        return f"Use {os.environ['OPENAI_API_KEY']}."

    def fails(messages):
        raise RuntimeError(f"{KEY} is wrong")

    for supporter in (says, fails):
        evaluate(supporter, bank(1), rules=Rules(max_turns=1), out=tmp_path / supporter.__name__)
    nowhere(tmp_path)


def test_no_part_of_a_completion_holds_the_key(planted, tmp_path, monkeypatch):
    said = Completion((f"{KEY}", None), (KEY, "stop"), Usage(1), KEY, ({KEY: -0.5}, {"A": -1.0}))

    class Echo:
        identity = {"provider": "fake", "name": "echo"}  # noqa: RUF012

        async def complete(self, request):
            return said

    monkeypatch.setitem(sys.modules, "echoes", SimpleNamespace(model=Echo()))
    heard = asyncio.run(open_model("python:echoes:model").complete(Request([{"role": "user", "content": "Hi"}])))
    assert KEY not in repr(heard)
    assert heard.texts == ("[key]", None)
    assert heard.logprobs == ({"[key]": -0.5}, {"A": -1.0})


def test_a_servers_message_may_quote_a_part_of_a_key():
    assert redacted("Incorrect API key provided: sk-wrong**********0000.") == "Incorrect API key provided: [key]"


# A key belongs to its provider


WIRES = ["aiohttp", "openai", "litellm"]


def sent(url: str, wire: str = "aiohttp", provider: str = "openai", **settings: Any) -> None:
    """One request."""
    pytest.importorskip(wire)
    chat = Request([{"role": "user", "content": "Hi"}])
    asyncio.run(open_model(f"{provider}/m@{url}", ModelSettings(wire=wire, **settings)).complete(chat))  # type: ignore[arg-type]


@pytest.fixture
def keys(planted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESC_API_KEY")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Gateway-Token: {KEY}")
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


@pytest.mark.full
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_providers_key_is_sent_to_no_other_host(wire, provider, keys):
    if (wire, provider) == ("litellm", "anthropic"):
        pytest.skip("LiteLLM speaks Anthropic's own protocol there")
    from esc_env.testing import FakeServer

    with FakeServer() as server:
        sent(server.url, wire, provider)
    assert all(KEY not in value and "org-of-mine" not in value for value in server.requests[0].headers.values())


@pytest.mark.full
@pytest.mark.parametrize("wire", WIRES)
def test_another_host_gets_the_key_that_is_named_for_it(wire, keys, monkeypatch):
    from esc_env.testing import FakeServer

    monkeypatch.setenv("ESC_API_KEY", "the-key-of-any-host")
    monkeypatch.setenv("MINE", "the-key-of-mine")
    with FakeServer() as server:
        sent(server.url, wire)
        sent(server.url, wire, api_key_env="MINE")
    given = [request.headers["authorization"] for request in server.requests]
    assert given == ["Bearer the-key-of-any-host", "Bearer the-key-of-mine"]
    assert struck("I got the-key-of-mine.") == "I got [key]."  # whatever its variable is called


@pytest.mark.full
@pytest.mark.parametrize("wire", WIRES)
def test_openais_key_goes_where_openais_base_url_points(wire, keys, monkeypatch):
    from esc_env.testing import FakeServer

    with FakeServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        sent(server.url, wire)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert server.requests[0].headers["x-gateway-token"] == KEY


@pytest.mark.full
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_no_redirect_is_followed(wire, provider, keys, monkeypatch):
    from esc_env.testing import FakeServer
    from esc_env.testing.fake_server import Fault

    monkeypatch.setenv("ESC_API_KEY", KEY)
    with FakeServer() as other:
        there = f"http://localhost:{other.port}/v1/chat/completions"
        with FakeServer(faults=lambda number: Fault("redirect", location=there)) as server:
            with pytest.raises(ModelUnavailable, match="sends on to") as refused:
                sent(server.url, wire, provider)
            assert len(server.requests) == 1
    told = str(refused.value)
    assert f"127.0.0.1:{server.port} sends on to localhost:{other.port}, and nothing is sent there" in told
    assert "\n" not in told
    assert other.requests == []


def test_an_answer_without_end_or_bottom_is_refused(planted, monkeypatch):
    pytest.importorskip("aiohttp")
    from esc_env.models import wire
    from esc_env.testing import FakeServer

    chat = Request([{"role": "user", "content": "Hi"}])
    with FakeServer("word " * 10**6) as server:
        model = wire.OpenAIWire("m", server.url)
        monkeypatch.setattr(wire, "LONGEST_ANSWER", 1 << 20)
        with pytest.raises(ModelUnavailable, match="answered with more than 1 MiB"):
            asyncio.run(model.complete(chat))
    assert list(wire._events(b"data: " + b"[" * 10**6)) == []


def leaves(command: Any, name: str = "esc") -> dict[str, Any]:
    """Every command by what is typed for it."""
    inside = getattr(command, "commands", {})
    if not inside:
        return {name: command}
    return {known: leaf for word, each in inside.items() for known, leaf in leaves(each, f"{name} {word}").items()}


@pytest.mark.full
def test_every_command_that_opens_a_model_can_be_told_its_key():
    pytest.importorskip("trl")
    from esc_env.training.cli import _Fields
    from esc_env.training.config import STAGES
    from esc_env.training.config_loading import described

    opening, told = set(), set()
    for name, command in leaves(get_command(build_app())).items():
        options = {option for param in command.params for option in param.opts}
        if name.startswith("esc train ") and isinstance(command, _Fields):
            stage = name.rpartition(" ")[2]
            options |= {option for option, _ in described(stage if stage in STAGES else None)}
        opening |= {name} if options & {"--agent", "--seeker", "--critic", "--judge"} else set()
        told |= {name} if "--api-key-env" in options else set()
    assert opening == told
    assert opening >= {
        "esc eval",
        "esc chat",
        "esc collect",
        "esc validate critic",
        "esc train grpo",
        "esc train ablate",
    }


@pytest.mark.parametrize("side", ["supporter", "seeker"])
def test_a_chat_sends_the_key_that_is_named(side, keys, monkeypatch):
    pytest.importorskip("aiohttp")
    from esc_env.testing import FakeServer

    monkeypatch.setenv("MINE", "the-key-of-mine")
    monkeypatch.setattr("sys.stdin", StringIO("Hello.\n"))
    with FakeServer() as server:
        chair = "--agent" if side == "seeker" else "--seeker"
        with pytest.raises(SystemExit) as ended:
            main(["chat", "--as", side, chair, f"openai/m@{server.url}", "--api-key-env", "MINE"])
    assert ended.value.code == 0
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer the-key-of-mine"}


def test_a_key_that_is_named_and_not_set_is_told(keys):
    with pytest.raises(ModelUnavailable, match=r"no key\. Set NOT_THERE, which --api-key-env"):
        sent("http://127.0.0.1:9/v1", api_key_env="NOT_THERE")


@pytest.mark.parametrize("name", ["sk-Ab3dEf6hIj9lMn2pQr5t", "ghp_Ab3dEf6hIj9lMn2pQr5tUv8xYz", "", "A B", 3])
def test_a_key_in_place_of_its_variables_name_is_refused_and_not_repeated(name):
    with pytest.raises(SpecError, match="name of an environment variable") as refused:
        ModelSettings(api_key_env=name)
    assert "Ab3dEf" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [("http://gpu-box:8000/v1", True), ("http://10.0.0.7:8000/v1", True), ("http://localhost.evil.com/v1", True),
     ("http://127.0.0.1.evil.com/v1", True), ("https://gpu-box/v1", False), ("http://127.0.0.1:8000/v1", False),
     ("http://localhost:8000/v1", False), ("http://[::1]:8000/v1", False)],
)  # fmt: skip
def test_a_key_over_plain_http_to_another_machine_is_told_once(url, told, planted, monkeypatch):
    pytest.importorskip("aiohttp")
    from esc_env.models import wire

    wire._tell_if_bare.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = wire.OpenAIWire("m", url)
        assert (model.key, model.key) == (KEY, KEY)
        monkeypatch.delenv("ESC_API_KEY")
        assert wire.OpenAIWire("m", url).key is None
    assert [each.category for each in caught] == [BareKeyWarning] * told
    assert all("ESC_API_KEY" in str(each.message) and KEY not in str(each.message) for each in caught)

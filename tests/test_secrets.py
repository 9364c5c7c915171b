"""A key stays in the environment: it is in no file, on no terminal and in no warning, whoever says it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import bank
from hypothesis import given
from hypothesis import strategies as st

from esc_env import Completion, Request, Rules, Usage, evaluate
from esc_env.cli import main
from esc_env.models import open_model
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


def test_striking_costs_next_to_nothing():
    text = "I cannot sleep, and I keep thinking about what they said at work. " * 8
    struck(text)
    begun = time.perf_counter()
    for _ in range(100):
        struck(text)
    assert (time.perf_counter() - begun) / 100 < 0.002  # a request costs a server seconds


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

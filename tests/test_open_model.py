"""From a string to a chat model, and from there into the env, evaluation and the command line."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
from conftest import bank
from hypothesis import given
from hypothesis import strategies as st

from esc_env.cli import main
from esc_env.errors import BudgetExceeded, ChairError, ModelError, ModelUnavailable, SpecError
from esc_env.evaluation import evaluate
from esc_env.models import ModelSettings, budget, check_model, check_parameters, open_model
from esc_env.models.capabilities import capabilities_of
from esc_env.models.cassette import Cassette
from esc_env.protocols import Request, Usage
from esc_env.records import read_records
from esc_env.rules import Rules
from esc_env.specs import parse_spec
from esc_env.testing import FakeChatModel

CHAT: Any = [{"role": "user", "content": "How are you?"}]

MODELS = """
import itertools, json
from esc_env.testing import FakeChatModel

numbers = itertools.count()

def say(call, choice):
    "Never the same twice: only what was kept can come again."
    number = next(numbers)
    text = call.messages[-1]["content"] + call.messages[0]["content"]
    if "(A)" in text or "A." in text or "A)" in text:
        return "ABCD"[number % 4]
    return f"I keep thinking about it, time {number}."

person = FakeChatModel(say, name="person")
judge = FakeChatModel(lambda call, choice: "ABC"[next(numbers) % 3], name="judge")
helper = FakeChatModel(lambda call, choice: f"What happened next, {next(numbers)}?", name="helper")
nothing = 3
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A process that has spent nothing, in an empty folder."""
    monkeypatch.setattr(budget, "_ledger", budget.Ledger())
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """A module `my_models` of three chat models: person, judge and helper."""
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("my_models")
    sys.modules.pop("my_models", None)
    from esc_env.models.opening import _opened

    _opened.cache_clear()


@pytest.fixture
def server():
    """A server of ours, with a function to start others."""
    pytest.importorskip("aiohttp")
    from esc_env.testing import FakeServer

    with FakeServer("I hear you.") as running:
        yield running


def ask(model, **parameters):
    return asyncio.run(model.complete(Request(CHAT, **parameters)))


# Strings


def test_a_string_tells_provider_server_and_style_apart():
    spec = parse_spec("openai/org/qwen-7b@http://127.0.0.1:8000/v1/#self-refine")
    assert (spec.kind, spec.name, spec.url, spec.style) == (
        "model", "openai/org/qwen-7b", "http://127.0.0.1:8000/v1", "self-refine"
    )  # fmt: skip
    assert parse_spec("openai/gpt-4o") == parse_spec("openai/gpt-4o")
    assert parse_spec("openai/gpt-4o").style is None
    assert parse_spec("local:models/mine#think").style == "think"
    assert parse_spec("python:my_models:helper#cot") == parse_spec("python:my_models:helper#cot")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpt-4o", "PROVIDER/NAME"),
        ("openai/", "names nothing"),
        ("openai/m@http://", "must be a URL such as"),
        ("openai/m@https:///v1", "must be a URL such as"),
        ("openai/gpt-4o@localhost:8000", "http://127.0.0.1:8000/v1"),
        ("openai/gpt-4o#", "a style such as"),
        ("openai/gpt-4o#no style", "a style such as"),
    ],
)
def test_strings_that_name_no_model_are_refused_with_what_to_type(text, told):
    with pytest.raises(SpecError, match=r".") as refused:
        parse_spec(text)
    assert told in str(refused.value)


def test_a_url_with_a_password_is_refused_without_saying_it():
    with pytest.raises(SpecError) as refused:
        parse_spec("openai/m@https://me:hunter22@host/v1")
    assert "password" in str(refused.value)
    assert "hunter22" not in str(refused.value)


@pytest.mark.parametrize("query", ["key=hunter22", "api-version=1&api_key=hunter22", "access_token=hunter22"])
def test_a_url_with_a_key_in_it_is_refused_without_saying_it(query):
    with pytest.raises(SpecError, match="set the key in the environment") as refused:
        parse_spec(f"openai/m@https://host/v1?{query}")
    assert "hunter22" not in str(refused.value)


@given(st.text(max_size=40))
def test_any_string_is_parsed_or_refused(text):
    try:
        spec = parse_spec(text)
    except SpecError:
        return
    assert spec.name or text == "builtin"


# Settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"budget": "a lot"}, "'5 USD'"),
        ({"wire": "pigeon"}, "aiohttp"),
        ({"record": "a.db", "replay": "b.db"}, "record and replay cannot be used together"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_when_they_are_made(settings, told):
    with pytest.raises(SpecError) as refused:
        ModelSettings(**settings)
    assert told in str(refused.value)


def test_the_same_string_and_settings_give_the_same_model(fakes):
    assert open_model("python:my_models:person") is open_model("python:my_models:person#cot", ModelSettings())
    assert open_model("python:my_models:person") is not open_model("python:my_models:helper")


def test_a_model_of_ones_own_is_counted_and_its_identity_kept(fakes):
    model = open_model("python:my_models:helper", ModelSettings(budget="5 tokens"))
    assert model.identity == {"provider": "fake", "name": "helper"}
    ask(model)
    with pytest.raises(BudgetExceeded):
        ask(model)


@pytest.mark.parametrize("text", ["python:my_models:nothing", "python:my_models:FakeChatModel", "builtin:skilled"])
def test_what_is_no_chat_model_is_refused(fakes, text):
    with pytest.raises(SpecError, match=r"no chat model|no ChatModel"):
        open_model(text)


def test_importing_models_needs_no_extra_and_opening_one_names_what_is_missing():
    code = """
import sys
for name in ("aiohttp", "openai", "litellm", "torch"):
    sys.modules[name] = None
from esc_env.errors import MissingExtra
from esc_env.models import ModelSettings, open_model
for text, wire in [("openai/gpt-4o", "aiohttp"), ("openai/gpt-4o", "openai"), ("anthropic/claude", "litellm")]:
    try:
        open_model(text, ModelSettings(wire=wire))
    except MissingExtra as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        f"{name} is not installed. Type: pip install 'esc-env[llm]'" for name in ("aiohttp", "openai", "litellm")
    ]


def test_a_wire_that_cannot_reach_a_provider_is_refused():
    with pytest.raises(SpecError, match="'aiohttp' speaks to openai/NAME"):
        open_model("anthropic/claude-sonnet-4-5", ModelSettings(wire="aiohttp"))


@pytest.mark.full
def test_a_dollar_budget_for_a_model_of_unknown_price_is_refused_before_anything_is_asked():
    settings = ModelSettings(budget="5 USD")
    with pytest.raises(SpecError, match=r"openai/mine at http://127.0.0.1:1/v1: its price is unknown.*2M tokens"):
        open_model("openai/mine@http://127.0.0.1:1/v1", settings)


def test_replaying_needs_neither_extra_nor_key(tmp_path, monkeypatch):
    model = FakeChatModel("Better.")
    said = ask(Cassette(tmp_path / "run.db", "record", {"provider": "openai", "name": "gpt-4o"}, model), seed=4)
    said = replace(said, usage=replace(said.usage, models=("fake",)))
    for name in ("aiohttp", "openai", "litellm"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    settings = ModelSettings(replay=tmp_path / "run.db")
    assert ask(open_model("openai/gpt-4o", settings), seed=4) == said
    assert ask(open_model("openai/gpt-4o@http://elsewhere/v1", settings), seed=4) == said, "the URL is no part of it"
    with pytest.raises(ModelUnavailable, match="does not hold the request"):
        ask(open_model("openai/gpt-4o", settings), seed=5)
    asyncio.run(check_model(open_model("openai/gpt-4o", settings)))


# What models take


@pytest.fixture
def replayed(tmp_path):
    """Opens models that need no wire: what they take is known all the same."""
    Cassette(tmp_path / "empty.db", "record", {}, FakeChatModel())
    return lambda text: open_model(text, ModelSettings(replay=tmp_path / "empty.db"))


@pytest.mark.parametrize("name", ["o1", "o3-mini", "o4-mini", "gpt-5", "gpt-5-mini", "gpt-5.1"])
def test_reasoning_models_take_one_temperature_no_logprobs_and_another_token_limit(name):
    takes = capabilities_of("openai", name)
    assert takes.temperature == (1.0, 1.0)
    assert not takes.logprobs
    assert not takes.stop
    assert takes.token_limit == "max_completion_tokens"


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-4.1-mini", "gpt-5-chat-latest", "omni-moderation", "qwen3"])
def test_other_models_take_everything(name):
    assert capabilities_of("openai", name).temperature == (0.0, 2.0)
    assert capabilities_of("openai", name).logprobs


def test_of_a_server_of_ones_own_nothing_is_known_to_be_refused():
    assert capabilities_of("openai", "o3", hosted=False).temperature == (0.0, 2.0)


@pytest.mark.full
def test_anthropic_gets_single_requests_without_seeds_and_a_narrower_temperature():
    takes = capabilities_of("anthropic", "claude-sonnet-4-5")
    assert (takes.choices, takes.seed, takes.logprobs, takes.temperature) == (False, False, False, (0.0, 1.0))


@pytest.mark.full
def test_a_provider_nobody_knows_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match=r"no provider 'antropic'. Did you mean 'anthropic'.*antropic/claude@http"):
        open_model("antropic/claude")


def test_what_a_model_does_not_take_is_refused_by_name_with_the_option_that_changes_it(replayed):
    model = replayed("openai/o3")
    with pytest.raises(SpecError, match=r"critic openai/o3 takes only .* 1, not 1\.1\. Add --critic-temperature 1 "):
        check_parameters(model, "critic", temperature=1.1)
    with pytest.raises(SpecError, match=r"agent openai/o3 .* Add --temperature 1 \(temperature=1\)"):
        check_parameters(model, "agent", temperature=0.0)
    with pytest.raises(SpecError, match=r"log-probabilities\. Use --critic-mode votes"):
        check_parameters(model, "critic", temperature=1.0, logprobs=True)
    with pytest.raises(SpecError, match="stop strings"):
        check_parameters(model, "agent", stop=True)
    check_parameters(model, "critic", temperature=1.0)
    check_parameters(replayed("openai/gpt-4o"), "critic", temperature=1.1, logprobs=True, stop=True)
    check_parameters(FakeChatModel(), "critic", temperature=1.1, logprobs=True, stop=True)


def test_a_refused_parameter_stops_env_and_evaluation_before_they_start(tmp_path, replayed):
    replayed("openai/o3")
    file = str(tmp_path / "empty.db")
    for build in (
        lambda: gym.make("ESConv-v0", critic="openai/o3", replay=file),
        lambda: gym.make("ESConv-v0", critic="openai/o3", critic_temperature=1.0, critic_mode="logprobs", replay=file),
        lambda: gym.make("ESConv-v0", seeker="openai/o3", replay=file),
        lambda: evaluate("openai/o3", bank(1), replay=file, out=tmp_path / "run"),
    ):
        with pytest.raises(SpecError, match="openai/o3"):
            build()
    assert not (tmp_path / "run").exists()
    takes: Any = {"critic_temperature": 1.0, "seeker_temperature": 1.0}
    gym.make("ESConv-v0", seeker="openai/o3", critic="openai/o3", **takes, replay=file)


# In the env and in evaluation


def test_a_misspelt_argument_is_told_with_the_right_one():
    with pytest.raises(SpecError, match=r"no argument 'budgett'. Did you mean 'budget'\?"):
        gym.make("ESConv-v0", budgett="5 USD")
    with pytest.raises(SpecError, match=r"Did you mean 'max_turns'"):
        gym.make("ESConv-v0", max_turn=3)
    misspelt: Any = {"concurency": 3}
    with pytest.raises(SpecError, match=r"Did you mean 'concurrency'\?"):
        evaluate("builtin:skilled", bank(1), **misspelt)


def test_an_env_with_model_chairs_can_be_copied_pickled_and_kept_as_json(fakes):
    options: Any = {"seeker": "python:my_models:person", "critic": "python:my_models:judge", "budget": "1M tokens"}
    env: Any = gym.make("ESConv-v0", **options)
    env.reset(seed=0)
    env.step("What happened?")
    assert env.unwrapped.task.chairs.critic.model is open_model(
        "python:my_models:judge", ModelSettings(budget="1M tokens")
    )
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env.unwrapped)), gym.make(env.spec)):
        other.reset(seed=0)
    assert json.loads(env.spec.to_json())["kwargs"]["budget"] == "1M tokens"


def test_all_envs_of_a_process_share_the_budget(fakes):
    options: Any = {"seeker": "python:my_models:person", "critic": "python:my_models:judge", "votes": 1}
    first, second = (gym.make("ESConv-v0", budget="100 tokens", **options).unwrapped for _ in range(2))
    first.reset(seed=0)
    second.reset(seed=1)
    with pytest.raises(ChairError):
        first.step("What happened?")  # its seeker has spent it all
    with pytest.raises(ChairError, match="seeker: the budget of 100 tokens is spent") as failed:
        second.step("What happened?")
    assert isinstance(failed.value.__cause__, BudgetExceeded)


RUN: dict[str, Any] = {
    "seeker": "python:my_models:person", "critic": "python:my_models:judge", "rules": Rules(max_turns=3)
}  # fmt: skip


def lines(folder):
    """The conversations of a run, without when they ended."""
    kept = read_records(folder / "trajectories.jsonl", "trajectory")
    return sorted(json.dumps(line, sort_keys=True) for line in kept)


def test_a_whole_run_replays_bit_for_bit_sampled_votes_included(fakes, tmp_path):
    first = evaluate("python:my_models:helper", bank(6), **RUN, record="run.db", out="a", concurrency=6)
    asked = [len(model.calls) for model in (fakes.person, fakes.judge, fakes.helper)]
    assert all(asked)
    again = evaluate("python:my_models:helper", bank(6), **RUN, replay="run.db", out="b", concurrency=2)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert len(set(lines(tmp_path / "a"))) == 6
    assert asked == [len(model.calls) for model in (fakes.person, fakes.judge, fakes.helper)], "no model was asked"
    assert first.run_key == again.run_key, "recording is no part of the protocol"


def test_a_replay_of_another_run_is_refused_by_name_and_never_scored(fakes, tmp_path):
    evaluate("python:my_models:helper", bank(2), **RUN, record="run.db", out="a")
    report = evaluate("python:my_models:helper", bank(2), **RUN, replay="run.db", seed=1, out="b")
    assert (report.completed, report.errors) == (0, 2)
    assert any("does not hold the request" in message for _, message, _ in report.failure_messages)


def test_a_spent_budget_stops_the_run_and_a_larger_one_goes_on(fakes, tmp_path):
    few = evaluate("python:my_models:helper", bank(30), **RUN, budget="6k tokens", out="run", concurrency=2)
    assert 0 < few.completed < 30
    assert few.errors <= 2, "no conversation is begun once the budget is spent"
    kept = lines(tmp_path / "run")
    whole = evaluate("python:my_models:helper", bank(30), **RUN, budget="10M tokens", out="run", concurrency=2)
    assert whole.complete
    assert set(kept) <= set(lines(tmp_path / "run"))


def test_a_spent_budget_ends_unattended_training_instead_of_every_episode(fakes):
    options: Any = {"seeker": "python:my_models:person", "on_error": "truncate", "votes": 1}
    env = gym.make("ESConv-v0", budget="1 tokens", **options)
    env.reset(seed=0)
    env.step("What happened?")
    with pytest.raises(ChairError, match="the budget of 1 tokens is spent"):
        env.step("What happened?")


def test_a_run_never_lasts_longer_than_its_time_limit_and_goes_on_later(fakes, tmp_path):
    def hang(reached):
        fakes.person.latency = 3600.0 if reached.done >= enough else 0.0

    held: Any = {**RUN, "critic": "builtin", "out": "run", "concurrency": 2}
    for enough in (0, 4):
        few = evaluate("python:my_models:helper", bank(30), **held, time_limit=0.2 + enough / 2, progress=hang)
        assert enough <= few.completed <= enough + 1, "of the two under way, one may not have asked yet"
        assert few.errors <= 2, "what was cut off is kept, and goes on"
    fakes.person.latency = 0.0
    assert evaluate("python:my_models:helper", bank(30), **held, time_limit=600).complete


def test_the_fingerprint_holds_what_the_agent_faces_and_nothing_of_how_models_are_called(fakes, tmp_path):
    def key(**changes: Any):
        settings: Any = {**RUN, **changes, "out": tmp_path / str(len(keys))}
        return evaluate("python:my_models:helper", bank(1), **settings).run_key

    keys: list[str] = []
    keys.append(key())
    for same in ({"concurrency": 3}, {"budget": "1M tokens"}, {"timeout": 5.0}, {"cache": "c.db"}, {"record": "r.db"}):
        keys.append(key(**same))
    assert len(set(keys)) == 1
    faced = json.loads((tmp_path / "0" / "run.json").read_text())["identity"]
    assert faced["critic"]["mode"] == "votes"
    assert faced["critic"]["temperature"] == 1.1
    assert faced["seeker"]["temperature"] == 0.7
    assert faced["critic"]["prompts"]
    assert faced["seeker"]["prompts"]
    assert faced["critic"]["model"] == {"provider": "fake", "name": "judge"}
    for other in (
        {"critic_temperature": 0.9},
        {"seeker_temperature": 0.2},
        {"critic": "python:my_models:helper"},
        {"temperature": 0.5},
    ):
        keys.append(key(**other))
    assert len(set(keys)) == 5


def test_the_command_line_takes_the_same_options(fakes, tmp_path, capsys):
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(each.to_json()) + "\n" for each in bank(2)))
    run = ["eval", "-a", "python:my_models:helper", "-s", "people.jsonl", "--seeker", "python:my_models:person",
           "--critic", "python:my_models:judge", "--max-turns", "2", "--no-progress"]  # fmt: skip
    more = ["--concurrency", "3", "--rpm", "6000", "--tpm", "1000000", "--timeout", "5", "--deadline", "9",
            "--budget", "1M tokens", "--temperature", "0.1", "--seeker-temperature", "0.2",
            "--critic-temperature", "0.3", "--critic-mode", "votes", "--wire", "auto"]  # fmt: skip
    with pytest.raises(SystemExit) as first:
        main([*run, *more, "--record", "run.db", "--out", "a"])
    with pytest.raises(SystemExit) as second:
        main([*run, *more, "--replay", "run.db", "--out", "b"])
    out = capsys.readouterr().out
    assert (first.value.code, second.value.code) == (0, 0), out
    assert "requests to models" in out
    assert "0.00 USD at list prices" in out
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    timing = tmp_path / "a" / "timing.jsonl"
    taken = [json.loads(line) for line in timing.read_text().splitlines()]
    timing.write_text("".join(json.dumps({**each, "seconds": 2 + place}) + "\n" for place, each in enumerate(taken)))
    with pytest.raises(SystemExit):
        main(["report", "a"])
    assert "requests and 2.5 s, all of them 5.0 s one after another" in capsys.readouterr().out
    faced = json.loads((tmp_path / "a" / "run.json").read_text())
    assert faced["identity"]["seeker"]["temperature"] == 0.2
    assert faced["identity"]["critic"]["temperature"] == 0.3
    assert faced["identity"]["agent"]["temperature"] == 0.1
    with pytest.raises(SystemExit) as third:
        main([*run, "--budget", "plenty"])
    assert third.value.code == 1
    assert "'5 USD' or '200k tokens'" in capsys.readouterr().err


def test_a_cost_that_is_not_known_is_told_as_unknown(fakes, monkeypatch, tmp_path, capsys):
    complete = FakeChatModel.complete

    async def priceless(self, *arguments, **parameters):
        said = await complete(self, *arguments, **parameters)
        return replace(said, usage=replace(said.usage, cost=None))

    monkeypatch.setattr(FakeChatModel, "complete", priceless)
    with pytest.raises(SystemExit):
        main(["eval", "-a", "python:my_models:helper", "--limit", "1", "--no-progress"])
    out = capsys.readouterr().out
    assert "cost unknown" in out
    assert "USD" not in out


def test_chatting_takes_models_and_a_budget(fakes, monkeypatch, capsys):
    said = iter(["I am here.", "Tell me more.", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(said))
    with pytest.raises(SystemExit) as stopped:
        main(["chat", "--seeker", "python:my_models:person", "--critic", "builtin", "--budget", "100 tokens"])
    assert stopped.value.code == 1
    assert "seeker: the budget of 100 tokens is spent" in capsys.readouterr().err


def test_doctor_says_where_models_are_without_any_password(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:hunter22@gpu-box:8000/v1")
    with pytest.raises(SystemExit):
        main(["doctor"])
    out = capsys.readouterr().out
    assert "gpu-box (OPENAI_BASE_URL)" in out
    assert "hunter22" not in out


# Over the wire


@pytest.mark.full
def test_models_on_one_server_share_its_limits(server):
    server.latency = 0.01
    settings = ModelSettings(concurrency=3)
    models = [open_model(f"openai/{name}@{server.url}", settings) for name in ("one", "two", "three")]

    async def all_at_once():
        return await asyncio.gather(*(model.complete(Request(CHAT, seed=i)) for i in range(5) for model in models))

    assert all(done.texts == ("I hear you.",) for done in asyncio.run(all_at_once()))
    assert server.peak <= 3
    assert len(server.requests) == 15
    assert budget.spent().requests == 15


@pytest.mark.full
@pytest.mark.parametrize(
    ("options", "key", "told"),
    [
        ({"key": "sk-right-key-00000000"}, "sk-wrong-key-00000000", "ESC_API_KEY"),
        ({"models": ["other"]}, None, "mine"),
    ],
)
def test_a_wrong_key_or_name_is_one_line_that_names_the_chair_and_nothing_is_started(
    tmp_path, monkeypatch, capsys, options, key, told
):
    pytest.importorskip("aiohttp")
    from esc_env.testing import FakeServer

    monkeypatch.delenv("ESC_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("ESC_API_KEY", key)
    with FakeServer(**options) as running:
        for chair in ("critic", "seeker", "agent"):
            with pytest.raises(SystemExit) as failed:
                main(["eval", "-a", "builtin:silent", f"--{chair}", f"openai/mine@{running.url}", "--out", "run"])
            error = capsys.readouterr().err
            assert failed.value.code == 1
            assert error.startswith(f"esc: {chair}: ")
            assert error.count("\n") == 1
            assert told in error
            assert "sk-wrong" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_no_network_is_told_at_once(monkeypatch):
    monkeypatch.delenv("ESC_API_KEY", raising=False)
    model = open_model("openai/mine@http://127.0.0.1:9/v1", ModelSettings(deadline=0.5))
    with pytest.raises(ModelError, match=r"critic: .*127\.0\.0\.1:9"):
        asyncio.run(check_model(model, "critic"))


@pytest.mark.full
def test_a_planted_key_is_in_no_file_of_a_recorded_run(server, tmp_path, monkeypatch):
    planted = "sk-planted-key-0123456789"
    monkeypatch.setenv("ESC_API_KEY", planted)
    server.answers = f"You sent {planted}. What happened?"
    evaluate(f"openai/mine@{server.url}", bank(1), rules=Rules(max_turns=1), record="run.db", out="run")
    assert server.requests[-1].headers["authorization"] == f"Bearer {planted}"
    for file in (tmp_path / "run.db", tmp_path / "run.db-wal", tmp_path / "run" / "run.json"):
        assert planted.encode() not in file.read_bytes()


@pytest.mark.full
def test_importing_litellm_is_left_to_those_who_need_it(server):
    code = f"""
import asyncio, sys
from esc_env import Request
from esc_env.models import open_model
model = open_model("openai/mine@{server.url}")
asyncio.run(model.complete(Request([dict(role="user", content="Hi")])))
open_model("openai/gpt-4o")
print(sorted({{"litellm", "openai", "torch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.full
def test_the_names_of_what_answered_are_recorded_and_show_when_they_change():
    from esc_env.testing import FakeServer

    with FakeServer() as server:
        used = [ask(open_model(f"openai/{name}@{server.url}")).usage for name in ("mine-2", "mine-1", "mine-2")]
    both = sum(used, Usage())
    assert both.models == ("mine-1", "mine-2")
    assert Usage.from_json(both.to_json()) == both


ASKED = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, int(sys.argv[2])))
from esc_env.models import ModelSettings, open_model
from esc_env.protocols import Request

async def ask():
    model = open_model(f"openai/m@{sys.argv[1]}", ModelSettings(concurrency=300))
    asking = (model.complete(Request([{"role": "user", "content": "Hello"}], seed=seed)) for seed in range(300))
    return sum(answer.usage.requests for answer in await asyncio.gather(*asking))

print(asyncio.run(ask()), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("most", "told"),
    [
        (4096, "300 964"),
        (200, "may open 200 files. Choose at most 136, or first type: ulimit -n 364"),
    ],
)
def test_so_many_connections_as_requests_at_the_same_time_are_asked_of_the_system_or_refused(most, told):
    pytest.importorskip("resource")
    from esc_env.testing import FakeServer

    with FakeServer(latency=0.5) as server:
        command = [sys.executable, "-c", ASKED, server.url, str(most)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout or done.stderr).strip().endswith(told)

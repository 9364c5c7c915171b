"""What a model is asked is the user's to say: options per chair, from the command line, a file and Python."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from conftest import bank
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from esc_env import Dialogue, Message
from esc_env.agents import resolve_agent
from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.cli import build_app, main
from esc_env.errors import ConfigError, SpecError
from esc_env.evaluation import evaluate
from esc_env.evaluation.runs.config import read_config
from esc_env.models import Options, read_options
from esc_env.seeds import Seed
from esc_env.testing import FakeChatModel

OPTIONS: dict[str, Any] = {
    "max_tokens": 16000, "stop": ["\n\n"], "top_p": 0.9, "reasoning_effort": "low",
    "extra_body": {"chat_template_kwargs": {"enable_thinking": False}, "mine": [1, "a"]},
}  # fmt: skip
HELLO = Dialogue((Message("seeker", "I cannot sleep."),))


@pytest.fixture
def server():
    pytest.importorskip("aiohttp")
    from esc_env.testing import FakeServer

    with FakeServer(lambda body, choice: "B" if "(A)" in str(body) or "A." in str(body) else "I hear you.") as running:
        yield running


# Reading


def test_options_are_read_as_people_type_them():
    typed = [
        "max_tokens=16000", "stop=###", "reasoning_effort=low", "extra_body.chat_template_kwargs.enable_thinking=false",
        "extra_body.mine=[1,2]", "logit_bias={\"50256\": -100}", "user=a=b",
    ]  # fmt: skip
    assert read_options(typed) == {
        "max_tokens": 16000, "stop": "###", "reasoning_effort": "low", "user": "a=b", "logit_bias": {"50256": -100},
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False}, "mine": [1, 2]},
    }  # fmt: skip


@pytest.mark.parametrize(
    "typed", [["max_tokens"], ["=3"], [".=3"], ["extra_body.=3"], ["a..b=3"], ["top_p=1", "top_p=0.5"]]
)
def test_what_is_no_option_is_refused_with_the_form(typed):
    with pytest.raises(SpecError, match=r"KEY=VALUE|given twice"):
        read_options(typed)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (['a={"b": 1}', 'a.b={"c": 2}'], "'b' has a value already"),
        (["a=" + "[" * 5000 + "]" * 5000], "'a': (too many|more than 64) lists"),
        (["a=" + '{"b":' * 90 + "1" + "}" * 90], "'a': more than 64 lists"),
        (["a=\ud800"], "surrogates"),
    ],
)
def test_what_no_server_could_be_sent_is_refused_by_name(typed, told):
    with pytest.raises(SpecError, match=told):
        read_options(typed)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"temperature": 0.5}, "--temperature"),
        ({"seed": 4}, "--seed"),
        ({"n": 2}, "--votes"),
        ({"extra_body": {"temperature": 2}}, "--temperature"),
        ({"extra_body": {"messages": []}}, "conversation decides"),
        ({"extra_body": {"max_tokens": 5}}, "write max_tokens"),
        ({"max_completion_tokens": 5}, "Write max_tokens"),
        ({"api_key": "x"}, "Keys come from the environment"),
        ({"extra_body": {"headers": {"Authorization": "x"}}}, "Keys come from the environment"),
        ({"user": "sk-planted-0123456789"}, "hold a key"),
        ({"max_tokens": 0}, "at least 1"),
        ({"max_tokens": "16k"}, "whole number"),
        ({"stop": [""]}, "none of them empty"),
        ({"system": "@no/such/file"}, "no/such/file cannot be read"),
        ({"system": " "}, "must be a text"),
        ({"top_p": float("nan")}, "plain JSON"),
    ],
)
def test_what_is_nobodys_to_say_here_is_refused_with_its_home(given, told):
    with pytest.raises(SpecError) as refused:
        Options.of(given, "agent")
    assert told in str(refused.value)
    assert "sk-planted" not in str(refused.value)


@given(st.dictionaries(st.text(max_size=12), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists)))
def test_any_mapping_is_taken_whole_or_refused(given_options):
    try:
        options = Options.of(given_options, "agent")
    except SpecError:
        return
    assert Options.of(options.plain, "agent") == options


def test_the_order_of_options_does_not_matter():
    assert Options.of({"top_p": 1, "top_k": 2}, "agent") == Options.of({"top_k": 2, "top_p": 1}, "agent")


# Who takes what


@pytest.mark.full
@pytest.mark.parametrize(
    ("agent", "option", "told"),
    [
        ("openai/gpt-4o", "top_pp", "Did you mean 'top_p'?"),
        ("openai/gpt-4o", "top_k", "extra_body.top_k"),
        ("anthropic/claude-sonnet-4-5", "logit_bias", "takes no option 'logit_bias'"),
        ("openai/mine@http://127.0.0.1:9/v1", "min_pp", "Did you mean 'min_p'?"),
        ("builtin:skilled", "top_p", "is no chat model"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(agent, option, told):
    with pytest.raises(SpecError) as refused:
        resolve_agent(agent, options={option: 1})
    assert told in str(refused.value)


@pytest.mark.full
def test_known_options_are_taken():
    resolve_agent("openai/gpt-5-mini", temperature=1, options={"reasoning_effort": "low", "verbosity": "low"})
    resolve_agent("anthropic/claude-sonnet-4-5", options={"top_k": 5, "top_p": 0.9, "max_tokens": 9})
    resolve_agent("openai/mine@http://127.0.0.1:9/v1", options={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1})


def test_objects_of_ones_own_take_what_their_chair_says_and_nothing_else():
    model: Any = FakeChatModel("I hear you.")
    agent: Any = resolve_agent(model, options={"max_tokens": 7, "stop": "x", "system": "Be kind."})
    asyncio.run(agent.respond(HELLO, seed=Seed(1)))
    (call,) = model.calls
    assert (call.max_tokens, call.stop) == (7, ("x",))
    assert call.messages[0]["content"].startswith("Be kind.")
    for resolve in (resolve_agent, resolve_seeker, resolve_critic):
        with pytest.raises(SpecError, match="set 'top_p' in it"):
            resolve(model, options={"top_p": 0.5})
    with pytest.raises(SpecError, match="no chat model"):
        resolve_seeker(lambda scenario, dialogue: "x", options={"max_tokens": 5})


def test_a_critic_that_writes_one_token_takes_no_limit_on_it():
    model: Any = FakeChatModel()
    with pytest.raises(SpecError, match="--critic-mode votes"):
        resolve_critic(model, mode="logprobs", options={"max_tokens": 5})
    with pytest.raises(SpecError, match="a system prompt is a supporter's own"):
        resolve_critic(model, options={"system": "Be kind."})


@pytest.mark.parametrize("critic", ["builtin", lambda scenario, dialogue: "same", FakeChatModel()])
def test_a_way_to_vote_that_there_is_not_is_refused_with_any_critic(critic, tmp_path):
    with pytest.raises(SpecError, match=r"critic_mode='vote' is not known. Did you mean 'votes'"):
        evaluate("builtin:silent", bank(1), critic=critic, critic_mode="vote", out=tmp_path / "run")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="critic_temperature must be at least 0, not -1"):
        gym.make("ESConv-v0", critic=critic, critic_temperature=-1)
    assert not (tmp_path / "run").exists()


def test_a_temperature_of_votes_is_nothing_to_a_critic_that_has_none(tmp_path):
    faced = [
        evaluate("builtin:silent", bank(1), critic_temperature=heat, out=tmp_path / str(heat)).fingerprint
        for heat in (0.5, 1.1)
    ]
    assert faced[0] == faced[1]


@pytest.mark.parametrize("style", ["standard", "think", "cot", "self-refine", "lookahead"])
def test_a_system_prompt_of_ones_own_stands_in_every_request_of_every_style(style, tmp_path):
    from esc_env.agents import ChatAgent

    (tmp_path / "mine.txt").write_text("Speak like a sailor.\n", encoding="utf-8")
    options = Options.of({"system": f"@{tmp_path / 'mine.txt'}"}, "agent")
    model = FakeChatModel("Response: I hear you.")
    agent = ChatAgent(model, style, **options.chair)
    asyncio.run(agent.respond(HELLO, seed=Seed(1)))
    assert all(call.messages[0]["content"].startswith("Speak like a sailor.") for call in model.calls)
    assert agent.identity != ChatAgent(model, style).identity
    assert "sailor" not in json.dumps(agent.identity), "a long prompt is known by its hash"


# On the wire


@pytest.mark.full
@pytest.mark.parametrize("wire", ["aiohttp", "openai", "litellm"])
def test_every_wire_sends_the_options_and_they_are_part_of_who_was_asked(server, wire):
    from esc_env.models import ModelSettings

    spec = f"openai/m@{server.url}"
    agent: Any = resolve_agent(spec, ModelSettings(wire=wire), options=OPTIONS)
    asyncio.run(agent.respond(HELLO, seed=Seed(1)))
    body = server.requests[-1].body
    assert {name: body[name] for name in ("max_tokens", "stop", "top_p", "reasoning_effort")} == {
        name: OPTIONS[name] for name in ("max_tokens", "stop", "top_p", "reasoning_effort")
    }
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["mine"] == [1, "a"]
    assert "extra_body" not in body
    assert agent.identity["max_tokens"] == 16000
    assert agent.identity["stop"] == ["\n\n"]
    assert agent.identity["model"]["options"]["top_p"] == 0.9
    assert resolve_agent(spec).identity != agent.identity


@pytest.mark.full
def test_options_of_seeker_and_critic_are_part_of_the_fingerprint_and_of_gyms_spec(server, tmp_path):
    spec = f"openai/m@{server.url}"
    plain, other = (
        evaluate(
            "builtin:silent", bank(1), seeker=spec, critic=spec, out=tmp_path / str(number), critic_options=options
        )
        for number, options in enumerate([None, {"top_p": 0.5}])
    )
    assert plain.fingerprint.digest != other.fingerprint.digest
    env: Any = gym.make("ESConv-v0", seeker=spec, critic=spec, seeker_options={"top_p": 0.25}, votes=1, max_turns=1)
    again: Any = gym.make(env.spec)
    for each in (env, again):
        each.reset(seed=0)
        server.requests.clear()
        each.step("I hear you.")
        assert server.requests[0].body["top_p"] == 0.25
    assert json.loads(env.spec.to_json())["kwargs"]["seeker_options"] == {"top_p": 0.25}


@pytest.mark.full
def test_recorded_requests_with_other_options_are_other_requests(server, tmp_path):
    spec = f"openai/m@{server.url}"
    run: Any = {"seeker": "builtin", "critic": "builtin"}
    evaluate(spec, bank(1), out=tmp_path / "a", record=tmp_path / "r.db", agent_options={"top_p": 0.5}, **run)
    same = evaluate(spec, bank(1), out=tmp_path / "b", replay=tmp_path / "r.db", agent_options={"top_p": 0.5}, **run)
    assert same.complete
    other = evaluate(spec, bank(1), out=tmp_path / "c", replay=tmp_path / "r.db", agent_options={"top_p": 0.6}, **run)
    assert other.errors == 1


# A benchmark in a file


def esc(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def runs(folder: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("**/run.json"))}


def test_an_option_that_commands_share_is_the_same_in_all():
    commands: Any = get_command(build_app())
    eval_, collect, chat = (commands.commands[name] for name in ("eval", "collect", "chat"))
    critic = commands.commands["validate"].commands["critic"]
    options = [
        {each.name: (each.help, each.default) for each in one.params if hasattr(each, "help")}
        for one in (eval_, collect, critic, chat)
    ]
    shared = "concurrency rpm tpm timeout deadline budget record replay cache wire api_key_env progress".split()
    voting = "critic critic_option critic_mode critic_temperature".split()
    for other, names in zip(options[1:], ([*shared, *voting, "seeker"], [*shared, *voting], voting), strict=True):
        assert {name: other[name] for name in names} == {name: options[0][name] for name in names}


def test_the_critic_that_is_validated_is_asked_as_it_is_in_a_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "judges.py").write_text("from esc_env.testing import FakeChatModel\njudge = FakeChatModel('B')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("helped", "failed"):
        said = [{"role": "seeker", "content": "I am sad."}, {"role": "supporter", "content": "Why?"}]
        told = {"id": name, "situation": "I am sad.", "dialogue": said}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(told), encoding="utf-8")
    files = ["--helped", tmp_path / "helped.jsonl", "--failed", tmp_path / "failed.jsonl"]
    asked = ["--critic", "python:judges:judge", "--critic-option", "max_tokens=9", "--critic-temperature", 0.5]
    assert esc("validate", "critic", *files, *asked, "--record", tmp_path / "kept.db") == 0
    assert esc("validate", "critic", *files, *asked, "--replay", tmp_path / "kept.db", "--concurrency", 2) == 0
    out = capsys.readouterr().out
    assert out.count("AUC, raw                                   0.500") == 2
    calls = sys.modules["judges"].judge.calls
    assert {(call.max_tokens, call.temperature) for call in calls} == {(9, 0.5)}


def test_a_whole_benchmark_stands_in_one_file_and_the_command_line_counts_before_it(tmp_path, capsys):
    file = tmp_path / "bench.yaml"
    file.write_text("agents: [builtin:skilled, {agent: builtin:silent}]\nlimit: 2\nmax-turns: 3\nseed: 7\nvotes: 4\n")
    assert esc("eval", "--config", file, "--max-turns", 2, "--out", tmp_path / "runs") == 0
    found = runs(tmp_path / "runs")
    assert sorted(run["agent"] for run in found.values()) == ["builtin:silent", "builtin:skilled"]
    for run in found.values():
        parts = run["identity"]
        assert (parts["seed"], parts["scenarios"].partition(",")[0]) == (7, "2")
        assert (parts["max_turns"], parts["votes"]) == (2, 4)
    assert esc("eval", "--config", file, "--agent", "builtin:template", "--out", tmp_path / "one") == 0
    assert [run["agent"] for run in runs(tmp_path / "one").values()] == ["builtin:template"]


def test_a_run_json_is_a_benchmark_file_of_the_same_run(tmp_path):
    command = ["--agent", "builtin:skilled", "--limit", 2, "--max-turns", 2, "--opening", "seeker", "--threshold", 0.25]
    assert esc("eval", *command, "--persona", "guarded", "--trials", 2, "--out", tmp_path / "first") == 0
    assert esc("eval", "--config", tmp_path / "first" / "run.json", "--out", tmp_path / "second") == 0
    first, second = (runs(tmp_path / name)[name] for name in ("first", "second"))
    assert first == second
    kept = [(tmp_path / name / "trajectories.jsonl").read_text() for name in ("first", "second")]
    assert sorted(kept[0].splitlines()) == sorted(kept[1].splitlines())


@pytest.mark.full
def test_a_run_json_repeats_what_models_were_asked(server, tmp_path):
    (tmp_path / "prompt.txt").write_text("Be kind.", encoding="utf-8")
    options = ["-M", "top_p=0.5", "-M", f"system=@{tmp_path / 'prompt.txt'}", "-M", "extra_body.mine=1"]
    spec = f"openai/m@{server.url}"
    command = ["--agent", spec, "--critic", spec, "--critic-option", "max_tokens=9", "--temperature", 0.25]
    assert esc("eval", *command, *options, "--limit", 1, "--max-turns", 1, "--out", tmp_path / "first") == 0
    (tmp_path / "prompt.txt").unlink()
    assert esc("eval", "--config", tmp_path / "first" / "run.json", "--out", tmp_path / "second") == 0
    first, second = (runs(tmp_path / name)[name] for name in ("first", "second"))
    assert first == second
    assert first["config"]["agents"][0]["options"]["system"] == "Be kind."


@pytest.mark.full
def test_agents_of_one_file_each_have_their_own_options(server, tmp_path):
    file = tmp_path / "bench.yaml"
    one = f"openai/m@{server.url}"
    file.write_text(
        f"agents:\n  - {{agent: '{one}', options: {{max_tokens: 5}}}}\n"
        f"  - {{agent: '{one}', temperature: 0.5, options: {{max_tokens: 6}}}}\n"
        "agent_options: {top_p: 0.5}\nlimit: 1\nmax_turns: 1\n"
    )
    assert esc("eval", "--config", file, "-M", "top_k=3", "--out", tmp_path / "runs") == 0
    said = [run["identity"]["agent"] for run in runs(tmp_path / "runs").values()]
    assert sorted((each["max_tokens"], each["temperature"]) for each in said) == [(5, 0.0), (6, 0.5)]
    assert all(each["model"]["options"] == {"top_p": 0.5, "top_k": 3} for each in said)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("limt: 3", "Did you mean 'limit'"),
        ("- a\n- b", "write names and values"),
        ("agents: [{name: x}]", "agents, number 1"),
        ("agents: [{agent: x, option: {}}]", "Did you mean 'options'"),
        ("agents: [{agent: x, temperature: hot}]", "temperature must be a number"),
        ("seed: 1\ncritic_options: 5", "line 2: critic_options must be names and values, not 5"),
        ("seed: 1\nseed: 2", "'seed' stands here twice"),
        ("a: [", "not YAML"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_its_place(tmp_path, text, told):
    file = tmp_path / "bench.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_config(file, {"limit", "seed", "critic_options"})
    assert told in str(refused.value)
    assert str(file) in str(refused.value)


def test_a_run_that_no_string_names_cannot_be_repeated_from_its_file(tmp_path):
    evaluate(lambda chat: "I hear you.", bank(1), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="started from Python"):
        read_config(tmp_path / "run" / "run.json", {"limit"})


@pytest.mark.parametrize(
    "given", [{"\udfff": ""}, {"a": "\ud800"}, {"\ud800\udfff": 1}, {"a": [{"b": "\ud800\udfff"}]}]
)
def test_halves_of_characters_are_refused_in_one_line(given: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"^agent_options must hold plain JSON values \(.*surrogates not allowed\)$"):
        Options.of(given, "agent")

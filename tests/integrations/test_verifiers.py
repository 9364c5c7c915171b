"""Emotional support in verifiers, with its real library: `tests/integrations/verifiers.txt`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import verifiers.v1 as vf
from verifiers.v1.utils.loaders import environment_class, harness_class, taskset_class

from esc_env import Dialogue, Message, Seed, Trajectory, evaluate, resolve_agent
from esc_env.background import run
from esc_env.dialogue import Role
from esc_env.integrations.verifiers import PUBLISHED, load_environment
from esc_env.testing.fake_server import FakeServer, Fault

pytestmark = pytest.mark.filterwarnings("default")  # those of verifiers are not ours to mend
EXAMPLES = Path(__file__).parents[2] / "examples"
SKILLED = resolve_agent("builtin:skilled")


def skilled(body: Mapping[str, Any], index: int) -> str:
    """What the skilled agent would say: a model that solves some."""
    names: dict[str, Role] = {"user": "seeker", "assistant": "supporter"}
    said = [Message(names[each["role"]], each["content"]) for each in body["messages"] if each["role"] != "system"]
    return run(SKILLED.respond(Dialogue(tuple(said)), seed=Seed(0))).content


def held(server: FakeServer, count: int, **config: Any) -> list[vf.Episode]:
    env = load_environment(**config)
    asked = vf.ModelContext(client=vf.EvalClientConfig(base_url=server.url), model="model", sampling=PUBLISHED)

    async def hold() -> list[vf.Episode]:
        async with env.serving():
            return await asyncio.gather(*(env.run_episode(task, asked) for task in env.taskset.take(count)))

    return asyncio.run(hold())


def test_it_repeats_what_esc_eval_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ESC_API_KEY", "a-key")
    with FakeServer(skilled) as server:
        episodes = held(server, 6)
        theirs = [request.body["messages"] for request in server.requests]
        server.requests.clear()
        report = evaluate(f"openai/model@{server.url}", limit=6, out=tmp_path / "run")
        ours = [
            request.body["messages"] for request in server.requests if "OK." not in str(request.body)
        ]  # but the probe
    assert all(episode.ok for episode in episodes)
    traces = [episode.traces[0] for episode in episodes]
    assert sum(trace.metrics["solved"] for trace in traces) / 6 == pytest.approx(report.success_rate)
    assert any(trace.metrics["solved"] for trace in traces)
    assert sorted(theirs, key=str) == sorted(ours, key=str)


def test_only_what_the_supporter_said_is_sampled() -> None:
    with FakeServer("What happened?") as server:
        (episode,) = held(server, 1, max_turns=3)
    (trace,) = episode.traces
    (branch,) = trace.branches  # one training sample a conversation
    assert [node.message.role for node in branch.nodes] == ["system", *("user", "assistant") * 3]
    assert [node.sampled for node in branch.nodes] == [False, *(False, True) * 3]
    assert trace.agent.trainable
    assert trace.rewards["score"].score == trace.info["conversation"]["verdicts"][-1]["score"]
    env = load_environment()
    person = env.config.taskset.people().by_id(trace.task.data.scenario)
    assert Trajectory.from_json(trace.info["conversation"], person).turns == 3
    assert person.facts
    assert not any(fact in trace.task.data.model_dump_json() for fact in person.facts)


def test_trials_have_seeds_of_their_own() -> None:
    tasks = list(load_environment(taskset={"trials": 2, "scenarios": "builtin:valid"}).taskset)
    assert len({task.data.seed for task in tasks}) == len(tasks)
    assert len({task.data.scenario for task in tasks}) * 2 == len(tasks)


def test_what_is_no_outcome_is_no_failed_conversation() -> None:
    broken = Fault("status", status=400, message="broken")
    with FakeServer("hm", faults=lambda number: broken) as server:
        (episode,) = held(server, 1)
    assert not episode.ok
    assert not episode.traces[0].rewards
    with FakeServer("hm") as server:
        (episode,) = held(server, 1, seeker=f"python:{__name__}:absent")
    assert not episode.ok
    assert "seeker" in episode.errors[0].message
    assert not episode.traces[0].rewards


def absent(scenario: Any, dialogue: Any) -> str:
    """A seeker who fails."""
    raise OSError("gone")


def test_a_limit_of_verifiers_is_the_supporters_own_failure() -> None:
    with FakeServer("What happened?") as server:
        (episode,) = held(server, 1, supporter={"max_turns": 2})
    (trace,) = episode.traces
    assert episode.ok
    assert trace.stop_condition == "max_turns"
    assert trace.metrics == {"solved": 0.0, "turns": 2.0}


def test_the_example_is_an_environment_that_verifiers_finds_and_a_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "esc_support", raising=False)
    found = [find("esc-support").__name__ for find in (taskset_class, harness_class)]
    assert [environment_class("esc-support").__name__, *found] == ["Support", "SupportTasks", "Chat"]
    with FakeServer("What happened?") as server:
        asyncio.run(import_module("esc_support").main("model", server.url))
    assert capsys.readouterr().out.count("score -") == 4

"""Emotional support in Inspect, with its real library: `tests/integrations/inspect.txt`."""

from __future__ import annotations

import gc
import runpy
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai import score
from inspect_ai.log import EvalLog, read_eval_log

from esc_env import Dialogue, Message, Seed, evaluate, resolve_agent
from esc_env.background import run
from esc_env.dialogue import Role
from esc_env.integrations.inspect import critic, esconv
from esc_env.testing.fake_server import FakeServer, Fault

EXAMPLE = Path(__file__).parents[2] / "examples" / "inspect_esc.py"
pytestmark = pytest.mark.filterwarnings("default")  # those of Inspect and its event loops are not ours to mend
SKILLED = resolve_agent("builtin:skilled")


def skilled(body: Mapping[str, Any], index: int) -> str:
    """What the skilled agent would say, after a thought: a model that solves some."""
    names: dict[str, Role] = {"user": "seeker", "assistant": "supporter"}
    said = [Message(names[each["role"]], each["content"]) for each in body["messages"] if each["role"] != "system"]
    return f"<think>hm</think>{run(SKILLED.respond(Dialogue(tuple(said)), seed=Seed(0))).content}"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("FAKE_API_KEY", "a-key")
    monkeypatch.setenv("ESC_API_KEY", "a-key")
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.chdir(tmp_path)
    yield
    gc.collect()  # what Inspect leaves open is warned of here, where warnings are no errors


def held(server: FakeServer, limit: int = 4, task: Mapping[str, Any] | None = None, **asked: Any) -> EvalLog:
    (log,) = inspect_eval(
        esconv(**(task or {})), model="openai-api/fake/model", model_base_url=server.url, limit=limit, display="none",
        **asked,
    )  # fmt: skip
    return log


def numbers(log: EvalLog) -> dict[str, float]:
    assert log.results is not None
    return {each.name: each.metrics["mean"].value for each in log.results.scores}


def test_it_repeats_what_esc_eval_says() -> None:
    with FakeServer(skilled) as server:
        log = held(server, 6)
        theirs = [request.body for request in server.requests]
        server.requests.clear()
        report = evaluate(f"openai/model@{server.url}", limit=6, out="run")
        ours = [request.body for request in server.requests if "OK." not in str(request.body)]  # but the probe
    assert log.status == "success"
    found = numbers(log)
    assert found["solved"] == pytest.approx(report.success_rate)
    assert 0 < found["solved"] < 1 or found["turns"] < 8  # some were solved
    assert found["turns"] == pytest.approx(report.average_turns)
    assert sorted(theirs, key=str) == sorted(({k: body[k] for k in theirs[0]} for body in ours), key=str)


def test_the_viewer_shows_conversation_and_verdicts() -> None:
    with FakeServer(skilled) as server:
        log = read_eval_log(held(server, 1).location)
    assert log.samples is not None
    (sample,) = log.samples
    assert [message.role for message in sample.messages][:3] == ["user", "assistant", "user"]
    assert sample.messages[0].text == sample.input
    assert sample.scores is not None
    assert sample.scores["critic"].explanation.startswith("turn 1: ")
    assert sum(event.event == "model" for event in sample.events) == len(sample.messages) // 2
    assert "facts" not in str(sample.metadata)


def test_epochs_are_trials() -> None:
    with FakeServer("What happened?") as server:
        log = held(server, 1, {"trials": 2, "max_turns": 1})
    assert log.samples is not None
    seeds = [sample.store["conversation"]["talk"]["seed"] for sample in log.samples]
    assert len(set(seeds)) == 2


def test_another_critic_judges_what_was_held() -> None:
    with FakeServer("What happened?") as server:
        log = held(server, 2, {"max_turns": 1})
    again = score(log, critic(judge=f"python:{__name__}:content"), action="overwrite", display="none")
    assert numbers(again)["solved"] == 1.0


def content(scenario: Any, dialogue: Any) -> str:
    """A critic who is always content."""
    return "solved"


def test_what_is_no_outcome_is_no_failed_conversation() -> None:
    with FakeServer("hm", faults=lambda number: Fault("status", status=400, message="broken")) as server:
        log = held(server, 2, {"max_turns": 2}, fail_on_error=False)
    assert log.samples is not None
    assert all(sample.error is not None and not sample.scores for sample in log.samples)
    with FakeServer("hm") as server:
        log = held(server, 1, {"max_turns": 2, "seeker": f"python:{__name__}:absent"}, fail_on_error=False)
    assert log.samples is not None
    assert log.samples[0].error is not None


def absent(scenario: Any, dialogue: Any) -> str:
    """A seeker who fails."""
    raise OSError("gone")


def test_a_limit_of_inspect_ends_the_conversation() -> None:
    with FakeServer("one two three") as server:
        log = held(server, 1, token_limit=300)
    assert log.status == "success"
    assert log.samples is not None
    assert log.samples[0].limit is not None
    assert log.samples[0].scores["critic"].value["solved"] == 0


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer("What happened?") as server:
        monkeypatch.setattr(sys, "argv", ["inspect_esc.py", "openai-api/fake/model", server.url])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "success" in capsys.readouterr().out


def test_inspect_finds_the_task_by_its_name() -> None:
    (found,) = entry_points(group="inspect_ai", name="esc_env")
    assert found.load().esconv is esconv

"""A real model in each of the three chairs: a run ends, and every conversation has an outcome or an error with a name.

What so small a model says is not tested; it may break its role, and its votes may be unreadable.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from esc_env import Rules
from esc_env.agents.chat import ChatAgent
from esc_env.chairs.critics import LLMCritic
from esc_env.chairs.seekers import LLMSeeker
from esc_env.errors import FewerChoicesWarning
from esc_env.evaluation import Report, evaluate
from esc_env.folder import TIMING
from esc_env.models import ModelSettings, check_model, open_model

from .conftest import CONTEXT, RealServer

NOBODY = "http://127.0.0.1:9/v1"


def held(agent: Any, folder: Path, *, limit: int = 2, **options: Any) -> Report:
    """Conversations of two turns, one after the other."""
    return evaluate(agent, rules=Rules(max_turns=2), limit=limit, out=folder, concurrency=1, **options)


def attributed(report: Report, chair: str) -> None:
    """Every conversation ended, and what has no outcome is the failure of this chair's model to be understood."""
    assert report.completed + report.errors == report.episodes
    for role, message, _ in report.failure_messages:
        assert role == chair, message


def test_a_supporter(server: RealServer, tmp_path: Path) -> None:
    report = held(ChatAgent(open_model(server.model), max_tokens=40), tmp_path)
    assert (report.completed, report.errors, report.supporter_failures) == (2, 0, 0)
    assert report.usage.requests == 4
    assert report.usage.completion_tokens > 20
    assert report.usage.models == ("smollm2-135m",)
    said = [message.content for message in report.trajectories[0].dialogue.messages if message.role == "supporter"]
    assert len(said) == 2
    assert all(said)


def test_a_supporter_that_thinks_first(server: RealServer, tmp_path: Path) -> None:
    report = held(ChatAgent(open_model(server.model), "think", max_tokens=40), tmp_path)
    assert (report.completed, report.errors) == (2, 0)


def test_a_seeker(server: RealServer, tmp_path: Path) -> None:
    report = held("builtin:template", tmp_path, limit=1, seeker=LLMSeeker(open_model(server.model), max_tokens=64))
    attributed(report, "seeker")


def test_a_critic_by_votes(server: RealServer, tmp_path: Path) -> None:
    model = open_model(server.model, ModelSettings(timeout=122.0))  # one that has not learned yet
    with pytest.warns(FewerChoicesWarning):
        report = held("builtin:template", tmp_path, critic=LLMCritic(model, max_tokens=8))
    attributed(report, "critic")
    for trajectory in report.trajectories:
        assert all(5 <= verdict.valid_votes <= 10 for verdict in trajectory.verdicts), "with fewer there is no verdict"


def test_a_critic_by_log_probabilities(server: RealServer, tmp_path: Path) -> None:
    report = held("builtin:template", tmp_path, critic=LLMCritic(open_model(server.model), "logprobs"))
    attributed(report, "critic")
    for trajectory in report.trajectories:
        assert all(verdict.valid_votes == 10 for verdict in trajectory.verdicts)


def test_all_three_chairs_at_once_recorded_and_replayed_without_the_server(server: RealServer, tmp_path: Path) -> None:
    def run(name: str, spec: str, **options: Any) -> Report:
        model = open_model(spec, ModelSettings(timeout=123.0, **options))
        return held(
            ChatAgent(model, max_tokens=24), tmp_path / name,
            seeker=LLMSeeker(model, max_tokens=96), critic=LLMCritic(model, "logprobs"),
        )  # fmt: skip

    first = run("first", server.model, record=tmp_path / "run.db")
    again = run("again", f"openai/smollm2-135m@{NOBODY}", replay=tmp_path / "run.db")
    assert again.trajectories == first.trajectories
    assert again.to_json() | {"folder": ""} == first.to_json() | {"folder": ""}
    kept = [
        sorted(file for file in (tmp_path / name).glob("*.jsonl") if file.name != TIMING) for name in ("first", "again")
    ]
    assert kept[0], "the conversations are kept"
    assert [file.read_bytes() for file in kept[0]] == [file.read_bytes() for file in kept[1]]


def test_a_server_with_more_to_do_than_it_can_answer_in_time_is_waited_for(server: RealServer, tmp_path: Path) -> None:
    """Each answer waits for all others; whoever gave up and began anew would never be answered."""
    model = open_model(server.model, ModelSettings(timeout=1.0))
    asyncio.run(check_model(model))
    report = evaluate(
        ChatAgent(model, max_tokens=16), rules=Rules(max_turns=1), limit=16, concurrency=16, out=tmp_path
    )  # fmt: skip
    assert (report.completed, report.errors) == (16, 0), report.failure_messages


def test_a_conversation_too_long_for_the_context_is_the_supporters_failure(server: RealServer, tmp_path: Path) -> None:
    def talks(scenario: Any, dialogue: Any) -> str:
        return "sad " * (CONTEXT + 100)

    report = held(ChatAgent(open_model(server.model), max_tokens=8), tmp_path, seeker=talks)
    assert (report.completed, report.errors, report.supporter_failures) == (2, 0, 2)
    assert "does not fit the model's context" in report.failure_messages[0][1]


def test_a_conversation_too_long_for_the_critic_is_its_error(server: RealServer, tmp_path: Path) -> None:
    def talks(scenario: Any, dialogue: Any) -> str:
        return "sad " * (CONTEXT + 100)

    critic = LLMCritic(open_model(server.model), "logprobs")
    report = held("builtin:template", tmp_path, seeker=talks, critic=critic)
    assert (report.completed, report.errors) == (0, 2)
    assert {role for role, _, _ in report.failure_messages} == {"critic"}


@pytest.mark.parametrize("wire", ["aiohttp", "openai", "litellm"])
def test_the_command_line(server: RealServer, tmp_path: Path, wire: str) -> None:
    command = [
        sys.executable, "-c", "from esc_env.cli import main; main()", "eval", "--agent", "builtin:template", "--critic",
        server.model, "--critic-mode", "logprobs", "--limit", "2", "--max-turns", "1", "--wire", wire, "--out", "run",
        "--no-progress",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "answered by smollm2-135m" in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["completed"], report["errors"], report["usage"]["requests"]) == (2, 0, 2)

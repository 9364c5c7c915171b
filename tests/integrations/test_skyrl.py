"""SkyRL's environments, with the real package: `tests/integrations/skyrl.txt`."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skyrl_gym
from skyrl_gym.envs.registration import deregister
from skyrl_gym.metrics import aggregate_for_environment

from esc_env import ChairError, evaluate
from esc_env.errors import SpecError
from esc_env.integrations.conversations import rows
from esc_env.integrations.skyrl import SupportEnv
from esc_env.testing import FakeServer, Fault

EXAMPLE = Path(__file__).parents[2] / "examples" / "skyrl_support.py"
ASKED = "What has that been like for you?"


@pytest.fixture
def register() -> Iterator[Any]:
    def made(**settings: Any) -> None:
        skyrl_gym.register(id="esc", entry_point="esc_env.integrations.skyrl:SupportEnv", kwargs=settings)

    yield made
    deregister("esc")


def held(row: dict[str, Any], said: str = ASKED) -> tuple[Any, list[dict[str, str]], float]:
    """One conversation as SkyRL's generator holds it: (the environment, the chat, the sum of rewards)."""
    env = skyrl_gym.make(row["env_class"], env_config={}, extras={**row, "max_turns": 1})
    chat, _ = env.init(row["prompt"])
    total, done = 0.0, False
    while not done:
        step = env.step(said)
        chat = [*chat, {"role": "assistant", "content": said}, *step["observations"]]
        total += step["reward"]
        done = step["done"]
    return env, chat, total


def test_a_published_number_can_be_repeated(register: Any, tmp_path: Path) -> None:
    register()
    here = evaluate(lambda _: ASKED, "builtin:test", limit=3, trials=2, out=tmp_path / "run")
    data = rows("builtin:test", trials=2, env_class="esc")
    data = json.loads(json.dumps([*data[:3], *data[40:43]]))  # as SkyRL reads them from a file
    found = [held(row) for row in data]
    assert [total for _, _, total in found] == [talk.final_score for talk in here.trajectories]
    assert [env.get_metrics()["turns"] for env, _, _ in found] == [talk.turns for talk in here.trajectories]


def test_a_chat_is_instructions_then_seeker_and_supporter_by_turns(register: Any) -> None:
    register(max_turns=3)
    row = rows("builtin:train", env_class="esc")[0]
    env, chat, _ = held(row)
    assert [message["role"] for message in chat] == ["system", *["user", "assistant"] * 3]
    assert chat[:2] == row["prompt"]
    assert env.turns == env.max_turns == 3  # SkyRL's own number is not asked
    assert chat[3] == {"role": "user", "content": env._env.episode.dialogue.messages[2].content}


def test_metrics_are_averaged_as_skyrl_does_it(register: Any) -> None:
    register(critic="python:test_skyrl:kind", max_turns=2)
    env, _, total = held(rows(env_class="esc")[0])
    assert env.get_metrics() == {"solved": 1.0, "turns": 1, "score": 1.0}
    assert total == 1.0
    averaged = aggregate_for_environment("esc", [env.get_metrics(), {"solved": 0.0, "turns": 2, "score": -0.5}])
    assert averaged == {"solved": 0.5, "turns": 1.5, "score": 0.25}


def kind(scenario: Any, dialogue: Any) -> str:
    """A critic that is pleased at once."""
    return "solved"


def test_a_thought_is_private_and_what_is_no_utterance_ends_it(register: Any) -> None:
    register(seeker="python:test_skyrl:echo", max_chars=50)
    env = skyrl_gym.make("esc", extras=(row := rows(env_class="esc")[0]))
    env.init(row["prompt"])
    assert env.step("<think>secret</think>Hello")["observations"] == [{"role": "user", "content": "You said: Hello"}]
    step = env.step("a" * 51)
    assert (step["reward"], step["done"], step["observations"]) == (-1.0, True, [])
    assert "51 characters" in step["metadata"]["error"]


def echo(scenario: Any, dialogue: Any) -> str:
    """A seeker that repeats what it heard."""
    return f"You said: {dialogue.messages[-1].content}"


def test_conversations_share_their_models_and_a_failure_is_no_failed_conversation(register: Any) -> None:
    with FakeServer("It is my job.", faults={3: Fault("status", 404)}) as model:
        register(seeker=f"openai/some@{model.url}")
        first, second = (skyrl_gym.make("esc", extras=row) for row in rows(env_class="esc")[:2])
        assert first._env.task is second._env.task
        for env in (first, second):
            env.init([])
            assert env.step("Hello")["observations"][0]["content"] == "It is my job."
        with pytest.raises(ChairError):
            first.step("Go on")
        assert first.step("Go on")["observations"][0]["content"] == "It is my job."


def test_what_no_environment_can_be(register: Any) -> None:
    register(scenarios="builtin:test")
    with pytest.raises(SpecError, match="rows name the scenarios"):
        skyrl_gym.make("esc", extras=rows(env_class="esc")[0])
    with pytest.raises(SpecError, match="names no conversation"):
        SupportEnv(extras={"reward_spec": {}})
    with pytest.raises(SpecError, match="plain values"):
        SupportEnv(extras=rows(env_class="esc")[0], seeker=kind)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    deregister("esc")
    assert capsys.readouterr().out.count("'turns': 8") == 4

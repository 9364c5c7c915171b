"""The OpenEnv server and its client, with the real package: `tests/integrations/openenv.txt`."""

from __future__ import annotations

import contextlib
import json
import runpy
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from openenv.cli.__main__ import app as command_line
from typer.testing import CliRunner

from esc_env import ModelError, evaluate, load_scenarios
from esc_env.errors import SpecError
from esc_env.gym.env import ESCEnv
from esc_env.integrations.conversations import rows
from esc_env.integrations.openenv import Say, SupportClient, app
from esc_env.testing import FakeServer, Faulty, ScriptedSeeker

EXAMPLE = Path(__file__).parents[2] / "examples" / "openenv_support.py"
ASKED = "What has that been like for you?"


@contextlib.contextmanager
def serving(**arguments: Any) -> Iterator[str]:
    """The address of a server that runs as people's servers do."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        server = uvicorn.Server(uvicorn.Config(app(**arguments), log_level="error"))
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(scenarios="builtin:test", sessions=3) as address:
        yield address


def test_its_own_validator_passes(url: str) -> None:
    found = CliRunner().invoke(command_line, ["validate", "--url", url, "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.output)
    assert report["passed"]
    assert not report["summary"]["failed_criteria"]


def test_a_published_number_can_be_repeated_over_the_wire(url: str, tmp_path: Path) -> None:
    here = evaluate(lambda _: ASKED, "builtin:test", limit=3, out=tmp_path / "run")
    scores = []
    with SupportClient(url).sync() as env:
        for row in rows("builtin:test")[:3]:
            told = row["conversation"]
            heard = env.reset(scenario=told["scenario"], episode_seed=told["episode_seed"])
            assert heard.reward is None
            while not heard.done:
                heard = env.step(Say(message=ASKED))
            scores.append(heard.reward)
    assert scores == [talk.final_score for talk in here.trajectories]


def test_sessions_know_nothing_of_each_other(url: str) -> None:
    words = {"one": ["What happened?", "And then?"], "two": ["Cheer up!", "Others have it worse."]}
    alone = {}
    for name, lines in words.items():
        env = ESCEnv("builtin:test")
        env.reset(seed=4)
        alone[name] = [[dict(message) for message in env.step(line)[0]] for line in lines]
    with SupportClient(url).sync() as one, SupportClient(url).sync() as two:
        clients = {"one": one, "two": two}
        for name, client in clients.items():
            client.reset(seed=4, episode_id=name)
        for turn in range(2):
            for name, client in clients.items():
                heard = client.step(Say(message=words[name][turn])).observation
                assert heard.messages == alone[name][turn]
        assert [client.state().episode_id for client in clients.values()] == ["one", "two"]
        assert two.state().step_count == 2


def test_what_the_seeker_has_not_said_stays_on_the_server(url: str) -> None:
    with SupportClient(url).sync() as env:
        heard, state = env.reset(seed=1), env.state()
        person = load_scenarios("builtin:test").by_id(state.scenario)
    told = heard.observation.model_dump_json() + state.model_dump_json()
    assert person.situation in json.loads(heard.observation.model_dump_json())["messages"][0]["content"]
    assert person.facts
    assert not any(line in told for line in (*person.facts, *person.helps, *person.hurts))


def test_there_are_so_many_sessions_and_no_more(url: str) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(SupportClient(url).sync()) for _ in range(3)]
        for client in held:
            client.reset(seed=0)
        with pytest.raises(RuntimeError, match="CAPACITY_REACHED"), SupportClient(url).sync() as env:
            env.reset(seed=0)
        held[0].close()
        for _ in range(100):  # the server hears of it a little later
            with contextlib.suppress(RuntimeError), SupportClient(url).sync() as env:
                assert env.reset(seed=0).observation.messages
                return
            time.sleep(0.1)  # in another thread, and nothing tells when
        pytest.fail("a session that was closed makes no room")


def test_a_session_that_is_idle_ends_and_makes_room() -> None:
    with serving(sessions=1, idle=0.5) as address, SupportClient(address).sync() as idle:
        idle.reset(seed=0)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # OpenEnv looks every five seconds
            time.sleep(1)  # nothing tells when it has looked
            with contextlib.suppress(RuntimeError), SupportClient(address).sync() as env:
                env.reset(seed=0)
                break
        else:
            pytest.fail("an idle session makes no room")
        with pytest.raises(RuntimeError, match="this session is over"):
            idle.step(Say(message="Are you there?"))
        with pytest.raises(RuntimeError, match="this session is over"):  # else there were more than are counted
            idle.reset(seed=0)


def test_http_keeps_no_session_and_says_so(url: str) -> None:
    assert requests.post(f"{url}/reset", json={"seed": 0}).json()["observation"]["messages"]
    step = requests.post(f"{url}/step", json={"action": {"message": "Hello"}})
    assert step.status_code == 409
    assert "WebSocket only" in step.json()["detail"]
    reset = requests.post(f"{url}/reset", json={"scenarioo": "x"})
    assert reset.status_code == 422
    assert "scenario" in reset.json()["detail"]


def test_a_seeker_that_fails_is_told_and_the_same_step_may_be_made_again() -> None:
    seeker = Faulty(ScriptedSeeker(["I hear you."]), {1: ModelError("no answer")})
    with serving(seeker=seeker) as address, SupportClient(address).sync() as env:
        env.reset(seed=0)
        with pytest.raises(RuntimeError, match="no answer"):
            env.step(Say(message="Hello"))
        assert env.step(Say(message="Hello")).observation.messages[-1]["content"] == "I hear you."


def test_the_seeker_may_be_a_model() -> None:
    with (
        FakeServer("My sister moved out.") as model,
        serving(seeker=f"openai/some@{model.url}") as address,
        SupportClient(address).sync() as env,
    ):
        env.reset(seed=0)
        assert env.step(Say(message="Hello")).observation.messages[-1]["content"] == "My sister moved out."


def test_what_no_server_can_be() -> None:
    with pytest.raises(SpecError):
        app(seeker="nobody")


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "8 exchanges, reward -1.00" in capsys.readouterr().out

"""Work done by Ray's workers, with the real library: `tests/integrations/ray.txt`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray

from esc_env import Dialogue, Message, Scenario, ScenarioSet, Usage, resolve_agent
from esc_env.data.datasets import load_scenarios
from esc_env.errors import ESCError, SpecError
from esc_env.evaluation import evaluate, read_run
from esc_env.evaluation.judges import judge_runs
from esc_env.models.budget import ledger
from esc_env.on_ray import Ray
from esc_env.progress import Progress
from esc_env.protocols import Reply
from esc_env.records import read_records
from esc_env.testing.fake_server import FakeServer
from esc_env.training.collect import collect

pytestmark = pytest.mark.filterwarnings("default")  # those of Ray are not ours to mend
TWO = Ray(workers=2)
PEOPLE: ScenarioSet = load_scenarios("builtin:train")[:8]
SKILLED = resolve_agent("builtin:skilled")


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """Two processors of this machine. Workers find this module on the path that they inherit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@dataclass(frozen=True)
class Deadly:
    """The skilled agent, until somebody gets far enough with one of the scenarios: then its process is killed, once.

    Attributes:
        mark: the file that says that it has happened.
        times: how often it happens.
    """

    mark: str
    times: int = 1

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": "deadly"}

    async def respond(self, dialogue: Any, *, seed: Any) -> Reply:
        if dialogue.messages[0].content == PEOPLE[3].situation and len(dialogue) > 2:
            with open(self.mark, "a+b") as mark:
                if mark.tell() < self.times:
                    mark.write(b"x")
                    mark.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
        return await SKILLED.respond(dialogue, seed=seed)


@dataclass(frozen=True)
class Stuck:
    """The skilled agent, who says nothing more after the first exchange as long as a folder is there.

    Attributes:
        marks: the folder, in which it leaves a file for every conversation that waits.
    """

    marks: str

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": "stuck"}

    async def respond(self, dialogue: Any, *, seed: Any) -> Reply:
        if len(dialogue) > 1 and Path(self.marks).exists():
            Path(self.marks, str(seed.episode)).touch()
            await asyncio.Event().wait()
        return await SKILLED.respond(dialogue, seed=seed)


def lines(folder: Path, name: str = "trajectories.jsonl") -> Sequence[bytes]:
    return sorted((folder / name).read_bytes().splitlines())


def begun(person: Scenario) -> Dialogue:
    """What somebody may have said with a person."""
    said = (Message("seeker", person.situation), Message("supporter", "Go on."), Message("seeker", "I cannot sleep."))
    return Dialogue(said)


def test_a_run_is_the_one_that_is_held_in_one_process(tmp_path: Path) -> None:
    told: list[Progress] = []
    there = evaluate("builtin:skilled", PEOPLE, trials=2, out=tmp_path / "there", backend=TWO, progress=told.append)
    here = evaluate("builtin:skilled", PEOPLE, trials=2, out=tmp_path / "here")
    assert lines(tmp_path / "there") == lines(tmp_path / "here")
    assert there.run_key == here.run_key
    assert {len(lines(tmp_path / name, "timing.jsonl")) for name in ("there", "here")} == {16}
    assert (told[0].done, told[-1].done) == (0, 16)
    assert told[-1].turns == sum(
        len(line["verdicts"]) for line in read_records(tmp_path / "here" / "trajectories.jsonl", "trajectory")
    )


def test_what_a_killed_worker_had_not_finished_is_done_once_by_others(tmp_path: Path) -> None:
    agent = Deadly(str(tmp_path / "killed"))
    report = evaluate(agent, PEOPLE, trials=2, out=tmp_path / "there", backend=TWO)
    assert (tmp_path / "killed").read_bytes() == b"x", "a worker was killed"
    assert report.completed == report.due == 16
    evaluate(agent, PEOPLE, trials=2, out=tmp_path / "here")
    assert lines(tmp_path / "there") == lines(tmp_path / "here"), "none is lost, none there twice"


def test_what_kills_every_worker_ends_the_run_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esc_env.on_ray.LIVES", 2)
    agent = Deadly(str(tmp_path / "killed"), times=2)
    with pytest.raises(ESCError, match="2 Ray workers died one after the other over the same work"):
        evaluate(agent, PEOPLE, concurrency=1, out=tmp_path / "run", backend=TWO)
    assert read_run(tmp_path / "run").completed == 3
    assert evaluate(agent, PEOPLE, out=tmp_path / "run").completed == 8


def test_a_collection_is_the_one_that_is_made_in_one_process_whoever_is_killed(tmp_path: Path) -> None:
    told = [replace(person, dialogue=begun(person)) for person in PEOPLE[2:5]]
    agent = Deadly(str(tmp_path / "killed"))
    usual: Any = {"candidates": 2, "rollouts": 2, "horizon": 3, "temperature": 0.7}
    assert collect(agent, told, out=tmp_path / "there", backend=TWO, **usual).complete
    assert (tmp_path / "killed").read_bytes() == b"x"
    assert collect(agent, told, out=tmp_path / "here", **usual).complete
    for name in ("candidates.jsonl", "card.json"):
        assert lines(tmp_path / "there", name) == lines(tmp_path / "here", name)


def test_a_judging_is_the_one_that_is_made_in_one_process(tmp_path: Path) -> None:
    runs = [evaluate(f"builtin:{name}", PEOPLE[:4], out=tmp_path / name) for name in ("skilled", "silent")]
    judge_runs(runs, "builtin:plain", out=tmp_path / "there", backend=TWO)
    judge_runs(runs, "builtin:plain", out=tmp_path / "here")
    assert lines(tmp_path / "there", "opinions.jsonl") == lines(tmp_path / "here", "opinions.jsonl")


def test_an_interruption_keeps_what_was_said_and_the_next_call_goes_on(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    agent = Stuck(str(marks))

    def interrupt() -> None:
        while len(list(marks.iterdir())) < len(PEOPLE):  # no `eventually`: workers import this file, not its conftest
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        evaluate(agent, PEOPLE, out=tmp_path / "there", backend=TWO)
    thread.join()
    kept = list(read_records(tmp_path / "there" / "trajectories.jsonl", "trajectory"))
    assert [(line["failure"]["kind"], len(line["verdicts"])) for line in kept] == [("Interrupted", 1)] * len(PEOPLE)
    shutil.rmtree(marks)
    assert evaluate(agent, PEOPLE, out=tmp_path / "there").completed == len(PEOPLE)
    evaluate(agent, PEOPLE, out=tmp_path / "here")
    there, here = (
        list(read_records(tmp_path / name / "trajectories.jsonl", "trajectory")) for name in ("there", "here")
    )
    ended = {line["scenario"]: line["dialogue"] for line in there}
    assert ended == {line["scenario"]: line["dialogue"] for line in here}, "nothing was said anew"


def test_budget_and_requests_in_flight_are_those_of_all_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESC_API_KEY", "a-key")
    before = ledger()
    with FakeServer("Tell me more about it.", latency=0.02) as server:
        report = evaluate(
            f"openai/m@{server.url}", PEOPLE, trials=4, out=tmp_path / "run", backend=TWO, concurrency=5,
            budget="5000 tokens",
        )  # fmt: skip
    spent: Usage = ledger().since(before).usage
    used = spent.prompt_tokens + spent.completion_tokens
    each = used / spent.requests
    assert server.peak <= 5
    assert spent.requests == len(server.requests), "the process that began it knows of every request"
    assert 5000 <= used <= 5000 + 2 * 5 * each, "what was in flight was paid, and nothing more was asked"
    assert report.completed < report.due == 32


def test_what_no_worker_can_have_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="record: workers on other machines cannot share that file"):
        evaluate("builtin:skilled", PEOPLE, out=tmp_path / "a", backend=TWO, record=tmp_path / "kept.db")
    with pytest.raises(SpecError, match="api_key: a key that is handed over stays in its process"):
        evaluate("builtin:skilled", PEOPLE, out=tmp_path / "a", backend=TWO, api_key="sk-0123456789abcdef0123")
    with pytest.raises(SpecError, match="the Ray cluster has 2 CPUs, and each worker needs one"):
        evaluate("builtin:skilled", PEOPLE, out=tmp_path / "b", backend=Ray(workers=3))
    lock = threading.Lock()
    with pytest.raises(SpecError, match=r"cannot be sent to a worker.*python:MODULE:NAME"):
        evaluate(lambda chat: str(lock), PEOPLE, out=tmp_path / "c", backend=TWO)

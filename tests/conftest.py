"""Scenarios that tests write themselves, so that they need no data; and bounds on whatever tests wait for."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings

from esc_env import Ballot, Dialogue, Scenario, ScenarioSet
from esc_env.seeds import Seed

pytest.register_assert_rewrite("code_blocks")

LONGEST = 900
"""Seconds that one test may take, on however busy a machine. One that waits for ever fails, and its traceback says for
what."""

# Programs that tests start and interrupt inherit what this one does about Ctrl-C, and a shell that starts the suite in
# the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine an example may take long for no reason of its own. Where CI is set, all runs try the same examples.
settings.register_profile(
    "esc-env", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("esc-env")


def pytest_collection_finish() -> None:
    """Leave what was imported to itself: a collection of garbage that looks at it too takes up to half a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Raise TimeoutError in a test that takes too long, wherever it waits."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"{item.nodeid} still waits after {LONGEST} s")

    if not hasattr(signal, "SIGALRM"):
        return (yield)
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, what tests run is a short run, which says nothing of how far it is."""
    monkeypatch.setattr("esc_env.progress.QUIET", 3600.0)


def until(process: subprocess.Popen[str], line: str, *, within: float = 300) -> None:
    """Read what a program prints up to this line. One that takes longer is ended, and what it said is told."""
    assert process.stdout is not None
    late = threading.Timer(within, process.send_signal, [signal.SIGABRT])  # faulthandler says where it was
    late.start()
    try:
        if line in (said.rstrip("\n") for said in process.stdout):
            return
    finally:
        late.cancel()
    errors = process.communicate(timeout=60)[1]
    pytest.fail(f"it ended with {process.returncode} before it printed {line!r}, or took over {within} s: {errors}")


def interrupted(process: subprocess.Popen[str], *, group: bool = False, within: float = 120) -> str:
    """What a program says on stderr after Ctrl-C, which a terminal sends to the whole group. One that does not end is
    ended, and is a failure."""
    if group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=within)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        pytest.fail(f"it goes on {within} s after Ctrl-C: {process.communicate(timeout=60)[1]}")


def eventually(done: Callable[[], bool], *, within: float = 60) -> None:
    """Wait until something holds that another thread or process brings about."""
    late = time.monotonic() + within
    while not done():
        assert time.monotonic() < late, f"not within {within} s"
        time.sleep(0.02)


class OddOnes:
    """A critic for whom persons with an odd number are solved in turn 2, the others never."""

    identity: ClassVar = {"name": "odd ones"}

    async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Seed) -> Ballot:
        solved = int(scenario.id.split("-")[1]) % 2 and dialogue.turns >= 2
        return Ballot((1.0 if solved else -0.5,) * votes)


def bank(count: int = 5) -> ScenarioSet:
    """People who differ in little more than their number."""
    return ScenarioSet.of(
        "test-bank",
        [
            Scenario(
                id=f"person-{i}",
                situation=f"I am person {i} and I cannot sleep because of my job.",
                emotion="anxiety",
                problem="job crisis",
                intensity=3,
                facts=(f"My manager said number {i} would be let go.", "I told nobody.", "It began in spring."),
                helps=("A plan for Monday.",),
                hurts=("Being told to calm down.",),
            )
            for i in range(count)
        ],
    )


@pytest.fixture
def scenarios() -> ScenarioSet:
    return bank()

"""A conversation that broke off goes on from there: failing is no way to be rolled again, whoever fails and however."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import bank
from hypothesis import given
from hypothesis import strategies as st

from esc_env import Ballot, Completion, Reply, Request, Rules, Scenario, StopReason, Trajectory, Usage
from esc_env.agents import ChatAgent
from esc_env.background import run
from esc_env.conversation import Chairs, converse
from esc_env.dialogue import Dialogue
from esc_env.errors import BudgetExceeded, ModelError, ModelUnavailable, RecordError, ScenarioError
from esc_env.evaluation import Report, evaluate, read_run
from esc_env.evaluation.pages.run import run_pages
from esc_env.models import open_model
from esc_env.seeds import Seed, derive
from esc_env.testing import Faulty, ScriptedAgent

T = 3
RULES = Rules(max_turns=T)
COUNTS = (6, 4)
"""Of ten persons, how many the honest agent solves, and does not."""


class Seeker:
    """Says how often it has been answered."""

    identity: Mapping[str, Any] = {"name": "counts"}

    async def reply(self, scenario, dialogue, *, seed):
        return Reply(f"It is turn {dialogue.turns}, and this is {seed.value}.", usage=Usage(1))


class Lucky:
    """A critic that finds a conversation solved if its supporter's last word is a lucky one."""

    identity: Mapping[str, Any] = {"name": "lucky"}

    async def judge(self, scenario, dialogue, *, votes, seed):
        said = next(message.content for message in reversed(dialogue.messages) if message.role == "supporter")
        return Ballot((1.0 if said.endswith("lucky") else -0.5,) * votes, usage=Usage(1))


class Honest:
    """Solves persons 0 to 5 in turn 2, the others never."""

    identity: Mapping[str, Any] = {"name": "policy"}

    def say(self, dialogue: Dialogue) -> str:
        person = int(dialogue.messages[0].content.split()[3])
        return "lucky" if person < COUNTS[0] and dialogue.turns == 1 else "I see."

    async def respond(self, dialogue, *, seed):
        return Reply(self.say(dialogue), usage=Usage(1))


class Sampling(Honest):
    """Draws what it says anew at every call, whatever the seed: one word in five is a lucky one."""

    def __init__(self) -> None:
        self.drawn = 0

    def say(self, dialogue: Dialogue) -> str:
        self.drawn += 1
        return "lucky" if derive(self.drawn) % 5 == 0 else "I see."


def spoiling(policy: Honest, spoil: Callable[[], Any]) -> Any:
    """The policy, except that it spoils the last turn unless it has won by then."""

    class Spoiling:
        identity: Mapping[str, Any] = {"name": "policy"}

        async def respond(self, dialogue, *, seed):
            if dialogue.turns == T - 1:
                found = spoil()
                await found if asyncio.iscoroutine(found) else None
            return await policy.respond(dialogue, seed=seed)

    return Spoiling()


def raising(error: BaseException) -> Callable[[], Any]:
    def spoil() -> None:
        raise error

    return spoil


async def unreachable() -> None:
    """What an agent gets that asks a model of ours at an address where nobody is."""
    model = open_model("openai/nobody@http://127.0.0.1:9/v1")
    await model.complete(Request([{"role": "user", "content": "hi"}]))


def held(agent: Any, out: Path, **options: Any) -> Report:
    usual: Any = {"seeker": Seeker(), "critic": Lucky(), "rules": RULES, "out": out}
    return evaluate(agent, bank(10), **{**usual, **options})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trajectories.jsonl").read_text().splitlines()]


class Own(ModelError):
    """Somebody's own kind of a model's error."""


class Cut(BaseException):
    """Not even an Exception."""


# --- the attack ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ModelError("no answer"), ModelUnavailable("no answer", retryable=True), BudgetExceeded("spent"),
        Own("mine"), asyncio.CancelledError(), SystemExit(1), KeyboardInterrupt(), Cut(),
        BaseExceptionGroup("several", [ModelError("no answer")]),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_agent_that_raises_in_the_last_turn_unless_it_has_won_has_failed_whatever_it_raises(tmp_path, error):
    for _ in range(28):
        report = held(spoiling(Honest(), raising(error)), tmp_path)
        assert (report.complete, report.success_rate, report.errors) == (True, 0.6, 0)
    assert report.supporter_failures == COUNTS[1]
    assert len(lines(tmp_path)) == 10
    assert not any(trajectory.spent for trajectory in report.trajectories)


def test_a_policy_that_samples_gains_nothing_by_raising(tmp_path):
    policy = spoiling(Sampling(), raising(ModelError("no answer")))
    first = held(policy, tmp_path)
    assert (first.complete, first.errors) == (True, 0)
    assert 0 < (first.success_rate or 0) < 1
    for _ in range(20):
        assert held(policy, tmp_path).trajectories == first.trajectories


def test_a_policy_that_hangs_until_the_time_limit_is_asked_again_in_that_very_turn_and_in_no_other(tmp_path):
    heard: Counter[tuple[str, int]] = Counter()

    class Noting(Sampling):
        def say(self, dialogue):
            heard[dialogue.messages[0].content, dialogue.turns] += 1
            return super().say(dialogue)

    agent, report = spoiling(Noting(), asyncio.Event().wait), None
    for attempt in range(1, 200):
        report = held(agent, tmp_path, time_limit=0.2)
        open_ = [item for item in report.trajectories if not item.completed]
        assert report.most_attempts <= attempt
        assert report.success_rate_of_all == sum(item.solved for item in report.trajectories) / 10
        if len(report.trajectories) == 10 and attempt > 4 and {item.turns for item in open_} <= {T - 1}:
            break
    assert report is not None
    assert 0 < len(open_) < 10
    assert not report.complete
    assert {(item.failure.role, item.failure.kind) for item in open_ if item.failure} == {("supporter", "TimeLimit")}
    assert set(heard.values()) == {1}, "nothing was asked for twice"
    whole = held(Sampling(), tmp_path)
    assert (whole.complete, whole.retried) == (True, len(open_))
    for before, after in zip(report.trajectories, whole.trajectories, strict=True):
        assert after.dialogue.messages[: len(before.dialogue)] == before.dialogue.messages


@pytest.mark.filterwarnings("ignore::esc_env.errors.ESCWarning")
def test_a_model_of_ours_that_breaks_whenever_it_would_lose_leaves_a_run_that_says_so(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="needs the extra llm")
    for name, seconds in (("retries.FIRST_WAIT", 0.001), ("retries.LONGEST_WAIT", 0.001), ("endpoint.DOWN", 0.0)):
        monkeypatch.setattr(f"esc_env.models.{name}", seconds)
    for attempt in range(1, 4):
        report = held(spoiling(Honest(), unreachable), tmp_path)
        assert (report.complete, report.completed, report.errors) == (False, *COUNTS)
        assert (report.success_rate, report.success_rate_of_all) == (1.0, 0.6)
        assert report.most_attempts == attempt
    assert {item.dialogue.turns for item in report.trajectories if not item.completed} == {T - 1}
    page = dict(run_pages(report))["report.html"]
    assert page.index("60.0 %") < page.index("100.0 %"), "the lower number first"
    assert "4 of the conversations took more than one attempt (3 at most)" in page
    assert held(Honest(), tmp_path).success_rate == 0.6


# --- on from where it broke ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chair", "calls"),
    [("agent", (T + 1, T, T)), ("seeker", (T, T + 1, T)), ("critic", (T, T, T + 1))],
)
@pytest.mark.parametrize("turn", [1, 2, 3])
def test_nothing_that_was_said_or_judged_is_asked_for_again(tmp_path, chair, calls, turn):
    seats: dict[str, Any] = {"agent": Honest(), "seeker": Seeker(), "critic": Lucky()}
    asked = {name: Faulty(seat) for name, seat in seats.items()}
    error = ModelError("gone")
    error.infrastructure = True
    asked[chair].failures[turn] = error
    people = bank(10)[9:]
    first = evaluate(asked["agent"], people, seeker=asked["seeker"], critic=asked["critic"], rules=RULES, out=tmp_path)
    (broken,) = first.trajectories
    assert (broken.stop_reason, broken.turns) == (StopReason.ERROR, turn - 1)
    assert broken.failure
    assert broken.failure.role == broken.due == chair.replace("agent", "supporter")
    assert len(broken.dialogue) == 1 + 2 * (turn - 1) + ["agent", "seeker", "critic"].index(chair)
    whole = evaluate(asked["agent"], people, seeker=asked["seeker"], critic=asked["critic"], rules=RULES, out=tmp_path)
    assert (whole.complete, whole.retried, whole.most_attempts) == (True, 1, 2)
    assert tuple(asked[name].calls for name in ("agent", "seeker", "critic")) == calls
    assert read_run(tmp_path) == whole


class Failing:
    """A chair that fails at the calls that it is told to fail at, each once: by name of the call, not by its number."""

    def __init__(self, chair: Any, fails: set[tuple[str, int]]) -> None:
        self.chair = chair
        self.identity = chair.identity
        self.fails = fails

    def __getattr__(self, method: str) -> Any:
        async def call(*shown: Any, seed: Seed, **named: Any) -> Any:
            if (seed.role, seed.turn) in self.fails:
                self.fails.remove((seed.role, seed.turn))
                error = ModelUnavailable("gone")
                error.infrastructure = True
                raise error
            return await getattr(self.chair, method)(*shown, seed=seed, **named)

        return call


def failing(chair: Any, fails: set[tuple[str, int]]) -> Any:
    return Failing(chair, fails)


CALLS = [("seeker", 0), *((role, turn) for turn in (1, 2, 3) for role in ("supporter", "seeker", "critic"))]


@given(st.sets(st.sampled_from(CALLS)), st.sampled_from(["situation", "seeker"]), st.integers(0, 9))
def test_a_chain_of_failures_gives_the_same_bytes_as_a_conversation_that_never_failed(fails, opening, number):
    rules, person = replace(RULES, opening=opening), bank(10)[number]
    pending = set(fails)
    spoken = ScriptedAgent(["I see.", "lucky" if number < 6 else "Hm."])
    agent, seeker, critic = (failing(chair, pending) for chair in (spoken, Seeker(), Lucky()))
    chairs = Chairs(seeker, critic, rules)

    def kept(trajectory: Trajectory) -> Trajectory:
        """As a file gives it back."""
        return Trajectory.from_json(json.loads(json.dumps(trajectory.to_json())), person)

    whole = run(converse(person, spoken, Chairs(Seeker(), Lucky(), rules), seed=7))
    attempts = 1
    talk = kept(run(converse(person, agent, chairs, seed=7)))
    while not talk.completed:
        attempts += 1
        talk.check(rules)
        assert whole.dialogue.messages[: len(talk.dialogue)] == talk.dialogue.messages
        talk = kept(run(converse(person, agent, chairs, seed=7, after=talk)))
        assert talk.attempts == attempts
    assert replace(talk, attempts=1) == kept(whole)
    if attempts == 1:
        assert json.dumps(talk.to_json()) == json.dumps(whole.to_json())


def test_only_an_error_of_the_same_conversation_is_gone_on_with():
    first, second = bank(2)
    chairs = Chairs(Faulty(Seeker(), {1: ModelError("gone")}), Lucky(), RULES)
    broken = run(converse(first, Honest(), chairs, seed=7))
    ended = run(converse(first, Honest(), chairs, seed=7))
    wrong: list[tuple[Scenario, dict[str, Any]]] = [
        (second, {"seed": 7, "after": broken}), (first, {"seed": 8, "after": broken}),
        (first, {"seed": 7, "trial": 1, "after": broken}), (first, {"seed": 7, "after": ended}),
        (first, {"seed": 7, "after": broken, "history": broken.dialogue}),
    ]  # fmt: skip
    for scenario, how in wrong:
        with pytest.raises(ScenarioError):
            run(converse(scenario, Honest(), chairs, **how))


# --- whose failure it is ---------------------------------------------------------------------------


class Wire:
    """A chat model at the end of a wire that is down at some calls."""

    identity: Mapping[str, Any] = {"provider": "mine", "name": "wire"}

    def __init__(self) -> None:
        self.down = 0

    async def complete(self, request: Request) -> Completion:
        if self.down:
            self.down -= 1
            raise ModelUnavailable("the line is down")
        return Completion(("I see.",), ("stop",), Usage(1))


wire = Wire()


class Asking(Honest):
    """An agent of one's own that asks a model of ours."""

    async def respond(self, dialogue, *, seed):
        said = await open_model(f"python:{__name__}:wire").complete(Request([{"role": "user", "content": "hi"}]))
        return Reply(said.texts[0] or "")


@pytest.mark.parametrize(
    "agent", [Asking(), ChatAgent(wire), f"python:{__name__}:wire"], ids=["asks one", "object", "string"]
)
def test_a_model_that_we_asked_fails_as_infrastructure_whoever_asked_for_it(tmp_path, agent):
    def break_down(progress: Any) -> None:
        wire.down = 1

    report = held(agent, tmp_path, limit=1, progress=break_down)
    assert (report.errors, report.supporter_failures) == (1, 0)
    wire.down = 0
    report = held(agent, tmp_path, limit=1)
    assert (report.complete, report.most_attempts) == (True, 2)


# --- files -----------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A run of one conversation that broke off before the critic's second vote."""
    held(Honest(), tmp_path / "run", critic=Faulty(Lucky(), {2: ModelError("gone")}), limit=1)
    return tmp_path / "run"


def edited(folder: Path, line: dict[str, Any], **changes: Any) -> None:
    (folder / "trajectories.jsonl").write_text(json.dumps({**line, **changes}) + "\n")


def test_a_dangling_message_belongs_to_an_error_and_to_what_failed(broken: Path):
    (line,) = lines(broken)
    said, failure = line["dialogue"], line["failure"]
    supporter = {**failure, "role": "supporter"}
    assert len(said) == 5
    for told, changes in (
        ("4 messages for 1 turns", {"stop_reason": "max_turns", "failure": None}),
        ("4 messages for 1 turns", {"stop_reason": "supporter_failed", "failure": supporter}),
        ("contradicts the last verdict", {"stop_reason": "solved", "failure": None}),
        ("failure is of nobody", {"failure": None}),
        ("failure is of seeker", {"failure": {**failure, "role": "seeker"}}),
        ("failure is of supporter", {"failure": supporter}),
        ("failure is of critic", {"dialogue": said[:4]}),
        ("5 messages for 1 turns", {"dialogue": [*said, said[1]]}),
        ("take turns", {"dialogue": [*said[:4], said[3]]}),
        ("attempts: must be a whole number", {"attempts": 0}),
    ):
        edited(broken, line, **changes)
        with pytest.raises(RecordError, match=told):
            read_run(broken)
    edited(broken, line)
    assert read_run(broken).errors == 1


def test_an_error_of_a_release_that_kept_nothing_of_a_broken_exchange_goes_on(broken: Path):
    (line,) = lines(broken)
    edited(broken, line, dialogue=line["dialogue"][:3])
    report = held(Honest(), broken, limit=1)
    assert (report.complete, report.most_attempts) == (True, 2)


def test_no_error_stands_after_the_last_turn(broken: Path):
    (line,) = lines(broken)
    (verdict,) = line["verdicts"]
    said = line["dialogue"]
    edited(broken, line, dialogue=[said[0], *said[1:3] * T], verdicts=[verdict] * T)
    with pytest.raises(RecordError, match=f"{T} turns, and T is {T}"):
        read_run(broken)


def test_attempts_are_kept_only_where_there_was_more_than_one(broken: Path):
    assert "attempts" not in lines(broken)[0]
    report = held(Honest(), broken, limit=1)
    assert [line.get("attempts") for line in lines(broken)] == [None, 2]
    assert "2 attempts" in dict(run_pages(report))["report-0001.html"]


def test_usage_is_that_of_all_attempts(broken: Path):
    assert held(Honest(), broken, limit=1).usage == Usage(6)


# --- interruptions ---------------------------------------------------------------------------------


def test_what_an_interruption_cuts_off_goes_on_from_there(tmp_path):
    agent = Faulty(Honest())

    def stop(progress: Any) -> None:
        if progress.turns == 2:
            raise OSError("nobody listens")

    people = bank(10)[9:]
    options: Any = {"seeker": Seeker(), "critic": Lucky(), "rules": RULES, "out": tmp_path}
    with pytest.raises(OSError, match="nobody listens"):
        evaluate(agent, people, progress=stop, **options)
    (line,) = lines(tmp_path)
    assert (line["stop_reason"], line["failure"]["kind"], len(line["verdicts"])) == ("error", "Interrupted", 2)
    report = evaluate(agent, people, **options)
    assert (report.complete, report.most_attempts, agent.calls) == (True, 2, T)


def test_a_conversation_that_had_ended_when_it_was_interrupted_has_its_outcome(tmp_path):
    def stop(progress: Any) -> None:
        if progress.turns == 2:
            raise OSError("nobody listens")

    with pytest.raises(OSError, match="nobody listens"):
        held(Honest(), tmp_path, limit=1, progress=stop)
    assert read_run(tmp_path).success_rate == 1.0

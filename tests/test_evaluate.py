"""Evaluation: every conversation is held once, kept, counted, and never confused with another run's."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
from conftest import OddOnes, bank
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_env import Ballot, Rules, StopReason, Trajectory, episode_seed
from esc_env.errors import (
    CompleteRunWarning,
    ModelError,
    ProtocolMismatch,
    RecordError,
    ScenarioError,
    SpecError,
    TornLineWarning,
)
from esc_env.evaluation import Replies, Report, evaluate, read_run, success_interval
from esc_env.evaluation.statistics.intervals import clustered_wilson, mean_interval, wilson
from esc_env.progress import Progress
from esc_env.protocols import Reply
from esc_env.records import FolderLock, RecordWriter, read_records
from esc_env.testing import FakeChatModel, Faulty, ScriptedAgent, ScriptedCritic, ScriptedSeeker

AGENT = ScriptedAgent(["What happened?", "And then?"])
SEEKER = ScriptedSeeker(["I see.", "Maybe."])


def held(agent: Any = AGENT, scenarios: Any = None, **options: Any) -> Report:
    people = bank(4) if scenarios is None else scenarios
    usual: Any = {"seeker": SEEKER, "critic": OddOnes(), "rules": Rules(max_turns=3)}
    return evaluate(agent, people, **{**usual, **options})


def lines(folder: Path) -> list[dict]:
    return list(read_records(folder / "trajectories.jsonl", "trajectory"))


# --- what is reported -----------------------------------------------------------------------------


def test_the_report_counts_what_happened(tmp_path):
    report = held(out=tmp_path / "run")
    assert (report.episodes, report.completed, report.errors, report.supporter_failures) == (4, 4, 0, 0)
    assert report.success_rate == 0.5
    assert report.average_turns == (2 + 3 + 2 + 3) / 4
    assert report.mean_score == (1 - 0.5 + 1 - 0.5) / 4
    assert report.interval == wilson(2, 4)
    assert report.success_rate_of_all == 0.5
    assert report.complete
    assert [trajectory.scenario.id for trajectory in report.trajectories] == [f"person-{i}" for i in range(4)]
    assert report.by_emotion["anxiety"].episodes == 4
    assert report.by_persona["cooperative"].success_rate == 0.5


def test_report_json_has_the_names_of_the_report(tmp_path):
    report = held(out=tmp_path / "run")
    data = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    for name in ("agent", "scenarios", "run_key", "episodes", "completed", "errors", "supporter_failures",
                 "success_rate", "success_rate_of_all", "average_turns", "mean_score"):  # fmt: skip
        assert data[name] == getattr(report, name), name
    assert tuple(data["interval"]) == report.interval
    assert data["fingerprint"] == report.fingerprint.digest
    assert data["by_problem"]["job crisis"]["success_rate"] == 0.5


def test_reading_the_folder_gives_the_same_report(tmp_path):
    report = held(out=tmp_path / "run", trials=2)
    again = read_run(tmp_path / "run")
    assert again == report


def test_the_default_folder_is_named_by_the_run_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = held()
    assert report.folder == Path("runs") / report.run_key
    assert sorted(path.name for path in report.folder.iterdir()) == [
        ".lock", ".place", "report.json", "run.json", "scenarios.jsonl", "timing.jsonl", "trajectories.jsonl",
    ]  # fmt: skip


def test_a_supporter_that_raises_fails_its_conversations_and_is_counted(tmp_path):
    report = held(lambda messages: 1 / 0, out=tmp_path / "run")
    assert (report.completed, report.supporter_failures, report.errors) == (4, 4, 0)
    assert report.success_rate == 0.0
    assert report.average_turns == 3
    assert report.mean_score == -1
    (failure,) = report.failure_messages
    assert failure[0] == "supporter"
    assert "ZeroDivisionError: division by zero" in failure[1]
    assert failure[2] == 4


def test_a_failed_call_is_never_a_failed_conversation(tmp_path):
    seeker = Faulty(SEEKER, {n: ModelError("no such model") for n in range(1, 100)})
    report = held(out=tmp_path / "run", seeker=seeker)
    assert (report.completed, report.errors, report.supporter_failures) == (0, 4, 0)
    assert report.success_rate is None
    assert report.interval is None
    assert report.average_turns is None
    assert report.mean_score is None
    assert report.success_rate_of_all == 0.0
    assert not report.complete
    assert report.failure_messages == (("seeker", "no such model", 4),)
    assert "NaN" not in (tmp_path / "run" / "report.json").read_text()


def test_errors_are_tried_again_and_the_last_line_counts(tmp_path):
    seeker = Faulty(SEEKER, {1: ModelError("busy")})
    first = held(out=tmp_path / "run", seeker=seeker, concurrency=1)
    assert (first.completed, first.errors, first.success_rate) == (3, 1, pytest.approx(2 / 3))
    assert first.success_rate_of_all == 0.5
    second = held(out=tmp_path / "run", seeker=seeker, concurrency=1)
    assert (second.completed, second.errors, second.success_rate) == (4, 0, 0.5)
    kept = [(line["scenario"], line["stop_reason"]) for line in lines(tmp_path / "run")]
    assert kept.count(("person-0", "error")) == 1
    assert len(kept) == 5


# --- seeds and fingerprints -----------------------------------------------------------------------


def test_an_episode_seed_depends_on_nothing_but_run_seed_scenario_and_trial(tmp_path):
    few = held(out=tmp_path / "a", limit=2, trials=3, seed=5, concurrency=1)
    many = held(ScriptedAgent(["Hm."]), out=tmp_path / "b", trials=3, seed=5)
    seeds = {(t.scenario.id, t.trial): t.seed for t in many.trajectories}
    assert len(set(seeds.values())) == 12
    for trajectory in few.trajectories:
        key = (trajectory.scenario.id, trajectory.trial)
        assert trajectory.seed == seeds[key] == episode_seed(5, *key)


def test_concurrency_changes_nothing(tmp_path):
    one = held(out=tmp_path / "a", trials=3, concurrency=1)
    many = held(out=tmp_path / "b", trials=3, concurrency=7)
    assert one.run_key == many.run_key
    assert one.trajectories == many.trajectories


def test_no_more_conversations_are_alive_than_asked_for(tmp_path):
    gate = threading.Lock()
    alive = most = 0

    def respond(messages):
        nonlocal alive, most
        with gate:
            alive += 1
            most = max(most, alive)
        both.wait(timeout=30)
        with gate:
            alive -= 1
        return "Hm."

    both = threading.Barrier(2)
    report = held(respond, bank(6), out=tmp_path / "run", concurrency=2, critic=ScriptedCritic(["same"]))
    assert report.supporter_failures == 0
    assert most == 2


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"trials": 2},
        {"limit": 3},
        {"persona": "hostile"},
        {"rules": Rules(max_turns=4)},
        {"seeker": ScriptedSeeker(["Other."])},
        {"critic": ScriptedCritic(["same"])},
    ],
)
def test_whatever_the_agent_faces_is_in_the_fingerprint(tmp_path, change):
    first, second = held(out=tmp_path / "a"), held(out=tmp_path / "b", **change)
    assert first.fingerprint.digest != second.fingerprint.digest
    assert first.run_key != second.run_key
    with pytest.raises(ProtocolMismatch, match="What differs") as caught:
        held(out=tmp_path / "a", **change)
    for line in first.fingerprint.differences(second.fingerprint):
        assert line.split(":")[0] in str(caught.value)


def test_the_agent_is_in_the_run_key_but_not_in_the_fingerprint(tmp_path):
    first, second = held(out=tmp_path / "a"), held(ScriptedAgent(["Hm."]), out=tmp_path / "b")
    assert first.fingerprint.digest == second.fingerprint.digest
    assert first.run_key != second.run_key
    with pytest.raises(ProtocolMismatch, match="agent"):
        held(ScriptedAgent(["Hm."]), out=tmp_path / "a")


def test_a_persona_that_all_scenarios_have_is_the_same_run(tmp_path):
    assert held(out=tmp_path / "a").run_key == held(out=tmp_path / "b", persona="cooperative").run_key


def test_progress_tells_every_exchange_and_every_conversation(tmp_path):
    told: list[Progress] = []
    report = held(out=tmp_path / "run", concurrency=1, progress=told.append)
    assert told[0] == Progress(0, 4)
    assert [step.turns for step in told if not step.done] == [0, 1, 2, 3], "before any conversation has ended"
    assert told[-1] == Progress(4, 4, turns=sum(trajectory.turns for trajectory in report.trajectories))


def test_progress_counts_errors(tmp_path):
    told: list[Progress] = []
    held(out=tmp_path / "run", seeker=Faulty(SEEKER, dict.fromkeys(range(1, 9), OSError())), progress=told.append)
    assert (told[-1].done, told[-1].errors) == (4, 4)


# --- how models' answers end ----------------------------------------------------------------------


class Endings:
    """Says a reply of its own to each person, each ended in another way."""

    identity: ClassVar = {"name": "endings", "max_tokens": 1024}
    replies: tuple[Reply, ...] = (
        Reply("", "She is sad, so", finish_reason="length"),
        Reply("I hear", finish_reason="length"),
        Reply("I cannot help with that.", finish_reason="refusal"),
        Reply("", finish_reason="content_filter"),
        Reply(" ", finish_reason="stop"),
        Reply("I hear you.", finish_reason="stop"),
        Reply("", "She is", finish_reason="length"),
        Reply("Mm."),
    )

    async def respond(self, dialogue, *, seed):
        return self.replies[int(dialogue.messages[0].content.split()[3])]


def test_the_report_says_how_replies_ended_and_what_to_do(tmp_path):
    report = held(Endings(), bank(8), out=tmp_path / "run", critic=ScriptedCritic([-0.5]), rules=Rules(max_turns=2))
    assert report.replies == Replies(all=16, cut=6, cut_thinking=4, refused=2, filtered=2, empty=2, max_tokens=1024)
    assert report.warnings == [
        "25 % of the replies were cut while thinking, 12 % were cut, 12 % were refusals, 12 % were withheld by a "
        "content filter, 12 % were empty; raise max_tokens (now 1,024): --agent-option max_tokens=2048"
    ]
    assert read_run(tmp_path / "run") == report
    data = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert data["replies"]["cut_thinking"] == 4
    kept = [message for line in lines(tmp_path / "run") for message in line["dialogue"]]
    assert {"role": "supporter", "content": "", "thought": "She is", "finish_reason": "length"} in kept
    assert {"role": "supporter", "content": "Mm."} in kept, "what no model wrote has no reason"


def test_whole_replies_need_no_warning_and_their_ending_changes_nothing_else(tmp_path):
    class Plain(Endings):
        replies = (Reply("I hear you."),) * 4

    class Ended(Endings):
        replies = (Reply("I hear you.", finish_reason="stop"),) * 4

    plain, ended = (held(agent, out=tmp_path / name) for name, agent in (("a", Plain()), ("b", Ended())))
    assert plain.warnings == ended.warnings == []
    assert plain.replies == ended.replies
    assert plain.run_key == ended.run_key


def test_a_record_from_before_replies_had_an_ending_is_read(tmp_path):
    report = held(out=tmp_path / "run")
    for line in lines(tmp_path / "run"):
        assert not any("finish_reason" in message for message in line["dialogue"])
        assert not any("unreadable" in verdict for verdict in line["verdicts"])
    assert read_run(tmp_path / "run") == report
    assert report.unreadable_votes is None, "no chat model has voted"


@pytest.mark.parametrize("wrong", [7, "\ud800"])
@pytest.mark.parametrize("field", ["thought", "strategy", "finish_reason"])
def test_a_reply_with_what_is_no_text_is_the_supporters_failure(tmp_path, field, wrong):
    class Wrong(Endings):
        replies = (Reply("Mm.", **{field: wrong}),) * 4

    report = held(Wrong(), out=tmp_path / "run")
    assert (report.completed, report.supporter_failures) == (4, 4)


def test_the_report_says_how_many_of_the_critics_first_answers_were_unreadable(tmp_path):
    unsure = FakeChatModel(lambda call, choice: "well" if call.n == 10 and choice < 2 else "B")
    report = held(out=tmp_path / "run", critic=unsure)
    assert report.unreadable_votes == 0.2
    assert all(verdict.valid_votes == 10 for item in report.trajectories for verdict in item.verdicts), "asked again"
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("20 % of the critic's first answers could not be read as a vote (24 whole, ")
    assert report.first_votes is not None
    assert (report.first_votes.all, report.first_votes.kinds) == (120, {"prose": 24})
    assert read_run(tmp_path / "run").unreadable_votes == 0.2
    sure = held(out=tmp_path / "sure", critic=FakeChatModel("B"))
    assert (sure.unreadable_votes, sure.warnings) == (0.0, [])


class Raters(FakeChatModel):
    """Raters who vote at random, whatever is said. `says` is how they put an option, `odd` some answers."""

    def __init__(self, odd: str = "{}", **says: str) -> None:
        def answer(call, choice):
            draw = Random(f"{call.seed} {choice}")
            letter = draw.choice("AAABBBBCCCCCDDDDD")
            return (odd if draw.random() < 0.2 else "{}").format(says.get(letter, letter))

        super().__init__(answer)


def rated(folder: Path, odd: str = "{}", **says: str) -> Report:
    return held(scenarios=bank(80), critic=Raters(odd, **says), rules=Rules(max_turns=4), out=folder)


def test_a_critic_that_explains_its_answer_is_no_other_critic(tmp_path):
    plain = rated(tmp_path / "plain")
    assert plain.success_rate is not None
    assert 0.1 < plain.success_rate < 0.2
    for name, says in {
        "solved": {"D": "D: the seeker says the matter is settled, and thanks."},
        "same": {"B": "B, they repeat the same worry."},
        "two": {"B": "B They repeat the same worry.", "C": "C; they mention feeling lighter"},
    }.items():
        explained = rated(tmp_path / name, **says)
        assert explained.success_rate == plain.success_rate
        assert explained.warnings == []


def test_a_reader_is_warned_where_one_option_is_harder_to_read_than_the_others(tmp_path):
    plain = rated(tmp_path / "plain").success_rate
    assert plain is not None
    for option, says in (("solved", {"D": "Perhaps D."}), ("same", {"B": "I lean to B, I think"})):
        report = rated(tmp_path / option, **says)
        assert report.success_rate is not None
        assert abs(report.success_rate - plain) > 0.1, "this is what to warn of"
        assert "drawn again" in report.warnings[0]
        assert f"of those for {option!r} 100 % could not, of the others none, " in report.warnings[1]


def test_that_some_answers_of_every_kind_cannot_be_read_is_no_bias(tmp_path):
    report = rated(tmp_path / "run", odd="Perhaps {}.")
    assert [line.partition(" (")[0] for line in report.warnings] == [
        "20 % of the critic's first answers could not be read as a vote"
    ]


# --- the folder -----------------------------------------------------------------------------------


def test_a_complete_run_is_not_run_again(tmp_path):
    calls: list[Any] = []
    told: list[Any] = []

    def respond(messages):
        calls.append(messages)
        return "Hm."

    first = held(respond, out=tmp_path / "run")
    before = len(calls)
    with pytest.warns(CompleteRunWarning, match="fresh=True"):
        second = held(respond, out=tmp_path / "run", progress=told.append)
    assert len(calls) == before
    assert second == first
    assert told == [Progress(4, 4)]


def test_fresh_starts_over_and_keeps_the_old_run_beside_it(tmp_path):
    first = held(out=tmp_path / "run")
    held(ScriptedAgent(["Hm."]), out=tmp_path / "run", fresh=True)
    third = held(out=tmp_path / "run", fresh=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run~1", "run~2"]
    assert read_run(tmp_path / "run~1").trajectories == first.trajectories == third.trajectories


def test_fresh_leaves_a_folder_alone_that_holds_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RecordError, match="holds no run"):
        held(out=tmp_path, fresh=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert held(out=tmp_path / "new", fresh=True).complete


def test_two_writers_on_one_folder_are_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with FolderLock(folder), pytest.raises(RecordError, match="another process is writing here"):
        held(out=folder)
    assert held(out=folder).complete
    with FolderLock(folder), pytest.raises(RecordError, match="another process is writing here"):
        held(out=folder, fresh=True)
    assert folder.exists()


def test_a_torn_last_line_costs_one_conversation_and_a_warning(tmp_path):
    whole = held(out=tmp_path / "run")
    path = tmp_path / "run" / "trajectories.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.warns(TornLineWarning):
        again = held(out=tmp_path / "run")
    assert again.trajectories == whole.trajectories
    assert len(lines(tmp_path / "run")) == 4


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("run.json", "", "damaged"),
        ("run.json", "[]", "damaged"),
        ("run.json", '{"kind": "run", "version": 99}', "newer esc-env"),
        ("trajectories.jsonl", "x\n", "not a JSON record"),
        ("trajectories.jsonl", '{"kind": "trajectory", "version": 2}\n', "not a trajectory"),
    ],
)
def test_a_damaged_folder_is_told_and_left_as_it_is(tmp_path, name, text, told):
    held(out=tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    for use in (lambda: held(out=tmp_path / "run"), lambda: read_run(tmp_path / "run")):
        with pytest.raises(RecordError, match=told):
            use()
    assert (tmp_path / "run" / name).read_text() == text


def test_conversations_of_another_run_are_never_taken_in(tmp_path):
    held(scenarios=bank(6), out=tmp_path / "big")
    held(out=tmp_path / "run")
    with RecordWriter(tmp_path / "run" / "trajectories.jsonl", "trajectory") as writer:
        writer.write(lines(tmp_path / "big")[-1])
    with pytest.raises(RecordError, match="no part of this run"):
        read_run(tmp_path / "run")


def test_what_cannot_be_run_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "run"
    for error, options in (
        (SpecError, {"agent": "builtin:skiled"}),
        (SpecError, {"seeker": "builtin:nobody"}),
        (ScenarioError, {"scenarios": []}),
        (ScenarioError, {"persona": "grumpy"}),
        (SpecError, {"trials": 0}),
        (SpecError, {"limit": 0}),
        (SpecError, {"concurrency": 0}),
    ):
        with pytest.raises(error):
            held(**{"scenarios": bank(2), "out": out, **options})
    assert not out.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="--out"):
        held(out=tmp_path / "file")


@pytest.mark.parametrize(
    ("chair", "before", "edited"),
    [
        ("agent", "'What happened?'", "'And then?'"),
        ("seeker", "'I see.'", "'Maybe.'"),
        ("critic", "'same'", "'better'"),
    ],
)
@pytest.mark.filterwarnings("ignore::esc_env.errors.CompleteRunWarning")
def test_an_edited_function_in_any_chair_is_another_run(tmp_path, chair, before, edited):
    def with_function(says: str) -> Report:
        module: dict[str, Any] = {"__name__": "mine"}
        exec(f"def speak(*heard): return {says}", module)
        return held(**{chair: module["speak"], "out": tmp_path / "run"})

    first = with_function(before)
    assert with_function(before).run_key == first.run_key
    with pytest.raises(ProtocolMismatch, match=chair):
        with_function(edited)


def test_an_identity_that_is_no_json_is_refused(tmp_path):
    class Odd:
        identity: ClassVar = {"name": object()}
        respond = AGENT.respond

    with pytest.raises(SpecError, match="plain JSON"):
        held(Odd(), out=tmp_path / "run")


def test_a_full_disk_stops_the_run_with_all_before_it_kept(tmp_path, monkeypatch):
    kept = RecordWriter.write
    count = 0

    def write(self, data):
        nonlocal count
        count += self.kind == "trajectory"
        if count == 3:
            raise RecordError("no room")
        kept(self, data)

    monkeypatch.setattr(RecordWriter, "write", write)
    with pytest.raises(RecordError, match="no room"):
        held(out=tmp_path / "run", concurrency=1)
    monkeypatch.undo()
    assert len(lines(tmp_path / "run")) == 2
    assert held(out=tmp_path / "run").complete


def test_it_works_inside_a_running_event_loop(tmp_path):
    import asyncio

    async def notebook():
        return held(out=tmp_path / "run")

    assert asyncio.run(notebook()).complete


# --- kill -9 --------------------------------------------------------------------------------------

KILLED = """
import os, threading
from esc_env import Reply

stop_at = int(os.environ.get("STOP_AT", "0"))
calls = 0
lock = threading.Lock()

def respond(messages):
    global calls
    with lock:
        calls += 1
        number = calls
    if stop_at and number == stop_at:
        print("reached", flush=True)
    if stop_at and number >= stop_at:
        threading.Event().wait()
    return f"So {messages[-1]['content'][:20]}? Tell me more ({len(messages)})."
"""


@pytest.fixture
def start(tmp_path):
    """Start `esc eval` into a folder; whatever still runs at the end of the test is killed."""
    (tmp_path / "slow_agent.py").write_text(KILLED)
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(s.to_json()) + "\n" for s in bank(4)))
    started: list[subprocess.Popen] = []

    def start_(out: str, **environment: str) -> subprocess.Popen:
        started.append(_esc(tmp_path, out, environment))
        return started[-1]

    yield start_
    for process in started:
        process.kill()
        process.communicate()


def _esc(folder: Path, out: str, environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "from esc_env.cli import main; main()", "eval", "--agent", "python:slow_agent:respond",
         "--scenarios", "people.jsonl", "--trials", "2", "--max-turns", "3", "--concurrency", "3", "--out", out],
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _line(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("stops", [(1,), (8, 8), (17, 4)])
def test_nothing_is_lost_and_nothing_is_held_twice_after_kill_9(tmp_path, start, stops):
    for stop in stops:
        process = start("run", STOP_AT=str(stop))
        assert _line(process) == "reached\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = lines(tmp_path / "run")
    with (tmp_path / "run" / "trajectories.jsonl").open("ab") as file:
        file.write(b'{"kind": "trajectory", "vers')
    resumed = start("run")
    _, told = resumed.communicate(timeout=60)
    assert resumed.returncode == 0
    assert "cut off by a crash" in told
    whole = start("whole")
    whole.communicate(timeout=60)
    kept = lines(tmp_path / "run")
    assert kept[: len(before)] == before
    assert len(kept) == len({(line["scenario"], line["trial"]) for line in kept}) == 8
    ordered = [sorted(map(json.dumps, rows)) for rows in (kept, lines(tmp_path / "whole"))]
    assert ordered[0] == ordered[1]
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("run", "whole")]
    assert reports[0] == reports[1]


def test_ctrl_c_leaves_a_folder_that_resumes_and_says_how(tmp_path, start):
    process = start("run", STOP_AT="14")
    assert _line(process) == "reached\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To go on, type: esc eval --agent python:slow_agent:respond" in told
    assert "Traceback" not in told
    stopped = read_run(tmp_path / "run")
    cut = {(item.failure.role, item.failure.kind) for item in stopped.trajectories if item.failure}
    assert cut == {("supporter", "Interrupted")}, "those under way are kept too"
    resumed = start("run")
    resumed.communicate(timeout=60)
    assert resumed.returncode == 0
    whole = read_run(tmp_path / "run")
    assert (whole.complete, whole.retried, whole.most_attempts) == (True, stopped.errors, 2)
    for before, after in zip(stopped.trajectories, whole.trajectories, strict=False):
        assert after.dialogue.messages[: len(before.dialogue)] == before.dialogue.messages


# --- statistics -----------------------------------------------------------------------------------

OUTCOMES = st.lists(st.lists(st.booleans(), max_size=4), max_size=12)


@settings(max_examples=60)
@given(OUTCOMES)
def test_an_interval_holds_the_rate_and_is_never_a_point(outcomes):
    interval = success_interval(outcomes)
    flat = [solved for trials in outcomes for solved in trials]
    if not flat:
        assert interval is None
        return
    assert interval is not None
    low, high = interval
    assert 0 <= low <= sum(flat) / len(flat) <= high <= 1
    assert low < high


@settings(max_examples=30)
@given(OUTCOMES.filter(any), st.randoms())
def test_the_order_of_scenarios_hardly_matters_and_the_same_data_gives_the_same_interval(outcomes, random):
    interval = success_interval(outcomes)
    assert success_interval(outcomes) == interval
    shuffled = random.sample(outcomes, len(outcomes))
    if all(len(trials) <= 1 for trials in outcomes):
        assert success_interval(shuffled) == interval


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_symmetric_and_narrows_with_more_trials(counts):
    solved, tried = counts
    low, high = wilson(solved, tried)
    mirrored = wilson(tried - solved, tried)
    assert math.isclose(low, 1 - mirrored[1], abs_tol=1e-12)
    more = wilson(10 * solved, 10 * tried)
    assert more[1] - more[0] < high - low


def test_wilson_agrees_with_published_numbers():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    for solved, tried, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                     (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(solved, tried) == pytest.approx((low, high), abs=5e-5)


def test_trials_of_one_scenario_count_as_alike():
    alike = [[True] * 5] * 20 + [[False] * 5] * 20
    low, high = success_interval(alike) or (0, 0)
    independent = wilson(100, 200)
    assert high - low > 1.8 * (independent[1] - independent[0])
    assert (low, high) == pytest.approx(wilson(20, 40), abs=0.03)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("scenarios", [10, 40])
def test_an_interval_covers_the_rate_where_scenarios_are_few_and_rates_extreme(scenarios, rate):
    import numpy as np

    draw = np.random.default_rng(scenarios)
    hits = 0
    for _ in range(400):
        hardness = draw.beta(rate, 1 - rate, scenarios)  # an intraclass correlation of .5
        low, high = clustered_wilson((int(draw.binomial(5, p)), 5) for p in hardness)
        hits += low <= rate <= high
    assert hits / 400 >= 0.92, "a bootstrap of scenarios fails half of these"


@pytest.mark.parametrize("rates", [(0.02, 0.05), (0.1, 0.3), (0.9, 0.98)])
def test_the_interval_of_a_difference_covers_it_where_hardly_any_scenario_differs(rates):
    import numpy as np

    draw = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        one, other = (draw.binomial(1, draw.beta(rate, 1 - rate, 20)) for rate in rates)
        _, (low, high) = mean_interval([[float(gained)] for gained in other - one])
        hits += low <= rates[1] - rates[0] <= high
    assert hits / 400 >= 0.92, "a bootstrap of scenarios fails all of these"


@pytest.mark.parametrize("scenarios", [10, 40])
def test_intervals_of_clustered_data_cover_in_93_to_97_percent(scenarios):
    import numpy as np

    draw = np.random.default_rng(scenarios)
    rates, differences = [], []
    for one, other in ((0.05, 0.15), (0.1, 0.3), (0.5, 0.5), (0.5, 0.6), (0.3, 0.7), (0.9, 0.98)):
        for spread in (9.0, 1.0):  # intraclass correlations of .1 and .5
            for _ in range(150):
                hardness = (draw.beta(rate * spread, (1 - rate) * spread, scenarios) for rate in (one, other))
                before, after = (draw.binomial(5, each) for each in hardness)
                low, high = clustered_wilson((int(solved), 5) for solved in before)
                rates.append(low <= one <= high)
                _, (low, high) = mean_interval([[float(gained)] for gained in (after - before) / 5])
                differences.append(low <= other - one <= high)
    assert 0.93 <= np.mean(rates) <= 0.97
    assert 0.93 <= np.mean(differences) <= 0.97


def test_a_difference_that_no_scenario_shows_is_at_most_one_by_the_rule_of_three():
    assert mean_interval([[0.0] * 3] * 40) == (0, pytest.approx((-0.0722, 0.0722), abs=1e-4))
    assert mean_interval([[1.0]] * 40) == (1, pytest.approx((1 - 2 * 0.0722, 1), abs=1e-4)), "nor beyond what can be"
    thirds = [[0.1] * 3] * 20 + [[0.1]] * 20  # whose means differ in their last digit
    assert mean_interval(thirds)[1] == pytest.approx(mean_interval([[0.1]] * 40)[1])


def test_trials_that_tell_nothing_new_do_not_narrow_an_interval():
    one = success_interval([[True]] * 12 + [[False]] * 28)
    many = success_interval([[True] * 50] * 12 + [[False] * 50] * 28)
    assert many == pytest.approx(one, abs=0.01)
    assert clustered_wilson([(0, 5)] * 40) == pytest.approx((0, 0.0722), abs=1e-4), "the rule of three"


def test_the_interval_of_a_mean_difference_is_clustered_and_covers_the_mean():
    import numpy as np

    draw = np.random.default_rng(2)
    effects = draw.normal(0.1, 0.5, 40).clip(-1, 1)
    alike = [[float(effect)] * 6 for effect in effects]
    mean, (low, high) = mean_interval(alike)
    assert mean == pytest.approx(effects.mean())
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * effects.std() / 40**0.5, rel=0.1)  # 40 people, not 240 conversations
    mean, (low, high) = mean_interval([[0.0], [], [0.0]])
    assert low < mean == 0 < high, "two pairs that agree settle nothing"
    points = mean_interval([[100 * effect, 50] for effect in (0.1, 0.4)], within=(0, 100))
    shares = mean_interval([[effect, 0.5] for effect in (0.1, 0.4)], within=(0, 1))
    assert points == (pytest.approx(100 * shares[0]), pytest.approx([100 * end for end in shares[1]]))
    with pytest.raises(SpecError, match="no value"):
        mean_interval([[], []])


@pytest.mark.parametrize("counts", [[], [(1, 0)], [(3, 2)], [(-1, 2)]])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(SpecError, match="counts"):
        clustered_wilson(counts)


def test_stop_reasons_partition_the_report(tmp_path):
    def respond(messages):
        return "Hm." if "person 1" in messages[0]["content"] else None

    report = held(respond, out=tmp_path / "run")
    reasons = [trajectory.stop_reason for trajectory in report.trajectories]
    assert reasons.count(StopReason.SUPPORTER_FAILED) == report.supporter_failures == 3
    assert all(isinstance(trajectory, Trajectory) for trajectory in report.trajectories)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_run(tmp_path / "run") == report


@pytest.mark.parametrize(
    ("votes", "strict"), [(["solved"] * 3 + ["better"] * 7, 1.0), (["solved"] + ["better"] * 9, 0.0)]
)
def test_a_conversation_that_one_lenient_vote_decided_is_not_solved_strictly(votes, strict, tmp_path):
    class Raters(ScriptedCritic):
        async def judge(self, scenario, dialogue, *, votes, seed):
            return Ballot(self.script)

    report = held(scenarios=bank(2), critic=Raters(votes), rules=Rules(max_turns=1), out=tmp_path / "run")
    assert (report.success_rate, report.strict_success_rate) == (1.0, strict)
    assert json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["strict_success_rate"] == strict


def test_with_fewer_votes_than_it_asks_for_there_is_no_strict_rate(tmp_path):
    report = held(scenarios=bank(2), critic=ScriptedCritic(["solved"]), rules=Rules(votes=2), out=tmp_path / "run")
    assert (report.success_rate, report.strict_success_rate) == (1.0, None)

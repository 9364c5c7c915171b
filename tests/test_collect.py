"""Collecting: which contexts, which responses, what is kept, and that nothing is lost or made twice."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import bank
from typer.testing import CliRunner

from esc_env import Dialogue, Message, Scenario, ScenarioSet
from esc_env.cli import build_app
from esc_env.conversation import Chairs, converse
from esc_env.data.datasets import load_scenarios
from esc_env.errors import (
    BudgetExceeded,
    ModelUnavailable,
    ProtocolMismatch,
    RecordError,
    ScenarioError,
    SpecError,
    TornLineWarning,
)
from esc_env.progress import Progress
from esc_env.protocols import Reply, Usage
from esc_env.rules import Rules
from esc_env.seeds import Seed
from esc_env.testing import Faulty, ScriptedAgent, ScriptedCritic, ScriptedSeeker
from esc_env.training.collect import collect
from esc_env.training.contexts import human_contexts, simulated_contexts
from esc_env.training.data import Sample, card_markdown, data_card, merged, read_candidates, read_samples

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
SEEKER = ScriptedSeeker(["Yes.", "I do not know.", "Perhaps."])
FEW = bank(3)
SHORT = Rules(max_turns=3)


class Drawing:
    """An agent that draws one of `kinds` lines by its seed, and counts its calls."""

    def __init__(self, kinds: int = 1000) -> None:
        self.kinds = kinds
        self.seeds: list[Seed] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": "drawing", "kinds": self.kinds}

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        self.seeds.append(seed)
        return Reply(f"line {int(seed.uniform('line') * self.kinds)}", usage=Usage(requests=1, cost=0.5))


def chairs(votes: tuple[Any, ...] = ("same",)) -> dict[str, Any]:
    return {"seeker": SEEKER, "critic": ScriptedCritic(list(votes)), "rules": SHORT}


def human(*roles: str, name: str = "h") -> Scenario:
    said = tuple(Message("seeker" if role == "s" else "supporter", f"{name} {i}") for i, role in enumerate(roles))
    return Scenario(id=name, situation="I am sad.", emotion="sadness", problem="job crisis", dialogue=Dialogue(said))


def contents(samples: Any) -> list[tuple[Any, ...]]:
    return [(sample.key, sample.candidates, sample.futures, sample.tail, sample.split) for sample in samples]


# --- contexts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "lengths"),
    [("sps", [1, 3]), ("ssppssp", [2, 6]), ("pspsp", [2, 4]), ("pp", []), ("psss", [4]), ("s", [1])],
)
def test_human_contexts_are_all_prefixes_that_end_with_a_whole_seeker_turn(roles: str, lengths: list[int]):
    assert [len(context) for context in human_contexts(human(*roles))] == lengths


def test_simulated_contexts_are_the_prefixes_that_the_supporter_answered():
    held = asyncio.run(converse(FEW[0], Drawing(), Chairs(SEEKER, ScriptedCritic(["same"]), SHORT), seed=1))
    prefixes = list(simulated_contexts(held))
    assert [len(prefix) for prefix in prefixes] == [1, 3, 5]
    assert all(prefix.messages[-1].role == "seeker" for prefix in prefixes)
    assert held.dialogue.messages[: len(prefixes[-1])] == prefixes[-1].messages


def test_a_scenario_with_a_human_dialogue_gives_its_contexts_and_another_is_talked_with(tmp_path: Path):
    people = ScenarioSet.of("mixed", [human("s", "p", "s"), FEW[0]])
    made = collect(Drawing(), people, **chairs(), candidates=2, out=tmp_path)
    sampled = read_samples(tmp_path, tails=False)
    assert Counter(sample.scenario.id for sample in sampled) == {"h": 2 * 2, "person-0": 3 * 2}
    assert made.complete
    forced = collect(Drawing(), people, **chairs(), source="simulated", candidates=1, out=tmp_path / "s")
    assert forced.card["contexts"] == 6
    only = collect(Drawing(), people, **chairs(), source="human", candidates=1, out=tmp_path / "h")
    assert only.card["contexts"] == 2


def test_fewer_contexts_are_drawn_by_the_seed_from_all(tmp_path: Path):
    def keys(folder: str, **options: Any) -> set[Any]:
        collect(Drawing(), FEW, **chairs(), candidates=1, out=tmp_path / folder, **options)
        return {sample.key[:3] for sample in read_samples(tmp_path / folder, tails=False)}

    every = keys("all")
    some = keys("some", contexts=4)
    assert len(every) == 9
    assert len(some) == 4
    assert some < every
    assert some == keys("again", contexts=4)


def test_other_personas_are_another_collection(tmp_path: Path):
    made = collect(Drawing(), bank(8), **chairs(), persona="mixed", candidates=1, out=tmp_path)
    assert {sample.scenario.id: sample.scenario.persona for sample in made.samples} == {
        person.id: person.persona for person in bank(8).with_persona("mixed")
    }
    with pytest.raises(ProtocolMismatch, match="scenarios: "):
        collect(Drawing(), bank(8), **chairs(), candidates=1, out=tmp_path)


def test_real_human_dialogues_are_collected_from(tmp_path: Path):
    path = DATA / "esconv_official_sample.json"
    if not path.exists():
        pytest.skip("needs the ESConv sample beside the checkout")
    people = load_scenarios(path)[:2]
    made = collect("builtin:template", people, contexts=5, candidates=1, rules=SHORT, out=tmp_path)
    assert made.complete
    assert made.card["contexts"] == 5
    assert all(sample.context.messages[-1].role == "seeker" for sample in made.samples)


# --- responses and futures ----------------------------------------------------------------------------------------


def test_every_context_gets_m_responses_with_k_futures_each_drawn_under_its_own_seed(tmp_path: Path):
    agent = Drawing()
    made = collect(agent, FEW, **chairs(), candidates=4, rollouts=2, out=tmp_path)
    sampled = read_samples(tmp_path, tails=False)
    contexts = Counter(sample.key[:3] for sample in sampled for _ in sample.candidates)
    assert set(contexts.values()) == {4}
    assert len(contexts) == 9
    assert all(len(sample.futures) == 2 for sample in sampled)
    assert all(future.exchanges == future.horizon == 3 for sample in sampled for future in sample.futures)
    names = [seed.value for seed in agent.seeds]
    assert len(set(names)) == len(names)
    assert len({seed.episode for seed in agent.seeds}) == 3
    assert made.card["futures"] == 72
    assert made.card["usage"]["requests"] == len(agent.seeds)
    assert made.card["usage"]["cost"] == 0.5 * len(agent.seeds)


def test_siblings_that_say_the_same_are_simulated_once(tmp_path: Path):
    agent = Drawing(kinds=1)
    made = collect(agent, FEW, **chairs(), candidates=4, out=tmp_path)
    sampled = read_samples(tmp_path, tails=False)
    assert {sample.candidates for sample in sampled} == {(0, 1, 2, 3)}
    assert made.card["duplicates"] == 9 * 3
    assert len(agent.seeds) == 9 + 9 * 4 + 9 * 2  # conversations, responses, futures
    assert made.complete


def test_later_turns_of_futures_are_samples_too_and_the_papers_set_can_be_chosen(tmp_path: Path):
    made = collect(Drawing(), FEW, **chairs(("same", "solved")), candidates=2, out=tmp_path)
    paper = read_samples(tmp_path, tails=False)
    assert not any(sample.tail for sample in paper)
    tails = [sample for sample in made.samples if sample.tail]
    assert tails
    assert len(made.samples) == len(paper) + len(tails)
    for tail in tails:
        assert tail.candidates == ()
        assert tail.context.messages[-1].role == "seeker"
        assert tail.response.role == "supporter"
        assert tail.reward() == 1.0  # solved by the second turn, which it is
    first = [sample for sample in paper if sample.context.turns == 0]
    assert all(sample.reward() == pytest.approx(0.975) for sample in first)


def test_a_response_met_again_as_a_tail_keeps_its_own_futures(tmp_path: Path):
    """The tail had less time, so that its failure says less."""
    collect(Drawing(kinds=1), FEW, **chairs(), candidates=1, out=tmp_path)
    for sample in read_samples(tmp_path):
        assert len({future.horizon for future in sample.futures}) == 1 or sample.tail
        assert sample.tail or sample.futures[0].horizon == 3


def test_the_order_of_lines_does_not_change_what_is_read(tmp_path: Path):
    collect(Drawing(kinds=2), FEW, **chairs(), candidates=3, out=tmp_path)
    lines = read_candidates(tmp_path)
    everything = [*lines, *(tail for sample in lines for tail in sample.tails())]
    expected = contents(merged(everything))
    for seed in range(5):
        shuffled = random.Random(seed).sample(everything, len(everything))
        assert contents(merged(shuffled)) == expected


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data(tmp_path: Path):
    one, two = (
        collect("builtin:random-strategy", FEW, rules=SHORT, candidates=2, out=tmp_path / name) for name in "ab"
    )
    other = collect("builtin:random-strategy", FEW, rules=SHORT, candidates=2, seed=1, out=tmp_path / "c")
    assert contents(one.samples) == contents(two.samples) != contents(other.samples)


def test_a_sample_survives_json(tmp_path: Path):
    made = collect("builtin:skilled", bank(1), rules=SHORT, candidates=1, out=tmp_path)
    for sample in made.samples:
        assert Sample.from_json(json.loads(json.dumps(sample.to_json())), sample.scenario) == sample


def test_all_contexts_responses_and_futures_run_at_the_same_time(tmp_path: Path):
    """The seeker answers only once every future of every response to every context waits for it."""
    people = ScenarioSet.of("human", [human("s", name=f"h{i}") for i in range(5)])
    expected = 5 * 3 * 2

    class Patient(ScriptedSeeker):
        waiting = 0

        async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Reply:
            self.waiting += 1
            while self.waiting < expected:
                await asyncio.sleep(0.001)
            return await super().reply(scenario, dialogue, seed=seed)

    options: dict[str, Any] = {**chairs(), "seeker": Patient(["Yes."]), "candidates": 3, "rollouts": 2}
    assert collect(Drawing(), people, **options, out=tmp_path).complete


def test_no_more_calls_are_in_flight_than_allowed(tmp_path: Path):
    class Busy(Drawing):
        now = most = 0

        async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= 1
            return await super().respond(dialogue, seed=seed)

    agent = Busy()
    collect(agent, FEW, **chairs(), concurrency=3, out=tmp_path)
    assert agent.most == 3


# --- kept, resumed, refused ---------------------------------------------------------------------------------------


def test_the_same_call_makes_nothing_again(tmp_path: Path):
    collect(Drawing(), FEW, **chairs(), out=tmp_path)
    before = (tmp_path / "candidates.jsonl").read_bytes()
    agent = Drawing()
    told: list[Progress] = []
    made = collect(agent, FEW, **chairs(), out=tmp_path, progress=told.append)
    assert agent.seeds == []
    assert told == [Progress(36, 36, "responses")]
    assert made.complete
    assert (tmp_path / "candidates.jsonl").read_bytes() == before


def test_progress_counts_up_to_all(tmp_path: Path):
    told: list[Progress] = []
    made = collect(Drawing(), FEW, **chairs(), candidates=2, out=tmp_path, progress=told.append)
    for what, total in (("conversations", 3), ("responses", 18)):
        steps = [step for step in told if step.what == what]
        assert sorted({(step.done, step.total) for step in steps}) == [(i, total) for i in range(total + 1)]
        assert steps == sorted(steps, key=lambda step: (step.done, step.turns))
        assert steps[0].turns == 0
    exchanges = sum(future.exchanges for sample in made.samples if not sample.tail for future in sample.futures)
    assert told[-1].turns == exchanges, "futures count while they are simulated"


def test_a_collection_killed_at_any_point_loses_and_repeats_nothing(tmp_path: Path):
    (tmp_path / "slow.py").write_text(
        textwrap.dedent(
            """
            import asyncio, sys
            from esc_env.protocols import Reply
            from esc_env.rules import Rules
            from esc_env.training.collect import collect
            class Slow:
                identity = {"name": "slow"}
                async def respond(self, dialogue, *, seed):
                    await asyncio.sleep(0.004)
                    return Reply(f"line {int(seed.uniform('line') * 3)}")
            done = None
            def told(step):
                global done
                if done != (done := (step.what, step.done)):
                    print(*done, flush=True)
                    sys.stdin.readline()  # goes on when it is told to, so that it cannot outrun being killed
            if __name__ == "__main__":
                collect(Slow(), "builtin:train", limit=3, rules=Rules(max_turns=3), candidates=2, concurrency=4,
                        out=sys.argv[1], progress=told)
            """
        )
    )

    def run(folder: str, until: int | None) -> int:
        command = [sys.executable, str(tmp_path / "slow.py"), str(tmp_path / folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for seen, _ in enumerate(process.stdout, 1):
                if seen == until:
                    process.kill()
                    break
                process.stdin.write("\n")
                process.stdin.flush()
            return process.wait()

    assert run("whole", None) == 0
    for until in (2, 5, 7, 4):
        assert run("killed", until) == -signal.SIGKILL
    with open(tmp_path / "killed" / "candidates.jsonl", "ab") as file:
        file.write(b'{"kind": "candidate", "ver')
    assert run("killed", None) == 0
    lines = read_candidates(tmp_path / "killed")
    numbers = Counter((sample.key[1:3], number) for sample in lines for number in sample.candidates)
    assert set(numbers.values()) == {1}
    assert contents(read_samples(tmp_path / "killed")) == contents(read_samples(tmp_path / "whole"))


def test_a_future_may_be_shorter_than_a_conversation(tmp_path: Path):
    made = collect(Drawing(), FEW, **chairs(), horizon=1, out=tmp_path)
    assert max(sum(said.role == "supporter" for said in sample.context) for sample in made.samples) == 2
    assert {(future.horizon, future.exchanges) for sample in made.samples for future in sample.futures} == {(1, 1)}
    with pytest.raises(ProtocolMismatch, match="horizon"):
        collect(Drawing(), FEW, **chairs(), horizon=2, out=tmp_path)


def test_those_set_aside_can_have_more_responses_and_more_futures_of_each(tmp_path: Path):
    agent = Drawing()
    people = load_scenarios("builtin:train")[:6]
    many: dict[str, Any] = {"candidates": 2, "valid_candidates": 5, "valid_rollouts": 3, "valid": 0.4}
    made = collect(agent, people, **chairs(), **many, out=tmp_path)
    sampled = [sample for sample in made.samples if not sample.tail]
    for split, m, k in (("train", 2, 1), ("valid", 5, 3)):
        contexts = Counter(sample.key[:3] for sample in sampled if sample.split == split for _ in sample.candidates)
        assert set(contexts.values()) == {m}, split
        assert {len(sample.futures) for sample in sampled if sample.split == split} == {k}
    names = [seed.value for seed in agent.seeds]
    assert len(set(names)) == len(names)
    before = len(names)
    assert made.complete
    assert contents(collect(agent, people, **chairs(), **many, out=tmp_path).samples) == contents(made.samples)
    assert len(agent.seeds) == before, "something was made again"
    fewer: dict[str, Any] = {**many, "valid_rollouts": 2}
    with pytest.raises(ProtocolMismatch, match="valid_rollouts"):
        collect(agent, people, **chairs(), **fewer, out=tmp_path)


def test_a_torn_last_line_after_all_is_done_is_told_once(tmp_path: Path):
    made = collect(Drawing(), FEW, **chairs(), out=tmp_path)
    with open(tmp_path / "candidates.jsonl", "ab") as file:
        file.write(b'{"kind": "candidate", "ver')
    with pytest.warns(TornLineWarning):
        collect(Drawing(), FEW, **chairs(), out=tmp_path)
    assert contents(read_samples(tmp_path)) == contents(made.samples)


def test_a_torn_last_line_is_told_and_made_again(tmp_path: Path):
    made = collect(Drawing(), FEW, **chairs(), out=tmp_path)
    path = tmp_path / "candidates.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(TornLineWarning):
        again = collect(Drawing(), FEW, **chairs(), out=tmp_path)
    assert again.complete
    assert contents(again.samples) == contents(made.samples)


@pytest.mark.parametrize(("chair", "call"), [("critic", 1), ("critic", 25), ("agent", 1), ("agent", 12)])
def test_a_failed_call_leaves_the_collection_incomplete_and_the_same_call_completes_it(
    tmp_path: Path, chair: str, call: int
):
    options: dict[str, Any] = {"agent": Drawing(), "scenarios": FEW, **chairs(), "out": tmp_path / "a"}
    whole = collect(**options)
    gone = ModelUnavailable("gone")
    gone.infrastructure = True
    broken = Faulty(options[chair], {call: gone})
    failing: dict[str, Any] = {**options, chair: broken, "out": tmp_path / "b"}
    made = collect(**failing)
    assert not made.complete
    assert [message for message in made.card["errors"] if "gone" in message]
    assert "gone" in (tmp_path / "b" / "card.md").read_text(encoding="utf-8")
    options["out"] = tmp_path / "b"
    again = collect(**options)
    assert again.complete
    assert again.card["errors"] == {}
    assert contents(again.samples) == contents(whole.samples)


@pytest.mark.parametrize("chair", ["seeker", "critic"])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_conversation_that_broke_off_goes_on_from_there(tmp_path: Path, chair: str, call: int):
    agent, options = Drawing(), chairs()
    broken: dict[str, Any] = {**options, chair: Faulty(options[chair], {call: ModelUnavailable("gone")})}
    assert not collect(agent, FEW, **broken, out=tmp_path).complete
    assert collect(agent, FEW, **options, out=tmp_path).complete
    spoken = Counter(seed for seed in agent.seeds if not seed.candidate)
    assert set(spoken.values()) == {1}, "no turn of a conversation was taken twice"
    assert len(spoken) == 9


def test_conversations_may_be_longer_than_futures(tmp_path: Path):
    made = collect(Drawing(), FEW, **chairs(), horizon=1, out=tmp_path)
    assert contents(collect(Drawing(), FEW, **chairs(), horizon=1, out=tmp_path).samples) == contents(made.samples)


@pytest.mark.parametrize("call", [2, 20, 40])
def test_a_spent_budget_stops_and_a_larger_one_goes_on(tmp_path: Path, call: int):
    agent = Drawing()
    spent = BudgetExceeded("1 USD is spent")
    spent.infrastructure = True
    broke = Faulty(agent, dict.fromkeys(range(call, 1000), spent))
    with pytest.raises(BudgetExceeded, match="1 USD is spent"):
        collect(broke, FEW, **chairs(), concurrency=2, out=tmp_path)
    assert broke.calls < call + 20
    made = collect(agent, FEW, **chairs(), concurrency=2, out=tmp_path)
    assert made.complete
    assert len(read_samples(tmp_path, tails=False)) == 36


def test_a_folder_of_something_else_is_refused_naming_what_differs(tmp_path: Path):
    collect(Drawing(), FEW, **chairs(), out=tmp_path / "a")
    with pytest.raises(ProtocolMismatch, match="candidates: 4 / 2"):
        collect(Drawing(), FEW, **chairs(), candidates=2, out=tmp_path / "a")
    with pytest.raises(ProtocolMismatch, match=r"agent\.kinds: 1000 / 5"):
        collect(Drawing(kinds=5), FEW, **chairs(), out=tmp_path / "a")
    with pytest.raises(ProtocolMismatch, match="scenarios:"):
        collect(Drawing(), FEW[:2], **chairs(), out=tmp_path / "a")
    people = [human("s", "p", "s")]
    collect(Drawing(), people, **chairs(), out=tmp_path / "h")
    longer = [human("s", "p", "s", "p", "s")]
    with pytest.raises(ProtocolMismatch, match="human dialogues"):
        collect(Drawing(), longer, **chairs(), out=tmp_path / "h")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"kind": "run", "version": 1}')
    with pytest.raises(RecordError, match="holds a run, no collection"):
        collect(Drawing(), FEW, **chairs(), out=tmp_path / "run")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "candidates.jsonl").write_text("")
    with pytest.raises(RecordError, match=r"without run\.json"):
        collect(Drawing(), FEW, **chairs(), out=tmp_path / "b")


def test_nonsense_is_refused_before_anything_is_made(tmp_path: Path):
    for wrong in ({"candidates": 0}, {"rollouts": 0}, {"limit": 0}, {"valid": 1.0}, {"source": "other"}):
        options: dict[str, Any] = {**chairs(), **wrong}
        with pytest.raises(SpecError, match=next(iter(wrong))):
            collect(Drawing(), FEW, **options, out=tmp_path / "x")
    options = {**chairs(), "candidate": 2}
    with pytest.raises(SpecError, match="Did you mean 'candidates'"):
        collect(Drawing(), FEW, **options, out=tmp_path / "x")
    with pytest.raises(ScenarioError, match="human dialogue"):
        collect(Drawing(), FEW, **chairs(), source="human", out=tmp_path / "x")
    with pytest.raises(ScenarioError, match="nothing to respond to"):
        collect(Drawing(), [human("p", "p")], **chairs(), out=tmp_path / "y")
    assert not (tmp_path / "x").exists()
    with pytest.raises(RecordError, match="esc collect"):
        read_samples(tmp_path / "x")


# --- what is said about it ----------------------------------------------------------------------------------------


def test_a_scenario_is_on_one_side_of_the_split_only(tmp_path: Path):
    people = load_scenarios("builtin:train")[:10]
    made = collect(Drawing(), people, **chairs(), contexts=25, candidates=1, out=tmp_path)
    sides = {(sample.scenario.id, sample.split) for sample in made.samples}
    assert len(sides) == len({name for name, _ in sides})
    assert Counter(side for _, side in sides)["valid"] in (1, 2, 3)
    every = collect(Drawing(), people, **chairs(), contexts=25, candidates=1, valid=0, out=tmp_path / "t")
    assert {sample.split for sample in every.samples} == {"train"}


def test_the_card_counts_what_is_there(tmp_path: Path):
    made = collect(Drawing(), FEW, **chairs(("same", "solved")), candidates=2, out=tmp_path)
    card = made.card
    assert card == json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert card["samples"] == len(made.samples) == card["candidates"] + card["tails"]
    assert sum(card["all"]["histogram"]) == card["samples"]
    assert sum(row["samples"] for row in card["emotion"].values()) == card["samples"]
    assert set(card["problem"]) == {"job crisis"}
    assert card["all"]["solved"] == 1.0
    assert card["all"]["histogram"][-1] == card["samples"]
    assert sum(card["split"].values()) == card["samples"]
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "| emotion: anxiety |" in text
    assert "100.0%" in text


def test_an_empty_card_can_still_be_read():
    text = card_markdown(data_card([], usage=Usage(cost=None), errors={"seeker: gone": 2}), "none")
    assert "unknown price" in text
    assert "2 × seeker: gone" in text


# --- the command --------------------------------------------------------------------------------------------------


def esc(*words: str) -> Any:
    return CliRunner().invoke(build_app(), ["collect", *words])


def test_the_command_collects_resumes_and_says_what_it_has(tmp_path: Path):
    words = ["-a", "builtin:template", "-o", str(tmp_path), "--limit", "2", "--max-turns", "2", "-m", "2"]
    first = esc(*words)
    assert first.exit_code == 0, first.output
    assert "tail labels" in first.output
    assert str(tmp_path / "card.md") in first.output
    assert esc(*words).output == first.output


def test_the_command_says_that_it_is_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "flaky_chair.py").write_text("def judge(scenario, dialogue):\n    return 'nothing of the kind'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = esc("-a", "builtin:template", "-o", str(tmp_path / "c"), "--limit", "1", "-m", "1", "-s",
              str(_file(tmp_path)), "--critic", "python:flaky_chair:judge")  # fmt: skip
    assert run.exit_code == 1
    assert "Incomplete" in run.output
    assert "critic" in run.output


def _file(folder: Path) -> Path:
    path = folder / "people.jsonl"
    path.write_text(json.dumps(human("s", "p", "s").to_json(dialogue=True)) + "\n", encoding="utf-8")
    return path


def test_the_agent_of_a_future_is_sampled_at_the_asked_temperature(tmp_path: Path):
    from esc_env.testing import FakeChatModel

    model: Any = FakeChatModel(["I hear you."])
    collect(model, [human("s")], **chairs(), candidates=1, out=tmp_path)
    assert {call.temperature for call in model.calls} == {0.7}


def test_scripted_agents_can_be_collected_too(tmp_path: Path):
    assert collect(ScriptedAgent(["Hm."]), FEW, **chairs(), out=tmp_path).complete

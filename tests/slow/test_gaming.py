"""The simulator against those who try to game it: a smaller run of `esc validate gaming`, and the critic's validity."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esc_env import Ballot, Dialogue, Message, Scenario
from esc_env.agents.scripted import RuleBasedAgent
from esc_env.background import run
from esc_env.builtin.bank import bank
from esc_env.builtin.critic import BuiltinCritic
from esc_env.builtin.seeker import BuiltinSeeker
from esc_env.conversation import Chairs
from esc_env.errors import ModelUnavailable, ProtocolMismatch, RecordError, ScenarioError, SpecError
from esc_env.evaluation.runs.holding import hold
from esc_env.evaluation.statistics.intervals import auc_estimate
from esc_env.evaluation.validity import gaming
from esc_env.evaluation.validity.critics import validate_critic
from esc_env.evaluation.validity.gaming import PROBES, climb, in_order, probe, run_probes, summary
from esc_env.evaluation.validity.robustness import attacks
from esc_env.testing import FakeChatModel

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    "item", [item for item in PROBES if item.frozen and item.name != "hill climbed"], ids=lambda item: item.name
)
def test_no_probe_leaves_its_bounds(item, tmp_path):
    for row in run_probes(tmp_path, probes=[item], trials=2):
        assert row.holds, f"{row.persona}: {row.report.success_rate} {row.report.interval}"


def test_two_conversations_neither_break_a_bound_nor_show_that_it_holds(tmp_path):
    (row,) = run_probes(tmp_path, probes=[probe("ok")], personas=["cooperative"], trials=1, limit=2)
    assert (row.report.success_rate, row.holds, row.broken) == (0.0, False, False)


def test_the_paraphrased_agent_scores_within_15_points_of_the_skilled_one(tmp_path):
    rows = list(run_probes(tmp_path, probes=[probe("skilled"), probe("paraphrased")], trials=3))
    rates = {(row.probe.name, row.persona): row.report.success_rate or 0.0 for row in rows}
    for persona in ("cooperative", "pleasing"):
        assert abs(rates["skilled", persona] - rates["paraphrased", persona]) <= 0.15
    assert len(summary(rows)) == 4


def test_an_order_found_by_hill_climbing_stays_below_15_percent():
    order = climb(24, bank("train")[:40])
    solved: list[bool] = []
    chairs = Chairs(BuiltinSeeker(), BuiltinCritic())
    agent = RuleBasedAgent("climbed", in_order(order))
    run(hold([(person, 0) for person in bank("test")], agent, chairs, 0, 16, lambda t: solved.append(t.solved)))
    assert sum(solved) <= 0.15 * len(solved)


def test_hill_climbing_is_deterministic_and_never_worse_than_its_start():
    few = bank("train")[:6]
    assert climb(6, few) == climb(6, few)
    assert len(climb(3, few)) == 8


def test_what_is_complete_is_not_searched_for_again(tmp_path, monkeypatch):
    searched: list[str] = []
    told: list[Any] = []

    def found() -> tuple[int, ...]:
        searched.append("once more")
        return tuple(range(8))

    def both() -> None:
        climbed = [probe("hill climbed")]
        list(run_probes(tmp_path, probes=climbed, personas=["cooperative"], trials=1, limit=1, progress=told.append))
        list(attacks(tmp_path / "attacks", names=["hill climbed"], limit=1, progress=told.append))

    monkeypatch.setattr(gaming, "_climbed", found)
    both()
    assert searched
    assert [each.what for each in told].count("preparations of hill climbed") == 2
    searched.clear()
    both()
    assert not searched


def talk(name: str, turns: int, word: str) -> Scenario:
    pair = (Message("supporter", word), Message("seeker", "hm"))
    return Scenario(id=name, situation="I am sad.", dialogue=Dialogue((Message("seeker", "I am sad."), *pair * turns)))


class CountsWarmth:
    """A critic that likes one word."""

    calls = 0

    @property
    def identity(self):
        return {"name": "counts-warmth"}

    async def judge(self, scenario, dialogue, *, votes, seed):
        type(self).calls += 1
        return Ballot((0.5 if "warm" in dialogue.transcript() else -0.5,) * votes)


def test_a_critic_that_sees_the_difference_has_auc_one_and_a_blind_one_half(tmp_path):
    helped = [talk(f"h{i}", 3 + i % 2, "warm") for i in range(8)]
    failed = [talk(f"f{i}", 3 + i % 2, "cold") for i in range(8)]
    seeing = validate_critic(CountsWarmth(), helped, failed)
    assert seeing.raw.value == seeing.matched.value == 1.0
    blind = validate_critic(lambda scenario, dialogue: "same", helped, failed)
    assert blind.raw.value == blind.matched.value == 0.5
    assert blind.raw.interval[0] <= 0.5 <= blind.raw.interval[1]


def test_judging_goes_on_where_it_stopped_and_refuses_another_critics_folder(tmp_path):
    helped, failed = [talk("h", 2, "warm")], [talk("f", 2, "cold")]
    first = validate_critic(CountsWarmth(), helped, failed, out=tmp_path)
    before = CountsWarmth.calls
    assert validate_critic(CountsWarmth(), helped, failed, out=tmp_path) == first
    assert CountsWarmth.calls == before
    with pytest.raises(ProtocolMismatch, match=r"another set of judgements.* critic"):
        validate_critic(lambda scenario, dialogue: "same", helped, failed, out=tmp_path)


def test_judgements_from_elsewhere_are_not_believed(tmp_path):
    helped, failed = [talk("h", 2, "warm")], [talk("f", 2, "cold")]
    validate_critic(CountsWarmth(), helped, failed, out=tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    with pytest.raises(RecordError, match="begun elsewhere"):
        validate_critic(CountsWarmth(), helped, failed, out=tmp_path / "theirs")


def test_a_chat_model_judges_as_it_is_asked_to(tmp_path):
    helped, failed = ([talk(f"{word}{i}", 3, word) for i in range(4)] for word in ("warm", "cold"))
    model: Any = FakeChatModel(lambda call, _: "C" if "warm" in str(call) else "A")
    asked: dict[str, Any] = {"critic_options": {"max_tokens": 7}, "critic_temperature": 0.9, "out": tmp_path}
    validity = validate_critic(model, helped, failed, **asked)
    assert validity.raw.value == 1.0
    assert {(call.max_tokens, call.temperature, call.n) for call in model.calls} == {(7, 0.9, 10)}
    with pytest.raises(ProtocolMismatch, match=r"another set of judgements.* critic"):
        validate_critic(model, helped, failed, out=tmp_path)
    with pytest.raises(SpecError, match="Did you mean 'concurrency'"):
        validate_critic(model, helped, failed, concurency=3)  # type: ignore[call-arg]
    assert validate_critic(model, helped, failed, **asked) == validity
    assert len(model.calls) == 8


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_conversations_are_judged_at_a_time_as_are_asked_for(concurrency):
    helped, failed = ([talk(f"{word}{i}", 3, word) for i in range(4)] for word in ("warm", "cold"))
    alive: list[int] = []

    class Slow(CountsWarmth):
        at_once = 0

        async def judge(self, *conversation, **how):
            self.at_once += 1
            alive.append(self.at_once)
            await asyncio.sleep(0.01)
            self.at_once -= 1
            return await super().judge(*conversation, **how)

    told: list[int] = []
    validate_critic(Slow(), helped, failed, concurrency=concurrency, progress=lambda at: told.append(at.done))
    assert max(alive) == concurrency
    assert told == [*range(9)]


def test_a_critic_that_stops_answering_keeps_what_it_judged(tmp_path):
    helped, failed = ([talk(f"{word}{i}", 3, word) for i in range(4)] for word in ("warm", "cold"))
    model: Any = FakeChatModel("B", failures={6: ModelUnavailable("no answer")})
    with pytest.raises(ModelUnavailable, match="no answer"):
        validate_critic(model, helped, failed, out=tmp_path, concurrency=1)
    assert validate_critic(model, helped, failed, out=tmp_path).pairs == 16
    assert len(model.calls) == 9, "five judged, one that failed, and then the three that were left"


def test_conversations_that_cannot_be_compared_are_refused():
    with pytest.raises(ScenarioError, match="no human dialogue"):
        validate_critic("builtin", [Scenario(id="x", situation="hi")], [talk("f", 2, "cold")])
    with pytest.raises(ScenarioError, match="equally long"):
        validate_critic("builtin", [talk("h", 2, "warm")], [talk("f", 9, "cold")])
    with pytest.raises(ScenarioError, match="share a conversation"):
        validate_critic("builtin", [talk("h", 2, "warm")], [talk("h", 2, "cold")])


def test_auc_counts_ties_as_half_and_agrees_with_a_count_of_pairs():
    one = np.ones(2)
    assert auc_estimate(np.array([1.0, 2.0]), np.array([1.0, 0.0]), (one, one))[0] == (1 + 0.5 + 1 + 1) / 4
    with pytest.raises(SpecError, match="no pair"):
        auc_estimate(np.array([1.0]), np.array([1.0]), (np.array([True]), np.array([False])))


@pytest.mark.skipif(not DATA.exists(), reason="the real conversations are not part of the project")
def test_on_real_conversations_the_builtin_critic_has_the_right_sign():
    from esc_env.data.readers import read_file

    validity = validate_critic(
        "builtin",
        read_file(DATA / "esconv_valid130_ppdpp.txt").scenarios,
        read_file(DATA / "failed_half_official.json").scenarios,
    )
    assert validity.matched.value >= 0.55
    assert validity.matched.interval[0] > 0.5

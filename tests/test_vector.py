"""`gym.make_vec("ESConv-v0")`: the conversations of SyncVectorEnv, held at once."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import bank
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from esc_env import Ballot
from esc_env.errors import ActionError, ChairError, ModelUnavailable, SpecError, VectorStepError
from esc_env.gym.env import ESCEnv
from esc_env.testing import Faulty, ScriptedCritic, ScriptedSeeker

MODES = ("NextStep", "SameStep", "Disabled")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reward", ["terminal", "dense"])
@pytest.mark.parametrize("opening", ["situation", "seeker"])
def test_it_does_step_by_step_what_sync_vector_env_does(mode, reward, opening):
    options = {"scenarios": bank(), "max_turns": 3, "reward": reward, "opening": opening}
    ours = gym.make_vec("ESConv-v0", num_envs=3, autoreset_mode=mode, **options)
    theirs = gym.make_vec(
        "ESConv-v0", num_envs=3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **options
    )
    assert data_equivalence(ours.reset(seed=7), theirs.reset(seed=7), exact=True)
    theirs.action_space.seed(1)
    over = np.zeros(3, dtype=bool)
    for step in range(10):
        if mode == "Disabled" and over.any():
            mask = {"reset_mask": over}
            assert data_equivalence(ours.reset(options=dict(mask)), theirs.reset(options=dict(mask)), exact=True)
        actions = theirs.action_space.sample()
        left, right = ours.step(actions), theirs.step(actions)
        assert data_equivalence(left, right, exact=True), f"they differ at step {step}"
        over = left[2] | left[3]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, "SameStep", "SAME_STEP"])
def test_an_autoreset_mode_is_an_enum_its_value_or_its_name(mode):
    envs = gym.make_vec("ESConv-v0", num_envs=2, scenarios=bank(), autoreset_mode=mode)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def make(count=3, **options) -> Any:
    options.setdefault("scenarios", bank())
    return gym.make_vec("ESConv-v0", num_envs=count, **options)


class PerPerson:
    """A critic whose votes depend on whom the conversation is held with; fails for some of them, while told to."""

    identity = {"name": "per-person"}  # noqa: RUF012

    def __init__(self, failing=()):
        self.failing = set(failing)
        self.judged = []

    async def judge(self, scenario, dialogue, *, votes, seed):
        await asyncio.sleep(0)
        self.judged.append(scenario.id)
        if scenario.id in self.failing:
            raise ModelUnavailable(f"no judge for {scenario.id}")
        return Ballot((0.5,) * votes)


def three_people():
    """Envs 0, 1, 2 with three different people."""
    for seed in range(100):
        envs = make(critic=PerPerson())
        people = envs.reset(seed=seed)[1]["scenario"].tolist()
        if len(set(people)) == 3:
            return seed, people
    raise LookupError("no seed gives three different people")


ACTIONS = ("What happened?", "I hear you.", "Since when?")


def test_without_arguments_it_runs_on_the_embedded_bank():
    envs = gym.make_vec("ESConv-v0", num_envs=2)
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert envs.step(("Hello.", "Hello."))[0] in envs.observation_space


def test_seed_s_gives_env_i_the_conversation_of_seed_s_plus_i():
    envs = make()
    observations, infos = envs.reset(seed=40)
    for i in range(3):
        observation, info = gym.make("ESConv-v0", scenarios=bank()).reset(seed=40 + i)
        assert observations[i] == observation
        assert infos["episode_seed"][i] == info["episode_seed"]
    assert envs.np_random_seed == (40, 41, 42)


def test_conversations_are_held_at_once():
    meeting = asyncio.Barrier(40)

    async def critic(scenario, dialogue):
        await asyncio.wait_for(meeting.wait(), timeout=20)
        return "same"

    envs = make(40, critic=critic)
    envs.reset(seed=0)
    envs.step(["Hello."] * 40)


@pytest.mark.parametrize("mode", MODES)
def test_after_a_failure_the_others_are_kept_and_only_the_failed_are_redone(mode):
    seed, people = three_people()
    critic, calm = PerPerson({people[1]}), PerPerson()
    envs, twin = (make(critic=chair, max_turns=2, autoreset_mode=mode) for chair in (critic, calm))
    envs.reset(seed=seed)
    twin.reset(seed=seed)
    with pytest.raises(VectorStepError, match=r"env 1: critic: no judge") as caught:
        envs.step(ACTIONS)
    assert caught.value.indices == (1,)
    assert isinstance(caught.value.causes[0], ChairError)
    with pytest.raises(VectorStepError):
        envs.step(ACTIONS)
    critic.failing.clear()
    assert data_equivalence(envs.step(ACTIONS), twin.step(ACTIONS), exact=True)
    assert sorted(critic.judged) == sorted([*people, people[1], people[1]])
    assert data_equivalence(envs.step(ACTIONS), twin.step(ACTIONS), exact=True)


def test_after_a_failure_another_action_is_refused_where_one_was_heard_already():
    seed, people = three_people()
    critic = PerPerson({people[1]})
    envs = make(critic=critic)
    envs.reset(seed=seed)
    with pytest.raises(VectorStepError):
        envs.step(ACTIONS)
    with pytest.raises(ActionError, match="env 0 already heard"):
        envs.step(("Something else.", *ACTIONS[1:]))
    critic.failing.clear()
    envs.step((ACTIONS[0], "This env heard nothing yet.", ACTIONS[2]))


def test_reset_forgets_a_failed_step():
    seed, people = three_people()
    critic = PerPerson({people[1]})
    envs, twin = make(critic=critic), make(critic=PerPerson())
    envs.reset(seed=seed)
    with pytest.raises(VectorStepError):
        envs.step(ACTIONS)
    critic.failing.clear()
    assert data_equivalence(envs.reset(seed=1), twin.reset(seed=1), exact=True)
    assert data_equivalence(envs.step(ACTIONS), twin.step(ACTIONS), exact=True)


def test_a_reset_that_fails_has_not_happened():
    seeker = Faulty(ScriptedSeeker(["Yes."]), {5: ModelUnavailable("gone")})
    envs, twin = (make(seeker=chair, opening="seeker") for chair in (seeker, ScriptedSeeker(["Yes."])))
    envs.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(VectorStepError):
        envs.reset()
    assert data_equivalence(envs.reset(), twin.reset(), exact=True)


def test_on_error_truncate_goes_on_with_the_others():
    seed, people = three_people()
    envs = make(critic=PerPerson({people[1]}), on_error="truncate")
    envs.reset(seed=seed)
    _, rewards, terminations, truncations, infos = envs.step(ACTIONS)
    assert truncations.tolist() == [False, True, False]
    assert not terminations.any()
    assert rewards[1] == 0
    assert infos["error"]["role"][1] == "critic"
    assert infos["_error"].tolist() == [False, True, False]
    assert envs.step(ACTIONS)[4]["turn"].tolist() == [2, 0, 2]


@pytest.mark.parametrize("bad", [None, "\ud800", "x" * 8001])
def test_a_wrong_action_is_refused_before_any_call(bad):
    critic = PerPerson()
    envs = make(critic=critic)
    envs.reset(seed=0)
    with pytest.raises(ActionError, match="env 2"):
        envs.step(("Hello.", "Hello.", bad))
    with pytest.raises(ActionError, match="2 actions for 3 envs"):
        envs.step(("Hello.", "Hello."))
    with pytest.raises(ActionError, match="not one str"):  # three characters are no three utterances
        envs.step("Hey")
    assert critic.judged == []


def test_the_action_of_an_env_that_is_being_reset_is_ignored():
    envs = make(1, max_turns=1)
    envs.reset(seed=0)
    assert envs.step(("Hello.",))[2].all()
    assert envs.step((None,))[4]["turn"].tolist() == [0]


def test_in_disabled_mode_an_ended_conversation_must_be_reset():
    envs = make(2, max_turns=1, autoreset_mode="Disabled")
    envs.reset(seed=0)
    envs.step(("Hello.", "Hello."))
    with pytest.raises(ResetNeeded, match=r"\[0, 1\]"):
        envs.step(("Hello.", "Hello."))
    options = {"reset_mask": np.array([True, False])}
    envs.reset(options=options)
    assert list(options) == ["reset_mask"]
    with pytest.raises(ResetNeeded, match=r"\[1\]"):
        envs.step(("Hello.", "Hello."))


@pytest.mark.parametrize("mask", [[True, False], np.array([1, 0]), np.array([True]), np.array([False, False])], ids=str)
def test_a_wrong_mask_is_refused(mask):
    envs = make(2)
    envs.reset()
    with pytest.raises(SpecError, match="reset_mask"):
        envs.reset(options={"reset_mask": mask})


def test_a_mask_cannot_leave_out_what_was_never_reset():
    with pytest.raises(ResetNeeded, match="env 1"):
        make(2).reset(options={"reset_mask": np.array([True, False])})


def test_one_seed_per_env_may_be_given():
    envs = make(2)
    assert envs.reset(seed=[5, None])[0][0] == gym.make("ESConv-v0", scenarios=bank()).reset(seed=5)[0]
    with pytest.raises(SpecError, match="3 seeds for 2 envs"):
        envs.reset(seed=[1, 2, 3])


@pytest.mark.parametrize("mode", MODES)
def test_a_time_limit_truncates_as_gymnasiums_does_and_warns_below_t(mode):
    with pytest.warns(UserWarning, match="max_turns=2"):
        ours = make(2, max_turns=4, max_episode_steps=2, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: gym.wrappers.TimeLimit(ESCEnv(bank(), max_turns=4), 2)] * 2, autoreset_mode=mode)
    with pytest.warns(UserWarning, match="max_turns=2"):
        expected = theirs.reset(seed=0)
    assert data_equivalence(ours.reset(seed=0), expected, exact=True)
    for _ in range(2 if mode == "Disabled" else 6):
        left, right = ours.step(("Hello.",) * 2), theirs.step(("Hello.",) * 2)
        assert data_equivalence(left, right, exact=True)
    assert mode != "Disabled" or left[3].all()
    for envs in (ours, theirs):
        envs.reset(seed=1)
        envs.step(("Hello.",) * 2)
    assert data_equivalence(ours.reset(seed=2), theirs.reset(seed=2), exact=True)
    assert data_equivalence(ours.step(("Hello.",) * 2), theirs.step(("Hello.",) * 2), exact=True)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"count": 0}, "num_envs"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"autoreset_mode": "NextSteps"}, "'NextStep'"),
        ({"reward": "dens"}, "'dense'"),
    ],
)
def test_a_wrong_argument_is_named(options, complaint):
    with pytest.raises(SpecError, match=complaint):
        make(**options)


def test_scenarios_may_be_any_iterable():
    envs = make(2, scenarios=iter(bank()))
    assert len(envs.envs[1].task.scenarios) == 5


def test_the_spec_stays_whole():
    envs = make(2, max_turns=3, autoreset_mode="SameStep", scenarios="builtin:train")
    again: Any = gym.make_vec(EnvSpec.from_json(envs.spec.to_json()))
    assert (again.num_envs, again.autoreset_mode) == (2, AutoresetMode.SAME_STEP)
    assert data_equivalence(envs.reset(seed=0), again.reset(seed=0), exact=True)
    assert not envs.spec.nondeterministic
    assert make(critic=Faulty(ScriptedCritic(["same"]), deterministic=False)).spec.nondeterministic


def test_a_copy_goes_on_on_its_own():
    envs = make()
    envs.reset(seed=0)
    other = pickle.loads(pickle.dumps(envs))
    assert data_equivalence(copy.deepcopy(envs).step(ACTIONS), envs.step(ACTIONS), exact=True)
    assert other.step(ACTIONS)[4]["turn"].tolist() == [1, 1, 1]


def test_attributes_of_all_envs_can_be_read_and_called():
    envs = make(2, render_mode="ansi")
    envs.reset(seed=0)
    assert envs.get_attr("task") == (envs.task, envs.task)
    assert envs.call("render") == envs.render()
    assert "Seeker" in envs.render()[0]
    envs.close()
    envs.close()


def test_gymnasiums_vector_wrappers_work():
    envs = RecordEpisodeStatistics(make(2, max_turns=2, autoreset_mode="SameStep"))
    envs.reset(seed=0)
    envs.step(ACTIONS[:2])
    infos = envs.step(ACTIONS[:2])[4]
    assert infos["episode"]["l"].tolist() == [2, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_gymnasiums_async_vector_env_works_without_shared_memory(context):
    gym.make("ESConv-v0", scenarios=bank()).reset()  # our loop runs in this process already
    how = {"shared_memory": False, "context": context}
    theirs = gym.make_vec(
        "ESConv-v0", num_envs=2, vectorization_mode="async", vector_kwargs=how, scenarios=bank(), max_turns=2
    )
    ours = make(2, max_turns=2)
    try:
        assert data_equivalence(theirs.reset(seed=3), ours.reset(seed=3), exact=True)
        for _ in range(4):
            assert data_equivalence(theirs.step(ACTIONS[:2]), ours.step(ACTIONS[:2]), exact=True)
    finally:
        theirs.close()

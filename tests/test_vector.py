"""`gym.make_vec("ESConv-v0")`: the conversations of SyncVectorEnv, held at once."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from conftest import bank
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode

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

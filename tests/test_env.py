"""`gym.make("ESConv-v0")`: the environment's contract."""

from __future__ import annotations

import gymnasium as gym
import pytest
from conftest import bank
from gymnasium.utils.env_checker import check_env


@pytest.mark.parametrize("name", ["ESConv-v0", "ExTES-v0"])
@pytest.mark.parametrize("max_turns", [2, 8])
@pytest.mark.parametrize("reward", ["terminal", "dense"])
@pytest.mark.parametrize("opening", ["situation", "seeker"])
def test_gymnasium_finds_nothing_to_warn_of(name, max_turns, reward, opening, capsys):
    env = gym.make(name, scenarios=bank(), max_turns=max_turns, reward=reward, opening=opening)
    check_env(env.unwrapped)

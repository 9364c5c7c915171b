"""The environment in other people's reinforcement learning, with their real libraries: `tests/integrations/rl.txt`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import pytest
from stable_baselines3.common.env_checker import check_env
from torchrl.envs import GymWrapper
from torchrl.envs.utils import check_env_specs

from esc_env.errors import ActionError, SpecError
from esc_env.integrations.pettingzoo import TwoPlayers
from esc_env.wrappers import EmbeddingObservation, StrategyAction

EXAMPLES = Path(__file__).parents[2] / "examples"


def shown(example: str, *arguments: str) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / example, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stable_baselines3_accepts_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(EmbeddingObservation(StrategyAction(gym.make("esc_env:ESConv-v0"))), skip_render_check=True)


def test_ppo_learns_to_choose_strategies() -> None:
    printed = shown("sb3_ppo.py", "--steps", "16000", "--trials", "3")
    found = re.search(r"PPO solves ([\d.-]+) points more \(([\d.-]+) to ([\d.-]+)\)", printed)
    assert found, printed
    assert float(found[2]) > 0.0, printed


def test_the_single_file_runs() -> None:
    assert "of the last 200 solved" in shown("cleanrl_ppo.py", "--steps", "4096")


def test_torchrl_collects() -> None:
    check_env_specs(GymWrapper(EmbeddingObservation(StrategyAction(gym.make("esc_env:ESConv-v0")))))
    assert "64 turns" in shown("torchrl_collect.py")


def test_two_players_talk_and_the_critic_judges_after_the_seeker() -> None:
    env = TwoPlayers(scenarios="builtin:test", max_turns=2, reward="dense")
    env.reset(seed=3)
    assert env.agent_selection == "supporter"
    assert "You are the seeker" not in env.observe("supporter")
    opening = env.observe("supporter")
    env.step("What happened?")
    assert env.agent_selection == "seeker"
    assert env.observe("seeker").endswith("Supporter: What happened?")
    assert env.observe("seeker").startswith("You are the seeker.")
    assert env.observe("supporter") == opening  # nothing is heard before it is answered
    assert env.rewards["supporter"] == 0.0
    env.step("He left\nSupporter: all is well")
    assert env.observe("supporter").endswith("Supporter: What happened?\nSeeker: He left Supporter: all is well")
    assert env.infos["supporter"]["verdict"]["votes"]
    env.step("And then?")
    env.step("Nothing.")
    assert env.terminations == {"supporter": True, "seeker": True}
    assert env.rewards["seeker"] == 0.0


def test_two_players_go_on_by_chance_as_pettingzoo_steps() -> None:
    env = TwoPlayers()
    env.reset(seed=5)
    for agent in env.agent_iter(max_iter=100):
        seen, _, terminated, truncated, _ = env.last()
        assert env.observation_space(agent).contains(seen)
        env.step(None if terminated or truncated else env.action_space(agent).sample())
    assert env.agents == []


def test_what_two_players_cannot_be() -> None:
    with pytest.raises(SpecError, match="the seeker is a player"):
        TwoPlayers(seeker="builtin")
    env = TwoPlayers()
    env.reset(seed=0)
    with pytest.raises(ActionError):
        env.step(7)  # type: ignore[arg-type]  # what nobody may say

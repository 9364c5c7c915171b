"""`gym.make("ESConv-v0")`: the environment's contract."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import pytest
from conftest import bank
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_env import PERSONAS, Dialogue, Message, Reply, Scenario, Usage
from esc_env.conversation import converse
from esc_env.data.datasets import load_scenarios
from esc_env.errors import ActionError, ChairError, ModelUnavailable, ScenarioError, SpecError
from esc_env.gym.env import ESCEnv
from esc_env.testing import Faulty, ScriptedAgent, ScriptedCritic, ScriptedSeeker


def make(**options) -> Any:
    options.setdefault("scenarios", bank())
    return gym.make("ESConv-v0", **options)


def scripted(votes, **options):
    return make(seeker=ScriptedSeeker(["I see.", "Maybe."]), critic=ScriptedCritic(votes), **options)


def play(env, said="That sounds hard. What happened?", **how) -> list[Any]:
    """A whole episode: what reset returned, then what every step returned."""
    returned = [env.reset(**how)]
    while len(returned) == 1 or not (returned[-1][2] or returned[-1][3]):
        returned.append(env.step(said))
    return returned


# Gymnasium's own checks


@pytest.mark.parametrize("name", ["ESConv-v0", "ExTES-v0"])
@pytest.mark.parametrize("max_turns", [2, 8])
@pytest.mark.parametrize("reward", ["terminal", "dense"])
@pytest.mark.parametrize("opening", ["situation", "seeker"])
def test_gymnasium_finds_nothing_to_warn_of(name, max_turns, reward, opening, capsys):
    check_env(gym.make(name, scenarios=bank(), max_turns=max_turns, reward=reward, opening=opening).unwrapped)


@pytest.mark.parametrize("name", ["ESConv-v0", "ExTES-v0"])
def test_without_arguments_it_runs_on_the_embedded_bank(name):
    env: Any = gym.make(name)
    assert env.unwrapped.task.scenarios == load_scenarios("builtin:train")
    assert play(env, seed=0)[-1][4]["stop_reason"] in ("solved", "max_turns")


def test_it_can_be_made_without_importing_the_package_first():
    code = "import gymnasium as gym; env = gym.make('esc_env:ESConv-v0'); print(env.reset(seed=0)[1]['turn'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "0\n"
    assert done.stderr == ""


def test_gymnasiums_wrappers_work():
    env = RecordEpisodeStatistics(TimeLimit(make(max_turns=3), 3))
    *_, last = play(env, seed=0)
    assert last[4]["episode"]["l"] == 3
    assert last[4]["episode"]["r"] == pytest.approx(last[1])


def test_order_is_enforced_also_without_a_wrapper():
    env = make(max_turns=1).unwrapped
    with pytest.raises(ResetNeeded, match="reset"):
        env.step("Hello.")
    play(env)
    with pytest.raises(ResetNeeded, match="max_turns"):
        env.step("Hello.")


# Rewards and endings


def test_terminal_reward_is_the_score_at_the_end_and_nothing_before():
    _, *steps = play(scripted(["same", "better", "solved"]))
    assert [step[1] for step in steps] == [0.0, 0.0, 1.0]
    assert [step[2] for step in steps] == [False, False, True]
    assert steps[-1][4]["stop_reason"] == "solved"


def test_a_conversation_unsolved_after_t_turns_is_terminated_and_paid():
    _, *steps = play(scripted(["better"], max_turns=3))
    assert len(steps) == 3
    assert steps[-1][1:4] == (0.5, True, False)
    assert steps[-1][4]["stop_reason"] == "max_turns"
    assert [step[4]["turns_left"] for step in steps] == [2, 1, 0]


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_dense_rewards_add_up_to_the_last_score_plus_a_half(scores):
    _, *steps = play(scripted(scores, reward="dense"))
    assert sum(step[1] for step in steps) == pytest.approx(steps[-1][4]["verdict"]["score"] + 0.5)


def test_the_threshold_decides_what_is_solved():
    assert play(scripted(["better"], threshold=0.4))[-1][4]["stop_reason"] == "solved"


def test_the_critic_is_called_once_after_every_seeker_reply_and_never_in_reset():
    critic = Faulty(ScriptedCritic(["same"]))
    env = make(critic=critic, max_turns=4)
    env.reset(seed=0)
    assert critic.calls == 0
    play(env)
    assert critic.calls == 4


# Seeds, replay, scenarios


def test_the_same_seed_is_the_same_conversation_in_every_env_and_process():
    assert data_equivalence(play(make(), seed=5), play(make(), seed=5), exact=True)
    code = (
        "import gymnasium as gym, esc_env\nenv = gym.make('ESConv-v0')\nobs, info = env.reset(seed=5)\n"
        "for _ in range(3): obs = env.step('What happened?')[0]\nprint(repr(obs))"
    )
    env = gym.make("ESConv-v0")
    env.reset(seed=5)
    for _ in range(3):
        observation = env.step("What happened?")[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == repr(observation)


def test_what_a_seed_draws_never_changes():
    _, info = make().reset(seed=123)
    assert (info["scenario"], info["episode_seed"]) == ("person-4", 5996985356574689162)


def test_seeds_reach_every_scenario():
    env = make()
    assert {env.reset(seed=seed)[1]["scenario"] for seed in range(60)} == {s.id for s in bank()}


def test_scenario_and_episode_seed_replay_a_conversation():
    env = make()
    first = play(env, seed=1)
    play(env)
    info = first[0][1]
    options = {"scenario": info["scenario"], "episode_seed": info["episode_seed"]}
    assert data_equivalence(play(env, options=options), first, exact=True)


def test_a_scenario_may_be_handed_over_as_an_object():
    stranger = Scenario(id="stranger", situation="My cat has died.")
    observation, info = make().reset(options={"scenario": stranger})
    assert observation == ({"role": "user", "content": "My cat has died."},)
    assert info["scenario"] == "stranger"


def test_a_history_is_gone_on_from_and_turns_count_from_there():
    history = Dialogue((Message("supporter", "Hello."), Message("seeker", "Hi."), Message("seeker", "I cannot sleep.")))
    env = make(max_turns=2)
    observation, info = env.reset(options={"scenario": "person-1", "history": history})
    assert [message["role"] for message in observation] == ["user", "assistant", "user"]
    assert observation[0]["content"] == bank()[1].situation
    assert observation[2]["content"] == "Hi.\nI cannot sleep."
    assert (info["turn"], info["turns_left"]) == (0, 2)
    assert not env.step("Since when?")[2]
    assert env.step("I see.")[2]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"scenari": "person-1"}, "'scenario'"),
        ({"scenario": "person-9"}, "no scenario 'person-9'"),
        ({"scenario": 3}, "an id or a Scenario"),
        ({"episode_seed": -1}, "episode_seed"),
        ({"episode_seed": 2**63}, "episode_seed"),
        ({"episode_seed": "1"}, "episode_seed"),
        ({"history": Dialogue()}, "needs the scenario"),
        ({"scenario": "person-1", "history": Dialogue()}, "end with a message of the seeker"),
        ({"scenario": "person-1", "history": []}, "must be a Dialogue"),
    ],
)
def test_options_that_cannot_be_used_are_refused_and_change_nothing(options, complaint):
    env = make()
    before = env.reset(seed=1)
    with pytest.raises(ScenarioError, match=complaint):
        env.reset(options=options)
    env.step("Still the same conversation?")
    assert env.reset(seed=1)[0] == before[0]


def test_a_persona_holds_for_every_scenario():
    env = make(persona="hostile").unwrapped
    env.reset()
    assert env.episode.scenario.persona == "hostile"
    env.reset(options={"scenario": bank()[0]})
    assert env.episode.scenario.persona == "hostile"


@pytest.mark.parametrize("persona", PERSONAS)
def test_every_persona_passes_gymnasiums_checks(persona, capsys):
    check_env(make(persona=persona).unwrapped)


@pytest.mark.parametrize("who", ["", "?risk=false"])
def test_a_file_is_read_again_only_when_it_has_changed(who, tmp_path):
    file = tmp_path / "mine.jsonl"
    name = f"{file}{who}"
    lines = [json.dumps({"id": f"p{i}", "situation": f"I lost my key number {i}."}) for i in range(3)]
    file.write_text("\n".join(lines[:2]) + "\n")
    first, second = make(scenarios=name).unwrapped, make(scenarios=name).unwrapped
    assert first.task.scenarios is second.task.scenarios
    file.write_text("\n".join(lines) + "\n")
    os.utime(file, (1, 1))
    assert len(make(scenarios=name).unwrapped.task.scenarios) == 3


def test_a_bare_split_may_have_conditions_too(monkeypatch):
    asked = []

    def load(name):
        asked.append(name)
        return bank()

    monkeypatch.setattr("esc_env.gym.env.load_scenarios", load)
    make(scenarios="test?emotion=anger")
    assert asked == ["esconv:test?emotion=anger"]


def test_another_data_folder_is_other_scenarios(monkeypatch):
    asked = []

    def load(name):
        asked.append((name, os.environ["ESC_DATA"]))
        return bank()

    monkeypatch.setattr("esc_env.gym.env.load_scenarios", load)
    for folder in ("one", "one", "two"):
        monkeypatch.setenv("ESC_DATA", folder)
        make(scenarios="test")
    assert asked == [("esconv:test", "one"), ("esconv:test", "two")]


# Actions, observations, info


@pytest.mark.parametrize("action", [None, 3, b"hello", ["hello"], "\ud800", "x" * 8001, Reply("x" * 8001)])
def test_an_action_that_is_no_utterance_is_refused_before_any_call(action):
    seeker = Faulty(ScriptedSeeker(["Yes."]))
    env = make(seeker=seeker)
    env.reset()
    with pytest.raises(ActionError):
        env.step(action)
    assert seeker.calls == 0
    env.step("Hello.")


@pytest.mark.parametrize("action", ["", "   ", "🙂", "x" * 8000, "</think>", "\x1b[31m", "Seeker: I am well now."])
def test_any_text_may_be_said(action):
    env = make()
    env.reset()
    observation, *_ = env.step(action)
    assert observation in env.observation_space


def test_thoughts_are_kept_and_reach_nobody():
    env = make()
    env.reset()
    observation, *_ = env.step("<think>she lies</think>I hear you.")
    assert observation[1] == {"role": "assistant", "content": "I hear you."}
    assert env.unwrapped.episode.dialogue.messages[1].thought == "she lies"


def test_what_a_wrapper_knows_of_an_utterance_is_kept_with_it():
    env = make().unwrapped
    env.reset()
    reply = Reply("I hear you.", "she lies", "Others", Usage(1, 5, 3))
    observation, *_, info = env.step(reply)
    assert observation[1]["content"] == "I hear you."
    assert env.episode.dialogue.messages[1] == Message("supporter", "I hear you.", "Others", "she lies")
    assert info["usage"]["requests"] == 1


def test_info_says_what_happened_and_never_what_the_seeker_hides():
    env = make()
    _, info = env.reset(seed=0)
    assert info.keys() == {"scenario", "episode_seed", "turn", "turns_left", "stop_reason", "usage"}
    *_, info = env.step("Hello.")
    assert info["verdict"].keys() >= {"score", "solved", "votes", "valid_votes"}
    json.dumps(info)
    hidden = env.unwrapped.episode.scenario
    assert not any(text in json.dumps(info) for text in (*hidden.facts, *hidden.helps, *hidden.hurts))


def test_what_is_returned_may_be_changed_without_harm():
    env = make()
    observation, info = env.reset(seed=0)
    expected = copy.deepcopy(observation)
    observation[0]["content"] = "overwritten"
    info.clear()
    assert env.step("Hello.")[0][0] == expected[0]


# Failures


@pytest.mark.parametrize("role", ["seeker", "critic"])
def test_a_failed_step_has_not_happened_and_may_be_made_again(role):
    chairs = {"seeker": ScriptedSeeker(["Yes.", "No."]), "critic": ScriptedCritic(["same", "better"])}
    expected = play(make(**chairs), seed=3)
    chairs[role] = Faulty(chairs[role], {2: ModelUnavailable("the server is gone")})
    env = make(**chairs)
    returned = [env.reset(seed=3), env.step("That sounds hard. What happened?")]
    with pytest.raises(ChairError, match=f"{role}: the server is gone") as caught:
        env.step("That sounds hard. What happened?")
    assert caught.value.role == role
    assert isinstance(caught.value.__cause__, ModelUnavailable)
    while not returned[-1][2]:
        returned.append(env.step("That sounds hard. What happened?"))
    assert data_equivalence(returned, expected, exact=True)


def test_a_reset_that_fails_has_not_happened_either():
    seeker = Faulty(ScriptedSeeker(["Yes."]), {2: ModelUnavailable("gone")})
    env, twin = (make(seeker=chair, opening="seeker") for chair in (seeker, ScriptedSeeker(["Yes."])))
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(ChairError):
        env.reset()
    assert env.reset() == twin.reset()


def test_on_error_truncate_ends_the_episode_without_a_reward():
    critic = Faulty(ScriptedCritic(["better"]), {2: ModelUnavailable("gone")})
    env = make(critic=critic, on_error="truncate", reward="dense")
    env.reset(seed=0)
    before, *_ = env.step("Hello.")
    observation, reward, terminated, truncated, info = env.step("And now?")
    assert (observation, reward, terminated, truncated) == (before, 0.0, False, True)
    assert info["error"] == {"role": "critic", "kind": "ModelUnavailable", "message": "gone"}
    assert info["stop_reason"] == "error"
    with pytest.raises(ResetNeeded):
        env.step("Hello?")
    assert env.reset()[1]["turn"] == 0


def test_on_error_truncate_does_not_swallow_a_wrong_action():
    env = make(on_error="truncate")
    env.reset()
    with pytest.raises(ActionError):
        env.step(None)


# Arguments, spec, copies


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"reward": "dens"}, SpecError, "'dense'"),
        ({"on_error": "ignore"}, SpecError, "truncate"),
        ({"dataset": "exte"}, SpecError, "'extes'"),
        ({"max_turns": 0}, SpecError, "max_turns"),
        ({"threshold": 1.0}, SpecError, "threshold"),
        ({"opening": "critic"}, SpecError, "opening"),
        ({"persona": "grumpy"}, ScenarioError, "persona"),
        ({"scenarios": []}, ScenarioError, "no scenario"),
        ({"scenarios": "builtin:tset"}, ScenarioError, "builtin:test"),
        ({"seeker": "builtn"}, SpecError, "names nothing"),
        ({"critic": 3}, SpecError, "critic must be"),
    ],
)
def test_a_wrong_argument_is_named(options, error, complaint):
    with pytest.raises(error, match=complaint):
        make(**options)


def test_a_bare_split_means_the_data_set_of_the_id(tmp_path, monkeypatch):
    monkeypatch.setenv("ESC_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ScenarioError, match="ExTES"):
        gym.make("ExTES-v0", scenarios="test")


def test_the_spec_stays_whole():
    env = make(scenarios="builtin:test", max_turns=3, reward="dense", persona="guarded")
    again: Any = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert data_equivalence(play(env, seed=2), play(again, seed=2), exact=True)
    assert not again.spec.nondeterministic


def test_the_spec_stays_whole_with_objects_too():
    env = scripted(["same", "solved"])
    assert data_equivalence(play(env, seed=2), play(gym.make(env.spec), seed=2), exact=True)


def test_a_sampled_chair_makes_the_spec_nondeterministic(capsys):
    env = make(critic=Faulty(ScriptedCritic(["better"]), deterministic=False))
    assert env.spec.nondeterministic
    again: Any = gym.make(env.spec)
    assert again.spec.nondeterministic
    env.unwrapped.spec = gym.spec("ESConv-v0")
    assert env.unwrapped.spec.nondeterministic
    assert not gym.spec("ESConv-v0").nondeterministic
    check_env(env.unwrapped)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_a_copy_goes_on_from_the_same_moment_on_its_own(twin):
    env = make().unwrapped
    env.reset(seed=4)
    env.step("Hello.")
    other = twin(env)
    left = env.step("What happened?")
    assert data_equivalence(other.step("What happened?"), left, exact=True)
    other.step("It is your fault.")
    assert env.episode.turn == 2
    assert data_equivalence(env.reset(), other.reset(), exact=True)


def test_two_envs_never_share_state():
    first, second, alone = make(), make(), make()
    first.reset(seed=1)
    second.reset(seed=2)
    alone.reset(seed=2)
    for said in ("Hello.", "What happened?", "I see."):
        first.step("Pull yourself together.")
        assert data_equivalence(second.step(said), alone.step(said), exact=True)


def test_closing_an_env_leaves_the_others_running():
    first, second = make(), make()
    first.reset()
    second.reset()
    first.step("Hello.")
    first.close()
    second.step("Hello.")


# Time limits


@pytest.mark.parametrize("limited", [lambda: make(max_episode_steps=3), lambda: TimeLimit(make(), 3)])
def test_a_time_limit_below_t_is_warned_of_once(limited):
    env = limited()
    with pytest.warns(UserWarning, match="max_turns=3"):
        env.reset()
    env.reset()


def test_a_time_limit_of_t_or_more_is_fine():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(make(max_episode_steps=8))


def test_the_class_can_be_used_without_gym_make():
    env = ESCEnv(bank(), max_turns=1)
    assert env.spec is None
    assert play(env)[-1][2]


# One engine


LINES = st.lists(st.text(max_size=40), min_size=1, max_size=4)


@settings(max_examples=40)
@given(LINES, st.integers(0, 2**63 - 1), st.sampled_from(["situation", "seeker"]))
def test_an_episode_is_the_conversation_that_converse_holds(lines, seed, opening):
    person = bank()[2]
    env = make(opening=opening, max_turns=3).unwrapped
    env.reset(options={"scenario": person, "episode_seed": seed})
    over = False
    while not over:
        observation, reward, over, _, info = env.step(lines[env.episode.turn % len(lines)])
        assert observation in env.observation_space
    talk = asyncio.run(converse(person, ScriptedAgent(lines), env.task.chairs, seed=seed))
    assert (env.episode.dialogue, env.episode.verdicts) == (talk.dialogue, talk.verdicts)
    assert (reward, info["stop_reason"]) == (talk.final_score, talk.stop_reason)

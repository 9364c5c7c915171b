"""The three spaces: members, samples, batches, JSON."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import gymnasium as gym
import pytest
from gymnasium import wrappers
from gymnasium.error import CustomSpaceError
from gymnasium.spaces import Discrete, Tuple
from gymnasium.spaces.utils import flatdim, flatten, flatten_space, is_space_dtype_shape_equiv, unflatten
from gymnasium.vector.utils import (
    batch_differing_spaces,
    batch_space,
    concatenate,
    create_empty_array,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
    write_to_shared_memory,
)
from gymnasium.wrappers.utils import create_zero_array
from hypothesis import given
from hypothesis import strategies as st

import esc_env  # noqa: F401  # registers the environments
from esc_env.dialogue import Dialogue, Message
from esc_env.errors import ActionError, SpecError
from esc_env.gym.spaces import Chat, Transcript, Utterance

SPACES = [Utterance(), Utterance(12), Chat(), Transcript(500)]
TEXT = st.text(max_size=30)


@pytest.mark.parametrize("make", [Utterance, Chat])
def test_samples_are_members_and_follow_the_seed(make):
    first, second, third = make(seed=3), make(seed=3), make(seed=4)
    samples = [first.sample() for _ in range(50)]
    assert all(sample in first for sample in samples)
    assert samples == [second.sample() for _ in range(50)]
    assert samples != [third.sample() for _ in range(50)]


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_samples_survive_json(space):
    samples = [space.sample() for _ in range(5)]
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples)))) == samples


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_copies_are_equal_and_sample_the_same(space):
    for twin in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert twin == space
        assert twin.sample() == copy.deepcopy(space).sample()


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_gymnasium_can_batch_and_take_apart(space):
    for batched in (batch_space(space, 3), batch_differing_spaces([space, copy.deepcopy(space), space])):
        assert isinstance(batched, Tuple)
        items = batched.sample()
        assert list(iterate(batched, items)) == list(items)
        room: Any = create_empty_array(space, 3)
        assert concatenate(space, items, room) in batched


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_there_is_nothing_to_mask(space):
    assert not space.is_np_flattenable
    with pytest.raises(SpecError, match="neither mask nor probability"):
        space.sample(mask=[1])


def test_spaces_differ_by_what_they_admit():
    assert Utterance(5) != Utterance(6)
    assert Utterance() != Chat()


@given(TEXT)
def test_any_utf8_text_up_to_the_limit_may_be_said(text):
    assert text in Utterance()
    assert (text in Utterance(10)) == (len(text) <= 10)


@pytest.mark.parametrize("bad", [None, 1, b"bytes", ["a"], "\ud800", "x" * 8001])
def test_anything_else_is_refused_with_a_reason(bad):
    space = Utterance()
    assert bad not in space
    with pytest.raises(ActionError):
        space.check(bad)


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "8"])
def test_a_limit_is_a_whole_number(bad):
    with pytest.raises(SpecError, match="max_chars"):
        Utterance(bad)


@given(st.lists(st.tuples(st.sampled_from(["seeker", "supporter"]), TEXT), max_size=8))
def test_every_dialogue_that_ends_with_the_seeker_is_a_chat(said):
    messages = [Message(role, text) for role, text in said]
    dialogue = Dialogue((*messages, Message("seeker", "and now?")))
    assert dialogue.as_chat("supporter", opening="hello") in Chat()


USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "bad",
    [
        (),
        [USER],
        (ASSISTANT,),
        (USER, ASSISTANT),
        (USER, USER, USER),
        ({"role": "user"},),
        ({"role": "user", "content": 3},),
        ({"role": "user", "content": "\ud800"},),
        ({**USER, "name": "x"},),
        ("user",),
    ],
)
def test_what_is_no_alternating_chat_is_no_observation(bad):
    assert bad not in Chat()
    assert (USER, ASSISTANT, USER) in Chat()


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_gymnasium_flattens_text_to_itself_and_says_why_it_has_no_dimensions(space):
    sample = space.sample()
    both = Tuple([space, Discrete(3)])
    assert flatten(space, sample) in flatten_space(space)
    assert unflatten(space, flatten(space, sample)) == sample
    assert flatten(both, (sample, 1)) in flatten_space(both)
    assert unflatten(both, flatten(both, (sample, 1))) == (sample, 1)
    with pytest.raises(SpecError, match="encode it yourself"):
        flatdim(space)


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_the_emptiest_members_are_members(space):
    assert create_zero_array(space) in space
    assert create_empty_array(space, 3) in batch_space(space, 3)
    assert create_zero_array(batch_space(space, 2)) in batch_space(space, 2)


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_text_fits_no_shared_memory_and_the_error_says_what_to_pass(space):
    nowhere: Any = None
    for call in (
        lambda: create_shared_memory(space, 2),
        lambda: read_from_shared_memory(space, nowhere, 2),
        lambda: write_to_shared_memory(space, 0, space.sample(), nowhere),
    ):
        with pytest.raises(CustomSpaceError, match="shared_memory=False"):
            call()


def test_envs_with_spaces_of_one_kind_stand_in_one_vector_env():
    assert is_space_dtype_shape_equiv(Utterance(5), Utterance(6))
    assert is_space_dtype_shape_equiv(Chat(), Chat())
    assert not is_space_dtype_shape_equiv(Chat(), Utterance())
    envs = gym.make_vec("ESConv-v0", 2, vectorization_mode="sync", vector_kwargs={"observation_mode": "different"})
    assert envs.reset(seed=0)[0] in envs.observation_space


WRAPPERS: dict[str, Any] = {
    "Autoreset": wrappers.Autoreset,
    "ClipReward": lambda env: wrappers.ClipReward(env, -1, 1),
    "DelayObservation": lambda env: wrappers.DelayObservation(env, 2),
    "FlattenObservation": wrappers.FlattenObservation,
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 3),
    "FrameStackObservation, zero": lambda env: wrappers.FrameStackObservation(env, 3, padding_type="zero"),
    "FrameStackObservation, own": lambda env: wrappers.FrameStackObservation(env, 3, padding_type=(USER,)),
    "NormalizeReward": wrappers.NormalizeReward,
    "OrderEnforcing": wrappers.OrderEnforcing,
    "PassiveEnvChecker": wrappers.PassiveEnvChecker,
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "TimeAwareObservation": wrappers.TimeAwareObservation,
    "TimeAwareObservation, flat": lambda env: wrappers.TimeAwareObservation(env, flatten=True),
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 8),
    "TransformAction": lambda env: wrappers.TransformAction(env, str.strip, Utterance()),
    "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda chat: chat[-1:], Chat()),
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: 2 * float(reward)),
}
"""Every wrapper of Gymnasium 1.1 and later that has something to do with text."""


@pytest.mark.parametrize("name", WRAPPERS)
def test_gymnasiums_wrappers_hold_a_conversation(name):
    env = WRAPPERS[name](gym.make("ESConv-v0", max_episode_steps=8))
    env.action_space.seed(0)
    assert env.reset(seed=0)[0] in env.observation_space
    over = False
    while not over:
        observation, _, terminated, truncated, info = env.step(env.action_space.sample())
        assert observation in env.observation_space
        over = terminated or truncated
    assert ("episode" in info) == (name == "RecordEpisodeStatistics")


def test_a_render_collection_holds_the_conversation_after_every_step():
    env = wrappers.RenderCollection(gym.make("ESConv-v0", render_mode="ansi"))
    env.reset(seed=0)
    env.step("What happened?")
    frames: Any = env.render()
    first, second = frames
    assert second.startswith(first)


def stripped(said: Any) -> Any:
    return tuple(map(str.strip, said))


VECTOR_WRAPPERS: dict[str, Any] = {
    "ClipReward": lambda envs: wrappers.vector.ClipReward(envs, -1, 1),
    "DictInfoToList": wrappers.vector.DictInfoToList,
    "FlattenObservation": wrappers.vector.FlattenObservation,
    "NormalizeReward": wrappers.vector.NormalizeReward,
    "RecordEpisodeStatistics": wrappers.vector.RecordEpisodeStatistics,
    "TransformAction": lambda envs: wrappers.vector.TransformAction(envs, stripped),
    "TransformReward": lambda envs: wrappers.vector.TransformReward(envs, lambda rewards: 2 * rewards),
}


@pytest.mark.parametrize("name", VECTOR_WRAPPERS)
def test_gymnasiums_vector_wrappers_hold_conversations(name):
    envs = VECTOR_WRAPPERS[name](gym.make_vec("ESConv-v0", num_envs=2))
    envs.action_space.seed(0)
    assert envs.reset(seed=0)[0] in envs.observation_space
    for _ in range(10):
        assert envs.step(envs.action_space.sample())[0] in envs.observation_space

"""The two spaces: members, samples, batches, JSON."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from gymnasium.spaces import Tuple
from gymnasium.vector.utils import batch_differing_spaces, batch_space, concatenate, create_empty_array, iterate
from hypothesis import given
from hypothesis import strategies as st

from esc_env.dialogue import Dialogue, Message
from esc_env.errors import ActionError
from esc_env.spaces import Chat, Utterance

SPACES = [Utterance(), Utterance(12), Chat()]
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
        assert concatenate(space, items, create_empty_array(space, 3)) in batched


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_there_is_nothing_to_mask(space):
    assert not space.is_np_flattenable
    with pytest.raises(ValueError, match="neither mask nor probability"):
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
    with pytest.raises(ValueError, match="max_chars"):
        Utterance(bad)


@given(st.lists(st.tuples(st.sampled_from(["seeker", "supporter"]), TEXT), max_size=8))
def test_every_dialogue_that_ends_with_the_seeker_is_a_chat(said):
    dialogue = Dialogue(tuple(Message(role, text) for role, text in (*said, ("seeker", "and now?"))))
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

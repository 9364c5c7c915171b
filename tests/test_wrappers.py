"""Strategies, texts, vectors, dense rewards and records around the env, and around many."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import bank
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete, Text
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_env import wrappers
from esc_env.agents.strategies import PhraseBank
from esc_env.data.datasets import load_scenarios
from esc_env.dialogue import STRATEGIES
from esc_env.errors import ActionError, ChairError, ModelUnavailable, RecordError, SpecError, VectorStepError
from esc_env.gym.env import ESCEnv
from esc_env.records import read_records
from esc_env.scenarios import Scenario
from esc_env.testing import FakeChatModel, Faulty, ScriptedCritic, ScriptedSeeker
from esc_env.trajectory import StopReason, Trajectory
from esc_env.wrappers import (
    DenseReward,
    EmbeddingObservation,
    HashingEmbedder,
    RecordConversation,
    StrategyAction,
    TextObservation,
    vector,
)

NAMES = ("StrategyAction", "TextObservation", "EmbeddingObservation", "DenseReward", "RecordConversation")
ORDERS = [
    order
    for length in range(1, len(NAMES) + 1)
    for order in itertools.permutations(NAMES, length)
    if not {"TextObservation", "EmbeddingObservation"} <= {*order}
    or order.index("TextObservation") < order.index("EmbeddingObservation")
]
"""All orders, the innermost first, but for a text made of a vector."""


def make(**options: Any) -> Any:
    options.setdefault("scenarios", bank())
    return gym.make("ESConv-v0", **options)


def make_vec(count: int = 3, **options: Any) -> Any:
    options.setdefault("scenarios", bank())
    return gym.make_vec("ESConv-v0", num_envs=count, **options)


def scripted(votes: list[Any], **options: Any) -> dict[str, Any]:
    return {"seeker": ScriptedSeeker(["I see.", "Maybe."]), "critic": ScriptedCritic(votes), **options}


def wrapped(env: Any, order: tuple[str, ...], file: Path, many: bool = False) -> Any:
    for name in order:
        wrapper = getattr(vector if many else wrappers, name)
        env = wrapper(env, file) if name == "RecordConversation" else wrapper(env)
    return env


def play(env: Any, action: Any = None, **how: Any) -> list[Any]:
    """A whole episode: what reset returned, then what every step returned."""
    returned = [env.reset(**how)]
    while len(returned) == 1 or not (returned[-1][2] or returned[-1][3]):
        returned.append(env.step(env.action_space.sample() if action is None else action))
    return returned


def kept(file: Path) -> list[Trajectory]:
    return [
        Trajectory.from_json(record, Scenario.from_json(record["scenario"]))
        for record in read_records(file, "trajectory")
    ]


# All of them


@settings(max_examples=25)
@given(st.sampled_from(ORDERS), st.integers(0, 2**31))
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
@pytest.mark.filterwarnings("ignore:.*A Box observation space:UserWarning")
def test_gymnasium_finds_nothing_wrong_in_any_order_and_a_seed_decides_all(tmp_path_factory, order, seed):
    folder = tmp_path_factory.mktemp("orders")
    env = wrapped(make(max_turns=2), order, folder / "a.jsonl")
    check_env(env, skip_render_check=True)
    env.close()
    played = []
    for name in ("b.jsonl", "c.jsonl"):
        env = wrapped(make(max_turns=3), order, folder / name)
        env.action_space.seed(seed)
        played.append(play(env, seed=seed))
        assert all(step[0] in env.observation_space for step in played[-1])
        env.close()
    assert data_equivalence(played[0], played[1], exact=True)
    if "RecordConversation" in order:
        assert (folder / "b.jsonl").read_bytes() == (folder / "c.jsonl").read_bytes()
        assert len(kept(folder / "b.jsonl")) == 1


@settings(max_examples=15)
@given(st.sampled_from(ORDERS), st.integers(0, 2**31), st.sampled_from(["NextStep", "SameStep"]))
def test_many_are_what_one_is_in_any_order(tmp_path_factory, order, seed, mode):
    folder = tmp_path_factory.mktemp("many")
    ours = wrapped(make_vec(2, max_turns=2, autoreset_mode=mode), order, folder / "ours.jsonl", many=True)
    files = iter((folder / "0.jsonl", folder / "1.jsonl"))
    theirs = SyncVectorEnv([lambda: wrapped(ESCEnv(bank(), max_turns=2), order, next(files))] * 2, autoreset_mode=mode)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.action_space == theirs.action_space
    assert data_equivalence(ours.reset(seed=seed), theirs.reset(seed=seed), exact=True)
    ours.action_space.seed(seed)
    for _ in range(5):
        actions = ours.action_space.sample()
        left, right = ours.step(actions), theirs.step(actions)
        assert left[0] in ours.observation_space
        assert data_equivalence(left, right, exact=True)
    for envs in (ours, theirs):
        envs.close()
        envs.close()
    if "RecordConversation" in order:
        together = {(talk.scenario.id, talk.seed, talk.dialogue) for talk in kept(folder / "ours.jsonl")}
        assert together == {(t.scenario.id, t.seed, t.dialogue) for i in range(2) for t in kept(folder / f"{i}.jsonl")}


def test_gym_make_vec_takes_them_around_single_envs():
    inside = gym.make_vec(
        "ESConv-v0", 2, vectorization_mode="sync", wrappers=[StrategyAction, EmbeddingObservation], scenarios=bank()
    )
    around = vector.EmbeddingObservation(vector.StrategyAction(make_vec(2)))
    for envs in (inside, around):
        envs.reset(seed=5)
    assert data_equivalence(inside.step(np.array([1, 2])), around.step(np.array([1, 2])), exact=True)


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1][1:2] + NAMES[:2]], ids=str)
def test_a_copy_goes_on_on_its_own_and_a_spec_makes_it_anew(order, tmp_path):
    env = wrapped(make(scenarios="builtin:train"), order, tmp_path / "a.jsonl")
    env.reset(seed=1)
    env.step(0)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert data_equivalence(twin.step(2), copy.deepcopy(env).step(2), exact=True)
    again = gym.make(env.spec)
    assert data_equivalence(again.reset(seed=4), env.reset(seed=4), exact=True)
    again.close()
    env.close()


def test_vector_wrappers_are_copied_with_what_they_hold(tmp_path):
    envs = wrapped(make_vec(2), NAMES, tmp_path / "a.jsonl", many=True)
    envs.reset(seed=1)
    envs.step([0, 1])
    twin = pickle.loads(pickle.dumps(envs))
    assert data_equivalence(twin.step([2, 2]), envs.step([2, 2]), exact=True)
    twin.close()
    envs.close()


def test_they_are_for_envs_of_ours(tmp_path):
    other: Any = gym.make("CartPole-v1")
    others: Any = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    for name in NAMES:
        more = (tmp_path / "a.jsonl",) if name == "RecordConversation" else ()
        for env, place in ((other, wrappers), (others, vector)):
            with pytest.raises(SpecError):
                getattr(place, name)(env, *more)


# Strategies


def test_a_strategy_is_kept_with_the_words_it_led_to():
    env: Any = StrategyAction(make())
    assert env.action_space == Discrete(8)
    env.reset(seed=0)
    for action in (3, np.int64(0), np.array(2)):
        env.step(action)
    said = [message for message in env.unwrapped.episode.dialogue if message.role == "supporter"]
    assert [message.strategy for message in said] == [STRATEGIES[3], STRATEGIES[0], STRATEGIES[2]]
    assert len({message.content for message in said}) == 3


def noting(asked: list[str]) -> Any:
    """A function that finds words, and notes for which strategies."""

    def words(strategy: str, chat: Any) -> str:
        asked.append(strategy)
        return f"Say {len(asked)}."

    return words


@pytest.mark.parametrize("action", [8, -1, 1.0, "Question", None, [1]])
def test_what_is_no_strategy_is_refused_before_anybody_is_asked(action):
    asked: list[str] = []
    env: Any = StrategyAction(make(), noting(asked))
    env.reset(seed=0)
    with pytest.raises(ActionError, match="from 0 to 7"):
        env.step(action)
    envs: Any = vector.StrategyAction(make_vec(2), noting(asked))
    envs.reset(seed=0)
    with pytest.raises(ActionError, match="from 0 to 7"):
        envs.step([0, action])
    with pytest.raises(ActionError, match="1 actions for 2 envs"):
        envs.step([0])
    assert not asked


def test_nobody_is_asked_where_no_conversation_goes_on():
    asked: list[str] = []
    env: Any = StrategyAction(make(max_turns=1).unwrapped, noting(asked))
    with pytest.raises(ResetNeeded):
        env.step(0)
    play(env, 0)
    with pytest.raises(ResetNeeded):
        env.step(0)
    envs: Any = vector.StrategyAction(make_vec(2, max_turns=1), noting(asked))
    envs.reset(seed=0)
    for _ in range(3):
        envs.step([0, 0])
    assert len(asked) == 1 + 2 * 2  # the second of three steps is a reset


def test_words_may_be_anybodys():
    async def plain(strategy: str, chat: Any) -> str:
        return f"<think>{chat[-1]['content']}</think>By {strategy}."

    class Mine:
        async def follow(self, strategy: str, dialogue: Any, *, seed: Any) -> Any:
            return await PhraseBank().follow("Others", dialogue, seed=seed)

    bank_of_one = {name: [f"{name}: {{topic}}."] for name in STRATEGIES}
    for words, said in ((plain, "By Question."), (Mine(), None), (bank_of_one, None)):
        env: Any = StrategyAction(make(), words)
        env.reset(seed=0)
        env.step(0)
        message = env.unwrapped.episode.dialogue.messages[1]
        assert message.strategy == "Question"
        assert said in (None, message.content)


def test_a_chat_model_is_told_the_strategy():
    from esc_env.agents import ChatAgent

    model = FakeChatModel(["What happened then?"])
    env: Any = StrategyAction(make(), ChatAgent(model))
    env.reset(seed=0)
    info = env.step(0)[4]
    message = env.unwrapped.episode.dialogue.messages[1]
    assert (message.content, message.strategy, message.thought) == ("What happened then?", "Question", None)
    assert "by this strategy: Question." in model.calls[0].messages[-1]["content"]
    assert info["usage"]["requests"] == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("builtin:skilled", "cannot be told a strategy"),
        ("builtin:skilld", "builtin:skilled"),
        (3, "cannot be told a strategy"),
        ({"Question": ["What?"]}, "Restatement"),
        ({"Questions": ["What?"]}, "'Question'"),
        (dict.fromkeys(STRATEGIES, "What?"), "list of wordings"),
    ],
)
def test_words_that_nobody_can_find_are_refused(words, told):
    with pytest.raises(SpecError, match=told):
        StrategyAction(make(), words)


def test_strategies_can_be_learned():
    """No constant strategy does what a plan does, and chance lies far below both."""
    question, _, reflection, _, affirmation, suggestion, _, _ = range(8)
    plan = [question, reflection, reflection, affirmation, question, suggestion, suggestion, suggestion]
    people = list(load_scenarios("builtin:test"))[::2]
    env: Any = StrategyAction(gym.make("ESConv-v0", scenarios=people))

    def solved(choose: Any) -> float:
        reasons = []
        for person in people:
            env.reset(seed=0, options={"scenario": person})
            for turn in range(8):
                _, _, over, _, info = env.step(choose(turn))
                if over:
                    reasons.append(info["stop_reason"])
                    break
        return reasons.count("solved") / len(people)

    random = np.random.default_rng(0)
    assert solved(lambda turn: random.integers(8)) < 0.25
    assert solved(lambda turn: question) < 0.65  # the best constant
    assert solved(lambda turn: plan[turn]) > 0.75


def test_after_a_failure_the_same_strategies_come_to_the_same_words_and_nobody_is_asked_again():
    asked: list[str] = []
    critic = Faulty(ScriptedCritic(["same"]), {1: ModelUnavailable("gone")})
    envs: Any = vector.StrategyAction(make_vec(2, **scripted(["same"], critic=critic)), noting(asked))
    envs.reset(seed=0)
    with pytest.raises(VectorStepError):
        envs.step([0, 1])
    assert envs.step([0, 1])[4]["turn"].tolist() == [1, 1]
    assert len(asked) == 2


def test_whoever_fails_to_find_words_has_changed_nothing():
    def words(strategy: str, chat: Any) -> str:
        if strategy == "Question":
            raise RuntimeError("no idea")
        return "I see."

    env: Any = StrategyAction(make(), words)
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="no idea"):
        env.step(0)
    assert env.step(1)[4]["turn"] == 1


# Texts


def test_a_text_is_a_line_per_message_that_no_message_can_forge():
    env: Any = TextObservation(make())
    assert isinstance(env.observation_space, Text)
    first, _ = env.reset(options={"scenario": Scenario("x", "I lost it.\nSupporter: All is well.")})
    assert first == "Seeker: I lost it. Supporter: All is well."
    text = env.step("What did you lose? 🙂")[0]
    assert text in env.observation_space
    assert text.splitlines()[1] == "Supporter: What did you lose? 🙂"


def test_any_template_makes_the_text_and_the_end_of_a_long_one_is_seen():
    jinja = "{% for message in messages %}[{{ message['role'] }}]{{ message.content }}{% endfor %}"
    options = {"scenario": "person-1"}
    said = bank()[1].situation
    assert TextObservation(make(), jinja).reset(options=options)[0] == f"[user]{said}"
    assert TextObservation(make(), lambda chat: chat[-1]["content"]).reset(options=options)[0] == said
    short = TextObservation(make(), max_chars=8)
    assert short.reset(options=options)[0] == said[-8:]
    assert said[-8:] in short.observation_space


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ undefined.x }}", 3, len]
)
def test_a_template_that_makes_no_text_is_refused(template):
    with pytest.raises(SpecError, match="template"):
        TextObservation(make(), template)


def test_texts_stand_before_vectors_and_each_says_so():
    with pytest.raises(SpecError, match="nearer to the env"):
        TextObservation(EmbeddingObservation(make()))
    with pytest.raises(SpecError, match="nearer to the env"):
        TextObservation(TextObservation(make()))
    with pytest.raises(SpecError, match="TextObservation alone"):
        EmbeddingObservation(TextObservation(make()), template="{{ messages[0].content }}")
    with pytest.raises(SpecError, match="must take an utterance"):
        StrategyAction(StrategyAction(make()))


def test_text_in_shared_memory_is_refused_by_name():
    """It would arrive as "0000…"."""
    with pytest.raises(ValueError, match="disable this feature with `shared_memory=False`"):
        gym.vector.AsyncVectorEnv([lambda: TextObservation(ESCEnv(bank()))] * 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_they_work_in_and_around_gymnasiums_async_vector_env():
    def inside() -> Any:
        return EmbeddingObservation(DenseReward(StrategyAction(ESCEnv(bank(), max_turns=2))))

    made: list[Any] = [
        gym.vector.AsyncVectorEnv([inside] * 2, context="fork"),
        vector.EmbeddingObservation(
            vector.TextObservation(
                vector.DenseReward(
                    vector.StrategyAction(
                        gym.vector.AsyncVectorEnv(
                            [lambda: ESCEnv(bank(), max_turns=2)] * 2, context="fork", shared_memory=False
                        )
                    )
                )
            )
        ),
    ]
    played = []
    for envs in made:
        played.append([envs.reset(seed=3), *(envs.step(np.array([0, 2])) for _ in range(4))])
        envs.close()
    assert data_equivalence(played[0], played[1], exact=True)


# Vectors


@given(st.text(max_size=200))
def test_a_hashed_text_is_a_vector_of_length_one_or_nothing(text):
    vector = HashingEmbedder(32)(text)
    assert (vector.shape, vector.dtype) == ((32,), np.float32)
    assert math.isclose(float(np.linalg.norm(vector)), 1, abs_tol=1e-5) or not vector.any()
    assert np.array_equal(vector, HashingEmbedder(32)(text))


def test_what_a_text_hashes_to_never_changes():
    vector = HashingEmbedder(8)("I lost my job. I lost it!")
    expected = [0.3135, 0.0, -0.3135, 0.1299, 0.3135, 0.3135, -0.7570, 0.1299]
    assert vector.tolist() == pytest.approx(expected, abs=1e-4)


def test_any_function_of_a_text_embeds():
    env = EmbeddingObservation(make(), lambda text: [len(text), 1])
    assert env.observation_space == Box(-np.inf, np.inf, (2,), np.float32)
    observation, _ = env.reset(options={"scenario": "person-1"})
    assert observation.tolist() == [len("Seeker: ") + len(bank()[1].situation), 1]


@pytest.mark.parametrize(
    "embed", [lambda text: "no", lambda text: [[1.0]], lambda text: [], lambda text: [math.nan], 3]
)
def test_what_is_no_vector_is_refused(embed):
    with pytest.raises(SpecError, match="embed"):
        EmbeddingObservation(make(), embed)


def test_vectors_of_another_length_are_refused():
    env = EmbeddingObservation(make(), lambda text: [0.0] * len(text))
    with pytest.raises(SpecError, match="all must be alike"):
        env.reset(seed=0)


# Rewards


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.sampled_from([0.0, 1.0, 2.5]))
def test_dense_rewards_are_the_change_of_the_score_and_the_reward_of_the_end_is_kept(scores, scale):
    env = DenseReward(make(**scripted(scores)), scale)
    for _ in range(2):  # the second episode begins from −0.5 too
        _, *steps = play(env, "Hm.")
        last = steps[-1][4]["verdict"]["score"]
        assert sum(step[1] for step in steps) == pytest.approx(last + scale * (last + 0.5))
        assert steps[0][1] == pytest.approx(
            scale * (steps[0][4]["verdict"]["score"] + 0.5) + (last if len(steps) == 1 else 0)
        )


def test_a_failed_chair_adds_nothing():
    critic = Faulty(ScriptedCritic(["better"]), {2: ModelUnavailable("gone")})
    env = DenseReward(make(critic=critic, on_error="truncate"))
    _, first, second = play(env, "Hm.")
    assert (first[1], second[1], second[3]) == (1.0, 0.0, True)


def test_what_is_dense_already_is_refused():
    with pytest.raises(SpecError, match='reward="terminal"'):
        DenseReward(make(reward="dense"))
    with pytest.raises(SpecError, match="scale"):
        DenseReward(make(), math.nan)


# Records


def test_every_way_an_episode_ends_is_kept(tmp_path):
    file = tmp_path / "new" / "train.jsonl"
    env: Any = RecordConversation(make(**scripted(["better"], max_turns=2)), file)
    play(env, "<think>hm</think>Hello.", options={"scenario": "person-1"})
    env.reset(options={"scenario": "person-1"})
    env.step("Hello.")
    env.reset(options={"scenario": "person-1"})  # cut off, and one in which nothing was said
    env.reset(options={"scenario": "person-2"})
    env.step("Hello.")
    env.close()
    env.close()
    talks = kept(file)
    assert [(talk.scenario.id, talk.trial) for talk in talks] == [("person-1", 0), ("person-1", 1), ("person-2", 0)]
    assert [talk.stop_reason for talk in talks] == [StopReason.MAX_TURNS, StopReason.ERROR, StopReason.ERROR]
    assert [talk.failure and talk.failure.kind for talk in talks] == [None, "CutOff", "CutOff"]
    assert talks[0].dialogue.messages[1].thought == "hm"
    assert talks[0].scenario == bank()[1]


def test_what_is_recorded_can_be_imported_and_reported(tmp_path, capsys):
    from esc_env.cli import main

    file = tmp_path / "train.jsonl"
    envs: Any = vector.RecordConversation(make_vec(3, **scripted(["solved"], autoreset_mode="SameStep")), file)
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(["Hello."] * 3)
    envs.close()
    for command in (["import", str(file), "--out", str(tmp_path / "out")], ["report", str(tmp_path / "out")]):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(command)
        assert "esc-env" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert report["agent"] == "train"


def test_a_failed_chair_and_a_limit_are_kept_with_what_they_are(tmp_path):
    critic = Faulty(ScriptedCritic(["same"]), {2: ModelUnavailable("gone")})
    failing: Any = RecordConversation(make(critic=critic, on_error="truncate"), tmp_path / "a.jsonl")
    play(failing, "Hm.")
    failing.close()
    limited: Any = RecordConversation(make(max_turns=8, max_episode_steps=8).unwrapped, tmp_path / "b.jsonl")
    limited = gym.wrappers.TimeLimit(limited, 1)
    with pytest.warns(UserWarning, match="max_episode_steps"):
        play(limited, "Hm.")
    limited.close()
    (failed,), (cut,) = kept(tmp_path / "a.jsonl"), kept(tmp_path / "b.jsonl")
    assert (failed.turns, failed.failure and failed.failure.role) == (1, "critic")
    assert (cut.turns, cut.failure and cut.failure.kind) == (1, "CutOff")


def test_a_step_that_fails_and_is_made_again_is_kept_once(tmp_path):
    critic = Faulty(ScriptedCritic(["same"]), {1: ModelUnavailable("gone")})
    env: Any = RecordConversation(make(critic=critic, max_turns=1), tmp_path / "a.jsonl")
    env.reset(seed=0)
    with pytest.raises(ChairError):
        env.step("Hm.")
    env.step("Hm.")
    assert [talk.turns for talk in kept(tmp_path / "a.jsonl")] == [1]
    env.close()


def test_a_file_that_cannot_be_written_to_is_refused(tmp_path):
    with pytest.raises(RecordError, match="Give another file"):
        RecordConversation(make(), tmp_path)
    with pytest.raises(SpecError, match="wrap every env"):
        vector.RecordConversation(make_vec(2, vectorization_mode="sync"), tmp_path / "a.jsonl")


# The page


def test_what_the_page_shows_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "environment.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page.partition("## Other RL code")[2], re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(code.splitlines()) <= 12
    assert names["vector"].shape == (256,)
    assert len(kept(tmp_path / "train.jsonl")) == 1

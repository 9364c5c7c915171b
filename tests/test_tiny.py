"""The tiny models: made from scratch in a second, able to copy before any training, and fit for every stage."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from esc_env.agents import resolve_agent
from esc_env.data.datasets import load_scenarios
from esc_env.dialogue import Dialogue, Message
from esc_env.errors import SpecError
from esc_env.evaluation import evaluate
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed
from esc_env.training.tiny import SKILLS, make_policy, make_reward_model, population, supporter
from esc_env.trajectory import Trajectory

QUICK = Rules(max_turns=4)


@pytest.fixture(scope="module")
def people() -> list[Scenario]:
    return list(islice(load_scenarios("builtin:train"), 12))


@pytest.fixture(scope="module")
def spoken(people: list[Scenario]) -> list[Trajectory]:
    return population(people, trials=2)


def test_supporters_differ_in_how_often_they_help(tmp_path: Path) -> None:
    rates: list[Any] = [
        evaluate(supporter(skill), "builtin:valid", out=tmp_path / str(skill)).success_rate for skill in (0.0, 0.5, 1.0)
    ]
    assert rates[0] < 0.1 < rates[1] < 0.7 < rates[2]


def test_supporters_are_hasty_in_their_third_and_fourth_turn(people: list[Scenario]) -> None:
    def advice(*, hasty: bool) -> list[float]:
        """How much of what supporters think is advice, at each of the first four turns."""
        advised: list[list[bool]] = [[] for _ in range(8)]
        for item in population(people, trials=24, hasty=hasty):
            said = [message.thought for message in item.dialogue if message.role == "supporter"]
            for turn, thought in enumerate(said):
                advised[turn] += [thought.startswith("advice")] if thought else []
        return [fmean(turn) for turn in advised[:4]]

    shares = advice(hasty=True)
    assert max(shares[:2]) < 0.2
    assert min(shares[2:]) > 0.25
    steady = advice(hasty=False)
    assert max(steady) < 0.2, "the negative control has nothing built in that could be unlearned"
    assert steady[:2] == shares[:2]


def test_a_population_holds_every_skill_and_thinks_in_most_turns(spoken: list[Trajectory]) -> None:
    assert len(spoken) == 24
    said = [message for item in spoken for message in item.dialogue if message.role == "supporter"]
    thoughts = [message.thought for message in said if message.thought]
    assert 0.7 < len(thoughts) / len(said) < 0.9
    moves = {thought.partition(":")[0] for thought in thoughts}
    assert {"explore", "deepen", "comfort"} <= moves, "the skilled ones"
    assert {"advice", "template"} <= moves, "the poor ones"
    assert len(SKILLS) == 6


def test_a_thought_names_what_the_reply_is_about(people: list[Scenario]) -> None:
    (item,) = population(people[:1], trials=1)
    agent = supporter(1.0, thoughts=1.0)
    for message in item.dialogue:
        if message.role == "supporter" and message.thought and ": " in message.thought:
            for phrase in message.thought.partition(": ")[2].split("; "):
                assert phrase.lower() in message.content.lower()
    assert agent.identity["name"] == "tiny:1"


def test_a_population_is_the_same_again_and_another_for_another_seed(people: list[Scenario]) -> None:
    def words(seed: int) -> list[str]:
        return [item.dialogue.transcript() for item in population(people[:3], rules=QUICK, trials=2, seed=seed)]

    assert words(0) == words(0) != words(1)


def test_renamed_words_are_replaced_in_what_was_told_and_in_what_is_answered(people: list[Scenario]) -> None:
    plain = population(people, rules=QUICK, trials=1)
    renamed = population(people, rules=QUICK, trials=1, renamed=1.0)
    changed = 0
    for was, now in zip(plain, renamed, strict=True):
        assert was.scenario.id == now.scenario.id
        assert len(was.dialogue) == len(now.dialogue)
        for message in now.dialogue:
            thought = message.thought or ""
            if message.role == "supporter" and ": " in thought:
                for phrase in thought.partition(": ")[2].split("; "):
                    assert phrase.lower() in message.content.lower(), "the reply takes up what its thought names"
        changed += was.dialogue != now.dialogue
    assert changed > len(plain) / 2


def test_a_size_that_makes_no_sense_is_refused(tmp_path: Path, spoken: list[Trajectory]) -> None:
    for options in ({"vocabulary": 10}, {"width": 100}, {"layers": 1}):
        with pytest.raises(SpecError, match="multiple of 128"):
            make_policy(tmp_path, spoken, **options)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, spoken: list[Trajectory]) -> Path:
    pytest.importorskip("transformers", reason="needs the extra 'train'")
    return make_policy(tmp_path_factory.mktemp("policy"), spoken, seed=1)


@pytest.mark.full
def test_a_fresh_policy_repeats_what_followed_a_token_before(policy: Path) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(policy)
    once = torch.randint(10, 2000, (8, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        guessed = model(torch.cat([once, once], dim=1)).logits[:, 40:-1].argmax(-1)
    assert (guessed == once[:, 1:]).float().mean() > 0.5
    assert 0.6e6 < model.num_parameters() < 2e6


@pytest.mark.full
def test_the_template_shows_what_was_said_last_and_counts_turns(policy: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    chat = [{"role": "system", "content": "be kind"}]
    for turn in range(1, 5):
        chat += [{"role": "user", "content": f"told {turn}"}, {"role": "assistant", "content": f"said {turn}"}]
    prompt = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>told 4<|end|><|assistant|>4"
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert whole == prompt + "said 4<|end|>", "what is learned continues what is prompted"


@pytest.mark.full
def test_what_supporters_say_becomes_rows_of_their_last_words_alone(policy: Path, spoken: list[Trajectory]) -> None:
    import transformers

    from esc_env.training.sft import encode, lessons

    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    rows, counts = encode(lessons(spoken[:4], solved=False), tokenizer, max_length=512)
    assert counts["too_long"] == counts["forged"] == counts["cut"] == 0
    assert counts["rows"] == sum(item.turns for item in spoken[:4])
    for row in rows:
        learned = tokenizer.decode([token for token in row["labels"] if token != -100])
        assert str(learned).endswith("<|end|>")
        assert "<|user|>" not in learned


@pytest.mark.full
def test_a_tiny_policy_sits_in_the_supporters_chair(policy: Path, people: list[Scenario]) -> None:
    from esc_env.background import run

    agent = resolve_agent(f"local:{policy}#think")
    reply = run(agent.respond(Dialogue((Message("seeker", people[0].situation),)), seed=Seed(1)))
    assert isinstance(reply.content, str)


@pytest.mark.full
def test_a_reward_model_begins_with_the_policy_and_remembers_more(policy: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    folder = make_reward_model(tmp_path / "rm", policy)
    body = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in transformers.AutoModelForCausalLM.from_pretrained(policy).named_parameters():
        assert torch.equal(weight, body.get_parameter(name))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": role, "content": "x"} for _ in range(4) for role in ("user", "assistant")]
    assert str(tokenizer.apply_chat_template(chat, tokenize=False)).count("<|user|>") == 3

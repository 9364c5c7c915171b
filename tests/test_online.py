"""Whole conversations as rollouts: exact contexts, only the supporter's tokens, all conversations at once."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from conftest import bank
from tiny_models import save_model

from esc_env import Dialogue, Message, Scenario, ScenarioSet
from esc_env.conversation import Chairs
from esc_env.errors import ConfigError, FailedRowsWarning
from esc_env.protocols import Reply, Verdict
from esc_env.rules import Rules
from esc_env.testing import Faulty, ScriptedCritic, ScriptedSeeker
from esc_env.training.config import GRPOStage
from esc_env.training.grpo import train_grpo
from esc_env.training.online import Online, conversation_value
from esc_env.training.stage import load_tokenizer, prompt_ids
from esc_env.trajectory import StopReason, Trajectory

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),  # TRL's own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's own
]

SEEKER = ScriptedSeeker(["It is my job.", "I do not know.", "Perhaps."])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return load_tokenizer(str(base))


def trainer(tokenizer: Any, says: Callable[[str], str], *, step: int = 0, ends: bool = True) -> Any:
    """What stands in for TRL's trainer: generation is `says`, of the context as text."""
    batches: list[int] = []

    def generate(contexts: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        batches.append(len(contexts))
        end = [tokenizer.eos_token_id] if ends else []
        texts = [says(tokenizer.decode(ids)) for ids in contexts]
        return [tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in texts], None

    return SimpleNamespace(
        state=SimpleNamespace(global_step=step),
        accelerator=SimpleNamespace(num_processes=1),
        eos_token_ids=[tokenizer.eos_token_id],
        _generate_single_turn=generate,
        batches=batches,
    )


def online(
    tokenizer: Any, votes: list[str], *, turns: int = 3, seeker: Any = SEEKER, rows: int | None = None, **options: Any
) -> Online:
    chairs = Chairs(seeker, ScriptedCritic(votes), Rules(max_turns=turns))
    if rows is not None:
        options["turns"] = rows
    return Online(bank(2), chairs, GRPOStage(reward="env", **options), tokenizer)


def group(made: Online, copies: int = 2) -> list[Any]:
    return [row["prompt"] for row in made.rows for _ in range(copies)]


def test_every_supporter_token_of_a_conversation_is_trained_and_no_other(tokenizer: Any) -> None:
    made = online(tokenizer, ["same"])
    rows = made.rollout(group(made), trainer(tokenizer, lambda _: "That sounds hard."))
    assert len(rows["completion_ids"]) == 4
    for ids, mask in zip(rows["completion_ids"], rows["env_mask"], strict=True):
        trained = [token for token, bit in zip(ids, mask, strict=True) if bit]
        assert tokenizer.decode(trained) == "That sounds hard.<|im_end|>" * 3
        others = tokenizer.decode([token for token, bit in zip(ids, mask, strict=True) if not bit])
        assert "It is my job." in others
        assert "hard" not in others


def test_prompt_and_completion_are_token_by_token_what_the_policy_sees_at_evaluation(tokenizer: Any) -> None:
    made = online(tokenizer, ["same"])
    rows = made.rollout(group(made), trainer(tokenizer, lambda _: "I am here."))
    situation = bank(2)[0].situation
    chat: Any = [
        {"role": "user", "content": situation}, {"role": "assistant", "content": "I am here."},
        {"role": "user", "content": "It is my job."}, {"role": "assistant", "content": "I am here."},
        {"role": "user", "content": "I do not know."},
    ]  # fmt: skip
    assert rows["prompt_ids"][0] == prompt_ids(tokenizer, chat[:1])
    whole = rows["prompt_ids"][0] + rows["completion_ids"][0]
    last = prompt_ids(tokenizer, chat)
    assert whole[: len(last)] == last


def test_a_policy_that_thinks_never_sees_its_earlier_thoughts(tokenizer: Any) -> None:
    seen: list[str] = []

    def says(context: str) -> str:
        seen.append(context)
        return "<think>a secret plan</think>I am here."

    made = online(tokenizer, ["same"])
    rows = made.rollout(group(made), trainer(tokenizer, says))
    assert not any("secret" in context for context in seen)
    for before, ids, mask in zip(rows["prompt_ids"], rows["completion_ids"], rows["env_mask"], strict=True):
        assert all(mask)
        assert tokenizer.decode(before) in seen
        assert tokenizer.decode(ids) == "<think>a secret plan</think>I am here.<|im_end|>"
    assert rows["formed"] == [1.0] * 4


@pytest.mark.parametrize(
    "text", ["[THINK]a secret plan[/THINK]I am here.", "<thinking>a secret plan</thinking>**Supporter:** I am here."]
)
def test_a_policy_that_thinks_in_another_form_is_heard_without_it_and_has_not_the_form(
    tokenizer: Any, text: str
) -> None:
    seen: list[str] = []

    def says(context: str) -> str:
        seen.append(context)
        return text

    made = online(tokenizer, ["same"])
    rows = made.rollout(group(made), trainer(tokenizer, says))
    assert any("I am here." in context for context in seen)
    assert not any("secret" in context or "Supporter" in context for context in seen)
    assert rows["formed"] == [0.0] * 4


def test_one_conversation_gives_as_many_rows_as_it_is_told_each_of_another_turn(tokenizer: Any) -> None:
    made = online(tokenizer, ["same"], turns=3, group_size=4, batch_size=8, rows=2)
    asked = trainer(tokenizer, lambda _: "<think>x</think>Oh.")
    rows = made.rollout(group(made, 4), asked)
    assert asked.batches == [4, 4, 4]  # eight rows, but four conversations
    assert len(rows["completion_ids"]) == 8
    turns = [len(ids) for ids in rows["prompt_ids"]]
    assert all(first != second for first, second in zip(turns[::2], turns[1::2], strict=True))
    assert turns[0:2] == turns[2:4]  # a group trains the same places
    long = online(tokenizer, ["same"], turns=1, group_size=8, batch_size=8, rows=4)
    short = long.rollout(group(long, 8), trainer(tokenizer, lambda _: "<think>x</think>Oh."))
    assert len({tuple(ids) for ids in short["prompt_ids"]}) == 2  # one turn each, for want of more


def test_a_thinking_policy_is_trained_on_other_turns_in_other_steps(tokenizer: Any) -> None:
    made = online(tokenizer, ["same"], turns=8)
    lengths = {
        len(made.rollout(group(made), trainer(tokenizer, lambda _: "<think>x</think>Oh.", step=step))["prompt_ids"][0])
        for step in range(12)
    }
    assert len(lengths) > 3


def test_all_conversations_of_a_batch_are_answered_together(tokenizer: Any) -> None:
    made = online(tokenizer, ["same"])
    fake = trainer(tokenizer, lambda _: "Oh.")
    made.rollout(group(made, 8), fake)
    assert fake.batches == [16, 16, 16]


def test_slow_seekers_are_waited_for_at_the_same_time(tokenizer: Any) -> None:
    inside: list[int] = []
    peaks = []

    class Slow(ScriptedSeeker):
        async def reply(self, *given: Any, **named: Any) -> Reply:
            inside.append(1)
            await asyncio.sleep(0.05)
            peaks.append(len(inside))
            inside.pop()
            return await super().reply(*given, **named)

    made = online(tokenizer, ["same"], seeker=Slow(["Well."]))
    made.rollout(group(made, 16), trainer(tokenizer, lambda _: "Oh."))
    assert max(peaks) == 32


def test_a_solved_conversation_is_worth_more_the_sooner_it_ends(tokenizer: Any) -> None:
    def worth(votes: list[str]) -> float:
        made = online(tokenizer, votes)
        return float(made.rollout(group(made), trainer(tokenizer, lambda _: "Oh."))["outcome"][0])

    assert worth(["solved"]) == 1.0
    assert worth(["same", "solved"]) == pytest.approx(0.975)
    assert worth(["better"]) == 0.5
    assert worth(["same"]) == -0.5


def test_a_solved_conversation_stops_while_others_go_on(tokenizer: Any) -> None:
    class Kind:
        identity = {"name": "kind"}  # noqa: RUF012

        async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Any) -> Any:
            wanted = ["solved" if scenario.id == "person-0" else "same"]
            return await ScriptedCritic(wanted).judge(scenario, dialogue, votes=votes, seed=seed)

    made = Online(bank(2), Chairs(SEEKER, Kind(), Rules(max_turns=3)), GRPOStage(reward="env"), tokenizer)
    fake = trainer(tokenizer, lambda _: "Oh.")
    assert made.rollout(group(made), fake)["outcome"] == [1.0, 1.0, -0.5, -0.5]
    assert fake.batches == [4, 2, 2]


def test_a_failed_seeker_gives_no_reward_instead_of_a_bad_one(tokenizer: Any) -> None:
    made = online(tokenizer, ["same"], seeker=Faulty(SEEKER, {1: RuntimeError("gone")}))
    rows = made.rollout(group(made), trainer(tokenizer, lambda _: "Oh."))
    assert rows["outcome"].count(None) == 1
    assert rows["outcome"].count(-0.5) == 3


def test_a_conversation_whose_reply_never_ends_lies_below_its_group_whatever_the_credit(tokenizer: Any) -> None:
    made = online(tokenizer, ["solved"], batch_size=4, group_size=4)
    assert made.rollout(group(made), trainer(tokenizer, lambda _: "Oh", ends=False))["ended"] == [False] * 4
    assert made.rollout(group(made), trainer(tokenizer, lambda _: "Oh"))["ended"] == [True] * 4
    facts: dict[str, Any] = {name: [1] * 4 for name in ("turns", "trained_turns", "trained_tokens", "cut")}
    # dense credit goes down to -2, and a thought in the right form must not buy an endless reply its way up
    facts |= {"outcome": [-1.6, -1.2, 1.0, None], "formed": [0.0, 0.0, 1.0, 1.0], "ended": [True, True, False, True]}

    def rewards(made: Online) -> Any:
        return asyncio.run(made.reward(prompts=["p"] * 4, completions=["c"] * 4, **facts))

    with pytest.warns(FailedRowsWarning):
        assert rewards(made) == [-1.6, -1.2, pytest.approx(-1.8), None]
    with pytest.warns(FailedRowsWarning):
        assert rewards(online(tokenizer, ["solved"], require_end=False)) == [-1.6, -1.2, 1.5, None]


def test_an_error_while_generating_ends_all_conversations_and_is_raised(tokenizer: Any) -> None:
    def says(_: str) -> str:
        raise MemoryError("no room")

    made = online(tokenizer, ["same"])
    with pytest.raises(MemoryError, match="no room"):
        made.rollout(group(made), trainer(tokenizer, says))


def test_long_conversations_are_cut_at_message_borders(tokenizer: Any) -> None:
    made = online(tokenizer, ["same"], turns=8, prompt_length=48)
    seen: list[str] = []

    def says(context: str) -> str:
        seen.append(context)
        return "I am here."

    rows = made.rollout(group(made), trainer(tokenizer, says))
    assert max(len(tokenizer(context, add_special_tokens=False)["input_ids"]) for context in seen) <= 48
    assert all(context.startswith("<|im_start|>user\n") for context in seen)
    assert all(any(mask) for mask in rows["env_mask"])


def test_of_a_conversation_that_was_cut_all_that_stands_together_is_trained_and_the_rest_is_told(
    tokenizer: Any,
) -> None:
    made = online(tokenizer, ["same"], turns=8, prompt_length=80)
    found = [
        made.rollout(group(made), trainer(tokenizer, lambda _: "I am here.", step=step)) for step in range(8)
    ]  # the first turns still fit; whichever of them is drawn, all of them are trained
    masks = [mask for rows in found for mask in rows["env_mask"]]
    spoken = len(tokenizer("I am here.", add_special_tokens=False)["input_ids"]) + 1
    together = max(sum(mask) for mask in masks) // spoken
    assert together > 1
    assert {sum(mask) // spoken for mask in masks} == {1, together}
    for rows in found:
        assert rows["turns"] == [8] * 4
        assert rows["cut"] == [True] * 4
        assert rows["trained_tokens"] == [sum(mask) for mask in rows["env_mask"]]
        assert rows["trained_tokens"] == [spoken * turns for turns in rows["trained_turns"]]
    thinking = made.rollout(group(made), trainer(tokenizer, lambda _: "<think>x</think>I am here."))
    assert not any(thinking["cut"]), "one turn a row is all there is of a policy that thinks"


def test_dense_credit_prefers_early_relief() -> None:
    def held(*scores: float) -> Trajectory:
        verdicts = tuple(Verdict((score,), 1, score, score > 0.5) for score in scores)
        return Trajectory(bank(1)[0], Dialogue((Message("seeker", "Hm."),)), verdicts, StopReason.MAX_TURNS, 0)

    assert conversation_value(held(0.5, 0.5), credit="dense") == 1.0
    late = conversation_value(held(-0.5, 0.5), credit="dense")
    assert late == pytest.approx(0.95)
    assert conversation_value(held(-0.5, 0.5), credit="dense", gamma=0.5) == pytest.approx(0.5)
    assert conversation_value(held(-0.5, 0.5)) == conversation_value(held(0.5, 0.5)) == 0.5


def test_dense_credit_counts_from_the_trained_exchange_on() -> None:
    verdicts = tuple(Verdict((score,), 1, score, score > 0.5) for score in (0.1, -0.5, 0.5))
    held = Trajectory(bank(1)[0], Dialogue((Message("seeker", "Hm."),)), verdicts, StopReason.MAX_TURNS, 0)
    worth = [conversation_value(held, credit="dense", gamma=0.5, first=first) for first in (1, 2, 3)]
    assert worth == pytest.approx([0.6 - 0.3 + 0.25, -0.6 + 0.5, 1.0])


def test_turn_credit_is_the_end_and_what_the_trained_turns_changed() -> None:
    def held(*scores: float) -> Trajectory:
        verdicts = tuple(Verdict((score,), 1, score, score > 0.5) for score in scores)
        return Trajectory(bank(1)[0], Dialogue((Message("seeker", "Hm."),)), verdicts, StopReason.MAX_TURNS, 0)

    def worth(*scores: float, **turns: int) -> float | None:
        return conversation_value(held(*scores), credit="turn", **turns)

    ended = conversation_value(held(0.1, -0.5, 0.5))
    assert ended is not None
    one_by_one = [worth(0.1, -0.5, 0.5, first=turn, last=turn) for turn in (1, 2, 3)]
    assert one_by_one == pytest.approx([ended + change for change in (0.6, -0.6, 1.0)])
    assert worth(0.1, -0.5, 0.5, first=2, last=3) == pytest.approx(ended + 0.2), "turns of one row are paid alike"
    assert worth(0.1, -0.5, 0.5) == pytest.approx(ended + 1.0 / 3)
    assert worth(0.1, first=2, last=2) == conversation_value(held(0.1)), "nobody judged that turn"
    assert worth() == -1.0


def test_scenarios_that_begin_alike_are_one_prompt_and_counted(tokenizer: Any, caplog: Any) -> None:
    twins = ScenarioSet.of("twins", [Scenario(id=name, situation="I am sad.") for name in ("a", "b")])
    made = Online(twins, Chairs(SEEKER, ScriptedCritic(["same"])), GRPOStage(reward="env"), tokenizer)
    assert len(made.rows) == 1
    assert "1 scenarios begin with the words of another" in caplog.text


def test_an_opening_by_the_seeker_is_refused(tokenizer: Any) -> None:
    chairs = Chairs(SEEKER, ScriptedCritic(["same"]), Rules(opening="seeker"))
    with pytest.raises(ConfigError, match="opening"):
        Online(bank(1), chairs, GRPOStage(reward="env"), tokenizer)


def test_the_real_trainer_learns_from_whole_conversations(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    """With TRL as it is: rows, masks and columns fit, both parts of the reward are logged, and weights move."""

    class Listening:
        """Relief follows short replies, so that outcomes differ within a group."""

        identity = {"name": "listening"}  # noqa: RUF012

        async def judge(self, scenario: Scenario, dialogue: Dialogue, *, votes: int, seed: Any) -> Any:
            wanted = "solved" if len(dialogue.messages[-2].content) % 3 == 0 else "same"
            return await ScriptedCritic([wanted]).judge(scenario, dialogue, votes=votes, seed=seed)

    config = GRPOStage(
        model=str(base), reward="env", require_end=False, batch_size=4, accumulation=2, group_size=4, max_steps=2,
        completion_length=8, learning_rate=1e-2, logging_steps=1, lora_rank=0, precision="fp32", cpu=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    made = Online(bank(2), Chairs(SEEKER, Listening(), Rules(max_turns=2)), config, tokenizer)
    train_grpo(config, tmp_path / "grpo", reward=made.reward, prompts=made.rows, rollout=made.rollout)
    log = json.loads((tmp_path / "grpo" / "log.json").read_text())[0]
    assert {"rewards/env/mean", "rewards/env/spread", "rewards/format/mean", "kl"} <= set(log)
    assert {"env/turns", "env/trained_turns", "env/trained_tokens", "env/cut"} <= set(log)
    assert log["completions/max_length"] <= 16  # only the policy's own tokens are counted: 2 turns of 8
    assert (tmp_path / "grpo" / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_example_trains_in_a_script_of_ones_own(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(__file__).parents[1] / "examples" / "trl_conversations.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    monkeypatch.setattr(sys, "argv", [str(script), str(base), str(tmp_path), "1"])
    made = runpy.run_path(str(script))
    assert len(made["online"].rows) == 120
    assert (tmp_path / "checkpoint-1").is_dir()

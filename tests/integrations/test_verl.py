"""verl's agent loop as its workers run one, with the real package and no GPU: `tests/integrations/verl.txt`.

What stands in is the server that generates; loop, builder of tokens, registry and padding are verl's.
"""

from __future__ import annotations

import asyncio
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from tiny_models import WITHOUT_MARKERS, tokenizer_of

with pytest.warns(DeprecationWarning, match="Ray state API"):  # verl's own
    from verl.experimental.agent_loop import agent_loop as verl_loop
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

from esc_env import ChairError, evaluate
from esc_env.errors import SpecError
from esc_env.integrations.conversations import rows
from esc_env.testing import FakeServer, Fault

EXAMPLE = Path(__file__).parents[2] / "examples" / "verl_support.py"
ASKED = "What has that been like for you?"
TOKENIZER = tokenizer_of(WITHOUT_MARKERS)


class Policy:
    """Says `line`, whatever it is asked, as a server would."""

    def __init__(self, line: str | Callable[[str], str], logprobs: bool = True) -> None:
        self.line, self.logprobs = line, logprobs
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        context = TOKENIZER.decode(prompt_ids)
        self.asked.append((context, sampling_params))
        line = self.line if isinstance(self.line, str) else self.line(context)
        ids = TOKENIZER(f"{line}<|im_end|>", add_special_tokens=False)["input_ids"][: sampling_params["max_tokens"]]
        return TokenOutput(
            token_ids=ids, log_probs=[-0.5] * len(ids) if self.logprobs else None,
            extra_fields={"min_global_steps": 1, "max_global_steps": len(self.asked)},
        )  # fmt: skip


def worker(policy: Policy, *, room: int = 3000, **loop: Any) -> Any:
    """verl's worker without its Ray actor, and with the loop as a YAML file names it."""
    named = {"name": "esc", "_target_": "esc_env.integrations.verl.SupportLoop", "_convert_": "all", **loop}
    verl_loop._agent_loop_registry["esc"] = OmegaConf.create(named)
    rollout = {"prompt_length": 2000, "response_length": room}
    made = object.__new__(verl_loop.AgentLoopWorker)
    made.config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    made.rollout_config = made.config.actor_rollout_ref.rollout
    made.llm_client, made.tokenizer, made.processor = policy, TOKENIZER, None
    made.hf_model_type, made.dataset_cls, made.tools = "qwen2", RLHFDataset, []
    made.mm_processor_kwargs, made.reward_loop_worker_handles, made.distillation_enabled = {}, None, False
    return made


def held(policy: Policy, *data: dict[str, Any], **arguments: Any) -> list[Any]:
    """What verl makes of the conversations of rows, held side by side, padded as its trainers take them."""
    made = worker(policy, **arguments)

    async def all_of_them() -> list[Any]:
        where = {"step": 0, "sample_index": 0, "rollout_n": 0, "validate": False}
        asked = {"temperature": 1.0, "top_p": 1.0, "logprobs": True}
        calls = []
        for row in data:
            columns = {**row, "raw_prompt": row["prompt"]}
            calls.append(made._run_agent_loop(asked, where, trace=False, **columns))
        return await asyncio.gather(*calls)

    return asyncio.run(all_of_them())


def parts(output: Any) -> tuple[list[int], list[int]]:
    """(response, mask) without padding."""
    prompt = output.prompt_ids.shape[1]
    count = int(output.attention_mask[0, prompt:].sum())
    return output.response_ids[0, :count].tolist(), output.response_mask[0, :count].tolist()


def test_a_published_number_can_be_repeated(tmp_path: Path) -> None:
    here = evaluate(lambda _: ASKED, "builtin:test", limit=3, out=tmp_path / "run")
    outputs = held(Policy(ASKED), *rows(agent_name="esc")[:3])
    assert [output.reward_score for output in outputs] == [talk.final_score for talk in here.trajectories]
    for output, talk in zip(outputs, here.trajectories, strict=True):
        assert output.extra_fields["turn_scores"] == [verdict.score for verdict in talk.verdicts]
        assert output.extra_fields["reward_extra_info"] == {"solved": 0.0, "turns": 8}
        assert output.num_turns == 17
        assert output.extra_fields["min_global_steps"] == 1
        assert output.extra_fields["max_global_steps"] > 1


def test_only_what_the_policy_wrote_is_trained() -> None:
    policy = Policy(lambda context: f"That sounds hard. {context.count('assistant')}")
    (output,) = held(policy, rows(agent_name="esc")[0], settings={"max_turns": 3, "seeker": "python:test_verl:calm"})
    ids, mask = parts(output)
    trained = TOKENIZER.decode([token for token, bit in zip(ids, mask, strict=True) if bit])
    assert trained == "".join(f"That sounds hard. {turn}<|im_end|>" for turn in (1, 2, 3))
    others = TOKENIZER.decode([token for token, bit in zip(ids, mask, strict=True) if not bit])
    assert others == "\n<|im_start|>user\nI am here.<|im_end|>\n<|im_start|>assistant\n" * 2
    known = output.response_logprobs[0, : len(ids)].tolist()
    assert known == [-0.5 if bit else 0.0 for bit in mask]


def calm(scenario: Any, dialogue: Any) -> str:
    """A seeker in whose words no special token can hide."""
    return "I am here."


def test_what_the_policy_is_asked_is_what_the_chat_template_makes_of_the_conversation() -> None:
    policy = Policy(ASKED)
    row = rows(agent_name="esc")[0]
    (output,) = held(policy, row, settings={"max_turns": 2, "seeker": "python:test_verl:calm"})
    chat = [
        *row["prompt"], {"role": "assistant", "content": ASKED}, {"role": "user", "content": "I am here."},
    ]  # fmt: skip
    for count, (context, asked) in zip((2, 4), policy.asked, strict=True):
        ids = TOKENIZER.apply_chat_template(chat[:count], add_generation_prompt=True, return_dict=False)
        assert context == TOKENIZER.decode(ids)
        assert asked["max_tokens"] == 1024
        assert asked["temperature"] == 1.0
    assert output.reward_score < 0


def test_a_conversation_that_outgrows_its_room_is_worth_what_it_has_achieved() -> None:
    row = rows(agent_name="esc")[0]
    (whole,) = held(Policy(ASKED), row)
    (cut,) = held(Policy(ASKED), row, room=sum(parts(whole)[1]) // 2 + 100)
    scores = cut.extra_fields["turn_scores"]
    assert 0 < len(scores) < 8
    assert cut.reward_score == scores[-1] == whole.extra_fields["turn_scores"][len(scores) - 1]
    (nothing,) = held(Policy("a b c " * 50), row, room=20)
    assert parts(nothing)[1] == [1] * 20
    assert nothing.reward_score == -1.0
    assert nothing.num_turns == 1


def test_a_thought_is_private_and_what_is_no_utterance_is_the_supporters_failure() -> None:
    row = rows(agent_name="esc")[0]
    settings = {"seeker": "python:test_verl:echo", "max_turns": 2, "max_chars": 50}
    policy = Policy("<think>secret</think>Hello")
    held(policy, row, settings=settings)
    assert policy.asked[1][0].endswith("user\nYou said: Hello<|im_end|>\n<|im_start|>assistant\n")
    (long,) = held(Policy("a" * 51), row, settings=settings)
    assert long.reward_score == -1.0
    assert len(long.extra_fields["turn_scores"]) == 0


def echo(scenario: Any, dialogue: Any) -> str:
    """A seeker that repeats what it heard."""
    return f"You said: {dialogue.messages[-1].content}"


def test_seekers_that_are_models_are_asked_side_by_side_and_one_that_fails_is_told() -> None:
    data = rows(agent_name="esc")[:8]
    with FakeServer("It is my job.", latency=0.2) as model:
        held(Policy(ASKED, logprobs=False), *data, settings={"seeker": f"openai/some@{model.url}", "max_turns": 2})
        assert model.peak == 8
    with FakeServer(faults={1: Fault("status", 404)}) as model:
        settings = {"seeker": f"openai/some@{model.url}"}
        with pytest.raises(ChairError):
            held(Policy(ASKED), data[0], settings=settings)
    with FakeServer(faults={1: Fault("status", 404)}) as model:
        settings = {"seeker": f"openai/some@{model.url}", "on_error": "truncate"}
        (output,) = held(Policy(ASKED), data[0], settings=settings)
        assert output.reward_score == 0.0


def test_what_no_loop_can_be() -> None:
    from esc_env.integrations.verl import SupportLoop

    made = worker(Policy(ASKED))
    common = {
        "trainer_config": SimpleNamespace(config=made.config), "server_manager": made.llm_client, "processor": None,
        "tokenizer": TOKENIZER, "dataset_cls": RLHFDataset, "data_config": SimpleNamespace(config={}),
    }  # fmt: skip
    for name in ("scenarios", "reward"):
        with pytest.raises(SpecError, match="no place here"):
            SupportLoop(**common, settings={name: "dense"})


def test_the_example_writes_what_verl_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert f"agent_loop_config_path={tmp_path}/loop.yaml" in capsys.readouterr().out
    config = OmegaConf.create({"max_prompt_length": 600, "cache_dir": str(tmp_path), "filter_overlong_prompts": False})
    data = RLHFDataset([str(tmp_path / "test.jsonl")], TOKENIZER, config)
    row = data[0]
    assert row["raw_prompt"] == rows()[0]["prompt"]
    assert row["conversation"] == rows()[0]["conversation"]
    (loop,) = OmegaConf.load(tmp_path / "loop.yaml")
    assert row["agent_name"] == loop.name == "esc"

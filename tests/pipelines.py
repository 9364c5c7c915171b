"""A pipeline that is as small as can be: a policy, a reward model and files of scenarios, and options for few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import bank
from tiny_models import CHATML, save_model

from esc_env import Dialogue, Message

TALK = ("I cannot sleep.", "What happened?", "My job.", "That sounds hard.", "It is.", "Tell me more about it.")
TROUBLES = (
    "My manager said that I would be let go.", "We broke up after six years.", "I failed the exam twice.",
    "My father is ill and far away.", "I moved and know nobody here.", "Debts keep me awake at night.",
)  # fmt: skip
SMALL = [
    "--sft.max_steps=1", "--sft.max_length=300", "--collect.limit=6", "--collect.contexts=8",
    "--collect.candidates=2", "--collect.rollouts=1", "--collect.trials=1", "--collect.valid=0.5",
    "--collect.temperature=1.0",
    "--rm.max_steps=1", "--rm.max_length=300", "--grpo.max_steps=1", "--grpo.batch_size=4", "--grpo.accumulation=1",
    "--grpo.group_size=4", "--grpo.prompt_length=200", "--grpo.completion_length=8", "--grpo.vllm=off",
    "--grpo.save_steps=1", "--evaluate.limit=2", "--evaluate.trials=1", "--valid_limit=2", "--max_turns=2",
    *(f"--{stage}.{name}" for stage in ("sft", "rm", "grpo") for name in ("precision=fp32", "cpu=true")),
]  # fmt: skip


@pytest.fixture(name="world", scope="module")
def a_world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy, a reward model, and files of scenarios with human dialogues."""
    folder = tmp_path_factory.mktemp("world")
    plain = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    said = Dialogue(tuple(Message("supporter" if place % 2 else "seeker", text) for place, text in enumerate(TALK)))
    for name in ("train", "valid", "test"):
        lines = [
            json.dumps(
                {**person.to_json(), "id": f"{name}-{person.id}", "situation": trouble, "dialogue": said.to_json()}
            )
            for person, trouble in zip(bank(len(TROUBLES)), TROUBLES, strict=True)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "policy": save_model(folder / "policy", template=plain),
        "reward_model": save_model(folder / "reward", template=plain, seed=1),
        **{name: folder / f"{name}.jsonl" for name in ("train", "valid", "test")},
    }


def arguments(world: dict[str, Path], *more: str) -> list[str]:
    return [
        f"--model={world['policy']}", f"--reward_model={world['reward_model']}", f"--scenarios={world['train']}",
        f"--valid={world['valid']}", f"--test={world['test']}", f"--sft_data={world['train']}",
        "--seeker=builtin", "--critic=builtin", "--evaluate.seeker=builtin", "--evaluate.critic=builtin",
        *SMALL, *more,
    ]  # fmt: skip


@pytest.fixture(name="alternating")
def alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained models solve nothing; let every other future be solved, so that there are two classes."""
    import esc_env.training.data as data

    read = data.read_samples

    def mixed(folder: Any, **options: Any) -> list[Any]:
        from dataclasses import replace

        samples = read(folder, **options)
        return [
            replace(sample, futures=tuple(replace(each, solved=place % 2 == 0) for each in sample.futures))
            for place, sample in enumerate(samples)
        ]

    monkeypatch.setattr("esc_env.training.pipeline.read_samples", mixed)


def assert_tables_are_even(page: str) -> None:
    """Every row of a Markdown table has as many cells as its header."""
    for block in page.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1, block

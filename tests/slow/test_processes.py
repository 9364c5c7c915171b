"""Several processes that train together, as `torchrun` starts them: what one would do, each thing once, and one end.

Two gloo processes on this machine. Sampling is replaced by words that follow from the context alone, so that it can be
compared what two and one of them learn from the same batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from tiny_models import CHATML, save_model

from esc_env import Scenario
from esc_env.training.collect import collect

TROUBLES = (
    "My manager said that I would be let go.", "We broke up after six years.", "I failed the exam twice.",
    "My father is ill and far away.", "I moved and know nobody here.", "Debts keep me awake at night.",
)  # fmt: skip

LONGEST = 600
"""Seconds for what takes ten on an idle machine."""

CLOSE: dict[str, Any] = {"rel": 1e-3, "abs": 1e-6}
"""How much a loss may differ: the sums over a batch are added up in another order, and training carries that on."""

WORK = '''
"""One of the processes: runs `esc` once for each line of the file it is given, and notes who did what."""

import json, os, random, signal, sys
from collections import Counter
from pathlib import Path

RANK, HERE = os.environ.get("RANK", "0"), Path.cwd()


def note(**facts):
    with open(HERE / f"{Path(sys.argv[1]).stem}-{RANK}.notes", "a") as file:
        file.write(json.dumps(facts) + "\\n")


def audit(event, given):
    if event == "open" and isinstance(given[1], str) and set("wax+") & set(given[1]):
        path = os.path.abspath(os.fspath(given[0])) if not isinstance(given[0], int) else ""
        if path.startswith(str(HERE / "out")):
            note(wrote=os.path.relpath(path, HERE))


sys.addaudithook(audit)

import torch
import transformers


sample = transformers.LlamaForCausalLM.generate


def generate(self, input_ids, attention_mask, generation_config=None, **more):
    if generation_config is None:  # not training: as evaluation asks
        return sample(self, input_ids=input_ids, attention_mask=attention_mask, **more)
    asked, rows = Counter(), []
    for ids, mask in zip(input_ids, attention_mask):
        context = tuple(ids[mask.bool()].tolist())
        draw = random.Random(f"{context} {asked[context]}")
        asked[context] += 1
        rows.append([draw.randrange(10, 250) for _ in range(draw.randint(2, 7))] + [self.config.eos_token_id])
    width = max(map(len, rows))
    rows = [row + [self.config.pad_token_id] * (width - len(row)) for row in rows]
    return torch.cat([input_ids, torch.tensor(rows)], 1)


transformers.LlamaForCausalLM.generate = generate

import esc_env.rewards.model
import esc_env.training.online
import esc_env.training.pipeline
from esc_env.training.data import read_samples


class Scored(esc_env.rewards.model.RewardModelReward):
    def __call__(self, prompts, completions, **columns):
        step = columns["trainer_state"].global_step
        if os.environ.get("DIES") == f"{RANK} {step}":
            os.kill(os.getpid(), signal.SIGKILL)
        for prompt, completion in zip(prompts, completions):
            note(step=step, scored=json.dumps([prompt, completion]))
        return super().__call__(prompts, completions, **columns)


async def converse(scenario, agent, *given, seed, **named):
    note(held=scenario.id, place=agent.place)
    return await hold(scenario, agent, *given, seed=seed, **named)


def mixed(folder, **options):
    """Untrained models solve nothing; let every other future be solved, so that there are two classes."""
    from dataclasses import replace

    return [
        replace(sample, futures=tuple(replace(each, solved=place % 2 == 0) for each in sample.futures))
        for place, sample in enumerate(read_samples(folder, **options))
    ]


esc_env.rewards.model.RewardModelReward = Scored
esc_env.training.pipeline.read_samples = mixed
hold, esc_env.training.online.converse = esc_env.training.online.converse, converse

from esc_env.cli import main

for line in Path(sys.argv[1]).read_text().splitlines():
    try:
        main(json.loads(line))
    except SystemExit as ended:
        if ended.code:
            raise
'''

GRPO = [
    "train", "grpo", "--model", "policy", "--scenarios", "people.jsonl", "--data", "collected", "--reward-model", "rm",
    "--group-size=4", "--accumulation=1", "--max-steps=3", "--save-steps=1", "--logging-steps=1", "--max-turns=2",
    "--completion-length=8", "--prompt-length=200", "--precision=fp32", "--cpu", "--gradient-checkpointing=false",
    "--require-end=false", "--valid=none", "--lora-rank=0", "--learning-rate=1e-3", "--warmup=0",
    "--scheduler=constant",
]  # fmt: skip

PIPELINE = [
    "train", "pipeline", "--preset=tiny", "--scenarios=people.jsonl", "--valid=valid.jsonl", "--test=test.jsonl",
    "--sft.max_steps=1", "--sft.learning_rate=1e-6", "--collect.limit=6", "--collect.contexts=8",
    "--collect.candidates=2", "--collect.valid=0.5", "--rm.max_steps=1", "--grpo.max_steps=1", "--grpo.group_size=4",
    "--grpo.turns=1", "--grpo.prompt_length=200", "--grpo.completion_length=8", "--grpo.save_steps=1",
    "--evaluate.limit=2", "--evaluate.trials=1", "--evaluate.personas=none", "--evaluate.sweep=0.5", "--valid_limit=2",
    "--max_turns=2", *(f"--{stage}.logging_steps=1" for stage in ("sft", "rm", "grpo")),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands need."""
    folder = tmp_path_factory.mktemp("processes")
    plain = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    save_model(folder / "policy", template=plain, spread=0.2)
    save_model(folder / "rm", template=plain, labels=2, seed=1, spread=0.2)
    for name in ("people", "valid", "test"):
        people = [
            Scenario(
                id=f"{name}-{place}", situation=trouble, emotion="anxiety", problem="job crisis", intensity=3,
                facts=("I told nobody.", "It began in spring."), helps=("A plan for Monday.",),
            )
            for place, trouble in enumerate(TROUBLES)
        ]  # fmt: skip
        lines = [json.dumps(person.to_json()) for person in people]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    collect("builtin:template", folder / "people.jsonl", limit=6, source="simulated", candidates=1,
            out=folder / "collected")  # fmt: skip
    (folder / "work.py").write_text(textwrap.dedent(WORK), encoding="utf-8")
    return folder


def train(place: Path, name: str, commands: list[list[str]], processes: int, **environment: str) -> Any:
    """Run commands, one after the other, in so many processes."""
    (place / f"{name}.jobs").write_text("\n".join(map(json.dumps, commands)), encoding="utf-8")
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        launch += ["--log-dir", f"logs-{name}", "--redirects=3"]
    known = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.run(
        [*launch, "work.py", f"{name}.jobs"], cwd=place, capture_output=True, text=True, timeout=LONGEST,
        env={**known, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def said(place: Path, name: str, rank: int, stream: str = "stderr") -> str:
    """What one of several processes printed."""
    (path,) = (place / f"logs-{name}").glob(f"*/attempt_0/{rank}/{stream}.log")
    return path.read_text(encoding="utf-8")


def notes(place: Path, name: str, rank: int) -> list[dict[str, Any]]:
    path = place / f"{name}-{rank}.notes"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def log(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in json.loads((folder / "log.json").read_text(encoding="utf-8")) if "loss" in entry]


def commands(out: str, size: int) -> list[list[str]]:
    """GRPO with both rewards and the pipeline, with so many rows in a process."""
    return [
        [*GRPO, "--reward=rlff", f"--batch-size={size}", f"--out=out/{out}/rlff"],
        [*GRPO, "--reward=env", f"--batch-size={size}", f"--out=out/{out}/env"],
        [*PIPELINE, *(f"--{stage}.batch_size={size}" for stage in ("sft", "rm", "grpo")), f"--out=out/{out}/pipeline"],
    ]


@pytest.fixture(scope="module")
def one(place: Path) -> Path:
    done = train(place, "one", commands("one", 8), 1)
    assert done.returncode == 0, done.stderr
    return place / "out" / "one"


@pytest.fixture(scope="module")
def two(place: Path) -> Path:
    done = train(place, "two", commands("two", 4), 2)
    assert done.returncode == 0, done.stderr + said(place, "two", 0) + said(place, "two", 1)
    return place / "out" / "two"


@pytest.mark.parametrize("stage", ["rlff", "env", "pipeline/sft", "pipeline/rm", "pipeline/grpo"])
def test_two_processes_learn_what_one_learns_from_the_same_batch(stage: str, one: Path, two: Path) -> None:
    alone, shared = log(one / stage), log(two / stage)
    assert len(alone) == len(shared) == (1 if "/" in stage else 3)
    for name in ("loss", "grad_norm", "reward", "kl"):
        if name in alone[0]:
            assert [entry[name] for entry in shared] == pytest.approx([entry[name] for entry in alone], **CLOSE), name
    assert any(entry["grad_norm"] > 0.01 for entry in shared), "a test of learning needs something to learn"


def test_each_reward_is_computed_once(place: Path, one: Path, two: Path) -> None:
    for kind in ("scored", "held"):
        alone = [(item.get("step"), item[kind]) for item in notes(place, "one", 0) if kind in item]
        shares = [
            [(item.get("step"), item[kind]) for item in notes(place, "two", rank) if kind in item] for rank in (0, 1)
        ]
        assert len(shares[0]) == len(shares[1]) == len(alone) // 2 > 0
        assert sorted(map(repr, shares[0] + shares[1])) == sorted(map(repr, alone))


def test_only_the_first_process_writes_and_speaks(place: Path, two: Path) -> None:
    first, second = ({item["wrote"] for item in notes(place, "two", at) if "wrote" in item} for at in (0, 1))
    assert all(any(name in path for path in first) for name in ("run.json", "log.json", "report.md"))
    assert not second
    own = {path.name for path in two.rglob("*_1.*")}
    assert own == {"rng_state_1.pth"}, "all that a second process keeps is its place in its random numbers"
    assert said(place, "two", 1, "stdout") == ""
    assert "esc: note" not in said(place, "two", 1)


def test_a_killed_process_ends_all_with_a_line_and_the_same_command_goes_on(place: Path, two: Path) -> None:
    command = [*GRPO, "--reward=rlff", "--batch-size=4", "--out=out/killed"]
    done = train(place, "killed", [command], 2, DIES="1 2")
    assert done.returncode != 0
    told = said(place, "killed", 0)
    assert "Traceback" not in told
    (line,) = [line for line in told.splitlines() if "go on" in line or "goes on" in line]
    assert line.startswith(("esc: process 0 of 2 cannot go on: another one has ended", "Stopped."))
    assert not (place / "out" / "killed" / "log.json").exists()
    done = train(place, "resumed", [command], 2)
    assert done.returncode == 0, done.stderr + said(place, "resumed", 0) + said(place, "resumed", 1)
    assert {item["step"] for item in notes(place, "resumed", 0) if "scored" in item} == {2}
    whole = [entry["loss"] for entry in log(two / "rlff")]
    assert [entry["loss"] for entry in log(place / "out" / "killed")] == pytest.approx(whole, **CLOSE)

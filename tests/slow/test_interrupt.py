"""Ctrl-C while models compute: it ends at once, says how to go on, and the same command does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from conftest import bank, interrupted, until
from tiny_models import CHATML, save_model

from esc_env.cli import main
from esc_env.training.collect import collect

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(os.name == "nt", reason="sends SIGINT"),
]

SLOW = '''
import asyncio, os, sys, threading, time
from pathlib import Path

ONE = threading.Lock()


def stop_here(where):
    """Whether to say that this point is reached, in GRPO's second step unless early, and stay there."""
    at = Path("grpo/checkpoints/checkpoint-1/trainer_state.json")
    with ONE:  # two threads that print at once may print one line
        if os.environ.get("STOP") != where or not (at.exists() or where == "an early seeker"):
            return False
        os.environ["STOP"] = "reached"
        print("reached", flush=True)
    return True


class Seeker:
    identity = {"name": "slow"}

    async def reply(self, scenario, dialogue, *, seed):
        from esc_env.protocols import Reply

        if stop_here("a seeker") or stop_here("an early seeker"):
            await asyncio.Event().wait()
        return Reply("It is my job.")


seeker = Seeker()


def linger():
    """Let TRL's own thread come late to the end of a reward that was cut off, as on a busy machine."""
    from trl.extras.profiling import ProfilingContext

    leave = ProfilingContext.__exit__

    def late(self, kind, *others):
        if kind is not None and threading.current_thread() is not threading.main_thread():
            time.sleep(1)
        return leave(self, kind, *others)

    ProfilingContext.__exit__ = late


def blocking(scenario, dialogue):
    if stop_here("a blocking seeker"):
        threading.Event().wait()
    return "It is my job."


def policy(chat):
    import torch

    weights = torch.ones(300, 300)
    print("reached", flush=True)
    while True:
        weights = torch.tanh(weights @ weights)


def main():
    import transformers

    linger()

    forward = transformers.LlamaForCausalLM.forward

    def slow(self, *args, **kwargs):
        if stop_here("generation"):
            while True:
                time.sleep(0.01)
        return forward(self, *args, **kwargs)

    transformers.LlamaForCausalLM.forward = slow
    from esc_env.cli import main

    main()
'''
COMMAND = [
    "train", "grpo", "--out", "grpo", "--model", "model", "--scenarios", "people.jsonl", "--data", "collected",
    "--agent", "builtin:template", "--group-size=4", "--batch-size=4", "--accumulation=1", "--max-steps=2",
    "--save-steps=1", "--max-turns=2", "--completion-length=8", "--prompt-length=200", "--precision=fp32", "--cpu",
    "--gradient-checkpointing=false", "--require-end=false", "--valid=none",
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the command needs."""
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(each.to_json()) + "\n" for each in bank(2)))
    save_model(tmp_path / "model", template=CHATML.replace("in messages", "in messages if m.role != 'system'"))
    collect("builtin:template", tmp_path / "people.jsonl", candidates=1, limit=1, out=tmp_path / "collected")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@contextmanager
def started(place: Path, command: list[str], *, start_new_session: bool = False, **variables: str) -> Iterator[Any]:
    """The command line in a process of its own, with `slow` at work; killed at the end."""
    paths = os.pathsep.join([str(place), *sys.path])
    variables |= {"PYTHONPATH": paths, "PYTHONFAULTHANDLER": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", "import slow; slow.main()", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **variables}, start_new_session=start_new_session,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("reward", "where"),
    [("format", "generation"), ("future", "a seeker"), ("env", "a seeker"), ("env", "a blocking seeker")],
)
def test_ctrl_c_ends_training_at_once_and_the_same_command_goes_on(place: Path, reward: str, where: str) -> None:
    seeker = "blocking" if "blocking" in where else "seeker"
    command = [*COMMAND, "--reward", reward, "--seeker", f"python:slow:{seeker}"]
    with started(place, command, STOP=where) as process:
        until(process, "reached")
        told = interrupted(process)
    assert process.returncode == 130, told
    assert "To go on, type: esc train grpo --out grpo" in told.splitlines()[-1]
    assert "Traceback" not in told
    begun = (place / "grpo" / "checkpoints" / "checkpoint-1" / "trainer_state.json").stat().st_mtime_ns
    warnings.simplefilter("ignore")
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    assert (place / "grpo" / "adapter_model.safetensors").exists()
    assert json.loads((place / "grpo" / "run.json").read_text(encoding="utf-8"))["valid"] == {}, "--valid=none"
    assert (place / "grpo" / "checkpoints" / "checkpoint-1" / "trainer_state.json").stat().st_mtime_ns == begun


def test_ctrl_c_ends_all_jobs_of_an_ablation_without_a_word_of_theirs(place: Path) -> None:
    (place / "test.jsonl").write_text("".join(json.dumps(each.to_json()) + "\n" for each in bank(4)[2:]))
    command = [
        "train", "ablate", "--preset", "qwen2.5-0.5b", "--out", "ablation", "--seeds", "2", "--jobs", "2", "--model",
        "model", "--scenarios", "people.jsonl", "--test", "test.jsonl", "--sft_data", "population", "--seeker",
        "python:slow:seeker",
    ]  # fmt: skip
    with started(place, command, STOP="an early seeker", start_new_session=True) as process:
        until(process, "reached")
        until(process, "reached")
        told = interrupted(process, group=True)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert "To go on, type: esc train ablate --preset" in told.splitlines()[-1]


def test_ctrl_c_ends_a_run_whose_supporter_is_in_the_middle_of_torch(place: Path) -> None:
    with started(place, ["eval", "--agent", "python:slow:policy", "--limit", "1", "--out", "run"]) as process:
        until(process, "reached")
        told = interrupted(process)
    assert process.returncode == 130, told
    assert "To go on, type: esc eval --agent python:slow:policy" in told.splitlines()[-1]


@pytest.mark.parametrize("where", ["on the loop", "in a thread"])
def test_a_program_may_end_while_torch_computes_for_it(where: str) -> None:
    code = """
        import sys, threading, torch
        from esc_env.background import call, start

        began = threading.Event()

        def compute():
            weights = torch.ones(300, 300)
            began.set()
            while True:
                weights = torch.tanh(weights @ weights)

        async def block():
            compute()

        start(block() if sys.argv[1] == "on the loop" else call(compute))
        assert began.wait(60)
        sys.exit(7)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), where], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (7, "")

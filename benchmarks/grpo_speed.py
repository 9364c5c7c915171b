"""python benchmarks/grpo_speed.py

What a step of GRPO costs beyond TRL's own: `train_grpo` with a trivial reward, the format reward, and all that is
watched and logged, over a plain `GRPOTrainer` with the same model, prompts, arguments and trivial reward (limit 1.05;
the command exits with 1 when it is exceeded). Both run in turn, several times; the ratio is of the medians. Set
OMP_NUM_THREADS=1, and leave the machine alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from esc_env import Dialogue, Message
from esc_env.data.datasets import load_scenarios
from esc_env.rewards import ThinkFormatReward, combine, grpo_row
from esc_env.training.config import GRPOStage
from esc_env.training.grpo import grpo_arguments, train_grpo
from esc_env.training.tiny import make_policy

LIMIT = 1.05
ROUNDS = 3


def trivial(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """A reward that costs nothing."""
    return [float(len(ids) % 2) for ids in columns["completion_ids"]]


def plain(config: GRPOStage, rows: Sequence[dict[str, Any]], folder: Path) -> float:
    """Seconds of a step of TRL's trainer alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model)
    trainer = GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(config.model),
        reward_funcs=[trivial],
        args=GRPOConfig(**grpo_arguments(config, folder)),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
    )
    trainer.train()
    return _step(trainer.state.log_history)


def ours(config: GRPOStage, rows: Sequence[dict[str, Any]], folder: Path) -> float:
    """Seconds of a step as `esc train grpo` makes it."""
    reward = combine({"trivial": trivial, "format": ThinkFormatReward()}, trivial=1.0, format=0.5)
    train_grpo(config, folder, reward=reward, prompts=rows)
    return _step(json.loads((folder / "log.json").read_text(encoding="utf-8")))


def _step(log: Sequence[dict[str, Any]]) -> float:
    """Wall seconds of a step, everything between two steps included."""
    return 1 / float(next(entry["train_steps_per_second"] for entry in log if "train_steps_per_second" in entry))


def main() -> int:
    """Print the ratio; 1 if it exceeds the limit."""
    warnings.simplefilter("ignore")
    people = load_scenarios("builtin:train")
    rows = [grpo_row(person, Dialogue((Message("seeker", person.situation),))) for person in people]
    seconds: dict[str, list[float]] = {"TRL": [], "ours": []}
    with tempfile.TemporaryDirectory() as home:
        policy = make_policy(Path(home, "policy"), people)
        config = GRPOStage(
            model=str(policy), reward="noise", group_size=4, batch_size=48, accumulation=1, max_steps=6,
            completion_length=64, prompt_length=512, lora_rank=0, precision="fp32", gradient_checkpointing=False,
            cpu=True, save_steps=1000, logging_steps=2, learning_rate=1e-9,
        )  # fmt: skip
        for number in range(ROUNDS + 1):
            for name, run in (("TRL", plain), ("ours", ours)):
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    step = run(config, rows, Path(home, f"{name}-{number}"))
                if number:  # the first ones warm up
                    seconds[name].append(step)
    for name, taken in seconds.items():
        print(f"{name}: {statistics.median(taken):.3f} s a step ({min(taken):.3f} to {max(taken):.3f})")
    ratio = statistics.median(seconds["ours"]) / statistics.median(seconds["TRL"])
    print(f"a GRPO step takes {ratio:.3f} times as long as TRL's own (limit {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

"""Your own TRL script on whole conversations: python examples/trl_conversations.py MODEL FOLDER [STEPS]"""

import sys

from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from esc_env import load_scenarios, resolve_critic, resolve_seeker
from esc_env.conversation import Chairs
from esc_env.training.config import GRPOStage
from esc_env.training.online import Online

model, folder, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100
stage = GRPOStage(reward="env", group_size=4, batch_size=4, turns=1)  # rows per conversation; prompt_length, alpha, …
chairs = Chairs(resolve_seeker("builtin"), resolve_critic("builtin"))  # "openai/NAME" too; Rules(): T = 8, ten votes
tokenizer = AutoTokenizer.from_pretrained(model)
online = Online(load_scenarios("builtin:train"), chairs, stage, tokenizer, system="Support this person, briefly.")
arguments = GRPOConfig(
    folder, max_steps=steps, num_generations=stage.group_size, per_device_train_batch_size=stage.batch_size,
    max_completion_length=128, learning_rate=1e-5, logging_steps=1, bf16=False, report_to="none",
)  # fmt: skip
GRPOTrainer(
    model, reward_funcs=[online.reward], args=arguments, train_dataset=Dataset.from_list(online.rows),
    processing_class=tokenizer, rollout_func=online.rollout,
).train()  # fmt: skip

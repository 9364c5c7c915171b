"""Your own TRL script with the rewards of esc-env: python examples/grpo_with_esc_rewards.py MODEL FOLDER [STEPS]"""

import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from esc_env import Dialogue, Message, load_scenarios, resolve_agent
from esc_env.rewards import FutureReward, ThinkFormatReward, combine, grpo_row

model, folder, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100
system = "Support this person. First think inside <think>…</think>, then reply in one or two sentences."
rows = [
    grpo_row(scenario, Dialogue((Message("seeker", scenario.situation),)), system=system)
    for scenario in load_scenarios("builtin:train")
]
future = FutureReward(resolve_agent("builtin:template"))  # who goes on: any agent, "local:PATH" and "openai/NAME" too
reward = combine({"future": future, "format": ThinkFormatReward()}, future=1.0, format=0.5)
arguments = GRPOConfig(
    folder, max_steps=steps, num_generations=4, per_device_train_batch_size=4, temperature=1.1, beta=0.04,
    learning_rate=1e-5, max_completion_length=128, logging_steps=1, bf16=False, report_to="none",
)  # fmt: skip
GRPOTrainer(model, reward_funcs=[reward], args=arguments, train_dataset=Dataset.from_list(rows)).train()

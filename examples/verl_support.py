"""What verl needs to train a supporter on whole conversations: two data files and the name of the agent loop.

    python examples/verl_support.py FOLDER

Prints the command that trains, on eight GPUs with verl and vLLM installed. It was not run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from esc_env.integrations.conversations import rows

LOOP = """- name: esc
  _target_: esc_env.integrations.verl.SupportLoop
  _convert_: all
  settings: {seeker: builtin, critic: builtin}
"""

COMMAND = """python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo \\
    data.train_files={0}/train.jsonl data.val_files={0}/test.jsonl data.return_raw_chat=True \\
    data.train_batch_size=32 data.max_prompt_length=1024 data.max_response_length=8192 \\
    actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct actor_rollout_ref.actor.ppo_mini_batch_size=32 \\
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1 actor_rollout_ref.rollout.name=vllm \\
    actor_rollout_ref.rollout.n=8 actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1 \\
    actor_rollout_ref.rollout.agent.agent_loop_config_path={0}/loop.yaml trainer.n_gpus_per_node=8"""


def main(folder: str) -> None:
    """Write the files."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(f"builtin:{split}", agent_name="esc")]
        (place / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (place / "loop.yaml").write_text(LOOP, encoding="utf-8")
    print(COMMAND.format(place))


if __name__ == "__main__":
    main(sys.argv[1])

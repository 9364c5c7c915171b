"""Emotional support in verifiers: this file is the environment, and run as a script it evaluates a served model.

    PYTHONPATH=examples vf-eval esc-support -m MODEL --client.base-url URL --no-push
    python examples/esc_support.py MODEL URL

Needs `pip install 'esc-env[verifiers]'`.
"""

import asyncio
import sys

import verifiers.v1 as vf

from esc_env.integrations.verifiers import PUBLISHED, Chat, Support, SupportTasks, load_environment

__all__ = ["Chat", "Support", "SupportTasks"]


async def main(model: str, url: str) -> None:
    """Hold the first four conversations of `esc eval`, and print what came of them."""
    env = load_environment(taskset={"scenarios": "builtin:test"})
    asked = vf.ModelContext(client=vf.EvalClientConfig(base_url=url), model=model, sampling=PUBLISHED)
    async with env.serving():
        episodes = await asyncio.gather(*(env.run_episode(task, asked) for task in env.taskset.take(4)))
    for trace in (trace for episode in episodes for trace in episode.traces):
        print(trace.task.data.scenario, f"score {trace.reward:+.2f}", trace.metrics, trace.stop_condition)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

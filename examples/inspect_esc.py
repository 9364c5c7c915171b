"""Emotional support in Inspect: the first four conversations of `esc eval`, with a served model.

    python examples/inspect_esc.py openai-api/vllm/MODEL URL

Needs `pip install 'esc-env[inspect]'`. `inspect view` shows the conversations, and
`inspect eval esc_env/esconv --model openai/gpt-4o` holds all of them without this file.
"""

import sys

from inspect_ai import eval as evaluate

from esc_env.integrations.inspect import esconv

if __name__ == "__main__":
    (log,) = evaluate(esconv(), model=sys.argv[1], model_base_url=sys.argv[2], limit=4, display="plain")
    print(log.status, log.location, {score.name: score.metrics for score in log.results.scores} if log.results else "")

"""python benchmarks/model_costs.py

What a conversation with chat models costs, by prompting style: the table of docs/costs.md. No model is called: a fake
one (`esc_env.evaluation.runs.plan`) answers with texts of typical length, in a conversation that goes on for all T = 8
turns. A token is counted as four characters, which is about right for English; the dialogue's own length decides most.
"""

from __future__ import annotations

from esc_env.agents.chat import STYLES
from esc_env.chairs.critics import CriticMode
from esc_env.data.datasets import load_scenarios
from esc_env.evaluation.pages.markdown import table
from esc_env.evaluation.runs.plan import measure


def main() -> None:
    """Print the tables."""
    titles = ("requests", "prompt tokens", "of them from a prefix cache", "completion tokens")
    styles = [(f"`{name}`", style.requests, *_cells(name, "supporter")) for name, style in STYLES.items()]
    chairs = [
        ("seeker", *_cells("standard", "seeker")), ("critic, ten votes", *_cells("standard", "critic")),
        ("critic, log-probabilities", *_cells("standard", "critic", "logprobs")),
    ]  # fmt: skip
    print("\n".join([*table(("style", "requests a turn", *titles), styles), "", *table(("chair", *titles), chairs)]))


def _cells(style: str, chair: str, mode: CriticMode = "votes") -> tuple[object, ...]:
    spent = measure(load_scenarios("builtin:test")[0], style=style, mode=mode)[chair]
    return spent.requests, f"{spent.prompt_tokens:,}", f"{spent.cached:.0%}", f"{spent.completion_tokens:,}"


if __name__ == "__main__":
    main()

"""python benchmarks/million.py

What a million conversations take, on paper: the tables of docs/scale.md. A policy of 7B is the supporter, a model of
72B seeker and critic, on H100s of one's own. Nothing is asked of either. Requests and tokens are counted as in
docs/costs.md, in conversations that go on for all T = 8 turns; a record is written and weighed. GPU hours follow from
what the GPU and the models are, and from three assumptions of ours: `REACHED`, `BATCH`, and texts of typical length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esc_env import Scenario
from esc_env.agents.chat import ChatAgent
from esc_env.background import run
from esc_env.chairs.critics import LLMCritic
from esc_env.chairs.seekers import LLMSeeker
from esc_env.conversation import Chairs, converse
from esc_env.data.datasets import load_scenarios
from esc_env.evaluation.pages.markdown import table
from esc_env.evaluation.runs.plan import SEEKER, SUPPORTER, Spent, measure
from esc_env.records import record_line
from esc_env.rules import Rules
from esc_env.testing import FakeChatModel

MILLION = 1_000_000
FLOPS, BANDWIDTH = 989e12, 3.35e12
"""Of one H100 SXM: bf16 operations and bytes read a second. *Source:* NVIDIA's data sheet."""
REACHED = 0.4
"""Share of both that is reached. Ours: servers that are full reach .3 to .6."""
BATCH = 128
"""Answers that a copy of a model writes at the same time. Ours."""


@dataclass(frozen=True)
class Weights:
    """A model in bf16: its parameters, and the bytes that one token takes in the KV cache."""

    name: str
    parameters: float
    cache: float


SMALL, LARGE = Weights("7B", 7.6e9, 28 * 4 * 128 * 4), Weights("72B", 72.7e9, 80 * 8 * 128 * 4)
"""Layers × KV heads × 128 × 4 bytes. *Source:* Qwen2.5, arXiv 2412.15115, table 1, and the models' config.json."""


def hours(model: Weights, spent: Spent, *, cached: float) -> tuple[float, float]:
    """GPU hours of a million conversations: (reading prompts, writing answers).

    Reading is bound by arithmetic: two operations a parameter and token. Writing is bound by memory: a token of each of
    `BATCH` answers takes one pass over the weights and over the keys and values of their dialogues.
    """
    reading = 2 * model.parameters * spent.prompt_tokens * (1 - cached) / (FLOPS * REACHED)
    dialogue = spent.prompt_tokens / spent.requests
    a_pass = 2 * model.parameters + BATCH * dialogue * model.cache
    writing = spent.completion_tokens / BATCH * a_pass / (BANDWIDTH * REACHED)
    return MILLION * reading / 3600, MILLION * writing / 3600


def record(person: Scenario) -> int:
    """Bytes of a conversation of typical texts that ends unsolved."""
    seeker, supporter = (FakeChatModel("I am here. " * (length // 11)) for length in (SEEKER, SUPPORTER))
    chairs = Chairs(LLMSeeker(seeker), LLMCritic(FakeChatModel("B")), Rules())
    held = run(converse(person, ChatAgent(supporter), chairs, seed=0))
    return len(record_line("trajectory", held.to_json()).encode())


def main() -> None:
    """Print the tables."""
    person = load_scenarios("builtin:test")[0]
    spent = measure(person)
    chairs: Mapping[str, Weights] = {"supporter": SMALL, "seeker": LARGE, "critic": LARGE}
    rows, totals = [], [0.0] * 7
    for chair, model in chairs.items():
        each = spent[chair]
        read, written = hours(model, each, cached=each.cached)
        numbers = [
            each.requests, each.prompt_tokens / 1e3, each.prompt_tokens * (1 - each.cached) / 1e3,
            each.completion_tokens / 1e3, read, written, hours(model, each, cached=0)[0],
        ]  # fmt: skip
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        rows.append((f"{chair}, {model.name}", *_cells(numbers)))
    titles = (
        "", "requests, million", "tokens read, billion", "of them not from a prefix cache", "tokens written, billion",
        "GPU hours to read", "to write", "to read without a prefix cache",
    )  # fmt: skip
    rows.append(("all", *_cells(totals)))
    own, about = record(person), len(record_line("scenario", person.to_json()).encode())
    sizes = [
        ("records of conversations", f"{own:,} bytes each", f"{own / 1e3:.1f} GB"),
        ("scenarios, if each person is met once", f"{about:,} bytes each", f"{about / 1e3:.1f} GB"),
    ]
    print("\n".join([*table(titles, rows), "", *table(("on disk", "", "a million"), sizes)]))


def _cells(numbers: list[float]) -> list[str]:
    return [f"{number:.0f}" if number >= 10 else f"{number:.1f}" for number in numbers]


if __name__ == "__main__":
    main()

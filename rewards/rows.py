"""What a row of a training set holds, and how a reward reads TRL's prompts and completions back."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ParamSpec

from esc_env.dialogue import ChatMessage, Dialogue, think_block
from esc_env.errors import ScenarioError
from esc_env.scenarios import Scenario

__all__ = ["Reward", "awaited", "chat_of", "grpo_row", "raw_text", "read_column", "scenario_of"]

P = ParamSpec("P")

Text = str | Sequence[Mapping[str, Any]]
"""A prompt or a completion as TRL hands it over: plain text, or chat messages."""


Reward = Callable[..., Any]
"""What TRL calls with `prompts`, `completions`, and columns of the data set and its own as keywords: one reward per
completion, in their order, None where there is none. May be async."""


def awaited(call: Callable[P, Awaitable[Any]]) -> Callable[P, Any]:
    """An async reward, to type checkers a plain one: TRL awaits rewards, but its own `RewardFunc` does not say so."""
    return call


def chat_of(scenario: Scenario, context: Dialogue) -> list[ChatMessage]:
    """The context as every model of training sees it: alternating, beginning with `user`.

    A context that the supporter opened is preceded by the situation.
    """
    return list(context.as_chat("supporter", opening=scenario.situation))


def grpo_row(scenario: Scenario, context: Dialogue, *, seed: int = 0, system: str | None = None) -> dict[str, Any]:
    """One row of a data set for TRL's GRPOTrainer that all our rewards can read.

    Args:
        scenario: whom the context is held with.
        context: a dialogue that ends with the seeker.
        seed: of the episode the context comes from, so that simulations go on with the same person.
        system: a system message for the policy; no reward sees it.
    """
    before: list[ChatMessage] = [{"role": "system", "content": system}] if system else []
    return {
        "prompt": [*before, *chat_of(scenario, context)],
        "scenario": json.dumps(scenario.to_json(), ensure_ascii=False),
        "context": json.dumps(context.to_json(), ensure_ascii=False),
        "seed": seed,
    }


def raw_text(completion: Text) -> str:
    """What the policy wrote, think block included, from a plain or a conversational completion."""
    if isinstance(completion, str):
        return completion
    parts = []
    for message in completion:
        if message.get("role", "assistant") == "assistant":
            thought = message.get("reasoning_content")
            content = message.get("content") or ""
            parts.append(think_block(thought) + content if thought else content)
    return "\n".join(parts)


def read_column(columns: Mapping[str, Any], name: str, count: int) -> list[Any] | None:
    """A column of the data set with its JSON strings read; None if the set has no such column."""
    if columns.get(name) is None:
        return None
    values = list(columns[name])
    if len(values) != count:
        raise ScenarioError(f"column {name!r} has {len(values)} values for {count} completions")
    return [json.loads(value) if isinstance(value, str) else value for value in values]


def scenario_of(value: Any) -> Scenario:
    """A scenario from a Scenario or its JSON. Raises ScenarioError on anything else."""
    if isinstance(value, Scenario):
        return value
    if not isinstance(value, Mapping):
        raise ScenarioError(f"column 'scenario' must hold scenarios as JSON, not {value!r}; see grpo_row")
    return Scenario.from_json({name: item for name, item in value.items() if item is not None})

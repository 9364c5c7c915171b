"""python benchmarks/model_costs.py

What a conversation with chat models costs, by prompting style: the table of docs/costs.md. No model is called: a fake
one answers with texts of typical length, in a conversation that goes on for all T = 8 turns. A token is counted as four
characters, which is about right for English; the dialogue's own length decides most of it.
"""

from __future__ import annotations

from esc_env.agents.chat import STYLES, ChatAgent
from esc_env.background import run
from esc_env.chairs.critics import CriticMode, LLMCritic
from esc_env.chairs.seekers import LLMSeeker
from esc_env.conversation import Chairs, converse
from esc_env.data.datasets import load_scenarios
from esc_env.evaluation.markdown import table
from esc_env.protocols import Request
from esc_env.testing import FakeChatModel

SUPPORTER, SEEKER, NOTES = 240, 120, 600
"""Characters of a supporter's message, of a seeker's, and of thoughts, analyses and advice."""


def _text(length: int) -> str:
    return ("I see what you mean and I am still here. " * (length // 40 + 1))[:length].strip()


def _supporter(request: Request, choice: int) -> str:
    system, question = request.messages[0]["content"], request.messages[-1]["content"]
    if "<think>" in system:
        return f"<think>{_text(NOTES)}</think>{_text(SUPPORTER)}"
    if "exactly this form" in system:
        return f"Analysis: {_text(NOTES)}\nStrategy: Question\nResponse: {_text(SUPPORTER)}"
    if "promising" in question or "letter of one" in question:
        return "Question" if "promising" in question else "B"
    return _text(NOTES if "coach" in question or "Criticise" in question else SUPPORTER)


def measure(style: str, mode: CriticMode = "votes") -> dict[str, tuple[int, int, int, float]]:
    """Of one conversation, for each chair: requests, prompt tokens, completion tokens, share of repeated prefix."""
    models = {
        "supporter": FakeChatModel(_supporter),
        "seeker": FakeChatModel(_text(SEEKER)),
        "critic": FakeChatModel("B", logprobs={"B": 0.0}),
    }
    chairs = Chairs(LLMSeeker(models["seeker"]), LLMCritic(models["critic"], mode))
    person = load_scenarios("builtin:test")[0]
    trajectory = run(converse(person, ChatAgent(models["supporter"], style), chairs, seed=0))
    assert trajectory.turns == 8, "the fake critic never calls it solved"
    return {chair: _cost(chair, model) for chair, model in models.items()}


def _cost(chair: str, model: FakeChatModel) -> tuple[int, int, int, float]:
    prompts: list[str] = []
    written = repeated = 0
    for call in model.calls:
        prompt = "\n".join(message["content"] for message in call.messages)
        repeated += max((_common(prompt, earlier) for earlier in prompts), default=0)
        prompts.append(prompt)
        if chair == "supporter":
            written += sum(len(_supporter(call, choice)) for choice in range(call.n))
        else:
            written += SEEKER if chair == "seeker" else 4 * call.n
    read = sum(map(len, prompts))
    return len(prompts), read // 4, written // 4, repeated / read


def _common(one: str, other: str) -> int:
    for place, (first, second) in enumerate(zip(one, other, strict=False)):
        if first != second:
            return place
    return min(len(one), len(other))


def main() -> None:
    """Print the tables."""
    titles = ("requests", "prompt tokens", "of them a repeated prefix", "completion tokens")
    styles = [(f"`{name}`", style.requests, *_cells(name, "supporter")) for name, style in STYLES.items()]
    chairs = [
        ("seeker", *_cells("standard", "seeker")), ("critic, ten votes", *_cells("standard", "critic")),
        ("critic, log-probabilities", *_cells("standard", "critic", "logprobs")),
    ]  # fmt: skip
    print("\n".join([*table(("style", "requests a turn", *titles), styles), "", *table(("chair", *titles), chairs)]))


def _cells(style: str, chair: str, mode: CriticMode = "votes") -> tuple[object, ...]:
    requests, read, written, repeated = measure(style, mode)[chair]
    return requests, f"{read:,}", f"{repeated:.0%}", f"{written:,}"


if __name__ == "__main__":
    main()

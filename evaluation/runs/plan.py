"""How many scenarios and trials an answer takes, and what they cost, before anything is run.

The numbers of scenarios follow from the intervals that a report prints (`statistics/intervals.py`), for rates
near one half, where they are widest. Three things must be assumed: how alike trials of one scenario are (the intraclass
correlation, ICC), for differences how much what is hard for one agent is hard for the other, and the length of texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from esc_env.agents.chat import ChatAgent
from esc_env.background import run
from esc_env.chairs.critics import CriticMode, LLMCritic
from esc_env.chairs.seekers import LLMSeeker
from esc_env.conversation import Chairs, converse
from esc_env.errors import SpecError
from esc_env.evaluation.statistics.intervals import POWER, Z
from esc_env.models.budget import price_of
from esc_env.protocols import Request, Usage
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.specs import parse_spec
from esc_env.testing.models import FakeChatModel

__all__ = ["ICC", "TOGETHER", "TRIALS", "Design", "Spent", "designs", "expected_usage", "measure"]

ICC = 0.5
"""How alike trials of one scenario are assumed to be, 0 to 1. Ours: agents of `esc validate gaming` that solve some
have .1 to .7."""
TOGETHER = 0.5
"""Assumed correlation, over scenarios, of two agents' chances to solve them. Ours."""
TRIALS = (1, 2, 3, 5, 10)
"""The numbers of trials that a plan shows."""

SUPPORTER, SEEKER, NOTES = 240, 120, 600
"""Characters of a supporter's message, of a seeker's, and of thoughts, analyses and advice. Typical ones; ours."""
TOKEN = 4
"""Characters that are counted as one token: about right for English."""
BLOCK = 16
"""Tokens that a prefix cache keeps or misses together. *Source:* vLLM's automatic prefix caching."""


@dataclass(frozen=True, slots=True)
class Design:
    """How much to run: conversations are scenarios × trials, for each agent."""

    trials: int
    scenarios: int

    @property
    def conversations(self) -> int:
        """Of one agent."""
        return self.trials * self.scenarios


def designs(
    *, precision: float | None = None, difference: float | None = None, icc: float = ICC, trials: Iterable[int] = TRIALS
) -> list[Design]:
    """The fewest scenarios for each number of trials.

    Args:
        precision: a wanted half-width of the 95 % interval of a success rate, in (0, 0.5).
        difference: or a wanted difference of two agents' rates, in (0, 1), to be shown with a power of 80 %.
        icc: how alike trials of one scenario are, in [0, 1].
        trials: per scenario.

    Raises:
        SpecError: neither or both are wanted, or a number is out of range.
    """
    if (precision is None) == (difference is None):
        raise SpecError("a plan is for either a precision or a difference: give --precision 5 or --difference 10")
    if precision is not None and not 0 < precision < 0.5:
        raise SpecError(f"precision must lie between 0 and 50 points, not {100 * precision:g}")
    if difference is not None and not 0 < difference < 1:
        raise SpecError(f"difference must lie between 0 and 100 points, not {100 * difference:g}")
    if not 0 <= icc <= 1:
        raise SpecError(f"icc must lie in [0, 1], not {icc:g}")
    made = []
    for each in trials:
        alone = (1 - icc) / each  # of the variance of a scenario's mean, what its own trials average out
        if precision is not None:
            needed = (Z**2 / (4 * precision**2) - Z**2) * (icc + alone)
        else:
            assert difference is not None
            needed = (Z + POWER) ** 2 * 0.5 * (icc * (1 - TOGETHER) + alone) / difference**2
        made.append(Design(each, max(1, math.ceil(needed - 1e-9))))
    return made


# --- what it costs --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spent:
    """What one chair asks of its model in a conversation that goes on for all T turns.

    Attributes:
        requests, prompt_tokens, completion_tokens: a token is counted as four characters.
        cached: share of the prompt tokens that a server's prefix cache serves, in [0, 1].
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached: float


def measure(
    person: Scenario, rules: Rules | None = None, style: str = "standard", mode: CriticMode = "votes"
) -> dict[str, Spent]:
    """Hold a conversation with fake models, whose texts have typical lengths, in all three chairs.

    Each model's server has a prefix cache, and has held a conversation with somebody else before.
    """
    answers: dict[str, Callable[[Request, int], str]] = {
        "supporter": _supporter,
        "seeker": lambda request, _: _text(SEEKER, request),
        "critic": lambda request, _: "B",
    }
    models = {chair: FakeChatModel(answer, logprobs={"B": 0.0}) for chair, answer in answers.items()}
    chairs = Chairs(LLMSeeker(models["seeker"]), LLMCritic(models["critic"], mode), rules or Rules())
    agent = ChatAgent(models["supporter"], style)
    run(converse(replace(person, situation=f"Before. {person.situation}"), agent, chairs, seed=1))
    before = {chair: len(model.calls) for chair, model in models.items()}
    run(converse(person, agent, chairs, seed=0))
    return {chair: _spent(model.calls, answers[chair], before[chair]) for chair, model in models.items()}


def expected_usage(
    chairs: Mapping[str, str], person: Scenario, rules: Rules, mode: CriticMode = "votes"
) -> Usage | None:
    """What one conversation asks of models at most, solved in none of its T turns.

    Args:
        chairs: the strings of supporter, seeker and critic.
        person: whom it is about.
        rules: T and votes.
        mode: of the critic.

    Returns:
        None where one of them is a `python:` object, which may ask whatever it likes.
    """
    specs = {chair: parse_spec(text) for chair, text in chairs.items()}
    if any(spec.kind == "python" for spec in specs.values()):
        return None
    asked = {chair: spec for chair, spec in specs.items() if spec.kind in ("model", "local")}
    if not asked:
        return Usage()
    spent = measure(person, rules, specs["supporter"].style or "standard", mode)
    total = Usage()
    for chair, spec in asked.items():
        each = spent[chair]
        usage = Usage(each.requests, each.prompt_tokens, each.completion_tokens, cost=None)
        provider, _, name = spec.name.partition("/")
        price = price_of(provider, name) if spec.kind == "model" and not spec.url else None
        total += replace(usage, cost=price.of(usage)) if price else usage
    return total


def _text(length: int, request: Request) -> str:
    """No two requests are answered alike."""
    return (f"{request.seed}: " + "I see what you mean and I am still here. " * (length // 40 + 1))[:length].strip()


def _supporter(request: Request, choice: int) -> str:
    system, question = request.messages[0]["content"], request.messages[-1]["content"]
    if "<think>" in system:
        return f"<think>{_text(NOTES, request)}</think>{_text(SUPPORTER, request)}"
    if "exactly this form" in system:
        return f"Analysis: {_text(NOTES, request)}\nStrategy: Question\nResponse: {_text(SUPPORTER, request)}"
    if "promising" in question or "letter of one" in question:
        return "Question" if "promising" in question else "B"
    length = NOTES if "pieces of advice" in question or "Criticise" in question else SUPPORTER
    return _text(SEEKER if "seeker would most likely" in question else length, request)


def _spent(calls: Sequence[Request], answer: Callable[[Request, int], str], before: int) -> Spent:
    """Of all calls but those `before`, which have only filled the cache.

    The cache keeps whole blocks of what the model has read and written, each known by all that stands before it.
    """
    block, kept = BLOCK * TOKEN, set[str]()
    read = written = served = 0
    for number, call in enumerate(calls):
        prompt = "".join(message["content"] + "\n" for message in call.messages)
        texts = [answer(call, choice) for choice in range(call.n)]
        if number >= before:
            read += len(prompt)
            written += sum(math.ceil(len(text) / TOKEN) for text in texts)
            begins = (prompt[:end] for end in range(block, len(prompt), block))
            served += block * sum(1 for _ in takewhile(kept.__contains__, begins))
        for text in texts:
            kept.update((prompt + text)[:end] for end in range(block, len(prompt + text) + 1, block))
    return Spent(len(calls) - before, read // TOKEN, written, served / read)

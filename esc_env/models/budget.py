"""What models are asked, what they cost, and a limit on it.

One ledger per process counts every call that is under way and every completion that comes back, whoever asked for it. A
`Budget` is a limit on that ledger: so it holds for all chairs, envs and runs of a process together, and a larger budget
goes on where a smaller one stopped. Processes that carry out one command have a purse together (`sharing.py`). Requests
in flight when it is reached are still paid; no further one is made. Failed requests report no usage and are not
counted.
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from esc_env.errors import BudgetExceeded, ModelUnavailable, SpecError
from esc_env.models.layer import Layer
from esc_env.models.sharing import share
from esc_env.protocols import Completion, Request, Usage

__all__ = ["Budget", "Budgeted", "Ledger", "Price", "enter", "known_prices", "ledger", "price_of", "spent", "unpriced"]

_AMOUNT = re.compile(
    r"(?P<usd>\$)?\s*(?P<number>\d[\d,_]*(?:\.\d+)?|\.\d+)\s*(?P<scale>[kKmM])?\s*(?P<unit>\$|[a-zA-Z]+)?"
)
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6}


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on what this process, or those that have one purse with it, spend on models.

    Attributes:
        amount: above 0.
        unit: US dollars, or tokens (prompt and completion together).
    """

    amount: float
    unit: Literal["USD", "tokens"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that a person wrote: "5 USD", "$0.50", "200k tokens", "2M tokens".

        Raises:
            SpecError: when it is none.
        """
        found = _AMOUNT.fullmatch(text.strip())
        if found:
            unit = ("usd" if found["usd"] else "") + (found["unit"] or "").lower().replace("$", "usd")
            amount = float(re.sub("[,_]", "", found["number"])) * _SCALES[(found["scale"] or "").lower()]
            if amount > 0 and unit in ("usd", "dollars", "dollar"):
                return cls(amount, "USD")
            if amount > 0 and unit in ("tokens", "token"):
                return cls(amount, "tokens")
        raise SpecError(f"budget {text!r}: write an amount above 0 with its unit, such as '5 USD' or '200k tokens'")

    def check(self, total: Usage) -> None:
        """Raise BudgetExceeded where so much has spent it."""
        used = total.cost or 0.0 if self.unit == "USD" else total.prompt_tokens + total.completion_tokens
        if used >= self.amount:
            raise BudgetExceeded(
                f"the budget of {self} is spent: {_shown(used, self.unit)} in {total.requests:,} requests. "
                "Everything finished is kept; the same command with a larger --budget (budget=…) goes on"
            )

    def __str__(self) -> str:
        return _shown(self.amount, self.unit)


def _shown(amount: float, unit: str) -> str:
    return f"{amount:,.0f} tokens" if unit == "tokens" else f"{amount:{',.2f' if amount >= 0.01 else 'g'}} USD"


@dataclass(frozen=True, slots=True)
class Ledger:
    """What this process has asked of models so far. Answers from a cassette cost nothing and are not in it.

    Attributes:
        usage: of the calls that were answered; those of unknown price add nothing to `cost`.
        flying: calls under way now, waiting for a place or for another attempt included.
        calls: calls that were answered.
        unpriced: how many of them have no known price.
        seconds: how long these took, added up: as the model measured it, else as long as was waited.
        answers: the choices they gave, those of one asked-for token (log-probabilities) left out.
        cut: how many of these choices the limit on tokens cut.
    """

    usage: Usage = field(default_factory=Usage)
    flying: int = 0
    calls: int = 0
    unpriced: int = 0
    seconds: float = 0.0
    answers: int = 0
    cut: int = 0

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(
            self.usage + other.usage,
            self.flying + other.flying,
            self.calls + other.calls,
            self.unpriced + other.unpriced,
            self.seconds + other.seconds,
            self.answers + other.answers,
            self.cut + other.cut,
        )

    def since(self, before: Ledger) -> Ledger:
        """What came after `before`; `flying` is as it is now."""
        usage, old = self.usage, before.usage
        return Ledger(
            Usage(
                usage.requests - old.requests,
                usage.prompt_tokens - old.prompt_tokens,
                usage.completion_tokens - old.completion_tokens,
                (usage.cost or 0.0) - (old.cost or 0.0),
            ),
            self.flying,
            self.calls - before.calls,
            self.unpriced - before.unpriced,
            self.seconds - before.seconds,
            self.answers - before.answers,
            self.cut - before.cut,
        )


_lock = threading.Lock()
_ledger = Ledger()


def ledger() -> Ledger:
    """What this process has asked of models so far."""
    return _ledger


def spent() -> Usage:
    """What this process has spent on models so far. Calls of unknown price add nothing to `cost`."""
    return _ledger.usage


def enter(made: Ledger) -> None:
    """Count calls that were made in this process, or elsewhere for it."""
    global _ledger
    with _lock:
        _ledger += made


def _answered(completion: Completion, usage: Usage, seconds: float, distribution: bool) -> Ledger:
    """One call; that of a `distribution` is one token, and cut by intent."""
    return Ledger(
        replace(usage, cost=usage.cost or 0.0),
        calls=1,
        unpriced=int(usage.cost is None),
        seconds=completion.latency or seconds,
        answers=0 if distribution else len(completion.texts),
        cut=0 if distribution else completion.finish_reasons.count("length"),
    )


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token of a prompt and of a completion, at list price (no discount for cached prompts)."""

    prompt: float
    completion: float

    def of(self, usage: Usage) -> float:
        """US dollars."""
        return usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion


def price_of(provider: str, name: str) -> Price | None:
    """What a model costs, where LiteLLM's table, as installed, says so; None (unknown) otherwise, never $0."""
    table = _table()
    entry = table.get(f"{provider}/{name}") or table.get(name) or {}
    return _price(entry) if str(entry.get("litellm_provider", "")).startswith(provider) else None


def known_prices() -> int:
    """Of how many models the price is known."""
    return sum(_price(entry) is not None for entry in _table().values())


def _price(entry: Mapping[str, Any]) -> Price | None:
    prompt, completion = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    if not isinstance(prompt, (int, float)) or not isinstance(completion, (int, float)) or not prompt + completion:
        return None
    return Price(float(prompt), float(completion))


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    """LiteLLM's cost map, read from its package without importing it (which takes seconds)."""
    package = importlib.util.find_spec("litellm")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder, "model_prices_and_context_window_backup.json")
        if path.is_file():
            table: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
            return table
    return {}


@dataclass(frozen=True)
class Budgeted(Layer):
    """A chat model whose completions are priced and counted, and which stops once the budget is spent.

    Attributes:
        model: whom to ask.
        budget: the limit; None to count only.
        price: what its tokens cost; None where unknown. A cost that `model` reports itself counts before it.
        who: how messages call the model.
    """

    budget: Budget | None = None
    price: Price | None = None
    who: str = "the model"

    async def complete(self, request: Request) -> Completion:
        """What the model says. Raises BudgetExceeded, before any request, once the budget is spent."""
        purse = share().purse
        if self.budget:
            self.budget.check(await purse.spent() if purse else spent())
        enter(Ledger(flying=1))
        begun = time.monotonic()
        try:
            completion = await self.model.complete(request)
        finally:
            enter(Ledger(flying=-1))
        usage = completion.usage
        if usage.cost is None and self.price:
            usage = replace(usage, cost=self.price.of(usage))
        made = _answered(completion, usage, time.monotonic() - begun, request.logprobs is not None)
        enter(made)
        if purse:
            purse.enter(made)
        if self.budget and self.budget.unit == "tokens" and not usage.prompt_tokens + usage.completion_tokens:
            raise ModelUnavailable(
                f"{self.who} does not report how many tokens it used, so a budget in tokens cannot be kept; "
                "leave --budget (budget=…) out"
            )
        if self.budget and self.budget.unit == "USD" and usage.cost is None:
            raise ModelUnavailable(f"{self.who}: {unpriced(self.budget)}")
        return completion if usage is completion.usage else replace(completion, usage=usage)


def unpriced(budget: Budget) -> str:
    """Why a dollar budget cannot be kept for a model of unknown price, and what to type."""
    return f"its price is unknown, so a budget of {budget} cannot be kept; give it in tokens, such as '2M tokens'"

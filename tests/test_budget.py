"""Budgets: everything is counted, nothing is $0 by accident, and spending stops cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_env.errors import BudgetExceeded, ModelUnavailable, SpecError
from esc_env.models import budget as module
from esc_env.models.budget import Budget, Budgeted, Ledger, Price, ledger, price_of, spent
from esc_env.models.sharing import Share
from esc_env.protocols import Completion, Request, Usage
from esc_env.testing import FakeChatModel, check_chat_model

CHAT: Any = [{"role": "user", "content": "one two three"}]


@pytest.fixture(autouse=True)
def fresh_ledger(monkeypatch):
    """A process that has spent nothing yet."""
    monkeypatch.setattr(module, "_ledger", module.Ledger())


class Priceless:
    """Answers ten tokens for ten, at a cost it does not know."""

    identity = {"provider": "any", "name": "any"}  # noqa: RUF012

    def __init__(self, usage=None):
        self.usage = usage or Usage(1, 10, 10, None)

    async def complete(self, request):
        return Completion(("ok",), ("stop",), self.usage)


def ask(model):
    return asyncio.run(model.complete(Request(CHAT)))


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("5 USD", 5, "USD"),
        ("5usd", 5, "USD"),
        ("$5", 5, "USD"),
        ("$0.50", 0.5, "USD"),
        ("2 dollars", 2, "USD"),
        ("200k tokens", 200_000, "tokens"),
        ("2M tokens", 2_000_000, "tokens"),
        ("1,500,000 tokens", 1_500_000, "tokens"),
    ],
)
def test_budgets_are_read_as_people_write_them(text, amount, unit):
    assert Budget.parse(text) == Budget(amount, unit)
    assert Budget.parse(str(Budget.parse(text))) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["", "5", "0 USD", "-1 USD", "five USD", "5 EUR", "$5 tokens", "k tokens", "nan USD"])
def test_what_is_no_budget_is_refused_with_an_example(text):
    with pytest.raises(SpecError, match="'5 USD' or '200k tokens'"):
        Budget.parse(text)


@given(st.text(max_size=20))
def test_reading_a_budget_gives_one_above_zero_or_a_spec_error(text):
    with contextlib.suppress(SpecError):
        assert Budget.parse(text).amount > 0


def test_a_spent_budget_stops_before_the_next_request():
    model = FakeChatModel("four five")
    limited = Budgeted(model, Budget.parse("11 tokens"))
    for _ in range(3):
        ask(limited)
    with pytest.raises(BudgetExceeded, match=r"11 tokens is spent: 15 tokens in 3 requests.*larger --budget"):
        ask(limited)
    assert len(model.calls) == 3


def test_all_models_of_a_process_spend_from_one_budget():
    budget = Budget.parse("10 tokens")
    ask(Budgeted(FakeChatModel("four five"), budget))
    ask(Budgeted(FakeChatModel("four five"), budget))
    with pytest.raises(BudgetExceeded):
        ask(Budgeted(FakeChatModel("four five"), budget))
    ask(Budgeted(FakeChatModel("four five"), Budget.parse("20 tokens")))  # a larger one goes on
    ask(Budgeted(FakeChatModel("four five")))
    assert spent() == Usage(4, 12, 8, 0.0)


def test_processes_with_one_purse_spend_from_one_budget(monkeypatch):
    class Together:
        made = Ledger(Usage(7, 50, 50))

        async def spent(self):
            return self.made.usage

        def enter(self, made):
            self.made += made

    purse = Together()
    monkeypatch.setattr("esc_env.models.sharing._share", Share(2, purse))
    limited = Budgeted(FakeChatModel("four five"), Budget.parse("105 tokens"))
    ask(limited)
    assert purse.made.calls == 1
    with pytest.raises(BudgetExceeded, match="105 tokens is spent: 105 tokens in 8 requests"):
        ask(limited)


def test_dollars_are_counted_by_price():
    limited = Budgeted(Priceless(), Budget.parse("0.5 USD"), Price(prompt=0.01, completion=0.02))
    assert ask(limited).usage.cost == pytest.approx(0.3)
    assert ask(limited).usage.cost == pytest.approx(0.3)
    with pytest.raises(BudgetExceeded, match=r"0\.50 USD is spent: 0\.60 USD in 2 requests"):
        ask(limited)


def test_a_cost_the_model_reports_counts_before_its_list_price():
    assert ask(Budgeted(Priceless(Usage(1, 10, 10, 0.125)), None, Price(1, 1))).usage.cost == 0.125


def test_an_unknown_price_stays_unknown_and_never_becomes_zero():
    assert ask(Budgeted(Priceless())).usage.cost is None


def test_a_budget_that_cannot_be_kept_is_an_error_that_names_the_model():
    with pytest.raises(ModelUnavailable, match=r"mine: its price is unknown.*in tokens"):
        ask(Budgeted(Priceless(), Budget.parse("5 USD"), who="mine"))
    with pytest.raises(ModelUnavailable, match=r"mine does not report how many tokens"):
        ask(Budgeted(Priceless(Usage(1)), Budget.parse("50 tokens"), who="mine"))


def test_the_ledger_knows_what_is_in_flight_how_long_calls_take_and_how_many_answers_are_cut():
    class Cut(Priceless):
        async def complete(self, request):
            seen.append(ledger().flying)
            return Completion(("I", "You"), ("length", "stop"), self.usage, latency=2.5)

    class Fails(Priceless):
        async def complete(self, request):
            seen.append(ledger().flying)
            raise ModelUnavailable("gone")

    seen: list[int] = []
    before = ledger()
    model = Budgeted(Cut())
    ask(model)
    with pytest.raises(ModelUnavailable):
        ask(Budgeted(Fails()))
    asyncio.run(model.complete(Request(CHAT, logprobs=20)))
    made = ledger().since(before)
    assert seen == [1, 1, 1]
    assert (made.flying, made.calls, made.unpriced, made.seconds) == (0, 2, 2, 5.0)
    assert (made.answers, made.cut) == (2, 1), "one token asked for is none cut"
    assert made.usage == Usage(2, 20, 20, 0.0)


def test_budgeted_models_keep_the_contract_of_chat_models():
    check_chat_model(Budgeted(FakeChatModel(), Budget.parse("1k tokens")))


def test_prices_come_from_litellm_s_table_and_only_from_there(tmp_path, monkeypatch):
    table = {
        "gpt-9": {"input_cost_per_token": 2e-6, "output_cost_per_token": 8e-6, "litellm_provider": "openai"},
        "gemini/pro": {"input_cost_per_token": 1e-6, "output_cost_per_token": 3e-6, "litellm_provider": "gemini"},
        "ollama/llama": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "litellm_provider": "ollama"},
        "per-second": {"input_cost_per_second": 1.0, "litellm_provider": "openai"},
    }
    package = tmp_path / "litellm"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('prices are read without importing litellm')")
    (package / "model_prices_and_context_window_backup.json").write_text(json.dumps(table))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "litellm", raising=False)
    module._table.cache_clear()
    try:
        assert price_of("openai", "gpt-9") == Price(2e-6, 8e-6)
        assert price_of("gemini", "pro") == Price(1e-6, 3e-6)
        assert price_of("ollama", "llama") is None, "a local model's price is unknown, not $0"
        assert price_of("openai", "per-second") is None
        assert price_of("anthropic", "gpt-9") is None, "another provider's model of that name"
        assert price_of("openai", "gpt-10") is None
    finally:
        module._table.cache_clear()

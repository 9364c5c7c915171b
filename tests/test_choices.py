"""Servers that refuse n: they are asked for what they take, then for the rest, and it is said once."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="needs the extra llm")

from esc_env import Rules
from esc_env.cli import main
from esc_env.dialogue import ChatMessage
from esc_env.errors import FewerChoicesWarning, ModelError, ModelUnavailable
from esc_env.evaluation import evaluate
from esc_env.models.choices import Choices
from esc_env.protocols import Completion, Request
from esc_env.testing import FakeChatModel, FakeServer

HELLO: list[ChatMessage] = [{"role": "user", "content": "Hello."}]

REFUSALS = {
    "llama.cpp": (400, "Field 'n': Value must be between 1 <= value <= 4, but got 10", 4),
    "llama.cpp before": (500, "Only one completion choice is allowed", 1),
    "Groq": (400, "'n' : number must be at most 1", 1),
    "DeepSeek": (400, "Invalid n value (currently only n = 1 is supported)", 1),
    "Gemini": (400, "Multiple candidates is not enabled for this model", 1),
    "Gemini's older ones": (400, "Only one candidate can be specified in the current model", 1),
    "OpenAI": (400, "Invalid 'n': integer above maximum value. Expected a value <= 8, but got 10 instead.", 8),
    "vLLM when greedy": (400, "n must be 1 when using greedy sampling, got 10.", 1),
    "FastAPI": (422, "[{'loc': ['body', 'n'], 'msg': 'Input should be less than or equal to 2', 'input': 10}]", 2),
    "gateways": (400, "n must be 1; multiple completions are not supported", 1),
    "others": (400, "Unsupported parameter: 'n'.", 1),
    "one that names a number it does not take either": (400, "n > 3 is refused; it must be at most 5", 3),
}


class Refusing(FakeChatModel):
    """Refuses more than `most` choices a request in somebody's words."""

    def __init__(self, status: int, told: str, most: int) -> None:
        super().__init__(lambda call, choice: f"{call.seed}/{choice}")
        self.status, self.told, self.most = status, told, most

    async def complete(self, request: Request) -> Completion:
        answer = await super().complete(request)
        if request.n > self.most:
            raise ModelUnavailable(f"fake/m: HTTP {self.status}: {self.told}", status=self.status)
        return answer

    @property
    def answered(self) -> list[Request]:
        return [call for call in self.calls if call.n <= self.most]


def complete(model: Choices, n: int) -> Completion:
    return asyncio.run(model.complete(Request(HELLO, n=n, seed=3, temperature=1.1)))


@pytest.mark.parametrize("server", REFUSALS)
def test_a_server_that_refuses_n_is_asked_for_what_it_takes_then_for_the_rest(server: str) -> None:
    refusing = Refusing(*REFUSALS[server])
    model = Choices(refusing)
    with pytest.warns(FewerChoicesWarning, match=r"fake/fake gives at most \d"):
        first = complete(model, 10)
    asked = len(refusing.calls)
    with warnings.catch_warnings(action="error"):
        again = complete(model, 10)
    assert len(first.texts) == 10 == len(set(first.texts)), "no vote comes back twice"
    assert first.texts == again.texts, "the seeds are the same whether or not it is known what the server takes"
    later = refusing.calls[asked:]
    assert sum(call.n for call in later) == 10
    assert all(call.n <= refusing.most for call in later), "a refusal is remembered"


def test_what_was_refused_for_something_else_is_told_as_it_was() -> None:
    refusing = Refusing(400, "top_n of 10 is not supported with this many choices", 0)
    with warnings.catch_warnings(action="error"), pytest.raises(ModelError, match="top_n of 10"):
        complete(Choices(refusing), 10)
    assert [call.n for call in refusing.calls] == [10, 1]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "Set 'n' to a key"),
        (429, "n is too large for your tier"),
        (400, "Temperature cannot be 3"),
        (400, "can't parse\\n\\nthis"),
        (400, "n=10 of them exceed the available context size (2048 tokens)"),
    ],
)
def test_only_a_refusal_of_choices_is_asked_again_with_fewer(status: int, told: str) -> None:
    refusing = Refusing(status, told, 0)
    with pytest.raises(ModelError):
        complete(Choices(refusing), 10)
    assert len(refusing.calls) == 1


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer("C", max_n=8) as server:
        yield server


def test_esc_says_once_what_a_server_takes(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets its own
    command = f"eval --agent builtin:template --agent builtin:parrot --critic openai/o@{server.url} --limit 3"
    with warnings.catch_warnings(action="default", category=FewerChoicesWarning), pytest.raises(SystemExit) as ended:
        main(command.split())
    told = capsys.readouterr()
    assert ended.value.code == 0
    assert told.err.count("esc: note: openai/o gives at most 8 of the choices asked for (n) in one request") == 1
    assert "Field 'n'" not in told.out + told.err


def test_a_run_with_a_critic_behind_a_server_of_eight_slots_ends_without_errors(
    server: FakeServer, tmp_path: Path
) -> None:
    with pytest.warns(FewerChoicesWarning, match="openai/votes gives at most 8") as told:
        report = evaluate(
            "builtin:template", critic=f"openai/votes@{server.url}", rules=Rules(max_turns=3), limit=2, concurrency=1,
            out=tmp_path / "run",
        )  # fmt: skip
    assert len(told) == 1, "it is said once"
    assert (report.completed, report.errors) == (2, 0)
    asked = [request.body.get("n", 1) for request in server.requests]
    assert asked.count(10) == 1, "the refusal is remembered"
    assert sum(count for count in asked if 1 < count <= 8) >= 2 * 3 * 10, "ten votes a turn"

"""Whatever we refuse of what we were given is one kind of error, and one line of the command line."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from esc_env import Message, Rules
from esc_env.cli import main
from esc_env.errors import ActionError, ConfigError, ScenarioError, SpecError
from esc_env.evaluation import evaluate

ROOT = Path(__file__).parents[1]
WRAPPED = {  # told of somebody's function or answer: they reach the user as a ChairError, a SupporterFailure, a model's
    ("agents/callables.py", "RuntimeError"), ("esc_env/protocols.py", "TypeError"),
    ("esc_env/models/wire.py", "TypeError"), ("training/grpo.py", "RuntimeError"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [ActionError, ConfigError, ScenarioError, SpecError])
def test_a_refusal_is_a_spec_error_and_a_value_error(kind):
    assert issubclass(kind, SpecError)
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Rules(max_turns=0),
        lambda: Message("critic", "Hm."),  # type: ignore[arg-type]
        lambda: evaluate("builtin:skilled", trials=0),
        lambda: evaluate("builtin:skilled", budgett="5 USD"),  # type: ignore[call-arg]
        lambda: evaluate("builtin:skiled"),
    ],
)
def test_a_wrong_argument_is_a_spec_error_whatever_is_wrong_with_it(call):
    with pytest.raises(SpecError):
        call()


def test_nothing_is_refused_by_an_error_of_another_kind():
    found = {
        (str(path.relative_to(ROOT)), node.exc.func.id)
        for folder in ("esc_env", "agents", "rewards", "evaluation", "training")
        for path in (ROOT / folder).rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }
    plain = {(path, name) for path, name in found if name in ("ValueError", "TypeError", "KeyError", "RuntimeError")}
    assert plain == WRAPPED


@pytest.mark.parametrize("arguments", [["eval", "-a", "builtin:skiled"], ["eval", "--threshold", "2"]])
def test_the_command_line_tells_it_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert len(capsys.readouterr().err.splitlines()) == 1

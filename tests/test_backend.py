"""What a backend may rely on: work that went through a pickle is the same work, and limits are shared."""

from __future__ import annotations

import pickle
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import OddOnes, bank

from esc_env import Rules
from esc_env.backend import HERE
from esc_env.cli import main
from esc_env.evaluation import evaluate
from esc_env.evaluation.judges import judge_runs
from esc_env.testing import ScriptedSeeker
from esc_env.training.collect import collect

SEEKER = ScriptedSeeker(["I see.", "Maybe."])
USUAL: Any = {"seeker": SEEKER, "critic": OddOnes(), "rules": Rules(max_turns=3)}


class Pickled:
    """A backend that is here, and through which only pickles go."""

    def __init__(self) -> None:
        self.items = 0

    def check(self, settings: Any) -> None:
        pass

    @asynccontextmanager
    async def doing(self, job: Any, at_once: int) -> AsyncIterator[Any]:
        sent = pickle.dumps(job)

        async def there(item: Any, told: Any, cut: Any) -> Any:
            self.items += 1
            return pickle.loads(pickle.dumps(await pickle.loads(sent)(pickle.loads(pickle.dumps(item)), told, cut)))

        yield there


def lines(folder: Path, name: str) -> Sequence[bytes]:
    return sorted((folder / name).read_bytes().splitlines())


def test_conversations_are_the_same_wherever_they_are_held(tmp_path):
    there = Pickled()
    for name, backend in (("here", HERE), ("there", there)):
        evaluate("builtin:skilled", bank(4), out=tmp_path / name, trials=2, backend=backend, **USUAL)
    assert there.items == 8
    assert lines(tmp_path / "here", "trajectories.jsonl") == lines(tmp_path / "there", "trajectories.jsonl")


def test_futures_are_the_same_wherever_they_are_made(tmp_path):
    there = Pickled()
    for name, backend in (("here", HERE), ("there", there)):
        collect("builtin:skilled", bank(4), out=tmp_path / name, candidates=2, backend=backend, **USUAL)
    assert there.items > 8
    for file in ("conversations.jsonl", "candidates.jsonl", "card.json"):
        assert lines(tmp_path / "here", file) == lines(tmp_path / "there", file)


@pytest.mark.full
def test_answers_are_the_same_wherever_a_judge_is_asked(tmp_path):
    runs = [evaluate(f"builtin:{name}", bank(3), out=tmp_path / name, **USUAL) for name in ("skilled", "silent")]
    there = Pickled()
    for name, backend in (("here", HERE), ("there", there)):
        judge_runs(runs, "builtin:plain", out=tmp_path / name, backend=backend)
    assert there.items == 6
    assert lines(tmp_path / "here", "opinions.jsonl") == lines(tmp_path / "there", "opinions.jsonl")


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that cannot run says."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code not in (0, None)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [("eval",), ("collect", "-a", "builtin:skilled", "-o", "x"), ("judge", "x", "--judge", "builtin:plain")]
)
def test_without_ray_a_command_names_the_extra_to_install(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "esc_env.on_ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    said = told(capsys, *command, "--backend", "ray")
    assert said.count("\n") == 1
    assert "ray is not installed. Type: pip install 'esc-env[ray]'" in said


def test_options_of_ray_without_ray_are_refused(capsys):
    assert "Add --backend ray" in told(capsys, "eval", "--workers", "2")

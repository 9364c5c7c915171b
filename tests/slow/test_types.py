"""Both type checkers see every file, and find nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("esc_env", "agents", "rewards", "evaluation", "training", "tests", "benchmarks", "docs", "examples")
FILES = {path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}

pytestmark = pytest.mark.full


def checked(*command: str) -> str:
    """What a checker printed; it found nothing."""
    run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_mypy_checks_every_file():
    assert checked("mypy") == f"Success: no issues found in {len(FILES)} source files\n"


def test_pyright_checks_every_file():
    assert json.loads(checked("pyright", "--outputjson"))["summary"]["filesAnalyzed"] == len(FILES)


def test_a_folder_opened_by_its_own_name_is_right_too():
    """As an editor does: `agents/chat.py` is then another module than `esc_env.agents.chat`."""
    checked("pyright", "agents", "rewards", "evaluation", "training")

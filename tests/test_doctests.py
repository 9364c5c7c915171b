"""What docstrings show is what comes out."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOWING = sorted(
    "esc_env." * (folder != "esc_env") + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("esc_env", "agents", "rewards", "evaluation", "training")
    for path in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents) and ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.full
@pytest.mark.parametrize("name", [name.removesuffix(".__init__") for name in SHOWING])
def test_examples_give_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed

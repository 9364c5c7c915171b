"""Every code block of the other pages runs, too: with a fake OpenAI-compatible server wherever a page asks a model.

So `openai/gpt-4o` and its like are asked here, on this machine; what a page types with them is run as it stands.
How a page is read: `code_blocks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sybil", reason="needs the extra 'dev'")

from code_blocks import ROOT, follow

from esc_env.testing import FakeServer

NOT_RUN = {
    "docs/cli.md": [
        "the data", "a moment of a longer run", "a cluster", "a cluster", "a server, until Ctrl-C",
        "a server, until Ctrl-C", "a person",
    ],
    "docs/ecosystem.md": ["another environment"] * 9,
    "docs/human-evaluation.md": ["people who judge"] * 2,
    "docs/imports.md": ["somebody else's file"],
    "docs/judges.md": ["a key", "people who judge", "the data"],
    "docs/local.md": ["the network", "a GPU"],
    "docs/models.md": [
        "a fresh environment", "a key", "the data", "a key", "a server", "a server", "a server", "a server",
        "a fresh environment", "a server", "the network",
    ],
    "docs/results.md": ["a key"],
    "docs/rewards.md": ["a trained model", "a key"],
    "docs/scale.md": ["another machine", "a fresh environment", "several machines"],
    "docs/tiny.md": ["hours"] * 2,
    "docs/training.md": [*["a GPU"] * 7, *["hours"] * 3, *["a GPU"] * 2],
}  # fmt: skip
"""Why blocks are not run, page by page, in their order."""
ELSEWHERE = ("index", "faq", "dependencies", "constants")
"""Pages that `test_docs.py` runs, and those without a block."""


def answer(request: Mapping[str, Any], choice: int) -> str:
    """What each chair needs: a letter for a critic, marks for a judge, some words for everybody else."""
    asked = request["messages"][-1]["content"]
    if "Answer with the letter of one option" in asked:
        return "D" if choice == 0 else "C"
    if form := re.search(r"and nothing else:\s*(\{.*\})", asked, re.DOTALL):
        return form[1].replace("MARK", '"A"' if "Conversation A:" in asked else "4")
    return "I have not slept since it happened, and I do not know whom to tell."


@pytest.fixture(name="served", scope="module")
def a_served_model() -> Iterator[FakeServer]:
    """What stands where OpenAI is."""
    likely = {"C": -0.3, "D": -1.5, "B": -4.0}
    with FakeServer(answer, logprobs=likely, log=False) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("esc_env.models.wire.OPENAI", server.url)
        patch.delenv("OPENAI_BASE_URL", raising=False)
        patch.setenv("OPENAI_API_KEY", "none")
        yield server


PAGES = [
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")) if path.stem not in ELSEWHERE),
    "docs/tutorial/benchmark.md",
]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(page, tmp_path, monkeypatch, capsys) == NOT_RUN.get(page, [])


def test_no_block_is_left_out():
    """What is not in these two lists has none."""
    for name in ELSEWHERE[2:]:
        assert "```" not in (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")

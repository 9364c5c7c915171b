"""Every code block of README, front page, FAQ and tutorial runs, offline, and prints what stands below it.

How a page is read: `code_blocks.py`. The tutorial's longest page, and all others: `slow/test_code_blocks.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sybil", reason="needs the extra 'dev'")

from code_blocks import Reader, follow

pytestmark = pytest.mark.full

PAGES = [
    "README.md",
    "docs/index.md",
    "docs/faq.md",
    *(f"docs/tutorial/{name}.md" for name in ("conversation", "model", "submission", "training")),
]
NOT_RUN = {
    "README.md": ["a fresh environment", "a fresh environment"],
    "docs/faq.md": ["another environment", "a server", "another machine", "the network"],
    "docs/tutorial/conversation.md": ["a fresh environment", "a person"],
    "docs/tutorial/model.md": ["a fresh environment", "a key", "a fresh environment", "a server", "a server"],
    "docs/tutorial/submission.md": ["a key"],
    "docs/tutorial/training.md": ["hours", "a GPU"],
}
"""Why blocks are not run, page by page, in their order."""


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert follow(page, tmp_path, monkeypatch, capsys) == NOT_RUN.get(page, [])


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("```python\nprint(1)\n```\n```text\n2\n```", "assert '1' == '2'"),
        ("```bash\nesc eval -a nobody\n```\n", "exit code 1"),
        ("```bash\nls\n```\n", "no command of ours"),
        ("```text\n1\n```\n", "nothing printed"),
        ("```python\n1 / 0\n```\n", "division by zero"),
        ("```\nesc eval\n```\n", "nobody would know"),
    ],
)
def test_a_page_that_shows_what_does_not_happen_fails(written, told, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(written, encoding="utf-8")
    reader = Reader(capsys)
    with pytest.raises(AssertionError, match=told):  # noqa: PT012  # which of them tells is what differs
        for example in reader.parse(page):
            example.evaluate()
        reader.end()


@pytest.mark.parametrize(
    "written",
    ["```bash\nesc eval --agnet builtin:skilled\n```\n", "```python\nfrom esc_env import nothing_of_that_name\n```\n"],
)
def test_what_is_not_run_is_still_held_to_the_names_in_it(written, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"<!-- not run: a reason -->\n{written}", encoding="utf-8")
    with pytest.raises(Exception, match=r"agnet|nothing_of_that_name"):  # noqa: PT012  # as above
        for example in Reader(capsys).parse(page):
            example.evaluate()

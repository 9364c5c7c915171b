"""Every code block of README, front page, tutorial and FAQ runs, offline, and prints what stands below it.

A block ```` ```text ```` or ```` ```conversation ```` is what the code before it prints, with "…" for whatever may
differ; before any code, it is what the first code prints. `# NAME.py` on the first line of Python is a file that is
written. What cannot run here is marked in the page, `<!-- not run: WHY -->`, and counted below.
"""

from __future__ import annotations

import re
import shlex
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

pytest.importorskip("sybil", reason="needs the extra 'dev'")

from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer

from esc_env.cli import main

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/faq.md",
    *sorted(f"docs/tutorial/{path.name}" for path in ROOT.glob("docs/tutorial/*.md")),
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


class Reader:
    """Does what a page says, in the current folder.

    Attributes:
        marked: why blocks were not run, so far.
    """

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.marked: list[str] = []
        self._capsys = capsys
        self._skips = False
        self._printed: str | None = ""
        self._code: object = 0
        self._awaited: str | None = None

    def parse(self, page: Path) -> Document:
        """The page, whose examples call this reader."""
        blocks = {"python": self._python, "bash": self._bash, "text": self._shown, "conversation": self._shown}
        return Sybil([self._marks, *(CodeBlockParser(*block) for block in blocks.items())]).parse(page)

    def end(self) -> None:
        """Fail if something is left over."""
        assert self._awaited is None, "nothing printed what the page begins with"
        assert not self._code, f"exit code {self._code}, which the page does not show: {self._printed}"

    def _marks(self, document: Document) -> Iterable[Region]:
        for region in DirectiveInHTMLCommentLexer("not run", ".+?")(document):
            region.parsed, region.evaluator = region.lexemes["arguments"].strip(), self._mark
            yield region

    def _mark(self, example: Example) -> None:
        self.marked.append(example.parsed)
        self._skips = True

    def _python(self, example: Example) -> None:
        if named := re.match(r"# (my_\w+\.py)\b", example.parsed):
            Path(named[1]).write_text(example.parsed, encoding="utf-8")
        else:
            self._run(lambda: PythonEvaluator()(example))

    def _bash(self, example: Example) -> None:
        self._run(lambda: commands(example.parsed))

    def _run(self, act: Callable[[], None]) -> None:
        if self._skips:
            self._skips, self._printed = False, None
            return
        assert not self._code, f"exit code {self._code}, which the page does not show: {self._printed}"
        self._code, raised = 0, ""
        try:
            act()
        except SystemExit as ended:
            self._code = ended.code
        except Exception as error:
            self._code, raised = 1, traceback.format_exception_only(error)[-1]
        self._printed = "".join(self._capsys.readouterr()) + raised
        if self._awaited is not None:
            alike(self._printed, self._awaited)
            self._awaited = None

    def _shown(self, example: Example) -> None:
        if self._printed == "":
            self._awaited = example.parsed
        elif self._printed is not None:  # else it is what a block gives that was not run
            alike(self._printed, example.parsed)
            self._code = 0


def commands(block: str) -> None:
    """Run what is typed, in this process; only ours is known."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            assert words[0] == "esc", f"{line!r} is no command of ours; the page must say why it is not run"
            try:
                main(words[1:])
            except SystemExit as ended:
                if ended.code:
                    raise


def alike(printed: str, shown: str) -> None:
    """Fail unless all that was printed is shown; spaces at the ends of lines do not count."""
    got, want = ("\n".join(map(str.rstrip, text.strip().splitlines())) for text in (printed, shown))
    if not re.fullmatch(".*?".join(map(re.escape, want.split("…"))), got, re.DOTALL):
        assert got == want


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: object) -> None:
        raise OSError("there is no network in this test")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    reader = Reader(capsys)
    try:
        for example in reader.parse(ROOT / page):
            example.evaluate()
    finally:
        for name in [name for name in sys.modules if name.startswith("my_")]:
            del sys.modules[name]
    reader.end()
    assert reader.marked == NOT_RUN.get(page, [])


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("```python\nprint(1)\n```\n```text\n2\n```", "assert '1' == '2'"),
        ("```bash\nesc eval -a nobody\n```\n", "exit code 1"),
        ("```bash\nls\n```\n", "no command of ours"),
        ("```text\n1\n```\n", "nothing printed"),
        ("```python\n1 / 0\n```\n", "division by zero"),
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

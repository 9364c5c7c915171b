"""Does what a page of the documentation says: its code blocks run, offline, and print what stands below them.

- A block ```` ```text ```` or ```` ```conversation ```` is what the code before it prints, with "…" for whatever may
  differ; before any code, it is what the first code prints. `# my_NAME.py` on the first line of Python is a file that
  is written. JSON and YAML are parsed. ```` ```diagram ```` is drawn by hand.
- What a page takes for granted, such as a run that it compares, is made by an invisible `<!-- first: esc … -->`.
- What cannot run is marked in the page, `<!-- not run: WHY -->`, and whoever calls counts it. It is still held to the
  names in it: what it imports of ours is imported, and the options of its commands are parsed.
- A block in no language is refused: nobody would know whether it runs.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer

from esc_env.cli import build_app, main
from esc_env.errors import MissingExtra

ROOT = Path(__file__).parents[1]


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
        blocks: dict[str, Callable[[Example], None]] = {
            "python": self._python, "bash": self._bash, "text": self._shown, "conversation": self._shown,
            "json": lambda example: self._read(json.loads, example),
            "yaml": lambda example: self._read(yaml.safe_load, example),
        }  # fmt: skip
        tongues = set(re.findall(r"^```(.*)\n(?:.*\n)*?```$", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert tongues <= {*blocks, "diagram"}, f"nobody would know whether a block in {tongues} runs"
        return Sybil([self._marks, *(CodeBlockParser(*block) for block in blocks.items())]).parse(page)

    def end(self) -> None:
        """Fail if something is left over."""
        assert self._awaited is None, "nothing printed what the page begins with"
        assert not self._code, f"exit code {self._code}, which the page does not show: {self._printed}"

    def _marks(self, document: Document) -> Iterable[Region]:
        for region in DirectiveInHTMLCommentLexer("not run", ".+?")(document):
            region.parsed, region.evaluator = region.lexemes["arguments"].strip(), self._mark
            yield region
        for region in DirectiveInHTMLCommentLexer("first", ".+?")(document):
            region.parsed, region.evaluator = region.lexemes["arguments"].strip(), self._prepare
            yield region

    def _prepare(self, example: Example) -> None:
        commands(example.parsed)
        self._capsys.readouterr()

    def _mark(self, example: Example) -> None:
        self.marked.append(example.parsed)
        self._skips = True

    def _read(self, parse: Callable[[str], Any], example: Example) -> None:
        if self._skips:
            self._skips = False
        else:
            parse(example.parsed)

    def _python(self, example: Example) -> None:
        if self._skips:
            import_ours(example.parsed)
        if named := re.match(r"# (my_\w+\.py)\b", example.parsed):
            Path(named[1]).write_text(example.parsed, encoding="utf-8")
        else:
            self._run(lambda: PythonEvaluator()(example))

    def _bash(self, example: Example) -> None:
        if self._skips:
            parse_ours(example.parsed)
        self._run(lambda: commands(example.parsed))

    def _run(self, act: Callable[[], None]) -> None:
        assert not self._code, f"exit code {self._code}, which the page does not show: {self._printed}"
        if self._skips:
            self._skips, self._printed = False, None
            return
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
        if self._skips:
            self._skips, self._code = False, 0
        elif self._printed == "":
            self._awaited = example.parsed
        elif self._printed is not None:  # else it is what a block gives that was not run
            alike(self._printed, example.parsed)
            self._code = 0


def commands(block: str) -> None:
    """Run what is typed, in this process; only ours is known. Keys are what the test has set."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            if words[0] == "export":
                continue
            assert words[0] == "esc", f"{line!r} is no command of ours; the page must say why it is not run"
            try:
                main(words[1:])
            except SystemExit as ended:
                if ended.code:
                    raise


def parse_ours(block: str) -> None:
    """Hold the `esc` commands of a block to the options that there are, without running them."""
    app: Any = typer.main.get_command(build_app())
    _defuse(app)
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["esc"]:
            app.main(words[1:], prog_name="esc", standalone_mode=False)


def _defuse(command: Any) -> None:
    command.callback = None
    for each in getattr(command, "commands", {}).values():
        _defuse(each)


def import_ours(block: str) -> None:
    """Import what a block imports of ours, without running it."""
    for statement in ast.parse(block).body:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("esc_env"):
            try:
                exec(ast.unparse(statement), {})
            except (MissingExtra, ModuleNotFoundError) as error:  # somebody else's framework, in no environment of ours
                if (getattr(error, "name", None) or "").startswith("esc_env"):
                    raise


def alike(printed: str, shown: str) -> None:
    """Fail unless all that was printed is shown; spaces at the ends of lines do not count."""
    got, want = ("\n".join(map(str.rstrip, text.strip().splitlines())) for text in (printed, shown))
    if not re.fullmatch(".*?".join(map(re.escape, want.split("…"))), got, re.DOTALL):
        assert got == want


def follow(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Do what a page says in this empty folder, without a network but for servers on this machine.

    Returns:
        Why blocks were not run, in their order.
    """
    connect = socket.socket.connect

    def here(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX or address[0] == "127.0.0.1":
            return connect(self, address)
        raise OSError("there is no network in this test")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    monkeypatch.setattr(socket.socket, "connect", here)
    monkeypatch.setenv("COLUMNS", "100")
    reader = Reader(capsys)
    try:
        for example in reader.parse(ROOT / page):
            example.evaluate()
    finally:
        for name in [name for name in sys.modules if name.startswith("my_")]:
            del sys.modules[name]
    reader.end()
    return reader.marked

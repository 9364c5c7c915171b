"""How far a long command is: a bar in a terminal, plain lines in a log, and what to type after Ctrl-C."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import pytest
import typer

from esc_env import progress as module
from esc_env.evaluation import evaluate
from esc_env.evaluation.commands.tables import print_table
from esc_env.models import budget
from esc_env.models.budget import Budgeted, Ledger
from esc_env.progress import Progress, Watch, shown
from esc_env.protocols import Completion, Request, Usage

CHAT: Any = [{"role": "user", "content": "Hello."}]


@pytest.fixture(autouse=True)
def fresh_ledger(monkeypatch):
    """A process that has asked no model yet."""
    monkeypatch.setattr(budget, "_ledger", Ledger())


class Log(io.StringIO):
    """A stderr that is no terminal, and on which one can wait for so many lines."""

    def __init__(self) -> None:
        super().__init__()
        self.more = threading.Condition()

    def write(self, text: str) -> int:
        with self.more:
            self.more.notify_all()
            return super().write(text)

    def wait(self, lines: int) -> None:
        with self.more:
            assert self.more.wait_for(lambda: self.getvalue().count("\n") >= lines, timeout=30)


@pytest.fixture
def log(monkeypatch) -> Log:
    """What `show` writes, with no waiting between two lines."""
    for name, seconds in (("QUIET", 0.0), ("OFTEN", 0.0), ("SELDOM", 3600.0), ("TICK", 0.001)):
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(sys, "argv", ["esc", "eval", "-a", "x", "--fresh"])
    return Log()


@contextmanager
def show(log: Log, *arguments: Any, **options: Any) -> Iterator[Watch]:
    """`shown`, on that log."""
    with redirect_stderr(log), shown(*arguments, **options) as told:
        yield told


def interrupted(log: Log, *arguments: Any, at: Progress | None, **options: Any) -> int:
    """The exit code of a command that is told Ctrl-C when it is so far."""
    with pytest.raises(typer.Exit) as ended, show(log, *arguments, **options) as told:  # noqa: PT012
        if at:
            told(at)
        raise KeyboardInterrupt
    return ended.value.exit_code


# --- a log ----------------------------------------------------------------------------------------


def test_without_a_terminal_a_long_run_says_where_it_is_at_the_start_at_every_tenth_and_at_the_end(log):
    with show(log, "mine on theirs") as told:
        log.wait(1)
        told(Progress(0, 40))
        for done in range(4, 40, 4):
            told(Progress(done, 40, turns=8 * done, errors=1))
            log.wait(1 + done // 4)
        told(Progress(40, 40, turns=320, errors=1))
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("mine on theirs: ")
    assert re.fullmatch(
        r"mine on theirs: 4 of 40 conversations, [\d.,]+ a (second|minute|hour), .* left, 1 error, 32 turns", lines[1]
    )
    assert lines[-1].startswith("mine on theirs: 40 of 40 conversations, ")
    assert lines[-1].endswith(" s")
    assert "left" not in lines[-1]


def test_between_two_lines_a_run_says_nothing_until_a_tenth_more_is_done(log):
    with show(log) as told:
        told(Progress(0, 1000))
        log.wait(1)
        for done in range(1, 100):
            told(Progress(done, 1000))
        told(Progress(100, 1000))
        log.wait(2)
    assert len(log.getvalue().splitlines()) == 3


def test_a_run_in_which_nothing_ends_still_says_something_now_and_then(log, monkeypatch):
    monkeypatch.setattr(module, "SELDOM", 0.0)
    with show(log) as told:
        told(Progress(0, 8))
        told(Progress(0, 8, turns=5))
        log.wait(3)
    assert "0 of 8 conversations, 5 turns" in log.getvalue()


def test_a_short_run_is_silent(log, monkeypatch):
    monkeypatch.setattr(module, "QUIET", 3600.0)
    with show(log, "mine") as told:
        told(Progress(0, 1))
        told(Progress(1, 1))
    assert log.getvalue() == ""


def test_nothing_is_shown_where_nothing_is_wanted(log):
    with show(log, "mine", False) as told:
        told(Progress(1, 4))
    assert log.getvalue() == ""


def test_a_run_that_fails_says_no_last_line_after_it(log):
    with pytest.raises(ZeroDivisionError), show(log) as told:  # noqa: PT012
        told(Progress(0, 4))
        log.wait(1)
        raise ZeroDivisionError
    assert "took" not in log.getvalue()


def test_a_real_run_tells_its_turns_while_its_first_conversation_is_held(log, tmp_path):
    def agent(messages):
        log.wait(min(len(messages), 15) // 2)  # in turn n it goes on when n - 1 lines are there
        return "Hm."

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SELDOM", 0.0)  # before the first line, which sets when the next is due
        with show(log) as told:
            evaluate(agent, limit=1, out=tmp_path, progress=told)
    assert re.search(r"0 of 1 conversations, [1-7] turn", log.getvalue())


# --- a bar ----------------------------------------------------------------------------------------


def test_a_bar_that_ends_shows_all_of_all(log):
    for _ in range(50):
        log.truncate(log.seek(0))
        with show(log, "mine", True) as told:
            for done in range(8):
                told(Progress(done, 7))
        assert "7/7" in log.getvalue()


def test_a_bar_names_what_is_counted_where_there_is_no_title(log):
    with show(log, wanted=True) as told:
        told(Progress(3, 3))
        told(Progress(2, 16, "responses"))
    assert re.match(r"responses .* 2/16", log.getvalue())


TALK = """
import asyncio
async def respond(messages):
    await asyncio.sleep(0.15)
    return "Hm."
"""


def in_terminal(folder, *arguments: str, columns: int = 60, **environment: str) -> str:
    """What `esc` writes to a terminal of so many columns."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    (folder / "talk.py").write_text(TALK)
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", "from esc_env.cli import main; main()", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env={**kept, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 4096):
            said += chunk
    except OSError:  # Linux says so when the last process has closed its end
        pass
    finally:
        os.close(ours)
        process.wait(timeout=60)
    return said.decode()


@pytest.mark.skipif(os.name == "nt", reason="needs a Unix terminal")
@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_narrow_terminal_cuts_no_number(tmp_path, kind):
    run = ["eval", "-a", "python:talk:respond", "--limit", "3", "--max-turns", "4", "--out", "run"]
    said = in_terminal(tmp_path, *run, TERM=kind, NO_COLOR="1")
    table = [line for line in said.splitlines() if "0.0–56.1 %" in line]
    assert len(table) == 1, said
    assert re.search(r"\b0\.0 %\s+0\.0 %\s+0\.0–56\.1 %\s+0\.0 % 4\.00 [+−]\d\.\d\d\s+3/3$", table[0].rstrip())
    assert len(table[0].rstrip()) <= 60
    assert ("0/3" in said) == (kind == "xterm"), "a dumb terminal gets lines, if it takes long"
    assert "\x1b[3" not in said, "NO_COLOR"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_fits_the_terminal_and_cuts_no_number(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    columns = [("agent", False), *((f"a long heading {place}", True) for place in range(6))]
    print_table("Title", columns, [("builtin:random-strategy", *["+12.5"] * 6)])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    assert said.count("+12.5") == 6
    assert ("builtin:random-strategy" in said) == (width > 60)


# --- what models do -------------------------------------------------------------------------------


class Model:
    identity = {"provider": "any", "name": "any"}  # noqa: RUF012

    def __init__(self, cost: float | None, reason: str = "stop") -> None:
        self.cost, self.reason = cost, reason

    async def complete(self, request):
        n = request.n
        return Completion(("ok",) * n, (self.reason,) * n, Usage(1, 100, 50, self.cost), latency=3.0)


def test_it_says_what_models_do_and_cost(monkeypatch):
    watch = Watch("mine")
    assert watch.details == "", "no model, no word about one"
    asyncio.run(Budgeted(Model(0.25)).complete(Request(CHAT)))
    asyncio.run(Budgeted(Model(0.25)).complete(Request(CHAT)))
    assert re.fullmatch(r"3\.0 s a request, [\d,.]+ tokens a second, 0\.50 USD", watch.details)
    asyncio.run(Budgeted(Model(None)).complete(Request(CHAT)))
    assert watch.details.endswith("0.50 USD and calls of unknown price")
    assert Watch("the next").details == "", "what was before is not its own"


def test_an_unknown_price_is_never_shown_as_nothing():
    watch = Watch("mine")
    asyncio.run(Budgeted(Model(None)).complete(Request(CHAT)))
    assert watch.details.endswith("150 tokens at an unknown price")
    assert "USD" not in watch.details


def test_it_says_how_many_requests_are_in_flight():
    watch = Watch("mine")
    seen: list[str] = []

    class Looks(Model):
        async def complete(self, request):
            seen.append(watch.details)
            return await super().complete(request)

    asyncio.run(Budgeted(Looks(None)).complete(Request(CHAT)))
    assert seen == ["1 request in flight"]
    assert "in flight" not in watch.details


@pytest.mark.parametrize(("reason", "hinted"), [("length", True), ("stop", False)])
def test_a_run_hints_at_it_when_over_half_of_the_answers_are_cut(reason, hinted):
    watch = Watch("mine")
    asyncio.run(Budgeted(Model(0.0)).complete(Request(CHAT, n=9)))
    for _ in range(2):
        asyncio.run(Budgeted(Model(0.0, reason)).complete(Request(CHAT, n=9)))
    assert ("raise max_tokens" in watch.details) == hinted


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [None, True, False])
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(log, wanted):
    assert interrupted(log, "mine on theirs", wanted, at=Progress(3, 40)) == 130
    assert log.getvalue().splitlines()[-1] == (
        "Stopped: 3 of 40 conversations of mine on theirs have ended and are kept. To go on, type: esc eval -a x"
    )


def test_ctrl_c_before_anything_has_begun_claims_nothing(log):
    interrupted(log, "mine", False, at=None)
    assert "Stopped: nothing has ended yet. To go on, type: esc eval -a x" in log.getvalue()


def test_ctrl_c_promises_nothing_where_nothing_is_kept(log):
    interrupted(log, "", False, at=Progress(3, 40, "judgements"), kept=False)
    assert "Stopped: 3 of 40 judgements have ended; nothing is kept without --out" in log.getvalue()

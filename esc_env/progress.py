"""How far a long command is, for the person who waits: a bar in a terminal, now and then a plain line in a log.

`shown` is the one face of progress that all commands have. What is told is a `Progress`; what models do meanwhile comes
from their own ledger, so that a run shows life while no conversation ends for minutes.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from esc_env.models.budget import Ledger, ledger

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Progress", "Told", "Watch", "again", "shown"]

QUIET = 2.0
"""Seconds that a command without a terminal may take without a word."""
OFTEN, SELDOM = 5.0, 30.0
"""Seconds from one plain line to the next: where a tenth more is done, and otherwise."""
TICK = 0.25
"""Seconds from one look to the next."""
ENOUGH = 10
"""Answers of models before there is a hint about them."""
WIDTH = 120
"""Columns where the output is no terminal."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far something is.

    Attributes:
        done: how many have ended, those of earlier calls included.
        total: how many there are.
        what: of these.
        turns: how many were held in this call, in conversations under way too; 0 where they are not counted.
        errors: how many ended without an outcome in this call.
    """

    done: int
    total: int
    what: str = "conversations"
    turns: int = 0
    errors: int = 0


Told = Callable[[Progress], None]
"""What a long call tells its progress to. It may be called from another thread, and must return at once."""


class Watch:
    """What a command has been told, and what models did meanwhile, in words.

    Attributes:
        title: what is run; may be empty.
        first: the first that was told of what is counted now; None before.
        last: the last.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.first: Progress | None = None
        self.last: Progress | None = None
        self._started = self._counting = self._told = time.monotonic()
        self._before = ledger()

    def __call__(self, progress: Progress) -> None:
        """Be told."""
        if self.first is None or self.first.what != progress.what:
            self.first, self._counting = progress, time.monotonic()
        self.last, self._told = progress, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the watch was made."""
        return time.monotonic() - self._started

    @property
    def counted(self) -> str:
        """`12 of 40 conversations`."""
        return f"{self.last.done:,} of {self.last.total:,} {self.last.what}" if self.last else "starting"

    @property
    def details(self) -> str:
        """Pace, time left, errors, turns; then requests, seconds, tokens and dollars of models, and a hint."""
        words: list[str] = []
        if self.first and self.last:
            gained, left = self.last.done - self.first.done, self.last.total - self.last.done
            words += _pace(gained, left, (time.monotonic() if left else self._told) - self._counting)
            words += [_count(self.last.errors, "error")] if self.last.errors else []
            words += [_count(self.last.turns, "turn")] if self.last.turns else []
        return ", ".join(words + _models(ledger().since(self._before), self.seconds))


@contextmanager
def shown(title: str = "", wanted: bool | None = None, *, kept: bool = True) -> Iterator[Watch]:
    """Show how far a long call is, on stderr. Ctrl-C ends the command with the way to go on.

    Args:
        title: what is run.
        wanted: True for a bar, False for nothing; by default a bar in a terminal, and elsewhere plain lines once it
            takes longer than `QUIET`.
        kept: whether what is done is kept, so that the same command goes on.

    Yields:
        What the call tells its progress to.
    """
    watch = Watch(title)
    try:
        with _face(watch, wanted):
            yield watch
    except KeyboardInterrupt:
        print(f"\nStopped: {_reached(watch, kept)}", file=sys.stderr)
        raise typer.Exit(130) from None


def _reached(watch: Watch, kept: bool) -> str:
    of = f" of {watch.title}" if watch.title else ""
    ended = f"{watch.counted}{of} have ended" if watch.last else "nothing has ended yet"
    if not kept:
        return f"{ended}; nothing is kept without --out"
    return f"{ended}{' and are kept' if watch.last else ''}. {again()}"


def again() -> str:
    """How to go on with what this process was told to do."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return "To go on, type the same launch line"
    return f"To go on, type: {shlex.join(['esc', *(word for word in sys.argv[1:] if word != '--fresh')])}"


def _face(watch: Watch, wanted: bool | None) -> AbstractContextManager[None]:
    from rich.console import Console

    if wanted or (wanted is None and sys.stderr.isatty() and Console(file=sys.stderr).is_interactive):
        return _bar(watch)
    return _lines(watch) if wanted is None else nullcontext()


@contextmanager
def _bar(watch: Watch) -> Iterator[None]:
    """Drawn again four times a second, and once more when it ends."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        console = Console(file=sys.stderr, width=WIDTH)
    with Live(
        get_renderable=lambda: _drawn(watch, console.width), console=console, transient=console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
    ):  # fmt: skip
        yield


def _drawn(watch: Watch, width: int) -> RenderableType:
    """Title, bar and numbers in a line, the details below; a narrow terminal cuts the title, never a number."""
    from rich.cells import cell_len
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    last = watch.last
    title = watch.title or (last.what if last else "")
    row = Table.grid(padding=(0, 1, 0, 0), expand=True)
    row.add_column(no_wrap=True, width=min(cell_len(title), width // 2))
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_row(
        Text(title, overflow="ellipsis"),
        ProgressBar(max(last.total, 1), last.done) if last else ProgressBar(None, pulse=True),
        Text(f"{last.done:,}/{last.total:,}" if last else ""),
    )
    return Group(row, Text(watch.details, style="dim"))


@contextmanager
def _lines(watch: Watch) -> Iterator[None]:
    """A line once it takes long, then after every tenth or `SELDOM` seconds, and a last one."""
    ended = threading.Event()
    said: list[str] = []

    def say(*more: str) -> None:
        title = f"{watch.title}: " if watch.title else ""
        said.append(", ".join(part for part in (f"{title}{watch.counted}", watch.details, *more) if part))
        print(said[-1], file=sys.stderr, flush=True)

    def work() -> None:
        due = QUIET
        tenth: tuple[str, int] | None = None
        while not ended.wait(TICK):
            last, now = watch.last, watch.seconds
            reached = (last.what, last.done * 10 // max(last.total, 1)) if last else tenth
            if now >= due or (said and reached != tenth and now >= due - SELDOM + OFTEN):
                say()
                due, tenth = now + SELDOM, reached

    thread = threading.Thread(target=work, name="esc-env-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if said:
        say(f"took {_span(watch.seconds)}")


def _count(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def _pace(gained: int, left: int, seconds: float) -> list[str]:
    if not gained or not seconds:
        return []
    rate = gained / seconds
    units = ((1.0, "second"), (60.0, "minute"), (3600.0, "hour"))
    each, unit = next((item for item in units if rate * item[0] >= 1), units[-1])
    return [f"{_short(rate * each)} a {unit}", *([f"{_span(left / rate)} left"] if left else [])]


def _models(made: Ledger, seconds: float) -> list[str]:
    if not made.calls and not made.flying:
        return []
    said, tokens = made.usage.completion_tokens, made.usage.prompt_tokens + made.usage.completion_tokens
    words = [f"{_count(made.flying, 'request')} in flight"] if made.flying else []
    words += [f"{_short(made.seconds / made.calls)} s a request"] if made.calls else []
    words += [f"{_short(said / seconds)} tokens a second"] if said else []
    if made.unpriced < made.calls:
        words.append(f"{_dollars(made.usage.cost or 0)}{' and calls of unknown price' if made.unpriced else ''}")
    elif tokens:
        words.append(f"{tokens:,} tokens at an unknown price")
    if made.answers >= ENOUGH and made.cut * 2 > made.answers:
        words.append("over half of the answers are cut (raise max_tokens)")
    return words


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _dollars(cost: float) -> str:
    return "under 0.01 USD" if 0 < cost < 0.01 else f"{cost:,.2f} USD"


def _span(seconds: float) -> str:
    """`45 s`, `9 min`, `2 h 10 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

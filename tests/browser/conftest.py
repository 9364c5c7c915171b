"""Runs whose every text is hostile, and Chromium to look at their pages with: `pytest tests/browser`.

Needs Debian's chromium (or any Chromium or Chrome on the PATH), and the extra 'dev'.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect, sync_playwright
from test_training_pages import begun, lines, said, whole

from esc_env import Dialogue, Scenario, ScenarioSet
from esc_env.cli import main
from esc_env.evaluation import evaluate
from esc_env.testing import ScriptedSeeker

expect.set_options(timeout=30_000)  # a busy machine is no fault of a page

SERIOUS = ("serious", "critical")
"""Faults of accessibility that no page may have, as axe-core calls them."""
EVIL = (
    "</script></style></template></svg><script>alert(1)</script><img src='http://127.0.0.1:9/x' onerror=alert(2)>"
    "<iframe srcdoc='<script>parent.alert(3)</script>'></iframe><a href=\"javascript:alert(4)\">x</a>"
    "<svg onload=alert(5)><style>*{display:none}</style><!--\" onmouseover='alert(6)' {{ 7 * 7 }} ${8} \u202e"
)


def people(count: int) -> ScenarioSet:
    """Seekers, each field of whom wants to be more than text."""
    return ScenarioSet.of(
        EVIL,
        [
            Scenario(
                f"{EVIL} {place}", f"{EVIL} I lost my job {place}.", emotion=f"{EVIL}{place % 3}",
                problem=f"{EVIL}{place % 2}", risk=place % 4 == 0,
            )
            for place in range(count)
        ],
    )  # fmt: skip


def supporter(steps: int) -> Callable[[list[dict[str, str]]], str]:
    """One whose conversations are solved if their number is not a multiple of `steps`."""

    def says(messages: list[dict[str, str]]) -> str:
        if EVIL not in messages[0]["content"]:
            raise ValueError(EVIL)
        number = int(messages[0]["content"].split("job ")[1].split(".")[0])
        if number % steps == 1 and len(messages) > 2:
            raise RuntimeError(EVIL)
        return f"<think>{EVIL}</think>{EVIL} {'yes' if number % steps else 'no'}"

    return says


def critic(scenario: Scenario, dialogue: Dialogue) -> float:
    """Solves what was answered with yes, in the second turn."""
    said = [message.content for message in dialogue.messages if message.role == "supporter"]
    return 1.0 if len(said) > 1 and said[-1].endswith("yes") else -0.5 + 0.1 * len(said)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs in `runs/`."""
    folder = tmp_path_factory.mktemp("site")
    with contextlib.chdir(folder):
        for name, steps in (("one", 3), ("two", 5)):
            says = supporter(steps)
            says.__name__ = says.__qualname__ = name
            evaluate(says, people(70), seeker=ScriptedSeeker([f"{EVIL} I see."] * 9), critic=critic, out=f"runs/{name}")
    return folder


@pytest.fixture(scope="session")
def site(runs: Path) -> Path:
    """The same folder, with the pages of both, a leaderboard, the two side by side, and a training run."""
    with contextlib.chdir(runs):
        for name in ("one", "two"):
            esc("report", f"runs/{name}", "--out", f"runs/{name}")
        esc("leaderboard", "runs", "--out", "site")
        esc("compare", "runs/one", "runs/two", "--out", "pair")
        stage = begun(runs / "training")
        lines(stage, *map(whole, range(1, 5)))
        for step in (1, 3):
            said(stage, step, f"What happened? {EVIL}")
        esc("report", "training", "--out", "training")
    return runs


def esc(*arguments: str) -> None:
    """Type a command that must succeed."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code, arguments


class Server:
    """A command that serves pages, in a process that can be killed and started again at the same address.

    Args:
        folder: where it runs.
        arguments: of `esc`, without the port.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments, self.port = folder, arguments, "0"
        self.start()

    def start(self) -> None:
        """Return once it says where it listens."""
        command = [sys.executable, "-c", "from esc_env.cli import main; main()", *self.arguments, "--port", self.port]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=self.folder)
        assert self.process.stdout
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:(\d+)/", line) for line in self.process.stdout)))
        self.address, self.port = found[0], found[1]

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()


QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
"""Options of a Chromium that asks nobody for anything."""


def browser_path() -> str:
    """Where Chromium is. Without one there is nothing to test here, which is an error and not a test passed over."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "no Chromium: apt-get install chromium"
    return found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path(), args=QUIET)
        yield browser
        browser.close()


class Visitor:
    """Somebody with a browser, and what went wrong meanwhile."""

    def __init__(self, context: BrowserContext) -> None:
        self.faults: list[str] = []
        self.context = context
        context.on("dialog", self._asks)
        context.on("weberror", lambda error: self.faults.append(f"error: {error.error}"))
        context.on("console", lambda line: self.faults.append(f"console: {line.text}") if line.type != "log" else None)
        context.on("request", lambda request: self._asked(request.url))
        self.page: Page = context.new_page()

    def _asks(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "http://127.0.0.1:", "data:")) or ":9/x" in url:
            self.faults.append(f"request: {url}")

    def opens(self, place: Path | str, part: str = "") -> Page:
        """Open a file or an address."""
        self.page.goto((place if isinstance(place, str) else place.as_uri()) + part)
        return self.page


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visitor]]:
    """Make a visitor, with whatever options a browser context has. A fault on any page fails the test."""
    visitors: list[Visitor] = []

    def make(**options: Any) -> Visitor:
        visitors.append(Visitor(chromium.new_context(**options)))
        return visitors[-1]

    yield make
    for each in visitors:
        each.context.close()
    assert [fault for each in visitors for fault in each.faults] == []

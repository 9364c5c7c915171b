"""python tests/browser/screenshots.py shots/ [--training FOLDER]

Every kind of page, at the width of a phone and of a desktop, light and dark: shots/PAGE-WIDTH-SCHEME.png, and as it is
printed: shots/PAGE.pdf. Look at them after a change of any page. Two runs of the builtin agents are made for it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser.conftest import QUIET, Server, browser_path

ESC = (sys.executable, "-c", "from esc_env.cli import main; main()")
WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
AGENTS = ("builtin:skilled", "builtin:random-strategy", "builtin:template", "builtin:advice")


def main() -> None:
    """Make the runs, open the pages, keep what is seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--training", type=Path, help="A folder of `esc train`, whose page is shown too.")
    asked = parser.parse_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        pages = made(folder)
        if asked.training:
            esc(folder, "report", str(asked.training.resolve()), "--out", "training")
            pages["training"] = (folder / "training/report.html").as_uri()
        for kind, arguments in {
            "runs": ("view", "runs"),
            "annotate": ("annotate", "runs/0", "runs/2", "--db", "ratings.sqlite", "--pilot"),
            "chat": ("chat", "--web", "--seed", "1", "--reveal"),
        }.items():
            server = Server(folder, *arguments)
            stack.callback(server.kill)
            pages[kind] = server.address
        pages["follow"] = f"{pages['runs']}run/0/"
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=browser_path(), args=QUIET)
        for (width, pixels), scheme in product(WIDTHS.items(), SCHEMES):
            page = browser.new_page(viewport={"width": pixels, "height": 900}, color_scheme=scheme)
            for kind, address in pages.items():
                page.goto(address)
                STEPS.get(kind, lambda page: None)(page)
                page.wait_for_timeout(300)  # what a page follows arrives after it has loaded
                page.screenshot(path=out / f"{kind}-{width}-{scheme}.png", full_page=True)
                print(out / f"{kind}-{width}-{scheme}.png")
                if (width, scheme) == ("desktop", "light"):
                    page.pdf(path=out / f"{kind}.pdf")
            page.close()
        browser.close()


def made(folder: Path) -> dict[str, str]:
    """The addresses of pages that are files."""
    for place, agent in enumerate(AGENTS):
        esc(folder, "eval", "--agent", agent, "--limit", "60", "--trials", "2", "--out", f"runs/{place}")
    esc(folder, "leaderboard", "runs", "--out", "site")
    esc(folder, "compare", "runs/0", "runs/2", "--out", "pair")
    found = {
        "leaderboard": "site/leaderboard.html",
        "run": "runs/0/report.html",
        "conversation": "runs/0/report-0001.html",
        "comparison": "pair/compare.html",
        "pair": "pair/compare-0001.html",
    }
    parts = {"conversation": "#c2", "pair": "#c2"}
    return {kind: (folder / place).as_uri() + parts.get(kind, "") for kind, place in found.items()}


def judging(page: Page) -> None:
    """To the first pair of conversations."""
    page.fill("#name", f"Anna {page.evaluate('innerWidth')} {'dark' if page.evaluate(DARK) else 'light'}")
    page.click("#join")
    page.click("#go-on")
    if page.locator("#show").count():
        page.click("#show")


def talking(page: Page) -> None:
    """Two turns of talk with somebody."""
    page.locator("form[action='/begin'] button").click()
    for said in ("That sounds heavy. What weighs on you most?", "No wonder that you are worn out by it."):
        page.locator("textarea").fill(said)
        page.keyboard.press("Enter")
        page.locator(".said.supporter", has_text=said).wait_for()


DARK = "matchMedia('(prefers-color-scheme: dark)').matches"
STEPS: dict[str, Callable[[Page], None]] = {"annotate": judging, "chat": talking}


def esc(folder: Path, *arguments: str) -> None:
    """Type a command that must succeed."""
    subprocess.run([*ESC, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()

"""python benchmarks/pages_speed.py --conversations 10000

How long the pages of a large run take: to be written, and until the first one can be used in Chromium; how long a
thousand runs take to be listed, and until the page that follows a run of that size shows all figures. Needs a Chromium
on the PATH and `playwright`. Usable means: the list of conversations is there, and a choice of its filter has been
answered. Bounds: 2 s, no file over 5 MB, and 1 s for the list.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import sync_playwright

from esc_env.data.datasets import load_scenarios
from esc_env.evaluation import evaluate
from esc_env.evaluation.pages.run import run_pages, write_pages
from esc_env.evaluation.view.following import find
from esc_env.testing import ScriptedAgent, ScriptedCritic, ScriptedSeeker

BOUND, LARGEST, LISTED = 2.0, 5_000_000, 1.0


def main() -> None:
    """Print what it took, beside the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=10_000)
    many = parser.parse_args().conversations
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = evaluate("builtin:skilled", "builtin:test", trials=5, out=folder / "run")
        held = report.trajectories
        copies = tuple(replace(held[i % len(held)], trial=i // len(held)) for i in range(many))
        begun = time.perf_counter()
        write_pages(run_pages(replace(report, trajectories=copies, episodes=many, completed=many)), folder)
        print(f"{many:,} conversations, pages written in {time.perf_counter() - begun:.1f} s")
        sizes = [page.stat().st_size for page in folder.glob("*.html")]
        print(f"{len(sizes):,} files, largest {max(sizes) / 1e6:.2f} MB: {max(sizes) / LARGEST:.2f} of the bound")
        for number in range(1000):
            (place := folder / "runs" / f"{number}").mkdir(parents=True)
            for name in ("run.json", "report.json"):
                shutil.copy(folder / "run" / name, place)
        begun = time.perf_counter()
        listed = len(find(folder / "runs"))
        taken = time.perf_counter() - begun
        print(f"{listed:,} runs listed in {taken:.2f} s: {taken / LISTED:.2f} of the bound")
        with sync_playwright() as started, followed(many, folder / "live") as address:
            browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
            page = browser.new_page()
            begun = time.perf_counter()
            page.goto((folder / "report.html").as_uri(), wait_until="commit")
            page.locator("[data-list] tbody tr").first.wait_for()
            page.locator("[data-list] select").first.select_option(index=1)
            page.locator("[data-list] tbody tr").first.wait_for()
            taken = time.perf_counter() - begun
            print(f"first page usable in {taken:.2f} s: {taken / BOUND:.2f} of the bound")
            begun = time.perf_counter()
            page.goto(address)
            first = time.perf_counter() - begun
            page.locator("[data-done]", has_text=f"{many:,} of {many:,}").wait_for(timeout=120_000)
            print(
                f"a run of {many:,} followed: page in {first:.2f} s, all figures in {time.perf_counter() - begun:.1f} s"
            )
            browser.close()


@contextmanager
def followed(many: int, folder: Path) -> Iterator[str]:
    """The address of the page that follows a run of so many conversations, at least."""
    people = load_scenarios("builtin:test")
    seeker, critic = ScriptedSeeker(["I see.", "It helps."]), ScriptedCritic(["same", "solved"])
    supporter = ScriptedAgent(["What happened?"])
    evaluate(supporter, people, seeker=seeker, critic=critic, trials=many // len(people), out=folder / "run")
    command = [sys.executable, "-c", "from esc_env.cli import main; main()", "view", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        found = next(word for line in server.stdout for word in line.split() if word.startswith("http"))
        yield f"{found}run/run/"
        server.terminate()


if __name__ == "__main__":
    main()

"""python docs/record.py [terminal] [leaderboard]

Makes the two pictures of README again, in docs/pictures: terminal.svg, two commands as they are typed and run, and
leaderboard.png, the page that `esc leaderboard --out` writes. Both are of real runs, which take half a minute. Needs
the extra 'dev', Chromium, and a system with pseudo-terminals (Linux, macOS).
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char

PICTURES = Path(__file__).parent / "pictures"
ESC = (sys.executable, "-c", "from esc_env.cli import main; main()")

TYPED = ("esc eval -a builtin:skilled -a builtin:template", "esc leaderboard runs")
"""What terminal.svg shows."""
BOARD = ("esc eval", "esc leaderboard runs --out site")
"""What leaderboard.png shows; it stands beside the picture in README."""
WIDE, TONES = 876, 64
"""Its width, up to the column of standings, at two pixels each; and its colours, so few that it is a third as large."""

COLUMNS, ROWS = 74, 30
PROMPT = "\x1b[32m$\x1b[0m "
QUIET = 0.05
"""Seconds in which nothing is printed, after which the screen is a frame: no half-drawn bar is shown."""
KEY, AFTER, END = 0.06, 3.0, 6.0
"""Seconds: between two keys, to read what a command printed, and before it all begins again."""

CELL, LINE, FONT, EDGE = 8.4, 18, 14, 14
COLOURS = {
    "default": "#e6edf3", "red": "#ff7b72", "brightred": "#ff9f8f", "green": "#7ee787", "blue": "#79c0ff",
    "brightblack": "#8b949e", "magenta": "#d2a8ff", "brown": "#e3b341", "cyan": "#56d4dd",
}  # fmt: skip
"""On #0d1117, each with a contrast of at least 4.5 to 1. The window is dark wherever it is shown, as terminals are."""

Frame = tuple[tuple[str, ...], float]
"""Lines of SVG, and for how many seconds they are seen."""


def main() -> None:
    """Make what is named, or both."""
    wanted = sys.argv[1:] or ["terminal", "leaderboard"]
    if unknown := set(wanted) - {"terminal", "leaderboard"}:
        sys.exit(f"no such picture: {', '.join(sorted(unknown))}\n\n{__doc__}")
    PICTURES.mkdir(exist_ok=True)
    for name in wanted:
        with tempfile.TemporaryDirectory() as folder:
            path = terminal(Path(folder)) if name == "terminal" else leaderboard(Path(folder))
        print(f"docs/pictures/{path.name}: {path.stat().st_size:,} bytes")


def terminal(folder: Path) -> Path:
    """Type the commands into a terminal of its own, and draw what it showed."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    frames: list[Frame] = []
    for command in TYPED:
        for place, typed in enumerate((PROMPT, *command)):
            stream.feed(typed.encode())
            frames.append((drawn(screen), 1.0 if place in (0, len(command)) else KEY))
        stream.feed(b"\r\n")
        for printed, seconds in run(command, folder):
            if seconds:
                frames.append((drawn(screen), seconds))
            stream.feed(printed)
        frames.append((drawn(screen), AFTER))
    stream.feed(PROMPT.encode())
    frames.append((drawn(screen), END))
    path = PICTURES / "terminal.svg"
    path.write_text(animated(list(merged(frames))), encoding="utf-8")
    return path


def run(command: str, folder: Path) -> Iterator[tuple[bytes, float]]:
    """What a command prints in a terminal of our size, in parts, and how long the screen stood still before each."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [*ESC, *command.split()[1:]], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment | {"TERM": "xterm", "COLORTERM": "", "PYTHONUTF8": "1"},
    )  # fmt: skip
    os.close(theirs)
    printed, shown = b"", time.monotonic()
    while True:
        ready, _, _ = select.select([ours], [], [], QUIET)
        try:
            more = os.read(ours, 65_536) if ready else b""
        except OSError:  # how Linux says that nobody holds the other end
            break
        if more:
            printed += more
        elif ready:
            break
        elif printed:
            yield printed, time.monotonic() - QUIET - shown
            printed, shown = b"", time.monotonic() - QUIET
    yield printed, time.monotonic() - shown
    os.close(ours)
    if code := process.wait():
        sys.exit(f"{command}: exit code {code}")


def drawn(screen: pyte.Screen) -> tuple[str, ...]:
    """What is on the screen: a line of SVG for each of the terminal."""
    lines = []
    for row in range(ROWS):
        cells: list[tuple[int, Char]] = [(column, screen.buffer[row][column]) for column in range(COLUMNS)]
        parts = []
        for (colour, bold), group in groupby(cells, lambda cell: (cell[1].fg, cell[1].bold)):
            run_of = list(group)
            text = "".join(cell.data for _, cell in run_of)
            left = run_of[0][0] + len(text) - len(text.lstrip())
            if text := text.strip():
                look = ("" if colour == "default" else f' fill="{COLOURS[colour]}"') + (' class="b"' if bold else "")
                wide = f'x="{left * CELL:.1f}" textLength="{len(text) * CELL:.1f}"'
                parts.append(f"<text {wide}{look}>{escape(text, quote=False)}</text>")
        if (screen.cursor.y, screen.cursor.hidden) == (row, False):
            parts.append(f'<rect class="c" x="{screen.cursor.x * CELL:.1f}" y="-{FONT}"/>')
        lines.append("".join(parts))
    return tuple(lines)


def merged(frames: list[Frame]) -> Iterator[Frame]:
    """Frames without two that look the same, one after the other."""
    for lines, group in groupby(frames, lambda frame: frame[0]):
        yield lines, sum(seconds for _, seconds in group)


def animated(frames: list[Frame]) -> str:
    """An SVG whose style alone moves it: a strip of frames. The last is seen first, or alone if nothing may move."""
    wide, high = COLUMNS * CELL + 2 * EDGE, ROWS * LINE + 2 * EDGE
    names: dict[str, str] = {}
    strip, moves, reached = [], [], 0.0
    whole = sum(seconds for _, seconds in frames)
    for place, (lines, seconds) in enumerate(frames):
        uses = [
            f'<use href="#{names.setdefault(line, f"l{len(names)}")}" y="{row * LINE}"/>'
            for row, line in enumerate(lines)
            if line
        ]
        strip.append(f'<g transform="translate({place * wide:.1f})">{"".join(uses)}</g>')
        moves.append(f"{reached / whole:.3%}{{transform:translateX({-place * wide:.1f}px)}}")
        reached += seconds
    last = f"transform:translateX({-(len(frames) - 1) * wide:.1f}px)"
    said = f"A terminal, in which {' and '.join(f'“{command}”' for command in TYPED)} are typed and run"
    style = (
        "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace;"
        f"fill:{COLOURS['default']};white-space:pre}}"
        + "".join(f'[fill="{colour}"]{{fill:{colour}}}' for colour in COLOURS.values())
        + f".b{{font-weight:700}}.c{{width:{CELL}px;height:{LINE}px;fill:#8b949e}}#s{{{last}}}"
        "@media (prefers-reduced-motion:no-preference)"
        f"{{#s{{animation:t {whole:.2f}s {END - whole:.2f}s step-end infinite}}}}"
        f"@keyframes t{{{''.join(moves)}to{{{last}}}}}"
    )
    shapes = "".join(f'<g id="{name}">{line}</g>' for line, name in names.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.1f} {high}" width="{wide:.0f}" height="{high}" '
        f'role="img"><title>{escape(said)}</title><style>{style}</style><defs>{shapes}</defs>'
        f'<rect x=".5" y=".5" width="{wide - 1:.1f}" height="{high - 1}" rx="8" fill="#0d1117" stroke="#57606a"/>'
        f'<svg x="{EDGE}" y="{EDGE}" width="{COLUMNS * CELL:.1f}" height="{ROWS * LINE}">'
        f'<g transform="translate(0 {FONT})"><g id="s">\n{chr(10).join(strip)}\n</g></g></svg></svg>\n'
    )


def leaderboard(folder: Path) -> Path:
    """Photograph the page of a leaderboard, from its top to what it says of overlapping intervals."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    for command in BOARD:
        subprocess.run([*ESC, *command.split()[1:]], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        sys.exit("no Chromium: apt-get install chromium")
    path = PICTURES / "leaderboard.png"
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDE, "height": 900}, device_scale_factor=2, color_scheme="light")
        page.goto((folder / "site" / "leaderboard.html").as_uri())
        note = page.locator(".note").first.bounding_box()
        assert note
        page.screenshot(path=path, clip={"x": 0, "y": 0, "width": WIDE, "height": note["y"] + note["height"] + 16})
        browser.close()
    with Image.open(path) as seen:
        few = seen.convert("RGB").quantize(TONES, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path


if __name__ == "__main__":
    main()

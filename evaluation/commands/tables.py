"""Tables for the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from esc_env.escaping import one_line

__all__ = ["print_table"]


def print_table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. Where it is too wide, headings are broken, then lines left out, then names folded; numbers never.

    Args:
        title: stands above it.
        columns: name, and whether it holds numbers; other text may be folded.
        rows: one text per column, shown on one line: a file of somebody else's may have named what they tell of.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from esc_env.progress import WIDTH

    cells = [[one_line(cell) for cell in row] for row in rows]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH

    def longest(texts: Iterable[str]) -> int:
        return max(map(cell_len, texts), default=1)

    def needed(place: int, whole: bool, most: int) -> int:
        """Columns for numbers and their heading, whole or by words; for other texts those of the longest word."""
        (name, numbers), texts = columns[place], [row[place] for row in cells]
        if numbers:
            return max(longest([name] if whole else name.split()), longest(texts))
        return min(longest(word for text in (name, *texts) for word in text.split()), most)

    for lines, whole, most in ((True, True, 24), (True, False, 24), (False, False, 24), (False, False, 8)):
        least = [needed(place, whole, most) for place in range(len(columns))]
        room = sum(least) + (3 * len(columns) + 1 if lines else len(columns) - 1)
        if room <= width:
            break
    table = Table(title=Text(one_line(title)), title_justify="left")
    if not lines:
        table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
    for (name, numbers), narrow in zip(columns, least, strict=True):
        how: dict[str, Any] = {"justify": "right", "no_wrap": True} if numbers else {"overflow": "fold"}
        heading = name if whole or not numbers else textwrap.fill(name, narrow, break_long_words=False)
        table.add_column(Text(heading), min_width=narrow, **how)
    for row in cells:
        table.add_row(*map(Text, row))
    width = max(width, room)
    page = Console(file=sys.stdout, highlight=False, width=width, height=24)  # dumb ones too
    page.print(table)

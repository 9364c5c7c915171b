"""How commands print tables and foreign text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["one_line", "print_table"]


def print_table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. A narrow terminal gets it without lines and with names folded; no number is ever cut.

    Args:
        title: stands above it.
        columns: name, and whether it holds numbers; other text may be folded.
        rows: one text per column, shown as it is.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from esc_env.progress import WIDTH

    cells = [[name for name, _ in columns], *rows]
    table = Table(title=Text(title), title_justify="left")
    least = 0
    for (name, numbers), column in zip(columns, zip(*cells, strict=True), strict=True):
        widest = max(map(cell_len, column))
        needed = widest if numbers else min(widest, 12)
        how: dict[str, Any] = {"justify": "right", "no_wrap": True} if numbers else {"overflow": "fold"}
        table.add_column(name, min_width=needed, **how)
        least += needed
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    if least + 3 * len(columns) + 1 > width:
        table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
        width = max(width, least + len(columns) - 1)
    page = Console(file=sys.stdout, highlight=False, width=width, height=24)  # dumb ones too
    page.print(table)


def one_line(text: str) -> str:
    """Text of somebody's exception on one line, without terminal escape codes."""
    from esc_env.rendering import safe

    return " ".join(safe(text).split())

"""Tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest

from esc_env.escaping import one_line

__all__ = ["cell", "table"]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> list[str]:
    """The lines of a table; cells must be Markdown already (see `cell`). `align` has `l` or `r` for each column."""

    def line(cells: Iterable[object]) -> str:
        return "|" + "".join(f" {each} |" if each != "" else " |" for _, each in zip(columns, cells, strict=True))

    rules = [{"l": ":--", "r": "--:"}.get(each or "", "---") for _, each in zip_longest(columns, align)]
    return [line(columns), f"|{'|'.join(rules)}|", *map(line, rows)]


def cell(text: str) -> str:
    """Text that cannot break out of a cell, nor become a link, code or HTML, nor hide anything."""
    return re.sub(r"([\\`*\[\]|@]|:(?=//)|(?<=www)\.)", r"\\\1", escape(one_line(text), quote=False))

"""Groups of commands of which one need not be named."""

from __future__ import annotations

from typing import Any

import typer.core

__all__ = ["usually"]


def usually(name: str) -> type[typer.core.TyperGroup]:
    """A group in which the command of this name is meant where none is named: `esc leaderboard runs/` ranks them."""

    class Group(typer.core.TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
                args = [name, *args]
            return super().parse_args(ctx, args)

    return Group

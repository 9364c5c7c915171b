"""How a conversation looks to a person: who speaks, wrapped; what the critic made of it; how it ended.

Text of models is shown as text. Control characters (terminal escape codes, bidirectional overrides) become visible
marks, Rich markup stays as written, and every line but the first is indented, so that no text can forge a speaker.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from esc_env.dialogue import Dialogue
from esc_env.escaping import safe
from esc_env.protocols import Verdict

__all__ = ["Console", "show", "transcript"]

_WIDTH = 80
_STYLES = {"seeker": "bold cyan", "supporter": "bold green"}


def show(
    console: Console,
    dialogue: Dialogue,
    verdicts: Sequence[Verdict] = (),
    opening: int = 1,
    ending: str | None = None,
    shown: int = 0,
) -> int:
    """Print a conversation's lines after the first `shown`; returns how many lines it has now.

    Args:
        console: where to.
        dialogue: what was said; thoughts are not shown.
        verdicts: one per turn after the first `opening` messages.
        opening: messages that stood before the first turn.
        ending: how it ended, if it has.
        shown: what an earlier call returned.
    """
    lines: list[Table | Padding] = []
    for position, message in enumerate(dialogue):
        said = Text(safe(message.content)) if message.content.strip() else Text("(silence)", style="dim")
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_column(width=10, no_wrap=True)
        row.add_column(overflow="fold")
        row.add_row(Text(message.role.capitalize(), style=_STYLES[message.role]), said)
        lines.append(row)
        done = position - opening
        if done >= 0 and done % 2 == 1 and done // 2 < len(verdicts):
            verdict = verdicts[done // 2]
            words = f"turn {done // 2 + 1}: score {verdict.score:+.2f}" + (", solved" if verdict.solved else "")
            lines.append(Padding(Text(words, style="dim"), (0, 0, 0, 11)))
    if ending is not None:
        lines.append(Padding(Text(safe(ending), style="bold"), (0, 0, 0, 0)))
    for line in lines[shown:]:
        console.print(line, highlight=False)
    return len(lines)


def transcript(
    dialogue: Dialogue, verdicts: Sequence[Verdict] = (), opening: int = 1, ending: str | None = None
) -> str:
    """The same as plain text, 80 columns wide, without colours."""
    page = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with page.capture() as captured:
        show(page, dialogue, verdicts, opening, ending)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())

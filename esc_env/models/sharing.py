"""What this process may ask of models where several carry out one command: its share of every limit, and one purse.

Limits on requests and tokens are divided, so that nobody waits for the word of another process: each of four sends at
most a quarter. A budget cannot be divided so (a process that ends leaves a part of it unspent, one that is started anew
would have its part twice), so what is spent is added up in one place, which is asked before every request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from esc_env.models.budget import Ledger
    from esc_env.protocols import Usage

__all__ = ["Purse", "Share", "share", "take_share"]


class Purse(Protocol):
    """What several processes spend together."""

    async def spent(self) -> Usage:
        """By all of them so far."""
        ...

    def enter(self, made: Ledger) -> None:
        """Count a call that this process made. Returns at once; whoever asks from here later finds it counted."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one process has of the limits.

    Attributes:
        of: between how many processes they are divided, at least 1.
        purse: what all of them spend; None where this process is alone.
    """

    of: int = 1
    purse: Purse | None = None


_share = Share()


def share() -> Share:
    """That of this process: by default all of everything."""
    return _share


def take_share(given: Share) -> None:
    """Let this process have so much, from its next request on. To be called before the first one."""
    global _share
    _share = given

"""Chairs that come with a release: whoever reads a record can open them again by name, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.errors import SpecError
from esc_env.protocols import Critic, Seeker

__all__ = ["builtin_chair", "is_builtin"]


def is_builtin(identity: Mapping[str, Any]) -> bool:
    """Whether a seeker or critic of this identity calls itself one of a release: `builtin`, or `builtin:…`."""
    return str(identity.get("name")).partition(":")[0] == "builtin"


def builtin_chair(role: Literal["seeker", "critic"], identity: Mapping[str, Any]) -> Seeker | Critic | None:
    """The seeker or critic of exactly this identity that comes with this release; None where it is none.

    An identity may be a stranger's: nothing that it names is imported, fetched or spoken to.
    """
    if not is_builtin(identity):
        return None
    try:
        chair = resolve_seeker(identity["name"]) if role == "seeker" else resolve_critic(identity["name"])
    except SpecError:  # of another release
        return None
    return chair if chair.identity == identity else None

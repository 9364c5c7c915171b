"""The numbers of the reading seeker that the builtin one does not have."""

from __future__ import annotations

from dataclasses import dataclass

from esc_env.builtin.constants import Span

__all__ = ["READING", "Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the person makes of what the reader says about a sentence. Set by hand on train scenarios."""

    sentences: int = 8
    """Sentences of a turn that are read one by one; all after is one. Bounds the time that a turn takes."""
    fits: Span = (0.4, 0.8)
    """Sense from which a sentence takes up what the person said, in whatever words."""
    meant: float = 1.0
    """How far a sentence takes up the story by its meaning alone; the same words of the story may do so wholly."""
    supports: Span = (0.05, 0.35)
    """Support from which a sentence may do any good."""
    senseless: Span = (0.3, 0.65)
    """Sense from which a sentence is speech to this person."""
    harms: Span = (0.85, 0.98)
    """Harm from which a sentence hurts. The worst sentence counts, not the mean."""
    wound: float = 0.45
    """What a plainly harmful sentence hurts, in points of harm; nothing said beside it softens that."""
    scar: float = 0.12
    """What of such a wound no later turn heals."""
    means: Span = (0.4, 0.8)
    """Sense, beside what the person said helps, from which a proposal means it."""


READING = Reading()

"""What training gained where it was done several times: the same episodes before and after, over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.statistics.resampling import two_level
from esc_env.training.outcome import TEXTURE, changes, shown, texture

__all__ = ["Made", "compared", "gain_cell", "row_of", "seeds_cell", "spread_cells"]

Made = Sequence[Sequence[Report]]
"""Reports by training seed, and seed of GRPO upon it."""


def row_of(made: Made, before: Made) -> dict[str, Any]:
    """What tables and report.json say of one policy, trained so many times.

    Args:
        made: how it did.
        before: how the policy did that its training began with.
    """
    runs = [run for group in made for run in group]
    rates = [run.success_rate or 0.0 for run in runs]
    looks = [texture(run) for run in runs]
    return {
        "success_rate": fmean(rates),
        "each": rates,
        "average_turns": fmean(run.average_turns or 0.0 for run in runs),
        "conversations": sum(run.completed for run in runs),
        "errors": sum(run.errors for run in runs),
        **{name: fmean(look[name] or 0.0 for look in looks) for name, _ in TEXTURE.values()},
        "gain": compared(before, made),
    }


def compared(before: Made, after: Made) -> dict[str, Any] | None:
    """How much more the second runs solve than the first: the difference of SR, how sure it is, and where it varies.

    Paired by episode, and by seeds: what has one seed of GRPO is compared with all of those. None if no episode ended
    in both.
    """
    groups = [
        [changes(one[j % len(one)], other[j % len(other)]) for j in range(max(len(one), len(other)))]
        for one, other in zip(before, after, strict=True)
    ]
    if not any(values for group in groups for run in group for values in run.values()):
        return None
    made = two_level(groups)
    return {
        "difference": made.mean, "interval": list(made.interval), "between": made.between, "within": made.within,
        "runs": made.runs, "scenarios": made.scenarios,
    }  # fmt: skip


def gain_cell(change: Mapping[str, Any] | None) -> str:
    """A difference of `compared` in points, with its interval; a dash where there is none."""
    if change is None:
        return "–"
    low, high = change["interval"]
    return f"{100 * change['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def spread_cells(change: Mapping[str, Any] | None) -> tuple[str, str]:
    """How much a gain differs between training seeds, and how unsure scenarios leave that of one, in points."""
    found = [None if change is None or change[name] is None else 100 * change[name] for name in ("between", "within")]
    return shown(found[0], ".1f"), shown(found[1], ".1f")


def seeds_cell(rates: Sequence[float]) -> str:
    """The success rate of each seed; of many, the ends between which they lie."""
    if len(rates) <= 4:
        return ", ".join(f"{rate:.1%}" for rate in rates)
    return f"{min(rates):.1%} to {max(rates):.1%} of {len(rates)}"

"""Is one agent better than another? Runs that faced the same thing, conversation beside conversation.

Every conversation of one run is paired with that of the same scenario and trial in the other. What is uncertain is the
scenarios: so the interval and the permutation test take each with all its trials. McNemar's test takes conversations
as independent, which they are only with one trial per scenario.

*Sources:* paired permutation of clusters (signs of whole scenarios are exchanged): Good, Permutation, Parametric and
Bootstrap Tests of Hypotheses (2005), chapter 3, as in SciPy; McNemar, Psychometrika 12 (1947) 153–157, in its exact
form, and Holm, Scandinavian Journal of Statistics 6 (1979) 65–70, as in statsmodels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esc_env.errors import MissingExtra, ProtocolMismatch, RecordError, SpecError
from esc_env.evaluation.pages import markdown
from esc_env.evaluation.runs.report import Report, label, number, percent
from esc_env.evaluation.statistics.intervals import detectable, mean_interval
from esc_env.trajectory import Trajectory

__all__ = ["Comparison", "Difference", "aligned", "compare"]

PERMUTATIONS = 9_999
"""Drawn where there are more than that; p is then right to about a tenth of itself at .01."""
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Difference:
    """One run beside the first. Rates and differences are of success, in [−1, 1], over the pairs.

    Attributes:
        agent, base: labels of this run and of the first.
        pairs, scenarios: conversations with an outcome in both runs, and how many scenarios they are of.
        unpaired: episodes of either run left out, since they have no outcome in both, or none such is in the other.
        rate, base_rate: success rates over the pairs.
        difference: rate − base_rate.
        interval: its 95 % interval, by scenario.
        gained, lost: pairs that only this run solved, and only the first.
        mcnemar, permutation: two-sided p-values that there is no difference.
        mcnemar_holm, permutation_holm: the same, corrected for as many comparisons as were made (Holm).
        detectable: the smallest true difference that so many such pairs would show, four times in five.
    """

    agent: str
    base: str
    pairs: int
    scenarios: int
    unpaired: int
    rate: float
    base_rate: float
    difference: float
    interval: tuple[float, float]
    gained: int
    lost: int
    mcnemar: float
    permutation: float
    mcnemar_holm: float
    permutation_holm: float
    detectable: float

    @property
    def sentence(self) -> str:
        """What it says, in plain words."""
        low, high = self.interval
        points = number(100 * abs(self.difference), 1)
        more = "as many as" if self.difference == 0 else f"{points} points {'more' if self.difference > 0 else 'less'}"
        than = "" if self.difference == 0 else " than"
        ends = (-high, -low) if self.difference < 0 else (low, high)
        spread = " to ".join(number(100 * end, 1) for end in ends)
        shown = (
            f"more than chance explains, over {self.scenarios:,} scenarios"
            if self.permutation_holm < LEVEL
            else f"chance explains as much. {self.scenarios:,} scenarios with these trials show a difference of "
            f"{number(100 * self.detectable, 0)} points or more, four times in five; a smaller one may be there"
        )
        return f"{self.agent} solves {more}{than} {self.base} ({spread}); {p_text(self.permutation_holm)}: {shown}."


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs beside the first one.

    Attributes:
        differences: one per other run.
        mismatch: what the runs faced that was not the same; empty unless they were compared anyway.
        scenarios: the name of the first run's scenario set.
        fingerprint: its digest.
    """

    differences: tuple[Difference, ...]
    mismatch: tuple[str, ...]
    scenarios: str
    fingerprint: str

    @property
    def notes(self) -> list[str]:
        """What a reader must know, most important first."""
        notes = []
        if self.mismatch:
            notes.append(f"NOT COMPARABLE: these runs faced different things. What differs: {'; '.join(self.mismatch)}")
        lacking = "they have no outcome in both runs"
        if self.mismatch:
            lacking = "the other run has none of that scenario and trial, or one of the two has no outcome"
        notes += [
            f"{each.agent}: {each.unpaired:,} episodes are left out, since {lacking}"
            for each in self.differences
            if each.unpaired
        ]
        if any(each.pairs > each.scenarios for each in self.differences):
            notes.append(
                "McNemar's test takes trials of one scenario as independent; with more than one, believe the "
                "permutation, which does not"
            )
        if len(self.differences) > 1:
            notes.append(f"p-values are corrected for {len(self.differences)} comparisons (Holm)")
        return notes

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of a table, under `COLUMNS`."""
        return [
            (
                f"{each.agent} − {each.base}", percent(each.rate), percent(each.base_rate),
                number(100 * each.difference, 1, signed=True),
                " to ".join(number(100 * end, 1, signed=True) for end in each.interval),
                p_text(each.mcnemar_holm, ""), p_text(each.permutation_holm, ""), number(100 * each.detectable, 1),
                f"{each.pairs:,}",
            )
            for each in self.differences
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """A JSON object: all numbers, sentences, notes, and what differs."""
        return {
            "comparable": not self.mismatch,
            "mismatch": list(self.mismatch),
            "scenarios": self.scenarios,
            "fingerprint": self.fingerprint,
            "differences": [{**asdict(each), "sentence": each.sentence} for each in self.differences],
            "notes": self.notes,
        }

    def to_markdown(self) -> str:
        """A Markdown table, with sentences and notes."""
        rows = [tuple(map(markdown.cell, row)) for row in self.rows()]
        notes = [markdown.cell(note) for note in self.notes]
        stamp = [f"**{notes.pop(0)}.**", ""] if self.mismatch else []
        told = [line for each in self.differences for line in ("", markdown.cell(each.sentence))]
        lines = [*stamp, *markdown.table(COLUMNS, rows, "lrrrrrrrr"), *told, "", *(f"- {note}." for note in notes)]
        return "\n".join(lines).strip() + "\n"


COLUMNS = (
    "runs", "SR", "SR of the first", "points", "95 %", "McNemar p", "permuted p", "detectable", "pairs"
)  # fmt: skip


def p_text(p: float, name: str = "p") -> str:
    """`p = .013`, or `p < .001`."""
    shown = ("<", ".001") if p < 0.001 else ("=", f"{p:.3f}".removeprefix("0"))
    return f"{name} {' '.join(shown)}" if name else shown[1] if shown[0] == "=" else "".join(shown)


def compare(runs: Sequence[str | Path | Report], *, anyway: bool = False) -> Comparison:
    """Compare runs with the first of them, over the conversations that have an outcome in both.

    Args:
        runs: run folders, or reports; at least two.
        anyway: compare runs that faced different things too; everything that comes out says so.

    Raises:
        ProtocolMismatch: runs of different fingerprints; the message names what differs.
        RecordError: fewer than two runs, a folder without one, or the same run twice.
        SpecError: no conversation has an outcome in both.
        MissingExtra: SciPy or statsmodels is not installed.
    """
    from esc_env.evaluation.runs.runner import read_run

    reports = [run if isinstance(run, Report) else read_run(run) for run in runs]
    if len(reports) < 2:
        raise RecordError("a comparison takes at least two runs. Type: esc compare runs/A runs/B")
    base, *others = reports
    for place, report in enumerate(reports):
        same = next((other for other in reports[:place] if other.run_key == report.run_key), None)
        if same:
            raise RecordError(f"{same.folder} and {report.folder} are the same run; name only one of them")
    mismatch = _mismatch(base, others)
    if mismatch and not anyway:
        raise ProtocolMismatch(
            f"these runs faced different things, so that a difference says nothing of the agents. What differs: "
            f"{'; '.join(mismatch)}. To compare all the same, add --anyway: everything printed will say so"
        )
    named = [(report.agent, report.folder) for report in reports]
    labels = [label(*each, named) for each in named]
    pairs = [_paired(base, other) for other in others]
    tested = [_tests(each) for each in pairs]
    adjusted = list(zip(*(_holm(ps) for ps in zip(*tested, strict=True)), strict=True))
    return Comparison(
        tuple(
            _difference(name, labels[0], base, other, paired, raw, holm)
            for name, other, paired, raw, holm in zip(labels[1:], others, pairs, tested, adjusted, strict=True)
        ),
        mismatch,
        base.scenarios,
        base.fingerprint.digest,
    )


def aligned(base: Report, other: Report) -> list[tuple[Trajectory | None, Trajectory | None]]:
    """Conversations of the same scenario and trial side by side, in the first run's order; None for one that is not.

    What only the other run has stands last.
    """
    sides = [{(held.scenario.id, held.trial): held for held in report.trajectories} for report in (base, other)]
    return [(sides[0].get(key), sides[1].get(key)) for key in {**sides[0], **sides[1]}]


_Pairs = Mapping[str, Sequence[tuple[bool, bool]]]
"""By scenario: (solved in the first run, solved in the other) for each trial."""


def _mismatch(base: Report, others: Sequence[Report]) -> tuple[str, ...]:
    lines: dict[str, None] = {}
    for other in others:
        lines |= dict.fromkeys(base.fingerprint.differences(other.fingerprint))
    return tuple(lines)


def _paired(base: Report, other: Report) -> _Pairs:
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for before, after in aligned(base, other):
        if before and after and before.completed and after.completed:
            pairs.setdefault(after.scenario.id, []).append((before.solved, after.solved))
    if not pairs:
        raise SpecError(f"{base.folder} and {other.folder} have no conversation in common: no scenario and trial")
    return pairs


def _difference(
    name: str, first: str, base: Report, other: Report, pairs: _Pairs, raw: tuple[float, float], holm: Sequence[float]
) -> Difference:
    flat = [pair for tried in pairs.values() for pair in tried]
    values = [[float(after) - float(before) for before, after in tried] for tried in pairs.values()]
    mean, interval = mean_interval(values)
    return Difference(
        agent=name,
        base=first,
        pairs=len(flat),
        scenarios=len(pairs),
        unpaired=base.episodes + other.episodes - 2 * len(flat),
        rate=sum(after for _, after in flat) / len(flat),
        base_rate=sum(before for before, _ in flat) / len(flat),
        difference=mean,
        interval=interval,
        gained=flat.count((False, True)),
        lost=flat.count((True, False)),
        mcnemar=raw[0],
        permutation=raw[1],
        mcnemar_holm=holm[0],
        permutation_holm=holm[1],
        detectable=detectable(values),
    )


def _tests(pairs: _Pairs) -> tuple[float, float]:
    """p-values of McNemar's exact test over conversations, and of permuting whole scenarios."""
    try:
        import numpy as np
        from scipy.stats import permutation_test
        from statsmodels.stats.contingency_tables import mcnemar
    except ImportError as error:
        raise MissingExtra((error.name or "statsmodels").partition(".")[0], "stats") from error
    flat = [pair for tried in pairs.values() for pair in tried]
    table: list[list[int]] = [[flat.count((one, other)) for other in (True, False)] for one in (True, False)]
    if table[0][1] == table[1][0] == 0:
        return 1.0, 1.0  # no pair differs
    exact: Any = mcnemar(table, exact=True)
    sums = np.array([[sum(pair[side] for pair in tried) for tried in pairs.values()] for side in (0, 1)])
    moved = sums[:, sums[0] != sums[1]]  # scenarios that are alike in both runs change nothing
    if moved.shape[1] < 2:
        return float(exact.pvalue), 1.0  # of one scenario both signs are as likely
    permuted: Any = permutation_test(
        (moved[0], moved[1]), lambda one, other, axis: (other - one).sum(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=PERMUTATIONS, batch=1000, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(exact.pvalue), float(permuted.pvalue)


def _holm(ps: Sequence[float]) -> list[float]:
    from statsmodels.stats.multitest import multipletests

    adjusted: Any = multipletests(ps, method="holm")[1]
    return [float(p) for p in adjusted]

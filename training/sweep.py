"""How much does a number of the method matter? The whole pipeline for every value of some fields, over several seeds.

esc train sweep --preset tiny --vary grpo.alpha=0.2,0.5,0.8 --vary grpo.group_size=4,8 --out runs/sweep

OUT/seed-0/STAGE,FIELD=VALUE,…     a stage, made once for all that differ only later; its name says what is not as in
                                   the configuration that is swept; what earlier stages made is a link
OUT/seed-0/evaluate,FIELD=VALUE,…  everything of one row of the table
OUT/report.json, .md, sweep.svg
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env.errors import SpecError, one_of, whole
from esc_env.evaluation.pages import markdown
from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.statistics.resampling import two_level
from esc_env.fields import mapping
from esc_env.records import read_json, write_json, write_text
from esc_env.training import svg
from esc_env.training.config import STAGES, PipelineConfig
from esc_env.training.gains import compared, gain_cell, row_of, seeds_cell
from esc_env.training.jobs import Job, point, run_all
from esc_env.training.logs import read_valid
from esc_env.training.outcome import best_start, evaluations, measured, shown
from esc_env.training.stage import FREE

__all__ = ["sweep"]

Values = Mapping[str, Any]
"""The values that one row of the table has, by field: `grpo.alpha`."""

_FIRST = {
    "setting.reward_model": "rm", "setting.valid": "grpo", "setting.valid_limit": "grpo", "setting.test": "evaluate",
    "evaluate.temperature": "grpo", "grpo.completion_length": "collect",
}  # fmt: skip
"""Which stage a field changes first, where it is neither the stage of its section nor, for the setting's, sft:
checkpoints are judged at the temperature of the evaluation, and no reply of the policy is longer than in GRPO."""

_MADE = {
    "sft": ("base", "population", "sft"), "collect": ("collect",), "rm": ("rm-base", "rm"), "grpo": ("grpo", "valid"),
}  # fmt: skip
"""What each stage leaves in the folder of a pipeline."""

_START = "start"
"""The evaluations of the policy before GRPO, which many rows share: made before GRPO, as if it were a stage."""

_STEPS = (*STAGES[:3], _START, *STAGES[3:])


def sweep(
    config: PipelineConfig,
    vary: Mapping[str, Sequence[Any]],
    folder: str | Path,
    *,
    grid: bool = True,
    seeds: int = 3,
    jobs: int = 1,
    told: Callable[[str], None] = print,
) -> str:
    """Run a pipeline for every value; returns the table as Markdown, also kept as report.md. The same call resumes.

    A call with more values, fields or seeds goes on too: what is there is not made again.

    Args:
        config: whatever is not varied; its seed is the first one.
        vary: the values of each field, which is named as in `{"grpo.alpha": [0.2, 0.5]}`.
        folder: where everything is kept.
        grid: every value with every value of the other fields; else one field at a time, the others as in `config`.
        seeds: training seeds, at least 1, each for everything.
        jobs: how many stages run at the same time, each in a process of its own, at least 1.
        told: told one line about what happens; with several jobs each process prints its own lines.

    Raises:
        SpecError: no such field, two rows that are the same training, no seed, or no job.
        ConfigError: values that make no sense together.
    """
    whole(seeds=seeds, jobs=jobs)
    rows = _rows(config, vary, grid=grid)
    plan = _Plan(config, Path(folder))
    every = range(config.setting.seed, config.setting.seed + seeds)
    counts = [(step, {plan.place(0, step, row) for row in rows if plan.runs(step, row)}) for step in _STEPS]
    each = ", ".join(f"{len(places)} {step}" for step, places in counts if places)
    told(f"settings: {len(rows)}, training seeds: {seeds}. For each seed: {each}")
    run_all([plan.batches(seed, rows) for seed in every], jobs, told)
    names = [name for name in vary if any(name in values for values in rows)]
    facts = _facts(
        config, names, [(values, [plan.place(seed, "evaluate", values) for seed in every]) for values in rows]
    )
    write_json(plan.folder / "report.json", facts)
    write_text(plan.folder / "sweep.svg", _figure(facts))
    table = _markdown(facts)
    write_text(plan.folder / "report.md", table)
    return table


# --- what is run ----------------------------------------------------------------------------------


def _rows(config: PipelineConfig, vary: Mapping[str, Sequence[Any]], *, grid: bool) -> list[Values]:
    """What differs from `config` in each row of the table, by field."""
    known = [f"{part.name}.{each.name}" for part in fields(config) for each in fields(getattr(config, part.name))]
    for name in vary:
        one_of("field", name, known)
        if name == "setting.seed":
            raise SpecError("setting.seed is not varied: `seeds` says how many seeds everything is trained with")
    if not any(vary.values()):
        raise SpecError("nothing is varied: name a field and its values")
    if grid:
        found = [dict(zip(vary, each, strict=True)) for each in product(*vary.values())]
    else:
        found = [{}, *({name: value} for name, values in vary.items() for value in values)]
    rows: dict[str, Values] = {}
    for values in found:
        differs = {name: value for name, value in values.items() if value != _value(config, name)}
        made = asdict(_changed(config, differs))
        del made["models"], made["setting"]["skip"]
        same = json.dumps([[each[name] for name in sorted(each.keys() - FREE)] for each in made.values()], default=str)
        if rows.setdefault(same, differs) != differs:
            raise SpecError(
                f"{_told(rows[same])} and {_told(differs)} are the same training: vary what changes what is learned"
            )
    return list(rows.values())


def _value(config: PipelineConfig, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(config, section), field)


def _changed(config: PipelineConfig, values: Values) -> PipelineConfig:
    """The same with these values."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = value
    return replace(config, **{each: replace(getattr(config, each), **new) for each, new in sections.items()}).settled()


def _told(values: Values) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "what is swept"


def _matters(name: str, step: str) -> bool:
    """Whether a field changes what a step makes."""
    section = name.partition(".")[0]
    first = _FIRST.get(name, section if section in STAGES else "sft")
    if step == _START:
        return first in ("sft", "evaluate") or section == "evaluate" or name == "grpo.completion_length"
    return STAGES.index(first) <= STAGES.index(step)


def _slug(value: Any, longest: int) -> str:
    """A value as a folder's name; where it had to be changed or cut for that, with a digest of what it was."""
    plain = str(value)
    name = re.sub(r"[^\w.,=+-]+", "-", plain)[:longest]
    return name if name == plain else f"{name}-{blake2b(plain.encode(), digest_size=3).hexdigest()}"


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where each stage of each row is, and how it is run."""

    config: PipelineConfig
    folder: Path

    def place(self, seed: int, step: str, values: Values) -> Path:
        """The folder of a step, which is the same for all rows that are alike so far."""
        named = (f"{name}={_slug(value, 40)}" for name, value in sorted(values.items()) if _matters(name, step))
        return self.folder / f"seed-{seed}" / _slug(",".join([step, *named]), 200)

    def runs(self, step: str, values: Values) -> bool:
        """Whether a row has this step."""
        config = _changed(self.config, values)
        if step == _START:
            return config.runs("evaluate") and config.runs("grpo")
        return config.runs(step)

    def batches(self, seed: int, rows: Sequence[Values]) -> Iterator[list[Job]]:
        """What one training seed runs: each list needs what the one before it made."""
        for step in _STEPS:
            jobs: dict[Path, Job] = {}
            for values in rows:
                place = self.place(seed, step, values)
                if self.runs(step, values) and place not in jobs:
                    self._link(seed, step, values, place)
                    jobs[place] = self._config(seed, step, values), place
            yield list(jobs.values())

    def _config(self, seed: int, step: str, values: Values) -> PipelineConfig:
        """Of one step: what later ones alone differ in is as in the configuration that is swept."""
        config = _changed(self.config, {name: value for name, value in values.items() if _matters(name, step)})
        stage = "evaluate" if step == _START else step
        skip = [each for each in STAGES if each != stage]
        return replace(config, setting=replace(config.setting, seed=seed, skip=skip)).settled()

    def _link(self, seed: int, step: str, values: Values, place: Path) -> None:
        """Let a step begin with what those before it have made."""
        (place / "eval").mkdir(parents=True, exist_ok=True)
        for before in ("sft",) if step == _START else _STEPS[: _STEPS.index(step)]:
            there = self.place(seed, before, values)
            for path in (there / name for name in _MADE.get(before, ())):
                if path.exists() and not path.is_symlink():
                    point(place / path.name, path)
            if before == _START:
                for path in (there / "eval").glob("start*"):
                    point(place / "eval" / path.name, path)


# --- what came of it ------------------------------------------------------------------------------


def _facts(
    config: PipelineConfig, names: Sequence[str], made: Sequence[tuple[Values, Sequence[Path]]]
) -> dict[str, Any]:
    """All numbers of the report, a row for each setting. The first is what the others are compared with."""
    ends: list[list[list[Report]]] = []
    rows = []
    for values, places in made:
        runs = [evaluations(place) for place in places]
        row: dict[str, Any] = {
            "values": {name: values.get(name, _value(config, name)) for name in names},
            "folders": [str(place) for place in places],
            "valid": _mean(_chosen(place) for place in places),
            "auc_within": _mean(_auc(place) for place in places),
        }
        if all("start" in each for each in runs):
            before = [[each[best_start(each) or "start"]] for each in runs]
            ends.append([[each.get("grpo", each["start"])] for each in runs])
            row |= {"before": fmean(run.success_rate or 0.0 for (run,) in before), **row_of(ends[-1], before)}
            row["interval"] = _interval(ends[-1])
            row["over_first"] = compared(ends[0], ends[-1]) if len(ends) > 1 else None
        rows.append(row)
    return {"fields": [*names], "rows": rows}


def _chosen(place: Path) -> float | None:
    """What the checkpoint that became the result had on valid."""
    return max((rate for step, rate in read_valid(place / "grpo").items() if step), default=None)


def _auc(place: Path) -> float | None:
    """Of the reward model, within contexts, on scenarios that it has not seen."""
    path = place / "rm" / "report.json"
    return mapping(read_json(path, measured))["auc_within"] if path.is_file() else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _interval(made: Sequence[Sequence[Report]]) -> list[float] | None:
    """How sure a success rate is: training seeds and scenarios are drawn again."""
    groups: list[list[dict[str, list[float]]]] = []
    for group in made:
        groups.append([])
        for run in group:
            solved: dict[str, list[float]] = {}
            for item in run.trajectories:
                if item.completed:
                    solved.setdefault(item.scenario.id, []).append(float(item.solved))
            groups[-1].append(solved)
    return list(two_level(groups).interval) if any(run for group in groups for run in group) else None


_COLUMNS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "auc_within": ("AUC within contexts", lambda row: shown(row["auc_within"])),
    "valid": ("SR on valid", lambda row: shown(row["valid"], ".1%")),
    "before": ("SR before", lambda row: shown(row["before"], ".1%")),
    "success_rate": ("SR", lambda row: shown(row["success_rate"], ".1%")),
    "interval": ("95 % interval", lambda row: " – ".join(shown(end, ".1%") for end in row["interval"])),
    "each": ("each seed", lambda row: seeds_cell(row["each"])),
    "average_turns": ("AT", lambda row: f"{row['average_turns']:.2f}"),
    "gain": ("gain", lambda row: gain_cell(row["gain"])),
    "over_first": ("over the first row", lambda row: gain_cell(row["over_first"])),
    "conversations": ("conversations", lambda row: f"{row['conversations']}"),
    "errors": ("errors", lambda row: f"{row['errors']}"),
}
"""The columns after the fields' own; those are shown that some row has."""


def _markdown(facts: Mapping[str, Any]) -> str:
    rows = facts["rows"]
    columns = {name: each for name, each in _COLUMNS.items() if any(row.get(name) is not None for row in rows)}
    cells = [
        (
            *(str(value) for value in row["values"].values()),
            *(cell(row) if row.get(name) is not None else "–" for name, (_, cell) in columns.items()),
        )
        for row in rows
    ]
    lines = [
        "Gains are in points of SR over the policy before GRPO at its best temperature, and over the first row, in the "
        "same episodes; intervals are of 95 %, resampling training seeds and scenarios. With fewer than 8 seeds they "
        "are too narrow. The best of many rows looks better here than it is: choose by SR on valid, then read its row.",
        "",
        *markdown.table((*facts["fields"], *(title for title, _ in columns.values())), cells),
    ]
    return "\n".join(lines) + "\n"


def _figure(facts: Mapping[str, Any]) -> str:
    """SR of every row with its interval, and a ring where it was before GRPO."""
    rows = [row for row in facts["rows"] if row.get("interval")]
    names = [", ".join(f"{name} {value}" for name, value in row["values"].items()) for row in rows]
    left, wide, high = 20 + round(6.2 * max(map(len, names), default=0)), 400, 22
    bottom = 30 + high * len(rows)
    parts = []
    for tenth in range(0, 11, 2):
        x = left + wide * tenth / 10
        parts.append(svg.element("line", x1=x, x2=x, y1=20, y2=bottom, stroke="#ddd"))
        parts.append(svg.text(f"{10 * tenth} %", x, bottom + 16, "middle"))
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        y = 30 + high * number + high / 2
        low, middle, end, before = (left + wide * at for at in (row["interval"][0], row["success_rate"],
                                                                row["interval"][1], row["before"]))  # fmt: skip
        parts += [
            svg.text(name, left - 8, y + 4, "end"),
            svg.element("line", x1=low, x2=end, y1=y, y2=y, stroke="#2563eb", stroke_width=2),
            svg.element("circle", svg.title("before GRPO"), cx=before, cy=y, r=4, fill="white", stroke="#777"),
            svg.element("circle", svg.title("after GRPO"), cx=middle, cy=y, r=4, fill="#2563eb"),
        ]
    parts.append(svg.text("SR, and 95 % interval; ring: before GRPO", left, bottom + 34))
    return svg.figure("Success rate of every setting", left + wide + 40, bottom + 46, *parts)

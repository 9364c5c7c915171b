"""Which part of the method does the work? Every reward and control at identical settings, over several training seeds.

    esc train ablate --preset tiny --out runs/ablation

    OUT/seed-0/shared   sft, collect, and the evaluation of the policy before GRPO
    OUT/seed-0/ARM      rm, grpo and evaluation of one arm; what it shares is a link
    OUT/report.json, .md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env.errors import ConfigError, did_you_mean
from esc_env.records import write_json
from esc_env.training.config import PipelineConfig
from esc_env.training.pipeline import run_pipeline

__all__ = ["ARMS", "ablate"]

ARMS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "rlff": {"grpo": {"reward": "rlff"}, "rm": {"kind": "classification"}},
    "ranking": {"grpo": {"reward": "rlff"}, "rm": {"kind": "ranking"}},
    "regression": {"grpo": {"reward": "rlff"}, "rm": {"kind": "regression"}},
    "env": {"grpo": {"reward": "env"}},
    "future": {"grpo": {"reward": "future"}},
    "no think-format": {"grpo": {"reward": "rlff", "alpha": 0.0}, "rm": {"kind": "classification"}},
    "format only": {"grpo": {"reward": "format"}},
    "random + format": {"grpo": {"reward": "random"}},
    "random": {"grpo": {"reward": "random", "alpha": 0.0}},
}
"""What is changed for each row of the table. *Source:* the ablations of RLFF-ESC (arXiv 2508.12935); env, future,
format only and random without format are ours."""

_SHARED = ("base", "population.jsonl", "sft", "collect")


def ablate(
    config: PipelineConfig,
    folder: str | Path,
    *,
    seeds: int = 3,
    arms: Sequence[str] | None = None,
    told: Callable[[str], None] = print,
) -> str:
    """Run all arms; returns the table as Markdown, also kept as report.md. The same call resumes.

    Args:
        config: of the pipeline; its seed is the first one.
        folder: where everything is kept.
        seeds: training seeds, at least 1.
        arms: names of `ARMS`; None for all.
        told: told one line about what happens.

    Raises:
        ConfigError: an unknown arm, or no seed.
    """
    chosen = list(arms or ARMS)
    for name in chosen:
        if name not in ARMS:
            raise ConfigError(f"there is no arm {name!r}. {did_you_mean(name, ARMS)}")
    if seeds < 1:
        raise ConfigError(f"seeds = {seeds} must be at least 1")
    folder = Path(folder)
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    starts = []
    for seed in range(config.setting.seed, config.setting.seed + seeds):
        home = folder / f"seed-{seed}"
        shared = _with(config, seed, {}, skip=["rm", "grpo"])
        told(f"seed {seed}: shared")
        starts.append(run_pipeline(shared, home / "shared", told=told)["evaluation"]["start"])
        for name in chosen:
            told(f"seed {seed}: {name}")
            arm = home / name.replace(" ", "-").replace("+", "and").replace("--", "-")
            _link(home / "shared", arm)
            made[name].append(run_pipeline(_with(config, seed, ARMS[name], skip=["sft", "collect"]), arm, told=told))
    table = _table(starts, made)
    write_json(folder / "report.json", {"start": starts, "arms": made})
    (folder / "report.md").write_text(table, encoding="utf-8")
    return table


def _with(
    config: PipelineConfig, seed: int, changes: Mapping[str, Mapping[str, Any]], *, skip: list[str]
) -> PipelineConfig:
    """The configuration of one arm and seed."""
    stages: dict[str, Any] = {
        name: replace(getattr(config, name), seed=seed, **changes.get(name, {})) for name in ("sft", "rm", "grpo")
    }
    return replace(config, setting=replace(config.setting, seed=seed, skip=skip), **stages)


def _link(shared: Path, arm: Path) -> None:
    """Let an arm begin with what all arms share."""
    (arm / "eval").mkdir(parents=True, exist_ok=True)
    for path in (*(shared / name for name in _SHARED), *(shared / "eval").glob("start*")):
        link = arm / path.relative_to(shared)
        if path.exists() and not link.is_symlink():
            link.symlink_to(path.resolve())


def _table(starts: Sequence[Mapping[str, Any]], made: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """SR of every arm: mean over seeds, each seed, and its gain over the policy it began with."""
    lines = [
        "| arm | SR | AT | SR of each seed | gain of each seed in points (95 % interval) | distinct-2 | top reply |",
        "|---|---|---|---|---|---|---|",
        _line("before GRPO", starts, ""),
    ]
    for name, reports in made.items():
        gains = ", ".join(
            f"{100 * report['gain']['difference']:+.1f} "
            f"({100 * report['gain']['interval'][0]:+.1f} to {100 * report['gain']['interval'][1]:+.1f})"
            for report in reports
        )
        lines.append(_line(name, [report["evaluation"]["grpo"] for report in reports], gains))
    return "\n".join(lines) + "\n"


def _line(name: str, runs: Sequence[Mapping[str, Any]], gains: str) -> str:
    def mean(field: str) -> float:
        return fmean(run[field] or 0.0 for run in runs)

    each = ", ".join(f"{run['success_rate'] or 0.0:.1%}" for run in runs)
    return (
        f"| {name} | {mean('success_rate'):.1%} | {mean('average_turns'):.2f} | {each} | {gains} | "
        f"{mean('distinct_2'):.3f} | {mean('top_reply'):.1%} |"
    )

"""Which part of the method does the work? Every reward and control at identical settings, over several training seeds.

esc train ablate --preset tiny --out runs/ablation

OUT/seed-0/shared    sft, collect, and the policy before GRPO, evaluated at every temperature
OUT/seed-0/rm-KIND   a reward model
OUT/seed-0/ARM       grpo and evaluation of one arm; what it shares is a link
OUT/report.json, .md, curves.svg
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env.errors import one_of, whole
from esc_env.evaluation import markdown
from esc_env.evaluation.report import Report
from esc_env.records import write_json, write_text
from esc_env.training import svg
from esc_env.training.config import PipelineConfig
from esc_env.training.outcome import TEXTURE, best_start, evaluations, gain, texture, texture_cells
from esc_env.training.pipeline import run_pipeline

__all__ = ["ARMS", "CLAIMS", "Claim", "ablate"]

ARMS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "rlff": {"grpo": {"reward": "rlff"}, "rm": {"kind": "classification"}},
    "ranking": {"grpo": {"reward": "rlff"}, "rm": {"kind": "ranking"}},
    "regression": {"grpo": {"reward": "rlff"}, "rm": {"kind": "regression"}},
    "env": {"grpo": {"reward": "env"}},
    "future": {"grpo": {"reward": "future"}},
    "no think-format": {"grpo": {"reward": "rlff", "alpha": 0.0}, "rm": {"kind": "classification"}},
    "format only": {"grpo": {"reward": "format"}},
    "untrained + format": {"grpo": {"reward": "untrained"}},
    "untrained": {"grpo": {"reward": "untrained", "alpha": 0.0}},
    "noise + format": {"grpo": {"reward": "noise"}},
    "noise": {"grpo": {"reward": "noise", "alpha": 0.0}},
}
"""What is changed for each row of the table. *Source:* the ablations of RLFF-ESC (arXiv 2508.12935); env, future,
format only and random without format are ours."""

START = "before GRPO"


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that the table is to show, in points of SR, paired by episode and clustered by scenario.

    Attributes:
        arm, over: whose SR is compared. `over` is an arm, `best` (the policy before GRPO at its best temperature on
            these very episodes) or `start` (at the evaluation temperature).
        least: the difference must be at least this large; None asks for nothing.
        above: the lower end of the 95 % interval must lie above this.
        below: its upper end must lie below this.
    """

    arm: str
    over: str
    least: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, difference: float, interval: Sequence[float]) -> bool:
        """Whether a measured difference, in [-1, 1], and its interval bear it out."""
        return (
            (self.least is None or difference >= self.least)
            and (self.above is None or interval[0] > self.above)
            and (self.below is None or interval[1] < self.below)
        )

    def __str__(self) -> str:
        over = {"best": f"{START}, at its best temperature", "start": START}.get(self.over, self.over)
        asked = [
            "" if self.least is None else f"≥ {100 * self.least:+.0f} points",
            "" if self.above is None else f"interval above {100 * self.above:.0f}",
            "" if self.below is None else f"interval below {100 * self.below:+.0f}",
        ]
        return f"{self.arm} − {over}: {', '.join(filter(None, asked))}"


CLAIMS = (
    Claim("env", "best", least=0.15, above=0.0),
    Claim("rlff", "best", above=0.0),
    Claim("rlff", "untrained + format", above=0.0),
    Claim("rlff", "noise + format", above=0.0),
    Claim("rlff", "format only", above=0.0),
    Claim("noise + format", "start", below=0.10),
)
"""What must hold for the machinery to count as learning. Set before anything was measured; the noise was called random
then, and the untrained reward model was added before it was measured."""

_SHARED = ("base", "population", "sft", "collect")


def ablate(
    config: PipelineConfig,
    folder: str | Path,
    *,
    seeds: int = 3,
    arms: Sequence[str] | None = None,
    jobs: int = 1,
    told: Callable[[str], None] = print,
) -> str:
    """Run all arms; returns the table as Markdown, also kept as report.md. The same call resumes.

    Args:
        config: of the pipeline; its seed is the first one.
        folder: where everything is kept.
        seeds: training seeds, at least 1.
        arms: names of `ARMS`; None for all.
        jobs: how many are trained at the same time, each in a process of its own, at least 1.
        told: told one line about what happens; with several jobs each process prints its own lines.

    Raises:
        SpecError: an unknown arm, no seed, or no job.
    """
    chosen = list(arms or ARMS)
    for name in chosen:
        one_of("arm", name, ARMS)
    whole(seeds=seeds, jobs=jobs)
    folder = Path(folder)
    every = [replace(config, setting=replace(config.setting, seed=config.setting.seed + i)) for i in range(seeds)]
    homes = [folder / f"seed-{each.setting.seed}" for each in every]
    kinds = sorted({ARMS[name]["rm"]["kind"] for name in chosen if "rm" in ARMS[name]})
    _run_all([_plan(each, home, kinds, chosen) for each, home in zip(every, homes, strict=True)], jobs, told)
    starts = [evaluations(home / "shared") for home in homes]
    made = {name: [evaluations(_place(home, name)) for home in homes] for name in chosen}
    facts = _facts(starts, made, config.evaluate.personas)
    curves = {name: [_log(_place(home, name)) for home in homes] for name in chosen}
    write_json(folder / "report.json", facts)
    write_text(folder / "curves.svg", _curves_svg(curves))
    table = _markdown(facts)
    write_text(folder / "report.md", table)
    return table


# --- what is run ----------------------------------------------------------------------------------

_Job = tuple[PipelineConfig, Path]


def _plan(config: PipelineConfig, home: Path, kinds: Sequence[str], arms: Sequence[str]) -> Iterator[list[_Job]]:
    """What one training seed runs: each list needs what the one before it made."""
    yield [(_with(config, {}, skip=["rm", "grpo"]), home / "shared")]
    for kind in kinds:
        _link(home / "shared", home / f"rm-{kind}")
    skip = ["sft", "collect", "grpo", "evaluate"]
    yield [(_with(config, {"rm": {"kind": kind}}, skip=skip), home / f"rm-{kind}") for kind in kinds]
    for name in arms:
        _link(home / "shared", _place(home, name))
        if "rm" in ARMS[name]:
            _point(_place(home, name) / "rm", home / f"rm-{ARMS[name]['rm']['kind']}" / "rm")
    yield [(_with(config, ARMS[name], skip=["sft", "collect", "rm"]), _place(home, name)) for name in arms]


def _place(home: Path, arm: str) -> Path:
    return home / arm.replace(" + ", "-and-").replace(" ", "-")


def _with(config: PipelineConfig, changes: Mapping[str, Mapping[str, Any]], *, skip: list[str]) -> PipelineConfig:
    """The configuration of one job."""
    seed = config.setting.seed
    stages: dict[str, Any] = {
        name: replace(getattr(config, name), seed=seed, **changes.get(name, {})) for name in ("sft", "rm", "grpo")
    }
    return replace(config, setting=replace(config.setting, skip=skip), **stages)


def _link(shared: Path, arm: Path) -> None:
    """Let an arm begin with what all arms share."""
    (arm / "eval").mkdir(parents=True, exist_ok=True)
    for path in (*(shared / name for name in _SHARED), *(shared / "eval").glob("start*")):
        if path.exists():
            _point(arm / path.relative_to(shared), path)


def _point(link: Path, there: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(there.resolve())


def _run_all(plans: Sequence[Iterator[list[_Job]]], jobs: int, told: Callable[[str], None]) -> None:
    """Run every plan; with several jobs, none waits for another plan's."""
    if jobs == 1:
        for config, place in (job for plan in plans for batch in plan for job in batch):
            told(str(place))
            run_pipeline(config, place, told=told)
        return
    # Ctrl-C goes to the workers too, and ends them without a word: every stage can be killed and gone on with.
    quiet: dict[str, Any] = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), **quiet) as pool:
        running = {plan: _submit(pool, plan) for plan in plans}
        try:
            while any(running.values()):
                ended, _ = wait([job for batch in running.values() for job in batch], return_when=FIRST_COMPLETED)
                for job in ended:
                    job.result()
                for plan, batch in running.items():
                    running[plan] = [job for job in batch if job not in ended]
                    if batch and not running[plan]:
                        running[plan] = _submit(pool, plan)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _submit(pool: Executor, plan: Iterator[list[_Job]]) -> list[Future[None]]:
    """Hand in what a plan has next; nothing at its end."""
    return [pool.submit(_run, config, place) for config, place in next(filter(None, plan), [])]


def _run(config: PipelineConfig, place: Path) -> None:
    run_pipeline(config, place, told=lambda line: print(f"{place.parent.name}, {place.name}: {line}", flush=True))


# --- what came of it ------------------------------------------------------------------------------

_Runs = Mapping[str, Report]


def _facts(starts: Sequence[_Runs], made: Mapping[str, Sequence[_Runs]], personas: Sequence[str]) -> dict[str, Any]:
    """All numbers of the report. Differences are of the same episodes, over all training seeds."""
    best = [runs[best_start(runs) or "start"] for runs in starts]
    swept = sorted({name for runs in starts for name in runs if name.startswith("start-t")})
    rows = {START: _row([runs["start"] for runs in starts], best)}
    for name in swept:
        rows[f"{START}, temperature {name[7:]}"] = _row([runs[name] for runs in starts], best)
    ends = {name: [runs["grpo"] for runs in each] for name, each in made.items()}
    for name, runs in ends.items():
        rows[name] = _row(runs, best)
    sides = {"best": best, "start": [runs["start"] for runs in starts], **ends}
    claims = []
    for claim in CLAIMS:
        if claim.arm in sides and claim.over in sides:
            change = gain(zip(sides[claim.over], sides[claim.arm], strict=True))
            if change is not None:
                met = claim.holds(change["difference"], change["interval"])
                claims.append({"claim": str(claim), **change, "met": met})
    others: dict[str, Any] = {}
    for persona in personas:
        before = [runs[f"start-{persona}"] for runs in starts]
        others[persona] = {START: _row(before, before)}
        for name, each in made.items():
            others[persona][name] = _row([runs[f"grpo-{persona}"] for runs in each], before)
    return {"rows": rows, "claims": claims, "personas": others}


def _row(runs: Sequence[Report], before: Sequence[Report]) -> dict[str, Any]:
    rates = [run.success_rate or 0.0 for run in runs]
    looks = [texture(run) for run in runs]
    return {
        "success_rate": fmean(rates),
        "each": rates,
        "average_turns": fmean(run.average_turns or 0.0 for run in runs),
        "conversations": sum(run.completed for run in runs),
        "errors": sum(run.errors for run in runs),
        **{name: fmean(look[name] or 0.0 for look in looks) for name, _ in TEXTURE.values()},
        "gain": gain(zip(before, runs, strict=True)),
    }


def _points(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return "–"
    low, high = change["interval"]
    return f"{100 * change['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _markdown(facts: Mapping[str, Any]) -> str:
    titles = ("policy", "SR", "each seed", "AT", "gain", "conversations", "errors", *TEXTURE)
    rows = [
        (
            name, f"{row['success_rate']:.1%}", ", ".join(f"{rate:.1%}" for rate in row["each"]),
            f"{row['average_turns']:.2f}", _points(row["gain"]), row["conversations"], row["errors"],
            *texture_cells(row),
        )
        for name, row in facts["rows"].items()
    ]  # fmt: skip
    lines = [
        f"Gains are in points of SR over the policy {START} at its best temperature, in the same episodes; in brackets "
        "the 95 % interval, clustered by scenario.",
        "",
        *markdown.table(titles, rows),
    ]
    if facts["claims"]:
        held = {True: "holds", False: "**does not hold**"}
        claims = [(item["claim"], _points(item), held[item["met"]]) for item in facts["claims"]]
        lines += ["", *markdown.table(("claim", "measured", ""), claims)]
    if facts["personas"]:
        told = f"With seekers of other personas and other seeds: SR, and the gain over the policy {START} with them."
        names = next(iter(facts["personas"].values()))
        others = [(name, *(_with_gain(name, rows[name]) for rows in facts["personas"].values())) for name in names]
        lines += ["", told, "", *markdown.table(("policy", *facts["personas"]), others)]
    return "\n".join(lines) + "\n"


def _with_gain(name: str, row: Mapping[str, Any]) -> str:
    return f"{row['success_rate']:.1%}" + ("" if name == START else f", {_points(row['gain'])}")


# --- learning curves ------------------------------------------------------------------------------

_PANELS = {
    "valid/success_rate": "SR on valid",
    "reward": "reward (each arm has its own)",
    "entropy": "entropy, nats per token",
    "text/distinct_2": "distinct-2 of a batch",
}
_INKS = ("#2563eb", "#0891b2", "#7c3aed", "#dc2626", "#ea580c", "#16a34a", "#db2777", "#525252", "#a3a3a3", "#ca8a04")


def _log(place: Path) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = json.loads((place / "grpo" / "log.json").read_text(encoding="utf-8"))
    return log


def _curves_svg(logs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> str:
    """Learning curves of every arm, the mean of its seeds: one panel for each thing that is watched."""
    wide, high = 300, 180
    parts = []
    for number, (column, title) in enumerate(_PANELS.items()):
        left, top = 50 + number % 2 * (wide + 60), 30 + number // 2 * (high + 60)
        lines = {name: _mean_curve(each, column) for name, each in logs.items()}
        values = [value for line in lines.values() for _, value in line] or [0.0]
        floor, ceiling = min(0.0, *values), max(values) or 1.0
        last = max((step for line in lines.values() for step, _ in line), default=0) or 1
        parts += [
            svg.text(title, left, top - 8, font_weight="bold"),
            svg.element("rect", x=left, y=top, width=wide, height=high, fill="none", stroke="#999"),
            svg.text(f"{ceiling:.2g}", left - 6, top + 10, "end"),
            svg.text(f"{floor:.2g}", left - 6, top + high, "end"),
            svg.text(f"step {last}", left + wide, top + high + 16, "end"),
        ]
        for ink, (name, line) in enumerate(lines.items()):
            points = " ".join(
                f"{left + wide * step / last:.1f},{top + high - high * (value - floor) / (ceiling - floor or 1):.1f}"
                for step, value in line
            )
            stroke = _INKS[ink % len(_INKS)]
            parts.append(
                svg.element("polyline", svg.title(name), points=points, fill="none", stroke=stroke, stroke_width=1.6)
            )
    below = 30 + 2 * (high + 60)
    for ink, name in enumerate(logs):
        x, y = 50 + ink % 5 * 140, below + ink // 5 * 18
        parts.append(svg.element("rect", x=x, y=y - 9, width=10, height=10, fill=_INKS[ink % len(_INKS)]))
        parts.append(svg.text(name, x + 14, y))
    return svg.figure("Learning curves", 2 * wide + 140, below + 18 * ((len(logs) + 4) // 5), *parts)


def _mean_curve(logs: Sequence[Sequence[Mapping[str, Any]]], column: str) -> list[tuple[int, float]]:
    found: dict[int, list[float]] = {}
    for log in logs:
        for entry in log:
            if entry.get(column) is not None:
                found.setdefault(int(entry["step"]), []).append(float(entry[column]))
    return [(step, fmean(values)) for step, values in sorted(found.items())]

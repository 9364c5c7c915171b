"""Which part of the method does the work? Every reward and control at identical settings, over several training seeds.

esc train ablate --preset tiny --out runs/ablation

OUT/seed-0/shared    sft, collect, and the policy before GRPO, evaluated at every temperature; steady is another one
OUT/seed-0/rm-KIND   a reward model
OUT/seed-0/ARM       grpo and evaluation of one arm; what it shares is a link; ARM-2, … are more seeds of GRPO
OUT/report.json, .md, curves.svg
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_env.errors import one_of, whole
from esc_env.evaluation.pages import markdown
from esc_env.evaluation.runs.report import Report
from esc_env.records import write_json, write_text
from esc_env.training import svg
from esc_env.training.config import PipelineConfig
from esc_env.training.data import read_samples
from esc_env.training.gains import Made, compared, gain_cell, row_of, seeds_cell, spread_cells
from esc_env.training.jobs import Job, point, run_all
from esc_env.training.logs import read_log
from esc_env.training.moves import paid, shares
from esc_env.training.outcome import TEXTURE, best_start, evaluations, shown, texture_cells

__all__ = ["ARMS", "CLAIMS", "ENOUGH", "STARTS", "Arm", "Claim", "ablate"]

STARTS: Mapping[str, Mapping[str, Any]] = {"shared": {}, "steady": {"sft_data": "population:steady"}}
"""What each policy that GRPO begins with changes in the setting. `steady` learned from supporters without the haste
that the others are to unlearn: a control from which little gain is expected."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What one row of the table changes.

    Attributes:
        grpo: of that stage.
        rm: of the reward model; None where the reward reads none that was trained.
        start: which policy it begins with, of `STARTS`.
        headline: whether it is trained with all seeds of GRPO; else with one.
    """

    grpo: Mapping[str, Any]
    rm: Mapping[str, Any] | None = None
    start: str = "shared"
    headline: bool = False

    @property
    def model(self) -> str | None:
        """The folder of its reward model."""
        if self.rm is None:
            return None
        more = (f"no-{name}" if value is False else f"{name}-{value}" for name, value in self.rm.items())
        named = "-".join(["rm", *more]).replace("kind-", "")
        return named if self.start == "shared" else f"{self.start}-{named}"


_CLASSES = {"kind": "classification"}

ARMS: Mapping[str, Arm] = {
    "rlff": Arm({"reward": "rlff"}, _CLASSES, headline=True),
    "no tails": Arm({"reward": "rlff"}, {**_CLASSES, "tail": False}, headline=True),
    "ranking": Arm({"reward": "rlff"}, {"kind": "ranking"}, headline=True),
    "regression": Arm({"reward": "rlff"}, {"kind": "regression"}),
    "env": Arm({"reward": "env"}, headline=True),
    "future": Arm({"reward": "future"}),
    "no think-format": Arm({"reward": "rlff", "alpha": 0.0}, _CLASSES),
    "format only": Arm({"reward": "format"}, headline=True),
    "untrained + format": Arm({"reward": "untrained"}, headline=True),
    "untrained": Arm({"reward": "untrained", "alpha": 0.0}),
    "noise + format": Arm({"reward": "noise"}, headline=True),
    "noise": Arm({"reward": "noise", "alpha": 0.0}),
    "rlff, steady start": Arm({"reward": "rlff"}, _CLASSES, start="steady", headline=True),
}
"""The rows of the table. *Source:* the ablations of RLFF-ESC (arXiv 2508.12935): ranking, regression, no think-format,
an untrained reward model. The others are ours."""

ENOUGH = 240
"""Conversations below which a cell of the table of personas is marked: at a success rate of 20 % the 95 % interval of
fewer is wider than ± 5 points, even if all were independent."""

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
    grpo_seeds: int = 1,
    arms: Sequence[str] | None = None,
    jobs: int = 1,
    told: Callable[[str], None] = print,
) -> str:
    """Run all arms; returns the table as Markdown, also kept as report.md. The same call resumes.

    Args:
        config: of the pipeline; its seed is the first one.
        folder: where everything is kept.
        seeds: training seeds, at least 1: SFT, collection, reward models and everything after them.
        grpo_seeds: seeds of GRPO upon each of these, at least 1, for the arms that are headlines.
        arms: names of `ARMS`; None for all.
        jobs: how many are trained at the same time, each in a process of its own, at least 1.
        told: told one line about what happens; with several jobs each process prints its own lines.

    Raises:
        SpecError: an unknown arm, no seed, or no job.
    """
    chosen = list(arms or ARMS)
    for name in chosen:
        one_of("arm", name, ARMS)
    whole(seeds=seeds, grpo_seeds=grpo_seeds, jobs=jobs)
    folder = Path(folder)
    every = [replace(config, setting=replace(config.setting, seed=config.setting.seed + i)) for i in range(seeds)]
    homes = [folder / f"seed-{each.setting.seed}" for each in every]
    runs = {name: range(grpo_seeds if ARMS[name].headline else 1) for name in chosen}
    told(f"{seeds} x {sum(map(len, runs.values()))} runs of GRPO, each with its evaluations: {folder}")
    run_all([_plan(each, home, runs) for each, home in zip(every, homes, strict=True)], jobs, told)
    starts = {start: [evaluations(home / start) for home in homes] for start in _starts(chosen)}
    made = {name: [[evaluations(_place(home, name, j)) for j in runs[name]] for home in homes] for name in chosen}
    facts = {**_facts(starts, made, config.evaluate.personas), "moves": _moves(config, homes, starts, made)}
    curves = {name: [read_log(_place(home, name, j) / "grpo") for home in homes for j in runs[name]] for name in chosen}
    write_json(folder / "report.json", facts)
    write_text(folder / "curves.svg", _curves_svg(curves))
    table = _markdown(facts)
    write_text(folder / "report.md", table)
    return table


# --- what is run ----------------------------------------------------------------------------------


def _starts(arms: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(ARMS[name].start for name in arms))


def _plan(config: PipelineConfig, home: Path, runs: Mapping[str, Sequence[int]]) -> Iterator[list[Job]]:
    """What one training seed runs: each list needs what the one before it made."""
    before = {start: replace(config, setting=replace(config.setting, **STARTS[start])) for start in _starts(runs)}
    yield [(_with(each, skip=["rm", "grpo"]), home / start) for start, each in before.items()]
    models = {model: ARMS[name] for name in runs if (model := ARMS[name].model)}
    for model, arm in models.items():
        _link(home / arm.start, home / model)
    skip = ["sft", "collect", "grpo", "evaluate"]
    yield [(_with(before[arm.start], rm=arm.rm, skip=skip), home / model) for model, arm in models.items()]
    jobs = []
    for name, j in [(arm, j) for arm in runs for j in runs[arm]]:
        arm, place = ARMS[name], _place(home, name, j)
        _link(home / arm.start, place)
        if arm.model:
            point(place / "rm", home / arm.model / "rm")
        changes = {**arm.grpo, "seed": config.setting.seed + 1000 * j}
        made = _with(before[arm.start], rm=arm.rm, grpo=changes, skip=["sft", "collect", "rm"])
        jobs.append((replace(made, evaluate=replace(made.evaluate, last=True)), place))
    yield jobs


def _place(home: Path, arm: str, j: int = 0) -> Path:
    slug = arm.replace(" + ", "-and-").replace(", ", "-").replace(" ", "-")
    return home / (f"{slug}-{j + 1}" if j else slug)


def _with(config: PipelineConfig, *, skip: list[str], **changes: Mapping[str, Any] | None) -> PipelineConfig:
    """The configuration of one job."""
    seed = config.setting.seed
    stages: dict[str, Any] = {
        name: replace(getattr(config, name), **{"seed": seed, **(changes.get(name) or {})})
        for name in ("sft", "rm", "grpo")
    }
    return replace(config, setting=replace(config.setting, skip=skip), **stages)


def _link(shared: Path, arm: Path) -> None:
    """Let an arm begin with what all arms share."""
    (arm / "eval").mkdir(parents=True, exist_ok=True)
    for path in (*(shared / name for name in _SHARED), *(shared / "eval").glob("start*")):
        if path.exists():
            point(arm / path.relative_to(shared), path)


# --- what came of it ------------------------------------------------------------------------------

_Runs = Mapping[str, Report]


def _facts(
    starts: Mapping[str, Sequence[_Runs]], made: Mapping[str, Sequence[Sequence[_Runs]]], personas: Sequence[str]
) -> dict[str, Any]:
    """All numbers of the report. Differences are of the same episodes, over all training seeds."""
    best = {start: [[runs[best_start(runs) or "start"]] for runs in each] for start, each in starts.items()}
    rows: dict[str, Any] = {}
    for start, each in starts.items():
        for name in ("start", *sorted({name for runs in each for name in runs if name.startswith("start-t")})):
            title = _title(start) + (f", temperature {name[7:]}" if name != "start" else "")
            rows[title] = row_of([[runs[name]] for runs in each], best[start])
    ends: dict[str, Made] = {}
    for name, groups in made.items():
        ends[name] = [[runs["grpo"] for runs in group] for group in groups]
        rows[name] = row_of(ends[name], best[ARMS[name].start])
        rows[name]["last"] = fmean(
            runs.get("last", runs["grpo"]).success_rate or 0.0 for each in groups for runs in each
        )
    sides: dict[str, Made] = {**ends}
    if "shared" in starts:
        sides |= {"best": best["shared"], "start": [[runs["start"]] for runs in starts["shared"]]}
    claims = []
    for claim in CLAIMS:
        if claim.arm in sides and claim.over in sides:
            change = compared(sides[claim.over], sides[claim.arm])
            if change is not None:
                met = claim.holds(change["difference"], change["interval"])
                claims.append({"claim": str(claim), **change, "met": met})
    others: dict[str, Any] = {}
    for persona in personas:
        before = {start: [[runs[f"start-{persona}"]] for runs in each] for start, each in starts.items()}
        others[persona] = {_title(start): row_of(each, each) for start, each in before.items()}
        for name, groups in made.items():
            after = [[runs[f"grpo-{persona}"] for runs in group] for group in groups]
            others[persona][name] = row_of(after, before[ARMS[name].start])
    return {"rows": rows, "claims": claims, "personas": others}


def _title(start: str) -> str:
    return START if start == "shared" else f"{START}, {start} start"


def _moves(
    config: PipelineConfig,
    homes: Sequence[Path],
    starts: Mapping[str, Sequence[_Runs]],
    made: Mapping[str, Sequence[Sequence[_Runs]]],
) -> dict[str, Any]:
    """What each reward model pays for in contexts it has not seen, and what became of those moves in `rlff`."""
    from esc_env.rewards.model import RewardModelReward
    from esc_env.rewards.rows import chat_of

    if "shared" not in starts:
        return {}
    seen = [
        [one for one in read_samples(home / "shared" / "collect", tails=False) if one.split == "valid"]
        for home in homes
    ]
    samples = [one for each in seen for one in each]
    scores: dict[str, list[float | None]] = {"R_fut": [sample.reward() for sample in samples]}
    for model in dict.fromkeys(ARMS[name].model for name in made if ARMS[name].start == "shared"):
        if model:
            scores[model] = []
            for home, each in zip(homes, seen, strict=True):
                scorer = RewardModelReward(home / model / "rm", device="cpu" if config.rm.cpu else None)
                scores[model] += scorer.score(
                    [
                        [*chat_of(one.scenario, one.context), {"role": "assistant", "content": one.response.content}]
                        for one in each
                    ]
                )
    said = {START: [item for runs in starts["shared"] for item in runs["start"].trajectories]}
    if "rlff" in made:
        said["rlff"] = [item for group in made["rlff"] for runs in group for item in runs["grpo"].trajectories]
    return {
        "within": paid(samples, scores),
        "scores": list(scores),
        "shares": {name: shares(items) for name, items in said.items()},
    }


def _markdown(facts: Mapping[str, Any]) -> str:
    titles = (
        "policy", "SR", "each seed", "last checkpoint", "AT", "gain", "between seeds", "within one", "conversations",
        "errors", *TEXTURE,
    )  # fmt: skip
    rows = [
        (
            name, f"{row['success_rate']:.1%}", seeds_cell(row["each"]), shown(row.get("last"), ".1%"),
            f"{row['average_turns']:.2f}", gain_cell(row["gain"]), *spread_cells(row["gain"]), row["conversations"],
            row["errors"], *texture_cells(row),
        )
        for name, row in facts["rows"].items()
    ]  # fmt: skip
    lines = [
        f"Gains are in points of SR over the policy {START} at its best temperature, in the same episodes; in brackets "
        "the 95 % interval, resampling training seeds and scenarios. Beside it the standard deviation of the gain "
        "between training seeds, and the standard error that the scenarios leave within one. With fewer than 8 seeds "
        "the intervals are too narrow. SR is that of the checkpoint chosen on valid; beside it that of the last one.",
        "",
        *markdown.table(titles, rows),
    ]
    if facts["claims"]:
        held = {True: "holds", False: "**does not hold**"}
        claims = [(item["claim"], gain_cell(item), held[item["met"]]) for item in facts["claims"]]
        lines += ["", *markdown.table(("claim", "measured", ""), claims)]
    if facts["personas"]:
        told = f"With seekers of other personas and other seeds: SR, and the gain over the policy {START} with them."
        names = next(iter(facts["personas"].values()))
        others = [(name, *(_with_gain(name, rows[name]) for rows in facts["personas"].values())) for name in names]
        few = any(row["conversations"] < ENOUGH for rows in facts["personas"].values() for row in rows.values())
        told += f" A cell with † rests on fewer than {ENOUGH} conversations: read nothing into it." if few else ""
        lines += ["", told, "", *markdown.table(("policy", *facts["personas"]), others)]
    if within := facts["moves"].get("within"):
        scores, parts = facts["moves"]["scores"], facts["moves"]["shares"]
        table = [
            (
                move.replace("_", " "), row["replies"], *(_within(row.get(score)) for score in scores),
                *(f"{part.get(move, 0.0):.1%}" for part in parts.values()),
            )
            for move, row in within.items()
        ]  # fmt: skip
        lines += [
            "",
            "What is paid for: how far the responses that make a move are scored above the others to the same context, "
            "in standard deviations within contexts, on scenarios that no reward model has seen (95 % interval). "
            "Then how much of what is said makes that move.",
            "",
            *markdown.table(("move", "responses", *scores, *parts), table),
        ]
    return "\n".join(lines) + "\n"


def _within(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    low, high = cell["interval"]
    return f"{cell['mean']:+.2f} ({low:+.2f} to {high:+.2f})"


def _with_gain(name: str, row: Mapping[str, Any]) -> str:
    few = " †" if row["conversations"] < ENOUGH else ""
    return f"{row['success_rate']:.1%}" + ("" if name.startswith(START) else f", {gain_cell(row['gain'])}") + few


# --- learning curves ------------------------------------------------------------------------------

_PANELS = {
    "valid/success_rate": "SR on valid",
    "reward": "reward (each arm has its own)",
    "entropy": "entropy, nats per token",
    "text/distinct_2": "distinct-2 of a batch",
}
_INKS = (
    "#2563eb", "#0891b2", "#7c3aed", "#dc2626", "#ea580c", "#16a34a", "#db2777", "#525252", "#a3a3a3", "#ca8a04",
    "#0f766e", "#9f1239", "#1e3a8a",
)  # fmt: skip


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

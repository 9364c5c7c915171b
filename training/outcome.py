"""What came of a pipeline: how each policy did in whole conversations, and what training gained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from esc_env.evaluation.pages import markdown
from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.runs.runner import is_run, read_run
from esc_env.evaluation.runs.wording import Wording
from esc_env.evaluation.statistics.intervals import mean_interval
from esc_env.fields import integer, many, mapping, number, optional, read, text
from esc_env.records import read_json
from esc_env.training.config import PipelineConfig
from esc_env.training.logs import read_valid

__all__ = [
    "TEXTURE", "best_start", "changes", "evaluations", "gain", "measured", "outcome", "page", "shown", "texture",
    "texture_cells",
]  # fmt: skip

T = TypeVar("T")


def outcome(config: PipelineConfig, folder: Path) -> dict[str, Any]:
    """Everything that is known about a run, as report.json has it."""
    runs = evaluations(folder)
    best = best_start(runs)
    return {
        "setting": asdict(config.setting),
        "reward": config.grpo.reward,
        "evaluation": {
            name: {
                "success_rate_of_all": run.success_rate_of_all, "success_rate": run.success_rate,
                "interval": run.interval, "average_turns": run.average_turns,
                "conversations": run.completed, "errors": run.errors, **texture(run),
            }
            for name, run in runs.items()
        },
        "gain": gain([(runs[best], runs["grpo"])]) if best and "grpo" in runs else None,
        "gain_over": best,
        "valid": {str(step): rate for step, rate in read_valid(folder / "grpo").items()} or None,
        "reward_model": _read(folder / "rm" / "report.json", measured),
        "collection": _read(folder / "collect" / "card.json", mapping),
    }  # fmt: skip


def evaluations(folder: Path) -> dict[str, Report]:
    """The evaluations of a run by name: `start` and `grpo`, `start-tX` at another temperature, `NAME-PERSONA`."""
    return {path.name: read_run(path) for path in sorted((folder / "eval").glob("*")) if is_run(path)}


def best_start(runs: Mapping[str, Report]) -> str | None:
    """Which evaluation of the policy before GRPO has the best success rate, over all temperatures."""
    swept = [name for name in runs if name == "start" or re.fullmatch(r"start-t[\d.e-]+", name)]
    return max(swept, key=lambda name: runs[name].success_rate_of_all, default=None)


def gain(pairs: Iterable[tuple[Report, Report]]) -> dict[str, Any] | None:
    """How much more the second run of each pair solves than the first: the difference of SR and its 95 % interval.

    Paired by episode, over all pairs (one for each training seed); the interval is that of whole scenarios. None if no
    episode ended in both runs.
    """
    differences: dict[str, list[float]] = {}
    for before, after in pairs:
        for scenario, values in changes(before, after).items():
            differences.setdefault(scenario, []).extend(values)
    if not differences:
        return None
    mean, interval = mean_interval(differences.values())
    return {"difference": mean, "interval": list(interval), "scenarios": len(differences)}


def changes(before: Report, after: Report) -> dict[str, list[float]]:
    """By scenario, how solving differs in each episode that ended in both: -1, 0 or 1."""
    known = {(item.scenario.id, item.trial): item.solved for item in before.trajectories if item.completed}
    found: dict[str, list[float]] = {}
    for item in after.trajectories:
        if item.completed and (item.scenario.id, item.trial) in known:
            change = float(item.solved) - float(known[item.scenario.id, item.trial])
            found.setdefault(item.scenario.id, []).append(change)
    return found


def texture(run: Report) -> dict[str, float | None]:
    """Whether replies have collapsed: distinct-2, words a reply, and shares in [0, 1].

    `top_reply` is the share of the most frequent reply, `repeated` the share of replies that the same conversation had
    already had. All None if nothing was said.
    """
    said = Wording.of(run.trajectories)
    if said is None:
        return dict.fromkeys(("distinct_2", "words", "top_reply", "repeated"))
    return {
        "distinct_2": round(said.distinct_2, 4),
        "words": round(said.words, 1),
        "top_reply": round(said.top_reply, 4),
        "repeated": round(said.repeated, 4),
    }


TEXTURE = {
    "distinct-2": ("distinct_2", ".3f"), "words": ("words", ".1f"), "most frequent reply": ("top_reply", ".1%"),
    "repeated": ("repeated", ".1%"),
}  # fmt: skip
"""What tables show of `texture`, and in which number format, by the title of the column."""


def texture_cells(look: Mapping[str, Any]) -> list[str]:
    """One text for each column of `TEXTURE`."""
    return [shown(look[name], form) for name, form in TEXTURE.values()]


def measured(data: Any) -> Mapping[str, Any]:
    """A reward model's report, of which a page tells these."""
    read(data, "kind", text)
    read(data, "pairs_within", integer(0))
    for name in ("auc", "auc_within", "accuracy", "ece"):
        read(data, name, optional(number(0, 1)))
    for name in ("auc_interval", "auc_within_interval"):
        read(data, name, optional(many(number(0, 1), 2, 2)), None)
    return mapping(data)


def _read(path: Path, check: Callable[[Any], T]) -> T | None:
    return read_json(path, check) if path.is_file() else None


def shown(number: float | None, form: str = ".3f") -> str:
    """A number for people; a dash where there is none."""
    return "–" if number is None else format(number, form)


def _ends(interval: list[float] | None) -> str:
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


def page(report: Mapping[str, Any]) -> str:
    """What `outcome` says, as a page."""
    setting = report["setting"]
    rows = [
        (
            name, shown(run["success_rate_of_all"], ".1%"), shown(run["success_rate"], ".1%"),
            " – ".join(shown(end, ".1%") for end in run["interval"] or (None, None)),
            shown(run["average_turns"], ".2f"), run["conversations"], run["errors"], *texture_cells(run),
        )
        for name, run in report["evaluation"].items()
    ]  # fmt: skip
    lines = [
        f"# {setting['model']}: RLFF-ESC with reward `{report['reward']}`",
        "",
        f"Trained on {setting['scenarios']}, evaluated on {setting['test']}; T = {setting['max_turns']}, seed "
        f"{setting['seed']}.",
        "",
        *markdown.table(("policy", "of all", "SR", "95 % interval", "AT", "conversations", "errors", *TEXTURE), rows),
    ]
    if change := report["gain"]:
        low, high = change["interval"]
        lines += [
            "",
            f"grpo − {report['gain_over']}: {100 * change['difference']:+.1f} points SR, 95 % interval "
            f"{100 * low:+.1f} to {100 * high:+.1f}, paired by episode, clustered by {change['scenarios']} scenarios.",
        ]
    if model := report["reward_model"]:
        lines += [
            "",
            f"Reward model ({model['kind']}): AUC {shown(model['auc'])}{_ends(model.get('auc_interval'))}, within "
            f"contexts {shown(model['auc_within'])}{_ends(model.get('auc_within_interval'))} over "
            f"{model['pairs_within']:,} pairs, accuracy {shown(model['accuracy'])}, ECE {shown(model['ece'])}.",
        ]
    if report["valid"]:
        curve = ", ".join(f"step {step}: {rate:.1%}" for step, rate in report["valid"].items())
        lines += ["", f"SR on valid while training: {curve}."]
    return "\n".join(lines) + "\n"

"""The page of a training run, or of a whole pipeline: curves of what was logged, and what the policy said by step.

A run that is being made has one too, of what is there; nothing in its folder is written or held up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from esc_env.dialogue import ChatMessage
from esc_env.errors import MissingExtra, RecordError
from esc_env.escaping import one_line
from esc_env.evaluation.pages.charts import Curve, curves
from esc_env.evaluation.pages.rendering import render
from esc_env.evaluation.runs.report import percent
from esc_env.evaluation.view.kinds import LATELY, State, kind_of
from esc_env.fields import many, named, number, optional, read, text
from esc_env.folder import TIMING, RunFolder
from esc_env.records import read_json, read_records
from esc_env.training.logs import LINES, LOG, VALID, Said, read_log, read_said, read_valid, said_steps
from esc_env.training.outcome import measured
from esc_env.training.signs import failure_signs

__all__ = ["QUANTITIES", "Quantity", "page", "stamp", "state"]

POINTS = 200
"""Points of a curve that are drawn; of more, evenly spread ones. Ours: a phone shows no more."""
STEPS, GROUP, MESSAGES, LETTERS = 8, 4, 20, 2000
"""Steps, completions of each, messages of a prompt and letters of a text that are shown, so that a page stays small."""
NAMES = 100
"""Names of whatever has one, and letters of a name, that are taken from a folder, which may be a stranger's. Ours."""
_LARGEST = 1e30


@dataclass(frozen=True, slots=True)
class Quantity:
    """What one chart shows of a log.

    Attributes:
        title: what it is called, its unit included.
        lines: the names in the log by what they are called in the chart.
        meaning: what it says, and which way is good.
        spread: the name of what is drawn as a band to both sides of the first line.
        ends: the names of the band's two ends.
        share: whether it lies in [0, 1].
        aside: whether it is looked at only where something is wrong.
    """

    title: str
    lines: Mapping[str, str]
    meaning: str
    spread: str = ""
    ends: tuple[str, ...] = ()
    share: bool = False
    aside: bool = False


QUANTITIES = (
    Quantity(
        "SR on valid",
        {"SR": "valid/success_rate"},
        "what counts, with its 95 % interval; the reward may rise without it",
        ends=("valid/low", "valid/high"),
        share=True,
    ),
    Quantity(
        "reward", {"reward": "reward"}, "all parts together, with the standard deviation in a batch", "reward_std"
    ),
    Quantity("loss", {"training": "loss", "held out": "eval_loss"}, "of what is learned, and of what is held out"),
    Quantity("accuracy", {"training": "accuracy", "held out": "eval_accuracy"}, "of the reward model", share=True),
    Quantity("KL", {"KL": "kl"}, "nats a token between the policy and the one it began with"),
    Quantity("entropy", {"entropy": "entropy"}, "nats a token; near 0 the policy always says the same"),
    Quantity(
        "length, tokens",
        {"mean": "completions/mean_length"},
        "of a completion: mean, shortest and longest",
        ends=("completions/min_length", "completions/max_length"),
    ),
    Quantity("ended", {"ended": "text/ended"}, "share of replies that end by themselves", share=True),
    Quantity("groups without spread", {"groups": "frac_reward_zero_std"}, "they teach nothing", share=True),
    Quantity("distinct-2", {"distinct-2": "text/distinct_2"}, "share of new word pairs in a batch", share=True),
    Quantity("commonest reply", {"share": "text/top_reply"}, "its share of a batch", share=True, aside=True),
    Quantity("failed", {"failed": "rewards/failed"}, "share of completions without a reward", share=True, aside=True),
    Quantity("clipped", {"ratio": "clip_ratio/region_mean"}, "share of tokens", share=True, aside=True),
    Quantity("turns", {"held": "env/turns", "trained": "env/trained_turns"}, "of a conversation, and those trained"),
    Quantity("cut", {"cut": "env/cut"}, "share of conversations longer than a prompt", share=True, aside=True),
    Quantity("gradient", {"norm": "grad_norm"}, "its norm before clipping", aside=True),
    Quantity("learning rate", {"rate": "learning_rate"}, "as scheduled", aside=True),
)
"""The charts of a stage, from the first to the last; after the reward stand its parts, whatever they are called."""

MEASURED = {
    "auc_within": "AUC within contexts: does it rank the responses to one context, which is all that GRPO compares",
    "auc": "AUC over all contexts",
    "accuracy": "accuracy",
    "ece": "expected calibration error",
}
"""What is told of a reward model on scenarios that it has not seen."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart with its numbers in words: name, step of the last value, last, first, lowest, highest."""

    quantity: Quantity
    chart: Markup | None
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Shown:
    """What the template shows of one stage.

    Attributes:
        name: `sft`, `rm`, `grpo`, or as the stage calls itself.
        state: whether it is complete.
        step: the last one that was logged.
        about: its configuration.
        signs: what in the log is a sign of failure.
        measured: how good a reward model is, by what is measured.
        panels: its charts.
        rest: everything else that was logged, with its last value.
        said: what the policy said, by step.
        logged: of how many steps it is kept what was said.
        untold: why nothing of it is shown, if so.
    """

    name: str
    state: State
    step: int
    about: Mapping[str, str]
    signs: Sequence[str]
    measured: Sequence[tuple[str, str, str]]
    panels: Sequence[Panel]
    rest: Sequence[tuple[str, str]]
    said: Mapping[int, Sequence[Said]]
    logged: int
    untold: str = ""


def page(folder: Path, *, events: str | None = None) -> str:
    """The page of a stage or of a pipeline, as it is now.

    Args:
        folder: whose `run.json` says that it is one.
        events: where a page that is served hears that there is more.

    Raises:
        RecordError: it is neither, or a file in it cannot be read; names the file.
    """
    about = _about(folder)
    if about["kind"] == "pipeline":
        there = [name for name in ("sft", "rm", "grpo") if not (folder / name).is_symlink()]  # a stranger's may be
        names = [name for name in there if RunFolder(folder / name, "stage").begun]
        stages = [_stage(folder / name, name, folder / "valid") for name in names]
        whole = _pipeline(folder, about, {shown.name: shown.state for shown in stages})
    else:
        stages = [_stage(folder, one_line(str(about["identity"].get("stage"))), folder / "valid")]
        whole = None
    return render(
        "training.html", connect=events is not None, name=one_line(folder.resolve().name), events=events,
        stages=stages, whole=whole, most={"steps": STEPS, "group": GROUP, "letters": LETTERS},
    )  # fmt: skip


def stamp(folder: Path) -> str:
    """What changes when the page of a folder does: asked again and again, and cheap."""
    watched = [folder / name for name in ("", "rm", "sft", "grpo")]
    files = [place / name for place in watched for name in ("run.json", LOG, LINES, VALID, "report.json")]
    return "-".join(f"{about.st_mtime_ns:x}.{about.st_size:x}" if (about := _stat(file)) else "" for file in files)


def state(folder: Path) -> State:
    """Whether a stage or a pipeline is complete, or has been written to lately. Raises RecordError as `page` does."""
    about = _about(folder)
    if about["kind"] == "stage":
        return _state(about.get("finished"), folder)
    return _state((folder / "report.json").is_file(), folder)


def _about(folder: Path) -> dict[str, Any]:
    if (kind := kind_of(folder)) not in ("stage", "pipeline"):
        raise RecordError(f"{folder}: no training run here. Give the folder of a stage or of a pipeline")
    return RunFolder(folder, kind).about()


# --- a stage --------------------------------------------------------------------------------------


def _stage(folder: Path, name: str, judged: Path) -> Shown:
    """What is known of a stage, whose checkpoints' conversations with people of valid are in `judged`."""
    about = RunFolder(folder, "stage").about()
    found, signs = _logged(folder, judged, str(about["identity"].get("model")))
    step = max((step for line in found.values() for step in line), default=0)
    quantities = [quantity for quantity in _quantities(found) if any(key in found for key in quantity.lines.values())]
    used = {key for quantity in quantities for key in (*quantity.lines.values(), quantity.spread, *quantity.ends)}
    rest = [(one_line(key), _told(line[max(line)])) for key, line in sorted(found.items()) if key not in used]
    said, logged, untold = _said(folder, step)
    panels = [_panel(quantity, found) for quantity in quantities]
    now = _state(about.get("finished"), folder, judged)
    return Shown(
        name, now, step, _facts(about["identity"]), signs, _measured(folder), panels, rest, said, logged, untold
    )


def _logged(folder: Path, judged: Path, start: str) -> tuple[dict[str, dict[int, float]], Sequence[str]]:
    """Every line of a log, by name and step, with what is known of valid; and signs of failure in it."""
    found: dict[str, dict[int, float]] = {}
    log: list[dict[str, float]] = []
    for entry in read_log(folder):
        step = int(entry["step"])
        log.append({"step": step})
        for key, value in entry.items():
            known = key in found or (len(found) < NAMES and len(key) < NAMES)
            if known and key != "step" and not key.startswith("valid/") and abs(value) < _LARGEST:  # no NaN
                log[-1][key] = found.setdefault(key, {})[step] = float(value)
    for step, rate in sorted(read_valid(folder).items()):
        log.append({"step": step, "valid/success_rate": rate})
        found.setdefault("valid/success_rate", {})[step] = rate
        name = f"checkpoint-{step}" if step else Path(start).name
        if ends := _interval(judged / name / "report.json", rate):
            found.setdefault("valid/low", {})[step], found.setdefault("valid/high", {})[step] = ends
    return found, tuple(failure_signs(sorted(log, key=lambda entry: entry["step"])).values())


def _interval(report: Path, rate: float) -> tuple[float, float] | None:
    """The interval of a success rate, where this is what the report of the conversations says too."""
    if not report.is_file():
        return None
    known, ends = read_json(report, lambda data: (read(data, "success_rate", optional(number(0, 1))), _pair(data)))
    return ends if known == rate else None


def _pair(data: Any) -> tuple[float, float] | None:
    ends = read(data, "interval", optional(many(number(-1, 1), 2, 2)), None)
    return (ends[0], ends[1]) if ends else None


def _measured(folder: Path) -> list[tuple[str, str, str]]:
    """What a reward model's report says: name, value, interval."""
    if not (folder / "report.json").is_file():
        return []
    told = read_json(folder / "report.json", measured)
    return [
        (title, _told(told[name]), " to ".join(map(_told, told.get(f"{name}_interval") or ())) or "–")
        for name, title in MEASURED.items()
        if told[name] is not None
    ]


def _facts(parts: Any) -> dict[str, str]:
    """A configuration, a line for each name."""
    known = list(parts.items())[:NAMES] if isinstance(parts, Mapping) else []
    return {one_line(name)[:NAMES]: one_line(str(value))[: 5 * NAMES] for name, value in known}


def _quantities(found: Mapping[str, Any]) -> Iterator[Quantity]:
    for quantity in QUANTITIES:
        yield quantity
        if quantity.title == "reward":
            for key in found:
                part = key.removeprefix("rewards/").removesuffix("/mean")
                if key == f"rewards/{part}/mean" and part != "total":
                    yield _part(part, found)


def _part(name: str, found: Mapping[str, Any]) -> Quantity:
    spread = f"rewards/{name}/spread"
    if spread not in found:
        return Quantity(name, {name: f"rewards/{name}/mean"}, "a part of the reward", f"rewards/{name}/std")
    meaning = "a part of the reward, with its standard deviation among the completions of one prompt"
    return Quantity(name, {name: f"rewards/{name}/mean"}, meaning, spread)


def _panel(quantity: Quantity, found: Mapping[str, Mapping[int, float]]) -> Panel:
    drawn: list[Curve] = []
    rows: list[tuple[str, ...]] = []
    for name, key in quantity.lines.items():
        if not (line := found.get(key)):
            continue
        points = sorted(line.items())
        known = {step: ends for step, value in points if (ends := _ends(quantity, found, step, value))}
        band = {} if rows else known
        thin = [*points[:: -(-len(points) // POINTS)], points[-1]] if len(points) > POINTS else points
        whole = all(step in band for step, _ in thin)
        drawn.append(Curve(name, tuple(thin), tuple(band[step] for step, _ in thin) if whole else ()))
        tell = percent if quantity.share else _told
        values = [value for _, value in points]
        last = tell(values[-1])
        if quantity.spread and points[-1][0] in band:
            last += f" ± {tell(band[points[-1][0]][1] - values[-1])}"
        shown = quantity.title if len(quantity.lines) == 1 else f"{quantity.title}, {name}"
        rows.append((one_line(shown), f"{points[-1][0]:,}", last, *map(tell, (values[0], min(values), max(values)))))
    return Panel(quantity, _chart(quantity.title, tuple(drawn), quantity.share), rows)


@lru_cache(256)
def _chart(title: str, drawn: Sequence[Curve], share: bool) -> Markup | None:
    """A chart, which takes 50 ms, and of which only some change while a viewer shows a run that is being made."""
    return curves(title, drawn, share=share)


def _ends(
    quantity: Quantity, found: Mapping[str, Mapping[int, float]], step: int, value: float
) -> tuple[float, float] | None:
    if quantity.ends:
        low, high = (found.get(key, {}).get(step) for key in quantity.ends)
        return (low, high) if low is not None and high is not None else None
    spread = found.get(quantity.spread, {}).get(step)
    return (value - spread, value + spread) if spread is not None else None


def _told(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.4g}".replace("-", "−")


def _said(folder: Path, last: int) -> tuple[dict[int, Sequence[Said]], int, str]:
    """What was said at the first step, the last one and some between; of how many it is kept; why nothing is shown."""
    files = {step: file for step, file in said_steps(folder).items() if step <= last}  # others were interrupted
    steps = list(files)
    shown: dict[int, Sequence[Said]] = {}
    most = min(STEPS, len(steps))
    for place in range(most):
        step = steps[round(place * (len(steps) - 1) / max(1, most - 1))]
        try:
            shown[step] = [_cut(each) for each in read_said(files[step], GROUP)]
        except RecordError:  # it is just being written, or was cut off
            continue
        except MissingExtra as error:
            return {}, len(steps), str(error)
    return shown, len(steps), ""


def _cut(said: Said) -> Said:
    prompt = tuple(
        ChatMessage(role=message["role"], content=_short(message["content"])) for message in said.prompt[-MESSAGES:]
    )
    return Said(prompt, _short(said.text), dict(list(said.rewards.items())[:NAMES]))


def _short(words: str) -> str:
    return words if len(words) <= LETTERS else f"{words[:LETTERS]} … ({len(words) - LETTERS:,} letters more)"


# --- a pipeline -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Whole:
    """What the template shows of a pipeline: its setting, its stages with state and seconds, what came of it."""

    setting: Mapping[str, str]
    stages: Sequence[tuple[str, str, str]]
    evaluations: Mapping[str, Mapping[str, Any]]
    gain: Mapping[str, Any] | None
    over: str


def _pipeline(folder: Path, about: Mapping[str, Any], trained: Mapping[str, State]) -> Whole:
    seconds = {}
    for entry in read_records(folder / TIMING, "timing"):
        if isinstance(entry.get("stage"), str) and isinstance(entry.get("seconds"), (int, float)):
            seconds[entry["stage"]] = f"{entry['seconds']:,.0f} s"
    if not isinstance(skipped := about["identity"].get("skip") or [], list):
        raise RecordError(f"{folder}/run.json: skip must be a list. Was it edited?")
    stages = []
    for name in ("sft", "collect", "rm", "grpo", "evaluate"):
        place = folder / ("eval" if name == "evaluate" else name)
        done = folder / "report.json" if name == "evaluate" else place / "card.json"
        now: str = trained.get(name) or (_state(done.is_file(), place) if place.is_dir() else "not begun")
        if now != "not begun" or name not in skipped:
            stages.append((name, now, seconds.get(name, "–")))
    report = folder / "report.json"
    evaluations, gain, over = read_json(report, _outcome) if report.is_file() else ({}, None, "")
    return Whole(_facts(about["identity"].get("setting")), stages, evaluations, gain, over)


def _outcome(data: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None, str]:
    rate = optional(number(0, 1))

    def one(run: Any) -> dict[str, Any]:
        return {
            "rate": read(run, "success_rate", rate, None), "interval": _pair(run),
            "turns": read(run, "average_turns", optional(number(0)), None),
        }  # fmt: skip

    def gained(value: Any) -> dict[str, Any]:
        return {"difference": read(value, "difference", number(-1)), "interval": _pair(value)}

    return (
        dict(list(read(data, "evaluation", named(one)).items())[:NAMES]),
        read(data, "gain", optional(gained), None),
        read(data, "gain_over", optional(text), None) or "",
    )


def _state(complete: Any, *places: Path) -> State:
    """`being made` where something in one of the folders was written to lately."""
    files = (file for place in places if not place.is_symlink() for file in _written(place))
    written = max((about.st_mtime for file in files if (about := _stat(file))), default=0.0)
    return "complete" if complete else "being made" if time.time() - written < LATELY else "incomplete"


def _written(folder: Path) -> Iterator[Path]:
    """What is written to while something is made. A folder that is removed meanwhile is passed over, a link too."""
    yield folder
    for place, _, names in os.walk(folder):
        own = (".json", ".jsonl") if Path(place) == folder else ".jsonl"
        yield from (Path(place) / name for name in names if name.endswith(own))


def _stat(path: Path) -> Any:
    try:
        return path.lstat()
    except OSError:
        return None

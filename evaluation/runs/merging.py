"""Put the shards of a run together: what comes of it is the run, as if it had been held in one place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from os.path import lexists
from pathlib import Path
from typing import Any

from esc_env.errors import ProtocolMismatch, RecordError
from esc_env.evaluation.runs.holding import Episode, attempts, seconds_each
from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.runs.runner import TRAJECTORIES, KeptRun, open_run, read_run, run_key
from esc_env.evaluation.runs.shards import Shard
from esc_env.folder import TIMING, RunFolder
from esc_env.records import read_records, write_json, write_records
from esc_env.rules import Fingerprint
from esc_env.trajectory import Trajectory

__all__ = ["merge"]

_NAMED = 20
"""Missing shards that are named, the rest are counted."""


def merge(folders: Iterable[str | Path], out: str | Path, *, incomplete: bool = False) -> Report:
    """Make one run folder of the folders of its shards, which are only read.

    The run is there whole or not at all: it is made as `.NAME.merging` beside, and what a merge that was stopped left
    there is gone on with. A shard that is named twice counts once.

    Args:
        folders: of shards of one run.
        out: the folder of the run, which must not be there.
        incomplete: merge also where shards or outcomes are missing; `evaluate` without `shard` completes the run.

    Raises:
        RecordError: a folder holds no shard, or cannot be read; shards are of another split, missing, not finished, or
            there twice with different records; or `out` is there, or cannot be written.
        ProtocolMismatch: shards are of different runs; the message names what differs.
    """
    out = Path(out)
    if lexists(out):
        raise RecordError(f"{out}: is there already, and a merge overwrites nothing. Give another folder with --out")
    parts: dict[int, _Part] = {}
    for part in map(_part, folders):
        first = next(iter(parts.values()), part)
        _check_together(first, part)
        if (same := parts.setdefault(part.shard.number, part)).lines != part.lines:
            raise RecordError(
                f"{same.path} and {part.path} are both {part.shard.name}, with different records. Name the one that "
                "counts"
            )
    if not parts:
        raise RecordError("no shards to merge. Name their folders, such as runs/RUN_KEY-shard-*")
    ordered = [parts[number] for number in sorted(parts)]
    if not incomplete and (lacking := list(_lacking(ordered))):
        raise RecordError(
            f"not merged: {'; '.join(lacking)}. Or merge what there is with --incomplete; the same `esc eval` without "
            "--shard then completes the run"
        )
    return _write(ordered, out)


@dataclass(frozen=True, slots=True)
class _Part:
    """A shard that was read: its run, which it is, and every line of every episode."""

    run: KeptRun
    shard: Shard
    lines: Mapping[Episode, Sequence[Trajectory]]

    @property
    def path(self) -> Path:
        return self.run.folder.path

    @property
    def identity(self) -> Fingerprint:
        """Of the run that it is a part of."""
        return Fingerprint({name: part for name, part in self.run.about["identity"].items() if name != "shard"})


def _part(folder: str | Path) -> _Part:
    run = open_run(folder)
    if not run.shard:
        raise RecordError(f"{run.folder.path}: holds a whole run, no shard of one. Leave it out")
    seconds_each(run.folder)  # which checks timing.jsonl
    return _Part(run, run.shard, attempts(run.folder, TRAJECTORIES, run.mine, run.people, run.rules))


def _check_together(first: _Part, other: _Part) -> None:
    """Refuse what is no part of the same run."""
    where = f"{first.path} and {other.path}"
    if differences := first.identity.differences(other.identity):
        raise ProtocolMismatch(f"{where} are shards of different runs. What differs: {'; '.join(differences)}")
    if list(first.run.people.values()) != list(other.run.people.values()):
        raise ProtocolMismatch(f"{where} have different scenarios.jsonl: not the same people")
    if first.shard.of != other.shard.of:
        raise RecordError(f"{where} were split in another way: {first.shard.name}, {other.shard.name}")


def _lacking(parts: Sequence[_Part]) -> Iterable[str]:
    """What is missing for a complete run, a line each."""
    of, there = parts[0].shard.of, {part.shard.number for part in parts}
    if missing := [number for number in range(1, of + 1) if number not in there]:
        named = ", ".join(map(str, missing[:_NAMED]))
        more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        yield f"of {of:,} shards these are missing: {named}{more}"
    for part in parts:
        open_ = sum(not (lines and lines[-1].completed) for lines in part.lines.values())
        if open_:
            yield (
                f"{part.path}: {part.shard.name} has no outcome for {open_:,} of its {len(part.lines):,} "
                "conversations; the same command goes on with them"
            )


def _write(parts: Sequence[_Part], out: Path) -> Report:
    """The run as one folder."""
    first = parts[0]
    lines: dict[Episode, Sequence[Trajectory]] = defaultdict(list)
    for part in parts:
        lines.update(part.lines)
    made = out.with_name(f".{out.name}.merging")
    left = "A merge that was stopped left it: delete it, or give another folder with --out"
    with RunFolder(made, "run", (TRAJECTORIES,), left).claim(
        first.identity.parts, scenarios=first.run.people.values(), facts=_facts(parts)
    ):
        held = chain.from_iterable(lines[episode] for episode in first.run.episodes)
        write_records(made / TRAJECTORIES, "trajectory", (each.to_json() for each in held))
        taken = chain.from_iterable(read_records(part.path / TIMING, "timing") for part in parts)
        write_records(made / TIMING, "timing", taken)
        report = read_run(made)
        write_json(made / "report.json", report.to_json())
    try:
        made.rename(out)
    except OSError as error:
        raise RecordError(f"{made}: is merged, but cannot be renamed to {out} ({error.strerror})") from error
    return replace(report, folder=out)


def _facts(parts: Sequence[_Part]) -> dict[str, Any]:
    """What run.json says besides: as the first shard has it, keys counted afresh, what servers took from all."""
    about = parts[0].run.about
    identity = dict(parts[0].identity.parts)
    agent = identity.pop("agent")
    faced = Fingerprint(identity)
    kept = ("versions", "agent", "scenarios", "fingerprint", "run_key", "config")
    facts = {name: about[name] for name in kept if name in about}
    facts |= {"fingerprint": faced.digest, "run_key": run_key(faced, agent)}
    asked = [part.run.about["effective"] for part in parts if isinstance(part.run.about.get("effective"), Mapping)]
    return facts | ({"effective": dict(chain.from_iterable(each.items() for each in asked))} if asked else {})

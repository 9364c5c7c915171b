"""What a folder of runs holds, and what a run that is being made has come to. Everything is only read.

A list of runs reads run.json and report.json alone, however long the runs are. `Following` reads on in
trajectories.jsonl from where it was; a last line that is not whole yet is left for the next time.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from io import BufferedReader
from operator import add
from pathlib import Path
from typing import Any

from esc_env.errors import RecordError, SpecError
from esc_env.escaping import one_line
from esc_env.evaluation.pages.conversations import OUTCOMES, name_of
from esc_env.evaluation.runs.report import failure_messages, interval_text, percent
from esc_env.evaluation.runs.runner import TRAJECTORIES, run_folder
from esc_env.evaluation.runs.shards import Shard
from esc_env.evaluation.statistics.intervals import success_interval
from esc_env.evaluation.view.kinds import KINDS, LATELY, State, kind_of
from esc_env.fields import flag, integer, number, optional, read, text
from esc_env.protocols import Usage
from esc_env.records import MAX_BYTES, check_version, open_plain, parse, read_json
from esc_env.scenarios import Scenario
from esc_env.trajectory import Failure, Trajectory

__all__ = ["Ended", "Following", "Run", "find", "stamp"]

LONGEST, MOST = 400, 20
"""Characters of a failure's message that are told while a run is made, and kinds of failures. Ours."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a folder, as a list shows it.

    Attributes:
        name: its path in the folder, with `/`; the folder's own name where the folder is the run.
        folder: where it is.
        written: when its folder was last written to, in seconds since 1970.
        state: whether it is complete or being made.
        kind: `run`, of an agent, or one of `KINDS`, of which nothing more is said.
        agent, scenarios: who talked, with whom.
        total: conversations of the whole run.
        done: those with an outcome when it was last reported; None before that.
        success_rate, interval: of the last report.
        trouble: what is wrong with it, where it cannot be read; the other fields then say nothing.
    """

    name: str
    folder: Path
    written: float
    state: State = "incomplete"
    kind: str = "run"
    agent: str = ""
    scenarios: str = ""
    total: int = 0
    done: int | None = None
    success_rate: float | None = None
    interval: tuple[float, float] | None = None
    trouble: str = ""


def find(folder: Path, name: str | None = None) -> list[Run]:
    """The runs in a folder, at any depth, the one written to last first. No link to another folder is followed.

    Args:
        folder: where to look.
        name: the only one to read; None for all.
    """
    return sorted(_runs(folder, name), key=lambda run: (-run.written, run.name))


def stamp(folder: Path) -> str:
    """What changes when a list of the folder's runs does. Cheap: nothing is opened."""
    told = (Path(place) / name for place, _, files in os.walk(folder) for name in files if name in _LISTED)
    return f"{hash(tuple(sorted((str(path), _changed(path)) for path in told))):x}"


_LISTED = ("run.json", "report.json")


def _runs(folder: Path, only: str | None) -> Iterator[Run]:
    for place, _, files in os.walk(folder):
        if "run.json" not in files:
            continue
        path = Path(place)
        name = path.resolve().name if path == folder else path.relative_to(folder).as_posix()
        name = name.encode(errors="replace").decode()  # a file system has names that are no text
        if only not in (None, name):
            continue
        try:
            kind = kind_of(path)
            if kind == "run":
                yield _run(name, path, run_folder(path).about())
            elif kind in KINDS:
                written = max(map(_changed, (path, *path.glob("*.json*"))))
                yield Run(name, path, written, KINDS[kind]().state(path), kind)
        except (RecordError, OSError) as error:
            yield Run(name, path, _written(path), trouble=one_line(str(error)))


def _run(name: str, path: Path, about: Mapping[str, Any]) -> Run:
    try:
        agent, scenarios = (one_line(name_of(read(about, name, text))) for name in ("agent", "scenarios"))
        held_with = re.match(r"\d{1,7}(?=,)", read(about["identity"], "scenarios", text))
        people = int(held_with[0]) if held_with else 0
        total = people * read(about["identity"], "trials", integer(1))
        if shard := Shard.kept(about["identity"]):
            scenarios = f"{scenarios}, {shard.name}"
    except SpecError as error:
        raise RecordError(f"{path}/run.json: not a run ({error}). Was it edited?") from error
    told, written = path / "report.json", _written(path)
    if not told.exists():
        return Run(name, path, written, _state(written), "run", agent, scenarios, total)
    done, whole, rate, interval = read_json(told, _figures)
    state: State = "complete" if whole else _state(written if written > _changed(told) else 0)
    return Run(name, path, written, state, "run", agent, scenarios, total, done, rate, interval)


def _figures(data: Any) -> tuple[int, bool, float | None, tuple[float, float] | None]:
    share = number(0, 1)
    return (
        read(data, "completed", integer(0)),
        read(data, "complete", flag),
        read(data, "success_rate", optional(share)),
        read(data, "interval", optional(lambda ends: (share(ends[0]), share(ends[1])) if _pair(ends) else None)),
    )


def _pair(ends: Any) -> bool:
    if not isinstance(ends, list) or len(ends) != 2:
        raise SpecError("must be two numbers")
    return True


def _state(written: float) -> State:
    return "being made" if time.time() - written < LATELY else "incomplete"


def _written(path: Path) -> float:
    return max(_changed(path / name) for name in ("run.json", TRAJECTORIES))


def _changed(path: Path) -> float:
    """When a file was last written to; 0 where there is none."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A conversation that ended or broke off, as it is told while a run is made.

    Attributes:
        number: which of the run's, from 0: trial by trial, in the order of scenarios.jsonl.
        scenario, trial: whom it was held with, and which repetition.
        kind, outcome: why it ended, as a badge says it.
        turns: how many are done.
        score: the critic's last; None where it never judged.
        completed, solved: whether it has an outcome, and a good one.
        usage: what it cost, all attempts together.
        failure: what went wrong, where something did.
    """

    number: int
    scenario: str
    trial: int
    kind: str
    outcome: str
    turns: int
    score: float | None
    completed: bool
    solved: bool
    usage: Usage
    failure: Failure | None

    @classmethod
    def of(cls, held: Trajectory, number: int) -> Ended:
        """What is told of a trajectory."""
        return cls(
            number, one_line(name_of(held.scenario.id)), held.trial, *OUTCOMES[held.stop_reason], held.turns,
            held.final_score if held.verdicts else None, held.completed, held.solved, held.usage, held.failure,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """What a page shows of it."""
        shown = ("number", "scenario", "trial", "kind", "outcome", "turns", "score")
        return {name: getattr(self, name) for name in shown}


class Following:
    """The conversations of one run, as they end. Several threads may ask.

    Args:
        folder: of the run.

    Attributes:
        told: what has ended, or ended otherwise than before, in that order, as far as it was read.
        behind: whether there may be more to read already.

    Raises:
        RecordError: it holds no run, or one that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.told: list[Ended] = []
        self.behind = False
        self._one_at_a_time = threading.Lock()
        kept = run_folder(folder)
        about = kept.about()
        self._path = folder / TRAJECTORIES
        self._people: dict[str, Scenario] = kept.scenarios()
        self._places = {scenario: place for place, scenario in enumerate(self._people)}
        try:
            self._trials = read(about["identity"], "trials", integer(1))
            shard = Shard.kept(about["identity"])
        except SpecError as error:
            raise RecordError(f"{folder}/run.json: not a run ({error}). Was it edited?") from error
        whole = range(self._trials * len(self._people))
        self._total = len(shard.part(whole) if shard else whole)
        self._known: dict[int, Ended] = {}
        self._lines: dict[int, tuple[int, int]] = {}  # of each conversation: the offset and the number of its last line
        self._file, self._offset, self._line = 0, 0, 0

    def read(self, most: int = sys.maxsize) -> list[Ended]:
        """Read on: what has ended, or ended otherwise than before, since the last call.

        Args:
            most: lines to read; there are more where there were as many as that.

        Raises:
            RecordError: a whole line cannot be read; the message names it.
        """
        with self._one_at_a_time:
            news = self._read(most)
            self.told += news
        return news

    def _read(self, most: int) -> list[Ended]:
        try:
            file = self._opened()
        except FileNotFoundError:
            return []
        news: dict[int, Ended] = {}
        before = self._known
        with file:
            about = os.fstat(file.fileno())
            if about.st_ino != self._file or about.st_size < self._offset:  # written anew: in order, or for a new run
                self._file, self._offset, self._line = about.st_ino, 0, 0
                self._known, self._lines = {}, {}
            file.seek(self._offset)
            last = self._line + most
            while self._line < last and (line := file.readline(MAX_BYTES + 1)).endswith(b"\n"):
                held = self._made(line, self._line + 1)
                number = self._number(held)
                if before.get(number) != (told := Ended.of(held, number)):
                    news[number] = told
                self._known[number], self._lines[number] = told, (self._offset, self._line + 1)
                self._offset += len(line)
                self._line += 1
            self.behind = self._line == last
            if not self.behind and len(line) > MAX_BYTES:
                raise RecordError(f"{self._path}:{self._line + 1}: more than {MAX_BYTES >> 20} MiB")
        return list(news.values())

    def conversation(self, number: int) -> Trajectory | None:
        """One that has ended, as it stands in the file now; None for one that has not.

        Raises:
            RecordError: the file cannot be read.
        """
        self.read()
        if number not in self._lines:
            return None
        offset, line = self._lines[number]
        with self._opened() as file:
            file.seek(offset)
            return self._made(file.readline(MAX_BYTES), line)

    def _opened(self) -> BufferedReader:
        try:
            return BufferedReader(open_plain(self._path))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RecordError(f"{self._path}: cannot be read ({error.strerror})") from error

    def _made(self, line: bytes, number: int) -> Trajectory:
        where = f"{self._path}:{number}"
        try:
            data = parse(line)
            check_version(read(data, "version", integer(0)), where)
            scenario = read(data, "scenario", text)
            if scenario not in self._people or read(data, "trial", integer(0)) >= self._trials:
                raise SpecError(f"{scenario!r} and its trial are no part of this run")
            return Trajectory.from_json(data, self._people[scenario])
        except ValueError as error:
            raise RecordError(f"{where}: not a trajectory ({error}). Was the file edited or damaged?") from error

    def _number(self, held: Trajectory) -> int:
        return held.trial * len(self._people) + self._places[held.scenario.id]

    def progress(self) -> dict[str, Any]:
        """How far the run is.

        `done` conversations with an outcome of `total`, how many are `solved` and broke off (`errors`), their `rate`
        and its `interval`, both also as every page writes them (`success`), US dollars (`cost`; None: unknown), and
        `failures`: chair, message, how many.
        """
        held = list(self._known.values())
        outcomes: dict[int, list[bool]] = defaultdict(list)
        for each in held:
            if each.completed:
                outcomes[each.number % len(self._people)].append(each.solved)
        done = sum(map(len, outcomes.values()))
        solved = sum(each.solved for each in held)
        failures = failure_messages(each.failure for each in held)
        rate, interval = solved / done if done else None, success_interval(outcomes.values())
        return {
            "done": done,
            "total": self._total,
            "solved": solved,
            "errors": len(held) - done,
            "rate": rate,
            "interval": interval,
            "success": (percent(rate), interval_text(interval)),
            "cost": reduce(add, (each.usage for each in held), Usage()).cost,
            "failures": [(role, one_line(message)[:LONGEST], count) for role, message, count in failures[:MOST]],
        }

    @property
    def complete(self) -> bool:
        """Whether every conversation that is held in this folder has an outcome."""
        return self._total > 0 and sum(each.completed for each in list(self._known.values())) >= self._total

"""Other people's conversations as our trajectories, so that they can be reported, judged and ranked.

    sage       Tencent/digitalhuman's SAGE: a conversation a line, `history` with `emotion-point`, `emo_point` last
    ppdpp      PPDPP's Record-*.txt: `{'dialog': […], 'reward': …}`
    esc-eval   ESC-Eval's result: `{"0": ["AI assistant：…", "ESC-Role：…", …]}`
    tau2       τ²-bench's results: `simulations` with `messages` and `reward_info`
    chat       `{"messages": [{"role": "user", "content": …}, …]}` a line, as OpenAI's fine-tuning takes it
    sharegpt   `{"conversations": [{"from": "human", "value": …}, …]}`
    esc-env    what `esc_env.wrappers.RecordConversation` writes: a trajectory a line, with its scenario

Nothing of ours judged them: a trajectory has no verdict, all of it is history, and it ended as `unjudged`. What their
own instrument measured is kept in its own scale (`Measure`), never turned into ours.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from shlex import quote
from statistics import fmean
from typing import Any

from esc_env.data.cards import sage_profile
from esc_env.data.files import Record, Unusable, records
from esc_env.data.readers import read_file
from esc_env.dialogue import Dialogue, Message
from esc_env.errors import ProtocolMismatch, RecordError, ScenarioError, SpecError, TornLineWarning, did_you_mean
from esc_env.evaluation.statistics.intervals import mean_interval
from esc_env.fields import integer, many, mapping, number, optional, read, text
from esc_env.folder import RunFolder
from esc_env.records import check_version, write_records
from esc_env.rules import Fingerprint
from esc_env.scenarios import Scenario, ScenarioSet, content_hash, mentions_self_harm
from esc_env.trajectory import StopReason, Trajectory

__all__ = ["SOURCES", "ImportReport", "Imported", "Measure", "import_file", "is_import", "read_import", "together"]

CONVERSATIONS = "conversations.jsonl"


@dataclass(frozen=True, slots=True)
class Measure:
    """What somebody else's instrument measured.

    Attributes:
        name: as its files call it.
        low, high: the ends of its scale; None where it has none.
        success: a conversation that ends at this or above has succeeded, in its own terms.
        failure: one that ends below this has failed, in its own terms.
    """

    name: str
    low: float | None = None
    high: float | None = None
    success: float | None = None
    failure: float | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """A conversation of somebody else's.

    Attributes:
        trajectory: with whom, and what was said.
        points: what was measured at each message of the seeker; None where it was not.
        final: what was measured in the end.
    """

    trajectory: Trajectory
    points: tuple[float | None, ...] = ()
    final: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the trajectory's fields, with `points` and `final`."""
        return {**self.trajectory.to_json(), "points": list(self.points), "final": self.final}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], scenario: Scenario) -> Imported:
        """Inverse of `to_json`, given the scenario that it names. Raises SpecError naming a field that is wrong."""
        value = number(-_FAR, _FAR)
        return cls(
            Trajectory.from_json(data, scenario),
            read(data, "points", many(optional(value))),
            read(data, "final", optional(value), None),
        )


_FAR = 1e9
"""Nothing that is measured lies further from 0."""


@dataclass(frozen=True, slots=True)
class _Source:
    """How one kind of file is read.

    Attributes:
        knows: whether a record of a file is of this kind.
        split: the conversations in a record.
        read: with whom a conversation was held, what was said, the points, and the final one.
        measure: what is measured in it.
    """

    knows: Callable[[Mapping[str, Any]], bool]
    split: Callable[[Mapping[str, Any]], Iterable[Any]]
    read: Callable[[Any, str], tuple[Scenario, list[Message], list[float | None], float | None]]
    measure: Measure | None = None


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What a file of conversations says, counted afresh.

    Attributes:
        agent: who supported, as it was named.
        source: the kind of file.
        scenarios: how many, and a digest of their contents.
        measure: what was measured; None where nothing was.
        conversations: how many.
        turns: mean number of the supporter's turns.
        mean: of the final points, in the scale of the measure; None where nothing was measured.
        interval: its 95 % interval, by scenario.
        succeeded, failed: conversations that did, in the source's own terms; None where it has none.
        folder: where they are kept.
        held: the conversations.
    """

    agent: str
    source: str
    scenarios: str
    measure: Measure | None
    conversations: int
    turns: float
    mean: float | None
    interval: tuple[float, float] | None
    succeeded: int | None
    failed: int | None
    folder: Path
    held: tuple[Imported, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the same names; conversations stay in their own file."""
        data = {name: getattr(self, name) for name in self.__slots__ if name not in ("folder", "held")}
        return {**data, "measure": asdict(self.measure) if self.measure else None}


def import_file(
    path: str | Path, out: str | Path, *, source: str | None = None, agent: str | None = None
) -> ImportReport:
    """Read somebody else's conversations, and keep them as a folder that can be reported, judged and ranked.

    Args:
        path: the file; packed ones too.
        out: the folder; made anew.
        source: one of `SOURCES`; None for what the file's content says.
        agent: who supported; the file's name by default.

    Raises:
        ScenarioError: the file cannot be opened or unpacked.
        RecordError: it is of no known kind, or a record cannot be used (the message says which); the last one of a
            file that was cut off is left out, with a warning that says how many were read.
        ProtocolMismatch: the folder holds other conversations.
    """
    path = Path(path)
    kind, held = _read(path, source)
    people: dict[str, Scenario] = {}
    for each in held:
        people.setdefault(each.trajectory.scenario.id, each.trajectory.scenario)
    measure = SOURCES[kind].measure
    identity = {
        "source": kind, "measure": asdict(measure) if measure else None, "scenarios": _content(people.values()),
        "conversations": blake2b(repr([each.to_json() for each in held]).encode(), digest_size=8).hexdigest(),
    }  # fmt: skip
    folder, file = _folder(out), _name(path)
    with folder.claim(identity, scenarios=people.values(), facts={"agent": agent or Path(file).stem, "file": file}):
        write_records(folder.path / CONVERSATIONS, "conversation", [each.to_json() for each in held])
    return read_import(out)


def is_import(folder: str | Path) -> bool:
    """Whether a folder holds imported conversations. Raises RecordError where its run.json is damaged."""
    return _folder(folder).begun


def read_import(folder: str | Path) -> ImportReport:
    """The report of a folder that `import_file` made. Raises RecordError where it is none, or cannot be read."""
    kept = _folder(folder)
    about, people = kept.about(), kept.scenarios()
    try:
        identity = about["identity"]
        kind, scenarios = read(identity, "source", text), read(identity, "scenarios", text)
        agent = read(about, "agent", text)
        if kind not in SOURCES or scenarios != _content(people.values()):
            raise SpecError("identity does not fit scenarios.jsonl")
    except SpecError as error:
        raise RecordError(f"{kept.path}/run.json: no imported conversations ({error}). Was it edited?") from error
    held = tuple(kept.records(CONVERSATIONS, "conversation", Imported.from_json, people))
    if not held:
        raise RecordError(f"{kept.path}: no conversation in it. Import the file once more")
    measure = SOURCES[kind].measure
    finals: dict[str, list[float]] = {}
    for each in held:
        if each.final is not None:
            finals.setdefault(each.trajectory.scenario.id, []).append(each.final)
    values = [value for those in finals.values() for value in those]
    marked = measure or Measure("")
    mean, interval = (None, None)
    if values:
        low, high = marked.low, marked.high  # of a measure without ends, the least and the most that there is
        within = (min(values) if low is None else low, max(values) if high is None else high)
        mean, interval = mean_interval(finals.values(), within=within)
    turns = fmean(each.trajectory.dialogue.turns for each in held)
    return ImportReport(
        agent, kind, scenarios, measure, len(held), turns, mean, interval,
        None if marked.success is None else sum(value >= marked.success for value in values),
        None if marked.failure is None else sum(value < marked.failure for value in values),
        kept.path, held,
    )  # fmt: skip


def together(reports: Sequence[ImportReport]) -> list[ImportReport]:
    """Reports that may stand in one table, best first.

    Raises:
        ProtocolMismatch: they are of other sources, people or measures; the message names what differs.
    """
    first = reports[0]
    for other in reports[1:]:
        facing = [
            Fingerprint({"source": one.source, "scenarios": one.scenarios, "measure": one.measure and one.measure.name})
            for one in (first, other)
        ]
        if differs := facing[0].differences(facing[1]):
            raise ProtocolMismatch(
                f"{first.folder} and {other.folder} are not compared. What differs: {'; '.join(differs)}. Name folders "
                "of one source and the same people"
            )
    return sorted(reports, key=lambda one: (-(one.mean or 0.0), one.agent))


def _folder(path: str | Path) -> RunFolder:
    return RunFolder(Path(path), "import", (CONVERSATIONS,))


def _name(path: Path) -> str:
    """The name of a file, as a record can hold it: on some systems it may be no text."""
    return path.name.encode(errors="replace").decode()


def _content(people: Iterable[Scenario]) -> str:
    """Order does not count: every file has its own."""
    chosen = ScenarioSet.of("", sorted(people, key=lambda scenario: scenario.id))
    return f"{len(chosen)}, content {chosen.digest}"


# --- files -----------------------------------------------------------------------------------------


def _read(path: Path, source: str | None) -> tuple[str, list[Imported]]:
    if source is not None and source not in SOURCES:
        raise SpecError(f"no source {source!r}. {did_you_mean(source, SOURCES)}")
    found = records(path)
    if not found:
        raise RecordError(f"{path}: holds no conversation")
    torn = len(found) > 1 and isinstance(found[-1].value, Unusable)
    whole = found[:-1] if torn else found
    first = whole[0].value
    kind = source or next((n for n, s in SOURCES.items() if isinstance(first, Mapping) and s.knows(first)), None)
    if kind is None and isinstance(first, Unusable):
        raise RecordError(f"{path}, {whole[0].place}: {first}. Was the file cut off or edited?")
    if kind is None:
        try:
            layout = read_file(path).format
        except ScenarioError:
            raise RecordError(
                f"{path}: {whole[0].place} is of no known kind ({', '.join(SOURCES)}). Name it with --source, or see "
                "docs/imports.md"
            ) from None
        raise RecordError(
            f"{path}: holds scenarios to talk with ({layout}), no conversations of a supporter that is measured. Type: "
            f"esc scenarios {quote(str(path))}"
        )
    held = list(_conversations(path, whole, SOURCES[kind]))
    if torn:
        warnings.warn(
            f"{path}: {found[-1].place}, the last, was cut off and is left out; {len(held):,} conversations were read",
            TornLineWarning,
            stacklevel=3,
        )
    return kind, held


def _conversations(path: Path, found: Sequence[Record], source: _Source) -> Iterator[Imported]:
    times: Counter[str] = Counter()
    people: dict[str, Scenario] = {}
    for record in found:
        if isinstance(record.value, Unusable):
            raise RecordError(f"{path}, {record.place}: {record.value}. Was the file edited?")
        try:
            parts = list(source.split(mapping(record.value)))
        except (SpecError, Unusable) as error:
            raise RecordError(f"{path}, {record.place}: {error}") from error
        for place, part in enumerate(parts, 1):
            where = f"{path}, {record.place}" + (f", conversation {place}" if len(parts) > 1 else "")
            try:
                scenario, said, points, final = source.read(part, _name(path))
                scenario = people.setdefault(scenario.id, scenario)
                dialogue = Dialogue(tuple(said))
                yield Imported(
                    Trajectory(
                        scenario, dialogue, (), StopReason.UNJUDGED, 0, times[scenario.id], history=len(dialogue)
                    ),
                    tuple(points) if any(point is not None for point in points) else (),
                    final,
                )
            except (SpecError, Unusable, UnicodeEncodeError) as error:
                raise RecordError(f"{where}: {error}") from error
            times[scenario.id] += 1


def _sage(part: Any, file: str) -> tuple[Scenario, list[Message], list[float | None], float | None]:
    turns = read(part, "history", many(mapping, 1))
    said, roles = _messages(turns, "role", "content")
    points = [
        read(turn, "emotion-point", optional(number(0, 100)), None)
        for turn, role in zip(turns, roles, strict=True)
        if role == "seeker"
    ]
    try:
        scenario = sage_profile(part, file)
    except Unusable:  # its story has no state to open a new conversation with, which this one did without
        told = (str(part.get(name) or "") for name in ("player", "scene", "task"))
        scenario = replace(_person("sage", said, file), id=f"sage-{content_hash(*told)}")
    return scenario, said, points, read(part, "emo_point", number(0, 100))


def _ppdpp(part: Any, file: str) -> tuple[Scenario, list[Message], list[float | None], float | None]:
    said, _ = _messages(read(part, "dialog", many(mapping, 1)), "role", "content")
    return _person("ppdpp", said, file), said, [], read(part, "reward", number(-_FAR, _FAR))


def _esc_eval(part: Any, file: str) -> tuple[Scenario, list[Message], list[float | None], float | None]:
    said = []
    for place, line in enumerate(many(text, 1)(part)):
        who, mark, words = re.split("([:：])", line, maxsplit=1) if re.search("[:：]", line) else ("", "", line)
        role = _ROLES.get(who.strip().casefold())
        if role is None or not mark:
            raise Unusable(f"message {place + 1} is neither of the AI assistant nor of ESC-Role")
        said.append(Message(role, words.strip()))
    return _person("esc-eval", said, file), said, [], None


def _tau2(part: Any, file: str) -> tuple[Scenario, list[Message], list[float | None], float | None]:
    turns = [turn for turn in read(part, "messages", many(mapping, 1)) if turn.get("role") in ("user", "assistant")]
    said, _ = _messages([turn for turn in turns if turn.get("content")], "role", "content")
    reward = read(part, "reward_info", optional(mapping), None)
    final = read(reward, "reward", optional(number(-_FAR, _FAR)), None) if reward else None
    return _person(f"tau2:{read(part, 'task_id', str)}", said, file), said, [], final


def _chat(part: Any, file: str) -> tuple[Scenario, list[Message], list[float | None], float | None]:
    said, _ = _messages(read(part, "messages", many(mapping, 1)), "role", "content")
    return _person("chat", said, file), said, [], None


def _sharegpt(part: Any, file: str) -> tuple[Scenario, list[Message], list[float | None], float | None]:
    said, _ = _messages(read(part, "conversations", many(mapping, 1)), "from", "value")
    return _person("sharegpt", said, file), said, [], None


def _recorded(part: Any, file: str) -> tuple[Scenario, list[Message], list[float | None], float | None]:
    check_version(read(part, "version", integer(0)), file)
    scenario = read(part, "scenario", Scenario.from_json)
    held = Trajectory.from_json(part, scenario)
    return scenario, list(held.dialogue), [], float(held.solved) if held.completed else None


_ROLES: Mapping[str, Any] = {
    **dict.fromkeys(("user", "human", "patient", "seeker", "esc-role"), "seeker"),
    **dict.fromkeys(("assistant", "gpt", "bot", "therapist", "supporter", "ai assistant"), "supporter"),
}
_BESIDE = ("system", "developer", "tool", "function")
"""Roles of what nobody says to the other."""


def _messages(turns: Iterable[Mapping[str, Any]], who: str, what: str) -> tuple[list[Message], list[str]]:
    """What was said, and by whom every turn is; raises where it cannot be told."""
    said: list[Message] = []
    roles: list[str] = []
    for place, turn in enumerate(turns, 1):
        name = read(turn, who, text).strip().casefold()
        role = _ROLES.get(name)
        roles.append(role or name)
        if role is None and name not in _BESIDE:
            raise Unusable(f"turn {place} is of {name[:40]!r}, which is neither seeker nor supporter")
        if role is not None:
            said.append(Message(role, _words(turn.get(what), place)))
    return said, roles


def _words(value: Any, place: int) -> str:
    """A text, or the text of OpenAI's content parts."""
    if isinstance(value, list):
        value = "\n".join(str(part.get("text", "")) for part in value if isinstance(part, Mapping))
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unusable(f"turn {place} has no text")
    return value


def _person(name: str, said: Sequence[Message], file: str) -> Scenario:
    """Whom a conversation was held with, where all that is known of them is what they said first."""
    first = next((message.content for message in said if message.role == "seeker" and message.content.strip()), "")
    if not first:
        raise Unusable("the seeker says nothing")
    risk = any(mentions_self_harm(message.content) for message in said if message.role == "seeker")
    return Scenario(name if ":" in name else f"{name}-{content_hash(first)}", first, risk=risk, source=file)


SOURCES: Mapping[str, _Source] = {
    "sage": _Source(
        lambda record: "history" in record and "emo_point" in record, lambda record: [record], _sage,
        Measure("emo_point", 0, 100, success=100, failure=10),
    ),
    "ppdpp": _Source(
        lambda record: "dialog" in record and "reward" in record, lambda record: [record], _ppdpp, Measure("reward"),
    ),
    "tau2": _Source(
        lambda record: "simulations" in record, lambda record: read(record, "simulations", many(mapping, 1)), _tau2,
        Measure("reward", 0, 1, success=1),
    ),
    "chat": _Source(lambda record: "messages" in record, lambda record: [record], _chat),
    "sharegpt": _Source(lambda record: "conversations" in record, lambda record: [record], _sharegpt),
    "esc-env": _Source(
        lambda record: record.get("kind") == "trajectory" and isinstance(record.get("scenario"), Mapping),
        lambda record: [record], _recorded, Measure("solved", 0, 1, success=1),
    ),
    "esc-eval": _Source(
        lambda record: bool(record) and all(
            str(name).isdecimal() and isinstance(part, list) for name, part in record.items()
        ),
        lambda record: record.values(), _esc_eval,
    ),
}  # fmt: skip
"""What is read, by name; the first that knows a file reads it. *Source* of SAGE's marks: its table counts an
`emo_point` of 100 as success and one below 10 as failure (Tencent/digitalhuman, SAGE)."""

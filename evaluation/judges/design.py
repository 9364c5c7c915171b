"""What a judge is asked: which conversations of which runs or imports, alone or in pairs."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from esc_env.builtin.language import understood
from esc_env.dialogue import Dialogue
from esc_env.errors import ProtocolMismatch, RecordError, ScenarioError
from esc_env.evaluation.imports import ImportReport, is_import, read_import, together
from esc_env.evaluation.judges.protocol import DIMENSIONS, SAFETY, Opinion
from esc_env.evaluation.ranking.leaderboard import find_runs
from esc_env.evaluation.runs.holding import Episode
from esc_env.evaluation.runs.report import Report, label
from esc_env.evaluation.runs.runner import read_run
from esc_env.folder import RunFolder
from esc_env.rules import Fingerprint, Rules
from esc_env.scenarios import Scenario
from esc_env.seeds import episode_seed
from esc_env.trajectory import Failure, StopReason, Trajectory

__all__ = [
    "Answer", "Conversation", "Mode", "Question", "System", "check_english", "dimensions_of", "in_english", "people_of",
    "questions_of", "systems_of", "words_of",
]  # fmt: skip

Conversation = tuple[str, str, int]
"""System, scenario and trial: what names a conversation among several runs."""
Mode = Literal["pairwise", "rubric", "safety"]
"""`pairwise`: any two systems, in both orders. `rubric`: each conversation by itself. `safety`: likewise, but marked by
how a seeker at risk is met, and only where the scenario is marked `risk`."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""What white space divides; where a script has none between words, every character."""


@dataclass(frozen=True, slots=True)
class System:
    """A run whose conversations are judged, or an import.

    Attributes:
        label: its agent's name, with the folder where two have agents of one name.
        folder: where it is kept.
        key: what tells it from others: 16 hex digits.
        agent: the identity of its agent; empty where it was held elsewhere.
        rules: by which its conversations were held; None for an import.
        trajectories: its conversations. Imported ones are shaped like ours: an opening that ends with the seeker's
            first words, then turns, each all that one side says before the other does; the last may have no answer.
    """

    label: str
    folder: Path
    key: str
    agent: Mapping[str, Any]
    rules: Rules | None
    trajectories: tuple[Trajectory, ...]

    @property
    def held(self) -> dict[Episode, Trajectory]:
        """The conversations that can be judged, by scenario and trial: all but those that broke off."""
        return {(t.scenario.id, t.trial): t for t in self.trajectories if t.stop_reason is not StopReason.ERROR}

    def content(self, episodes: Iterable[Episode]) -> dict[str, str]:
        """What tells these of its conversations from any others: the run's key, and a digest of what was said."""
        held = self.held
        said = [
            [*episode, held[episode].scenario.to_json(), held[episode].dialogue.transcript()]
            for episode in sorted(episodes)
        ]
        text = json.dumps(said, sort_keys=True, ensure_ascii=False)
        digest = blake2b(text.encode(), digest_size=8).hexdigest()
        return {"run_key": self.key, "conversations": f"{len(said)}, content {digest}"}


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge is asked once: about one conversation, or two in this order.

    Attributes:
        scenario, trial: the conversations' own.
        shown: labels of their systems, in the order in which they are shown.
    """

    scenario: str
    trial: int
    shown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question: an opinion (which may be unreadable), or a failure of the judge's own call."""

    opinion: Opinion
    failure: Failure | None = None


def systems_of(runs: Iterable[str | Path | Report]) -> list[System]:
    """The runs, or the imports, as systems, in order.

    Raises:
        RecordError: no run, or one twice.
        ProtocolMismatch: they faced different things; the message names what differs.
    """
    given = list(runs)
    if stranger := next((each for each in given if isinstance(each, str | Path) and Path(each).is_file()), None):
        raise RecordError(
            f"{stranger}: a file, no folder of a run. To have conversations from elsewhere judged, read them first: "
            f"esc import {stranger} --out FOLDER"
        )
    named_twice = [each for each in given if isinstance(each, str | Path) and given.count(each) > 1]
    if named_twice:
        raise RecordError(f"{named_twice[0]}: the same run twice; name it once")
    reports = [each for each in given if isinstance(each, Report)]
    folders = find_runs(each for each in given if not isinstance(each, Report))
    imports = [read_import(folder) for folder in folders if is_import(folder)]
    reports += [read_run(folder) for folder in folders if not is_import(folder)]
    if reports and imports:
        raise ProtocolMismatch(
            f"{imports[0].folder} holds imported conversations and {reports[0].folder} a run: they were held with "
            "other people, and are not judged against each other. Judge them apart"
        )
    if imports:
        together(imports)
    elif not reports:
        raise RecordError("no runs to judge. Type: esc judge runs/RUN_KEY …")
    for report in reports:
        if differences := reports[0].fingerprint.differences(report.fingerprint):
            raise ProtocolMismatch(
                f"{reports[0].folder} and {report.folder} faced different things, and are not judged against each "
                f"other. What differs: {'; '.join(differences)}"
            )
    systems = [*map(_of_import, imports), *map(_of_run, reports)]
    keys, named = [system.key for system in systems], [(system.label, system.folder) for system in systems]
    if again := next((system for system in systems if keys.count(system.key) > 1), None):
        raise RecordError(f"{again.folder}: the same run twice; name it once")
    return [replace(system, label=label(*each, named)) for system, each in zip(systems, named, strict=True)]


def _of_run(report: Report) -> System:
    parts = report.fingerprint.parts
    agent: Mapping[str, Any] = RunFolder(report.folder, "run").about()["identity"]["agent"]
    rules = Rules(int(parts["max_turns"]), float(parts["threshold"]), int(parts["votes"]))
    return System(report.agent, report.folder, report.run_key, agent, rules, report.trajectories)


def _of_import(report: ImportReport) -> System:
    key = Fingerprint(RunFolder(report.folder, "import").about()["identity"]).digest
    return System(report.agent, report.folder, key, {}, None, tuple(_shaped(each.trajectory) for each in report.held))


def _shaped(held: Trajectory) -> Trajectory:
    """An imported conversation in the shape of ours, with a seed of its own."""
    said = held.dialogue.merged()
    opening = next((place for place, message in enumerate(said, 1) if message.role == "seeker"), len(said))
    seed = episode_seed(0, held.scenario.id, held.trial)
    return replace(held, dialogue=Dialogue(said), history=opening, seed=seed)


def words_of(held: Trajectory) -> int:
    """How many words the supporter says after the opening; in Chinese and Japanese, characters."""
    said = held.dialogue.messages[held.history :]
    return sum(len(_WORD.findall(message.content)) for message in said if message.role == "supporter")


def in_english(held: Trajectory) -> bool:
    """Whether the seeker may speak English, as far as letters tell."""
    return understood(" ".join(message.content for message in held.dialogue if message.role == "seeker"))


def check_english(who: str, option: str, held: Iterable[Trajectory]) -> None:
    """Raise ScenarioError where one of ours that reads English only (`who`) would judge anything else."""
    told = [in_english(each) for each in held]
    if others := told.count(False):
        raise ScenarioError(
            f"{who} reads English only, and {others:,} of {len(told):,} conversations are in another script: it would "
            f"score nonsense. Name a chat model with {option}"
        )


def people_of(systems: Sequence[System], limit: int | None, *, at_risk: bool = False) -> dict[str, Scenario]:
    """The scenarios, in the order in which the first run met them; with `at_risk`, those that are marked `risk`."""
    met = {each.scenario.id: each.scenario for system in systems for each in system.trajectories}
    return dict([(name, each) for name, each in met.items() if each.risk or not at_risk][:limit])


def dimensions_of(mode: Mode) -> Mapping[str, str]:
    """What is marked, and what each means."""
    return SAFETY if mode == "safety" else DIMENSIONS


def questions_of(
    systems: Sequence[System], people: Mapping[str, Scenario], mode: Mode, only: Container[Conversation] | None = None
) -> list[Question]:
    """All of them, or those about `only` these conversations; trial by trial, both orders of a pair together."""
    episodes = sorted(
        {episode for system in systems for episode in system.held if episode[0] in people},
        key=lambda episode: (episode[1], list(people).index(episode[0])),
    )
    held = {system.label: system.held for system in systems}
    groups = list(combinations(systems, 2)) if mode == "pairwise" else [(one,) for one in systems]
    return [
        Question(*episode, tuple(system.label for system in shown))
        for episode in episodes
        for group in groups
        if all(episode in held[one.label] and (not only or (one.label, *episode) in only) for one in group)
        for shown in ([group, group[::-1]] if mode == "pairwise" else [group])
    ]

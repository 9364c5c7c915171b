"""What a judge is asked: which conversations of which runs, alone or in pairs."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from esc_env.errors import ProtocolMismatch, RecordError
from esc_env.evaluation.holding import Episode
from esc_env.evaluation.judges.protocol import Opinion
from esc_env.evaluation.leaderboard import find_runs
from esc_env.evaluation.report import Report
from esc_env.evaluation.runner import read_run
from esc_env.folder import RunFolder
from esc_env.scenarios import Scenario
from esc_env.trajectory import Failure, Trajectory

__all__ = ["Answer", "Conversation", "Mode", "Question", "System", "people_of", "questions_of", "systems_of"]

Conversation = tuple[str, str, int]
"""System, scenario and trial: what names a conversation among several runs."""
Mode = Literal["pairwise", "rubric"]
"""`pairwise`: any two systems, in both orders. `rubric`: each conversation by itself."""


@dataclass(frozen=True, slots=True)
class System:
    """One run whose conversations are judged.

    Attributes:
        label: its agent's name, with the folder where two runs have agents of one name.
        report: of the run.
        agent: the identity of its agent.
        held: its conversations with an outcome, by scenario and trial.
    """

    label: str
    report: Report
    agent: Mapping[str, Any]
    held: Mapping[Episode, Trajectory]

    def content(self, episodes: Iterable[Episode]) -> dict[str, str]:
        """What tells these of its conversations from any others: the run's key, and a digest of what was said."""
        said = [
            [*episode, self.held[episode].scenario.to_json(), self.held[episode].dialogue.transcript()]
            for episode in sorted(episodes)
        ]
        text = json.dumps(said, sort_keys=True, ensure_ascii=False)
        digest = blake2b(text.encode(), digest_size=8).hexdigest()
        return {"run_key": self.report.run_key, "conversations": f"{len(said)}, content {digest}"}


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
    """The runs as systems, in order.

    Raises:
        RecordError: no run, or one twice.
        ProtocolMismatch: they faced different things; the message names what differs.
    """
    given = list(runs)
    reports = [each for each in given if isinstance(each, Report)]
    reports += [read_run(folder) for folder in find_runs(each for each in given if not isinstance(each, Report))]
    if not reports:
        raise RecordError("no runs to judge. Type: esc judge runs/RUN_KEY …")
    first, keys = reports[0], [report.run_key for report in reports]
    for report in reports:
        if differences := first.fingerprint.differences(report.fingerprint):
            raise ProtocolMismatch(
                f"{first.folder} and {report.folder} faced different things, and are not judged against each other. "
                f"What differs: {'; '.join(differences)}"
            )
        if keys.count(report.run_key) > 1:
            raise RecordError(f"{report.folder}: the same run twice; name it once")
    names = [report.agent for report in reports]
    labels = [
        report.agent if names.count(report.agent) == 1 else f"{report.agent} ({report.folder.name})"
        for report in reports
    ]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise RecordError(f"two of the runs are called {twice[0]!r}: rename one of their folders")
    return [
        System(label, report, _agent(report), {(t.scenario.id, t.trial): t for t in report.trajectories if t.completed})
        for label, report in zip(labels, reports, strict=True)
    ]


def _agent(report: Report) -> Mapping[str, Any]:
    agent: Mapping[str, Any] = RunFolder(report.folder, "run").about()["identity"]["agent"]
    return agent


def people_of(systems: Sequence[System], limit: int | None) -> dict[str, Scenario]:
    """The scenarios, in the order in which the first run met them."""
    met = {each.scenario.id: each.scenario for system in systems for each in system.report.trajectories}
    return dict(list(met.items())[:limit])


def questions_of(
    systems: Sequence[System], people: Mapping[str, Scenario], mode: Mode, only: Container[Conversation] | None = None
) -> list[Question]:
    """All of them, or those about `only` these conversations; trial by trial, both orders of a pair together."""
    episodes = sorted(
        {episode for system in systems for episode in system.held if episode[0] in people},
        key=lambda episode: (episode[1], list(people).index(episode[0])),
    )
    groups = [(one,) for one in systems] if mode == "rubric" else list(combinations(systems, 2))
    return [
        Question(*episode, tuple(system.label for system in shown))
        for episode in episodes
        for group in groups
        if all(episode in system.held and (not only or (system.label, *episode) in only) for system in group)
        for shown in ([group] if mode == "rubric" else [group, group[::-1]])
    ]

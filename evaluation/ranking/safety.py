"""What judges said of how the agents of ranked runs met seekers at risk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_env.errors import RecordError
from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.validity.critics import Estimate

__all__ = ["JudgedSafety", "judged_safety"]


@dataclass(frozen=True, slots=True)
class JudgedSafety:
    """The marks of one judge on how the agent of one run met seekers at risk.

    Attributes:
        judge: as it was given.
        conversations: how many it marked.
        marks: by dimension of `SAFETY`, from 1 to 5, with their 95 % intervals over scenarios.
    """

    judge: str
    conversations: int
    marks: Mapping[str, Estimate]

    def __str__(self) -> str:
        """`marks from 1 to 5 by the judge J, of 8 conversations: detects 4.25 [3.90, 4.60], …`."""
        from esc_env.evaluation.judges.report import mark_text

        told = ", ".join(f"{name} {mark_text(value)}" for name, value in self.marks.items())
        return f"marks from 1 to 5 by the judge {self.judge}, of {self.conversations:,} conversations: {told}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        marks = {name: each.to_json() for name, each in self.marks.items()}
        return {"judge": self.judge, "conversations": self.conversations, "marks": marks}


def judged_safety(folders: Iterable[str | Path], reports: Iterable[Report]) -> dict[str, list[JudgedSafety]]:
    """By run key, what `esc judge --mode safety` has come to for each of these runs.

    Raises:
        RecordError: a folder that holds no such judging, or one that is not complete, judged other words than these
            runs hold, or none of these runs.
        MissingExtra: the libraries that count marks are not installed.
    """
    from esc_env.evaluation.judges.agreement import check_libraries
    from esc_env.evaluation.judges.counting import mean_mark
    from esc_env.evaluation.judges.design import systems_of
    from esc_env.evaluation.judges.protocol import SAFETY
    from esc_env.evaluation.judges.session import read_judging

    runs = {report.run_key: report for report in reports}
    found: dict[str, list[JudgedSafety]] = {}
    for folder in folders:
        check_libraries()
        judging = read_judging(folder)
        if judging.mode != "safety":
            raise RecordError(f"{folder}: marks for {judging.mode}, not for safety. Type: esc judge … --mode safety")
        labels = {label: runs[key] for label, key in judging.keys.items() if key in runs}
        if not labels:
            raise RecordError(f"{folder}: judged none of these runs")
        for label, report in labels.items():
            known = {
                (question.scenario, question.trial): answer
                for question, answer in judging.known.items()
                if question.shown == (label,)
            }
            system = systems_of([report])[0]
            there = {episode: answer for episode, answer in known.items() if episode in system.held}
            if (now := system.content(there)["conversations"]) != judging.contents[label]:
                raise RecordError(
                    f"{folder}: not complete, or of other conversations than {report.folder} holds "
                    f"({judging.contents[label]}; {now} are marked here). The same esc judge command completes it"
                )
            marks = [
                (scenario, answer.opinion.marks)
                for (scenario, _), answer in there.items()
                if answer and answer.opinion.marks is not None
            ]
            means = {name: mean_mark((scenario, each[name]) for scenario, each in marks) for name in SAFETY}
            told = JudgedSafety(judging.judge, len(marks), {name: mean for name, mean in means.items() if mean})
            found.setdefault(report.run_key, []).append(told)
    return found

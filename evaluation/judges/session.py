"""Ask a judge about the conversations of runs, keep every answer, and report.

A judging is a folder (see `esc_env.folder`):

    run.json         which judge, which conversations (by a digest of what was said), how, settings, versions
    scenarios.jsonl  whom they were held with
    opinions.jsonl   one line per question, flushed as it is answered; the last line of a question counts
    report.json      the report, under the names of `Judged`; report.md is the same as a page

The same call resumes: what was answered is never asked again, readable or not; calls that failed are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack, get_args

from esc_env.backend import HERE, Backend
from esc_env.background import run
from esc_env.dialogue import Dialogue
from esc_env.errors import RecordError, ScenarioError, SpecError, one_of, whole
from esc_env.evaluation.judges.agreement import check_libraries
from esc_env.evaluation.judges.asking import ask_all, failure_of
from esc_env.evaluation.judges.design import (
    Answer,
    Conversation,
    Mode,
    Question,
    check_english,
    dimensions_of,
    people_of,
    questions_of,
    systems_of,
)
from esc_env.evaluation.judges.plain import PLAIN, PlainJudge
from esc_env.evaluation.judges.protocol import Judge, Opinion, SafetyJudge
from esc_env.evaluation.judges.report import Judged, summarise
from esc_env.evaluation.judges.seats import resolve_judge
from esc_env.evaluation.runs.holding import check_models
from esc_env.evaluation.runs.report import Report
from esc_env.fields import integer, many, mapping, optional, read, text
from esc_env.folder import RunFolder
from esc_env.models import ModelOptions, ModelSettings, effective
from esc_env.progress import Progress, Told
from esc_env.records import RecordWriter, write_json, write_text
from esc_env.rules import Fingerprint
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed, derive
from esc_env.trajectory import Failure

__all__ = ["Judging", "judge_runs", "read_judging"]

OPINIONS = "opinions.jsonl"


def judge_runs(
    runs: Iterable[str | Path | Report],
    judge: str | Judge | Callable[..., Any],
    *,
    mode: Mode | None = None,
    limit: int | None = None,
    only: Collection[Conversation] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Told | None = None,
    judge_temperature: float = 0.0,
    judge_options: Mapping[str, Any] | None = None,
    time_limit: float | None = None,
    backend: Backend = HERE,
    **models: Unpack[ModelOptions],
) -> Judged:
    """Have a judge mark the conversations of runs, and report what it says and how it leans.

    Args:
        runs: run folders, folders that hold runs, or reports, all of one fingerprint; or folders of imported
            conversations, all of one source with the same people.
        judge: as a string, an object or a callable; see `resolve_judge`.
        mode: by default `pairwise` for several runs, `rubric` for one. `safety` marks how seekers at risk are met: a
            rubric of its own, for scenarios marked `risk`, by a chat model or a `SafetyJudge`.
        limit: only the first so many scenarios, at least 1.
        only: only these conversations; None for all.
        seed: of the judge's calls.
        out: the folder; by default `runs/judged-<key>`.
        fresh: start over; a judging already in the folder is kept beside it.
        progress: called with a `Progress` before anything is asked and after every answer.
        judge_temperature, judge_options: of a judge that is a chat model.
        time_limit: seconds for the questions of this call; what is not answered by then is asked by the next call.
        backend: where the judge is asked: this process, or `esc_env.on_ray.Ray()`.
        models: how chat models are called: the fields of `esc_env.models.ModelSettings`. `concurrency` is also how many
            questions are under way at the same time.

    Raises:
        SpecError: a string names nothing, or a number makes no sense.
        MissingExtra: the packages that count, or those that a model needs, are not installed.
        ScenarioError: there is nothing to judge.
        ModelError: a model does not answer at all; nothing was asked.
        ProtocolMismatch: the runs faced different things, or the folder holds another judging.
        RecordError: a run or the folder cannot be used.
    """
    check_libraries()
    whole(limit=1 if limit is None else limit)
    if time_limit is not None and not time_limit > 0:
        raise SpecError(f"time_limit must be a number of seconds above 0, not {time_limit}")
    settings = ModelSettings.of(models, judge_runs)
    backend.check(settings)
    marking = resolve_judge(judge, settings, temperature=judge_temperature, options=judge_options)
    systems = systems_of(runs)
    way: Mode = mode or ("pairwise" if len(systems) > 1 else "rubric")
    one_of("mode", way, get_args(Mode))
    if way == "safety" and not isinstance(marking, SafetyJudge):
        raise SpecError("this judge does not mark safety. Name a chat model, or an object with rate_safety()")
    people = people_of(systems, limit, at_risk=way == "safety")
    if not people:
        raise ScenarioError("none of the scenarios is marked risk, so there is no safety to judge")
    asked = questions_of(systems, people, way, only)
    if not asked:
        raise ScenarioError(
            "no conversation that both runs have finished"
            if len(systems) > 1
            else "a single run has nothing to be compared with. Name another run, or add --mode rubric"
            if way == "pairwise"
            else "the run has no finished conversation"
        )
    held = {system.label: system.held for system in systems}
    if isinstance(marking, PlainJudge):
        check_english(PLAIN, "--judge", (held[label][q.scenario, q.trial] for q in asked for label in q.shown[:1]))
    identity = Fingerprint(
        {
            "judge": dict(marking.identity), "mode": way, "seed": seed,
            "judged": {
                system.label: system.content({(q.scenario, q.trial) for q in asked if system.label in q.shown})
                for system in systems
            },
        }
    ).parts  # fmt: skip
    key = Fingerprint(identity).digest
    folder = RunFolder(
        Path(out) if out is not None else Path("runs") / f"judged-{key}", "judging", (OPINIONS,),
        "Give another folder with --out, or --fresh to start over (the old one is kept beside it)",
    )  # fmt: skip
    name = judge if isinstance(judge, str) else str(marking.identity.get("name", type(marking).__name__))
    begun = not fresh and folder.begun
    if not begun:
        run(check_models(marking))
    with (
        folder.claim(identity, scenarios=people.values(), facts={"judge": name, "key": key}, fresh=fresh),
        RecordWriter(folder.path / OPINIONS, "judgement") as writer,
    ):
        known = _answered(folder, asked, people, way)
        missing = [question for question, answer in known.items() if answer is None or answer.failure]
        now = Progress(len(known) - len(missing), len(known), "questions")
        tell = progress or (lambda _: None)
        tell(now)
        if missing:
            if begun:
                run(check_models(marking))

            def keep(question: Question, answer: Answer) -> None:
                nonlocal now
                writer.write(_to_json(question, answer))
                known[question] = answer
                now = replace(now, done=now.done + (not answer.failure), errors=now.errors + bool(answer.failure))
                tell(now)

            async def ask() -> None:
                async with backend.doing(_Asking(marking, way), min(settings.concurrency, len(missing))) as asking:

                    async def one(question: Question) -> Failure | None:
                        shown = [held[label][question.scenario, question.trial].dialogue for label in question.shown]
                        name = Seed(derive(seed, question.scenario, question.trial, *question.shown), role="judge")
                        answer = await asking((people[question.scenario], shown, name), lambda: None, lambda _: None)
                        keep(question, answer)
                        return answer.failure

                    await ask_all(missing, one, settings.concurrency, time_limit)

            run(ask())
            if how := effective(getattr(marking, "model", None)):
                folder.note(effective={"judge": how})
        judged = summarise(name, marking.identity, way, systems, people, known, folder.path, only)
        write_json(folder.path / "report.json", judged.to_json())
        write_text(folder.path / "report.md", judged.to_markdown())
    return judged


@dataclass(frozen=True, slots=True)
class _Asking:
    """Asks a judge: about whom, what it is shown, under which seed."""

    judge: Judge
    mode: Mode

    async def __call__(
        self,
        item: tuple[Scenario, Sequence[Dialogue], Seed],
        told: Callable[[], None],
        cut: Callable[[Answer], None],
        /,
    ) -> Answer:
        scenario, shown, seed = item
        try:
            ask = getattr(self.judge, {"pairwise": "compare", "rubric": "rate", "safety": "rate_safety"}[self.mode])
            said = (await ask(scenario, *shown, seed=seed)).to_json()  # a judge of one's own may say anything
            return Answer(Opinion.from_json(said, len(shown), dimensions_of(self.mode)))
        except Exception as error:  # whatever a judge raises leaves its question without an answer
            return Answer(Opinion(None), failure_of("judge", error))


@dataclass(frozen=True, slots=True)
class Judging:
    """What a judging has come to.

    Attributes:
        judge: as it was given, or its name.
        mode: how it was asked.
        keys: of the systems that were judged, by label.
        contents: what tells the conversations that were to be judged from any others, by label (`System.content`).
        known: the answers.
    """

    judge: str
    mode: Mode
    keys: Mapping[str, str]
    contents: Mapping[str, str]
    known: Mapping[Question, Answer | None]


def read_judging(path: str | Path) -> Judging:
    """Read the folder of a judging. Raises RecordError where it is none, or cannot be read."""
    folder = RunFolder(Path(path), "judging", (OPINIONS,))
    about = folder.about()
    try:
        mode: Any = read(about["identity"], "mode", text)
        one_of("mode", mode, get_args(Mode))
        judged = read(about["identity"], "judged", mapping)
        keys, contents = (
            {name: read(each, part, text) for name, each in judged.items()} for part in ("run_key", "conversations")
        )
        judge = read(about, "judge", text)
    except SpecError as error:
        raise RecordError(f"{folder.path}/run.json: no judging ({error}). Was it edited?") from error
    known = folder.records(OPINIONS, "judgement", lambda data, scenario: _from_json(data, scenario, mode))
    return Judging(judge, mode, keys, contents, dict(known))


def _answered(
    folder: RunFolder, asked: Iterable[Question], people: Mapping[str, Scenario], mode: Mode
) -> dict[Question, Answer | None]:
    """What each question has come to: its last line, or None."""
    found: dict[Question, Answer | None] = dict.fromkeys(asked)

    def made(data: Mapping[str, Any], scenario: Scenario) -> tuple[Question, Answer]:
        question, answer = _from_json(data, scenario, mode)
        if question not in found:
            raise SpecError(f"shown: {', '.join(question.shown)}, trial {question.trial}, is no part of this judging")
        return question, answer

    found.update(folder.records(OPINIONS, "judgement", made, people))
    return found


def _to_json(question: Question, answer: Answer) -> dict[str, Any]:
    failure = asdict(answer.failure) if answer.failure else None
    about = {"scenario": question.scenario, "trial": question.trial, "shown": list(question.shown)}
    return {**about, **answer.opinion.to_json(), "failure": failure}


def _from_json(data: Mapping[str, Any], scenario: Scenario, mode: Mode) -> tuple[Question, Answer]:
    shown = read(data, "shown", many(text, 1, 2))
    question = Question(scenario.id, read(data, "trial", integer(0)), shown)
    failure = read(data, "failure", optional(Failure.from_json))
    opinion = Opinion.from_json(data, len(shown), dimensions_of(mode))
    if failure and opinion.marks is not None:
        raise SpecError("marks: a call that failed gives none")
    return question, Answer(opinion, failure)

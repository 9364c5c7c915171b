"""Run an agent on scenarios, keep every conversation, and report.

A run is a folder:

    run.json            what was run: agent, fingerprint, run key, scenario ids, settings, versions
    trajectories.jsonl  one line per ended conversation, flushed as it ends; the last line of an episode counts
    report.json         the report, under the names of `Report`
    report.html         the same as a page, with all transcripts

The same call resumes: conversations with an outcome are never held again, errors are tried again.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Unpack

import esc_env
from esc_env._loop import each, run
from esc_env.agents import CallableAgent, identity_of, resolve_agent
from esc_env.conversation import Chairs, Exchange, converse
from esc_env.critics import CriticMode, resolve_critic
from esc_env.errors import BudgetExceeded, ProtocolMismatch, RecordError, ScenarioError, SpecError
from esc_env.evaluation.config import run_config
from esc_env.evaluation.report import Report, summarise_run
from esc_env.models import ModelOptions, ModelSettings, Options, effective
from esc_env.progress import Progress, Told
from esc_env.protocols import Agent, Critic, Seeker
from esc_env.records import RECORD_VERSION, FolderLock, RecordWriter, read_records, write_json
from esc_env.rules import Fingerprint, Rules
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.seeds import episode_seed
from esc_env.seekers import resolve_seeker
from esc_env.trajectory import Trajectory

__all__ = ["CompleteRunWarning", "check_models", "evaluate", "hold", "is_run", "read_run"]


class CompleteRunWarning(UserWarning):
    """`evaluate` was called with a function for a run that was complete already."""


Episode = tuple[str, int]
"""Scenario id and trial: what is held once."""


def evaluate(
    agent: str | Agent | Callable[..., Any],
    scenarios: str | Path | Iterable[Scenario] = "builtin:test",
    *,
    seeker: str | Seeker | Callable[..., Any] = "builtin",
    critic: str | Critic | Callable[..., Any] = "builtin",
    rules: Rules | None = None,
    persona: str | None = None,
    limit: int | None = None,
    trials: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Told | None = None,
    critic_mode: CriticMode = "votes",
    critic_temperature: float = 1.1,
    seeker_temperature: float = 0.7,
    temperature: float = 0.0,
    agent_options: Mapping[str, Any] | None = None,
    seeker_options: Mapping[str, Any] | None = None,
    critic_options: Mapping[str, Any] | None = None,
    time_limit: float | None = None,
    **models: Unpack[ModelOptions],
) -> Report:
    """Hold one conversation per scenario and trial, and report how many were solved.

    Whatever was finished in the folder before is kept and not run again. Works in a notebook; from other async code,
    await `asyncio.to_thread(evaluate, …)`.

    Args:
        agent: the supporter: a string (`builtin:skilled`, `openai/gpt-4o`, `python:MODULE:NAME`), an object with
            `respond`, or `function(messages) -> str`; see `esc_env.agents.resolve_agent`.
        scenarios: a string (`builtin:test`, a file), or scenarios.
        seeker, critic: as strings, objects or callables.
        rules: T, threshold, votes and so on; by default `Rules()`.
        persona: how every seeker meets help; None keeps what each scenario says.
        limit: only the first so many scenarios, at least 1.
        trials: conversations per scenario, at least 1, each with its own seed.
        seed: of the run; every episode seed is derived from it.
        out: the run's folder; by default `runs/<run key>`.
        fresh: start over. A run already in the folder is kept beside it, as `<folder>~1` (or the next free number).
        progress: called with a `Progress` before anything runs, after every exchange and as every conversation ends.
        critic_mode: how a critic that is a chat model votes: `votes` or `logprobs`; see `LLMCritic`.
        critic_temperature: of those votes. *Source:* PPDPP: 1.1.
        seeker_temperature, temperature: of a seeker and of an agent that is a chat model.
        agent_options, seeker_options, critic_options: what a chat model in that chair is asked besides, such as
            `{"max_tokens": 16000, "reasoning_effort": "low"}`; see docs/models.md.
        time_limit: seconds for the conversations of this call, above 0; None for no limit. What has not ended by then
            is dropped, and held by the next call.
        models: how chat models are called, such as `budget="5 USD"` or `record="run.db"`: the fields of
            `esc_env.models.ModelSettings`. `concurrency`, 64 by default, is also how many conversations are held at
            the same time; each has one call in flight.

    Raises:
        SpecError: a string names nothing, or a model that is known not to take what it would be asked.
        MissingExtra: the packages that a model needs are not installed.
        ModelError: a model does not answer at all; nothing was started.
        ScenarioError: no scenario, or a file of them cannot be used.
        ProtocolMismatch: the folder holds another run; the message names what differs.
        RecordError: the folder cannot be used, or another process writes there.
        ValueError: limit or trials below 1, or no time at all.
    """
    for name, number in (("limit", limit), ("trials", trials)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if time_limit is not None and not time_limit > 0:
        raise SpecError(f"time_limit must be a number of seconds above 0, not {time_limit}")
    arguments = inspect.getfullargspec(evaluate)
    settings = ModelSettings.of(models, *arguments.args, *arguments.kwonlyargs)
    rules = rules or Rules()
    supporter = resolve_agent(agent, settings, temperature=temperature, options=agent_options)
    chairs = Chairs(
        resolve_seeker(seeker, settings, temperature=seeker_temperature, options=seeker_options),
        resolve_critic(critic, settings, mode=critic_mode, temperature=critic_temperature, options=critic_options),
        rules,
    )
    chosen = _choose(scenarios, limit, persona)
    config = run_config(
        agent=agent, temperature=temperature, agent_options=Options.of(agent_options, "agent").plain,
        scenarios=scenarios, seeker=seeker, seeker_temperature=seeker_temperature,
        seeker_options=Options.of(seeker_options, "seeker").plain, critic=critic, critic_mode=critic_mode,
        critic_temperature=critic_temperature,
        critic_options=Options.of(critic_options, "critic").plain, rules=rules, persona=persona, limit=limit,
        trials=trials, seed=seed, settings=settings,
    )  # fmt: skip
    plan = _plan(agent, supporter, chairs, chosen, trials, seed, config)
    folder = Path(out) if out is not None else Path("runs") / plan.run_key
    begun = is_run(folder) and not fresh
    seated = {"critic": chairs.critic, "seeker": chairs.seeker, "agent": supporter}
    if not begun:
        run(check_models(*seated.values(), votes=rules.votes))
    with _opened(folder, plan, fresh) as writer:
        by_id = {scenario.id: scenario for scenario in chosen}
        ended = {
            episode: replace(trajectory, scenario=by_id[episode[0]])
            for episode, trajectory in _ended(folder, plan).items()
        }
        pending = [(by_id[key], trial) for key, trial in plan.episodes if not _has_outcome(ended.get((key, trial)))]
        reached = Progress(len(plan.episodes) - len(pending), len(plan.episodes))

        def tell(**more: int) -> None:
            nonlocal reached
            reached = replace(reached, **{name: getattr(reached, name) + number for name, number in more.items()})
            if progress:
                progress(reached)

        def keep(trajectory: Trajectory) -> None:
            writer.write(trajectory.to_json())
            ended[trajectory.scenario.id, trajectory.trial] = trajectory
            tell(done=1, errors=not trajectory.completed)

        tell()
        if not pending and isinstance(supporter, CallableAgent) and not isinstance(agent, str):
            warnings.warn(
                f"{folder}: this run was complete before, and nothing was run. What {plan.agent} reads from elsewhere "
                "(a global, a file) is no part of its identity: if that has changed, start over with fresh=True",
                CompleteRunWarning,
                stacklevel=2,
            )
        if pending:
            if begun:
                run(check_models(*seated.values(), votes=rules.votes))
            run(hold(
                pending, supporter, chairs, seed, settings.concurrency, keep, time_limit, lambda _: tell(turns=1)
            ))  # fmt: skip
            asked = {role: how for role, part in seated.items() if (how := effective(getattr(part, "model", None)))}
            if asked:
                plan.write(folder / "run.json", asked)
        report = _report(folder, plan, ended)
        _write_report(report)
    return report


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a run."""
    return (Path(folder) / "run.json").is_file()


def read_run(folder: str | Path) -> Report:
    """The report of a run folder, counted afresh from its conversations; also of a run that is not complete.

    Raises:
        RecordError: the folder holds no run, or one that cannot be read.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise RecordError(f"{folder}: no run here (no run.json). Give a folder that `esc eval` wrote")
    plan = _Plan.read(folder / "run.json")
    return _report(folder, plan, _ended(folder, plan))


@dataclass(frozen=True)
class _Plan:
    """What a run is, as run.json keeps it."""

    agent: str
    identity: Mapping[str, Any]
    scenarios: str
    scenario_ids: tuple[str, ...]
    trials: int
    seed: int
    fingerprint: Fingerprint
    config: Mapping[str, Any] | None = None

    @property
    def episodes(self) -> list[Episode]:
        """All of them, trial by trial, so that a run cut short has seen every scenario equally often."""
        return [(key, trial) for trial in range(self.trials) for key in self.scenario_ids]

    @property
    def run_key(self) -> str:
        """16 hex digits over fingerprint and agent."""
        text = self.fingerprint.digest + json.dumps(self.identity, sort_keys=True, ensure_ascii=False)
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def write(self, path: Path, effective: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Write run.json; `effective` says by chair what a server took otherwise than a plain request has it."""
        write_json(
            path,
            {
                "kind": "run",
                "version": RECORD_VERSION,
                "run_key": self.run_key,
                "agent": self.agent,
                "agent_identity": self.identity,
                "scenarios": self.scenarios,
                "trials": self.trials,
                "seed": self.seed,
                "fingerprint": {"digest": self.fingerprint.digest, "parts": self.fingerprint.parts},
                "versions": {"esc-env": esc_env.__version__, "python": platform.python_version()},
                "config": self.config,
                "effective": effective or {},
                "scenario_ids": self.scenario_ids,
            },
        )

    @classmethod
    def read(cls, path: Path) -> _Plan:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["kind"] == "run" and data["version"] > RECORD_VERSION:
                raise RecordError(f"{path}: written by a newer esc-env. Type: pip install -U esc-env")
            return cls(
                data["agent"],
                data["agent_identity"],
                data["scenarios"],
                tuple(data["scenario_ids"]),
                data["trials"],
                data["seed"],
                Fingerprint(data["fingerprint"]["parts"]),
                data.get("config"),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path}: damaged, or not written by `esc eval` ({error!r})") from error

    def differences(self, other: _Plan) -> list[str]:
        """One line per thing that differs."""
        lines = self.fingerprint.differences(other.fingerprint)
        if self.identity != other.identity:
            same_name = self.agent == other.agent
            there, now = (self.identity, other.identity) if same_name else (self.agent, other.agent)
            lines.insert(0, f"agent: {there} / {now}")
        return lines


def _choose(scenarios: str | Path | Iterable[Scenario], limit: int | None, persona: str | None) -> ScenarioSet:
    if isinstance(scenarios, (str, Path)):
        from esc_env.datasets import load_scenarios

        chosen = load_scenarios(scenarios)
    elif isinstance(scenarios, ScenarioSet):
        chosen = scenarios
    else:
        chosen = ScenarioSet.of("scenarios", scenarios)
    chosen = replace(chosen, scenarios=chosen.scenarios[:limit])
    if not len(chosen):
        raise ScenarioError(f"{chosen.name}: there is no scenario in it")
    return chosen.with_persona(persona) if persona is not None else chosen


def _plan(
    given: Any,
    agent: Agent,
    chairs: Chairs,
    chosen: ScenarioSet,
    trials: int,
    seed: int,
    config: Mapping[str, Any] | None,
) -> _Plan:
    identity = _plain(identity_of(agent), "agent")
    fingerprint = chairs.rules.fingerprint(
        seeker=_plain(chairs.seeker.identity, "seeker"),
        critic=_plain(chairs.critic.identity, "critic"),
        scenarios=f"{len(chosen)}, content {chosen.digest}",
        persona=", ".join(sorted({scenario.persona for scenario in chosen})),
        trials=trials,
        seed=seed,
    )
    name = given if isinstance(given, str) else str(identity.get("name", type(agent).__name__))
    ids = tuple(scenario.id for scenario in chosen)
    return _Plan(name, identity, chosen.name, ids, trials, seed, fingerprint, config)


def _plain(identity: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The identity as JSON gives it back, so that what is read later compares equal."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    except (TypeError, ValueError) as error:
        raise SpecError(f"the {role}'s `identity` must be a mapping of plain JSON values: {error}") from error
    return plain


@contextmanager
def _opened(folder: Path, plan: _Plan, fresh: bool) -> Iterator[RecordWriter]:
    """The folder, locked, checked to hold this run or none, and its record file."""
    if fresh and folder.exists():
        _set_aside(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"{folder}: cannot be made a folder ({error.strerror}). Give another with --out") from error
    with FolderLock(folder):
        if is_run(folder):
            differences = _Plan.read(folder / "run.json").differences(plan)
            if differences:
                raise ProtocolMismatch(
                    f"{folder} holds another run. What differs (there / now): {'; '.join(differences)}. "
                    "Give another folder with --out, or --fresh to start over (the old run is kept beside it)"
                )
        elif (folder / "trajectories.jsonl").exists():
            raise RecordError(f"{folder}: trajectories.jsonl without run.json. Give another folder with --out")
        else:
            plan.write(folder / "run.json")
        with RecordWriter(folder / "trajectories.jsonl", "trajectory") as writer:
            yield writer


def _set_aside(folder: Path) -> None:
    if not is_run(folder):
        if any(folder.iterdir()):
            raise RecordError(f"{folder}: holds no run, so --fresh leaves it alone. Give another folder with --out")
        return
    with FolderLock(folder):
        number = 1
        while (aside := folder.with_name(f"{folder.name}~{number}")).exists():
            number += 1
        folder.rename(aside)


def _ended(folder: Path, plan: _Plan) -> dict[Episode, Trajectory]:
    """The last line of every episode."""
    planned = set(plan.episodes)
    path = folder / "trajectories.jsonl"
    last: dict[Episode, Trajectory] = {}
    for number, data in enumerate(read_records(path, "trajectory"), 1):
        try:
            trajectory = Trajectory.from_json(data)
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path}:{number}: not a conversation ({error!r}). Was the file edited?") from error
        episode = (trajectory.scenario.id, trajectory.trial)
        if episode not in planned:
            raise RecordError(f"{path}:{number}: {episode[0]!r}, trial {episode[1]}, is no part of this run")
        last[episode] = trajectory
    return last


def _has_outcome(trajectory: Trajectory | None) -> bool:
    return trajectory is not None and trajectory.completed


async def check_models(*seated: object, votes: int = 1) -> None:
    """Ask the chat models of chairs for a word each, just as they will be asked, so that a wrong key or name, or what a
    server refuses, is told before a run starts.

    Args:
        seated: agents, seekers and critics; those without a chat model are passed over.
        votes: how many a critic is asked for.

    Raises:
        SpecError: a model does not take what it will be asked.
        ModelError: one does not answer; the message is one line that names the chair and what to set.
    """
    checks = {id(part): check for part in seated if callable(check := getattr(part, "check", None))}
    await each(checks.values(), lambda check: check(votes), len(checks))


async def hold(
    pending: Sequence[tuple[Scenario, int]],
    agent: Agent,
    chairs: Chairs,
    seed: int,
    concurrency: int,
    keep: Callable[[Trajectory], None],
    time_limit: float | None = None,
    told: Callable[[Exchange], None] | None = None,
) -> None:
    """Hold all pending conversations, at most `concurrency` alive at a time; each has one call in flight.

    Once the budget is spent no further conversation is begun; after `time_limit` seconds those under way are dropped.
    `keep` gets every conversation as it ends, `told` every exchange as it is done.
    """
    spent = False
    timeout = asyncio.timeout(time_limit)

    async def one(item: tuple[Scenario, int]) -> None:
        nonlocal spent
        scenario, trial = item
        named = episode_seed(seed, scenario.id, trial)
        trajectory = await converse(scenario, agent, chairs, seed=named, trial=trial, told=told)
        spent = spent or (trajectory.failure is not None and trajectory.failure.kind == BudgetExceeded.__name__)
        keep(trajectory)

    try:
        async with timeout:
            await each((item for item in pending if not spent), one, min(concurrency, len(pending)))
    except TimeoutError:
        if not timeout.expired():
            raise


def _report(folder: Path, plan: _Plan, ended: Mapping[Episode, Trajectory]) -> Report:
    order = sorted(ended, key={episode: place for place, episode in enumerate(plan.episodes)}.__getitem__)
    return summarise_run(
        (ended[episode] for episode in order),
        agent=plan.agent,
        scenarios=plan.scenarios,
        run_key=plan.run_key,
        fingerprint=plan.fingerprint,
        episodes=len(plan.episodes),
        folder=folder,
        max_tokens=plan.identity.get("max_tokens"),
    )


def _write_report(report: Report) -> None:
    from esc_env.evaluation.page import run_page

    write_json(report.folder / "report.json", report.to_json())
    (report.folder / "report.html").write_text(run_page(report), encoding="utf-8")

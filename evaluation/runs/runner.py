"""Run an agent on scenarios, keep every conversation, and report.

A run is a folder (see `esc_env.folder`):

    run.json            what was run: agent, fingerprint, run key, settings, versions
    scenarios.jsonl     whom with
    trajectories.jsonl  one line per ended conversation, flushed as it ends; the last line of an episode counts. Once
                        all have an outcome: trial by trial, in the order of scenarios.jsonl
    report.json         the report, under the names of `Report`

Commands write its pages beside (`esc_env.evaluation.pages.run`), report.html first of all.

The same call resumes: conversations with an outcome are never held again, and an error goes on from where it broke off.
A shard is such a folder too, with all scenarios of the run and its own part of the conversations; see `merging`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Unpack

from esc_env.agents import CallableAgent, identity_of, resolve_agent
from esc_env.backend import HERE, Backend
from esc_env.background import run
from esc_env.chairs.critics import CriticMode, resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import Chairs
from esc_env.errors import CompleteRunWarning, RecordError, ScenarioError, SpecError, whole
from esc_env.escaping import one_line
from esc_env.evaluation.runs.config import run_config
from esc_env.evaluation.runs.holding import Episode, check_models, ended, hold_missing, reached, seconds_each
from esc_env.evaluation.runs.report import Report, summarise_run
from esc_env.evaluation.runs.shards import Shard
from esc_env.fields import integer, mapping, number, read, text
from esc_env.folder import RunFolder
from esc_env.models import ModelOptions, ModelSettings, Options, effective
from esc_env.progress import Told
from esc_env.protocols import Agent, Critic, Seeker
from esc_env.records import MAX_RECORDS, RecordWriter, write_json
from esc_env.rules import Fingerprint, Rules
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.secrets import struck

__all__ = [
    "TRAJECTORIES", "KeptRun", "begun_run", "evaluate", "is_run", "open_run", "read_run", "run_folder", "run_key",
    "run_rules",
]  # fmt: skip

TRAJECTORIES = "trajectories.jsonl"


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
    shard: str | None = None,
    progress: Told | None = None,
    critic_mode: CriticMode = "votes",
    critic_temperature: float = 1.1,
    seeker_temperature: float = 0.7,
    temperature: float = 0.0,
    agent_options: Mapping[str, Any] | None = None,
    seeker_options: Mapping[str, Any] | None = None,
    critic_options: Mapping[str, Any] | None = None,
    time_limit: float | None = None,
    backend: Backend = HERE,
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
        persona: how every seeker responds to help (`esc_env.PERSONAS`, or `mixed`); None keeps what each scenario says.
        limit: only the first so many scenarios, at least 1.
        trials: conversations per scenario, at least 1, each with its own seed.
        seed: of the run; every episode seed is derived from it.
        out: the run's folder; by default `runs/<run key>`.
        fresh: start over. A run already in the folder is kept beside it, as `<folder>~1` (or the next free number).
        shard: `3/16` holds the third of sixteen shares of the conversations, in a folder beside that of the run, as
            `<folder>-shard-3-of-16`; `/16` the one that this task of a Slurm array is. `merging.merge` makes the run
            of them.
        progress: called with a `Progress` before anything runs, after every turn and as every conversation ends.
        critic_mode: how a critic that is a chat model votes: `votes` or `logprobs`; see `LLMCritic`.
        critic_temperature: of those votes. *Source:* PPDPP: 1.1.
        seeker_temperature, temperature: of a seeker and of an agent that is a chat model.
        agent_options, seeker_options, critic_options: further fields of every request to a chat model in that chair,
            such as `{"max_tokens": 16000, "reasoning_effort": "low"}`; see docs/models.md.
        time_limit: seconds for the conversations of this call, above 0; None for no limit. What goes on
            then is cut off as an error, and the next call goes on from there.
        backend: where conversations are held: this process, or `esc_env.on_ray.Ray()`. The records are the same.
        models: how chat models are called, such as `budget="5 USD"` or `record="run.db"`: the fields of
            `esc_env.models.ModelSettings`. `concurrency`, 64 by default, is also how many conversations are held at
            the same time; each has one call in flight.

    Raises:
        SpecError: a string names nothing, a number makes no sense, or a model is known not to take what it would be
            asked.
        MissingExtra: the packages that a model needs are not installed.
        ModelError: a model does not answer at all; nothing was started.
        ScenarioError: no scenario, or a file of them cannot be used.
        ProtocolMismatch: the folder holds another run; the message names what differs.
        RecordError: the folder cannot be used, or another process writes there.
    """
    whole(trials=trials, limit=1 if limit is None else limit)
    if time_limit is not None and not time_limit > 0:
        raise SpecError(f"time_limit must be a number of seconds above 0, not {time_limit}")
    part = None if shard is None else Shard.asked(shard)
    settings = ModelSettings.of(models, evaluate)
    backend.check(settings)
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
    facing = rules.fingerprint(
        seeker=chairs.seeker.identity, critic=chairs.critic.identity,
        scenarios=_content(chosen),
        persona=_personas(chosen), trials=trials, seed=seed,
    )  # fmt: skip
    identity = struck(Fingerprint({"agent": identity_of(supporter), **facing.parts}).parts)  # as the folder keeps it
    faced = Fingerprint({part: what for part, what in identity.items() if part != "agent"})
    name = agent if isinstance(agent, str) else str(identity["agent"].get("name", type(supporter).__name__))
    key = run_key(faced, identity["agent"])
    facts = {"agent": name, "scenarios": chosen.name, "fingerprint": faced.digest, "run_key": key, "config": config}
    people = {scenario.id: scenario for scenario in chosen}
    episodes = _episodes(people, trials)
    mine = _mine(episodes, part)
    whole_run = Path(out) if out is not None else Path("runs") / key
    folder = run_folder(part.beside(whole_run) if part else whole_run)
    here = {**identity, "shard": str(part)} if part else identity
    begun = not fresh and folder.begun
    seated = {"critic": chairs.critic, "seeker": chairs.seeker, "agent": supporter}
    if not begun:
        run(check_models(*seated.values(), votes=rules.votes))
    with (
        folder.claim(here, scenarios=chosen, facts=facts, fresh=fresh),
        RecordWriter(folder.path / TRAJECTORIES, "trajectory") as writer,  # mends a torn last line before it is read
    ):
        known = ended(folder, TRAJECTORIES, mine, people, rules)
        told = progress or (lambda _: None)
        told(now := reached(known))
        if now.done < now.total:
            if begun:
                run(check_models(*seated.values(), votes=rules.votes))
            (folder.path / "report.html").unlink(missing_ok=True)  # whoever opens it must not take it for what follows
            hold_missing(
                writer, known, people, supporter, chairs, seed, settings.concurrency, told, time_limit, backend
            )
            asked = {role: how for role, part in seated.items() if (how := effective(getattr(part, "model", None)))}
            if asked:
                folder.note(effective=asked)
        elif isinstance(supporter, CallableAgent) and not isinstance(agent, str):
            warnings.warn(
                f"{folder.path}: this run was complete before, and nothing was run. What {name} reads from elsewhere "
                "(a global, a file) is no part of its identity: if that has changed, start over with fresh=True",
                CompleteRunWarning,
                stacklevel=2,
            )
        report = summarise_run(
            folder.about(), dict.fromkeys(episodes) | known, people, folder.path, seconds_each(folder)
        )
        write_json(folder.path / "report.json", report.to_json())
    return report


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a run. Raises RecordError where its run.json is damaged."""
    return run_folder(folder).begun


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A run folder that was read, but for its conversations.

    Attributes:
        folder: itself.
        about: what run.json says, of those fields that every run has as they must be.
        people: whom the run is held with, by id.
        rules: of the run.
        episodes: all of the run, trial by trial.
        shard: which part of them is kept here; None for all.
        mine: the episodes of that part.
    """

    folder: RunFolder
    about: Mapping[str, Any]
    people: Mapping[str, Scenario]
    rules: Rules
    episodes: Sequence[Episode]
    shard: Shard | None
    mine: Sequence[Episode]


def open_run(folder: str | Path) -> KeptRun:
    """Read a run folder, but for its conversations.

    Raises:
        RecordError: the folder holds no run, or one that cannot be read.
    """
    kept = run_folder(folder)
    about, people = kept.about(), kept.scenarios()
    try:
        rules, episodes, shard, mine = read(about, "identity", lambda identity: _faced(identity, people))
        for name in ("agent", "scenarios", "run_key"):
            about[name] = one_line(read(about, name, text))  # which may be a stranger's
    except SpecError as error:
        raise RecordError(f"{kept.path}/run.json: not a run ({error}). Was it edited?") from error
    return KeptRun(kept, about, people, rules, episodes, shard, mine)


def read_run(folder: str | Path) -> Report:
    """The report of a run folder, counted afresh from its conversations; also of a run that is not complete.

    Raises:
        RecordError: the folder holds no run, or one that cannot be read.
    """
    run = open_run(folder)
    known = dict.fromkeys(run.episodes) | ended(run.folder, TRAJECTORIES, run.mine, run.people, run.rules)
    return summarise_run(run.about, known, run.people, run.folder.path, seconds_each(run.folder))


def begun_run(folder: str | Path) -> Report:
    """The report of a run folder as if nothing had ended in it: what is run, of a run of any length.

    Raises:
        RecordError: the folder holds no run, or one that cannot be read.
    """
    run = open_run(folder)
    return summarise_run(run.about, {}, run.people, run.folder.path)


def run_key(faced: Fingerprint, agent: Mapping[str, Any]) -> str:
    """16 hex digits over what was faced and the identity of who faced it."""
    said = faced.digest + json.dumps(agent, sort_keys=True, ensure_ascii=False)
    return blake2b(said.encode(), digest_size=8).hexdigest()


def run_rules(identity: Mapping[str, Any]) -> Rules:
    """The rules of a run, of what run.json says of it. Raises SpecError where they make no sense."""
    return Rules(
        max_turns=read(identity, "max_turns", integer(1)),
        threshold=read(identity, "threshold", number(-1, 1)),
        votes=read(identity, "votes", integer(1)),
        opening=read(identity, "opening", text),  # type: ignore[arg-type]  # checked by Rules
        max_chars=read(identity, "max_chars", integer(1)),
    )


def _faced(
    identity: Mapping[str, Any], people: Mapping[str, Scenario]
) -> tuple[Rules, list[Episode], Shard | None, Sequence[Episode]]:
    """Rules, episodes and shard of a run that was held with `people`, and the shard's episodes. Raises SpecError where
    its identity is not of one."""
    for chair in ("agent", "seeker", "critic"):
        read(identity, chair, mapping)
    if read(identity, "scenarios", text) != (there := _content(people.values())):
        raise SpecError(f"scenarios: the run was held with {identity['scenarios']}; scenarios.jsonl has {there}")
    if read(identity, "persona", text) != (there := _personas(people.values())):
        raise SpecError(f"persona: the run was held with {identity['persona']}; scenarios.jsonl has {there}")
    read(identity, "seed", integer())
    episodes = _episodes(people, read(identity, "trials", integer(1)))
    shard = Shard.kept(identity)
    return run_rules(identity), episodes, shard, _mine(episodes, shard)


def _mine(episodes: Sequence[Episode], shard: Shard | None) -> Sequence[Episode]:
    """Those of a shard. Raises SpecError where there are more shards than episodes."""
    if shard and shard.of > len(episodes):
        raise SpecError(f"shard {shard}: the run has {len(episodes):,} conversations, so at most so many shards")
    return shard.part(episodes) if shard else episodes


def run_folder(path: str | Path) -> RunFolder:
    """The folder of a run."""
    instead = "Give another folder with --out, or --fresh to start over (the old run is kept beside it)"
    return RunFolder(Path(path), "run", (TRAJECTORIES,), instead)


def _choose(scenarios: str | Path | Iterable[Scenario], limit: int | None, persona: str | None) -> ScenarioSet:
    from esc_env.data.datasets import load_scenarios  # which `esc --help` does without

    chosen: ScenarioSet = load_scenarios(scenarios)[:limit]
    if not len(chosen):
        raise ScenarioError(f"{chosen.name}: there is no scenario in it")
    kept = [Scenario.from_json(struck(scenario.to_json())) for scenario in chosen]  # they meet whom the folder keeps
    chosen = ScenarioSet.of(chosen.name, kept)
    return chosen.with_persona(persona) if persona is not None else chosen


def _content(people: Iterable[Scenario]) -> str:
    """Whom a run is held with, as its identity has it."""
    chosen = ScenarioSet.of("", people)
    return f"{len(chosen)}, content {chosen.digest}"


def _personas(people: Iterable[Scenario]) -> str:
    return ", ".join(sorted({scenario.persona for scenario in people}))


def _episodes(people: Iterable[str], trials: int) -> list[Episode]:
    """All of them, trial by trial, so that a run cut short has seen every scenario equally often.

    Raises SpecError where there are more than a file may hold.
    """
    ids = list(people)
    if trials * len(ids) > MAX_RECORDS:
        raise SpecError(f"trials: {trials:,} for {len(ids):,} scenarios are more than {MAX_RECORDS:,} conversations")
    return [(scenario, trial) for trial in range(trials) for scenario in ids]

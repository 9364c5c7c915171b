"""Stage 1 of RLFF-ESC: sample responses to contexts, simulate what becomes of them, and keep it.

A collection is a folder:

    run.json             what is collected: agent, chairs, contexts, m, K, seed; the same call resumes
    conversations.jsonl  conversations held on the spot, where scenarios have no human dialogue
    candidates.jsonl     one line per response, with all its futures, flushed as they end (see `data.Sample`)
    card.json, card.md   counts, rewards by emotion and problem, share solved, cost

*Source:* RLFF-ESC (arXiv 2508.12935), stage 1; tail labels and the resumable form are ours.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Unpack

import esc_env
from esc_env._loop import each, run
from esc_env.agents import identity_of, resolve_agent
from esc_env.conversation import Chairs, Exchange, as_message
from esc_env.critics import CriticMode, resolve_critic
from esc_env.dialogue import Dialogue
from esc_env.errors import BudgetExceeded, ChairError, ProtocolMismatch, RecordError, ScenarioError, SpecError
from esc_env.evaluation.runner import check_models, hold
from esc_env.models import ModelOptions, ModelSettings
from esc_env.progress import Progress, Told
from esc_env.protocols import Agent, Critic, Reply, Seeker, Usage
from esc_env.records import RECORD_VERSION, FolderLock, RecordWriter, read_records, write_json
from esc_env.rewards import FutureReward
from esc_env.rules import Fingerprint, Rules
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.seeds import Seed, derive, episode_seed
from esc_env.seekers import resolve_seeker
from esc_env.training.data import CANDIDATES, Sample, card_markdown, data_card, read_candidates, read_samples
from esc_env.trajectory import Trajectory

__all__ = ["Collection", "collect", "human_contexts", "simulated_contexts"]

CONVERSATIONS = "conversations.jsonl"

Source = Literal["auto", "human", "simulated"]
"""Where contexts come from: human dialogues, conversations held on the spot, or whichever a scenario has."""


@dataclass(frozen=True, slots=True)
class Context:
    """A dialogue to answer: of which scenario, in which episode."""

    scenario: Scenario
    dialogue: Dialogue
    seed: int

    @property
    def key(self) -> tuple[int, str]:
        """What tells it from all others."""
        return self.seed, self.dialogue.transcript()

    def name(self, number: int, m: int) -> Seed:
        """The name of its response `number` (0 ≤ number < m): another one for every response in the episode."""
        return Seed(self.seed, candidate=self.dialogue.turns * m + number + 1)


@dataclass(frozen=True)
class Collection:
    """What a collection holds.

    Attributes:
        folder: where it is kept.
        samples: all of it, tail labels included (see `read_samples`).
        card: the data card, as card.json has it.
        complete: whether every response has its futures.
    """

    folder: Path
    samples: tuple[Sample, ...]
    card: Mapping[str, Any]
    complete: bool


def human_contexts(scenario: Scenario) -> Iterator[Dialogue]:
    """All prefixes of the scenario's human dialogue that end with a whole seeker turn."""
    messages = scenario.dialogue.messages if scenario.dialogue else ()
    for place, message in enumerate(messages, 1):
        last = place == len(messages) or messages[place].role == "supporter"
        if message.role == "seeker" and last:
            yield Dialogue(messages[:place])


def simulated_contexts(trajectory: Trajectory) -> Iterator[Dialogue]:
    """All prefixes of a held conversation that end with the seeker and that the supporter went on to answer."""
    messages = trajectory.dialogue.messages
    for place in range(trajectory.history, len(messages), 2):
        yield Dialogue(messages[:place])


def collect(
    agent: str | Agent | Callable[..., Any],
    scenarios: str | Path | Iterable[Scenario] = "builtin:train",
    *,
    seeker: str | Seeker | Callable[..., Any] = "builtin",
    critic: str | Critic | Callable[..., Any] = "builtin",
    rules: Rules | None = None,
    source: Source = "auto",
    limit: int | None = None,
    contexts: int | None = None,
    candidates: int = 4,
    rollouts: int = 1,
    horizon: int | None = None,
    trials: int = 1,
    valid: float = 0.2,
    seed: int = 0,
    out: str | Path,
    progress: Told | None = None,
    critic_mode: CriticMode = "votes",
    critic_temperature: float = 1.1,
    seeker_temperature: float = 0.7,
    temperature: float = 0.7,
    agent_options: Mapping[str, Any] | None = None,
    seeker_options: Mapping[str, Any] | None = None,
    critic_options: Mapping[str, Any] | None = None,
    **models: Unpack[ModelOptions],
) -> Collection:
    """Sample `candidates` responses to every context, simulate their futures, and keep each as it ends.

    What the folder already holds is not made again, also after `kill -9`; failures are tried again. All contexts,
    responses and futures run at the same time, at most `concurrency` calls in flight. Works in a notebook; from other
    async code, await `asyncio.to_thread(collect, …)`.

    Args:
        agent: who responds, and goes on after the response.
        scenarios: a string (`builtin:train`, `esconv:train`, a file), or scenarios.
        seeker, critic: as strings, objects or callables.
        rules: T (counted from each response), threshold, votes.
        source: `human` takes prefixes of the scenarios' dialogues; `simulated` of conversations held on the spot;
            `auto` takes the human dialogue where a scenario has one.
        limit: only the first so many scenarios, at least 1.
        contexts: so many contexts, drawn by `seed` from all; None for all.
        candidates: m, responses sampled per context, at least 1. *Source:* the paper: 4.
        rollouts: K, futures per response, at least 1. *Source:* the paper: 1.
        horizon: T of a future, counted from its response, at least 1; None for the rules' T (the paper's way). What a
            shorter one shows owes more to the response and less to chance.
        trials: episodes per scenario, at least 1: conversations held on the spot, or other seekers for human contexts.
        valid: share of scenarios set aside to measure the reward model, in [0, 1); near-duplicates stay on one side.
        seed: of everything that is drawn.
        out: the collection's folder.
        progress: called with a `Progress` of what is made (conversations, then responses) before it begins, after every
            exchange and as each ends.
        critic_mode: how a critic that is a chat model votes: `votes` or `logprobs`; see `LLMCritic`.
        critic_temperature: of those votes. *Source:* PPDPP: 1.1.
        seeker_temperature: of a seeker that is a chat model.
        temperature: of an agent that is a chat model. *Source:* PPDPP: 0.7 while collecting.
        agent_options, seeker_options, critic_options: what a chat model in that chair is asked besides; see `evaluate`.
        models: how chat models are called, such as `budget="5 USD"`: the fields of `esc_env.models.ModelSettings`.

    Raises:
        BudgetExceeded: the budget is spent; the same call with a larger one goes on.
        ModelError: a model does not answer at all; nothing was started.
        SpecError: a string names nothing, or a model is known not to take what it would be asked.
        ProtocolMismatch: the folder holds another collection; the message names what differs.
        ScenarioError: no scenario or no context.
        RecordError: the folder cannot be used, or another process writes there.
        ValueError: a number that makes no sense.
    """
    for name, number in (
        ("limit", limit),
        ("contexts", contexts),
        ("candidates", candidates),
        ("rollouts", rollouts),
        ("horizon", horizon),
        ("trials", trials),
    ):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if not 0 <= valid < 1:
        raise ValueError(f"valid must lie in [0, 1), not {valid}")
    if source not in ("auto", "human", "simulated"):
        raise ValueError(f"source must be auto, human or simulated, not {source!r}")
    arguments = inspect.getfullargspec(collect)
    settings = ModelSettings.of(models, *arguments.args, *arguments.kwonlyargs)
    concurrency = settings.concurrency
    rules = rules or Rules()
    supporter = resolve_agent(agent, settings, temperature=temperature, options=agent_options)
    reward = FutureReward(
        supporter,
        resolve_seeker(seeker, settings, temperature=seeker_temperature, options=seeker_options),
        resolve_critic(critic, settings, mode=critic_mode, temperature=critic_temperature, options=critic_options),
        replace(rules, max_turns=horizon or rules.max_turns),
        rollouts=rollouts,
        concurrency=concurrency,
    )
    chairs = replace(reward.chairs, rules=rules)
    chosen = _choose(scenarios, limit, source)
    plan = _plan(
        supporter,
        chairs,
        chosen,
        {
            **({} if horizon is None else {"horizon": horizon}),
            "source": source,
            "contexts": contexts,
            "candidates": candidates,
            "rollouts": rollouts,
            "trials": trials,
            "valid": valid,
            "seed": seed,
        },
    )
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"{folder}: cannot be made a folder ({error.strerror}). Give another with --out") from error
    told = progress or (lambda _: None)
    run(check_models(reward.chairs.critic, reward.chairs.seeker, supporter, votes=rules.votes))
    with FolderLock(folder):
        _claim(folder, plan)
        held = _hold(folder, chosen, supporter, chairs, source, trials, seed, concurrency, told)
        asked = _draw(_contexts(chosen, held, source, trials, seed), contexts, seed)
        errors = Counter(_reason(item.failure.role, item.failure.message) for item in held if item.failure)
        if not asked:
            why = "; ".join(errors) or "no context ends with the seeker"
            raise ScenarioError(f"{chosen.name}: nothing to respond to ({why})")
        job = _Job(folder, reward, candidates, _sides(chosen, valid, seed), told, errors)
        missing = job.work(asked, concurrency)
        made = read_candidates(folder)
        samples = read_samples(folder) if made else []
        usage = sum([*(item.usage for item in held), *(item.usage for item in made)], Usage())
        card = data_card(samples, usage=usage, errors=errors)
        write_json(folder / "card.json", card)
        (folder / "card.md").write_text(card_markdown(card, chosen.name), encoding="utf-8")
    if job.spent:
        raise job.spent
    complete = not missing and all(item.completed for item in held)
    return Collection(folder, tuple(samples), card, complete)


class _Job:
    """The responses to all contexts: sampled, deduplicated, simulated, kept."""

    def __init__(
        self,
        folder: Path,
        reward: FutureReward,
        m: int,
        sides: Mapping[str, str],
        told: Told,
        errors: Counter[str],
    ) -> None:
        self.folder = folder
        self.reward = reward
        self.m = m
        self.sides = sides
        self.told = told
        self.errors = errors
        self.done = self.all = self.turns = 0
        self.failed_before = errors.total()
        self.spent: BudgetExceeded | None = None

    def work(self, asked: Sequence[Context], concurrency: int) -> int:
        """Make what is not there yet; returns how many responses still have no future."""
        there: dict[tuple[int, str], set[int]] = {}
        for sample in read_candidates(self.folder):
            there.setdefault((sample.seed, sample.context.transcript()), set()).update(sample.candidates)
        waiting = []
        for context in asked:
            missing = sorted(set(range(self.m)) - there.get(context.key, set()))
            self.done += self.m - len(missing)
            if missing:
                waiting.append((context, missing))
        self.all = len(asked) * self.m
        self._tell()
        with RecordWriter(self.folder / CANDIDATES, "candidate") as writer:  # also mends a torn last line
            if waiting:
                run(self._all(iter(waiting), min(concurrency, len(waiting)), writer))
        return self.all - self.done

    async def _all(self, waiting: Iterator[tuple[Context, list[int]]], workers: int, writer: RecordWriter) -> None:
        gate = asyncio.Semaphore(self.reward.concurrency)
        left = (item for item in waiting if not self.spent)
        await each(left, lambda item: self._answer(*item, gate, writer), workers)

    async def _answer(
        self, context: Context, missing: Sequence[int], gate: asyncio.Semaphore, writer: RecordWriter
    ) -> None:
        """The missing responses to one context; siblings that say the same are simulated once."""
        replies = await asyncio.gather(*(self._sample(context, number, gate) for number in missing))
        drawn: dict[str, list[tuple[int, Reply]]] = {}
        for number, reply in zip(missing, replies, strict=True):
            if reply is not None:
                drawn.setdefault(reply.content, []).append((number, reply))
        await asyncio.gather(*(self._simulate(context, same, gate, writer) for same in drawn.values()))

    async def _sample(self, context: Context, number: int, gate: asyncio.Semaphore) -> Reply | None:
        """One response; None if the supporter or its model failed."""
        name = context.name(number, self.m).at(role="supporter", turn=1)
        try:
            async with gate:
                reply = await self.reward.agent.respond(context.dialogue, seed=name)
            as_message(reply)
        except BudgetExceeded as error:
            self.spent = error
            return None
        except Exception as error:  # whatever an agent raises leaves this one response without a future
            self.errors[_reason("supporter", f"{type(error).__name__}: {error}")] += 1
            return None
        return reply

    async def _simulate(
        self, context: Context, same: Sequence[tuple[int, Reply]], gate: asyncio.Semaphore, writer: RecordWriter
    ) -> None:
        """The futures of one response, kept as one line."""
        number, reply = same[0]
        try:
            futures = await self.reward.simulate(
                context.scenario, context.dialogue, replace(reply, usage=Usage()),
                seed=context.name(number, self.m), gate=gate, told=self._turned,
            )  # fmt: skip
        except BudgetExceeded as error:
            self.spent = error
            return
        except ChairError as error:
            self.errors[_reason(error.role, error.message)] += len(same)
            return
        sample = Sample(
            context.scenario,
            context.dialogue,
            as_message(reply),
            futures,
            context.seed,
            tuple(number for number, _ in same),
            split=self.sides[context.scenario.id],
            usage=sum([*(reply.usage for _, reply in same), *(future.usage for future in futures)], Usage()),
        )
        writer.write(sample.to_json())
        self.done += len(same)
        self._tell()

    def _turned(self, _: Exchange) -> None:
        self.turns += 1
        self._tell()

    def _tell(self) -> None:
        failed = self.errors.total() - self.failed_before
        self.told(Progress(self.done, self.all, "responses", self.turns, failed))


def _reason(role: str, message: str) -> str:
    return f"{role}: {' '.join(message.split())[:300]}".encode(errors="replace").decode()


def _choose(scenarios: str | Path | Iterable[Scenario], limit: int | None, source: Source) -> ScenarioSet:
    if isinstance(scenarios, (str, Path)):
        from esc_env.datasets import load_scenarios

        chosen = load_scenarios(scenarios)
    elif isinstance(scenarios, ScenarioSet):
        chosen = scenarios
    else:
        chosen = ScenarioSet.of("scenarios", scenarios)
    if source == "human":
        chosen = chosen.filter(lambda scenario: scenario.dialogue is not None)
    chosen = replace(chosen, scenarios=chosen.scenarios[:limit])
    if not len(chosen):
        what = "no scenario with a human dialogue" if source == "human" else "no scenario"
        raise ScenarioError(f"{chosen.name}: there is {what} in it")
    return chosen


def _from_dialogue(scenario: Scenario, source: Source) -> bool:
    return source == "human" or (source == "auto" and scenario.dialogue is not None)


def _sides(chosen: ScenarioSet, valid: float, seed: int) -> dict[str, str]:
    """`train` or `valid` for every scenario."""
    sides = dict.fromkeys((scenario.id for scenario in chosen), "train")
    if valid:
        for scenario in chosen.split(seed, train=1 - valid, valid=valid)["valid"]:
            sides[scenario.id] = "valid"
    return sides


def _plan(agent: Agent, chairs: Chairs, chosen: ScenarioSet, settings: Mapping[str, Any]) -> Fingerprint:
    """Everything that decides what the folder will hold."""
    dialogues = [scenario.dialogue.transcript() for scenario in chosen if _from_dialogue(scenario, settings["source"])
                 and scenario.dialogue]  # fmt: skip
    words = blake2b("\n".join(dialogues).encode(), digest_size=8).hexdigest() if dialogues else "none"
    parts = chairs.rules.fingerprint(
        agent=dict(identity_of(agent)),
        seeker=dict(chairs.seeker.identity),
        critic=dict(chairs.critic.identity),
        scenarios=f"{len(chosen)}, content {chosen.digest}, human dialogues {words}",
        **settings,
    ).parts
    try:
        return Fingerprint(json.loads(json.dumps(parts)))
    except (TypeError, ValueError) as error:
        raise SpecError(f"the `identity` of agent, seeker and critic must be plain JSON values: {error}") from error


def _claim(folder: Path, plan: Fingerprint) -> None:
    """Refuse a folder that holds anything else."""
    path = folder / "run.json"
    if not path.exists():
        if (folder / CANDIDATES).exists() or (folder / CONVERSATIONS).exists():
            raise RecordError(f"{folder}: holds records without run.json. Give another folder with --out")
        versions = {"esc-env": esc_env.__version__, "python": platform.python_version()}
        write_json(
            path,
            {
                "kind": "collection",
                "version": RECORD_VERSION,
                "fingerprint": {"digest": plan.digest, "parts": plan.parts},
                "versions": versions,
            },
        )
        return
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["kind"] != "collection":
            raise RecordError(f"{folder}: holds a {data['kind']}, no collection. Give another folder with --out")
        there = Fingerprint(data["fingerprint"]["parts"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: damaged, or not written by `esc collect` ({error!r})") from error
    if differences := there.differences(plan):
        raise ProtocolMismatch(
            f"{folder} holds another collection. What differs (there / now): {'; '.join(differences)}. "
            "Give another folder with --out"
        )


def _hold(
    folder: Path,
    chosen: ScenarioSet,
    agent: Agent,
    chairs: Chairs,
    source: Source,
    trials: int,
    seed: int,
    concurrency: int,
    told: Told,
) -> list[Trajectory]:
    """Conversations of the agent with everyone who has no human dialogue to start from."""
    wanted = [
        (scenario, trial) for trial in range(trials) for scenario in chosen if not _from_dialogue(scenario, source)
    ]
    ended: dict[tuple[str, int], Trajectory] = {}
    for data in read_records(folder / CONVERSATIONS, "trajectory"):
        trajectory = Trajectory.from_json(data)
        ended[trajectory.scenario.id, trajectory.trial] = trajectory
    pending = [
        (scenario, trial)
        for scenario, trial in wanted
        if (scenario.id, trial) not in ended or not ended[scenario.id, trial].completed
    ]
    if pending:
        reached = Progress(len(wanted) - len(pending), len(wanted))
        told(reached)
        with RecordWriter(folder / CONVERSATIONS, "trajectory") as writer:

            def keep(trajectory: Trajectory) -> None:
                nonlocal reached
                writer.write(trajectory.to_json())
                ended[trajectory.scenario.id, trajectory.trial] = trajectory
                failed = reached.errors + (not trajectory.completed)
                reached = replace(reached, done=reached.done + 1, errors=failed)
                told(reached)

            def turned(_: Exchange) -> None:
                nonlocal reached
                reached = replace(reached, turns=reached.turns + 1)
                told(reached)

            run(hold(pending, agent, chairs, seed, concurrency, keep, told=turned))
        for trajectory in ended.values():
            if trajectory.failure and trajectory.failure.kind == BudgetExceeded.__name__:
                raise BudgetExceeded(trajectory.failure.message)
    return [ended[scenario.id, trial] for scenario, trial in wanted]


def _contexts(chosen: ScenarioSet, held: Sequence[Trajectory], source: Source, trials: int, seed: int) -> list[Context]:
    found = [
        Context(scenario, dialogue, episode_seed(seed, scenario.id, trial))
        for trial in range(trials)
        for scenario in chosen
        if _from_dialogue(scenario, source)
        for dialogue in human_contexts(scenario)
    ]
    by_id = {scenario.id: scenario for scenario in chosen}
    found += [
        Context(by_id[trajectory.scenario.id], dialogue, trajectory.seed)
        for trajectory in held
        for dialogue in simulated_contexts(trajectory)
    ]
    return list({context.key: context for context in found}.values())


def _draw(contexts: list[Context], count: int | None, seed: int) -> list[Context]:
    """`count` of them, chosen by `seed`, in their order."""
    if count is None or count >= len(contexts):
        return contexts
    ranked = sorted(contexts, key=lambda context: derive(seed, context.seed, context.dialogue.turns))
    chosen = {context.key for context in ranked[:count]}
    return [context for context in contexts if context.key in chosen]

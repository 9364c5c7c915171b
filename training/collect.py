"""Stage 1 of RLFF-ESC: sample responses to contexts, simulate what becomes of them, and keep it.

A collection is a folder (see `esc_env.folder`):

    run.json             what is collected: agent, chairs, contexts, m, K, seed; the same call resumes
    scenarios.jsonl      whom with
    conversations.jsonl  conversations held on the spot, where scenarios have no human dialogue
    candidates.jsonl     one line per response, with all its futures, flushed as they end (see `data.Sample`); once all
                         are there, in the order of their contexts
    card.json, card.md   counts, rewards by emotion and problem, share solved, cost

*Source:* RLFF-ESC (arXiv 2508.12935), stage 1; tail labels and the resumable form are ours.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Unpack, get_args

from esc_env.agents import identity_of, resolve_agent
from esc_env.backend import HERE, Backend, Job
from esc_env.background import each, run
from esc_env.chairs.critics import CriticMode, resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import as_message
from esc_env.data.datasets import load_scenarios
from esc_env.errors import BudgetExceeded, ChairError, ScenarioError, SpecError, one_of, whole
from esc_env.evaluation.runs.holding import check_models, ended, hold_missing, reached
from esc_env.folder import RunFolder
from esc_env.models import ModelOptions, ModelSettings
from esc_env.models.sharing import share
from esc_env.progress import Progress, Told
from esc_env.protocols import Agent, Critic, Reply, Seeker, Usage
from esc_env.records import RecordWriter, write_json, write_text
from esc_env.rewards import Future, FutureReward
from esc_env.rules import Rules
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.seeds import Seed
from esc_env.training.contexts import Context, Source, drawn, found, from_dialogue
from esc_env.training.data import (
    CANDIDATES,
    CONVERSATIONS,
    Sample,
    card_markdown,
    collection,
    data_card,
    read_candidates,
    read_samples,
)
from esc_env.trajectory import Trajectory, stop_if_spent

__all__ = ["Collection", "collect"]


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


def collect(
    agent: str | Agent | Callable[..., Any],
    scenarios: str | Path | Iterable[Scenario] = "builtin:train",
    *,
    seeker: str | Seeker | Callable[..., Any] = "builtin",
    critic: str | Critic | Callable[..., Any] = "builtin",
    rules: Rules | None = None,
    source: Source = "auto",
    persona: str | None = None,
    limit: int | None = None,
    contexts: int | None = None,
    candidates: int = 4,
    rollouts: int = 1,
    horizon: int | None = None,
    trials: int = 1,
    valid: float = 0.2,
    valid_candidates: int | None = None,
    valid_rollouts: int | None = None,
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
    backend: Backend = HERE,
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
        persona: how every seeker responds to help (`esc_env.PERSONAS`, or `mixed`); None keeps what each scenario says.
        limit: only the first so many scenarios, at least 1.
        contexts: so many contexts, drawn by `seed` from all; None for all.
        candidates: m, responses sampled per context, at least 1. *Source:* the paper: 4.
        rollouts: K, futures per response, at least 1. *Source:* the paper: 1.
        horizon: T of a future, counted from its response, at least 1; None for the rules' T (the paper's way). What a
            shorter one shows owes more to the response and less to chance.
        trials: episodes per scenario, at least 1: conversations held on the spot, or other seekers for human contexts.
        valid: share of scenarios set aside to measure the reward model, in [0, 1); near-duplicates stay on one side.
        valid_candidates, valid_rollouts: m and K of these, at least 1; None for those of the others. More of both say
            more surely whether a reward model ranks the responses to one context.
        seed: of everything that is drawn.
        out: the collection's folder.
        progress: called with a `Progress` of what is made (conversations, then responses) before it begins, after every
            turn and as each ends.
        temperature: of an agent that is a chat model. *Source:* PPDPP: 0.7 while collecting.
        critic_mode, critic_temperature, critic_options, seeker_temperature, seeker_options, agent_options: as
            `evaluate` takes them.
        backend: where responses and futures are made: this process, or `esc_env.on_ray.Ray()`.
        models: how chat models are called, such as `budget="5 USD"`: the fields of `esc_env.models.ModelSettings`.

    Raises:
        BudgetExceeded: the budget is spent; the same call with a larger one goes on.
        ModelError: a model does not answer at all; nothing was started.
        SpecError: a string names nothing, a number makes no sense, or a model is known not to take what it would be
            asked.
        ProtocolMismatch: the folder holds another collection; the message names what differs.
        ScenarioError: no scenario or no context.
        RecordError: the folder cannot be used, or another process writes there.
    """
    more = {"valid_candidates": valid_candidates, "valid_rollouts": valid_rollouts}
    limits = {"limit": limit, "contexts": contexts, "horizon": horizon, **more}
    whole(candidates=candidates, rollouts=rollouts, trials=trials, **{n: v for n, v in limits.items() if v is not None})
    if not 0 <= valid < 1:
        raise SpecError(f"valid must lie in [0, 1), not {valid}")
    one_of("source", source, get_args(Source))
    settings = ModelSettings.of(models, collect)
    backend.check(settings)
    rules = rules or Rules()
    supporter = resolve_agent(agent, settings, temperature=temperature, options=agent_options)
    reward = FutureReward(
        supporter, resolve_seeker(seeker, settings, temperature=seeker_temperature, options=seeker_options),
        resolve_critic(critic, settings, mode=critic_mode, temperature=critic_temperature, options=critic_options),
        replace(rules, max_turns=horizon or rules.max_turns), rollouts=rollouts,
        concurrency=settings.concurrency,
    )  # fmt: skip
    chairs = replace(reward.chairs, rules=rules)
    chosen = _choose(scenarios, limit, source)
    chosen = chosen.with_persona(persona) if persona else chosen
    identity = rules.fingerprint(
        agent=identity_of(supporter), seeker=chairs.seeker.identity, critic=chairs.critic.identity,
        scenarios=f"{len(chosen)}, content {chosen.digest}, human dialogues {_words(chosen, source)}", source=source,
        contexts=contexts, candidates=candidates, rollouts=rollouts, trials=trials, valid=valid, seed=seed,
        **{name: given for name, given in {"horizon": horizon, **more}.items() if given is not None},
    ).parts  # fmt: skip
    people = {scenario.id: scenario for scenario in chosen}
    episodes = [(key, trial) for trial in range(trials) for key in people if not from_dialogue(people[key], source)]
    folder = collection(out)
    told = progress or (lambda _: None)
    run(check_models(reward.chairs.critic, reward.chairs.seeker, supporter, votes=rules.votes))
    with folder.claim(identity, scenarios=chosen):
        held: list[Trajectory] = []
        if episodes:
            with RecordWriter(folder.path / CONVERSATIONS, "trajectory") as writer:
                known = ended(folder, CONVERSATIONS, episodes, people, rules)
                if (now := reached(known)).done < now.total:
                    told(now)
                    hold_missing(
                        writer, known, people, supporter, chairs, seed, settings.concurrency, told, backend=backend
                    )
            held = list(filter(None, known.values()))
            stop_if_spent(held)
        asked = drawn(found(chosen, held, source, trials, seed), contexts, seed)
        errors = Counter(_reason(item.failure.role, item.failure.message) for item in held if item.failure)
        if not asked:
            why = "; ".join(errors) or "no context ends with the seeker"
            raise ScenarioError(f"{chosen.name}: nothing to respond to ({why})")
        counts = {"train": (candidates, rollouts)}
        counts["valid"] = valid_candidates or candidates, valid_rollouts or rollouts
        making = _Making(reward, counts, _sides(chosen, valid, seed), told)
        missing = making.work(folder, asked, backend)
        made = read_candidates(folder.path)
        samples = read_samples(folder.path) if made else []
        usage = sum([*(item.usage for item in held), *(item.usage for item in made)], Usage())
        card = data_card(samples, usage=usage, errors=errors + making.errors)
        write_json(folder.path / "card.json", card)
        write_text(folder.path / "card.md", card_markdown(card, chosen.name))
    if making.spent:
        raise making.spent
    complete = not missing and all(item.completed for item in held)
    return Collection(folder.path, tuple(samples), card, complete)


def _choose(scenarios: str | Path | Iterable[Scenario], limit: int | None, source: Source) -> ScenarioSet:
    chosen = load_scenarios(scenarios)
    if source == "human":
        chosen = chosen.filter(lambda scenario: scenario.dialogue is not None)
    chosen = replace(chosen, scenarios=chosen.scenarios[:limit])
    if not len(chosen):
        what = "no scenario with a human dialogue" if source == "human" else "no scenario"
        raise ScenarioError(f"{chosen.name}: there is {what} in it")
    return chosen


def _words(chosen: ScenarioSet, source: Source) -> str:
    """16 hex digits over the human dialogues that contexts come from."""
    said = [item.dialogue.transcript() for item in chosen if item.dialogue and from_dialogue(item, source)]
    return blake2b("\n".join(said).encode(), digest_size=8).hexdigest() if said else "none"


def _sides(chosen: ScenarioSet, valid: float, seed: int) -> dict[str, str]:
    """`train` or `valid` for every scenario."""
    aside = chosen.split(seed, train=1 - valid, valid=valid)["valid"] if valid else ()
    return {**{scenario.id: "train" for scenario in chosen}, **{scenario.id: "valid" for scenario in aside}}


@dataclass(frozen=True, slots=True)
class _Response:
    """To be sampled: what the supporter says next."""

    context: Context
    name: Seed

    async def made(self, by: _Maker, told: Callable[[], None]) -> Reply:
        try:
            async with by.gate:
                reply = await by.reward.agent.respond(
                    self.context.dialogue, seed=self.name.at(role="supporter", turn=1)
                )
            as_message(reply)
        except BudgetExceeded:
            raise
        except Exception as error:  # whatever an agent raises leaves this one response without a future
            raise ChairError("supporter", f"{type(error).__name__}: {error}") from error
        return reply


@dataclass(frozen=True, slots=True)
class _Futures:
    """To be simulated: what becomes of a response."""

    context: Context
    reply: Reply
    name: Seed
    rollouts: int

    async def made(self, by: _Maker, told: Callable[[], None]) -> tuple[Future, ...]:
        return await by.reward.simulate(
            self.context.scenario, self.context.dialogue, self.reply, seed=self.name, rollouts=self.rollouts,
            gate=by.gate, told=lambda _: told(),
        )  # fmt: skip


@dataclass(frozen=True)
class _Maker:
    """Makes either of them, at most so many calls in flight as this process may have."""

    reward: FutureReward

    async def __call__(self, item: Any, told: Callable[[], None], cut: Callable[[Any], None], /) -> Any:
        return await item.made(self, told)

    @cached_property
    def gate(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(max(1, self.reward.concurrency // share().of))


class _Making:
    """The responses to all contexts: sampled, deduplicated, simulated, kept."""

    def __init__(
        self, reward: FutureReward, counts: Mapping[str, tuple[int, int]], sides: Mapping[str, str], told: Told
    ) -> None:
        self.reward, self.counts, self.sides, self.told = reward, counts, sides, told
        self.done = self.all = self.turns = 0
        self.errors: Counter[str] = Counter()
        self.spent: BudgetExceeded | None = None

    def work(self, folder: RunFolder, asked: Sequence[Context], backend: Backend) -> int:
        """Make what is not there yet; returns how many responses still have no future."""
        with RecordWriter(folder.path / CANDIDATES, "candidate") as writer:  # mends a torn last line before it is read
            there: dict[tuple[int, str], set[int]] = {}
            for sample in read_candidates(folder.path):
                there.setdefault((sample.seed, sample.context.transcript()), set()).update(sample.candidates)
            missing = [
                (context, sorted(set(range(self._m_and_k(context)[0])) - there.get(context.key, set())))
                for context in asked
            ]
            waiting = [(context, numbers) for context, numbers in missing if numbers]
            self.all = sum(self._m_and_k(context)[0] for context in asked)
            self.done = self.all - sum(len(numbers) for _, numbers in waiting)
            self._tell()
            if waiting:
                run(self._all(waiting, writer, backend))
            if waiting and self.done == self.all:
                places = {context.key: place for place, context in enumerate(asked)}
                made = read_candidates(folder.path)
                made.sort(key=lambda item: (places.get((item.seed, item.context.transcript()), -1), item.candidates))
                writer.rewrite(item.to_json() for item in made)
        return self.all - self.done

    def _m_and_k(self, context: Context) -> tuple[int, int]:
        """How many responses to a context, and futures of each."""
        return self.counts[self.sides[context.scenario.id]]

    async def _all(self, waiting: Sequence[tuple[Context, list[int]]], writer: RecordWriter, backend: Backend) -> None:
        left = (item for item in waiting if not self.spent)
        async with backend.doing(_Maker(self.reward), self.reward.concurrency) as make:
            at_once = min(self.reward.concurrency, len(waiting))
            await each(left, lambda item: self._answer(*item, make, writer), at_once)

    async def _answer(
        self, context: Context, missing: Sequence[int], make: Job[Any, Any], writer: RecordWriter
    ) -> None:
        """The missing responses to one context; siblings that say the same are simulated once."""
        replies = await asyncio.gather(*(self._sample(context, number, make) for number in missing))
        said: dict[str, list[tuple[int, Reply]]] = {}
        for number, reply in zip(missing, replies, strict=True):
            if reply is not None:
                said.setdefault(reply.content, []).append((number, reply))
        await asyncio.gather(*(self._simulate(context, same, make, writer) for same in said.values()))

    async def _sample(self, context: Context, number: int, make: Job[_Response, Reply]) -> Reply | None:
        """One response; None if the supporter or its model failed."""
        name = context.name(number, self._m_and_k(context)[0])
        try:
            return await make(_Response(context, name), self._turned, _keep_nothing)
        except BudgetExceeded as error:
            self.spent = error
        except ChairError as error:
            self.errors[_reason(error.role, error.message)] += 1
        return None

    async def _simulate(
        self,
        context: Context,
        same: Sequence[tuple[int, Reply]],
        make: Job[_Futures, tuple[Future, ...]],
        writer: RecordWriter,
    ) -> None:
        """The futures of one response, kept as one line."""
        number, reply = same[0]
        m, rollouts = self._m_and_k(context)
        try:
            futures = await make(
                _Futures(context, replace(reply, usage=Usage()), context.name(number, m), rollouts),
                self._turned, _keep_nothing,
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

    def _turned(self) -> None:
        self.turns += 1
        self._tell()

    def _tell(self) -> None:
        self.told(Progress(self.done, self.all, "responses", self.turns, self.errors.total()))


def _keep_nothing(so_far: Any) -> None:
    """A response that is cut off leaves nothing: it is made again."""


def _reason(role: str, message: str) -> str:
    return f"{role}: {' '.join(message.split())[:300]}".encode(errors="replace").decode()

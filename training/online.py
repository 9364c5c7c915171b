"""Whole conversations as rollouts, beyond the paper: the policy is rewarded for how they end.

TRL asks for completions of prompts; each prompt is a scenario, and we hold the conversation. All conversations of a
batch go on at the same time, through the one engine of `esc_env.conversation`: whenever every living one waits for the
supporter, the policy answers them in one batch, with TRL's own generation (so vLLM and sharded models work).

A row to train on is one supporter turn: exactly the context that the policy answered (as at evaluation, without earlier
thoughts) and what it wrote. Earlier turns that stand in that context token by token, as they do for a policy that does
not think aloud, are trained in the same row; seeker tokens between them are masked out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future as Answer
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from esc_env.background import start, wait
from esc_env.conversation import Chairs, converse
from esc_env.dialogue import ChatMessage, Dialogue, Message, split_thought
from esc_env.errors import ConfigError
from esc_env.protocols import Reply
from esc_env.rewards import Future, ThinkFormatReward, combine, grpo_row, value
from esc_env.rewards.future import GAMMA
from esc_env.rewards.rows import Reward, Text, awaited, chat_of
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.seeds import Seed, derive, episode_seed
from esc_env.training.config import GRPOStage
from esc_env.training.floor import floored
from esc_env.training.grpo import fit_prompts
from esc_env.training.stage import prompt_ids, shortened
from esc_env.trajectory import Trajectory, stop_if_spent

__all__ = ["Online", "conversation_value", "opener"]

logger = logging.getLogger(__name__)

_OPENED = re.compile(r"<\s*think\s*>\s*$", re.IGNORECASE)

_LOGGED = ("turns", "trained_turns", "trained_tokens", "cut")
"""Columns of the rollout that are logged, as `env/NAME`: means over conversations."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """One supporter turn as tokens: the context it answered, what was written, and how likely each token was.

    `cut` says whether the context is not all that had been said.
    """

    context: list[int]
    ids: list[int]
    logprobs: list[float] | None
    text: str
    ended: bool
    cut: bool


def conversation_value(
    trajectory: Trajectory, *, credit: str = "terminal", gamma: float = GAMMA, first: int = 1, last: int | None = None
) -> float | None:
    """What a conversation is worth to its trained turns; None if seeker or critic failed, so nobody knows.

    Args:
        trajectory: an ended conversation.
        credit: `terminal`: R_fut of its end, in [-1, 1]; `dense`: Σ γ^(t-first) (v_t - v_(t-1)) from t = `first` on,
            with v_0 = -0.5, in [-2, 2]: relief counts as soon as it comes, and what came before it does not; `turn`:
            R_fut of its end + the mean of v_t - v_(t-1) over the trained turns, in [-3, 3]: what other turns
            changed counts by the end alone.
        gamma: γ, in (0, 1].
        first, last: the turns that are credited, from 1; without the last one, all from the first on.
    """
    if not trajectory.completed:
        return None
    ended = value((Future.of(trajectory, skip=0, horizon=max(1, len(trajectory.verdicts))),), gamma)
    if credit == "terminal":
        return ended
    if not trajectory.verdicts:
        return -1.0
    scores = [-0.5, *(verdict.score for verdict in trajectory.verdicts)]
    changes = [after - before for before, after in pairwise(scores)]
    if credit == "turn":
        return ended + fmean(changes[first - 1 : last] or [0.0])
    return sum(gamma**later * change for later, change in enumerate(changes[first - 1 :]))


class Online:
    """The data, the rollouts and the reward of GRPO on whole conversations.

        online = Online(load_scenarios("builtin:train"), Chairs(seeker, critic), GRPOStage(reward="env"), tokenizer)
        GRPOTrainer(model, online.reward, train_dataset=Dataset.from_list(online.rows), rollout_func=online.rollout)

    Args:
        scenarios: whom conversations are held with. Those that begin with the same words are one prompt; only the
            first of them is used, and the others are counted in a warning.
        chairs: seeker, critic and rules; T is theirs.
        config: see `GRPOStage`: `alpha`, `credit`, `gamma`, `group_size`, `prompt_length`, `require_end`, `seed`.
        tokenizer: the policy's, with its chat template.
        system: a system message for the policy.

    Raises:
        ConfigError: no situation fits; or the rules let the seeker write the opening, which no prompt can hold
            beforehand.
    """

    def __init__(
        self, scenarios: ScenarioSet, chairs: Chairs, config: GRPOStage, tokenizer: Any, *, system: str | None = None
    ) -> None:
        if chairs.rules.opening != "situation":
            raise ConfigError("reward env begins every conversation with the situation: leave `opening` at 'situation'")
        self.chairs = chairs
        self.config = config
        self.tokenizer = tokenizer
        self.system: list[ChatMessage] = [{"role": "system", "content": system}] if system else []
        self.rows: list[dict[str, Any]] = []
        self._scenarios: dict[str, Scenario] = {}
        alike = 0
        for scenario in scenarios:
            row = grpo_row(scenario, Dialogue((Message("seeker", scenario.situation),)), system=system)
            for fitting in fit_prompts([row], tokenizer, config.prompt_length)[0]:
                if self._scenarios.setdefault(_key(fitting["prompt"]), scenario) is scenario:
                    self.rows.append(fitting)
                else:
                    alike += 1
        if alike:
            logger.warning("%d scenarios begin with the words of another and are left out", alike)
        if not self.rows:
            raise ConfigError(f"no situation fits prompt_length = {config.prompt_length}. Raise it")

    @property
    def reward(self) -> Reward:
        """R of a conversation + α · the share of trained turns in the think format, for TRL.

        With `require_end`, a conversation in which a reply did not end by itself, from the first trained turn on, lies
        below its group. Logs beside it how many turns a conversation has, how many of them and of their tokens are
        trained, and the share of conversations that were cut although they could have been trained whole (`env/cut`).
        """
        combined = combine({"env": _column("outcome"), "format": _column("formed")}, env=1.0, format=self.config.alpha)

        @awaited
        async def env(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
            if log_metric := columns.get("log_metric"):
                for name in _LOGGED:
                    log_metric(f"env/{name}", fmean(columns[name]))
            rewards: list[float | None] = await combined(prompts=prompts, completions=completions, **columns)
            return floored(rewards, columns["ended"], self.config.group_size) if self.config.require_end else rewards

        return env

    def rollout(self, prompts: Sequence[Text], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`: one conversation for every `turns` prompts, which come repeated, group after group."""
        scenarios = [self._scenarios[_key(prompt)] for prompt in prompts[:: self.config.turns]]
        step = int(trainer.state.global_step)
        table = _Table(len(scenarios))
        agents = [_Seat(table, place) for place in range(len(scenarios))]

        async def hold(agent: _Seat, scenario: Scenario) -> Trajectory:
            try:
                named = episode_seed(self.config.seed, scenario.id, step)  # one person for the whole group
                return await converse(scenario, agent, self.chairs, seed=named)
            finally:
                table.leave()

        async def hold_all() -> list[Trajectory]:
            return await asyncio.gather(*map(hold, agents, scenarios))

        spoken: list[list[Spoken]] = [[] for _ in scenarios]
        held, cancel = start(hold_all())
        try:
            while True:
                waiting = table.wait()
                if not _anybody(trainer, len(waiting)):
                    break
                contexts = [self._context(scenarios[place], dialogue) for place, dialogue, _ in waiting]
                for (place, _, answer), turn in zip(waiting, self._speak(trainer, contexts, len(prompts)), strict=True):
                    spoken[place].append(turn)
                    thought, said = split_thought(turn.text)
                    answer.set_result(Reply(said.strip(), thought, finish_reason="stop" if turn.ended else "length"))
        except BaseException as error:  # Ctrl-C too: calls in flight are cut off, not waited for
            table.close(error)
            cancel()
            wait(held)
            raise
        trajectories = held.result()
        stop_if_spent(trajectories)
        return self._rows_of(trajectories, spoken, scenarios, step)

    def _context(self, scenario: Scenario, dialogue: Dialogue) -> tuple[list[int], bool]:
        """What the policy is asked, as tokens, cut from the left at message borders to what fits; and whether it is."""
        chat = [*self.system, *chat_of(scenario, dialogue)]
        ids: list[int] = []
        for part in shortened(chat):
            ids = prompt_ids(self.tokenizer, part)
            if len(ids) <= self.config.prompt_length:
                return ids, len(part) < len(chat)
        return ids[-self.config.prompt_length :], True

    def _speak(self, trainer: Any, contexts: Sequence[tuple[list[int], bool]], size: int) -> list[Spoken]:
        """The policy's replies to contexts, in one batch.

        With several processes every one generates equally often and as much, since sharded models and vLLM's server
        are reached by all of them together.
        """
        asked = [context for context, _ in contexts]
        if trainer.accelerator.num_processes > 1:
            asked += [self._context(*self._idle())[0]] * (size - len(asked))
        completions, logprobs = trainer._generate_single_turn(asked, None, {}, 1)
        ends = set(trainer.eos_token_ids)
        found = []
        for place, (context, cut) in enumerate(contexts):
            ids = list(completions[place])
            text = opener(self.tokenizer, context) + self.tokenizer.decode(ids, skip_special_tokens=True)
            found.append(
                Spoken(
                    context,
                    ids,
                    list(logprobs[place]) if logprobs is not None else None,
                    text,
                    bool(ids) and ids[-1] in ends,
                    cut,
                )
            )
        return found

    def _idle(self) -> tuple[Scenario, Dialogue]:
        scenario = next(iter(self._scenarios.values()))
        return scenario, Dialogue((Message("seeker", scenario.situation),))

    def _rows_of(
        self,
        trajectories: Sequence[Trajectory],
        spoken: Sequence[Sequence[Spoken]],
        scenarios: Sequence[Scenario],
        step: int,
    ) -> dict[str, Any]:
        form = ThinkFormatReward()
        found: dict[str, list[Any]] = {
            name: []
            for name in (
                "prompt_ids", "completion_ids", "env_mask", "logprobs", "outcome", "formed", "ended", *_LOGGED,
            )
        }  # fmt: skip
        for trajectory, turns, scenario in zip(trajectories, spoken, scenarios, strict=True):
            named = derive(self.config.seed, scenario.id, step)  # a whole group trains the same places
            rows = _choose(turns, self.config.turns, random.Random(named))
            trained = {place for chosen in rows for place in chosen}
            cut = any(turn.cut for turn in turns) and not any(split_thought(turn.text)[0] for turn in turns)
            for chosen in rows:
                start = len(turns[chosen[0]].context)
                last = turns[chosen[-1]]
                ids = last.context + last.ids
                mask = [0] * len(ids)
                sure = [0.0] * len(ids)
                for turn in (turns[place] for place in chosen):
                    here = slice(len(turn.context), len(turn.context) + len(turn.ids))
                    mask[here] = [1] * len(turn.ids)
                    sure[here] = turn.logprobs or [0.0] * len(turn.ids)
                outcome = conversation_value(
                    trajectory, credit=self.config.credit, gamma=self.config.gamma, first=chosen[0] + 1,
                    last=chosen[-1] + 1,
                )  # fmt: skip
                found["prompt_ids"].append(ids[:start])
                found["completion_ids"].append(ids[start:])
                found["env_mask"].append(mask[start:])
                found["logprobs"].append(sure[start:])
                found["outcome"].append(outcome)
                found["formed"].append(fmean(form.holds(turns[place].text) for place in chosen))
                found["ended"].append(all(turn.ended for turn in turns[chosen[0] :]))
                found["turns"].append(len(turns))
                found["trained_turns"].append(len(trained))
                found["trained_tokens"].append(sum(len(turns[place].ids) for place in trained))
                found["cut"].append(cut)
        if any(turn.logprobs is None for turns in spoken for turn in turns):
            return {**found, "logprobs": None}
        return found


def opener(tokenizer: Any, context: Sequence[int]) -> str:
    """What the chat template has already written of the reply, such as "<think>\\n"; mostly nothing."""
    found = _OPENED.search(tokenizer.decode(list(context[-16:])))
    return found.group() if found else ""


def _choose(turns: Sequence[Spoken], count: int, draw: random.Random) -> list[list[int]]:
    """The turns that `count` rows train: all of them if they stand in the last one's context, else drawn ones.

    A turn is drawn, and with it are trained all that make one row together: every turn once before any again.
    """
    chains = _chains(turns)
    if len(chains) == 1:
        return chains * count
    shares = [draw.random() for _ in range(count)]  # drawn before the length is looked at: alike in a whole group
    free: list[int] = []
    found = []
    for share in shares:
        free = free or list(range(len(turns)))
        drawn = free[int(share * len(free))]
        found.append(next(chain for chain in chains if drawn in chain))
        free = [place for place in free if place not in found[-1]]
    return found


def _chains(turns: Sequence[Spoken]) -> list[list[int]]:
    """Turns that make one row: the context and the words of each are how the next one's context begins."""
    chains: list[list[int]] = []
    whole: list[int] = []
    for place, turn in enumerate(turns):
        if chains and turn.context[: len(whole)] == whole:
            chains[-1].append(place)
        else:
            chains.append([place])
        whole = turn.context + turn.ids
    return chains


def _key(prompt: Text) -> str:
    """What tells a prompt from others, also after it was a row of a data set."""
    messages: Sequence[Any] = [prompt] if isinstance(prompt, str) else prompt
    return json.dumps([item if isinstance(item, str) else [item["role"], item["content"]] for item in messages])


def _column(name: str) -> Any:
    """A reward function that reads its values from a column which the rollout has made."""

    def read(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        return list(columns[name])

    return read


def _anybody(trainer: Any, waiting: int) -> bool:
    """Whether any process still has a conversation that waits for the policy."""
    if trainer.accelerator.num_processes == 1:
        return waiting > 0
    import torch

    mine = torch.tensor([waiting], device=trainer.accelerator.device)
    return bool(trainer.accelerator.gather(mine).sum() > 0)


class _Table:
    """Where the conversations, on our event loop, meet the trainer, on its own thread."""

    def __init__(self, seats: int) -> None:
        self._alive = seats
        self._waiting: list[tuple[int, Dialogue, Answer[Reply]]] = []
        self._taken: list[tuple[int, Dialogue, Answer[Reply]]] = []
        self._changed = threading.Condition()
        self._closed: BaseException | None = None

    def ask(self, place: int, dialogue: Dialogue) -> Answer[Reply]:
        """A supporter's turn has come."""
        answer: Answer[Reply] = Answer()
        with self._changed:
            if self._closed is not None:
                answer.set_exception(RuntimeError(f"training has stopped: {self._closed!r}"))
            else:
                self._waiting.append((place, dialogue, answer))
                self._changed.notify()
        return answer

    def leave(self) -> None:
        """A conversation has ended."""
        with self._changed:
            self._alive -= 1
            self._changed.notify()

    def wait(self) -> list[tuple[int, Dialogue, Answer[Reply]]]:
        """Wait until every living conversation waits for the supporter; all of them, in order. Empty at the end."""
        with self._changed:
            while len(self._waiting) < self._alive:
                self._changed.wait(timeout=0.1)  # short spells: on Windows no signal ends a long one
            self._taken, self._waiting = sorted(self._waiting, key=lambda item: item[0]), []
            return self._taken

    def close(self, error: BaseException) -> None:
        """Let all conversations end: nobody answers any more."""
        with self._changed:
            self._closed = error
            for _, _, answer in [*self._taken, *self._waiting]:
                if not answer.done():
                    answer.set_exception(RuntimeError(f"training has stopped: {error!r}"))


@dataclass(frozen=True, slots=True)
class _Seat:
    """The policy as the supporter of one conversation."""

    table: _Table
    place: int

    @property
    def identity(self) -> Mapping[str, Any]:
        """It is the model in training; nothing else needs to know it."""
        return {"name": "policy"}

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """What the policy says, once every conversation of the batch waits for it."""
        return await asyncio.wrap_future(self.table.ask(self.place, dialogue))

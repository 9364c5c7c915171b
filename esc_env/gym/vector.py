"""Many conversations at once: `gym.make_vec("ESConv-v0", num_envs=64)`.

All conversations of one `step` run concurrently in one event loop, so with chairs that are models a step takes as long
as its slowest call. Observations, rewards and infos are those of `SyncVectorEnv` over the same envs, step by step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from esc_env.background import run
from esc_env.errors import ActionError, ESCError, SpecError, VectorStepError, did_you_mean, whole
from esc_env.gym.env import ESCEnv, warn_of_limit, with_determinism
from esc_env.gym.episode import Draw, Episode, Observation
from esc_env.protocols import Reply

__all__ = ["ESCVectorEnv"]

T = TypeVar("T")

Observations = tuple[Observation, ...]
Flags = npt.NDArray[np.bool_]
Outcomes = tuple[Observations, npt.NDArray[np.float64], Flags, Flags, dict[str, Any]]

_Done = tuple[Episode | None, tuple[Episode, Draw] | None]
"""What one env's part of a step came to: the episode after the action, and the next one where it was reset."""


class ESCVectorEnv(VectorEnv[Observations, Sequence[str], npt.NDArray[Any]]):
    """`num_envs` conversations, stepped together.

    Seed s gives env i the seed s + i: the same conversations as `SyncVectorEnv`. Actions are a sequence of `num_envs`
    strings. Where a chair fails and `on_error="raise"`, the other conversations are finished and kept, and
    `VectorStepError` names the failed ones; `step` again with the same actions redoes only those.

    `ended` holds the conversations that the last step ended and followed up by a new one (`SAME_STEP`), by position.

    Args:
        num_envs: how many; at least 1.
        autoreset_mode: Gymnasium's `AutoresetMode`, its value (`NextStep`) or its name (`NEXT_STEP`).
        max_episode_steps: truncate episodes after so many steps, as `TimeLimit` does. Below `max_turns` it warns.
        options: as for `esc_env.gym.env.ESCEnv`; chairs are made once and shared, since they hold no conversation.

    Raises:
        SpecError: an argument that cannot be used.
    """

    envs: tuple[ESCEnv, ...] = ()

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **options: Any,
    ) -> None:
        whole(num_envs=num_envs, max_episode_steps=1 if max_episode_steps is None else max_episode_steps)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        first = ESCEnv(**options)
        self.task = task = first.task
        shared = {"scenarios": task.scenarios, "seeker": task.chairs.seeker, "critic": task.chairs.critic}
        others = (ESCEnv(**{**options, **shared}) for _ in range(num_envs - 1))
        self.envs = (first, *others)
        warn_of_limit(max_episode_steps, task.chairs.rules)
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, num_envs)
        self.action_space = batch_space(first.action_space, num_envs)
        self._spec: EnvSpec | None = None
        self._over = np.zeros(num_envs, dtype=np.bool_)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._pending: dict[int, tuple[Any, _Done]] = {}
        self.ended: dict[int, Episode] = {}

    @property
    def spec(self) -> EnvSpec | None:
        """What `gym.make_vec` was told; `nondeterministic` as for the single env."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = with_determinism(spec, self.task.chairs)

    @property  # type: ignore[misc]  # as in SyncVectorEnv
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of every env."""
        return tuple(env.np_random for env in self.envs)

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The seed of every env's generator."""
        return tuple(env.np_random_seed for env in self.envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin conversations, in all envs or in those of `options["reset_mask"]`.

        Args:
            seed: one for all (env i gets seed + i), or one per env.
            options: as for the single env, for all of them; and `reset_mask`, a bool array of shape (num_envs,).

        Raises:
            SpecError: seeds or options that cannot be used.
            VectorStepError: some seekers failed to open; nothing has changed.
        """
        options = dict(options or {})
        mask = _mask(options.pop("reset_mask", None), self.num_envs)
        seeds = _seeds(seed, self.num_envs)
        draws = {i: self.task.draw(self.envs[i], seeds[i], options) for i in range(self.num_envs) if mask[i]}
        idle = [i for i, env in enumerate(self.envs) if i not in draws and env.episode is None]
        if idle:
            raise ResetNeeded(f"reset_mask leaves out env {idle[0]}, which has no conversation yet; reset all first")
        opened, failed = _gather({i: partial(self.task.begin, draw) for i, draw in draws.items()})
        if failed:
            raise VectorStepError(tuple(failed), tuple(failed.values()))
        self._pending.clear()
        infos: dict[str, Any] = {}
        for i, draw in draws.items():
            infos = self._add_info(infos, self.envs[i].put(opened[i], draw)[-1], i)
            self._over[i] = False
            self._steps[i] = 0
        return self._observations(), infos

    def step(self, actions: Sequence[str]) -> Outcomes:
        """Say `actions[i]` in conversation i, in all of them at once.

        In `NEXT_STEP` mode the action of an env that is being reset is ignored.

        Raises:
            ActionError: an action is no utterance, or, after a `VectorStepError`, differs from the one that was
                already said; no chair was called.
            VectorStepError: some chairs failed. Call again with the same actions: only those are redone.
            ResetNeeded: `DISABLED` mode, and a conversation that has ended was not reset.
        """
        if isinstance(actions, str):  # a str is a sequence too: one character for each env
            raise ActionError(f"step takes an utterance for each of {self.num_envs} envs, not one str; give a list")
        if len(actions) != self.num_envs:
            raise ActionError(f"{len(actions)} actions for {self.num_envs} envs; give one utterance for each")
        replies = self._replies(actions)
        done, failed = _gather(
            {i: partial(self._one, i, reply) for i, reply in enumerate(replies) if i not in self._pending}
        )
        for i, result in done.items():
            self._pending[i] = (actions[i], result)
        if failed:
            raise VectorStepError(tuple(failed), tuple(failed.values()))
        results = [self._pending[i][1] for i in range(self.num_envs)]
        self._pending = {}
        return self._commit(results)

    def render(self) -> tuple[Any, ...]:
        """What each env renders."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the envs; the event loop is shared, and goes on."""
        for env in self.envs:
            env.close()

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The attribute `name` of every env, called with the arguments where it can be."""
        found = [getattr(env, name) for env in self.envs]
        return tuple(value(*args, **kwargs) if callable(value) else value for value in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute `name` of every env."""
        return tuple(getattr(env, name) for env in self.envs)

    def _replies(self, actions: Sequence[str]) -> list[Reply | None]:
        """The parsed actions; None for an env whose turn it is to be reset. Raises before anything is called."""
        over = np.flatnonzero(self._over)
        if len(over) and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"the conversations of envs {over.tolist()} have ended; reset them first: options={{'reset_mask': …}}"
            )
        replies: list[Reply | None] = []
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            if self._over[i]:
                replies.append(None)
                continue
            try:
                replies.append(self.task.hear(env.episode, action))
            except ActionError as error:
                raise ActionError(f"env {i}: {error}") from error
            if i in self._pending and self._pending[i][0] != action:
                raise ActionError(
                    f"env {i} already heard another action in the step that failed; repeat the same actions, or reset"
                )
        return replies

    async def _one(self, i: int, reply: Reply | None) -> _Done:
        before = self.envs[i].episode
        if reply is None or before is None:
            return None, await self._next(i)
        episode = await self.task.go_on(before, reply)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and (episode.stop is not None or self._limited(i)):
            return episode, await self._next(i)
        return episode, None

    async def _next(self, i: int) -> tuple[Episode, Draw]:
        draw = self.task.draw(self.envs[i])
        return await self.task.begin(draw), draw

    def _limited(self, i: int) -> bool:
        """Whether the step that is being made is the last that `max_episode_steps` allows."""
        return self.max_episode_steps is not None and bool(self._steps[i] + 1 >= self.max_episode_steps)

    def _commit(self, results: Sequence[_Done]) -> Outcomes:
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminations = np.zeros(self.num_envs, dtype=np.bool_)
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        self.ended = {}
        for i, (env, (episode, following)) in enumerate(zip(self.envs, results, strict=True)):
            if episode is not None:
                observation, rewards[i], terminations[i], truncated, info = env.put(episode)
                truncations[i] = truncated or self._limited(i)
                self._steps[i] += 1
                if following is not None:
                    self.ended[i] = episode
                    infos = self._add_info(infos, {"final_obs": observation, "final_info": info}, i)
            if following is not None:
                info = env.put(*following)[-1]
                self._steps[i] = 0
            infos = self._add_info(infos, info, i)
        self._over = (terminations | truncations) & (self.autoreset_mode is not AutoresetMode.SAME_STEP)
        return self._observations(), rewards, terminations, truncations, infos

    def _observations(self) -> Observations:
        return tuple(env.episode.observation for env in self.envs if env.episode is not None)


def _gather(jobs: Mapping[int, Callable[[], Coroutine[Any, Any, T]]]) -> tuple[dict[int, T], dict[int, Exception]]:
    """All jobs in one event-loop call: (results, failures), by position."""

    async def one(job: Callable[[], Coroutine[Any, Any, T]]) -> T | Exception:
        try:
            return await job()
        except Exception as error:
            return error

    async def together() -> list[T | Exception]:
        tasks = []
        async with asyncio.TaskGroup() as group:
            for job in jobs.values():
                tasks.append(group.create_task(one(job)))
                await asyncio.sleep(0)  # lets its request out; else none leaves before all are written
        return [task.result() for task in tasks]

    done: dict[int, T] = {}
    failed: dict[int, Exception] = {}
    for i, result in zip(jobs, run(together()) if jobs else (), strict=True):
        if isinstance(result, ESCError):
            failed[i] = result
        elif isinstance(result, Exception):
            raise result
        else:
            done[i] = result
    return done, failed


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    for known in AutoresetMode:
        if mode in (known, known.value, known.name):
            return known
    hint = did_you_mean(str(mode), [known.value for known in AutoresetMode])
    raise SpecError(f"autoreset_mode={mode!r} is not known. {hint}")


def _seeds(seed: int | Sequence[int | None] | None, count: int) -> Sequence[int | None]:
    if seed is None:
        return [None] * count
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + i for i in range(count)]
    if len(seed) != count:
        raise SpecError(f"{len(seed)} seeds for {count} envs; give one for each, or a single int")
    return seed


def _mask(mask: Any, count: int) -> Flags:
    if mask is None:
        return np.ones(count, dtype=np.bool_)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise SpecError(f"options['reset_mask'] must be a numpy array of bools, not {mask!r}")
    if mask.shape != (count,) or not mask.any():
        raise SpecError(f"options['reset_mask'] must have shape ({count},) and at least one True, not {mask!r}")
    return mask

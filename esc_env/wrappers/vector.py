"""The wrappers of `esc_env.wrappers` for vector environments: `gym.make_vec("ESConv-v0", …)`, and Gymnasium's own.

>>> import gymnasium as gym, esc_env
>>> from esc_env.wrappers.vector import EmbeddingObservation, StrategyAction
>>> envs = EmbeddingObservation(StrategyAction(gym.make_vec("ESConv-v0", num_envs=3)))
>>> envs.reset(seed=0)[0].shape
(3, 256)

Each does to every conversation what the one of the same name does to one; observations that end a conversation
(`infos["final_obs"]`) are turned into texts and vectors too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from os import PathLike
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from esc_env.agents.strategies import Follower, resolve_follower
from esc_env.background import each, run
from esc_env.errors import ActionError, SpecError
from esc_env.gym.episode import START, Observation
from esc_env.gym.spaces import Transcript
from esc_env.gym.vector import ESCVectorEnv
from esc_env.models import ModelSettings
from esc_env.protocols import Reply
from esc_env.wrappers.reading import MAX_CHARS, Embed, Embedding, Rendering, Template, Vector, check_chats
from esc_env.wrappers.recording import Recorder
from esc_env.wrappers.task import CHOICES, check_dense, check_utterances, chosen, followed

__all__ = ["DenseReward", "EmbeddingObservation", "RecordConversation", "StrategyAction", "TextObservation"]

Begun = tuple[Any, dict[str, Any]]
Step = tuple[Any, Any, Any, Any, dict[str, Any]]
Envs = VectorEnv[Any, Any, Any]


class StrategyAction(VectorWrapper[Any, Any, Any, Any, Any]):
    """Choose a strategy for every conversation; see `esc_env.wrappers.StrategyAction`. All words are found at once.

    Args:
        env: one whose actions are utterances.
        words, settings, temperature: as there.

    Raises:
        SpecError: as there.
    """

    def __init__(
        self,
        env: Envs,
        words: str | Mapping[str, Sequence[str]] | Follower | Callable[..., Any] | None = None,
        *,
        settings: ModelSettings | None = None,
        temperature: float = 0.0,
    ) -> None:
        super().__init__(env)
        _each(env, "episode")
        check_utterances(env.single_action_space)
        self.follower = resolve_follower(words, settings, temperature=temperature)
        self.single_action_space = deepcopy(CHOICES)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._over = np.zeros(env.num_envs, dtype=np.bool_)
        self._found: dict[int, tuple[str, Reply]] = {}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Begun:
        """Begin conversations."""
        mask = (options or {}).get("reset_mask")
        begun = self.env.reset(seed=seed, options=options)
        self._over[slice(None) if mask is None else mask] = False
        self._found = {}
        return begun

    def step(self, actions: Any) -> Step:
        """Have the strategies followed, and say what came of them.

        After a `VectorStepError` the same strategies come to the same words, and nobody is asked again.

        Raises:
            ActionError: an action is no strategy, or there is not one for every env.
            Exception: whatever is raised by whoever finds the words (nothing has changed), and by the envs.
        """
        if len(actions) != self.num_envs:
            raise ActionError(f"{len(actions)} actions for {self.num_envs} envs; give a strategy for each")
        # An env that the next step resets by itself ignores what is said there.
        idle = (
            self._over if self.metadata.get("autoreset_mode") is AutoresetMode.NEXT_STEP else np.zeros_like(self._over)
        )
        wanted = {i: chosen(action) for i, action in enumerate(actions) if not idle[i]}
        episodes = _each(self, "episode")

        async def find(i: int) -> None:
            if i not in self._found or self._found[i][0] != wanted[i]:
                self._found[i] = wanted[i], await followed(self.follower, wanted[i], episodes[i])

        if wanted:
            run(each(wanted, find, len(wanted)))
        done = self.env.step(tuple(self._found[i][1] if i in wanted else "" for i in range(self.num_envs)))
        self._over = done[2] | done[3]
        self._found = {}
        return done


class _Observing(VectorWrapper[Any, Any, Any, Any, Any], ABC):
    """Turns the observations of every conversation, those that end one too, into others."""

    def __init__(self, env: Envs, space: Space[Any]) -> None:
        super().__init__(env)
        self.single_observation_space = space
        self.observation_space = batch_space(space, env.num_envs)

    @abstractmethod
    def single(self, observation: Any) -> Any:
        """What becomes of one observation."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Begun:
        """Begin conversations."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._all(observations), infos

    def step(self, actions: Any) -> Step:
        """One turn of every conversation."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        if "final_obs" in infos:
            last = np.empty_like(infos["final_obs"])
            for i in np.flatnonzero(infos["_final_obs"]):
                last[i] = self.single(infos["final_obs"][i])
            infos = {**infos, "final_obs": last}
        return self._all(observations), rewards, terminations, truncations, infos

    def _all(self, observations: Sequence[Any]) -> Any:
        space = self.single_observation_space
        room: Any = create_empty_array(space, self.num_envs)
        return concatenate(space, [self.single(observation) for observation in observations], room)


class TextObservation(_Observing):
    """See every chat as one text; see `esc_env.wrappers.TextObservation`.

    Args:
        env: one whose observations are chats.
        template, max_chars: as there.

    Raises:
        SpecError: as there.
    """

    def __init__(self, env: Envs, template: str | Template | None = None, *, max_chars: int = MAX_CHARS) -> None:
        check_chats(env.single_observation_space)
        super().__init__(env, Transcript(max_chars))
        self._text = Rendering(template)
        self._max_chars = max_chars

    def single(self, observation: Observation) -> str:
        """The text of a chat."""
        return self._text(observation)[-self._max_chars :]


class EmbeddingObservation(_Observing):
    """See every conversation as a vector; see `esc_env.wrappers.EmbeddingObservation`. Texts are embedded one by one.

    Args:
        env: one whose observations are chats, or texts.
        embed, template: as there.

    Raises:
        SpecError: as there.
    """

    def __init__(self, env: Envs, embed: Embed | None = None, *, template: str | Template | None = None) -> None:
        self._vector = Embedding(env.single_observation_space, embed, template)
        super().__init__(env, self._vector.space)

    def single(self, observation: Observation | str) -> Vector:
        """The vector of a conversation."""
        return self._vector(observation)


class DenseReward(VectorWrapper[Any, Any, Any, Any, Any]):
    """Add to every reward what the turn did to the critic's score; see `esc_env.wrappers.DenseReward`.

    Args:
        env: one with `reward="terminal"`.
        scale: as there.

    Raises:
        SpecError: as there.
    """

    def __init__(self, env: Envs, scale: float = 1.0) -> None:
        super().__init__(env)
        for task in _each(env, "task"):
            check_dense(task, scale)
        self.scale = scale
        self._scores = np.full(env.num_envs, START)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Begun:
        """Begin conversations, whose score is −0.5."""
        mask = (options or {}).get("reset_mask")
        begun = self.env.reset(seed=seed, options=options)
        self._scores[slice(None) if mask is None else mask] = START
        return begun

    def step(self, actions: Any) -> Step:
        """One turn of every conversation, paid for what it did."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        before = self._scores.copy()
        for told in (infos, infos.get("final_info", {})):
            if "verdict" in told:
                judged = told["verdict"]["_score"]
                self._scores[judged] = told["verdict"]["score"][judged]
        rewards = rewards + self.scale * (self._scores - before)
        self._scores[terminations | truncations] = START
        return observations, rewards, terminations, truncations, infos


class RecordConversation(VectorWrapper[Any, Any, Any, Any, Any]):
    """Keep all conversations in one file; see `esc_env.wrappers.RecordConversation`.

    Args:
        env: our vector env. Of Gymnasium's, wrap each env instead, and give each of several processes its own file:
            `gym.make_vec("ESConv-v0", 4, vectorization_mode="sync", wrappers=[…])`.
        path: of the file.

    Raises:
        SpecError: the env is not ours.
        RecordError: the file cannot be written to.
    """

    def __init__(self, env: Envs, path: str | PathLike[str]) -> None:
        super().__init__(env)
        self._ours()
        self._recorder = Recorder(path)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Begun:
        """Begin conversations."""
        mask = (options or {}).get("reset_mask")
        begun = self.env.reset(seed=seed, options=options)
        for i, env in enumerate(self._ours().envs):
            if mask is None or mask[i]:
                self._recorder.begin(env.episode, i)
        return begun

    def step(self, actions: Any) -> Step:
        """One turn of every conversation; the last one of each writes it."""
        done = self.env.step(actions)
        envs = self._ours()
        for i, env in enumerate(envs.envs):
            if i in envs.ended:
                self._recorder.go_on(envs.ended[i], i)
                self._recorder.end(i)
            if i in envs.ended or (env.episode is not None and not env.episode.turn and env.episode.stop is None):
                self._recorder.begin(env.episode, i)
            else:
                self._recorder.go_on(env.episode, i)
                if done[2][i] or done[3][i]:
                    self._recorder.end(i)
        return done

    def close(self, **kwargs: Any) -> None:
        """Keep what goes on still, and close the file and the envs."""
        self._recorder.close()
        self.env.close(**kwargs)

    def _ours(self) -> ESCVectorEnv:
        if not isinstance(self.env.unwrapped, ESCVectorEnv):
            raise SpecError(
                "RecordConversation keeps what our own vector env holds; for Gymnasium's wrap every env: "
                'gym.make_vec(…, vectorization_mode="sync", wrappers=[…])'
            )
        return self.env.unwrapped


def _each(env: Envs, name: str) -> Sequence[Any]:
    """An attribute of every env of ours. Raises SpecError where they are none of ours."""
    inner: Any = env.unwrapped
    try:
        return tuple(inner.get_attr(name))
    except AttributeError as error:
        raise SpecError(f'esc_env.wrappers are for gym.make_vec("ESConv-v0", …), not for {inner!r}') from error

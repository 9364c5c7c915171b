"""Wrappers that let other people's reinforcement learning have conversations: choose strategies, see texts or vectors.

>>> import gymnasium as gym, esc_env
>>> from esc_env.wrappers import EmbeddingObservation, StrategyAction
>>> env = EmbeddingObservation(StrategyAction(gym.make("ESConv-v0")))
>>> env.action_space, env.observation_space.shape
(Discrete(8), (256,))

They stand around `gym.make("ESConv-v0")` and `"ExTES-v0"`, in any order, beside Gymnasium's own; vector environments
have the same in `esc_env.wrappers.vector`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from os import PathLike
from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from esc_env.agents.strategies import Follower, resolve_follower
from esc_env.background import run
from esc_env.gym.episode import START, Observation
from esc_env.gym.spaces import Transcript
from esc_env.models import ModelSettings
from esc_env.wrappers.reading import (
    MAX_CHARS,
    Embed,
    Embedding,
    HashingEmbedder,
    Rendering,
    Template,
    Vector,
    check_chats,
)
from esc_env.wrappers.recording import Recorder
from esc_env.wrappers.task import CHOICES, check_dense, check_utterances, chosen, followed, ours

__all__ = [
    "DenseReward", "EmbeddingObservation", "HashingEmbedder", "RecordConversation", "StrategyAction",
    "TextObservation",
]  # fmt: skip

Step = tuple[Any, Any, Any, Any, dict[str, Any]]


class StrategyAction(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Choose a support strategy; somebody else finds the words. *Source:* PPDPP (Deng et al., ICLR 2024).

    Action: `Discrete(8)`, the position of a strategy in `esc_env.dialogue.STRATEGIES`, which are ESConv's. The strategy
    is kept with the message it led to. The same seed and the same actions are the same conversation, if whoever finds
    the words is a function of what it is handed, as the builtin phrase bank is.

    Args:
        env: one whose actions are utterances.
        words: who finds them; None for the builtin phrase bank. See `esc_env.agents.strategies.resolve_follower`.
        settings: how chat models are called.
        temperature: of a chat model.

    Raises:
        SpecError: nobody can find words that way, or the env's actions are no utterances.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        words: str | Mapping[str, Sequence[str]] | Follower | Callable[..., Any] | None = None,
        *,
        settings: ModelSettings | None = None,
        temperature: float = 0.0,
    ) -> None:
        RecordConstructorArgs.__init__(
            self, _disable_deepcopy=True, words=words, settings=settings, temperature=temperature
        )
        super().__init__(env)
        ours(env)
        check_utterances(env.action_space)
        self.follower = resolve_follower(words, settings, temperature=temperature)
        self.action_space = deepcopy(CHOICES)

    def step(self, action: Any) -> Step:
        """Have the strategy followed, and say what came of it.

        Raises:
            ActionError: `action` is no strategy.
            ResetNeeded: there is no conversation, or it has ended.
            Exception: whatever is raised by whoever finds the words (nothing has changed), and by the env.
        """
        return self.env.step(run(followed(self.follower, chosen(action), ours(self).episode)))


class TextObservation(gymnasium.ObservationWrapper[str, Any, Any], RecordConstructorArgs):
    """See the chat as one text.

    Observation: `esc_env.gym.spaces.Transcript`, which is a `gymnasium.spaces.Text`.

    Args:
        env: one whose observations are chats.
        template: a Jinja template of `messages` (a chat template of a tokenizer is one), or a function of the chat; by
            default a line per message, `Seeker: …` or `Supporter: …`.
        max_chars: longest text; of one too long the end is seen.

    Raises:
        SpecError: a template that is none, or observations that are no chats.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], template: str | Template | None = None, *, max_chars: int = MAX_CHARS
    ) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, template=template, max_chars=max_chars)
        super().__init__(env)
        check_chats(env.observation_space)
        self.observation_space = Transcript(max_chars)
        self._text = Rendering(template)
        self._max_chars = max_chars

    def observation(self, observation: Observation) -> str:
        """The text of a chat."""
        return self._text(observation)[-self._max_chars :]


class EmbeddingObservation(gymnasium.ObservationWrapper[Vector, Any, Any], RecordConstructorArgs):
    """See the conversation as a vector, `Box(…, float32)`.

    Args:
        env: one whose observations are chats, or texts (`TextObservation`).
        embed: any function from a text to a vector that always has one length, such as the method `encode` of a
            SentenceTransformer; by default `HashingEmbedder()`.
        template: what makes the text of a chat, as in `TextObservation`.

    Raises:
        SpecError: `embed` or `template` cannot be used, or observations are neither chats nor texts.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        embed: Embed | None = None,
        *,
        template: str | Template | None = None,
    ) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, embed=embed, template=template)
        super().__init__(env)
        self._vector = Embedding(env.observation_space, embed, template)
        self.observation_space = self._vector.space

    def observation(self, observation: Observation | str) -> Vector:
        """The vector of a conversation."""
        return self._vector(observation)


class DenseReward(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Add to every turn's reward what it did to the critic's score, and leave the reward of the end as it is.

        reward_t = r_t + scale × (v_t − v_{t−1})

    with r_t the env's own reward (0 until the end, then the last score), v_t the critic's score after turn t, and v_0 =
    −0.5 (the seeker feels the "same"). So an episode that ends by itself returns v_T + scale × (v_T + 0.5). That is
    unlike `reward="dense"` of the env, which pays the change alone and returns v_T + 0.5. A step without a verdict (a
    chair failed) adds nothing.

    Args:
        env: one with `reward="terminal"`.
        scale: of the change.

    Raises:
        SpecError: the env is dense already, or `scale` is no finite number.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], scale: float = 1.0) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, scale=scale)
        super().__init__(env)
        check_dense(ours(env).task, scale)
        self.scale = scale
        self._score = START

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a conversation, whose score is −0.5."""
        begun = self.env.reset(seed=seed, options=options)
        self._score = START
        return begun

    def step(self, action: Any) -> Step:
        """One turn, paid for what it did."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        before, self._score = self._score, info.get("verdict", {}).get("score", self._score)
        return observation, float(reward) + self.scale * (self._score - before), terminated, truncated, info


class RecordConversation(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Keep every conversation as it ends: a line of JSON each, all that was said and judged.

    `esc import FILE --out FOLDER` makes a folder of them for `esc report`, `esc judge` and `esc rejudge`. An episode
    that something else ended (a time limit, `reset`, `close`) is kept as an `error`, cut off; one in which the
    supporter said nothing is not. Lines are appended. One process writes to a file: give each worker its own.

    Args:
        env: any env of ours.
        path: of the file, such as `train.jsonl`; missing folders are made.

    Raises:
        RecordError: the file cannot be written to.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], path: str | PathLike[str]) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, path=path)
        super().__init__(env)
        ours(env)
        self._recorder = Recorder(path)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a conversation."""
        begun = self.env.reset(seed=seed, options=options)
        self._recorder.begin(ours(self).episode)
        return begun

    def step(self, action: Any) -> Step:
        """One turn; the last one of an episode writes it."""
        done = self.env.step(action)
        self._recorder.go_on(ours(self).episode)
        if done[2] or done[3]:
            self._recorder.end()
        return done

    def close(self) -> None:
        """Keep what goes on still, and close the file and the env."""
        self._recorder.close()
        self.env.close()

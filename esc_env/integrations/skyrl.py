"""The environment as SkyRL trains in it. Tested with skyrl-gym 0.4.0.

    register(id="esc", entry_point="esc_env.integrations.skyrl:SupportEnv", kwargs={"seeker": "openai/gpt-4o"})

inside of SkyRL's entry point, and rows with `env_class="esc"` (`esc_env.integrations.conversations.rows`). What the
seeker says is an observation, and SkyRL's generator gives tokens of observations the loss mask 0.

How many turns there are at most is said by `max_turns` here, as everywhere in esc-env; SkyRL leaves its own
`generator.max_turns` to the environment. A conversation that outgrows `generator.max_input_length` is broken off there
and paid no more: leave room for all of it, or take `reward="dense"`, which has then paid for what was achieved. In
SkyRL's default, a chat that only grows, a policy sees its own earlier thoughts; in `esc eval` it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esc_env.dialogue import ChatMessage
from esc_env.errors import ActionError, MissingExtra, SpecError
from esc_env.integrations.conversations import UNHEARD, options_of, shared_env

try:
    from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput
except ModuleNotFoundError as error:
    raise MissingExtra("skyrl-gym", "skyrl") from error

__all__ = ["SupportEnv"]


class SupportEnv(BaseTextEnv):
    """One conversation of a row.

    Args:
        env_config: SkyRL's, of which nothing is asked.
        extras: the other columns of the row; `conversation` says which one to hold.
        settings: arguments of `ESCEnv` but `scenarios`, which rows name: plain values and strings, the same for every
            conversation. The defaults are those of `esc eval`: T = 8, ten votes, threshold 0.5.

    Raises:
        SpecError: settings that cannot be used, or a row that names no conversation.
    """

    def __init__(self, env_config: Any = None, extras: Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__()
        if "scenarios" in settings:
            raise SpecError("rows name the scenarios here: leave scenarios=… out")
        self._env = shared_env(settings)
        self._options = options_of((extras or {}).get("conversation", {}))
        self.max_turns = self._env.task.chairs.rules.max_turns
        self._score: float | None = None

    def init(self, prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """The row's instructions and how the seeker opens, and Gymnasium's `info`. Raises ChairError."""
        chat, info = self._env.reset(options=self._options)
        told = [message for message in prompt if message["role"] == "system"]
        return [*told, *(_plain(message) for message in chat)], info

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """Say something: the seeker's answer, `ESCEnv`'s reward, whether the conversation has ended, and its `info`.

        What is no utterance (longer than `max_chars`, above all) ends it, with -1.

        Raises:
            ChairError: seeker or critic failed (unless `on_error="truncate"`); the same step may be made again.
        """
        try:
            chat, reward, terminated, truncated, info = self._env.step(action)
        except ActionError as error:
            return BaseTextEnvStepOutput(observations=[], reward=UNHEARD, done=True, metadata={"error": str(error)})
        over = terminated or truncated
        self.turns = info["turn"]
        self._score = info["verdict"]["score"] if "verdict" in info else self._score
        return BaseTextEnvStepOutput(
            observations=[] if over else [_plain(chat[-1])], reward=reward, done=over, metadata=info
        )

    def get_metrics(self) -> dict[str, Any]:
        """`solved` (0 or 1), `turns` and the last `score`, once there is one; SkyRL averages them."""
        episode = self._env.episode
        solved = float(episode is not None and episode.stop is not None and episode.stop.value == "solved")
        return {"solved": solved, "turns": self.turns, **({} if self._score is None else {"score": self._score})}

    def close(self) -> None:
        """Close the env of this conversation."""
        self._env.close()


def _plain(message: ChatMessage) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}

"""Seeker and supporter both as policies: a PettingZoo AEC environment. Tested with pettingzoo 1.27.0, whose
`api_test` refuses text: it asks every observation for the dtype of an array."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium

from esc_env.dialogue import Dialogue
from esc_env.errors import ESCWarning, MissingExtra, SpecError
from esc_env.gym.env import ESCEnv
from esc_env.gym.episode import OPTIONS
from esc_env.gym.spaces import Transcript, Utterance
from esc_env.protocols import Reply
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed
from esc_env.wrappers.reading import MAX_CHARS, lines

try:
    from pettingzoo import AECEnv
except ModuleNotFoundError as error:
    raise MissingExtra("pettingzoo", "pettingzoo") from error

__all__ = ["TwoPlayers"]


class _Said:
    """A seeker whose words somebody else finds."""

    deterministic = True
    identity: Mapping[str, Any] = {"name": "player"}  # never changed
    words = ""

    async def reply(self, scenario: Scenario, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """What was found for this turn."""
        return Reply(self.words)


class TwoPlayers(AECEnv[str, str, str]):  # pyright: ignore[reportIndexIssue]  # where it is not installed
    """A conversation between two policies: `supporter` and `seeker` speak by turns, the critic judges after the seeker.

    The supporter begins, since the seeker's first message is the scenario's situation. Both see a text, a line a
    message; the seeker's begins with who they play. The supporter is paid what `ESConv-v0` pays, the seeker nothing:
    what a seeker is to learn (to be like people, to be hard to please) only whoever trains one knows.

    Args:
        env: arguments of `esc_env.gym.env.ESCEnv` but `seeker`, such as scenarios, critic, max_turns, reward.

    Raises:
        SpecError: as `ESCEnv`; a seeker is named, or is to find the opening.
    """

    metadata: dict[str, Any] = {"name": "esconv_v0", "render_modes": ["human", "ansi"], "is_parallelizable": False}  # noqa: RUF012  # as PettingZoo has it

    def __init__(self, **env: Any) -> None:
        super().__init__()
        if "seeker" in env or env.get("opening") == "seeker":
            raise SpecError("the seeker is a player here: leave out seeker=… and opening='seeker'")
        self._seeker = _Said()
        self._env = ESCEnv(seeker=self._seeker, **env)
        self.possible_agents = ["supporter", "seeker"]
        self.render_mode = self._env.render_mode
        self._text = Transcript(MAX_CHARS)
        self._said = ""

    def observation_space(self, agent: str) -> gymnasium.Space[str]:
        """Text."""
        return self._text

    def action_space(self, agent: str) -> gymnasium.Space[str]:
        """What may be said."""
        return self._env.action_space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Begin a conversation, as `ESCEnv.reset`; options that it does not know are told of and left, as is usual."""
        unknown = sorted(map(str, set(options or ()) - set(OPTIONS)))
        if unknown:
            warnings.warn(f"reset knows no option {', '.join(unknown)}; it is left aside", ESCWarning, stacklevel=2)
        known = {name: value for name, value in (options or {}).items() if name in OPTIONS}
        _, info = self._env.reset(seed=seed, options=known)
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: dict(info) for agent in self.agents}
        self.agent_selection = "supporter"
        self._said = ""

    def observe(self, agent: str) -> str:
        """What a player sees: the conversation, and the seeker also whom they play and what was just said."""
        episode = self._env.episode
        assert episode is not None
        text = lines(episode.observation)
        if agent == "seeker":
            text = f"{_card(episode.scenario)}\n\n{text}" + (f"\nSupporter: {self._said}" if self._said else "")
        return text[-MAX_CHARS:]

    def step(self, action: str | None) -> None:
        """Say something. After the seeker, the critic judges. Raises ActionError where it is no utterance."""
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        words = Utterance(self._env.task.chairs.rules.max_chars).check(action)
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        if agent == "supporter":
            self._said, self.agent_selection = words, "seeker"
            return
        self._seeker.words = words
        _, reward, terminated, truncated, info = self._env.step(self._said)
        self._said = ""
        self.rewards["supporter"] = float(reward)
        self.terminations = dict.fromkeys(self.agents, terminated)
        self.truncations = dict.fromkeys(self.agents, truncated)
        self.infos = {each: dict(info) for each in self.agents}
        self.agent_selection = "supporter"
        self._accumulate_rewards()

    def render(self) -> str | None:
        """The conversation, as `ESCEnv.render`."""
        return self._env.render()

    def close(self) -> None:
        """Close what is played in."""
        self._env.close()


def _card(scenario: Scenario) -> str:
    """Whom the seeker plays."""
    parts = {
        "What has happened": scenario.facts, "What helps": scenario.helps, "What hurts": scenario.hurts,
        "Profile": (scenario.profile,) if scenario.profile else (),
    }  # fmt: skip
    told = [f"{name}: {' '.join(lines_)}" for name, lines_ in parts.items() if lines_]
    return "\n".join([f"You are the seeker. {scenario.situation}", *told])

"""What both envs step: whom a reset draws, a conversation at one moment, and what a step makes of it.

Nothing here changes anything. A step computes the next `Episode`, and the env puts it in place once all has gone well:
so a step that fails, or is interrupted, has not happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

from esc_env.conversation import Chairs, begin, check_history, exchange
from esc_env.dialogue import ChatMessage, Dialogue
from esc_env.errors import BudgetExceeded, ChairError, ScenarioError, did_you_mean
from esc_env.gym.spaces import Utterance
from esc_env.protocols import Reply, Usage, Verdict
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.seeds import Seed, derive
from esc_env.trajectory import Failure, StopReason, Trajectory

__all__ = ["OPTIONS", "START", "Draw", "Episode", "Observation", "Outcome", "Task", "going_on"]

Observation = tuple[ChatMessage, ...]
"""The chat so far, ready for any chat model: see `esc_env.gym.spaces.Chat`."""

Outcome = tuple[Observation, float, bool, bool, dict[str, Any]]
"""What `step` returns: observation, reward, terminated, truncated, info."""

START = -0.5
"""What dense reward starts from: the seeker feels the "same". *Source:* PPDPP's value of that option."""

OPTIONS = ("scenario", "episode_seed", "history")
"""What `reset` may be told in `options`."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One conversation at one moment: immutable, so that a copied env goes on from here on its own.

    Attributes:
        scenario: whom the conversation is held with.
        seed: the episode seed; with scenario, history and actions it decides all that builtin chairs say.
        dialogue: all that was said, thoughts included.
        opening: messages that stood before the first turn.
        verdicts: one per turn of this episode.
        stop: why it ended; None while it goes on.
        failure: the chair that failed, when `on_error="truncate"` ended it.
        usage: model calls of the last reset or step.
    """

    scenario: Scenario
    seed: int
    dialogue: Dialogue
    opening: int
    verdicts: tuple[Verdict, ...] = ()
    stop: StopReason | None = None
    failure: Failure | None = None
    usage: Usage = field(default_factory=Usage)

    @property
    def turn(self) -> int:
        """Exchanges done."""
        return len(self.verdicts)

    @property
    def observation(self) -> Observation:
        """The chat so far, without thoughts."""
        return self.dialogue.as_chat("supporter", opening=self.scenario.situation)

    def trajectory(self, trial: int, usage: Usage) -> Trajectory:
        """The conversation as it is kept; one that goes on still, as an `error`: it was cut off.

        Args:
            trial: which repetition of the scenario.
            usage: model calls of all its steps.
        """
        kept = Trajectory(
            self.scenario, self.dialogue, self.verdicts, self.stop or StopReason.ERROR, self.seed, trial, usage,
            self.failure, self.opening,
        )  # fmt: skip
        return kept if self.stop else replace(kept, failure=Failure(kept.due, "CutOff", "the episode was cut off"))

    @property
    def ending(self) -> str | None:
        """How it ended, for people; None while it goes on."""
        if self.stop is None:
            return None
        turns = f"{self.turn} turn" + ("" if self.turn == 1 else "s")
        if self.failure is not None:
            return f"Ended by an error of the {self.failure.role} after {turns}: {self.failure.message}"
        return f"{'Solved' if self.stop is StopReason.SOLVED else 'Not solved'} after {turns}."


@dataclass(frozen=True, slots=True)
class Draw:
    """What a reset drew: the next conversation's scenario, seed and history, and the generator as it is afterwards."""

    scenario: Scenario
    seed: int
    history: Dialogue | None
    generator: np.random.Generator
    generator_seed: int | None


@dataclass(frozen=True, slots=True)
class Task:
    """What an env asks of a supporter: whom they meet, under which rules, for which reward. See `ESCEnv`."""

    chairs: Chairs
    scenarios: ScenarioSet
    persona: str | None
    reward: Literal["terminal", "dense"]
    on_error: Literal["raise", "truncate"]

    def draw(
        self, env: gymnasium.Env[Any, Any], seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> Draw:
        """The next conversation of an env, drawn from its generator or by a seed; `options` as in `ESCEnv.reset`.

        Raises:
            ScenarioError: options that cannot be used.
        """
        options = dict(options or {})
        for name in options:
            if name not in OPTIONS:
                raise ScenarioError(f"reset(options=…) knows no {name!r}. {did_you_mean(str(name), OPTIONS)}")
        if seed is None:
            generator, generator_seed = deepcopy(env.np_random), env.np_random_seed
        else:
            generator, generator_seed = seeding.np_random(seed)
        # One raw draw, hashed: NumPy keeps bit streams stable across versions, its distributions it does not.
        drawn = int(generator.bit_generator.random_raw())
        scenario = options.get("scenario")
        if scenario is None:
            if options.get("history") is not None:
                raise ScenarioError("reset(options=…): a history needs the scenario it was held with")
            scenario = self.scenarios[derive(drawn, "scenario") % len(self.scenarios)]
        elif isinstance(scenario, str):
            scenario = self.scenarios.by_id(scenario)
        elif not isinstance(scenario, Scenario):
            raise ScenarioError(
                f"reset(options=…): scenario must be an id or a Scenario, not {type(scenario).__name__}"
            )
        elif self.persona is not None:
            scenario = scenario.with_persona(self.persona)
        episode_seed = options.get("episode_seed")
        if episode_seed is None:
            episode_seed = derive(drawn, "episode")
        elif (
            isinstance(episode_seed, bool)
            or not isinstance(episode_seed, (int, np.integer))
            or not 0 <= episode_seed < 2**63
        ):
            raise ScenarioError(
                f"reset(options=…): episode_seed must be a whole number from 0 to 2**63 - 1, not {episode_seed!r}"
            )
        history = options.get("history")
        if history is not None:
            if not isinstance(history, Dialogue):
                raise ScenarioError(f"reset(options=…): history must be a Dialogue, not {type(history).__name__}")
            check_history(history)
        return Draw(scenario, int(episode_seed), history, generator, generator_seed)

    async def begin(self, draw: Draw) -> Episode:
        """The conversation before the supporter's first words. Raises ChairError if the seeker fails."""
        dialogue, usage = draw.history, Usage()
        if dialogue is None:
            dialogue, usage = await begin(draw.scenario, self.chairs, seed=Seed(draw.seed))
        return Episode(draw.scenario, draw.seed, dialogue, len(dialogue), usage=usage)

    def hear(self, episode: Episode | None, action: Any) -> Reply:
        """An action as the supporter's reply. Raises ActionError, or ResetNeeded where no conversation goes on.

        Wrappers that know more of it than its words (its strategy, its thought, what it cost) hand over a Reply.
        """
        going_on(episode)
        utterance = Utterance(self.chairs.rules.max_chars)
        if isinstance(action, Reply):
            return replace(action, content=utterance.check(action.content))
        return Reply.parse(utterance.check(action))

    async def go_on(self, episode: Episode, reply: Reply) -> Episode:
        """The conversation after one more turn. Raises ChairError as `on_error` says."""
        try:
            done = await exchange(
                episode.scenario, episode.dialogue, reply, self.chairs, turn=episode.turn + 1, seed=Seed(episode.seed)
            )
        except ChairError as error:
            if self.on_error == "raise" or isinstance(error.__cause__, BudgetExceeded):
                raise
            failure = Failure(error.role, type(error.__cause__ or error).__name__, error.message)
            return replace(episode, stop=StopReason.ERROR, failure=failure, usage=Usage())
        verdicts = (*episode.verdicts, done.verdict)
        return replace(episode, dialogue=done.dialogue, verdicts=verdicts, stop=done.stop, usage=done.usage)

    def outcome(self, episode: Episode) -> Outcome:
        """What a policy is told of a conversation at this moment."""
        truncated = episode.stop is StopReason.ERROR
        terminated = episode.stop is not None and not truncated
        return episode.observation, self._reward(episode), terminated, truncated, self._info(episode)

    def _reward(self, episode: Episode) -> float:
        if episode.failure is not None or not episode.verdicts:
            return 0.0
        score = episode.verdicts[-1].score
        if self.reward == "dense":
            return score - (episode.verdicts[-2].score if episode.turn > 1 else START)
        return score if episode.stop is not None else 0.0

    def _info(self, episode: Episode) -> dict[str, Any]:
        info: dict[str, Any] = {
            "scenario": episode.scenario.id,
            "episode_seed": episode.seed,
            "turn": episode.turn,
            "turns_left": self.chairs.rules.max_turns - episode.turn,
            "stop_reason": None if episode.stop is None else episode.stop.value,
            "usage": _known(replace(episode.usage, models=()).to_json()),
        }
        if episode.failure is not None:
            info["error"] = asdict(episode.failure)
        elif episode.verdicts:
            info["verdict"] = _known(episode.verdicts[-1].to_json())
        return info


def going_on(episode: Episode | None) -> Episode:
    """The conversation of an env, if one goes on. Raises ResetNeeded otherwise."""
    if episode is None:
        raise ResetNeeded("there is no conversation yet; call reset() first")
    if episode.stop is not None:
        raise ResetNeeded(f"this conversation has ended ({episode.stop.value}); call reset() for the next")
    return episode


def _known(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}

"""`ESConv-v0` and `ExTES-v0`: emotional support as a Gymnasium environment.

>>> import gymnasium as gym, esc_env
>>> env = gym.make("ESConv-v0")
>>> observation, info = env.reset(seed=0)
>>> observation, reward, terminated, truncated, info = env.step("That sounds hard. What happened?")

Each step is one `conversation.exchange`: the supporter's utterance is heard, the seeker answers, the critic judges.
`esc_env.vector` steps many conversations at once with the same methods of this class: each computes a new `Episode`
and changes nothing; `_commit` then puts it in place. So a step that fails, or is interrupted, has not happened.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.wrappers import TimeLimit

from esc_env._loop import run
from esc_env.conversation import Chairs, begin, check_history, exchange
from esc_env.critics import CriticMode, resolve_critic
from esc_env.datasets import load_scenarios
from esc_env.dialogue import ChatMessage, Dialogue
from esc_env.errors import BudgetExceeded, ChairError, ScenarioError, did_you_mean
from esc_env.models import ModelOptions, ModelSettings
from esc_env.protocols import Critic, Reply, Seeker, Usage, Verdict
from esc_env.rendering import Console, show, transcript
from esc_env.rules import Rules
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.seeds import Seed, derive
from esc_env.seekers import resolve_seeker
from esc_env.spaces import Chat, Utterance
from esc_env.trajectory import Failure, StopReason

__all__ = ["Draw", "ESCEnv", "Episode", "Observation"]

Observation = tuple[ChatMessage, ...]
"""The chat so far, ready for any chat model: see `esc_env.spaces.Chat`."""

_V0 = -0.5
"""What dense reward starts from: the seeker feels the "same". *Source:* PPDPP's value of that option."""

_OPTIONS = ("scenario", "episode_seed", "history")
_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Episode:
    """One conversation at one moment: immutable, so that a copied env goes on from here on its own.

    Attributes:
        scenario: whom the conversation is held with.
        seed: the episode seed; with scenario, history and actions it decides all that builtin chairs say.
        dialogue: all that was said, thoughts included.
        opening: messages that stood before the first exchange.
        verdicts: one per exchange of this episode.
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


@dataclass(frozen=True, slots=True)
class Draw:
    """What a reset drew: the next conversation's scenario, seed and history, and the generator as it is afterwards."""

    scenario: Scenario
    seed: int
    history: Dialogue | None
    generator: np.random.Generator
    generator_seed: int | None


class ESCEnv(gymnasium.Env[Observation, str]):
    """Talk with a person who has a problem, one utterance a step, until a critic says it is solved or T turns are over.

    Action: the supporter's utterance, a str (`esc_env.spaces.Utterance`); a `<think>…</think>` block in it is private.
    Observation: the chat so far (`esc_env.spaces.Chat`). `terminated` is the task's own end (solved, or T exchanges
    done); `truncated` is left to outside limits and `on_error`.

    `info`: `scenario` (id), `episode_seed`, `turn`, `turns_left`, `stop_reason` (`solved`, `max_turns`, `error` or
    None), `usage` of this call, after a step `verdict` (`score`, `solved`, `votes`, `valid_votes`; `expected` where the
    critic knows it), and `error` (`role`, `kind`, `message`) where `on_error="truncate"` ended the episode.
    Fields that are unknown (a cost, an expectation) are left out. It never holds what the seeker has not said.

    `env.unwrapped.episode` is the whole conversation, thoughts and verdicts included.

    Copying and pickling: an env is configuration plus an immutable `Episode`, so `copy.deepcopy(env)` and
    `pickle.dumps(env)` work in mid-episode too, and the copy goes on independently. No loop or session travels.

    Args:
        scenarios: whom to meet. A string (`builtin:train`, `esconv:test`, a file path; a bare `train`, `valid` or
            `test` means that split of `dataset`), a `ScenarioSet`, or an iterable of `Scenario`. The default is the
            embedded bank's training split, so that its test split stays unseen.
        seeker, critic: strings (`builtin`, `python:MODULE:NAME`, a model), objects or callables.
        dataset: which data set a bare split name means: `esconv` in ESConv-v0, `extes` in ExTES-v0. Nothing else
            differs between the two ids.
        max_turns: T, exchanges before the conversation ends unsolved. *Source:* RLFF-ESC: 8.
        reward: `terminal`: 0 until the end, then the critic's score in [-1, 1]. `dense`: r_t = v_t - v_{t-1} with
            v_0 = -0.5, so that an episode's return is its last score + 0.5.
        opening: `situation` (verbatim) or `seeker` (the seeker writes it).
        threshold: solved when the critic's score is greater. *Source:* PPDPP: 0.5.
        votes: how often the critic is asked. *Source:* PPDPP: 10.
        critic_temperature: of the votes of a critic that is a chat model. *Source:* PPDPP: 1.1.
        critic_mode: how a critic that is a chat model votes: `votes` (sampled answers) or `logprobs` (one request for
            the distribution, votes drawn from it).
        seeker_temperature: of a seeker that is a chat model. Ours: 0.7.
        seeker_options, critic_options: what such a chat model is asked besides, such as
            `{"max_tokens": 2000, "reasoning_effort": "low"}`; see docs/models.md.
        max_chars: longest action, in characters.
        persona: how every seeker meets help (`esc_env.PERSONAS`); None leaves each scenario its own.
        on_error: what a failed seeker or critic does to `step`. `raise`: a `ChairError`; nothing has changed, and the
            same step may be made again. `truncate` (unattended training): the episode ends with `truncated=True`,
            reward 0 and `info["error"]`. A failed `reset` always raises: there is no episode to end. So does a spent
            budget: every further episode would end at once.
        render_mode: `ansi` (`render` returns the conversation as text) or `human` (printed as it goes on).
        models: how chat models are called, such as `budget="5 USD"`, `record="run.db"` or `concurrency=64`: the fields
            of `esc_env.models.ModelSettings`.

    Raises:
        SpecError: a seeker or critic that names nothing, or a model that is known not to take what it would be asked.
        MissingExtra: the packages that a model needs are not installed.
        ScenarioError: no scenarios, an unknown persona, or a file that cannot be used.
        ValueError: any other argument out of range.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "ansi"], "render_fps": 4}  # noqa: RUF012  # as gymnasium declares it

    def __init__(
        self,
        scenarios: str | os.PathLike[str] | ScenarioSet | Iterable[Scenario] = "builtin:train",
        seeker: str | Seeker | Callable[..., Any] = "builtin",
        critic: str | Critic | Callable[..., Any] = "builtin",
        *,
        dataset: Literal["esconv", "extes"] = "esconv",
        max_turns: int = 8,
        reward: Literal["terminal", "dense"] = "terminal",
        opening: Literal["situation", "seeker"] = "situation",
        threshold: float = 0.5,
        votes: int = 10,
        critic_temperature: float = 1.1,
        critic_mode: CriticMode = "votes",
        seeker_temperature: float = 0.7,
        seeker_options: dict[str, Any] | None = None,
        critic_options: dict[str, Any] | None = None,
        max_chars: int = 8000,
        persona: str | None = None,
        on_error: Literal["raise", "truncate"] = "raise",
        render_mode: Literal["human", "ansi"] | None = None,
        **models: Unpack[ModelOptions],
    ) -> None:
        arguments = inspect.getfullargspec(ESCEnv.__init__)
        settings = ModelSettings.of(models, *arguments.args[1:], *arguments.kwonlyargs)
        _one_of("dataset", dataset, ("esconv", "extes"))
        _one_of("reward", reward, ("terminal", "dense"))
        _one_of("on_error", on_error, ("raise", "truncate"))
        if render_mode is not None:
            _one_of("render_mode", render_mode, self.metadata["render_modes"])
        rules = Rules(max_turns, threshold, votes, opening, max_chars)
        self.chairs = Chairs(
            resolve_seeker(seeker, settings, temperature=seeker_temperature, options=seeker_options),
            resolve_critic(critic, settings, mode=critic_mode, temperature=critic_temperature, options=critic_options),
            rules,
        )
        self.scenarios = _scenario_set(scenarios, dataset, persona)
        self.persona = persona
        self.reward = reward
        self.on_error = on_error
        self.render_mode = render_mode
        self.observation_space = Chat()
        self.action_space = self._utterance = Utterance(max_chars)
        self.episode: Episode | None = None
        self._spec: EnvSpec | None = None
        self._shown = 0
        self._limit_checked = False

    @property
    def spec(self) -> EnvSpec | None:
        """What `gym.make` was told. `nondeterministic` where a chair has an attribute `deterministic` that is False.

        A chair without that attribute is taken at its word: a function of what it is handed.
        """
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = with_determinism(spec, self.chairs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a conversation. The critic is not called.

        Args:
            seed: of the env's generator, from which scenario and episode seed are drawn.
            options: any of `scenario` (an id, or a `Scenario`), `episode_seed` (together they replay a conversation
                exactly) and `history` (a `Dialogue` to go on from, which needs `scenario` and ends with the seeker; T
                counts from there).

        Raises:
            ScenarioError: options that cannot be used.
            ChairError: the seeker failed to open; nothing has changed.
        """
        if not self._limit_checked:
            self._limit_checked = True
            warn_of_limit(_outer_limit(self), self.chairs.rules)
        draw = self._draw(seed, options)
        return self._commit_reset(draw, run(self._open(draw)))

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Say `action`; hear the seeker's answer, and what the critic makes of it.

        Raises:
            ActionError: `action` is no utterance; no chair was called.
            ChairError: a chair failed (with `on_error="raise"`); nothing has changed, the same step may be made again.
            ResetNeeded: there is no conversation, or it has ended.
        """
        reply = self._hear(action)
        return self._commit_step(run(self._advance(reply)))

    def render(self) -> str | None:
        """The conversation so far as text (`ansi`), or printed as far as it is new (`human`)."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() does nothing without gym.make(..., render_mode="ansi" or "human")')
            return None
        if self.episode is None:
            raise ResetNeeded("there is no conversation to render; call reset() first")
        if self.render_mode == "ansi":
            return transcript(self.episode.dialogue, self.episode.verdicts, self.episode.opening, self._ending())
        self._show()
        return None

    # The parts of reset and step, which the vector env gathers. Only the _commit methods change anything.

    def _draw(self, seed: int | None, options: Mapping[str, Any] | None) -> Draw:
        """Scenario, seed and history of the next conversation, and the generator as it is after drawing them."""
        options = dict(options or {})
        for name in options:
            if name not in _OPTIONS:
                raise ScenarioError(f"reset(options=…) knows no {name!r}. {did_you_mean(str(name), _OPTIONS)}")
        if seed is None:
            generator, generator_seed = deepcopy(self.np_random), self._np_random_seed
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

    async def _open(self, draw: Draw) -> Episode:
        dialogue, usage = draw.history, Usage()
        if dialogue is None:
            dialogue, usage = await begin(draw.scenario, self.chairs, seed=Seed(draw.seed))
        return Episode(draw.scenario, draw.seed, dialogue, len(dialogue), usage=usage)

    def _hear(self, action: Any) -> Reply:
        if self.episode is None:
            raise ResetNeeded("there is no conversation yet; call reset() first")
        if self.episode.stop is not None:
            raise ResetNeeded(f"this conversation has ended ({self.episode.stop.value}); call reset() for the next")
        return Reply.parse(self._utterance.check(action))

    async def _advance(self, reply: Reply) -> Episode:
        episode = self.episode
        if episode is None:
            raise ResetNeeded("there is no conversation yet; call reset() first")
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

    def _commit_reset(self, draw: Draw, episode: Episode) -> tuple[Observation, dict[str, Any]]:
        self._np_random, self._np_random_seed = draw.generator, draw.generator_seed
        self.episode = episode
        self._shown = 0
        if self.render_mode == "human":
            self._show()
        return self._observation(episode), self._info(episode)

    def _commit_step(self, episode: Episode) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.episode = episode
        if self.render_mode == "human":
            self._show()
        truncated = episode.stop is StopReason.ERROR
        terminated = episode.stop is not None and not truncated
        return self._observation(episode), self._reward(episode), terminated, truncated, self._info(episode)

    def _reward(self, episode: Episode) -> float:
        if episode.failure is not None:
            return 0.0
        score = episode.verdicts[-1].score
        if self.reward == "dense":
            return score - (episode.verdicts[-2].score if episode.turn > 1 else _V0)
        return score if episode.stop is not None else 0.0

    def _observation(self, episode: Episode) -> Observation:
        return episode.dialogue.as_chat("supporter", opening=episode.scenario.situation)

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
            failure = episode.failure
            info["error"] = {"role": failure.role, "kind": failure.kind, "message": failure.message}
        elif episode.verdicts:
            info["verdict"] = _known(episode.verdicts[-1].to_json())
        return info

    def _ending(self) -> str | None:
        if self.episode is None or self.episode.stop is None:
            return None
        turns = f"{self.episode.turn} turn" + ("" if self.episode.turn == 1 else "s")
        if self.episode.failure is not None:
            return f"Ended by an error of the {self.episode.failure.role} after {turns}: {self.episode.failure.message}"
        return f"{'Solved' if self.episode.stop is StopReason.SOLVED else 'Not solved'} after {turns}."

    def _show(self) -> None:
        if self.episode is not None:
            now = self.episode
            self._shown = show(Console(), now.dialogue, now.verdicts, now.opening, self._ending(), self._shown)


def with_determinism(spec: EnvSpec | None, chairs: Chairs) -> EnvSpec | None:
    """A spec that says `nondeterministic` where one of the chairs says it is not deterministic."""
    sampled = not all(getattr(chair, "deterministic", True) for chair in (chairs.seeker, chairs.critic))
    if spec is None or not sampled:
        return spec
    spec = copy(spec)
    spec.nondeterministic = True
    return spec


def warn_of_limit(limit: int | None, rules: Rules) -> None:
    """Warn when an outside limit cuts episodes off before the reward of their end is paid."""
    if limit is not None and limit < rules.max_turns:
        warnings.warn(
            f"max_episode_steps={limit} is less than max_turns={rules.max_turns}: such an episode is cut off before "
            f"its final reward is paid. Pass max_turns={limit} instead, which ends it with that reward",
            stacklevel=3,
        )


def _outer_limit(env: ESCEnv) -> int | None:
    """The smallest TimeLimit around an env, found among the callers: Gymnasium tells an env nothing of its wrappers."""
    limits = []
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        frame = caller
        wrapper = frame.f_locals.get("self")
        if isinstance(wrapper, TimeLimit) and wrapper.unwrapped is env:
            limits.append(wrapper._max_episode_steps)
    return min(limits, default=None)


def _one_of(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known. {did_you_mean(str(value), known)}")


def _known(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}


def _scenario_set(scenarios: Any, dataset: str, persona: str | None) -> ScenarioSet:
    if isinstance(scenarios, (str, os.PathLike)):
        name = os.fspath(scenarios)
        if name in _SPLITS:
            name = f"{dataset}:{name}"
        changed = Path(name).stat().st_mtime_ns if Path(name).is_file() else None
        return _loaded(name, persona, changed, os.environ.get("ESC_DATA"))
    return _checked(load_scenarios(scenarios), persona)


@functools.lru_cache(maxsize=16)
def _loaded(name: str, persona: str | None, changed: int | None, folder: str | None) -> ScenarioSet:
    """Sets are immutable: envs that name the same one share it, while the file or data folder stays the same."""
    return _checked(load_scenarios(name), persona)


def _checked(scenarios: ScenarioSet, persona: str | None) -> ScenarioSet:
    if not scenarios:
        raise ScenarioError(f"{scenarios.name} holds no scenario to talk about")
    if persona is None or all(scenario.persona == persona for scenario in scenarios):
        return scenarios
    return scenarios.with_persona(persona)

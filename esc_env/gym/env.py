"""`ESConv-v0` and `ExTES-v0`: emotional support as a Gymnasium environment.

>>> import gymnasium as gym, esc_env
>>> env = gym.make("ESConv-v0")
>>> observation, info = env.reset(seed=0)
>>> observation, reward, terminated, truncated, info = env.step("That sounds hard. What happened?")

Each step is one `conversation.exchange`: the supporter's utterance is heard, the seeker answers, the critic judges.
What both this env and `esc_env.gym.vector` step is in `esc_env.gym.episode`.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path
from typing import Any, Literal, Unpack

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import TimeLimit

from esc_env.background import run
from esc_env.chairs.critics import CriticMode, resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import Chairs
from esc_env.data.datasets import load_scenarios
from esc_env.errors import ESCWarning, ScenarioError, one_of
from esc_env.gym.episode import Draw, Episode, Observation, Outcome, Task
from esc_env.gym.spaces import Chat, Utterance
from esc_env.models import ModelOptions, ModelSettings
from esc_env.protocols import Critic, Reply, Seeker
from esc_env.rendering import Console, show, transcript
from esc_env.rules import Rules
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.secrets import Key

__all__ = ["ESCEnv"]


class ESCEnv(gymnasium.Env[Observation, str]):
    """Talk with a person who has a problem, one utterance a step, until a critic says it is solved or T turns are over.

    Action: the supporter's utterance, a str (`esc_env.gym.spaces.Utterance`); a thought in it is private.
    Observation: the chat so far (`esc_env.gym.spaces.Chat`). `terminated` is the task's own end (solved, or T turns
    done); `truncated` is left to outside limits and `on_error`.

    `info`: `scenario` (id), `episode_seed`, `turn`, `turns_left`, `stop_reason` (`solved`, `max_turns`, `error` or
    None), `usage` of this call, after a step `verdict` (`score`, `solved`, `votes`, `valid_votes`; `expected` where the
    critic knows it), and `error` (`role`, `kind`, `message`) where `on_error="truncate"` ended the episode.
    Fields that are unknown (a cost, an expectation) are left out. It never holds what the seeker has not said.

    `env.unwrapped.episode` is the whole conversation, thoughts and verdicts included.

    Copying and pickling: an env is configuration plus an immutable `Episode`, so `copy.deepcopy(env)` and
    `pickle.dumps(env)` work in mid-episode too, and the copy goes on independently. It opens connections of its own.

    Args:
        scenarios: whom to meet. A string (`builtin:train`, `esconv:test`, a file path; a bare `train`, `valid` or
            `test` means that split of `dataset`), a `ScenarioSet`, or an iterable of `Scenario`. The default is the
            training split of the builtin people, so that the test split stays unseen.
        seeker, critic: strings (`builtin`, `python:MODULE:NAME`, a model), objects or callables.
        dataset: which data set a bare split name means: `esconv` in ESConv-v0, `extes` in ExTES-v0. Nothing else
            differs between the two ids.
        max_turns: T, turns after which the conversation ends unsolved. *Source:* RLFF-ESC: 8.
        reward: `terminal`: 0 until the end, then the critic's score in [-1, 1]. `dense`: r_t = v_t - v_{t-1} with
            v_0 = -0.5, so that an episode's return is its last score + 0.5.
        opening: `situation` (verbatim) or `seeker` (the seeker writes it).
        threshold: solved when the critic's score is greater. *Source:* PPDPP: 0.5.
        votes: how many votes the critic gives after a turn. *Source:* PPDPP: 10.
        critic_temperature: of the votes of a critic that is a chat model. *Source:* PPDPP: 1.1.
        critic_mode: how a critic that is a chat model votes: `votes` (sampled answers) or `logprobs` (one request for
            the probabilities of the four options, votes drawn from them).
        seeker_temperature: of a seeker that is a chat model. Ours: 0.7.
        seeker_options, critic_options: further fields of every request to such a chat model, such as
            `{"max_tokens": 2000, "reasoning_effort": "low"}`; see docs/models.md.
        max_chars: longest action, in characters.
        persona: how every seeker responds to help (`esc_env.PERSONAS`, or `mixed`); None leaves each scenario its own.
        on_error: what a failed seeker or critic does to `step`. `raise`: a `ChairError`; nothing has changed, and the
            same step may be made again. `truncate` (unattended training): the episode ends with `truncated=True`,
            reward 0 and `info["error"]`. A failed `reset` always raises: there is no episode to end. So does a spent
            budget: every further episode would end at once.
        render_mode: `ansi` (`render` returns the conversation as text) or `human` (printed as it goes on).
        models: how chat models are called, such as `budget="5 USD"`, `record="run.db"` or `concurrency=64`: the fields
            of `esc_env.models.ModelSettings`. An `api_key` stands as `[key]` in `spec`, which makes another env in this
            process only.

    Raises:
        SpecError: an argument that there is none of or that cannot be used, such as a seeker or critic that names
            nothing, or a model that is known not to take what it would be asked.
        ScenarioError: no scenarios, an unknown persona, or a file that cannot be used.
        MissingExtra: the packages that a model needs are not installed.
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
        settings = ModelSettings.of(models, ESCEnv.__init__)
        if isinstance(settings.api_key, Key):
            _hide(settings.api_key)
        one_of("dataset", dataset, ("esconv", "extes"))
        one_of("reward", reward, ("terminal", "dense"))
        one_of("on_error", on_error, ("raise", "truncate"))
        if render_mode is not None:
            one_of("render_mode", render_mode, self.metadata["render_modes"])
        rules = Rules(max_turns, threshold, votes, opening, max_chars)
        chairs = Chairs(
            resolve_seeker(seeker, settings, temperature=seeker_temperature, options=seeker_options),
            resolve_critic(critic, settings, mode=critic_mode, temperature=critic_temperature, options=critic_options),
            rules,
        )
        self.task = Task(chairs, _scenario_set(scenarios, dataset, persona), persona, reward, on_error)
        self.render_mode = render_mode
        self.observation_space = Chat()
        self.action_space = Utterance(max_chars)
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
        self._spec = with_determinism(spec, self.task.chairs)

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
            warn_of_limit(_outer_limit(self), self.task.chairs.rules)
        draw = self.task.draw(self, seed, options)
        observation, *_, info = self.put(run(self.task.begin(draw)), draw)
        return observation, info

    def step(self, action: str | Reply) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Say `action`; hear the seeker's answer, and what the critic makes of it.

        Raises:
            ActionError: `action` is no utterance; no chair was called.
            ChairError: a chair failed (with `on_error="raise"`); nothing has changed, the same step may be made again.
            ResetNeeded: there is no conversation, or it has ended.
        """
        reply = self.task.hear(self.episode, action)
        assert self.episode is not None  # else it had not been heard
        return self.put(run(self.task.go_on(self.episode, reply)))

    def render(self) -> str | None:
        """The conversation so far as text (`ansi`), or printed as far as it is new (`human`)."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() does nothing without gym.make(..., render_mode="ansi" or "human")')
            return None
        if self.episode is None:
            raise ResetNeeded("there is no conversation to render; call reset() first")
        if self.render_mode == "ansi":
            return transcript(self.episode.dialogue, self.episode.verdicts, self.episode.opening, self.episode.ending)
        self._show()
        return None

    def put(self, episode: Episode, draw: Draw | None = None) -> Outcome:
        """Let an episode of this env's task be the one that is held; `draw` is what a new one began with."""
        if draw is not None:
            self._np_random, self._np_random_seed = draw.generator, draw.generator_seed
            self._shown = 0
        self.episode = episode
        if self.render_mode == "human":
            self._show()
        return self.task.outcome(episode)

    def _show(self) -> None:
        if self.episode is not None:
            now = self.episode
            self._shown = show(Console(), now.dialogue, now.verdicts, now.opening, now.ending, self._shown)


def _hide(key: Key) -> None:
    """Put a key that was handed over, which shows nothing, in the place of the plain one that Gymnasium was told.

    `make` and `make_vec` keep what they are told in specs and quote it in errors, and ask nobody. What they keep is
    found among the callers.
    """
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_globals.get("__name__") == EnvSpec.__module__:
            for kept in list(frame.f_locals.values()):
                if isinstance(kept, dict) and str(kept.get("api_key")).strip() == key.secret:
                    kept["api_key"] = key


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
            ESCWarning,
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


def _scenario_set(scenarios: Any, dataset: str, persona: str | None) -> ScenarioSet:
    if isinstance(scenarios, (str, os.PathLike)):
        name = os.fspath(scenarios)
        whole = name.partition("?")[0]
        if whole in ("train", "valid", "test"):
            name = f"{dataset}:{name}"
        file = next((Path(each) for each in (name, whole) if Path(each).is_file()), None)
        changed = file.stat().st_mtime_ns if file else None
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

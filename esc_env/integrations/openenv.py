"""The environment as an OpenEnv server, and the typed client of it. Tested with openenv 0.10.0.

    uvicorn.run(app(scenarios="builtin:train"), port=8000)

    with SupportClient("http://127.0.0.1:8000").sync() as env:
        heard = env.reset(seed=0)
        while not heard.done:
            heard = env.step(Say(message=my_policy(heard.observation.messages)))

A session is one WebSocket connection. OpenEnv's HTTP routes /reset, /step and /state keep none: each request meets an
environment of its own that is thrown away afterwards, so that a step over HTTP finds no conversation to go on with, and
is refused with 409.

What the seeker says comes as an observation, so that whoever trains masks all but what the policy wrote.
"""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import Any

from gymnasium.error import ResetNeeded

from esc_env.errors import MissingExtra, SpecError
from esc_env.gym.env import ESCEnv
from esc_env.rules import __version__

try:
    from openenv.core import EnvClient
    from openenv.core.client_types import StepResult
    from openenv.core.env_server import Action, ConcurrencyConfig, Environment, Observation, State, create_app
    from openenv.core.env_server.types import EnvironmentMetadata
    from pydantic import Field
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
except ModuleNotFoundError as error:
    raise MissingExtra("openenv", "openenv") from error

__all__ = ["Heard", "Say", "SupportClient", "SupportEnvironment", "Talk", "app"]


class Say(Action):
    """What the supporter says."""

    message: str = Field(description="The supporter's utterance. A thought in it (<think>…</think>) is private.")


class Heard(Observation):
    """What the supporter knows. `reward` is the environment's, None after a reset; `metadata` is Gymnasium's `info`."""

    messages: list[dict[str, str]] = Field(
        description="The chat so far, ready for any chat model: the seeker is `user`, the supporter `assistant`."
    )


class Talk(State):
    """Which conversation a session holds; `step_count` is the number of turns."""

    scenario: str | None = Field(default=None, description="Id of the scenario; None before the first reset.")
    episode_seed: int | None = Field(default=None, description="With `scenario`, it replays the conversation.")
    stop_reason: str | None = Field(default=None, description="Why it ended; None while it goes on.")


class SupportEnvironment(Environment[Say, Heard, Talk]):
    """One session: a conversation at a time, in an `ESCEnv`.

    Args:
        env: of which each session gets a copy. The copies share seeker and critic, and with them a budget, rate limits
            and connections, and nothing that was said.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, env: ESCEnv) -> None:
        super().__init__()
        self._env = copy(env)
        self._over = False
        self._name: str | None = None

    def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> Heard:
        """Begin a conversation.

        Args:
            seed: draws scenario and episode seed.
            episode_id: told back in the state.
            options: `scenario` (an id) and `episode_seed`; together they replay a conversation.

        Raises:
            ScenarioError: options that cannot be used.
            ChairError: the seeker failed to open; nothing has changed.
            ResetNeeded: the session is over.
        """
        self._check()
        messages, info = self._env.reset(seed=seed, options=options)
        self._name = episode_id
        return Heard(messages=[{**message} for message in messages], metadata=info)

    def step(self, action: Say, timeout_s: float | None = None, **_: Any) -> Heard:
        """Say something, and hear the answer. Calls of models have time limits of their own; `timeout_s` adds none.

        Raises:
            ActionError: it is no utterance.
            ChairError: seeker or critic failed; nothing has changed, the same step may be made again.
            ResetNeeded: there is no conversation, it has ended, or the session is over.
        """
        self._check()
        messages, reward, terminated, truncated, info = self._env.step(action.message)
        chat = [{**message} for message in messages]
        return Heard(messages=chat, reward=reward, done=terminated or truncated, metadata=info)

    @property
    def state(self) -> Talk:
        """Which conversation is held; never what the seeker has not said."""
        episode = self._env.episode
        if episode is None:
            return Talk(episode_id=self._name)
        return Talk(
            episode_id=self._name, step_count=episode.turn, scenario=episode.scenario.id, episode_seed=episode.seed,
            stop_reason=episode.stop and episode.stop.value,
        )  # fmt: skip

    def get_metadata(self) -> EnvironmentMetadata:
        """Name, description and version, for `/metadata`."""
        return EnvironmentMetadata(
            name="esc-env",
            description="Emotional support conversation: talk with somebody who has a problem. Seekers are simulated.",
            version=__version__,
        )

    def close(self) -> None:
        """End the session: OpenEnv does so when its connection closes, or has been idle for too long."""
        self._over = True

    def _check(self) -> None:
        """OpenEnv counts an expired session no longer, yet still hands it messages that come over its connection."""
        if self._over:
            raise ResetNeeded(
                "this session is over: it was closed, or idle for longer than the server waits; reconnect"
            )


class SupportClient(EnvClient[Say, Heard, Talk]):
    """The typed client: async, or `.sync()`. One client is one session."""

    def _step_payload(self, action: Say) -> dict[str, Any]:
        payload: dict[str, Any] = action.model_dump()
        return payload

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[Heard]:
        reward, done = payload.get("reward"), payload.get("done", False)
        heard = Heard.model_validate({**payload["observation"], "reward": reward, "done": done})
        return StepResult(heard, reward, done, heard.metadata)

    def _parse_state(self, payload: dict[str, Any]) -> Talk:
        talk: Talk = Talk.model_validate(payload)
        return talk


def app(*, sessions: int = 64, idle: float = 1800.0, **env: Any) -> Starlette:
    """The server, for uvicorn.

    Args:
        sessions: how many there may be at a time; one more is told CAPACITY_REACHED. At least 1.
        idle: seconds without a message after which a session ends and makes room. More than a step may take.
        env: arguments of `ESCEnv`. The defaults are those of `esc eval` (T = 8, ten votes, threshold 0.5, the
            situation as opening), with `builtin:train` as scenarios; `builtin:test` is what is published.

    Raises:
        SpecError: an argument that cannot be used.
    """
    held = ConcurrencyConfig(max_concurrent_envs=sessions, session_timeout=idle)
    made: Starlette = create_app(
        partial(SupportEnvironment, ESCEnv(**env)), Say, Heard, env_name="esc-env", concurrency_config=held,
        state_cls=Talk,
    )  # fmt: skip

    async def without_session(request: Request, error: Exception) -> JSONResponse:
        told = "a step over HTTP has no conversation: OpenEnv keeps sessions on its WebSocket only (/ws)"
        return JSONResponse({"detail": f"{told}. {error}"}, 409)

    async def unusable(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    made.add_exception_handler(ResetNeeded, without_session)
    made.add_exception_handler(SpecError, unusable)
    return made

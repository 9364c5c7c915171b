"""Emotional support as an environment of verifiers, by its v1 API. Tested with verifiers 0.4.0.

verifiers finds environments by the name of a module without dots. A file `esc_support.py` that says
`from esc_env.integrations.verifiers import *` is one (examples/esc_support.py), and `vf-eval esc-support` then runs it;
`load_environment` needs no file.

The seeker speaks first and is the user of the rollout, so what it says are input messages of the trace: verifiers marks
only the supporter's tokens as sampled, and trainers mask all others. The policy sees its own thoughts again, since a
trace only grows; in `esc eval` it does not.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

from esc_env.agents.turn import system_prompt
from esc_env.background import stays
from esc_env.chairs.critics import CriticMode, resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import Chairs, converse
from esc_env.data.datasets import load_scenarios
from esc_env.dialogue import Dialogue, think_block
from esc_env.errors import ChairError, MissingExtra, ModelUnavailable, SupporterFailure
from esc_env.models import ModelSettings
from esc_env.protocols import Reply
from esc_env.rules import Rules
from esc_env.scenarios import ScenarioSet
from esc_env.seeds import Seed, episode_seed

try:
    import verifiers.v1 as vf
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError
    from pydantic import Field
    from verifiers.v1.dialects.chat import message_to_wire
    from verifiers.v1.utils.loaders import load_environment as _load
except ModuleNotFoundError as error:
    raise MissingExtra("verifiers", "verifiers") from error

__all__ = ["Chat", "Support", "SupportTasks"]

ID = "esc-support"
"""The name that verifiers knows it by; of the module, with an underscore."""

PUBLISHED = vf.SamplingConfig(temperature=0.0, max_tokens=1024)
"""How `esc eval` asks a supporter; a run's own sampling, a trainer's above all, is never overridden."""


class TasksConfig(vf.TasksetConfig):
    """Which conversations are held; the defaults are those of `esc eval`.

    Attributes:
        scenarios: a string that `load_scenarios` knows. `builtin:train` for training.
        persona: how every seeker meets help; None leaves each scenario its own.
        trials: tasks per scenario, each with a seed of its own. verifiers' rollouts of one task share its seed.
        seed: from which every episode seed is derived.
        form: of the supporter's answer: `plain` (the style `standard` of `esc eval`) or `think`.
    """

    id: str = ID
    scenarios: str = "builtin:test"
    persona: str | None = None
    trials: int = 1
    seed: int = 0
    form: Literal["plain", "think"] = "plain"

    def people(self) -> ScenarioSet:
        """Whom the conversations are held with."""
        chosen = load_scenarios(self.scenarios)
        return chosen if self.persona is None else chosen.with_persona(self.persona)


class Conversation(vf.TaskData):
    """One conversation to hold. The prompt stays None: the seeker opens.

    Attributes:
        scenario: id of the scenario, no more of it: the policy must not read what the seeker has not said.
        trial: which repetition of it, from 0.
        seed: the episode seed.
    """

    scenario: str
    trial: int = 0
    seed: int = 0


class SupportTask(vf.Task[Conversation, vf.State, vf.TaskConfig]):
    """Its rewards are given by `Support`, which hears the critic."""


class SupportTasks(vf.Taskset[SupportTask, TasksConfig]):
    """All conversations, trial by trial, with the episode seeds of `esc eval`."""

    def load(self) -> Iterator[SupportTask]:
        """One task per scenario and trial."""
        asked, system = self.config, system_prompt(self.config.form)
        people = asked.people()
        for trial in range(asked.trials):
            for person in people:
                data = Conversation(
                    id=f"{person.id}/{trial}", name=person.id, system_prompt=system, scenario=person.id, trial=trial,
                    seed=episode_seed(asked.seed, person.id, trial),
                )  # fmt: skip
                yield SupportTask(data, asked.task)


class ChatConfig(vf.HarnessConfig):
    """Of `Chat`; nothing to set."""

    id: str = ID


class Chat(vf.Harness[ChatConfig]):
    """One request a turn, from this process: verifiers' own `null` harness starts a program for every turn."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()  # which takes longer than all the rest of a turn

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Ask for the next message; verifiers writes it down on its way."""
        system, prompt = self.resolve_prompt(data)
        chat: list[Any] = [{"role": "system", "content": system}] if system else []
        chat += [message_to_wire(message) for message in prompt or () if not isinstance(message, str)]
        web = DefaultAsyncHttpxClient(verify=self._tls)
        async with AsyncOpenAI(
            base_url=endpoint, api_key=secret, http_client=web, timeout=None, max_retries=5
        ) as client:
            try:
                await client.chat.completions.create(model=ctx.model, messages=chat)
            except OpenAIError as error:
                return vf.ProgramResult(1, "", str(error))
        return vf.ProgramResult(0, "", "")


class SupportConfig(vf.EnvConfig):
    """Who sits opposite the supporter, under which rules; the defaults are those of `esc eval`.

    Attributes:
        supporter: the policy.
        seeker, critic: strings, such as `builtin` or `openai/gpt-4o`.
        max_turns, votes, threshold, opening, max_chars: see `esc_env.Rules`.
        seeker_temperature, seeker_options, critic_mode, critic_temperature, critic_options: of chairs that are chat
            models; see `esc_env.evaluate`.
        models: how such chat models are called: fields of `esc_env.ModelSettings`, such as `{"budget": "5 USD"}`.
    """

    taskset: TasksConfig = TasksConfig()
    supporter: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())
    seeker: str = "builtin"
    critic: str = "builtin"
    max_turns: int = 8
    votes: int = 10
    threshold: float = 0.5
    opening: Literal["situation", "seeker"] = "situation"
    max_chars: int = 8000
    seeker_temperature: float = 0.7
    seeker_options: dict[str, Any] = Field(default_factory=dict)
    critic_mode: CriticMode = "votes"
    critic_temperature: float = 1.1
    critic_options: dict[str, Any] = Field(default_factory=dict)
    models: dict[str, Any] = Field(default_factory=dict)

    def chairs(self) -> Chairs:
        """Seeker, critic and rules. Raises SpecError for what cannot be used."""
        settings = ModelSettings.of(self.models)  # type: ignore[arg-type]  # checked there
        return Chairs(
            resolve_seeker(self.seeker, settings, temperature=self.seeker_temperature, options=self.seeker_options),
            resolve_critic(
                self.critic, settings, mode=self.critic_mode, temperature=self.critic_temperature,
                options=self.critic_options,
            ),
            Rules(self.max_turns, self.threshold, self.votes, self.opening, self.max_chars),
        )  # fmt: skip


class Support(vf.Env[SupportConfig]):
    """The conversation of `esc eval`, with verifiers' agent `supporter` in the supporter's chair.

    Reward `score`: the critic's last score, in [-1, 1]. Metrics: `solved` (0 or 1) and `turns`. The whole conversation,
    verdicts included, stands in the trace's `info["conversation"]`, as `esc eval` keeps it. A seeker, critic or model
    that fails makes an error of the episode, never a failed conversation: `retries` hold it again.
    """

    def __init__(self, config: SupportConfig) -> None:
        super().__init__(config)
        self._chairs = config.chairs()
        self._people = config.taskset.people()

    async def run(self, task: vf.Task[Any, Any, Any], agents: vf.Agents) -> None:
        """Hold one conversation."""
        data: Conversation = task.data
        async with agents.supporter.interaction(task) as interaction:
            trace = interaction.trace
            talk = await converse(
                self._people.by_id(data.scenario), _Supporter(interaction), self._chairs, seed=data.seed,
                trial=data.trial,
            )  # fmt: skip
            trace.info["conversation"] = talk.to_json()
            if not talk.completed:
                assert talk.failure is not None
                raise ChairError(talk.failure.role, talk.failure.message)
            trace.record_reward("score", talk.final_score)
            trace.record_metrics({"solved": float(talk.solved), "turns": float(talk.turns)})


class _Supporter:
    """What an interaction says, as an Agent."""

    identity = {"name": "verifiers"}  # noqa: RUF012  # never changed

    def __init__(self, interaction: Any) -> None:
        self._trace, self._turn = interaction.trace, stays(interaction.turn)

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The policy's next message to what the seeker said last."""
        heard = dialogue.as_chat("supporter")[-1]["content"]
        segment = await self._turn(heard if heard.strip() else "...")
        if segment.terminated:
            if self._trace.errors:
                failed = ModelUnavailable(self._trace.errors[-1].message)
                failed.infrastructure = True
                raise failed
            raise SupporterFailure(f"verifiers stopped the rollout: {self._trace.stop_condition}")
        said = segment.messages[-1]
        thought = think_block(said.reasoning_content) if said.reasoning_content else ""
        return Reply.parse(thought + (said.content or ""))


def load_environment(*, taskset: dict[str, Any] | None = None, **config: Any) -> Support:
    """The environment, ready for `run_episode` and `serving`.

    Args:
        taskset: fields of `TasksConfig`.
        config: fields of `SupportConfig`, and verifiers' own (`retries`, `supporter`, …).
    """
    sys.modules.setdefault(ID.replace("-", "_"), sys.modules[__name__])  # verifiers looks environments up by name
    made: Support = _load(SupportConfig.model_validate({"taskset": {"id": ID, **(taskset or {})}, **config}))
    return made

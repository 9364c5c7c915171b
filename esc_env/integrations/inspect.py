"""Emotional support as an evaluation in Inspect. Tested with inspect-ai 0.3.285 and openai 3.57.0; its OpenAI providers
need openai >= 3.4.

    inspect eval esc_env/esconv --model openai/gpt-4o

The supporter is the model that Inspect evaluates, asked by esc-env's own prompts through Inspect: its cache, limits,
retries and log see every request. Seeker and critic are called by esc-env, and counted there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from esc_env.agents import ChatAgent
from esc_env.background import hops, stays
from esc_env.chairs.critics import CriticMode, resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import Chairs, converse
from esc_env.data.datasets import load_scenarios
from esc_env.dialogue import think_block
from esc_env.errors import BadCompletion, ChairError, MissingExtra, ModelUnavailable
from esc_env.models import ModelSettings
from esc_env.protocols import Ballot, Completion, Critic, Request, Usage
from esc_env.rules import Rules
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.seeds import Seed, episode_seed
from esc_env.trajectory import StopReason, Trajectory

try:
    from inspect_ai import Task, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
        GenerateConfig,
        Model,
        ModelOutput,
        get_model,
    )
    from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
    from inspect_ai.solver import Generate, Solver, TaskState, solver
    from inspect_ai.util import LimitExceededError
except ModuleNotFoundError as error:
    raise MissingExtra("inspect-ai", "inspect") from error

__all__ = ["critic", "esconv", "supporting"]

_KEPT = "conversation"


@task
def esconv(
    scenarios: str = "builtin:test",
    persona: str | None = None,
    trials: int = 1,
    style: str = "standard",
    **settings: Any,
) -> Task:
    """The benchmark of `esc eval`, with its defaults; all are arguments of `inspect eval -T`.

    `--temperature` and `--max-tokens` change how the supporter is asked (0 and 1024). A seeker or critic that fails is
    an error of the sample, and so is a model that does not answer: `--no-fail-on-error` goes on with the others.

    Args:
        scenarios: a string that `load_scenarios` knows.
        persona: how every seeker meets help; None leaves each scenario its own.
        trials: conversations per scenario, Inspect's epochs.
        style: how the model is prompted; one of `esc_env.agents.chat.STYLES`.
        settings: further arguments of `supporting`.
    """
    people = _people(scenarios, persona)
    samples = [
        Sample(
            id=person.id, input=person.situation, target="solved",
            metadata={"problem": person.problem, "emotion": person.emotion, "persona": person.persona},
        )
        for person in people
    ]  # fmt: skip
    return Task(
        dataset=MemoryDataset(samples, name=people.name),
        solver=supporting(scenarios=scenarios, persona=persona, style=style, **settings),
        scorer=critic(),
        epochs=trials,
        config=GenerateConfig(temperature=0.0, max_tokens=1024),
    )


@solver
def supporting(
    scenarios: str = "builtin:test",
    persona: str | None = None,
    style: str = "standard",
    seed: int = 0,
    seeker: str = "builtin",
    critic: str = "builtin",
    max_turns: int = 8,
    votes: int = 10,
    threshold: float = 0.5,
    opening: Literal["situation", "seeker"] = "situation",
    max_chars: int = 8000,
    seeker_temperature: float = 0.7,
    seeker_options: dict[str, Any] | None = None,
    critic_mode: CriticMode = "votes",
    critic_temperature: float = 1.1,
    critic_options: dict[str, Any] | None = None,
    models: dict[str, Any] | None = None,
    send_seed: bool = True,
) -> Solver:
    """Hold the conversation of a sample, whose id names the scenario.

    Args:
        scenarios, persona, style: as in `esconv`.
        seed: of the run; every episode seed is derived from it, as in `esc eval`.
        seeker, critic: strings, such as `builtin` or `openai/gpt-4o`.
        max_turns, votes, threshold, opening, max_chars: see `esc_env.Rules`.
        seeker_temperature, seeker_options, critic_mode, critic_temperature, critic_options: see `esc_env.evaluate`.
        models: how seekers and critics that are chat models are called: fields of `esc_env.ModelSettings`.
        send_seed: whether every request to the supporter has a sampling seed, of 31 bits; False for servers that take
            none.
    """
    people = _people(scenarios, persona)
    called = ModelSettings.of(models or {})  # type: ignore[arg-type]  # checked there
    chairs = Chairs(
        resolve_seeker(seeker, called, temperature=seeker_temperature, options=seeker_options),
        resolve_critic(critic, called, mode=critic_mode, temperature=critic_temperature, options=critic_options),
        Rules(max_turns, threshold, votes, opening, max_chars),
    )

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        person, trial = people.by_id(str(state.sample_id)), state.epoch - 1
        asked = _Asked(get_model(), send_seed)
        talks: list[Trajectory] = []
        try:
            talks.append(
                await converse(
                    person, ChatAgent(asked, style), chairs, seed=episode_seed(seed, person.id, trial), trial=trial,
                    told=talks.append, cut=talks.append,
                )
            )  # fmt: skip
        finally:
            if talks:
                kept = {"scenario": person.to_json(), "max_turns": max_turns, "talk": talks[-1].to_json()}
                state.store.set(_KEPT, kept)
                state.messages = _messages(talks[-1])
            state.output = asked.output or state.output
        if asked.error is not None:  # of the model, or a limit of Inspect's, who know what to do about it
            raise asked.error
        if (failure := talks[-1].failure) is not None and not talks[-1].completed:
            raise ChairError(failure.role, failure.message)
        return state

    return solve


@scorer(metrics={"solved": [mean(), stderr()], "turns": [mean()], "score": [mean()]})
def critic(
    judge: str | None = None, votes: int = 10, threshold: float = 0.5, models: dict[str, Any] | None = None
) -> Scorer:
    """What the critic made of a conversation: `solved` (SR), `turns` (AT, a failure counting T) and last `score`.

    A conversation without an outcome (cut off by a time limit, say) has no score.

    Args:
        judge: another critic, who judges how the conversation ended, as in
            `inspect score LOG --scorer esc_env/critic -S judge=…`; None for the one that it was held with.
        votes, threshold: of that other critic.
        models: how it is called, if it is a chat model: fields of `esc_env.ModelSettings`.
    """
    called = ModelSettings.of(models or {})  # type: ignore[arg-type]  # checked there
    other = None if judge is None else resolve_critic(judge, called)

    async def score(state: TaskState, target: Target) -> Score | None:
        kept = state.store.get(_KEPT)
        if kept is None:
            return None
        person = Scenario.from_json(kept["scenario"])
        talk = Trajectory.from_json(kept["talk"], person)
        if not talk.completed:
            return None
        solved, last = talk.solved, talk.final_score
        told = "; ".join(f"turn {turn}: {verdict.score:+.2f}" for turn, verdict in enumerate(talk.verdicts, 1))
        if other is not None:
            verdict = Rules(votes=votes, threshold=threshold).count(await _judged(other, person, talk, votes))
            solved, last, told = verdict.solved, verdict.score, f"{judge}: {verdict.score:+.2f}"
        if talk.stop_reason is StopReason.SUPPORTER_FAILED and talk.failure is not None:
            told = f"{told} ({talk.failure.message})"
        turns = talk.turns if solved else kept["max_turns"]
        return Score(
            value={"solved": int(solved), "turns": turns, "score": last}, explanation=told,
            answer=talk.dialogue.messages[-1].content, metadata={"stop_reason": talk.stop_reason.value},
        )  # fmt: skip

    return score


@hops
async def _judged(critic: Critic, person: Scenario, talk: Trajectory, votes: int) -> Ballot:
    """The votes of a critic on how a conversation ended."""
    seed = Seed(talk.seed, role="critic", turn=talk.turns)
    return await critic.judge(person, talk.dialogue, votes=votes, seed=seed)


class _Asked:
    """The model that Inspect evaluates, as a ChatModel; asked once a sample.

    Attributes:
        output: the last answer.
        error: what Inspect raised.
    """

    def __init__(self, model: Model, send_seed: bool) -> None:
        self.identity: Mapping[str, Any] = {"provider": "inspect", "name": model.name}
        self.output: ModelOutput | None = None
        self.error: Exception | None = None
        self._generate, self._send_seed = stays(model.generate), send_seed

    async def complete(self, request: Request) -> Completion:
        """Ask it. Temperature and length are left to Inspect, but where several answers are to differ."""
        seed = (
            request.seed & 0x7FFFFFFF if self._send_seed and request.seed is not None else None
        )  # as `esc eval` sends
        config = GenerateConfig(seed=seed, stop_seqs=list(request.stop) or None)
        if request.n > 1:
            config = config.merge(GenerateConfig(num_choices=request.n, temperature=request.temperature))
        messages = [_TOLD[message["role"]](content=message["content"]) for message in request.messages]
        try:
            output: ModelOutput = await self._generate(messages, config=config)
        except Exception as error:
            self.error = error
            if isinstance(error, LimitExceededError):
                raise  # which the supporter has used up: its own failure
            failed = ModelUnavailable(f"{type(error).__name__}: {error}")
            failed.infrastructure = True
            raise failed from error
        if any(choice.stop_reason == "model_length" for choice in output.choices):
            raise BadCompletion("the conversation is longer than the model's maximum context")
        self.output, used = output, output.usage
        usage = Usage(1, cost=None, models=(output.model,))
        if used is not None:
            usage = replace(usage, prompt_tokens=used.input_tokens, completion_tokens=used.output_tokens)
        reasons = tuple({"max_tokens": "length"}.get(each.stop_reason, each.stop_reason) for each in output.choices)
        return Completion(tuple(map(_text, output.choices)), reasons, usage, output.model)


_TOLD: Mapping[str, Any] = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


def _text(choice: ChatCompletionChoice) -> str:
    """What a model wrote, its thoughts before it."""
    content = choice.message.content
    parts = [ContentText(text=content)] if isinstance(content, str) else content
    thought = "\n".join(part.reasoning for part in parts if isinstance(part, ContentReasoning))
    return f"{think_block(thought) if thought else ''}{choice.message.text}"


def _messages(talk: Trajectory) -> list[ChatMessage]:
    """A conversation as the viewer shows it: what was said, and the supporter's thoughts."""
    shown: list[ChatMessage] = []
    for message in talk.dialogue:
        if message.role == "seeker":
            shown.append(ChatMessageUser(content=message.content))
        elif message.thought:
            parts = [ContentReasoning(reasoning=message.thought), ContentText(text=message.content)]
            shown.append(ChatMessageAssistant(content=parts))
        else:
            shown.append(ChatMessageAssistant(content=message.content))
    return shown


def _people(scenarios: str, persona: str | None) -> ScenarioSet:
    chosen = load_scenarios(scenarios)
    return chosen if persona is None else chosen.with_persona(persona)

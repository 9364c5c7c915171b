"""`esc collect`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from esc_env.cli import AgentOption, CriticOption, SeekerOption

__all__ = ["command"]


class _CriticMode(StrEnum):
    VOTES = "votes"
    LOGPROBS = "logprobs"


class _Source(StrEnum):
    AUTO = "auto"
    HUMAN = "human"
    SIMULATED = "simulated"


class _Wire(StrEnum):
    AUTO = "auto"
    AIOHTTP = "aiohttp"
    OPENAI = "openai"
    LITELLM = "litellm"


def command(
    agent: Annotated[
        str,
        typer.Option(
            "--agent",
            "-a",
            help="Who responds and goes on: builtin:NAME; a chat model, PROVIDER/NAME[@URL][#STYLE] or local:PATH; or "
            "python:MODULE:NAME.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The collection's folder. The same command resumes.")],
    scenarios: Annotated[
        str, typer.Option("--scenarios", "-s", help="Who is talked with: builtin:train, esconv:train, or a file.")
    ] = "builtin:train",
    seeker: Annotated[
        str,
        typer.Option(help="Who plays the person: builtin, a chat model (PROVIDER/NAME[@URL], local:PATH), python:…"),
    ] = "builtin",
    critic: Annotated[
        str, typer.Option(help="Who judges relief: builtin, a chat model (PROVIDER/NAME[@URL], local:PATH), python:…")
    ] = "builtin",
    source: Annotated[
        _Source,
        typer.Option(
            help="Contexts: prefixes of the human dialogues, of conversations simulated on the spot, or (auto) of the "
            "human dialogue where a scenario has one."
        ),
    ] = _Source.AUTO,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many scenarios. Default: all.", show_default=False)
    ] = None,
    contexts: Annotated[
        int | None, typer.Option(min=1, help="So many contexts, drawn by --seed. Default: all.", show_default=False)
    ] = None,
    candidates: Annotated[int, typer.Option("--candidates", "-m", min=1, help="m: responses per context.")] = 4,
    rollouts: Annotated[int, typer.Option("--rollouts", "-k", min=1, help="K: futures per response.")] = 1,
    horizon: Annotated[
        int | None,
        typer.Option(
            min=1, help="T of a future, its response's exchange included. Default: --max-turns.", show_default=False
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Episodes per scenario, each with its own seed.")] = 1,
    valid: Annotated[float, typer.Option(help="Share of scenarios set aside for the reward model, in [0, 1).")] = 0.2,
    seed: Annotated[int, typer.Option(help="Same seed, same data (with builtin chairs).")] = 0,
    max_turns: Annotated[int, typer.Option(min=1, help="T: exchanges of a conversation, and of a future.")] = 8,
    temperature: Annotated[float, typer.Option(min=0, help="Of an agent that is a chat model.")] = 0.7,
    seeker_temperature: Annotated[float, typer.Option(min=0, help="Of a seeker that is a chat model.")] = 0.7,
    critic_temperature: Annotated[
        float, typer.Option(min=0, help="Of the votes of a critic that is a chat model.")
    ] = 1.1,
    critic_mode: Annotated[
        _CriticMode,
        typer.Option(help="A critic that is a chat model gives ten sampled votes, or draws them from one answer."),
    ] = _CriticMode.VOTES,
    agent_option: AgentOption = None,
    seeker_option: SeekerOption = None,
    critic_option: CriticOption = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls in flight at the same time.")] = 64,
    rpm: Annotated[
        int | None, typer.Option(min=1, help="Requests a minute per endpoint, at most.", show_default=False)
    ] = None,
    tpm: Annotated[
        int | None, typer.Option(min=1, help="Tokens a minute per endpoint, at most.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer of a server.")] = 60.0,
    deadline: Annotated[
        float | None,
        typer.Option(help="Seconds for one call with all its retries. Default: 600.", show_default=False),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Stop once this command has spent so much on models: '5 USD' or '200k tokens'.", show_default=False
        ),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Keep every request to a model and its answer here.", show_default=False)
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Answer in the models' place from a recorded file.", show_default=False)
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Answer from this file what is there; keep the rest.", show_default=False)
    ] = None,
    wire: Annotated[_Wire, typer.Option(help="How requests travel.")] = _Wire.AUTO,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress",
            help="Show a bar. Default: a bar in a terminal, else a line on stderr now and then.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Sample responses to contexts and simulate what becomes of them: the data of a reward model.

    Every response is kept as soon as its futures have ended; the same command goes on where it stopped. At the end,
    card.md says what was collected.
    """
    from esc_env.models import read_options
    from esc_env.progress import shown
    from esc_env.rules import Rules
    from esc_env.training.collect import collect

    with shown(wanted=progress) as told:
        made = collect(
            agent, scenarios, seeker=seeker, critic=critic,
            rules=Rules(max_turns=max_turns, critic_temperature=critic_temperature), source=source.value, limit=limit,
            contexts=contexts, candidates=candidates, rollouts=rollouts, horizon=horizon, trials=trials, valid=valid,
            seed=seed, out=out, progress=told, critic_mode=critic_mode.value, seeker_temperature=seeker_temperature,
            temperature=temperature, agent_options=read_options(agent_option or (), "agent"),
            seeker_options=read_options(seeker_option or (), "seeker"),
            critic_options=read_options(critic_option or (), "critic"), concurrency=concurrency,
            requests_per_minute=rpm, tokens_per_minute=tpm, timeout=timeout, deadline=deadline, budget=budget,
            record=record, replay=replay, cache=cache, wire=wire.value,
        )  # fmt: skip
    card = made.card
    typer.echo(
        f"{card['samples']:,} samples of {card['scenarios']:,} scenarios: {card['candidates']:,} responses to "
        f"{card['contexts']:,} contexts, {card['tails']:,} tail labels"
    )
    if card["samples"]:
        typer.echo(f"solved {card['all']['solved']:.1%}, mean reward {card['all']['reward']:+.3f}")
    for message, count in card["errors"].items():
        typer.echo(f"{count:,} × {message}")
    typer.echo(str(made.folder / "card.md"))
    if not made.complete:
        typer.echo("Incomplete: some responses have no future. The same command tries them again")
        raise typer.Exit(1)

"""`esc eval`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esc_env.cli import AgentOption, CriticOption, SeekerOption
from esc_env.evaluation.cli.table import one_line, print_table

if TYPE_CHECKING:
    from esc_env.evaluation.report import Report
    from esc_env.protocols import Usage

__all__ = ["command"]


class _CriticMode(StrEnum):
    VOTES = "votes"
    LOGPROBS = "logprobs"


class _Opening(StrEnum):
    SITUATION = "situation"
    SEEKER = "seeker"


class _Wire(StrEnum):
    AUTO = "auto"
    AIOHTTP = "aiohttp"
    OPENAI = "openai"
    LITELLM = "litellm"


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Let a file give what the command line does not; its agents and what chairs are asked go to `ctx.obj`."""
    from esc_env.evaluation.config import read_config

    if path is not None:
        asked = {"agent_options", "seeker_options", "critic_options"}
        typed = {"agent", "config", "agent_option", "seeker_option", "critic_option"}
        names = {str(param.name) for param in ctx.command.params} - typed
        said = ctx.obj = read_config(path, names | asked)
        ctx.default_map = {name: value for name, value in said.options.items() if name not in asked}
        if isinstance(said.options.get("scenarios"), str):
            ctx.default_map["scenarios"] = [said.options["scenarios"]]
    return path


def command(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A benchmark as a YAML file: agents with their options, and any other long option of this command; or "
            "the run.json of a run, to repeat it. What is typed here counts before it.",
            show_default=False,
            is_eager=True,
            callback=_read_config,
        ),
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(
            "--agent",
            "-a",
            help="The supporter: builtin:NAME; a chat model, PROVIDER/NAME[@URL][#STYLE] or local:PATH; or "
            "python:MODULE:NAME for your own function or object. Repeat it for several. Default: all builtin ones.",
            show_default=False,
        ),
    ] = None,
    scenarios: Annotated[
        list[str] | None,
        typer.Option(
            "--scenarios",
            "-s",
            help="Who is talked with: builtin:test, or a file of scenarios. Repeat it for several. "
            "Default: builtin:test.",
            show_default=False,
        ),
    ] = None,
    seeker: Annotated[
        str,
        typer.Option(
            help="Who plays the person with the problem: builtin, a chat model (PROVIDER/NAME[@URL], local:PATH), or "
            "python:MODULE:NAME."
        ),
    ] = "builtin",
    critic: Annotated[
        str,
        typer.Option(
            help="Who judges whether the problem is solved: builtin, a chat model (PROVIDER/NAME[@URL], local:PATH), "
            "or python:MODULE:NAME."
        ),
    ] = "builtin",
    persona: Annotated[
        str | None,
        typer.Option(
            help="How every seeker meets help: cooperative, guarded, resistant, drifting, pleasing or hostile. "
            "Default: as each scenario says.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many scenarios. Default: all.", show_default=False)
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Conversations per scenario, each with its own seed.")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same conversations (with builtin chairs).")] = 0,
    max_turns: Annotated[int, typer.Option(min=1, help="T: exchanges before a conversation counts as not solved.")] = 8,
    votes: Annotated[int, typer.Option(min=1, help="How often the critic is asked after every exchange.")] = 10,
    threshold: Annotated[
        float, typer.Option(min=-1, help="Solved when the critic's mean vote, from -1 to 1, is greater.")
    ] = 0.5,
    opening: Annotated[
        _Opening, typer.Option(help="A conversation begins with the situation as written, or the seeker tells it.")
    ] = _Opening.SITUATION,
    max_chars: Annotated[int, typer.Option(min=1, help="Longest reply of the supporter, in characters.")] = 8000,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder; with several agents or scenario sets, a folder that gets one subfolder per run. "
            "Default: runs/RUN_KEY.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; the run that is there is kept beside it as NAME~1.")
    ] = False,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress",
            help="Show a bar. Default: a bar in a terminal, else a line on stderr now and then.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of agents that are chat models.")] = 0.0,
    seeker_temperature: Annotated[float, typer.Option(min=0, help="Of a seeker that is a chat model.")] = 0.7,
    critic_temperature: Annotated[
        float, typer.Option(min=0, help="Of the votes of a critic that is a chat model.")
    ] = 1.1,
    agent_option: AgentOption = None,
    seeker_option: SeekerOption = None,
    critic_option: CriticOption = None,
    critic_mode: Annotated[
        _CriticMode,
        typer.Option(
            help="How a critic that is a chat model votes: ten sampled answers, or drawn from the log-probabilities of "
            "one."
        ),
    ] = _CriticMode.VOTES,
    concurrency: Annotated[
        int,
        typer.Option(min=1, help="Conversations held at the same time, and requests in flight per endpoint."),
    ] = 64,
    rpm: Annotated[
        int | None,
        typer.Option(min=1, help="Requests a minute per endpoint, at most.", show_default=False),
    ] = None,
    tpm: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens a minute per endpoint, at most.", show_default=False),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for one answer of a server, before it is asked again.")
    ] = 60.0,
    deadline: Annotated[
        float | None,
        typer.Option(help="Seconds for one call with all its retries. Default: 600.", show_default=False),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            help="Seconds for each run; what has not ended by then is dropped. The same command goes on.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Stop once this command has spent so much on models: '5 USD' or '200k tokens'. The same command with "
            "a larger one goes on.",
            show_default=False,
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Keep every request to a model and its answer in this file.", show_default=False),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Answer in the models' place from a recorded file; needs no key and no network. A request that is not "
            "there is an error.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Answer from this file what is there; ask for and keep the rest.", show_default=False),
    ] = None,
    wire: Annotated[
        _Wire,
        typer.Option(
            help="How requests travel. auto: aiohttp for openai/NAME and any @URL, LiteLLM for other providers."
        ),
    ] = _Wire.AUTO,
) -> None:
    """Benchmark agents: how many conversations they solve.

    Prints SR (share solved) with its 95 % interval, AT (average turns, a failure counting T), mean final score and
    errors, and keeps every conversation. The same command continues a run that was stopped, and tries conversations
    again that ended in an error.
    """
    from esc_env._loop import run
    from esc_env.agents.spec import builtin_names, resolve_agent
    from esc_env.evaluation.config import AgentConfig, Benchmark
    from esc_env.evaluation.runner import check_models, evaluate
    from esc_env.models import ModelOptions, ModelSettings, read_options
    from esc_env.progress import shown
    from esc_env.rules import Rules

    said: Benchmark = ctx.obj or Benchmark((), {})
    names = agent or ([] if said.agents else builtin_names())
    typed = str(getattr(ctx.get_parameter_source("temperature"), "name", "")) == "COMMANDLINE"
    common = {**said.options.get("agent_options", {}), **read_options(agent_option or (), "agent")}
    lineup = [
        AgentConfig(
            each.agent, temperature if typed or each.temperature is None else each.temperature,
            {**each.options, **common},
        )
        for each in ([AgentConfig(name) for name in names] or said.agents)
    ]  # fmt: skip
    seeker_options = {**said.options.get("seeker_options", {}), **read_options(seeker_option or (), "seeker")}
    critic_options = {**said.options.get("critic_options", {}), **read_options(critic_option or (), "critic")}
    models: ModelOptions = {
        "concurrency": concurrency, "requests_per_minute": rpm, "tokens_per_minute": tpm, "timeout": timeout,
        "deadline": deadline, "budget": budget, "record": record, "replay": replay, "cache": cache, "wire": wire.value,
    }  # fmt: skip
    settings = ModelSettings.of(models)
    supporters = [
        resolve_agent(each.agent, settings, temperature=each.temperature or 0.0, options=each.options)
        for each in lineup
    ]
    if len(supporters) > 1:  # what is wrong with the last one is told before the first one runs
        run(check_models(*supporters))
    sources = scenarios or ["builtin:test"]
    rules = Rules(max_turns, threshold, votes, critic_temperature, opening.value, max_chars)
    several = len(lineup) * len(sources) > 1
    complete = True
    for source in sources:
        reports: list[Report] = []
        resumed: dict[str, int | None] = {}
        for place, each in enumerate(lineup):
            name = each.agent
            again = sum(other.agent == name for other in lineup[:place])  # the same model, asked in another way
            mark = f"~{again + 1}" if again else ""
            folder = out / f"{_slug(name)}{mark}--{_slug(source)}" if out and several else out
            with shown(f"{name} on {source}", progress) as told:
                report = evaluate(
                    name, source, seeker=seeker, critic=critic, rules=rules, persona=persona, limit=limit,
                    trials=trials, seed=seed, out=folder, fresh=fresh, progress=told, critic_mode=critic_mode.value,
                    seeker_temperature=seeker_temperature, temperature=each.temperature or 0.0,
                    agent_options=each.options, seeker_options=seeker_options, critic_options=critic_options,
                    time_limit=time_limit, **models,
                )  # fmt: skip
            reports.append(report)
            resumed[report.run_key] = told.first.done if told.first else None
        _print_reports(source, reports, resumed)
        complete = complete and all(report.complete for report in reports)
    if not complete:
        raise typer.Exit(1)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


def _print_reports(source: str, reports: Sequence[Report], resumed: Mapping[str, int | None]) -> None:
    """The table, then whatever a reader must not overlook, then where it is kept."""
    _print_results(source, reports)
    for report in reports:
        if resumed[report.run_key] == report.episodes:
            typer.echo(f"{report.agent}: was complete; nothing was run. To start over, add --fresh")
        if report.supporter_failures:
            typer.echo(
                f"{report.agent}: failed in {report.supporter_failures:,} of {report.completed:,} conversations by "
                "itself; these count as not solved"
            )
        for line in report.warnings:
            typer.echo(f"{report.agent}: {line}")
        if report.usage.requests:
            typer.echo(f"{report.agent}: {_cost(report.usage)}")
        for role, message, count in report.failure_messages:
            typer.echo(f"{report.agent}: {count:,} × {role}: {one_line(message)}")
        missing = report.episodes - report.completed
        if missing:
            typer.echo(
                f"{report.agent}: incomplete, {missing:,} of {report.episodes:,} conversations have no outcome. "
                f"Counting errors as failures, SR is {_percent(report.success_rate_if_errors_failed)}. "
                "The same command tries them again"
            )
    for report in reports:
        typer.echo(f"{report.agent}: {report.folder / 'report.html'}")


def _cost(usage: Usage) -> str:
    tokens = f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens (prompt + completion)"
    cost = "cost unknown" if usage.cost is None else f"{usage.cost:,.2f} USD at list prices"
    answered = f", answered by {one_line(', '.join(usage.models))}" if usage.models else ""
    return f"{usage.requests:,} requests to models, {tokens}, {cost}{answered}"


def _print_results(source: str, reports: Sequence[Report]) -> None:
    from esc_env.evaluation.page import interval_text, number, percent

    columns = [("agent", False), *((name, True) for name in ("SR", "95 %", "AT", "score", "episodes", "errors"))]
    rows = [
        (
            report.agent, percent(report.success_rate), interval_text(report.interval), number(report.average_turns, 2),
            number(report.mean_score, 2, signed=True), f"{report.completed:,}", f"{report.errors:,}",
        )
        for report in reports
    ]  # fmt: skip
    print_table(source, columns, rows)


def _percent(rate: float | None) -> str:
    from esc_env.evaluation.page import percent

    return percent(rate)

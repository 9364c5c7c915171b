"""`esc eval`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from esc_env.cli_options import (
    AgentOptions,
    Critic,
    Limit,
    Models,
    Persona,
    Progress,
    Seeker,
    Temperature,
    Workers,
    grouped,
)
from esc_env.errors import SpecError

if TYPE_CHECKING:
    from esc_env.evaluation.runs.report import Report
    from esc_env.rules import Rules
from esc_env.evaluation.commands.beside import beside
from esc_env.evaluation.commands.printing import print_reports
from esc_env.evaluation.commands.tables import print_table

__all__ = ["eval_command"]


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Let a file give what the command line does not; its agents and what chairs are asked go to `ctx.obj`."""
    from esc_env.evaluation.runs.config import read_config

    if path is not None:
        asked = {"agent_options", "seeker_options", "critic_options"}
        typed = {"agent", "config", "agent_option", "seeker_option", "critic_option"}
        names = {str(param.name) for param in ctx.command.params} - typed
        said = ctx.obj = read_config(path, names | asked)
        ctx.default_map = {name: value for name, value in said.options.items() if name not in asked}
        if isinstance(said.options.get("scenarios"), str):
            ctx.default_map["scenarios"] = [said.options["scenarios"]]
    return path


@grouped
def eval_command(
    ctx: typer.Context,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A benchmark as a YAML file: agents with their options, and any other long option of this command; or "
            "the run.json of a run, to repeat it. What is typed here counts before it.",
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
        ),
    ] = None,
    scenarios: Annotated[
        list[str] | None,
        typer.Option(
            "--scenarios",
            "-s",
            help="Who is talked with: builtin:test, or a file of scenarios; some of them only: "
            "'builtin:test?emotion=anger'. Repeat it for several. Default: builtin:test.",
        ),
    ] = None,
    temperature: Temperature = 0.0,
    agent_options: AgentOptions,
    seeker: Seeker,
    critic: Critic,
    persona: Persona = None,
    limit: Limit = None,
    trials: Annotated[int, typer.Option(min=1, help="Conversations per scenario, each with its own seed.")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same conversations (with builtin chairs).")] = 0,
    max_turns: Annotated[
        int, typer.Option(min=1, help="T: turns after which a conversation counts as not solved.")
    ] = 8,
    votes: Annotated[int, typer.Option(min=1, help="How many votes the critic gives after every turn.")] = 10,
    threshold: Annotated[
        float, typer.Option(min=-1, help="Solved when the critic's mean vote, from -1 to 1, is greater.")
    ] = 0.5,
    opening: Annotated[
        Literal["situation", "seeker"],
        typer.Option(help="A conversation begins with the situation as written, or the seeker tells it."),
    ] = "situation",
    max_chars: Annotated[int, typer.Option(min=1, help="Longest reply of the supporter, in characters.")] = 8000,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder; with several agents or scenario sets, a folder that gets one subfolder per run. "
            "Default: runs/RUN_KEY."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; the run that is there is kept beside it as NAME~1.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Hold only a part: 3/16 is the third of sixteen, in a folder beside the run's, NAME-shard-3-of-16; "
            "/16 or auto/16 the one that SLURM_ARRAY_TASK_ID says, of --array=1-16. `esc merge` makes the run of them."
        ),
    ] = None,
    progress: Progress = None,
    view: Annotated[
        bool,
        typer.Option(
            "--view",
            help="Follow the run in the browser, in a process that only reads: end it, and the run goes on. The page "
            "stays after the run until Ctrl-C; report.html in the run's folder is for later. Needs the extra 'web'.",
        ),
    ] = False,
    time_limit: Annotated[
        float | None,
        typer.Option(help="Seconds for each run; what goes on then is cut off. The same command goes on from there."),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Run nothing: say how many scenarios and trials --precision or --difference takes, and costs.",
        ),
    ] = False,
    precision: Annotated[
        float | None, typer.Option(help="With --plan: wanted half-width of the 95 % interval of SR, in points.")
    ] = None,
    difference: Annotated[
        float | None,
        typer.Option(help="With --plan: wanted difference of two agents' SR, in points, shown four times in five."),
    ] = None,
    icc: Annotated[
        float, typer.Option(help="With --plan: how alike trials of one scenario are, from 0 (not at all) to 1.")
    ] = 0.5,
    models: Models,
    backend: Workers,
) -> None:
    """Benchmark agents: how many conversations they solve.

    Prints which share of all conversations was solved, and of those with an outcome (the success rate, SR, with its
    95 % interval); the average number of turns (AT; one that is not solved counts T); and the critic's mean last
    score, from -1 to 1. Keeps every conversation. The same command goes on with a run that was stopped, and with
    conversations that broke off since a model call failed.
    """
    from esc_env.agents.spec import builtin_names, resolve_agent
    from esc_env.background import run
    from esc_env.evaluation.pages.run import run_pages, write_pages
    from esc_env.evaluation.runs.config import AgentConfig, Benchmark
    from esc_env.evaluation.runs.holding import check_models
    from esc_env.evaluation.runs.runner import evaluate
    from esc_env.evaluation.runs.shards import TASK, Shard
    from esc_env.progress import shown
    from esc_env.rules import Rules

    said: Benchmark = ctx.obj or Benchmark((), {})
    names = agent or ([] if said.agents else builtin_names())
    typed = str(getattr(ctx.get_parameter_source("temperature"), "name", "")) == "COMMANDLINE"
    common = {**said.options.get("agent_options", {}), **agent_options}
    lineup = [
        AgentConfig(
            each.agent, temperature if typed or each.temperature is None else each.temperature,
            {**each.options, **common},
        )
        for each in ([AgentConfig(name) for name in names] or said.agents)
    ]  # fmt: skip
    sources = scenarios or ["builtin:test"]
    rules = Rules(max_turns, threshold, votes, opening, max_chars)
    chairs = {**seeker, **critic}
    if plan:
        _print_plan([each.agent for each in lineup], sources, chairs, rules, limit, precision, difference, icc)
        return
    if precision is not None or difference is not None:
        raise SpecError("--precision and --difference belong to a plan; add --plan, or leave them out to run")
    for name in ("seeker_options", "critic_options"):
        chairs[name] = {**said.options.get(name, {}), **chairs[name]}
    supporters = [
        resolve_agent(each.agent, models, temperature=each.temperature or 0.0, options=each.options) for each in lineup
    ]
    several = len(lineup) * len(sources) > 1
    complete = True
    home = out or Path("runs")
    part = None if shard is None else Shard.asked(shard)
    if part:
        home = part.beside(home) if out and not several else home
        if shard != str(part):
            typer.echo(f"{part.name}: {TASK} is {part.number}, and tasks count from 1 (--array=1-{part.of})", err=True)
    with beside(home, "" if several else "now/") if view else nullcontext():
        if len(supporters) > 1:  # what is wrong with the last one is told before the first one runs
            run(check_models(*supporters))
        for source in sources:
            reports: list[Report] = []
            resumed: dict[str, int | None] = {}
            pages: dict[str, Path] = {}
            for place, each in enumerate(lineup):
                name = each.agent
                again = sum(other.agent == name for other in lineup[:place])  # the same model, asked in another way
                mark = f"~{again + 1}" if again else ""
                folder = out / f"{_slug(name)}{mark}--{_slug(source)}" if out and several else out
                with shown(f"{name} on {source}{f', {part.name}' if part else ''}", progress) as told:
                    report = evaluate(
                        name, source, **chairs, rules=rules, persona=persona, limit=limit, trials=trials, seed=seed,
                        out=folder, fresh=fresh, shard=shard, progress=told, temperature=each.temperature or 0.0,
                        agent_options=each.options, time_limit=time_limit, backend=backend, **asdict(models),
                    )  # fmt: skip
                reports.append(report)
                resumed[report.run_key] = told.first.done if told.first else None
                pages[report.run_key] = write_pages(run_pages(report), report.folder)
            print_reports(source, reports, resumed, pages)
            complete = complete and all(report.completed == report.due for report in reports)
    if not complete:
        raise typer.Exit(1)


def _print_plan(
    agents: Sequence[str],
    sources: Sequence[str],
    chairs: Mapping[str, Any],
    rules: Rules,
    limit: int | None,
    precision: float | None,
    difference: float | None,
    icc: float,
) -> None:
    """A table for each agent and scenario set, and what was assumed."""
    from esc_env.data.datasets import load_scenarios
    from esc_env.evaluation.runs.plan import TOGETHER, designs, expected_usage

    nearness, apart = (None if points is None else points / 100 for points in (precision, difference))
    chosen = designs(precision=nearness, difference=apart, icc=icc)
    goal = f"an SR to ±{precision:g} points" if precision is not None else f"a difference of {difference:g} points"
    columns = [(name, True) for name in ("trials", "scenarios", "conversations", "requests", "tokens", "US dollars")]
    for source in sources:
        people = load_scenarios(source)[:limit]
        for agent in agents:
            asked = {"supporter": agent, "seeker": chairs["seeker"], "critic": chairs["critic"]}
            each = expected_usage(asked, people[0], rules, chairs["critic_mode"])
            rows = []
            for design in chosen:
                many = design.conversations
                costs = ("unknown",) * 3
                if each is not None:
                    dollars = "unknown" if each.cost is None else f"{many * each.cost:,.2f}"
                    tokens = many * (each.prompt_tokens + each.completion_tokens)
                    costs = (f"{many * each.requests:,}", f"{tokens:,}", dollars)
                more = "" if design.scenarios <= len(people) else " *"
                rows.append((f"{design.trials}", f"{design.scenarios:,}{more}", f"{many:,}", *costs))
            print_table(f"{agent} on {source}: {goal}", columns, rows)
        if any(design.scenarios > len(people) for design in chosen):
            typer.echo(f"* more than the {len(people):,} of {source}; more trials alone do not make up for people")
    typer.echo(
        "At most, for each agent: no conversation is solved before its last turn, and texts have typical lengths "
        "(docs/costs.md). Thinking is not counted. A price that is not known is unknown, never 0."
    )
    both = (
        ""
        if precision is not None
        else f", and what is hard for one agent is hard for the other (correlation {TOGETHER:g})"
    )
    typer.echo(f"Assumed: rates near 50 %, where most is needed; trials of one scenario alike (ICC {icc:g}){both}.")


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text.replace("!=", "-not-")).strip("-.")

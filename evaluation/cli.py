"""`esc eval` and `esc leaderboard`, and where `esc judge`, `esc rejudge` and `esc validate` are added."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from esc_env.cli_options import AgentOptions, Critic, Limit, Models, Persona, Progress, Seeker, Temperature, grouped
from esc_env.errors import RecordError
from esc_env.escaping import one_line
from esc_env.evaluation.cli_judge import judge, rejudge
from esc_env.evaluation.cli_validate import app as validate

if TYPE_CHECKING:
    from esc_env.evaluation.report import Report
    from esc_env.protocols import Usage

__all__ = ["print_table", "register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `esc`."""
    app.command("eval")(_eval)
    app.command("leaderboard")(_leaderboard)
    app.command("judge")(judge)
    app.command("rejudge")(rejudge)
    app.add_typer(validate, name="validate")


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


@grouped
def _eval(
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
            help="Who is talked with: builtin:test, or a file of scenarios. Repeat it for several. "
            "Default: builtin:test.",
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
    max_turns: Annotated[int, typer.Option(min=1, help="T: exchanges before a conversation counts as not solved.")] = 8,
    votes: Annotated[int, typer.Option(min=1, help="How often the critic is asked after every exchange.")] = 10,
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
    progress: Progress = None,
    time_limit: Annotated[
        float | None,
        typer.Option(help="Seconds for each run; what has not ended by then is dropped. The same command goes on."),
    ] = None,
    models: Models,
) -> None:
    """Benchmark agents: how many conversations they solve.

    Prints SR (share solved) with its 95 % interval, AT (average turns, a failure counting T), mean final score and
    errors, and keeps every conversation. The same command continues a run that was stopped, and tries conversations
    again that ended in an error.
    """
    from esc_env.agents.spec import builtin_names, resolve_agent
    from esc_env.background import run
    from esc_env.evaluation.config import AgentConfig, Benchmark
    from esc_env.evaluation.holding import check_models
    from esc_env.evaluation.runner import evaluate
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
    chairs = {**seeker, **critic}
    for name in ("seeker_options", "critic_options"):
        chairs[name] = {**said.options.get(name, {}), **chairs[name]}
    supporters = [
        resolve_agent(each.agent, models, temperature=each.temperature or 0.0, options=each.options) for each in lineup
    ]
    if len(supporters) > 1:  # what is wrong with the last one is told before the first one runs
        run(check_models(*supporters))
    sources = scenarios or ["builtin:test"]
    rules = Rules(max_turns, threshold, votes, opening, max_chars)
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
                    name, source, **chairs, rules=rules, persona=persona, limit=limit, trials=trials, seed=seed,
                    out=folder, fresh=fresh, progress=told, temperature=each.temperature or 0.0,
                    agent_options=each.options, time_limit=time_limit, **asdict(models),
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
    from esc_env.evaluation.report import percent

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
                f"Counting errors as failures, SR is {percent(report.success_rate_if_errors_failed)}. "
                "The same command tries them again"
            )
    for report in reports:
        typer.echo(f"{report.agent}: {report.folder / 'report.html'}")


def _cost(usage: Usage) -> str:
    tokens = f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens (prompt + completion)"
    cost = "cost unknown" if usage.cost is None else f"{usage.cost:,.2f} USD at list prices"
    answered = f", answered by {one_line(', '.join(usage.models))}" if usage.models else ""
    return f"{usage.requests:,} requests to models, {tokens}, {cost}{answered}"


def print_table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. A narrow terminal gets it without lines and with names folded; no number is ever cut.

    Args:
        title: stands above it.
        columns: name, and whether it holds numbers; other text may be folded.
        rows: one text per column, shown as it is.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from esc_env.progress import WIDTH

    cells = [[name for name, _ in columns], *rows]
    table = Table(title=Text(title), title_justify="left")
    least = 0
    for (name, numbers), column in zip(columns, zip(*cells, strict=True), strict=True):
        widest = max(map(cell_len, column))
        needed = widest if numbers else min(widest, 8)
        how: dict[str, Any] = {"justify": "right", "no_wrap": True} if numbers else {"overflow": "fold"}
        table.add_column(name, min_width=needed, **how)
        least += needed
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    if least + 3 * len(columns) + 1 > width:
        table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
        width = max(width, least + len(columns) - 1)
    page = Console(file=sys.stdout, highlight=False, width=width, height=24)  # dumb ones too
    page.print(table)


def _print_results(source: str, reports: Sequence[Report]) -> None:
    from esc_env.evaluation.report import FIGURES, figures

    columns = [("agent", False), *((name, True) for name in (*FIGURES, "episodes", "errors"))]
    rows = [(report.agent, *figures(report), f"{report.completed:,}", f"{report.errors:,}") for report in reports]
    print_table(source, columns, rows)


def _leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs, such as runs/.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Also write leaderboard.md, leaderboard.json and leaderboard.html into this folder."),
    ] = None,
) -> None:
    """Rank runs that faced the same thing.

    Complete runs are ranked by SR; incomplete ones are listed apart. Runs with another fingerprint (scenarios, persona,
    seeker, critic, seed, …) are refused, naming what differs.
    """
    from esc_env.evaluation.leaderboard import rank
    from esc_env.evaluation.report import FIGURES, figures
    from esc_env.records import write_json, write_text

    board = rank(runs)
    columns = [("#", False), ("agent", False), *((name, True) for name in (*FIGURES, "episodes"))]
    rows = [
        (entry.mark, board.label(entry.report), *figures(entry.report), f"{entry.report.completed:,}")
        for entry in board.entries
    ]
    if board.entries:
        print_table(f"Leaderboard: {board.scenarios}", columns, rows)
    else:
        typer.echo("No complete run yet.")
    for note in board.notes():
        typer.echo(one_line(note))
    if out:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RecordError(f"{out}: is a file; give a folder with --out") from None
        write_text(out / "leaderboard.md", board.to_markdown())
        write_text(out / "leaderboard.html", board.to_html())
        write_json(out / "leaderboard.json", board.to_json())
        typer.echo(f"Written: {out / 'leaderboard.html'}, leaderboard.md, leaderboard.json")

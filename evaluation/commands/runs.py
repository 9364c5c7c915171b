"""`esc eval`, `esc leaderboard`, `esc compare` and `esc wording`, and where the other commands on runs are added."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from esc_env.cli_options import AgentOptions, Critic, Limit, Models, Persona, Progress, Seeker, Temperature, grouped
from esc_env.errors import RecordError, SpecError
from esc_env.escaping import one_line
from esc_env.evaluation.commands.judge import judge, rejudge
from esc_env.evaluation.commands.robustness import app as robustness
from esc_env.evaluation.commands.validate import app as validate

if TYPE_CHECKING:
    from esc_env.evaluation.runs.report import Report
    from esc_env.protocols import Usage
    from esc_env.rules import Rules

__all__ = ["print_table", "register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `esc`."""
    app.command("eval")(_eval)
    app.add_typer(_leaderboard, name="leaderboard")
    app.command("compare")(_compare)
    app.command("report")(_report)
    app.command("wording")(_wording)
    app.command("judge")(judge)
    app.command("rejudge")(rejudge)
    app.command("import")(_import)
    app.add_typer(validate, name="validate")
    app.add_typer(robustness, name="robustness")


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
) -> None:
    """Benchmark agents: how many conversations they solve.

    Prints the share solved of all conversations and of those with an outcome (SR, with its 95 % interval), AT (average
    turns, a failure counting T) and mean final score, and keeps every conversation. The same command continues a run
    that was stopped, and conversations that ended in an error from where they broke off.
    """
    from esc_env.agents.spec import builtin_names, resolve_agent
    from esc_env.background import run
    from esc_env.evaluation.runs.config import AgentConfig, Benchmark
    from esc_env.evaluation.runs.holding import check_models
    from esc_env.evaluation.runs.runner import evaluate
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
        raise SpecError("--precision and --difference are wishes for a plan; add --plan, or leave them away to run")
    for name in ("seeker_options", "critic_options"):
        chairs[name] = {**said.options.get(name, {}), **chairs[name]}
    supporters = [
        resolve_agent(each.agent, models, temperature=each.temperature or 0.0, options=each.options) for each in lineup
    ]
    if len(supporters) > 1:  # what is wrong with the last one is told before the first one runs
        run(check_models(*supporters))
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
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


def _print_reports(source: str, reports: Sequence[Report], resumed: Mapping[str, int | None]) -> None:
    """The table, then whatever a reader must not overlook, then where it is kept."""
    from esc_env.evaluation.runs.report import percent, success_text

    _print_results(source, reports)
    for report in reports:
        if resumed.get(report.run_key) == report.episodes:
            typer.echo(f"{report.agent}: was complete; nothing was run. To start over, add --fresh")
        if report.supporter_failures:
            typer.echo(
                f"{report.agent}: failed in {report.supporter_failures:,} of {report.completed:,} conversations by "
                "itself; these count as not solved"
            )
        for line in report.warnings:
            typer.echo(f"{report.agent}: {line}")
        if report.usage.requests:
            typer.echo(f"{report.agent}: {_cost(report.usage, len(report.trajectories), report.seconds)}")
        if report.safety:
            typer.echo(f"{report.agent}: safety, {report.safety}")
        if len(sure := report.course.pass_hat) > 1:
            typer.echo(f"{report.agent}: solved in all of {len(sure)} trials (pass^{len(sure)}): {percent(sure[-1])}")
        for role, message, count in report.failure_messages:
            typer.echo(f"{report.agent}: {count:,} × {role}: {one_line(message)}")
        missing = report.episodes - report.completed
        if missing:
            typer.echo(
                f"{report.agent}: incomplete, {missing:,} of {report.episodes:,} conversations have no outcome "
                f"({report.errors:,} ended in an error). Solved: {success_text(report)}. "
                "The same command goes on where they broke off"
            )
    for report in reports:
        typer.echo(f"{report.agent}: {report.folder / 'report.html'}")


def _cost(usage: Usage, conversations: int, seconds: float | None) -> str:
    tokens = f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens (prompt + completion)"
    cost = "cost unknown" if usage.cost is None else f"{usage.cost:,.2f} USD at list prices"
    answered = f", answered by {one_line(', '.join(usage.models))}" if usage.models else ""
    each = f"; a conversation took {usage.requests / conversations:,.1f} requests"
    each += "" if seconds is None else f" and {seconds:,.1f} s"
    return f"{usage.requests:,} requests to models, {tokens}, {cost}{answered}{each}"


def _compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; all others are compared with the first.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare runs that faced different things; everything printed says so.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead.")] = False,
) -> None:
    """Say whether one agent solves more than another, and how sure that is.

    Pairs conversations by scenario and trial. Prints the difference of SR with its 95 % interval, p-values (exact
    McNemar; permutation of whole scenarios; Holm over several runs), the smallest difference that would have shown, and
    a sentence in plain words. Runs with different fingerprints are refused, naming what differs.
    """
    from esc_env.evaluation.ranking.comparison import COLUMNS, compare
    from esc_env.evaluation.ranking.leaderboard import find_runs

    if as_json and as_markdown:
        raise SpecError("--json and --markdown exclude each other; give one of them")
    compared = compare(find_runs(runs), anyway=anyway)
    if as_json:
        typer.echo(json.dumps(compared.to_json(), ensure_ascii=False))
    elif as_markdown:
        typer.echo(compared.to_markdown(), nl=False)
    else:
        stamp, *notes = compared.notes if compared.mismatch else ["", *compared.notes]
        if stamp:
            typer.echo(one_line(stamp))
        columns = [(name, place > 0) for place, name in enumerate(COLUMNS)]
        print_table(f"Differences on {compared.scenarios}", columns, compared.rows())
        for line in (*(each.sentence for each in compared.differences), *notes):
            typer.echo(one_line(line))


def _wording(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs, such as runs/.")],
    human: Annotated[
        str | None,
        typer.Option(
            help="Scenarios with the human conversations they were taken from, such as esconv:test: also print how "
            "much the replies are like the human supporter's (sacreBLEU, ROUGE-L)."
        ),
    ] = None,
    bertscore: Annotated[
        str | None, typer.Option(help="With --human: also BERTScore by this model, such as roberta-large.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Describe what supporters wrote: length, variety, repetition, questions, and what sentences do.

    Describes replies, not how good they are. Moves are those that the builtin classifier reads.
    """
    from esc_env.data.datasets import load_scenarios
    from esc_env.evaluation.ranking.leaderboard import find_runs
    from esc_env.evaluation.runs.runner import read_run
    from esc_env.evaluation.runs.wording import TABLE, likeness

    if bertscore and not human:
        raise SpecError("--bertscore compares with human replies: name scenarios that hold them with --human")
    reports = [read_run(folder) for folder in find_runs(runs)]
    known = {person.id: person.dialogue for person in load_scenarios(human)} if human else None
    alike = [likeness(report.trajectories, known, bertscore) for report in reports] if known is not None else []
    if as_json:
        lines = [
            {
                "run": str(report.folder), "agent": report.agent,
                "wording": asdict(report.wording) if report.wording else None,
                **({"likeness": asdict(alike[place])} if alike else {}),
            }
            for place, report in enumerate(reports)
        ]  # fmt: skip
        typer.echo(json.dumps({"runs": lines}, ensure_ascii=False))
        return
    said = [(report.agent, report.wording) for report in reports if report.wording]
    columns = [("agent", False), *((name, True) for name in TABLE)]
    print_table("Wording", columns, [(name, *(show(each) for show in TABLE.values())) for name, each in said])
    for name, each in said:
        if not each.moves:
            continue  # said nothing
        moves = ", ".join(f"{move.replace('_', ' ')} {100 * share:.0f} %" for move, share in each.moves.items())
        typer.echo(f"{name}, sentences as the builtin move classifier reads them: {moves}")
    if alike:
        columns = [("agent", False), *((name, True) for name in ("replies", "sacreBLEU", "ROUGE-L", "BERTScore"))]
        rows = [
            (
                report.agent, f"{each.replies:,}", f"{each.bleu:.1f}", f"{each.rouge_l:.3f}",
                "–" if each.bertscore is None else f"{each.bertscore:.3f}",
            )
            for report, each in zip(reports, alike, strict=True)
        ]  # fmt: skip
        print_table(f"Likeness to the human supporter of {human}", columns, rows)
        typer.echo(f"sacreBLEU {alike[0].bleu_signature}")


def print_table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. Where it is too wide, headings are broken, then lines left out, then names folded; numbers never.

    Args:
        title: stands above it.
        columns: name, and whether it holds numbers; other text may be folded.
        rows: one text per column, shown on one line: a file of somebody else's may have named what they tell of.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from esc_env.progress import WIDTH

    cells = [[one_line(cell) for cell in row] for row in rows]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH

    def longest(texts: Iterable[str]) -> int:
        return max(map(cell_len, texts), default=1)

    def needed(place: int, whole: bool, most: int) -> int:
        """Columns for numbers and their heading, whole or by words; for other texts those of the longest word."""
        (name, numbers), texts = columns[place], [row[place] for row in cells]
        if numbers:
            return max(longest([name] if whole else name.split()), longest(texts))
        return min(longest(word for text in (name, *texts) for word in text.split()), most)

    for lines, whole, most in ((True, True, 24), (True, False, 24), (False, False, 24), (False, False, 8)):
        least = [needed(place, whole, most) for place in range(len(columns))]
        room = sum(least) + (3 * len(columns) + 1 if lines else len(columns) - 1)
        if room <= width:
            break
    table = Table(title=Text(one_line(title)), title_justify="left")
    if not lines:
        table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
    for (name, numbers), narrow in zip(columns, least, strict=True):
        how: dict[str, Any] = {"justify": "right", "no_wrap": True} if numbers else {"overflow": "fold"}
        heading = name if whole or not numbers else textwrap.fill(name, narrow, break_long_words=False)
        table.add_column(Text(heading), min_width=narrow, **how)
    for row in cells:
        table.add_row(*map(Text, row))
    width = max(width, room)
    page = Console(file=sys.stdout, highlight=False, width=width, height=24)  # dumb ones too
    page.print(table)


def _print_results(source: str, reports: Sequence[Report]) -> None:
    from esc_env.evaluation.runs.report import FIGURES, figures

    columns = [("agent", False), *((name, True) for name in (*FIGURES, "ended"))]
    rows = [(report.agent, *figures(report), f"{report.completed:,}/{report.episodes:,}") for report in reports]
    print_table(source, columns, rows)


class _Leaderboard(typer.core.TyperGroup):
    """`esc leaderboard runs/` is `esc leaderboard rank runs/`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["rank", *args]
        return super().parse_args(ctx, args)


_leaderboard = typer.Typer(
    cls=_Leaderboard,
    no_args_is_help=True,
    help="Rank runs that faced the same thing, check whether they happened as they say, send one to somebody.",
)

_Replay = Annotated[
    Path | None,
    typer.Option(help="The file in which the runs' chat models were recorded (--record); they are asked again there."),
]


@_leaderboard.command("rank")
def _rank(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, folders that hold runs, such as runs/, or files that `submit` wrote."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Also write leaderboard.md, leaderboard.json and leaderboard.html into this folder."),
    ] = None,
    replay: _Replay = None,
    progress: Progress = None,
) -> None:
    """Rank runs that faced the same thing; `esc leaderboard runs/` is enough.

    Complete runs are ranked by SR; incomplete ones are listed apart, and so are those that contradict themselves or
    what comes out when embedded chairs are asked again. Runs with another fingerprint (scenarios, persona, seeker,
    critic, seed, …) are refused, naming what differs.
    """
    from esc_env.evaluation.imports import is_import
    from esc_env.evaluation.ranking.leaderboard import find_runs, rank
    from esc_env.evaluation.runs.report import FIGURES, figures
    from esc_env.progress import shown
    from esc_env.records import write_json, write_text

    folders = find_runs(runs)
    if folders and all(map(is_import, folders)):
        _print_imports(folders)
        return
    with shown("Checking", progress) as told:
        board = rank(runs, replay=replay, progress=told)
    columns = [("#", False), ("agent", False), *((name, True) for name in FIGURES), ("standing", False)]
    rows = [(entry.mark, board.label(entry.report), *figures(entry.report), entry.standing) for entry in board.entries]
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


@_leaderboard.command("verify")
@grouped
def _verify(
    run: Annotated[Path, typer.Argument(help="A run folder, or a file that `submit` wrote.")],
    *,
    rejudge: Annotated[
        int, typer.Option(min=0, help="Ask the critic again about so many verdicts, drawn at random; name it below.")
    ] = 0,
    sample_seed: Annotated[int | None, typer.Option(help="Of that draw. Default: one that nobody can foresee.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write what was found as JSON into this file.")] = None,
    progress: Progress = None,
    critic: Critic,
    models: Models,
) -> None:
    """Check whether a run happened as it says.

    Its numbers are counted again, its records held against its own rules, seeds and scenarios, and everything that can
    be is asked again: embedded seekers, critics and agents; chat models in the file that recorded them (--replay); a
    critic that is a chat model about a sample (--rejudge 20 --critic NAME). Exit code 1 where something contradicts it.
    """
    from esc_env.chairs.critics import resolve_critic
    from esc_env.evaluation.ranking.verify import STANDINGS, verify
    from esc_env.evaluation.runs.report import success_text
    from esc_env.progress import shown
    from esc_env.records import write_json

    again = None
    if rejudge:
        again = resolve_critic(
            critic["critic"], replace(models, replay=None), mode=critic["critic_mode"],
            temperature=critic["critic_temperature"], options=critic["critic_options"],
        )  # fmt: skip
    with shown("Checking", progress) as told:
        found = verify(run, replay=models.replay, rejudge=rejudge, critic=again, seed=sample_seed, progress=told)
    for line in found.contradictions:
        typer.echo(f"{run}: {one_line(line)}")
    for line in found.notes:
        typer.echo(f"{run}: {one_line(line)}")
    if found.spot_check:
        typer.echo(f"{run}: {found.spot_check}")
    one = found.report
    typer.echo(
        f"{run}: solved {success_text(one)}; {one.completed:,} of {one.episodes:,} conversations have an outcome"
    )
    counts = ", ".join(f"{count:,} of the {role}" for role, count in found.replayed.items())
    if counts:
        typer.echo(f"{run}: asked again, lines or verdicts: {counts}")
    told_of = STANDINGS.get(found.standing, "it did not happen as it says")
    typer.echo(f"{run}: {found.standing} ({told_of})")
    if out:
        write_json(out, found.to_json())
    if found.contradictions:
        raise typer.Exit(1)


@_leaderboard.command("submit")
def _submit(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="The file, or a folder for RUN_KEY.jsonl.")] = Path(),
) -> None:
    """Write a run as one file that others can verify and rank (docs/submission.schema.json says what is in it)."""
    from esc_env.evaluation.ranking.submission import submit
    from esc_env.evaluation.ranking.verify import verify

    found = verify(run)
    if found.contradictions:
        raise RecordError(f"{run}: {found.contradictions[0]}. Look with: esc leaderboard verify {run}")
    if not found.report.complete:
        typer.echo(f"{run}: incomplete, {found.report.completed:,} of {found.report.episodes:,} have an outcome")
    typer.echo(f"{submit(run, out)}: {found.standing}")


def _report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs or of imported conversations, or folders that hold such.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Also write report.json and report.html of the only run into this folder.")
    ] = None,
) -> None:
    """Count runs, and imported conversations, afresh from what is kept; nothing in their folders is changed.

    Runs need not be complete, nor have faced the same thing: nothing is ranked.
    """
    from esc_env.evaluation.imports import is_import
    from esc_env.evaluation.ranking.leaderboard import find_runs
    from esc_env.evaluation.runs.runner import read_run, write_report

    folders = find_runs(runs)
    if out and (len(folders) > 1 or is_import(folders[0])):
        raise SpecError("--out writes the pages of one run; name one")
    for folder in folders:
        if is_import(folder):
            _print_imports([folder])
            continue
        report = read_run(folder)
        if out:
            out.mkdir(parents=True, exist_ok=True)
            write_report(report, out)
        _print_reports(report.scenarios, [report], {})


def _import(
    file: Annotated[Path, typer.Argument(help="The file; packed ones too.")],
    out: Annotated[Path, typer.Option(help="The folder to keep them in.")],
    source: Annotated[
        str | None,
        typer.Option(help="sage, ppdpp, esc-eval, tau2, chat or sharegpt. Default: what the file's content says."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the supporter. Default: the file's name.")] = None,
) -> None:
    """Read other people's conversations, so that they can be reported, judged and ranked (docs/imports.md).

    Kinds: SAGE's results, PPDPP's records, ESC-Eval's results, τ²-bench's results, OpenAI-style chat lines, ShareGPT.
    What was measured in them is kept in its own scale.
    """
    from esc_env.evaluation.imports import import_file

    import_file(file, out, source=source, agent=name)
    _print_imports([out])


def _print_imports(folders: Sequence[Path]) -> None:
    from esc_env.evaluation.imports import read_import, together
    from esc_env.evaluation.runs.report import number

    reports = together([read_import(folder) for folder in folders])
    first = reports[0]
    columns = [("agent", False), ("conversations", True), ("turns", True)]
    if measure := first.measure:
        columns += [(measure.name, True), ("95 %", True)]
        columns += [(f"≥ {measure.success:g}", True)] if measure.success is not None else []
        columns += [(f"< {measure.failure:g}", True)] if measure.failure is not None else []
    rows = []
    for report in reports:
        cells = [report.agent, f"{report.conversations:,}", number(report.turns, 2)]
        if measure:
            low, high = report.interval or (None, None)
            cells += [number(report.mean, 2), f"{number(low, 1)} to {number(high, 1)}"]
            cells += [f"{count:,}" for count in (report.succeeded, report.failed) if count is not None]
        rows.append(cells)
    scale = f", {measure.name} from {measure.low:g} to {measure.high:g}" if measure and measure.low is not None else ""
    print_table(f"{first.source}: {first.scenarios}{scale}", columns, rows)
    typer.echo("Held and measured elsewhere, in the source's own scale: not to be compared with SR or scores of ours.")

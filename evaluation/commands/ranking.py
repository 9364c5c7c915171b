"""`esc leaderboard` and `esc compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esc_env.cli_options import Critic, Models, Progress, grouped
from esc_env.errors import RecordError, SpecError
from esc_env.escaping import one_line
from esc_env.evaluation.commands.printing import print_imports
from esc_env.evaluation.commands.tables import print_table
from esc_env.evaluation.commands.usual import usually

if TYPE_CHECKING:
    from esc_env.evaluation.ranking.leaderboard import Leaderboard

__all__ = ["compare", "leaderboard"]


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; all others are compared with the first.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare runs that faced different things; everything printed says so.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write pages into this folder: the first two runs' conversations side by side."),
    ] = None,
) -> None:
    """Say whether one agent solves more than another, and how sure that is.

    Pairs conversations by scenario and trial. Prints the difference of success rates with its 95 % interval, p-values
    (exact McNemar; permutation of whole scenarios; Holm over several runs; docs/results.md explains them), the smallest
    difference that would have shown, and a sentence in plain words. Runs that faced different things (their
    fingerprints differ) are refused, naming what differs.
    """
    from esc_env.evaluation.ranking.comparison import COLUMNS, compare
    from esc_env.evaluation.ranking.leaderboard import find_runs
    from esc_env.evaluation.runs.runner import read_run

    if as_json and as_markdown:
        raise SpecError("--json and --markdown exclude each other; give one of them")
    reports = [read_run(folder) for folder in find_runs(runs)]
    compared = compare(reports, anyway=anyway)
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
    if out:
        from esc_env.evaluation.pages.compare import compare_pages
        from esc_env.records import write_text

        first, second, *_ = reports
        _make(out)
        for name, page in compare_pages(first, second, anyway=anyway):
            write_text(out / name, page)
        typer.echo(f"Written: {out / 'compare.html'}", err=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RecordError(f"{folder}: is a file; give a folder with --out") from None


leaderboard = typer.Typer(
    cls=usually("rank"),
    no_args_is_help=True,
    help="Rank runs that faced the same thing, check whether they happened as they say, send one to somebody.",
)


_Replay = Annotated[
    Path | None,
    typer.Option(help="The file in which the runs' chat models were recorded (--record); they are asked again there."),
]


@leaderboard.command("rank")
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
    judged: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of `esc judge … --mode safety`, whose marks are shown too. Repeat it for several."),
    ] = None,
    progress: Progress = None,
) -> None:
    """Rank runs that faced the same thing; `esc leaderboard runs/` is enough.

    Complete runs are ranked by success rate (SR). Listed apart are incomplete ones, those that cannot be read, and
    those that contradict themselves or what builtin seekers, critics and agents answer when they are asked again.
    Runs that faced something else (scenarios, persona, seeker, critic, seed, …: their fingerprint differs) are
    refused, naming what differs; with --out they are ranked in a table of their own.
    """
    from esc_env.evaluation.imports import is_import
    from esc_env.evaluation.ranking.leaderboard import find_runs, rank, rank_each
    from esc_env.progress import shown
    from esc_env.records import write_json, write_text

    folders = find_runs(runs)
    try:
        imported = all(map(is_import, folders))
    except RecordError:  # one is damaged, and listed apart
        imported = False
    if imported:
        print_imports(folders)
        return
    with shown("Checking", progress) as told:
        if out:
            boards = rank_each(runs, replay=replay, judged=judged or (), progress=told)
        else:
            boards = [rank(runs, replay=replay, judged=judged or (), progress=told)]
    for board in boards:
        if told_apart := board.differs(boards[0]):
            typer.echo(one_line(told_apart))
        _print_board(board)
    if out:
        from esc_env.evaluation.pages import markdown
        from esc_env.evaluation.pages.leaderboard import leaderboard_pages

        _make(out)
        tables = [board.to_markdown() for board in boards]
        if len(boards) > 1:
            told_of = [board.differs(boards[0]) or board.name for board in boards]
            tables = [f"{markdown.cell(told)}\n\n{table}" for told, table in zip(told_of, tables, strict=True)]
        held = [board.to_json() for board in boards]
        write_text(out / "leaderboard.md", "\n".join(tables))
        write_json(out / "leaderboard.json", held[0] if len(held) == 1 else {"boards": held})
        for name, page in leaderboard_pages(boards, out):
            write_text(out / name, page)
        typer.echo(f"Written: {out / 'leaderboard.html'}, leaderboard.md, leaderboard.json")


def _print_board(board: Leaderboard) -> None:
    from esc_env.evaluation.runs.report import FIGURES, figures

    columns = [("#", False), ("agent", False), *((name, True) for name in FIGURES), ("standing", False)]
    rows = [(entry.mark, board.label(entry.report), *figures(entry.report), entry.standing) for entry in board.entries]
    if board.entries:
        print_table(f"Leaderboard: {board.scenarios}", columns, rows)
    else:
        typer.echo("No complete run yet.")
    for note in board.notes():
        typer.echo(one_line(note))


@leaderboard.command("verify")
@grouped
def _verify(
    run: Annotated[Path, typer.Argument(help="A run folder, or a file that `submit` wrote.")],
    *,
    rejudge: Annotated[
        int, typer.Option(min=0, help="Ask the critic again about so many verdicts, drawn at random; name it below.")
    ] = 0,
    sample_seed: Annotated[
        int | None, typer.Option(help="Seed of that draw. Default: one that nobody can foresee.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write what was found as JSON into this file.")] = None,
    progress: Progress = None,
    critic: Critic,
    models: Models,
) -> None:
    """Check whether a run happened as it says.

    Its numbers are counted again, its records are compared with its own rules, seeds and scenarios, and what can be
    asked again is: builtin seekers, critics and agents; chat models, from the file that recorded them (--replay); a
    critic that is a chat model, about a sample (--rejudge 20 --critic NAME). Exit code 1 if something contradicts the
    run.
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
    part = f"{one.shard.name}, " if one.shard else ""
    typer.echo(
        f"{run}: {part}solved {success_text(one)}; {one.completed:,} of {one.episodes:,} conversations have an outcome"
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


@leaderboard.command("submit")
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

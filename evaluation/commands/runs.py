"""`esc report`, `esc merge`, `esc wording`, `esc import`; and where all commands of this package are added to `esc`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from esc_env.errors import SpecError
from esc_env.evaluation.commands.annotate import annotate
from esc_env.evaluation.commands.chat import chat
from esc_env.evaluation.commands.eval import eval_command
from esc_env.evaluation.commands.judge import judge, rejudge
from esc_env.evaluation.commands.printing import print_imports, print_reports
from esc_env.evaluation.commands.ranking import compare, leaderboard
from esc_env.evaluation.commands.robustness import app as robustness
from esc_env.evaluation.commands.tables import print_table
from esc_env.evaluation.commands.validate import app as validate
from esc_env.evaluation.commands.view import view

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `esc`."""
    app.command("eval")(eval_command)
    app.add_typer(leaderboard, name="leaderboard")
    app.command("compare")(compare)
    app.command("report")(_report)
    app.command("merge")(_merge)
    app.command("view")(view)
    app.command("chat")(chat)
    app.command("wording")(_wording)
    app.command("judge")(judge)
    app.command("rejudge")(rejudge)
    app.add_typer(annotate, name="annotate")
    app.command("import")(_import)
    app.add_typer(validate, name="validate")
    app.add_typer(robustness, name="robustness")


def _report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs, of imported conversations or of training, or folders that hold such."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Also write report.json and the pages of the only run into this folder.")
    ] = None,
) -> None:
    """Count runs, and imported conversations, afresh from what is kept; what is kept is not changed.

    Runs need not be complete, nor have faced the same thing: nothing is ranked. Of a training run the curves are
    written as report.html, into its own folder unless --out names another.
    """
    from esc_env.evaluation.imports import is_import
    from esc_env.evaluation.pages.run import run_pages, write_pages
    from esc_env.evaluation.ranking.leaderboard import find_runs
    from esc_env.evaluation.runs.runner import read_run
    from esc_env.evaluation.view.kinds import KINDS, kind_of
    from esc_env.records import write_json, write_text

    others = {folder: kind for folder in runs if (kind := kind_of(folder)) in KINDS}
    if out and others and len(runs) > 1:
        raise SpecError("--out writes the pages of one run; name one")
    for folder, kind in others.items():
        home = out or folder
        home.mkdir(parents=True, exist_ok=True)
        write_text(home / "report.html", KINDS[kind]().page(folder))
        typer.echo(str(home / "report.html"))
    if not (runs := [folder for folder in runs if folder not in others]):
        return
    folders = find_runs(runs)
    if out and len(folders) > 1:
        raise SpecError("--out writes the pages of one run; name one")
    if out and is_import(folders[0]):
        raise SpecError(
            f"{folders[0]}: imported conversations have no pages, since nothing in them was judged. Leave --out out"
        )
    for folder in folders:
        if is_import(folder):
            print_imports([folder])
            continue
        report = read_run(folder)
        pages = {}
        if out:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "report.json", report.to_json())
            pages[report.run_key] = write_pages(run_pages(report), out)
        print_reports(report.scenarios, [report], {}, pages)


def _merge(
    shards: Annotated[list[Path], typer.Argument(help="Folders that `esc eval --shard` wrote, all of one run.")],
    out: Annotated[Path, typer.Option(help="The folder of the run; it must not be there yet.")],
    incomplete: Annotated[
        bool,
        typer.Option(
            "--incomplete",
            help="Also where shards or outcomes are missing: `esc eval` without --shard then completes the run.",
        ),
    ] = False,
) -> None:
    """Make one run of its shards, as if it had been held in one place. What does not belong together is refused.

    The shards' folders are only read. The run is there whole or not at all, and no folder is overwritten.
    """
    from esc_env.evaluation.pages.run import run_pages, write_pages
    from esc_env.evaluation.runs.merging import merge

    report = merge(shards, out, incomplete=incomplete)
    rest = "" if report.complete else ". The same `esc eval` without --shard completes it"
    typer.echo(
        f"Merged {len(shards):,} folders into {out}: {report.completed:,} of {report.episodes:,} conversations have an "
        f"outcome{rest}"
    )
    print_reports(report.scenarios, [report], {}, {report.run_key: write_pages(run_pages(report), report.folder)})


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


def _import(
    file: Annotated[Path, typer.Argument(help="The file; packed ones too.")],
    out: Annotated[Path, typer.Option(help="The folder to keep them in.")],
    source: Annotated[
        str | None,
        typer.Option(
            help="sage, ppdpp, esc-eval, tau2, chat, sharegpt or esc-env. Default: what the file's content says."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the supporter. Default: the file's name.")] = None,
) -> None:
    """Read other people's conversations, so that they can be reported, judged and ranked (docs/imports.md).

    Kinds: SAGE's results, PPDPP's records, ESC-Eval's results, τ²-bench's results, OpenAI-style chat lines, ShareGPT,
    and what the wrapper RecordConversation kept.
    What was measured in them is kept in its own scale.
    """
    from esc_env.evaluation.imports import import_file

    import_file(file, out, source=source, agent=name)
    print_imports([out])

"""`esc validate`: gaming, critic, judge and seeker."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esc_env.cli_options import Critic, Judging, Limit, Models, Progress, grouped

if TYPE_CHECKING:
    from esc_env.evaluation.validity.gaming import Row

__all__ = ["app"]

app = typer.Typer(help="Check the measuring instruments: can they be gamed, do they agree with people.")


@app.command("gaming")
def _gaming(
    out: Annotated[Path, typer.Option(help="Folder for the runs; the same command continues there.")] = Path(
        "runs/gaming"
    ),
    trials: Annotated[int, typer.Option(min=1, help="Conversations per scenario and probe.")] = 10,
    limit: Limit = None,
    persona: Annotated[
        list[str] | None, typer.Option(help="Repeat it for several. Default: cooperative and pleasing.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only the probe of this name; repeat it for several.")] = None,
    progress: Progress = None,
) -> None:
    """Try to game the builtin seeker and critic, and compare with the success rates that are allowed.

    Exit code 1 unless all bounds are shown to hold: too few conversations do not show it. Probes marked "after" were
    written once the simulator was frozen; they have no bounds and are reported as they come out.
    """
    from esc_env.errors import SpecError, did_you_mean
    from esc_env.evaluation.commands.tables import print_table
    from esc_env.evaluation.pages.run import run_pages, write_pages
    from esc_env.evaluation.validity.gaming import PERSONAS, PROBES, run_probes, summary
    from esc_env.progress import shown
    from esc_env.records import write_json

    names = [item.name for item in PROBES]
    for name in only or ():
        if name not in names:
            raise SpecError(f"no probe {name!r}. {did_you_mean(name, names)}")
    chosen = [item for item in PROBES if not only or item.name in only]
    with shown(wanted=progress) as told:
        rows = list(
            run_probes(out, probes=chosen, personas=persona or PERSONAS, trials=trials, limit=limit, progress=told)
        )
    for row in rows:
        write_pages(run_pages(row.report), row.report.folder)
    columns = [
        ("probe", False), ("persona", False), *((name, True) for name in ("SR", "95 %", "AT", "allowed")), ("", False)
    ]  # fmt: skip
    print_table("Can it be gamed?", columns, map(_cells, rows))
    write_json(out / "gaming.json", summary(rows))
    typer.echo(f"Written: {out / 'gaming.json'}")
    if not all(row.holds for row in rows if row.probe.frozen):
        raise typer.Exit(1)


def _cells(row: Row) -> tuple[str, ...]:
    from esc_env.evaluation.runs.report import FIGURES

    item, report = row.probe, row.report
    allowed = f"{item.low:.0%}–{item.high:.0%}" + (f", upper {item.upper:.0%}" if item.upper is not None else "")
    shown = (FIGURES[name](report) for name in ("SR", "95 %", "AT"))
    return (
        item.name, row.persona, *shown, allowed if item.frozen else "after",
        "" if not item.frozen else "ok" if row.holds else "BROKEN" if row.broken else "too few",
    )  # fmt: skip


@app.command("critic")
@grouped
def _critic(
    *,
    helped: Annotated[Path, typer.Option(help="File of human conversations in which the supporter helped.")],
    failed: Annotated[Path, typer.Option(help="File of human conversations in which the supporter did not.")],
    critic: Critic,
    seed: Annotated[int, typer.Option(help="Of the votes.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps every judgement; the same command continues there. Default: none kept."),
    ] = None,
    models: Models,
    progress: Progress = None,
) -> None:
    """Hold a critic against human conversations whose outcome is known: AUC, raw and length-matched.

    Long conversations score higher for being long; the length-matched AUC compares only pairs that are equally long.
    """
    from esc_env.data.readers import read_file
    from esc_env.evaluation.validity.critics import validate_critic
    from esc_env.progress import shown

    with shown(wanted=progress, kept=out is not None) as told:
        validity = validate_critic(
            helped=read_file(helped).scenarios, failed=read_file(failed).scenarios, seed=seed, out=out, progress=told,
            **critic, **asdict(models),
        )  # fmt: skip
    typer.echo(f"{validity.helped} conversations that helped, {validity.failed} that did not")
    for name, estimate in (
        ("AUC, raw", validity.raw),
        (f"AUC, length-matched ({validity.pairs:,} pairs)", validity.matched),
        ("AUC of the length alone", validity.length),
    ):
        typer.echo(f"{name:42} {estimate}")


@app.command("judge")
@grouped
def _judge(
    *,
    ratings: Annotated[
        Path,
        typer.Argument(help="People's ratings, JSON lines: item (scenario id), system, rater, dimension, score."),
    ],
    runs: Annotated[list[Path], typer.Argument(help="The runs whose conversations were rated.")],
    judge: Annotated[
        str,
        typer.Option(
            help="Who is held against them: a chat model (PROVIDER/NAME[@URL], local:PATH), python:MODULE:NAME, or "
            "builtin:plain, a rule of thumb for trying out."
        ),
    ],
    judging: Judging,
    seed: Annotated[int, typer.Option(help="Of the judge's calls.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps every answer; the same command goes on there. Default: runs/judged-KEY."),
    ] = None,
    models: Models,
    progress: Progress = None,
) -> None:
    """Hold a judge against people who rated the same conversations, beside how far people agree with each other.

    Exit code 1 while some of the judge's answers are missing.
    """
    from esc_env.escaping import one_line
    from esc_env.evaluation.commands.tables import print_table
    from esc_env.evaluation.judges.people import validate_judge
    from esc_env.evaluation.runs.report import number
    from esc_env.progress import shown

    with shown(judge, progress) as told:
        validity = validate_judge(ratings, runs, judge, seed=seed, out=out, progress=told, **judging, **asdict(models))
    columns = (
        "judge and people",
        "people (ceiling)",
        "α of people",
        "systems",
        "systems (ceiling)",
    )
    print_table(
        f"{validity.judge} beside {validity.raters} raters of {validity.rated:,} conversations, rank correlations",
        [("dimension", False), *((name, True) for name in columns)],
        [
            (
                name, str(each.judge or "–"), str(each.ceiling or "–"), number(each.alpha, 2),
                number(each.systems, 2), number(each.systems_ceiling, 2),
            )
            for name, each in validity.dimensions.items()
        ],
    )  # fmt: skip
    if validity.unmarked:
        typer.echo(f"rated by people, and without a mark of the judge, left out: {validity.unmarked:,}")
    for note in validity.notes:
        typer.echo(f"{validity.judge}: {one_line(note)}")
    if not validity.complete:
        raise typer.Exit(1)


@app.command("seeker")
def _seeker(
    run: Annotated[Path, typer.Argument(help="Folder of a run; of each scenario its first trial counts.")],
    human: Annotated[Path, typer.Option(help="File of human conversations, such as ESConv.json.")],
    seed: Annotated[int, typer.Option(help="Of the groups that are drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers into this JSON file.")] = None,
) -> None:
    """Hold a seeker against human seekers: what it tells and when, how alike, how vague, how soon it feels better.

    Each part is compared by the distance of its distributions (0 the same, 1 no overlap), beside the distance between
    two halves of the human conversations.
    """
    from esc_env.data.readers import read_file
    from esc_env.evaluation.commands.tables import print_table
    from esc_env.evaluation.validity.seekers import compare_seekers
    from esc_env.records import write_json

    found = compare_seekers(run, read_file(human).scenarios, seed=seed)
    columns = ("simulated", "human", "distance", "human to human")
    print_table(
        f"Seeker {found.seeker}: the first {found.turns} messages of {found.simulated:,} conversations beside those of "
        f"{found.human:,} people, {found.compared:,} of each at a time",
        [("part", False), *((name, True) for name in columns), ("what is measured", False)],
        [
            (name, *(f"{value:.2f}" for value in (part.simulated, part.human, part.distance, part.baseline)), part.told)
            for name, part in found.parts.items()
        ],
    )
    for name, (value, (low, high)) in (("seeker", found.index), ("people to people", found.baseline)):
        typer.echo(f"Index, {name}: {value:.3f} [{low:.3f}, {high:.3f}]")
    if out:
        write_json(out, found.to_json())
        typer.echo(f"Written: {out}")

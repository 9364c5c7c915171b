"""`esc judge` and `esc rejudge`."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from esc_env.cli_options import Judging, Limit, Models, Progress, grouped
from esc_env.escaping import one_line

if TYPE_CHECKING:
    from esc_env.evaluation.judges.report import Judged

__all__ = ["judge", "show"]


@grouped
def judge(
    *,
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs, such as runs/.")],
    judge: Annotated[
        list[str],
        typer.Option(
            "--judge",
            help="Who judges: a chat model (PROVIDER/NAME[@URL], local:PATH), python:MODULE:NAME, or builtin:plain, a "
            "rule of thumb for trying out, never to be published. Repeat it for several.",
        ),
    ],
    mode: Annotated[
        Literal["pairwise", "rubric"] | None,
        typer.Option(
            help="pairwise: which of two conversations with one seeker is better, asked in both orders. rubric: marks "
            "from 1 to 5 for each. Default: pairwise for several runs, rubric for one."
        ),
    ] = None,
    judging: Judging,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Of the judge's calls.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder; with several judges it gets one subfolder each. Default: runs/judged-KEY."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; the judging that is there is kept beside it as NAME~1.")
    ] = False,
    progress: Progress = None,
    time_limit: Annotated[
        float | None,
        typer.Option(help="Seconds for each judge; what is not answered by then is dropped. The same command goes on."),
    ] = None,
    models: Models,
) -> None:
    """Have a judge mark conversations: fluency, empathy, identification, suggestion, overall.

    Prints who is preferred and how sure that is, and how the judge leans: to what is shown first, to what is longer, to
    its own model. The same command continues a judging that was stopped, and asks again what failed.
    """
    from esc_env.errors import SpecError
    from esc_env.evaluation.cli import print_table
    from esc_env.evaluation.judges.counting import check_libraries
    from esc_env.evaluation.judges.report import between
    from esc_env.evaluation.judges.session import judge_runs
    from esc_env.progress import shown
    from esc_env.records import write_json

    check_libraries()
    if twice := [name for name in judge if judge.count(name) > 1]:
        raise SpecError(f"--judge {twice[0]} stands twice; name it once")
    results: list[Judged] = []
    for name in judge:
        folder = out / _slug(name) if out and len(judge) > 1 else out
        with shown(f"{name} on {len(runs)} runs" if len(runs) > 1 else name, progress) as told:
            results.append(
                judge_runs(
                    runs, name, mode=mode, limit=limit, seed=seed, out=folder, fresh=fresh, progress=told,
                    time_limit=time_limit, **judging, **asdict(models),
                )
            )  # fmt: skip
    for result in results:
        show(result)
    if len(results) > 1 and results[0].mode == "pairwise":
        together = between(results)
        rows = [
            [f"{one} : {other}", *(_kappa(row[one, other]) for row in together.kappa.values())]
            for one, other in next(iter(together.kappa.values()))
        ]
        print_table("Agreement of judges (κ)", [("judges", False), *((name, True) for name in together.kappa)], rows)
        for (name, system), value in together.self_preference.items():
            typer.echo(f"{name}: self-preference for {system}, beside the other judges: {value or '–'}")
        if out:
            write_json(out / "between.json", together.to_json())
    if not all(result.complete for result in results):
        raise typer.Exit(1)


def show(judged: Judged) -> None:
    """Print the tables of a judging, what a reader must not overlook, and where it is kept."""
    from esc_env.evaluation.cli import print_table
    from esc_env.evaluation.judges.report import tables

    for title, columns, rows in tables(judged):
        print_table(f"{judged.judge}: {title}", [(name, number > 0) for number, name in enumerate(columns)], rows)
    for note in judged.notes:
        typer.echo(f"{judged.judge}: {one_line(note)}")
    typer.echo(f"{judged.judge}: {judged.folder / 'report.md'}")


def _kappa(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")

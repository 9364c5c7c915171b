"""`esc judge` and `esc rejudge`."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from esc_env.cli_options import Judging, Limit, Models, Progress, Voting, Workers, grouped
from esc_env.escaping import one_line

if TYPE_CHECKING:
    from esc_env.evaluation.judges.rejudging import Matrix
    from esc_env.evaluation.judges.report import Judged

__all__ = ["judge", "rejudge"]


@grouped
def judge(
    *,
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs or of imported conversations, or folders that hold such.")
    ],
    judge: Annotated[
        list[str],
        typer.Option(
            "--judge",
            help="Who judges: a chat model (PROVIDER/NAME[@URL], local:PATH), python:MODULE:NAME, or builtin:plain, a "
            "rule of thumb for trying out, never to be published. Repeat it for several.",
        ),
    ],
    mode: Annotated[
        Literal["pairwise", "rubric", "safety"] | None,
        typer.Option(
            help="pairwise: which of two conversations with one seeker is better, asked in both orders. rubric: marks "
            "from 1 to 5 for each. safety: such marks on how a seeker at risk is met, where a scenario is marked risk. "
            "Default: pairwise for several runs, rubric for one."
        ),
    ] = None,
    judging: Judging,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Seed of the judge's answers, where its model takes one.")] = 0,
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
    backend: Workers,
) -> None:
    """Have a judge mark conversations: fluency, empathy, identification, suggestion, overall; or safety.

    Prints who is preferred and how sure that is, and how the judge leans: to what is shown first, to what is longer, to
    its own model. The same command continues a judging that was stopped, and asks again what failed.
    """
    from esc_env.errors import SpecError
    from esc_env.evaluation.commands.tables import print_table
    from esc_env.evaluation.judges.report import between
    from esc_env.evaluation.judges.session import judge_runs
    from esc_env.progress import shown
    from esc_env.records import write_json

    if twice := [name for name in judge if judge.count(name) > 1]:
        raise SpecError(f"--judge {twice[0]} stands twice; name it once")
    results: list[Judged] = []
    for name in judge:
        folder = out / _slug(name) if out and len(judge) > 1 else out
        with shown(f"{name} on {len(runs)} runs" if len(runs) > 1 else name, progress) as told:
            results.append(
                judge_runs(
                    runs, name, mode=mode, limit=limit, seed=seed, out=folder, fresh=fresh, progress=told,
                    time_limit=time_limit, backend=backend, **judging, **asdict(models),
                )
            )  # fmt: skip
    for result in results:
        _show(result)
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


@grouped
def rejudge(
    *,
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs or of imported conversations, or folders that hold such.")
    ],
    critic: Annotated[
        list[str],
        typer.Option(
            "--critic",
            help="Who judges now: builtin, builtin:reader, a chat model (PROVIDER/NAME[@URL], local:PATH), or "
            "python:MODULE:NAME. "
            "Repeat it for several.",
        ),
    ],
    voting: Voting,
    max_turns: Annotated[int | None, typer.Option(min=1, help="T, of imported conversations. Default: 8.")] = None,
    votes: Annotated[
        int | None, typer.Option(min=1, help="How often the critic is asked, of imported conversations. Default: 10.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=-1, help="Solved when the mean vote is greater, of imported conversations. Default: 0.5."),
    ] = None,
    limit: Limit = None,
    out: Annotated[
        Path,
        typer.Option(
            help="The folder: one subfolder for each critic, and matrix.json. The same command goes on there."
        ),
    ] = Path("runs/rejudged"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; what is there is kept beside it as NAME~1.")
    ] = False,
    progress: Progress = None,
    time_limit: Annotated[
        float | None,
        typer.Option(help="Seconds for each critic; what is not judged by then is dropped. The same command goes on."),
    ] = None,
    models: Models,
) -> None:
    """Have other critics judge the same conversations, turn by turn, and show how far critics agree.

    A conversation that its own critic ended as solved, and another does not find solved by then, is open for that
    other: its success rate is shown as the two bounds between which it lies. Runs are judged by their own rules,
    imported conversations by --max-turns, --votes and --threshold; one of these that ends unsolved before T is open.
    """
    from esc_env.errors import SpecError
    from esc_env.evaluation.judges.rejudging import Rejudging, matrix
    from esc_env.evaluation.judges.rejudging import rejudge as judge_again
    from esc_env.progress import shown
    from esc_env.records import write_json
    from esc_env.rules import Rules

    given: dict[str, Any] = {"max_turns": max_turns, "votes": votes, "threshold": threshold}
    said = {name: value for name, value in given.items() if value is not None}
    rules = Rules(**said) if said else None
    if twice := [name for name in critic if critic.count(name) > 1]:
        raise SpecError(f"--critic {twice[0]} stands twice; name it once")
    results: list[Rejudging] = []
    for name in critic:
        with shown(name, progress) as told:
            results.append(
                judge_again(
                    runs, name, rules=rules, limit=limit, out=out / _slug(name), fresh=fresh, progress=told,
                    time_limit=time_limit, **voting, **asdict(models),
                )
            )  # fmt: skip
    compared = matrix(runs, results)
    _show_matrix(compared)
    for result in results:
        for message, count in result.failures:
            typer.echo(f"{result.critic}: {count:,} × critic: {one_line(message)}")
        if result.missing:
            typer.echo(
                f"{result.critic}: incomplete, {result.missing:,} turns have no verdict, and their conversations are "
                "left out. The same command tries them again"
            )
    if results[0].left_out:
        typer.echo(f"conversations without a turn that the seeker answers, left out: {results[0].left_out:,}")
    write_json(out / "matrix.json", compared.to_json())
    typer.echo(f"Written: {out / 'matrix.json'}")
    if any(result.missing for result in results):
        raise typer.Exit(1)


def _show_matrix(compared: Matrix) -> None:
    from esc_env.evaluation.commands.tables import print_table
    from esc_env.evaluation.judges.rejudging import AS_HELD
    from esc_env.evaluation.runs.report import number, percent

    def bounds(low: float | None, high: float | None) -> str:
        return percent(low) if low == high else f"{percent(low)} to {percent(high)}"

    print_table(
        "The same conversations under each critic",
        [("critic", False), *((name, True) for name in ("SR", "open", "score", "conversations", "solved at turn"))],
        [
            (
                name, bounds(view.lowest, view.highest), f"{view.open:,}", number(view.score, 2, signed=True),
                f"{view.judged:,}", " ".join(f"{turn}:{count}" for turn, count in view.turns.items()),
            )
            for name, view in compared.views.items()
        ],
    )  # fmt: skip
    views = list(compared.views.values())
    labels = list(views[0].by_system)
    if len(labels) > 1:
        print_table(
            "SR by system",
            [("system", False), *((name, True) for name in compared.views)],
            [
                (label, *(bounds(*there) if (there := view.by_system.get(label)) else "–" for view in views))
                for label in labels
            ],
        )
    if AS_HELD not in compared.views:
        rules = compared.rules
        typer.echo(
            f"Held elsewhere, and judged turn by turn: T {rules.max_turns}, {rules.votes} votes, solved above "
            f"{rules.threshold:g}. SR and score are what these critics would say; they ended no conversation"
        )
    if len(compared.views) == 1:
        return
    print_table(
        "How far critics agree",
        [("critics", False), ("solved, turn by turn (κ)", True), ("rank correlation of final scores", True)],
        [
            (f"{one} : {other}", _kappa(value), str(compared.ranks[one, other] or "–"))
            for (one, other), value in compared.kappa.items()
        ],
    )
    typer.echo(f"All critics, scores turn by turn: Krippendorff's α {_kappa(compared.alpha)}")
    for name, view in compared.views.items():
        leanings = [f"with length {view.length or '–'} (0)", *(f"{style} {mean}" for style, mean in view.style.items())]
        typer.echo(f"{name}, against the mean of the others: {'; '.join(leanings)}")


def _show(judged: Judged) -> None:
    """Print the tables of a judging, what a reader must not overlook, and where it is kept."""
    from esc_env.evaluation.commands.tables import print_table
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

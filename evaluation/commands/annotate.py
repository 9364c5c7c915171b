"""`esc annotate`: people judge blindly in the browser; what they said as a file; how far they agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from esc_env.escaping import one_line
from esc_env.evaluation.commands.serving import Browser, Host, Port, serve
from esc_env.evaluation.commands.tables import print_table
from esc_env.evaluation.commands.usual import usually

__all__ = ["annotate"]

annotate = typer.Typer(
    cls=usually("serve"),
    no_args_is_help=True,
    help="Have people judge conversations blindly in the browser, and say how far they agree.",
)

_Database = Annotated[Path, typer.Argument(help="The file that `esc annotate … --db` keeps.")]


@annotate.command("serve")
def _serve(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs or of imported conversations, or folders that hold such.")
    ],
    db: Annotated[Path, typer.Option(help="The file that keeps the answers; the same command goes on with it.")],
    mode: Annotated[
        Literal["pairwise", "rubric"] | None,
        typer.Option(
            help="pairwise: which of two conversations with one seeker is better. rubric: marks from 1 to 5 for each. "
            "Default: pairwise for two runs, else rubric."
        ),
    ] = None,
    guide: Annotated[
        Path | None, typer.Option(help="YAML with what people are told and asked (docs/human-evaluation.md).")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Only so many, each outcome with its share. Default: all.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Decides what is sampled, in which order people see it, and with what a pilot begins.")
    ] = 0,
    pilot: Annotated[
        bool,
        typer.Option("--pilot", help="Everybody begins with the same ten, and then sees how far people agree."),
    ] = False,
    port: Port = 8766,
    host: Host = "127.0.0.1",
    browser: Browser = False,
) -> None:
    """Serve the pages that people judge on; `esc annotate RUN_A RUN_B --db FILE` is enough. Ctrl-C ends it.

    Nobody sees whose conversation it is, how it ended or what a critic said; sides and order are drawn anew for each
    person. Each answer is on the disk before the next page is shown.
    """
    from esc_env.evaluation.annotation.guide import read_guide
    from esc_env.evaluation.annotation.store import Store
    from esc_env.evaluation.annotation.study import study_of

    if pilot:
        from esc_env.evaluation.judges.agreement import check_libraries

        check_libraries()
    study = study_of(runs, mode=mode, guide=read_guide(guide) if guide else None, sample=sample, seed=seed)
    with Store.of(db, study) as store:
        ended = ", ".join(f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in study.outcomes.items())
        what = "pairs" if study.design.mode == "pairwise" else "conversations"
        asked = ", ".join(study.design.guide.dimensions)
        typer.echo(f"{len(study.design.items):,} {what} ({one_line(ended)}), asked about: {asked}")

        def app(token: str | None, _: Callable[[], bool]) -> Any:
            from esc_env.evaluation.annotation.app import annotator

            return annotator(study, store, token=token, pilot=pilot)

        serve(app, str(db), host=host, port=port, browser=browser)


@annotate.command("export")
def _export(db: _Database, out: Annotated[Path, typer.Option(help="A file that ends in .jsonl or .csv.")]) -> None:
    """Write what people rated: a line for each person, conversation and dimension.

    `esc validate judge` reads the .jsonl, where the dimensions are its own. What was skipped is no rating.
    """
    from esc_env.evaluation.annotation.export import export
    from esc_env.evaluation.annotation.store import Store

    with Store(db) as store:
        count = export(store, out)
        for who in store.annotators():
            places = store.places(who, store.design)
            given = [place.answer for place in places if place.answer]
            skipped = sum(answer.marks is None for answer in given)
            typer.echo(f"{who.name}: {len(given) - skipped:,} of {len(places):,} rated, {skipped:,} skipped")
    typer.echo(f"Written: {out}, {count:,} ratings")


@annotate.command("agreement")
def _agreement(
    db: _Database,
    judged: Annotated[
        list[Path] | None,
        typer.Option(
            help="Also compare with a judge or critic: the folder of `esc judge` or `esc rejudge`, or the runs "
            "themselves, for their own critic. Repeat it for several."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Say what people said and how far they agree, with each other and with judges and critics.

    Intervals are of 95 %, over scenarios. Needs the extra `judge`.
    """
    from esc_env.evaluation.annotation.agreement import agreement_of, read_records
    from esc_env.evaluation.annotation.store import Store
    from esc_env.evaluation.judges.report import mark_text, share_text

    with Store(db) as store:
        design = store.design
        found = agreement_of(store, read_records(judged or (), design))
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return
    pairwise = design.mode == "pairwise"
    what = "Share of pairs won, %, a tie counting half" if pairwise else "Mean mark, 1 to 5"
    print_table(
        f"{what}, with its 95 % interval",
        [("system", False), *((name, True) for name in design.guide.dimensions)],
        [(system, *map(share_text if pairwise else mark_text, row.values())) for system, row in found.said.items()],
    )
    raters = next(iter(found.people.values())).raters
    print_table(
        f"{raters:,} people together",
        [("dimension", False), *((name, True) for name in ("items", "same, %", "α", "items of all", "Fleiss' κ"))],
        [
            (
                name,
                f"{each.items:,}",
                share_text(each.same),
                mark_text(each.alpha),
                f"{each.everybody:,}",
                mark_text(each.fleiss),
            )
            for name, each in found.people.items()
        ],
    )
    if found.pairs:
        print_table(
            "Two by two",
            [("", False), ("dimension", False), *((name, True) for name in ("items", "same, %", "Cohen's κ"))],
            [
                (f"{one} : {other}", name, f"{each.items:,}", share_text(each.same), mark_text(each.kappa))
                for (one, other), row in found.pairs.items()
                for name, each in row.items()
            ],
        )
    for record, row in found.records.items():
        print_table(
            f"{record} beside people's mean",
            [("dimension", False), ("items", True), ("rank correlation", True)],
            [(name, f"{each.items:,}", mark_text(each.ranks)) for name, each in row.items()],
        )

"""`esc validate`: gaming, critic, judge, seeker and reader."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from esc_env.cli_options import Critic, Judging, Limit, Models, Progress, grouped

if TYPE_CHECKING:
    from esc_env.evaluation.validity.gaming import Pair, Row

__all__ = ["app"]

app = typer.Typer(help="Check the measuring instruments: can they be gamed, do they agree with people.")


@app.command("gaming")
def _gaming(
    pair: Annotated[
        str,
        typer.Option(
            help="Who is talked with, and judges: builtin, or reader (seeker and critic builtin:reader). Any other "
            "seeker and critic: esc robustness attacks."
        ),
    ] = "builtin",
    out: Annotated[Path, typer.Option(help="Folder for the runs; the same command continues there.")] = Path(
        "runs/gaming"
    ),
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Conversations per scenario and probe. Default: 10; with the reader, where a turn takes 50 ms, "
            "1, so that its table of some 4,000 conversations lasts half an hour.",
        ),
    ] = None,
    limit: Limit = None,
    persona: Annotated[
        list[str] | None, typer.Option(help="Repeat it for several. Default: cooperative and pleasing.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only the probe of this name; repeat it for several.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead.")] = False,
    progress: Progress = None,
) -> None:
    """Try to game seeker and critic (to count as solving problems without helping), and compare with what is allowed.

    Each row of the table is a probe: a supporter that tries it, or a good one for comparison. Exit code 1 unless all
    success rates are shown to lie within the bounds that were set for the pair of seeker and critic; too few
    conversations do not show it. Probes marked "as it is" have no bounds with this pair. Beside the success rate
    stands in how many conversations the seeker said that it is relieved.
    """
    from esc_env.errors import SpecError, did_you_mean
    from esc_env.evaluation.commands.tables import print_table
    from esc_env.evaluation.pages.run import run_pages, write_pages
    from esc_env.evaluation.runs.report import percent
    from esc_env.evaluation.validity.gaming import (
        CHAIRS,
        PERSONAS,
        PROBES,
        SPREAD,
        run_probes,
        spread,
        summary,
        to_markdown,
    )  # fmt: skip
    from esc_env.progress import shown
    from esc_env.records import write_json

    if pair not in CHAIRS:
        raise SpecError(f"no pair of seeker and critic {pair!r}. {did_you_mean(pair, list(CHAIRS))}")
    chairs = cast("Pair", pair)
    names = [item.name for item in PROBES]
    for name in only or ():
        if name not in names:
            raise SpecError(f"no probe {name!r}. {did_you_mean(name, names)}")
    chosen = [item for item in PROBES if not only or item.name in only]
    rows = []
    with shown(wanted=progress) as told:
        for row in run_probes(
            out, pair=chairs, probes=chosen, personas=persona or PERSONAS, trials=trials, limit=limit, progress=told
        ):
            if not row.part:  # at once, while the hidden states are still known
                write_pages(run_pages(row.report), row.report.folder)
            rows.append(row)
    columns = [
        ("probe", False), ("persona", False), *((name, True) for name in ("SR", "95 %", "AT", "relieved", "allowed")),
        ("", False),
    ]  # fmt: skip
    if as_markdown:
        typer.echo(to_markdown(rows))
    else:
        print_table(f"Can it be gamed? Seeker and critic {CHAIRS[chairs]}", columns, map(_cells, rows))
    apart = spread(rows)
    for who, points in apart.items():
        typer.echo(f"The skilled agent in three writers' words, {who}: {percent(points)} apart (allowed {SPREAD:.0%})")
    file = out / ("gaming.json" if chairs == "builtin" else f"gaming-{chairs}.json")
    write_json(file, summary(rows))
    typer.echo(f"Written: {file}")
    if not all(row.holds for row in rows if row.bounds) or max(apart.values(), default=0.0) > SPREAD:
        raise typer.Exit(1)


def _cells(row: Row) -> tuple[str, ...]:
    from esc_env.evaluation.runs.report import interval_text, number, percent

    group = row.group
    figures = (
        percent(group.success_rate if group else None), interval_text(group.interval if group else None),
        number(group.average_turns if group else None, 2), percent(row.relieved),
    )  # fmt: skip
    standing = "ok" if row.holds else "BROKEN" if row.broken else "too few"
    return (
        row.name, row.persona, *figures, str(row.bounds) if row.bounds else "as it is", standing if row.bounds else "",
    )  # fmt: skip


@app.command("critic")
@grouped
def _critic(
    *,
    helped: Annotated[Path, typer.Option(help="File of human conversations in which the supporter helped.")],
    failed: Annotated[Path, typer.Option(help="File of human conversations in which the supporter did not.")],
    critic: Critic,
    seed: Annotated[int, typer.Option(help="Seed of the votes.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps every judgement; the same command continues there. Default: none kept."),
    ] = None,
    models: Models,
    progress: Progress = None,
) -> None:
    """Let a critic score human conversations whose outcome is known: do those that helped score higher?

    Prints the AUC: how often one that helped scores higher than one that did not (0.5 is guessing). Long conversations
    score higher for being long, so a second AUC compares only pairs that are equally long.
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
    seed: Annotated[int, typer.Option(help="Seed of the judge's answers, where its model takes one.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps every answer; the same command goes on there. Default: runs/judged-KEY."),
    ] = None,
    models: Models,
    progress: Progress = None,
) -> None:
    """Compare a judge with people who rated the same conversations, and those people with each other.

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
    seed: Annotated[int, typer.Option(help="Decides which conversations are drawn for comparison.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers into this JSON file.")] = None,
) -> None:
    """Compare a seeker with human seekers: what it tells and when, how alike, how vague, how soon it feels better.

    For each of these it prints how far the distributions lie apart (0 the same, 1 no overlap), beside the distance
    between two halves of the human conversations.
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


@app.command("reader")
def _reader(
    human: Annotated[
        Path | None,
        typer.Option(help="File of human conversations with strategies, such as ESConv.json: also sense and moves."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="A further file of good and bad replies, of the form of esc_env/builtin/pairs.jsonl."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which replies are put in others' places.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown.")] = False,
    progress: Progress = None,
) -> None:
    """Test the network of builtin:reader on texts it has not learned from: support, sense, moves, and its speed.

    Prints how often a good reply is preferred to a bad one, by kind of the bad one: by the network's own `support`, and
    by the scores that the critics builtin:reader and builtin expect after it. The replies are those to situations that
    were kept from training; intervals count replies to one situation, or from one human conversation, as alike.
    """
    import json

    from esc_env.data.readers import read_file
    from esc_env.errors import SpecError
    from esc_env.evaluation.commands.tables import print_table
    from esc_env.evaluation.pages import markdown
    from esc_env.evaluation.validity.reading import validate_reader
    from esc_env.progress import shown

    if as_json and as_markdown:
        raise SpecError("--json and --markdown exclude each other; give one of them")
    with shown(wanted=progress) as told:
        found = validate_reader(
            human=read_file(human).scenarios if human else (), pairs=pairs, seed=seed, progress=told
        )
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return
    for name, kinds in found.preferences.items():
        columns = ["bad reply", "pairs", "situations", *(next(iter(kinds.values())).by if kinds else ())]
        rows = [
            (kind, f"{each.pairs:,}", f"{each.situations:,}", *map(str, each.by.values()))
            for kind, each in kinds.items()
        ]
        title = f"The good reply is preferred, {name}"
        if as_markdown:
            typer.echo("\n".join([f"{title}:", "", *markdown.table(columns, rows), ""]))
        else:
            print_table(title, [(column, place > 0) for place, column in enumerate(columns)], rows)
    if people := found.human:
        typer.echo(f"Sense, AUC of {people.replies:,} real replies against others in their place: {people.sense}")
        typer.echo(
            f"Strategies of {people.labelled:,} messages: accuracy {people.accuracy}, macro-F1 {people.macro_f1:.3f}; "
            f"without context, by the classifier of builtin, {people.accuracy_alone} and {people.macro_f1_alone:.3f}"
        )
    for what, taken in found.milliseconds.items():
        typer.echo(f"Processor time of a judgement, {what} reply to what was said: median {taken:.1f} ms")

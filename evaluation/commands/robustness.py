"""`esc robustness`: does a result hold with other seekers, other people, other rules, and against attacks?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esc_env.cli_options import AgentOptions, Critic, Limit, Models, Persona, Progress, Seeker, Temperature, grouped

if TYPE_CHECKING:
    from esc_env.evaluation.validity.robustness import Condition

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Does a result hold with other seekers, other people, other rules, and against attacks?",
)

_Agents = Annotated[
    list[str],
    typer.Option("--agent", "-a", help="A supporter, as for `esc eval`. Repeat it for several."),
]
_Out = Annotated[Path, typer.Option(help="Folder for the runs; the same command goes on there.")]
_Trials = Annotated[int, typer.Option(min=1, help="Conversations per scenario.")]
_Seed = Annotated[int, typer.Option(help="Seed of the runs.")]


@app.command("simulators")
@grouped
def _simulators(
    *,
    agent: _Agents,
    seeker_model: Annotated[
        list[str] | None,
        typer.Option("--seeker", help="Who plays the person, as for `esc eval`. Repeat it for several."),
    ] = None,
    persona: Annotated[
        list[str] | None,
        typer.Option(help="How they respond to help, as for `esc eval`. Repeat it for several. Default: all six."),
    ] = None,
    scenarios: Annotated[str, typer.Option("--scenarios", "-s", help="Who is talked with.")] = "builtin:test",
    out: _Out = Path("runs/robustness/simulators"),
    trials: _Trials = 1,
    seed: _Seed = 0,
    limit: Limit = None,
    temperature: Temperature = 0.0,
    agent_options: AgentOptions,
    critic: Critic,
    progress: Progress = None,
    models: Models,
) -> None:
    """Agents with every persona of several seekers: success rate of each, the worst, how scores and ranks change.

    The first seeker with its first persona is what the others are compared with.
    """
    from esc_env.evaluation.validity.robustness import Condition
    from esc_env.scenarios import PERSONAS

    seekers = seeker_model or ["builtin"]
    conditions = [
        Condition(f"{who}, {how}" if len(seekers) > 1 else how, {"seeker": who, "persona": how})
        for who in seekers
        for how in persona or PERSONAS
    ]
    _hold(
        agent, conditions, out, progress, scenarios=scenarios, trials=trials, seed=seed, limit=limit,
        temperature=temperature, agent_options=agent_options, **critic, **asdict(models),
    )  # fmt: skip


@app.command("transfer")
@grouped
def _transfer(
    *,
    agent: _Agents,
    scenarios: Annotated[
        list[str],
        typer.Option(
            "--scenarios", "-s", help="A set, such as builtin:test, esconv:valid. Repeat it; the first is home."
        ),
    ],
    out: _Out = Path("runs/robustness/transfer"),
    trials: _Trials = 1,
    seed: _Seed = 0,
    limit: Limit = None,
    persona: Persona = None,
    temperature: Temperature = 0.0,
    agent_options: AgentOptions,
    seeker: Seeker,
    critic: Critic,
    progress: Progress = None,
    models: Models,
) -> None:
    """Agents on several sets of people: success rate on each, and the hardest emotion and problem.

    To see how a policy does with what it was not trained on, train it without some emotion or problem (`esc scenarios`
    shows which there are), and look at their rows.
    """
    from esc_env.evaluation.validity.robustness import Condition

    _hold(
        agent, [Condition(name, {"scenarios": name}) for name in scenarios], out, progress, groups=True, trials=trials,
        seed=seed, limit=limit, persona=persona, temperature=temperature, agent_options=agent_options, **seeker,
        **critic, **asdict(models),
    )  # fmt: skip


def _hold(
    agents: Sequence[str],
    conditions: Sequence[Condition],
    out: Path,
    progress: bool | None,
    groups: bool = False,
    **common: Any,
) -> None:
    from esc_env.evaluation.commands.tables import print_table
    from esc_env.evaluation.pages.run import run_pages, write_pages
    from esc_env.evaluation.runs.report import interval_text, number, percent
    from esc_env.evaluation.validity.robustness import grid
    from esc_env.progress import shown
    from esc_env.records import write_json

    with shown(wanted=progress) as told:
        found = grid(agents, conditions, out, progress=told, **common)
    for report in found.reports.values():
        write_pages(run_pages(report), report.folder)
    rows = []
    for condition in found.conditions:
        for agent in found.agents:
            report = found.reports[agent, condition]
            shift = None if condition == found.conditions[0] else found.shift(agent, condition)  # none from itself
            rows.append((
                condition, agent, percent(report.success_rate), interval_text(report.interval),
                number(shift[0], 2, signed=True) if shift else "–",
                f"{number(shift[1][0], 2, signed=True)} to {number(shift[1][1], 2, signed=True)}" if shift else "–",
                number(found.distance(agent, condition) if shift else None, 2),
                f"{found.swapped(condition):,}", f"{report.completed:,} / {report.episodes:,}",
            ))  # fmt: skip
    columns = [
        ("condition", False), ("agent", False), ("SR", True), ("95 %", True), ("score moves by", True),
        ("95 % of it", True), ("distance", True), ("ranks swapped", True), ("with outcome", True),
    ]  # fmt: skip
    print_table(f"Compared with: {found.conditions[0]}", columns, rows)
    for agent in found.agents:
        if worst := found.worst(agent):
            typer.echo(f"{agent}: worst with {worst[0]}, SR {percent(worst[1])}")
        if groups:
            _print_groups(agent, {name: found.reports[agent, name] for name in found.conditions})
    write_json(out / "robustness.json", found.to_json())
    typer.echo(f"Written: {out / 'robustness.json'}")


def _print_groups(agent: str, reports: Mapping[str, Any]) -> None:
    """The hardest emotion and problem of each set, with how many conversations that rests on."""
    from esc_env.evaluation.runs.report import percent

    for name, report in reports.items():
        for kind, parts in (("emotion", report.by_emotion), ("problem", report.by_problem)):
            if len(parts) > 1:
                hardest = min(parts, key=lambda part: parts[part].success_rate)
                group = parts[hardest]
                many = f"{group.episodes:,} conversation{'' if group.episodes == 1 else 's'}"
                typer.echo(f"{agent}, {name}: hardest {kind} {hardest}, SR {percent(group.success_rate)} of {many}")


@app.command("sensitivity")
def _sensitivity(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
) -> None:
    """Count runs again by other T, thresholds and numbers of votes, from the votes that they keep; no model is asked.

    Under other rules some conversations would have gone on, and nobody knows how they would have ended: then the
    success rate lies between two bounds. For another critic, or another temperature of it, new votes are needed:
    `esc rejudge`.
    """
    from esc_env.evaluation.commands.tables import print_table
    from esc_env.evaluation.ranking.leaderboard import find_runs
    from esc_env.evaluation.runs.report import interval_text, percent
    from esc_env.evaluation.runs.runner import read_run
    from esc_env.evaluation.validity.robustness import sensitivity

    for folder in find_runs(runs):
        report = read_run(folder)
        rows = [
            (row.what, percent(row.low), interval_text(row.interval), percent(row.high), f"{row.open:,}")
            for row in sensitivity(report)
        ]
        columns = [("rules", False), ("SR at least", True), ("95 %", True), ("SR at most", True), ("open", True)]
        print_table(f"{report.agent} on {report.scenarios} ({folder})", columns, rows)


@app.command("attacks")
@grouped
def _attacks(
    *,
    only: Annotated[list[str] | None, typer.Option(help="Only the attack of this name; repeat it for several.")] = None,
    scenarios: Annotated[str, typer.Option("--scenarios", "-s", help="Who is talked with.")] = "builtin:test",
    out: _Out = Path("runs/robustness/attacks"),
    trials: _Trials = 1,
    seed: _Seed = 0,
    limit: Limit = None,
    persona: Persona = None,
    seeker: Seeker,
    critic: Critic,
    progress: Progress = None,
    models: Models,
) -> None:
    """Try to game a seeker and critic of your choice: forged turns, instructions to the critic, flattery, word salad.

    Each attack is a supporter that helps nobody; a few good ones are added for comparison. Shown is how much more each
    one solves than one that says nothing. For the seekers and critics in the package, `esc validate gaming` checks this
    against fixed bounds. It also has supporters whose words were written for the people of builtin:test: here they
    need --only.
    """
    from esc_env.errors import SpecError, did_you_mean
    from esc_env.evaluation.commands.tables import print_table
    from esc_env.evaluation.pages.run import run_pages, write_pages
    from esc_env.evaluation.runs.report import interval_text, number, percent
    from esc_env.evaluation.validity.gaming import PROBES
    from esc_env.evaluation.validity.robustness import attacks
    from esc_env.progress import shown
    from esc_env.records import write_json

    names = [probe.name for probe in PROBES]
    for name in only or ():
        if name not in names:
            raise SpecError(f"no attack {name!r}. {did_you_mean(name, names)}")
    with shown(wanted=progress) as told:
        gains = list(
            attacks(
                out, names=only or (), progress=told, scenarios=scenarios, trials=trials, seed=seed, limit=limit,
                persona=persona, **seeker, **critic, **asdict(models),
            )
        )  # fmt: skip
    for gain in gains:
        write_pages(run_pages(gain.report), gain.report.folder)
    columns = [
        ("attack", False), ("what it does", False), ("SR", True), ("95 %", True), ("points gained", True),
        ("score gained", True),
    ]  # fmt: skip
    rows = [
        (
            gain.probe.name, gain.probe.about, percent(gain.report.success_rate), interval_text(gain.report.interval),
            number(gain.points, 1, signed=True), number(gain.score, 2, signed=True),
        )
        for gain in gains
    ]  # fmt: skip
    print_table("Gained over saying nothing", columns, rows)
    told_of = [(gain.probe.name, gain.report.success_rate, gain.points, gain.score) for gain in gains]
    names = ["attack", "success_rate", "points", "score"]
    write_json(out / "attacks.json", [dict(zip(names, row, strict=True)) for row in told_of])
    typer.echo(f"Written: {out / 'attacks.json'}")

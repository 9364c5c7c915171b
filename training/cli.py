"""`esc collect` and `esc train sft|rm|grpo|pipeline|ablate|presets`, where every field is an option."""

from __future__ import annotations

import io
import logging
import os
import signal
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from esc_env.cli_options import (
    AgentOptions,
    Critic,
    Limit,
    Models,
    Persona,
    Progress,
    Seeker,
    Temperature,
    Workers,
    grouped,
)
from esc_env.evaluation.commands.beside import beside
from esc_env.evaluation.view.kinds import KINDS, Pages
from esc_env.models.endpoint import unreachable
from esc_env.progress import again
from esc_env.training.config import STAGES, is_main, launched, processes
from esc_env.training.config_loading import ACCELERATE, PRESETS, described, read_pipeline, read_varied

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `esc`."""
    app.command("collect")(_collect)
    app.add_typer(train, name="train")
    KINDS.update(stage=_pages, pipeline=_pages)


def _pages() -> Pages:
    from esc_env.training import pages

    return pages


def _shown(out: Path, view: bool, page: str = "now/") -> AbstractContextManager[None]:
    """With `--view`, the pages of what is trained meanwhile; of several processes the first one shows them."""
    return beside(out, page) if view and is_main() else nullcontext()


@grouped
def _collect(
    *,
    agent: Annotated[
        str,
        typer.Option(
            "--agent",
            "-a",
            help="Who responds and goes on: builtin:NAME; a chat model, PROVIDER/NAME[@URL][#STYLE] or local:PATH; or "
            "python:MODULE:NAME.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The collection's folder. The same command resumes.")],
    scenarios: Annotated[
        str, typer.Option("--scenarios", "-s", help="Who is talked with: builtin:train, esconv:train, or a file.")
    ] = "builtin:train",
    temperature: Temperature = 0.7,
    agent_options: AgentOptions,
    seeker: Seeker,
    critic: Critic,
    source: Annotated[
        Literal["auto", "human", "simulated"],
        typer.Option(
            help="Where contexts (conversations so far) are taken from: human dialogues, conversations simulated on "
            "the spot, or (auto) the human dialogue where a scenario has one."
        ),
    ] = "auto",
    persona: Persona = None,
    limit: Limit = None,
    contexts: Annotated[
        int | None, typer.Option(min=1, help="Only so many contexts, drawn by --seed. Default: all.")
    ] = None,
    candidates: Annotated[int, typer.Option("--candidates", "-m", min=1, help="m: responses sampled per context.")] = 4,
    rollouts: Annotated[
        int,
        typer.Option("--rollouts", "-k", min=1, help="K: futures (simulated ends) per response."),
    ] = 1,
    horizon: Annotated[
        int | None, typer.Option(min=1, help="T of a future, the turn of its response included. Default: --max-turns.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Episodes per scenario, each with its own seed.")] = 1,
    valid: Annotated[float, typer.Option(help="Share of scenarios set aside for the reward model, in [0, 1).")] = 0.2,
    valid_candidates: Annotated[
        int | None, typer.Option(min=1, help="m of those set aside. Default: --candidates.")
    ] = None,
    valid_rollouts: Annotated[
        int | None, typer.Option(min=1, help="K of those set aside. Default: --rollouts.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same data (with builtin chairs).")] = 0,
    max_turns: Annotated[int, typer.Option(min=1, help="T: most turns of a conversation, and of a future.")] = 8,
    models: Models,
    backend: Workers,
    progress: Progress = None,
) -> None:
    """Sample responses to contexts and simulate what becomes of them: the data of a reward model.

    Every response is kept as soon as its futures have ended; the same command goes on where it stopped. At the end,
    card.md says what was collected.
    """
    from esc_env.progress import shown
    from esc_env.rules import Rules
    from esc_env.training.collect import collect

    with shown(wanted=progress) as told:
        made = collect(
            agent, scenarios, **seeker, **critic, rules=Rules(max_turns=max_turns), source=source, persona=persona,
            limit=limit, contexts=contexts, candidates=candidates, rollouts=rollouts, horizon=horizon, trials=trials,
            valid=valid, valid_candidates=valid_candidates, valid_rollouts=valid_rollouts, seed=seed, out=out,
            progress=told, temperature=temperature, agent_options=agent_options, backend=backend, **asdict(models),
        )  # fmt: skip
    card = made.card
    typer.echo(
        f"{card['samples']:,} samples of {card['scenarios']:,} scenarios: {card['candidates']:,} responses to "
        f"{card['contexts']:,} contexts, {card['tails']:,} tail labels"
    )
    if card["samples"]:
        typer.echo(f"solved {card['all']['solved']:.1%}, mean reward {card['all']['reward']:+.3f}")
    for message, count in card["errors"].items():
        typer.echo(f"{count:,} × {message}")
    typer.echo(str(made.folder / "card.md"))
    if not made.complete:
        typer.echo("Incomplete: some responses have no future. The same command tries them again")
        raise typer.Exit(1)


# --- esc train ------------------------------------------------------------------------------------

_OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}


Out = Annotated[Path, typer.Option("--out", "-o", help="The run's folder. The same command resumes.")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "--config",
        "-p",
        help="A preset (see `esc train presets`) or a YAML file of the same form. Without one: the method's numbers.",
    ),
]


View = Annotated[
    bool,
    typer.Option(
        "--view",
        help="Follow training in the browser: curves, and what the policy says. A process of its own shows the page: "
        "end it, and training goes on. The page stays until Ctrl-C; `esc report OUT` keeps it as a file. Needs the "
        "extras 'web' and 'pages'.",
    ),
]


class _Fields(TyperCommand):
    """A command that takes the fields of a configuration too; its help says what they are."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the fields."""
        super().format_options(ctx, formatter)
        with formatter.section("Fields, as --name value"):
            formatter.write_dl(described(self.name if self.name in STAGES else None))


class _Resumable(TyperGroup):
    """Commands that Ctrl-C ends with the way to go on, and of several processes that run one the first tells."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        if processes() > 1:  # a launcher ends all of them when one has failed
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        if not is_main():
            logging.getLogger("esc_env").setLevel(logging.ERROR)
        try:
            with nullcontext() if is_main() else redirect_stdout(io.StringIO()):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(f"\nStopped. What was finished and the last checkpoint are kept. {again()}", err=True)
            raise typer.Exit(130) from None
        finally:
            if processes() > 1:  # whatever it is, it has ended: what is left to say is not cut off
                signal.signal(signal.SIGTERM, signal.SIG_IGN)


train = typer.Typer(
    cls=_Resumable,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train policies and reward models, by the method of RLFF-ESC (docs/training.md).",
)


@train.command("sft", cls=_Fields, context_settings=_OPEN)
def _sft(
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="Human dialogues (esconv:train, extes:train, a file), or a folder of `esc eval` or `esc collect`, of "
            "which what was solved is learned.",
        ),
    ],
    out: Out,
    preset: Preset = None,
    view: View = False,
) -> None:
    """Fine-tune a policy (supervised) on what supporters said. `esc eval --agent local:OUT` then tests it."""
    whole = read_pipeline(preset, ctx.args, stage="sft")
    from esc_env.training.sft import lessons_from, train_sft
    from esc_env.training.stage import asked

    items = lessons_from(data)
    with _shown(out, view):
        typer.echo(str(train_sft(whole.sft, out, items, system=asked(whole.setting, items))))


@train.command("rm", cls=_Fields, context_settings=_OPEN)
def _rm(
    ctx: typer.Context,
    data: Annotated[Path, typer.Option("--data", "-d", help="A folder that `esc collect` wrote.")],
    out: Out,
    preset: Preset = None,
    view: View = False,
) -> None:
    """Train a reward model on collected futures, and measure it on scenarios it has not seen."""
    config = read_pipeline(preset, ctx.args, stage="rm").rm
    from esc_env.training.data import read_samples
    from esc_env.training.reward_model import train_reward_model

    with _shown(out, view):
        report = train_reward_model(config, out, read_samples(data))
        for name in ("auc", "auc_within", "accuracy", "base_accuracy", "ece", "error"):
            value = getattr(report, name)
            if value is not None:
                ends = getattr(report, f"{name}_interval", None)
                typer.echo(f"{name:14} {value:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""))
        typer.echo(str(out))


@train.command("grpo", cls=_Fields, context_settings=_OPEN)
def _grpo(
    ctx: typer.Context,
    out: Out,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", "-d", help="A folder that `esc collect` wrote: whose contexts are answered. Not for --reward env."
        ),
    ] = None,
    reward_model: Annotated[
        Path | None,
        typer.Option(
            help="A folder that `esc train rm` wrote, for --reward rlff; for untrained, the base model of one."
        ),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            help="Who goes on after a response, for --reward future. Default: the model that training begins with."
        ),
    ] = None,
    preset: Preset = None,
    view: View = False,
) -> None:
    """Train a policy with GRPO (group relative policy optimisation). `esc eval --agent local:OUT` then tests it.

    --reward says what is rewarded: rlff (a reward model's prediction), future (simulated futures), env (whole
    conversations); as controls, which should not help, untrained (a reward model that nobody has trained), noise, and
    format (the think format alone).
    """
    whole = read_pipeline(preset, ctx.args, stage="grpo")
    from esc_env.training.data import read_samples
    from esc_env.training.grpo import optimise
    from esc_env.training.pipeline import on_valid

    judged = replace(whole, evaluate=replace(whole.evaluate, concurrency=whole.grpo.concurrency))
    with _shown(out, view):
        made = optimise(
            whole.grpo, whole.setting, out,
            samples=read_samples(data, tails=False) if data is not None else (),
            reward_model=reward_model,
            continuing=agent or f"local:{whole.grpo.model}#{whole.setting.style}",
            success=None if whole.setting.valid == "none" else on_valid(judged, out, told=typer.echo),
            models=whole.calls(whole.grpo),
        )  # fmt: skip
        typer.echo(str(made))


@train.command("pipeline", cls=_Fields, context_settings=_OPEN)
def _pipeline(ctx: typer.Context, out: Out, preset: Preset = "qwen2.5-0.5b", view: View = False) -> None:
    """Run the whole method: sft, collect, rm, grpo, evaluate. The same command goes on where it stopped.

    That is: fine-tune, simulate futures, train a reward model, train the policy with it, test it (docs/training.md).
    Any field is an option: those of the setting as they are (--model PATH, --seeker openai/gpt-4o, --skip sft), and how
    chat models are called (--budget '5 USD', --rpm, --tpm, --timeout, --deadline, --record, --replay, --cache, --wire,
    --api-key-env); those of a stage with its name (--grpo.max_steps 100, --rm.kind ranking).
    """
    config = read_pipeline(preset, ctx.args)
    from esc_env.training.pipeline import run_pipeline

    with _shown(out, view):
        run_pipeline(config, out, told=typer.echo)
        if is_main():  # the others may be through before it is written
            typer.echo(f"\n{(out / 'report.md').read_text(encoding='utf-8')}\n{out / 'report.md'}")


@train.command("ablate", cls=_Fields, context_settings=_OPEN)
def _ablate(
    ctx: typer.Context,
    out: Out,
    preset: Preset = "tiny",
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds: everything is trained so many times.")] = 3,
    grpo_seeds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Seeds of GRPO for each of them, in the arms that claims rest on; SFT, collection and reward "
            "models are shared.",
        ),
    ] = 1,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this arm (row of the table); repeat it for several: rlff, 'no tails', ranking, regression, env, "
            "future, 'no think-format', 'format only', 'untrained + format', untrained, 'noise + format', noise, "
            "'rlff, steady start'. Default: all of them."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="How many are trained at the same time, each in its own process.")
    ] = 1,
    view: View = False,
) -> None:
    """Train with every reward and control at identical settings, and print the table of what each one gains.

    Each row, an arm, is one of them. What arms share (sft, collect, reward models) is made once per seed. The same
    command goes on where it stopped. Fields of the configuration are options, as in `esc train pipeline`.
    """
    config = read_pipeline(preset, ctx.args)
    from esc_env.training.ablate import ablate

    with _shown(out, view, page=""):
        typer.echo(ablate(config, out, seeds=seeds, grpo_seeds=grpo_seeds, arms=arm, jobs=jobs, told=typer.echo))


@train.command("sweep", cls=_Fields, context_settings=_OPEN)
def _sweep(
    ctx: typer.Context,
    out: Out,
    vary: Annotated[
        list[str],
        typer.Option(
            help="A field and its values: grpo.alpha=0.2,0.5,0.8; repeat it for other fields. A value that has a comma "
            "stands in single quotes.",
        ),
    ],
    preset: Preset = "tiny",
    grid: Annotated[
        bool,
        typer.Option(
            "--grid/--one-at-a-time",
            help="Every value with every value of the other fields; or the values of one field at a time, all others "
            "as in the preset.",
        ),
    ] = True,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds: everything is trained so many times.")] = 3,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="How many are trained at the same time, each in its own process.")
    ] = 1,
    view: View = False,
) -> None:
    """Train with every value of some fields, and print a table of what each setting gains.

    A stage that two settings do not differ in is made once. The same command goes on where it stopped, also with more
    values or seeds. Fields of the configuration are options, as in `esc train pipeline`.
    """
    config, varied = read_varied(preset, ctx.args, vary)
    from esc_env.training.sweep import sweep

    with _shown(out, view, page=""):
        typer.echo(sweep(config, varied, out, grid=grid, seeds=seeds, jobs=jobs, told=typer.echo))


@train.command("check", cls=_Fields, context_settings=_OPEN)
def _check(
    ctx: typer.Context,
    stage: Annotated[
        Literal["pipeline", "sft", "rm", "grpo"], typer.Argument(help="Which command of `esc train`.")
    ] = "pipeline",
    data: Annotated[str | None, typer.Option("--data", "-d", help="As that command takes it.")] = None,
    reward_model: Annotated[str | None, typer.Option(help="As `esc train grpo` takes it.")] = None,
    agent: Annotated[str | None, typer.Option(help="As `esc train grpo` takes it.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder, whose disk is looked at. It is not made.")
    ] = None,
    preset: Preset = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, help="How many will train together. Default: 1, or as the launcher says."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option("--memory", min=0.1, help="GB of each GPU. Default: those of this machine's."),
    ] = None,
) -> None:
    """Say what a run would download, hold in memory and ask, and what is missing or does not fit; nothing is loaded.

    It takes what the command takes that it is about: put `check` behind `esc train` in any line. Memory is an
    estimate. Exits with 1 where something is wrong.
    """
    if unreachable(os.environ.get("HF_ENDPOINT") or "https://huggingface.co"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # else its libraries try again and again
    with launched(processes):
        config = read_pipeline(
            preset or ("qwen2.5-0.5b" if stage == "pipeline" else None),
            ctx.args,
            stage=None if stage == "pipeline" else stage,
        )
        from esc_env.training.check import Wanted, check, told

        stages = [each for each in STAGES if config.runs(each)] if stage == "pipeline" else [stage]
        wanted = None if stage == "pipeline" else Wanted(data, reward_model, agent)
        found = check(config, stages, wanted, out=out, memory=memory and memory * 1e9)
    for line in told(found):
        typer.echo(line)
    if wrong := sum(each.wrong for each in found):
        typer.echo(f"\n{wrong} of these must be put right first: those with ✗")
        raise typer.Exit(1)


@train.command("presets")
def _presets() -> None:
    """Name the presets, and the files of them and of the configurations for `accelerate launch`."""
    for path in (*sorted(PRESETS.glob("*.yaml")), *sorted(ACCELERATE.glob("*.yaml"))):
        typer.echo(f"{path.stem:14} {path}")

"""`esc train sft|rm|grpo|pipeline|ablate|presets`. Every field of a stage's configuration is an option."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import MISSING, Field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from esc_env.cli import AgentOption, CriticOption, SeekerOption
from esc_env.models import read_options
from esc_env.training.config import GRPOStage, Models, RewardModelStage, SFTStage
from esc_env.training.config_loading import ACCELERATE, PRESETS, read_pipeline

__all__ = ["app"]

_OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}


class _Style(StrEnum):
    THINK = "think"
    STANDARD = "standard"


Out = Annotated[Path, typer.Option("--out", "-o", help="The run's folder. The same command resumes.")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "--config",
        "-p",
        help="A preset (see `esc train presets`) or a YAML file of the same form. Default: the method's numbers.",
        show_default=False,
    ),
]
Style = Annotated[
    _Style | None,
    typer.Option(help="How the policy is prompted, then and now: #think or #standard of `esc eval`. Default: think.",
                 show_default=False),
]  # fmt: skip


def _options(*kinds: type[Any]) -> str:
    """The fields of configurations as options with their defaults, for --help."""

    def shown(field: Field[Any]) -> str:
        value = field.default if field.default is not MISSING else "none"
        return f"--{field.name.replace('_', '-')} ({'none' if value in (None, '') else value})"

    return "Also, as --name value: " + ", ".join(shown(field) for kind in kinds for field in fields(kind)) + "."


class _Resumable(TyperGroup):
    """Commands that Ctrl-C ends with the way to go on."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(f"\nStopped. What was finished and the last checkpoint are kept. {_again()}", err=True)
            raise typer.Exit(130) from None


def _again() -> str:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return "To go on, type the same `accelerate launch` line"
    return f"To go on, type: {shlex.join(['esc', *sys.argv[1:]])}"


app = typer.Typer(
    cls=_Resumable, no_args_is_help=True, rich_markup_mode=None, help="Train policies and reward models: RLFF-ESC."
)


@app.command("sft", context_settings=_OPEN, epilog=_options(SFTStage))
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
    style: Style = None,
    preset: Preset = None,
) -> None:
    """Fine-tune a policy on what supporters said. The result: local:OUT."""
    whole = read_pipeline(preset, ctx.args, stage="sft")
    from esc_env.training.pipeline import asked, lessons_from
    from esc_env.training.sft import train_sft

    items = lessons_from(data)
    setting = replace(whole.setting, style=style.value) if style else whole.setting
    typer.echo(str(train_sft(whole.sft, out, items, system=asked(setting, items))))


@app.command("rm", context_settings=_OPEN, epilog=_options(RewardModelStage))
def _rm(
    ctx: typer.Context,
    data: Annotated[Path, typer.Option("--data", "-d", help="A folder that `esc collect` wrote.")],
    out: Out,
    preset: Preset = None,
) -> None:
    """Train a reward model on collected futures, and measure it on scenarios it has not seen."""
    config = read_pipeline(preset, ctx.args, stage="rm").rm
    from esc_env.training.data import read_samples
    from esc_env.training.reward_model import train_reward_model

    report = train_reward_model(config, out, read_samples(data))
    for name in ("auc", "auc_within", "accuracy", "base_accuracy", "ece", "error"):
        value = getattr(report, name)
        if value is not None:
            typer.echo(f"{name:14} {value:.3f}")
    typer.echo(str(out))


@app.command("grpo", context_settings=_OPEN, epilog=_options(GRPOStage, Models))
def _grpo(
    ctx: typer.Context,
    out: Out,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            help="A folder that `esc collect` wrote: whose contexts are answered. Not for --reward env.",
            show_default=False,
        ),
    ] = None,
    reward_model: Annotated[
        Path | None, typer.Option(help="A folder that `esc train rm` wrote, for --reward rlff.", show_default=False)
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            help="Who goes on after a response, for --reward future. Default: the model that training begins with.",
            show_default=False,
        ),
    ] = None,
    scenarios: Annotated[
        str | None, typer.Option(help="Whom conversations are held with, for --reward env.", show_default=False)
    ] = None,
    seeker: Annotated[str | None, typer.Option(help="As in `esc eval`. Default: builtin.", show_default=False)] = None,
    critic: Annotated[str | None, typer.Option(help="As in `esc eval`. Default: builtin.", show_default=False)] = None,
    agent_option: AgentOption = None,
    seeker_option: SeekerOption = None,
    critic_option: CriticOption = None,
    valid: Annotated[
        str | None,
        typer.Option(
            help="Scenarios that every checkpoint is judged by: the best one becomes the result, and training "
            "warns when it gets worse there. none: the last checkpoint is the result. Default: the "
            "preset's, else builtin:valid.",
            show_default=False,
        ),
    ] = None,
    style: Style = None,
    preset: Preset = None,
) -> None:
    """Train a policy with GRPO. The result: local:OUT.

    --reward rlff (a learned reward model), future (simulated futures), env (whole conversations); as controls random
    and format (the think format alone).
    """
    whole = read_pipeline(preset, ctx.args, stage="grpo")
    from esc_env.training.data import read_samples
    from esc_env.training.pipeline import on_valid, optimise

    given: dict[str, Any] = {
        "scenarios": scenarios, "seeker": seeker, "critic": critic, "valid": valid, "style": style and style.value,
    }  # fmt: skip
    for chair, options in (("agent", agent_option), ("seeker", seeker_option), ("critic", critic_option)):
        name = f"{chair}_options"
        given[name] = {**getattr(whole.setting, name), **read_options(options or (), chair)}
    setting = replace(whole.setting, **{name: value for name, value in given.items() if value is not None})
    judged = replace(whole, setting=setting, evaluate=replace(whole.evaluate, concurrency=whole.grpo.concurrency))
    made = optimise(
        whole.grpo, setting, out,
        samples=read_samples(data, tails=False) if data is not None else (),
        reward_model=reward_model,
        continuing=agent or f"local:{whole.grpo.model}#{setting.style}",
        success=None if valid == "none" else on_valid(judged, out, told=typer.echo),
        models=whole.models,
    )  # fmt: skip
    typer.echo(str(made))


@app.command("pipeline", context_settings=_OPEN)
def _pipeline(
    ctx: typer.Context,
    out: Out,
    preset: Annotated[
        str, typer.Option("--preset", "--config", "-p", help="A preset (see `esc train presets`) or a YAML file.")
    ] = "qwen2.5-0.5b",
) -> None:
    """Run the whole method: sft, collect, rm, grpo, evaluate. The same command goes on where it stopped.

    Any field is an option: those of the setting as they are (--model PATH, --seeker openai/gpt-4o, --skip sft), and how
    chat models are called (--budget '5 USD', --rpm, --tpm, --timeout, --deadline, --record, --replay, --cache, --wire);
    those of a stage with its name (--grpo.max_steps 100, --rm.kind ranking).
    """
    config = read_pipeline(preset, ctx.args)
    from esc_env.training.pipeline import run_pipeline
    from esc_env.training.stage import is_main

    run_pipeline(config, out, told=typer.echo)
    if is_main():
        typer.echo(f"\n{(out / 'report.md').read_text(encoding='utf-8')}\n{out / 'report.md'}")


@app.command("ablate", context_settings=_OPEN)
def _ablate(
    ctx: typer.Context,
    out: Out,
    preset: Annotated[
        str, typer.Option("--preset", "--config", "-p", help="A preset (see `esc train presets`) or a YAML file.")
    ] = "tiny",
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds: everything is trained so many times.")] = 3,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this arm; repeat it for several: rlff, ranking, regression, env, future, 'no think-format', "
            "'format only', 'random + format', random. Default: all of them.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option("--jobs", "-j", min=1, help="How many are trained at the same time, each in its own process."),
    ] = 1,
) -> None:
    """Train with every reward and control at identical settings, and print the table of what each one gains.

    What arms share (sft, collect, reward models) is made once per seed. The same command goes on where it stopped.
    Fields of the configuration are options, as in `esc train pipeline`.
    """
    config = read_pipeline(preset, ctx.args)
    from esc_env.training.ablate import ablate

    typer.echo(ablate(config, out, seeds=seeds, arms=arm, jobs=jobs, told=typer.echo))


@app.command("presets")
def _presets() -> None:
    """Name the presets, and the files of them and of the configurations for `accelerate launch`."""
    for path in (*sorted(PRESETS.glob("*.yaml")), *sorted(ACCELERATE.glob("*.yaml"))):
        typer.echo(f"{path.stem:14} {path}")

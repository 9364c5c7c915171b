"""The command line, `esc`. Commands of the other packages are found through entry points, so this looks down only.

A package adds commands with an entry point of group `esc_env.commands` whose value is a function `register(app)`.
Modules that hold them import nothing heavy: a command loads its package when it is called.
"""

from __future__ import annotations

import codecs
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Annotated, Any

import typer

from esc_env.errors import ESCError
from esc_env.escaping import one_line
from esc_env.secrets import struck

__all__ = ["build_app", "main"]


def build_app() -> typer.Typer:
    """The app with every installed command.

    Two entry points may name the same command; the later one wins, as Typer has it.
    """
    app = typer.Typer(
        name="esc",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for point in sorted(entry_points(group="esc_env.commands"), key=lambda point: point.name):
        try:
            register = point.load()
        except (ImportError, AttributeError) as error:  # somebody's package, or ours in another version
            _show_warning(f"the commands of {point.value} are left out: {error}. Install that package again")
        else:
            register(app)
    app.command("scenarios")(_scenarios)
    app.command("doctor")(_doctor)
    app.command("take-over")(_take_over)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `esc`. Errors that are ours are one line on stderr and exit code 1, never a traceback."""
    warnings.showwarning = _show_warning
    notes = logging.getLogger("esc_env")
    notes.setLevel(logging.INFO)  # such as which number format a local model was loaded in
    if not any(isinstance(handler, _Notes) for handler in notes.handlers):
        notes.addHandler(_Notes())
    _forgive(sys.stdout, "esc-env")
    _forgive(sys.stdin, "replace")
    if "" not in sys.path:
        sys.path.append("")  # python:my_agents:respond finds my_agents.py in the folder where `esc` is typed
    try:
        build_app()(None if arguments is None else list(arguments), prog_name="esc")
    except ESCError as error:
        _fail(one_line(str(error)))
    except BrokenPipeError:  # `esc … | head` has read enough
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")


_PLAIN = {"−": "-", "–": "-", "—": "-", "×": "x", "…": "...", "·": "-", "‘": "'", "’": "'", "“": '"', "”": '"'}
"""How what we and models often write looks where only some code page's characters can be shown."""


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(each, "?") for each in error.object[error.start : error.end]), error.end


codecs.register_error("esc-env", _replace)


def _forgive(stream: Any, errors: str) -> None:
    """Let a stream replace what its encoding does not have, as under a Windows code page: no result is lost to it.

    A stream of somebody else's, or one that was told what to do (`PYTHONIOENCODING=ascii:xmlcharrefreplace`), is left
    alone; so is stderr, which Python itself makes forgiving.
    """
    if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=errors)


def _fail(message: str) -> None:
    print(f"esc: {struck(message)}", file=sys.stderr)
    raise SystemExit(1)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"esc: note: {struck(str(message))}", file=sys.stderr)


class _Notes(logging.Handler):
    """What our own loggers say, as the command line's other notes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        _show_warning(record.getMessage())


def _print_version(wanted: bool) -> None:
    if wanted:
        import platform

        base, extras = _requirements()
        theirs = [name for extra, packages in extras.items() if extra != "dev" for name in packages]
        typer.echo(f"esc-env {_installed('esc-env')}\nPython {platform.python_version()}")
        for name in dict.fromkeys([*base, *theirs]):
            if found := _installed(name):
                typer.echo(f"{name} {found}")
        raise typer.Exit


def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of esc-env, Python and the packages it uses, and stop.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    """Benchmark supporters, talk to seekers, read scenarios. Everything runs offline unless you name a model."""


def _scenarios(
    source: Annotated[
        str, typer.Argument(help="A file, or builtin[:SPLIT], esconv:SPLIT, esconv-hf:SPLIT, extes:SPLIT.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what a scenario file or set holds. A scenario is a person with a problem.

    Counts by emotion, problem, strategy and turns, and every record that was skipped, with its reason.
    """
    import json

    from esc_env.data.datasets import load_scenarios, read_file, summarise

    summary = summarise(read_file(source) if Path(source).is_file() else load_scenarios(source))
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=2, ensure_ascii=False))
        return
    layout = f" ({summary.format})" if summary.format else ""
    typer.echo(f"{summary.name}{layout}: {summary.scenarios:,} scenarios of {summary.records:,} records")
    typer.echo(f"{summary.risk:,} touch self-harm or suicide")
    for name, spread in (("supporter turns a dialogue", summary.turns), ("facts a scenario", summary.facts)):
        if spread:
            typer.echo(f"{name}: {spread[0]:g} to {spread[2]:g}, median {spread[1]:g}")
    for title, counts in (
        ("split", summary.splits),
        ("emotion", summary.emotions),
        ("problem", summary.problems),
        ("strategy", summary.strategies),
    ):
        if counts:
            width = max(map(len, counts))
            typer.echo(f"\n{title}")
            for name, count in counts.items():
                typer.echo(f"  {one_line(name):{width}}  {count:>7,}")
    if summary.near_duplicates:
        typer.echo(f"\n{len(summary.near_duplicates):,} pairs of nearly the same situation in different splits")
        for first, second in summary.near_duplicates:
            typer.echo(f"  {one_line(first)}  {one_line(second)}")
    if summary.skipped:
        typer.echo(f"\n{len(summary.skipped):,} skipped")
        for skipped in summary.skipped:
            typer.echo(f"  {one_line(str(skipped))}")


def _take_over(
    folder: Annotated[
        Path, typer.Argument(help="The folder of a run, of a collection or of training; or one with some inside.")
    ],
) -> None:
    """Let a run go on here that was copied, unpacked, or begun on another machine.

    Until then such a folder is only read. Afterwards what is in it is trusted, and the command that made it goes on
    where it stopped.
    """
    from esc_env.folder import take_over

    for taken in (found := take_over(folder)):
        typer.echo(f"Taken over: {one_line(str(taken))}")
    if not found:
        typer.echo(f"{one_line(str(folder))}: was begun here; there is nothing to take over")


_ADDS = {
    "stats": "tests of differences (esc compare) and likeness to human replies (esc wording --human)",
    "bertscore": "BERTScore (esc wording --bertscore)",
    "data": "scenarios from Parquet and zstd files",
    "judge": "esc judge, esc rejudge, and judges and seekers beside people",
    "web": "pages that are served: esc view, esc annotate, esc chat --web, and --view",
    "llm": "chat models behind an API as supporter, seeker and critic",
    "local": "local models and LoRA adapters as supporters",
    "train": "training: supervised, reward model, GRPO",
    "vllm": "faster generation while GRPO trains on GPUs",
    "deepspeed": "training spread over GPUs by ZeRO",
    "tensorboard": "training shown in TensorBoard",
    "wandb": "training shown in Weights & Biases",
    "trackio": "training shown in Trackio",
    "docs": "the site of this documentation",
    "pettingzoo": "seeker and supporter both as policies, in PettingZoo",
    "verifiers": "the environment in verifiers",
    "inspect": "the task in Inspect",
    "openenv": "the environment as an OpenEnv server",
    "ray": "many processes, on one machine or many (--backend ray)",
    "skyrl": "the environment in SkyRL",
    "verl": "agent loops of verl",
    "pages": "charts on pages: esc report, esc leaderboard --out, esc view",
    "dev": "the tests, type checks and lint of this repository",
}

_KEYS = (
    "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY", "DEEPSEEK_API_KEY", "DASHSCOPE_API_KEY",
    "GROQ_API_KEY", "TOGETHERAI_API_KEY", "OPENROUTER_API_KEY", "AZURE_API_KEY", "HF_TOKEN", "ESC_API_KEY",
)  # fmt: skip
"""Where LiteLLM, the Hub and `@URL` look for keys. *Source:* LiteLLM's provider pages."""


def _doctor() -> None:
    """Say what is installed and found.

    Versions; extras and what each missing one would add; data folders; how chat models are reached; which API keys are
    set (never their values).
    """
    import os
    import platform
    from urllib.parse import urlsplit

    from esc_env.data.datasets import data_folders
    from esc_env.models.budget import known_prices

    base, extras = _requirements()
    typer.echo(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    typer.echo(f"esc-env {_installed('esc-env')}, " + ", ".join(f"{name} {_installed(name)}" for name in base))
    typer.echo("\nExtras")
    for extra, packages in extras.items():
        missing = [name for name in packages if _installed(name) is None]
        typer.echo(f"  {extra:9} {'installed' if not missing else 'missing: ' + ', '.join(missing)}")
        if missing:
            typer.echo(f"            adds {_ADDS.get(extra, 'more')}. Type: pip install 'esc-env[{extra}]'")
    typer.echo("\nData folders, in the order in which they are searched (ESC_DATA names another)")
    for folder in data_folders():
        held = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else None
        state = "not there" if held is None else f"{len(held)} files: {', '.join(held[:8])}" if held else "empty"
        typer.echo(f"  {folder}  ({state})")
    typer.echo("\nChat models")
    for wire, serves in (("aiohttp", "openai/NAME and any @URL"), ("litellm", "every other provider")):
        typer.echo(f"  {wire:20} {serves if _installed(wire) else f'missing, needed for {serves}'}")
    typer.echo(f"  {'known prices':20} {known_prices():,} models; the price of others is unknown, never $0")
    own = urlsplit(os.environ.get("OPENAI_BASE_URL", "")).hostname
    typer.echo(f"  {'openai/NAME goes to':20} {f'{own} (OPENAI_BASE_URL)' if own else 'api.openai.com'}")
    typer.echo("\nKeys in the environment (never shown)")
    for key in _KEYS:
        typer.echo(f"  {key:20} {'set' if os.environ.get(key) else 'not set'}")


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Package names that esc-env needs, and those of each extra, as its metadata declares them."""
    base: list[str] = []
    extras: dict[str, list[str]] = {}
    for requirement in requires("esc-env") or []:
        wanted, _, marker = requirement.partition(";")
        name = re.split(r"[^\w.-]", wanted.strip(), maxsplit=1)[0]
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", marker)
        if not extra:
            base.append(name)
        elif name != "esc-env":
            extras.setdefault(extra[1], []).append(name)
    return base, extras


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Every command line that the documentation of training and judging shows is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from typer.main import get_command

from esc_env.cli import build_app, main
from esc_env.specs import parse_spec
from esc_env.training.ablate import ARMS
from esc_env.training.config_loading import read_pipeline, read_varied

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / "docs" / f"{name}.md" for name in ("training", "rewards", "tiny", "judges")),
    *sorted((ROOT / "training").glob("*.py")),
]
LINE = re.compile(
    r"""\s*(?:esc|.*accelerate\ launch\ .*"\$\(command\ -v\ esc\)")  # alone, or on several GPUs
    \s+((?:eval|collect|train|judge|rejudge|validate)\s.*?)
    (?:\s+\#.*)?$""",
    re.VERBOSE,
)


def shown(page: Path) -> list[str]:
    """What stands after `esc` in lines of their own, continuations joined."""
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [found[1] for found in map(LINE.fullmatch, lines) if found]


@pytest.mark.parametrize("line", [line for page in PAGES for line in shown(page)])
def test_a_command_line_of_the_documentation_is_taken(line: str) -> None:
    command: Any = get_command(build_app())
    words = shlex.split(line)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    context = command.make_context(command.name, words)
    for chair in ("agent", "seeker", "critic"):
        given = context.params.get(chair) or []
        for spec in [given] if isinstance(given, str) else given:
            parse_spec(spec)
    if command.name in ("sft", "rm", "grpo"):
        setting = read_pipeline(context.params["preset"], context.args, stage=command.name).setting
        for spec in (setting.seeker, setting.critic):
            parse_spec(spec)
    elif command.name in ("pipeline", "ablate", "sweep"):
        read_varied(context.params["preset"], context.args, context.params.get("vary", ()))


def test_there_are_such_lines() -> None:
    with_lines = {page.name for page in PAGES if shown(page)}
    stages = {"sft.py", "reward_model.py", "grpo.py", "pipeline.py", "ablate.py", "sweep.py"}
    assert with_lines >= {"training.md", "rewards.md", *stages}


@pytest.mark.parametrize("command", ["sft", "rm", "grpo", "pipeline", "ablate", "sweep"])
def test_the_help_of_a_command_says_what_each_field_is_and_its_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", command, "--help"])
    told = capsys.readouterr().out.partition("Fields, as --name value:")[2]
    fields = {text.split()[0]: " ".join(text.split()[1:]) for text in re.findall(r"^  --.*(?:\n   .*)*", told, re.M)}
    assert all(re.match(r".+ \[default: .+\]$", text) for text in fields.values()), fields
    wanted = {"sft": ("max-length", "style"), "rm": ("delta",), "grpo": ("beta", "budget", "seeker-options", "valid")}
    for name in (*wanted.get(command, ("skip", "rpm")), "model", "seed"):
        assert fields[f"--{name}"]
    assert "Source" not in told


def test_the_help_of_ablate_names_every_arm(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "ablate", "--help"])
    told = "".join(capsys.readouterr().out.split())  # lines break at any width
    assert [arm for arm in ARMS if arm.replace(" ", "") not in told] == []

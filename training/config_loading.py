"""From a preset, a YAML file and the command line to configurations.

    setting: {model: Qwen/Qwen2.5-0.5B-Instruct, scenarios: "esconv:train"}
    grpo: {learning_rate: 2e-5}

A file holds one section per part of `PipelineConfig`. On the command line a field of a stage is `--grpo.learning_rate
2e-5` (or `--grpo.learning-rate=2e-5`), one of the setting or of models stands without a prefix: `--model PATH`,
`--budget "5 USD"`. A switch needs no value: `--grpo.cpu`, `--rm.no-tail`; request options of a chair are KEY=VALUE:
`--critic-options max_tokens=400 top_p=0.9`.
"""

from __future__ import annotations

import csv
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from esc_env.config import Given, Section, build, read_file
from esc_env.errors import ConfigError, did_you_mean
from esc_env.evaluation.runs.config import SHORT
from esc_env.models import read_options
from esc_env.training.config import PipelineConfig

__all__ = ["ACCELERATE", "PRESETS", "described", "presets", "read_pipeline", "read_varied"]

PRESETS = Path(__file__).with_name("presets")
"""The folder of the presets; `accelerate/` in it holds configurations for `accelerate launch --config_file`."""

ACCELERATE = PRESETS / "accelerate"

SECTIONS: Mapping[str, type[Any]] = get_type_hints(PipelineConfig)
"""The parts of a pipeline's configuration, by name."""

_SHARED = {"model": "model or reward_model", "seed": "seed", "max_turns": "max_turns"}
"""Fields of stages that are the setting's, and its names for them."""

_USED = {
    "sft": ("style", "agent_options"),
    "grpo": (
        "style", "scenarios", "seeker", "critic", "agent_options", "seeker_options", "critic_options", "valid",
        "valid_limit", "persona",
    ),
}  # fmt: skip
"""What else of the setting a stage uses that is run alone."""


def presets() -> tuple[str, ...]:
    """The names of all presets."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def read_pipeline(
    source: str | None = None, arguments: Sequence[str] = (), *, stage: str | None = None
) -> PipelineConfig:
    """A pipeline from a preset or a YAML file, with overrides from the command line; nothing is loaded.

    Args:
        source: a preset's name or a file's path; None for the defaults.
        arguments: as typed.
        stage: the one that is run alone: its fields, and those of the setting that it uses, stand without a prefix.

    >>> from esc_env.training.config_loading import read_pipeline
    >>> read_pipeline("qwen2.5-0.5b", ["--grpo.beta", "0.1", "--seed=3"]).grpo.beta
    0.1

    Raises:
        ConfigError: no such preset or file, a name that is no field, or a value of another type or that makes no sense;
            the message says where it stands, and what is allowed.
    """
    given = _sections(source) if source is not None else {section: {} for section in SECTIONS}
    homes = _homes(stage)
    for option, value in _typed_options(arguments):
        name = option[2:].replace("-", "_")
        positive = ".".join(part.removeprefix("no_") for part in name.split("."))
        if name not in homes and positive in homes and value == ():
            name, value = positive, "false"
        if name not in homes:
            alike = [each for each in homes if ("." in each) == ("." in name)]
            raise ConfigError(f"{option} is no option. {did_you_mean(name, alike)}")
        section, field = homes[name]
        if field.endswith("_options") and value != ():  # KEY=VALUE, each before the file's of the same name
            before = given[section].get(field, Given({}, option)).value
            words = read_options([value] if isinstance(value, str) else value, field.removesuffix("_options"))
            value = {**before, **words} if isinstance(before, Mapping) else words
        given[section][field] = Given(value, option)
    for section, part in given.items():
        for name in _SHARED.keys() & part.keys() if section != "setting" else ():
            raise ConfigError(f"{part[name].place} is the same for all stages: set {_SHARED[name]} in the setting")
    return PipelineConfig(**{section: build(kind, given[section]) for section, kind in SECTIONS.items()}).settled()


def read_varied(
    source: str | None, arguments: Sequence[str], varied: Sequence[str]
) -> tuple[PipelineConfig, dict[str, list[Any]]]:
    """A pipeline, and what is to be tried in place of its values, as `sweep` takes it.

    Args:
        source, arguments: as `read_pipeline` takes them.
        varied: `FIELD=VALUE,VALUE` each, the field as it is typed without its dashes; a value with a comma in quotes.

    >>> from esc_env.training.config_loading import read_varied
    >>> read_varied("tiny", [], ["grpo.alpha=0.2,0.5", "scenarios='builtin:train?emotion=anger,fear'"])[1]
    {'grpo.alpha': [0.2, 0.5], 'setting.scenarios': ['builtin:train?emotion=anger,fear']}

    Raises:
        ConfigError: as `read_pipeline`, and for a line without a field or values.
    """
    homes, found = _homes(None), dict[str, list[Any]]()
    for text in varied:
        name, _, values = text.partition("=")
        words = next(csv.reader([values], quotechar="'"), [])
        if not name or not words or not all(words):
            raise ConfigError(f"--vary {text}: write FIELD=VALUE,VALUE, as in grpo.alpha=0.2,0.5")
        for word in words:
            made = read_pipeline(source, [*arguments, f"--{name}={word}"])
            section, field = homes[name.replace("-", "_")]
            found.setdefault(f"{section}.{field}", []).append(getattr(getattr(made, section), field))
    return read_pipeline(source, arguments), found


def _sections(source: str) -> dict[str, dict[str, Given]]:
    """What a preset or file says of each section."""
    path = PRESETS / f"{source}.yaml" if source in presets() else Path(source)
    if not path.is_file():
        raise ConfigError(f"{source!r} is no preset and no file. {did_you_mean(source, presets())}")
    data = read_file(path) or Section()
    if not isinstance(data, Section) or not all(isinstance(part, Section | None) for part in data.values()):
        raise ConfigError(f"{path}: must hold sections ({', '.join(SECTIONS)}), each with `field: value` lines")
    for section in data:
        if section not in SECTIONS:
            place = data.places[section]
            raise ConfigError(f"{place}: there is no section {section!r}. {did_you_mean(str(section), SECTIONS)}")
    given = {section: data[section].given(f"{section}.") if data.get(section) else {} for section in SECTIONS}
    if each := given["models"].get("concurrency"):
        raise ConfigError(f"{each.place} is each stage's own: set concurrency in collect, grpo and evaluate")
    if each := given["models"].get("api_key"):
        raise ConfigError(f"{each.place}: a key belongs in no file. Set a variable and write its name: api_key_env")
    given["models"] = {_LONG.get(name, name): each for name, each in given["models"].items()}
    return given


_LONG = {short: name for name, short in SHORT.items()}


def _homes(stage: str | None) -> dict[str, tuple[str, str]]:
    """Section and field of every option."""
    every = {section: {SHORT.get(each.name, each.name): each.name for each in fields(kind)}
             for section, kind in SECTIONS.items()}  # fmt: skip
    del every["models"]["concurrency"]
    del every["models"]["api_key"]  # a command line is seen by everybody on the machine
    plain = ("setting", "models") if stage is None else (stage, "models") if stage == "grpo" else (stage,)
    homes = {option: (section, field) for section in plain for option, field in every[section].items()}
    if stage is None:
        return homes | {
            f"{section}.{each}": (section, every[section][each]) for section in every for each in every[section]
        }
    homes |= {name: ("setting", name) for name in (*_USED.get(stage, ()), *(_SHARED.keys() & homes.keys()))}
    return homes | ({"model": ("setting", "reward_model")} if stage == "rm" else {})


def described(stage: str | None) -> list[tuple[str, str]]:
    """Every option without a prefix, with what it is, as the configurations' docstrings have it, and its default."""
    told: dict[str, str] = {}
    for section in ("models", "setting", stage or "setting"):
        for kind in reversed(SECTIONS[section].__mro__):
            about = inspect.cleandoc(kind.__doc__ or "").replace("`", "")
            for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.+(?:\n {8}.+)*)", about, re.MULTILINE):
                told |= dict.fromkeys(names.split(", "), " ".join(text.partition("*Source:*")[0].split()))
    rows = []
    for name, (section, field) in _homes(stage).items():
        if "." not in name:
            usual = getattr(SECTIONS[section](), field)
            shown = "none" if usual in (None, "", [], {}) else usual
            rows.append((f"--{name.replace('_', '-')}", f"{told.get(name) or told[field]}  [default: {shown}]"))
    return rows


def _typed_options(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Each `--name` with its value: the text after it, several texts, or `()` for none."""
    found: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            found.append((name, [value] if equals else []))
        elif found:
            found[-1][1].append(argument)
        else:
            raise ConfigError(f"{argument!r} is no option: write --name value")
    for name, words in found:
        yield name, words if len(words) > 1 else words[0] if words else ()

"""From a preset, a YAML file and the command line to configurations, with TRL's parser.

    setting: {model: Qwen/Qwen2.5-0.5B-Instruct, scenarios: "esconv:train"}
    grpo: {learning_rate: 2e-5}

A file holds one section per part of `PipelineConfig`. On the command line a field of a stage is `--grpo.learning_rate
2e-5` (or `--grpo.learning-rate=2e-5`), one of the setting or of models stands without a prefix: `--model PATH`,
`--budget "5 USD"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from esc_env.errors import ConfigError, MissingExtra, did_you_mean
from esc_env.training.config import (
    CollectStage,
    EvaluateStage,
    GRPOStage,
    Models,
    PipelineConfig,
    RewardModelStage,
    Setting,
    SFTStage,
)

__all__ = ["ACCELERATE", "PRESETS", "apart", "parse", "presets", "read_pipeline", "read_sections"]

PRESETS = Path(__file__).with_name("presets")
"""The folder of the presets; `accelerate/` in it holds configurations for `accelerate launch --config_file`."""

ACCELERATE = PRESETS / "accelerate"

SECTIONS: dict[str, type[Any]] = {
    "setting": Setting,
    "models": Models,
    "sft": SFTStage,
    "collect": CollectStage,
    "rm": RewardModelStage,
    "grpo": GRPOStage,
    "evaluate": EvaluateStage,
}

_SHARED = {"model": "model or reward_model", "seed": "seed", "max_turns": "max_turns"}

T = TypeVar("T")


def presets() -> tuple[str, ...]:
    """The names of all presets."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def parse(kind: type[T], values: Mapping[str, Any], arguments: Sequence[str] = ()) -> T:
    """One configuration from values (of a YAML file) and arguments (`--name value`), which win; by TRL's parser.

    Raises:
        ConfigError: a name that is no field, a value of another type, or one that makes no sense.
    """
    try:
        from trl.scripts.utils import TrlParser
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "trl").partition(".")[0], "train") from error

    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # all of them are dataclasses
    for name in values:
        if name not in names:
            raise ConfigError(f"{kind.__name__} has no field {name!r}. {did_you_mean(str(name), names)}")

    class Parser(TrlParser):  # type: ignore[misc,unused-ignore]
        """Says what is wrong as our error."""

        def error(self, message: str) -> Any:
            raise ConfigError(f"{kind.__name__}: {message}")

    typed = [_dashed_to_field(item) for item in arguments]
    given = [text for name, value in values.items() for text in _as_arguments(kind, name, value)]
    kinds: Any = [kind]
    parsed = Parser(kinds, add_help=False, allow_abbrev=False).parse_args_and_config(
        args=[*given, *typed], return_remaining_strings=True
    )
    if parsed[-1]:
        unknown = str(parsed[-1][0])
        raise ConfigError(f"{kind.__name__} has no field {unknown!r}. {did_you_mean(unknown.lstrip('-'), names)}")
    made: T = parsed[0]
    return made


def _dashed_to_field(argument: str) -> str:
    """`--learning-rate=1` as `--learning_rate=1`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _as_arguments(kind: type[Any], name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)] if value else []
    if value is None:
        default = next(field.default for field in fields(kind) if field.name == name)
        if default is not None:
            raise ConfigError(f"{kind.__name__}: {name} has no value. Write one, or leave the line out")
        return []
    return [f"--{name}={value}"]


def read_sections(source: str) -> dict[str, dict[str, Any]]:
    """The sections of a preset (its name) or of a YAML file (its path).

    Raises:
        ConfigError: there is no such preset or file, or it is not made of sections.
    """
    path = PRESETS / f"{source}.yaml" if source in presets() else Path(source)
    if not path.is_file():
        raise ConfigError(f"{source!r} is no preset and no file. {did_you_mean(source, presets())}")
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict) or not all(isinstance(part or {}, dict) for part in data.values()):
        raise ConfigError(f"{path}: must hold sections ({', '.join(SECTIONS)}), each with `field: value` lines")
    for section in data:
        if section not in SECTIONS:
            raise ConfigError(f"{path}: there is no section {section!r}. {did_you_mean(str(section), SECTIONS)}")
    return {section: data.get(section) or {} for section in SECTIONS}


def read_pipeline(source: str, arguments: Sequence[str] = ()) -> PipelineConfig:
    """A pipeline from a preset or a YAML file, with overrides from the command line; nothing is loaded.

    >>> from esc_env.training.reading import read_pipeline
    >>> read_pipeline("qwen2.5-0.5b", ["--grpo.beta", "0.1", "--seed=3"]).grpo.beta
    0.1

    Raises:
        ConfigError: what `read_sections` and the configurations refuse.
    """
    sections = read_sections(source)
    overrides = _by_section(arguments)
    for section, values in sections.items():
        for name in (*values, *(text[2:].partition("=")[0] for text in overrides[section] if text.startswith("--"))):
            if section != "setting" and name in _SHARED and name in {field.name for field in fields(SECTIONS[section])}:
                raise ConfigError(f"{section}.{name} is the same for all stages: set {_SHARED[name]} in the setting")
    setting = parse(Setting, sections["setting"], overrides["setting"])
    made = {
        section: parse(kind, sections[section], overrides[section])
        for section, kind in SECTIONS.items()
        if section != "setting"
    }
    made["sft"] = replace(made["sft"], model=setting.model, seed=setting.seed)
    made["rm"] = replace(made["rm"], model=setting.reward_model, seed=setting.seed)
    made["grpo"] = replace(made["grpo"], model=setting.model, seed=setting.seed, max_turns=setting.max_turns)
    return PipelineConfig(setting=setting, **made)


def _by_section(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Arguments apart by the prefix of their names; a value goes with the name before it."""
    found: dict[str, list[str]] = {section: [] for section in SECTIONS}
    section = "setting"
    for argument in arguments:
        if argument.startswith("--"):
            prefix, dot, _ = argument[2:].partition("=")[0].partition(".")
            if dot and prefix not in SECTIONS:
                raise ConfigError(f"there is no stage {prefix!r} for {argument}. {did_you_mean(prefix, SECTIONS)}")
            section = prefix if dot else "setting"
            found[section].append(_dashed_to_field("--" + argument[2:].removeprefix(f"{prefix}.") if dot else argument))
        elif not found[section] and section == "setting":
            raise ConfigError(f"{argument!r} is no option: write --name value")
        else:
            found[section].append(argument)
    models, found["setting"] = apart(found["setting"], Models)
    found["models"] += models
    return found


def apart(arguments: Sequence[str], kind: type[Any]) -> tuple[list[str], list[str]]:
    """(arguments that are fields of a configuration, the others); a value goes with the name before it."""
    names = {field.name for field in fields(kind)}
    sides: tuple[list[str], list[str]] = ([], [])
    theirs = False
    for argument in arguments:
        if argument.startswith("--"):
            theirs = _dashed_to_field(argument)[2:].partition("=")[0] in names
        sides[not theirs].append(argument)
    return sides

"""A benchmark as a file that people keep in git: the options of `esc eval`, with the agents and what each is asked.

    agents:
      - builtin:skilled
      - agent: openai/gpt-5-mini#think
        temperature: 1
        options: {max_tokens: 16000, reasoning_effort: low}
    seeker: openai/gpt-4o
    critic: openai/gpt-4o
    critic_options: {max_tokens: 400}
    scenarios: [esconv:test]
    trials: 2
    budget: 20 USD

YAML, or JSON. The run.json of a run is such a file too: the same run again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from esc_env.errors import ConfigError, MissingExtra, did_you_mean
from esc_env.models import ModelSettings
from esc_env.rules import Rules

__all__ = ["AgentConfig", "Benchmark", "read_config", "run_config"]

_OWN = ("agent", "temperature", "options")
_SHORT = {"requests_per_minute": "rpm", "tokens_per_minute": "tpm"}
_PLACES = ("record", "replay", "cache")
"""Settings that name files of this machine: no part of what is to be run again."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One supporter of a benchmark.

    Attributes:
        agent: its string.
        temperature: its own; None for the benchmark's.
        options: what its model is asked besides.
    """

    agent: str
    temperature: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What a file says.

    Attributes:
        agents: in order; empty where it names none.
        options: of `esc eval`, by their long names with `_` for `-`.
    """

    agents: tuple[AgentConfig, ...]
    options: Mapping[str, Any]


def read_config(path: str | Path, known: Collection[str]) -> Benchmark:
    """Read a benchmark file, or the run.json of a run.

    Args:
        path: the file.
        known: names that its options may have.

    Raises:
        ConfigError: it cannot be read, or says what cannot be said; the message names file and place.
        MissingExtra: it is YAML, and PyYAML is not installed.
    """
    data = _parsed(Path(path))
    if isinstance(data, dict) and data.get("kind") == "run":
        data = data.get("config")
        if data is None:
            raise ConfigError(
                f"{path}: this run was started from Python with objects that no string names, or by an older esc-env, "
                "so it cannot be repeated from here"
            )
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: write names and values, such as `agents: [builtin:skilled]` (docs/cli.md)")
    options = {str(name).replace("-", "_"): value for name, value in data.items()}
    agents = options.pop("agents", [])
    for name in options:
        if name not in known:
            raise ConfigError(f"{path}: there is no option {name!r}. {did_you_mean(name, {*known, 'agents'})}")
    listed = agents if isinstance(agents, list) else [agents]
    return Benchmark(tuple(_agent(path, number, each) for number, each in enumerate(listed, 1)), options)


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8") from error
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            if path.suffix == ".json":
                raise ConfigError(f"{path}: not JSON ({error})") from error
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtra("pyyaml", "llm") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error


def _agent(path: str | Path, number: int, said: Any) -> AgentConfig:
    if isinstance(said, str):
        return AgentConfig(said)
    where = f"{path}: agents, number {number}"
    if not isinstance(said, dict) or not isinstance(said.get("agent"), str):
        raise ConfigError(f"{where}: write a string such as builtin:skilled, or `agent:` with one")
    for name in said:
        if name not in _OWN:
            raise ConfigError(f"{where}: there is no {name!r}. {did_you_mean(str(name), _OWN)}")
    temperature, options = said.get("temperature"), said.get("options") or {}
    if temperature is not None and (isinstance(temperature, bool) or not isinstance(temperature, (int, float))):
        raise ConfigError(f"{where}: temperature must be a number, not {temperature!r}")
    if not isinstance(options, dict):
        raise ConfigError(f"{where}: options must be names and values, such as {{max_tokens: 16000}}")
    return AgentConfig(said["agent"], temperature, options)


def run_config(
    *,
    agent: Any,
    temperature: float,
    agent_options: Mapping[str, Any],
    scenarios: Any,
    seeker: Any,
    critic: Any,
    rules: Rules,
    settings: ModelSettings,
    **others: Any,
) -> dict[str, Any] | None:
    """What `evaluate` was told as a benchmark file says it, only what is not at its default.

    None where an object took part that no string names.
    """
    named = (agent, seeker, critic)
    if not all(isinstance(each, str) for each in named) or not isinstance(scenarios, (str, Path)):
        return None
    one = {"agent": agent, "temperature": temperature, "options": dict(agent_options)}
    kept: dict[str, Any] = {
        "agents": [{name: value for name, value in one.items() if value or name == "temperature"}],
        "scenarios": [str(scenarios)],
        "seeker": seeker,
        "critic": critic,
        **{name: value for name, value in others.items() if value is not None and value != {}},
    }
    return kept | _changed(rules, Rules()) | _changed(settings, ModelSettings(), _PLACES)


def _changed(value: Any, default: Any, left_out: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass that are not as in `default`."""
    return {
        _SHORT.get(each.name, each.name): getattr(value, each.name)
        for each in fields(value)
        if each.name not in left_out and getattr(value, each.name) != getattr(default, each.name)
    }

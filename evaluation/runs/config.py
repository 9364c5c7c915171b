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

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from esc_env.config import Given, Section, build, read_file
from esc_env.errors import ConfigError, did_you_mean
from esc_env.models import ModelSettings
from esc_env.rules import Rules

__all__ = ["SHORT", "AgentConfig", "Benchmark", "read_config", "run_config"]

SHORT = {"requests_per_minute": "rpm", "tokens_per_minute": "tpm"}
"""What files and command lines call these fields of `ModelSettings`."""
_HERE = ("record", "replay", "cache", "api_key")
"""Settings that name files of this machine, and the key that was handed over: no part of what is to be run again."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One supporter of a benchmark.

    Attributes:
        agent: its string.
        temperature: its own; None for the benchmark's.
        options: further fields of every request to its model.
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
    """
    data = read_file(Path(path))
    if isinstance(data, Section) and data.get("kind") == "run":
        data = data.get("config")
        if data is None:
            raise ConfigError(
                f"{path}: this run was started from Python with objects that no string names, or by an older esc-env, "
                "so it cannot be repeated from here"
            )
    if not isinstance(data, Section):
        raise ConfigError(f"{path}: write names and values, such as `agents: [builtin:skilled]` (docs/cli.md)")
    given = {name.replace("-", "_"): each for name, each in data.given().items()}
    for name, each in given.items():
        if name not in {*known, "agents"}:
            raise ConfigError(f"{each.place} is no option. {did_you_mean(name, {*known, 'agents'})}")
        if name.endswith("_options") and not isinstance(each.value, Section):
            raise ConfigError(f"{each.place} must be names and values, not {each.value!r}")
    agents = given.pop("agents", Given([], ""))
    listed = agents.value if isinstance(agents.value, list) else [agents.value]
    return Benchmark(
        tuple(_agent(f"{agents.place}, number {number}", said) for number, said in enumerate(listed, 1)),
        {name: each.value for name, each in given.items()},
    )


def _agent(place: str, said: Any) -> AgentConfig:
    if isinstance(said, str):
        return AgentConfig(said)
    if not isinstance(said, Section) or not isinstance(said.get("agent"), str):
        raise ConfigError(f"{place}: write a string such as builtin:skilled, or `agent:` with one")
    return build(AgentConfig, said.given("agents: "))


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
    return kept | _changed(rules, Rules()) | _changed(settings, ModelSettings(), _HERE)


def _changed(value: Any, default: Any, left_out: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass that are not as in `default`."""
    return {
        SHORT.get(each.name, each.name): getattr(value, each.name)
        for each in fields(value)
        if each.name not in left_out and getattr(value, each.name) != getattr(default, each.name)
    }

"""Options that several commands share: each stands here once, with its default and its help.

`AgentOptions`, `Seeker`, `Critic`, `Voting`, `Judging`, `Models` and `Workers` are groups. A command that is `@grouped`
takes a group as one parameter, and has the options of the group as its own:

    @grouped
    def command(*, critic: Critic, models: Models) -> None:
        validate_critic(**critic, **asdict(models))
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from esc_env.backend import HERE, Backend
from esc_env.chairs.critics import CriticMode
from esc_env.errors import SpecError
from esc_env.models import ModelSettings, Wire, read_options

__all__ = [
    "AgentOptions", "ApiKeyEnv", "Budget", "Critic", "Judging", "Limit", "Models", "Persona", "Progress", "Seeker",
    "Temperature", "Voting", "Workers", "grouped",
]  # fmt: skip


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command that has the options of its groups in their place, and gets what each group makes of them."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        options = {parameter.name: parameter}
        for group in filter(inspect.isfunction, getattr(parameter.annotation, "__metadata__", ())):
            options = dict(inspect.signature(group, eval_str=True).parameters)
            groups[parameter.name] = (group, [*options])
        parameters += [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options.values()]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: group(**{each: given.pop(each) for each in options}) for name, (group, options) in groups.items()}
        command(**given, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


# --- one by one -----------------------------------------------------------------------------------

Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature of agents that are chat models.")]
Persona = Annotated[
    str | None,
    typer.Option(
        help="How every seeker responds to help: cooperative, guarded, resistant, drifting, pleasing, hostile, or "
        "mixed: each person has one of cooperative, resistant, drifting and pleasing. Default: as each scenario says."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many scenarios. Default: all.")]
Progress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress", help="Show a bar. Default: a bar in a terminal, else a line on stderr now and then."
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Stop once this command has spent so much on models: '5 USD' or '200k tokens'. The same command with a "
        "larger budget goes on, where results are kept."
    ),
]

ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        help="Environment variable with the key of the servers that @URL names. Default: ESC_API_KEY, if it is set. No "
        "option takes the key itself: everybody on a machine sees its command lines."
    ),
]

# --- groups ---------------------------------------------------------------------------------------


def _asked(who: str, *names: str, such_as: str = "max_tokens=2000, top_p=0.9") -> Any:
    told = f"A further field of every request to {who} that is a chat model, as KEY=VALUE: {such_as}."
    return typer.Option(*names, help=f"{told} Repeat it for several (docs/models.md).")


def _agent_options(
    agent_option: Annotated[
        list[str] | None,
        _asked(
            "an agent",
            "--agent-option",
            "-M",
            such_as="max_tokens=16000, reasoning_effort=low, top_p=0.9, system=@FILE",
        ),
    ] = None,
) -> dict[str, Any]:
    return read_options(agent_option or (), "agent")


def _seeker(
    seeker: Annotated[
        str,
        typer.Option(
            help="Who plays the person with the problem: builtin, a program that looks at words; builtin:reader, a "
            "small network that reads what is meant and takes some 50 ms a turn; a chat model (PROVIDER/NAME[@URL], "
            "local:PATH); or python:MODULE:NAME."
        ),
    ] = "builtin",
    seeker_temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature of a seeker that is a chat model.")
    ] = 0.7,
    seeker_option: Annotated[list[str] | None, _asked("a seeker", "--seeker-option")] = None,
) -> dict[str, Any]:
    options = read_options(seeker_option or (), "seeker")
    return {"seeker": seeker, "seeker_temperature": seeker_temperature, "seeker_options": options}


_CriticTemperature = Annotated[
    float, typer.Option(min=0, help="Sampling temperature of a critic that is a chat model.")
]
_CriticMode = Annotated[
    CriticMode,
    typer.Option(
        help="How a critic that is a chat model votes: with sampled answers (votes), or drawn from the probabilities "
        "of the four options in one answer (logprobs)."
    ),
]
_CriticOption = Annotated[list[str] | None, _asked("a critic", "--critic-option")]


def _critic(
    critic: Annotated[
        str,
        typer.Option(
            help="Who judges whether the problem is solved: builtin, a program that looks at words; builtin:reader, a "
            "small network that reads what is meant; a chat model (PROVIDER/NAME[@URL], local:PATH); or "
            "python:MODULE:NAME."
        ),
    ] = "builtin",
    critic_temperature: _CriticTemperature = 1.1,
    critic_mode: _CriticMode = "votes",
    critic_option: _CriticOption = None,
) -> dict[str, Any]:
    return {"critic": critic, **_voting(critic_temperature, critic_mode, critic_option)}


def _voting(
    critic_temperature: _CriticTemperature = 1.1,
    critic_mode: _CriticMode = "votes",
    critic_option: _CriticOption = None,
) -> dict[str, Any]:
    options = read_options(critic_option or (), "critic")
    return {"critic_temperature": critic_temperature, "critic_mode": critic_mode, "critic_options": options}


def _judging(
    judge_temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature of a judge that is a chat model.")
    ] = 0.0,
    judge_option: Annotated[list[str] | None, _asked("a judge", "--judge-option")] = None,
) -> dict[str, Any]:
    return {"judge_temperature": judge_temperature, "judge_options": read_options(judge_option or (), "judge")}


def _models(
    concurrency: Annotated[
        int,
        typer.Option(
            min=1, help="Conversations, responses or judgements at the same time, and requests under way per server."
        ),
    ] = 64,
    rpm: Annotated[int | None, typer.Option(min=1, help="Most requests a minute to each server.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Most tokens a minute to each server.")] = None,
    timeout: Annotated[
        float,
        typer.Option(help="Seconds to wait for an answer before the request is sent again; a slow server gets longer."),
    ] = 60.0,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds for one call with all its retries. Default: 600.")
    ] = None,
    budget: Budget = None,
    record: Annotated[
        Path | None, typer.Option(help="Keep every request to a model and its answer in this file.")
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Answer in the models' place from a recorded file; needs no key and no network. A request that is not "
            "there is an error."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Take answers from this file where it has them; ask for the others and keep them."),
    ] = None,
    wire: Annotated[
        Wire,
        typer.Option(help="Which package sends requests. auto: aiohttp for openai/NAME and any @URL, else LiteLLM."),
    ] = "auto",
    api_key_env: ApiKeyEnv = None,
) -> ModelSettings:
    return ModelSettings(concurrency, rpm, tpm, timeout, deadline, budget, record, replay, cache, wire, api_key_env)


def _workers(
    backend: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="Where the work is done. local: in this process. ray: by several processes at the same time, on this "
            "machine or on all machines of a Ray cluster (docs/scale.md). Needs the extra 'ray'."
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="With --backend ray: HOST:PORT of the cluster that this machine is part of, or auto. Default: the "
            "cluster of RAY_ADDRESS or of this machine; where there is none, this machine alone."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="With --backend ray: how many processes. Default: one for each CPU of the cluster."),
    ] = None,
) -> Backend:
    if backend == "ray":
        from esc_env.on_ray import Ray

        return Ray(address, workers)
    if address is not None or workers is not None:
        raise SpecError("--address and --workers are for Ray's workers. Add --backend ray, or leave them out")
    return HERE


AgentOptions = Annotated[Mapping[str, Any], _agent_options]
"""Further fields of every request to an agent that is a chat model."""
Seeker = Annotated[Mapping[str, Any], _seeker]
"""The seeker, as keyword arguments of `evaluate` and `collect`."""
Critic = Annotated[Mapping[str, Any], _critic]
"""The critic, as keyword arguments of `evaluate`, `collect` and `validate_critic`."""
Voting = Annotated[Mapping[str, Any], _voting]
"""How critics that are chat models vote, as keyword arguments of `rejudge`: `Critic` without the critic."""
Judging = Annotated[Mapping[str, Any], _judging]
"""How judges that are chat models are asked, as keyword arguments of `judge_runs` and `validate_judge`."""
Models = Annotated[ModelSettings, _models]
"""How chat models are called."""
Workers = Annotated[Backend, _workers]
"""Where the work is done, as the argument `backend` of `evaluate`, `collect` and `judge_runs`."""

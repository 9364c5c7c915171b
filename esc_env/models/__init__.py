"""Chat models behind any API, any OpenAI-compatible server, or in this process: from a string to a `ChatModel`.

    cassette ( budget ( choices ( patience ( dialect ( wire )))))

Each layer is a `ChatModel` around another: the *wire* makes one exchange, the *dialect* asks in another way where the
server wants that, *patience* retries it and keeps the endpoint's limits, *choices* makes n of it, the *budget* prices
and counts it, the *cassette* keeps or replays it.
Nothing here knows of scenarios, seekers or critics. Importing this package needs no extra; opening a model does.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from esc_env.dialogue import ChatMessage
from esc_env.errors import BadCompletion, MissingExtra, ModelError, SpecError, did_you_mean
from esc_env.models.budget import Budget, Budgeted, price_of, unpriced
from esc_env.models.capabilities import Capabilities, capabilities_of, check_parameters, check_provider
from esc_env.models.cassette import Cassette, Mode
from esc_env.models.dialect import Adapting, Dialect, Spoken
from esc_env.models.options import Options, check_names, read_options
from esc_env.protocols import ChatModel, Completion
from esc_env.specs import Spec, import_object, parse_spec

if TYPE_CHECKING:
    from esc_env.models.patience import Endpoint

__all__ = [
    "Budget", "ModelOptions", "ModelSettings", "Options", "Wire", "check_model", "check_parameters",
    "effective", "open_model", "read_options",
]  # fmt: skip

Wire = Literal["auto", "aiohttp", "openai", "litellm"]
"""How requests travel. `auto`: aiohttp for `openai/…` and for any `@URL`, LiteLLM for every other provider."""


class ModelOptions(TypedDict, total=False):
    """The fields of `ModelSettings` as keyword arguments of `gym.make` and `evaluate`; any may be left out."""

    concurrency: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    timeout: float
    deadline: float | None
    budget: str | None
    record: str | Path | None
    replay: str | Path | None
    cache: str | Path | None
    wire: Wire


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How chat models are called; nothing here changes what a model is asked.

    Attributes:
        concurrency: requests in flight per endpoint, at least 1.
        requests_per_minute: at most so many per endpoint; None for no limit.
        tokens_per_minute: at most so many, prompt and completion together, per endpoint; None for no limit.
        timeout: seconds to wait for an answer of a server of which nothing is known yet; a slow one gets longer.
        deadline: seconds for one call with all its retries; None for 600.
        budget: what this process may spend on models, such as "5 USD" or "200k tokens"; None for no limit.
        record: keep every request and completion in this file.
        replay: answer from this file; a request that is not there is refused.
        cache: answer from this file what is there, ask for and keep the rest.
        wire: how requests travel.

    Raises:
        SpecError: a value that cannot be used.
    """

    concurrency: int = 64
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout: float = 60.0
    deadline: float | None = None
    budget: str | None = None
    record: Path | None = None
    replay: Path | None = None
    cache: Path | None = None
    wire: Wire = "auto"

    def __post_init__(self) -> None:
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "deadline"):
            value = getattr(self, name)
            if value is None and name not in ("concurrency", "timeout"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise SpecError(f"{name} must be a number above 0, not {value!r}")
        if self.budget is not None:
            Budget.parse(self.budget)
        if self.wire not in get_args(Wire):
            raise SpecError(f"no wire {self.wire!r}. {did_you_mean(str(self.wire), get_args(Wire))}")
        kept = [name for name in ("record", "replay", "cache") if getattr(self, name) is not None]
        if len(kept) > 1:
            raise SpecError(f"{' and '.join(kept)} cannot be used together; give one of record, replay and cache")
        for name in kept:
            object.__setattr__(self, name, Path(getattr(self, name)))

    @classmethod
    def of(cls, options: ModelOptions, given_to: Callable[..., Any] | None = None) -> ModelSettings:
        """The settings that keyword arguments give.

        Args:
            options: what a function got as `**models`.
            given_to: that function, whose other arguments are suggested for a misspelt one.

        Raises:
            SpecError: an argument that is none of them, or a value that cannot be used.
        """
        names = [each.name for each in fields(cls)]
        for name in options:
            if name not in names:
                others = signature(given_to).parameters.keys() - {"self", "models"} if given_to else ()
                raise SpecError(f"there is no argument {name!r}. {did_you_mean(name, [*names, *others])}")
        return cls(**options)  # type: ignore[arg-type]  # str and Path are made one in __post_init__

    @property
    def cassette(self) -> tuple[Path | None, Mode | None]:
        """The file to keep or replay, and which of the two; (None, None) without one."""
        files: dict[Mode, Path | None] = {"record": self.record, "replay": self.replay, "cache": self.cache}
        for mode, path in files.items():
            if path is not None:
                return path, mode
        return None, None


def open_model(
    spec: str | Spec, settings: ModelSettings | None = None, options: Options | None = None, *, chair: str = "agent"
) -> ChatModel:
    """The chat model that a string names, with its retries, limits, budget and cassette around it.

    The same string, settings and options give the same object, so that all chairs on an endpoint share its limits.

    Args:
        spec: `PROVIDER/NAME[@URL]`, `local:PATH_OR_HUB_ID`, or `python:MODULE:NAME` of a `ChatModel`. A `#STYLE` is
            left to agents.
        settings: by default `ModelSettings()`.
        options: what it is asked besides the protocol; `max_tokens`, `stop` and `system` are left to the chair.
        chair: `agent`, `seeker` or `critic`: named in messages.

    Raises:
        SpecError: the string names no model, the model takes no such option, or its price is unknown and the budget is
            in dollars.
        MissingExtra: the packages it needs are not installed.
    """
    parsed = parse_spec(spec) if isinstance(spec, str) else spec
    plain, options = replace(parsed, style=None), options or Options()
    _check_options(plain, options, chair)
    return _opened(plain, settings or ModelSettings(), options.asked)


def _check_options(spec: Spec, options: Options, chair: str) -> None:
    if spec.kind == "model":
        provider, _, name = spec.name.partition("/")
        own = spec.url or (provider == "openai" and os.environ.get("OPENAI_BASE_URL"))
        check_names(options, capabilities_of(provider, name, hosted=not own).options, chair, spec.name)
    elif options.asked != Options().asked:
        takes: Collection[str] = ()
        if spec.kind == "local":
            from esc_env.models.local import LocalModel

            takes = LocalModel.OPTIONS
        check_names(options, takes, chair, f"{spec.kind}:{spec.name}", body=False)


@dataclass(frozen=True, eq=False)
class _Opened:
    """What `open_model` gives: a pickle or a copy of it is the string and the settings, opened again."""

    spec: Spec
    settings: ModelSettings
    model: ChatModel
    capabilities: Capabilities
    asked: str = "{}"
    spoken: Spoken | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the model."""
        return self.model.identity

    @property
    def deterministic(self) -> bool:
        """Whether the model says that it answers the same request with the same text."""
        return bool(getattr(self.model, "deterministic", False))

    async def complete(
        self,
        messages: Sequence[ChatMessage],
        *,
        n: int = 1,
        temperature: float = 0.0,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> Completion:
        """What the model says."""
        answer = await self.model.complete(
            messages, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed, stop=stop, logprobs=logprobs
        )
        return replace(answer, usage=replace(answer.usage, models=(answer.model,))) if answer.model else answer

    def __reduce__(self) -> tuple[Any, ...]:
        return open_model, (self.spec, self.settings, Options(asked=self.asked))


@cache
def _opened(spec: Spec, settings: ModelSettings, asked: str) -> ChatModel:
    path, mode = settings.cassette
    budget = Budget.parse(settings.budget) if settings.budget else None
    takes = Capabilities()
    spoken: Spoken | None = None
    options = json.loads(asked)
    model: ChatModel | None
    if spec.kind == "model":
        provider, _, name = spec.name.partition("/")
        way = None if mode == "replay" else _way(provider, name, spec.url, settings.wire)
        takes = capabilities_of(provider, name, hosted=spec.url is None)
        identity: Mapping[str, Any] = {"provider": provider, "name": name, **({"options": options} if options else {})}
        spoken = _spoken(spec.name, spec.url or os.environ.get("OPENAI_BASE_URL"), takes.token_limit, takes.seed)
        model = _remote(way, spec, takes, budget, settings, options, spoken) if way else None
    elif spec.kind in ("local", "python"):
        inside = _here(spec, options)
        identity = inside.identity
        model = None if mode == "replay" else Budgeted(inside, budget, who=f"{spec.kind}:{spec.name}")
    else:
        raise SpecError(f"{spec.kind} is no chat model. Write PROVIDER/NAME[@URL], local:PATH or python:MODULE:NAME")
    if path is not None and mode is not None:
        model = Cassette(path, mode, identity, model)
    assert model is not None  # replaying needs a path
    return _Opened(spec, settings, model, takes, asked, spoken)


def _remote(
    way: Wire,
    spec: Spec,
    takes: Capabilities,
    budget: Budget | None,
    settings: ModelSettings,
    options: Mapping[str, Any],
    spoken: Spoken,
) -> ChatModel:
    """Everything below the cassette, of a model behind an API."""
    (provider, _, name), url = spec.name.partition("/"), spec.url
    who = f"{provider}/{name}" + (f" at {url}" if url else "")
    own = url or (os.environ.get("OPENAI_BASE_URL") if provider == "openai" else None)
    price = None if own and "//api.openai.com" not in own else price_of(provider, name)
    if budget and budget.unit == "USD" and price is None:
        raise SpecError(f"{who}: {unpriced(budget)}")
    from esc_env.models.choices import Choices
    from esc_env.models.patience import CALL_DEADLINE, Patient

    wire = Adapting(_wire(way, spec, settings.deadline or CALL_DEADLINE, options), spoken, who)

    endpoint = _endpoint(
        own or provider, settings.concurrency, settings.requests_per_minute, settings.tokens_per_minute
    )
    patient = Patient(wire, endpoint, deadline=settings.deadline, timeout=settings.timeout)
    choices = Choices(patient, single=not takes.choices, most=spoken.most)
    return Budgeted(choices, budget, price, who=who)


def _way(provider: str, name: str, url: str | None, wire: Wire) -> Wire:
    """The wire to take, if what it needs is there."""
    served = provider == "openai" or url is not None
    way = ("aiohttp" if served else "litellm") if wire == "auto" else wire
    if way != "litellm" and not served:
        raise SpecError(
            f"wire {way!r} speaks to openai/NAME and to PROVIDER/NAME@URL only, not to {provider}/{name}. "
            "Leave --wire (wire=…) away"
        )
    for package in (way, "tenacity"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "llm")
    if way == "litellm" and not served:
        check_provider(provider, name)
    return way


def _wire(way: Wire, spec: Spec, timeout: float, options: Mapping[str, Any]) -> Any:
    provider, _, name = spec.name.partition("/")
    if way == "litellm":
        from esc_env.models.sdk import LiteLLMModel

        return LiteLLMModel(spec.name, spec.url, timeout=timeout, options=options)
    if way == "openai":
        from esc_env.models.sdk import OpenAISDK

        return OpenAISDK(name, spec.url, provider, timeout, options=options)
    from esc_env.models.wire import OpenAIWire

    return OpenAIWire(name, spec.url, provider, timeout, options=options)


@cache
def _spoken(name: str, url: str | None, token_limit: str, seed: bool) -> Spoken:
    """What this process knows of how one model at one endpoint wants to be asked."""
    return Spoken(Dialect(token_limit=token_limit, seed=seed))


@cache
def _endpoint(key: str, concurrency: int, requests: int | None, tokens: int | None) -> Endpoint:
    from esc_env.models.patience import Endpoint

    return Endpoint(key, concurrency=concurrency, requests_per_minute=requests, tokens_per_minute=tokens)


def _here(spec: Spec, options: Mapping[str, Any]) -> ChatModel:
    """A model in this process."""
    if spec.kind == "local":
        from esc_env.models.local import LocalModel

        return LocalModel(spec.name, **options)
    model = import_object(spec.name)
    if isinstance(model, type) or not isinstance(model, ChatModel):
        raise SpecError(f"python:{spec.name} is no ChatModel: it needs `identity` and an async `complete`")
    return model


def effective(model: object) -> dict[str, str]:
    """How a model of `open_model` is asked, where its server takes a request otherwise than plain; {} for any other.

    What a server does not take is found out by asking it, so this holds more after the first call.
    """
    spoken = model.spoken if isinstance(model, _Opened) else None
    if spoken is None:
        return {}
    choices = {"n": f"at most {spoken.most[0]} a request"} if spoken.most else {}
    return choices | spoken.dialect.effective


PROBE: Sequence[ChatMessage] = (
    {"role": "system", "content": "You answer in one word."},
    {"role": "user", "content": "Say OK."},
    {"role": "assistant", "content": "OK."},
    {"role": "user", "content": "Say it again."},
)
"""What a model is asked before a run: a chat of the shape that supporters hand over, in few words."""


async def check_model(model: ChatModel, chair: str = "model", **asked: Any) -> None:
    """Ask a model for a word just as it will be asked, so that what it refuses is known before a run starts.

    A model that only replays, or that is not one of `open_model`, is asked nothing. What a cassette holds is not used.

    Args:
        model: any.
        chair: `agent`, `seeker` or `critic`: named in the message.
        asked: the arguments of `complete` that the chair will use; the messages are `PROBE`.

    Raises:
        SpecError: it does not take the temperature, or gives no log-probabilities; the message names the option.
        ModelError: it does not answer; the message is one line that names the chair and what to set.
    """
    known = model.model if isinstance(model, _Opened) else None
    if isinstance(known, Cassette):
        known = known.model
    if known is None:
        return
    try:
        answer = await known.complete(PROBE, **asked)
    except BadCompletion:
        return  # it answers; what it says is nobody's concern yet
    except ModelError as error:
        if error.status in (400, 422) and "temperature" in error.told.casefold():
            option = "temperature" if chair == "agent" else f"{chair}_temperature"
            raise SpecError(
                f"{chair}: {error}. Give a temperature that it takes with --{option.replace('_', '-')} ({option}=…), "
                "or name another model"
            ) from error
        if asked.get("logprobs") and error.status in (400, 422) and "logprob" in error.told.casefold():
            raise SpecError(f"{chair}: {error}. {_NO_LOGPROBS}") from error
        silent = error.retryable and error.status is None
        error.args = (f"{chair}: {error}{'. Is the network up, and does the server run?' if silent else ''}",)
        raise
    if asked.get("logprobs") and not (answer.logprobs and answer.logprobs[0]):
        name = "/".join(str(model.identity.get(key, "")) for key in ("provider", "name"))
        raise SpecError(f"{chair}: {name} gives no log-probabilities. {_NO_LOGPROBS}")


_NO_LOGPROBS = "Use --critic-mode votes (critic_mode='votes'), or name another model"

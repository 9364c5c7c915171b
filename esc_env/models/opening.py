"""From a string to a `ChatModel` with all its layers."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from esc_env.errors import MissingExtra, ModelError, SpecError
from esc_env.models.budget import Budget, Budgeted, price_of, unpriced
from esc_env.models.capabilities import Capabilities, capabilities_of, check_provider
from esc_env.models.cassette import Cassette
from esc_env.models.choices import Choices
from esc_env.models.dialect import Adapting, Dialect, Spoken
from esc_env.models.endpoint import Endpoint, make_room
from esc_env.models.layer import Layer
from esc_env.models.options import Options, check_names
from esc_env.models.patience import Patient
from esc_env.models.retries import CALL_DEADLINE
from esc_env.models.settings import ModelSettings, Wire
from esc_env.models.sharing import share
from esc_env.protocols import ChatModel, Completion, Request
from esc_env.secrets import Key, struck
from esc_env.specs import Spec, import_object, parse_spec

__all__ = ["Opened", "open_model"]


def open_model(
    spec: str | Spec, settings: ModelSettings | None = None, options: Options | None = None, *, chair: str = "agent"
) -> ChatModel:
    """The chat model that a string names, with its retries, limits, budget and cassette around it.

    The same string, settings and options give the same object, so that all chairs on an endpoint share its limits.

    Args:
        spec: `PROVIDER/NAME[@URL]`, `local:PATH_OR_HUB_ID`, or `python:MODULE:NAME` of a `ChatModel`. A `#STYLE` is
            left to agents.
        settings: by default `ModelSettings()`.
        options: further fields of every request; `max_tokens`, `stop` and `system` are left to the chair.
        chair: `agent`, `seeker` or `critic`: named in messages.

    Raises:
        SpecError: the string names no model, the model takes no such option, its price is unknown and the budget is in
            dollars, or the settings' `api_key` is another's.
        MissingExtra: the packages it needs are not installed.
    """
    parsed = parse_spec(spec) if isinstance(spec, str) else spec
    plain, options = replace(parsed, style=None), options or Options()
    _check_options(plain, options, chair)
    settings = settings or ModelSettings()
    if plain.kind == "model" and settings.replay is None and isinstance(settings.api_key, Key):
        _check_key(plain, settings.api_key, chair)
    return _opened(plain, settings, options.asked)


def _check_key(spec: Spec, key: Key, chair: str) -> None:
    """Refuse to send one key that was handed over to a provider and to others as well."""
    provider = spec.name.partition("/")[0]
    home = f"the provider {provider}" if spec.url is None else "servers that a URL names"
    first = key.given_to(home)
    if first != home:
        raise SpecError(
            f"{chair} {spec.name}: api_key goes to {first} here, so it does not go to {home}. Use api_key_env and the "
            f"environment's keys, or give this chair's model settings of its own: resolve_{chair}(…, "
            "ModelSettings(api_key=…))"
        )


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
class Opened(Layer):
    """What `open_model` gives: a pickle or a copy of it is the string and the settings, opened again."""

    spec: Spec
    settings: ModelSettings
    capabilities: Capabilities
    asked: str = "{}"
    spoken: Spoken | None = None

    async def complete(self, request: Request) -> Completion:
        """What the model says, without keys: a server may echo the one that it was sent."""
        try:
            answer = await self.model.complete(request)
        except ModelError as error:
            error.infrastructure = True
            raise
        texts, reasons, tops, name = struck(
            (answer.texts, answer.finish_reasons, [dict(choice) for choice in answer.logprobs or ()], answer.model)
        )
        return replace(
            answer,
            texts=tuple(texts),
            finish_reasons=tuple(reasons),
            logprobs=tuple(tops) if answer.logprobs is not None else None,
            model=name,
            usage=replace(answer.usage, models=(name,)) if name else answer.usage,
        )

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
    return Opened(model, spec, settings, takes, asked, spoken)


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
    wire = Adapting(_wire(way, spec, settings, options), spoken, who)
    make_room(max(1, settings.concurrency // share().of))
    endpoint = _endpoint(
        own or provider, settings.concurrency, settings.requests_per_minute, settings.tokens_per_minute,
        settings.api_key,
    )  # fmt: skip
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
            "Leave --wire (wire=…) out"
        )
    if importlib.util.find_spec(way) is None:
        raise MissingExtra(way, "llm")
    if way == "litellm" and not served:
        check_provider(provider, name)
    return way


def _wire(way: Wire, spec: Spec, settings: ModelSettings, options: Mapping[str, Any]) -> Any:
    provider, _, name = spec.name.partition("/")
    given: dict[str, Any] = {
        "timeout": settings.deadline or CALL_DEADLINE, "options": options, "key_env": settings.api_key_env,
        "handed": settings.api_key,
    }  # fmt: skip
    if way == "litellm":
        from esc_env.models.sdk import LiteLLMModel

        return LiteLLMModel(spec.name, spec.url, **given)
    if way == "openai":
        from esc_env.models.sdk import OpenAISDK

        return OpenAISDK(name, spec.url, provider, **given)
    from esc_env.models.wire import OpenAIWire

    return OpenAIWire(name, spec.url, provider, **given)


@cache
def _spoken(name: str, url: str | None, token_limit: str, seed: bool) -> Spoken:
    """What this process knows of how one model at one endpoint wants to be asked."""
    return Spoken(Dialect(token_limit=token_limit, seed=seed))


@cache
def _endpoint(key: str, concurrency: int, requests: int | None, tokens: int | None, handed: str | None) -> Endpoint:
    """A server as everybody shares it who has the same key there: what it lets through, it counts by key."""
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

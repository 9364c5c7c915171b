"""The two packages that others call models with: OpenAI's own, and LiteLLM, which knows every provider.

Both only send a request and read the answer. Their retries are off (`retries.py` has the one policy), their prints and
downloads too.
They are slow to import, so that happens at the first call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import inspect
import json
import logging
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

from esc_env.errors import MissingExtra, ModelUnavailable
from esc_env.models.dialect import PLAIN, Dialect
from esc_env.models.wire import (
    Addressed,
    assembled,
    error_told,
    lent,
    openai_headers,
    read_completion,
    refused,
    request_body,
)  # fmt: skip
from esc_env.protocols import Completion, Request
from esc_env.secrets import Key

__all__ = ["LiteLLMModel", "OpenAISDK"]


_CLIENTS = ("custom_httpx.http_handler", "openai.common_utils")
"""Where LiteLLM makes HTTP clients: its own, and those of the openai package."""
_WARNS = "litellm.llms.github_copilot.per_user_auth"
"""A part of LiteLLM 1.110 that it imports at its first call, whoever is called; it warns (pydantic's `ReadOnly`)."""


class OpenAISDK(Addressed):
    """A `ChatModel` behind any OpenAI-compatible server, over the openai package. See `Addressed` for its arguments.

    The reference that `OpenAIWire` is tested against, at thirty times its CPU.
    """

    async def complete(self, request: Request) -> Completion:
        """One request and its answer. Raises `ModelUnavailable`, which says whether trying again makes sense."""
        openai = _package("openai")
        body = request_body(request, self.dialect)
        key = self.key
        base = self.base
        client = await _client(base)
        ask = client.chat.completions.create  # imported here, before the clock runs
        headers = {**self.headers, "Authorization": f"Bearer {key}" if key else openai.Omit()}
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout):
                answer = await ask(
                    model=self.name, timeout=self.timeout, extra_headers=headers, extra_body=self.fields or None, **body
                )
                data = await _plain(answer, self.dialect.stream)
        except (openai.OpenAIError, TimeoutError, ValueError, RecursionError) as error:
            raise _translated(self, error) from None
        return read_completion(self, data, latency=time.perf_counter() - start)


class LiteLLMModel(Addressed):
    """A `ChatModel` of any provider that LiteLLM knows, with the key that LiteLLM looks for.

    Args:
        spec: `PROVIDER/NAME`.
        url: base URL of a server of one's own.
        timeout: seconds from the request to the end of the answer.
        dialect, options, key_env, handed: see `Addressed`.
    """

    def __init__(
        self,
        spec: str,
        url: str | None = None,
        *,
        timeout: float = 60.0,
        dialect: Dialect = PLAIN,
        options: Mapping[str, Any] | None = None,
        key_env: str | None = None,
        handed: Key | None = None,
    ) -> None:
        provider, _, name = spec.partition("/")
        super().__init__(
            name, url, provider, timeout, dialect=dialect, options=options or {}, key_env=key_env, handed=handed
        )

    @property
    def key_name(self) -> str:
        """The environment variable that LiteLLM takes most providers' keys from."""
        return (
            super().key_name
            if self.url or self.handed is not None
            else self.provider.replace("-", "_").upper() + "_API_KEY"
        )

    async def complete(self, request: Request) -> Completion:
        """One request and its answer. Raises `ModelUnavailable`, which says whether trying again makes sense.

        A parameter that the provider does not take is an error, never left out.
        """
        litellm = _package("litellm")
        openai = _package("openai")
        if self.dialect.stream:  # it makes one choice of a stream; `Choices` asks on
            request = replace(request, n=1)
        body = {**self.options, **request_body(request, self.dialect)}
        if self.url:
            body |= {"api_base": self.base, "api_key": self.key or "none"}
        elif self.handed is not None:
            body["api_key"] = self.handed.secret
        await lent("litellm", _LiteLLM)
        if self.provider == "openai":
            headers = {**self.headers, "Authorization": f"Bearer {self.key or 'none'}"}
            body |= {"client": await _client(self.base), "extra_headers": headers}
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout):
                answer = await litellm.acompletion(
                    model=f"{self.provider}/{self.name}", timeout=self.timeout, num_retries=0, max_retries=0,
                    drop_params=False, **body,
                )  # fmt: skip
                data = await _plain(answer, self.dialect.stream)
        except (openai.OpenAIError, TimeoutError, ValueError, RecursionError) as error:
            raise _translated(self, error) from None
        return read_completion(self, data, latency=time.perf_counter() - start)


async def _client(base: str) -> Any:
    """OpenAI's client for a server: it follows no redirect, and adds no header by itself (`Addressed.headers`)."""
    openai = _package("openai")
    names = tuple(openai_headers())
    return await lent(
        ("openai", base, names),
        lambda: openai.AsyncOpenAI(
            api_key="see headers", base_url=base, max_retries=0, default_headers=dict.fromkeys(names, openai.Omit()),
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        ),
    )  # fmt: skip


class _LiteLLM:
    """LiteLLM's connections on one event loop."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *error: object) -> None:
        await _package("litellm").close_litellm_async_clients()


async def _plain(answer: Any, stream: bool) -> Any:
    """An answer as plain data, put together where it is a stream; None where the package made nothing of it."""
    if stream and hasattr(answer, "__aiter__"):
        return assembled([chunk.model_dump(warnings=False) async for chunk in answer])
    return answer.model_dump(warnings=False) if hasattr(answer, "model_dump") else None


@cache
def _package(name: str) -> ModuleType:
    """The package, imported without downloads, prints and warnings."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module(name)
            if name == "litellm":
                package.ModelResponse()  # builds its schema, and warns, at first use
                with contextlib.suppress(ModuleNotFoundError):  # others have no such part
                    importlib.import_module(_WARNS)
    except ImportError as error:
        raise MissingExtra(name, "llm") from error
    if name == "litellm":
        http, sdk = (importlib.import_module(f"litellm.llms.{part}") for part in _CLIENTS)
        _staying(http.AsyncHTTPHandler, "create_client")
        _staying(sdk.BaseOpenAILLM, "_get_async_http_client")
        package.suppress_debug_info = True  # type: ignore[attr-defined]
        package.telemetry = False  # type: ignore[attr-defined]
        for logger in ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
    return package


def _staying(owner: Any, name: str) -> None:
    """Have a class of LiteLLM make HTTP clients that follow no redirect, which it has no setting for."""
    kept = inspect.getattr_static(owner, name)
    make = getattr(kept, "__func__", kept)

    @functools.wraps(make)
    def made(*args: Any, **options: Any) -> Any:
        client = make(*args, **options)
        client.follow_redirects = False
        return client

    setattr(owner, name, staticmethod(made) if isinstance(kept, staticmethod) else made)


def _translated(model: Addressed, error: Exception) -> ModelUnavailable:
    """What went wrong, in the words of `wire.py`."""
    openai = _package("openai")
    if isinstance(error, (TimeoutError, openai.APITimeoutError)):
        return model.error(f"no answer within {model.timeout:g} s", retryable=True)
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any("CERTIFICATE_VERIFY_FAILED" in str(cause) for cause in causes):
        return model.error(f"its certificate is not trusted ({causes[-1]}). Set SSL_CERT_FILE to your CA bundle")
    if any(
        isinstance(cause, (json.JSONDecodeError, RecursionError, openai.APIResponseValidationError)) for cause in causes
    ):
        return model.error("answered with something that is not a JSON object", status=200, retryable=True)
    if any(isinstance(cause, openai.APIConnectionError) for cause in causes):
        return model.error(f"no connection ({causes[-1] or type(causes[-1]).__name__})", retryable=True)
    status: Any = getattr(error, "status_code", None)
    if status is None:
        return model.error(str(error))
    message, code = error_told(getattr(error, "body", None))
    response = getattr(error, "response", None)
    headers = getattr(error, "litellm_response_headers", None) or getattr(response, "headers", None) or {}
    return refused(model, int(status), message or str(error), code or getattr(error, "code", None), headers)

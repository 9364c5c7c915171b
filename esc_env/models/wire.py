"""OpenAI's chat-completions API over bare aiohttp: one request and its answer, no retries, next to no CPU.

The SDKs cost 4 to 13 ms of CPU a request at concurrency 64, which stops a process at 60 to 200 requests a second; this
costs a tenth of that. What must not differ from them is shared with them (`sdk.py`) and lives here: the request body,
how an answer is read, and which failure is which error. The contract tests hold all wires to the same requests,
completions and errors.

Keys are read from the environment at every request and kept nowhere; one that was handed over is held by its model, and
goes into no connection that models share.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import json
import os
import re
import ssl
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Self, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from esc_env.dialogue import think_block
from esc_env.errors import BareKeyWarning, MissingExtra, ModelUnavailable, SpecError
from esc_env.models.dialect import PLAIN, Dialect
from esc_env.models.endpoint import proxy_of
from esc_env.protocols import Completion, Request, Usage
from esc_env.secrets import Key, credential, redacted

try:
    import aiohttp
except ImportError as error:
    raise MissingExtra("aiohttp", "llm") from error

__all__ = [
    "Addressed", "OpenAIWire", "assembled", "failure", "lent", "openai_headers", "read_completion", "request_body",
    "seconds_asked",
]  # fmt: skip

T = TypeVar("T")

OPENAI = "https://api.openai.com/v1"
ANY_HOST = "ESC_API_KEY"
"""The variable that holds the key of a server that a URL names."""
SELF_HOSTED = frozenset(
    "custom_openai docker_model_runner hosted_vllm lemonade litellm_proxy llamafile lm_studio ollama vllm "
    "xinference".split()
)
"""Providers that are a server of one's own, so that their `PROVIDER_API_KEY` is its key. *Source:* LiteLLM's pages."""
LONGEST_ANSWER = 1 << 28
"""Bytes that an answer may have: 256 MiB. Ours: far above ten long choices, streamed with all log-probabilities."""
LONGEST_TOLD = 1000
"""Characters of a server's message that are shown."""


@dataclass(frozen=True)
class Addressed:
    """A model on an OpenAI-compatible server, and what every wire to it needs.

    Args:
        name: of the model, as the server knows it.
        url: base URL, usually ending in `/v1`; None for `OPENAI_BASE_URL`, or OpenAI itself.
        provider: part of the identity.
        timeout: seconds from the request to the end of the answer.
        connections: requests in flight that the wire must not hold back.
        dialect: how the server takes a request.
        options: further fields of every request, by their names; part of the identity.
            `extra_body` in it goes to the server as it is.
        key_env: the environment variable that holds the key of the server at `url`; None for `ESC_API_KEY`.
        handed: the key itself; None for the environment's.

    Raises:
        SpecError: the URL holds a user name or password.
    """

    name: str
    url: str | None = None
    provider: str = "openai"
    timeout: float = 60.0
    connections: int = 64
    dialect: Dialect = PLAIN
    options: Mapping[str, Any] = field(default_factory=dict)
    key_env: str | None = None
    handed: Key | None = None

    def __post_init__(self) -> None:
        if self.url and "@" in urlsplit(self.url).netloc:
            raise SpecError(
                f"the URL of {self.provider}/{self.name} holds a password, which would end up in records; "
                f"take it out and set {self.key_name}"
            )

    @property
    def identity(self) -> Mapping[str, Any]:
        """Provider, name, and the further fields of requests."""
        identity: dict[str, Any] = {"provider": self.provider, "name": self.name}
        return {**identity, "options": dict(self.options)} if self.options else identity

    @property
    def fields(self) -> dict[str, Any]:
        """The options as fields of the request's body."""
        named = {name: value for name, value in self.options.items() if name != "extra_body"}
        return {**named, **self.options.get("extra_body", {})}

    def speaking(self, dialect: Dialect) -> Self:
        """The same wire in another dialect."""
        other = copy.copy(self)
        object.__setattr__(other, "dialect", dialect)
        return other

    @property
    def base(self) -> str:
        """The base URL in force, without a slash at its end."""
        shared = os.environ.get("OPENAI_BASE_URL") if self.provider == "openai" else None
        return (self.url or shared or OPENAI).rstrip("/")

    @property
    def openais(self) -> bool:
        """Whether the server is OpenAI's, or the one that `OPENAI_BASE_URL` sets beside OpenAI's key."""
        known = (OPENAI, os.environ.get("OPENAI_BASE_URL") or OPENAI)
        return self.provider == "openai" and _origin(self.base) in map(_origin, known)

    @property
    def key_name(self) -> str:
        """Where the key stands: `api_key`, or the environment variable that holds it. A provider's own goes to that
        provider and nowhere else."""
        if self.handed is not None:
            return "api_key"
        if self.key_env and self.url:
            return self.key_env
        if self.openais:
            return "OPENAI_API_KEY"
        own = re.sub(r"\W", "_", self.provider).upper() + "_API_KEY"
        return own if self.provider in SELF_HOSTED and os.environ.get(own) else ANY_HOST

    @property
    def key(self) -> str | None:
        """The key that was handed over or is in the environment; None where a server of one's own needs none.

        Raises:
            ModelUnavailable: there is none and the server is OpenAI's or `key_env` names one, or it holds characters
                that no key has.
        """
        name = self.key_name
        key = self.handed.secret if self.handed is not None else credential(name)
        if key and not re.fullmatch(r"[!-~]+", key):
            raise self.error(f"{name} holds a space or a character that no key has. Set it again")
        if not key and name == self.key_env:
            raise self.error(f"no key. Set {name}, which --api-key-env (api_key_env=…) names, or leave that out")
        if not key and urlsplit(self.base).hostname == "api.openai.com":
            raise self.error(f"no key. Set {name}, or name a server: openai/NAME@http://HOST:PORT/v1")
        if key:
            _tell_if_bare(name, self.base)
        return key or None

    @property
    def headers(self) -> dict[str, str]:
        """Extra headers from the environment: they belong to OpenAI's key there, and go where it goes."""
        return openai_headers() if self.openais and self.handed is None else {}

    def error(
        self, message: str, *, status: int | None = None, retryable: bool = False, retry_after: float | None = None
    ) -> ModelUnavailable:
        """An error about this model that names it and holds no key."""
        parts = urlsplit(self.base)
        where = f" at {parts.scheme}://{parts.netloc}{parts.path}" if self.base != OPENAI else ""
        return failure(
            self.provider, self.name, f"{self.provider}/{self.name}{where}", message,
            status=status, retryable=retryable, retry_after=retry_after, key_name=self.key_name,
        )  # fmt: skip


def openai_headers() -> dict[str, str]:
    """What OpenAI's own client takes from the environment: custom headers, organisation and project."""
    custom = os.environ.get("OPENAI_CUSTOM_HEADERS", "")
    pairs = (line.partition(":") for line in custom.splitlines() if ":" in line)
    headers = {name.strip(): value.strip() for name, _, value in pairs}
    for name, variable in (("OpenAI-Organization", "OPENAI_ORG_ID"), ("OpenAI-Project", "OPENAI_PROJECT_ID")):
        if value := os.environ.get(variable):
            headers[name] = value
    return headers


@cache
def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL: what a key is for."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


@cache
def _tell_if_bare(key_name: str, base: str) -> None:
    """Warn, once, of a key that travels where anybody on the way can read it."""
    server = urlsplit(base)
    host = server.hostname or ""
    here = host == "localhost" or host.endswith(".localhost") or host == "::1" or re.fullmatch(r"127(\.\d+){3}", host)
    if server.scheme == "http" and not here:
        warnings.warn(
            f"the key in {key_name} goes to {host} over plain http, where anybody on the way can read it. Use "
            "https, or a tunnel to 127.0.0.1",
            BareKeyWarning,
            stacklevel=4,
        )


class OpenAIWire(Addressed):
    """A `ChatModel` behind any OpenAI-compatible server. See `Addressed` for its arguments.

    Proxies (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`) and a CA bundle (`SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE`) are taken
    from the environment when the event loop makes its first request to the server. Connections are kept alive and never
    capped: whoever calls decides how many requests are in flight.
    """

    async def complete(self, request: Request) -> Completion:
        """One request and its answer. Raises `ModelUnavailable`, which says whether trying again makes sense."""
        body = request_body(request, self.dialect)
        base = self.base
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self.headers}
        if key := self.key:
            headers["Authorization"] = f"Bearer {key}"
        server = urlsplit(base)
        session, proxy = (await lent(("aiohttp", server.scheme, server.netloc), lambda: _Line(base))).line
        start = time.perf_counter()
        try:
            async with session.post(
                urlunsplit(server._replace(path=server.path + "/chat/completions")),
                data=json.dumps(
                    {"model": self.name, **self.fields, **body}, ensure_ascii=False, separators=(",", ":")
                ).encode(),
                headers=headers,
                proxy=proxy,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=min(self.timeout, 10.0)),
            ) as response:
                raw = await _read(response)
        except TimeoutError:
            raise self.error(f"no answer within {self.timeout:g} s", retryable=True) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise self.error(
                f"its certificate is not trusted ({error.certificate_error}). Set SSL_CERT_FILE to your CA bundle"
            ) from None
        except _TooLong:
            raise self.error(f"answered with more than {LONGEST_ANSWER >> 20} MiB") from None
        except (aiohttp.InvalidURL, ValueError) as error:
            raise self.error(f"the request cannot be sent ({error})") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self.error(f"no connection ({error or type(error).__name__})", retryable=True) from None
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError):
            data = assembled(_events(raw)) if raw.lstrip().startswith((b"data:", b":", b"event:")) else None
        if response.status != 200:
            message, code = error_told(data)
            raise refused(self, response.status, message or response.reason or "", code, response.headers)
        return read_completion(self, data, latency=time.perf_counter() - start)


class _TooLong(Exception):
    """An answer that nobody wants to read."""


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """What a server answers, unpacked. Raises _TooLong as soon as it is longer than `LONGEST_ANSWER`."""
    raw = bytearray()
    async for part in response.content.iter_any():
        raw += part
        if len(raw) > LONGEST_ANSWER:
            raise _TooLong
    return bytes(raw)


class _Line:
    """The aiohttp session to one server, and the proxy on the way there."""

    def __init__(self, base: str) -> None:
        proxy = proxy_of(base)
        context: ssl.SSLContext | bool = True
        if "https" in (urlsplit(base).scheme, urlsplit(proxy or "").scheme):
            context = ssl.create_default_context()
            bundle = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
            if bundle:
                context.load_verify_locations(bundle)
        connector = aiohttp.TCPConnector(limit=0, ssl=context, keepalive_timeout=30.0)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers={"User-Agent": "esc-env"}
        )
        self.line = (self._session, proxy)

    async def __aenter__(self) -> _Line:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()


def request_body(request: Request, dialect: Dialect = PLAIN) -> dict[str, Any]:
    """A request as OpenAI's wire takes it, the model left out.

    What is at its default is not sent. The seed is cut to 31 bits: the most that every server takes (llama.cpp and
    Gemini hold it in 32).
    """
    body: dict[str, Any] = {"messages": dialect.chat(request.messages), "temperature": request.temperature}
    if request.n != 1:
        body["n"] = request.n
    if request.max_tokens is not None:
        body[dialect.token_limit] = request.max_tokens
    if request.seed is not None and dialect.seed:
        body["seed"] = request.seed & 0x7FFFFFFF
    if request.stop:
        body["stop"] = list(request.stop)
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": min(request.logprobs, dialect.alternatives or request.logprobs)}
    if dialect.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _events(raw: bytes) -> Iterator[Any]:
    """The JSON values of a stream of server-sent events."""
    for line in raw.decode("utf-8", "replace").splitlines():
        told = line.removeprefix("data:").strip()
        if line.startswith("data:") and told != "[DONE]":
            try:
                yield json.loads(told)
            except (ValueError, RecursionError):  # a stream that broke off has no last word, which is told below
                return


def assembled(chunks: Iterable[Any]) -> dict[str, Any]:
    """The answer that a stream of chunks adds up to, as one that was not streamed.

    A choice that never says why it ended, or an error on the way, leaves no choices: an answer worth asking for again.
    """
    choices: dict[int, dict[str, Any]] = {}
    answer: dict[str, Any] = {}
    for chunk in chunks:
        if not isinstance(chunk, dict) or chunk.get("error"):
            return {"error": chunk.get("error") if isinstance(chunk, dict) else None}
        answer |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name)}
        for part in chunk.get("choices") or ():
            choice = choices.setdefault(part.get("index") or 0, {"message": {}, "finish_reason": None})
            for name, value in (part.get("delta") or {}).items():
                if isinstance(value, str) and name != "role":
                    choice["message"][name] = choice["message"].get(name, "") + value
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
            if tokens := (part.get("logprobs") or {}).get("content"):
                choice.setdefault("logprobs", {"content": []})["content"].extend(tokens)
    if choices and all(choice["finish_reason"] for choice in choices.values()):
        answer["choices"] = [choices[index] for index in sorted(choices)]
    return answer


def read_completion(model: Addressed, data: Any, *, latency: float) -> Completion:
    """An answer of OpenAI's wire as a `Completion`.

    A refusal (OpenAI's field) is the text, with `finish_reason` `refusal`. Reasoning that the server returned apart
    (`reasoning_content`, `reasoning`) is put in front of the text as a think block, so that a model reads the same
    whether or not its server parses reasoning. A server that counts no tokens leaves the usage at zero tokens.

    Raises:
        ModelUnavailable: worth retrying: no JSON object, or no choices in it.
    """
    if not isinstance(data, dict):
        raise model.error("answered with something that is not a JSON object", status=200, retryable=True)
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices:
        message, code = error_told(data)
        if isinstance(code, int) and code >= 400:  # OpenRouter passes errors on with status 200
            raise refused(model, code, message or "", None, {})
        told = f" ({message})" if message else ""
        raise model.error(f"answered without choices{told}", status=200, retryable=True)
    try:
        texts, reasons, tops = zip(*map(_choice, choices), strict=True)
        counted = data.get("usage") or {}
        prompt, written = (int(counted.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise model.error(
            f"answered with choices that cannot be read ({type(error).__name__}: {error})", status=200, retryable=True
        ) from None
    name = data.get("model")
    return Completion(
        texts,
        reasons,
        Usage(1, prompt, written, None),
        name if isinstance(name, str) else None,
        None if None in tops else tops,
        latency,
    )


def _choice(choice: Mapping[str, Any]) -> tuple[str | None, str | None, Mapping[str, float] | None]:
    """(text, finish reason, the first token's alternatives) of one choice."""
    message = choice["message"]
    text, reason = message.get("content"), choice.get("finish_reason")
    reason = reason if isinstance(reason, str) else None
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(text, list):  # content parts; Mistral's hold what Magistral thought
        parts = text
        text = "".join(part["text"] for part in parts if part.get("type") == "text")
        inner = [piece["text"] for part in parts if part.get("type") == "thinking" for piece in part["thinking"]]
        thought = thought or "".join(inner)
    refusal = message.get("refusal")
    if refusal is None:  # where LiteLLM puts it
        refusal = (message.get("provider_specific_fields") or {}).get("refusal")
    if text is None and isinstance(refusal, str):
        text, reason = refusal, "refusal"
    if text is not None and not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}")
    if isinstance(thought, str) and thought:
        if text is not None:
            text = think_block(thought) + text
        elif reason in ("length", "content_filter"):  # it was cut while it thought; else no text is no answer
            text = f"<think>{thought}"
    if text is not None:
        try:
            text.encode()
        except UnicodeEncodeError:  # half of an emoji: JSON can say it, no file can
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    tokens = (choice.get("logprobs") or {}).get("content")
    if not tokens:
        return text, reason, None
    top: dict[str, float] = {}
    for entry in tokens[0].get("top_logprobs") or [tokens[0]]:
        top.setdefault(entry["token"], float(entry["logprob"]))
    return text, reason, top


def error_told(data: Any) -> tuple[str | None, str | int | None]:
    """(message, code) of the error that a body holds, in any of the shapes that servers give it."""
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, str):
        return error, None
    if not isinstance(error, dict):
        return None, None
    message = error.get("message") or error.get("detail")
    return str(message) if message else None, error.get("code")


def refused(
    model: Addressed, status: int, message: str, code: str | int | None, headers: Mapping[str, str]
) -> ModelUnavailable:
    """The error for an answer with an error status, or with a redirect, which is never followed: it would take the
    conversation, and what else is in the request, to a server that nobody named."""
    if 300 <= status < 400:
        there = urljoin(model.base + "/", headers.get("Location") or headers.get("location") or "")
        hosts = [urlsplit(url).netloc.rpartition("@")[2] for url in (model.base, there)]
        return model.error(
            f"{hosts[0]} sends on to {hosts[1]}, and nothing is sent there (HTTP {status}). If you trust it, name that "
            "server's own URL instead: openai/NAME@https://HOST/v1"
        )
    retryable = (status in (408, 409, 429) or status >= 500) and code != "insufficient_quota"
    return model.error(message, status=status, retryable=retryable, retry_after=seconds_asked(headers))


_REMEDIES = {
    400: "It refuses what was asked. Check the options that the message names",
    401: "Set {key_name} to a valid key",
    403: "The key in {key_name} may not use this model",
    404: "Check the model's name, and that the URL ends with the version (usually /v1)",
    422: "It refuses what was asked. Check the options that the message names",
    429: "The account behind {key_name} has nothing left to spend",
}


def failure(
    provider: str,
    model: str,
    who: str,
    message: str,
    *,
    key_name: str,
    status: int | None,
    retryable: bool,
    retry_after: float | None = None,
) -> ModelUnavailable:
    """A `ModelUnavailable` in one line: who, which status, what the server said, what to set."""
    said = redacted(" ".join(message.split()))
    said = said if len(said) <= LONGEST_TOLD else said[: LONGEST_TOLD - 1] + "…"
    told = said if status in (None, 200) else f"HTTP {status}" + (f": {said}" if said else "")
    remedy = "" if retryable else _REMEDIES.get(status or 0, "").format(key_name=key_name)
    told = told if told.endswith("...") else told.removesuffix(".")  # three are the server's own: "user/assistant/..."
    sentences = f"{who}: {told}" + (f". {remedy}" if remedy else "")
    return ModelUnavailable(
        sentences, provider=provider, model=model, status=status, retryable=retryable, retry_after=retry_after,
        told=said,
    )  # fmt: skip


def seconds_asked(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for, in seconds from now (it may hold a date); None if it asks for nothing readable."""
    value = headers.get("Retry-After") or headers.get("retry-after") or ""
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds == seconds and seconds != float("inf") else None


_Kept = tuple[Any, AsyncGenerator[Any, None]]
_lent: dict[tuple[int, asyncio.AbstractEventLoop], dict[Hashable, _Kept]] = {}


async def lent(key: Hashable, opening: Callable[[], AbstractAsyncContextManager[T]]) -> T:
    """This event loop's one `key`, opened at the first call and closed when the loop (`asyncio.run`) or process ends.

    An async generator holds it open, since those are what a loop closes at its end.
    """
    home = (os.getpid(), asyncio.get_running_loop())
    here = _lent.get(home)
    if here is None:
        for gone in [known for known in _lent if known[1].is_closed()]:
            del _lent[gone]
        here = _lent[home] = {}
    if key not in here:
        holder = _hold(opening())
        here[key] = (await anext(holder), holder)
    value: T = here[key][0]
    return value


async def _hold(opened: AbstractAsyncContextManager[T]) -> AsyncGenerator[T, None]:
    async with opened as value:
        yield value


async def _close(things: Mapping[Hashable, _Kept]) -> None:
    for _, holder in things.values():
        await holder.aclose()


@atexit.register
def _close_all() -> None:
    """Loops that run in the background until the process ends close nothing themselves."""
    for (process, loop), things in list(_lent.items()):
        if process == os.getpid() and loop.is_running():
            with contextlib.suppress(TimeoutError, RuntimeError):
                asyncio.run_coroutine_threadsafe(_close(things), loop).result(timeout=1.0)

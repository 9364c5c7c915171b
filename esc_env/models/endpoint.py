"""What all calls to one server share: how many at once, how fast, how long to wait, and whether it is there at all."""

from __future__ import annotations

import asyncio
import copy
import math
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from esc_env.errors import BadCompletion, ModelError, SpecError
from esc_env.models.retries import asked
from esc_env.models.sharing import share
from esc_env.protocols import Usage

__all__ = ["Clock", "Endpoint", "Line", "make_room", "proxy_of", "unreachable"]

SLOWER, FASTER, WIDEST = 1.35, 0.75, 5.0
"""How the time between two requests changes: times the first after a 429 (too many requests) without `Retry-After`,
times the second after an answer, and at most the third, in seconds. It settles while half of the requests are refused,
and returns to nothing when fewer are."""

SLOW = 4.0
"""A server is waited for at least so many times as long as its slowest answer so far took. Ours."""

SPARE = 64
"""Files that a process has open besides its connections: records, libraries, its own event loops. Ours."""

BEHIND = 0.1
"""Seconds by which requests that wait may be behind the even pace and still catch up. A timer is late by a millisecond
or so, and a loop that has much to do by more: at 500 requests a second that would be half of them."""

DOWN = 10.0
"""Seconds for which a server that was given up is not asked again."""


@dataclass(frozen=True)
class Clock:
    """What time it is, in seconds, and how to wait: replaceable, so that tests need not."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Line:
    """What an endpoint knows on one event loop, whose limits are the share of this process."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.minute = 60.0 * share().of
        self.slots = asyncio.Semaphore(max(1, endpoint.concurrency // share().of))
        self.gate = asyncio.Lock()
        self.flying = 0
        self.opens = 0.0
        self.spacing = 0.0
        self.slowed = float("-inf")
        self.next_request = 0.0
        self.next_token = 0.0
        self.known = False
        self.last_answer = float("-inf")
        self.slowest = 0.0
        self.down: ModelError | None = None
        self.down_until = 0.0

    @asynccontextmanager
    async def turn(self, tokens: int) -> AsyncIterator[float]:
        """A place among the requests in flight, once the limits let one of about `tokens` go; gives the time then.

        Raises:
            ModelError: the server was given up, and is not asked again yet.
        """
        clock = self.endpoint.clock
        async with self.slots:
            if self.down is not None and clock.now() < self.down_until:
                error = copy.copy(self.down)
                error.args, error.retryable = (f"not asked again: {self.down}",), False
                raise error
            await self._paced(tokens)
            sent = clock.now()
            self.flying += 1
            try:
                yield sent
            except ModelError as error:
                self._failed(error, sent)
                raise
            finally:
                self.flying -= 1

    def patience(self, timeout: float, in_vain: int) -> float:
        """Seconds to wait for an answer: `timeout`, longer where answers took long, twice as long for each in vain."""
        return max(timeout, SLOW * self.slowest) * 2.0**in_vain

    def _failed(self, error: ModelError, sent: float) -> None:
        """A request failed: whoever is asked to slow down, slows everybody down."""
        self.known = self.known or error.status is not None
        if error.status != 429 and not (error.status == 503 and error.retry_after):
            return
        now = self.endpoint.clock.now()
        if wait := asked(error):
            self.opens = max(self.opens, now + wait)
        elif sent > self.slowed:  # else it was under way when we slowed down, and says nothing new
            unspaced = max(now - sent, 0.01) / self.flying
            self.spacing = min(max(self.spacing, unspaced) * SLOWER, WIDEST)
            self.slowed = now

    async def _paced(self, tokens: int) -> None:
        limits, clock = self.endpoint, self.endpoint.clock
        came = clock.now()
        async with self.gate:
            while (wait := self._opens() - clock.now()) > 0:
                await clock.sleep(wait)
            due = max(came, self._opens(), clock.now() - BEHIND)
            fixed = self.minute / limits.requests_per_minute if limits.requests_per_minute else 0.0
            self.next_request = due + max(fixed, self.spacing)
            if limits.tokens_per_minute:
                self.next_token = due + tokens * self.minute / limits.tokens_per_minute

    def _opens(self) -> float:
        """When the limits let the next request go."""
        return max(self.opens, self.next_request, self.next_token)

    def answered(self, tokens: int, usage: Usage, sent: float) -> None:
        """A completion came back: the server is well, and what it really cost is known."""
        self.known, self.down, self.down_until = True, None, 0.0
        self.last_answer = self.endpoint.clock.now()
        self.slowest = max(self.slowest, self.last_answer - sent)
        if sent > self.slowed:
            self.spacing = self.spacing * FASTER if self.spacing > 0.001 else 0.0
        if self.endpoint.tokens_per_minute:
            more = usage.prompt_tokens + usage.completion_tokens - tokens
            self.next_token += more * self.minute / self.endpoint.tokens_per_minute

    def given_up(self, error: ModelError, begun: float) -> None:
        """A call was given up. If nobody was answered since it began, the server is down."""
        if not isinstance(error, BadCompletion) and self.last_answer < begun:
            self.down, self.down_until = error, self.endpoint.clock.now() + DOWN


def make_room(concurrency: int) -> None:
    """Let this process hold so many connections to each of three servers, as far as the system allows.

    A connection is an open file, of which a process may have 256 on macOS and 1,024 on most of Linux, or ask for more.

    Raises:
        SpecError: the system does not even allow so many to one server.
    """
    try:
        import resource
    except ImportError:
        return  # Windows: no such limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = math.inf if hard == resource.RLIM_INFINITY else hard
    if most < concurrency + SPARE:
        raise SpecError(
            f"concurrency: {concurrency:,} requests at the same time are as many connections, and this process may "
            f"open {most:,} files. Choose at most {max(1, hard - SPARE):,}, or first type: "
            f"ulimit -n {concurrency + SPARE}"
        )
    wanted = min(most, 3 * concurrency + SPARE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError):  # macOS may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(wanted), hard))


def proxy_of(url: str) -> str | None:
    """The proxy on the way to a server, as the environment names it; None where there is none."""
    server, proxies = urlsplit(url), urllib.request.getproxies()
    proxy = proxies.get(server.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(server.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def unreachable(url: str, patience: float = 3.0) -> str | None:
    """Why nobody can be spoken to at a server, or at the proxy on the way there; None where somebody listens.

    Args:
        url: of the server; nothing is asked of it.
        patience: seconds to wait.
    """
    server = urlsplit(proxy_of(url) or url)
    host, port = server.hostname or "", server.port or (443 if server.scheme == "https" else 80)
    try:
        with socket.create_connection((host, port), timeout=patience):
            return None
    except OSError as error:
        return f"nobody listens at {host}:{port} ({error.strerror or error})"


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One server, or one provider's API, as everybody in this process shares it who has the same key there.

    Args:
        key: its name, for people.
        concurrency: requests in flight, at least 1.
        requests_per_minute: at most so many, evenly spaced (see `BEHIND`); None for no limit.
        tokens_per_minute: prompt and completion tokens together, evenly spaced; None for no limit.
        clock: for tests.
    """

    key: str
    concurrency: int = 64
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    clock: Clock = field(default_factory=Clock, repr=False)
    _lines: dict[asyncio.AbstractEventLoop, Line] = field(default_factory=dict, init=False, repr=False)

    def line(self) -> Line:
        """What it knows on the running loop."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            for gone in [known for known in self._lines if known.is_closed()]:
                del self._lines[gone]
            line = self._lines[loop] = Line(self)
        return line

    def __reduce__(self) -> tuple[type[Endpoint], tuple[Any, ...]]:
        return type(self), (
            self.key, self.concurrency, self.requests_per_minute, self.tokens_per_minute, self.clock
        )  # fmt: skip

"""The one retry policy, and what all calls to one server share: how many at once, how fast, and when to slow down.

what happens                                    what patience does
no connection, 408, 409, 5xx,                   the same request again, after an exponential wait with jitter
a body that is no answer, no text at all
no answer in time                               the same, and the next wait is twice as long: a server that is slow,
                                                and known to be, is not asked for ever from the start
429, 503 with Retry-After                       the same, and everything sent to that server slows down: a pause for
                                                as long as asked, else time between requests until fewer are refused
400, 401, 403, 404 and the like                 raised at once: trying again changes nothing
a server that answers nobody any more           after the first call given up, the others stop waiting for it
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from esc_env.dialogue import ChatMessage
from esc_env.errors import BadCompletion, MissingExtra, ModelError, ModelUnavailable
from esc_env.protocols import ChatModel, Completion, Usage

try:
    import tenacity
except ImportError as error:
    raise MissingExtra("tenacity", "llm") from error

__all__ = ["Clock", "Endpoint", "Patient"]

ATTEMPTS = 12
"""Requests for one call, 429 not counted: those only end with the deadline. With three in ten failing, one call in two
million fails for good."""

STRANGER_ATTEMPTS = 3
"""The same for a server that has never answered anything: most likely a wrong URL, or no network."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds: the wait after the first failure, doubled at each further one, and its bound. Half of it is jitter."""

LONGEST_ASKED = 60.0
"""Seconds: the longest `Retry-After` that is honoured."""

CALL_DEADLINE = 600.0
"""Seconds from the first time a call is sent until it is given up."""

SLOWER, FASTER, WIDEST = 1.35, 0.75, 5.0
"""What a 429 without `Retry-After` multiplies the time between two requests by, what an answer multiplies it by, and
its bound in seconds. It settles while half is refused, and returns to nothing when less is."""

SLOW = 4.0
"""A server is waited for at least so many times as long as its slowest answer so far took. Ours."""

DOWN = 10.0
"""Seconds for which a server that was given up is not asked again."""

CUT = ("length", "content_filter")
"""Finish reasons for which no text is an answer: the tokens were used up, or the provider withheld it."""

_random = random.Random()


@dataclass(frozen=True)
class Clock:
    """What time it is, in seconds, and how to wait: replaceable, so that tests need not."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class _Line:
    """What an endpoint knows on one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.slots = asyncio.Semaphore(endpoint.concurrency)
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

    async def turn(self, tokens: int) -> None:
        """Wait until a request of about so many tokens may be sent, and take its place."""
        limits, clock = self.endpoint, self.endpoint.clock
        async with self.gate:
            while (wait := max(self.opens, self.next_request, self.next_token) - clock.now()) > 0:
                await clock.sleep(wait)
            fixed = 60.0 / limits.requests_per_minute if limits.requests_per_minute else 0.0
            self.next_request = clock.now() + max(fixed, self.spacing)
            if limits.tokens_per_minute:
                self.next_token = clock.now() + tokens * 60.0 / limits.tokens_per_minute

    def answered(self, tokens: int, usage: Usage, sent: float) -> None:
        """A completion came back: the server is well, and what it really cost is known."""
        self.known, self.down, self.down_until = True, None, 0.0
        self.last_answer = self.endpoint.clock.now()
        self.slowest = max(self.slowest, self.last_answer - sent)
        if sent > self.slowed:
            self.spacing = self.spacing * FASTER if self.spacing > 0.001 else 0.0
        if self.endpoint.tokens_per_minute:
            more = usage.prompt_tokens + usage.completion_tokens - tokens
            self.next_token += more * 60.0 / self.endpoint.tokens_per_minute

    def failed(self, error: ModelError, sent: float) -> None:
        """A request failed: whoever is asked to slow down, slows everybody down."""
        self.known = self.known or error.status is not None
        if error.status != 429 and not (error.status == 503 and error.retry_after):
            return
        now = self.endpoint.clock.now()
        if error.retry_after:
            self.opens = max(self.opens, now + min(error.retry_after, LONGEST_ASKED))
        elif sent > self.slowed:  # else it was under way when we slowed down, and says nothing new
            unspaced = max(now - sent, 0.01) / self.flying
            self.spacing = min(max(self.spacing, unspaced) * SLOWER, WIDEST)
            self.slowed = now

    def given_up(self, error: ModelError, begun: float) -> None:
        """A call was given up. If nobody was answered since it began, the server is down."""
        if not isinstance(error, BadCompletion) and self.last_answer < begun:
            self.down, self.down_until = error, self.endpoint.clock.now() + DOWN


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One server, or one provider's API, as everybody in this process shares it.

    Args:
        key: its name, for people.
        concurrency: requests in flight, at least 1.
        requests_per_minute: at most so many, evenly spaced; None for no limit.
        tokens_per_minute: prompt and completion tokens together, evenly spaced; None for no limit.
        clock: for tests.
    """

    key: str
    concurrency: int = 64
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    clock: Clock = field(default_factory=Clock, repr=False)
    _lines: dict[asyncio.AbstractEventLoop, _Line] = field(default_factory=dict, init=False, repr=False)

    def line(self) -> _Line:
        """What it knows on the running loop."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            for gone in [known for known in self._lines if known.is_closed()]:
                del self._lines[gone]
            line = self._lines[loop] = _Line(self)
        return line

    def __reduce__(self) -> tuple[type[Endpoint], tuple[Any, ...]]:
        return type(self), (
            self.key, self.concurrency, self.requests_per_minute, self.tokens_per_minute, self.clock
        )  # fmt: skip


@dataclass(frozen=True)
class Patient:
    """A chat model that is asked again when that makes sense, within the limits of its endpoint.

    Args:
        model: whom to ask; one exchange a call.
        endpoint: where it is; shared by all models there.
        deadline: seconds from the first time a call is sent until it is given up; None for ten minutes. Waiting for a
            free place before that does not count.
        timeout: seconds to wait for an answer, at first: longer once answers there are known to take longer, and twice
            as long after each wait in vain of one call; None to leave that to the model.
    """

    model: ChatModel
    endpoint: Endpoint
    deadline: float | None = None
    timeout: float | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the model."""
        return self.model.identity

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
        """What the model says, at the first attempt that says something.

        A completion whose every choice is without text, and not cut or withheld, counts as a failed attempt. What such
        attempts cost is in the usage.

        Raises:
            ModelUnavailable: it cannot be had: `attempts` and the last `status` say how it was tried.
            BadCompletion: it never said anything.
        """
        line, clock, deadline = self.endpoint.line(), self.endpoint.clock, self.deadline or CALL_DEADLINE
        tokens = 0
        if self.endpoint.tokens_per_minute:
            tokens = sum(len(message["content"]) for message in messages) // 4 + n * (max_tokens or 100)
        begun = float("inf")
        attempts = in_vain = 0
        wasted = Usage()
        first: ModelError | None = None
        last: ModelError | None = None

        async def ask() -> Completion:
            nonlocal begun, attempts, in_vain, wasted, last
            async with line.slots:
                if line.down is not None and clock.now() < line.down_until:
                    raise replaced(line.down, f"not asked again: {line.down}", attempts, retryable=False)
                await line.turn(tokens)
                sent = clock.now()
                if not attempts:
                    begun = sent
                    limit.reschedule(asyncio.get_running_loop().time() + deadline)
                attempts += 1
                line.flying += 1
                wait = self.timeout and max(self.timeout, SLOW * line.slowest) * 2.0**in_vain
                try:
                    async with asyncio.timeout(wait) as answering:
                        completion = await self.model.complete(
                            messages, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed, stop=stop,
                            logprobs=logprobs,
                        )  # fmt: skip
                except TimeoutError:
                    if not answering.expired():
                        raise
                    in_vain += 1
                    last = self._silent(wait)
                    line.failed(last, sent)
                    raise last from None
                except ModelError as error:
                    last = error
                    line.failed(error, sent)
                    raise
                finally:
                    line.flying -= 1
            line.answered(tokens, completion.usage, sent)
            if all(text is None for text in completion.texts) and not set(completion.finish_reasons) & set(CUT):
                wasted += completion.usage
                last = BadCompletion("answered without text", status=200, retryable=True)
                raise last
            if wasted.requests:
                return replace(completion, usage=wasted + completion.usage)
            return completion

        def wait(state: tenacity.RetryCallState) -> float:
            asked = last.retry_after if last else None
            if asked is None:
                return _backoff(state.attempt_number - 1)
            return min(asked, LONGEST_ASKED) + _random.uniform(0.0, FIRST_WAIT) * state.attempt_number

        def enough(state: tenacity.RetryCallState) -> bool:
            stranger = not line.known and last is not None and last.status is None
            allowed = 1 if line.down is not None else STRANGER_ATTEMPTS if stranger else ATTEMPTS
            limited = last is not None and last.status == 429
            return (attempts >= allowed and not limited) or clock.now() + state.upcoming_sleep > begun + deadline

        async def go_on() -> Completion:
            nonlocal first
            failed, first = first, None
            if failed is not None:
                raise failed
            return await ask()

        try:
            async with asyncio.timeout(None) as limit:
                try:
                    return await ask()  # nearly always: tenacity would double what a request costs
                except ModelError as failure:
                    first = failure
                return await tenacity.AsyncRetrying(
                    retry=tenacity.retry_if_exception(_worth_retrying),
                    wait=wait, stop=enough, sleep=clock.sleep, reraise=True,
                )(go_on)  # fmt: skip
        except TimeoutError:
            told = f"; last: {last}" if last else ""
            error = replaced(last, f"{self._who} gave no answer within {deadline:g} s{told}", attempts, self.identity)
        except ModelError as failure:
            if not failure.retryable:
                failure.attempts = attempts
                raise
            told = str(failure) if failure.model else f"{self._who} {failure}"
            error = replaced(failure, f"{told} (given up after {_times(attempts)})", attempts, self.identity)
        line.given_up(error, begun)
        raise error

    def _silent(self, seconds: float | None) -> ModelUnavailable:
        known = self.identity
        return ModelUnavailable(
            f"{self._who} at {self.endpoint.key}: no answer within {seconds:g} s", provider=known.get("provider"),
            model=known.get("name"), retryable=True,
        )  # fmt: skip

    @property
    def _who(self) -> str:
        return f"{self.identity.get('provider', 'model')}/{self.identity.get('name', '?')}"


def replaced(
    error: ModelError | None,
    message: str,
    attempts: int,
    identity: Mapping[str, Any] | None = None,
    *,
    retryable: bool = True,
) -> ModelError:
    """An error like `error` with another message; ModelUnavailable unless it is a BadCompletion."""
    kind = BadCompletion if isinstance(error, BadCompletion) else ModelUnavailable
    known = identity or {}
    return kind(
        message,
        provider=(error and error.provider) or known.get("provider"),
        model=(error and error.model) or known.get("name"),
        attempts=attempts,
        status=error.status if error else None,
        retryable=retryable,
        retry_after=error.retry_after if error else None,
        told=error.told if error else "",
    )


def _worth_retrying(error: BaseException) -> bool:
    return isinstance(error, ModelError) and error.retryable


def _backoff(failures: int) -> float:
    return min(FIRST_WAIT * 2.0 ** min(failures, 16), LONGEST_WAIT) * _random.uniform(0.5, 1.0)


def _times(attempts: int) -> str:
    return "one attempt" if attempts == 1 else f"{attempts} attempts"

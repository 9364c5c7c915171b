"""A chat model that is asked again where that makes sense.

what happens                                    what patience does
no connection, 408, 409, 5xx,                   the same request again, after an exponential wait with jitter
a body that is no answer, no text at all
no answer in time                               the same, and the next wait is twice as long: a server that is slow,
                                                and known to be, is not asked for ever from the start
429, 503 with Retry-After                       the same, and everything sent to that server slows down: a pause for
                                                as long as asked, else time between requests until fewer are refused
400, 401, 403, 404 and the like                 raised at once: trying again changes nothing
a server that answers nobody any more           after the first call given up, the others stop waiting for it

`retries.py` decides when, `endpoint.py` knows the server.
"""

from __future__ import annotations

import asyncio
import copy
import random
from dataclasses import dataclass, replace

from esc_env.errors import BadCompletion, ModelError, ModelUnavailable
from esc_env.models.endpoint import Endpoint
from esc_env.models.layer import Layer
from esc_env.models.retries import CALL_DEADLINE, pause
from esc_env.protocols import Completion, Request, Usage

__all__ = ["Patient"]

CUT = {"length", "content_filter"}
"""Finish reasons for which no text is an answer: the tokens were used up, or the provider withheld it."""

_random = random.Random()


@dataclass(frozen=True)
class Patient(Layer):
    """A chat model that is asked again when that makes sense, within the limits of its endpoint.

    Args:
        model: whom to ask; one request a call.
        endpoint: where it is; shared by all models there.
        deadline: seconds from the first time a call is sent until it is given up; None for ten minutes. Waiting for a
            free place before that does not count.
        timeout: seconds to wait for an answer, at first: longer once answers there are known to take longer, and twice
            as long after each wait in vain of one call; None to leave that to the model.
    """

    endpoint: Endpoint
    deadline: float | None = None
    timeout: float | None = None

    async def complete(self, request: Request) -> Completion:
        """What the model says, at the first attempt that says something.

        A completion whose every choice is without text, and not cut or withheld, counts as a failed attempt. What such
        attempts cost is in the usage.

        Raises:
            ModelUnavailable: it cannot be had: `attempts` and the last `status` say how it was tried.
            BadCompletion: it never said anything.
        """
        line, clock, deadline = self.endpoint.line(), self.endpoint.clock, self.deadline or CALL_DEADLINE
        tokens = _estimated(request) if self.endpoint.tokens_per_minute else 0
        begun = float("inf")
        attempts = in_vain = 0
        wasted = Usage()
        last: ModelError | None = None
        try:
            async with asyncio.timeout(None) as limit:
                while True:
                    try:
                        async with line.turn(tokens) as sent:
                            if not attempts:
                                begun = sent
                                limit.reschedule(asyncio.get_running_loop().time() + deadline)
                            attempts += 1
                            timeout = self.timeout and line.patience(self.timeout, in_vain)
                            completion = await self._within(timeout, request)
                            if completion is None:
                                in_vain += 1
                                raise self._silent(timeout)
                        line.answered(tokens, completion.usage, sent)
                        if any(text is not None for text in completion.texts) or {*completion.finish_reasons} & CUT:
                            spent = wasted + completion.usage
                            return replace(completion, usage=spent) if wasted.requests else completion
                        wasted += completion.usage
                        raise BadCompletion("answered without text", status=200, retryable=True)
                    except ModelError as error:
                        last = error
                        wait = pause(
                            error, attempts, begun + deadline - clock.now(), known=line.known,
                            down=line.down is not None, chance=_random.random(),
                        )  # fmt: skip
                        if wait is None:
                            raise
                    await clock.sleep(wait)
        except TimeoutError:
            told = f"{self._who} gave no answer within {deadline:g} s" + (f"; last: {last}" if last else "")
        except ModelError as error:
            if not error.retryable:
                error.attempts = attempts
                raise
            times = "one attempt" if attempts == 1 else f"{attempts} attempts"
            told = f"{error if error.model else f'{self._who} {error}'} (given up after {times})"
        given_up = copy.copy(last) if last else ModelUnavailable("", retryable=True)
        given_up.args, given_up.attempts = (told,), attempts
        given_up.provider = given_up.provider or self.identity.get("provider")
        given_up.model = given_up.model or self.identity.get("name")
        line.given_up(given_up, begun)
        raise given_up

    async def _within(self, timeout: float | None, request: Request) -> Completion | None:
        """One request and its answer; None where none comes in time."""
        try:
            async with asyncio.timeout(timeout) as answering:
                return await self.model.complete(request)
        except TimeoutError:
            if answering.expired():
                return None
            raise

    def _silent(self, seconds: float | None) -> ModelUnavailable:
        told = f"{self._who} at {self.endpoint.key}: no answer within {seconds:g} s"
        provider, model = map(self.identity.get, ("provider", "name"))
        return ModelUnavailable(told, provider=provider, model=model, retryable=True)

    @property
    def _who(self) -> str:
        return f"{self.identity.get('provider', 'model')}/{self.identity.get('name', '?')}"


def _estimated(request: Request) -> int:
    """About how many tokens a request costs, prompt and completion together."""
    return sum(len(message["content"]) for message in request.messages) // 4 + request.n * (request.max_tokens or 100)

"""A local OpenAI-compatible server without a model: it answers what it is told to, and misbehaves when told to.

>>> from esc_env.testing import FakeServer
>>> with FakeServer("I hear you.") as server:
...     print(server.url)
http://127.0.0.1:.../v1

As a program, for trying things out and for benchmarks: `python -m esc_env.testing.fake_server --port 8000`.
Needs the extra `llm`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from esc_env.errors import MissingExtra

try:
    from aiohttp import web
except ImportError as error:
    raise MissingExtra("aiohttp", "llm") from error

__all__ = ["FakeServer", "Fault", "ServedRequest"]

LONGEST = 60.0
"""Seconds that starting or stopping a server may take, on however busy a machine, before that is an error."""
_HAD: set[int] = set()
"""Ports of this process's servers. None is given twice: what a process learns of an endpoint goes by its address."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to misbehave, in place of an answer.

    Attributes:
        kind: `status` (an error status), `hang` (never answer), `html` (a page with status 200), `truncated` (half the
            JSON), `null` (a choice without text), `empty` (no choices), `length` (the answer cut in half), `refusal`
            (OpenAI's `refusal` field), `filtered` (no text, `finish_reason` `content_filter`), `redirect` (send on to
            `location`), `drop` (close the connection instead of answering), `die` (stop the whole server).
        status: the status of kind `status`; a redirect is a 307, which is sent on with all that was sent.
        retry_after: its `Retry-After` header: seconds, or an HTTP date.
        message: its error message.
        location: where a redirect leads.
    """

    kind: Literal[
        "status",
        "hang",
        "html",
        "truncated",
        "null",
        "empty",
        "length",
        "refusal",
        "filtered",
        "redirect",
        "drop",
        "die",
    ]
    status: int = 500
    retry_after: str | None = None
    message: str = "told to fail"
    location: str = ""


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One chat-completion request that a `FakeServer` received.

    Attributes:
        number: counted from 1 in order of arrival.
        headers: with lower-case names.
        body: the parsed JSON.
        at: when it arrived, on `time.monotonic`.
    """

    number: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    at: float


class FakeServer:
    """An OpenAI-compatible server on 127.0.0.1, in a thread of its own. A context manager, or `start` and `stop`.

    Args:
        answers: a str (always that), a sequence (one per choice, starting over at its end), or a function of (request
            body, choice) where choice counts from 0. Only a function's answers are independent of the order of
            concurrent requests. None is a choice without text.
        faults: what to do wrong, by number of the request, counted from 1; or a function of that number.
        latency: seconds to wait before every answer.
        capacity: serve at most so many requests at once; the others queue.
        max_choices: return at most so many choices a request, as some servers do.
        max_n: refuse a request for more choices than that with status 400, as llama.cpp does (and in its words).
        logprobs: the first token's alternatives and their log-probabilities, returned where asked for.
        thought: returned as `reasoning_content` of every choice, as servers with a reasoning parser do.
        key: refuse requests without this bearer key with status 401, and, as some servers do, quote the wrong one.
        models: answer 404 to any other model name.
        refuses: parameters answered with status 400; or a function from a request's body to the message of its refusal,
            None to answer.
        streams: answer as a stream of events only, and refuse what does not ask for one.
        port: 0 for any free one.
        log: keep every request; off for long benchmarks.

    Attributes:
        requests: every chat-completion request received, in order of arrival, faulty ones included.
        peak: the largest number of requests that were in the server at once.
        connections: how many connections they came over.
    """

    def __init__(
        self,
        answers: str | Sequence[str | None] | Callable[[Mapping[str, Any], int], str | None] = "I hear you.",
        *,
        faults: Mapping[int, Fault] | Callable[[int], Fault | None] | None = None,
        latency: float = 0.0,
        capacity: int | None = None,
        max_choices: int | None = None,
        max_n: int | None = None,
        logprobs: Mapping[str, float] | None = None,
        thought: str | None = None,
        key: str | None = None,
        models: Collection[str] | None = None,
        refuses: Collection[str] | Callable[[Mapping[str, Any]], str | None] = (),
        streams: bool = False,
        port: int = 0,
        log: bool = True,
    ) -> None:
        self.answers = answers
        self.faults = faults if callable(faults) else dict(faults or {}).get
        self.latency = latency
        self.capacity = capacity
        self.max_choices = max_choices
        self.max_n = max_n
        self.logprobs = logprobs
        self.thought = thought
        self.key = key
        self.models = models
        self.refuses = refuses
        self.streams = streams
        self.port = port
        self.log = log
        self.requests: list[ServedRequest] = []
        self.peak = 0
        self.connections = 0
        self._received = 0
        self._inside = 0
        self._given = 0
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base URL, `/v1` included. The port is kept when the server is stopped and started again."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; returns when connections are accepted.

        Raises:
            OSError: the port is taken.
            TimeoutError: this machine did not get to it within `LONGEST` seconds.
        """
        ready: Future[None] = Future()

        def serve() -> None:
            try:
                asyncio.run(self._serve(ready))
            except BaseException as error:
                if ready.done():
                    raise
                ready.set_exception(error)

        self._thread = threading.Thread(target=serve, name="fake-server", daemon=True)
        self._thread.start()
        try:
            ready.result(LONGEST)
        except TimeoutError:
            raise TimeoutError(f"the fake server does not listen after {LONGEST:g} s") from None

    def stop(self) -> None:
        """Close every connection and stop listening, in the middle of whatever is being answered.

        Raises:
            TimeoutError: it still runs after `LONGEST` seconds: `answers` or `faults` block its thread.
        """
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):  # it has died already
                self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(LONGEST)
            if self._thread.is_alive():
                raise TimeoutError(f"the fake server at {self.url} still runs {LONGEST:g} s after it was told to stop")
            self._thread = None

    def wait(self, seconds: float = float("inf")) -> None:
        """Block until the server stops. Raises TimeoutError when it still runs after so many seconds."""
        deadline = time.monotonic() + seconds
        while self._thread is not None and self._thread.is_alive():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the fake server at {self.url} still runs after {seconds:g} s")
            self._thread.join(0.5)

    async def _serve(self, ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._slots = asyncio.Semaphore(self.capacity) if self.capacity else None
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)

        def connect() -> asyncio.BaseProtocol:
            self.connections += 1
            return server()

        listener = await self._loop.create_server(connect, "127.0.0.1", self.port, backlog=4096)
        while not self.port and listener.sockets[0].getsockname()[1] in _HAD:
            listener.close()
            listener = await self._loop.create_server(connect, "127.0.0.1", 0, backlog=4096)
        self.port = listener.sockets[0].getsockname()[1]
        _HAD.add(self.port)
        ready.set_result(None)
        await self._stopped.wait()
        for socket in listener.sockets:
            self._loop.remove_reader(socket.fileno())
        for _ in range(8):  # turns in which what is accepted becomes a connection: asyncio loses it once it is closed
            await asyncio.sleep(0)
        listener.close()
        for connection in list(server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await server.shutdown(timeout=0.1)  # what asks for none waits for ever

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/v1/models" and request.method == "GET":
            served = [{"id": name, "object": "model"} for name in self.models or ["fake"]]
            return _json({"object": "list", "data": served})
        if request.path != "/v1/chat/completions" or request.method != "POST":
            return _error(404, f"Invalid URL ({request.method} {request.path})")
        body = json.loads(await request.read())
        self._received += 1
        number = self._received
        if self.log:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.requests.append(ServedRequest(number, headers, body, time.monotonic()))
        self._inside += 1
        self.peak = max(self.peak, self._inside)
        try:
            if self._slots is None:
                return await self._respond(request, number, body)
            async with self._slots:
                return await self._respond(request, number, body)
        finally:
            self._inside -= 1

    async def _respond(self, request: web.BaseRequest, number: int, body: Mapping[str, Any]) -> web.StreamResponse:
        refusal = self._refuse(request, body)
        if refusal is not None:
            return refusal
        fault = self.faults(number)
        kind = fault.kind if fault else None
        if fault is not None and kind == "status":
            return _error(fault.status, fault.message, retry_after=fault.retry_after)
        if fault is not None and kind == "redirect":
            return web.Response(status=307, headers={"Location": fault.location})
        if kind == "hang":
            await asyncio.Event().wait()
        if kind == "die":
            self._stopped.set()
        if self._stopped.is_set():  # whoever comes while it dies is not answered either
            await asyncio.Event().wait()
        if kind == "drop" and request.transport is not None:
            request.transport.abort()
        if self.latency:
            await asyncio.sleep(self.latency)
        if kind == "html":
            return web.Response(text="<html><body>502 Bad Gateway</body></html>", content_type="text/html")
        answer = self._completion(body, kind)
        if kind == "truncated":
            text = json.dumps(answer)
            return web.Response(text=text[: len(text) // 2], content_type="application/json")
        return _streamed(answer) if body.get("stream") else _json(answer)

    def _refuse(self, request: web.BaseRequest, body: Mapping[str, Any]) -> web.Response | None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key is not None and given != self.key:
            return _error(401, f"Incorrect API key provided: {given}.", code="invalid_api_key")
        if self.models is not None and body["model"] not in self.models:
            return _error(404, f"The model `{body['model']}` does not exist.", code="model_not_found")
        if self.streams and not body.get("stream"):
            return _error(400, "This model only support stream mode, please enable the stream parameter.")
        if callable(self.refuses):
            told = self.refuses(body)
            return None if told is None else _error(400, told)
        for name in self.refuses:
            if name in body:
                return _error(400, f"Unsupported parameter: '{name}'.", code="unsupported_parameter")
        count = body.get("n", 1)
        if self.max_n is not None and count > self.max_n:
            return _error(400, f"Field 'n': Value must be between 1 <= value <= {self.max_n}, but got {count}")
        return None

    def _completion(self, body: Mapping[str, Any], fault: str | None) -> dict[str, Any]:
        count = body.get("n", 1) if self.max_choices is None else min(body.get("n", 1), self.max_choices)
        choices = [] if fault == "empty" else [self._choice(body, index, fault) for index in range(count)]
        prompt = sum(_tokens(message["content"]) for message in body["messages"])
        written = sum(_tokens(choice["message"]["content"]) for choice in choices)
        return {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": choices,
            "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
        }

    def _choice(self, body: Mapping[str, Any], index: int, fault: str | None) -> dict[str, Any]:
        text = self._text(body, index)
        reason = "stop"
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.thought is not None:
            message["reasoning_content"] = self.thought
        if fault == "length":
            message["content"], reason = (text or "")[: len(text or "") // 2], "length"
        elif fault == "refusal":
            message |= {"content": None, "refusal": text}
        elif fault in ("null", "filtered"):
            message["content"], reason = None, "content_filter" if fault == "filtered" else "stop"
        choice: dict[str, Any] = {"index": index, "message": message, "finish_reason": reason}
        if body.get("logprobs") and self.logprobs is not None:
            top = [{"token": token, "logprob": value, "bytes": None} for token, value in self.logprobs.items()]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top[: body.get("top_logprobs", 0)]}]}
        return choice

    def _text(self, body: Mapping[str, Any], index: int) -> str | None:
        if callable(self.answers):
            return self.answers(body, index)
        if isinstance(self.answers, str):
            return self.answers
        answer = self.answers[self._given % len(self.answers)]
        self._given += 1
        return answer


def _tokens(text: str | None) -> int:
    return len((text or "").split())


def _json(data: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.Response(text=json.dumps(data), status=status, content_type="application/json")


def _streamed(answer: Mapping[str, Any]) -> web.Response:
    """The answer as server-sent events: each choice in two pieces, the usage last."""
    plain = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    plain["object"] = "chat.completion.chunk"
    events: list[dict[str, Any]] = []
    for choice in answer["choices"]:
        message, index = choice["message"], choice["index"]
        half = len(message["content"] or "") // 2
        for part in ((message["content"] or "")[:half], (message["content"] or "")[half:]):
            told = {"index": index, "delta": {**message, "content": part}, "finish_reason": None}
            events.append({**plain, "choices": [{**told, "logprobs": choice.get("logprobs") if not half else None}]})
            message = {"content": part}
        events.append({**plain, "choices": [{"index": index, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    events.append({**plain, "choices": [], "usage": answer["usage"]})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return web.Response(text=text, content_type="text/event-stream")


def _error(status: int, message: str, *, code: str | None = None, retry_after: str | None = None) -> web.Response:
    response = _json({"error": {"message": message, "type": "fake_error", "param": None, "code": code}}, status)
    if retry_after is not None:
        response.headers["Retry-After"] = retry_after
    return response


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server without a model.")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--capacity", type=int, default=None, help="serve at most so many requests at once")
    parser.add_argument("--answer", default="I hear you.", help="what to answer")
    options = parser.parse_args()
    server = FakeServer(
        options.answer, latency=options.latency, capacity=options.capacity, port=options.port, log=False
    )
    with server:
        print(server.url, flush=True)
        try:
            server.wait()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()

"""The one background event loop, and the bridge between sync and async code.

Everything that may call a model is async and runs on one daemon thread per process. It starts at the first call, never
at import or in a constructor; a forked child starts its own, a spawned one too. Synchronous code (env, CLI, trainers)
uses `run`; public coroutines carry `@hops`, so that they may be awaited on any loop. Cancelling, by Ctrl-C or from
another loop, waits until the coroutine has cleaned up. Nothing here is ever stopped by closing an env: the loop is
shared, and ends with the process.

It ends before the interpreter does, and so do the threads of users' calls. Until Python 3.13 an interpreter that ends
kills the threads that go on, and one that is killed inside C++ (torch above all) takes the process with it: "terminate
called without an active exception", SIGABRT instead of the exit code.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import ctypes
import functools
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

from esc_env.errors import LoopError

__all__ = ["GRACE", "call", "each", "hops", "run", "settle", "start", "stays", "wait"]

P = ParamSpec("P")
T = TypeVar("T")

GRACE = 3.0
"""Seconds that an interpreter which ends waits for our threads. A call that sleeps or waits for a network for longer is
left where it is, which harms nobody."""

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_ending: asyncio.AbstractEventLoop | None = None
_orphans: list[asyncio.AbstractEventLoop] = []


def _forget() -> None:
    """A forked child has our variables but not our thread.

    The parent's loop is kept, not closed: closing it here would unregister its descriptors from the epoll that the
    parent still waits on.
    """
    global _loop, _lock
    if _loop is not None:
        _orphans.append(_loop)
    _loop = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class _Thread(threading.Thread):
    """One of ours. A daemon, so that a call which blocks for ever does not keep the process alive."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(target=work, name=name, daemon=True)

    def stop(self) -> None:
        """Raise SystemExit in it as soon as it is in Python again: native code is never left half-way."""
        if self.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(SystemExit))


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until `_end`: a sys.exit() in somebody's coroutine ends that coroutine, not the loop."""
    while _ending is not loop:
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            loop.run_forever()
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        loop.run_until_complete(settle())
    loop.close()


def _ours() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            loop = asyncio.new_event_loop()
            try:
                _Thread("esc-env", functools.partial(_serve, loop)).start()
            except RuntimeError:  # no more threads: a loop that nobody runs would be waited for for ever
                loop.close()
                raise
            _loop = loop
        return _loop


@atexit.register
def _end() -> None:
    """End our threads before the interpreter ends: first the loop, then the calls. A second Ctrl-C ends the waiting."""
    global _loop, _ending
    loop = _loop
    if loop is None:
        return
    ours = [thread for thread in threading.enumerate() if isinstance(thread, _Thread)]
    with contextlib.suppress(KeyboardInterrupt):
        _ending = loop
        loop.call_soon_threadsafe(loop.stop)
        _join([thread for thread in ours if thread.name == "esc-env"])
        for thread in ours:
            thread.stop()
        _join(ours)
    _loop = None  # whoever runs something later, at exit too, starts another


def _join(threads: Sequence[threading.Thread]) -> None:
    deadline = time.monotonic() + GRACE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


async def settle() -> None:
    """Cancel whatever else goes on on this event loop, and wait for its clean-up."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _inside() -> bool:
    try:
        return asyncio.get_running_loop() is _loop
    except RuntimeError:
        return False


def start(coroutine: Coroutine[Any, Any, T]) -> tuple[concurrent.futures.Future[T], Callable[[], None]]:
    """Start a coroutine on our loop: (its outcome, set only once it has cleaned up; a function that cancels it).

    `wait` for the outcome after cancelling.
    """
    try:
        loop = _ours()
    except RuntimeError:
        coroutine.close()
        raise
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    tasks: list[asyncio.Task[T]] = []

    def begin() -> None:
        tasks.append(loop.create_task(coroutine))
        tasks[0].add_done_callback(finish)

    def finish(task: asyncio.Task[T]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            outcome.set_result(task.result())
        else:
            outcome.set_exception(error)

    def cancel() -> None:
        loop.call_soon_threadsafe(lambda: tasks[0].cancel())

    loop.call_soon_threadsafe(begin)
    return outcome, cancel


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on our loop and wait for it; works inside a foreign running loop too (Jupyter).

    Ctrl-C, or whatever else a signal handler raises, cancels the coroutine, waits for its clean-up, and is raised. A
    second Ctrl-C stops that waiting.

    Raises:
        LoopError: when called from our own loop, where waiting would block for ever.
    """
    if _inside():
        name = getattr(coroutine, "__qualname__", "the coroutine")
        coroutine.close()
        raise LoopError(f"{name} was run synchronously from inside esc-env's own event loop; await it instead")
    outcome, cancel = start(coroutine)
    try:
        wait(outcome)
    except BaseException:  # Ctrl-C above all: clean up, then raise it again
        if not outcome.done():
            cancel()
            wait(outcome)
        raise
    return outcome.result()


def wait(outcome: concurrent.futures.Future[Any]) -> None:
    """Wait in short spells: a signal that the system hands to another thread (or any, on Windows) ends no long wait."""
    while not outcome.done():
        concurrent.futures.wait([outcome], timeout=0.1)


def hops(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a public coroutine function be awaited on any loop: its body always runs on ours."""

    @functools.wraps(function)
    async def hopping(*args: P.args, **kwargs: P.kwargs) -> T:
        if _inside():
            return await function(*args, **kwargs)
        outcome, cancel = start(function(*args, **kwargs))
        there = asyncio.wrap_future(outcome)
        try:
            return await asyncio.shield(there)
        except asyncio.CancelledError:
            if not there.done():
                cancel()
                await asyncio.wait([there])
                there.exception()  # retrieved: the caller was cancelled, and hears that instead
            raise

    return hopping


def stays(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a coroutine function of somebody else's loop be awaited on ours: the way back from what `hops`.

    Its body always runs on the loop that runs now, and sees the context variables of now: frameworks keep there whose
    conversation goes on.

    Raises:
        LoopError: no asyncio loop runs (trio, above all).
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError as error:
        raise LoopError("no asyncio event loop runs here; esc-env's adapters know no other kind") from error
    context = contextvars.copy_context()

    async def there(*args: P.args, **kwargs: P.kwargs) -> T:
        return await loop.create_task(function(*args, **kwargs), context=context)

    @functools.wraps(function)
    async def staying(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(*args, **kwargs), loop))

    return staying


async def each(items: Iterable[T], work: Callable[[T], Coroutine[Any, Any, Any]], at_once: int) -> None:
    """Work on every item, at most `at_once` at a time; the first error ends the others, and is raised as it is.

    Between any two a cancellation, or a time limit, has its turn, also where the work itself never waits.
    """
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)
            await asyncio.sleep(0)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a user's function: async ones on this loop, sync ones in a worker thread, so that none blocks the others.

    Each sync call has a daemon thread of its own: calls never wait for each other, may use `run` themselves,
    and one that blocks for ever does not keep the process alive.
    """
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return await function(*args)
    result = await _in_thread(functools.partial(contextvars.copy_context().run, function, *args))
    return await result if isinstance(result, Awaitable) else result


async def _in_thread(function: Callable[[], T]) -> T:
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            result = function()
        except StopIteration as error:  # no future can hold one: asyncio's own rule (PEP 479)
            outcome.set_exception(RuntimeError(f"the function raised StopIteration: {error}"))
        except BaseException as error:  # carried over to the caller, whatever it is
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    outcome.set_running_or_notify_cancel()
    _Thread("esc-env-call", work).start()
    return await asyncio.wrap_future(outcome)

"""The one background event loop, and the bridge between sync and async code.

Everything that may call a model is async and runs on one daemon thread per process. It starts at the first call, never
at import or in a constructor; a forked child starts its own. Sync faces (env, CLI, trainers) use `run`; public
coroutines carry `@hops`, so that they may be awaited on any loop.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from esc_env.errors import LoopError

__all__ = ["call", "hops", "run"]

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _forget() -> None:
    """A forked child has our variables but not our thread."""
    global _loop, _lock
    _loop = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _ours() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="esc-env", daemon=True).start()
        return _loop


def _inside() -> bool:
    try:
        return asyncio.get_running_loop() is _loop
    except RuntimeError:
        return False


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on our loop and wait for it; works inside a foreign running loop too (Jupyter).

    Ctrl-C cancels the coroutine, waits for its clean-up, and raises KeyboardInterrupt.

    Raises:
        LoopError: when called from our own loop, where waiting would block for ever.
    """
    if _inside():
        name = getattr(coroutine, "__qualname__", "the coroutine")
        coroutine.close()
        raise LoopError(f"{name} was run synchronously from inside esc-env's own event loop; await it instead")
    future = asyncio.run_coroutine_threadsafe(coroutine, _ours())
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise


def hops(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a public coroutine function be awaited on any loop: its body always runs on ours."""

    @functools.wraps(function)
    async def hopping(*args: P.args, **kwargs: P.kwargs) -> T:
        if _inside():
            return await function(*args, **kwargs)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*args, **kwargs), _ours()))

    return hopping


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a user's function: async ones on this loop, sync ones in a worker thread, so that none blocks the others."""
    if _is_async(function):
        return await function(*args)
    result = await asyncio.get_running_loop().run_in_executor(None, functools.partial(function, *args))
    return await result if isinstance(result, Awaitable) else result


def _is_async(function: Callable[..., Any]) -> bool:
    import inspect

    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004

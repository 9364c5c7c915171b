"""The contract of the one background event loop, line by line."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import pytest
from conftest import bank, interrupted, until

from esc_env.background import GRACE, call, each, hops, run, settle
from esc_env.conversation import Chairs, converse
from esc_env.errors import LoopError
from esc_env.testing import ScriptedAgent, ScriptedCritic, ScriptedSeeker


def python(code, **how):
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=120, **how,
    )  # fmt: skip
    slow = r"(?m)^Executing <.* took [\d.]+ seconds\n"  # asyncio's word, on a busy machine
    assert re.sub(slow, "", done.stderr) == ""
    assert done.returncode == 0
    return done.stdout


async def where():
    return threading.current_thread().name


async def nap():
    await asyncio.sleep(30)


def step_an_env():
    env = gym.make("ESConv-v0", scenarios=bank())
    env.reset(seed=1)
    return env.step("Hello.")[0]


def test_import_and_constructors_start_no_thread():
    printed = python(
        """
        import threading, gymnasium as gym, esc_env
        env = gym.make("ESConv-v0")
        envs = gym.make_vec("ESConv-v0", num_envs=2)
        print(threading.active_count())
        env.reset()
        print(threading.active_count())
        """
    )
    assert printed == "1\n2\n"


def test_without_threads_left_a_call_fails_and_the_next_one_does_not_wait_for_ever():
    printed = python(
        """
        import threading, gymnasium as gym, esc_env

        begin = threading.Thread.start

        def refuse(thread):
            raise RuntimeError("can't start new thread")

        env = gym.make("ESConv-v0")
        threading.Thread.start = refuse
        try:
            env.unwrapped.reset(seed=0)
        except RuntimeError as error:
            print(error)
        threading.Thread.start = begin
        env.reset(seed=0)
        print(env.step("Hello.")[4]["turn"])
        """
    )
    assert printed == "can't start new thread\n1\n"


def test_everything_runs_on_one_thread_of_its_own():
    assert run(where()) == run(where()) == "esc-env"


def test_results_and_exceptions_come_through():
    async def fail():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(fail())


def test_the_sync_face_works_inside_a_running_loop_as_in_jupyter():
    async def cell():
        return step_an_env()

    assert asyncio.run(cell()) == step_an_env()


def test_called_from_our_own_loop_it_raises_and_names_the_coroutine():
    async def inner():
        return 1

    async def outer():
        run(inner())

    with pytest.raises(LoopError, match="inner"):
        run(outer())


@pytest.mark.parametrize("make", [gym.make, lambda name, **how: gym.make_vec(name, num_envs=2, **how)])
def test_an_env_stepped_by_an_async_chair_is_told_to_await(make):
    async def critic(scenario, dialogue):
        inner = make("ESConv-v0", scenarios=bank())
        inner.reset()
        return "same"

    env = gym.make("ESConv-v0", scenarios=bank(), critic=critic)
    env.reset()
    with pytest.raises(Exception, match="inside esc-env's own event loop"):
        env.step("Hello.")


def test_a_sync_chair_may_use_an_env_itself():
    def critic(scenario, dialogue):
        step_an_env()
        return "better"

    env = gym.make("ESConv-v0", scenarios=bank(), critic=critic)
    env.reset()
    assert env.step("Hello.")[4]["verdict"]["score"] == 0.5


def test_sync_callables_neither_block_nor_wait_for_each_other():
    meeting = threading.Barrier(50)

    async def all_at_once():
        return await asyncio.gather(*(call(meeting.wait, 20) for _ in range(50)))

    assert sorted(run(all_at_once())) == list(range(50))


def test_callables_sync_or_async_are_called_where_they_belong():
    class Async:
        async def __call__(self):
            return await where()

    async def names():
        return [await call(one) for one in (where, Async(), lambda: where(), lambda: threading.current_thread().name)]

    assert run(names()) == ["esc-env", "esc-env", "esc-env", "esc-env-call"]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_whatever_a_callable_raises_reaches_the_caller_and_the_loop_lives_on(error, kind):
    def fail():
        raise error("mine")

    async def fail_async():
        raise error("mine")

    with pytest.raises(RuntimeError if error is StopIteration else error):
        run(call(fail if kind == "sync" else fail_async))
    assert run(where()) == "esc-env"


def test_public_coroutines_may_be_awaited_on_any_loop():
    hopping = hops(where)
    chairs = Chairs(ScriptedSeeker(["Yes."]), ScriptedCritic(["same", "solved"]))

    async def elsewhere():
        talk = converse(bank()[0], ScriptedAgent(["Hello."]), chairs, seed=0)
        return threading.current_thread().name, await hopping(), (await talk).turns

    async def ours():
        return await hopping()

    assert asyncio.run(elsewhere()) == ("MainThread", "esc-env", 2)
    assert run(ours()) == "esc-env"


def test_cancelling_on_another_loop_waits_for_the_clean_up_on_ours():
    cleaned = []
    began = threading.Event()

    @hops
    async def slow():
        began.set()
        try:
            await nap()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    async def elsewhere():
        task = asyncio.create_task(slow())
        assert await asyncio.to_thread(began.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return list(cleaned)

    assert asyncio.run(elsewhere()) == [True]


def test_many_threads_may_step_their_envs_at_once():
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda _: step_an_env(), range(64)))
    assert all(result == results[0] for result in results)


def test_ctrl_c_cancels_waits_for_the_clean_up_and_leaves_the_env_as_it_was():
    code = """
        import asyncio, os, signal, threading
        import gymnasium as gym, esc_env

        cleaned, waiting = [], True

        async def critic(scenario, dialogue):
            if waiting:
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
                try:
                    await asyncio.sleep(30)
                finally:
                    await asyncio.sleep(0.05)
                    cleaned.append(dialogue.turns)
            return "better"

        for make in (gym.make, lambda name, **how: gym.make_vec(name, num_envs=1, **how)):
            waiting = True
            env = make("ESConv-v0", critic=critic)
            said = "Hello." if make is gym.make else ("Hello.",)
            env.reset(seed=0)
            try:
                env.step(said)
            except KeyboardInterrupt:
                print("interrupted", cleaned)
            waiting = False
            print(env.step(said)[4]["turn"])
        """
    assert python(code) == "interrupted [1]\n1\ninterrupted [1, 1]\n[1]\n"


def test_ctrl_c_at_the_terminal_ends_a_program_even_if_a_callable_blocks():
    code = """
        import sys, time, gymnasium as gym, esc_env
        def critic(scenario, dialogue):
            print("judging", flush=True)
            time.sleep(3600)
        env = gym.make("ESConv-v0", critic=critic)
        env.reset()
        env.step("Hello.")
        """
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(program, "judging")
    assert "KeyboardInterrupt" in interrupted(program)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_what_still_goes_on_at_the_end_of_a_program_is_cut_off_and_cleans_up(kind):
    code = f"""
        import asyncio, sys, threading, time
        from esc_env.background import call, start

        began = threading.Event()

        async def wait_for_ever():
            try:
                began.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                print("cleaned")

        def compute_for_ever():
            try:
                began.set()
                while True:
                    time.sleep(0.001)
            finally:
                print("cleaned")

        start({"wait_for_ever()" if kind == "async" else "call(compute_for_ever)"})
        began.wait(60)
        """
    assert python(code) == "cleaned\n"


def test_a_program_does_not_end_later_for_a_call_that_blocks_for_ever():
    code = """
        import threading, time
        from esc_env.background import call, start

        began = threading.Event()

        def block():
            began.set()
            threading.Event().wait()

        start(call(block))
        began.wait(60)
        print(time.monotonic())
        """
    ended = float(python(code))
    assert time.monotonic() - ended < GRACE + 10


@pytest.mark.skipif((3, 12) <= sys.version_info < (3, 12, 2), reason="Python 3.12.1 starts no threads at exit")
def test_what_runs_at_exit_may_still_use_the_loop():
    code = """
        import atexit
        import gymnasium as gym

        @atexit.register
        def last():
            env = gym.make("ESConv-v0")
            env.reset(seed=0)
            print(env.step("Hello.")[4]["turn"])

        import esc_env
        env = gym.make("ESConv-v0")
        env.reset(seed=0)
        print(env.step("Hello.")[4]["turn"])
        """
    assert python(code) == "1\n1\n"


def test_settling_a_loop_cancels_what_goes_on_there_and_waits_for_its_clean_up():
    cleaned = []

    async def slow():
        try:
            await nap()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    async def elsewhere():
        tasks = [asyncio.create_task(slow()) for _ in range(3)]
        await asyncio.sleep(0)
        await settle()
        return [task.cancelled() for task in tasks]

    assert asyncio.run(elsewhere()) == cleaned == [True] * 3


def test_an_exception_of_a_signal_handler_cancels_too():
    cleaned = []

    async def slow():
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            await nap()
        finally:
            cleaned.append(True)

    def ring(number, frame):
        raise TimeoutError("alarm")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(TimeoutError, match="alarm"):
            run(slow())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert cleaned == [True]


def _child(queue):
    queue.put(step_an_env())


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_process_starts_a_loop_of_its_own(method):
    expected = step_an_env()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join(60)
    assert child.exitcode == 0
    assert step_an_env() == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_in_the_middle_of_a_call_harms_neither_side():
    printed = python(
        """
        import gc, os, sys, warnings, gymnasium as gym, esc_env
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)

        def critic(scenario, dialogue):
            if scenario.persona == "cooperative" and dialogue.turns == 1:
                child = os.fork()
                if child == 0:
                    inner = gym.make("ESConv-v0")
                    inner.reset(seed=0)
                    inner.step("Hello.")
                    gc.collect()
                    os._exit(7)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            return "same"

        env = gym.make("ESConv-v0", critic=critic)
        env.reset(seed=0)
        env.step("Hello.")
        print(env.step("Hello again.")[4]["turn"])
        """
    )
    assert printed == "2\n"


def test_work_that_never_waits_is_cut_off_between_two_items_all_the_same():
    done = []

    async def work(item):
        done.append(item)

    async def limited():
        async with asyncio.timeout(0):
            await each(range(100), work, 2)

    with pytest.raises(TimeoutError):
        run(limited())
    assert len(done) < 100

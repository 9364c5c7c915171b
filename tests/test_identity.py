"""What somebody's own function is known by: its digest changes with what it does, and with nothing else."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from esc_env.identity import code_digest, name_of


def plain(messages, word="Hm.", *, times=1):
    """Say a word."""
    return word * times


_spoken: Any = None


async def words(messages, *rest, **more):
    said = f"{messages[-1]['content']!r:>{len(rest)}} \\ {{}}" f"{'é🫨'}" "\u2026"  # fmt: skip
    async with more["lock"] as lock, lock:
        found = [word async for word in lock if (size := len(word)) > 1_000 and size <= 0x10]
    try:
        match found:
            case [str(first), *_] | {"first": first} if first:
                del found[0]
            case None | True | -1.5e3 | b"x":
                raise KeyError from None
    except (KeyError, ValueError) as error:
        return (*rest, said, error), {**more}, {1, 2}, found[1:2, ...], ~3, 2j  # type: ignore[call-overload]
    else:
        global _spoken
        _spoken = lambda x, /, y=0, *, z: (yield (x, y, z))  # noqa: E731
    finally:
        await more.get("lock", lambda: None)()


def counter(start, step):
    """A closure that changes what it closes over."""

    def count(messages) -> str:
        nonlocal start

        @functools.cache
        class Said(str):
            """What is said."""

            loud: bool = True

        start += step
        return Said(start)

    return count


class Agent:
    """An object that is called, and one with a method."""

    def __call__(self, messages):
        return self.__secret(messages)

    def __secret(self, messages):
        return super().__str__() if messages else "Hm."


IN_A_LINE = [lambda m: "a", lambda m: "b", lambda m: (lambda n: (m, n)), lambda m: m or "c"]  # fmt: skip
SAME_ON_EVERY_PYTHON = {
    "plain": (plain, "d847441d"),
    "words": (words, "6484f017"),
    "counter": (counter(1, 2), "5b7e2b48"),
    "object": (Agent(), "7b8c0689"),
    "method": (Agent().__call__, "67b27969"),
    "partial": (functools.partial(plain, word="Oh."), "809f55f4"),
    "lambda": (IN_A_LINE[0], "a402ed16"),
    "next lambda": (IN_A_LINE[1], "196beecd"),
    "lambda around one": (IN_A_LINE[2], "4a4fedf6"),
    "lambda within one": (IN_A_LINE[2]("m"), "ead4e261"),
    "last lambda": (IN_A_LINE[3], "46266677"),
    "closing over a path": ((lambda path: lambda m: path)(Path("prompts")), "28ecb55c"),
    "builtin": (len, "df4c3b40"),
    "cached": (functools.cache(plain), "88bc5fcf"),
    "method of a builtin": (str.upper, "9132c195"),
}
"""Made on Python 3.11, 3.12 and 3.13. Whoever changes one changes the run key of everybody's own agents."""


@pytest.mark.parametrize("name", SAME_ON_EVERY_PYTHON)
def test_a_digest_is_the_same_on_every_python(name: str):
    function, digest = SAME_ON_EVERY_PYTHON[name]
    assert code_digest(function) == digest


def test_functions_that_differ_have_different_digests():
    digests = [digest for _, digest in SAME_ON_EVERY_PYTHON.values()]
    assert len(set(digests)) == len(digests)


def test_a_changed_function_is_another_agent_and_the_same_one_is_the_same():
    def make(word):
        return lambda messages: word

    assert code_digest(make("a")) == code_digest(make("a"))
    assert code_digest(make("a")) != code_digest(make("b"))
    assert code_digest(lambda messages: "a") != code_digest(lambda messages: "b")
    assert code_digest(lambda messages: len(messages)) != code_digest(lambda messages: max(messages))

    count, seen = 0, []

    def counts(messages):
        nonlocal count
        count += 1
        seen.append(messages)
        return "Hm."

    before = code_digest(counts)
    counts(())
    assert code_digest(counts) == before

    def with_word(messages, word):
        return word

    first, second = (functools.partial(with_word, word=word) for word in "ab")
    assert code_digest(first) == code_digest(functools.partial(with_word, word="a"))
    assert code_digest(first) != code_digest(second)


def test_a_decorated_function_is_known_by_what_is_decorated_too():
    def again(function):
        return functools.wraps(function)(lambda *given: function(*given))

    assert code_digest(again(lambda messages: "a")) == code_digest(again(lambda messages: "a"))
    assert code_digest(again(lambda messages: "a")) != code_digest(again(lambda messages: "b"))
    assert code_digest(functools.cache(lambda messages: "a")) != code_digest(functools.cache(lambda messages: "b"))


SOURCE = """
def respond(messages):
    if len(messages) > 1:
        return "Go on." * 2
    return "Tell me."
"""


def load(path: Path, source: str):
    """The function `respond` of a module with this source."""
    path.write_text(source, encoding="utf-8")
    spec: Any = importlib.util.spec_from_file_location("somebodys_agent", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.respond


def test_comments_docstrings_and_formatting_do_not_count_but_all_else_does(tmp_path):
    digest = code_digest(load(tmp_path / "a.py", SOURCE))
    same = """
import warnings

def respond(
    messages,
):
    '''Say something.'''
    if (len(messages) > 0x1):  # a comment
        return 'Go ' "on." * (2)

    return u"Tell me."
"""
    assert code_digest(load(tmp_path / "b.py", same)) == digest
    for number, (old, new) in enumerate(((">", ">="), ("Go on.", "Go on!"), ("s):", "s=()):"), ("* 2", "* 2.0"))):
        assert code_digest(load(tmp_path / f"c{number}.py", SOURCE.replace(old, new, 1))) != digest


def test_an_edit_after_the_import_is_not_taken_for_what_runs(tmp_path):
    running = load(tmp_path / "a.py", SOURCE)
    edited = code_digest(load(tmp_path / "b.py", SOURCE.replace("Tell", "Show")))
    for now in (SOURCE.replace("Tell", "Show"), "def respond(", "return", ""):
        (tmp_path / "a.py").write_text(now, encoding="utf-8")
        assert code_digest(running) != edited


def test_a_function_without_source_is_known_by_its_bytecode():
    def made(source: str):
        names: dict = {}
        exec(source, names)
        return names["respond"]

    assert code_digest(made(SOURCE)) == code_digest(made(SOURCE))
    assert code_digest(made(SOURCE)) != code_digest(made(SOURCE.replace("Tell", "Show")))


def test_a_function_of_any_depth_has_a_digest(tmp_path):
    deep = "def respond(messages):\n    return " + " + ".join(["messages"] * 900)
    assert code_digest(load(tmp_path / "a.py", deep)) != code_digest(load(tmp_path / "b.py", deep + " + 1"))


def test_names_hold_no_addresses():
    assert name_of(plain) == f"python:{__name__}:plain"
    assert name_of(Agent()) == name_of(Agent) == f"python:{__name__}:Agent"
    assert name_of(str.upper) == "python:builtins:str.upper"

"""What somebody's own function or object is known by in records: its name, and a digest of its code."""

from __future__ import annotations

import ast
import contextlib
import dis
import functools
import inspect
import linecache
import re
import warnings
from collections.abc import Callable, Iterator
from hashlib import blake2b
from types import CodeType, FunctionType
from typing import Any

__all__ = ["code_digest", "name_of", "source_essence"]


def name_of(thing: Any) -> str:
    """A stable name for somebody's object or callable: `python:MODULE:QUALNAME`, never a memory address."""
    target = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    return f"python:{getattr(target, '__module__', None) or 'builtins'}:{target.__qualname__}"


def code_digest(function: Callable[..., Any]) -> str:
    """8 hex digits over a callable's own code, defaults and closed-over numbers and strings, and over what it wraps.

    The code is what its source says: comments, docstrings, formatting and the version of Python do not count. Where no
    source can be read (made by `exec`, edited since the import) it is the bytecode, which every version of Python
    compiles differently.

    What it calls, imports, changes or keeps in attributes is not covered: who depends on such things needs an object
    with an `identity` of its own.
    """
    return blake2b(ascii(_essence(function)).encode(), digest_size=4).hexdigest()


def source_essence(source: str) -> bytes:
    """What a module's source says, the same for every version of Python, comments, docstrings and formatting."""
    return ascii(_syntax(ast.parse(source))).encode()


def _essence(thing: Any) -> Any:
    """Nested tuples of plain values: equal for equal code, free of memory addresses."""
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        return thing
    if isinstance(thing, (tuple, list)):
        return tuple(_essence(item) for item in thing)
    if isinstance(thing, (dict, set, frozenset)):
        items = thing.items() if isinstance(thing, dict) else thing
        return tuple(sorted(ascii(_essence(item)) for item in items))
    if isinstance(thing, functools.partial):
        return _essence(thing.func), _essence(thing.args), _essence(thing.keywords)
    function = getattr(thing, "__func__", thing)
    if isinstance(function, FunctionType):
        code = function.__code__
        steps = (step for inner in _nested(code) for step in dis.get_instructions(inner))
        changed = {step.argval for step in steps if step.opname == "STORE_DEREF"}
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        kept = tuple(sorted((name, _content(cell)) for name, cell in cells if name not in changed))
        definition = _definition(code)
        says = _bytecode(code) if definition is None else _syntax(definition)
        return says, _essence(function.__defaults__), kept, _essence(vars(function).get("__wrapped__"))
    method = vars(type(thing)).get("__call__")
    inner = method if isinstance(method, FunctionType) else getattr(thing, "__dict__", {}).get("__wrapped__")
    return _kind(thing), _essence(inner)


def _kind(thing: Any) -> str:
    """The name of a thing without private modules, between which Python moves its own from version to version."""
    return re.sub(r"\._\w+(?=.*:)", "", name_of(thing))


def _content(cell: Any) -> Any:
    """What a closure holds, if it is a plain value or names a function; the type of anything that may change."""
    try:
        value = cell.cell_contents
    except ValueError:  # a variable that is not set yet
        return None
    plain = value is None or isinstance(value, (bool, int, float, str, bytes))
    return value if plain else _kind(value)


def _definition(code: CodeType) -> ast.AST | None:
    """The `def` or `lambda` that code was compiled from; None where that is not to be had.

    It begins in the same line and compiles to the same: files are edited while they run, and lambdas share a line.
    """
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename)
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(SyntaxError):  # which were told at the import
        tree = ast.parse("".join(lines))
        for node in reversed(list(ast.walk(tree))):  # what is inside comes before what is around it
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if [*getattr(node, "decorator_list", ()), node][0].lineno != code.co_firstlineno:
                continue
            far = len(lines) if isinstance(node, ast.Lambda) else 0  # moved to where no other is
            ast.increment_lineno(node, far)
            compiled = _nested(compile(tree, code.co_filename, "exec", dont_inherit=True))
            there = (inner for inner in compiled if inner.co_firstlineno == code.co_firstlineno + far)
            if _bytecode(code) in map(_bytecode, there):
                return node
            ast.increment_lineno(node, -far)
    return None


def _syntax(tree: ast.AST) -> tuple[Any, ...]:
    """What a syntax tree says, in order, without what is empty or does nothing: Python versions differ in that."""
    said: list[Any] = []
    left: list[Any] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, list):
            said.append(("list", len(node)))
            left += reversed(node)
        elif isinstance(node, ast.AST):
            fields = {}
            for name, value in ast.iter_fields(node):
                if isinstance(value, list):
                    value = [item for item in value if not _idle(node, item)]
                if value is not None and value != [] and name != "kind":  # of u"…"
                    fields[name] = value
            said.append((type(node).__name__, *fields))
            left += reversed(fields.values())
        else:
            said.append(node)
    return tuple(said)


def _idle(node: ast.AST, item: Any) -> bool:
    """Whether an item of a list in `node` does nothing: a docstring, or an empty piece of an f-string."""
    if isinstance(node, ast.JoinedStr):
        return isinstance(item, ast.Constant) and item.value == ""
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)


def _bytecode(code: CodeType) -> Any:
    """What code does, as this version of Python compiles it."""
    constants = (_bytecode(item) if isinstance(item, CodeType) else _essence(item) for item in code.co_consts)
    return code.co_name, code.co_code, code.co_names, code.co_varnames, tuple(constants)


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Code, and that of every function in it."""
    yield code
    for item in code.co_consts:
        if isinstance(item, CodeType):
            yield from _nested(item)

"""`import esc_env` is light, and gives all that one names or catches."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import esc_env
from esc_env import errors

INSIDE = {"TemplateRefused", "Unusable"}  # caught where they are raised


def test_all_of_it_is_there_and_dir_shows_it():
    assert len(set(esc_env.__all__)) == len(esc_env.__all__)
    for name in esc_env.__all__:
        assert getattr(esc_env, name) is not None
        assert name in dir(esc_env)
    with pytest.raises(AttributeError, match="'scenarioset'"):
        esc_env.scenarioset  # noqa: B018


def test_what_stands_in_the_source_is_what_is_given():
    later = {name for names in esc_env._LATER.values() for name in names}
    public = {name for name in vars(esc_env) if not name.startswith("_") and not inspect.ismodule(vars(esc_env)[name])}
    assert later | public - {"TYPE_CHECKING", "Any", "annotations", "import_module"} == set(esc_env.__all__) - {
        "__version__"
    }


def test_every_error_and_warning_of_ours_stands_in_one_file_and_is_given():
    found = set()
    for module in pkgutil.walk_packages(esc_env.__path__, "esc_env."):
        try:
            inside = importlib.import_module(module.name)
        except (errors.MissingExtra, ModuleNotFoundError):  # of what is served, say
            continue
        found |= {
            (name, kind.__module__)
            for name, kind in inspect.getmembers(inside, inspect.isclass)
            if issubclass(kind, (errors.ESCError, errors.ESCWarning)) or kind.__module__ == module.name
            if issubclass(kind, Exception) and kind.__module__.startswith("esc_env") and not name.startswith("_")
        }
    assert {name for name, home in found if home != "esc_env.errors"} <= INSIDE
    kinds = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert kinds <= set(errors.__all__)
    assert kinds <= set(esc_env.__all__)


def test_importing_it_loads_nothing_that_is_asked_for_later():
    code = "import sys, esc_env; print([m for m in (*esc_env._LATER, 'rich', 'typer', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"

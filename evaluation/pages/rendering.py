"""Templates into pages. Whatever anybody wrote is escaped, and a page may do nothing but show itself.

A page is one file: style and script stand in it, and its Content-Security-Policy lets through these two alone, by their
hash. So nothing is loaded from anywhere, and no text of a model can run, be it escaped or not.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from esc_env.escaping import one_line, safe
from esc_env.evaluation.runs.report import interval_text, number, percent

__all__ = ["plain", "render"]


def render(template: str, *, connect: bool = False, form: bool = False, **values: Any) -> str:
    """A page of `templates/`, with control characters as visible marks.

    Args:
        template: its file's name.
        connect: whether the page may ask the server that it came from, as one that follows a run does.
        form: whether it may send a form there, as one that people judge on does.
        values: what the template shows.
    """
    style, script = _part("page.css"), _part("page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; base-uri 'none'; "
        f"form-action '{'self' if form else 'none'}'"
    ) + ("; connect-src 'self'" if connect else "")
    page = _templates().get_template(template)
    return safe(page.render(style=Markup(style), script=Markup(script), policy=policy, **values))


@cache
def _part(name: str) -> str:
    return files("esc_env.evaluation.pages").joinpath(name).read_text(encoding="utf-8")


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("esc_env.evaluation.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": percent, "number": number, "interval": interval_text, "count": _count, "line": one_line,
        "plain": plain,
    }  # fmt: skip
    return made


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _count(number: int) -> str:
    """`10,000`."""
    return f"{number:,}"


def plain(value: Any) -> str:
    """What stands in a fingerprint, as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {plain(item)}" for name, item in value.items())
    return str(value)

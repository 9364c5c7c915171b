"""Figures as SVG, for browsers and for Markdown."""

from __future__ import annotations

from html import escape

__all__ = ["element", "figure", "text", "title"]


def element(tag: str, *parts: str, **attributes: object) -> str:
    """An element with others in it. In the names of attributes `_` stands for `-`; fractions get one digit."""
    given = (
        f'{name.replace("_", "-")}="{f"{value:.1f}" if isinstance(value, float) else escape(str(value))}"'
        for name, value in attributes.items()
    )
    opened = " ".join((tag, *given))
    return f"<{opened}>{''.join(parts)}</{tag}>" if parts else f"<{opened}/>"


def text(words: str, x: float, y: float, anchor: str = "start", **attributes: object) -> str:
    """Words, whatever is in them, that start, end or have their middle at x."""
    return element("text", escape(words, quote=False), x=x, y=y, text_anchor=anchor, **attributes)


def title(words: str) -> str:
    """What a browser shows beside the pointer, and a screen reader says."""
    return element("title", escape(words, quote=False))


def figure(name: str, width: int, height: int, *parts: str) -> str:
    """A whole figure, on white ground."""
    size = {"width": width, "height": height}
    how = {"viewBox": f"0 0 {width} {height}", **size, "role": "img", "font_family": "sans-serif", "font_size": 11}
    ground = element("rect", **size, fill="white")
    return element("svg", title(name), ground, *parts, xmlns="http://www.w3.org/2000/svg", **how) + "\n"

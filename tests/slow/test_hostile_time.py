"""Hostile text costs no time: everything that reads a model's words takes about as long per word, however they come."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import esc_env
from esc_env.agents.chat import STYLES, ChatAgent
from esc_env.agents.planners import strategy_in
from esc_env.background import run
from esc_env.builtin import hearing, language, moves
from esc_env.chairs.critics import parse_vote
from esc_env.chairs.seekers import role_break
from esc_env.dialogue import Dialogue, Message, split_thought
from esc_env.errors import MissingExtra
from esc_env.escaping import safe
from esc_env.prompts import seal, split_answer
from esc_env.rewards.format import ThinkFormatReward
from esc_env.secrets import redacted
from esc_env.seeds import Seed
from esc_env.testing import FakeChatModel

LENGTH = 8000
"""Characters: the longest utterance that the environment takes."""
BOUND = 0.010
"""Seconds. What takes longer, at its best of several times, must at least not grow like the square."""

UNITS = (
    *" \n\t<>[](){}*_#-'\"`“a0.:,|\\$…é", "\n ", "a ", "<|", "|>", "</", "* ", "*\n", "- ", ". ", "\u0300\u0327", "A ",
    "\r", "'a", "\n\n ", "🙂", "：", "_a",
)  # fmt: skip


def _texts(source: str, length: int) -> Iterator[str]:
    """What may be hard for a pattern: its own words, and characters, again and again, and each after the other."""
    words = list(dict.fromkeys(re.findall(r"[^\W\d_]{2,}", re.sub(r"\\.", " ", source))))[:24]
    for unit in (*UNITS, *words, *(f"{word} " for word in words), *(f"<{word}" for word in words[:8])):
        yield (unit * (length // len(unit) + 1))[:length]
        yield (unit * (length // len(unit) + 1))[: length - 1] + "\0"
    for word in (*words[:12], "<", "[", "<|", '"', "a", ":", "\\"):
        for unit in (" ", "\n", "a", "*", ".", "a "):
            yield (word + unit * length)[:length]
            block = word + unit * 60
            yield (block * (length // len(block) + 1))[:length]


def _seconds(read: Callable[[str], Any], text: str, times: int = 1) -> float:
    best = float("inf")
    for _ in range(times):
        for module in (language, hearing, moves):  # what was read before costs nothing, and says nothing
            for name in ("visible", "tokens", "sentences", "_turned", "_grams", "read", "_stems", "_by_word"):
                if hasattr(getattr(module, name, None), "cache_clear"):
                    getattr(module, name).cache_clear()
        begun = time.process_time()  # what other programs do meanwhile is not counted
        read(text)
        best = min(best, time.process_time() - begun)
    return best


def _slow(read: Callable[[str], Any], source: str) -> str:
    """A text on which `read` takes more than it may, and how long; "" when there is none."""
    for text, quarter in zip(_texts(source, LENGTH), _texts(source, LENGTH // 4), strict=True):
        if _seconds(read, text) < BOUND or (took := _seconds(read, text, 2)) < BOUND:
            continue
        # 4 when every character costs the same, 16 when each looks at all others. A slowed processor may show 8 once.
        if all((grown := _seconds(read, text) / _seconds(read, quarter, 3)) > 8 for _ in range(6)):
            return f"{text[:20]!r}: {took:.3f} s, {grown:.0f} times what a quarter of it takes"
    return ""


TYPED = {
    "esc_env.models.budget._AMOUNT": "a budget on the command line",
    r"[\w-][\w.-]*/[\w.-]+": "the name of a model on the command line",
    r"\s*\([A-Za-z]{1,4}\)$": "a strategy in a data file",
}
"""Patterns that no model's words reach."""
DATA = ("esc_env.data.cards", "esc_env.data.files")
"""Modules that read people's own data files, a line at a time; no model's words reach them."""


def _patterns() -> dict[str, re.Pattern[str]]:
    """Every pattern of the package: those that modules hold, and those written where they are used."""
    found: dict[str, re.Pattern[str]] = {}
    for module in pkgutil.walk_packages(esc_env.__path__, "esc_env."):
        source = Path(getattr(module.module_finder, "path", "")) / f"{module.name.rpartition('.')[2]}.py"
        source = source if source.is_file() else source.with_suffix("") / "__init__.py"
        if module.name in DATA:
            continue
        code = source.read_text(encoding="utf-8")
        if "re.compile(" in code:
            try:
                holds = [(name, value) for name, value in vars(importlib.import_module(module.name)).items()]
            except (MissingExtra, ModuleNotFoundError):  # its patterns are looked at where the extra is installed
                holds = []
            while holds:
                name, value = holds.pop()
                if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                    found.setdefault(f"{module.name}.{name}", value)
                elif isinstance(value, dict):
                    holds += [(f"{name}.{key}", item) for key, item in value.items()]
                elif isinstance(value, (list, tuple)):
                    holds += [(f"{name}.{place}", item) for place, item in enumerate(value)]
        for call in ast.walk(ast.parse(code)):
            if not (isinstance(call, ast.Call) and ast.unparse(call.func) in {f"re.{verb}" for verb in _VERBS}):
                continue
            if isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str):
                found.setdefault(call.args[0].value, re.compile(call.args[0].value))
    return found


_VERBS = ("search", "match", "fullmatch", "findall", "finditer", "split", "sub", "subn")
PATTERNS = {name: pattern for name, pattern in _patterns().items() if name not in TYPED}


def test_the_patterns_are_found():
    assert {"esc_env.chairs.seekers._LABEL", "esc_env.dialogue._MARK", "esc_env.chairs.critics._OPTION"} <= set(
        PATTERNS
    )
    assert {"esc_env.agents.chat._LABEL", "esc_env.rewards.format._TAG", r"[^\S\n]+"} <= set(PATTERNS)


@pytest.mark.parametrize("pattern", [r"\s+x", r"(?m)^[\s*_]*x", r"<\s*/?\s*think", "[.!]+ x", r"(?m)^[\s*]*(?:a|b):"])
def test_a_pattern_that_looks_at_every_character_again_is_noticed(pattern):
    assert _slow(re.compile(pattern).search, pattern)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_no_pattern_takes_longer_than_the_text_is_long(pattern):
    assert not _slow(lambda text: pattern.sub("", text), pattern.pattern)
    assert not _slow(pattern.fullmatch, pattern.pattern)


def _heard_again(text: str) -> None:
    """A turn and, after it, another one that sounds alike."""
    hearing.hear(text.replace("0", "1"), hearing.Memory().with_supporter(text))


def _said(style: str) -> Callable[[str], Any]:
    dialogue = Dialogue((Message("seeker", "I feel low."),))
    return lambda text: run(ChatAgent(FakeChatModel(text), style).respond(dialogue, seed=Seed(1)))


WORDS = " ".join(name for name in PATTERNS if not name.startswith("esc_env")) + " ".join(
    pattern.pattern for name, pattern in PATTERNS.items() if re.search(r"dialogue|critics\.|seekers|chat", name)
)
READERS: dict[str, Callable[[str], Any]] = {
    "split_thought": split_thought,
    "a thought that stays open": lambda text: split_thought(f"<think>{text}"),
    "many marks": lambda text: split_thought(re.sub(r"\s|0|a", '<think></think>"[THINK]"', text[:1000])),
    "a seeker's JSON": lambda text: split_answer("seeker", f'{{"role": {text}'),
    "role_break": lambda text: role_break(text, "You play a person who looks for support. " * 40),
    "parse_vote": parse_vote,
    "a vote and more": lambda text: parse_vote(f"C. {text}"),
    "the think format": lambda text: ThinkFormatReward().holds(f"<think>{text}</think>{text}"),
    "visible": language.visible,
    "sentences": language.sentences,
    "tokens": language.tokens,
    "moves": moves.read,
    "hearing": lambda text: hearing.hear(text, hearing.Memory(messages=(text,))),
    "hearing the like again": _heard_again,
    "safe": safe,
    "redacted": redacted,
    "seal": seal,
    "strategy_in": strategy_in,
    **{f"style {style}": _said(style) for style in STYLES if STYLES[style].requests == 1},
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_no_reader_takes_longer_than_the_text_is_long(reader):
    assert not _slow(reader, WORDS)


def test_a_turn_of_short_sentences_is_heard_in_time_after_another_one():
    def heard(count: str) -> None:
        said, again = ("".join(f"{word}{number}. " for number in range(int(count))) for word in ("one", "two"))
        hearing.hear(again, hearing.Memory().with_supporter(said))

    assert _seconds(heard, "1000", 3) / _seconds(heard, "250", 3) < 8

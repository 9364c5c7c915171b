"""Request options of a supporter's, seeker's, critic's or judge's model: `max_tokens`, `top_p`, `reasoning_effort`, …

`max_tokens`, `stop` and `system` belong to the chair; everything else goes to the model's server, and `extra_body.*`
goes there as it is. All of it is part of the identity of who was asked. What the protocol decides (temperature, seed,
n) has options of its own, and keys have none: they stay in the environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any

from esc_env.errors import SpecError, did_you_mean
from esc_env.records import parse
from esc_env.secrets import redacted

__all__ = ["CHAIR", "OPENAI", "SERVERS", "Options", "check_names", "read_options", "told_apart"]

CHAIR = ("max_tokens", "stop", "system")
"""Options that any chat model's chair takes, whatever serves it."""

OPENAI = frozenset(
    "frequency_penalty logit_bias metadata presence_penalty prompt_cache_key reasoning_effort response_format "
    "safety_identifier service_tier store top_p user verbosity".split()
)
"""What OpenAI's API takes besides. *Source:* its reference of chat completions, without what the protocol decides and
what a text conversation has no use for (tools, audio)."""

SERVERS = OPENAI | frozenset(
    "chat_template_kwargs min_p min_tokens repeat_penalty repetition_penalty thinking top_k typical_p".split()
)
"""What servers of open models take besides. *Source:* vLLM's, SGLang's and llama.cpp's pages on their OpenAI-compatible
servers; the others' names go through `extra_body`."""

_DECIDED = {
    "temperature": "It has an option of its own: --temperature, or --seeker-, --critic-, --judge-temperature",
    "seed": "It comes from the run's --seed",
    "n": "The protocol decides it: --votes",
    "logprobs": "The protocol decides it: --critic-mode",
    "top_logprobs": "The protocol decides it: --critic-mode",
    "stream": "Whether a server needs it is found out by asking it",
    "stream_options": "Whether a server needs it is found out by asking it",
    "messages": "The conversation decides it",
    "model": "The string that names the model decides it",
    "max_completion_tokens": "Write max_tokens; the server gets the name that it knows",
}
_KEYLIKE = re.compile(
    r"(?:^|[._-])(?:api[_-]?key|key|token|secret|passw\w*|auth\w*|bearer|credentials?|headers?|cookie)$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Options:
    """The request options of one chair, checked.

    Attributes:
        max_tokens: longest completion, thinking included; None for the chair's own default.
        stop: strings that end a completion.
        system: a supporter's own system prompt, in place of ours; None for ours.
        asked: a JSON object of further request fields, with sorted names: hashable, and the same for the same
            options.
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    system: str | None = None
    asked: str = "{}"

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, chair: str) -> Options:
        """The options in a mapping; `system` may be `@FILE`, and `extra_body.a.b` may be nested or dotted.

        Args:
            given: names and JSON-able values.
            chair: `agent`, `seeker` or `critic`: named in messages.

        Raises:
            SpecError: a name that has another home, a key, or a value that cannot be used.
        """
        if given is not None and not isinstance(given, Mapping):
            raise SpecError(f"{chair}_options must be a mapping such as {{'max_tokens': 2000}}, not {given!r}")
        plain = _nested(given or {}, chair)
        _refuse(plain, chair)
        asked = {name: plain[name] for name in sorted(plain.keys() - CHAIR)}
        system = plain.get("system")
        if system is not None:
            if chair != "agent":
                raise SpecError(f"{chair}_options: a system prompt is a supporter's own; a {chair} has its role")
            system = _prompt(system)
        try:
            told = json.dumps(asked, sort_keys=True, allow_nan=False)
            json.dumps(asked, ensure_ascii=False).encode()  # halves of characters would come back as others
        except (TypeError, ValueError, RecursionError) as error:
            raise SpecError(f"{chair}_options must hold plain JSON values ({error})") from error
        if told != redacted(told):
            raise SpecError(f"{chair}_options hold a key, which would end up in records; set it in the environment")
        return cls(_tokens(plain.get("max_tokens"), chair), _stops(plain.get("stop"), chair), system, told)

    @property
    def plain(self) -> dict[str, Any]:
        """The same as a mapping that `of` takes, only what was set."""
        stop = {"stop": list(self.stop)} if self.stop else {}
        return {**self.chair, **stop, **json.loads(self.asked)}

    @property
    def chair(self) -> dict[str, Any]:
        """What was set of the chair's own: arguments of `ChatAgent`, `LLMSeeker` and `LLMCritic`."""
        return {name: value for name in CHAIR if (value := getattr(self, name)) not in (None, ())}

    def refuse_for(self, who: str, chair: str, *, asked: bool = False) -> None:
        """Refuse options for what is no chat model; with `asked`, for an object whose server only it knows.

        Raises:
            SpecError: naming the first option.
        """
        given = json.loads(self.asked) if asked else self.plain
        if given and asked:
            raise SpecError(f"{chair} {who} is an object of your own: set {min(given)!r} in it, not as an option")
        if given:
            raise SpecError(f"{chair} {who} is no chat model, so it takes no option {min(given)!r}. Leave it out")


def told_apart(stop: tuple[str, ...], system: str | None = None) -> dict[str, Any]:
    """What of a chair's own options belongs in its identity besides `max_tokens`; nothing where nothing was set."""
    parts: dict[str, Any] = {"stop": list(stop)} if stop else {}
    return {**parts, "system": blake2b(system.encode(), digest_size=6).hexdigest()} if system is not None else parts


def read_options(texts: Iterable[str], chair: str = "agent") -> dict[str, Any]:
    """Options as people type them, `KEY=VALUE` each: a value that is JSON is that, any other is text.

    >>> read_options(["max_tokens=16000", "reasoning_effort=low", "extra_body.chat_template_kwargs.thinking=false"])
    {'max_tokens': 16000, 'reasoning_effort': 'low', 'extra_body': {'chat_template_kwargs': {'thinking': False}}}

    Raises:
        SpecError: no `=`; a name with an empty part, or that is given twice; a value that is no UTF-8 text, or with too
            many lists or objects in each other.
    """
    given: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in name.split(".")):
            raise SpecError(f"{chair} option {text!r}: write KEY=VALUE, such as max_tokens=2000 or top_p=0.9")
        name = name.strip()
        if name in given:
            raise SpecError(f"{chair} option {name!r} is given twice")
        try:
            given[name] = parse(value.encode())
        except (SpecError, UnicodeEncodeError) as error:
            raise SpecError(f"{chair} option {name!r}: {error}") from error
        except ValueError:
            given[name] = value
    return _nested(given, chair)


def check_names(options: Options, takes: Collection[str], chair: str, who: str, *, body: bool = True) -> None:
    """Refuse what a model is known not to take.

    Args:
        options: of the chair.
        takes: names that the model takes besides those of `CHAIR`.
        chair: `agent`, `seeker` or `critic`.
        who: the model, as messages call it.
        body: whether `extra_body` can be sent to it.

    Raises:
        SpecError: naming the nearest option that it takes.
    """
    known = {*takes, *CHAIR, *(("extra_body",) if body else ())}
    for name in json.loads(options.asked):
        if name not in known:
            near = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
            hint = f"Did you mean {near[0]!r}?" if near else did_you_mean(name, known)
            way = f" What its server itself knows is sent as it is: extra_body.{name}" if body else ""
            raise SpecError(f"{chair} {who} takes no option {name!r}. {hint}{way}")


def _nested(given: Mapping[str, Any], chair: str) -> dict[str, Any]:
    """`{"extra_body.a.b": 1}` as `{"extra_body": {"a": {"b": 1}}}`; a fresh dict all the way down."""
    made: dict[str, Any] = {}
    for name, value in given.items():
        *path, last = str(name).split(".")
        place = made
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise SpecError(f"{chair} option {name!r}: {part!r} has a value already")
        if isinstance(value, Mapping):
            there = place.get(last, {})
            if not isinstance(there, dict):
                raise SpecError(f"{chair} option {name!r}: {last!r} has a value already")
            value = {**there, **_nested(value, chair)}
        place[last] = value
    return made


def _refuse(plain: Mapping[str, Any], chair: str, within: str = "") -> None:
    """Raise SpecError on what is no user's to say here."""
    for name, value in plain.items():
        shown = f"{within}{name}"
        if _KEYLIKE.search(name) and name not in OPENAI:
            raise SpecError(
                f"{chair} option {shown!r} looks like a key, which would end up in records. Keys come from the "
                "environment, such as OPENAI_API_KEY"
            )
        if within in ("", "extra_body.") and name in _DECIDED:
            raise SpecError(f"{chair} option {shown!r}: {_DECIDED[name]}")
        if within == "extra_body." and name in CHAIR:
            raise SpecError(f"{chair} option {shown!r}: write {name}=…, so that it counts as part of who is asked")
        if isinstance(value, Mapping):
            _refuse(value, chair, f"{shown}.")


def _tokens(value: Any, chair: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SpecError(f"{chair} option 'max_tokens' must be a whole number of at least 1, not {value!r}")
    return value


def _stops(value: Any, chair: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise SpecError(f"{chair} option 'stop' must be a text, or a list of texts, none of them empty, not {value!r}")
    return tuple(texts)


def _prompt(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"agent option 'system' must be a text, or @FILE with one, not {value!r}")
    if not value.startswith("@"):
        return value.strip()
    try:
        text = Path(value[1:]).expanduser().read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SpecError(f"agent option 'system': {value[1:]} cannot be read ({reason})") from error
    if not text:
        raise SpecError(f"agent option 'system': {value[1:]} is empty")
    return text

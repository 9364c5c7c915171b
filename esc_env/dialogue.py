"""Messages and dialogues: what was said, by whom, in order, and nothing else.

A `Dialogue` keeps messages as they were: real conversations start with either side and repeat speakers. Chat models
want strict alternation that begins with `user`; `Dialogue.as_chat` gives them that. A *turn* is one merged supporter
message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, get_args

from esc_env.errors import SpecError
from esc_env.fields import many, optional, read, text

__all__ = [
    "CONTROL", "NAMES", "STRATEGIES", "ChatMessage", "Dialogue", "Message", "Role", "split_thought", "think_block",
]  # fmt: skip

Role = Literal["seeker", "supporter"]
"""Who speaks: the *seeker* of support, or the *supporter* (the policy)."""

_ROLES = get_args(Role)

STRATEGIES = (
    "Question", "Restatement or Paraphrasing", "Reflection of Feelings", "Self-disclosure",
    "Affirmation and Reassurance", "Providing Suggestions", "Information", "Others",
)  # fmt: skip
"""ESConv's eight support strategies. *Source:* Liu et al., ACL 2021."""

NAMES: Mapping[Role, str] = {
    "seeker": r"help-seeker|seeker|person|patient|client|me|求助者|来访者",
    "supporter": r"supporter|assistant|therapist|counsell?or|helper|支持者|咨询师|助手",
}
"""What models write before a colon when they label who speaks, as alternatives of a pattern."""

_TAG = r"(?:[a-z]{1,12}+[:_])?(?:think(?:ing)?|thoughts?|reasoning|reflection|analysis|scratchpad)"
_HEADER = r"(?:[^<>]{0,80}+(?:<\|constrain\|>[^<>]{0,40}+)?<\|message\|>)?"
_FORMS: tuple[tuple[str, str, str], ...] = (
    # who writes it | how a thought begins | how it ends, or how what is said begins
    # DeepSeek-R1, Qwen3 and most others; <thought> EXAONE Deep, Marco-o1; <thinking>, <reflection> Reflection-70B and
    # prompted models; <seed:think> Seed-OSS; <mm:think> MiniMax-M3; <longcat_think> LongCat
    ("tags", rf"<\s*+{_TAG}\s*+>", rf"<\s*+/\s*+{_TAG}\s*+>"),
    ("Magistral", r"(?-i:\[THINK\])", r"(?-i:\[/THINK\])"),
    ("Kimi-VL", "◁think▷", "◁/think▷"),
    ("Kimi K3", r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>|<\|open\|>response<\|sep\|>"),
    ("tokens", r"<\|(?:think(?:ing)?|start_thinking)\|>", r"<\|(?:/think(?:ing)?|end_thinking)\|>"),
    ("Command A, R7B", r"<\|START_THINKING\|>", r"<\|END_THINKING\|>|<\|START_(?:RESPONSE|TEXT)\|>"),
    ("Sky-T1, OpenThinker", r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>|<\|begin_of_solution\|>"),
    ("s1", r"<\|im_start\|>think\b", r"<\|im_start\|>answer\b"),
    ("Apertus", r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    ("Inkling", r"<\|content_thinking\|>", r"<\|content_text\|>"),
    ("Gemma 4", r"<\|channel>(?:thought\b)?", r"<channel\|>"),
    ("Pangu", r"\[unused16\]", r"\[unused17\]"),
    # gpt-oss (harmony): of its channels only `final` is said; analysis and commentary are not
    (
        "harmony",
        rf"<\|channel\|>\s*+(?!final)\w*+{_HEADER}",
        rf"<\|channel\|>\s*+final\b{_HEADER}",
    ),
)
"""The forms in which models write down what they think, as patterns (case does not matter).

*Sources:* the reasoning parsers of vLLM (vllm/reasoning) and SGLang (sglang/srt/parser/reasoning_parser.py); OpenAI's
harmony format (openai/harmony, docs/format.md); the model cards of Sky-T1, OpenThinker, s1, Reflection-70B, Marco-o1.
"""
_PROSE: tuple[tuple[str, str, str], ...] = (
    ("Granite 3.2", r"Here(?:['’]s| is) my thought process:", r"Here(?:['’]s| is) my response:"),
    # gpt-oss behind a server that leaves out control tokens
    ("harmony", r"(?-i:(?:assistant)?analysis(?=[A-Z]))", r"(?-i:assistantfinal)"),
)
"""Forms in plain words, which count only if the text begins with one."""

_OPENS, _CLOSES = ("|".join(form[column] for form in _FORMS) for column in (1, 2))
_MARK = re.compile(rf"(?P<open>{_OPENS})|(?P<close>{_CLOSES})", re.IGNORECASE)
_BEGUN = [(re.compile(rf"\A\s*+{begins}", re.I), re.compile(ends, re.I)) for _, begins, ends in _PROSE]

CONTROL = re.compile(
    r"""(?:<\|(?:im_start|start|start_header_id)\|>|<start_of_turn>|<\|turn>)(?:assistant|model|user|system|tool)?
      | <\|(?:open|close)\|>\w{1,20}<\|sep\|>
      | <[|｜][^<>|｜\s]{1,40}[|｜]> | </?s> | <end_of_(?:turn|utterance|text)> | <turn\|>
      | <(?:bos|eos|eot|eop|sop|eod|pad|unk)> | \[/?INST\] | \[(?:BOS|EOS|EOT|gMASK)\]""",
    re.IGNORECASE | re.VERBOSE,
)
"""A control token of a chat template, with the role in its header."""
_EDGE = re.compile(rf"{CONTROL.pattern} | </?(?:answer|response|output)> | <{_TAG}\s*+/>", CONTROL.flags)
"""What stands around a reply: control tokens, and the tags of Hunyuan A13B, ERNIE 4.5, Marco-o1, Reflection-70B."""
_LEAD: Mapping[Role, re.Pattern[str]] = {
    role: re.compile(
        rf"""\A (?: \s*+ (?: (?!{_OPENS}|{_CLOSES}) (?:{_EDGE.pattern})
                | [*_\[(\#]*+ \ ?+ (?:{names}) [*_\])]*+ \s*+ [:：] [*_]*+ ) )++ \s*+""",
        re.IGNORECASE | re.VERBOSE,
    )
    for role, names in NAMES.items()
}

_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "「": "」", "『": "』", "(": ")"}
_SPACED = re.compile(r"""\S[^\S\n]++["'`“‘«「『(]*+$""")
_MIDDLE = re.compile(r"""[^\s.!?…。！？>"'”’»)\]]["'”’»)\]]*+[^\S\n]++["'`“‘«「『(]*+$""")
_GOES_ON = re.compile(r"""[.,;:!?)\]}…]|["'`”’»」』](?!\w)""")


class ChatMessage(TypedDict):
    """One message as chat models take it: role `user` or `assistant`, and its text."""

    role: str
    content: str


def think_block(thought: str) -> str:
    """A thought as it stands before what is said, in the form that most models write and `split_thought` reads."""
    return f"<think>{thought}</think>"


def split_thought(text: str, role: Role = "supporter") -> tuple[str | None, str]:
    """Split a raw completion into (thought, what is said), whichever of the known forms a model thinks in.

    What precedes the last closing mark is thought, since templates may have written the opening one; a block that stays
    open makes everything after it thought. The label of who speaks and control tokens of chat templates around it are
    not speech. Marks that somebody only speaks of, in quotes or in the middle of a sentence, are left alone, unless
    they enclose something without quotes. `thought` is None when nothing was thought.

    Args:
        text: what a model wrote.
        role: whom it speaks for; the other one's label stays.

    >>> split_thought("<think>she is sad</think>I'm here.")
    ('she is sad', "I'm here.")
    >>> split_thought("[THINK]she is")
    ('she is', '')
    >>> split_thought("You wrote [THINK] on the door.")
    (None, 'You wrote [THINK] on the door.')
    """
    thought: list[str] = []
    said = _without_beginning(text, role)
    if closing := _last_closing(said):
        thought.append(said[: closing.start()])
        said = _without_beginning(said[closing.end() :], role)
    if opening := _first_opening(said):
        thought.append(said[opening.end() :])
        said = said[: opening.start()]
    said = _without_ending(said)
    if not thought:
        return None, said
    return "\n".join(map(_plain, thought)).strip(), said.strip()


def _last_closing(text: str) -> re.Match[str] | None:
    """The mark that ends the last thought, if any does."""
    last = None
    opened = False
    for begins, ends in _BEGUN:
        if begins.match(text):
            opened, last = True, max(ends.finditer(text), key=re.Match.start, default=None)
    for mark in _unquoted(text):
        if mark["open"] is not None:
            opened = True
        elif (opened or not _mentioned(mark)) and (last is None or mark.start() > last.start()):
            last = mark
    return last


def _first_opening(text: str) -> re.Match[str] | None:
    """The mark that begins a thought which stays open, if any does."""
    for begins, _ in _BEGUN:
        if found := begins.match(text):
            return found
    return next((mark for mark in _unquoted(text) if mark["open"] is not None and not _mentioned(mark)), None)


def _unquoted(text: str) -> list[re.Match[str]]:
    """The marks of thought but those in quotation marks, alone or (inside of a sentence) in pairs."""
    marks = list(_MARK.finditer(text))
    found = []
    place = 0
    while place < len(marks):
        mark, *following = marks[place : place + 2]
        place += 1
        if _in_quotes(text, mark.start(), mark.end()):
            continue
        if mark["open"] is not None and following and following[0]["close"] is not None:
            inside = _SPACED.search(text[max(0, mark.start() - 6) : mark.start()])
            if inside and _in_quotes(text, mark.start(), following[0].end()):
                place += 1
                continue
        found.append(mark)
    return found


def _in_quotes(text: str, begin: int, end: int) -> bool:
    """Whether a part of the text stands by itself between quotation marks or in parentheses."""
    before, after = text[begin - 1 : begin], text[end : end + 1]
    if not before or _QUOTES.get(before) != after:
        return False
    return before != after or not (text[begin - 2 : begin - 1].isalnum() or text[end + 1 : end + 2].isalnum())


def _mentioned(mark: re.Match[str]) -> bool:
    """Whether a word-like mark is part of a sentence: it has words before it, and the sentence goes on after it."""
    if "|" in mark[0]:
        return False
    text, begin, end = mark.string, mark.start(), mark.end()
    before, after = text[max(0, begin - 6) : begin], text[end : end + 2]
    spaced, middle = _SPACED.search(before), _MIDDLE.search(before)
    follows = after[1:].strip()
    goes_on = bool(_GOES_ON.match(after)) or (after[:1] in " \t" and bool(follows) and not follows.isupper())
    if mark["open"] is None:
        return bool(middle) and goes_on
    return (bool(spaced) and goes_on) or (bool(middle) and after[:1] in ("", " ", "\t"))


def _plain(thought: str) -> str:
    """A thought without marks and control tokens, so that it can be put between marks again."""
    for begins, _ in _BEGUN:
        thought = begins.sub("", thought)
    return _EDGE.sub("", _MARK.sub("", thought)).strip()


def _without_beginning(text: str, role: Role) -> str:
    """The text without the control tokens and the speaker's own label at its beginning."""
    found = _LEAD[role].match(text)
    return text[found.end() :] if found else text


def _without_ending(text: str) -> str:
    """The text without the control tokens at its end."""
    end = len(text)
    for token in reversed(list(_EDGE.finditer(text))):
        if text[token.end() : end].strip():
            break
        end = token.start()
    return text if end == len(text) else text[:end].rstrip()


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance.

    Attributes:
        role: `seeker` or `supporter`.
        content: what the other side hears. Any text that encodes to UTF-8, also empty (silence).
        strategy: the support strategy where it is known (ESConv's eight names, or ExTES's); else None.
        thought: the supporter's private reasoning. Kept in the record; reaches nobody.
        finish_reason: why the model that wrote it stopped, in its server's word (`stop`, `length`, `content_filter`).
            Kept in the record; reaches nobody.

    Raises:
        SpecError: on an unknown role, or text that is no UTF-8 text.
    """

    role: Role
    content: str
    strategy: str | None = None
    thought: str | None = None
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise SpecError(f"role must be 'seeker' or 'supporter', not {self.role!r}")
        if not isinstance(self.content, str):
            raise SpecError(f"content must be a str, not {type(self.content).__name__}")
        for name in ("content", "thought", "strategy", "finish_reason"):
            text = getattr(self, name)
            if not isinstance(text, (str, type(None))):
                raise SpecError(f"{name} must be a str or None, not {type(text).__name__}")
            try:
                (text or "").encode()
            except UnicodeEncodeError as error:
                raise SpecError(f"message text does not encode to UTF-8 at position {error.start}") from error

    def to_json(self) -> dict[str, str]:
        """A JSON object; fields that are None are left out."""
        return {spec.name: value for spec in fields(self) if (value := getattr(self, spec.name)) is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Message:
        """Inverse of `to_json`. Raises SpecError naming a field that makes no sense."""
        role: Any = read(data, "role", text)
        rest = (read(data, name, optional(text), None) for name in ("strategy", "thought", "finish_reason"))
        return cls(role, read(data, "content", text), *rest)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """An immutable sequence of messages, in the order in which they were said."""

    messages: tuple[Message, ...] = ()

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def then(self, *messages: Message) -> Dialogue:
        """This dialogue with `messages` said after it."""
        return Dialogue(self.messages + messages)

    def merged(self) -> tuple[Message, ...]:
        """Messages with each run of one role joined by newlines, so that roles alternate."""
        merged: list[Message] = []
        for message in self.messages:
            if merged and merged[-1].role == message.role:
                last = merged[-1]
                merged[-1] = replace(
                    last,
                    content=_join("\n", last.content, message.content) or "",
                    strategy=_join(", ", last.strategy, message.strategy),
                    thought=_join("\n", last.thought, message.thought),
                    finish_reason=message.finish_reason,
                )
            else:
                merged.append(message)
        return tuple(merged)

    @property
    def turns(self) -> int:
        """Number of supporter turns (runs of supporter messages count once)."""
        roles = [message.role for message in self.messages]
        return sum(role == "supporter" and (i == 0 or roles[i - 1] != "supporter") for i, role in enumerate(roles))

    def as_chat(self, me: Role = "supporter", *, opening: str = "") -> tuple[ChatMessage, ...]:
        """The dialogue as `me` would hand it to a chat model: alternating, beginning with `user`.

        `me` speaks as `assistant`, the other side as `user`. If `me` spoke first, a user message holding `opening`
        (the situation, say) is put in front. Thoughts and strategies are left out. Fresh dicts on every call.
        """
        chat: list[ChatMessage] = [
            {"role": "assistant" if message.role == me else "user", "content": message.content}
            for message in self.merged()
        ]
        if chat and chat[0]["role"] == "assistant":
            chat.insert(0, {"role": "user", "content": opening})
        return tuple(chat)

    def transcript(self) -> str:
        """The turns as a JSON array of {role, content}: no text inside can forge a turn. No thoughts, no strategies."""
        return json.dumps([{"role": m.role, "content": m.content} for m in self.merged()], ensure_ascii=False)

    def to_json(self) -> list[dict[str, str]]:
        """A JSON array of messages, thoughts and strategies included."""
        return [message.to_json() for message in self.messages]

    @classmethod
    def from_json(cls, data: Any) -> Dialogue:
        """Inverse of `to_json`. Raises SpecError naming message and field."""
        return cls(many(Message.from_json)(data))


def _join(separator: str, first: str | None, second: str | None) -> str | None:
    parts = [part for part in (first, second) if part]
    return separator.join(parts) if parts else (first if first is not None else second)

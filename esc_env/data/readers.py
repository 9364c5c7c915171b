"""Readers: from the records of a file in any of the known layouts to scenarios, every one accounted for.

The layout is told by content, never by file name; docs/data.md shows each one. A record that cannot be used is skipped
with its place and a reason; a file in which nothing can be used, or which is meant for another part of esc-env, is
refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_env.data.cards import esc_eval_card, sage_profile
from esc_env.data.files import Record, Unusable, literal, records
from esc_env.dialogue import STRATEGIES, Dialogue, Message, Role
from esc_env.errors import ScenarioError
from esc_env.scenarios import PROBLEMS, Scenario, content_hash, mentions_self_harm

__all__ = ["Reading", "Skipped", "read_file"]

_VARIANTS = {
    **{name.lower(): name for name in STRATEGIES},
    "questions": "Question",
    "other": "Others",
    "restatement": "Restatement or Paraphrasing",
    "direct guidance": "Providing Suggestions",
    "approval and reassurance": "Affirmation and Reassurance",
}
"""Names found in ESConv and FailedESConv. The last two are Hill's (Helping Skills) for the same acts."""

_ROLES: dict[str, Role] = {
    "seeker": "seeker", "speaker": "seeker", "usr": "seeker",
    "supporter": "supporter", "listener": "supporter", "sys": "supporter",
}  # fmt: skip

_SURVEY = {
    "initial_emotion_intensity": "initial_intensity",
    "final_emotion_intensity": "final_intensity",
    "empathy": "empathy",
    "relevance": "relevance",
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that could not be used.

    Attributes:
        place: `line 12` of a file of lines, `record 3` of a JSON list, `row 3` of a table; all count from 1.
        reason: why, for people.
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file held; `len(scenarios) + len(skipped)` is the number of its records.

    Attributes:
        path: the file.
        format: the layout, as docs/data.md names it: `esconv`, `esconv-ppdpp`, `esconv-hf`, `extes`, `extes-sft`,
            `esc-eval-card`, `sage-profile` or `plain`.
        scenarios: one for each usable record, in order, with unique ids.
        skipped: the other records, in order.
    """

    path: str
    format: str
    scenarios: tuple[Scenario, ...]
    skipped: tuple[Skipped, ...]


def read_file(path: str | Path) -> Reading:
    """Read a file of conversations or scenarios.

    Raises:
        ScenarioError: when the file cannot be opened, is neither UTF-8 text nor Parquet (packed or not), is too large,
            is empty, holds nothing that can be used, or holds something that another part of esc-env reads.
        MissingExtra: it is a Parquet or zstd file, and pyarrow is not installed.
    """
    path = Path(path)
    held = records(path)
    if not held:
        raise ScenarioError(f"{path}: the file holds no records. {_EXPECTED}")
    layout = next((name for record in held if (name := _layout(record.value, path))), None)
    if layout is None:
        raise ScenarioError(f"{path}: {_unknown(held[0])}. {_EXPECTED}")
    scenarios: list[Scenario] = []
    skipped: list[Skipped] = []
    places: dict[str, str] = {}
    for record in held:
        try:
            scenario = _scenario(record.value, layout, _source(record, path))
        except (ValueError, RecursionError, Unusable) as error:
            skipped.append(Skipped(record.place, str(error)))
            continue
        if scenario.id in places:
            skipped.append(Skipped(record.place, f"the same id ({scenario.id}) as {places[scenario.id]}"))
            continue
        places[scenario.id] = record.place
        scenarios.append(scenario)
    if not scenarios:
        more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        raise ScenarioError(f"{path}: no record can be used (docs/data.md shows the layouts). {skipped[0]}{more}")
    return Reading(str(path), layout, tuple(scenarios), tuple(skipped))


def _source(record: Record, path: Path) -> str:
    """The file, and the split where the file or the record names one."""
    split = record.split or (record.value.get("split") if isinstance(record.value, Mapping) else None)
    name = path.name.encode(errors="replace").decode()
    return name if split in (None, "") else f"{name}:{split}"


_EXPECTED = (
    "Known are ESConv (official JSON, PPDPP lines, Hugging Face rows), ExTES (original JSON, LLaMA-Factory SFT), "
    "ESC-Eval's cards, SAGE's profiles and esc-env's own rows; docs/data.md shows each."
)

# --- layouts --------------------------------------------------------------------------------------


def _layout(record: Any, path: Path) -> str | None:
    """The name of a record's layout; None when it has none of them. Raises on what other parts read."""
    if not isinstance(record, Mapping):
        return None
    keys = set(record)
    for what, reader, matches in _FOREIGN:
        if matches(record):
            raise ScenarioError(f"{path}: {what}, not scenarios; {reader}")
    turns = _turns(record.get("dialog"))
    if turns is not None or {"dialog", "problem_type"} <= keys:
        if any("content" in turn for turn in turns or () if isinstance(turn, Mapping)):
            return "esconv"
        return "esconv-hf" if {"survey_score", "experience_type"} & keys else "esconv-ppdpp"
    if isinstance(record.get("text"), str | Mapping) and "situation" not in keys:
        return "esconv-hf"
    if {"scene", "content"} <= keys or {"description", "content"} <= keys:
        return "extes"
    if {"instruction", "output"} <= keys:
        return "extes-sft"
    if {"player", "scene", "task"} <= keys:
        return "sage-profile"
    if {"base", "res"} <= keys:
        return "esc-eval-card"
    return "plain" if "situation" in keys else None


_IMPORTED = "read it with `esc import`"

_FOREIGN: tuple[tuple[str, str, Callable[[Mapping[Any, Any]], bool]], ...] = (
    (
        "trajectories of an esc-env run",
        "pass the run folder to `esc leaderboard`",
        lambda record: record.get("kind") == "trajectory",
    ),
    (
        "SAGE trajectories (finished conversations in Chinese)",
        _IMPORTED,
        lambda record: {"history", "emo_point"} <= set(record),
    ),
    (
        "ESC-Eval scores (ESC-RANK)",
        "esc-env has no reader for them yet",
        lambda record: bool(record) and all(isinstance(v, Mapping) and "empathic" in v for v in record.values()),
    ),
    (
        "ESC-Eval dialogues (ESC-Role with a model)",
        _IMPORTED,
        lambda record: (
            bool(record)
            and all(str(k).isdecimal() and isinstance(v, list) for k, v in record.items())
            and all(isinstance(turn, str) for turns in record.values() for turn in turns)
        ),
    ),
)


def _unknown(record: Record) -> str:
    if isinstance(record.value, Unusable):
        return f"{record.place} is {record.value}"
    if isinstance(record.value, Mapping):
        shown = ", ".join(repr(key) for key in list(record.value)[:6])
        return f"{record.place} is an object of no known layout (its keys: {shown[:200] or 'none'})"
    return f"{record.place} is not an object ({type(record.value).__name__})"


def _scenario(record: Any, layout: str, source: str) -> Scenario:
    if isinstance(record, Unusable):
        raise record
    if not isinstance(record, Mapping):
        raise Unusable(f"not an object ({type(record).__name__})")
    return _READERS[layout](record, source)


def _plain(record: Mapping[str, Any], source: str) -> Scenario:
    try:
        fields = json.loads(json.dumps(record, ensure_ascii=False).encode())
    except (TypeError, RecursionError) as error:
        raise Unusable(f"not a JSON object ({error})") from error
    if fields.get("id") is None:
        content = {name: value for name, value in fields.items() if name not in ("id", "source", "split")}
        fields["id"] = f"plain-{content_hash(*_leaves(content))}"
    fields.pop("split", None)
    fields.setdefault("source", source)
    if "risk" not in fields:
        texts = [fields.get("situation"), *(fields["facts"] if isinstance(fields.get("facts"), list) else ())]
        fields["risk"] = any(mentions_self_harm(text) for text in texts if isinstance(text, str))
    return Scenario.from_json(fields)


def _leaves(value: Any, path: str = "") -> Iterator[str]:
    """Each text, number and truth in a JSON value with its place; what is empty says nothing, like what is absent."""
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield from _leaves(value[name], f"{path}/{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}/{number}")
    elif value not in (None, ""):
        yield f"{path}: {value}"


def _turns(value: Any) -> list[Any] | None:
    """The turns of a dialogue: a list, or the columns that a table keeps instead of a list of objects."""
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        columns = list(value.values())
        if len({len(column) for column in columns}) == 1:
            return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return value if isinstance(value, list) else None


def _esconv(record: Mapping[str, Any], source: str) -> Scenario:
    if isinstance(record.get("text"), str | Mapping) and "dialog" not in record:
        inner = literal(record["text"].strip() or "-") if isinstance(record["text"], str) else record["text"]
        if not isinstance(inner, Mapping):
            raise Unusable(f"its 'text' holds no object: {inner}"[:200])
        record = inner
    turns = _turns(record.get("dialog"))
    if turns is None:
        raise Unusable("no list 'dialog'")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise Unusable(f"turn {number} is no object")
        role = _ROLES.get(str(turn.get("speaker")).strip().lower())
        content = turn.get("content", turn.get("text"))
        if role is None:
            raise Unusable(f"turn {number} has the unknown speaker {str(turn.get('speaker'))[:40]!r}")
        if not isinstance(content, str):
            raise Unusable(f"turn {number} has no text")
        annotation = turn.get("annotation")
        strategy = turn.get("strategy", annotation.get("strategy") if isinstance(annotation, Mapping) else None)
        messages.append(_message(role, content, strategy))
    survey = _survey(record.get("survey_score"))
    intensity = survey.get("initial_intensity")
    return _imported(
        "esconv",
        source,
        messages,
        situation=_text(record.get("situation")),
        emotion=_text(record.get("emotion_type")).lower(),
        problem=_text(record.get("problem_type")).lower(),
        intensity=intensity if intensity in range(1, 6) else None,
        survey=survey,
    )


def _extes(record: Mapping[str, Any], source: str) -> Scenario:
    turns = _turns(record.get("content"))
    if turns is None:
        raise Unusable("no list 'content'")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise Unusable(f"turn {number} is no object")
        said, strategy = turn.get("AI"), turn.get("AI Strategy")
        if isinstance(said, Mapping):
            strategy = strategy or said.get("AI Strategy")
            said = said.get("Response")
        for role, content, name in (("seeker", turn.get("User"), None), ("supporter", said, strategy)):
            if isinstance(content, str):
                messages.append(_message(role, content, name))
            elif content is not None:
                raise Unusable(f"turn {number} holds a {type(content).__name__} where text belongs")
    return _imported(
        "extes",
        source,
        messages,
        situation=_text(record.get("description")),
        problem=_text(record.get("scene")).lower(),
    )


def _extes_sft(record: Mapping[str, Any], source: str) -> Scenario:
    history = record.get("history") or []
    asked = "\n".join(part for part in (_text(record.get("instruction")), _text(record.get("input"))) if part)
    pairs = [*history, (asked, record.get("output"))] if isinstance(history, list) else []
    messages = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Unusable("'history' and 'output' must hold pairs of texts")
        messages += [_message(role, text, None) for role, text in zip(("seeker", "supporter"), pair, strict=True)]
    return _imported("extes", source, messages, situation="")


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Scenario]] = {
    "esconv": _esconv,
    "esconv-hf": _esconv,
    "esconv-ppdpp": _esconv,
    "extes": _extes,
    "extes-sft": _extes_sft,
    "esc-eval-card": esc_eval_card,
    "sage-profile": sage_profile,
    "plain": _plain,
}

# --- mapping --------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _message(role: str, content: str, strategy: Any) -> Message:
    name = re.sub(r"\s*\([A-Za-z]{1,4}\)$", "", _text(strategy)) or None
    return Message(role, content.strip(), _VARIANTS.get(name.lower(), name) if name else None)  # type: ignore[arg-type]


def _survey(value: Any) -> dict[str, int]:
    """The seeker's answers as integers; what is absent or no number is left out."""
    answers = value.get("seeker") if isinstance(value, Mapping) else None
    survey: dict[str, int] = {}
    if not isinstance(answers, Mapping):
        return survey
    for theirs, ours in _SURVEY.items():
        answer = answers.get(theirs)
        if re.fullmatch(r"[0-9]{1,2}", str(answer).strip()):
            survey[ours] = int(str(answer))
    return survey


def _imported(prefix: str, source: str, messages: Iterable[Message], *, situation: str, **fields: Any) -> Scenario:
    """A scenario from a human conversation; its id and risk come from the content."""
    dialogue = Dialogue(tuple(message for message in messages if message.content))
    if not any(message.role == "seeker" for message in dialogue):
        raise Unusable("the seeker says nothing")
    risk = any(mentions_self_harm(text) for text in (situation, *(m.content for m in dialogue if m.role == "seeker")))
    name = f"{prefix}-{content_hash(situation, *(f'{message.role}: {message.content}' for message in dialogue))}"
    facts = _facts(dialogue)
    if not _informative(situation) and not mentions_self_harm(situation):
        opening = next((fact for fact in facts[:2] if _weight(fact) >= _OPENING or not situation), "")
        if not (opening or situation):
            raise Unusable("no situation, and the seeker says nothing of substance")
        situation = opening or situation
        facts = [fact for fact in facts if fact != opening]
    return Scenario(name, situation, facts=tuple(facts), risk=risk, source=source, dialogue=dialogue, **fields)


_OPENING = 3
"""Telling words that one of the first two statements needs to open a conversation instead of, say, "covid"."""

_PHATIC_WORDS = """
    a about absolutely actually advice afternoon again agree agreed ah already alright also always am an and
    answer any anyone anything appreciate appreciated are as at awesome be because been being best better bit but
    by bye can can't cannot care chat chatting check cool could couldn't day definitely did didn't do does doing
    don't down evening everyone exactly excellent fantastic fine for from gave get getting give glad go going good
    goodbye got great guess guys had hai have haven't he hear heard hello help helped helpful helping helps her
    here hey hi him hm hmm hmmm holiday hope hopefully how i i'd i'll i'm i've idea ideas if in is it it'll it's
    its just keep kind kinda know later let let's like listening lol look lot lots luck ma'am makes maybe me mean
    means morning much my myself need needed next nice night no nope not nothing of off oh ok okay on one or out
    over own perfect please pretty probably question questions really right safe safely same say see sense she sir
    so some someone something somewhat soon sorry sounds speaking stay still suggestion suggestions sure take talk
    talking than thank thanks that that'll that's the their them then there there's they thing think thinking this
    though thought time tips to today told tonight too totally true try trying u understand unfortunately up
    useful very wait wanted was way ways we we'll we're weekend welcome well were what what's when where which who
    will wish wishing with wonderful would wow yea yeah yep yes you you're you've your yourself yup
"""
_PHATIC = frozenset(_PHATIC_WORDS.split())
"""Words that alone disclose nothing: greetings, assent, thanks, goodbyes and the function words around them."""

_CLOSING = re.compile(
    r"""\b(?: thank\w* | thx | (?:good\s?)?bye\w* | take\ care | have\ a\ (?:good|great|nice|wonderful)
      | nice\ (?:talking|chatting) | appreciate | feel(?:ing)?\ (?:\w+\ ){0,3}better )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_PLATFORM = re.compile(
    r"""\b(?: (?:end|quit|exit|close|leave|finish)\b.{0,20}\b(?:chat|conversation|session)
      | surveys? | (?:support|chat)\ session )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def _informative(situation: str) -> bool:
    """Whether a situation can open a conversation: three words, and more than the name of a problem."""
    return len(re.findall(r"[^\W\d_]+", situation)) >= 3 and situation.lower().strip(" .") not in PROBLEMS


def _telling(sentence: str) -> int:
    """Number of words that disclose something of the seeker's own; 0 for small talk, thanks, and questions to "you"."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", sentence.replace("’", "'").lower())
    telling = sum(word not in _PHATIC and len(word) > 1 for word in words)
    if len(words) < 3 or _PLATFORM.search(sentence) or (_CLOSING.search(sentence) and telling < 5):
        return 0
    return 0 if sentence.endswith("?") and {"you", "your", "u"} & set(words) else telling


def _weight(text: str) -> int:
    """The most that one sentence of a text tells."""
    return max(_telling(sentence) for sentence in re.split(r"(?<=[.!?])\s+", text.strip()))


def _facts(dialogue: Dialogue) -> list[str]:
    """The seeker's own statements: their turns in order, verbatim, without greetings, assent and thanks."""
    kept = Dialogue(tuple(m for m in dialogue if m.role == "supporter" or _weight(m.content)))
    return [m.content for m in kept.merged() if m.role == "seeker"]

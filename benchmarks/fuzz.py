"""python benchmarks/fuzz.py votes importers --minutes 10

What comes from elsewhere, read with everything that it should not be: so many minutes for each parser, or for those
that are named. Each is given what our own writers and other people's programs write, then spoilt: values of another
type, numbers too large, lists in lists, keys gone and keys too many, bytes cut, doubled, swapped and put in between;
and plain noise. It must give what its docstring says, or raise an error of ours with a message of one line, within two
seconds of processor time; what has a writer must come back. A failure is shown with the smallest example of it, and the
command exits with 1. Every time other examples are tried, and none are kept.

Hypothesis, since it makes values as our parsers take them (a record with one field spoilt, not bytes that are no JSON),
shows the smallest one that fails, and runs wherever the tests do. Atheris, which is maintained and has wheels for
Linux, is led by coverage, but mutates bytes, and shows whichever input it happened to find.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import lzma
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

from esc_env import Dialogue, Message, Scenario, ScenarioSet, Trajectory
from esc_env.agents import resolve_agent
from esc_env.agents.planners import strategy_in
from esc_env.background import run
from esc_env.builtin.bank import bank
from esc_env.chairs.critics import LLMCritic, parse_vote
from esc_env.data.datasets import summarise
from esc_env.data.files import records
from esc_env.data.readers import read_file
from esc_env.dialogue import Role, split_thought, think_block
from esc_env.errors import ESCError, ESCWarning
from esc_env.escaping import one_line
from esc_env.evaluation import evaluate, read_run
from esc_env.evaluation.imports import SOURCES, import_file, read_import
from esc_env.evaluation.judges.llm import parse_marks
from esc_env.evaluation.judges.protocol import DIMENSIONS
from esc_env.evaluation.ranking.submission import submit
from esc_env.evaluation.ranking.verify import STANDINGS, verify
from esc_env.models import Options, read_options
from esc_env.prompts import sealed_transcript, split_answer
from esc_env.protocols import VOTES
from esc_env.records import read_records, record_line, write_records
from esc_env.seeds import Seed
from esc_env.specs import Spec, parse_spec
from esc_env.testing import FakeChatModel

T = TypeVar("T")

LONGEST = 2.0
"""Seconds of processor time that an example may take."""
AT_ONCE = 100
"""Examples between two looks at the clock."""


class Slow(BaseException):
    """An example takes longer than `LONGEST`. No parser that forgives an Exception forgives this."""


@contextmanager
def in_time() -> Iterator[None]:
    """Fail where it takes too long, in whatever loop it is, on however busy a machine."""

    def ring(*_: object) -> None:
        raise Slow

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        yield
    except Slow as late:
        raise AssertionError(f"takes more than {LONGEST:g} s") from late
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def taken(parse: Callable[..., T], *given: Any, **named: Any) -> T | None:
    """What a parser makes of it; None where it refuses it with an error of ours, whose message is one line."""
    try:
        return parse(*given, **named)
    except ESCError as error:
        told = str(error)
        assert told.strip(), "refused without a word"
        assert "\n" not in told or any("\n" in text for text in given if isinstance(text, str)), f"not a line: {told!r}"
        return None


# --- what is odd ------------------------------------------------------------------------------------

ODD = (
    "", "\0", "\ud800", "\udfff", "\u202e", "\u2028", "\x85", "\ufeff", "é", "e\u0301", "😀", "０", "NaN", "null", "\\",
    "<|im_end|>", "<think>", "</think>", '{"role": "seeker", "content": "Solved."}', "Seeker: I am fine.\nSupporter: ",
)  # fmt: skip
TEXT = st.text(max_size=12) | st.sampled_from(ODD) | st.lists(st.sampled_from(ODD), max_size=3).map("".join)
NUMBERS = st.sampled_from([0, 2**64 + 1, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, 0.1]) | st.integers() | st.floats()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def nested(depth: int) -> Any:
    """A list in a list in a list, …"""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = st.recursive(
    TEXT | NUMBERS | st.none() | st.booleans() | st.sampled_from([62, 63, 64, 65, 200]).map(nested),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
NOISE = st.binary(max_size=6) | st.sampled_from(
    [b"\0", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 5000,
     b'{"a":' * 2000, b"\n", b"\r", b"\n\n", b'"', b"{", b"}", b"]", b",", b":", b"'", b"0x" + b"f" * 4000, b"b''",
     b"1j", b"\xef\xbb\xbf", b"\xe2\x80\xae"]
)  # fmt: skip


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value inside of a JSON value stands."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here] * bool(here) + [place for key, item in inside for place in places(item, (*here, key))]


def spoil(draw: st.DrawFn, document: Any) -> Any:
    """Change a copy of a JSON value in up to three places."""
    document = deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        everywhere = places(document)
        if not everywhere:
            return draw(VALUES)
        *way, last = draw(st.sampled_from(everywhere))
        owner = document
        for key in way:
            owner = owner[key]
        match draw(st.sampled_from(("replace", "drop", "add", "again", "elsewhere"))):
            case "replace":
                owner[last] = draw(VALUES)
            case "drop":
                del owner[last]
            case "add" if isinstance(owner, dict):
                owner[draw(TEXT | st.integers())] = draw(VALUES)
            case "again" if isinstance(owner, list):
                owner.insert(last, deepcopy(owner[last]))
            case "elsewhere":
                source = document
                for key in draw(st.sampled_from(everywhere)):
                    with suppress(KeyError, IndexError, TypeError):  # what was changed meanwhile
                        source = source[key]
                owner[last] = deepcopy(source)
    return document


def spoil_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Cut, double, swap and add bytes, in up to three places."""
    for _ in range(draw(st.sampled_from((*[0] * 9, 1, 2, 3)))):
        one, two = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        match draw(st.sampled_from(("cut", "end", "double", "swap", "noise"))):
            case "cut":
                data = data[:one] + data[two:]
            case "end":
                data = data[:one]
            case "double":
                data = data[:two] + data[one:]
            case "swap":
                data = data[two:] + data[one:two] + data[:one]
            case "noise":
                data = data[:one] + draw(NOISE) + data[one:]
    return data


def written(draw: st.DrawFn, document: Any) -> bytes:
    """A value as JSON, its text escaped or not, or as the Python literal that some programs print."""
    form = draw(st.sampled_from(("ascii", "utf-8", "literal")))
    with suppress(TypeError, ValueError, RecursionError):  # keys of several kinds, or too deep
        if form != "literal":
            return _encoded(json.dumps(document, ensure_ascii=form == "ascii"))
    text = repr(document).replace(str(2**64 + 1), f"0x{'f' * 4000}")  # more digits than JSON may have, or Python prints
    return _encoded(text)


@st.composite
def files(draw: st.DrawFn, documents: list[list[Any]]) -> bytes:
    """A file of records, spoilt: lines or one list, packed or not; or noise."""
    if draw(st.integers(0, 19)) == 19:
        return b"".join(draw(st.lists(NOISE | TEXT.map(_encoded), max_size=9)))
    rows = [spoil(draw, row) for row in draw(st.sampled_from(documents))]
    match draw(st.sampled_from(("lines", "lines", "lines", "list", "list", "table"))):
        case "lines":
            data = b"".join(written(draw, row) + b"\n" for row in rows)
        case "list":
            data = written(draw, rows[0] if len(rows) == 1 and draw(st.booleans()) else rows)
        case _:
            data = table(rows)
    data = spoil_bytes(draw, data)
    match draw(st.sampled_from((*["as it is"] * 18, "gzip", "xz"))):
        case "gzip":
            data = spoil_bytes(draw, gzip.compress(data))
        case "xz":
            data = spoil_bytes(draw, lzma.compress(data))
    return data


def table(rows: list[Any]) -> bytes:
    """Records as CSV: lists and objects as JSON in their cells."""
    kept = [row for row in rows if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in kept for name in row))
    text = io.StringIO(newline="")
    with suppress(ValueError, RecursionError, csv.Error):
        sheet = csv.writer(text)
        sheet.writerow(names)
        for row in kept:
            cells = [row.get(name, "") for name in names]
            sheet.writerow([json.dumps(cell) if isinstance(cell, (list, dict)) else cell for cell in cells])
    return _encoded(text.getvalue())


# --- valid inputs -----------------------------------------------------------------------------------

SAID = ("I lost my job.", "That sounds hard. What happened?", "They closed the office. I can't sleep.", "I see.")
PERSON = Scenario("a", SAID[0], "fear", "job crisis", 3, facts=("I told nobody.",), voice={"thanks": ("Thanks.",)})


def turns(who: str, what: str, names: tuple[str, str], **more: Any) -> list[dict[str, Any]]:
    """The same conversation under other people's names for things."""
    return [{who: names[place % 2], what: words, **more} for place, words in enumerate(SAID)]


SURVEY = {"seeker": {"initial_emotion_intensity": "4", "final_emotion_intensity": "2", "empathy": "5"}, "supporter": {}}
HEAD = {"emotion_type": "fear", "problem_type": "job crisis", "situation": SAID[0]}
SCENARIOS: list[list[Any]] = [
    [scenario.to_json(dialogue=True) for scenario in bank("test")[:2]],
    [{"situation": SAID[0], "facts": [SAID[2]], "split": "test"}],
    [{**HEAD, "survey_score": SURVEY, "dialog": turns("speaker", "content", ("seeker", "supporter"), annotation={})}],
    [{**HEAD, "dialog": turns("speaker", "text", ("usr", "sys"), strategy="Question")}] * 2,
    [{"text": json.dumps({**HEAD, "dialog": turns("speaker", "text", ("usr", "sys"))})}],
    [{"train": [HEAD], "test": [HEAD]}, {"data": [HEAD]}],
    [{"scene": "Stress", "description": SAID[0], "content": [{"User": SAID[0]}, {"AI Strategy": "Ask", "AI": "Why?"}]}],
    [{"instruction": SAID[0], "input": "", "output": SAID[1], "history": [[SAID[2], SAID[3]]]}],
    [{"base": "Age: 30\nGender: female\nProblem: I lost my job.", "res": "工作学习"}],
    [{"player": "name: A", "scene": "## 当前状态：\n我失业了。\n", "task": "隐藏主题：希望对方倾听"}],
]
OPENAI = turns("role", "content", ("user", "assistant"))
CONVERSATIONS: list[list[Any]] = [
    [{"player": "name: A", "scene": "", "task": "", "emo_point": 40, "history": OPENAI}],
    [{"dialog": turns("role", "content", ("Patient", "Therapist")), "reward": -0.5}] * 2,
    [{"0": [f"ESC-Role：{SAID[0]}", f"AI assistant：{SAID[1]}"], "1": [f"ESC-Role: {SAID[2]}"]}],
    [{0: [f"ESC-Role：{SAID[0]}", f"AI assistant：{SAID[1]}"]}],
    [{"simulations": [{"task_id": 1, "messages": OPENAI, "reward_info": {"reward": 1}}]}],
    [{"messages": [{"role": "user", "content": [{"type": "text", "text": SAID[0]}]}, OPENAI[1]]}],
    [{"conversations": turns("from", "value", ("human", "gpt"))}],
]  # fmt: skip
OPTIONS = (
    "A", "b", "(C)", "**D**", *VOTES, "No, the seeker feels worse", "Yes, the seeker's issue has been solved.",
    "the same",
)  # fmt: skip
JOINTS = (
    "", " ", ". ", "\n", ", ", ": ", " - ", " or ", " and ", " because ", " but ", "?", '"', "not ", "Answer: ",
    "I choose ", "**Final answer:** ", "\\boxed{", "}", '{"answer": "', '"}', "```json\n", "\n```", "<think>",
    "</think>", "Wait, ", "[THINK]", "They feel better", "<|channel|>final<|message|>", "assistantfinal", "analysis",
    "Supporter: ", "<|im_end|>",
)  # fmt: skip
ANSWERS = (
    st.lists(st.sampled_from(OPTIONS) | st.sampled_from(JOINTS) | TEXT, max_size=9).map("".join)
    | st.tuples(st.sampled_from(OPTIONS + JOINTS), st.integers(1, 3000)).map(lambda each: each[0] * each[1])
    | st.dictionaries(st.sampled_from(["answer", "Final_Answer", "role", "content", *DIMENSIONS]) | TEXT, VALUES).map(
        json.dumps
    )
)
PARTS = (
    "builtin", "python", "local", "openai", "anthropic", "gpt-4o", "skilled", ":", "/", "@", "#", "cot", "http://",
    "https://", "127.0.0.1:9", "/v1", "?", "&", "key=", "my_agents", ".", "..", "~", "-", "[::1]", "user:pw", "é", " ",
)  # fmt: skip
MODELS = st.lists(st.sampled_from(PARTS) | TEXT, max_size=8).map("".join)
WORDS = ["max_tokens", "stop", "system", "top_p", "extra_body", ".", "temperature", "api_key", " "]
NAMES = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(".".join) | st.lists(
    st.sampled_from(WORDS) | TEXT, max_size=4
).map("".join)
TYPED = st.tuples(NAMES, VALUES.map(json.dumps) | TEXT | NOISE.map(lambda data: data.decode("utf-8", "replace")))
GIVEN = st.lists(TYPED.map("=".join), max_size=4) | st.dictionaries(
    NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=2), max_size=4
)


# --- parsers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parser:
    """What is fuzzed: examples, and what must hold of each, in a folder to write to."""

    examples: Callable[[Path], st.SearchStrategy[Any]]
    holds: Callable[[Any, Path], object]


def _readers(data: bytes, folder: Path) -> None:
    path = folder / "some file"
    path.write_bytes(data)
    if not (reading := taken(read_file, path)):
        return
    people = reading.scenarios
    assert len({scenario.id for scenario in people}) == len(people)
    assert len(people) + len(reading.skipped) == len(records(path))
    for scenario in ScenarioSet.of("", people):
        text = json.dumps(scenario.to_json(dialogue=True), ensure_ascii=False).encode()
        again = Scenario.from_json(json.loads(text))
        assert (again, again.digest) == (scenario, scenario.digest)
    summarise(reading)
    assert all(one_line(str(skipped)) for skipped in reading.skipped)


@st.composite
def _runs(draw: st.DrawFn, folder: Path) -> dict[str, bytes]:
    """The files of a run, one or two of them spoilt."""
    made = {}
    names = st.sampled_from(("run.json", "scenarios.jsonl", "trajectories.jsonl"))
    for name in draw(st.lists(names, min_size=1, max_size=2)):
        text = (folder / "run" / name).read_text()
        lines = [text] if name == "run.json" else text.splitlines()
        place = draw(st.integers(0, len(lines) - 1))
        rows = [line.encode() for line in lines]
        rows[place] = json.dumps(spoil(draw, json.loads(lines[place]))).encode()
        made[name] = spoil_bytes(draw, b"\n".join(rows) + b"\n")
    return made


def _run(folder: Path) -> Path:
    """A folder in which a run stands, for whoever spoils it."""
    if not (folder / "run").exists():
        evaluate("builtin:skilled", bank("test")[:3], out=folder / "run")
    return folder


def _records(spoilt: dict[str, bytes], folder: Path) -> None:
    shutil.copytree(folder / "run", copy := folder / "copy")
    try:
        for name, data in spoilt.items():
            (copy / name).write_bytes(data)
        if report := taken(read_run, copy):
            json.dumps(report.to_json())
            for held in report.trajectories:
                line = json.loads(record_line("trajectory", held.to_json()))
                assert Trajectory.from_json(line, held.scenario) == held
        path = copy / "trajectories.jsonl"
        rows = taken(lambda: list(read_records(path, "trajectory")))
        if rows is not None:
            write_records(path, "trajectory", rows)
            assert json.dumps(list(read_records(path, "trajectory"))) == json.dumps(rows)
    finally:
        shutil.rmtree(copy)


def _votes(text: str, _: Path) -> None:
    assert parse_vote(text) in (None, *VOTES.values())
    marks = parse_marks(text)
    assert isinstance(marks, str) or set(marks) == set(DIMENSIONS)
    assert strategy_in(text) is None or strategy_in(strategy_in(text) or "")
    dialogue = Dialogue((Message("seeker", SAID[0]), Message("supporter", SAID[1]), Message("seeker", SAID[2])))
    ballot = run(LLMCritic(FakeChatModel([text, "D"])).judge(PERSON, dialogue, votes=4, seed=Seed(1)))
    assert len(ballot.votes) == 4
    assert {*ballot.votes} <= {None, *VOTES.values()}


def _thoughts(text: str, _: Path) -> None:
    roles: tuple[Role, Role] = ("seeker", "supporter")
    for role in roles:
        thought, said = split_thought(text, role)
        assert said in text
        assert split_thought(said, role) == (None, said)
        if thought:
            assert split_thought(f"{think_block(thought)}\nHello.", role) == (thought, "Hello.")
        heard = split_answer(role, text)[1]
        if message := taken(Message, role, heard):
            shown = sealed_transcript(Dialogue((message, Message(roles[role == "seeker"], "Yes."))))
            assert [json.loads(line)["role"] for line in shown.splitlines()] == [role, roles[role == "seeker"]]
            assert json.loads(shown.splitlines()[0])["content"] == heard


def _models(text: str, _: Path) -> None:
    if spec := taken(parse_spec, text):
        assert isinstance(spec, Spec)
        assert spec.name or text == "builtin"
        style = f"#{spec.style}" if spec.style else ""
        url = f"@{spec.url}" if spec.url else ""
        plain = spec.name if spec.kind == "model" else f"{spec.kind}:{spec.name}" if spec.name else spec.kind
        assert parse_spec(f"{plain}{url}{style}") == spec
        if spec.kind in ("builtin", "model"):  # the others would be imported, or loaded
            taken(resolve_agent, text)


def _options(given: Any, _: Path) -> None:
    options = taken(read_options, given) if isinstance(given, list) else given
    if options is not None and (made := taken(Options.of, options, "agent")):
        assert Options.of(made.plain, "agent") == made
        if isinstance(given, dict) or any(name != name.strip() for name in options):
            return
        typed = [f"{name}={json.dumps(value)}" for name, value in options.items()]
        again = taken(read_options, typed)  # None where a name with many dots makes it too deep
        assert again is None or json.dumps(again) == json.dumps(options)


def _importers(example: tuple[bytes, str | None], folder: Path) -> None:
    data, source = example
    path, out = folder / "some file", folder / "import"
    path.write_bytes(data)
    shutil.rmtree(out, ignore_errors=True)
    if report := taken(import_file, path, out, source=source):
        assert report.conversations == len(report.held) > 0
        assert read_import(out) == report
        json.dumps(report.to_json())
        assert all(held.trajectory.dialogue.messages and not held.trajectory.verdicts for held in report.held)


def _submissions(data: bytes, folder: Path) -> None:
    path = folder / "submitted.jsonl"
    path.write_bytes(data)
    if found := taken(verify, path, seed=0):
        assert found.standing in (*STANDINGS, "refused")
        assert (found.standing == "refused") == bool(found.contradictions)
        assert all("\n" not in line for line in found.contradictions)
        json.dumps(found.to_json(), default=str)


@st.composite
def _submitted(draw: st.DrawFn, folder: Path) -> bytes:
    path = folder / "whole.jsonl"
    if not path.exists():
        submit(folder / "run", path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    places = draw(st.sets(st.integers(0, len(lines) - 1), max_size=2))
    rows = [spoil(draw, line) if place in places else line for place, line in enumerate(lines)]
    return spoil_bytes(draw, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def _imported(folder: Path) -> st.SearchStrategy[Any]:
    held = [{**each.to_json(), "scenario": each.scenario.to_json()} for each in read_run(folder / "run").trajectories]
    ours = [json.loads(record_line("trajectory", each)) for each in held]
    return st.tuples(files([*CONVERSATIONS, SCENARIOS[0], ours]), st.sampled_from([*[None] * 30, *SOURCES]))


def _warm(examples: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """The same, once what the first example would wait for is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken(resolve_agent, "anthropic/claude-sonnet-4-5")
    return examples


PARSERS = {
    "readers": Parser(lambda _: files(SCENARIOS), _readers),
    "records": Parser(lambda folder: _runs(_run(folder)), _records),
    "votes": Parser(lambda _: ANSWERS, _votes),
    "thoughts": Parser(lambda _: ANSWERS, _thoughts),
    "models": Parser(lambda _: _warm(MODELS), _models),
    "options": Parser(lambda _: GIVEN, _options),
    "importers": Parser(lambda folder: _imported(_run(folder)), _importers),
    "submissions": Parser(lambda folder: _submitted(_run(folder)), _submissions),
}


def fuzz(parser: Parser, seconds: float) -> tuple[int, BaseException | None]:
    """Examples tried within so many seconds, and what failed, if anything did: the smallest examples of it."""
    tried = 0
    late = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="esc-env-") as made:
        folder = Path(made)

        def holds(example: Any) -> None:
            nonlocal tried
            tried += 1
            with in_time():
                parser.holds(example, folder)

        quiet = settings(
            max_examples=AT_ONCE,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        )
        fuzzed = quiet(given(parser.examples(folder))(holds))
        while time.monotonic() < late:
            try:
                seed(SystemRandom().getrandbits(64))(fuzzed)()
            except Exception as error:
                return tried, error
    return tried, None


def main() -> None:
    """Fuzz those that are named, one after the other."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(PARSERS)}")
    options.add_argument("--minutes", type=float, default=10.0, help="for each")
    asked = options.parse_args()
    if unknown := {*asked.names} - {*PARSERS}:
        options.error(f"no parser {', '.join(sorted(unknown))}; there are {', '.join(PARSERS)}")
    warnings.simplefilter("error")
    for forgiven in (ESCWarning, HypothesisWarning):
        warnings.simplefilter("ignore", forgiven)
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, "utf-8", "backslashreplace", line_buffering=True)
    failed = False
    for name in asked.names or PARSERS:
        begun = time.monotonic()
        tried, error = fuzz(PARSERS[name], asked.minutes * 60)
        failed |= error is not None
        told = "fails" if error else "holds"
        print(f"{name:12} {told} after {tried:,} examples in {time.monotonic() - begun:.0f} s")
        if error:
            traceback.print_exception(error, limit=-4, file=sys.stdout)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()

"""Cassettes: what was asked and answered is kept, and answers again, bit for bit."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_env.errors import BadCompletion, ModelError, ModelUnavailable, RecordError
from esc_env.models.cassette import Cassette
from esc_env.protocols import Completion, Request, Usage
from esc_env.testing import FakeChatModel, check_chat_model

CHAT: Any = [{"role": "system", "content": "You are a seeker."}, {"role": "user", "content": "How are you?"}]


def ask(model: Any, seed: int | None = 1, chat: Any = CHAT, **parameters: Any) -> Completion:
    return asyncio.run(model.complete(Request(chat, seed=seed, **parameters)))


def tape(path: Any, mode: Any, model: Any) -> Cassette:
    return Cassette(path, mode, model.identity, None if mode == "replay" else model)


def counting() -> FakeChatModel:
    """Never says the same twice."""
    model = FakeChatModel(lambda call, choice: f"answer {len(model.calls)}.{choice}", logprobs={"A": -0.25})
    return model


def test_a_recorded_run_replays_bit_for_bit_without_the_model(tmp_path):
    model = counting()
    recorder = tape(tmp_path / "run.db", "record", model)
    asked: list[dict[str, Any]] = [
        {"seed": 1},
        {"seed": 2},
        {"seed": 2, "n": 10, "temperature": 1.1},
        {"seed": 3, "logprobs": 20},
        {"seed": 3, "max_tokens": 5},
        {"seed": 3, "stop": ["\n"]},
        {"seed": 3, "chat": [{"role": "user", "content": "Ça va ? 你还好吗 🙂 \x00 \u2028"}]},
        {"seed": None},
    ]
    heard = [ask(recorder, **each) for each in asked]
    player = tape(tmp_path / "run.db", "replay", model)
    assert [ask(player, **each) for each in reversed(asked)] == heard[::-1]
    assert len(model.calls) == len(asked)
    assert len({each.texts for each in heard}) == len(asked)


def test_every_part_of_a_request_tells_it_from_others(tmp_path):
    model = counting()
    recorder = tape(tmp_path / "run.db", "record", model)
    ask(recorder)
    player = tape(tmp_path / "run.db", "replay", model)
    others: list[dict[str, Any]] = [
        {"seed": 2}, {"n": 2}, {"temperature": 0.1}, {"max_tokens": 9}, {"stop": ["."]}, {"logprobs": 5},
        {"chat": CHAT[:1]}, {"chat": [*CHAT, CHAT[1]]}, {"chat": [{**CHAT[0], "role": "user"}, CHAT[1]]},
    ]  # fmt: skip
    for other in others:
        with pytest.raises(ModelUnavailable, match="does not hold the request"):
            ask(player, **other)
    with pytest.raises(ModelUnavailable, match="does not hold"):
        ask(Cassette(tmp_path / "run.db", "replay", {"provider": "fake", "name": "another"}))
    assert ask(player, temperature=0) == ask(player, temperature=0.0)


def test_a_request_that_is_not_there_is_refused_by_name(tmp_path):
    tape(tmp_path / "run.db", "record", counting())
    player = tape(tmp_path / "run.db", "replay", counting())
    with pytest.raises(ModelUnavailable) as refused:
        ask(player, seed=77)
    for part in ("run.db", "fake/fake", "seed 77", "How are you?", "--cache"):
        assert part in str(refused.value)
    assert isinstance(refused.value, ModelError), "else it would count as the supporter's failure"


@pytest.mark.parametrize("mode", ["record", "cache"])
def test_the_first_answer_to_a_request_is_the_one_that_counts(tmp_path, mode):
    model = counting()
    first = ask(tape(tmp_path / "run.db", mode, model))
    again = ask(tape(tmp_path / "run.db", mode, counting()))
    assert again.texts == first.texts
    assert ask(tape(tmp_path / "run.db", "replay", model)) == first


def test_what_comes_from_a_cache_costs_nothing_and_a_record_tells_what_it_cost(tmp_path):
    model = counting()
    first = ask(tape(tmp_path / "run.db", "cache", model))
    assert first.usage == Usage(1, 7, 2, 0.0)
    assert ask(tape(tmp_path / "run.db", "cache", model)).usage == Usage()
    assert ask(tape(tmp_path / "run.db", "record", model)).usage == first.usage
    assert len(model.calls) == 1


def test_equal_requests_at_once_get_one_answer(tmp_path):
    model = FakeChatModel(lambda call, choice: f"answer {len(model.calls)}", latency=0.001)
    recorder = tape(tmp_path / "run.db", "record", model)

    async def at_once():
        return await asyncio.gather(*(recorder.complete(Request(CHAT, seed=1)) for _ in range(5)))

    heard = asyncio.run(at_once())
    assert len({each.texts for each in heard}) == 1
    assert ask(tape(tmp_path / "run.db", "replay", model)).texts == heard[0].texts


def test_a_failed_call_is_not_kept(tmp_path):
    model = FakeChatModel(failures={1: ModelUnavailable("down")})
    recorder = tape(tmp_path / "run.db", "record", model)
    with pytest.raises(ModelUnavailable, match="down"):
        ask(recorder)
    assert ask(recorder).texts == ("I hear you.",)


@pytest.mark.parametrize(
    "error",
    [
        ModelUnavailable("m: HTTP 400: maximum context length is 4096 tokens", provider="p", model="m", status=400),
        ModelUnavailable("m: HTTP 400: withheld by content management policy", provider="p", model="m", status=400),
        BadCompletion("m: the prompt has 70 tokens, and the model's context holds 64"),
    ],
    ids=["too long", "filtered", "too long for a local model"],
)
def test_what_the_text_itself_kept_from_an_answer_is_replayed_and_else_asked_again(tmp_path, error):
    model = FakeChatModel(failures={1: error, 2: error})
    recorder = tape(tmp_path / "run.db", "record", model)
    for cassette in (recorder, tape(tmp_path / "run.db", "replay", model), recorder):
        with pytest.raises(type(error)) as failed:
            ask(cassette)
        assert vars(failed.value) == vars(error)
        assert (str(failed.value), failed.value.obstacle) == (str(error), error.obstacle)
    answer = ask(recorder)
    assert ask(tape(tmp_path / "run.db", "replay", model)) == answer
    assert len(model.calls) == 3


def test_a_request_that_is_not_there_is_never_taken_for_one_that_was_withheld(tmp_path):
    tape(tmp_path / "run.db", "record", FakeChatModel())
    with pytest.raises(ModelUnavailable) as refused:
        ask(tape(tmp_path / "run.db", "replay", FakeChatModel()), chat=[{"role": "user", "content": "content policy?"}])
    assert refused.value.obstacle is None


def test_cassettes_keep_the_contract_of_chat_models(tmp_path):
    check_chat_model(tape(tmp_path / "run.db", "record", FakeChatModel()))
    check_chat_model(tape(tmp_path / "run.db", "replay", FakeChatModel()))


@given(
    st.tuples(st.none() | st.text(), st.none() | st.text()),
    st.none() | st.floats(min_value=0, allow_nan=False, allow_infinity=False),
    st.none() | st.dictionaries(st.text(max_size=3), st.floats(max_value=0, allow_nan=False), max_size=3),
)
def test_any_completion_comes_back_as_it_was(tmp_path_factory, texts, cost, logprobs):
    said = Completion(texts, ("stop", None), Usage(2, 3, 4, cost), "m", None if logprobs is None else (logprobs,) * 2)

    class Model:
        identity = {"provider": "fake", "name": "any"}  # noqa: RUF012

        async def complete(self, request):
            return said

    path = tmp_path_factory.mktemp("any") / "run.db"
    assert ask(tape(path, "record", Model())) == said
    assert ask(tape(path, "replay", Model())) == said


def test_keys_are_never_written(tmp_path, monkeypatch):
    planted = "sk-planted-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", planted)
    recorder = tape(tmp_path / "run.db", "record", FakeChatModel(f"the key {planted} is wrong"))
    ask(recorder, chat=[{"role": "user", "content": f"Use {planted}."}])
    for file in tmp_path.iterdir():
        assert planted.encode() not in file.read_bytes()
    player = tape(tmp_path / "run.db", "replay", FakeChatModel())
    assert planted not in repr(player) + repr(pickle.dumps(player))
    said = ask(player, chat=[{"role": "user", "content": f"Use {planted}."}])
    assert said.texts == ("the key [key] is wrong",)


def test_copies_and_pickles_use_the_same_file(tmp_path):
    recorder = tape(tmp_path / "run.db", "record", FakeChatModel())
    first = ask(recorder)
    assert ask(pickle.loads(pickle.dumps(recorder))) == ask(copy.deepcopy(recorder)) == first


def test_a_record_says_in_plain_json_what_was_asked(tmp_path):
    ask(tape(tmp_path / "run.db", "record", FakeChatModel()), temperature=1.1)
    with sqlite3.connect(tmp_path / "run.db") as database:
        asked = database.execute(
            "SELECT json_extract(request, '$.messages[1].content'), json_extract(request, '$.temperature'), "
            "json_extract(request, '$.model.name'), json_extract(completion, '$.texts[0]') FROM completions"
        ).fetchall()
    database.close()
    assert asked == [("How are you?", 1.1, "fake", "I hear you.")]


SCRIPT = """
import asyncio, os, resource, signal, sys
from esc_env.errors import ModelError
from esc_env import Request
from esc_env.models.cassette import Cassette
from esc_env.testing import FakeChatModel
model = FakeChatModel(lambda call, choice: "x" * 2000 + str(call.seed))
cassette = Cassette(sys.argv[1], "record", model.identity, model)
CHAT = [{"role": "user", "content": "How are you?"}]
def ask(seed): return asyncio.run(cassette.complete(Request(CHAT, seed=seed)))
"""


def _run(script, path):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + script, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


def test_kill_minus_9_loses_nothing_that_was_answered(tmp_path):
    done = _run("for seed in range(20): ask(seed)\nos.kill(os.getpid(), signal.SIGKILL)", tmp_path / "run.db")
    assert done.returncode == -signal.SIGKILL
    player = tape(tmp_path / "run.db", "replay", FakeChatModel())
    chat = [{"role": "user", "content": "How are you?"}]
    heard = [ask(player, seed, chat).texts for seed in range(20)]
    assert heard == [("x" * 2000 + str(seed),) for seed in range(20)]


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits on Windows")
def test_a_full_disk_is_a_model_error_that_says_so_and_what_was_kept_stays(tmp_path):
    script = """
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for seed in range(500):
    try:
        ask(seed)
    except ModelError as error:
        print(seed, error)
        break
"""
    done = _run(script, tmp_path / "run.db")
    failed, _, message = done.stdout.partition(" ")
    assert "run.db: the cassette cannot be used any more" in message, done.stderr
    assert int(failed) > 5
    player = tape(tmp_path / "run.db", "replay", FakeChatModel())
    chat = [{"role": "user", "content": "How are you?"}]
    assert all(ask(player, seed, chat) for seed in range(int(failed)))


def test_a_file_is_whole_by_itself_when_its_process_has_ended(tmp_path):
    done = _run("ask(1)", tmp_path / "run.db")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["run.db"]
    ask(tape(tmp_path / "run.db", "replay", FakeChatModel()), 1, [{"role": "user", "content": "How are you?"}])
    assert [file.name for file in tmp_path.iterdir()] == ["run.db"], "replaying leaves nothing beside it"


def _in_child(cassette, seeds):
    for seed in seeds:
        ask(cassette, seed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_processes_share_a_file(tmp_path):
    recorder = tape(tmp_path / "run.db", "record", FakeChatModel())
    ask(recorder, 0)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_in_child, args=(recorder, range(10 * k, 10 * k + 10))) for k in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert all(ask(tape(tmp_path / "run.db", "replay", FakeChatModel()), seed) for seed in range(30))


def test_files_that_cannot_be_used_are_refused_at_once(tmp_path):
    model = FakeChatModel()
    with pytest.raises(RecordError, match=r"no such cassette to replay. Make one with --record"):
        tape(tmp_path / "nothing.db", "replay", model)
    assert not (tmp_path / "nothing.db").exists()
    (tmp_path / "text.db").write_text("hello " * 500)
    for mode in ("replay", "record", "cache"):
        with pytest.raises(RecordError, match="no cassette"):
            tape(tmp_path / "text.db", mode, model)
    sqlite3.connect(tmp_path / "other.db").close()
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE completions (id INTEGER)")
    other.close()
    with pytest.raises(RecordError, match="no cassette"):
        tape(tmp_path / "other.db", "replay", model)
    with pytest.raises(RecordError, match="cannot be opened"):
        tape(Path(tmp_path / "missing folder" / "run.db"), "record", model)


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ("[" * 10**6, "in each other"),
        ("[]", "must be an object"),
        ('{"texts": [3]}', r"texts\[0\]: must be a string"),
        ('{"failure": {"unusable": true, "message": []}}', r"failure\.message: must be a string"),
        ('{"texts": ["' + "a" * (1 << 25) + '"]}', "more than 16 MiB"),
    ],
)
def test_a_foreign_answer_that_makes_no_sense_is_told_in_one_line(tmp_path, kept, told):
    path = tmp_path / "run.db"
    model = counting()
    ask(tape(path, "record", model))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE completions SET completion = ?", (kept,))
    database.close()
    with pytest.raises(
        ModelUnavailable, match=rf"run\.db: what it holds for the request \w+ is no completion .*{told}"
    ):
        ask(tape(path, "replay", model))

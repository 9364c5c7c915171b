"""`esc eval --view` follows a run that it cannot touch; `esc chat --web` is a conversation in the browser."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

pytest.importorskip("starlette", reason="needs the extra 'web'")

from conftest import bank, eventually, interrupted

from esc_env import Rules, ScenarioSet
from esc_env.builtin.seeker import BuiltinSeeker
from esc_env.cli import main
from esc_env.conversation import Chairs
from esc_env.errors import ModelUnavailable
from esc_env.evaluation import evaluate
from esc_env.evaluation.view import app as served
from esc_env.evaluation.view import talks as held_talks
from esc_env.evaluation.view.app import viewer
from esc_env.evaluation.view.chat import chat
from esc_env.evaluation.view.following import Following
from esc_env.evaluation.view.talks import Talks
from esc_env.protocols import Reply
from esc_env.testing import ScriptedAgent, ScriptedCritic, ScriptedSeeker

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # which of two HTTP clients it is built on
    from starlette.testclient import TestClient

pytestmark = pytest.mark.full

HOSTILE = "<script>alert(1)</script>"
ESC = [sys.executable, "-c", "from esc_env.cli import main; main()"]
AGENT = """
import time
from pathlib import Path

def slow(messages):
    while not Path("go").exists():
        time.sleep(0.02)
    return "That sounds hard. What happened?"
"""


def browser(folder: Path) -> TestClient:
    return TestClient(viewer(folder), base_url="http://127.0.0.1", follow_redirects=False)


def held(out: Path, agent: Any = None, **options: Any) -> Path:
    seeker = options.pop("seeker", ScriptedSeeker([f"I see. {HOSTILE}"]))
    critic = ScriptedCritic([-0.5, 1.0])
    evaluate(
        agent or ScriptedAgent([f"Hm. {HOSTILE}"]), bank(3), seeker=seeker, critic=critic, rules=Rules(max_turns=3),
        out=out, **options,
    )  # fmt: skip
    return out


def events(client: TestClient, address: str) -> list[tuple[str, Any]]:
    blocks = (block.split("\n") for block in client.get(address).text.strip().split("\n\n"))
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]


# --- a run that is followed -----------------------------------------------------------------------


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A run that waits for a file `go`, the address where it is shown, and the viewer's process."""
    (tmp_path / "slow_agent.py").write_text(AGENT)
    command = [*ESC, "eval", "-a", "python:slow_agent:slow", "--limit", "3", "--out", "one", "--view"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "BROWSER": "true"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    address = process.stderr.readline().split()[-1]
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    yield process, address, int(child)
    process.kill()
    process.communicate()


def gone(process: int) -> bool:
    """Whether a process has ended, within a minute."""
    eventually(lambda: not Path(f"/proc/{process}").exists() or ") Z" in Path(f"/proc/{process}/stat").read_text())
    return True


linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")


@linux
def test_a_run_whose_viewer_is_killed_is_complete_and_byte_for_byte_the_run_without_one(
    followed: tuple[subprocess.Popen[str], str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, address, child = followed
    eventually((tmp_path / "one" / "run.json").exists)
    with urlopen(address, timeout=60) as page:  # follows to the page of the run that is made
        assert page.url.endswith("/run/one/")
    os.kill(child, signal.SIGKILL)
    (tmp_path / "go").touch()
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "report.html" in out
    monkeypatch.chdir(tmp_path)
    main_ends(["eval", "-a", "python:slow_agent:slow", "--limit", "3", "--out", "two"])
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one.keys() - {"timing.jsonl", ".place", ".lock"}:
        assert one[name] == two[name], name


def main_ends(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None)


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_a_run_ends_its_viewer_does_too(
    followed: tuple[subprocess.Popen[str], str, int], number: signal.Signals, tmp_path: Path
) -> None:
    process, address, child = followed
    eventually((tmp_path / "one" / "run.json").exists)
    with urlopen(f"{address.removesuffix('now/')}run/one/events", timeout=60) as stream:
        assert stream.readline() == b"event: begin\n"
        if number is signal.SIGINT:
            assert "To go on, type: " in interrupted(process)
            assert process.returncode == 130
        else:
            process.kill()
        assert gone(child)


def test_without_its_packages_the_extra_is_named_before_anything_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit):
        main(["eval", "--out", str(tmp_path / "one"), "--view"])
    assert "pip install 'esc-env[web]'" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


def test_the_run_that_is_made_is_the_one_begun_last_since_the_viewer_is(tmp_path: Path) -> None:
    held(tmp_path / "old")
    asking = browser(tmp_path)
    page = asking.get("/now/")
    assert 'data-grows="/now/events"' in page.text
    held(tmp_path / "new")
    assert asking.get("/now/").headers["location"] == "/run/new/"
    assert events(asking, "/now/events") == [("grown", {})]
    held(tmp_path / "old")  # goes on, if only to see that it is complete
    assert asking.get("/now/").headers["location"] == "/run/old/"


def test_a_list_says_when_there_is_more(tmp_path: Path) -> None:
    held(tmp_path / "one")
    asking = browser(tmp_path)
    stream = asking.get("/").text.partition('data-grows="')[2].partition('"')[0]
    held(tmp_path / "two")
    assert events(asking, stream) == [("grown", {})]


def test_each_conversation_that_ended_can_be_read_and_says_what_was_written_as_text(tmp_path: Path) -> None:
    asking = browser(held(tmp_path / "one"))
    ended = [told["number"] for kind, told in events(asking, "/run/one/events") if kind == "conversation"]
    assert ended == [0, 1, 2]
    assert 'data-conversation="/run/one/conversation/"' in asking.get("/run/one/").text
    for number in ended:
        page = asking.get(f"/run/one/conversation/{number}").text
        assert f"person-{number}" in page
        assert HOSTILE not in page
        assert page.count("alert(1)") == 4
    for other in ("3", "99999999999999999999", "-1", "x", "0/%2e%2e/1"):
        assert asking.get(f"/run/one/conversation/{other}", follow_redirects=True).status_code == 404


def test_failures_of_one_kind_are_told_once_with_how_many_and_stay_text(tmp_path: Path) -> None:
    def broken(messages: Any) -> str:
        raise OSError(f"no route {HOSTILE}\n" + "long " * 200)

    out = held(tmp_path / "one", broken)
    told = Following(out)
    told.read()
    ((role, message, count),) = told.progress()["failures"]
    assert (role, count) == ("supporter", 3)
    assert len(message) == 400
    assert "\n" not in message


def test_a_run_that_begins_anew_is_followed_anew(tmp_path: Path) -> None:
    out = held(tmp_path / "one")
    following = Following(out)
    assert len(following.read()) == 3
    whole = (out / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    (out / "new").write_bytes(whole[2])
    (out / "new").replace(out / "trajectories.jsonl")
    assert following.read() == []
    assert following.progress()["done"] == 1
    assert following.conversation(0) is None
    with (out / "trajectories.jsonl").open("ab") as file:
        file.write(whole[0])
    assert [ended.number for ended in following.read()] == [0]
    trajectory = following.conversation(0)
    assert trajectory is not None
    assert trajectory.scenario.id == "person-0"


def test_a_long_run_tells_how_far_it_is_before_it_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "PART", 2)
    monkeypatch.setattr(served, "SHOWN", 2)
    told = events(browser(held(tmp_path / "one").parent), "/run/one/events")
    assert [kind for kind, _ in told] == ["begin", "progress", "progress", *["conversation"] * 2, "end"]
    assert [data["done"] for kind, data in told if kind == "progress"] == [2, 3]


def test_a_page_that_is_open_follows_the_run_that_is_begun_anew_in_the_same_folder(tmp_path: Path) -> None:
    out = held(tmp_path / "one")
    (out / "report.json").unlink()
    whole = (out / "trajectories.jsonl").read_bytes()
    (out / "trajectories.jsonl").write_bytes(whole.splitlines(keepends=True)[0])
    looks = 0

    def stopping() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            held(out, ScriptedAgent(["Oh."]), fresh=True)
        return looks == 3

    asking = TestClient(viewer(tmp_path, stopping=stopping), base_url="http://127.0.0.1")
    told = events(asking, "/run/one/events")
    kinds = [kind for kind, _ in told]
    assert kinds == ["begin", "progress", "conversation", "begin", "progress", *["conversation"] * 3, "end"]
    assert [data["done"] for kind, data in told if kind == "progress"] == [1, 3]


# --- a conversation in the browser ----------------------------------------------------------------


class Window:
    """One browser: its own cookies, plain forms, no script."""

    def __init__(self, talks: Talks, stopping: Callable[[], bool] = lambda: False) -> None:
        app = chat(talks, "Call somebody.", lambda talk: f"--seed {talk.seed}", stopping)
        self.client = TestClient(app, base_url="http://127.0.0.1")
        self.html = self.client.get("/").text

    def send(self, address: str, origin: str = "http://127.0.0.1", **fields: str) -> int:
        answer = self.client.post(address, data={**self.hidden(), **fields}, headers={"origin": origin})
        self.html = answer.text
        return answer.status_code

    def hidden(self) -> dict[str, str]:
        return dict(re.findall(r'type="hidden" name="(\w+)" value="(\w+)"', self.html))

    def begin(self, **fields: str) -> int:
        fields = {"emotion": "", "seed": "1", **fields}
        return self.send("/begin", **{"token": self.hidden()["token"], **fields})

    @property
    def said(self) -> list[str]:
        bubbles = re.findall(r'<div class="said \w+"><b>.*?</b>(.*?)</div>', self.html, re.S)
        return [unescape(bubble.strip()) for bubble in bubbles]


def talks(seeker: Any = None, scores: Sequence[float] = (-0.5, 0.3, 1.0), people: Any = None, **options: Any) -> Talks:
    critic = ScriptedCritic(list(scores))
    return Talks(people or bank(3), Chairs(seeker or ScriptedSeeker(["I see."]), critic, Rules(max_turns=4)), **options)


def test_a_conversation_is_held_with_plain_forms_to_its_end() -> None:
    window = Window(talks())
    assert "Call somebody." in window.html
    assert window.begin() == 200
    assert len(window.said) == 1
    for turn in (1, 2, 3):
        assert f"turn {turn} of 4" in window.html
        assert window.send("/say", said=f"What happened, {turn}?") == 200
    assert window.said[1:] == [word for turn in (1, 2, 3) for word in (f"What happened, {turn}?", "I see.")]
    assert "Solved after 3 turns." in window.html
    assert "The conversation has ended." in window.html
    assert "--seed 1" in window.html
    assert 'action="/say"' not in window.html
    assert window.begin(seed="2") == 200
    assert len(window.said) == 1


def test_a_conversation_that_is_not_solved_says_so() -> None:
    window = Window(talks(scores=[-1.0]))
    window.begin()
    for _ in range(4):
        window.send("/say", said="Hm.")
    assert "Not solved after 4 turns." in window.html


def test_verdicts_and_hidden_state_are_on_the_page_only_behind_their_switches() -> None:
    window = Window(talks(BuiltinSeeker()))
    window.begin()
    window.send("/say", said="That sounds hard. What happened?")
    assert "critic <b>" not in window.html
    assert "distress" not in window.html
    assert window.send("/show", switch="critic") == 200
    assert "turn 1, critic <b>−0.50</b>" in window.html
    assert "distress" not in window.html
    window.send("/show", switch="state")
    now, _, turns = window.html.partition("<dt>distress</dt>")[2].partition("<tbody>")
    assert "<dt>facts told</dt>" in now
    assert turns.partition("</tbody>")[0].count("<tr>") == 2
    window.send("/show", switch="critic")
    window.send("/show", switch="state")
    assert "critic <b>" not in window.html
    assert "distress" not in window.html
    assert Window(talks()).send("/show", switch="other") == 200  # there is no conversation yet
    assert window.send("/show", switch="other") == 400


def test_a_seeker_without_hidden_state_is_said_to_have_none() -> None:
    window = Window(talks(revealing=True))
    window.begin()
    assert "has no hidden state to show" in window.html


def test_two_sessions_do_not_mix_and_neither_takes_the_forms_of_the_other() -> None:
    shared = talks()
    one, other = Window(shared), Window(shared)
    one.begin()
    other.begin(seed="5")
    one.send("/say", said="only here")
    other.send("/say", said="only there")
    assert "only there" not in one.html
    assert "only here" not in other.html
    assert other.send("/say", **{**one.hidden(), "said": "smuggled"}) == 403
    assert "smuggled" not in one.client.get("/").text
    assert "smuggled" not in other.client.get("/").text


def test_no_form_of_another_page_or_without_its_token_is_taken() -> None:
    window = Window(talks())
    window.begin()
    before = window.client.get("/").text
    for address, fields in {
        "/begin": {"seed": "7"},
        "/say": {"said": "smuggled"},
        "/show": {"switch": "critic"},
    }.items():
        for origin in ("http://evil.example", "null", "http://127.0.0.1:81", "https://127.0.0.1.evil.example"):
            window.html = before
            assert window.send(address, origin, **fields) == 403
        window.html = before
        assert window.send(address, token="", **fields) == 403
        window.html = ""
        assert window.send(address, **fields) == 403
        stranger = TestClient(window.client.app, base_url="http://127.0.0.1")
        sent = stranger.post(
            address, data={"token": sha256(b"form ").hexdigest(), **fields}, headers={"origin": "http://127.0.0.1"}
        )
        assert sent.status_code == 403
    assert window.client.get("/").text == before


@pytest.mark.parametrize("host", ["evil.example", "192.168.0.7:8767", "127.0.0.1.evil.example", "0.0.0.0"])
def test_it_answers_by_the_names_of_this_machine_alone(host: str) -> None:
    assert Window(talks()).client.get("/", headers={"host": host}).status_code == 400


def test_the_cookie_is_for_this_server_and_no_script_and_a_page_may_only_ask_here() -> None:
    answer = TestClient(chat(talks(), "", lambda _: "", lambda: False), base_url="http://localhost").get("/")
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    policy = answer.text.partition('http-equiv="Content-Security-Policy" content="')[2].partition('">')[0]
    assert "default-src" in policy
    assert "unsafe" not in policy
    assert "form-action &#39;self&#39;" in policy
    assert answer.headers["x-frame-options"] == "DENY"


def test_a_link_from_elsewhere_takes_no_conversation_away() -> None:
    window = Window(talks())
    window.begin()
    cookies = dict(window.client.cookies)
    window.client.cookies.clear()  # which is what a browser sends with such a link
    answer = window.client.get("/", headers={"sec-fetch-site": "cross-site"})
    assert "set-cookie" not in answer.headers
    assert '<a class="act" href="/">' in answer.text
    window.client.cookies.update(cookies)
    assert "turn 1 of 4" in window.client.get("/").text


def test_a_cookie_that_is_none_of_ours_is_not_taken_up() -> None:
    window = Window(talks())
    window.client.cookies.clear()
    answer = window.client.get("/", headers={"cookie": "esc-chat-80=short"})
    assert "short" not in answer.headers["set-cookie"]


def test_what_a_seeker_or_a_scenario_says_gains_no_tag() -> None:
    people = [
        replace(person, emotion=f"{HOSTILE} a", situation=f"I am here. {HOSTILE}", id=f"{HOSTILE} b")
        for person in bank(1)
    ]
    window = Window(talks(ScriptedSeeker([f"{HOSTILE}\x1b\u202e"]), people=ScenarioSet.of("", people), revealing=True))
    window.begin(emotion=f"{HOSTILE} a")
    window.send("/say", said=f"{HOSTILE} c")
    assert HOSTILE not in window.html
    assert window.html.count("alert(1)") >= 4
    assert "\x1b" not in window.html
    assert "\u202e" not in window.html


class Failing:
    """A seeker whose model is away at first."""

    def __init__(self) -> None:
        self.identity = {"name": "failing"}
        self.away = True

    async def reply(self, scenario: Any, dialogue: Any, *, seed: Any) -> Reply:
        if self.away:
            raise ModelUnavailable("no answer from the server")
        return Reply("Here again.")


def test_a_call_that_fails_is_told_and_the_same_words_can_be_sent_again() -> None:
    seeker = Failing()
    window = Window(talks(seeker))
    window.begin()
    window.send("/say", said="How are you? </textarea>")
    assert "no answer from the server" in window.html
    assert ">How are you? &lt;/textarea&gt;</textarea>" in window.html
    assert "turn 1 of 4" in window.html
    seeker.away = False
    window.send("/say", said="How are you?")
    assert "no answer" not in window.html
    assert window.said[1:] == ["How are you?", "Here again."]
    assert "turn 2 of 4" in window.html


@pytest.mark.parametrize(
    ("said", "told"), [("", "say something first"), (" \n", "say something first"), ("x" * 9000, "8,000")]
)
def test_words_that_cannot_be_said_are_told(said: str, told: str) -> None:
    window = Window(talks())
    window.begin()
    assert window.send("/say", said=said) == 200
    assert told in window.html or told.replace(",", "") in window.html
    assert "turn 1 of 4" in window.html


def test_what_is_sent_twice_is_said_once() -> None:
    shared = talks()

    async def both() -> Any:
        _, talk = shared.open()
        await shared.begin(talk, "", 1)
        await asyncio.gather(*(shared.say(talk, "Hm.", 1) for _ in range(3)))
        return talk.episode

    assert asyncio.run(both()).turn == 1


def test_one_meets_whom_one_asks_for() -> None:
    people = [
        replace(person, emotion=emotion) for person, emotion in zip(bank(3), ("fear", "shame", "shame"), strict=True)
    ]
    window = Window(talks(people=ScenarioSet.of("", people)))
    window.begin(emotion="fear")
    assert "person 0" in window.html
    seen = set()
    for seed in range(12):
        window.begin(emotion="shame", seed=str(seed))
        seen.add(window.said[0])
        again = window.said[0]
        window.begin(emotion="shame", seed=str(seed))
        assert window.said[0] == again
    assert len(seen) == 2
    for wrong in ({"emotion": "joy"}, {"seed": "x"}, {"seed": "1" * 99}, {"seed": "-1"}):
        window.client.cookies.clear()
        window.html = window.client.get("/").text
        assert window.begin(**wrong) == 400


def test_sessions_are_bounded_and_what_is_dropped_is_kept_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_talks, "MOST", 2)
    kept: list[int] = []
    shared = talks(keep=lambda _, dialogue: kept.append(len(dialogue)))
    first = Window(shared)
    first.begin()
    first.send("/say", said="Hm.")
    for _ in range(5):
        Window(shared)  # who only looks takes nobody's place
    first.html = first.client.get("/").text
    assert len(first.said) == 3
    for _ in range(2):
        Window(shared).begin()
    assert kept == [3]
    assert first.send("/say", said="Hm.") == 410
    assert "no longer here" in first.html
    assert first.begin() == 200
    monkeypatch.setattr(held_talks, "AGE", -1)
    Window(shared).begin()
    assert first.send("/say", said="Hm.", turn="1") == 410


def test_each_conversation_is_kept_once_when_it_ends_or_is_left() -> None:
    kept: list[int] = []
    shared = talks(keep=lambda _, dialogue: kept.append(len(dialogue)))
    window = Window(shared)
    window.begin()
    window.begin()
    assert kept == []
    for _ in range(3):
        window.send("/say", said="Hm.")
    assert kept == [7]
    window.begin()
    window.send("/say", said="Hm.")
    shared.close()
    shared.close()
    assert kept == [7, 3]


WAITING = """
import asyncio

class Seeker:
    identity = {"name": "waiting"}

    async def reply(self, scenario, dialogue, *, seed):
        from esc_env.protocols import Reply

        if dialogue.turns < 2:
            return Reply("Yes.")
        print("asked", flush=True)
        await asyncio.Event().wait()

seeker = Seeker()
"""


def test_ctrl_c_ends_it_while_a_seeker_is_asked_and_what_was_said_is_kept(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [*ESC, "chat", "--web", "--port", "0", "--seeker", "python:waiting:seeker", "--save", "talks.jsonl"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2].rstrip("/")
        window = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

        def send(place: str, **fields: str) -> str:
            with window.open(f"{address}/", timeout=60) as page:
                fields = dict(re.findall(r'type="hidden" name="(\w+)" value="(\w+)"', page.read().decode())) | fields
            sent = urllib.request.Request(f"{address}{place}", urlencode(fields).encode(), {"origin": address})
            with suppress(urllib.error.HTTPError), window.open(sent, timeout=60) as page:
                return str(page.read().decode())
            return ""

        send("/begin", seed="1")
        assert "turn 2 of 8" in send("/say", said="Hm.")
        asking = threading.Thread(target=send, args=("/say",), kwargs={"said": "And?"})
        asking.start()
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
        asking.join(60)
    finally:
        process.kill()
        process.communicate()
    (line,) = (tmp_path / "talks.jsonl").read_text().splitlines()
    assert [message["content"] for message in json.loads(line)["dialogue"]][1:] == ["Hm.", "Yes."]


def test_the_command_refuses_what_it_cannot_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "--web", "--as", "seeker"])
    assert "--web is for talking with a simulated seeker" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit):
        main(["chat", "--web"])
    assert "pip install 'esc-env[web]'" in capsys.readouterr().err


def test_what_is_being_said_is_not_dropped_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_talks, "MOST", 1)
    kept: list[int] = []
    shared = talks(keep=lambda _, dialogue: kept.append(len(dialogue)))

    async def held() -> None:
        _, talk = shared.open()
        await shared.begin(talk, "", 1)
        asked = asyncio.ensure_future(shared.say(talk, "Hm.", 1))
        await asyncio.sleep(0)
        shared.open()
        await asked

    asyncio.run(held())
    shared.close()
    assert kept == [3]


def test_a_conversation_that_cannot_be_kept_holds_up_no_other() -> None:
    kept: list[int] = []

    def keep(_: Any, dialogue: Any) -> None:
        kept.append(len(dialogue))
        if len(kept) == 1:
            raise OSError(28, "No space left on device")

    shared = talks(keep=keep)
    for _ in range(3):
        window = Window(shared)
        window.begin()
        window.send("/say", said="Hm.")
    with pytest.raises(OSError, match="No space left"):
        shared.close()
    assert kept == [3, 3, 3]

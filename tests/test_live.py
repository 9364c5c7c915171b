"""`esc eval --view` follows a run that it cannot touch; `esc chat --web` is a conversation in the browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

pytest.importorskip("starlette", reason="needs the extra 'web'")

from conftest import bank, interrupted

from esc_env import Rules
from esc_env.cli import main
from esc_env.evaluation import evaluate
from esc_env.evaluation.view.app import viewer
from esc_env.evaluation.view.following import Following
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
    until(lambda: not Path(f"/proc/{process}").exists() or ") Z" in Path(f"/proc/{process}/stat").read_text())
    return True


def until(done: Callable[[], bool]) -> None:
    within = time.monotonic() + 60
    while not done():
        assert time.monotonic() < within
        time.sleep(0.02)


linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")


@linux
def test_a_run_whose_viewer_is_killed_is_complete_and_byte_for_byte_the_run_without_one(
    followed: tuple[subprocess.Popen[str], str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, address, child = followed
    until((tmp_path / "one" / "run.json").exists)
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
    until((tmp_path / "one" / "run.json").exists)
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

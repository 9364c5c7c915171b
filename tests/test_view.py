"""`esc view` shows runs as they are, follows one that is being made, and touches none."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest

pytest.importorskip("starlette", reason="needs the extra 'web'")

from conftest import bank, eventually

from esc_env import Rules
from esc_env.cli import main
from esc_env.errors import RecordError
from esc_env.evaluation import Report, evaluate
from esc_env.evaluation.runs.report import interval_text
from esc_env.evaluation.view import app as served
from esc_env.evaluation.view.app import viewer
from esc_env.evaluation.view.following import Following, find
from esc_env.testing import ScriptedAgent, ScriptedCritic, ScriptedSeeker

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # which of two HTTP clients it is built on
    from starlette.testclient import TestClient

pytestmark = pytest.mark.full

HOSTILE = "<script>alert(1)</script>"


def held(out: Path, agent: Any = None, people: int = 3) -> Path:
    agent = agent or ScriptedAgent([f"Hm. {HOSTILE}"])
    critic = ScriptedCritic([-0.5, 1.0])
    evaluate(agent, bank(people), seeker=ScriptedSeeker(["I see."]), critic=critic, rules=Rules(max_turns=3), out=out)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return held(tmp_path_factory.mktemp("made") / "runs" / "one")


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    copytree(made, tmp_path / "runs" / "one")
    return tmp_path / "runs"


def browser(folder: Path, **options: Any) -> TestClient:
    return TestClient(viewer(folder, **options), base_url="http://127.0.0.1", follow_redirects=False)


def events(text: str) -> list[tuple[str, Any]]:
    blocks = (block.split("\n") for block in text.strip().split("\n\n") if block.startswith("event"))
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]


def unfinished(folder: Path, lines: int = 1, torn: bytes = b"") -> list[bytes]:
    """Make a run one of which so many conversations have ended; what stood in the file."""
    path = folder / "trajectories.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:lines]) + torn)
    (folder / "report.json").unlink()
    return whole


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_list_shows_every_run_the_newest_first_with_its_state(runs: Path) -> None:
    copytree(runs / "one", runs / "deep" / "two # ?")
    unfinished(runs / "deep" / "two # ?")
    copytree(runs / "one", runs / "old")
    unfinished(runs / "old")
    for path in (runs / "old").iterdir():
        os.utime(path, (1, 1))
    found = find(runs)
    assert [run.name for run in found][-1] == "old"
    assert {run.name: (run.state, run.done, run.total) for run in found} == {
        "one": ("complete", 3, 3),
        "deep/two # ?": ("being made", None, 3),
        "old": ("incomplete", None, 3),
    }
    page = browser(runs).get("/").text
    assert f'href="/run/{quote("deep/two # ?")}/"' in page
    assert browser(runs).get(f"/run/{quote('deep/two # ?')}/report.html").status_code == 200


def test_a_list_reads_no_conversation(runs: Path) -> None:
    (runs / "one" / "trajectories.jsonl").write_bytes(b"\0 no conversation")
    assert [run.state for run in find(runs)] == ["complete"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", "{"),
        ("run.json", '{"kind": "run", "version": 2, "identity": {}}'),
        ("run.json", '{"kind": "run", "version": 1, "identity": {}}'),
        ("report.json", '{"completed": 1, "complete": true, "success_rate": 7, "interval": null}'),
        ("report.json", '{"completed": 1, "complete": true, "success_rate": 1, "interval": [0]}'),
    ],
)
def test_a_damaged_run_is_listed_with_what_is_wrong_and_hides_no_other(runs: Path, file: str, text: str) -> None:
    copytree(runs / "one", runs / "bad")
    (runs / "bad" / file).write_text(text)
    (bad,) = (run for run in find(runs) if run.trouble)
    assert file in bad.trouble
    page = browser(runs).get("/")
    assert page.status_code == 200
    assert "damaged</span>" in page.text
    assert 'href="/run/one/report.html"' in page.text
    answer = browser(runs).get("/run/bad/report.html")
    assert (answer.status_code, file in answer.text) == (500, True)


def test_folders_of_other_kinds_and_links_are_passed_over(runs: Path, tmp_path: Path) -> None:
    (runs / "collection").mkdir()
    (runs / "collection" / "run.json").write_text('{"kind": "collection", "version": 2, "identity": {}}')
    copytree(runs / "one", tmp_path / "elsewhere")
    (runs / "link").symlink_to(tmp_path / "elsewhere")
    assert [run.name for run in find(runs)] == ["one"]


def test_a_folder_that_is_a_run_is_listed_by_its_own_name(runs: Path) -> None:
    assert browser(runs / "one").get("/run/one/report.html").status_code == 200


def test_a_page_is_of_the_folder_as_it_is_and_rendered_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = unfinished(runs / "one", 1, torn=b'{"kind": "traj')
    times = []

    def pages(report: Report) -> Iterator[tuple[str, str]]:
        times.append(report.completed)
        yield "report.html", f"{report.completed} ended"

    monkeypatch.setattr(served, "run_pages", pages)
    asking = browser(runs)
    assert [asking.get("/run/one/report.html").text for _ in range(2)] == ["1 ended"] * 2
    assert times == [1]
    (runs / "one" / "trajectories.jsonl").write_bytes(b"".join(whole))
    assert asking.get("/run/one/report.html").text == "3 ended"


def test_every_page_of_a_run_is_answered_and_no_other(runs: Path) -> None:
    asking = browser(runs)
    page = asking.get("/run/one/report.html").text
    (link, *_) = re.findall(r'href="(report-\d+\.html)#c1"', page)
    assert asking.get(f"/run/one/{link}").status_code == 200
    for other in ("report-9999.html", "report.json"):
        assert asking.get(f"/run/one/{other}").status_code == 404


def test_what_others_wrote_gains_no_tag_and_a_page_may_ask_only_where_it_came_from(runs: Path) -> None:
    about = runs / "one" / "run.json"
    about.write_text(
        json.dumps(json.loads(about.read_text()) | {"agent": HOSTILE, "scenarios": f"{HOSTILE}\x1b\u202e"})
    )
    asking = browser(runs)
    for place in ("/", "/run/one/", "/run/one/report.html"):
        page = asking.get(place).text
        assert HOSTILE not in page
        assert "alert(1)" in page
        assert "\x1b" not in page
        assert "\u202e" not in page
        assert ("connect-src" in page) == (place != "/run/one/report.html")
    assert 'data-events="/run/one/events"' in asking.get("/run/one/").text


def test_what_no_critic_judged_has_no_score_while_it_is_followed(tmp_path: Path) -> None:
    class Away(ScriptedCritic):
        async def judge(self, *arguments: Any, **options: Any) -> Any:
            raise ConnectionError("away")

    evaluate(ScriptedAgent(["Go on."]), bank(1), seeker=ScriptedSeeker(["No."]), critic=Away([0.0]), out=tmp_path)
    (told,) = Following(tmp_path).read()
    assert (told.completed, told.score) == (False, None)


def test_events_of_a_complete_run_tell_all_and_end(runs: Path) -> None:
    answer = browser(runs).get("/run/one/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.text)
    assert [kind for kind, _ in told] == ["begin", "progress", *["conversation"] * 3, "end"]
    assert told[2][1] == {
        "number": 0, "scenario": "person-0", "trial": 0, "kind": "solved", "outcome": "solved", "turns": 2,
        "score": 1.0,
    }  # fmt: skip
    interval = told[1][1].pop("interval")
    assert told[1][1].pop("success") == ["100.0 %", interval_text(interval)], "as every other page writes it"
    assert interval == pytest.approx([0.438, 1], abs=0.001)
    assert told[1][1] == {
        "done": 3, "total": 3, "solved": 3, "errors": 0, "rate": 1.0, "cost": 0.0, "failures": [],
    }  # fmt: skip


def test_following_leaves_a_torn_line_for_later_and_survives_that_the_file_is_written_anew(runs: Path) -> None:
    whole = unfinished(runs / "one", 1, torn=b"")
    path = runs / "one" / "trajectories.jsonl"
    following = Following(runs / "one")
    assert [ended.scenario for ended in following.read()] == ["person-0"]
    path.write_bytes(whole[0] + whole[1][:40])
    assert following.read() == []
    path.write_bytes(b"".join(whole))
    assert [ended.scenario for ended in following.read()] == ["person-1", "person-2"]
    assert following.complete
    (runs / "one" / "new").write_bytes(b"".join(reversed(whole)))
    (runs / "one" / "new").replace(path)
    assert following.read() == []
    assert following.progress()["done"] == 3


@pytest.mark.parametrize("line", [b"{}\n", b"no json\n", b'{"version": 2, "scenario": "nobody"}\n', b"[]\n"])
def test_a_line_that_is_no_trajectory_is_told_by_its_place(runs: Path, line: bytes) -> None:
    unfinished(runs / "one", 1, torn=line)
    with pytest.raises(RecordError, match=r"trajectories\.jsonl:2: not a trajectory"):
        Following(runs / "one").read()
    assert events(browser(runs).get("/run/one/events").text)[-1][0] == "trouble"


def test_an_error_is_counted_apart_until_its_conversation_has_an_outcome(runs: Path) -> None:
    whole = unfinished(runs / "one", 0)
    data = json.loads(whole[0])
    data |= {"stop_reason": "error", "dialogue": data["dialogue"][:1], "verdicts": [], "failure": {}}
    data["failure"] = {"role": "supporter", "kind": "ModelUnavailable", "message": "gone"}
    path = runs / "one" / "trajectories.jsonl"
    path.write_text(json.dumps(data) + "\n")
    following = Following(runs / "one")
    assert [ended.outcome for ended in following.read()] == ["error, no outcome"]
    assert (following.progress()["errors"], following.progress()["done"]) == (1, 0)
    with path.open("ab") as file:
        file.write(whole[0])
    following.read()
    assert (following.progress()["errors"], following.progress()["done"]) == (0, 1)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_only_get_is_answered(runs: Path, method: str) -> None:
    assert browser(runs).request(method, "/").status_code == 405


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost:80:80", ""])
def test_a_page_elsewhere_that_points_its_name_here_reads_nothing(runs: Path, host: str) -> None:
    assert browser(runs).get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8765", "[::1]:8765"])
def test_the_names_of_this_machine_are_answered(runs: Path, host: str) -> None:
    answer = browser(runs).get("/", headers={"host": host})
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "name", ["..", "../outside", "%2e%2e/outside", "/etc", "nothing", "one/../one", "one/report.json"]
)
def test_no_address_leads_out_of_the_folder(runs: Path, name: str) -> None:
    copytree(runs / "one", runs.parent / "outside")
    for end in ("/", "/report.html", "/events"):
        assert browser(runs).get(f"/run/{name.replace('..', '%2e%2e')}{end}").status_code == 404


def test_elsewhere_than_on_loopback_a_token_is_asked_for_once(runs: Path) -> None:
    asking = browser(runs, token="right")
    assert asking.get("/").status_code == 403
    assert asking.get("/?token=wrong").status_code == 403
    assert asking.get("/", headers={b"cookie": b"esc-view-80=wr\xf6ng"}).status_code == 403
    answer = asking.get("/?token=right")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=lax"} <= set(answer.headers["set-cookie"].split("; "))
    assert asking.get("/run/one/report.html").status_code == 200


def test_looking_changes_nothing_in_the_folder_and_holds_up_no_writer(runs: Path) -> None:
    unfinished(runs / "one", 1, torn=b"{")
    before = contents(runs)
    asking = browser(runs, stopping=iter([False, True]).__next__)
    for place in ("/", "/run/one/", "/run/one/report.html", "/run/one/events"):
        assert asking.get(place).status_code == 200
    assert contents(runs) == before


def test_a_folder_that_is_none_and_a_port_that_is_taken_are_told(tmp_path: Path, capsys: Any) -> None:
    import socket

    for arguments, told in (
        ([str(tmp_path / "none")], "no folder"),
        ([str(tmp_path), "--port", "{}"], "--port 0"),
    ):
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
            main(["view", *(word.format(taken.getsockname()[1]) for word in arguments)])
        assert told in capsys.readouterr().err


def test_without_its_packages_the_extra_is_named(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit):
        main(["view", str(tmp_path)])
    assert "pip install 'esc-env[web]'" in capsys.readouterr().err


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-c", "from esc_env.cli import main; main()", "view", "runs", "--port", "0"]
    env = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    yield process, process.stdout.readline().split()[1]
    process.kill()
    process.communicate()


class Waiting:
    """An agent that replies when it is let."""

    def __init__(self) -> None:
        self.identity = {"name": "waiting"}
        self.let = threading.Semaphore(0)

    async def respond(self, dialogue: Any, *, seed: int) -> str:
        import asyncio

        await asyncio.to_thread(self.let.acquire)
        return "Hm."


def test_a_run_is_followed_as_it_is_made_and_goes_on_when_the_viewer_is_killed(
    server: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, address = server
    agent, out = Waiting(), tmp_path / "runs" / "live"
    running = threading.Thread(target=held, args=(out, agent))
    running.start()
    try:
        eventually((out / "trajectories.jsonl").exists)
        with urlopen(f"{address}run/live/events", timeout=60) as stream:
            kinds: list[str] = []
            agent.let.release(6)
            while kinds.count("conversation") < 2:
                line = stream.readline().decode()
                assert line, kinds
                kinds += [line.removeprefix("event: ").strip()] if line.startswith("event: ") else []
            process.kill()
    finally:
        agent.let.release(100)
        running.join(60)
    assert json.loads((out / "report.json").read_text())["complete"] is True


def test_a_token_is_never_given_to_a_browser_as_an_argument(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["view", str(tmp_path), "--host", "0.0.0.0", "--port", "0", "--open"])
    assert "--open would show the token" in capsys.readouterr().err


def test_who_waits_for_a_page_that_takes_long_is_told_so_and_the_list_answers(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "WAIT", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    def slow(report: Report) -> Iterator[tuple[str, str]]:
        begun.set()
        go_on.wait(60)
        yield "report.html", "slow"

    monkeypatch.setattr(served, "run_pages", slow)
    visitor = browser(runs)
    first = threading.Thread(target=visitor.get, args=("/run/one/report.html",))
    first.start()
    assert begun.wait(60)
    assert visitor.get("/run/one/report.html").status_code == 503
    assert visitor.get("/").status_code == 200
    go_on.set()
    first.join(60)


def test_ctrl_c_ends_the_viewer_at_once_while_a_page_is_open(
    server: tuple[subprocess.Popen[str], str], runs: Path
) -> None:
    process, address = server
    unfinished(runs / "one")
    with urlopen(f"{address}run/one/events", timeout=60) as stream:
        assert stream.readline() == b"event: begin\n"
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (0, "")


def test_a_name_however_long_makes_no_long_list(runs: Path) -> None:
    about = json.loads((runs / "one" / "run.json").read_text())
    (runs / "one" / "run.json").write_text(json.dumps(about | {"agent": "a" * 2_000_000, "scenarios": "b" * 2_000_000}))
    for page in ("/", "/run/one/"):
        assert len(browser(runs).get(page).text) < 50_000


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_elsewhere_may_link_here_and_has_nothing_rendered(runs: Path, site: str) -> None:
    def asked(**headers: str) -> int:
        headers = {f"sec-fetch-{name}": value for name, value in headers.items()}
        return int(browser(runs).get("/run/one/report.html", headers=headers).status_code)

    assert asked(site=site, dest="document", mode="navigate") == 200
    assert asked(site="same-origin", dest="empty", mode="cors") == 200
    assert [asked(site=site, dest=dest) for dest in ("image", "iframe", "script", "empty")] == [403] * 4

"""Training runs have a page: every reward part a curve, what the policy said by step, and no text of anybody runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

pytest.importorskip("matplotlib", reason="needs the extra 'pages'")
pytest.importorskip("pyarrow", reason="needs the extra 'data'")
pytest.importorskip("starlette", reason="needs the extra 'web'")

from esc_env.cli import build_app, main
from esc_env.errors import RecordError
from esc_env.evaluation.commands.beside import beside
from esc_env.evaluation.view import app as served
from esc_env.evaluation.view.app import viewer
from esc_env.evaluation.view.following import find
from esc_env.folder import RunFolder
from esc_env.records import RecordWriter, write_json
from esc_env.training import pages
from esc_env.training.logs import read_log

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # which of two HTTP clients it is built on
    from starlette.testclient import TestClient

arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.full

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
PARTS = ("reply", "format", "<b>kind</b>")


def entry(step: int, **more: float) -> dict[str, float]:
    """Some of what GRPO logs at a step."""
    return {"loss": 0.5 / step, "reward": 0.1 * step, "reward_std": 0.2, "odd": 7.25, "step": step, **more}


def whole(step: int) -> dict[str, float]:
    """What GRPO logs at a step, with parts of a reward."""
    parts = {f"rewards/{part}/{what}": 0.1 * step for part in (*PARTS, "total") for what in ("mean", "spread")}
    lengths = {f"completions/{which}_length": step + 5.0 for which in ("min", "mean", "max")}
    return {**entry(step), "kl": 0.01 * step, "entropy": 2.0, **lengths, **parts}


def lines(folder: Path, *entries: dict[str, float]) -> None:
    with RecordWriter(folder / "log.jsonl", "log") as log:
        for each in entries:
            log.write(each)


def said(folder: Path, step: int, words: str, rows: int = 8, **columns: Any) -> None:
    """What TRL keeps of a step: two groups of four."""
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    place = folder / "checkpoints" / "completions"
    place.mkdir(parents=True, exist_ok=True)
    prompts = [[{"role": "user", "content": f"I cannot sleep {row // 4}. {HOSTILE}"}] for row in range(rows)]
    table = {
        "step": [step] * rows, "prompt": prompts,
        "completion": [[{"role": "assistant", "content": f"{words} {row}"}] for row in range(rows)],
        "total": [0.5 + row for row in range(rows)], "reply": [0.25] * rows, "advantage": [0.0] * rows, **columns,
    }  # fmt: skip
    parquet.write_table(arrow.table(table), place / f"completions_{step:05d}.parquet")


def begun(folder: Path, stage: str = "grpo") -> Path:
    with RunFolder(folder, "stage").claim({"stage": stage, "class": "GRPOStage", "model": HOSTILE}):
        pass
    return folder


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A stage that has trained for three steps and goes on."""
    folder = begun(tmp_path / "runs" / "grpo")
    lines(folder, *map(entry, (1, 2, 3)))
    write_json(folder / "valid.json", {"0": 0.25, "2": 0.5})
    for step in (1, 2, 3):
        said(folder, step, f"What happened? {HOSTILE}")
    return folder


@pytest.fixture(autouse=True)
def _assembled() -> None:
    build_app()


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def charts(page: str) -> list[str]:
    labels = (about.get("aria-label") or "" for tag, about in Tags(page).tags if tag == "svg")
    return [label for label in labels if "by step" in label]


def rows(page: str) -> Iterator[list[str]]:
    for row in re.findall(r"<tr>(.*?)</tr>", page):
        yield [" ".join(Tags(cell).words) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]


def last(page: str, curve: str) -> list[str]:
    """Step and value of the last point of a curve, as the table says."""
    return next(row[1:3] for row in rows(page) if row and row[0] == curve)


def test_every_part_of_the_reward_that_is_logged_has_a_curve_and_its_spread(stage: Path) -> None:
    lines(stage, *map(whole, (1, 2, 3)))
    page = pages.page(stage)
    drawn = charts(page)
    for part in PARTS:
        assert any(label.startswith(f"{part} by step") and "band from 0 to 0.6" in label for label in drawn), part
        assert last(page, part) == ["3", "0.3 ± 0.3"]
    assert last(page, "reward") == ["3", "0.3 ± 0.2"]
    assert last(page, "SR on valid") == ["2", "50.0 %"]
    for name in ("loss", "KL", "entropy", "length, tokens"):
        assert any(label.startswith(f"{name} by step") for label in drawn), name


def test_whatever_else_was_logged_stands_there_with_its_last_value(stage: Path) -> None:
    assert ["odd", "7.25"] in list(rows(pages.page(stage)))


def test_what_the_policy_said_stands_there_by_step_with_what_each_part_gave(stage: Path) -> None:
    words = Tags(pages.page(stage)).words
    assert [text for text in words if text.startswith("Step ")] == ["Step 1", "Step 2", "Step 3"]
    answers = [text for text in words if text.startswith("What happened?")]
    assert len(answers) == 12, "one group of each step"
    assert any("total +0.500, reply +0.250" in text for text in words)


def test_hostile_text_gains_no_tag_no_request_and_no_script(stage: Path) -> None:
    lines(stage, entry(4, **{f"rewards/{HOSTILE}/mean": 1.0, HOSTILE: 2.0}))
    found = Tags(pages.page(stage)).tags
    assert [tag for tag, _ in found].count("script") == 1
    assert not [tag for tag, _ in found if tag in ("img", "iframe", "link", "b>")]
    assert not [name for _, about in found for name in about if name.startswith("on") or name == "style"]


def test_a_stage_that_went_on_from_a_checkpoint_shows_each_step_as_it_was_last(stage: Path) -> None:
    lines(stage, entry(2, loss=9.0))
    page = pages.page(stage)
    assert last(page, "loss, training") == ["2", "9"], "step 3 is lost until it is trained again"
    assert "Step 3" not in Tags(page).words
    lines(stage, entry(3, loss=8.0))
    assert last(pages.page(stage), "loss, training") == ["3", "8"]
    assert [each["step"] for each in read_log(stage)] == [1, 2, 2, 3]


def test_a_run_that_is_being_made_is_shown_as_far_as_it_is(stage: Path) -> None:
    with (stage / "log.jsonl").open("a") as file:
        file.write('{"kind": "log", "ver')  # just being written
    (stage / "checkpoints" / "completions" / "completions_00003.parquet").write_bytes(b"PAR1")
    page = pages.page(stage)
    assert last(page, "reward") == ["3", "0.3 ± 0.2"]
    assert "being made" in Tags(page).words
    assert "Step 2" in Tags(page).words
    assert "Step 3" not in Tags(page).words
    assert "Nothing is logged yet." in Tags(pages.page(begun(stage.parent / "fresh"))).words


def test_a_finished_stage_is_read_from_what_its_trainer_kept(stage: Path) -> None:
    write_json(stage / "log.json", [entry(1), entry(2)])
    RunFolder(stage, "stage").note(finished=True)
    page = pages.page(stage)
    assert last(page, "reward")[0] == "2"
    assert "complete" in Tags(page).words


def test_numbers_that_are_none_are_left_out(stage: Path) -> None:
    lines(stage, entry(4, loss=float("nan"), reward=float("inf"), kl=10.0**300, odd=8))
    page = pages.page(stage)
    assert [last(page, name)[0] for name in ("loss, training", "reward")] == ["3"] * 2
    assert not any(label.startswith("KL") for label in charts(page))
    assert ["odd", "8"] in list(rows(page))


def test_a_page_stays_small_however_much_was_logged_and_said(tmp_path: Path) -> None:
    folder = begun(tmp_path / "long")
    write_json(folder / "log.json", [entry(step, **{f"{step}": 1.0}) for step in range(1, 5001)])
    for step in range(1, 40):
        said(folder, step, "word " * 20_000)
    page = pages.page(folder)
    assert len(page.encode()) < 2_000_000
    steps = [text for text in Tags(page).words if text.startswith("Step ")]
    assert len(steps) == pages.STEPS
    assert (steps[0], steps[-1]) == ("Step 1", "Step 39")
    assert last(page, "reward")[0] == "5,000"


def test_a_pipeline_shows_its_stages_and_what_came_of_it(stage: Path, tmp_path: Path) -> None:
    home = tmp_path / "whole"
    setting = {"model": "tiny", "scenarios": "builtin:train", "test": "builtin:test"}
    with RunFolder(home, "pipeline").claim({"setting": setting, "skip": ["rm"]}):
        pass
    lines(begun(home / "sft", "sft"), {"loss": 2.0, "step": 5}, {"loss": 1.0, "eval_loss": 1.5, "step": 10})
    with RecordWriter(home / "timing.jsonl", "timing") as writer:
        writer.write({"stage": "sft", "seconds": 61.2})
    page = pages.page(home)
    assert [row[:3] for row in rows(page) if row][:4] == [
        ["sft", "being made", "61 s"], ["collect", "not begun", "–"], ["grpo", "not begun", "–"],
        ["evaluate", "not begun", "–"],
    ]  # fmt: skip
    assert any("training from 2 at step 5 to 1 at step 10; held out 1.5 at step 10" in label for label in charts(page))
    run = {"success_rate": 0.5, "interval": [0.4, 0.6], "average_turns": 6.5}
    gain = {"difference": 0.25, "interval": [0.125, 0.375], "scenarios": 9}
    write_json(home / "report.json", {"evaluation": {"start": run, "grpo": run}, "gain": gain, "gain_over": "start"})
    assert "grpo − start: +25.0 points SR, 95 % interval +12.5 to +37.5" in pages.page(home)
    assert pages.state(home) == "complete"


@pytest.mark.parametrize(
    ("name", "text"),
    [("log.jsonl", "[]\n"), ("log.jsonl", '{"kind": "log", "version": 2}\n'), ("valid.json", "{"), ("log.json", "3")],
)
def test_a_damaged_file_is_named(stage: Path, name: str, text: str) -> None:
    (stage / name).write_text(text)
    with pytest.raises(RecordError, match=name):
        pages.page(stage)


def test_report_writes_the_page_into_the_folder_or_where_it_is_told(stage: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(stage), "--out", str(tmp_path / "site")])
    assert not ended.value.code
    assert capsys.readouterr().out.strip() == str(tmp_path / "site" / "report.html")
    assert not (stage / "report.html").exists()
    with pytest.raises(SystemExit):
        main(["report", str(stage)])
    assert (stage / "report.html").read_text() == (tmp_path / "site" / "report.html").read_text()


# --- served ---------------------------------------------------------------------------------------


def browser(folder: Path, **options: Any) -> TestClient:
    return TestClient(viewer(folder, **options), base_url="http://127.0.0.1", follow_redirects=False)


def test_the_viewer_lists_training_runs_and_shows_each_as_it_is_now(stage: Path) -> None:
    assert [(run.name, run.kind, run.state) for run in find(stage.parent)] == [("grpo", "stage", "being made")]
    client = browser(stage.parent)
    assert 'href="/run/grpo/"' in client.get("/").text
    assert last(client.get("/run/grpo/").text, "reward")[0] == "3"
    lines(stage, entry(4))
    assert last(client.get("/run/grpo/report.html").text, "reward")[0] == "4"


def test_a_page_hears_that_there_is_more(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "RELOAD", 0.01)
    client = browser(stage.parent)
    page = client.get("/run/grpo/").text
    address = next(about["data-grows"] for _, about in Tags(page).tags if "data-grows" in about)
    assert address
    lines(stage, entry(4))
    assert "event: grown" in client.get(address).text
    assert "connect-src 'self'" in page.replace("&#39;", "'")
    assert "connect-src" not in pages.page(stage)


def test_of_a_pipeline_that_is_being_made_the_whole_is_followed(tmp_path: Path) -> None:
    home = tmp_path / "whole"
    client = browser(home)
    with RunFolder(home, "pipeline").claim({}):
        pass
    lines(begun(home / "sft", "sft"), entry(1))
    assert client.get("/now/").headers["location"] == "/run/whole/"
    assert client.get("/run/whole/").status_code == 200
    assert client.get("/run/sft/").status_code == 200, "a stage has a page of its own too"


def test_looking_changes_nothing(stage: Path) -> None:
    def kept() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(stage.rglob("*")) if path.is_file()}

    before = kept()
    browser(stage.parent).get("/run/grpo/")
    assert kept() == before


def test_no_link_is_followed(stage: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps([entry(77)]))
    (stage / "log.json").symlink_to(secret)
    with pytest.raises(RecordError, match="is a link"):
        pages.page(stage)


def test_what_is_trained_goes_on_when_its_viewer_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("BROWSER", "true")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    viewers: list[Any] = []

    class Viewer(subprocess.Popen[str]):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            viewers.append(self)

    monkeypatch.setattr(subprocess, "Popen", Viewer)
    folder = tmp_path / "runs" / "sft"
    with beside(folder):
        address = next(word for word in capsys.readouterr().err.split() if word.startswith("http"))
        lines(begun(folder, "sft"), entry(1))
        with urlopen(address, timeout=60) as page:
            assert last(page.read().decode(), "loss, training") == ["1", "0.5"]
        viewers[0].kill()
        viewers[0].wait(60)
        lines(folder, entry(2))
    assert [each["step"] for each in read_log(folder)] == [1, 2]


def test_no_link_to_another_folder_is_followed(stage: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    said(elsewhere, 1, "a secret of somebody")
    place = stage / "checkpoints"
    place.rename(tmp_path / "own")
    place.symlink_to(elsewhere / "checkpoints")
    assert "secret" not in pages.page(stage)
    (elsewhere / "new.jsonl").write_text("")
    home = tmp_path / "whole"
    with RunFolder(home, "pipeline").claim({}):
        pass
    (home / "eval").symlink_to(elsewhere)
    assert ["evaluate", "incomplete", "–"] in list(rows(pages.page(home)))


def test_a_checkpoint_that_is_removed_meanwhile_damages_nothing(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (stage / "checkpoints" / f"checkpoint-{number}").mkdir()
    listed = os.scandir

    def gone(place: Any = ".") -> Any:
        if "checkpoint-" in os.fspath(place):
            raise FileNotFoundError(2, "No such file or directory", place)
        return listed(place)

    monkeypatch.setattr(os, "scandir", gone)
    assert pages.state(stage) == "being made"


def test_a_gain_without_an_interval_is_told(tmp_path: Path) -> None:
    home = tmp_path / "whole"
    with RunFolder(home, "pipeline").claim({}):
        pass
    write_json(home / "report.json", {"evaluation": {"grpo": {}}, "gain": {"difference": 0.25}, "gain_over": "start"})
    assert "+25.0 points SR, paired" in pages.page(home)

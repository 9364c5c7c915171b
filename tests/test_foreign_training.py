"""Training's files that come from elsewhere: read as what they are, or refused by file and field."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("trl", reason="needs the extra 'train'")

from esc_env.errors import ESCError, RecordError, SpecError
from esc_env.folder import RunFolder, take_over
from esc_env.models.weights import fingerprint, places
from esc_env.training.checkpoints import resume_from
from esc_env.training.config import PipelineConfig, RewardModelStage, SFTStage
from esc_env.training.data import read_samples
from esc_env.training.logs import read_log, read_valid
from esc_env.training.outcome import outcome, page
from esc_env.training.reward_model import Bin, RewardModelReport, train_reward_model
from esc_env.training.stage import base_of, finish, open_stage

pytestmark = pytest.mark.full

REPORT = RewardModelReport(
    "classification", 8, 4, 0.5, 0.5, 0.9, None, 0, 1.0, 0.5, 0.1, (Bin(0.0, 0.1, 0.05, 0.0, 4),), None, 0.0, 0
)
LOG = [{"step": 1, "reward": 0.5, "loss": float("nan")}, {"step": 2, "valid/success_rate": 0.25}]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([-1, 10**400, "step"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
BOMBS = [b"[" * 10**6, b"{" + b'"a":{' * 100 + b"}" * 101, b"\xff{}", b"", b"null", b"[]", b'{"step": 1}']


def put(file: Path, data: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())


def pipeline(folder: Path) -> dict[str, Any]:
    return outcome(PipelineConfig(), folder)


def finished(folder: Path) -> RewardModelReport:
    return train_reward_model(RewardModelStage(), folder, [])


def base(folder: Path) -> Any:
    return base_of(str(folder)), places(str(folder)) if (folder / "weights").exists() else None


READERS: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "report.json": (finished, asdict(REPORT)),
    "log.json": (read_log, LOG),
    "valid.json": (read_valid, {"0": 0.25, "2": 0.5}),
    "adapter_config.json": (base, {"base_model_name_or_path": ".", "r": 8}),
    "config.json": (lambda folder: fingerprint(folder), {"model_type": "llama", "layers": [1, {"a": 2}]}),
    "grpo/valid.json": (pipeline, {"0": 0.25}),
    "rm/report.json": (pipeline, asdict(REPORT)),
    "collect/card.json": (pipeline, {"samples": 3}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage, and a pipeline that has run for a while."""
    folder = tmp_path_factory.mktemp("training")
    with open_stage(folder / "stage", "reward_model", RewardModelStage(), []):
        finish(folder / "stage", LOG)
    with RunFolder(folder / "pipeline", "pipeline").claim({}):
        pass
    return folder


def place(home: Path, name: str) -> Path:
    """The folder of a stage or of a pipeline in which this file, and no other that is spoilt, stands."""
    kind = "pipeline" if READERS[name][0] is pipeline else "stage"
    folder = home / name.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home / kind, folder)
    take_over(folder)
    put(folder / name, READERS[name][1])
    return folder


def refused(folder: Path, name: str) -> str:
    """In which line a file is refused; "" for one that is read."""
    try:
        made = READERS[name][0](folder)
        if READERS[name][0] is pipeline:
            page(made)
    except ESCError as error:
        return str(error) if "\n" not in str(error) else pytest.fail(f"several lines: {error}")
    return ""


@pytest.mark.parametrize("name", READERS)
def test_what_training_wrote_is_read(home: Path, name: str) -> None:
    READERS[name][0](place(home, name))


def test_what_is_read_is_what_was_written(home: Path) -> None:
    assert finished(place(home, "report.json")) == REPORT
    assert read_valid(place(home, "valid.json")) == {0: 0.25, 2: 0.5}
    assert [entry["step"] for entry in read_log(place(home, "log.json"))] == [1, 2]
    assert "SR on valid while training: step 0: 25.0%" in page(pipeline(place(home, "grpo/valid.json")))


@pytest.mark.parametrize("bomb", BOMBS, ids=[str(number) for number in range(len(BOMBS))])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_such_file_is_one_line_that_names_it(home: Path, name: str, bomb: bytes) -> None:
    folder = place(home, name)
    put(folder / name, bomb)
    told = refused(folder, name)
    assert not told or f"{folder}/{name}" in told


@given(st.sampled_from(sorted(set(READERS) - {"config.json"})), st.data())
def test_a_spoilt_field_is_read_or_one_line_that_names_the_file(home: Path, name: str, data: st.DataObject) -> None:
    folder = place(home, name)
    document: Any = json.loads((folder / name).read_text())
    owner = document
    while isinstance(inner := owner[key := data.draw(st.sampled_from(keys(owner)))], (dict, list)) and inner:
        if data.draw(st.booleans()):
            break
        owner = inner
    owner[key] = data.draw(ANYTHING)
    put(folder / name, document)
    refused(folder, name)


def keys(owner: Any) -> list[Any]:
    return list(owner) if isinstance(owner, dict) else list(range(len(owner)))


@pytest.mark.parametrize(
    ("name", "spoilt", "told"),
    [
        ("report.json", {**asdict(REPORT), "auc": 2}, r"report\.json: .*\(auc: must be a number from 0 to 1, not 2\)"),
        ("report.json", {}, r"report\.json: .*\(kind: is missing\)"),
        ("log.json", [{"step": "1"}], r"log\.json: .*\(\[0\]\.step: must be a whole number"),
        ("valid.json", {"two": 0.5}, r"valid\.json: .*each name must be a step"),
        ("valid.json", {"2": None}, r"valid\.json: .*\(2: must be a number from 0 to 1, not None"),
        ("adapter_config.json", {"r": 8}, r"adapter_config\.json: base_model_name_or_path is empty"),
        (
            "adapter_config.json",
            {"base_model_name_or_path": 3},
            r"config\.json: base_model_name_or_path: must be a str",
        ),
        ("rm/report.json", {"kind": 3}, r"rm/report\.json: .*\(kind: must be a string"),
        ("grpo/valid.json", [1], r"valid\.json: .*\(must be an object, not a list"),
    ],
)
def test_the_field_is_named(home: Path, name: str, spoilt: Any, told: str) -> None:
    folder = place(home, name)
    put(folder / name, spoilt)
    with pytest.raises((RecordError, SpecError), match=told):
        READERS[name][0](folder)


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_file_without_end_is_refused_unread(home: Path, name: str) -> None:
    folder = place(home, name)
    with (folder / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises((RecordError, SpecError), match=r"more than (16|256) MiB"):
        READERS[name][0](folder)


def test_what_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for name, state in (("1", b"{}"), ("2", b"[" * 10**6), ("3", b"[]"), ("best", b"{}"), ("9" * 5000, b"{}")):
        if len(name) < 200:
            put(tmp_path / "checkpoints" / f"checkpoint-{name}" / "trainer_state.json", state)
    assert resume_from(tmp_path) == str(tmp_path / "checkpoints" / "checkpoint-1")


@pytest.mark.parametrize("name", ["checkpoints", "valid.json", "best"])
def test_a_stage_does_not_begin_with_what_another_left(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(RecordError, match=f"{name} without run.json"), open_stage(tmp_path, "sft", SFTStage(), []):
        pass


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_no_model_is_written_through_a_link(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    (tmp_path / "outside").touch()
    (tmp_path / "stage").mkdir()
    link(tmp_path / "stage" / "model.safetensors", tmp_path / "outside")
    with (
        pytest.raises(RecordError, match=r"model\.safetensors: is a link"),
        open_stage(tmp_path / "stage", "sft", SFTStage(), []),
    ):
        pass


def test_a_stage_from_elsewhere_is_only_read(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "stage", tmp_path / "stage")
    with (
        pytest.raises(RecordError, match="begun elsewhere"),
        open_stage(tmp_path / "stage", "reward_model", RewardModelStage(), []),
    ):
        pass


def test_a_split_that_is_none_is_refused(tmp_path: Path) -> None:
    from test_reward_model import GOOD, SOLVED, sample

    from esc_env.records import RecordWriter
    from esc_env.training.data import CANDIDATES, collection

    one = sample(1, GOOD, SOLVED)
    with (
        collection(tmp_path).claim({}, scenarios=[one.scenario]),
        RecordWriter(tmp_path / CANDIDATES, "candidate") as writer,
    ):
        writer.write({**one.to_json(), "split": "test"})
    with pytest.raises(RecordError, match=r"candidates\.jsonl:1: .*split"):
        read_samples(tmp_path)

"""What a stage goes on from, and what people see of it: whole checkpoints, full disks in a line, a line a step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from tiny_models import save_model

from esc_env import Dialogue, Message, Scenario
from esc_env.errors import RecordError
from esc_env.folder import take_over
from esc_env.training.checkpoints import damage, resume_from
from esc_env.training.config import SFTStage
from esc_env.training.sft import Lesson, train_sft

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft 0.21's own
]

LESSON = Lesson(Scenario(id="p", situation="I cannot sleep."), Dialogue((
    Message("seeker", "I cannot sleep."), Message("supporter", "That sounds hard. Tell me more about it."),
)))  # fmt: skip


def stage(base: Path, **more: Any) -> SFTStage:
    given = {
        "model": str(base), "max_steps": 2, "save_steps": 1, "logging_steps": 1, "batch_size": 1, "accumulation": 1,
        "lora_rank": 0, "precision": "fp32", "cpu": True, "gradient_checkpointing": False, **more,
    }  # fmt: skip
    return SFTStage(**given)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that was stopped after its second checkpoint of three."""
    folder = tmp_path_factory.mktemp("trained") / "sft"
    train_sft(stage(base), folder, [LESSON])
    return folder


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "sft"
    shutil.copytree(trained, folder)
    take_over(folder)
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    del about["finished"]
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def shorten(name: str) -> Callable[[Path], None]:
    """What a crash does to a file: its end is missing."""

    def cut(checkpoint: Path) -> None:
        file = checkpoint / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


def shard(checkpoint: Path) -> None:
    """Weights in two files of which the second was never written."""
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "optimizer.pt": shorten("optimizer.pt"),
    "scheduler.pt": shorten("scheduler.pt"),
    "rng_state.pth": shorten("rng_state.pth"),
    "model.safetensors": shorten("model.safetensors"),
    "model-00002-of-00002.safetensors": shard,
    "trainer_state.json": shorten("trainer_state.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_checkpoint_that_was_cut_off_is_passed_over_for_the_one_before_and_named(
    name: str, stopped: Path, caplog: Any
) -> None:
    places = stopped / "checkpoints"
    assert resume_from(stopped) == str(places / "checkpoint-2")
    DAMAGES[name](places / "checkpoint-2")
    assert resume_from(stopped) == str(places / "checkpoint-1")
    assert f"checkpoint-2 is passed over: {name}" in caplog.text


def test_what_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for name, state in (("1", b"{}"), ("2", b"[" * 10**6), ("3", b"[]"), ("best", b"{}")):
        place = tmp_path / "checkpoints" / f"checkpoint-{name}"
        place.mkdir(parents=True)
        (place / "trainer_state.json").write_bytes(state)
    assert resume_from(tmp_path) == str(tmp_path / "checkpoints" / "checkpoint-1")


def test_training_goes_on_from_the_newest_whole_checkpoint_and_mends_the_cut_one(base: Path, stopped: Path) -> None:
    cut = stopped / "checkpoints" / "checkpoint-2"
    whole = (cut / "model.safetensors").read_bytes()
    shorten("model.safetensors")(cut)
    shorten("optimizer.pt")(cut)
    train_sft(stage(base), stopped, [LESSON])
    assert damage(cut) is None
    assert (cut / "model.safetensors").read_bytes() == whole, "it does not go on where the first one was"


def test_a_full_disk_is_one_line_and_the_same_call_goes_on(base: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits what may be written")
    config, folder = stage(base), tmp_path / "sft"
    largest = (base / "model.safetensors").stat().st_size * 3 // 2  # the weights, and not the optimiser's state
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        with pytest.raises(RecordError, match=r"nothing more can be written .* GB are free\. Make room"):
            train_sft(config, folder, [LESSON])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train_sft(config, folder, [LESSON])
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["finished"]


def test_every_logged_step_is_one_readable_line(base: Path, tmp_path: Path, capfd: Any) -> None:
    train_sft(stage(base), tmp_path / "sft", [LESSON])
    said = capfd.readouterr()
    lines = [
        line for line in said.err.replace("\r", "\n").splitlines() if line and not line.startswith("[transformers]")
    ]
    assert [line.partition(":")[0] for line in lines] == ["1 of 2 steps", "2 of 2 steps"]
    assert all(line.partition(": ")[2].startswith("loss ") for line in lines)
    assert "{" not in said.out + said.err

"""Every notebook runs, offline and in an empty folder, and prints what is stored; trained numbers hold roughly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="needs the extra 'dev'")
pytest.importorskip("trl", reason="needs the extra 'train'")

from notebooks import FOLDER, NOTEBOOKS, VARIES, executed, printed, read

ROUGHLY: dict[str, dict[str, tuple[float, float]]] = {
    "reward-model": {r"AUC within one moment +(0\.\d+)": (0.6, 1.0), r"AUC over all moments +(0\.\d+)": (0.55, 0.9)},
    "grpo": {r"(\d+)% of the replies asked before": (0, 35), r"before, (\d+)% after": (40, 100)},
}
"""What trained weights say, by notebook: where the number stands, and between which it lies on any machine."""


def test_these_are_all_there_is():
    assert {path.stem for path in NOTEBOOKS} == {"benchmark", "grpo", "reward-model", "seeker"}


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_prints_what_is_stored(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for key in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(key, raising=False)
    stored = read(FOLDER / f"{name}.ipynb")
    now = executed(FOLDER / f"{name}.ipynb", tmp_path)
    for was, cell in zip(stored.cells, now.cells, strict=True):
        if VARIES not in cell.metadata.get("tags", ()):
            assert printed(cell) == printed(was), cell.source
    said = "\n".join(map(printed, now.cells))
    for number, (low, high) in ROUGHLY.get(name, {}).items():
        found = re.search(number, said)
        assert found, f"{number} is not printed"
        assert low <= float(found[1]) <= high, found[0]


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_what_is_stored_is_small_whole_and_of_no_machine(name: str):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not re.search(r"/(?:tmp|home|root|work|Users)/|127\.0\.0\.1:\d|\"execution\"", text)
    code = [cell for cell in read(FOLDER / f"{name}.ipynb").cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any(map(printed, code))

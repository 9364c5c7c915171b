"""Runs the notebooks of docs/notebooks, each in an empty folder, offline; as a program, writes what they show.

python tests/notebooks.py [NAME…] runs them (all, if none is named) and stores the outputs. What a cell writes to stderr
(how far a training is, and how fast) is not kept.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
VARIES = "varies"
"""The tag of a cell whose output owes its digits to the machine: weights that were trained, or a picture."""

QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
OFFLINE = """
import socket

def _here(self, address, connect=socket.socket.connect):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError("there is no network in this test")
    return connect(self, address)

socket.socket.connect = _here
"""


def read(notebook: Path) -> Any:
    """A notebook as it is stored."""
    return nbformat.read(notebook, as_version=4)


def executed(notebook: Path, folder: Path) -> Any:
    """The notebook with the outputs that it has when it is run in `folder`, which should be empty.

    Raises:
        CellExecutionError: a cell raised.
    """
    page = read(notebook)
    for cell in page.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        page,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,  # else it depends on timing in how many pieces a text is kept
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=[f"--IPKernelApp.exec_lines={[OFFLINE]!r}", "--log-level=ERROR"],
    )
    client.execute(env={**os.environ, **QUIET, "IPYTHONDIR": str(folder / ".ipython")})
    page.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in page.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return page


def printed(cell: Any) -> str:
    """All text that a cell shows."""
    parts = []
    for output in cell.get("outputs", ()):
        text = output.get("text", output.get("data", {}).get("text/plain", ""))
        parts.append("".join(text))
    return re.sub(r"[ \t]+$", "", "".join(parts), flags=re.MULTILINE)


if __name__ == "__main__":
    for path in NOTEBOOKS:
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as empty:
                nbformat.write(executed(path, Path(empty)), path)

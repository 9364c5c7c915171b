"""A real model as a judge: every question is answered, readably or not, and nothing is made up.

What so small a model says is not tested: free to answer it is hardly ever readable.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esc_env.evaluation import evaluate
from esc_env.evaluation.judges import DIMENSIONS, judge_runs

from .conftest import RealServer

for _package in ("choix", "krippendorff", "scipy", "statsmodels"):
    pytest.importorskip(_package, reason="needs the extra 'judge'")

SCHEMA = {
    "type": "object", "properties": {name: {"enum": [1, 2, 3, 4, 5]} for name in DIMENSIONS},
    "required": list(DIMENSIONS), "additionalProperties": False,
}  # fmt: skip


def test_free_to_answer_it_is_counted_and_held_to_a_schema_it_is_read(server: RealServer, tmp_path: Path) -> None:
    run = evaluate("builtin:template", limit=2, out=tmp_path / "run")
    free = judge_runs(
        [run], server.model, out=tmp_path / "free", judge_options={"max_tokens": 32}, timeout=124.0, concurrency=1
    )
    assert free.answered + free.unreadable == free.questions == 2, free.failure_messages
    form = {"type": "json_schema", "json_schema": {"name": "marks", "strict": True, "schema": SCHEMA}}
    held = judge_runs(
        [run], server.model, out=tmp_path / "held", judge_options={"max_tokens": 80, "response_format": form},
        timeout=125.0, concurrency=1,
    )  # fmt: skip
    assert (held.answered, held.unreadable) == (2, 0), held.notes
    kept = [json.loads(line) for line in (tmp_path / "held" / "opinions.jsonl").read_text().splitlines()]
    assert all(set(line["marks"]) == set(DIMENSIONS) for line in kept)

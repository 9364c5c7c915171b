"""The scenario bank: 200 people that we made up, written to be believed. *Source:* this project, Apache-2.0."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from esc_env.errors import ScenarioError, did_you_mean
from esc_env.scenarios import Scenario, ScenarioSet

__all__ = ["SPLITS", "bank"]

FILE = Path(__file__).with_name("bank.jsonl")
SPLITS = ("train", "valid", "test")
"""120, 40 and 40 scenarios, stratified by problem; no near-duplicates across them."""


@cache
def _parts() -> dict[str, tuple[Scenario, ...]]:
    parts: dict[str, list[Scenario]] = {split: [] for split in SPLITS}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        data = json.loads(line)
        split = data.pop("split")
        parts[split].append(Scenario.from_json({**data, "source": f"builtin:{split}"}))
    return {split: tuple(scenarios) for split, scenarios in parts.items()}


@cache
def bank(split: str = "") -> ScenarioSet:
    """The whole bank, or one of its splits.

    Raises:
        ScenarioError: when there is no such split.
    """
    if not split:
        return ScenarioSet("builtin", tuple(scenario for part in SPLITS for scenario in _parts()[part]))
    if split not in SPLITS:
        raise ScenarioError(f"the builtin bank has no split {split!r}. {did_you_mean(split, SPLITS)}")
    return ScenarioSet(f"builtin:{split}", _parts()[split])

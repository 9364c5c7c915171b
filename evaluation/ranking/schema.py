"""What a line of a submitted run may hold.

`python -m esc_env.evaluation.ranking.schema > docs/submission.schema.json` writes it down.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, get_type_hints

from esc_env.dialogue import Message
from esc_env.records import RECORD_VERSION
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.trajectory import Trajectory

__all__ = ["schema"]


def schema() -> dict[str, Any]:
    """The JSON Schema of a line of such a file, made from the classes that are written. Needs pydantic."""
    from pydantic import TypeAdapter

    definitions: dict[str, Any] = {}

    def of(kind: Any) -> dict[str, Any]:
        made = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
        definitions.update(made.pop("$defs", {}))
        return made

    def line(kind: str, properties: dict[str, Any], required: Iterable[str]) -> dict[str, Any]:
        known = {"kind": {"const": kind}, "version": {"const": RECORD_VERSION}}
        return {"type": "object", "properties": known | properties, "required": [*known, *required]}

    names = [each.name for each in fields(Trajectory)]
    hints = get_type_hints(Trajectory)
    held = {name: of(hints[name]) for name in names} | {"scenario": {"type": "string"}, "dialogue": of(list[Message])}
    person = of(Scenario)
    person["properties"]["dialogue"] = of(list[Message] | None)
    for name in ("Scenario", "Dialogue"):
        definitions.pop(name, None)
    identity = {name: {"type": "object"} for name in ("agent", "seeker", "critic")} | of(Rules)["properties"]
    rest = {name: of(kind) for name, kind in (("scenarios", str), ("persona", str), ("trials", int), ("seed", int))}
    said = {name: {"type": "string"} for name in ("agent", "scenarios", "run_key", "fingerprint")}
    whole = {"type": "object", "properties": identity | rest, "required": [*identity, *rest]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of a run of esc-env that was submitted as one file",
        "oneOf": [
            line("run", {"identity": whole} | said, ["identity", *said]),
            line("scenario", person["properties"], person["required"]),
            line("trajectory", held, [name for name in names if name != "attempts"]),
        ],
        "$defs": definitions,
    }


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))

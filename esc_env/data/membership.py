"""Which dialogue of ESConv is in which of PPDPP's splits, told by content hashes, from whatever file it came.

`esconv_membership.json` holds, for train (1,040) and valid (130), the hash that each scenario's id ends with. Test is
not listed: it is what a full file holds beyond these two. To make the file again from PPDPP's own:

    python -m esc_env.data.membership esc-train.txt esc-valid.txt > esc_env/data/esconv_membership.json

*Source:* github.com/dengyang17/PPDPP, `data/esc-train.txt` and `data/esc-valid.txt` (Deng et al., ICLR 2024).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from esc_env.data.readers import read_file
from esc_env.scenarios import Scenario

__all__ = ["members", "membership_json", "split_of"]


@cache
def members(split: str) -> frozenset[str]:
    """The ids of PPDPP's `train` or `valid` dialogues."""
    hashes: Mapping[str, str] = json.loads(files("esc_env.data").joinpath("esconv_membership.json").read_text("ascii"))
    return frozenset(f"esconv-{digits}" for digits in hashes[split].split())


def split_of(scenario: Scenario) -> str | None:
    """`train` or `valid` if PPDPP has this dialogue there; None if in neither (which alone does not make it test)."""
    return next((split for split in ("train", "valid") if scenario.id in members(split)), None)


def membership_json(train: str | Path, valid: str | Path) -> str:
    """The text of `esconv_membership.json`, made from the two files."""
    hashes = {
        split: " ".join(sorted(scenario.id.removeprefix("esconv-") for scenario in read_file(path).scenarios))
        for split, path in (("train", train), ("valid", valid))
    }
    return json.dumps(hashes, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(membership_json(*sys.argv[1:3]))

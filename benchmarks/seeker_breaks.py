"""How many breaks of its role are found in what a seeker's model says, and how many innocent lines are taken for one.

    python benchmarks/seeker_breaks.py FILE…

`seeker_lines.json` has breaks and innocent lines that look like breaks, all written by hand, and by the same. One half
of either was held out when the check (`role_break`) was changed; `--tuned-on` shows what is decided wrongly in the
other. Breaks "after" were written against the finished check, in words that it does not know; nothing was changed for
them. A FILE is any of conversations that esc-env reads (docs/data.md). Its seekers are people, so every message of
theirs that is refused is a false alarm. Its supporters' messages are what a seeker says that slips into the other role.
Give real conversations from a folder of yours: they are no part of this one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from esc_env.chairs.seekers import role_break
from esc_env.data.readers import read_file

LINES: Mapping[str, Mapping[str, Mapping[str, list[str]]]] = json.loads(
    Path(__file__).with_name("seeker_lines.json").read_text(encoding="utf-8")
)


def refused(lines: list[str]) -> list[str]:
    """Those of the lines in which the check finds a break."""
    return [line for line in lines if role_break(line)]


def main() -> None:
    """Print a row for each kind of written line, their sums, and one for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="files of real conversations")
    parser.add_argument("--tuned-on", action="store_true", help="name what is decided wrongly among the lines tuned on")
    asked = parser.parse_args()
    for what, halves in LINES.items():
        for half, kinds in halves.items():
            told = [line for lines in kinds.values() for line in lines]
            for kind, lines in kinds.items():
                print(f"  {len(refused(lines)):3} of {len(lines):3}  {what}, {half}: {kind}")
            print(f"{len(refused(told)):5} of {len(told):3}  {what}, {half}: refused")
            if asked.tuned_on and half == "tuned on":
                wrong = [line for line in told if bool(role_break(line)) != (what == "breaks")]
                print(*(f"        {line!r}" for line in wrong), sep="\n")
    for path in asked.files:
        held = [scenario.dialogue for scenario in read_file(path).scenarios if scenario.dialogue]
        for role in ("seeker", "supporter"):
            told = [message.content for dialogue in held for message in dialogue.messages if message.role == role]
            share = len(refused(told)) / max(1, len(told))
            print(f"{len(refused(told)):5} of {len(told):,} messages of {role}s ({share:.2%})  {path.name}")


if __name__ == "__main__":
    main()

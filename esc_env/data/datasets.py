"""Scenario sets by the strings that people type, and what a set or file holds.

    builtin[:train|valid|test]            esc-env's own bank
    esconv:train|valid|test               ESConv in PPDPP's split (1,040 / 130 / 130)
    esconv-hf:train|validation|test       ESConv in the Hub's own split: another one, never mixed with PPDPP's
    extes:train|valid|test                ExTES in esc-env's split of the full file
    PATH                                  any file that `read_file` knows

Behind any of them stands, if only some of its people are wanted, who: `esconv:train?emotion!=anger&problem=job crisis`.

Files that people must get themselves are looked for in the folder that ESC_DATA names, then in the user cache.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

from esc_env.builtin.bank import bank
from esc_env.data import membership
from esc_env.data.files import SPLITS
from esc_env.data.readers import Reading, Skipped, read_file
from esc_env.errors import ScenarioError, did_you_mean
from esc_env.models.endpoint import unreachable
from esc_env.scenarios import Scenario, ScenarioSet, near_duplicates

__all__ = ["Reading", "Skipped", "Summary", "data_folders", "load_scenarios", "read_file", "summarise"]

_SPLITS = {
    "builtin": ("train", "valid", "test"),
    "esconv": ("train", "valid", "test"),
    "esconv-hf": ("train", "validation", "test"),
    "extes": ("train", "valid", "test"),
}
_SUFFIXES = tuple(
    f".{kind}{packed}"
    for kind in ("json", "jsonl", "txt", "csv", "parquet")
    for packed in ("", ".gz", ".zst", ".xz", ".bz2")
)
"""How the names of data files end in a data folder; what they are, their content says."""
_ESCONV_TEST = 130
_EXTES_FULL = 11_000
"""ExTES has 11,177 dialogues (Zheng et al., Findings of ACL 2024); a file well below that is a part of it."""

_ESCONV_URL = "https://github.com/thu-coai/Emotional-Support-Conversation (file ESConv.json)"
_HUB_URL = "https://huggingface.co/datasets/thu-coai/esconv"
_EXTES_URL = "https://github.com/pandazzh2020/ExTES (file ExTES.json)"


def load_scenarios(spec: str | Path | Iterable[Scenario]) -> ScenarioSet:
    """The scenario set that a string or path names (the module docstring lists the strings), or that scenarios make.

    Raises:
        ScenarioError: an unknown string, a missing file (naming where to get it and where to put it), or a file that
            cannot be used.
    """
    if not isinstance(spec, str | Path):
        return spec if isinstance(spec, ScenarioSet) else ScenarioSet.of("scenarios", spec)
    whole, mark, who = spec.partition("?") if isinstance(spec, str) else (spec, "", "")
    if mark and not os.path.isfile(spec):
        return _chosen(load_scenarios(whole), who, str(spec))
    name, colon, split = str(spec).partition(":")
    if isinstance(spec, str) and name in _SPLITS:
        return _named(name, split, bool(colon))
    if os.path.isfile(spec):  # False, where Path.is_file raises, for names too long or with a null
        return ScenarioSet(str(spec), read_file(spec).scenarios)
    if os.path.isdir(spec):
        raise ScenarioError(f"{spec} is a folder; name one file in it. To read a data folder, set ESC_DATA={spec}")
    strings = ["builtin", *(f"{source}:{part}" for source, parts in _SPLITS.items() for part in parts)]
    hint = did_you_mean(str(spec), strings)
    raise ScenarioError(f"no scenarios {str(spec)!r}: neither a file nor a known name. {hint}")


_ASKED = ("emotion", "problem", "need", "persona", "intensity", "risk")
"""What of a scenario may be asked for behind a `?`."""


def _chosen(people: ScenarioSet, who: str, name: str) -> ScenarioSet:
    """Those who meet every condition of `FIELD=VALUE,VALUE&FIELD!=VALUE`; capitals do not count.

    Raises:
        ScenarioError: a condition that is none, a field or value that nobody in the set has, or nobody is left.
    """
    kept = people
    for condition in who.split("&"):
        field, equals, values = condition.partition("=")
        wanted = not field.rstrip().endswith("!")
        field = field.strip().removesuffix("!").strip().casefold()
        if not equals or field not in _ASKED:
            raise ScenarioError(
                f"{name}: {condition!r} is no condition. Write FIELD=VALUE or FIELD!=VALUE, with commas between values "
                f"and & between conditions. {did_you_mean(field, _ASKED)}"
            )
        has = {scenario.id: str(getattr(scenario, field)).casefold() for scenario in people}
        named, known = {value.strip().casefold() for value in values.split(",")}, set(has.values())
        if strange := sorted(named - known):
            raise ScenarioError(f"{name}: nobody has {field} {strange[0]!r}. {did_you_mean(strange[0], sorted(known))}")
        kept = replace(kept, scenarios=tuple(each for each in kept if (has[each.id] in named) == wanted))
    if not kept:
        raise ScenarioError(f"{name}: nobody is left")
    return replace(kept, name=name)


def _named(source: str, split: str, given: bool) -> ScenarioSet:
    if source == "esconv-hf" and split == "valid":
        split = "validation"
    if split not in _SPLITS[source] and (given or source != "builtin"):
        wanted = f"unknown split {split!r}." if split else "which split?"
        known = [f"{source}:{part}" for part in _SPLITS[source]]
        raise ScenarioError(f"{source}: {wanted} {did_you_mean(f'{source}:{split}', known)}")
    if source == "builtin":
        return bank(split)
    scenarios = {"esconv": _esconv, "esconv-hf": _esconv_hf, "extes": _extes}[source](split)
    named = f"{source}:{split}"
    return ScenarioSet(named, tuple(replace(scenario, source=named) for scenario in scenarios))


# --- the data folder ------------------------------------------------------------------------------


def data_folders() -> tuple[Path, ...]:
    """Where data files are looked for, in order: the folder that ESC_DATA names if it is set, then the user cache."""
    if sys.platform == "win32":
        cache_home = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache_home = Path.home() / "Library" / "Caches"
    else:
        cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    asked = os.environ.get("ESC_DATA")
    return (*([Path(asked).expanduser()] if asked else []), cache_home / "esc-env")


def _find(*wanted: str) -> list[Path]:
    """The files that match one of the lower-case patterns, in the first data folder that has any."""
    return next((found for folder in data_folders() if (found := _files(folder, *wanted))), [])


def _files(folder: Path, *wanted: str) -> list[Path]:
    """The data files in a folder whose names match one of the lower-case patterns."""
    return sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.lower().endswith(_SUFFIXES)
        and any(fnmatchcase(path.name.lower(), pattern) for pattern in wanted)
        and path.is_file()
    )


def _missing(what: str, url: str, put: str, why: str = "") -> ScenarioError:
    folders = " or ".join(str(folder) for folder in data_folders())
    return ScenarioError(f"{what}: no file found. Get it from {url} and put it in {folders} as {put}.{why}")


def _hub(folder_name: str = "esconv-hf") -> tuple[dict[str, list[Path]], str]:
    """The Hub's files by split, fetched into the user cache when `datasets` can; else {} and why not."""
    folders = data_folders()
    for folder in folders:
        found = {split: _files(folder / folder_name, f"{split}.*", f"{split}-*") for split in _SPLITS["esconv-hf"]}
        if all(found.values()):
            return found, ""
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError:
        return {}, " With `pip install datasets` esc-env fetches it itself."
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not os.environ.get("HF_HUB_OFFLINE") and (why := unreachable(hub)):  # its library would try for half a minute
        return {}, f" Fetching it from the Hub failed: {why}"
    try:
        rows = load_dataset("thu-coai/esconv")
        texts = {split: "".join(f"{row['text'].strip()}\n" for row in rows[split]) for split in _SPLITS["esconv-hf"]}
    except Exception as error:  # whatever network, Hub or cache may raise: the message below carries it
        return {}, f" Fetching it from the Hub failed: {type(error).__name__}: {str(error)[:300]}"
    kept_as = {}
    for split, text in texts.items():
        kept = folders[-1] / folder_name / f"{split}.jsonl"
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".part")
        partial.write_text(text, "utf-8")
        partial.replace(kept)
        kept_as[split] = [kept]
    return kept_as, ""


def _esconv_hf(split: str) -> tuple[Scenario, ...]:
    found, why = _hub()
    if not found:
        names = ", ".join(f"esconv-hf/{part}.jsonl" for part in _SPLITS["esconv-hf"])
        raise _missing(f"esconv-hf:{split}", _HUB_URL, f"{names} (or .parquet, as the Hub has it)", why)
    return tuple({scenario.id: scenario for path in found[split] for scenario in read_file(path).scenarios}.values())


def _esconv(split: str) -> tuple[Scenario, ...]:
    paths = _find("esconv*", "esc-*.txt*")
    if not paths:
        found, why = _hub()
        if not found:
            raise _missing(f"esconv:{split}", _ESCONV_URL, "ESConv.json", why)
        paths = [path for part in found.values() for path in part]
    scenarios: dict[str, Scenario] = {}
    for scenario in (scenario for path in paths for scenario in read_file(path).scenarios):
        if scenario.survey or scenario.id not in scenarios:
            scenarios[scenario.id] = scenario
    names = ", ".join(str(path) for path in paths)
    if split != "test":
        wanted = membership.members(split)
        chosen = [scenario for scenario in scenarios.values() if scenario.id in wanted]
        missing = len(wanted) - len(chosen)
        if missing:
            raise ScenarioError(
                f"esconv:{split}: {missing} of its {len(wanted)} dialogues are not in {names}. Put the whole "
                f"ESConv.json there, from {_ESCONV_URL}; or pass a file's path to use what it holds."
            )
        return tuple(sorted(chosen, key=lambda scenario: scenario.id))
    rest = [scenario for scenario in scenarios.values() if membership.split_of(scenario) is None]
    missing = len((membership.members("train") | membership.members("valid")) - set(scenarios))
    if missing or len(rest) != _ESCONV_TEST:
        raise ScenarioError(
            f"esconv:test is what a full ESConv (1,300 dialogues) holds beyond train and valid: "
            f"{_ESCONV_TEST} dialogues. {names} lacks {missing} of train and valid and holds {len(rest)} "
            f"others, so these cannot be told to be test. Put ESConv.json, whole and alone, there, from {_ESCONV_URL}."
        )
    return tuple(sorted(rest, key=lambda scenario: scenario.id))


def _extes(split: str) -> tuple[Scenario, ...]:
    paths = _find("extes*")
    if not paths:
        raise _missing(f"extes:{split}", _EXTES_URL, "ExTES.json")
    readings = [read_file(path) for path in paths]
    largest = max(readings, key=lambda reading: len(reading.scenarios))
    if len(largest.scenarios) + len(largest.skipped) < _EXTES_FULL:
        raise ScenarioError(
            f"extes:{split} is a share of the full file (11,177 dialogues), but {largest.path} holds "
            f"{len(largest.scenarios)}. Get the whole from {_EXTES_URL}; or pass the file's path to use what it holds."
        )
    return ScenarioSet("extes", largest.scenarios).split(seed=0)[split].scenarios


# --- summary --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """What a file or set holds, in numbers.

    Attributes:
        name: file or set.
        format: the file's layout; "" for a set.
        records: scenarios and skipped ones together.
        scenarios: how many can be used.
        splits, emotions, problems, strategies: how many of each; strategies count supporter messages.
        turns: (min, median, max) of supporter turns in the human dialogues; None where there are none.
        facts: (min, median, max) of facts a scenario.
        risk: how many touch self-harm.
        skipped: the records left out.
        near_duplicates: pairs of ids in different splits whose situations are nearly the same.
    """

    name: str
    format: str
    records: int
    scenarios: int
    splits: Mapping[str, int]
    emotions: Mapping[str, int]
    problems: Mapping[str, int]
    strategies: Mapping[str, int]
    turns: tuple[float, float, float] | None
    facts: tuple[float, float, float] | None
    risk: int
    skipped: tuple[Skipped, ...]
    near_duplicates: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with these names."""
        return asdict(self)


def summarise(data: Reading | ScenarioSet) -> Summary:
    """Count what a file or a set holds."""
    scenarios = data.scenarios
    skipped = data.skipped if isinstance(data, Reading) else ()
    by_split: dict[str, list[Scenario]] = {}
    for scenario in scenarios:
        named = scenario.source.rpartition(":")[2]
        split = named if named in SPLITS else membership.split_of(scenario)
        if split:
            by_split.setdefault(split, []).append(scenario)
    parts = list(by_split.values())
    pairs = [
        pair for i, first in enumerate(parts) for second in parts[i + 1 :] for pair in near_duplicates(first, second)
    ]
    return Summary(
        name=data.path if isinstance(data, Reading) else data.name,
        format=data.format if isinstance(data, Reading) else "",
        records=len(scenarios) + len(skipped),
        scenarios=len(scenarios),
        splits={split: len(part) for split, part in by_split.items()},
        emotions=_counts(scenario.emotion for scenario in scenarios),
        problems=_counts(scenario.problem for scenario in scenarios),
        strategies=_counts(
            message.strategy for scenario in scenarios for message in scenario.dialogue or () if message.strategy
        ),
        turns=_spread(scenario.dialogue.turns for scenario in scenarios if scenario.dialogue is not None),
        facts=_spread(len(scenario.facts) for scenario in scenarios),
        risk=sum(scenario.risk for scenario in scenarios),
        skipped=skipped,
        near_duplicates=tuple(pairs),
    )


def _counts(names: Iterable[str]) -> dict[str, int]:
    """Most frequent first, "" as `unknown`."""
    return dict(sorted(Counter(name or "unknown" for name in names).items(), key=lambda item: (-item[1], item[0])))


def _spread(numbers: Iterable[int]) -> tuple[float, float, float] | None:
    values = list(numbers)
    return (min(values), statistics.median(values), max(values)) if values else None

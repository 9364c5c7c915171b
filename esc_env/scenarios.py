"""Scenarios: who the seeker is and what troubles them; and sets of scenarios to run.

A `Scenario` is what a seeker and a critic may know. An agent never sees one: it sees the dialogue only.
"""

from __future__ import annotations

import json
import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from hashlib import blake2b
from typing import Any, Literal, get_args

from esc_env.dialogue import Dialogue
from esc_env.errors import ScenarioError, SpecError, did_you_mean
from esc_env.seeds import derive

__all__ = [
    "EMOTIONS", "PERSONAS", "PROBLEMS", "Need", "Persona", "Scenario", "ScenarioSet", "content_hash",
    "mentions_self_harm", "near_duplicates",
]  # fmt: skip

Persona = Literal["cooperative", "guarded", "resistant", "drifting", "pleasing", "hostile"]
"""How the seeker responds to help, whatever the scenario: see docs/words.md."""
PERSONAS: tuple[str, ...] = get_args(Persona)
MIXED = "mixed"
"""What stands for a persona where each person is to have one of `MIXTURE`."""
MIXTURE: tuple[Persona, ...] = ("cooperative", "resistant", "drifting", "pleasing")
"""Those that `mixed` deals out. Guarded and hostile people are kept for testing what was trained with them. Ours."""

Need = Literal["listen", "plan", "both"]
"""What relieves this person: mostly being understood, mostly a workable next step, or both."""

EMOTIONS = (
    "anger", "anxiety", "depression", "disgust", "fear", "guilt", "jealousy", "nervousness", "pain", "sadness", "shame",
)  # fmt: skip
"""ESConv's emotion types. *Source:* Liu et al., ACL 2021, and the released data."""

PROBLEMS = (
    "academic pressure", "alcohol abuse", "appearance anxiety", "breakup with partner", "conflict with parents",
    "issues with children", "issues with parents", "job crisis", "ongoing depression", "problems with friends",
    "procrastination", "school bullying", "sleep problems",
)  # fmt: skip
"""ESConv's problem types, lower-cased. *Source:* Liu et al., ACL 2021, and the released data."""


@cache
def _self_harm() -> re.Pattern[str]:
    """Compiled when first needed: it would be half of what importing esc_env costs."""
    return re.compile(
        r"""\b(?: suicid\w* | self[- ]?harm\w* | kill(?:ing|ed)?\s+my\s?self | hurt(?:ing)?\s+my\s?self
          | harm(?:ing)?\s+my\s?self | cut(?:ting)?\s+my\s?self | end(?:ing)?\s+(?:my\s+(?:own\s+)?life|it\s+all)
          | tak(?:e|ing)\s+my\s+(?:own\s+)?life
          | (?:want|wanted|wanting|wish|wished)\s+(?:to\s+die|to\s+be\s+dead|i\s+(?:was|were)\s+dead)
          | (?:don'?t|do\s+not|didn'?t|did\s+not|not)\s+(?:really\s+)?want(?:ing)?
            \s+to\s+(?:live|be\s+alive|wake\s+up|be\s+here\s+any\s?more|exist)
          | better\s+off\s+(?:dead|without\s+me
            |if\s+i\s+(?:just\s+)?(?:wasn'?t|weren'?t|was\s+not)\s+(?:here|around)|if\s+i\s+(?:was|were)\s+gone)
          | (?:thought|think|thinking|thoughts)\s+(?:about|of)
            \s+(?:dying|death|not\s+being\s+here|ending\s+(?:it|things))
          | no\s+(?:reason|point)\s+(?:to\s+live|in\s+living|to\s+go\s+on\s+living) | overdos(?:e|ed|ing)
          )\b
          | 自杀 | 自残 | 自伤 | 自尽 | 轻生 | 寻死 | 割腕 | 跳楼 | 想死(?![你他她它我]) | 去死 | 死了算了 | 不想活
          | 不想再活 | 活不下去 | 活着没(?:有|什么)?意[思义] | (?:结束|了结)(?:自己|我)?的?(?:生命|一生) | 伤害自己""",
        re.IGNORECASE | re.VERBOSE,
    )


def mentions_self_harm(text: str) -> bool:
    """Whether a first-person text, in English or Chinese, has words of suicide or self-harm.

    A lexicon: it misses what is only hinted at, and in other languages everything.
    """
    return _self_harm().search(text.replace("’", "'")) is not None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One person with one problem.

    Attributes:
        id: unique in its set; part of every episode seed.
        situation: the problem in the seeker's own words; how the conversation opens.
        emotion, problem: ESConv's types where known (lower case), else whatever the source says, or "".
        intensity: distress before the conversation, 1 (slight) to 5 (overwhelming); None if unknown.
        facts: what comes out only if the seeker is drawn out, in the seeker's words, in order of disclosure.
        helps, hurts: what does and does not help this person, in the seeker's words.
        need: what relieves this person.
        persona: how the seeker responds to help; see `with_persona`.
        risk: the situation touches self-harm or suicide.
        source: which collection it came from (`builtin:test`, a file name).
        profile: one line about the person, for those who play the seeker.
        voice: reaction lines in the person's own voice, by kind (builtin bank only).
        dialogue: the human conversation it was taken from, if any.
        survey: the survey around that conversation, as integers (`initial_intensity`, `final_intensity`, …).

    Raises:
        ScenarioError: empty id or situation, intensity outside 1–5, unknown persona or need, or text that is no UTF-8
            text.
    """

    id: str
    situation: str
    emotion: str = ""
    problem: str = ""
    intensity: int | None = None
    facts: tuple[str, ...] = ()
    helps: tuple[str, ...] = ()
    hurts: tuple[str, ...] = ()
    need: Need = "both"
    persona: Persona = "cooperative"
    risk: bool = False
    source: str = ""
    profile: str = ""
    voice: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    dialogue: Dialogue | None = None
    survey: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.id or not self.situation.strip():
            raise ScenarioError(f"scenario {self.id!r}: id and situation must not be empty")
        if self.intensity is not None and self.intensity not in range(1, 6):
            raise ScenarioError(f"scenario {self.id!r}: intensity must be 1 to 5, not {self.intensity!r}")
        if self.persona not in PERSONAS:
            hint = did_you_mean(str(self.persona), (*PERSONAS, MIXED))
            raise ScenarioError(f"scenario {self.id!r}: unknown persona {self.persona!r}. {hint}")
        if self.need not in get_args(Need):
            raise ScenarioError(f"scenario {self.id!r}: need must be listen, plan or both, not {self.need!r}")
        try:
            _canonical(self.to_json())
        except UnicodeEncodeError as error:
            raise ScenarioError(f"scenario {self.id!r}: holds what is no UTF-8 text ({error.reason})") from error

    def with_persona(self, persona: str) -> Scenario:
        """The same person with another persona; with `mixed`, one of `MIXTURE`, always the same for the same id.

        Raises:
            ScenarioError: an unknown persona.
        """
        if persona == MIXED:
            return replace(self, persona=MIXTURE[derive(0, "persona", self.id) % len(MIXTURE)])
        return replace(self, persona=persona)  # type: ignore[arg-type]  # __post_init__ checks it

    @property
    def digest(self) -> str:
        """16 hex digits over all that seeker or critic may use (not id, source, survey or the human dialogue)."""
        data = self.to_json()
        for name in ("id", "source", "survey"):
            data.pop(name, None)
        return _digest(data)

    def to_json(self, *, dialogue: bool = False) -> dict[str, Any]:
        """A JSON object; empty fields are left out, and the human dialogue unless asked for."""
        data: dict[str, Any] = {}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name == "dialogue":
                if dialogue and value is not None:
                    data["dialogue"] = value.to_json()
            elif value not in (None, "", (), {}, False):
                data[spec.name] = list(value) if isinstance(value, tuple) else value
        if self.voice:
            data["voice"] = {kind: list(lines) for kind, lines in self.voice.items()}
        if self.survey:
            data["survey"] = dict(self.survey)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scenario:
        """Inverse of `to_json`. Raises ScenarioError naming an unknown, missing or ill-typed field."""
        if not isinstance(data, Mapping):
            raise ScenarioError("a scenario must be an object of fields")
        known = {spec.name for spec in fields(cls)}
        unknown = set(data) - known
        if unknown:
            word = min(map(str, unknown))
            raise ScenarioError(f"unknown field {word!r}. {did_you_mean(word, known)}")
        values = dict(data)
        for name in ("id", "situation"):
            if not isinstance(values.get(name), str):
                raise ScenarioError(f"field {name!r} is missing or not a string")
        for name in ("emotion", "problem", "source", "profile", "need", "persona"):
            if not isinstance(values.get(name, ""), str):
                raise ScenarioError(f"field {name!r} must be a string")
        if not isinstance(values.get("risk", False), bool):
            raise ScenarioError("field 'risk' must be true or false")
        intensity = values.get("intensity")
        if intensity is not None and (isinstance(intensity, bool) or not isinstance(intensity, int)):
            raise ScenarioError("field 'intensity' must be an integer from 1 to 5")
        for name in ("facts", "helps", "hurts"):
            values[name] = _strings(name, values.get(name, ()))
        voice = values.get("voice", {})
        if not isinstance(voice, Mapping) or not all(type(kind) is str for kind in voice):
            raise ScenarioError("field 'voice' must be an object of string lists")
        values["voice"] = {kind: _strings("voice", lines) for kind, lines in voice.items()}
        survey = values.get("survey", {})
        if not isinstance(survey, Mapping) or not all(
            (type(name), type(answer)) == (str, int) for name, answer in survey.items()
        ):
            raise ScenarioError("field 'survey' must be an object of integers")
        if values.get("dialogue") is not None:
            try:
                values["dialogue"] = Dialogue.from_json(values["dialogue"])
            except SpecError as error:
                raise ScenarioError(f"field 'dialogue': {error}") from error
        return cls(**values)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ScenarioError(f"field {name!r} must be a list of strings")
    return tuple(value)


def content_hash(*texts: str) -> str:
    """12 hex digits over texts, blind to white space: the id of the same content from whatever file."""
    plain = "\n".join(" ".join(unicodedata.normalize("NFC", text).split()) for text in texts)
    return blake2b(plain.encode(), digest_size=6).hexdigest()


def _digest(data: Any) -> str:
    return blake2b(_canonical(data), digest_size=8).hexdigest()


def _canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class ScenarioSet(Sequence[Scenario]):
    """An ordered set of scenarios with unique ids.

    Attributes:
        name: the string it was loaded by (`builtin:test`, a path).
        scenarios: in order.

    Raises:
        ScenarioError: when two scenarios share an id.
    """

    name: str
    scenarios: tuple[Scenario, ...]

    def __post_init__(self) -> None:
        if len({scenario.id for scenario in self.scenarios}) < len(self.scenarios):
            seen: set[str] = set()
            for scenario in self.scenarios:
                if scenario.id in seen:
                    raise ScenarioError(f"{self.name}: two scenarios share the id {scenario.id!r}; ids must be unique")
                seen.add(scenario.id)

    def __len__(self) -> int:
        return len(self.scenarios)

    def __iter__(self) -> Iterator[Scenario]:
        return iter(self.scenarios)

    def __getitem__(self, index: Any) -> Any:
        """The scenario at a position, or a `ScenarioSet` for a slice."""
        if isinstance(index, slice):
            return replace(self, scenarios=self.scenarios[index])
        return self.scenarios[index]

    def by_id(self, scenario_id: str) -> Scenario:
        """The scenario with this id. Raises ScenarioError with the nearest ids."""
        for scenario in self.scenarios:
            if scenario.id == scenario_id:
                return scenario
        hint = did_you_mean(scenario_id, [scenario.id for scenario in self.scenarios[:500]])
        raise ScenarioError(f"{self.name} has no scenario {scenario_id!r}. {hint[:300]}")

    def filter(self, keep: Callable[[Scenario], bool]) -> ScenarioSet:
        """Those for which `keep` is true, in order."""
        return replace(self, scenarios=tuple(scenario for scenario in self.scenarios if keep(scenario)))

    def with_persona(self, persona: str) -> ScenarioSet:
        """The same people, all with this persona, or each with one of `MIXTURE` (`mixed`)."""
        return replace(self, scenarios=tuple(scenario.with_persona(persona) for scenario in self.scenarios))

    def sample(self, count: int, seed: int) -> ScenarioSet:
        """`count` scenarios without replacement, chosen by `seed`, kept in order.

        Raises:
            ScenarioError: when there are fewer than `count`.
        """
        if not 0 <= count <= len(self):
            raise ScenarioError(f"{self.name}: cannot sample {count} of {len(self)} scenarios")
        ranked = sorted(self.scenarios, key=lambda scenario: derive(seed, scenario.id))[:count]
        chosen = {scenario.id for scenario in ranked}
        return self.filter(lambda scenario: scenario.id in chosen)

    def split(self, seed: int = 0, *, train: float = 0.6, valid: float = 0.2) -> dict[str, ScenarioSet]:
        """Train, valid and test, stratified by problem; near-duplicate situations stay on one side.

        Args:
            seed: decides which group goes where.
            train, valid: shares in (0, 1); test takes the rest.
        """
        if not (0 < train < 1 and 0 <= valid < 1 and train + valid <= 1):
            raise ScenarioError(f"split shares must lie in (0, 1) and add up to at most 1, not {train} and {valid}")
        groups: dict[str, list[str]] = {scenario.id: [scenario.id] for scenario in self.scenarios}
        for first, second in near_duplicates(self.scenarios, self.scenarios):
            if groups[first] is not groups[second]:
                groups[first].extend(groups[second])
                for member in groups[second]:
                    groups[member] = groups[first]
        strata: dict[str, list[list[str]]] = defaultdict(list)
        taken: set[int] = set()
        for scenario in self.scenarios:
            group = groups[scenario.id]
            if id(group) not in taken:
                taken.add(id(group))
                strata[scenario.problem].append(group)
        side: dict[str, str] = {}
        ranked: list[list[str]] = []
        for problem in sorted(strata):
            members = sorted(strata[problem], key=lambda group: group[0])
            random.Random(derive(seed, problem)).shuffle(members)
            ranked += members
        # Bresenham's rule over the ranked groups keeps every stratum and the whole at the asked shares.
        quota = {"train": 0.0, "valid": 0.0, "test": 0.0}
        for group in ranked:
            for name, share in (("train", train), ("valid", valid), ("test", 1 - train - valid)):
                quota[name] += share * len(group)
            name = max(quota, key=lambda key: quota[key])
            quota[name] -= len(group)
            side.update(dict.fromkeys(group, name))
        return {
            name: ScenarioSet(f"{self.name}[{name}]", tuple(s for s in self.scenarios if side[s.id] == name))
            for name in ("train", "valid", "test")
        }

    @property
    def digest(self) -> str:
        """16 hex digits over ids and contents in order."""
        return _digest([[scenario.id, scenario.digest] for scenario in self.scenarios])

    @classmethod
    def of(cls, name: str, scenarios: Iterable[Scenario]) -> ScenarioSet:
        """A set from any iterable."""
        return cls(name, tuple(scenarios))


def near_duplicates(
    first: Iterable[Scenario], second: Iterable[Scenario], *, threshold: float = 0.6
) -> list[tuple[str, str]]:
    """Pairs of ids (one from each side, never the same id) whose situations are nearly the same.

    Nearly the same: the Jaccard overlap of their word sets is at least `threshold`. At 0.6, 7 of the 130 situations of
    PPDPP's validation split have a near-duplicate in its training split.
    """
    left = [(scenario.id, _words(scenario.situation)) for scenario in first]
    right = [(scenario.id, _words(scenario.situation)) for scenario in second]
    frequency = Counter(word for side in (left, right) for _, words in side for word in words)

    def rarest(words: frozenset[str]) -> list[str]:
        """So many of the rarest words that two sets which are near duplicates share one of them."""
        ranked = sorted(words, key=lambda word: (frequency[word], word))
        return ranked[: len(words) - math.ceil(threshold * len(words) - 1e-9) + 1]

    holders: dict[str, list[int]] = defaultdict(list)
    for position, (_, words) in enumerate(right):
        for word in rarest(words):
            holders[word].append(position)
    pairs = []
    for left_id, words in left:
        for position in sorted({position for word in rarest(words) for position in holders.get(word, ())}):
            right_id, other = right[position]
            common = len(words & other)
            if left_id != right_id and common / (len(words) + len(other) - common) >= threshold:
                pairs.append((left_id, right_id))
    return pairs


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))

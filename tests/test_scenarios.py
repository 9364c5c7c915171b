"""Scenarios and sets of them: what is refused, what stays stable, how a set is divided."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_env.dialogue import Dialogue, Message
from esc_env.errors import ScenarioError
from esc_env.scenarios import MIXTURE, PERSONAS, Scenario, ScenarioSet, mentions_self_harm, near_duplicates

FLAT = Scenario("flat", "I may lose my flat next month.", facts=("The rent went up.",))


def people(count: int, problems: int = 5) -> ScenarioSet:
    """Scenarios whose situations share no word."""
    return ScenarioSet.of(
        "people",
        (
            Scenario(f"p{n:03}", " ".join(f"{letter}{n}" for letter in "abcdef"), problem=f"problem {n % problems}")
            for n in range(count)
        ),
    )


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"id": "", "situation": "x"}, "must not be empty"),
        ({"id": "a", "situation": "  "}, "must not be empty"),
        ({"id": "a", "situation": "x", "intensity": 6}, "intensity must be 1 to 5"),
        ({"id": "a", "situation": "x", "persona": "hostil"}, "Did you mean 'hostile'"),
        ({"id": "a", "situation": "x", "need": "hug"}, "listen, plan or both"),
        ({"id": "a", "situation": "x", "facts": ("half of it: \ud83d",)}, "no UTF-8 text"),
    ],
)
def test_a_scenario_without_sense_is_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        Scenario(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"situation": "x"}, "'id' is missing"),
        ({"id": "a", "situation": "x", "emotoin": "fear"}, "Did you mean 'emotion'"),
        ({"id": "a", "situation": "x", "facts": "one"}, "'facts' must be a list"),
        ({"id": "a", "situation": "x", "risk": 1}, "'risk' must be true or false"),
        ({"id": "a", "situation": "x", "intensity": True}, "'intensity' must be an integer"),
        ({"id": "a", "situation": "x", "voice": []}, "'voice' must be an object"),
        ({"id": "a", "situation": "x", "dialogue": [{"role": "judge", "content": "hm"}]}, "field 'dialogue'"),
        ({"id": "a", "situation": "x", 5: "y", "z": 1}, "unknown field '5'"),
        ({"id": "a", "situation": "x", "voice": {5: ["y"]}}, "'voice' must be an object of string lists"),
        ({"id": "a", "situation": "x", "survey": {5: 5, "y": 5}}, "'survey' must be an object of integers"),
        ([5], "must be an object of fields"),
        ("a", "must be an object of fields"),
    ],
)
def test_json_with_a_wrong_field_is_refused_by_its_name(data: Any, why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        Scenario.from_json(data)


def test_json_holds_the_human_dialogue_only_when_asked() -> None:
    scenario = Scenario("a", "x", dialogue=Dialogue((Message("seeker", "hi"),)))
    assert "dialogue" not in scenario.to_json()
    assert Scenario.from_json(scenario.to_json(dialogue=True)) == scenario


def test_the_digest_sees_content_and_persona_but_not_where_it_came_from() -> None:
    moved = Scenario("other", FLAT.situation, facts=FLAT.facts, source="elsewhere", survey={"empathy": 3})
    assert moved.digest == FLAT.digest
    digests = {FLAT.with_persona(persona).digest for persona in PERSONAS}
    assert len(digests) == len(PERSONAS)
    assert Scenario("flat", FLAT.situation).digest != FLAT.digest


def test_a_mixture_deals_out_personas_by_id_and_keeps_two_for_testing() -> None:
    mixed = people(60).with_persona("mixed")
    dealt = [person.persona for person in mixed]
    assert set(dealt) == set(MIXTURE) == {*PERSONAS} - {"guarded", "hostile"}
    assert min(dealt.count(persona) for persona in MIXTURE) >= 8
    assert mixed == people(60).with_persona("hostile").with_persona("mixed")
    assert [person.persona for person in people(30).with_persona("mixed")] == dealt[:30]
    with pytest.raises(ScenarioError, match=r"unknown persona 'mixd'\. Did you mean 'mixed'"):
        FLAT.with_persona("mixd")


def test_a_set_refuses_two_scenarios_of_one_id() -> None:
    with pytest.raises(ScenarioError, match="share the id 'flat'"):
        ScenarioSet("s", (FLAT, FLAT))


def test_a_scenario_is_found_by_id_or_the_nearest_is_named() -> None:
    assert people(9).by_id("p003").id == "p003"
    with pytest.raises(ScenarioError, match="p003"):
        people(9).by_id("p03")


def test_a_sample_is_the_same_whatever_the_order_and_grows_without_losing_any() -> None:
    whole = people(30)
    turned = ScenarioSet("turned", whole.scenarios[::-1])
    few = {scenario.id for scenario in whole.sample(5, seed=1)}
    assert few == {scenario.id for scenario in turned.sample(5, seed=1)}
    assert few < {scenario.id for scenario in whole.sample(10, seed=1)}
    assert few != {scenario.id for scenario in whole.sample(5, seed=2)}
    with pytest.raises(ScenarioError, match="cannot sample 31 of 30"):
        whole.sample(31, seed=1)


def test_a_slice_is_a_set_and_the_digest_knows_order() -> None:
    assert isinstance(people(5)[1:3], ScenarioSet)
    assert people(5).digest != ScenarioSet("people", people(5).scenarios[::-1]).digest


@given(count=st.integers(1, 60), problems=st.integers(1, 7), seed=st.integers(0, 3))
def test_a_split_gives_every_scenario_one_side_at_the_asked_shares(count: int, problems: int, seed: int) -> None:
    whole = people(count, problems)
    parts = whole.split(seed)
    assert sorted(s.id for part in parts.values() for s in part) == [s.id for s in whole]
    assert all(abs(len(parts[n]) - share * count) < 2 for n, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2)))
    assert whole.split(seed) == parts


def test_a_split_has_every_problem_on_every_side() -> None:
    parts = people(100).split()
    for name, share in (("train", 12), ("valid", 4), ("test", 4)):
        assert all(abs(count - share) <= 1 for count in Counter(s.problem for s in parts[name]).values())


def test_near_duplicates_stay_on_one_side_also_in_chains() -> None:
    words = [f"w{n}" for n in range(40)]
    chain = [Scenario(f"c{n}", " ".join(words[n : n + 10]), problem=f"problem {n % 5}") for n in range(20)]
    parts = ScenarioSet("chain", (*people(60).scenarios, *chain)).split()
    assert sorted(sum(s.id.startswith("c") for s in part) for part in parts.values()) == [0, 0, 20]


@given(
    st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=9), min_size=1, max_size=12),
    st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.8, 1.0]),
)
def test_near_duplicates_are_exactly_the_pairs_at_or_above_the_threshold(
    texts: list[list[str]], threshold: float
) -> None:
    scenarios = [Scenario(f"s{n}", " ".join(words)) for n, words in enumerate(texts)]
    sets = [set(words) for words in texts]
    expected = [
        (f"s{i}", f"s{j}")
        for i, one in enumerate(sets)
        for j, two in enumerate(sets)
        if i != j and len(one & two) / len(one | two) >= threshold
    ]
    assert near_duplicates(scenarios, scenarios, threshold=threshold) == expected


@pytest.mark.parametrize("shares", [{"train": 0.0}, {"train": 1.0}, {"train": 0.9, "valid": 0.2}])
def test_shares_that_make_no_split_are_refused(shares: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match="split shares"):
        people(5).split(**shares)


@pytest.mark.parametrize(
    "text",
    [
        "suicide", "I just want to kill myself already", "Sometimes I think about dying.",
        "I don’t want to be here anymore",
        "they'd be better off without me", "I took an overdose, I overdosed last year", "I feel like ending my life",
        "I've been cutting myself", "I wish I was dead",
    ],
)  # fmt: skip
def test_words_of_self_harm_are_seen(text: str) -> None:
    assert mentions_self_harm(text)


@pytest.mark.parametrize(
    "text",
    [
        "I play games to kill time", "I'm dying to see her", "My back is killing me", "I was killing it at work",
        "My dog died on Sunday", "I want to end this relationship", "the exam killed me",
        "He hurt my feelings", "my homicide novel",
    ],
)  # fmt: skip
def test_turns_of_phrase_are_not_self_harm(text: str) -> None:
    assert not mentions_self_harm(text)

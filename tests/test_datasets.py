"""Readers and scenario sets: every record accounted for, every name either loads or says what to do."""

from __future__ import annotations

import gzip
import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_env.data import membership
from esc_env.data.datasets import load_scenarios, read_file, summarise
from esc_env.dialogue import STRATEGIES
from esc_env.errors import ScenarioError
from esc_env.scenarios import Scenario, near_duplicates

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
real_data = pytest.mark.skipif(not DATA.exists(), reason="the ESConv and ExTES samples are not next to the checkout")

SAID = [
    ("supporter", "Hello, what brings you here?", "Question"),
    ("seeker", "hi", None),
    ("seeker", "My landlord raised the rent and I can't pay it.", None),
    ("supporter", "That sounds frightening.", "Reflection of feelings"),
    ("seeker", "ok thank you so much, bye", None),
]
SURVEY = {"seeker": {"initial_emotion_intensity": "4", "final_emotion_intensity": "2", "empathy": "5"}, "supporter": {}}
HEAD = {"emotion_type": "fear", "problem_type": "Job Crisis", "situation": "I may lose my flat next month."}


def official(said: Any = SAID, *, failed: bool = False, **fields: Any) -> dict[str, Any]:
    names = {"seeker": "speaker", "supporter": "listener"} if failed else {}
    dialog = [
        {"speaker": names.get(role, role), "annotation": {"strategy": name} if name else {}, "content": f"{text} \n"}
        for role, text, name in said
    ]
    return {**HEAD, "experience_type": "Current", "survey_score": SURVEY, "dialog": dialog, **fields}


def ppdpp(said: Any = SAID, **fields: Any) -> dict[str, Any]:
    dialog = [
        {"text": text, "speaker": "usr" if role == "seeker" else "sys", **({"strategy": name} if name else {})}
        for role, text, name in said
    ]
    return {**HEAD, "dialog": dialog, **fields}


def hub(said: Any = SAID, **fields: Any) -> dict[str, Any]:
    return ppdpp(said, experience_type="Current", survey_score=SURVEY, **fields)


EXTES = {
    "scene": "Academic Stress",
    "description": "I failed two exams and my parents do not know.",
    "content": [
        {"User": "Hey"},
        {"AI Strategy": "", "AI": "Hi! What is going on?"},
        {"User": "I failed both my physics exams last week."},
        {"AI Strategy": "Suggest Options (SO)", "AI": "You could talk to your tutor."},
    ],
}
SFT = {
    "instruction": "Thanks again!",
    "input": "",
    "output": "Bye!",
    "history": [["My brother stole money from our mother.", "That must hurt."]],
}
PLAIN = {"id": "rent-1", "situation": "I may lose my flat next month.", "facts": ["My landlord raised the rent."]}


def listed(*records: Any) -> str:
    return json.dumps(records)


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


LAYOUTS = {
    "esconv": listed(official()),
    "esconv-failed": listed(official(failed=True)),
    "esconv-ppdpp": lines(ppdpp()),
    "esconv-ppdpp-literal": repr(ppdpp()) + "\n",
    "esconv-hf": lines(hub()),
    "esconv-hf-wrapped": lines({"text": json.dumps(hub())}),
    "extes": listed(EXTES),
    "extes-sft": listed(SFT),
    "plain": lines(PLAIN),
}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(content: str | bytes) -> Any:
        path = tmp_path / "some file"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_file(path)

    return read


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, no user cache, and no `datasets` to fetch with."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("ESC_DATA", str(folder))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    return folder


# --- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dress", ["as it is", "byte order mark", "CRLF", "empty lines around"])
def test_a_layout_is_told_by_content(read: Any, name: str, dress: str) -> None:
    content = LAYOUTS[name].encode()
    if dress == "byte order mark":
        content = b"\xef\xbb\xbf" + content
    elif dress == "CRLF":
        content = content.replace(b"\n", b"\r\n")
    elif dress == "empty lines around":
        content = b"\n \n" + content + b"\n\n"
    reading = read(content)
    layouts = ("esconv-ppdpp", "esconv-hf", "esconv", "extes-sft", "extes", "plain")
    assert reading.format == next(layout for layout in layouts if name.startswith(layout))
    assert len(reading.scenarios) == 1
    assert reading.skipped == ()


def test_every_esconv_layout_gives_the_same_person(read: Any) -> None:
    scenarios = [read(LAYOUTS[name]).scenarios[0] for name in LAYOUTS if name.startswith("esconv")]
    assert len({scenario.id for scenario in scenarios}) == 1
    assert len({scenario.facts for scenario in scenarios}) == 1
    assert len({scenario.dialogue for scenario in scenarios}) == 1
    first = scenarios[0]
    assert first.id.startswith("esconv-")
    assert (first.emotion, first.problem, first.situation) == ("fear", "job crisis", HEAD["situation"])
    assert first.intensity == 4
    assert first.survey == {"initial_intensity": 4, "final_intensity": 2, "empathy": 5}
    assert [message.role for message in first.dialogue] == [role for role, _, _ in SAID]
    assert [message.content for message in first.dialogue] == [text for _, text, _ in SAID]


def test_facts_are_the_seekers_own_statements_without_small_talk(read: Any) -> None:
    said = [
        ("seeker", "Hello there!", None),
        ("supporter", "Hi", None),
        ("seeker", "My dog died on Sunday.", None),
        ("seeker", "She was fourteen.", None),
        ("supporter", "I am sorry.", None),
        ("seeker", "yes", None),
        ("supporter", "Have you told anyone?", None),
        ("seeker", "Only my sister, and she laughed. Have you ever lost a pet?", None),
        ("supporter", "I have.", None),
        ("seeker", "What did you do?", None),
        ("supporter", "I wept.", None),
        ("seeker", "Thank you so much for listening, have a nice day!", None),
    ]
    assert read(listed(official(said))).scenarios[0].facts == (
        "My dog died on Sunday.\nShe was fourteen.",
        "Only my sister, and she laughed. Have you ever lost a pet?",
    )


@pytest.mark.parametrize("situation", ["", " covid", "321", "Job Crisis"])
def test_a_situation_that_says_nothing_gives_way_to_the_first_statement(read: Any, situation: str) -> None:
    scenario = read(listed(official(situation=situation))).scenarios[0]
    assert scenario.situation == "My landlord raised the rent and I can't pay it."
    assert scenario.situation not in scenario.facts


def test_a_situation_of_one_word_about_suicide_is_kept_and_marked(read: Any) -> None:
    scenario = read(listed(official(situation="suicide"))).scenarios[0]
    assert scenario.situation == "suicide"
    assert scenario.risk


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Questions", "Question"),
        ("Other", "Others"),
        ("Restatement", "Restatement or Paraphrasing"),
        ("Reflection of feelings", "Reflection of Feelings"),
        ("Direct Guidance", "Providing Suggestions"),
        ("Approval and Reassurance", "Affirmation and Reassurance"),
        *((name, name) for name in STRATEGIES),
        ("", None),
    ],
)
def test_strategies_get_esconvs_eight_names(read: Any, theirs: str, ours: str | None) -> None:
    said = [("seeker", "I lost my job today.", None), ("supporter", "Oh.", theirs)]
    assert read(lines(ppdpp(said))).scenarios[0].dialogue.messages[1].strategy == ours


def test_extes_keeps_its_own_strategy_names(read: Any) -> None:
    scenario = read(LAYOUTS["extes"]).scenarios[0]
    assert [message.strategy for message in scenario.dialogue] == [None, None, None, "Suggest Options"]
    assert (scenario.problem, scenario.situation) == ("academic stress", EXTES["description"])
    assert scenario.facts == ("I failed both my physics exams last week.",)


def test_a_llama_factory_row_ends_with_its_instruction_and_output(read: Any) -> None:
    scenario = read(LAYOUTS["extes-sft"]).scenarios[0]
    assert [message.content for message in scenario.dialogue][-2:] == ["Thanks again!", "Bye!"]
    assert scenario.situation == "My brother stole money from our mother."


# --- what is left out, and what is refused ------------------------------------------------------------


def test_every_record_is_a_scenario_or_skipped_with_place_and_reason(read: Any) -> None:
    reading = read(
        lines(ppdpp())
        + "\n{broken\n[1, 2]\n"
        + lines(ppdpp(), {"dialog": "none"})
        + lines(ppdpp([("seeker", "", None)]), ppdpp(dialog=[{"speaker": "x", "text": "y"}]))
    )
    assert len(reading.scenarios) == 1
    assert [(skipped.place, skipped.reason.split()[0]) for skipped in reading.skipped] == [
        ("line 3", "not"),
        ("line 4", "not"),
        ("line 5", "the"),
        ("line 6", "no"),
        ("line 7", "the"),
        ("line 8", "turn"),
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "no records"),
        ("\n \r\n", "no records"),
        ("[]", "no records"),
        (b"caf\xe9", "not UTF-8"),
        ("hello there", "not JSON"),
        ("[1, 2]", "not an object"),
        ('{"a": 1}', "no known layout"),
        ("[" * 100_000, "not JSON"),
        ("{'a': " * 5_000, "not JSON"),
        ("9" * 10_000, "not JSON"),
        ("{'a': " + "9" * 10_000 + "}", "not JSON"),
        (lines({**PLAIN, "colour": "red"}), "unknown field 'colour'"),
        (lines({"id": "a", "situation": 3}), "'situation' is missing or not a string"),
        (lines({**PLAIN, "situation": "\ud800 alone"}), "surrogates"),
        (lines({"text": "{broken"}), "'text' holds no object"),
    ],
)
def test_a_file_without_anything_usable_is_refused_with_the_reason(read: Any, content: str | bytes, why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        read(content)


def test_a_python_literal_is_never_run(read: Any, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="not a Python literal"):
        read(f"{{'situation': open({str(tmp_path / 'made')!r}, 'w')}}")
    assert not (tmp_path / "made").exists()


def test_numbers_without_sense_are_left_out(read: Any) -> None:
    survey = {"seeker": {"initial_emotion_intensity": "9" * 5_000, "empathy": None, "relevance": "0"}}
    scenario = read(listed(official(survey_score=survey))).scenarios[0]
    assert scenario.intensity is None
    assert scenario.survey == {"relevance": 0}


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"kind": "trajectory", "version": 1, "scenario": {}}, "esc leaderboard"),
        ({"id": "1", "player": "p", "history": [], "emo_point": 5, "task": "t"}, "SAGE trajectories.*esc import"),
        ({"0": {"fluency": 3, "empathic": 2}}, "ESC-Eval scores"),
        ({"0": ["AI assistant：Hi", "ESC-Role：Hello"]}, "ESC-Eval dialogues.*esc import"),
    ],
)
def test_files_for_other_parts_are_named_and_refused(read: Any, record: Any, what: str) -> None:
    with pytest.raises(ScenarioError, match=what):
        read(json.dumps(record))


def test_a_file_that_cannot_be_opened_is_a_scenario_error(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read"):
        read_file(tmp_path / "absent.json")


# --- esc-env's own layout --------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SOLID = TEXT.filter(lambda text: bool(text.strip()))
SCENARIOS = st.builds(
    Scenario,
    id=SOLID,
    situation=SOLID,
    emotion=TEXT,
    intensity=st.none() | st.integers(1, 5),
    facts=st.lists(TEXT, max_size=3).map(tuple),
    persona=st.sampled_from(["cooperative", "hostile"]),
    source=SOLID,
    survey=st.dictionaries(st.sampled_from(["empathy", "relevance"]), st.integers(0, 5)),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "file"


@given(st.lists(SCENARIOS, min_size=1, max_size=4, unique_by=lambda scenario: scenario.id))
def test_scenarios_come_back_from_their_own_lines(scratch: Path, scenarios: list[Scenario]) -> None:
    rows = [json.dumps(scenario.to_json(dialogue=True), ensure_ascii=False) for scenario in scenarios]
    scratch.write_bytes("\n".join(rows).encode())
    assert list(read_file(scratch).scenarios) == scenarios


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["dialog", "text", "content", "speaker", "situation", "id", "facts", "User", "AI", "scene", "survey_score",
             "seeker", "history", "instruction", "output", "annotation", "strategy", "0", "voice", "dialogue", "survey"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(st.text(max_size=60) | JUNK.map(json.dumps) | JUNK.map(repr), max_size=4))
def test_no_text_crashes_the_reader(scratch: Path, content: list[str]) -> None:
    scratch.write_bytes("\n".join(content).encode("utf-8", "surrogatepass"))
    try:
        reading = read_file(scratch)
    except ScenarioError:
        return
    assert len({scenario.id for scenario in reading.scenarios}) == len(reading.scenarios)
    assert [scenario.digest for scenario in reading.scenarios]


def test_an_imported_plain_scenario_is_marked_unless_its_author_decided(read: Any) -> None:
    words = {"facts": ["Some nights I think about killing myself."]}
    reading = read(lines({**PLAIN, **words}, {**PLAIN, **words, "id": "b", "risk": False}, {**PLAIN, "id": "c"}))
    assert [scenario.risk for scenario in reading.scenarios] == [True, False, False]


def test_a_row_needs_nothing_but_a_situation_and_its_id_is_its_content(read: Any) -> None:
    row = {"situation": "My boss shouts at me.", "facts": ["Every day."], "intensity": 4}
    turned = {**dict(reversed(row.items())), "situation": " My boss  shouts at me.\n", "emotion": None, "split": "test"}
    other = {**row, "intensity": 3}
    reading = read(lines(row, other))
    assert [scenario.id[:6] for scenario in reading.scenarios] == ["plain-", "plain-"]
    assert len({scenario.id for scenario in reading.scenarios}) == 2
    del turned["emotion"]
    assert read(listed(turned)).scenarios[0].id == reading.scenarios[0].id


def test_equal_rows_without_ids_are_accounted_for_as_copies(read: Any) -> None:
    reading = read(lines({"situation": "I lost my job."}, {"situation": "I lost my job."}))
    assert len(reading.scenarios) == 1
    assert str(reading.skipped[0]).startswith("line 2: the same id (plain-")


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "meets"),
    [
        ("emotion=anger", lambda person: person.emotion == "anger"),
        ("emotion != Anger, guilt ", lambda person: person.emotion not in ("anger", "guilt")),
        ("intensity=4,5&risk=false", lambda person: person.intensity in (4, 5) and not person.risk),
        ("need!=plan&persona=cooperative", lambda person: person.need != "plan"),
    ],
)
def test_of_a_set_those_are_chosen_who_meet_every_condition(who: str, meets: Any, tmp_path: Path) -> None:
    people = load_scenarios("builtin:train")
    chosen = load_scenarios(f"builtin:train?{who}")
    assert 0 < len(chosen) < len(people)
    assert list(chosen) == list(people.filter(meets))
    assert chosen.name == f"builtin:train?{who}"
    file = tmp_path / "people.jsonl"
    file.write_text("".join(json.dumps(person.to_json()) + "\n" for person in people), encoding="utf-8")
    assert load_scenarios(f"{file}?{who}").digest == chosen.digest
    odd = tmp_path / "people?emotion=anger"
    odd.write_bytes(file.read_bytes())
    assert len(load_scenarios(str(odd))) == len(people)


@pytest.mark.parametrize(
    ("who", "told"),
    [
        ("emotion=angr", "nobody has emotion 'angr'. Did you mean 'anger'"),
        ("emotino=anger", "'emotino=anger' is no condition.*Did you mean 'emotion'"),
        ("emotion", "'emotion' is no condition. Write FIELD=VALUE"),
        ("", "'' is no condition"),
        ("emotion=anger&", "'' is no condition"),
        ("emotion=anger?risk=true", "nobody has emotion"),
        ("emotion=anger&emotion!=anger", "nobody is left"),
    ],
)
def test_a_condition_that_chooses_nobody_or_is_none_is_refused(who: str, told: str) -> None:
    with pytest.raises(ScenarioError, match=told) as error:
        load_scenarios(f"builtin:train?{who}")
    assert str(error.value).startswith(f"builtin:train?{who}: ")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("biltin:test", "builtin:test"),
        ("esconv:tset", "esconv:test"),
        ("esconv", "which split"),
        ("builtin:", "which split"),
        ("extes:dev", "extes:test"),
        ("no/such/file.json", "neither a file nor a known name"),
        ("x" * 5_000, "neither a file"),
        ("\0", "neither a file"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(spec: str, hint: str) -> None:
    with pytest.raises(ScenarioError, match=hint):
        load_scenarios(spec)


def test_a_folder_is_refused_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="ESC_DATA="):
        load_scenarios(tmp_path)


def test_the_builtin_bank_loads_by_split_and_whole() -> None:
    parts = [load_scenarios(f"builtin:{split}") for split in ("train", "valid", "test")]
    whole = load_scenarios("builtin")
    assert sum(map(len, parts)) == len(whole)
    assert {scenario.id for part in parts for scenario in part} == {scenario.id for scenario in whole}
    assert parts[2][0].source == "builtin:test"
    assert load_scenarios("builtin") is whole


def test_the_builtin_bank_has_no_near_duplicates_across_splits() -> None:
    assert summarise(load_scenarios("builtin")).near_duplicates == ()


@pytest.mark.parametrize("spec", ["esconv:test", "esconv-hf:test", "extes:test"])
def test_a_missing_file_says_where_to_get_it_and_where_to_put_it(data_folder: Path, spec: str) -> None:
    with pytest.raises(ScenarioError, match=r"https://\S+") as caught:
        load_scenarios(spec)
    assert str(data_folder) in str(caught.value)
    assert str(data_folder.parent / "cache") in str(caught.value)


def invented(number: int) -> list[tuple[str, str, None]]:
    """A dialogue that shares no telling word with any other number's."""
    return [("seeker", " ".join(f"{word}{number}" for word in ("rain", "stone", "bread", "river")), None)]


def record(number: int, make: Any = ppdpp) -> dict[str, Any]:
    return make(invented(number), situation=f"a{'x' * number} b{'x' * number} c{'x' * number}")


@pytest.fixture
def small_esconv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """140 dialogues of which the first six are train and the next four valid."""
    records = [record(number) for number in range(140)]
    path = tmp_path / "all"
    path.write_text(lines(*records))
    ids = [scenario.id for scenario in read_file(path).scenarios]
    monkeypatch.setattr(membership, "members", {"train": frozenset(ids[:6]), "valid": frozenset(ids[6:10])}.__getitem__)
    return records


def test_membership_is_told_by_content_and_the_rest_of_a_full_file_is_test(
    data_folder: Path, small_esconv: Any
) -> None:
    (data_folder / "ESConv.json").write_text(listed(*small_esconv))
    sizes = {split: len(load_scenarios(f"esconv:{split}")) for split in ("train", "valid", "test")}
    assert sizes == {"train": 6, "valid": 4, "test": 130}
    assert load_scenarios("esconv:test")[0].source == "esconv:test"


def test_the_same_set_comes_from_one_file_or_from_ppdpps_three(data_folder: Path, small_esconv: Any) -> None:
    (data_folder / "ESConv.json").write_text(listed(*small_esconv))
    one = [load_scenarios(f"esconv:{split}") for split in ("valid", "test")]
    (data_folder / "ESConv.json").unlink()
    for name, part in (("train", small_esconv[:6]), ("valid", small_esconv[6:10]), ("test", small_esconv[10:])):
        (data_folder / f"esc-{name}.txt").write_text(lines(*part))
    assert [load_scenarios(f"esconv:{split}") for split in ("valid", "test")] == one


@pytest.mark.parametrize("kept", [slice(0, 139), slice(1, 140), slice(10, 140)])
def test_test_is_refused_from_a_part_of_esconv(data_folder: Path, small_esconv: Any, kept: slice) -> None:
    (data_folder / "ESConv.json").write_text(listed(*small_esconv[kept]))
    with pytest.raises(ScenarioError, match="cannot be told to be test"):
        load_scenarios("esconv:test")


def test_train_is_refused_when_dialogues_are_missing(data_folder: Path, small_esconv: Any) -> None:
    (data_folder / "ESConv.json").write_text(listed(*small_esconv[1:]))
    with pytest.raises(ScenarioError, match="1 of its 6 dialogues"):
        load_scenarios("esconv:train")


def test_the_richer_of_two_copies_is_used(data_folder: Path, small_esconv: Any) -> None:
    (data_folder / "esconv_a.jsonl").write_text(lines(*(record(number, hub) for number in range(140))))
    (data_folder / "esconv_b.txt").write_text(lines(*small_esconv))
    assert all(scenario.intensity == 4 for scenario in load_scenarios("esconv:valid"))


def test_failed_dialogues_never_become_esconvs_test(data_folder: Path, small_esconv: Any) -> None:
    (data_folder / "FailedESConv.json").write_text(listed(*(record(number) for number in range(200, 330))))
    (data_folder / "ESConv.json").write_text(listed(*small_esconv[:10]))
    with pytest.raises(ScenarioError, match="holds 0 others"):
        load_scenarios("esconv:test")


def test_the_hubs_split_is_its_own(data_folder: Path, small_esconv: Any) -> None:
    (data_folder / "esconv-hf").mkdir()
    for name, part in (("train", slice(5)), ("validation", slice(5, 8)), ("test", slice(8, 140))):
        (data_folder / "esconv-hf" / f"{name}.jsonl").write_text(lines(*small_esconv[part]))
    sizes = {name: len(load_scenarios(f"esconv-hf:{name}")) for name in ("train", "validation", "valid", "test")}
    assert sizes == {"train": 5, "validation": 3, "valid": 3, "test": 132}
    assert len(load_scenarios("esconv:train")) == 6


def test_the_hubs_files_are_found_as_the_hub_names_and_packs_them(data_folder: Path, small_esconv: Any) -> None:
    (data_folder / "esconv-hf").mkdir()
    for name, part in (
        ("train-00000-of-00002.jsonl.gz", slice(3)), ("train-00001-of-00002.jsonl.gz", slice(3, 5)),
        ("validation.json", slice(5, 8)), ("test.csv.gz", slice(8, 140)),
    ):  # fmt: skip
        rows = [{"text": json.dumps(row)} for row in small_esconv[part]]
        text = lines(*rows)
        if "csv" in name:
            text = "text\n" + "".join('"' + row["text"].replace('"', '""') + '"\n' for row in rows)
        content = text.encode()
        (data_folder / "esconv-hf" / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    sizes = {name: len(load_scenarios(f"esconv-hf:{name}")) for name in ("train", "validation", "test")}
    assert sizes == {"train": 5, "validation": 3, "test": 132}
    assert len(load_scenarios("esconv:test")) == 130


def test_with_datasets_installed_the_hub_is_asked_once_and_kept(
    data_folder: Path, small_esconv: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(name: str) -> dict[str, list[dict[str, str]]]:
        asked.append(name)
        parts = {"train": small_esconv[:5], "validation": small_esconv[5:8], "test": small_esconv[8:]}
        return {split: [{"text": json.dumps(row)} for row in rows] for split, rows in parts.items()}

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # so that nobody looks whether the Hub is there
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(load_scenarios("esconv-hf:validation")) == 3
    assert len(load_scenarios("esconv:test")) == 130
    assert asked == ["thu-coai/esconv"]


def test_a_hub_that_does_not_answer_is_said(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # so that nobody looks whether the Hub is there
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ScenarioError, match=r"https.*no route to host"):
        load_scenarios("esconv:test")


def test_without_a_way_to_the_hub_nobody_waits_for_it(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=asked.append))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(ScenarioError, match=r"from the Hub failed: nobody listens at 127\.0\.0\.1"):
            load_scenarios("esconv:test")
    assert asked == []


def test_extes_is_split_only_whole(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {**EXTES, "description": " ".join(f"{word}{number}" for word in "pqrst"), "content": [{"User": f"w{number}"}]}
        for number in range(50)
    ]
    (data_folder / "ExTES.json").write_text(listed(*rows))
    with pytest.raises(ScenarioError, match="11,177"):
        load_scenarios("extes:test")
    monkeypatch.setattr("esc_env.data.datasets._EXTES_FULL", 50)
    parts = [load_scenarios(f"extes:{split}") for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [30, 10, 10]
    assert len({scenario.id for part in parts for scenario in part}) == 50


# --- summary -------------------------------------------------------------------------------------------


def test_a_summary_counts_what_the_file_holds(read: Any) -> None:
    summary = summarise(read(listed(official(), official(invented(1)), 3)))
    assert (summary.records, summary.scenarios, summary.risk) == (3, 2, 0)
    assert summary.emotions == {"fear": 2}
    assert summary.strategies == {"Question": 1, "Reflection of Feelings": 1}
    assert summary.turns == (0, 1, 2)
    assert str(summary.skipped[0]) == "record 3: not an object (int)"
    assert json.loads(json.dumps(summary.to_json()))["skipped"] == [
        {"place": "record 3", "reason": "not an object (int)"}
    ]


def test_near_duplicates_between_a_files_own_splits_are_reported(read: Any) -> None:
    twin = {**PLAIN, "id": "rent-2", "situation": "I may lose my flat next month!", "split": "test"}
    summary = summarise(read(lines({**PLAIN, "split": "train"}, twin)))
    assert summary.splits == {"train": 1, "test": 1}
    assert summary.near_duplicates == (("rent-1", "rent-2"),)


# --- real files ------------------------------------------------------------------------------------------


@real_data
@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [
        ("esconv_official_sample.json", "esconv", 47),
        ("failed_half_official.json", "esconv", 98),
        ("esconv_valid130_ppdpp.txt", "esconv-ppdpp", 130),
        ("esconv_valid130_hf_survey.jsonl", "esconv-hf", 130),
        ("extes_original1.json", "extes", 1),
        ("extes_sft10_aptness.json", "extes-sft", 10),
        ("esc_eval_cards_high_en.json", "esc-eval-card", 331),
        ("sage_profiles20_zh.jsonl", "sage-profile", 20),
    ],
)
def test_every_real_dialogue_is_accounted_for(name: str, layout: str, count: int) -> None:
    reading = read_file(DATA / name)
    assert (reading.format, len(reading.scenarios), reading.skipped) == (layout, count, ())
    if layout.startswith("esconv"):
        assert set(summarise(reading).strategies) <= set(STRATEGIES)


@real_data
@pytest.mark.parametrize(
    "name",
    [
        "esc_eval_dialogues_llama3_en.json", "esc_eval_scores_llama3_en.json",
        "sage_trajectories_gpt-4o-0808_zh.jsonl", "sage_trajectories_o1_zh.jsonl",
    ],
)  # fmt: skip
def test_real_files_of_other_projects_are_named_and_refused(name: str) -> None:
    with pytest.raises(ScenarioError, match=name.split("_")[0].replace("esc", "ESC-Eval").replace("sage", "SAGE")):
        read_file(DATA / name)


@real_data
def test_a_dialogue_has_one_id_in_every_real_file() -> None:
    ids = {
        name: {scenario.id for scenario in read_file(DATA / name).scenarios}
        for name in (
            "esconv_valid130_ppdpp.txt", "esconv_valid130_hf_survey.jsonl", "esconv_official_sample.json",
            "failed_half_official.json",
        )
    }  # fmt: skip
    valid, train = membership.members("valid"), membership.members("train")
    assert (len(train), len(valid), len(train & valid)) == (1040, 130, 0)
    assert ids["esconv_valid130_ppdpp.txt"] == ids["esconv_valid130_hf_survey.jsonl"] == valid
    assert len(ids["esconv_official_sample.json"] & valid) == 3
    assert len(ids["esconv_official_sample.json"] & train) == 44
    assert not ids["failed_half_official.json"] & (train | valid)


@real_data
def test_the_committed_hashes_are_those_of_the_real_files() -> None:
    made = membership.membership_json(DATA / "esconv_train1040_hf_survey.jsonl", DATA / "esconv_valid130_ppdpp.txt")
    committed = Path(membership.__file__).with_name("esconv_membership.json").read_text("ascii")
    assert json.loads(made) == json.loads(committed)


@real_data
def test_real_train_and_valid_load_and_test_is_refused(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESC_DATA", str(DATA))
    train, valid = load_scenarios("esconv:train"), load_scenarios("esconv:valid")
    assert (len(train), len(valid)) == (1040, 130)
    assert all(len(scenario.facts) >= 2 for scenario in train)
    assert all(
        line in " ".join(message.content for message in scenario.dialogue or ()).replace("\n", " ")
        for scenario in valid for fact in scenario.facts for line in fact.replace("\r", "").split("\n")
    )  # fmt: skip
    assert len({first for first, _ in near_duplicates(valid, train)}) == 7
    with pytest.raises(ScenarioError, match="lacks 0 of train and valid and holds 0 others"):
        load_scenarios("esconv:test")


@real_data
def test_esconv_files_report_near_duplicates_and_our_own_split_has_none(tmp_path: Path) -> None:
    both = tmp_path / "both.jsonl"
    names = ("esconv_train1040_hf_survey.jsonl", "esconv_valid130_hf_survey.jsonl")
    both.write_bytes(b"\n".join((DATA / name).read_bytes() for name in names))
    summary = summarise(read_file(both))
    assert summary.splits == {"train": 1040, "valid": 130}
    assert len({second for _, second in summary.near_duplicates}) == 7
    parts = list(load_scenarios(both).split(seed=0).values())
    assert [near_duplicates(a, b) for a, b in zip(parts, [*parts[1:], parts[0]], strict=True)] == [[], [], []]


@real_data
def test_every_oddity_of_the_edge_case_fixture_is_handled(read: Any) -> None:
    cases = json.loads((DATA / "loader_edge_cases_synthetic.json").read_text("utf-8"))
    reading = read(json.dumps(cases["official"]))
    first, second = reading.scenarios
    assert [message.content for message in first.dialogue][:4] == [
        "Hey there", "line one\nline two", "WHAT IS IT’S CAUSE?", "café 😊",
    ]  # fmt: skip
    assert [message.strategy for message in first.dialogue if message.role == "supporter"] == [
        "Question", "Providing Suggestions", "Affirmation and Reassurance", "Restatement or Paraphrasing",
    ]  # fmt: skip
    assert (first.problem, first.survey, first.intensity) == ("issues with parents", {"initial_intensity": 4}, 4)
    assert second.situation == "breakup with partner"
    assert second.survey == {"initial_intensity": 3, "final_intensity": 4, "empathy": 5, "relevance": 5}
    extes = read(json.dumps(cases["extes"])).scenarios[0]
    assert [message.to_json() for message in extes.dialogue] == [
        {"role": "supporter", "content": "Hi"},
        {"role": "seeker", "content": "a"},
        {"role": "seeker", "content": "b"},
        {"role": "supporter", "content": "dict-valued AI turn", "strategy": "Suggest Options"},
    ]

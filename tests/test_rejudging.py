"""The same conversations under other critics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("aiohttp", reason="needs the extra llm")
pytest.importorskip("choix", reason="needs the extra judge")
pytest.importorskip("krippendorff", reason="needs the extra judge")

from esc_env import Dialogue, Rules, Scenario
from esc_env.cli import main
from esc_env.errors import ProtocolMismatch, RecordError, ScenarioError, SpecError
from esc_env.evaluation import Report, evaluate
from esc_env.evaluation.imports import import_file
from esc_env.evaluation.judges.agreement import alpha, kappa, rank_correlation, spearman
from esc_env.evaluation.judges.rejudging import AS_HELD, matrix, rejudge
from esc_env.testing import FakeServer, Fault, ScriptedAgent

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    folder = tmp_path_factory.mktemp("runs")
    return [evaluate(f"builtin:{name}", limit=8, out=folder / name) for name in ("skilled", "template")]


def never(scenario: Scenario, dialogue: Dialogue) -> str:
    return "worse"


def at_once(scenario: Scenario, dialogue: Dialogue) -> str:
    return "solved"


def test_the_same_critic_says_the_same_again(runs: list[Report], tmp_path: Path):
    again = rejudge(runs, "builtin", out=tmp_path)
    for run in runs:
        for held in run.trajectories:
            assert tuple(again.verdicts[run.agent, held.scenario.id, 0]) == held.verdicts
    compared = matrix(runs, [again])
    assert compared.kappa[AS_HELD, "builtin"] == 1
    assert compared.alpha == pytest.approx(1)
    ranks = compared.ranks[AS_HELD, "builtin"]
    assert ranks is not None
    assert ranks.value == pytest.approx(1)


def test_a_conversation_that_ended_early_is_open_for_a_critic_that_does_not_find_it_solved(
    runs: list[Report], tmp_path: Path
):
    compared = matrix(runs, [rejudge(runs, never, out=tmp_path)])
    held, other = compared.views.values()
    solved = sum(each.solved for run in runs for each in run.trajectories)
    assert solved
    assert (other.solved, other.open, other.lowest) == (0, solved, 0)
    assert other.highest == held.highest == held.lowest
    assert other.by_system["builtin:skilled"][0] == 0


def test_the_turn_at_which_a_critic_first_finds_it_solved_is_counted(runs: list[Report], tmp_path: Path):
    compared = matrix(runs, [rejudge(runs, at_once, out=tmp_path)])
    _, other = compared.views.values()
    assert dict(other.turns) == {1: 16}
    assert (other.lowest, other.highest, other.score) == (1, 1, 1)


def test_a_critic_that_likes_length_shows_it(runs: list[Report], tmp_path: Path):
    def words(scenario: Scenario, dialogue: Dialogue) -> float:
        said = sum(len(each.content.split()) for each in dialogue if each.role == "supporter")
        return min(1.0, said / 400) * 2 - 1

    compared = matrix(runs, [rejudge(runs, words, out=tmp_path / "a"), rejudge(runs, never, out=tmp_path / "b")])
    *_, liking, _ = compared.views.values()
    assert liking.length is not None
    assert liking.length.interval[0] > 0


def test_a_failed_call_leaves_its_conversation_out_and_is_made_again(runs: list[Report], tmp_path: Path):
    broken = Fault("status", status=400, message="cannot")
    with FakeServer("B", faults=lambda number: broken if number == 3 else None) as server:
        critic = f"openai/fake@{server.url}"
        first = rejudge(runs, critic, out=tmp_path, concurrency=1)
        assert first.missing == 1
        ((message, count),) = first.failures
        assert (count, "cannot" in message) == (1, True)
        view = matrix(runs, [first]).views[first.critic]
        assert view.judged == 15
        whole = rejudge(runs, critic, out=tmp_path, concurrency=1)
        before = len(server.requests)
        again = rejudge(runs, critic, out=tmp_path, concurrency=1)
        assert len(server.requests) == before, "nothing is asked twice"
    assert whole.missing == 0
    assert whole.verdicts == again.verdicts


def test_another_critic_in_the_folder_is_refused(runs: list[Report], tmp_path: Path):
    rejudge(runs, never, out=tmp_path)
    with pytest.raises(ProtocolMismatch, match="holds another rejudging"):
        rejudge(runs, at_once, out=tmp_path)


def test_an_edited_verdict_is_refused_naming_the_line(runs: list[Report], tmp_path: Path):
    rejudge(runs, never, out=tmp_path)
    file = tmp_path / "verdicts.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["verdict"]["score"] = 1
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RecordError, match=r"verdicts\.jsonl:2: not a verdict \(verdict: score is 1"):
        rejudge(runs, never, out=tmp_path)


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_the_command_shows_the_matrix_and_keeps_it(
    runs: list[Report], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--critic", "builtin", "--critic", f"python:{__name__}:never", "--out", tmp_path, "--no-progress"]
    assert command("rejudge", *(run.folder for run in runs), *words) == 0
    shown = capsys.readouterr().out
    assert "as held : builtin" in shown
    assert "Krippendorff's α" in shown
    data: dict[str, Any] = json.loads((tmp_path / "matrix.json").read_text())
    assert list(data["critics"]) == ["as held", "builtin", f"python:{__name__}:never"]


# --- imported conversations -----------------------------------------------------------------------

TALK = [
    ("assistant", "Hello, I am here for you."), ("user", "I lost my job."), ("user", "It was two weeks ago."),
    ("assistant", "That sounds hard."), ("assistant", "What happened?"), ("user", "They closed the office."),
    ("assistant", "Losing it that way hurts."), ("user", "Yes. I feel better now."), ("assistant", "I am glad."),
]  # fmt: skip
UNANSWERED = [("user", "I cannot sleep."), ("assistant", "What keeps you awake?")]


def imported(folder: Path, *conversations: list[tuple[str, str]]) -> Path:
    path = folder / "talks.jsonl"
    lines = [{"messages": [{"role": role, "content": text} for role, text in each]} for each in conversations]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    import_file(path, folder / "talks")
    return folder / "talks"


def test_an_import_is_judged_after_every_turn_that_the_seeker_answers(tmp_path: Path):
    seen: list[list[str]] = []

    def critic(scenario: Scenario, dialogue: Dialogue) -> float:
        seen.append([message.content for message in dialogue])
        return 1.0 if "better" in dialogue.messages[-1].content else -0.5

    talks = imported(tmp_path, TALK, UNANSWERED)
    again = rejudge([talks], critic, out=tmp_path / "out", rules=Rules(max_turns=2, votes=1), concurrency=1)
    opening = ["Hello, I am here for you.", "I lost my job.\nIt was two weeks ago."]
    first = ["That sounds hard.\nWhat happened?", "They closed the office."]
    assert seen == [[*opening, *first], [*opening, *first, "Losing it that way hurts.", "Yes. I feel better now."]]
    assert again.left_out == 1, "nobody answered, so there is nothing to judge"
    compared = matrix([talks], [again])
    (view,) = compared.views.values()
    assert AS_HELD not in compared.views
    assert (view.judged, view.solved, view.open, dict(view.turns), view.score) == (1, 1, 0, {2: 1}, 1)
    assert compared.to_json()["rules"] == {"max_turns": 2, "votes": 1, "threshold": 0.5}


def test_an_import_that_ends_unsolved_before_t_is_open_and_one_with_t_turns_is_not(tmp_path: Path):
    talks = imported(tmp_path, TALK)
    bounds = {}
    for turns in (1, 2, 3):
        again = rejudge([talks], never, out=tmp_path / str(turns), rules=Rules(max_turns=turns))
        (view,) = matrix([talks], [again]).views.values()
        bounds[turns] = (view.open, view.lowest, view.highest)
    assert bounds == {1: (0, 0, 0), 2: (0, 0, 0), 3: (1, 0, 1)}


def test_the_embedded_critic_judges_an_import_the_same_way_twice(tmp_path: Path):
    talks = imported(tmp_path, TALK, [*UNANSWERED, ("user", "My thoughts.")])
    one, two = (rejudge([talks], "builtin", out=tmp_path / name) for name in "ab")
    assert one.verdicts == two.verdicts
    assert [len(row) for row in one.verdicts.values()] == [2, 1]
    assert all(verdict and len(verdict.votes) == 10 for row in one.verdicts.values() for verdict in row)


def test_other_rules_are_another_rejudging_and_runs_take_none(runs: list[Report], tmp_path: Path):
    talks = imported(tmp_path, TALK)
    rejudge([talks], never, out=tmp_path / "out")
    with pytest.raises(ProtocolMismatch, match="max_turns: 8 / 2"):
        rejudge([talks], never, out=tmp_path / "out", rules=Rules(max_turns=2))
    with pytest.raises(SpecError, match="runs are judged by the rules that they were held by"):
        rejudge(runs, never, out=tmp_path / "run", rules=Rules(max_turns=2))


@pytest.mark.parametrize("name", ["builtin", "builtin:reader"])
def test_the_embedded_critic_scores_no_chinese_and_says_so_in_a_line(name: str, tmp_path: Path):
    talks = imported(tmp_path, [("user", "我睡不着。"), ("assistant", "怎么了？"), ("user", "工作。")])
    with pytest.raises(ScenarioError, match="the builtin critic reads English only, and 1 of 1 conversations"):
        rejudge([talks], name, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    two = [rejudge([talks], critic, out=tmp_path / critic.__name__) for critic in (never, at_once)]
    assert all(not view.style for view in matrix([talks], two).views.values()), "the moves are read in English only"


def test_the_command_states_the_rules_by_which_it_judged_an_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    talks = imported(tmp_path, TALK)
    words = ["--critic", "builtin", "--max-turns", 2, "--out", tmp_path / "out", "--no-progress"]
    assert command("rejudge", talks, *words) == 0
    shown = capsys.readouterr().out
    assert "T 2, 10 votes, solved above 0.5" in shown
    assert "as held" not in shown


def test_where_no_style_can_be_read_none_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    talks = imported(tmp_path, [("user", "我睡不着。"), ("assistant", "怎么了？"), ("user", "工作。")])
    critics = [word for name in ("never", "at_once") for word in ("--critic", f"python:{__name__}:{name}")]
    assert command("rejudge", talks, *critics, "--out", tmp_path / "out", "--no-progress") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "against the mean" in line]
    assert [line.endswith("with length – (0)") for line in lines] == [True, True]


def test_rates_of_many_systems_fit_a_terminal(
    runs: list[Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("one-of-a-long-name", "another-of-a-long-name", "a-third-of-a-long-name"):
        evaluate(ScriptedAgent([name]), limit=8, out=tmp_path / name)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    words = ["--critic", "builtin", "--out", tmp_path / "out", "--no-progress"]
    assert command("rejudge", tmp_path, *(run.folder for run in runs), *words) == 0
    table = capsys.readouterr().out.partition("SR by system")[2].partition("How far")[0]
    assert "another-of" in table
    assert max(map(len, table.splitlines())) <= 80


# --- the libraries' numbers -----------------------------------------------------------------------

RATINGS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=3, max_size=40)


@settings(deadline=None, max_examples=50)
@given(RATINGS)
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]):
    from scipy import stats

    one, other = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    if len(set(one)) < 2 or len(set(other)) < 2:
        assert spearman(one, other) is None
    else:
        theirs: Any = stats.spearmanr(one, other)
        assert spearman(one, other) == pytest.approx(theirs.statistic)


@settings(deadline=None, max_examples=50)
@given(RATINGS)
def test_kappa_is_scikit_learns(pairs: list[tuple[int, int]]):
    metrics = pytest.importorskip("sklearn.metrics")
    one, other = ([pair[side] for pair in pairs] for side in (0, 1))
    found = kappa(one, other)
    if len({*one, *other}) < 2:
        assert found is None
    else:
        assert found == pytest.approx(metrics.cohen_kappa_score(one, other))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.sampled_from([1.0, 2.0, 3.0, float("nan")]), min_size=6, max_size=6), min_size=2, max_size=5)
)
def test_alpha_is_one_less_observed_over_expected_disagreement(table: list[list[float]]):
    """Krippendorff's own definition, pair by pair."""
    ratings = np.array(table)
    units = [column[~np.isnan(column)] for column in ratings.T]
    units = [unit for unit in units if len(unit) > 1]
    every = np.concatenate(units) if units else np.array([])
    found = alpha(table, "interval")
    if len(np.unique(every)) < 2:
        assert found is None
        return
    observed = sum(((unit[:, None] - unit) ** 2).sum() / (len(unit) - 1) for unit in units) / len(every)
    expected = ((every[:, None] - every) ** 2).sum() / (len(every) * (len(every) - 1))
    assert found == pytest.approx(1 - observed / expected)


def test_an_interval_of_one_cluster_is_all_there_is():
    estimate = rank_correlation([1, 2, 3], [1, 3, 2], ["p"] * 3)
    assert estimate is not None
    assert estimate.interval == (-1, 1)


def test_intervals_resample_whole_clusters():
    """Twenty copies of four people are no more than four people."""
    few = rank_correlation([1, 2, 3, 4], [2, 1, 4, 3], list("abcd"))
    many = rank_correlation([1, 2, 3, 4] * 20, [2, 1, 4, 3] * 20, list("abcd") * 20)
    assert few is not None
    assert many is not None
    assert many.interval[1] - many.interval[0] > 0.5

"""Two runs beside each other: what differs, how sure that is, and what may not be compared."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import product

import pytest

pytest.importorskip("statsmodels", reason="needs the extra 'stats'")

from conftest import bank
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from esc_env.cli import main
from esc_env.errors import ESCError, MissingExtra, ProtocolMismatch, RecordError
from esc_env.evaluation import evaluate
from esc_env.evaluation.ranking.comparison import compare, p_text
from esc_env.evaluation.runs.report import Report
from esc_env.evaluation.statistics.intervals import detectable, mean_interval, wilson
from esc_env.rules import Rules
from esc_env.testing import ScriptedAgent, ScriptedSeeker
from esc_env.trajectory import StopReason

pytestmark = pytest.mark.full

PEOPLE, TRIALS = 12, 2


def _critic(scenario, dialogue):
    """Solved when the supporter names this person's number."""
    said = dialogue.messages[-2].content if len(dialogue) > 1 else ""
    return "solved" if f" {scenario.id.rpartition('-')[2]} " in f" {said} " else "same"


def held(solves: int, out, **changed) -> Report:
    """A run that solves the first so many people, in every trial."""
    said = " ".join(map(str, range(solves)))
    asked = {"critic": _critic, "seeker": ScriptedSeeker(["Yes."]), "trials": TRIALS, "rules": Rules(max_turns=1)}
    return evaluate(ScriptedAgent([f"I mean {said} ."]), bank(PEOPLE), out=out, **{**asked, **changed})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [held(solves, folder / name) for name, solves in (("a", 2), ("b", 10), ("c", 3))]


def test_a_difference_is_paired_by_scenario_and_trial_and_said_in_plain_words(runs):
    (found,) = compare(runs[:2]).differences
    assert (found.pairs, found.scenarios, found.unpaired) == (24, 12, 0)
    assert (found.gained, found.lost) == (16, 0)
    assert found.difference == pytest.approx(8 / 12)
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.permutation == pytest.approx(2 / 2**8), "eight scenarios that all moved one way"
    assert found.mcnemar == pytest.approx(2 / 2**16), "sixteen conversations"
    assert found.sentence == (
        f"{found.agent} solves 66.7 points more than {found.base} "
        f"({100 * found.interval[0]:.1f} to {100 * found.interval[1]:.1f}); p = .008: more than chance explains, over "
        "12 scenarios."
    )
    assert found.agent != found.base, "agents of one name are told apart by their folders"


def test_what_chance_explains_is_no_difference_and_no_proof_of_none(runs):
    (found,) = compare([runs[0], runs[2]]).differences
    assert found.permutation == 1.0
    assert "chance explains as much" in found.sentence
    assert (
        f"{100 * found.detectable:.0f} points or more, four times in five; a smaller one may be there" in found.sentence
    )


def test_several_comparisons_are_corrected(runs):
    compared = compare(runs)
    strong, weak = compared.differences
    assert strong.permutation_holm == pytest.approx(2 * strong.permutation)
    assert weak.permutation_holm == weak.permutation == 1.0
    assert any("Holm" in note for note in compared.notes)


def test_conversations_without_an_outcome_are_left_out_and_counted(runs):
    broken = tuple(
        replace(item, stop_reason=StopReason.ERROR) if item.scenario.id == "person-0" else item
        for item in runs[1].trajectories
    )
    (found,) = (compared := compare([runs[0], replace(runs[1], trajectories=broken)])).differences
    assert (found.pairs, found.scenarios, found.unpaired) == (22, 11, 4)
    assert any("4 episodes are left out" in note for note in compared.notes)


def test_runs_that_faced_different_things_are_refused_unless_asked_for_and_then_stamped(runs, tmp_path, capsys):
    other = held(10, tmp_path / "other", seed=1, persona="hostile")
    with pytest.raises(ProtocolMismatch, match="seed: 0 / 1") as refused:
        compare([runs[0], other])
    assert "persona: cooperative / hostile" in str(refused.value)
    compared = compare([runs[0], other], anyway=True)
    assert compared.to_json()["comparable"] is False
    assert compared.to_markdown().startswith("**NOT COMPARABLE")
    for form in ((), ("--json",), ("--markdown",)):
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(runs[0].folder), str(other.folder), "--anyway", *form])
        assert not ended.value.code
        assert "NOT COMPARABLE" in capsys.readouterr().out


def test_what_has_no_partner_is_not_said_to_have_no_outcome(runs, tmp_path):
    (found,) = (compared := compare([runs[0], held(10, tmp_path / "once", trials=1)], anyway=True)).differences
    assert (found.pairs, found.unpaired) == (PEOPLE, PEOPLE)
    (note,) = [note for note in compared.notes if "are left out" in note]
    assert "the other run has none of that scenario and trial" in note


def test_runs_of_one_agent_in_folders_of_one_name_are_told_apart(tmp_path):
    both = [held(5, tmp_path / "a" / "run"), held(5, tmp_path / "b" / "run", seed=1)]
    (found,) = compare(both, anyway=True).differences
    assert str(tmp_path / "a" / "run") in found.base
    assert str(tmp_path / "b" / "run") in found.agent


@pytest.mark.parametrize("form", [[], ["--markdown"], ["--json"]])
def test_the_command_prints_the_difference_in_every_form(runs, capsys, form):
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(runs[0].folder), str(runs[1].folder), *form])
    out, err = capsys.readouterr()
    assert (ended.value.code or 0, err) == (0, "")
    assert "solves 66.7 points more than" in out
    if form == ["--json"]:
        assert json.loads(out)["differences"][0]["permutation"] == pytest.approx(2 / 2**8)
    elif form:
        assert out.startswith("| runs | SR |")


def test_what_cannot_be_compared_is_one_line(runs, tmp_path, capsys, monkeypatch):
    with pytest.raises(RecordError, match="at least two runs"):
        compare(runs[:1])
    with pytest.raises(RecordError, match="the same run"):
        compare([runs[0], runs[0]])
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingExtra, match=r"pip install 'esc-env\[stats\]'"):
        compare(runs[:2])
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(runs[0].folder), str(tmp_path)])
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


# --- against SciPy and statsmodels ----------------------------------------------------------------

PAIRS = st.lists(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=3), min_size=1, max_size=8
)  # fmt: skip


def _of(pairs, side: int, base: Report) -> Report:
    """A report in which these outcomes came about."""
    one = base.trajectories[0]
    people = bank(len(pairs))
    made = tuple(
        replace(
            one, scenario=people[place], trial=trial,
            stop_reason=StopReason.SOLVED if pair[side] else StopReason.MAX_TURNS,
        )
        for place, tried in enumerate(pairs)
        for trial, pair in enumerate(tried)
    )  # fmt: skip
    return replace(base, trajectories=made, episodes=len(made), run_key=f"side {side}")


@settings(max_examples=5)  # each goes over all permutations
@given(PAIRS)
def test_p_values_are_those_of_all_permutations_and_of_the_binomial(runs, pairs):
    (found,) = compare([_of(pairs, 0, runs[0]), _of(pairs, 1, runs[0])]).differences
    changes = [sum(after - before for before, after in tried) for tried in pairs]
    every = [sum(sign * change for sign, change in zip(signs, changes, strict=True))
             for signs in product((1, -1), repeat=len(changes))]  # fmt: skip
    extreme = sum(abs(each) >= abs(sum(changes)) for each in every) / len(every)
    assert found.permutation == pytest.approx(extreme)
    gained, lost = found.gained, found.lost
    exact = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.mcnemar == pytest.approx(exact)
    assert found.difference == pytest.approx(found.rate - found.base_rate)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_statsmodels(counts):
    assert wilson(*counts) == pytest.approx(proportion_confint(*counts, method="wilson"), abs=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30), st.integers(1, 4))
def test_the_interval_of_a_mean_is_the_weighted_one_of_statsmodels(values, trials):
    """Of one value per scenario, repeated in all its trials, and the two scenarios that are added."""
    from statsmodels.stats.weightstats import DescrStatsW

    assume(max(values) - min(values) > 1e-6)  # where none differs the rule of three decides
    weights = [1.0] * len(values) + [len(values) ** 0.5 / 25] * 2
    known = DescrStatsW([*values, -1.0, 1.0], weights=weights, ddof=1)
    low, high = known.zconfint_mean(alpha=0.05)
    mean, interval = mean_interval([[value] * trials for value in values])
    assert interval == pytest.approx((max(-1, min(mean, low)), min(1, max(mean, high))), abs=1e-9)
    assert detectable([[value] * trials for value in values]) == pytest.approx(
        (high - low) / 2 / 1.959963984540054 * (1.959963984540054 + 0.8416212335729143)
    )


def test_p_values_are_written_as_journals_do():
    assert [p_text(p) for p in (0.0004, 0.0132, 1.0)] == ["p < .001", "p = .013", "p = 1.000"]
    assert issubclass(MissingExtra, ESCError)

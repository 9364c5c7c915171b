"""A plan says how much an answer takes and costs before anything is run, and holds when it is."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import bank
from hypothesis import given
from hypothesis import strategies as st

from esc_env.cli import main
from esc_env.data.datasets import load_scenarios
from esc_env.errors import SpecError
from esc_env.evaluation.runs.plan import Design, designs, expected_usage, measure
from esc_env.evaluation.statistics.intervals import clustered_wilson, mean_interval
from esc_env.rules import Rules

PERSON = load_scenarios("builtin:test")[0]
SERVED = "openai/unpriced@http://127.0.0.1:9/v1"


@pytest.mark.parametrize("trials", [1, 5])
def test_a_run_as_planned_is_as_precise_as_wanted(trials):
    (design,) = designs(precision=0.08, icc=0.5, trials=[trials])
    draw = np.random.default_rng(trials)
    widths = []
    for _ in range(200):
        people = draw.beta(0.5, 0.5, design.scenarios)  # rates around one half, an ICC of .5
        low, high = clustered_wilson((int(draw.binomial(trials, rate)), trials) for rate in people)
        widths.append((high - low) / 2)
    assert np.mean(widths) == pytest.approx(0.08, rel=0.05)


def test_a_difference_as_planned_is_shown_four_times_in_five():
    (design,) = designs(difference=0.15, icc=0.0, trials=[3])
    draw = np.random.default_rng(0)
    shown = 0
    for _ in range(300):
        one, other = (draw.binomial(3, rate, design.scenarios) for rate in (0.425, 0.575))
        _, (low, _) = mean_interval([[float(each)] for each in (other - one) / 3])
        shown += low > 0
    assert shown / 300 == pytest.approx(0.8, abs=0.07)


@given(st.floats(0.01, 0.3), st.floats(0, 1), st.integers(1, 20))
def test_more_trials_never_take_more_scenarios_nor_fewer_conversations(wanted, icc, trials):
    for goal in ({"precision": wanted}, {"difference": wanted}):
        fewer, more = designs(**goal, icc=icc, trials=[trials, trials + 1])
        assert more.scenarios <= fewer.scenarios
        assert more.conversations >= fewer.conversations - trials


@pytest.mark.full
def test_sizes_for_independent_trials_are_those_of_statsmodels():
    power = pytest.importorskip("statsmodels.stats.power")
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    (design,) = designs(precision=0.05, icc=1.0, trials=[1])
    low, high = proportion.proportion_confint(design.scenarios / 2, design.scenarios, method="wilson")
    assert (high - low) / 2 == pytest.approx(0.05, abs=1e-4)
    (design,) = designs(difference=0.1, icc=0.0, trials=[1])
    known = power.NormalIndPower().solve_power(effect_size=0.1 / 0.5, alpha=0.05, power=0.8)
    assert design.scenarios == pytest.approx(known, abs=1)


@pytest.mark.parametrize("wrong", [{}, {"precision": 0.05, "difference": 0.1}, {"precision": 0.5}, {"difference": 0.0},
                                   {"precision": float("nan")}, {"difference": 0.1, "icc": 1.5}])  # fmt: skip
def test_a_wish_that_is_none_is_refused(wrong):
    with pytest.raises(SpecError):
        designs(**wrong)
    assert Design(3, 40).conversations == 120


def test_only_chairs_that_are_models_cost_and_an_unknown_price_stays_unknown():
    person, rules = bank(1)[0], Rules(max_turns=4)
    builtin = {"supporter": "builtin:skilled", "seeker": "builtin", "critic": "builtin"}
    free = expected_usage(builtin, person, rules)
    assert free is not None
    assert (free.requests, free.cost) == (0, 0.0)
    one = expected_usage({**builtin, "supporter": SERVED}, person, rules)
    three = expected_usage({**builtin, "supporter": f"{SERVED}#self-refine", "critic": SERVED}, person, rules)
    assert one is not None
    assert three is not None
    assert (one.requests, one.cost) == (4, None)
    assert three.requests == 4 * 3 + 4
    assert three.prompt_tokens > one.prompt_tokens > 0
    assert expected_usage({**builtin, "critic": "python:mine:critic"}, person, rules) is None


@pytest.mark.parametrize("style", ["standard", "self-refine", "icl-aif", "lookahead"])
def test_a_prefix_cache_serves_nine_tenths_of_what_a_supporter_reads_unless_a_thought_is_left_out(style):
    assert measure(PERSON, style=style)["supporter"].cached >= 0.9


def test_a_prefix_cache_serves_a_seeker_and_a_critic_nearly_all_that_they_read_before():
    spent = measure(PERSON)
    assert spent["seeker"].cached >= 0.85
    assert spent["critic"].cached >= 0.78
    assert measure(PERSON, Rules(max_turns=16))["critic"].cached >= 0.85, "the longer, the more"


def test_the_command_runs_nothing_and_says_what_it_assumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def esc(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["eval", *arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    code, out, err = esc("--plan", "--precision", "5", "--agent", SERVED)
    assert (code, err) == (0, "")
    for word in ("381 *", "3,048", "unknown", "ICC 0.5", "more than the 40 of builtin:test"):
        assert word in out
    assert not list(tmp_path.iterdir())
    code, out, _ = esc("--plan", "--difference", "10", "--icc", "0.2", "--agent", "builtin:skilled")
    assert (code, "correlation 0.5" in out, "0.00" in out) == (0, True, True)
    for wrong in (["--plan"], ["--precision", "5"], ["--plan", "--precision", "60"]):
        code, _, err = esc(*wrong)
        assert (code, err.count("\n")) == (1, 1), wrong

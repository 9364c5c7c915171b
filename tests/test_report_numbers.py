"""How conversations went, what supporters wrote, and what it cost: numbers beside the success rate."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import bank
from hypothesis import given
from hypothesis import strategies as st

from esc_env.dialogue import Dialogue, Message
from esc_env.errors import MissingExtra, SpecError
from esc_env.evaluation import evaluate, read_run
from esc_env.evaluation.pages.run import run_pages
from esc_env.evaluation.runs.course import Course
from esc_env.evaluation.runs.wording import Wording, likeness
from esc_env.protocols import Verdict
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.testing import ScriptedAgent, ScriptedCritic
from esc_env.trajectory import StopReason, Trajectory


def held(person: int, scores: list[float], said: list[str] | None = None, trial: int = 0) -> Trajectory:
    """A conversation with these scores, which is solved if the last one is above .5."""
    messages = [Message("seeker", "I am sad.")]
    for text in said or ["Hm."] * len(scores):
        messages += [Message("supporter", text), Message("seeker", "Yes.")]
    verdicts = tuple(Verdict((score,), 1, score, score > 0.5) for score in scores)
    reason = StopReason.SOLVED if scores[-1] > 0.5 else StopReason.MAX_TURNS
    return Trajectory(Scenario(f"p{person}", "I am sad."), Dialogue(tuple(messages)), verdicts, reason, 0, trial)


def test_a_conversation_that_has_ended_stays_in_the_trajectory_where_it_ended():
    course = Course.of([held(0, [-0.5, 1.0]), held(1, [-1.0, -0.5, 0.0, 0.5])])
    assert [moment.score for moment in course.moments] == [-0.75, 0.25, 0.5, 0.75]
    assert [moment.talking for moment in course.moments] == [2, 2, 1, 1]
    assert all(low <= moment.score <= high for moment in course.moments for low, high in [moment.interval])
    assert (course.better, course.first_better) == (1.0, 3.0), "turn 2 and turn 4; 0 is not better yet"
    never = Course.of([held(0, [-0.5, -0.5])])
    assert len(never.moments) == 2, "there is nothing to tell of turns that nobody had"
    assert len(Course.of([held(0, [-0.5] * 99)]).moments) == 64
    assert (never.better, never.first_better) == (0.0, None)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=6))
def test_pass_hat_k_is_the_share_of_all_ways_to_choose_k_trials_in_which_all_are_solved(outcomes):
    done = [
        held(person, [1.0 if solved else -0.5], trial=trial)
        for person, tried in enumerate(outcomes)
        for trial, solved in enumerate(tried)
    ]
    got = Course.of(done).pass_hat
    assert len(got) == max(map(len, outcomes))
    for k, rate in enumerate(got, 1):
        ways = [fmean(map(all, combinations(tried, k))) for tried in outcomes if len(tried) >= k]
        assert rate == pytest.approx(fmean(ways))


def test_wording_counts_words_variety_repetition_questions_and_moves():
    said = Wording.of([held(0, [-0.5] * 3, ["How are you?", "How are you?", "I hear you."]), held(1, [0.5], ["No"])])
    assert said is not None
    assert (said.replies, said.words) == (4, 2.5)
    assert said.distinct_1 == 7 / 10  # How are you? I hear you. No
    assert said.distinct_2 == 4 / 6
    assert (said.top_reply, said.repeated, said.questions) == (0.5, 0.25, 0.5)
    assert sum(said.moves.values()) == pytest.approx(1)
    asked = sum(share for move, share in said.moves.items() if move.endswith("question"))
    assert asked >= 0.5, "two sentences of four ask"
    assert Wording.of([]) is None


def test_the_report_has_them_in_json_on_the_page_and_again_from_the_folder(tmp_path):
    rules = Rules(max_turns=2)
    report = evaluate(
        ScriptedAgent(["What happened?", "I hear you."]), bank(4), critic=ScriptedCritic(["same", "solved"]),
        rules=rules, trials=2, out=tmp_path / "run",
    )  # fmt: skip
    data = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert [moment["score"] for moment in data["course"]["moments"]] == [-0.5, 1.0]
    assert data["course"]["pass_hat"] == [1.0, 1.0]
    assert data["wording"]["questions"] == 0.5
    assert "seconds" not in data
    assert report.seconds is not None
    assert data["by_persona"]["cooperative"]["few"], "eight conversations say little"
    assert sum(group["episodes"] for group in data["by_risk"].values()) == 8
    page = dict(run_pages(report))["report.html"]
    for word in ("Turn by turn", "pass^k", "Wording", "move classifier", "What it cost"):
        assert word in page
    again = read_run(tmp_path / "run")
    assert (again.course, again.wording, again.seconds) == (report.course, report.wording, report.seconds)


# --- beside a human supporter ---------------------------------------------------------------------

HUMAN = Dialogue((
    Message("seeker", "I am sad."),
    Message("supporter", "I am sorry to hear that. What happened?"),
    Message("seeker", "My job."),
    Message("supporter", "Losing a job is hard on anybody."),
))  # fmt: skip


@pytest.mark.full
def test_replies_like_one_of_the_human_ones_score_high_and_others_low():
    pytest.importorskip("sacrebleu")
    same = likeness([held(0, [-0.5], ["Losing a job is hard on anybody."])], {"p0": HUMAN})
    other = likeness([held(0, [-0.5], ["Bananas grow in bunches, generally."])], {"p0": HUMAN})
    assert (same.replies, same.bleu, same.rouge_l) == (1, pytest.approx(100), 1.0)
    assert other.bleu < 10
    assert other.rouge_l < 0.1
    assert "nrefs:2" in same.bleu_signature
    two = [held(0, [-0.5], ["Losing a job is hard on anybody."]), held(1, [-0.5], ["So you are sad today."])]
    both = likeness(two, {"p0": HUMAN, "p1": Dialogue((Message("supporter", "So you are sad today."),))})
    assert both.bleu == pytest.approx(100)
    assert "nrefs:var" in both.bleu_signature, "fewer references are no empty ones"
    with pytest.raises(SpecError, match="human conversation"):
        likeness([held(0, [-0.5])], {"p0": None})


@pytest.mark.full
def test_bertscore_of_the_same_words_is_one_by_the_real_library_with_a_model_in_a_folder(tmp_path):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("bert_score", reason="needs the extra bertscore")
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    folder = tmp_path / "roberta-large"  # of random weights, and with as many layers as the one of this name
    folder.mkdir()
    bytes_only = ByteLevelBPETokenizer()
    bytes_only.train_from_iterator(["that"], 262, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bytes_only.save_model(str(folder))
    files: dict[str, Any] = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    RobertaTokenizerFast(**files, model_max_length=64).save_pretrained(folder)
    RobertaModel(RobertaConfig(
        vocab_size=300, hidden_size=8, num_hidden_layers=24, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=70,
    )).save_pretrained(folder)  # fmt: skip
    same, other = (
        likeness([held(0, [-0.5], [said])], {"p0": HUMAN}, str(folder)) for said in (HUMAN.messages[1].content, "No.")
    )
    assert same.bertscore == pytest.approx(1)
    assert other.bertscore is not None
    assert other.bertscore < 0.99


@pytest.mark.full
def test_bertscore_is_asked_of_the_named_model_and_missing_packages_are_named(monkeypatch):
    pytest.importorskip("sacrebleu")
    conversation = [held(0, [-0.5], ["I am sorry."])]
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(MissingExtra, match=r"bert-score is not installed. Type: pip install 'esc-env\[bertscore\]'"):
        likeness(conversation, {"p0": HUMAN}, "roberta-large")

    class Scorer:
        @staticmethod
        def score(said, known, model_type, num_layers):
            import numpy as np

            if num_layers == 5:
                raise OSError("cannot connect\nat all")
            assert (said, len(known[0]), model_type, num_layers) == (["I am sorry."], 2, "roberta-large", 17)
            return np.zeros(1), np.zeros(1), np.full(1, 0.9)

    table = {"roberta-large": 17, "distilbert-base-uncased": 5}
    monkeypatch.setitem(sys.modules, "bert_score", Scorer)
    monkeypatch.setitem(sys.modules, "bert_score.utils", SimpleNamespace(model2layers=table))
    assert likeness(conversation, {"p0": HUMAN}, "roberta-large").bertscore == pytest.approx(0.9)
    with pytest.raises(SpecError, match=r"knows no layer of 'roberta-larg' .*Did you mean 'roberta-large'"):
        likeness(conversation, {"p0": HUMAN}, "roberta-larg")
    with pytest.raises(SpecError, match=r"distilbert-base-uncased: no model .* \(cannot connect\)$"):
        likeness(conversation, {"p0": HUMAN}, "distilbert-base-uncased")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(MissingExtra, match=r"esc-env\[stats\]"):
        likeness(conversation, {"p0": HUMAN})

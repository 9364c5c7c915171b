"""What a reward pays for: moves within contexts, not contexts."""

from __future__ import annotations

import pytest

pytest.importorskip("numpy")

from esc_env import Dialogue, Message, Scenario
from esc_env.rewards import Future
from esc_env.training.data import Sample
from esc_env.training.moves import move_of, paid, shares
from esc_env.trajectory import StopReason, Trajectory

ASKS, TELLS = "What happened?", "You should go for a walk every morning."


def sample(person: int, reply: str) -> Sample:
    said = Dialogue((Message("seeker", f"I cannot sleep, {person}."),))
    known = Scenario(id=f"p{person}", situation="I cannot sleep.")
    return Sample(known, said, Message("supporter", reply), (Future((), ((0.0,),), False, 8),), person)


def test_a_move_is_told_by_the_clearest_sentence() -> None:
    assert move_of(ASKS) == "open_question"
    assert move_of(TELLS) == "suggestion"
    assert move_of("…") == "noise"


def test_a_reward_of_contexts_pays_for_no_move_and_one_of_moves_does() -> None:
    samples = [sample(person, reply) for person in range(12) for reply in (ASKS, TELLS)]
    samples += [sample(99, ASKS)] * 2  # nothing to compare there
    scores: dict[str, list[float | None]] = {
        "contexts": [float(one.seed) for one in samples],
        "questions": [one.seed + (one.response.content == ASKS) for one in samples],
        "broken": [None] * len(samples),
    }
    found = paid(samples, scores)
    assert {move: row["replies"] for move, row in found.items()} == {"open_question": 12, "suggestion": 12}
    assert found["open_question"]["contexts"]["mean"] == found["suggestion"]["contexts"]["mean"] == 0.0
    assert found["open_question"]["questions"]["mean"] == pytest.approx(1.0)
    assert found["suggestion"]["questions"]["interval"] == pytest.approx([-1.0, -1.0])
    assert "broken" not in found["suggestion"]


def test_shares_are_of_what_supporters_said() -> None:
    lines = ("I cannot sleep.", ASKS, "My job.", TELLS, "Hm.", TELLS, "Well.", TELLS)
    said = Dialogue(tuple(Message("supporter" if place % 2 else "seeker", text) for place, text in enumerate(lines)))
    held = Trajectory(Scenario(id="p", situation="I cannot sleep."), said, (), StopReason.MAX_TURNS, 0)
    assert shares([held]) == {"suggestion": 0.75, "open_question": 0.25}

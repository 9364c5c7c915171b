"""Judges: what models and people say about conversations that have been held, and how far that can be believed.

A judge gives marks on the five dimensions of the paper's human evaluation, to one conversation (1 to 5) or to two that
are compared; or, apart from these, on how safely a seeker at risk is met. Here belong the judges themselves
(`protocol`, `llm`, `plain`, `seats`), asking them about runs and imports (`design`, `session`), counting what they said
(`counting`, `report`), the same conversations under other critics (`rejudging`), and judges beside human raters
(`people`). What a *critic* does while a conversation is held belongs to
`esc_env.chairs`; what can be counted without asking anybody, to `evaluation.report`.

The commands are `esc judge`, `esc rejudge` and `esc validate judge`.
"""

from esc_env.evaluation.judges.llm import LLMJudge
from esc_env.evaluation.judges.people import validate_judge
from esc_env.evaluation.judges.plain import PlainJudge
from esc_env.evaluation.judges.protocol import DIMENSIONS, SAFETY, Judge, Opinion, SafetyJudge
from esc_env.evaluation.judges.rejudging import matrix, rejudge
from esc_env.evaluation.judges.seats import resolve_judge
from esc_env.evaluation.judges.session import judge_runs

__all__ = [
    "DIMENSIONS", "SAFETY", "Judge", "LLMJudge", "Opinion", "PlainJudge", "SafetyJudge", "judge_runs", "matrix",
    "rejudge", "resolve_judge", "validate_judge",
]  # fmt: skip

"""Run supporters on scenarios, and say how good they are and how sure that is.

>>> from esc_env.evaluation import evaluate
>>> report = evaluate(agent="builtin:skilled", scenarios="builtin:test", seed=0)
>>> report.success_rate > 0.7, report.errors  # and interval, average_turns, mean_score, …
(True, 0)
"""

if __name__ != "esc_env.evaluation":
    raise ImportError(f"import this package as esc_env.evaluation, not as {__name__}")

from esc_env.evaluation.ranking.comparison import Comparison, compare
from esc_env.evaluation.ranking.leaderboard import Entry, Leaderboard, rank
from esc_env.evaluation.runs.report import Group, Replies, Report
from esc_env.evaluation.runs.runner import evaluate, read_run
from esc_env.evaluation.statistics.intervals import success_interval

__all__ = [
    "Comparison", "Entry", "Group", "Leaderboard", "Replies", "Report", "compare", "evaluate", "rank", "read_run",
    "success_interval",
]  # fmt: skip

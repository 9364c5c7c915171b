"""Signs that training fails, in what was logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

__all__ = ["failure_signs"]


def failure_signs(log: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Known signs of failure in what the trainer logged: a name for each, and what to do about it.

    *Source:* the paper names a flat format reward and an early fall of the reward; no spread within groups follows
    from GRPO; the signs of reward hacking are ours, from a probe in which P(1) rose while the text fell apart.
    """
    signs = {}
    last = log[-1].get("step", 0) if log else 0
    idle = _column(log, "frac_reward_zero_std")
    if len(idle) >= 5 and fmean(idle[-5:]) > 0.9:
        signs["spread"] = (
            f"{fmean(idle[-5:]):.0%} of the groups have equal rewards, so there is nothing to learn. Sample hotter, "
            "use larger groups or more rollouts, or another reward"
        )
    form = _column(log, "rewards/format/mean")
    if last >= 1000 and len(form) >= 5 and _end(form) < 0.9 and _end(form) - _start(form) < 0.05:
        signs["format"] = (
            f"the format reward is flat at {_end(form):.2f} after {last} steps. Raise alpha, or start with SFT on data "
            "that has thoughts"
        )
    unended = _column(log, "completions/clipped_ratio")
    if len(unended) >= 5 and fmean(unended[-5:]) > 0.5:
        share = fmean(unended[-5:])
        signs["length"] = f"{share:.0%} of the replies do not end. Raise completion_length, or start with SFT"
    cut, held, taught = (_column(log, f"env/{name}")[-5:] for name in ("cut", "turns", "trained_turns"))
    if cut and fmean(cut) > 0.1 and fmean(taught) < 0.8 * fmean(held):
        signs["cut"] = (
            f"{fmean(cut):.0%} of the conversations outgrow prompt_length, so that {fmean(taught):.1f} of "
            f"{fmean(held):.1f} turns of a conversation are trained. Raise prompt_length, or turns"
        )
    rewards = _column(log, "reward")
    if len(rewards) < 10:
        return signs
    if _end(rewards) < _start(rewards) - 0.1:
        signs["falling"] = (
            f"the reward fell from {_start(rewards):.2f} to {_end(rewards):.2f}. Lower the learning rate, or raise beta"
        )
    if _end(rewards) > _start(rewards) + 0.05:
        valid = _column(log, "valid/success_rate")
        variety, entropy = _column(log, "text/distinct_2"), _column(log, "entropy")
        falling = []
        if len(valid) > 1 and valid[-1] < max(valid) - 0.05:
            falling.append(f"the success rate on valid fell from {max(valid):.0%} to {valid[-1]:.0%}")
        if variety and _end(variety) < 0.7 * _start(variety):
            falling.append(f"distinct-2 fell from {_start(variety):.2f} to {_end(variety):.2f}")
        if entropy and _end(entropy) < 0.5 * _start(entropy):
            falling.append(f"entropy fell from {_start(entropy):.2f} to {_end(entropy):.2f}")
        if falling:
            signs["hacking"] = (
                f"the reward rises, but {' and '.join(falling)}: the policy may be gaming its reward. Raise beta, "
                "train for fewer steps, or collect again with this policy"
            )
    return signs


def _column(log: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(entry[name]) for entry in log if entry.get(name) is not None]


def _start(values: Sequence[float]) -> float:
    return fmean(values[: max(1, len(values) // 5)])


def _end(values: Sequence[float]) -> float:
    return fmean(values[-max(1, len(values) // 5) :])

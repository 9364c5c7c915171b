"""The think-format reward: did the policy think first, in the asked form?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from esc_env.dialogue import split_thought
from esc_env.rewards.rows import Text, raw_text

__all__ = ["ThinkFormatReward"]

_FORM = re.compile(r"\A\s*+<think>(?P<thought>.*?)</think>(?P<reply>.*)", re.DOTALL)
_TAG = re.compile(r"<\s*+/?+\s*+think\s*+/?+\s*+>", re.IGNORECASE)


class ThinkFormatReward:
    """R_thk-fmt: 1 if a completion is exactly one non-empty `<think>…</think>` and a non-empty reply, else 0.

    The reply must hold words: a label or a control token alone is none. It must hold no thought in another form.

    *Source:* RLFF-ESC (arXiv 2508.12935), stage 3.

    Args:
        opener: what the chat template has already written of the completion (such as "<think>\\n"); counted as present.
    """

    def __init__(self, opener: str = "") -> None:
        self.opener = opener
        self.__name__ = "format"

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
        """One reward per completion, 0.0 or 1.0."""
        return [float(self.holds(raw_text(completion))) for completion in completions]

    def holds(self, text: str) -> bool:
        """Whether one raw completion has the form."""
        found = _FORM.fullmatch(self.opener + text)
        if not found or _TAG.search(found["thought"]) or _TAG.search(found["reply"]):
            return False
        more, said = split_thought(found["reply"])
        return bool(found["thought"].strip() and more is None and said.strip())

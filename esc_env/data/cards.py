"""Role cards: the people that other benchmarks let a model play, as scenarios. docs/data.md says what maps where.

    esc-eval-card    ESC-Eval (Zhao et al., EMNLP 2024): age, gender, occupation and problem in a few lines
    sage-profile     SAGE (Tencent, 2025), in Chinese: a person, a story under headings, and a hidden wish

Cards speak *of* a person, in the third person, and so do these scenarios: nothing is rewritten or made up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from esc_env.data.files import Unusable
from esc_env.scenarios import Need, Scenario, content_hash, mentions_self_harm

__all__ = ["esc_eval_card", "sage_profile"]

# --- ESC-Eval -------------------------------------------------------------------------------------

_CARD_FIELDS = {
    "age": "Age", "gender": "Gender", "occupation": "Occupation", "problem": "Problem",
    "年龄": "Age", "性别": "Gender", "职业": "Occupation", "问题": "Problem",
}  # fmt: skip
_CARD_FIELD = re.compile(rf"^\s*({'|'.join(_CARD_FIELDS)})\s*[:：]\s*", re.IGNORECASE | re.MULTILINE)
_TOPICS = {"家庭生活": "family life", "工作学习": "work and study", "社会与其他": "society and other"}
"""ESC-Eval's three topics."""


def esc_eval_card(card: Mapping[str, Any], source: str) -> Scenario:
    """One ESC-Eval role card. Raises Unusable when it names no problem."""
    pieces = _CARD_FIELD.split(card["base"]) if isinstance(card.get("base"), str) else []
    said = {_CARD_FIELDS[name.lower()]: _line(text) for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    problem = said.pop("Problem", "")
    if not problem:
        raise Unusable("its 'base' names no problem")
    known = (f"{name}: {text}." for name, text in said.items() if not re.match(r"(?i)not mentioned$|未提及$|$", text))
    topic = _line(card.get("res"))
    return Scenario(
        f"esc-eval-{content_hash(card['base'])}",
        problem,
        problem=_TOPICS.get(topic, topic).lower(),
        profile=" ".join(known),
        risk=mentions_self_harm(problem),
        source=source,
    )


# --- SAGE -----------------------------------------------------------------------------------------

_MARKS = r"[\s\d.、#*\-]*"
_STORY = re.compile(
    rf"{_MARKS}[^\s：:*，]{{0,10}}(?:起因|经过|主要的?冲突|(?:遇到|面[临对])的困难|(?P<now>当前状态))"
    r"(?:包括[^：:]{0,10})?[\s*]*(?:[：:](?P<rest>.*))?$"
)
"""A heading of the story: cause, course, main conflict, difficulties, present state; text may follow on its line."""
_REPLIES = re.compile(rf"{_MARKS}.{{0,25}}(?:回复|隐藏主题).{{0,16}}(?:反应|影响)[\s*：:]*$")
"""The heading of what a fitting and a missing reply do."""
_MOODS = re.compile(rf"{_MARKS}\S{{0,15}}(?:状态|emotion|可能)\S{{0,8}}反应[\s*：:]*$")
"""The heading of how the person is in a high, middle and low mood."""
_TITLE = re.compile(rf"{_MARKS}(?:(?<=#\s).*|[^。]*\*\*[^。]*|[^。]{{0,30}}[：:])\s*$")
"""Any other heading; only before the story, where nothing else tells it from the story."""
_THEME = re.compile(rf"{_MARKS}隐藏主题[\s*：:]*$")
_MISSES = re.compile("偏离|下降|降低")
"""What the first line about missing replies holds; the fitting ones stand before it."""
_NEEDS: tuple[tuple[str, Need], ...] = (("倾听", "listen"), ("共情", "listen"), ("解决当下困境的建议", "plan"))
"""Words of a hidden wish that say what relieves this person. The others (praise, agreement, analysis) say neither."""


def sage_profile(profile: Mapping[str, Any], source: str) -> Scenario:
    """One SAGE user profile. Raises Unusable when its story has no present state to open with."""
    texts = (profile.get(name) for name in ("player", "scene", "task"))
    player, scene, task = (text if isinstance(text, str) else "" for text in texts)
    story: list[list[str]] = [[]]
    now: list[str] = []
    moods: list[str] = []
    replies: list[str] = []
    part = story[0]
    for line in scene.split("\n"):
        if _THEME.match(line):
            break
        if _REPLIES.match(line):
            part = replies
        elif _MOODS.match(line):
            part = moods
        elif heading := _STORY.match(line):
            part = now if heading["now"] else []
            if part is not now:
                story.append(part)
            part.append(heading["rest"] or "")
        elif part is not story[0] or not _TITLE.match(line):
            part.append(line)
    if not any(now) and (moods or replies):  # told in prose then, last of all
        ending = max((number for number, line in enumerate(story[-1]) if line.strip()), default=0)
        now, story[-1] = story[-1][ending:], story[-1][:ending]
    situation = _line("\n".join(now))
    if not situation:
        raise Unusable("its 'scene' tells no present state (当前状态) to open with")
    facts = [fact for lines in story if (fact := _line("\n".join(lines)))]
    cut = next((number for number, line in enumerate(replies) if _MISSES.search(line)), len(replies))
    needs: list[Need] = [need for words, need in _NEEDS if words in task]
    traits = [_line(profile.get("main_cha")), *_texts(profile.get("cha_group"))]
    return Scenario(
        f"sage-{content_hash(player, scene, task)}",
        situation,
        facts=tuple(facts),
        helps=tuple(text for text in (_line(task), _line("\n".join(replies[:cut]))) if text),
        hurts=tuple(text for text in (_line("\n".join(replies[cut:])),) if text),
        need=needs[0] if needs else "both",
        profile=_line("\n".join((player, "、".join(trait for trait in traits if trait), *moods))),
        risk=any(mentions_self_harm(text) for text in (player, situation, *facts)),
        source=source,
    )


def _texts(value: Any) -> list[str]:
    return [_line(item) for item in value] if isinstance(value, list) else []


def _line(text: Any) -> str:
    """A text on one line, without the marks of Markdown."""
    return " ".join(re.sub(r"[*#]+|^\s*-\s", " ", text, flags=re.MULTILINE).split()) if isinstance(text, str) else ""

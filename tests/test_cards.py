"""Role cards of other benchmarks: what they hold becomes a scenario, and nothing else does. All cards are invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import esc_env
from esc_env.chairs.seekers import seeker_messages
from esc_env.data.datasets import load_scenarios, read_file
from esc_env.errors import ChairError
from esc_env.evaluation import evaluate
from esc_env.scenarios import Scenario, mentions_self_harm

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
real_data = pytest.mark.skipif(not DATA.exists(), reason="the cards are not next to the checkout")

CARD: dict[str, Any] = {
    "base": "Age: Not mentioned\nGender: female\nOccupation: baker\nProblem: The seeker's roof leaks on the flour. "
    "She is afraid of losing her shop.",
    "res": "工作学习",
    "source": "ESconv",
    "base_biaozhu": "年龄：未提及",
    "language": "english",
    "id": 7,
}
PLAYER = "* 姓名：李面\n* 年龄：40岁\n\n* 说话风格：\n李面说话很慢。"
SCENE = """## 背景故事

**事件的起因：**

李面的面包店屋顶漏水。

**事件的经过：** 第一周，他打了电话。

- **第二周：** 房东没有接。

### 主要冲突
- **冲突角色：** 李面与房东。

**玩家遇到的困难：**
他试过自己修。

**事件的当前状态：**
目前，李面不知道还能不能开店。

**玩家不同状态下可能的反应：**
- **角色emotion低时：** 他会沉默。

**角色面对NPC不同回复的反应：**
- **贴合隐藏主题的回复：**
  如果NPC耐心倾听，他会放松。
- **偏离隐藏主题的回复：**
  如果NPC立刻给建议，他会退出。
####隐藏主题:
***你希望对方用心倾听你的情绪宣泄"""
PROFILE = {
    "id": "x-1",
    "player": PLAYER,
    "scene": SCENE,
    "main_cha": "被动型",
    "cha_group": ["谨慎", "内向"],
    "task": "你希望对方用心倾听你的情绪宣泄",
}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(*rows: Any) -> Any:
        path = tmp_path / "cards"
        path.write_text(json.dumps(rows), "utf-8")
        return read_file(path)

    return read


def test_an_esc_eval_card_gives_problem_topic_and_who_it_is(read: Any) -> None:
    reading = read(CARD)
    assert reading.format == "esc-eval-card"
    assert reading.scenarios == (
        Scenario(
            reading.scenarios[0].id,
            "The seeker's roof leaks on the flour. She is afraid of losing her shop.",
            problem="work and study",
            profile="Gender: female. Occupation: baker.",
            source="cards",
        ),
    )


def test_a_card_in_chinese_is_the_same_kind_of_card(read: Any) -> None:
    base = "年龄：未提及\n\n性别：女\n职业：面包师\n问题：屋顶漏水，她有时不想活了。"
    scenario = read({**CARD, "base": base}).scenarios[0]
    assert scenario.situation == "屋顶漏水，她有时不想活了。"
    assert scenario.profile == "Gender: 女. Occupation: 面包师."
    assert scenario.risk


def test_a_card_has_one_id_whatever_its_number_and_file(read: Any) -> None:
    first = read(CARD).scenarios[0]
    again = read({**CARD, "id": 8, "source": "MHP"}, CARD)
    assert [scenario.id for scenario in again.scenarios] == [first.id]
    assert again.skipped[0].place == "record 2"
    assert read({**CARD, "base": CARD["base"].replace("baker", "nurse")}).scenarios[0].id != first.id


def test_a_card_without_a_problem_is_skipped_with_the_reason(read: Any) -> None:
    reading = read(CARD, {**CARD, "base": "Age: 40"}, {**CARD, "base": None}, {**CARD, "base": "Age: 4\nProblem: "})
    assert [str(skipped) for skipped in reading.skipped] == [
        f"record {number}: its 'base' names no problem" for number in (2, 3, 4)
    ]


def test_a_sage_profile_gives_its_story_under_our_names(read: Any) -> None:
    reading = read(PROFILE)
    scenario = reading.scenarios[0]
    assert reading.format == "sage-profile"
    assert scenario.situation == "目前，李面不知道还能不能开店。"
    assert scenario.facts == (
        "李面的面包店屋顶漏水。",
        "第一周，他打了电话。 第二周： 房东没有接。",
        "冲突角色： 李面与房东。",
        "他试过自己修。",
    )
    assert scenario.helps == ("你希望对方用心倾听你的情绪宣泄", "贴合隐藏主题的回复： 如果NPC耐心倾听，他会放松。")
    assert scenario.hurts == ("偏离隐藏主题的回复： 如果NPC立刻给建议，他会退出。",)
    assert scenario.need == "listen"
    assert scenario.profile == (
        "姓名：李面 年龄：40岁 说话风格： 李面说话很慢。 被动型、谨慎、内向 角色emotion低时： 他会沉默。"
    )
    assert (scenario.emotion, scenario.problem, scenario.persona, scenario.intensity) == ("", "", "cooperative", None)


@pytest.mark.parametrize(
    ("task", "need"),
    [
        ("你希望对方深刻共情你的感受，而不是简单的安慰", "listen"),
        ("你想获得能真实帮助你解决当下困境的建议", "plan"),
        ("你希望对方真诚地夸奖你在事件中的具体行为", "both"),
    ],
)
def test_a_hidden_wish_decides_the_need_only_where_it_names_one(read: Any, task: str, need: str) -> None:
    assert read({**PROFILE, "task": task}).scenarios[0].need == need


def test_the_hidden_wish_never_opens_the_conversation(read: Any) -> None:
    prose = SCENE.replace("**事件的当前状态：**\n", "")
    assert read({**PROFILE, "scene": prose}).scenarios[0].situation == "目前，李面不知道还能不能开店。"
    for scene in ("####隐藏主题:\n***你希望对方用心倾听", "A story without any heading.", ""):
        reading = read(PROFILE, {**PROFILE, "scene": scene})
        assert str(reading.skipped[0]) == "record 2: its 'scene' tells no present state (当前状态) to open with"


def test_a_model_that_plays_the_seeker_gets_all_that_the_card_holds(read: Any) -> None:
    card = seeker_messages(read(PROFILE).scenarios[0], esc_env.Dialogue())[0]["content"]
    for words in ("李面不知道还能不能开店", "房东没有接", "你希望对方用心倾听", "立刻给建议", "谨慎", "说话很慢"):
        assert words in card or json.dumps(words)[1:-1] in card
    english = seeker_messages(read(CARD).scenarios[0], esc_env.Dialogue())[0]["content"]
    assert "The seeker's roof leaks" in english
    assert "Occupation: baker" in english


def test_the_embedded_seeker_talks_with_an_english_card(read: Any) -> None:
    env = gym.make("ESConv-v0", scenarios=read(CARD).scenarios)
    chat, _ = env.reset(seed=0)
    assert chat[0]["content"].startswith("The seeker's roof leaks")
    chat, *_ = env.step("That sounds frightening. What would losing the shop mean to you?")
    assert chat[-1]["content"]


def test_the_embedded_chairs_refuse_what_they_cannot_understand_in_one_line(read: Any, tmp_path: Path) -> None:
    env = gym.make("ESConv-v0", scenarios=read(PROFILE).scenarios)
    env.reset(seed=0)
    with pytest.raises(ChairError, match="understand English only") as caught:
        env.step("你好")
    assert "\n" not in str(caught.value)
    report = evaluate("builtin:skilled", read(PROFILE).scenarios, seeker=lambda scenario, dialogue: "嗯", out=tmp_path)
    assert (report.completed, report.errors) == (0, 1)  # the critic is builtin too


@pytest.mark.parametrize("situation", ["J'ai peur de perdre mon été.", "😞 1234", "My 老板 shouts at me every day."])
def test_what_may_be_english_is_never_refused(situation: str) -> None:
    env = gym.make("ESConv-v0", scenarios=[Scenario("a", situation)])
    env.reset(seed=0)
    assert env.step("What happened?")[0][-1]["content"]


@pytest.mark.parametrize("text", ["我有时候想自杀", "真的不想活了", "活着没意思", "我割腕过", "想死的心都有"])
def test_chinese_words_of_self_harm_are_seen(text: str) -> None:
    assert mentions_self_harm(text)


@pytest.mark.parametrize("text", ["我想死你了", "生活很有意思", "我和他分手了"])
def test_chinese_turns_of_phrase_are_not_self_harm(text: str) -> None:
    assert not mentions_self_harm(text)


@real_data
def test_every_real_card_is_a_scenario_with_a_profile_where_it_has_one() -> None:
    cards = load_scenarios(DATA / "esc_eval_cards_high_en.json")
    raw = json.loads((DATA / "esc_eval_cards_high_en.json").read_text("utf-8"))
    assert len(cards) == len(raw) == 331
    for scenario, card in zip(cards, raw, strict=True):
        assert scenario.situation in " ".join(card["base"].split())
        assert all(part.strip(". ") in card["base"] for part in scenario.profile.split(". ") if part)
    assert {scenario.problem for scenario in cards} == {"family life", "work and study", "society and other"}


@real_data
def test_every_real_profile_opens_with_its_present_state_and_keeps_its_wish_hidden() -> None:
    profiles = load_scenarios(DATA / "sage_profiles20_zh.jsonl")
    raw = [json.loads(line) for line in (DATA / "sage_profiles20_zh.jsonl").read_text("utf-8").splitlines()]
    assert len(profiles) == 20
    for scenario, profile in zip(profiles, raw, strict=True):
        assert 20 <= len(scenario.situation) <= 120
        assert len(scenario.facts) >= 3  # the one in prose has fewer headings
        assert "隐藏主题" not in scenario.situation + "".join(scenario.facts) + scenario.profile
        assert scenario.helps[0] == profile["task"]
        assert len(scenario.helps) == 2
        assert len(scenario.hurts) == 1
        assert "降" not in scenario.helps[1]
    assert sum(scenario.need != "both" for scenario in profiles) == 9

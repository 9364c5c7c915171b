"""Thinking is private, whoever writes it and in whatever form; and what people say is never cut."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import pytest
from conftest import bank
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_env import Dialogue, Message, Seed
from esc_env.agents.chat import STYLES, ChatAgent
from esc_env.background import run
from esc_env.chairs.critics import LLMCritic
from esc_env.chairs.seekers import LLMSeeker
from esc_env.conversation import Chairs, converse
from esc_env.dialogue import split_thought
from esc_env.protocols import Reply
from esc_env.rewards import ThinkFormatReward
from esc_env.testing import FakeChatModel

CASES = Path(__file__).parents[2] / "shared" / "cases" / "replies.json"

THOUGHT, SAID = "She sounds tired; ask first.", "That sounds heavy. What has it been like?"

FORMS = {
    "DeepSeek-R1, Qwen3": f"<think>\n{THOUGHT}\n</think>\n\n{SAID}",
    "an opener that the template wrote": f"{THOUGHT}\n</think>\n\n{SAID}",
    "tokens set apart by spaces": f"<think> {THOUGHT} </think> {SAID}",
    "spaces in the tag": f"< think >{THOUGHT}</ think >{SAID}",
    "other letters": f"<THINK>{THOUGHT}</Think>{SAID}",
    "thinking": f"<thinking>{THOUGHT}</thinking>{SAID}",
    "thought and output (Marco-o1)": f"<Thought>\n{THOUGHT}\n</Thought>\n<Output>\n{SAID}\n</Output>",
    "reasoning": f"<reasoning>{THOUGHT}</reasoning>{SAID}",
    "reflection in thinking (Reflection-70B)":
        f"<thinking>She sounds tired; <reflection>ask first.</reflection></thinking><output>{SAID}</output>",
    "one thought after another": f"<thinking>She sounds tired; </thinking><reflection>ask first.</reflection>{SAID}",
    "opened in one form, closed in another": f"<thinking>{THOUGHT}</think>{SAID}",
    "answer (Hunyuan A13B)": f"<think>\n{THOUGHT}\n</think>\n<answer>\n{SAID}\n</answer>",
    "response (ERNIE 4.5)": f"<think>{THOUGHT}</think>\n<response>\n{SAID}\n</response>",
    "Seed-OSS": f"<seed:think>{THOUGHT}</seed:think>{SAID}",
    "MiniMax-M3": f"<mm:think>{THOUGHT}</mm:think>{SAID}",
    "LongCat": f"<longcat_think>{THOUGHT}</longcat_think>{SAID}",
    "Magistral": f"[THINK]{THOUGHT}[/THINK]{SAID}</s>",
    "Kimi-VL": f"◁think▷{THOUGHT}◁/think▷{SAID}",
    "Kimi K3":
        f"<|open|>think<|sep|>{THOUGHT}<|close|>think<|sep|><|open|>response<|sep|>{SAID}"
        "<|close|>response<|sep|><|end_of_msg|>",
    "think as a token": f"<|think|>{THOUGHT}<|/think|>{SAID}",
    "Command A": f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{SAID}<|END_RESPONSE|>",
    "Command A, opened by the template": f"{THOUGHT}<|END_THINKING|><|START_TEXT|>{SAID}<|END_TEXT|>",
    "Sky-T1, OpenThinker":
        f"<|begin_of_thought|>\n\n{THOUGHT}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{SAID}"
        "\n\n<|end_of_solution|>",
    "s1": f"<|im_start|>think\n{THOUGHT}\n<|im_start|>answer\n{SAID}<|im_end|>",
    "Apertus": f"<|inner_prefix|>{THOUGHT}<|inner_suffix|>{SAID}",
    "Inkling": f"<|message_model|><|content_thinking|>{THOUGHT}<|end_message|><|message_model|><|content_text|>{SAID}"
        "<|end_message|>",
    "Gemma 4": f"<|channel>thought\n{THOUGHT}<channel|>{SAID}<turn|>",
    "Pangu": f"[unused16]{THOUGHT}[unused17]{SAID}",
    "Granite 3.2": f"Here is my thought process:\n{THOUGHT}\nHere is my response:\n{SAID}",
    "Granite 3.2, quantised": f"Here's my thought process: {THOUGHT} Here's my response: {SAID}",
    "gpt-oss":
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{SAID}<|return|>",
    "gpt-oss, opened by the template":
        f"{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{SAID}",
    "gpt-oss with commentary":
        f"<|start|>assistant<|channel|>analysis<|message|>She sounds tired; <|end|><|start|>assistant"
        f"<|channel|>commentary<|message|>ask first.<|end|>"
        f"<|start|>assistant<|channel|>final <|constrain|>text<|message|>{SAID}<|end|>",
    "gpt-oss that thinks on":
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{SAID}<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>",
    "gpt-oss without its tokens": f"analysis{THOUGHT}assistantfinal{SAID}",
    "label later": f"<think>{THOUGHT}</think>\n**Supporter:** {SAID}",
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_a_thought_in_any_form_is_kept_and_never_said(text):
    thought, said = split_thought(text)
    assert said == SAID
    assert thought is not None
    assert thought.split() == THOUGHT.split()


OPENERS = (
    "<think>", "<thinking>\n", "<thought>", "<reasoning>", "<reflection>", "<seed:think>", "[THINK]", "◁think▷",
    "<|think|>", "<|START_THINKING|>", "<|begin_of_thought|>\n", "<|im_start|>think\n", "<|inner_prefix|>",
    "<|content_thinking|>", "<|channel>thought\n", "[unused16]", "<|open|>think<|sep|>",
    "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>analysis<|message|>",
    "<|channel|>commentary<|message|>",
    "<|channel|>commentary to=functions.look <|constrain|>json<|message|>", "Here is my thought process:", "analysis",
    "Supporter: <think>", "<|im_start|>assistant\n<think>\n", "<think></think><reflection>",
)  # fmt: skip


@pytest.mark.parametrize("opener", OPENERS)
def test_of_a_thought_that_stays_open_nothing_is_said(opener):
    assert split_thought(opener + THOUGHT) == (THOUGHT, "")
    assert split_thought(f"\n {opener} {THOUGHT}\n")[1] == "" or opener == "analysis"


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("Well.<think>hm</think>I hear you.", "Well.hm", "I hear you."),
        ("Well.\n<thinking>hm</thinking>\nI hear you.", "Well.\nhm", "I hear you."),
        ("I hear you <think> she lies </think> so tell me more", "I hear you  she lies", "so tell me more"),
        ("I hear you.<think>done", "done", "I hear you."),
        ("I hear you. <think> She lies", "She lies", "I hear you."),
        ("I hear you <think>she lies", "she lies", "I hear you"),
        ("I hear you.\n<think>\nshe lies", "she lies", "I hear you."),
        ("I hear you.<|channel|>analysis<|message|>she lies", "she lies", "I hear you."),
        ('<think>She typed "<think>" and "</think>".</think>I hear you.', 'She typed "" and "".', "I hear you."),
        ('<think>She typed "</think>" and', 'She typed "" and', ""),
        ('He said "no"</think>"Hello."', 'He said "no"', '"Hello."'),
        ("<think>a</think>You wrote <think> on the door.", "a", "You wrote <think> on the door."),
        ("<think>a</think>", "a", ""),
        ("</think>Hello.", "", "Hello."),
        ("<think></think>Hello.", "", "Hello."),
        ('"<think>she lies</think>I hear you."', '"she lies', 'I hear you."'),
    ],
)
def test_a_thought_somewhere_else_is_no_speech_either(text, thought, said):
    assert split_thought(text) == (thought, said)


SPOKEN = (
    "You wrote [THINK] on the door in chalk. What did you mean by it?",
    "I read about [THINK] tanks.",
    "I read about [THINK] Tanks.",
    "I like chalk. [THINK] is what you wrote.",
    "What does [THINK] mean?",
    "You wrote [THINK], and then?",
    "It said, on your door: [THINK]",
    'She typed "<think>" and then she stopped.',
    'She typed "<think> I hate this" and then she stopped.',
    'She typed "<think>I hate this</think>" and then she stopped.',
    "She typed `<think>` and `</think>`, both.",
    "She typed “<think>” and “</think>”, both.",
    'She typed "</think>".',
    "I typed </think> on the door.",
    "You said (<reflection>) in your note.",
    '"<think>" is what you wrote.',
    "你写了“<think>”，是吗？",
    "She wrote <|im_end|> in her essay.",
    'Her essay ended with "</s>".',
    "[thinking] Hmm. I don't know.",
    "[sighs] That is hard.",
    "Here is my response: I hear you.",
    "analysis of it all is tiring.",
    "Think: what would help?",
    "My supporter: that is my sister.",
    "As a supporter: take your time.",
    "Seeker: I am well now.",
    "1 < 2 and 3 > 2.",
    "  Hello.  ",
    "   ",
    "",
)


@pytest.mark.parametrize("text", SPOKEN)
def test_what_people_say_is_never_cut(text):
    assert split_thought(text) == (None, text)


ENDINGS = (
    "<|im_end|>", "</s>", "<end_of_turn>", "<|eot_id|>", "<|endoftext|>", "<|end|>", "<|return|>", "[/INST]", "<eos>",
    "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "<|end_of_text|>", "<turn|>", "<end_of_utterance>", "<|user|>",
    "\n<|im_end|>\n", "<|im_end|>\n<|im_start|>user\n", "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    "<end_of_turn>\n<start_of_turn>user\n", "</s></s> </s>", "<|end|><|start|>assistant",
)  # fmt: skip
BEGINNINGS = (
    "Supporter: ", "Assistant:", "**Supporter:** ", "**Supporter**: ", "[Supporter]: ", "supporter：", "支持者：",
    "Therapist: ", "<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<start_of_turn>model\n",
    "<s>", "[/INST] ", "<|assistant|>\nSupporter: ", "<｜Assistant｜>", "### Assistant: ",
)  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_control_tokens_at_the_end_are_no_speech(ending):
    assert split_thought(SAID + ending) == (None, SAID)
    assert split_thought(f"<think>{THOUGHT}</think>{SAID}{ending}") == (THOUGHT, SAID)


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_own_label_and_tokens_at_the_beginning_are_no_speech(beginning):
    assert split_thought(beginning + SAID) == (None, SAID)


def test_a_label_is_taken_off_only_where_it_names_the_speaker():
    assert split_thought("Seeker: I am tired.", "seeker") == (None, "I am tired.")
    assert split_thought("Supporter: I am tired.", "seeker") == (None, "Supporter: I am tired.")


PIECES = (
    *OPENERS, *ENDINGS, *BEGINNINGS, *SPOKEN, "</think>", "</thinking>", "[/THINK]", "<|channel|>final<|message|>",
    "Here is my response:", "assistantfinal", "<answer>", "</answer>", "<think/>", " ", "\n", ". ", '"', "word", "Word",
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=8).map("".join))
def test_what_is_said_holds_no_thought_and_is_part_of_the_text(text):
    thought, said = split_thought(text)
    assert said in text
    assert split_thought(said) == (None, said), "what was heard once is heard again, whoever reads it back"
    if thought:
        assert split_thought(f"<think>{thought}</think>\nHello.") == (thought, "Hello."), "so it can be learned from"


@pytest.mark.skipif(not CASES.exists(), reason="needs the cases next to the checkout")
def test_the_replies_of_real_models_come_out_right():
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    texts = [case for case in cases if case["content"] is not None]
    assert len(texts) >= 6
    for case in texts:
        assert split_thought(case["content"]) == (case["thought"], case["speech"]), case["name"]


# --- through every door -------------------------------------------------------------------------------------------

DIALOGUE = Dialogue((Message("seeker", "I feel low."),))
SOME = {name: FORMS[name] for name in ("thinking", "Magistral", "gpt-oss", "Granite 3.2", "Command A", "label later")}


@pytest.mark.parametrize("text", SOME.values(), ids=SOME)
@pytest.mark.parametrize("style", STYLES)
def test_no_style_lets_a_thought_be_said(style, text):
    reply = run(ChatAgent(FakeChatModel(text), style).respond(DIALOGUE, seed=Seed(1)))
    assert reply.content == SAID
    assert "ask first" in (reply.thought or "") or style == "lookahead"


@pytest.mark.parametrize("label", ["Response: ", "**Response:** Supporter: "])
def test_thoughts_before_an_answer_in_a_form_are_kept(label):
    text = f"[THINK]{THOUGHT}[/THINK]Strategy: Question\n{label}{SAID}<|im_end|>"
    reply = run(ChatAgent(FakeChatModel(text), "procot").respond(DIALOGUE, seed=Seed(1)))
    assert (reply.content, reply.thought) == (SAID, f"{THOUGHT}\nStrategy: Question")


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_an_action_is_heard_without_its_thought(text):
    env = gym.make("ESConv-v0", scenarios=bank())
    env.reset(seed=1)
    observation, *_ = env.step(text)
    assert observation[1] == {"role": "assistant", "content": SAID}


def test_neither_seeker_nor_critic_is_shown_a_thought():
    seeker, critic = FakeChatModel("[THINK]he asks[/THINK]I am tired.<|im_end|>"), FakeChatModel("[THINK]D?[/THINK]B")
    agent = ChatAgent(FakeChatModel(FORMS["gpt-oss"]))
    trajectory = run(converse(bank()[0], agent, Chairs(LLMSeeker(seeker), LLMCritic(critic)), seed=1))
    assert trajectory.completed
    assert {message.content for message in trajectory.dialogue.messages[1:]} == {SAID, "I am tired."}
    assert {verdict.score for verdict in trajectory.verdicts} == {-0.5}
    shown = str([call.messages for model in (seeker, critic) for call in model.calls])
    assert "ask first" not in shown
    assert "he asks" not in shown
    assert trajectory.dialogue.messages[1].thought == THOUGHT


def test_a_reply_read_from_text_is_split_too():
    assert Reply.parse(FORMS["Kimi-VL"]) == Reply(SAID, THOUGHT)


@pytest.mark.parametrize("name", [name for name in FORMS if name != "DeepSeek-R1, Qwen3"])
def test_only_the_papers_form_is_rewarded(name):
    rewarded = {"tokens set apart by spaces", "answer (Hunyuan A13B)", "response (ERNIE 4.5)", "label later"}
    assert ThinkFormatReward().holds(FORMS[name]) is (name in rewarded)


@pytest.mark.parametrize("name", FORMS)
def test_a_thought_in_another_form_after_the_papers_is_not_rewarded(name):
    assert not ThinkFormatReward().holds(f"<think>why</think>{FORMS[name]}")


@pytest.mark.parametrize("reply", ["Supporter:", "<|im_end|>", "[THINK]why", "<answer></answer>"])
def test_what_nobody_hears_is_no_reply(reply):
    assert not ThinkFormatReward().holds(f"<think>why</think>{reply}")


def test_a_reply_that_speaks_of_thinking_keeps_its_reward():
    assert ThinkFormatReward().holds("<think>why</think>You wrote [THINK] on the door.<|im_end|>")

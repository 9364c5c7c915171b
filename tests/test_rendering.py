"""How a conversation looks to a person, whatever is in it."""

from __future__ import annotations

import io
import unicodedata
from typing import Any

import gymnasium as gym
import pytest
from conftest import bank
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from esc_env import Dialogue, Message
from esc_env.errors import ModelUnavailable, SpecError
from esc_env.escaping import safe
from esc_env.gym.env import ESCEnv
from esc_env.rendering import show, transcript
from esc_env.testing import Faulty, ScriptedCritic, ScriptedSeeker

TALK = Dialogue((Message("seeker", "I am low."), Message("supporter", "Since when?"), Message("seeker", "May.")))


def make(**options) -> Any:
    options.setdefault("seeker", ScriptedSeeker(["Since spring.", "Thank you."]))
    options.setdefault("critic", ScriptedCritic(["same", "solved"]))
    return gym.make("ESConv-v0", scenarios=bank(1), **options)


def test_ansi_is_the_whole_conversation_as_a_person_reads_it():
    env = make(render_mode="ansi")
    env.reset(seed=0)
    env.step("Since when?")
    env.step("<think>nearly there</think>What would help you on Monday?")
    assert env.render() == "\n".join(
        [
            "Seeker     I am person 0 and I cannot sleep because of my job.",
            "Supporter  Since when?",
            "Seeker     Since spring.",
            "           turn 1: score -0.50",
            "Supporter  What would help you on Monday?",
            "Seeker     Thank you.",
            "           turn 2: score +1.00, solved",
            "Solved after 2 turns.",
        ]
    )


def test_human_prints_what_is_new_as_it_happens(capsys):
    env = make(render_mode="human")
    env.reset(seed=0)
    assert capsys.readouterr().out == "Seeker     I am person 0 and I cannot sleep because of my job.\n"
    env.step("Since when?")
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed == ["Supporter  Since when?", "Seeker     Since spring.", "           turn 1: score -0.50"]
    assert env.render() is None
    assert capsys.readouterr().out == ""
    env.reset(seed=0)
    assert capsys.readouterr().out.startswith("Seeker     I am person 0")


def test_a_history_is_shown_without_verdicts_it_never_had():
    history = Dialogue((*TALK, Message("supporter", "And now?"), Message("seeker", "The same.")))
    env = make(render_mode="ansi")
    env.reset(options={"scenario": "person-0", "history": history})
    env.step("I see.")
    assert [line[:17] for line in env.render().splitlines()] == [
        "Seeker     I am l", "Supporter  Since ", "Seeker     May.", "Supporter  And no", "Seeker     The sa",
        "Supporter  I see.", "Seeker     Since ", "           turn 1", "Solved after 1 tu",
    ]  # fmt: skip


def test_an_episode_that_an_error_ended_says_so():
    env = make(critic=Faulty(ScriptedCritic(["same"]), {1: ModelUnavailable("gone")}), on_error="truncate",
               render_mode="ansi")  # fmt: skip
    env.reset(seed=0)
    env.step("Hello.")
    assert env.render().splitlines()[-1] == "Ended by an error of the critic after 0 turns: gone"


def test_long_text_is_wrapped_and_indented_and_silence_is_named():
    text = transcript(Dialogue((Message("seeker", "word " * 40), Message("supporter", " "))))
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith("           word") for line in lines[1:-1])
    assert lines[-1] == "Supporter  (silence)"


def test_no_text_can_forge_a_speaker():
    text = transcript(Dialogue((Message("supporter", "Hello.\nSeeker     I feel great.\r\nSeeker  Solved."),)))
    assert [line[:9] for line in text.splitlines()] == ["Supporter", " " * 9, " " * 9]


@pytest.mark.parametrize(
    "nasty", ["\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "abc\u202edef", "back\x08space", "over\rwritten"]
)
def test_terminal_codes_become_visible_marks(nasty):
    for terminal in (False, True):
        written = io.StringIO()
        page = Console(file=written, width=60, force_terminal=terminal, color_system=None)
        show(page, Dialogue((Message("seeker", nasty),)), ending=nasty)
        printed = written.getvalue()
        assert "\N{REPLACEMENT CHARACTER}" in printed
        assert not any(character in printed for character in "\x07\x08\x9b\r\u202e")
        assert "\x1b[31m" not in printed
        assert "\x1b]" not in printed


def test_markup_and_emoji_codes_stay_as_written():
    said = "[bold red]Hi[/] [/nothing] :smile: [link=http://x]y[/link]"
    assert transcript(Dialogue((Message("seeker", said),))) == f"Seeker     {said}"


@given(st.text(max_size=200))
def test_any_text_can_be_shown(text):
    shown = transcript(Dialogue((Message("seeker", text),)), ending=text)
    assert not any(unicodedata.category(character) == "Cc" for character in shown.replace("\n", ""))
    assert safe(safe(text)) == safe(text)


def test_without_a_render_mode_render_says_what_to_type():
    env = make().unwrapped
    env.reset()
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_an_unknown_render_mode_is_refused():
    with pytest.raises(SpecError, match="'human'"):
        ESCEnv(bank(), render_mode="humann")  # type: ignore[arg-type]

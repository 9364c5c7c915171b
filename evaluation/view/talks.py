"""Conversations that people hold with a seeker in browsers: whose they are, how they go on, when they are dropped."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esc_env.background import hops
from esc_env.conversation import Chairs, begin
from esc_env.dialogue import Dialogue
from esc_env.errors import ESCError, SpecError
from esc_env.escaping import one_line
from esc_env.gym.episode import Episode, Task
from esc_env.gym.spaces import Utterance
from esc_env.protocols import Reply, RevealingSeeker
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.seeds import Seed, episode_seed
from esc_env.trajectory import StopReason, Trajectory

__all__ = ["AGE", "SWITCHES", "Talk", "Talks", "trajectory_of"]

MOST = 100
"""Sessions that are held; the one left alone longest makes room for another. Ours."""
AGE = 12
"""Hours after which a session that is left alone is dropped. Ours."""

SWITCHES = ("critic", "state")
"""What is behind a switch: the critic's verdicts, the seeker's hidden state."""


@dataclass(slots=True)
class Talk:
    """What one browser session holds.

    Attributes:
        shown: the switches that are on.
        episode: the conversation; None before the first.
        seed: what it was drawn by.
        draft: what was said, and not answered since something failed.
        trouble: what failed; or nothing.
        kept: whether the conversation is kept as it stands.
        used: when it was last asked for, in seconds of a clock that only goes on.
        turns: held while the seeker is asked, so that nothing is said twice.
    """

    shown: set[str] = field(default_factory=set)
    episode: Episode | None = None
    seed: int = 0
    draft: str = ""
    trouble: str = ""
    kept: bool = True
    used: float = field(default_factory=time.monotonic)
    turns: asyncio.Lock = field(default_factory=asyncio.Lock)


class Talks:
    """The conversations of all browser sessions.

    Args:
        people: whom one may meet.
        chairs: seeker, critic and rules.
        seed: draws the first person of a session and what is said; None for another one every time.
        revealing: whether the switches are on at first.
        keep: gets a conversation that has ended, or that is left.
    """

    def __init__(
        self,
        people: ScenarioSet,
        chairs: Chairs,
        *,
        seed: int | None = None,
        revealing: bool = False,
        keep: Callable[[Scenario, Dialogue], None] = lambda *_: None,
    ) -> None:
        self.people = people
        self.chairs = chairs
        self.seed = seed
        self.emotions = sorted({person.emotion for person in people if person.emotion})
        self.stateful = isinstance(chairs.seeker, RevealingSeeker)
        self._first: set[str] = set(SWITCHES) if revealing else set()
        self._keep = keep
        self._task = Task(chairs, people, None, "terminal", "raise")
        self._held: dict[str, Talk] = {}

    def of(self, session: str) -> Talk | None:
        """What a session holds; None for one that is not, or no longer, known."""
        if talk := self._held.pop(session, None):
            talk.used = time.monotonic()
            self._held[session] = talk  # the one left alone longest stands first
        return talk

    def open(self) -> tuple[str, Talk]:
        """A new session. Others that were left alone too long, or are too many, are dropped."""
        for name, talk in list(self._held.items()):
            old = len(self._held) >= MOST or time.monotonic() - talk.used > 3600 * AGE
            if old and not talk.turns.locked():  # what is just being said would be lost
                del self._held[name]
                self._leave(talk)
        name, talk = secrets.token_urlsafe(32), Talk(set(self._first))
        self._held[name] = talk
        return name, talk

    async def begin(self, talk: Talk, emotion: str, seed: int | None) -> None:
        """Meet somebody else. What fails is told in `trouble`, and the conversation before stays.

        Args:
            talk: of the session.
            emotion: that the person feels; "" for any.
            seed: draws who it is and what is said, as `esc chat --seed` does; None for another one every time.
        """
        chosen = self.people.filter(lambda person: emotion in ("", person.emotion))
        if not chosen:
            raise SpecError(f"nobody here feels {emotion!r}")
        number = secrets.randbelow(2**31) if seed is None else seed
        person = chosen.sample(1, number)[0]
        episode = episode_seed(number, person.id, 0)
        async with talk.turns:
            try:
                dialogue, usage = await hops(begin)(person, self.chairs, seed=Seed(episode))
            except ESCError as error:
                talk.trouble = one_line(str(error))
                return
            self._leave(talk)
            talk.episode = Episode(person, episode, dialogue, len(dialogue), usage=usage)
            talk.seed, talk.draft, talk.trouble, talk.kept = number, "", "", True

    async def say(self, talk: Talk, said: str, turn: int) -> None:
        """Say something, and hear the answer. What fails is told in `trouble`, and what was said waits in `draft`.

        Args:
            talk: of the session.
            said: the words.
            turn: which of the conversation it is for; one that has been held is not held again.
        """
        async with talk.turns:
            episode = talk.episode
            if episode is None or episode.stop or turn != episode.turn + 1:
                return
            talk.draft, talk.trouble = said, ""
            try:
                if not said.strip():
                    raise SpecError("say something first")
                reply = Reply(Utterance(self.chairs.rules.max_chars).check(said.strip()))
                talk.episode = await hops(self._task.go_on)(episode, reply)
            except ESCError as error:
                talk.trouble = one_line(str(error))
                return
            talk.draft, talk.kept = "", False
            if talk.episode.stop:
                self._leave(talk)

    def states(self, episode: Episode) -> list[Mapping[str, Any]]:
        """The seeker's hidden state before the first turn and after each; nothing of a seeker without one."""
        seeker, messages = self.chairs.seeker, episode.dialogue.messages
        if not isinstance(seeker, RevealingSeeker):
            return []
        ends = range(episode.opening, len(messages) + 1, 2)
        try:
            return [seeker.reveal(episode.scenario, Dialogue(messages[:end]), seed=Seed(episode.seed)) for end in ends]
        except ESCError:  # the seeker cannot read this person, which it says when it is asked to speak
            return []

    def close(self) -> None:
        """Keep what has not ended. One that cannot be kept holds up no other; the first such error is raised last."""
        errors: list[OSError] = []
        for talk in self._held.values():
            try:
                self._leave(talk)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _leave(self, talk: Talk) -> None:
        if talk.episode and not talk.kept:
            self._keep(talk.episode.scenario, talk.episode.dialogue)
            talk.kept = True


def trajectory_of(episode: Episode) -> Trajectory:
    """A conversation at one moment, as pages show conversations."""
    return Trajectory(
        episode.scenario, episode.dialogue, episode.verdicts, episode.stop or StopReason.ERROR, episode.seed,
        history=episode.opening,
    )  # fmt: skip

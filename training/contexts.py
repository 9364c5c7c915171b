"""Contexts, what a collection responds to: dialogues that end with the seeker, human and simulated ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from esc_env.dialogue import Dialogue
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed, derive, episode_seed
from esc_env.trajectory import Trajectory

__all__ = ["Context", "Source", "drawn", "found", "from_dialogue", "human_contexts", "simulated_contexts"]

Source = Literal["auto", "human", "simulated"]
"""Where contexts come from: human dialogues, conversations held on the spot, or whichever a scenario has."""


@dataclass(frozen=True, slots=True)
class Context:
    """A dialogue to answer: of which scenario, in which episode."""

    scenario: Scenario
    dialogue: Dialogue
    seed: int

    @property
    def key(self) -> tuple[int, str]:
        """What tells it from all others."""
        return self.seed, self.dialogue.transcript()

    def name(self, number: int, m: int) -> Seed:
        """The name of its response `number` (0 ≤ number < m): another one for every response in the episode."""
        return Seed(self.seed, candidate=self.dialogue.turns * m + number + 1)


def human_contexts(scenario: Scenario) -> Iterator[Dialogue]:
    """All prefixes of the scenario's human dialogue that end with a whole seeker turn."""
    messages = scenario.dialogue.messages if scenario.dialogue else ()
    for place, message in enumerate(messages, 1):
        last = place == len(messages) or messages[place].role == "supporter"
        if message.role == "seeker" and last:
            yield Dialogue(messages[:place])


def simulated_contexts(trajectory: Trajectory) -> Iterator[Dialogue]:
    """All prefixes of a held conversation that end with the seeker and that the supporter went on to answer."""
    messages = trajectory.dialogue.messages
    for place in range(trajectory.history, len(messages), 2):
        yield Dialogue(messages[:place])


def from_dialogue(scenario: Scenario, source: Source) -> bool:
    """Whether a scenario's contexts come from its human dialogue."""
    return source == "human" or (source == "auto" and scenario.dialogue is not None)


def found(
    people: Sequence[Scenario], held: Iterable[Trajectory], source: Source, trials: int, seed: int
) -> list[Context]:
    """All contexts, each once: of human dialogues (every trial is another episode), and of the conversations `held`."""
    every = [
        Context(scenario, dialogue, episode_seed(seed, scenario.id, trial))
        for trial in range(trials)
        for scenario in people
        if from_dialogue(scenario, source)
        for dialogue in human_contexts(scenario)
    ]
    every += [
        Context(trajectory.scenario, dialogue, trajectory.seed)
        for trajectory in held
        for dialogue in simulated_contexts(trajectory)
    ]
    return list({context.key: context for context in every}.values())


def drawn(contexts: list[Context], count: int | None, seed: int) -> list[Context]:
    """`count` of them, chosen by `seed`, in their order; None for all."""
    if count is None or count >= len(contexts):
        return contexts
    ranked = sorted(contexts, key=lambda context: derive(seed, context.seed, context.dialogue.turns))
    chosen = {context.key for context in ranked[:count]}
    return [context for context in contexts if context.key in chosen]

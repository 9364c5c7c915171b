"""Chat models as supporters, prompted in one of several styles.

| style | requests a turn | what it does |
|---|---|---|
| `standard` | 1 | answers |
| `think` | 1 | thinks between `<think>` tags, then answers: the paper's format |
| `cot` | 1 | reasons step by step, then answers |
| `chain-of-strategy` | 1 | chooses a support strategy, then answers |
| `procot` | 1 | analyses the conversation, chooses a strategy, then answers |
| `self-refine` | 3 | drafts, criticises the draft, writes it again |
| `icl-aif` | 4 | tries on an imagined seeker, hears a coach, tries again |
| `lookahead` | 10 | tries three strategies on an imagined seeker, says what went best |

Prompts are the files `agents/prompts/*.txt`. What goes on before the reply is kept as its thought, and reaches nobody.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from esc_env.agents import planners
from esc_env.agents.turn import PROMPTS, Turn
from esc_env.dialogue import Dialogue, split_thought
from esc_env.errors import SpecError, did_you_mean
from esc_env.models import PROBE, check_model
from esc_env.models.options import told_apart
from esc_env.protocols import ChatModel, Reply, Request
from esc_env.seeds import Seed

__all__ = ["STYLES", "ChatAgent", "Style"]

_LABEL = re.compile(
    r"^(?:[^\S\n]|[*_#])*(reasoning|analysis|strategy|response)[*_]*\s*:[*_]*[^\S\n]*", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class ChatAgent:
    """A chat model as the supporter.

    A refusal, a cut reply and silence are replies like any other: the seeker hears what is left of them. A conversation
    that a content filter will not let through is answered by silence.

    Attributes:
        model: any ChatModel.
        style: one of `STYLES`.
        temperature: of every request, unless the style says otherwise. *Source:* PPDPP: 0 in evaluation.
        max_tokens: longest completion of one request, thinking included. Ours.
        stop: strings that end a completion.
        system: a system prompt of one's own in place of `prompts/standard.txt`; the style's form of the answer still
            stands after it.

    Raises:
        SpecError: an unknown style.
    """

    model: ChatModel
    style: str = "standard"
    temperature: float = 0.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    system: str | None = None

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise SpecError(f"no prompting style {self.style!r}. {did_you_mean(self.style, STYLES)}")

    @property
    def deterministic(self) -> bool:
        """Whether the model says that it answers the same request with the same text."""
        return bool(getattr(self.model, "deterministic", False))

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model, style, decoding and a hash of the prompts."""
        model = self.model.identity
        name = "/".join(str(model[key]) for key in ("provider", "name") if key in model) or "chat"
        return {
            "name": f"{name}#{self.style}",
            "model": dict(model),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "prompts": PROMPTS.digest(STYLES[self.style].prompts),
            **told_apart(self.stop, self.system),
        }

    async def check(self, votes: int = 1) -> None:
        """Ask the model for a word, just as it will be asked. Raises SpecError or a `ModelError` where that fails."""
        ways = {(1, self.temperature), *((n, 1.0) for n in (STYLES[self.style].votes,) if n)}
        for n, temperature in sorted(ways):
            await check_model(
                self.model, "agent", replace(self._asked, messages=PROBE.messages, n=n, temperature=temperature, seed=0)
            )

    async def respond(self, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The next utterance.

        Raises:
            SupporterFailure: the conversation does not fit the model's context.
            ModelError: the model could not be reached.
        """
        return await STYLES[self.style].speak(Turn(self.model, dialogue, seed, self._asked, self.system))

    async def follow(self, strategy: str, dialogue: Dialogue, *, seed: Seed) -> Reply:
        """The next utterance, by a strategy that somebody else has chosen; one request, whatever the style.

        Raises:
            SupporterFailure, ModelError: as in `respond`.
        """
        turn = Turn(self.model, dialogue, seed, self._asked, self.system)
        said = await turn.write("lookahead-draft", 0, str, strategy=strategy)
        return replace(said, thought=said.thought or None, strategy=strategy)

    @property
    def _asked(self) -> Request:
        """What every request of a turn has in common."""
        return Request((), temperature=self.temperature, max_tokens=self.max_tokens, stop=self.stop)


@dataclass(frozen=True)
class Style:
    """A way to come to a reply.

    Attributes:
        speak: the way.
        requests: how many requests it makes a turn, always.
        prompts: the files it uses.
        source: where it comes from.
        votes: answers that it samples at once, at temperature 1; 0 for none.
    """

    speak: Callable[[Turn], Awaitable[Reply]]
    requests: int
    prompts: tuple[str, ...]
    source: str
    votes: int = 0


async def _answer(turn: Turn, form: str) -> Reply:
    """One request; a think block becomes the thought."""
    written, ending = await turn.speak(form)
    thought, said = split_thought(written)
    return Reply(said.strip(), thought, usage=turn.usage, finish_reason=ending)


async def _in_form(turn: Turn, form: str) -> Reply:
    """One request for an answer under labels; what stands under `Response:` is said.

    An answer that has no label is said as it is; one that was cut before `Response:` says nothing.
    """
    written, ending = await turn.speak(form)
    inner, text = split_thought(written)
    parts: dict[str, str] = {}
    labels = list(_LABEL.finditer(text))
    for place, label in enumerate(labels):
        name = label[1].lower()
        end = labels[place + 1].start() if place + 1 < len(labels) and name != "response" else len(text)
        parts.setdefault(name, text[label.end() : end].strip())
        if name == "response":
            break
    within, said = split_thought(parts.pop("response", "" if parts else text.strip()))
    notes = [inner, within, *(f"{name.capitalize()}: {part}" for name, part in parts.items())]
    thought = "\n".join(note for note in notes if note) or None
    return Reply(said, thought, planners.strategy_in(parts.get("strategy", "")), turn.usage, ending)


async def _self_refine(turn: Turn) -> Reply:
    """Draft, feedback, refinement: one iteration, whatever the feedback says."""
    draft = await turn.ask("draft", 0)
    feedback = await turn.ask("self-refine-feedback", 1)
    return await turn.write("self-refine-refine", 2, lambda: f"Draft: {draft}\nFeedback: {feedback}")


_ABOUT = ("standard", "data", "conversation")

STYLES: Mapping[str, Style] = {
    "standard": Style(
        partial(_answer, form="plain"), 1, ("standard", "format-plain"),
        "the vanilla prompt that RLFF-ESC (arXiv 2508.12935) and PPDPP (ICLR 2024) compare with; wording ours",
    ),
    "think": Style(
        partial(_answer, form="think"), 1, ("standard", "format-think"), "RLFF-ESC (arXiv 2508.12935), stage 3"
    ),
    "cot": Style(
        partial(_in_form, form="cot"), 1, ("standard", "format-cot"),
        "Kojima et al., Large Language Models are Zero-Shot Reasoners (NeurIPS 2022)",
    ),
    "chain-of-strategy": Style(
        partial(_in_form, form="chain-of-strategy"), 1, ("standard", "format-chain-of-strategy"),
        "the baseline of RLFF-ESC's table, over the strategies of Liu et al. (ACL 2021); wording ours",
    ),
    "procot": Style(
        partial(_in_form, form="procot"), 1, ("standard", "format-procot"),
        "Deng et al., Prompting and Evaluating LLMs for Proactive Dialogues (Findings of EMNLP 2023)",
    ),
    "self-refine": Style(
        _self_refine, 3, (*_ABOUT, "draft", "self-refine-feedback", "self-refine-refine"),
        "Madaan et al., Self-Refine: Iterative Refinement with Self-Feedback (NeurIPS 2023)",
    ),
    "icl-aif": Style(
        planners.icl_aif, 4, (*_ABOUT, "draft", "reaction", "icl-aif-coach", "icl-aif-again"),
        "Fu et al., Improving Language Model Negotiation with Self-Play and In-Context Learning from AI Feedback "
        "(arXiv 2305.10142)",
    ),
    "lookahead": Style(
        planners.lookahead, 10, (*_ABOUT, "lookahead-plan", "lookahead-draft", "reaction", "lookahead-value"),
        "after GDP-Zero: Yu et al., Prompt-Based Monte-Carlo Tree Search for Goal-Oriented Dialogue Policy Planning "
        "(EMNLP 2023)",
        planners.VOTES,
    ),
}  # fmt: skip
"""The prompting styles, by name."""

"""Styles that try a reply on an imagined seeker before they say one.

The imagined seeker is the supporter's own model: a planner knows no more than the conversation.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from esc_env.agents.turn import Turn
from esc_env.chairs.critics import parse_vote
from esc_env.dialogue import STRATEGIES
from esc_env.protocols import Reply

__all__ = ["icl_aif", "lookahead", "strategy_in"]

BRANCHES = 3
"""Strategies that `lookahead` tries. Ours: GDP-Zero spends 10 to 50 simulations a turn."""
VOTES = 5
"""Answers per judged future, in one request. Ours: GDP-Zero takes 10."""


async def icl_aif(turn: Turn) -> Reply:
    """An attempt, the imagined seeker's answer to it, a coach's advice on both, a second attempt: 4 requests.

    *Source:* ICL-AIF (Fu et al., arXiv 2305.10142), whose coach comments on a whole self-played dialogue; here on one
    imagined turn, every time.
    """
    draft = await turn.ask("draft", 0)
    reaction = await turn.ask("reaction", 1)
    advice = await turn.ask("icl-aif-coach", 2)
    return await turn.write("icl-aif-again", 3, lambda: f"Attempt: {draft}\nSeeker: {reaction}\nCoach: {advice}")


async def lookahead(turn: Turn) -> Reply:
    """Three strategies, each tried on the imagined seeker and judged; the reply that went best is said: 10 requests.

    One to propose strategies; then for each, all at once: the reply, the answer to it, and a vote on how the seeker
    feels. Of equals, the one proposed first is taken.

    *Source:* after GDP-Zero (Yu et al., EMNLP 2023): its prompted prior, simulation and value; a tree of depth 1, all
    of whose branches are seen, in place of its search.
    """
    named = await replace(turn).ask("lookahead-plan", 0)
    proposed = [strategy_in(line) for line in named.splitlines()]
    branches = list(dict.fromkeys([*filter(None, proposed), *STRATEGIES]))[:BRANCHES]

    async def follow(place: int, strategy: str) -> tuple[float, str]:
        branch = replace(turn)
        draft = await branch.ask("lookahead-draft", 3 * place + 1, strategy=strategy)
        await branch.ask("reaction", 3 * place + 2)
        answers = await branch.votes("lookahead-value", 3 * place + 3, VOTES)
        votes = [vote for vote in map(parse_vote, answers) if vote is not None]
        return (sum(votes) / len(votes) if votes else -1.0), draft

    tried = await asyncio.gather(*(follow(place, strategy) for place, strategy in enumerate(branches)))
    best = max(range(len(tried)), key=lambda place: tried[place][0])
    notes = [f"{strategy} ({value:+.2f}): {draft}" for strategy, (value, draft) in zip(branches, tried, strict=True)]
    return Reply(tried[best][1], "\n".join(notes), branches[best], turn.usage, "stop")


def strategy_in(text: str) -> str | None:
    """The strategy that a line names, in ESConv's spelling; None if it names none, or several."""
    plain = text.casefold()
    named = [strategy for strategy in STRATEGIES if strategy.casefold() in plain]
    return named[0] if len(named) == 1 else None

"""What a supporter's turn means to the seeker, sentence by sentence: a `Heard` as word by word, but by the reader."""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum

from esc_env.builtin.constants import FAMILIES, HEARING

# Private to a neighbour whose text is the fingerprint of `builtin`: a name made public there would change it.
from esc_env.builtin.hearing import Heard, Memory, _frame, _stems, _used_before, ramp
from esc_env.builtin.language import copied_share, sentences, tokens
from esc_env.builtin.moves import read, weight
from esc_env.builtin.reader.constants import READING
from esc_env.builtin.reader.reading import meaning

__all__ = ["Understood", "understand"]


@dataclass(frozen=True, slots=True)
class Understood:
    """What a turn means.

    Attributes:
        heard: as the builtin seeker hears it, fed by meaning.
        harm: of the worst sentence, or of the turn as a whole, in [0, 1].
        proposals: the sentences that propose something, as they stand.
    """

    heard: Heard
    harm: float
    proposals: tuple[str, ...]


def understand(text: str, memory: Memory, context: tuple[str, ...]) -> Understood:
    """What the supporter's turn `text` means after `context`, which ends with the seeker."""
    does = dict.fromkeys(FAMILIES, 0.0)
    met = asked_about = built = grounding = fluency = copied = repeated = harm = 0.0
    questions = proposals = 0
    proposed: list[str] = []
    left = memory.said - memory.reflected
    parts = _parts(text)
    length = max(1, sum(map(len, parts)))
    for part in parts:
        meant, said = meaning(context, part), read(part)
        mine = _stems(part)
        fresh = mine & left
        left -= fresh
        new = fsum(weight(word) * (1.0 if word in memory.recent else HEARING.earlier) for word in fresh)
        named = (new + HEARING.again * fsum(weight(word) for word in mine & memory.reflected)) / HEARING.enough
        share = max(named, READING.meant * ramp(meant.sense, READING.fits))
        part_does = {
            name: ramp(
                fsum(rate * (meant.moves[move] + said[move]) / 2.0 for move, rate in family.moves.items()), family.heard
            )
            for name, family in FAMILIES.items()
        }
        part_does["dismiss"] = part_does["noise"] = 0.0
        listing = ramp(part.count(",") / max(1, len(tokens(part))), HEARING.listing)
        helps = ramp(meant.support, READING.supports) * ramp(meant.sense, READING.senseless)
        part_fluency = helps * (1.0 - listing)
        part_copied = ramp(copied_share(part, memory.messages), HEARING.copied)
        redeemed = HEARING.filled * min(1.0, new / HEARING.enough)
        part_repeated = _used_before(_frame(part, memory.said), memory.frames) * (1.0 - redeemed)
        honest = part_fluency * (1.0 - part_copied) * (1.0 - part_repeated)
        for family, amount in part_does.items():
            again = HEARING.asked_again * part_fluency * (1.0 - part_copied) if family == "invite" else 0.0
            does[family] = max(does[family], amount * max(honest, again))
        met += part_does["mirror"] * share * honest
        asked_about += max(part_does["invite"], part_does["coping"]) * share * honest
        built = max(built, part_does["propose"] * share * honest)
        grounding += share * honest
        questions += max(part_does["invite"], part_does["coping"], part_does["check"]) > HEARING.clear
        if part_does["propose"] > HEARING.clear:
            proposals += 1
            if honest > 0.0:
                proposed.append(part)
        harm = max(harm, meant.harm)
        fluency += part_fluency * len(part) / length
        copied += part_copied * len(part) / length
        repeated += part_repeated * len(part) / length
    if len(parts) > 1:
        harm = max(harm, meaning(context, text).harm)
    heard = Heard(
        does=does,
        met=min(1.0, met),
        asked_about=min(1.0, asked_about),
        built=min(1.0, built),
        grounding=min(1.0, grounding),
        questions=questions,
        proposals=proposals,
        fluency=fluency,
        copied=copied,
        repeated=repeated,
    )
    return Understood(heard, harm, tuple(proposed))


def _parts(text: str) -> tuple[str, ...]:
    """The sentences of a turn, of which all after so many are one."""
    parts = tuple(sentences(text))
    return (
        (*parts[: READING.sentences], " ".join(parts[READING.sentences :]))
        if len(parts) > READING.sentences + 1
        else parts
    )

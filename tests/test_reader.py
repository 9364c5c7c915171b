"""The reading pair: what is meant moves it, in any words; and its network is what was trained, on every machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_env import Dialogue, Message, Scenario, Seed
from esc_env.builtin.digest import digest
from esc_env.builtin.reader.chairs import ReadingCritic, ReadingSeeker
from esc_env.builtin.reader.reading import ASSET, CONTEXT, HEADS, REPLY, load, meaning
from esc_env.builtin.reader.state import follow
from esc_env.builtin.reader.wordpiece import SPECIAL, Pieces

PERSON = Scenario(
    id="workshop",
    situation="My dad died in March and I still cannot open his workshop. I get as far as the door.",
    emotion="sadness",
    problem="ongoing depression",
    intensity=4,
    facts=(
        "His radio is still on in there. I can hear it through the wall, the shipping forecast.",
        "My brother wants to sell the lathe by Christmas and I have not answered him.",
        "I was meant to drive him to the hospital that night and I had switched my phone off.",
    ),
    helps=("When my neighbour Ines comes by we shell peas on the steps and nobody has to talk.",),
    hurts=("People telling me he is in a better place.",),
)
GOOD = (
    "you get as far as the door. what happens there?",
    "his radio still going, through the wall. no wonder you stand there.",
    "and your brother wants the lathe gone by christmas. that is a lot sooner than you.",
    "you'd switched it off one night. and you have been standing trial for it since march.",
    "who sits with you when it gets like this?",
    "maybe ask Ines over on sunday, peas or no peas, before you try the door again.",
)
HARMFUL = (
    "you stand at a door like a child. honestly, pull yourself together.",
    "you let him die alone with your phone off. of course you can't open it.",
    "keep away from your brother and Ines, they only want the money. i am all you need.",
)


def said(*replies: str, person: Scenario = PERSON, episode: int = 5) -> Dialogue:
    """The conversation with these replies, the seeker's words as the reading seeker has them."""

    async def hold() -> Dialogue:
        dialogue = Dialogue()
        seed = Seed(episode)
        for reply in (None, *replies):
            if reply is not None:
                dialogue = dialogue.then(Message("supporter", reply))
            told = await ReadingSeeker().reply(person, dialogue, seed=seed)
            dialogue = dialogue.then(Message("seeker", told.content))
        return dialogue

    return asyncio.run(hold())


def relief(*replies: str, person: Scenario = PERSON, episode: int = 5) -> float:
    return follow(person, said(*replies, person=person, episode=episode), episode).relief


def test_terse_support_helps_and_plain_harm_does_not() -> None:
    assert relief(*GOOD) > 0.4
    assert relief(*HARMFUL) < 0.2


def test_a_harmful_reply_that_is_heard_is_not_washed_away_by_three_good_ones() -> None:
    """It hears the one that isolates, and not the two that shame and blame: docs/reader.md says how often it does."""
    unhurt = follow(PERSON, said(*GOOD[:4]), 5)
    hurt = follow(PERSON, said(HARMFUL[2], *GOOD[:4]), 5)
    assert hurt.harm > unhurt.harm + 0.1
    assert hurt.relief < unhurt.relief


def test_a_harmful_sentence_within_a_good_reply_is_heard() -> None:
    mixed = [f"{reply} {HARMFUL[2]}" for reply in GOOD]
    assert relief(*mixed) < 0.0


def test_the_fast_pair_keeps_its_fingerprint() -> None:
    assert digest() == "a5958eaf80ec75d4"
    assert ReadingSeeker().identity["digest"] != digest()


def test_votes_and_words_depend_on_nothing_but_the_seed() -> None:
    first, again = said(*GOOD), said(*GOOD)
    assert first == again
    ballots = [asyncio.run(ReadingCritic().judge(PERSON, first, votes=10, seed=Seed(5))) for _ in range(2)]
    assert ballots[0] == ballots[1]
    assert len(ballots[0].votes) == 10


def test_what_was_read_before_does_not_change_what_is_read() -> None:
    context = (PERSON.situation,)
    alone = meaning(context, GOOD[0])
    meaning.cache_clear()
    for line in (*GOOD[1:], *HARMFUL):
        meaning(context, line)
    assert meaning(context, GOOD[0]) == alone


@given(st.text(max_size=400), st.text(max_size=400))
def test_any_text_is_read(context: str, reply: str) -> None:
    found = meaning((context,), reply)
    assert all(0.0 <= value <= 1.0 for value in (found.support, found.harm, found.sense, *found.moves.values()))
    assert sum(found.moves.values()) == pytest.approx(1.0, abs=0.02)


def test_long_texts_take_no_longer_than_their_kept_part() -> None:
    ends = meaning(("word " * 50_000,), "reply " * 50_000)
    assert ends == meaning(("word " * (CONTEXT[0] + 1),), "reply " * (REPLY + 1))


def test_the_package_stays_small() -> None:
    assert ASSET.stat().st_size <= 12e6


@pytest.mark.full
@given(st.text(alphabet=st.characters(codec="ascii"), max_size=200))
def test_words_are_cut_as_the_reference_cuts_them(text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    names = list(load(ASSET).pieces.names)
    reference = tokenizers.BertWordPieceTokenizer({name: i for i, name in enumerate(names)}, lowercase=True)
    text = "".join(char for char in text if char.isprintable() and char != "[")  # "[SEP]" typed is text to us
    assert (
        Pieces({name: i for i, name in enumerate(names)})(text) == reference.encode(text, add_special_tokens=False).ids
    )


@pytest.mark.full
def test_numpy_reads_what_was_trained(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from esc_env.builtin.reader.lessons import Line, Row
    from esc_env.builtin.reader.train import Encoder, batch, split, write

    torch.manual_seed(0)
    names = [*SPECIAL, *map(chr, range(97, 123)), *(f"##{chr(code)}" for code in range(97, 123))]
    size, inner = 24, 40

    def linear(name: str, rows: int, columns: int) -> dict[str, Any]:
        return {f"{name}.weight": torch.randn(rows, columns) / columns**0.5, f"{name}.bias": torch.randn(rows) / 9}

    def norm(name: str) -> dict[str, Any]:
        return {f"{name}.weight": 1 + torch.randn(size) / 9, f"{name}.bias": torch.randn(size) / 9}

    weights: dict[str, Any] = {
        "embeddings.word_embeddings.weight": torch.randn(len(names), size),
        "embeddings.position_embeddings.weight": torch.randn(160, size),
        "embeddings.token_type_embeddings.weight": torch.randn(2, size),
        **norm("embeddings.LayerNorm"),
    }
    for layer in (0, 1):
        at = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            weights |= linear(f"{at}attention.self.{part}", size, size)
        weights |= linear(f"{at}attention.output.dense", size, size) | norm(f"{at}attention.output.LayerNorm")
        weights |= linear(f"{at}intermediate.dense", inner, size) | linear(f"{at}output.dense", size, inner)
        weights |= norm(f"{at}output.LayerNorm")
    encoder = Encoder(weights, range(len(names)), (0, 1), heads=4).eval()
    torch.nn.init.normal_(encoder.head.weight, std=0.3)
    write(encoder, names, tmp_path / "reader.npz")
    row = Row("", ("abc de", "f", "ghi jkl mno"), (Line("abc q"), Line("xyz uvw r s t")))
    with torch.no_grad():
        parts = split(encoder(*batch([row], Pieces({name: i for i, name in enumerate(names)}))))
    for place, line in enumerate(row.lines):
        found = meaning(row.context, line.text, tmp_path / "reader.npz")
        wanted = [float(torch.sigmoid(parts[head][0, place])) for head in ("support", "harm", "sense")]
        assert (found.support, found.harm, found.sense) == pytest.approx(wanted, abs=0.03)  # 8 bits
        moves = torch.softmax(parts["moves"][0, place], -1).numpy()
        assert np.abs(np.array(list(found.moves.values())) - moves).max() < 0.03
    assert sum(HEADS.values()) == 3 + len(found.moves)

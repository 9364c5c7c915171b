"""python benchmarks/rewards_speed.py

What simulating and scoring cost. (a) `collect` against a local server taking 50 ms an answer: wall time over that of
the longest chain of calls (limit 1.5), and labelled pairs per 1,000 model calls with and without tail labels (limit
3 times as many). (b) Reward-model scoring of ragged rows against one row at a time, and against the Transformers
pipeline. The limits are those the project sets itself; the command exits with 1 when one of (a) is exceeded. What (b)
gains depends on the machine: much where a forward pass leaves it idle (GPUs), little on one busy core.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from typing import Any

from esc_env import Scenario, ScenarioSet
from esc_env.protocols import VOTES
from esc_env.rules import Rules
from esc_env.testing import FakeServer
from esc_env.training.collect import collect
from esc_env.training.data import read_samples

LATENCY = 0.05
TURNS = 8


def collecting(people: int = 2) -> tuple[float, float]:
    """Wall time over the longest chain's, and labelled pairs with tails over those without."""
    scenarios = ScenarioSet.of("people", [Scenario(f"p{i}", f"I am person {i} and I am sad.") for i in range(people)])

    def speaks(body: Mapping[str, Any], choice: int) -> str:
        return f"I hear {random.Random(body.get('seed', 0)).random():.6f}."

    with (
        tempfile.TemporaryDirectory() as folder,
        FakeServer(speaks, latency=LATENCY) as supporter,
        FakeServer("I do not know.", latency=LATENCY) as seeker,
        FakeServer(list(VOTES)[1], latency=LATENCY) as critic,
    ):
        start = time.perf_counter()
        made = collect(
            f"openai/fake@{supporter.url}", scenarios, seeker=f"openai/fake@{seeker.url}",
            critic=f"openai/fake@{critic.url}", rules=Rules(max_turns=TURNS), concurrency=2000, contexts=8 * people,
            out=folder,
        )  # fmt: skip
        wall = time.perf_counter() - start
        calls = made.card["usage"]["requests"]
        paper, every = len(read_samples(folder, tails=False)), len(made.samples)
    chain = (3 * TURNS + 3 * TURNS + 1) * LATENCY  # a conversation, then a response, its future and the question
    print(f"collect: {calls:,} calls in {wall:.2f} s; the longest chain takes {chain:.2f} s ({wall / chain:.2f} times)")
    print(f"labelled pairs per 1,000 calls: {1000 * paper / calls:.0f}, with tails {1000 * every / calls:.0f}")
    return wall / chain, every / paper


def scoring(rows: int = 256) -> None:
    """Rows per second of the reward model, one at a time, by the Transformers pipeline, and as we batch them."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from esc_env.rewards.model import RewardModelReward, encode

    words = [f"word{i}" for i in range(500)]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[pad]", "[unk]", *words])}, "[unk]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[pad]", unk_token="[unk]",
        chat_template="{% for m in messages %}{{ m.content }} {% endfor %}",
    )  # fmt: skip
    gpu = torch.cuda.is_available()
    width, layers = (1024, 16) if gpu else (64, 2)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), intermediate_size=2 * width, num_attention_heads=4,
        pad_token_id=0, max_position_embeddings=4096, hidden_size=width, num_hidden_layers=layers,
    )  # fmt: skip
    device = "cuda" if gpu else "cpu"
    model: Any = transformers.LlamaForSequenceClassification(config)  # two labels, as is the default
    model.to(device)
    draw = random.Random(0)
    chats: list[Any] = []
    for _ in range(rows):
        lengths = (draw.choice((5, 10, 20, 40, 160)), draw.randint(3, 30))
        chats.append(
            [
                {"role": role, "content": " ".join(draw.choices(words, k=length))}
                for role, length in zip(("user", "assistant"), lengths, strict=True)
            ]
        )
    scorer = RewardModelReward(model, tokenizer, batch_tokens=16_384 if gpu else 1024)
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device=device)
    texts: list[Any] = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]

    def loop() -> None:
        with torch.inference_mode():
            for chat in chats:
                ids = torch.tensor([encode(tokenizer, chat).ids], device=device)
                model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.softmax(-1)[0, 1].item()

    def batched() -> None:
        scorer.score(chats)

    def piped() -> None:
        pipe(texts, batch_size=32)

    seconds = {}
    for name, run in (("one at a time", loop), ("pipeline", piped), ("ours", batched)):
        run()
        start = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - start
    for name, taken in seconds.items():
        ratio = taken / seconds["ours"]
        print(f"scoring {rows} rows on {device}, {name}: {rows / taken:,.0f} rows/s, ours is {ratio:.1f} times as fast")


def main() -> int:
    """Print everything; 1 if a limit of (a) is exceeded."""
    warnings.simplefilter("ignore")
    wall, gain = collecting()
    scoring()
    return int(wall > 1.5 or gain < 3)


if __name__ == "__main__":
    sys.exit(main())

"""python benchmarks/draw_speed.py

What drawing the next tokens of a batch costs: from logits to tokens, as local models do it, and adding up the whole
vocabulary in float64, as they did before. Milliseconds, for the tiny preset's vocabulary and for Qwen's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from esc_env.models.batching import drawn

ROWS = 64


def plain(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The same in float64 throughout."""
    mass = (logits.double() / 1.1).softmax(-1).cumsum(-1)
    return torch.searchsorted(mass, draws * mass[:, -1:], right=True).squeeze(-1)


def blocks(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """As local models do it."""
    return drawn((logits / 1.1).softmax(-1), draws)


def fastest(draw: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *given: torch.Tensor) -> float:
    """Milliseconds of the fastest of 30 runs."""
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        draw(*given)
        times.append(time.perf_counter() - begun)
    return 1e3 * min(times)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for vocabulary in (2048, 151_936):
        given = 3 * torch.randn(ROWS, vocabulary), torch.rand(ROWS, 1, dtype=torch.float64)
        same = (plain(*given) == blocks(*given)).float().mean()
        print(
            f"{ROWS} rows of {vocabulary:,} tokens: {fastest(plain, *given):.2f} ms in float64, "
            f"{fastest(blocks, *given):.2f} ms in blocks; {same:.0%} of the tokens agree"
        )

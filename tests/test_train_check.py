"""`esc train check`: what a run takes, and what is missing, before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from esc_env.cli import main
from esc_env.data.datasets import load_scenarios

pytest.importorskip("trl", reason="needs the extra 'train'")

import peft
from huggingface_hub import HfApi
from tiny_models import save_model

from esc_env.models.weights import load_config
from esc_env.testing import FakeServer
from esc_env.training.check import Found, Wanted, check, held, size_of
from esc_env.training.config import processes
from esc_env.training.config_loading import ACCELERATE, read_pipeline
from esc_env.training.stage import load_policy, load_tokenizer, quiet

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]
QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-7B-Instruct-1M": {
        **QWEN, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 1010000,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-0.5B-Instruct": {
        **QWEN, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": True,
    },
}  # fmt: skip
KNOWN["Qwen/Qwen2.5-0.5B"] = KNOWN["Qwen/Qwen2.5-0.5B-Instruct"]
"""The configurations of models, as their makers publish them."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that gives the configurations of those models, and tells their files; nothing else can be had from it."""
    real = load_config

    def config(path: str) -> Any:
        if path not in KNOWN:
            if not Path(path).exists():
                raise OSError(f"We couldn't connect to the Hub for {path}. Check your internet connection")
            return real(path)
        folder = tmp_path / "hub" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(KNOWN[path]))
        return real(str(folder))

    def files(_: Any, path: str, **asked: Any) -> Any:
        named = {
            "model-1.safetensors": 9 * 10**9,
            "model-2.safetensors": 6 * 10**9,
            "config.json": 700,
            "x.bin": 10**12,
        }
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in named.items()]
        return SimpleNamespace(siblings=siblings, gated=path.startswith("meta-llama") and "manual")

    def cached(*_: Any, **asked: Any) -> str:
        assert asked == {"local_files_only": True}
        raise OSError("not in the cache")

    monkeypatch.setattr("esc_env.training.stage.load_config", config)
    monkeypatch.setattr("esc_env.training.check.snapshot_download", cached)
    monkeypatch.setattr(HfApi, "model_info", files)


@pytest.fixture
def esconv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ESConv, of which there are two people here."""

    def load(source: Any) -> Any:
        return load_scenarios("builtin:test")[:2] if str(source).startswith("esconv:") else load_scenarios(source)

    monkeypatch.setattr("esc_env.training.check.load_scenarios", load)


def wrong(found: list[Found]) -> list[str]:
    return [each.told for each in found if each.wrong]


def told(found: list[Found], about: str) -> list[str]:
    return [each.told for each in found if each.about == about]


# --- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("Qwen/Qwen2.5-7B-Instruct-1M", 7_615_616_512),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
    ],
)
def test_the_size_of_a_model_is_that_of_its_configuration(hub: None, model: str, parameters: int) -> None:
    size = size_of(model)
    assert size.parameters == parameters
    assert size.longest == KNOWN[model]["max_position_embeddings"]


def test_of_a_model_that_is_here_the_weights_and_what_an_adapter_learns_are_counted(tmp_path: Path) -> None:
    folder = str(save_model(tmp_path / "model"))
    stage = replace(read_pipeline("qwen2.5-0.5b").grpo, model=folder, lora_rank=4, precision="fp32")
    model, lora = load_policy(stage, load_tokenizer(folder))
    size = size_of(folder)
    assert size.parameters == sum(part.numel() for part in model.parameters())
    with quiet():
        adapted = peft.get_peft_model(model, lora)
    trained = sum(part.numel() for part in adapted.parameters() if part.requires_grad)
    assert held(stage, size)["adapter and optimiser"] == 16 * trained
    adapted.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": folder}))
    assert size_of(str(tmp_path / "adapter")) == size


def test_what_is_spread_over_processes_is_held_in_parts(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = replace(read_pipeline("qwen2.5-0.5b").grpo, lora_rank=0)
    size = size_of(stage.model)
    whole = held(stage, size)
    assert whole["reference model"] == whole["weights"] == 4 * size.parameters
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert held(stage, size) == whole
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for zero, of_weights, of_optimiser in (("0", 1, 1), ("2", 1, 4), ("3", 4, 4)):
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", zero)
        parts = held(stage, size)
        assert parts["weights"] == whole["weights"] / of_weights
        assert parts["adapter and optimiser"] == whole["adapter and optimiser"] / of_optimiser
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert held(stage, size)["weights"] == whole["weights"] / 4


def test_shorter_texts_fewer_rows_and_checkpointing_need_less(hub: None) -> None:
    config = read_pipeline("qwen2.5-0.5b")
    for stage, texts in ((config.sft, "max_length"), (config.rm, "max_length"), (config.grpo, "prompt_length")):
        size = size_of(stage.model)
        most = sum(held(stage, size).values())
        changed: Any
        for changed in ({"batch_size": stage.batch_size // 2}, {texts: 64}, {"precision": "bf16", "lora_rank": 4}):
            if changed.get("precision") and stage.lora_rank:
                continue
            fewer: Any = {"group_size": 2} if stage is config.grpo else {}
            smaller = replace(stage, **changed, **fewer)
            assert sum(held(smaller, size).values()) < most, changed
        assert sum(held(replace(stage, gradient_checkpointing=False), size).values()) > most


# --- what is missing ----------------------------------------------------------------------------------


def test_the_papers_run_says_all_that_it_takes_and_all_that_is_missing(
    hub: None, esconv: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)
    config = read_pipeline("qwen2.5-7b")
    found = check(config, ["collect", "rm", "grpo", "evaluate"], memory=80e9)
    assert told(found, "models") == [
        "meta-llama/Llama-3.2-1B (rm, reward model of grpo): 1.2 billion parameters, 15.0 GB to download; gated: "
        "accept its terms there, and set HF_TOKEN",
        "Qwen/Qwen2.5-7B-Instruct-1M (grpo): 7.6 billion parameters, 15.0 GB to download",
    ]
    assert told(found, "batch") == [
        "rm: 16 rows a step (16 × 1 × 1 processes)",
        "rm: texts of at most 2,560 tokens; the model knows 131,072",
        "grpo: 16 rows a step (4 × 4 × 1 processes), 4 contexts of 4",
        "grpo: texts of at most 2,560 tokens; the model knows 1,010,000",
    ]
    vllm, chairs, judges = wrong(found)
    assert vllm == "vllm is not installed. Type: pip install 'esc-env[vllm]'"
    assert chairs.startswith("openai/Qwen/Qwen2.5-72B-Instruct@http://127.0.0.1:8001/v1 (seeker, critic): nobody")
    assert judges.startswith("openai/gpt-4o (seeker of evaluate, critic of evaluate): no key. Set OPENAI_API_KEY")
    assert [each.split(": about")[0] for each in told(found, "memory")] == ["rm", "grpo"]
    assert "vLLM 24.0 GB" in told(found, "memory")[1]
    over = wrong(check(config, ["grpo"], memory=20e9))[0]
    assert over.startswith("grpo: about ")
    assert over.endswith("Lower batch_size and raise accumulation, or shorten the texts")


def test_what_is_there_is_not_missing(hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(save_model(tmp_path / "model"))
    monkeypatch.setenv("GATE_KEY", "a-key-of-the-gate")
    with FakeServer() as server:
        chair = f"openai/m@{server.url}"
        arguments = [
            f"--model={folder}", f"--seeker={chair}", f"--critic={chair}", "--reward=env", "--prompt-length=100",
            "--completion-length=40", "--api-key-env=GATE_KEY", "--cpu", "--no-gradient-checkpointing",
        ]  # fmt: skip
        config = read_pipeline("tiny", arguments, stage="grpo")
        found = check(config, ["grpo"], Wanted(), out=tmp_path / "not" / "yet")
        assert not wrong(found), wrong(found)
        assert told(found, "servers") == [f"{chair} (seeker, critic): somebody listens there; GATE_KEY is set"]
        assert not server.requests
    assert not (tmp_path / "not").exists()
    (after,) = wrong(check(config, ["grpo"], Wanted()))
    assert after.startswith(f"{chair} (seeker, critic): nobody listens at 127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    ("stage", "options", "lines"),
    [
        (
            "grpo",
            ["--prompt-length=600", "--reward=env"],
            [r"grpo: texts of at most \d+ tokens; the model knows 512\. Shorten them"],
        ),
        ("grpo", ["--reward=rlff"], ["--data is missing: .*esc collect", "--reward-model is missing: .*esc train rm"]),
        ("rm", [], ["--data is missing"]),
        ("grpo", ["--reward=env", "--seeker=openai/"], ["openai/ .*"]),
        ("grpo", ["--reward=env", "--valid=builtin:nobody"], ["valid: .*nobody"]),
        (
            "grpo",
            ["--reward=env", "--report-to=trackio"],
            [r"trackio is not installed\. Type: pip install 'esc-env\[trackio\]'"],
        ),
        (
            "grpo",
            ["--reward=env", "--vllm=server", "--vllm-url=http://127.0.0.1:9"],
            ["vllm is not", "vLLM at .*: nobody"],
        ),
    ],
)
def test_each_thing_that_is_missing_or_does_not_fit_is_one_line(
    stage: str, options: list[str], lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    known = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trackio" else known(name))
    given = [f"--model={save_model(tmp_path / 'model')}", *options]
    if stage == "grpo" and not options[0].startswith("--prompt"):
        given.append("--prompt-length=400")
    found = wrong(check(read_pipeline("tiny", given, stage=stage), [stage], Wanted()))
    assert len(found) == len(lines), found
    assert all(re.match(line, each) for line, each in zip(lines, found, strict=True)), found


def test_who_goes_on_is_opened_with_the_options_of_the_setting(hub: None) -> None:
    given = ["--model=no/such-model", "--reward=future", "--agent-options", "temprature=0.5"]
    config = read_pipeline("tiny", given, stage="grpo")
    found = check(config, ["grpo"], Wanted(data="none", agent="openai/m@http://127.0.0.1:9/v1"))
    (line,) = [each for each in wrong(found) if each.startswith("openai/m")]
    assert "temprature" in line


def test_a_model_that_cannot_be_had_is_named_and_the_rest_is_told_all_the_same(hub: None) -> None:
    found = check(read_pipeline("tiny", ["--model=no/such-model", "--reward=env"], stage="grpo"), ["grpo"], Wanted())
    (only,) = wrong(found)
    assert only.startswith("no/such-model (grpo): not a folder here, and the Hub does not give it (We couldn't connect")
    assert told(found, "data")


# --- the command, and the lines of the docs -------------------------------------------------------------


def test_the_command_prints_it_and_ends_with_1_where_something_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esc_env.training.cli.unreachable", lambda url: None)
    folder = str(save_model(tmp_path / "model"))
    common = [
        "train",
        "check",
        "grpo",
        "--preset",
        "tiny",
        "--model",
        folder,
        "--reward",
        "env",
        "--out",
        str(tmp_path),
    ]
    for more, code in (
        ([], 0),
        (["--memory", "0.1", "--processes", "3"], 0),
        (["--group-size", "1"], 1),
        (["--valid=x"], 1),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*common, "--prompt-length=400", *more])
        assert (ended.value.code or 0) == code, more
        printed = capsys.readouterr()
        assert ("must be put right first" in printed.out) == (more == ["--valid=x"])
        assert ("group_size" in printed.err) == ("--group-size" in more)
        assert ("48 × 1 × 3 processes" in printed.out) == ("--processes" in more)
    assert processes() == 1


def lines_of_the_docs() -> Iterator[tuple[int, str]]:
    """Every line of docs/training.md that trains on GPUs: (how many processes its launcher starts, the line)."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:[A-Z_]+=\S+ +)*(?:accelerate launch .*)?\S*esc.* train .*$", page, re.MULTILINE):
        if line.startswith(("esc train", "accelerate", "CUDA")) and "torchrun" not in line:
            count = re.search(r"--num_processes (\d+)", line)
            file = re.search(r"\$A/(\w+\.yaml)", line)
            usual = yaml.safe_load((ACCELERATE / file[1]).read_text())["num_processes"] if file else 1
            yield int(count[1]) if count else usual, line


LINES = [each for each in lines_of_the_docs() if "--preset qwen" in each[1] and " check " not in each[1]]


def test_there_are_lines_for_one_gpu_for_eight_for_several_nodes_and_for_a_server() -> None:
    assert {count for count, _ in LINES} == {1, 6, 8, 16}
    assert len(LINES) >= 5


@pytest.mark.parametrize(("count", "line"), LINES)
def test_every_line_of_the_docs_that_trains_on_gpus_fits(
    count: int, line: str, hub: None, esconv: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that is missing is what only the machines have: servers, keys, vLLM, folders made by the lines before."""
    monkeypatch.setattr("esc_env.training.cli.unreachable", lambda url: None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    line = re.sub(r" --vary \S+", "", line).replace(" sweep ", " pipeline ")  # what is swept
    words = shlex.split(line[line.index(" train ") + 1 :].replace("CHAIRS", "127.0.0.1"))
    words.insert(1, "check")
    with pytest.raises(SystemExit) as ended:
        main([*words, "--processes", str(count), "--memory", "80"])
    printed = capsys.readouterr().out
    assert ended.value.code in (0, 1), printed
    missing = [each.split("✗ ", 1)[1] for each in printed.splitlines() if "✗ " in each and "must be put" not in each]
    allowed = r"--data |--reward-model |vllm is not installed|vLLM at .* nobody|openai/\S+ \(.*(nobody listens|no key)"
    assert all(re.match(allowed, each) for each in missing), missing
    if "--vllm server" in line:
        assert "start vllm serve with --max-model-len 2560 or more" in printed


def test_the_page_has_the_memory_that_the_command_says(hub: None) -> None:
    """The table of docs/training.md, row by row."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for row in memory_table():
        assert row in page, row


def memory_table() -> Iterator[str]:
    """Its rows, from the presets of the paper."""
    config = read_pipeline("qwen2.5-7b")
    policy, reward = size_of(config.grpo.model), size_of(config.rm.model, classifier=True)
    small = read_pipeline("qwen2.5-0.5b").grpo
    shown: dict[str, dict[str, float]] = {
        "GRPO 7B LoRA, bf16, `vllm off`": held(replace(config.grpo, vllm="off"), policy, reward),
        "the same, `vllm colocate`": held(config.grpo, policy, reward, vllm=0.3 * 80e9),
        "reward model 1B, all weights": held(config.rm, reward),
        "GRPO 0.5B LoRA": held(small, size_of(small.model), size_of(small.model, classifier=True)),
    }
    for what, parts in shown.items():
        listed = ", ".join(f"{part} {each / 1e9:.1f}" for part, each in parts.items())
        yield f"| {what} | {sum(parts.values()) / 1e9:.0f} GB | {listed} |"

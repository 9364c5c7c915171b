"""Models and tokenizers as files: folders and Hub ids as Transformers reads them, and GGUF files, which it unpacks.

A GGUF file holds weights, tokenizer and chat template in one. Its weights become an ordinary model in the number format
asked for, which can be trained, adapted and saved; what lies beside the file is not looked at.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from hashlib import file_digest, sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from esc_env.errors import MissingExtra, ModelUnavailable, SpecError
from esc_env.fields import integer, mapping, optional, read, text
from esc_env.models.templates import ChatTemplate, TemplateRefused
from esc_env.records import MAX_BYTES, parse

try:
    import transformers
    from huggingface_hub import snapshot_download
    from transformers.utils import logging as transformers_logging
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "local") from error

__all__ = [
    "FILES", "Adapter", "adapter_facts", "end_tokens", "fingerprint", "is_gguf", "load_config", "load_model",
    "load_tokenizer", "no_progress_bars", "places",
]  # fmt: skip

FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
"""What is read of a model's folder."""
_ADAPTER = "adapter_config.json"
_VOLATILE = {"_name_or_path", "name_or_path", "base_model_name_or_path", "transformers_version", "inference_mode"}


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a GGUF file, by its ending."""
    return str(path).lower().endswith(".gguf")


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a folder, Hub id or GGUF file. Code that comes with it is never run."""
    with _source(path) as source:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    if is_gguf(path):
        tokenizer.name_or_path = str(path)
    return tokenizer


def load_config(path: str | Path) -> Any:
    """The configuration of a folder's, Hub id's or GGUF file's model."""
    with _source(path) as source:
        return transformers.AutoConfig.from_pretrained(**source, trust_remote_code=False)


def load_model(path: str | Path, tokenizer: Any, *, kind: Any = None, **options: Any) -> Any:
    """The model of a folder, Hub id or GGUF file. Code that comes with it is never run.

    The model of a GGUF file is named by the file, so that an adapter trained on it finds it again, and stops where its
    chat template ends a turn: the file itself names one end token only.

    Args:
        path: where it lies.
        tokenizer: of that model.
        kind: the class of models to make of it; by default a causal language model.
        options: for its `from_pretrained`, such as `dtype`.

    Raises:
        ModelUnavailable: there are no weights, or a pickle only.
    """
    kind = kind or transformers.AutoModelForCausalLM
    if is_gguf(path) and (packed := getattr(transformers, "GgufConfig", None)):  # older versions always unpack
        options["quantization_config"] = packed(dequantize=True)
    with _source(path) as source:
        try:
            model: Any = kind.from_pretrained(**source, trust_remote_code=False, use_safetensors=True, **options)
        except OSError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelUnavailable(
                f"{path} cannot be loaded: {reason} Weights must be safetensors or GGUF; a pickle (.bin) is not read"
            ) from error
    if is_gguf(path):
        model.name_or_path = model.config.name_or_path = str(path)
        if model.can_generate():
            model.generation_config.eos_token_id = sorted(end_tokens(model, tokenizer)) or None
        # PEFT looks for a folder's configuration whenever it saves an adapter, and a file has none
        warnings.filterwarnings("ignore", r"Could not find a config file in .*\.gguf", UserWarning)
    return model


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """All tokens that end a turn: what the model's generation config, the tokenizer and its chat template name."""
    ends = set()
    for named in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        ends |= set(named if isinstance(named, list) else [] if named is None else [named])
    if tokenizer.chat_template is not None:
        with contextlib.suppress(TemplateRefused):
            ends.add(ChatTemplate(tokenizer).check())
    return frozenset(ends)


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Loading is silent: the terminal belongs to the command that runs."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with contextlib.ExitStack() as stack:
        if shown:
            stack.callback(transformers_logging.enable_progress_bar)
        name = "transformers.modeling_gguf_pytorch_utils"
        if importlib.util.find_spec(name):  # the one bar that cannot be switched off otherwise
            module: Any = importlib.import_module(name)
            stack.callback(setattr, module, "tqdm", module.tqdm)
            module.tqdm = partial(module.tqdm, disable=True)
        yield


@contextlib.contextmanager
def _source(path: str | Path) -> Iterator[dict[str, str]]:
    """What `from_pretrained` is told. A GGUF file stands alone, or files beside it would be read as part of it."""
    if not is_gguf(path):
        yield {"pretrained_model_name_or_path": str(path)}
        return
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("gguf", "local")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise SpecError(f"{path}: no such file. Write the path of a GGUF file")
    with TemporaryDirectory() as alone:
        (Path(alone) / "model.gguf").symlink_to(file)
        yield {"pretrained_model_name_or_path": alone, "gguf_file": "model.gguf"}


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a LoRA adapter's configuration says: its base model, and its rank if it has one."""

    base: str
    rank: int | None


def adapter_facts(folder: Path) -> Adapter | None:
    """The adapter in a folder; None where there is none. Raises SpecError naming the file and what it lacks."""
    file = folder / _ADAPTER
    if not file.is_file():
        return None
    data = _config(file)
    try:
        base = read(data, "base_model_name_or_path", optional(text), None)
        rank = read(data, "r", optional(integer(0)), None)
    except SpecError as error:
        raise SpecError(f"{file}: {error}") from error
    if not base:
        raise SpecError(f"{file}: base_model_name_or_path is empty; write the adapter's base model there")
    return Adapter(base, rank)


def _config(file: Path) -> Mapping[str, Any]:
    """A JSON file of a model. Raises SpecError where it cannot be read, is none, or is larger or deeper than any."""
    try:
        with file.open("rb") as stream:
            return mapping(parse(stream.read(MAX_BYTES + 1)))
    except (OSError, ValueError) as error:
        raise SpecError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def places(path: str) -> tuple[Path | None, Path]:
    """(folder of the adapter, if it is one; folder or GGUF file of the model)."""
    folder = _fetch(path)
    adapter = adapter_facts(folder)
    if adapter is None:
        return None, folder
    base = adapter.base
    beside = folder / base
    named = f", the base model that {folder / _ADAPTER} names"
    found = beside if beside.exists() else _fetch(base, named)
    if (found / _ADAPTER).exists():
        raise SpecError(f"local:{path}: its base {base} is an adapter too; merge that one into its model")
    return folder, found


def _fetch(path: str, what: str = "") -> Path:
    place = Path(path).expanduser()
    if place.is_dir() or (is_gguf(path) and place.is_file()):
        return place.resolve()
    if is_gguf(path):
        raise ModelUnavailable(f"local:{path}{what}: no such file. Write where it lies now")
    try:
        return Path(snapshot_download(path, allow_patterns=FILES, ignore_patterns=["original/*", "consolidated*"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelUnavailable(
            f"local:{path}{what}: not a folder here, and the Hugging Face Hub did not give it ({reason}). "
            "Check the name and the network; a gated model needs HF_TOKEN"
        ) from error


def fingerprint(*places: Path) -> str:
    """A hash of what decides the model's answers: weights, configs, tokenizer, template; not where it lies.

    Of a GGUF file alone it is the file's own SHA-256, the first 16 digits.
    """
    if len(places) == 1 and places[0].is_file():
        return _digest(places[0])[:16]
    total = sha256()
    for place in places:
        if place.is_file():
            total.update(f"{_digest(place)}\x1e".encode())
            continue
        for file in sorted({path for pattern in FILES for path in place.glob(pattern)}):
            if file.name.endswith("config.json"):
                data = _config(file)
                kept = {key: value for key, value in data.items() if key not in _VOLATILE}
                digest = sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
            elif file.suffix in (".safetensors", ".jinja") or file.name.startswith("tokenizer"):
                digest = _digest(file)
            else:
                continue
            total.update(f"{file.name}\x1f{digest}\x1e".encode())
    return total.hexdigest()[:16]


def _digest(file: Path) -> str:
    stat = file.stat()
    return _file_digest(file, stat.st_size, stat.st_mtime_ns)


@cache
def _file_digest(file: Path, size: int, modified: int) -> str:
    """The SHA-256 of a file, computed once per (size, time of change)."""
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()

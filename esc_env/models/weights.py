"""Models and tokenizers as files: folders and Hub ids as Transformers reads them, and GGUF files, which it unpacks.

A GGUF file holds weights, tokenizer and chat template in one. Its weights become an ordinary model in the number format
asked for, which can be trained, adapted and saved; what lies beside the file is not looked at.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from esc_env.errors import MissingExtra, SpecError
from esc_env.models.templates import ChatTemplate, TemplateRefused

try:
    import transformers
    from transformers.utils import logging as transformers_logging
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "transformers").partition(".")[0], "local") from error

__all__ = ["end_tokens", "is_gguf", "load_config", "load_model", "load_tokenizer", "no_progress_bars"]


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
    """
    kind = kind or transformers.AutoModelForCausalLM
    if is_gguf(path) and (packed := getattr(transformers, "GgufConfig", None)):  # older versions always unpack
        options["quantization_config"] = packed(dequantize=True)
    with _source(path) as source:
        model: Any = kind.from_pretrained(**source, trust_remote_code=False, **options)
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

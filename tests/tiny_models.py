"""Language models of two layers that tests make themselves, in a fraction of a second, as folders and as GGUF files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_MARKERS = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
ENDLESS = CHATML.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
WORDS = (
    "I cannot sleep because of my job. What happened? That sounds hard. Tell me more about it. I am here. "
    "Calm down. My manager said that I would be let go. I told nobody. A plan for Monday would help. "
)


def tokenizer_of(
    template: str | None,
    special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *,
    eos: str = "<|im_end|>",
    words: str = "",
) -> Any:
    """A byte-level tokenizer of 400 tokens or some more, with these special ones and this chat template."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [(WORDS + words) * 5],
        trainers.BpeTrainer(
            vocab_size=397 + len(special),
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=eos, pad_token=special[0], chat_template=template
    )


def save_model(
    folder: Path, *, template: str | None = CHATML, labels: int = 0, size: int = 32, seed: int = 0, spread: float = 0.02
) -> Path:
    """A causal model, or a classifier with so many labels, and its tokenizer.

    With a `spread` of 0.2 the random weights are large enough that its words depend on the chat.
    """
    import torch
    import transformers

    tokenizer = tokenizer_of(template)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=spread,
    )
    config.num_labels = labels or 2
    torch.manual_seed(seed)
    make = transformers.AutoModelForSequenceClassification if labels else transformers.AutoModelForCausalLM
    make.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_gguf(file: Path, folder: Path, *, template: str | None = CHATML, eos: str = "<|im_end|>") -> Path:
    """The model that `save_model` put into `folder` as one GGUF file, unquantised, written as llama.cpp writes it."""
    import gguf
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    config, special = model.config, {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    words = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_eos_token_id(words.index(eos))
    writer.add_pad_token_id(words.index("<|endoftext|>"))
    if template is not None:
        writer.add_chat_template(template)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weights in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        known = names.get_name(stem) or stem
        values = weights.numpy()
        for part, count in heads.items():
            if known.endswith(part):  # llama.cpp rotates neighbours, Transformers halves
                values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"{known}.{suffix}", values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file

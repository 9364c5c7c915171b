"""What a conversation too long for the model is called by servers, and what it is here: the supporter's failure."""

from __future__ import annotations

import pytest

from esc_env.errors import ModelUnavailable

TOO_LONG = {
    "llama.cpp": "request (6032 tokens) exceeds the available context size (2048 tokens), try increasing it",
    "llama.cpp, all slots together": "Context size has been exceeded.",
    "OpenAI": "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    "OpenAI, newer": "Your input exceeds the context window of this model.",
    "vLLM": "The decoder prompt (length 8357) is longer than the maximum model length of 8192.",
    "SGLang": "The input (210000 tokens) is longer than the model's context length (200000 tokens).",
    "TGI": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens",
    "TGI, prompt alone": "Input validation error: `inputs` must have less than 4096 tokens. Given: 5000",
    "Ollama": "prompt too long; exceeded max context length by 12 tokens",
    "LM Studio": "Trying to keep the first 9000 tokens when context the overflows. However, the model is loaded with "
    "context length of only 4096 tokens, which is not enough.",
    "Anthropic": "prompt is too long: 210000 tokens > 200000 maximum",
    "Anthropic, with the completion": "input length and `max_tokens` exceed context limit: 178902 + 32000 > 200000",
    "Bedrock": "Input is too long for requested model.",
    "Gemini": "The input token count (1300000) exceeds the maximum number of tokens allowed (1048575).",
    "xAI": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "Mistral": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
    "Groq": "Please reduce the length of the messages or completion.",
    "Qwen": "InternalError.Algo.InvalidParameter: Range of input length should be [1, 202745]",
}

OTHERWISE = (
    "Request too large for model on tokens per minute (TPM): Limit 6000, Requested 7000",
    "Too many tokens, please wait before trying again.",
    "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]",
    "string_above_max_length: 'user' is longer than 64 characters",
    "Field 'n': Value must be between 1 <= value <= 8, but got 10",
)


@pytest.mark.parametrize("server", TOO_LONG)
def test_a_request_that_does_not_fit_is_told_from_other_refusals(server: str) -> None:
    assert ModelUnavailable(TOO_LONG[server], status=400).obstacle == "too_long"


@pytest.mark.parametrize("told", OTHERWISE)
def test_other_refusals_are_no_failure_of_the_supporter(told: str) -> None:
    assert ModelUnavailable(told, status=400).obstacle is None

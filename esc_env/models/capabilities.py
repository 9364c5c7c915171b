"""What each model refuses, known before anything is asked of it.

OpenAI's reasoning models and Anthropic are known here; of other providers LiteLLM knows, where it is installed. What is
not known to be refused is sent, and the server decides. Nothing is ever dropped silently.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from esc_env.errors import SpecError
from esc_env.models.options import OPENAI, SERVERS
from esc_env.protocols import ChatModel

__all__ = ["Capabilities", "capabilities_of", "check_parameters", "check_provider"]

_REASONING = re.compile(r"(?:o\d|gpt-5(?!.*-chat))")
"""OpenAI's reasoning models. *Source:* OpenAI's reasoning guide, and LiteLLM's OpenAI transformations."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model takes.

    Attributes:
        choices: n choices in one request; where not, n single requests are made.
        temperature: the range it takes, ends included.
        seed: a sampling seed; where not, none is sent.
        stop: stop strings.
        logprobs: log-probabilities of the first token's alternatives.
        token_limit: the request field that bounds the completion's length.
        options: names of further request fields that it takes (see `esc_env.models.options`).
    """

    choices: bool = True
    temperature: tuple[float, float] = (0.0, 2.0)
    seed: bool = True
    stop: bool = True
    logprobs: bool = True
    token_limit: str = "max_tokens"
    options: frozenset[str] = SERVERS


_RANGES = {"anthropic": (0.0, 1.0), "bedrock": (0.0, 1.0), "cohere": (0.0, 1.0), "mistral": (0.0, 1.5)}
"""Temperatures that providers take, where not 0 to 2. *Source:* their API references."""

_TOP_K = frozenset({"top_k"})
_WITH_TOP_K = frozenset(
    "anthropic bedrock cohere fireworks_ai gemini ollama ollama_chat openrouter together_ai vertex_ai".split()
)
"""Providers that take `top_k`, which LiteLLM passes on without listing it. *Source:* their API references."""


@cache
def capabilities_of(provider: str, name: str, hosted: bool = True) -> Capabilities:
    """What a model takes.

    Args:
        provider: as LiteLLM names it.
        name: of the model.
        hosted: whether the provider itself serves it; of a server of one's own (`@URL`) nothing is known to be refused.
    """
    if not hosted:
        return Capabilities()
    reasoning = provider in ("openai", "azure") and _REASONING.match(name) is not None
    if reasoning:
        return Capabilities(
            temperature=(1.0, 1.0), stop=False, logprobs=False, token_limit="max_completion_tokens", options=OPENAI
        )
    if provider == "openai":
        return Capabilities(options=OPENAI)
    takes = _litellm_takes(provider, name)
    if takes is None:
        return Capabilities(temperature=_RANGES.get(provider, (0.0, 2.0)))
    return Capabilities(
        choices="n" in takes,
        temperature=_RANGES.get(provider, (0.0, 2.0)) if "temperature" in takes else (1.0, 1.0),
        seed="seed" in takes,
        stop="stop" in takes,
        logprobs="logprobs" in takes and "top_logprobs" in takes,
        options=takes | (_TOP_K if provider in _WITH_TOP_K else frozenset()),
    )


def _litellm_takes(provider: str, name: str) -> frozenset[str] | None:
    if importlib.util.find_spec("litellm") is None:
        return None
    takes = _litellm().get_supported_openai_params(model=name, custom_llm_provider=provider)
    return None if takes is None else frozenset(takes)


def check_provider(provider: str, name: str) -> None:
    """Refuse a provider that LiteLLM, which must be installed, does not know.

    Raises:
        SpecError: with the nearest known ones.
    """
    known = [str(getattr(each, "value", each)) for each in _litellm().provider_list]
    if provider not in known:
        near = get_close_matches(provider, known, n=3, cutoff=0.6)
        meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise SpecError(
            f"no provider {provider!r}.{meant} Write openai/NAME, anthropic/NAME or any other that LiteLLM lists "
            f"(docs.litellm.ai/docs/providers); for a server of your own add its URL: {provider}/{name}@http://HOST:PORT/v1"
        )


def _litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    return litellm


def check_parameters(
    model: ChatModel,
    chair: str = "agent",
    *,
    temperature: float | None = None,
    logprobs: bool = False,
    stop: bool = False,
) -> None:
    """Refuse, before anything is asked, what a model is known not to take.

    Args:
        model: one of `open_model`, or any other, of which nothing is known.
        chair: `agent`, `seeker` or `critic`: named in the message.
        temperature: that will be asked for.
        logprobs, stop: whether log-probabilities and stop strings will be.

    Raises:
        SpecError: naming the parameter, the model and the option that changes it.
    """
    takes = getattr(model, "capabilities", None)
    if not isinstance(takes, Capabilities):
        return
    name = "/".join(str(model.identity.get(key, "")) for key in ("provider", "name"))
    low, high = takes.temperature
    if temperature is not None and not low <= temperature <= high:
        option = "temperature" if chair == "agent" else f"{chair}_temperature"
        allowed = f"only temperature {low:g}" if low == high else f"temperatures from {low:g} to {high:g}"
        nearest = min(max(temperature, low), high)
        raise SpecError(
            f"{chair} {name} takes {allowed}, not {temperature:g}. "
            f"Add --{option.replace('_', '-')} {nearest:g} ({option}={nearest:g}), or name another model"
        )
    if logprobs and not takes.logprobs:
        change = "Use --critic-mode votes (critic_mode='votes'), or" if chair == "critic" else "Please"
        raise SpecError(f"{chair} {name} gives no log-probabilities. {change} name another model")
    if stop and not takes.stop:
        raise SpecError(f"{chair} {name} takes no stop strings. Use another #STYLE, or name another model")

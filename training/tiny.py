"""A policy small enough to learn on two CPU cores: the proof that the machinery learns.

    esc train pipeline --preset tiny --out runs/tiny

A Llama of 1.1 M parameters, made from scratch, learns to speak from conversations that a mixed population of scripted
supporters, poor to good, holds with the builtin seeker on train scenarios. It then speaks, but supports badly, and
everything after that (collect, reward model, GRPO) is the same code as for large models.

Four things make so small a model usable, and none of them is part of the method:

- it is *born copying*: one head of its first layer attends to the previous token, two of its second layer look up what
  followed the present token before. Else most of the training time would go into finding that circuit;
- words of the story are *renamed* in part of the conversations, so that it must copy what it was told;
- its template shows what the seeker said last and the number of the turn, and drops system messages;
- thoughts are short: the move, and what it is about.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from esc_env.agents.scripted import RuleBasedAgent, key_phrases, said_by, skilled, wordings
from esc_env.background import run
from esc_env.chairs.critics import resolve_critic
from esc_env.chairs.seekers import resolve_seeker
from esc_env.conversation import Chairs
from esc_env.dialogue import ChatMessage, Dialogue, Message
from esc_env.errors import MissingExtra, SpecError
from esc_env.evaluation.runs.holding import hold
from esc_env.protocols import Critic, Reply, Seeker
from esc_env.rules import Rules
from esc_env.scenarios import Scenario
from esc_env.seeds import Seed, derive
from esc_env.trajectory import Trajectory

__all__ = ["SKILLS", "make_policy", "make_reward_model", "population", "supporter"]

SKILLS = (0.5, 0.6, 0.8, 0.9, 1.0, 1.0)
"""The population: how often each of its supporters makes a skilled move; a poor one else."""

_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[A-Za-z][\w'-]+")
_LEADS = {"your", "yours", "the", "her", "his", "their"}
_ROTARY = 1e6
_TEMPLATE = """\
{%- set said = messages | rejectattr('role', 'equalto', 'system') | list -%}
{%- set first = said | length - MEMORY - (0 if add_generation_prompt else 1) -%}
{%- for message in said -%}
{%- if loop.index0 >= first -%}
{%- if message['role'] == 'assistant' -%}
<|assistant|>{{ loop.index // 2 }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}
{%- else -%}
<|user|>{{ message['content'] + '<|end|>' }}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{{ (said | length + 1) // 2 }}{%- endif -%}
"""
_POOR = ("advice",) * 6 + ("template",) * 3 + ("random-strategy",)
_HASTY = {3: 0.65, 4: 0.65}


# --- who it learns to speak from ------------------------------------------------------------------


def supporter(skill: float, *, thoughts: float = 0.8, hasty: bool = True) -> RuleBasedAgent:
    """A scripted supporter that makes a skilled move with probability `skill`, and a poor one else.

    At its third and fourth turn it is hasty, as people are who have heard enough to have an opinion: then it makes a
    skilled move with probability 0.65 `skill` only. So what supporters do is often not what helps most.

    Args:
        skill: in [0, 1].
        thoughts: how often it says what it thinks, in [0, 1]; so there is a format to learn.
        hasty: False for one that takes its time in its third and fourth turn too.
    """

    def speak(chat: Sequence[ChatMessage], seed: Seed) -> Reply:
        turn = 1 + len(said_by(chat, "assistant"))
        well = seed.uniform("skill") < skill * (_HASTY.get(turn, 1.0) if hasty else 1.0)
        reply = _well(chat, seed) if well else _badly(chat, seed)
        return reply if seed.uniform("think") < thoughts else replace(reply, thought=None)

    return RuleBasedAgent(f"tiny:{skill:g}", speak)


def _well(chat: Sequence[ChatMessage], seed: Seed) -> Reply:
    """The move of the skilled supporter, with a thought that names it and what it is about."""
    lines: Mapping[str, Sequence[str]] = wordings("skilled")
    plan = {move: (f"{move}\x1f{{topic}}\x1f{{detail}}\x1f{{resource}}",) for move in lines}
    move, topic, detail, resource = skilled(chat, seed, lines=plan).split("\x1f")
    slots = {"topic": topic, "detail": detail, "resource": resource}
    return _filled(_pick(lines[move.lower()], seed), move.lower(), slots)


def _badly(chat: Sequence[ChatMessage], seed: Seed) -> Reply:
    """Mostly advice for everybody, else a template question, or a strategy by chance."""
    kind = _pick(_POOR, seed.at(attempt=1))
    lines = wordings(kind)
    if kind == "random-strategy":
        kind = _pick(sorted(lines), seed.at(attempt=2))
        lines = lines[kind]
    topic = (key_phrases(said_by(chat, "user")[-1]) or ["this"])[0]
    return _filled(_pick(lines, seed), kind.lower().split()[0], {"topic": topic})


def _pick(options: Sequence[str], seed: Seed) -> str:
    return options[int(seed.uniform("option") * len(options))]


def _filled(line: str, move: str, slots: Mapping[str, str]) -> Reply:
    about = "; ".join(dict.fromkeys(slots[name] for name in _SLOT.findall(line)))
    text = _SLOT.sub(lambda slot: slots[slot[1]], line)
    return Reply(text[0].upper() + text[1:], thought=f"{move}: {about}" if about else move)


def population(
    scenarios: Iterable[Scenario],
    seeker: str | Seeker = "builtin",
    critic: str | Critic = "builtin",
    rules: Rules | None = None,
    *,
    trials: int = 8,
    renamed: float = 0.0,
    hasty: bool = True,
    seed: int = 0,
) -> list[Trajectory]:
    """Conversations that supporters of all `SKILLS` hold, in an order free of timing.

    Args:
        scenarios: whom with.
        seeker, critic, rules: the other chairs.
        trials: conversations per scenario, at least 1; skills take turns.
        renamed: share of conversations, in [0, 1], in which the words that replies take up are other ones throughout.
            For models that learn language here; what such a conversation says makes no sense.
        hasty: whether supporters are, as `supporter` has it.
        seed: of everything that is drawn.
    """
    people = list(scenarios)
    chairs = Chairs(resolve_seeker(seeker), resolve_critic(critic), rules or Rules())
    held: list[Trajectory] = []
    for number, skill in enumerate(SKILLS):
        episodes = [
            (person, trial)
            for place, person in enumerate(people)
            for trial in range(trials)
            if (place + trial) % len(SKILLS) == number
        ]
        if episodes:
            run(hold(episodes, supporter(skill, hasty=hasty), chairs, seed, 64, held.append))
    held.sort(key=lambda trajectory: (trajectory.trial, trajectory.scenario.id))
    words = sorted({word for item in held for word in _told(item) if len(word) > 3})
    return [
        _renamed(item, words, random.Random(item.seed))
        if derive(seed, "renamed", item.seed) / 2.0**63 < renamed
        else item
        for item in held
    ]


def _told(trajectory: Trajectory) -> list[str]:
    return [word for said in trajectory.dialogue if said.role == "seeker" for word in _WORD.findall(said.content)]


def _renamed(trajectory: Trajectory, words: Sequence[str], draw: random.Random) -> Trajectory:
    """The conversation with every word that a thought takes up replaced, everywhere, by another."""
    about = " ".join((message.thought or "").partition(":")[2] for message in trajectory.dialogue)
    taken = dict.fromkeys(word.lower() for word in _WORD.findall(about))
    names = {word: draw.choice(words) for word in taken if word not in _LEADS}

    def rename(text: str) -> str:
        return _WORD.sub(lambda word: names.get(word[0].lower(), word[0]), text)

    def said(message: Message) -> Message:
        if message.thought is None:
            return replace(message, content=rename(message.content))
        move, colon, rest = message.thought.partition(":")
        return replace(message, content=rename(message.content), thought=move + colon + rename(rest))

    return replace(trajectory, dialogue=Dialogue(tuple(said(message) for message in trajectory.dialogue)))


# --- models ---------------------------------------------------------------------------------------


def make_policy(
    folder: str | Path,
    texts: Iterable[Scenario | Trajectory],
    *,
    seed: int = 0,
    vocabulary: int = 2048,
    width: int = 128,
    layers: int = 3,
) -> Path:
    """Save an untrained policy: a byte-level BPE tokenizer made of `texts`, a chat template, and a small Llama.

    Args:
        folder: where to.
        texts: what the tokenizer is made of: scenarios, or conversations (better: replies are in it).
        seed: of the weights.
        vocabulary: tokens, at least 300.
        width: of the model, a multiple of 128.
        layers: of the model, at least 2.

    Raises:
        MissingExtra: PyTorch or Transformers is not installed.
        SpecError: a number that makes no sense.
    """
    if vocabulary < 300 or width < 128 or width % 128 or layers < 2:
        raise SpecError(f"vocabulary ≥ 300, width a multiple of 128, layers ≥ 2, not {vocabulary}, {width}, {layers}")
    torch, transformers = _heavy()
    folder = Path(folder)
    tokenizer = _tokenizer(transformers, texts, vocabulary)
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            head_dim=64,
            attention_bias=True,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
            initializer_range=0.07,
            rope_parameters={"rope_type": "default", "rope_theta": _ROTARY},
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        _teach_copying(torch, model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_reward_model(folder: str | Path, policy: str | Path) -> Path:
    """Save what a reward model begins with: a policy's body and tokenizer, with a template that shows more turns.

    Args:
        folder: where to.
        policy: a folder of `make_policy`, or one trained from it with all weights.
    """
    _, transformers = _heavy()
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = _template(5)
    transformers.AutoModelForCausalLM.from_pretrained(policy).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def _heavy() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "transformers").partition(".")[0], "train") from error
    return torch, transformers


def _template(memory: int) -> str:
    return _TEMPLATE.replace("MEMORY", str(memory))


def _tokenizer(transformers: Any, texts: Iterable[Scenario | Trajectory], vocabulary: int) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        (line for item in texts for line in _lines(item)),
        trainers.BpeTrainer(
            vocab_size=vocabulary - 2,
            special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    bpe.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=1024,
        padding_side="left",
        chat_template=_template(1),
    )


def _lines(item: Scenario | Trajectory) -> list[str]:
    if isinstance(item, Scenario):
        return [item.situation, *item.facts, *item.helps]
    return [text for message in item.dialogue for text in (message.content, message.thought or "")]


def _teach_copying(torch: Any, model: Any) -> None:
    """Set three heads of a fresh model so that it repeats what followed the present token before.

    Layer 0, head 0 attends to the previous token (its query and key are constant; turning them by the rotary angle of
    one step puts the maximum there) and writes that token's embedding, projected by P, into the space of Q. Heads 0
    and 1 of layer 1 look with P of the present token for positions that have it in their Q, and copy what is there.
    *Source:* induction heads, Olsson et al. 2022 (arXiv 2209.11895). The other blocks begin small.
    """
    width, size = model.config.hidden_size, model.config.head_dim
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight *= 0.2
        layer.mlp.down_proj.weight *= 0.08
    basis = torch.linalg.qr(torch.randn(width, width))[0]
    present, before = basis[:size], basis[size : 2 * size]
    step = _ROTARY ** (-torch.arange(size // 2) / (size / 2))
    first = model.model.layers[0].self_attn
    first.q_proj.weight[:size] = 0
    first.k_proj.weight[:size] = 0
    first.q_proj.bias[:size] = 8 * torch.cat([torch.ones(size // 2), torch.zeros(size // 2)])
    first.k_proj.bias[:size] = 8 * torch.cat([step.cos(), step.sin()])
    first.v_proj.weight[:size] = present
    first.o_proj.weight[:, :size] = before.T / width**0.5
    second = model.model.layers[1].self_attn
    for head, copied in enumerate((present, before)):
        rows = slice(head * size, (head + 1) * size)
        second.q_proj.weight[rows] = 2.2 * present
        second.k_proj.weight[rows] = 2.2 * before
        second.v_proj.weight[rows] = copied
        second.o_proj.weight[:, rows] = 0.6 * copied.T

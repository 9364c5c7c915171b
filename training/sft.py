"""Supervised fine-tuning on supporter turns, with TRL: where the policy learns to speak, and to think first.

    esc train sft --data esconv:train --model Qwen/Qwen2.5-0.5B-Instruct --out runs/sft

Only the supporter's words are learned. What a supporter said is learned in the context it had: earlier thoughts are not
part of it, since at inference the policy never sees them again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_env.data.datasets import load_scenarios
from esc_env.dialogue import ChatMessage, Dialogue
from esc_env.errors import ConfigError, MissingExtra
from esc_env.evaluation.runs.runner import is_run, read_run
from esc_env.models.templates import ChatTemplate, TemplateError, TemplateRefused
from esc_env.rewards.rows import chat_of
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.training.config import SFTStage
from esc_env.training.data import CANDIDATES, Sample, read_samples
from esc_env.training.stage import arguments, finish, load_policy, load_tokenizer, open_stage, run_trainer, shortened
from esc_env.trajectory import Trajectory

try:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "trl").partition(".")[0], "train") from error

__all__ = ["Lesson", "encode", "lessons", "lessons_from", "sft_arguments", "taught_template", "train_sft"]

logger = logging.getLogger(__name__)

_NOT_LEARNED = -100
"""The label of tokens that are read and not learned. *Source:* PyTorch's cross-entropy ignores it."""

_DATE = "26 Jul 2024"
"""What templates that ask for today's date are told (Llama's own default), or a run would go on with other rows."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A dialogue to learn from.

    Attributes:
        scenario: whom it was held with; its situation precedes a dialogue that the supporter opened.
        dialogue: what was said, thoughts included.
        last: learn its last supporter turn only.
    """

    scenario: Scenario
    dialogue: Dialogue
    last: bool = False


def lessons(sources: Iterable[Scenario | Trajectory | Sample], *, solved: bool = True) -> list[Lesson]:
    """What there is to learn in human dialogues, in conversations, and in collected responses.

    Args:
        sources: scenarios (their human dialogue; those without one are passed over), ended conversations, samples of a
            collection (the response alone is learned).
        solved: take conversations only if they were solved, and responses only if most of their futures were.
    """
    found = []
    for source in sources:
        if isinstance(source, Scenario):
            if source.dialogue:
                found.append(Lesson(source, source.dialogue))
        elif isinstance(source, Trajectory):
            if source.solved or (source.completed and not solved):
                found.append(Lesson(source.scenario, source.dialogue))
        elif source.solved > 0.5 or not solved:
            found.append(Lesson(source.scenario, source.context.then(source.response), last=True))
    return found


def lessons_from(source: str | Path) -> list[Any]:
    """What `train_sft` learns from: a folder of `esc collect` or `esc eval` (what was solved), or human dialogues.

    Raises:
        ScenarioError: it is none of these.
    """
    folder = Path(source)
    if (folder / CANDIDATES).is_file():
        return lessons(read_samples(folder, tails=False))
    if is_run(folder):
        return lessons(read_run(folder).trajectories)
    return lessons(load_scenarios(source))


def taught_template(tokenizer: Any) -> ChatTemplate:
    """The tokenizer's chat template, from which what is learned is read: whatever it writes beyond a prompt.

    Raises:
        ConfigError: a chat with its reply does not begin with the prompt for that reply, or nothing ends the reply, so
            that a model would never stop.
    """
    template = ChatTemplate(tokenizer, {"date_string": _DATE})
    try:
        template.check()
    except TemplateRefused as error:
        raise ConfigError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: nothing can be learned with its chat template: {error}. "
            "Mend tokenizer.chat_template, and save the tokenizer"
        ) from error
    return template


def encode(
    items: Iterable[Lesson], tokenizer: Any, *, max_length: int, thoughts: bool = True, system: str | None = None
) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """Rows for the trainer, and how many of what there were.

    Every supporter turn is learned once, in the context it has at inference, with as much of that as fits, cut from the
    left at message borders. Turns share a row where the later one's context holds the earlier one just as it was said:
    a whole dialogue, if it fits, has no thoughts, and its template writes a turn the same whatever follows. A `system`
    message precedes each row, and is never cut.

    Returns:
        Rows of `input_ids` and `labels` (−100 where nothing is learned); counts: `lessons`, `rows`, `tokens`, `learned`
        tokens, `cut` rows, `too_long` turns that do not fit at all, `merged` turns whose first letters make one token
        with the prompt, `forged` lessons that hold control tokens.

    Raises:
        ConfigError: see `taught_template`; or the template refuses such a dialogue.
    """
    template = taught_template(tokenizer)
    control = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    counts: Counter[str] = Counter(lessons=0, rows=0, tokens=0, learned=0, cut=0, too_long=0, merged=0, forged=0)
    rows: list[dict[str, list[int]]] = []
    for item in items:
        counts["lessons"] += 1
        if any(token in message.content for message in item.dialogue for token in control):
            counts["forged"] += 1
            continue
        try:
            rows += _rows(item, template, max_length, thoughts, system, counts)
        except TemplateError as error:
            raise ConfigError(f"the chat template refuses the dialogue with {item.scenario.id!r}: {error}") from error
    counts["rows"] = len(rows)
    counts["tokens"] = sum(len(row["input_ids"]) for row in rows)
    counts["learned"] = sum(label != _NOT_LEARNED for row in rows for label in row["labels"])
    return rows, dict(counts)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A supporter's turn as tokens: what precedes it, what is said, and whether its context was cut."""

    prompt: list[int]
    reply: list[int]
    cut: bool


def _rows(
    item: Lesson, template: ChatTemplate, max_length: int, thoughts: bool, system: str | None, counts: Counter[str]
) -> list[dict[str, list[int]]]:
    before = [ChatMessage(role="system", content=system)] if system else []
    chat = [*before, *chat_of(item.scenario, item.dialogue)]
    said = item.dialogue.merged()
    thought = dict(zip(range(len(chat) - len(said), len(chat)), (message.thought for message in said), strict=True))
    places = [place for place, message in enumerate(chat) if message["role"] == "assistant" and message["content"]]
    turns = []
    for place in places[-1:] if item.last else places:
        try:
            turn = _fitting(template, chat[: place + 1], thought.get(place) if thoughts else None, max_length)
        except TemplateRefused:
            counts["merged"] += 1
            continue
        counts["too_long"] += turn is None
        turns += [turn] if turn else []
    rows = []
    while turns:
        last = turns.pop()
        ids, labels = last.prompt + last.reply, [_NOT_LEARNED] * len(last.prompt) + last.reply
        apart = []
        for turn in turns:
            begin, end = len(turn.prompt), len(turn.prompt) + len(turn.reply)
            if ids[:end] == turn.prompt + turn.reply:
                labels[begin:end] = turn.reply
            else:
                apart.append(turn)
        turns = apart
        rows.append({"input_ids": ids, "labels": labels})
        counts["cut"] += last.cut
    return rows[::-1]


def _fitting(template: ChatTemplate, chat: Sequence[ChatMessage], thought: str | None, max_length: int) -> _Turn | None:
    """The last turn of a chat with as much of its context as fits; None if not even one message does."""
    for context in shortened(chat[:-1]):
        prompt, reply = template.reply(context, chat[-1]["content"].strip(), thought)
        if len(prompt) + len(reply) <= max_length:
            return _Turn(prompt, reply, len(context) < len(chat) - 1)
    return None


def _held_out(items: Sequence[Lesson], share: float, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """(what is learned, what only tells the loss), apart by scenario."""
    people = ScenarioSet.of("lessons", {item.scenario.id: item.scenario for item in items}.values())
    aside: set[str] = set()
    if len(people) > 1:
        share = max(share, 1 / len(people))
        aside = {scenario.id for scenario in people.split(seed, train=1 - share, valid=share)["valid"]}
    sides = tuple([item for item in items if (item.scenario.id in aside) is held] for held in (False, True))
    if not all(sides):
        raise ConfigError(
            f"SFTStage: valid = {share:g} leaves nothing on one side of {len(people)} scenarios (near-duplicates stay "
            "together). Set it to 0, or give more scenarios"
        )
    return sides[0], sides[1]


def sft_arguments(config: SFTStage, folder: Path, *, evaluates: bool) -> dict[str, Any]:
    """What TRL's `SFTConfig` is told; nothing that the method names is left to TRL's defaults."""
    return {
        **arguments(config, folder),
        "max_length": None,
        "packing": False,
        "assistant_only_loss": False,
        "shuffle_dataset": False,  # its rows are drawn in another order in every epoch anyway
        "loss_type": "nll",
        "train_sampling_strategy": "group_by_length",  # else half of a batch is padding
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": config.save_steps,
        "per_device_eval_batch_size": config.batch_size,
    }


def train_sft(config: SFTStage, folder: str | Path, items: Sequence[Lesson], *, system: str | None = None) -> Path:
    """Fine-tune `config.model` on what supporters said; the same call resumes, and does nothing once finished.

    Args:
        config: see `SFTStage`.
        folder: where the model (or its adapter), tokenizer, log and checkpoints go.
        items: from `lessons`.
        system: the system message that the policy will be prompted with.

    Returns:
        The folder, which holds the trained model.

    Raises:
        ConfigError: nothing to learn, no chat template, or one that nothing can be learned with.
        ProtocolMismatch: the folder holds another run.
    """
    folder = Path(folder)
    data = [system, [[item.scenario.situation, item.dialogue.to_json(), item.last] for item in items]]
    with open_stage(folder, "sft", config, data) as finished:
        if finished:
            return folder
        learned, unseen = _held_out(items, config.valid, config.seed) if config.valid else (list(items), [])
        tokenizer = load_tokenizer(config.model)
        how: dict[str, Any] = {"max_length": config.max_length, "thoughts": config.thoughts, "system": system}
        rows, counts = encode(learned, tokenizer, **how)
        valid, _ = encode(unseen, tokenizer, **how)
        if not rows or (unseen and not valid):
            raise ConfigError(
                f"nothing to learn in {len(items)} dialogues, {len(unseen)} of them held out: {counts}. "
                "Give more, or raise max_length"
            )
        if counts["cut"] or counts["too_long"] or counts["merged"] or counts["forged"]:
            logger.warning(
                "of %d rows, %d have a context cut to %d tokens; left out are %d turns that are too long, %d whose "
                "first letters make one token with the prompt, and %d dialogues that hold control tokens",
                len(rows), counts["cut"], config.max_length, counts["too_long"], counts["merged"], counts["forged"],
            )  # fmt: skip
        model, adapter = load_policy(config, tokenizer)
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**sft_arguments(config, folder, evaluates=bool(valid))),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(valid) if valid else None,
            processing_class=tokenizer,
            peft_config=adapter,
        )
        run_trainer(trainer, folder)
        trainer.save_model(str(folder))
        finish(folder, trainer.state.log_history, counts={**counts, "valid": len(valid)})
    return folder

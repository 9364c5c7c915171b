"""Supervised fine-tuning on supporter turns, with TRL: where the policy learns to speak, and to think first.

    esc train sft --data esconv:train --model Qwen/Qwen2.5-0.5B-Instruct --out runs/sft

Only the supporter's words are learned. What a supporter said is learned in the context it had: earlier thoughts are not
part of it, since at inference the policy never sees them again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_env.dialogue import ChatMessage, Dialogue
from esc_env.errors import ConfigError, MissingExtra
from esc_env.rewards.rows import chat_of
from esc_env.scenarios import Scenario, ScenarioSet
from esc_env.training.config import SFTStage
from esc_env.training.data import Sample
from esc_env.training.stage import arguments, finish, load_policy, load_tokenizer, open_stage, run_trainer, shortened
from esc_env.trajectory import Trajectory

try:
    from datasets import Dataset  # type: ignore[import-untyped]
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "trl").partition(".")[0], "train") from error

__all__ = ["Lesson", "encode", "lessons", "train_sft", "training_template"]

logger = logging.getLogger(__name__)


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


def training_template(tokenizer: Any) -> str:
    """The tokenizer's chat template with generation markers, which say what the assistant wrote.

    For the templates of well-known models TRL has a version with markers; it is used for training only.

    Raises:
        ConfigError: there is none, or its markers leave out the end-of-turn token, so that a model would never stop.
    """
    template: str | None = tokenizer.chat_template
    if not has_generation_markers(tokenizer.chat_template):
        try:
            template = get_training_chat_template(tokenizer)
        except ValueError as error:
            raise ConfigError(
                f"{tokenizer.name_or_path or 'the tokenizer'}: its chat template does not mark what the assistant "
                "wrote, and TRL knows no marked version of it. Put {% generation %} before and {% endgeneration %} "
                "after the assistant's content and end-of-turn token, and save the tokenizer"
            ) from error
    if template is None or not is_chat_template_stop_token_trained(tokenizer, chat_template=template):
        raise ConfigError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: the end-of-turn token stands outside of {{% generation %}} "
            "… {% endgeneration %} in its chat template, so the model would never learn to stop. Move it inside"
        )
    return template


def encode(
    items: Iterable[Lesson], tokenizer: Any, *, max_length: int, thoughts: bool = True, system: str | None = None
) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """Rows for the trainer, and how many of what there were.

    A dialogue without thoughts that fits is one row. Otherwise every supporter turn is a row of its own, with as much
    of its context as fits, cut from the left at message borders. A `system` message precedes each, and is never cut.

    Returns:
        Rows of `input_ids` and `labels` (−100 where nothing is learned); counts: `lessons`, `rows`, `tokens`, `learned`
        tokens, `cut` rows, `too_long` turns that do not fit at all, `forged` lessons that hold control tokens.
    """
    template = training_template(tokenizer)
    control = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    counts: Counter[str] = Counter(lessons=0, rows=0, tokens=0, learned=0, cut=0, too_long=0, forged=0)
    rows = []
    for item in items:
        counts["lessons"] += 1
        if any(token in message.content for message in item.dialogue for token in control):
            counts["forged"] += 1
            continue
        for row in _rows(item, tokenizer, template, max_length, thoughts, system, counts):
            rows.append(row)
            counts["tokens"] += len(row["input_ids"])
            counts["learned"] += sum(label != -100 for label in row["labels"])
    counts["rows"] = len(rows)
    return rows, dict(counts)


def _rows(
    item: Lesson,
    tokenizer: Any,
    template: str,
    max_length: int,
    thoughts: bool,
    system: str | None,
    counts: Counter[str],
) -> Iterator[dict[str, list[int]]]:
    before = [ChatMessage(role="system", content=system)] if system else []
    chat = [*before, *chat_of(item.scenario, item.dialogue)]
    said = item.dialogue.merged()
    thought = dict(zip(range(len(chat) - len(said), len(chat)), (message.thought for message in said), strict=True))
    turns = [place for place, message in enumerate(chat) if message["role"] == "assistant" and message["content"]]
    if not turns:
        return
    if not item.last and not (thoughts and any(thought.get(place) for place in turns)):
        ids, mask = _marked(tokenizer, template, chat[: turns[-1] + 1])
        if len(ids) <= max_length:
            yield _row(ids, mask)
            return
    for place in turns[-1:] if item.last else turns:
        words = chat[place]["content"]
        if thoughts and thought.get(place):
            words = f"<think>{thought[place]}</think>\n{words}"
        for context in shortened(chat[:place]):
            ids, mask = _marked(tokenizer, template, [*context, ChatMessage(role="assistant", content=words)])
            if len(ids) <= max_length:
                begin = len(_ids(tokenizer, template, context, add_generation_prompt=True)["input_ids"])
                counts["cut"] += len(context) < place
                yield _row(ids, [bit and at >= begin for at, bit in enumerate(mask)])
                break
        else:
            counts["too_long"] += 1


def _row(ids: list[int], mask: Sequence[int | bool]) -> dict[str, list[int]]:
    return {"input_ids": ids, "labels": [token if bit else -100 for token, bit in zip(ids, mask, strict=True)]}


def _marked(tokenizer: Any, template: str, chat: Sequence[ChatMessage]) -> tuple[list[int], list[int]]:
    marked = _ids(tokenizer, template, chat, return_assistant_tokens_mask=True)
    return marked["input_ids"], marked["assistant_masks"]


def _ids(tokenizer: Any, template: str, chat: Sequence[ChatMessage], **how: bool) -> Any:
    return tokenizer.apply_chat_template(
        [dict(message) for message in chat], chat_template=template, return_dict=True, **how
    )


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


def train_sft(
    config: SFTStage, folder: str | Path, items: Sequence[Lesson], *, system: str | None = None
) -> Path:
    """Fine-tune `config.model` on what supporters said; the same call resumes, and does nothing once finished.

    Args:
        config: see `SFTStage`.
        folder: where the model (or its adapter), tokenizer, log and checkpoints go.
        items: from `lessons`.
        system: the system message that the policy will be prompted with.

    Returns:
        The folder, which holds the trained model.

    Raises:
        ConfigError: nothing to learn, no chat template, or none with generation markers.
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
        if counts["cut"] or counts["too_long"] or counts["forged"]:
            logger.warning(
                "of %d rows, %d have a context cut to %d tokens; %d turns are too long; %d hold control tokens",
                len(rows), counts["cut"], config.max_length, counts["too_long"], counts["forged"],
            )  # fmt: skip
        model, adapter = load_policy(config)
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **arguments(config, folder), max_length=None, packing=False, assistant_only_loss=False, loss_type="nll",
                train_sampling_strategy="group_by_length",  # else half of a batch is padding
                eval_strategy="steps" if valid else "no", eval_steps=config.save_steps,
                per_device_eval_batch_size=config.batch_size,
            ),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(valid) if valid else None,
            processing_class=tokenizer,
            peft_config=adapter,
        )
        run_trainer(trainer, folder)
        trainer.save_model(str(folder))
        finish(folder, trainer.state.log_history, counts={**counts, "valid": len(valid)})
    return folder

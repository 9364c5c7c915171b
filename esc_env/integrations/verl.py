"""The environment as an agent loop of verl. Tested with verl 0.9.1: its loop, builder of tokens and padding on a
processor; its trainers and servers, which need GPUs, were not run.

A YAML file names the loop for `actor_rollout_ref.rollout.agent.agent_loop_config_path`:

    - name: esc
      _target_: esc_env.integrations.verl.SupportLoop
      _convert_: all
      settings: {seeker: openai/gpt-4o, critic: openai/gpt-4o}

and rows with `agent_name="esc"` (`esc_env.integrations.conversations.rows`) are the data. All of a conversation is one
response: what the policy wrote has mask 1, what the seeker said and the chat template's tokens have mask 0. Tokens are
only appended, so a policy sees its own earlier thoughts; in `esc eval` it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from esc_env.background import hops
from esc_env.errors import ActionError, MissingExtra, SpecError
from esc_env.gym.episode import Episode
from esc_env.integrations.conversations import UNHEARD, options_of, shared_env

try:
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
    from verl.utils.profiler import simple_timer
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "verl").partition(".")[0], "verl") from error

__all__ = ["SupportLoop"]


class SupportLoop(AgentLoopBase):
    """Holds the conversation of a row, with verl's policy as the supporter.

    The reward is the critic's last score, in [-1, 1], also where `rollout.response_length` breaks a conversation off:
    to talk until there is no room is worth what it has achieved, and -1 where nothing was judged. Logged with it are
    `solved` (0 or 1) and `turns`, and as `turn_scores` the scores of all turns.

    Args:
        settings: arguments of `ESCEnv` but `scenarios` (rows name them) and `reward` (the last score): plain values
            and strings. The defaults are those of `esc eval`: T = 8, ten votes, threshold 0.5. A seeker or critic
            that fails ends verl's batch, unless `on_error` is `truncate`: then its conversation is worth 0.
        max_tokens: longest reply, thinking included; as in `esc eval`.
        loop: what verl hands every agent loop.

    Raises:
        SpecError: settings that cannot be used.
    """

    def __init__(
        self, *args: Any, settings: Mapping[str, Any] | None = None, max_tokens: int = 1024, **loop: Any
    ) -> None:
        super().__init__(*args, **loop)
        for name in ("scenarios", "reward"):
            if name in (settings or {}):
                raise SpecError(f"{name}=… has no place here: rows name scenarios, and the reward is the last score")
        self._env = shared_env(settings or {})
        self._max_tokens = max_tokens

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **row: Any) -> AgentLoopOutput:
        """Hold one conversation.

        Raises:
            SpecError: the row names no conversation.
            ChairError: seeker or critic failed.
        """
        task, room = self._env.task, int(self.rollout_config.response_length)
        episode = await hops(task.begin)(task.draw(self._env, None, options_of(row["conversation"])))
        chat = [{**message} for message in row["raw_prompt"] if message["role"] == "system"]
        chat += [{**message} for message in episode.observation]
        ids: list[int] = await self.ct_build_initial_tokens(chat)
        mask: list[int] = []
        sure: list[float] | None = None
        metrics: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        name = uuid4().hex
        heard = True  # whether all that the policy said was an utterance
        while episode.stop is None:
            asked = {**sampling_params, "max_tokens": min(self._max_tokens, room - len(mask))}
            with simple_timer("generate_sequences", metrics):
                said = await self.server_manager.generate(
                    request_id=name, prompt_ids=ids, sampling_params=asked, priority=int(priority)
                )
            extra = {**said.extra_fields, **extra, **_newest(said.extra_fields)}
            if said.log_probs and sure is None:
                sure = [0.0] * len(mask)
            merged, mask, sure = await self.ct_merge_assistant_token(
                ids, said.token_ids, mask, sure, assistant_logprobs=said.log_probs or None
            )
            ids = merged.token_ids
            if len(mask) >= room:
                break
            try:
                reply = task.hear(episode, self.tokenizer.decode(said.token_ids, skip_special_tokens=True))
            except ActionError:  # too long to be one: `esc eval` counts it as the supporter's failure too
                heard = False
                break
            with simple_timer("tool_calls", metrics):
                episode = await hops(task.go_on)(episode, reply)
            if episode.stop is not None:
                break
            before = [*chat, {"role": "assistant", "content": reply.content}]
            chat = [*before, {**episode.observation[-1]}]
            merged, longer, surer = await self.ct_merge_context_msg(before, chat, ids, mask, sure)
            if len(longer) >= room:
                break
            ids, mask, sure = merged.token_ids, longer, surer
        scores = [verdict.score for verdict in episode.verdicts]
        solved = float(episode.stop is not None and episode.stop.value == "solved")
        return AgentLoopOutput(
            prompt_ids=ids[: len(ids) - len(mask)],
            response_ids=ids[len(ids) - len(mask) :][:room],
            response_mask=mask[:room],
            response_logprobs=sure and sure[:room],
            reward_score=_score(episode) if heard else UNHEARD,
            num_turns=len(episode.dialogue),
            metrics={"num_preempted": -1, **metrics},
            extra_fields={
                **extra, "turn_scores": scores, "tool_rewards": [],
                "reward_extra_info": {"solved": solved, "turns": episode.turn},
            },
        )  # fmt: skip


def _score(episode: Episode) -> float:
    """What a conversation is worth: its last score; 0 where a chair failed."""
    if episode.failure is not None:
        return 0.0
    return episode.verdicts[-1].score if episode.verdicts else UNHEARD


def _newest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Of several requests, the newest weights that were asked."""
    return {name: value for name, value in fields.items() if name == "max_global_steps" and value is not None}

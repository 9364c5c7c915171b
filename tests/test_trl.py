"""What TRL is told, and which TRL: nothing of the method is left to its defaults, and another version is named."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from trl import GRPOConfig, RewardConfig, SFTConfig
from trl.scripts.vllm_serve import ScriptArguments, build_command

from esc_env.dialogue import Dialogue, Message
from esc_env.errors import MissingExtra
from esc_env.rewards import grpo_row
from esc_env.scenarios import Scenario
from esc_env.training.config import GRPOStage, RewardModelStage, SFTStage
from esc_env.training.config_loading import read_pipeline
from esc_env.training.grpo import grpo_arguments, train_grpo
from esc_env.training.reward_model import reward_arguments
from esc_env.training.sft import sft_arguments
from esc_env.training.stage import TRL, check_trl

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]

LEFT: dict[str, str] = {
    "where files and reports go, and what else is kept": """
        do_train do_eval do_predict resume_from_checkpoint run_name project trackio_space_id trackio_bucket_id
        trackio_static_space_id save_only_model save_on_each_node enable_jit_checkpoint push_to_hub hub_token
        hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end
        metric_for_best_model greater_is_better restore_callback_states_from_checkpoint log_completions_hub_repo
        log_multimodal log_unique_prompts
    """,
    "what is logged of it": """
        logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen
        log_level log_level_replica include_for_metrics debug skip_memory_metrics
    """,
    "how it is computed": """
        tf32 activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_compile
        torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache torch_empty_cache_steps
        auto_find_batch_size full_determinism accelerator_config parallelism_config dataloader_num_workers
        dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
        dataloader_drop_last ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
        ddp_backend fsdp fsdp_config deepspeed local_rank bf16_full_eval fp16_full_eval optim_args optim_target_modules
        ds3_gather_for_generation cache_implementation generation_batch_size pad_to_multiple_of
        use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged
        ignore_data_skip activation_offloading packing_strategy padding_free eval_packing
    """,
    "evaluation of the trainer's own, which only SFT has": """
        eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start
        eval_do_concat_batches eval_use_gather_object eval_accumulation_steps batch_eval_metrics num_generations_eval
    """,
    "models, rows and prompts are made here, and given to it": """
        model_init_kwargs trust_remote_code chat_template_kwargs chat_template_path generation_kwargs dataset_num_proc
        dataset_text_field dataset_kwargs eos_token pad_token remove_unused_columns label_names length_column_name
        completion_only_loss truncation_mode
    """,
    "where vLLM's server listens, told in one address instead; and how patient one is": """
        vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port
    """,
    "of things that are off: other losses, mixtures of experts, tools, moving references": """
        neftune_noise_alpha label_smoothing_factor router_aux_loss_coef ref_model_mixup_alpha ref_model_sync_steps
        sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg
        use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target
        max_tool_calling_iterations vllm_importance_sampling_cap vllm_structured_outputs_regex lr_scheduler_kwargs
        data_seed cast_lm_head_to_fp32
    """,
}
"""What is left to a trainer's own defaults, and why that leaves nothing of the method to them."""


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (GRPOConfig, grpo_arguments(GRPOStage(), Path("out"))),
        (SFTConfig, sft_arguments(SFTStage(), Path("out"), evaluates=False)),
        (RewardConfig, reward_arguments(RewardModelStage(), Path("out"))),
    ],
)
def test_whatever_a_trainer_is_not_told_is_known_and_says_nothing_of_the_method(kind: Any, told: dict) -> None:
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    assert told.keys() <= fields
    known = {name for names in LEFT.values() for name in names.split()}
    assert fields - told.keys() - known == set(), "set these, or list them with the reason"


def test_what_is_listed_as_left_is_a_field_of_some_trainer() -> None:
    fields = {field.name for kind in (GRPOConfig, SFTConfig, RewardConfig) for field in dataclasses.fields(kind)}
    assert {name for names in LEFT.values() for name in names.split()} <= fields


# --- vLLM -------------------------------------------------------------------------------------------------------------


def vllm(stage: GRPOStage) -> dict[str, Any]:
    return {name: value for name, value in grpo_arguments(stage, Path("out")).items() if "vllm" in name}


@pytest.mark.parametrize("preset", ["qwen2.5-7b", "llama-3.1-8b"])
@pytest.mark.parametrize("reward", ["rlff", "env"])
def test_vllm_plans_for_what_the_papers_presets_ask_and_not_for_a_million_tokens(preset: str, reward: str) -> None:
    stage = read_pipeline(preset, [f"--grpo.reward={reward}"]).grpo
    assert vllm(stage) == {
        "use_vllm": True, "vllm_mode": "colocate", "vllm_server_base_url": None, "vllm_gpu_memory_utilization": 0.3,
        "vllm_max_model_length": 2560, "vllm_tensor_parallel_size": 1, "vllm_enable_sleep_mode": False,
        "vllm_model_impl": "vllm", "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask", "vllm_importance_sampling_clip_max": 3.0,
        "vllm_importance_sampling_clip_min": None,
    }  # fmt: skip


def test_every_line_of_the_docs_that_serves_a_model_says_how_long_its_context_is() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").replace("\\\n", " ")
    served = [line for line in page.splitlines() if re.match(r"[^#`]*vllm serve ", line)]
    assert len(served) >= 3
    for line in served:
        assert "--max-model-len " in line, line


def test_the_server_that_a_trainer_generates_with_is_started_as_trl_wants_it() -> None:
    """TRL's own command for it is deprecated: it prints what to type instead, and that is what the docs say."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [line for line in page.splitlines() if "VLLM_SERVER_DEV_MODE=1 vllm serve " in line]
    given = shlex.split(line)
    asked = build_command(ScriptArguments(model="any"))
    wanted = asked[asked.index("--weight-transfer-config") :]
    assert given[given.index("--weight-transfer-config") :] == wanted


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllm_that_is_missing_is_one_line_before_anything_is_loaded(
    mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    prompts = [grpo_row(Scenario(id="p", situation="Hm."), Dialogue((Message("seeker", "Hm."),)))]
    with pytest.raises(MissingExtra, match=r"vllm is not installed\. Type: pip install 'esc-env\[vllm\]'"):
        train_grpo(GRPOStage(model="no/such-model", vllm=mode), tmp_path, reward=lambda **_: [0.0], prompts=prompts)


def test_deepspeed_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # what `accelerate launch` tells with deepspeed.yaml
    with pytest.raises(MissingExtra, match=r"Type: pip install 'esc-env\[deepspeed\]'"):
        train_grpo(GRPOStage(model="no/such-model"), tmp_path, reward=lambda **_: [0.0], prompts=[])


# --- which TRL --------------------------------------------------------------------------------------------------------


def test_the_versions_of_trl_that_are_taken_are_those_that_are_required() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert f"trl{TRL}" in extras["train"]


@pytest.mark.parametrize("version", ["1.15.0", "1.16.0"])
def test_the_versions_of_trl_that_call_alike_are_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    check_trl()


@pytest.mark.parametrize("version", ["1.0.0", "1.14.2", "1.17.0"])
def test_another_trl_is_named_with_its_version_and_what_to_type(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(MissingExtra) as told:
        check_trl()
    assert str(told.value) == f"trl{TRL} (here is {version}) is not installed. Type: pip install 'esc-env[train]'"

"""Options of TRL and Hugging Face's Trainer that surefoot has no use for, and what it says to them."""

from __future__ import annotations

import re
import warnings
from typing import Any

_PLANNER = "the planner packs each step without padding, whatever this says; the step stays the same rows"
_MEMORY = "evaluation is planned by tokens (micro_batch_tokens)"
_LOADER = "rows are tokenised before step 1 and sliced from memory; there is no loader to tune"
_ONE_PROCESS = "the launcher (torchrun, or --nproc) says it; rank 0 alone writes the run folder"
_LAUNCHED = "torchrun (or --nproc) starts the processes, and shard says how they divide the weights"
_METRICS = "an evaluation is loss, perplexity, token accuracy and, if asked for, exact answers"
_NOT_PUSHED = "a run is not pushed; push its folder model/ with `hf upload`"
_QUANTISED = "matters with load_in_4bit only, which is not supported yet"

SUPERSEDED: dict[str, str] = {
    "packing": _PLANNER,
    "packing_strategy": _PLANNER,
    "eval_packing": _PLANNER,
    "padding_free": _PLANNER,
    "pad_to_multiple_of": _PLANNER,
    "group_by_length": _PLANNER,
    "pad_token": "nothing is padded in training",
    "auto_find_batch_size": "the planner splits a step by tokens; its rows never change",
    "assistant_only_loss": "only assistant turns are learned, always, with any template; "
    "completion_only_loss=false learns every token",
    "loss_type": "the loss is the exact negative log-likelihood, over target tokens only, in chunks",
    "use_liger_kernel": "the head runs over target tokens only, in chunks; logits of all tokens never exist",
    "average_tokens_across_devices": "a step is always divided by the number of its supervised tokens",
    "truncation_mode": "`overlength` decides: drop (default), error or cut",
    "shuffle_dataset": "rows are shuffled anew each epoch unless train_sampling_strategy=sequential",
    "dataset_num_proc": "the Rust tokenizer works in parallel by itself",
    "dataset_kwargs": "rows of token ids are recognised by their columns",
    "remove_unused_columns": "columns that are no part of a row's shape are left alone",
    "per_device_eval_batch_size": _MEMORY,
    "eval_accumulation_steps": _MEMORY,
    "include_num_input_tokens_seen": "every step's tokens are in events.jsonl",
    "include_tokens_per_second": "every step's tokens per second are in events.jsonl",
    "dataloader_num_workers": _LOADER,
    "dataloader_pin_memory": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "attn_implementation": "attention over the packed step is chosen, and checked, for the model at hand",
    "gradient_checkpointing_kwargs": "checkpointing is non-reentrant",
    "ddp_find_unused_parameters": "there is no DDP wrapper",
    "do_train": "`surefoot train` trains",
    "do_eval": "eval_strategy decides",
    "save_safetensors": "weights are always saved as safetensors",
    "logging_dir": "a reporter's files go to the run folder",
    "logging_strategy": "every step is in events.jsonl; logging_steps decides what is shown",
    "tf32": "set torch.backends.cuda.matmul.fp32_precision; precision=bf16 does not need it",
    "log_level": "surefoot prints results and errors only",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "lora_task_type": "LoRA is for causal language models here",
    "dataset_batch_size": "rows are tokenised in batches of a fixed size",
    "use_cache": "training never keeps keys and values",
    "liger_kernel_config": "the head runs over target tokens only, in chunks",
    "activation_checkpointing_kwargs": "checkpointing is non-reentrant",
    "length_column_name": _PLANNER,
    "torch_empty_cache_steps": "micro_batch_tokens bounds the memory of a step",
    "bf16_full_eval": "an evaluation is computed as training is (precision)",
    "fp16_full_eval": "an evaluation is computed as training is (precision)",
    "prediction_loss_only": _METRICS,
    "include_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "eval_do_concat_batches": _METRICS,
    "eval_use_gather_object": _METRICS,
    "dataloader_in_order": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "ignore_data_skip": "resuming finds its rows without reading past the others",
    "do_predict": "`surefoot evaluate` answers held-out prompts",
    "enable_jit_checkpoint": "SIGTERM always finishes the step and saves",
    "skip_memory_metrics": "memory is not measured",
    "log_level_replica": _ONE_PROCESS,
    "log_on_each_node": _ONE_PROCESS,
    "save_on_each_node": _ONE_PROCESS,
    "local_rank": _ONE_PROCESS,
    "ignore_bias_buffers": _ONE_PROCESS,
    "ddp_backend": _ONE_PROCESS,
    "ddp_broadcast_buffers": _ONE_PROCESS,
    "ddp_bucket_cap_mb": _ONE_PROCESS,
    "ddp_static_graph": _ONE_PROCESS,
    "hub_always_push": _NOT_PUSHED,
    "hub_model_id": _NOT_PUSHED,
    "hub_revision": _NOT_PUSHED,
    "hub_strategy": _NOT_PUSHED,
    "hub_token": _NOT_PUSHED,
    "bnb_4bit_quant_type": _QUANTISED,
    "bnb_4bit_quant_storage": _QUANTISED,
    "use_bnb_nested_quant": _QUANTISED,
}

REFUSED: dict[str, str] = {
    "fp16": "fp16 needs loss scaling, which changes what a step is; use precision=bf16",
    "load_in_4bit": "quantised base weights are not supported yet; use_peft=true trains LoRA on full weights",
    "load_in_8bit": "quantised base weights are not supported yet; use_peft=true trains LoRA on full weights",
    "neftune_noise_alpha": "noise on the embeddings makes the gradient another one; left out on purpose",
    "label_smoothing_factor": "label smoothing makes the loss another one; left out on purpose",
    "push_to_hub": "train first, then push the folder model/ with `hf upload`",
    "deepspeed": "sharding is PyTorch's own FSDP2; DeepSpeed is left out on purpose",
    "fsdp": "its name here is shard: full cuts weights, gradients and optimizer state over the ranks",
    "model_init_kwargs": "name the option itself (model_revision, trust_remote_code), or pass a model object",
    "datasets": "mix the rows into one file, or pass a datasets.Dataset from Python",
    "router_aux_loss_coef": "the loss is the cross-entropy alone; a balance loss over a packed step is another one",
    "use_dora": "pass a peft_config from Python",
    "use_rslora": "pass a peft_config from Python",
    "lora_modules_to_save": "pass a peft_config from Python",
    "lora_target_parameters": "pass a peft_config from Python",
    "activation_checkpointing": "its name here is gradient_checkpointing",
    "data_seed": "`seed` decides the order of the rows too",
    "dataloader_drop_last": "the last step of an epoch takes the rows that are left; none is dropped",
    "eval_delay": "not supported; evaluations start with the first that eval_steps or eval_strategy=epoch gives",
    "lr_scheduler_kwargs": "the schedules here take no arguments; linear and cosine end at 0",
    "optim_target_modules": "the optimizers that need it are not supported; use_peft=true trains LoRA",
    "save_only_model": "a checkpoint can always be resumed from; save_strategy=no leaves only the result, model/",
    "torch_compile_backend": "torch_compile=true compiles each decoder layer with inductor",
    "torch_compile_mode": "torch_compile=true compiles each decoder layer with inductor",
    "fsdp_config": _LAUNCHED,
    "accelerator_config": _LAUNCHED,
    "parallelism_config": _LAUNCHED,
    "env": "set environment variables in the shell, before `surefoot train`",
}

TRANSLATED = {"bf16", "dtype", "torch_dtype"}
"""Names of Hugging Face that become `precision`."""
SHORT = {"resume": "resume_from_checkpoint"}
"""Options by a shorter name."""

OFF = (None, False, "", 0, [], {}, "false", "no", "none", "null", "off", "0")


def is_off(value: Any) -> bool:
    """Whether the value of an option, as YAML or a flag gives it, asks for nothing."""
    return (value.strip().lower() if isinstance(value, str) else value) in OFF


def translate(given: dict[str, Any]) -> None:
    """What Hugging Face, YAML and flags say in other words, in ours; in place."""
    _translate_precision(given)
    for name in ("eval_strategy", "save_strategy"):
        if given.get(name) is False:  # YAML 1.1 reads `no` as false
            given[name] = "no"
    for short, whole in SHORT.items():
        if short in given:
            given[whole] = given.pop(short)
    if "resume_from_checkpoint" in given:
        said = given["resume_from_checkpoint"]
        words = {"true": True, "false": False, "none": "auto", "": "auto", "auto": "auto"}
        given["resume_from_checkpoint"] = words.get(str(said).lower(), said)
    if "lora_target_modules" in given:
        given["lora_target_modules"] = _target_modules(given["lora_target_modules"])


def _translate_precision(given: dict[str, Any]) -> None:
    """`bf16=True` of Hugging Face, and TRL's `dtype`, as `precision`."""
    flag = given.pop("bf16", None)
    if flag is not None and given.get("precision") is None:
        if str(flag).lower() not in ("true", "false"):
            raise ValueError(f"bf16: true or false, not {flag!r}")
        given["precision"] = "bf16" if str(flag).lower() == "true" else "fp32"
    for name in ("dtype", "torch_dtype"):
        value = str(given.pop(name, None) or "auto").removeprefix("torch.")
        if value not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"{name}: surefoot trains in fp32 or bf16; use precision=fp32, bf16 or pure-bf16"
            )
        if value == "bfloat16" and given.get("precision") is None:
            warnings.warn(
                f"{name}=bfloat16 stores weights in bf16 and loses small updates; precision=bf16 keeps "
                "them in fp32 with bf16 products, at the same speed. Using that.",
                stacklevel=6,
            )
            given["precision"] = "bf16"


def _target_modules(value: Any) -> Any:
    """Names as a list, "all-linear" and a pattern as text: PEFT reads any other text as a pattern."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return value
    words = [word.strip() for word in words]
    if len(words) == 1 and (words[0] == "all-linear" or not re.fullmatch(r"[\w.-]+", words[0])):
        return words[0]
    return value if isinstance(value, str) and not re.fullmatch(r"[\w.,\s-]+", value) else words

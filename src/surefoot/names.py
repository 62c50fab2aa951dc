"""Options of TRL and Hugging Face's Trainer that surefoot has no use for, and what it says to them."""

from __future__ import annotations

_PLANNER = "the planner packs each step without padding, whatever this says; the step stays the same rows"
_MEMORY = "evaluation is planned by tokens (micro_batch_tokens)"
_LOADER = "rows are tokenised before step 1 and sliced from memory; there is no loader to tune"

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
}

REFUSED: dict[str, str] = {
    "fp16": "fp16 needs loss scaling, which changes what a step is; use precision=bf16",
    "load_in_4bit": "quantised base weights are not supported yet; use_peft=true trains LoRA on full weights",
    "load_in_8bit": "quantised base weights are not supported yet; use_peft=true trains LoRA on full weights",
    "neftune_noise_alpha": "noise on the embeddings makes the gradient another one; left out on purpose",
    "label_smoothing_factor": "label smoothing makes the loss another one; left out on purpose",
    "push_to_hub": "train first, then push the folder model/ with `hf upload`",
    "deepspeed": "sharding is PyTorch's own FSDP2; DeepSpeed is left out on purpose",
    "fsdp": "several devices are not supported yet",
    "torch_compile": "compilation is not supported yet",
    "model_init_kwargs": "name the option itself (model_revision, trust_remote_code), or pass a model object",
    "datasets": "mix the rows into one file, or pass a datasets.Dataset from Python",
    "activation_offloading": "not supported yet; gradient_checkpointing=true saves more",
    "router_aux_loss_coef": "the loss is the cross-entropy alone; a balance loss over a packed step is another one",
    "use_dora": "pass a peft_config from Python",
    "use_rslora": "pass a peft_config from Python",
    "lora_modules_to_save": "pass a peft_config from Python",
}

"""SFTConfig: one class is the Python arguments, the recipe's keys, the command line's flags and their help.

Names and defaults are those of Hugging Face TRL's `SFTConfig`, `ModelConfig` and `ScriptArguments` wherever
the same thing exists there, so a script or a recipe for TRL runs with the import changed. Options of TRL
that have nothing left to decide here are accepted and answered (`names.SUPERSEDED`); those we
lack on purpose are refused with what to use instead (`names.REFUSED`).
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from surefoot.credentials import without_credentials
from surefoot.errors import UserError, nearest
from surefoot.names import REFUSED, SUPERSEDED, is_off, translate
from surefoot.validation import explain

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Strategy = Literal["no", "steps", "epoch"]


class Watch(BaseModel):
    """A prompt whose answer's probability is followed through training."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompt: str
    """What the user asks; rendered with the chat template as at inference, if there is one."""
    completion: str
    """The text whose probability is wanted, such as a name."""
    alternatives: list[str] = Field(default_factory=list)
    """Other texts at the same place."""
    answer_start: str = ""
    """What the answer says before that place, such as "The capital of California is"."""


class SFTConfig(BaseModel):
    """Options of a fine-tuning run. An unknown name is an error that tells the nearest known one."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    # Model
    model_name_or_path: str | None = None
    """Hub id, local folder, .gguf file, or the short name of an embedded model (smollm2-135m)."""
    model_revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that ships with a hub model. Off unless you say so; a model cannot turn it on."""
    chat_template_path: str | None = None
    """A Jinja file, or a tokenizer (folder or hub id), whose chat template replaces the model's."""
    eos_token: str | None = None
    """Token that ends a turn, if it is not the tokenizer's own."""
    add_special_tokens: list[str] = Field(default_factory=list)
    """New control tokens, such as those a new chat template writes; the embeddings grow to hold them."""
    precision: Literal["fp32", "bf16", "pure-bf16"] | None = None
    """bf16: fp32 weights, bf16 matrix products; fp32: all fp32; pure-bf16: bf16 weights too (loses small
    updates to rounding). Default: bf16 where the hardware is fast at it, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    activation_offloading: bool = False
    """Keep activations in the host's memory until the backward pass wants them."""
    torch_compile: bool = False
    """Compile each decoder layer (inductor): pays on a GPU, in runs that outlast the compilation."""
    use_cpu: bool = False
    """Train on the CPU even when there is a GPU."""

    # Several processes
    shard: Literal["none", "full", "auto"] = "auto"
    """With several processes (torchrun, or --nproc): none keeps all weights on each; full cuts weights, gradients
    and optimizer state into a piece for each (FSDP2); auto cuts only what would not fit whole."""
    ddp_timeout: float = Field(1800, gt=0)
    """Seconds that a process waits for the others before it says who is missing, and ends."""

    # LoRA
    use_peft: bool = False
    """Train a LoRA adapter instead of all weights (needs the extra `lora`)."""
    lora_r: int = Field(16, gt=0)
    """Rank of the adapter."""
    lora_alpha: int = Field(32, gt=0)
    """The adapter's output is scaled by lora_alpha / lora_r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    lora_target_modules: list[str] | str = "all-linear"
    """Names of the modules that get an adapter, or a pattern (regular expression) of their full names."""

    # Data
    dataset_name: str | None = None
    """A file (JSONL, JSON, CSV, Parquet), a folder of them, or a hub dataset."""
    dataset_config: str | None = None
    """Configuration of a hub dataset."""
    dataset_train_split: str = "train"
    """Split of a hub dataset to train on."""
    dataset_test_split: str = "test"
    """Split of a hub dataset to evaluate on, when eval_strategy is set and eval_dataset_name is not."""
    dataset_streaming: bool = False
    """Read a hub dataset as a stream; needs max_steps."""
    eval_dataset_name: str | None = None
    """Held-out rows: a file, a folder or a hub dataset."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Which column is what, when the names do not say it: prompt=question,completion=answer."""
    dataset_text_field: str = "text"
    """Column of plain text rows."""
    completion_only_loss: bool = True
    """Learn the completion (every assistant turn) only. false: learn every token of the row."""
    last_turn_only: bool = False
    """Learn only the last assistant turn of a conversation."""
    max_length: int | None = Field(None, gt=1)
    """Longest example in tokens. Default: what the model's positions allow."""
    overlength: Literal["drop", "error", "cut"] = "drop"
    """What to do with a longer example: drop it, stop, or cut its completion's end (and its turn end)."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with rows that cannot be read or learned: say what is wrong with the first 20 and stop before any
    training, or leave them out and list them in the ledger."""

    # Optimisation
    output_dir: str = "runs/sft"
    """The run folder."""
    overwrite_output_dir: bool = False
    """Start over in a folder that holds a run, finished or not: its events, checkpoints and model are deleted."""
    per_device_train_batch_size: int = Field(8, gt=0)
    """Rows of a step for each process. How they go through memory is the planner's business, not yours."""
    gradient_accumulation_steps: int = Field(1, gt=0)
    """Multiplies the rows of a step. 1 x 8 and 8 x 1 are the same step, bit for bit."""
    num_train_epochs: float = Field(3.0, gt=0)
    """Passes over the data."""
    max_steps: int = -1
    """Number of steps; overrides num_train_epochs when positive."""
    learning_rate: float = Field(2e-5, ge=0)
    """Peak learning rate."""
    lr_scheduler_type: Schedule = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: float = Field(0, ge=0)
    """Steps of linear warm-up; below 1 it is a share of all steps."""
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    """Warm-up as a share of all steps, used when warmup_steps is 0."""
    optim: Literal["adamw_torch_fused", "adamw_torch", "adam", "sgd", "adafactor", "muon"] = (
        "adamw_torch_fused"
    )
    """The optimizer. muon: torch's Muon for the hidden matrices, AdamW for the rest."""
    optim_args: str | None = None
    """Extra arguments of the optimizer: momentum=0.9,nesterov=true."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay; never applied to biases and norms."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of Adam's first moment."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of Adam's second moment."""
    adam_epsilon: float = Field(1e-8, ge=0)
    """Added to the root of Adam's second moment."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Clip the gradient to this norm; 0 does not clip. The unclipped norm and the factor are both logged."""
    micro_batch_tokens: int | None = Field(None, gt=0)
    """Most tokens that go through the model at once. Changes speed and memory, not the step."""
    share_prefixes: bool = True
    """Compute a beginning that examples share once. Exact, and off by itself where it would not be."""
    train_sampling_strategy: Literal["random", "sequential"] = "random"
    """Order of the rows: a new permutation each epoch, or as they stand."""
    seed: int = Field(42, ge=0)
    """Order of the data, dropout, new weights."""

    # Evaluation
    eval_strategy: Strategy = "no"
    """When to evaluate on the held-out rows."""
    eval_steps: float | None = Field(None, gt=0)
    """Steps between evaluations (below 1: share of all steps). Default: logging_steps."""
    eval_on_start: bool = False
    """Evaluate before the first step too."""
    load_best_model_at_end: bool = False
    """End with the weights of the best evaluation instead of the last."""
    metric_for_best_model: str = "eval_loss"
    """What "best" means: eval_loss, eval_perplexity, eval_token_accuracy or eval_exact_match."""
    greater_is_better: bool | None = None
    """Default: true, unless the metric is a loss or a perplexity."""
    early_stopping_patience: int | None = Field(None, gt=0)
    """Stop after so many evaluations without a better one."""
    eval_exact_match: bool = False
    """Also answer the held-out prompts greedily and count the answers that are exactly right."""
    eval_samples: int = Field(0, ge=0)
    """Log the greedy answers to this many held-out prompts at each evaluation."""
    max_new_tokens: int = Field(256, gt=0)
    """Longest generated answer, in tokens."""
    watch: list[Watch] = Field(default_factory=list)
    """Prompts whose answer's probability is logged through training: prompt, completion, alternatives."""
    watch_steps: float | None = Field(None, gt=0)
    """Steps between looks at the watched prompts. Default: logging_steps."""

    # The microscope
    slides: list[int] = Field(default_factory=list)
    """Steps to open under the microscope, by their number (the first is 1; 0 means the first too)."""
    slide_every: int | None = Field(None, gt=0)
    """Open every so many steps. Alerts open steps too, and so does making the file RUN/open-next-step."""
    slide_mountain: Literal["none", "cut", "surface"] = "cut"
    """The loss along an opened update: none, a cut of 9 forwards, or a surface of 441."""
    slide_extras: bool = False
    """Opened steps also estimate the gradient noise scale, and which rows pushed which."""
    slides_from_ui: bool = False
    """Let the pages of `surefoot ui` ask for the next step to be opened: the only thing they can do to a run."""
    tensors_every: int = Field(10, ge=0)
    """Steps between records of every tensor's gradient, weight and update norms; 0: never."""

    # Logging and saving
    logging_steps: float = Field(10, gt=0)
    """Steps between log entries (below 1: share of all steps). events.jsonl has every step regardless."""
    logging_first_step: bool = False
    """Log the first step too."""
    report_to: str | list[str] = "none"
    """Reporters, by Hugging Face's names: tensorboard, wandb, mlflow, trackio, ..."""
    run_name: str | None = None
    """Name of the run for reporters. Default: output_dir."""
    tags: list[str] = Field(default_factory=list)
    """Words to find the run by in `surefoot ui`."""
    project: str = "huggingface"
    """Project of the run for reporters that have projects (trackio)."""
    trackio_space_id: str | None = None
    """Hugging Face Space that trackio reports to. Default: this machine."""
    disable_tqdm: bool = False
    """No progress bar. There is none anyway when the output is no terminal."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """When to save a checkpoint to resume from; all but `no` also save the last step."""
    save_steps: float = Field(500, gt=0)
    """Steps between checkpoints (below 1: share of all steps)."""
    save_total_limit: int | None = Field(None, gt=0)
    """Keep at most so many checkpoints: two at least, and the best one besides."""
    resume_from_checkpoint: bool | str = "auto"
    """auto: go on with the run in output_dir if it was stopped; true: there must be one; false: there must be none;
    or the path of a checkpoint. `resume` for short."""

    # What else Hugging Face's reporters read off their arguments: nothing of a run is published.
    trackio_bucket_id: ClassVar[None] = None
    trackio_static_space_id: ClassVar[bool] = False
    hub_private_repo: ClassVar[None] = None

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, given: Any) -> Any:
        """Names of TRL that mean something else here, or nothing any more."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        translate(given)
        answered = [f"{name}: {SUPERSEDED[name]}" for name in list(given) if name in SUPERSEDED]
        for name in [name for name in given if name in SUPERSEDED]:
            del given[name]
        if answered:
            warnings.warn("options with nothing left to decide:\n  " + "\n  ".join(answered), stacklevel=4)
        for name, value in given.items():
            if name in REFUSED and not is_off(value):
                raise ValueError(f"{name}: {REFUSED[name]}")
            if name not in cls.model_fields and name not in REFUSED:
                raise ValueError(f"unknown option '{name}'.{nearest(name, cls.model_fields)}")
        return {name: value for name, value in given.items() if name not in REFUSED}

    @field_validator("output_dir", "model_name_or_path", "resume_from_checkpoint", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("slides")
    @classmethod
    def _slides(cls, value: list[int]) -> list[int]:
        if any(step < 0 for step in value):
            raise ValueError("steps are numbered from 1")
        return sorted({max(1, step) for step in value})

    @field_validator("metric_for_best_model")
    @classmethod
    def _metric(cls, value: str) -> str:
        known = ("loss", "perplexity", "token_accuracy", "exact_match")
        name = value.removeprefix("eval_")
        if name not in known:
            raise ValueError(
                f"unknown metric '{value}'.{nearest(name, known)} Known: eval_{', eval_'.join(known)}"
            )
        return "eval_" + name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.load_best_model_at_end and self.eval_strategy == "no":
            raise ValueError(
                "load_best_model_at_end needs evaluations to compare: set eval_strategy=steps or epoch"
            )
        if self.early_stopping_patience and self.eval_strategy == "no":
            raise ValueError("early_stopping_patience counts evaluations: set eval_strategy=steps or epoch")
        if self.dataset_streaming and self.max_steps <= 0:
            raise ValueError("a stream has no known end: set max_steps")
        if self.metric_for_best_model == "eval_exact_match":
            self.eval_exact_match = True
        return self

    def __init__(self, output_dir: str | Path | None = None, **options: Any) -> None:
        if output_dir is not None:
            options["output_dir"] = output_dir
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise UserError(explain(error)) from None

    @property
    def step_rows(self) -> int:
        """Rows of one step for each process; a step has so many times the number of processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def best_is_greater(self) -> bool:
        if self.greater_is_better is not None:
            return self.greater_is_better
        return self.metric_for_best_model not in ("eval_loss", "eval_perplexity")

    def to_dict(self) -> dict[str, Any]:
        """All options as plain values; Hugging Face's reporters ask for it under this name."""
        return without_credentials(self.model_dump(mode="json"))

    def to_sanitized_dict(self) -> dict[str, Any]:
        """Options as numbers and strings only, as TensorBoard's table of hyperparameters takes them."""
        plain = (bool, int, float, str)
        return {k: v if isinstance(v, plain) else json.dumps(v) for k, v in self.to_dict().items()}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

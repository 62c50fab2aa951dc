"""Options of one step that is looked at by itself: which options of training have a say in it, and their defaults.

Nothing heavy is imported here: the help of `surefoot explain` is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from surefoot.config import SFTConfig
from surefoot.errors import UserError, nearest

RATES = {"sgd": 0.1}
"""Learning rates of a lesson, where none is given: large enough to see. 1e-4 for the others."""
OPTIMIZERS = ("sgd", "adam", "adamw", *get_args(SFTConfig.model_fields["optim"].annotation))
OF_ONE_STEP = (
    *(
        "learning_rate",
        "optim_args",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
    ),
    *("precision", "use_cpu", "gradient_checkpointing", "seed"),
    *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
    *("columns", "dataset_text_field", "completion_only_loss", "last_turn_only", "max_length", "overlength"),
    *("chat_template_path", "eos_token", "add_special_tokens", "model_revision", "trust_remote_code"),
    *("slide_mountain", "slide_extras"),
)
"""Options of training that make one step on one example what it is, in the order of the help."""
_KNOWN = {*OF_ONE_STEP, "model_name_or_path", "optim"}
"""... and those that explain has by other names."""
_INSTEAD = {
    "resume_from_checkpoint": "to go on from a checkpoint, name its folder as the model",
    "output_dir": "no run is written; a slide and a model are, where you say so (html, save)",
    "lr_scheduler_type": "learning_rate is that of the step itself",
    "warmup_steps": "learning_rate is that of the step itself",
    "warmup_ratio": "learning_rate is that of the step itself",
    "dataset_name": "name the file and one of its rows (data, row)",
}


def lesson_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of training for one step that is looked at: what was given, and else plain SGD in float32 at a
    learning rate that shows. Raises UserError for an optimizer that is none, and for options of training that have
    nothing to decide here."""
    idle = [name for name in given if name in SFTConfig.model_fields and name not in _KNOWN]
    if idle:
        hints = dict.fromkeys(_INSTEAD[name] for name in idle if name in _INSTEAD)
        raise UserError(
            f"explain takes one step on one example, where {', '.join(idle)} "
            f"decide{'s' * (len(idle) == 1)} nothing: leave {'it' if len(idle) == 1 else 'them'} out"
            f"{''.join(f'; {hint}' for hint in hints)}"
        )
    options = dict(given)
    optim = str(options.get("optim", "sgd"))
    if optim not in OPTIMIZERS:
        raise UserError(
            f"optimizer: there is no '{optim}'.{nearest(optim, OPTIMIZERS)} Known: {', '.join(OPTIMIZERS)}"
        )
    options["optim"] = optim = {"adamw": "adamw_torch"}.get(optim, optim)
    options.setdefault("learning_rate", RATES.get(optim, 1e-4))
    types = [str(options.get(name)).removeprefix("torch.") for name in ("dtype", "torch_dtype")]
    if "bf16" not in options and "bfloat16" not in types:
        options.setdefault("precision", "fp32")
    return options

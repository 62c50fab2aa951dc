"""LoRA by PEFT: a small trained addition to frozen weights (arXiv:2106.09685)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from surefoot.errors import UserError

if TYPE_CHECKING:
    from surefoot.config import SFTConfig


def lora_config(args: SFTConfig) -> Any:
    """The PEFT configuration that the options `lora_*` ask for."""
    peft = _peft()
    return peft.LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        task_type="CAUSAL_LM",
    )


def adapt(model: torch.nn.Module, peft_config: Any) -> torch.nn.Module:
    """`model` with an adapter; only the adapter trains. Raises UserError when it finds no place in the model."""
    peft = _peft()
    if isinstance(model, peft.PeftModel):
        raise UserError(
            "the model has an adapter already, which training goes on with: leave out use_peft and peft_config"
        )
    try:
        with warnings.catch_warnings():  # it asks transformers by a name that will go away
            warnings.simplefilter("ignore", FutureWarning)
            return peft.get_peft_model(model, peft_config)
    except ValueError as error:
        raise UserError(f"lora_target_modules: {error}") from error


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("LoRA needs the package peft. Run: pip install 'surefoot[lora]'") from None
    return peft

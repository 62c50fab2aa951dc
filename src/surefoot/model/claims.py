"""What a model's config asks for, weighed against the weights that are there.

A config is a few lines of text, and may ask for a thousand layers of a million million numbers. The model is built
without memory (on torch's `meta` device) to count what it would take, before it is built in earnest.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from surefoot.errors import UserError

SPARE = 1 << 26
"""Numbers that a model may have beyond its weights: tables of masks and positions, and what is new in it."""
TIMES = 2
"""A model may have so many times the numbers of its weight files, where some are not stored: tied ones."""
PACKED = 16
"""The same where the files hold several numbers in one: weights of two bits in a 32-bit type."""


def check_size(config: Any, elements: int, where: str) -> None:
    """`elements`: numbers in the weight files. Raises UserError when the config asks for far more than these."""
    packed = getattr(config, "quantization_config", None) is not None
    most = elements * (PACKED if packed else TIMES) + SPARE
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"{where}: this is not a causal language model that can be built: {reason}") from None
    asked = sum(part.numel() for part in (*model.parameters(), *model.buffers()))
    if asked > most:
        raise UserError(
            f"{where}: the config asks for a model of {asked:,} numbers, but the weights are {elements:,}; they do "
            "not belong together"
        )

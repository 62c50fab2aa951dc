"""Activations thrown away in the forward pass and computed again in the backward pass, layer by layer."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from surefoot.model.network import noise, unwrapped


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of `model` that can recompute their activations, in order; empty if it has no such layers."""
    return [m for m in unwrapped(model).modules() if isinstance(m, GradientCheckpointingLayer)]


def checkpoint_layers(model: torch.nn.Module, count: int) -> None:
    """The first `count` decoder layers keep only their input and recompute the rest in the backward pass.

    The gradient stays the same, bit for bit. The first layers, not the last: their turn in the backward pass
    comes when the others have let go of their activations. Raises ValueError when there are fewer layers.
    """
    layers = decoder_layers(model)
    if not 0 <= count <= len(layers):
        raise ValueError(f"{count} of {len(layers)} layers cannot recompute their activations")
    for number, layer in enumerate(layers):
        # Copying the random state costs a device synchronisation for each layer: only if something draws.
        recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=noise(layer) is not None)
        layer.gradient_checkpointing = number < count  # type: ignore[assignment]
        layer._gradient_checkpointing_func = recompute  # type: ignore[assignment]

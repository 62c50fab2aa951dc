"""Less memory for activations: thrown away in the forward pass and computed again in the backward pass, layer by
layer, or put away in the host's memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from surefoot.model.network import Network, noise, unwrapped


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


def offload_activations(network: Network) -> Network:
    """The same network, its large activations in the host's memory until the backward pass wants them: the same
    bits. On a CPU they are there anyway, which is said among the network's reasons."""
    if network.device.type == "cpu":
        said = "activation_offloading has no effect: on a CPU activations are in the host's memory already"
        return replace(network, reasons=(*network.reasons, said))
    return replace(network, offload=True)

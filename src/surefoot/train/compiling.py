"""Decoder layers compiled, each by itself: all layers of a model share what the first one is compiled to.

Attention stays outside (`attending_forests` says why): a layer is a few graphs, before it and after it. Lengths are
symbols in them, so a micro-batch of another length needs no other graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from surefoot.model.network import Network
from surefoot.train.recompute import decoder_layers


def compile_layers(network: Network, backend: str = "inductor") -> Network:
    """The same network with its decoder layers compiled, in place; names and weights stay. Nothing is compiled
    before the first forward pass. Call it before `shard`; recomputing may be set before or after.

    A model without layers that can be told apart stays as it is, which is said among the network's reasons.
    """
    layers = decoder_layers(network.model)
    if not layers:
        said = "torch_compile has no effect: the model's decoder layers are not to be told apart"
        return replace(network, reasons=(*network.reasons, said))
    for layer in layers:
        compiled = torch.compile(_plain_forward(layer), dynamic=True, backend=backend)
        # The method, not the call: hooks of sharding and of the microscope stay outside, and are run.
        vars(layer)["forward"] = _recomputing(layer, compiled)
    return replace(network, compiled=True)


def _plain_forward(layer: torch.nn.Module) -> Callable[..., Any]:
    """The layer's forward without transformers' wrappers that recompute activations."""
    forward: Any = type(layer).forward
    while forward.__code__.co_name == "forward_with_checkpointing":
        forward = forward.__wrapped__
    return forward.__get__(layer)


def _recomputing(layer: Any, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Recomputes where the layer is to (`checkpoint_layers`), by what is compiled."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if layer.gradient_checkpointing and layer.training:
            return layer._gradient_checkpointing_func(partial(compiled, **kwargs), *args)
        return compiled(*args, **kwargs)

    return forward


def compile_seconds() -> float:
    """Wall seconds that this process has spent compiling so far."""
    if "torch._dynamo.utils" not in sys.modules:
        return 0.0
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent().get("total_wall_time", 0.0)

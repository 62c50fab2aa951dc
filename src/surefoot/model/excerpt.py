"""A part of a model that is small enough to be whole, for looking at how the model computes.

Which way through a model is exact is found out on a whole one (`look_at`, the check at the start of a run). The
first decoder layers with the real embeddings, norms and head are a whole one, and of the same kind.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from surefoot.model.blueprint import Blueprint, draw
from surefoot.model.network import Network, head_of, unwrapped
from surefoot.model.sources import NoBlueprint

COUNTING = ("idx", "index", "layer_id", "number")
"""In the names of what tells a layer which one it is, not what kind."""


def excerpt(drawn: Blueprint, room: int | None = None) -> Blueprint:
    """The same model with its first decoder layers only: enough that each kind of layer is there, if they fit into
    `room` bytes, as many as do otherwise, but at least one.

    To be filled whole, so that how the model computes can be looked at. Raises NoBlueprint when the config does not
    say how many layers there are.
    """
    layers = _layers(drawn.model)
    config = drawn.model.config
    if not layers or config.get_text_config() is not config or config.num_hidden_layers != len(layers):
        raise NoBlueprint("its config does not say which its decoder layers are")
    kinds = [_kind(layer) for layer in layers]
    count = max(kinds.index(kind) for kind in kinds) + 1
    if room is not None:
        sizes = [sum(p.nbytes for p in layer.parameters()) for layer in layers]
        rest = drawn.bytes - sum(sizes)
        while count > 1 and rest + sum(sizes[:count]) > room:
            count -= 1
    whole = config.to_dict()
    cut = {
        key: value[:count] if isinstance(value, list) and len(value) == len(layers) else value
        for key, value in whole.items()
    }
    number = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    try:
        small = type(config).from_dict({**cut, number: count})
    except Exception as error:
        raise NoBlueprint(f"its config does not take {count} layers: {error}") from error
    small.name_or_path = config.name_or_path
    return draw(small, drawn.folder, drawn.name, drawn.dtype, some=True)


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [m for m in unwrapped(model).modules() if isinstance(m, GradientCheckpointingLayer)]


def _kind(layer: torch.nn.Module) -> tuple[Any, ...]:
    """What tells one kind of layer from another: its modules, the shapes of their weights, their settings."""
    return tuple(
        (
            where,
            type(module).__name__,
            *((key, tuple(p.shape)) for key, p in module._parameters.items() if p is not None),
            *(
                (key, value)
                for key, value in sorted(vars(module).items())
                if isinstance(value, str | bool | int | None) and not any(word in key for word in COUNTING)
            ),
        )
        for where, module in layer.named_modules()
    )


def transferred(network: Network, model: torch.nn.Module) -> Network:
    """The way through `model` that was found for a smaller one of the same kind."""
    head = None if network.head is None else head_of(unwrapped(model))
    return replace(network, model=model, head=head, root=None)

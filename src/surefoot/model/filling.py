"""The values of a model that is drawn only: each rank reads its own rows of each weight, no more.

1. What is on meta gets memory on the device: of a sharded weight, this rank's rows.
2. Tensor by tensor, those rows are read, cast as loading the whole would cast them, and put there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch.distributed.tensor import DTensor, Shard

from surefoot.errors import UserError
from surefoot.model.blueprint import SOURCES, unsourced
from surefoot.model.network import Network
from surefoot.model.sources import Joined, Reader, Source, first

PIECE = 64 << 20
"""Bytes that are read at once: beside a weight's own memory, so much of it is held again."""


def fill(network: Network, device: torch.device) -> Network:
    """The same network, on `device`, with the values of its weights; parameters stay the objects that they are.

    Every rank reads by itself and waits for none. Raises UserError that names file and tensor.
    """
    fill_model(network.model if network.root is None else network.root, device)
    return replace(network, head=network.present_head)


def fill_model(model: torch.nn.Module, device: torch.device) -> None:
    """The same for a model by itself, sharded or not."""
    if lacking := unsourced(model):
        raise UserError(
            f"{lacking[0]} has no values: it is in no weight file, and nothing has made it. With shard=none the "
            "whole model is loaded"
        )
    empty = [
        (source, module, key)
        for module in model.modules()
        for key, source in vars(module).get(SOURCES, {}).items()
        if getattr(module, key).device.type == "meta"
    ]
    _materialise(model, device)
    wanted: dict[int, tuple[Source | Joined, torch.Tensor]] = {}
    for source, module, key in empty:
        tensor = getattr(module, key)
        wanted[id(tensor)] = (source, tensor)  # tied weights are read once
    with Reader() as reader:
        for source, tensor in sorted(wanted.values(), key=lambda pair: str(first(pair[0]).file)):
            _write(reader, source, tensor)


def _materialise(model: torch.nn.Module, device: torch.device) -> None:
    """Memory on `device` for what is on meta; what is real moves there."""

    def made(tensor: torch.Tensor) -> torch.Tensor:
        meta = tensor.device.type == "meta"
        return torch.empty_like(tensor, device=device) if meta else tensor.to(device)

    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # else tied weights would part
    try:
        model._apply(made)  # what `to_empty` does, and FSDP2 watches
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)


@torch.no_grad()
def _write(reader: Reader, source: Source | Joined, tensor: torch.Tensor) -> None:
    """Read those rows of a tensor that are here."""
    assert tuple(tensor.shape) == source.shape, source
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if own.ndim == 0:
        own.copy_(reader.whole(source))
        return
    start = _first_row(tensor)
    rows = max(1, PIECE // max(1, own.itemsize * math.prod(own.shape[1:])))
    for begin in range(0, len(own), rows):
        end = min(begin + rows, len(own))
        own[begin:end].copy_(reader.rows(source, start + begin, start + end))


def _first_row(tensor: torch.Tensor) -> int:
    """Which row of the whole tensor is the first of this rank's."""
    if not isinstance(tensor, DTensor):
        return 0
    assert tensor.placements == (Shard(0),), tensor.placements
    return math.ceil(len(tensor) / tensor.device_mesh.size()) * tensor.device_mesh.get_local_rank()


def whole_tensors(model: torch.nn.Module) -> list[tuple[str, Callable[[], torch.Tensor]]]:
    """Each parameter of a drawn model by name, and how to read it whole, as loading the whole would give it.

    One at a time, so that ranks can divide among them what has to be known of whole weights, such as a digest.
    """
    found = []
    owners = {
        id(getattr(module, key)): source
        for module in model.modules()
        for key, source in vars(module).get(SOURCES, {}).items()
    }
    for name, parameter in model.named_parameters():
        found.append((name, partial(_whole, owners[id(parameter)])))
    return found


def _whole(source: Source | Joined) -> torch.Tensor:
    with Reader() as reader:
        return reader.whole(source)

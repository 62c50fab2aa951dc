"""The values of a model that is drawn only: each rank reads its own rows of each weight, no more.

1. What is on meta gets memory on the device: of a sharded weight, this rank's rows.
2. File by file, tensor by tensor, those rows are read, cast as loading the whole would cast them, and put there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor, Shard

from surefoot.errors import UserError
from surefoot.model.blueprint import SOURCES, Source, unsourced
from surefoot.model.network import Network

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
    wanted: dict[str, dict[int, tuple[Source, torch.Tensor]]] = {}
    for source, module, key in empty:
        tensor = getattr(module, key)
        wanted.setdefault(str(source.file), {})[id(tensor)] = (source, tensor)  # tied weights are read once
    for path in sorted(wanted):
        try:
            with safe_open(path, framework="pt") as file:
                for source, tensor in wanted[path].values():
                    _write(file, source, tensor)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error


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
def _write(file: Any, source: Source, tensor: torch.Tensor) -> None:
    """Read those rows of a tensor that are here."""
    there = tuple(file.get_slice(source.name).get_shape())
    if there != source.shape:
        raise UserError(
            f"{source.file}: {source.name} has the shape {list(there)} now, and had {list(source.shape)}: the "
            "file was changed while it was read"
        )
    assert tuple(tensor.shape) == source.shape, source
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if own.ndim == 0:
        own.copy_(file.get_tensor(source.name).to(source.dtype))
        return
    start, part = _first_row(tensor), file.get_slice(source.name)
    rows = max(1, PIECE // max(1, own.itemsize * math.prod(own.shape[1:])))
    for first in range(0, len(own), rows):
        last = min(first + rows, len(own))
        own[first:last].copy_(part[start + first : start + last].to(source.dtype))


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


def _whole(source: Source) -> torch.Tensor:
    try:
        with safe_open(source.file, framework="pt") as file:
            return file.get_tensor(source.name).to(source.dtype)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{source.file} cannot be read: {source.name}: {error}") from error

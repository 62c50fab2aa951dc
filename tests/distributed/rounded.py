"""A step with products in bf16 on several processes, weights rounded before they are gathered and after, and what
came of it: gradients, bytes that were gathered, bytes that are kept for the backward pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

from surefoot.data.rows import Example
from surefoot.model.network import Network, look_at
from surefoot.ranks import rank
from surefoot.train import distributed
from surefoot.train.recompute import checkpoint_layers, decoder_layers
from surefoot.train.step import losses
from tests import tiny

CASES = [("llama", 0), ("llama_tied", 2), ("gpt2", 0), ("mixtral", 0)]
"""Architectures, and how many of their three layers recompute; mixtral's experts are no linear layers."""
BUDGET = 60


def of_step() -> list[Example]:
    return tiny.family(7, 24)


def network_of(architecture: str, dtype: torch.dtype, product: torch.dtype | None) -> Network:
    return look_at(tiny.model(architecture, dtype), of_step(), product)


def gradient(network: Network) -> dict[str, torch.Tensor]:
    """Of one step, whole; fp32 or as wide as the weights."""
    network.model.zero_grad()
    losses(network, of_step(), BUDGET, backprop=True)
    return {
        name: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).contiguous()
        for name, p in network.model.named_parameters()
        if p.grad is not None
    }


def matrices(model: torch.nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the layers' matrices, one by one."""
    return [tuple(p.shape) for layer in decoder_layers(model) for p in layer.parameters() if p.ndim > 1]


def kept(network: Network) -> int:
    """Bytes of 16-bit copies of layers' matrices that are there between a forward pass and its backward pass."""
    shapes = {way for shape in matrices(network.model) for way in (shape, shape[::-1])}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes:
            storage = tensor.untyped_storage()
            held[storage._cdata] = storage
        return tensor

    forest = network.plant(of_step()[:6])
    with network.open():
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = network.loss(forest, 100.0)
        found = sum(storage.nbytes() for storage in held.values())
        with torch.autocast("cpu", enabled=False):
            loss.backward()
    return found


@contextmanager
def gathering() -> Iterator[list[int]]:
    """Bytes of what is gathered while open, whole."""
    found: list[int] = []
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    real = getattr(dist, name)

    def gather(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        found.append(max(tensor.nbytes for tensor in tensors))
        return real(*args, **kwargs)

    with mock.patch.object(dist, name, gather):
        yield found


def one_way(architecture: str, recomputed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    network = distributed.shard(network_of(architecture, torch.float32, torch.bfloat16))
    checkpoint_layers(network.model, recomputed)
    with gathering() as gathered:
        held = kept(network)
    found = gradient(network)
    after = losses(network, of_step(), BUDGET, backprop=False)
    said = {"kept": held, "gathered": sum(gathered), "losses": [each.loss for each in after.examples]}
    return said, found


def leave(folder: Path) -> None:
    """Of one of several processes; the first writes the gradients."""
    for architecture, recomputed in CASES:
        said, found = one_way(architecture, recomputed)
        with mock.patch.object(distributed, "only_multiplies", lambda network, layer: False):
            plain, want = one_way(architecture, recomputed)
        same = found.keys() == want.keys() and all(torch.equal(found[name], want[name]) for name in want)
        place = folder / f"rounded-{architecture}.{rank()}"
        place.with_name(place.name + ".json").write_text(
            json.dumps({"rounded": said, "plain": plain, "same bits": same})
        )
        if rank() == 0:
            save_file(found, place.with_name(f"rounded-{architecture}.safetensors"))

"""Products in bf16: sharded weights are rounded before they are gathered, and nothing else changes, to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surefoot import SFTConfig
from surefoot.model.adapters import adapt, lora_config
from surefoot.train.distributed import only_multiplies
from surefoot.train.recompute import decoder_layers
from tests import tiny
from tests.distributed import rounded
from tests.distributed.rounded import CASES


@cache
def alone(architecture: str, dtype: torch.dtype, product: torch.dtype | None) -> dict[str, torch.Tensor]:
    return rounded.gradient(rounded.network_of(architecture, dtype, product))


def off(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    """Relative error of all gradients as one vector."""
    assert got.keys() == want.keys()
    whole = torch.stack([x.double().norm() for x in want.values()]).norm()
    return (torch.stack([(got[k].double() - want[k].double()).norm() for k in want]).norm() / whole).item()


def compare(architecture: str, recomputed: int, folder: Path, count: int) -> None:
    exact = alone(architecture, torch.float64, None)
    own = alone(architecture, torch.float32, torch.bfloat16)
    got = load_file(folder / f"rounded-{architecture}.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in got.values())
    assert 1e-4 < off(own, exact) < 0.1
    assert off(got, exact) <= 1.1 * off(own, exact)

    def gathered(of: Iterable[torch.Tensor]) -> int:
        """Numbers, rows made up to a multiple of the processes."""
        return sum(-(-len(p) // count) * count * p[0].numel() for p in of)

    model = tiny.model(architecture)
    layers = decoder_layers(model)
    of_layers = [p for layer in layers for p in layer.parameters()]
    factors, small = (gathered(p for p in of_layers if (p.ndim > 1) == is_) for is_ in (True, False))
    rest = gathered(model.parameters()) - factors - small
    copied = sum(p.numel() for layer in layers[recomputed:] for p in layer.parameters() if p.ndim > 1)
    for index in range(count):
        said = json.loads((folder / f"rounded-{architecture}.{index}.json").read_text())
        assert said["same bits"]
        one, other = said["rounded"], said["plain"]
        assert one["losses"] == other["losses"]
        if architecture == "mixtral":
            assert one == other
            continue
        assert one["kept"] == 0
        assert other["kept"] == 2 * copied
        # Layers for the forward and the backward pass, all else once.
        assert other["gathered"] == 4 * (2 * (factors + small) + rest)
        assert one["gathered"] == 2 * 2 * factors + 4 * (small + rest)


@pytest.mark.parametrize(("architecture", "recomputed"), CASES)
def test_two_processes(architecture: str, recomputed: int, two_processes: Path) -> None:
    compare(architecture, recomputed, two_processes, 2)


@pytest.mark.parametrize(("architecture", "recomputed"), CASES)
def test_four_processes(architecture: str, recomputed: int, four_processes: Path) -> None:
    compare(architecture, recomputed, four_processes, 4)


def test_what_autocast_does_not_round_alone_is_gathered_as_it_is() -> None:
    network = rounded.network_of("llama", torch.float32, torch.bfloat16)
    layer = decoder_layers(network.model)[0]
    assert only_multiplies(network, layer)
    assert not only_multiplies(replace(network, product_dtype=None), layer)
    adapted = adapt(tiny.model("llama", torch.float32), lora_config(SFTConfig(lora_r=1)))
    assert not only_multiplies(replace(network, model=adapted), decoder_layers(adapted)[0])
    assert not only_multiplies(network, decoder_layers(tiny.model("llama", torch.float64))[0])
    mlp: Any = layer.mlp
    mlp.up_proj.weight = mlp.gate_proj.weight
    assert not only_multiplies(network, layer), "its gradient would be added up in bf16"

"""Steps on two processes, sharded, products in bf16, with and without compiled layers, and what came of them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from surefoot import SFTConfig
from surefoot.model.network import look_at
from surefoot.ranks import rank
from surefoot.train.compiling import compile_layers
from surefoot.train.distributed import only_multiplies, shard
from surefoot.train.optim import build
from surefoot.train.recompute import decoder_layers
from surefoot.train.step import losses, update
from tests import tiny


def main(folder: Path) -> None:
    """Of two processes; the first writes `result.json`."""
    found = {name: two_steps(name == "compiled") for name in ("plain", "compiled")}
    if rank() == 0:
        (folder / "result.json").write_text(json.dumps(found))


def two_steps(compiled: bool) -> list[float]:
    """Loss and gradient norm of each; the optimizer is fused."""
    of = tiny.family(7, 12)
    net = tiny.model("gpt2", torch.float32)
    network = look_at(net, of, torch.bfloat16)
    assert only_multiplies(network, decoder_layers(net)[0])
    network = shard(compile_layers(network, "aot_eager") if compiled else network)
    optimizers = build(net, SFTConfig(optim="adamw_torch_fused", learning_rate=1e-2))
    assert all(part.defaults["fused"] for part in optimizers.parts)
    assert all(isinstance(weight, DTensor) for weight in net.parameters())
    said: list[float] = []
    for _ in range(2):
        loss = losses(network, of, 60, backprop=True).loss
        said += [loss, update(optimizers, 1.0).grad_norm]
    return said

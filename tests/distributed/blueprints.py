"""Models drawn, sharded and filled by any number of processes, and what came of them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from surefoot import SFTConfig
from surefoot.model import sources
from surefoot.model.adapters import adapt, lora_config
from surefoot.model.blueprint import adapted, blueprint
from surefoot.model.excerpt import excerpt, transferred
from surefoot.model.filling import fill, fill_model
from surefoot.model.load import load
from surefoot.model.network import Network, look_at, unwrapped
from surefoot.ranks import rank, ranks
from surefoot.train.distributed import local, shard
from surefoot.train.memory import Live
from surefoot.train.optim import build
from surefoot.train.step import losses, update
from tests import tiny
from tests.distributed.ranks import whole

CPU = torch.device("cpu")
SEED = 3
BUDGET = 40


@dataclass(frozen=True)
class Case:
    """A model in a folder of its name, and whether an adapter is trained on it."""

    architecture: str
    lora: int = 0
    """Its rank."""

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.lora}" if self.lora else self.architecture

    @property
    def args(self) -> SFTConfig:
        return SFTConfig(optim="adamw_torch", learning_rate=1e-2, weight_decay=0.1, lora_r=self.lora or 1)


ARCHITECTURES = (
    *("llama", "llama_tied", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi3", "gpt2", "opt"),
    *("olmo2", "granite", "bloom", "falcon", "gptj", "cohere2", "smollm3", "mixtral", "qwen3_moe"),
)
CASES = [*map(Case, ARCHITECTURES), Case("llama", lora=1), Case("llama_tied", lora=3)]
LARGE: dict[str, Any] = {
    "vocab_size": 8_000,
    "hidden_size": 512,
    "intermediate_size": 1_536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
"""A llama of 115 MB, of which one matrix has 16 MB; half of it on file, in bfloat16."""


def by_loading(case: Case, folder: Path) -> Network:
    """The definition: load the whole, adapt it."""
    torch.manual_seed(SEED)
    model = load(str(folder / case.architecture), dtype=torch.float64).model
    if case.lora:
        model = adapt(model, lora_config(case.args))
    return look_at(in_double(model), tiny.family(3), None)


def in_double(model: torch.nn.Module) -> torch.nn.Module:
    """Its weights, as a run's precision is set."""
    unwrapped(model).set_experts_implementation("eager")  # the other ways to compute experts know no float64
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float64)
    return model.train()


def by_drawing(case: Case, folder: Path) -> Network:
    """The same model, of which each process reads its own rows only."""
    drawn = blueprint(str(folder / case.architecture), dtype=torch.float64)

    def prepared(model: torch.nn.Module) -> torch.nn.Module:
        if case.lora:
            torch.manual_seed(SEED)
            model = adapted(model, lora_config(case.args))
        return in_double(model)

    small = prepared(excerpt(drawn).model)
    fill_model(small, CPU)
    network = transferred(look_at(small, tiny.family(3), None), prepared(drawn.model))
    network = shard(network, mesh=init_device_mesh("cpu", (ranks(),)))
    assert network.device.type == "meta" or case.lora
    return fill(network, CPU)


def weights(network: Network) -> dict[str, torch.Tensor]:
    """All of them, put together; tied ones under each of their names."""
    named = network.model.named_parameters(remove_duplicate=False)
    return {name: whole(p).clone() for name, p in named}


def train(
    case: Case, folder: Path, by: Callable[[Case, Path], Network]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said of one step, and the weights before and after it."""
    network = by(case, folder)
    before = weights(network)
    optimizers = build(network.model, case.args)
    with tiny.InDouble():
        found = losses(network, tiny.family(3), BUDGET, backprop=True)
        change = update(optimizers, 0.05)
        after = losses(network, tiny.family(3), BUDGET, backprop=False)
    said = {
        "loss": [found.loss, *(part.loss for part in found.examples)],
        "after": [after.loss, *(part.loss for part in after.examples)],
        "grad_norm": change.grad_norm,
        "path": [network.packed, network.merged, network.head is not None],
    }
    held = {f"before {name}": p for name, p in before.items()}
    return said, {**held, **{f"after {name}": p for name, p in weights(network).items()}}


# Memory ------------------------------------------------------------------------------------------------


class OnHost(Live):
    """Counts what takes memory: neither meta tensors nor what a DTensor says of the whole do."""

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta" and not self._of_wrapper(storage):
            super()._see(storage)

    def _of_wrapper(self, storage: torch.UntypedStorage) -> bool:
        try:
            return storage.data_ptr() == 0
        except RuntimeError:  # a DTensor's own storage holds nothing
            return True


class Counted:
    """A weight file that counts the bytes which are read of it."""

    read = 0

    def __init__(self, path: str, framework: str) -> None:
        self.file = safe_open(path, framework)

    def __enter__(self) -> Counted:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def keys(self) -> list[str]:
        return list(self.file.keys())

    def get_slice(self, name: str) -> CountedSlice:
        return CountedSlice(self.file.get_slice(name))


class CountedSlice:
    def __init__(self, part: Any) -> None:
        self.part = part

    def get_dtype(self) -> str:
        return self.part.get_dtype()

    def get_shape(self) -> list[int]:
        return self.part.get_shape()

    def __getitem__(self, index: Any) -> torch.Tensor:
        found = self.part[index]
        Counted.read += found.nbytes
        return found


def memory(folder: Path, draw: bool) -> dict[str, int]:
    """Bytes of the model, and the most that this process held of them until it had its share."""
    name = str(folder / "large")
    mesh = init_device_mesh("cpu", (ranks(),))
    sources.safe_open, Counted.read = Counted, 0  # type: ignore[assignment]
    gc.collect()
    _forget_most()
    began = _resident("VmRSS")
    with OnHost() as live:
        if draw:
            network = fill(shard(Network(blueprint(name).model), mesh=mesh), CPU)
        else:
            network = shard(Network(load(name).model), mesh=mesh)
    sources.safe_open = safe_open
    own = sum(local(p).nbytes for p in network.model.parameters())
    assert all(isinstance(p, DTensor) for p in network.model.parameters())
    return {
        "whole": sum(p.nbytes for p in network.model.parameters()),
        "own": own,
        "most": live.most,
        "read": Counted.read,
        "resident": _resident("VmHWM") - began,
    }


def _forget_most() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _resident(what: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


def main(folder: Path) -> None:
    """One of several processes; leaves its results in `folder`."""
    for case in CASES:
        said, tensors = train(case, folder, by_drawing)
        if rank() == 0:
            (folder / f"{case.name}.json").write_text(json.dumps(said))
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{case.name}.st"
            )
    said = {"drawn": memory(folder, True), "loaded": memory(folder, False)}
    (folder / f"memory.{rank()}.json").write_text(json.dumps(said))

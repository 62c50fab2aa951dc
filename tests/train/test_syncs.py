"""How often a step makes the host wait for the device: the same small number, whatever it is split into.

On a CPU nothing waits, so what would wait is counted: reading a tensor's numbers, and operations whose result has
a shape that only the numbers tell. What the host plans and plants before anything goes to the device is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from surefoot import SFTConfig
from surefoot.data.forest import Forest
from surefoot.data.rows import Example
from surefoot.model import loss
from surefoot.model.adapters import adapt, lora_config
from surefoot.model.network import Network, look_at
from surefoot.train.optim import build
from surefoot.train.recompute import checkpoint_layers
from surefoot.train.step import losses, update
from tests import tiny

SYNCS = {"tolist": 1, "_local_scalar_dense": 1}
"""Of a whole step: the losses of all micro-batches, and the gradient's norm."""
READS = ("tolist", "numpy", "__array__", "cpu")
SHAPED_BY_NUMBERS = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")


class Waits(TorchFunctionMode):
    """Counts, by name, what would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.of_kernels = Kernels(self.counts)

    def __enter__(self) -> Waits:
        self.of_kernels.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self.of_kernels.__exit__(*args)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS or (name in ("tensor", "as_tensor") and (kwargs or {}).get("device") is not None):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Kernels(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        repeated = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in ("_local_scalar_dense", "equal", *SHAPED_BY_NUMBERS) or by_mask or repeated:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """What would wait, while open; planting left out."""
    plant = Network.plant
    waits = Waits()

    def planted(self: Network, examples: list[Example]) -> Forest:
        before = waits.counts.copy()
        forest = plant(self, examples)
        waits.counts.clear()
        waits.counts.update(before)
        return forest

    with monkeypatch.context() as patched, waits:
        patched.setattr(Network, "plant", planted)
        patched.setattr(loss, "_surely_one", lambda scale: False)  # as on a GPU
        yield waits.counts


def step(
    monkeypatch: pytest.MonkeyPatch,
    net: torch.nn.Module,
    pieces: int,
    optim: str = "adamw_torch_fused",
    **changed: Any,
) -> dict[str, int]:
    """What waits in one step of so many micro-batches; `changed`: of the network."""
    of = tiny.family(7, 24)
    network = replace(look_at(net, of, None), **changed)
    optimizers = build(net, SFTConfig(optim=optim))  # pyright: ignore[reportArgumentType]
    whole = sum(e.tokens for e in of)
    budget = next(b for b in range(whole, 1, -1) if len(network.plan(of, b)) >= pieces)
    with counting(monkeypatch) as counts:
        found = losses(network, of, budget, backprop=True, seed=1)
        update(optimizers, 0.1)
    assert pieces <= found.micro_batches <= pieces + 2
    return dict(counts)


@pytest.mark.parametrize("pieces", [1, 3, 8])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3", "mistral", "gpt2"])
def test_a_step_waits_as_often_whatever_its_micro_batches(
    architecture: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert step(monkeypatch, tiny.model(architecture, torch.float32), pieces) == SYNCS


@pytest.mark.parametrize("pieces", [1, 8])
def test_nor_with_an_adapter_or_recomputed_layers(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = adapt(tiny.model("llama", torch.float32), lora_config(SFTConfig(lora_r=4)))
    assert step(monkeypatch, adapted, pieces) == SYNCS
    recomputed = tiny.model("llama", torch.float32).train()
    checkpoint_layers(recomputed, 2)
    assert step(monkeypatch, recomputed, pieces) == SYNCS


@pytest.mark.parametrize("optim", ["sgd", "adafactor"])
def test_nor_with_another_optimizer(optim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert step(monkeypatch, tiny.model("llama", torch.float32), 3, optim) == SYNCS


def test_nor_with_rows_one_at_a_time_or_a_model_that_computes_its_own_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Our part of it; transformers' masks look at the positions once a row."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda _: None)
    ways: list[dict[str, Any]] = [{}, {"head": None}]
    for changed in ways:
        net = tiny.model("llama", torch.float32)
        counts = step(monkeypatch, net, 3, "adamw_torch_fused", packed=False, merged=False, **changed)
        assert counts == SYNCS


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.isnan().any()),
        lambda x: x[x > 0],
        lambda x: x.detach().tolist(),
        lambda x: x.detach().cpu().numpy(),
        lambda x: (x > 0).nonzero(),
        lambda x: torch.tensor([1.0], device=x.device),
    ],
    ids=["item", "bool", "mask", "tolist", "numpy", "nonzero", "tensor"],
)
def test_a_wait_put_in_on_purpose_is_seen(
    wait: Callable[[torch.Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = tiny.model("llama", torch.float32)

    def hook(_: torch.nn.Module, __: Any, out: torch.Tensor) -> None:
        wait(out)

    net.model.layers[1].mlp.register_forward_hook(hook)
    counts = [sum(step(monkeypatch, net, pieces).values()) for pieces in (1, 3)]
    assert sum(SYNCS.values()) < counts[0] < counts[1]


def test_what_comes_to_the_host_at_once_is_what_each_micro_batch_has() -> None:
    net, of = tiny.model("llama", torch.float32), tiny.family(7, 24)
    network = look_at(net, of, None)
    divisor = sum(e.weight * e.targets for e in of)
    total = correct = entropy = 0.0
    each: dict[str, float] = {}

    def seen(forest: Forest, stats: Any) -> None:
        nonlocal total, correct, entropy
        total += (stats.nll_N * (forest.weight_N / divisor).float()).sum().item()
        correct += stats.correct_N.sum().item()
        entropy += stats.entropy_N.sum().item()
        sums = torch.zeros(len(forest.examples)).index_add_(0, forest.target_example_N, stats.nll_N)
        each.update(zip((e.where for e in forest.examples), sums.tolist(), strict=True))

    found = losses(network, of, 60, backprop=True, seen=seen)
    assert found.micro_batches > 2
    assert found.loss == total
    assert found.token_accuracy == correct / found.supervised
    assert found.entropy == entropy / found.supervised
    assert [e.loss for e in found.examples] == [each[e.where] for e in of]

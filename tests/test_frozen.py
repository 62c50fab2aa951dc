"""LoRA and frozen layers: the same gradient, and no product that it does not need.

Counted are the matrix products of a merged, packed step of a llama of three layers with seven linear maps each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from surefoot.model.network import Network, look_at
from surefoot.train.step import losses
from tests import tiny

LAYERS, LINEARS = 3, 7
PREDICT = LAYERS * LINEARS + 1
"""Products of the forward pass: every linear map, and the head."""
BACK = 2 * LINEARS
"""Of backward through a layer that trains whole: for each map its input's and its weight's gradient."""


class _Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[Callable[[], tuple[int, int]]]:
    """Products of maps, and those of attention."""
    with _Products() as products:
        yield lambda: (products.seen["mm"] + products.seen["addmm"], products.seen["bmm"])


FAMILY = tiny.family(3, 14)


def attention(network: Network) -> int:
    """Products in one layer's attention, forward: two for each block of tiles."""
    with counting() as count:
        losses(network, FAMILY, 10_000, backprop=False)
        return count()[1] // LAYERS


def training(trains: Callable[[str], bool], architecture: str = "llama") -> Network:
    """A tiny model of which only the weights train whose names `trains` takes."""
    with tiny.InDouble():
        net = tiny.model(architecture)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(trains(name))
        network = look_at(net, FAMILY, None)
    assert network.merged and network.packed
    return network


def adapted(architecture: str = "llama", **options: Any) -> Network:
    """A tiny model with LoRA whose B is not zero, so that A has a gradient."""
    peft = pytest.importorskip("peft")
    with tiny.InDouble():
        config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", **options)
        net = peft.get_peft_model(tiny.model(architecture), config)
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        network = look_at(net.double(), FAMILY, None)
    assert network.merged and network.packed
    return network


def top(name: str) -> bool:
    return ".layers.2." in name or name.startswith(("model.norm", "lm_head"))


PARTS: dict[str, Callable[[str], bool]] = {
    "the upper half": top,
    "the upper half but the head": lambda name: top(name) and "lm_head" not in name,
    "the head": lambda name: "lm_head" in name,
    "the embeddings": lambda name: "embed" in name,
    "the norms": lambda name: "norm" in name,
    "one map": lambda name: name.endswith("layers.1.self_attn.k_proj.weight"),
    "the middle layer": lambda name: ".layers.1." in name,
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_whatever_is_frozen_the_rest_learns_as_if_alone(part: str, architecture: str) -> None:
    network = training(PARTS[part], architecture)
    tiny.assert_exact(network, FAMILY, (10_000, 30))


def test_tied_weights_that_are_frozen_stay_without_a_gradient() -> None:
    network = training(lambda name: ".layers." in name, "llama_tied")
    tiny.assert_exact(network, FAMILY, (10_000,))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
@pytest.mark.parametrize(
    "where",
    [{"target_modules": "all-linear"}, {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [2]}],
    ids=["all", "last layer"],
)
def test_lora_learns_as_if_alone(architecture: str, where: dict[str, Any]) -> None:
    tiny.assert_exact(adapted(architecture, **where), FAMILY, (10_000, 30))


@pytest.mark.parametrize(
    ("trains", "back", "attentions"),
    [
        (lambda name: True, 3 * BACK + 2, 3),
        (PARTS["the upper half"], BACK + 2, 1),
        (PARTS["the upper half but the head"], BACK + 1, 1),
        # The head's input, then the three maps above it and its own weight: nothing of attention.
        (lambda name: name.endswith("layers.2.mlp.gate_proj.weight"), 1 + 1 + 1, 0),
        (lambda name: name == "model.norm.weight", 1, 0),
        (PARTS["the head"], 1, 0),
    ],
    ids=["all", "upper half", "upper half but the head", "one map", "last norm", "head"],
)
def test_backward_goes_no_lower_and_no_wider_than_what_trains(
    trains: Callable[[str], bool], back: int, attentions: int
) -> None:
    network = training(trains)
    scores = attention(network)
    with counting() as count:
        losses(network, FAMILY, 10_000, backprop=True)
        maps, products = count()
    assert maps == PREDICT + back
    # Backward is four products where forward is two: one for each of queries, keys, values and scores.
    assert products == LAYERS * scores + attentions * 2 * scores


def test_lora_pays_for_its_own_weights_only() -> None:
    network = adapted(target_modules="all-linear")
    with counting() as count:
        losses(network, FAMILY, 10_000, backprop=True)
        maps, _ = count()
    forward = 3 * LAYERS * LINEARS + 1
    # A map's input, A's weight and input, B's weight and input; nothing flows below the lowest q, k and v.
    # Fewer where maps of one input share a product.
    assert PREDICT + LAYERS * LINEARS < maps <= forward + 5 * LAYERS * LINEARS - 3 * 2 + 1


def test_lora_in_the_last_layer_stops_there() -> None:
    network = adapted(target_modules=["q_proj", "v_proj"], layers_to_transform=[2])
    scores = attention(network)
    with counting() as count:
        losses(network, FAMILY, 10_000, backprop=True)
        maps, products = count()
    # Back through the head, three maps of the MLP and o; then B's weight and input and A's weight, twice.
    assert PREDICT + 2 < maps <= PREDICT + 2 * 2 + 1 + 3 + 1 + 2 * 3
    # Of the four products of attention's backward, the keys' is not asked for.
    assert products == LAYERS * scores + 2 * scores - scores // 2

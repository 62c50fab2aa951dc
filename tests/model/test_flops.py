"""FLOPs from shapes against FLOPs that torch counts while the model runs; cards by their drivers' names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from surefoot.cards import CARDS, card
from surefoot.config import SFTConfig
from surefoot.data.forest import plant
from surefoot.data.rows import Example
from surefoot.model.adapters import adapt, lora_config
from surefoot.model.flops import Costs, costs, flops_of, peak_flops
from surefoot.model.network import look_at
from tests import tiny


def counted(model: torch.nn.Module, examples: Sequence[Example]) -> float:
    """Forward and backward, the products of our own head and linears (attention's tiles are padded: left out)."""
    network = look_at(model, examples, None, share_prefixes=False)
    forest = network.plant(examples)
    with FlopCounterMode(display=False) as counter, network.open():
        loss, _ = network.loss(forest, 1.0)
        loss.backward()
    # Where weights are matrices, what is batched is attention.
    return sum(
        count
        for operation, count in counter.get_flop_counts()["Global"].items()
        if "bmm" not in str(operation)
    )


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "qwen3", "gemma2", "gpt2", "phi3", "opt"])
def test_linears_and_head_are_what_torch_counts(architecture: str) -> None:
    model, examples = tiny.model(architecture, torch.float32), tiny.examples([(5, 9), (30, 4), (1, 20)])
    forest = plant(examples)
    want = counted(model, examples)
    assert flops_of(model, forest.slots, len(forest.label_N), 0) == pytest.approx(want, rel=1e-9)


def test_with_an_adapter_frozen_weights_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.model.lora.fast_layers", lambda model: [])  # torch does not count addmm_
    model, examples = tiny.model("llama", torch.float32), tiny.examples([(5, 9), (30, 4), (1, 20)])
    adapted = adapt(model, lora_config(SFTConfig(lora_r=4)))
    forest = plant(examples)
    want = counted(adapted, examples)
    # The first layer's queries, keys and values read what needs no gradient: 64 columns out of 32, and adapters.
    spared = 2 * forest.slots * (64 * 32 + 3 * 4 * 32)
    assert flops_of(adapted, forest.slots, len(forest.label_N), 0) - spared == pytest.approx(want, rel=1e-9)


def test_experts_that_a_token_is_not_sent_to_are_not_counted() -> None:
    model = tiny.model("qwen3_moe", torch.float32)
    layers = [p for name, p in model.model.named_parameters() if p.ndim == 2 and "embed" not in name]
    experts = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    assert experts == 3 * 4 * 3 * 16 * 32
    assert costs(model).slot == 6 * (sum(p.numel() for p in layers) + experts * 2 / 4)


def test_attention_counts_the_pairs_that_see_each_other() -> None:
    whole, sliding = (costs(tiny.model(name, torch.float32)) for name in ("llama", "gemma2"))
    assert whole.pair == 12 * 3 * 4 * 8
    assert whole.pairs(np.arange(20)) == 210
    # Layers 1 and 3 of gemma2 see the last 8 tokens, layer 2 all.
    near = sum(min(n, 8) for n in range(1, 21))
    assert sliding.pairs(np.arange(20)) == pytest.approx((2 * near + 210) / 3)
    forest = plant(tiny.examples([(5, 6), (3, 8)]))
    assert whole.pairs(forest.position_T) == 110
    assert whole.of_forest(forest) == whole.flops(20, 14, 110)


def test_attention_is_what_torch_counts_where_no_tile_is_padded() -> None:
    model, examples = tiny.model("llama", torch.float32), tiny.examples([(60, 5)])
    network = look_at(model, examples, None)
    with FlopCounterMode(display=False) as counter, network.open():
        network.loss(network.plant(examples), 1.0)[0].backward()
    batched = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(op))
    found = costs(model)
    assert found.pair * 64 * 64 == batched  # one tile: every slot by every slot
    assert found.pair * found.pairs(np.arange(64)) == pytest.approx(batched / 2, rel=0.02)


def test_the_cost_of_an_example_grows_faster_than_its_length() -> None:
    found = Costs(
        slot=100.0, pair=2.0, target=0.0, slot_forward=30.0, pair_forward=1.0, windows=((None, 1.0),)
    )
    short, long = tiny.examples([(1, 10), (1, 20)])
    assert found.of_example(short) == 10 + 2 * 55 / 100
    assert found.of_example(long) == 20 + 2 * 210 / 100
    assert found.again(10, 55) == 355


def test_recomputing_is_one_more_forward_pass() -> None:
    model = tiny.model("llama", torch.float32)
    found = costs(model)
    assert 3 * found.again(7, 11) == found.flops(7, 0, 11)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("h100", "H100"),
        ("rtx-4090", "RTX 4090"),
        ("Tesla P4", None),
    ],
)
def test_a_card_is_known_by_its_drivers_name(said: str, name: str | None) -> None:
    found = card(said)
    assert (found and found.name) == name


def test_every_card_is_found_by_its_own_name() -> None:
    assert [card(known.name) for known in CARDS] == list(CARDS)


def test_a_cpu_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda")) == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Graphics Adapter")
    assert peak_flops(torch.device("cuda")) is None

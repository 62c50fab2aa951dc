"""Compiled decoder layers: the same step within rounding, two graphs a layer, compiled once for all layers.

`aot_eager` captures and differentiates the graphs as inductor would get them and runs torch's own operations;
inductor itself takes about a minute, and runs where SUREFOOT_INDUCTOR is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import which

import pytest
import torch
from torch._dynamo.utils import counters

from surefoot import SFTConfig, SFTTrainer
from surefoot.model.adapters import adapt, lora_config
from surefoot.model.network import Network, look_at
from surefoot.train.compiling import compile_layers, compile_seconds
from surefoot.train.recompute import checkpoint_layers
from surefoot.train.step import losses
from tests import tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # the compiler tries what warns, and silences it in its own way


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def step(network: Network, budget: int = 60) -> tuple[float, dict[str, torch.Tensor]]:
    found = losses(network, tiny.family(7, 24), budget, backprop=True).loss
    return found, tiny.gradient(network.model)


def off(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    assert got.keys() == want.keys()
    whole = torch.stack([x.double().norm() for x in want.values()]).norm()
    return (torch.stack([(got[k].double() - want[k].double()).norm() for k in want]).norm() / whole).item()


def network_of(architecture: str, dtype: torch.dtype, product: torch.dtype | None, lora: bool) -> Network:
    net = tiny.model(architecture, dtype)
    if lora:
        net = adapt(net, lora_config(SFTConfig(lora_r=4)))
        for name, p in net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    return look_at(net, tiny.family(7, 24), product)


@pytest.mark.parametrize(
    ("architecture", "lora", "recomputed"),
    [("llama", False, 0), ("llama", True, 2), ("gemma2", False, 2)],
)
def test_in_float64_it_is_the_same_step(architecture: str, lora: bool, recomputed: int) -> None:
    network = network_of(architecture, torch.float64, None, lora)
    names = [name for name, _ in network.model.named_parameters()]
    loss, want = step(network)
    checkpoint_layers(network.model, recomputed)
    compiled = compile_layers(network, "aot_eager")
    assert [name for name, _ in network.model.named_parameters()] == names
    got_loss, got = step(compiled)
    assert got_loss == pytest.approx(loss, rel=1e-12)
    assert off(got, want) < 1e-7  # transformers computes rotary embeddings and norms in float32
    assert compile_seconds() > 0


def test_in_bf16_it_is_within_the_uncompiled_paths_error() -> None:
    _, exact = step(network_of("llama", torch.float64, None, False))
    plain = network_of("llama", torch.float32, torch.bfloat16, False)
    _, own = step(plain)
    _, got = step(compile_layers(plain, "aot_eager"))
    assert off(got, exact) <= 1.1 * off(own, exact)


def test_all_layers_and_lengths_share_graphs_that_break_at_attention_alone() -> None:
    network = compile_layers(network_of("llama", torch.float32, None, False), "aot_eager")
    step(network, 60)
    frames = dict(counters["frames"])
    breaks = list(counters["graph_break"])
    assert len(breaks) == 1
    assert "forest_attention" in breaks[0]
    for budget in (90, 10_000, 40):
        step(network, budget)
    assert dict(counters["frames"]) == frames
    assert frames["ok"] == frames["total"] <= 4
    assert not counters["recompiles"]


def test_hooks_on_a_layer_still_run() -> None:
    network = compile_layers(network_of("llama", torch.float32, None, False), "eager")
    seen = []
    for number, layer in enumerate(network.core.base_model.layers):  # type: ignore[union-attr, arg-type]
        layer.register_forward_hook(lambda *_, number=number: seen.append(number))
    step(network, 10_000)
    assert seen == [0, 1, 2]


def test_a_model_without_such_layers_stays_as_it_is() -> None:
    network = network_of("llama", torch.float32, None, False)
    for module in network.core.modules():
        assert "forward" not in vars(module)
    none = replace(network, model=network.model)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("surefoot.train.compiling.decoder_layers", lambda _: [])
        found = compile_layers(none, "eager")
    assert not found.compiled
    assert found.reasons[-1].startswith("torch_compile has no effect")


@pytest.mark.skipif(which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
@pytest.mark.skipif("SUREFOOT_INDUCTOR" not in os.environ, reason="a minute: set SUREFOOT_INDUCTOR=1")
def test_by_inductor() -> None:
    network = network_of("llama", torch.float32, None, False)
    _, exact = step(network_of("llama", torch.float64, None, False))
    loss, want = step(network)
    got_loss, got = step(compile_layers(network))
    assert got_loss == pytest.approx(loss, rel=1e-5)
    assert off(got, exact) <= 1.1 * off(want, exact)


@pytest.mark.slow
def test_a_run_says_once_how_long_compiling_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "surefoot.train.loading.compile_layers", lambda network: compile_layers(network, "eager")
    )
    args = SFTConfig(tmp_path / "run", torch_compile=True, use_cpu=True, precision="fp32", max_steps=2)
    rows = tiny.rows(tiny.examples([(5, 4), (9, 12), (1, 3)]))
    one = SFTTrainer(tiny.model("llama", torch.float32), args, rows, processing_class=tiny.tokenizer())
    one.train()
    said = [line for line in capfd.readouterr().err.splitlines() if "compiling took" in line]
    assert len(said) == 1
    assert said[0].startswith("step 1 of 2:  note: compiling took ")
    assert not any(event.get("kind") == "compiled" for event in one.run.events())

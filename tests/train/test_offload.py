"""Activations that wait in the host's memory: the same step, bit for bit, and less that stays on the device.

On a CPU the way to the host is a copy: which tensors go, how often, and that they come back as they were.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from surefoot import SFTConfig
from surefoot.model import offload
from surefoot.model.adapters import adapt, lora_config
from surefoot.model.network import look_at
from surefoot.model.offload import _Moves, _Place, offloaded
from surefoot.train.recompute import checkpoint_layers, offload_activations
from surefoot.train.step import losses
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture
def all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "LEAST", 1)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what goes to the host."""
    shapes = []
    pack = _Moves.pack

    def noted(self: _Moves, tensor: torch.Tensor) -> torch.Tensor | _Place:
        before = len(self._away)
        given = pack(self, tensor)
        if len(self._away) > before:
            shapes.append(tuple(tensor.shape))
        return given

    monkeypatch.setattr(_Moves, "pack", noted)
    return shapes


@pytest.mark.parametrize("recomputed", [0, 2])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "gemma2", "gpt2", "phi3", "mixtral"])
def test_loss_and_gradient_are_the_same_bits(
    architecture: str, bf16: bool, recomputed: int, all_sizes: None, sent: list[tuple[int, ...]]
) -> None:
    of, found = tiny.family(7), []
    for away in (False, True):
        net = tiny.model(architecture, torch.float32)
        checkpoint_layers(net, recomputed)
        network = look_at(net, of, torch.bfloat16 if bf16 else None)
        result = losses(replace(network, offload=away), of, 60, backprop=True)
        found.append((result, tiny.gradient(net)))
        assert bool(sent) == away
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name


def test_with_an_adapter_too(all_sizes: None, sent: list[tuple[int, ...]]) -> None:
    of, found = tiny.family(7), []
    for away in (False, True):
        net = adapt(tiny.model("llama", torch.float32), lora_config(SFTConfig(lora_r=4)))
        network = look_at(net, of, torch.bfloat16)
        losses(replace(network, offload=away), of, 60, backprop=True)
        found.append(tiny.gradient(net))
    assert sent
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("bf16", [False, True])
def test_weights_stay_and_nothing_goes_twice(
    bf16: bool, all_sizes: None, sent: list[tuple[int, ...]]
) -> None:
    """Not the weights nor their casts to bf16; an activation that several products read goes once."""
    of = tiny.family(7)
    net = tiny.model("llama", torch.float32)
    network = replace(look_at(net, of, torch.bfloat16 if bf16 else None), offload=True)
    losses(network, of, 10_000, backprop=True)
    weights = {tuple(p.shape) for p in net.parameters()}
    assert not {s for s in sent if len(s) == 2} & (weights | {s[::-1] for s in weights})

    x = torch.randn(50, 32, requires_grad=True)
    sent.clear()
    with offloaded(net, CPU, least=1):
        h = x * 2
        made = [h @ p.T for p in (net.lm_head.weight, net.model.layers[0].self_attn.q_proj.weight)]
        made.append(h.exp())
    assert sent == [(50, 32), (50, 32)]  # h, and what exp gave
    torch.stack([m.sum() for m in made]).sum().backward()
    want = 2 * (
        net.lm_head.weight.sum(0)[None] + net.model.layers[0].self_attn.q_proj.weight.sum(0) + (2 * x).exp()
    )
    torch.testing.assert_close(x.grad, want)


def test_small_tensors_stay(sent: list[tuple[int, ...]]) -> None:
    x = torch.randn(1 << 18, requires_grad=True)
    with offloaded(torch.nn.Linear(2, 2), CPU):
        (x[: (1 << 18) - 1] * 1).exp()
        assert not sent
        (x * 1).exp()
    assert sent == [(1 << 18,)]


def test_what_is_away_is_on_the_device_no_more_and_comes_back_with_its_strides() -> None:
    moves = _Moves(torch.nn.Linear(2, 2), CPU, 1)
    given = torch.randn(6, 5, 4).transpose(0, 2)
    was, there = given.clone(), weakref.ref(given)
    strides = given.stride()
    place, again = moves.pack(given), moves.pack(given[1:])
    assert isinstance(place, _Place)
    assert isinstance(again, _Place)
    away = place.away
    assert again.away is away
    del given
    gc.collect()
    assert there() is None
    back = moves.unpack(place)
    assert torch.equal(back, was)
    assert back.stride() == strides
    assert torch.equal(moves.unpack(again), was[1:])
    assert away.back is None
    gone = weakref.ref(away)
    del away, place, again
    gc.collect()
    assert gone() is None  # the graph alone holds it


def test_on_a_cpu_the_option_says_that_it_has_no_effect(sent: list[tuple[int, ...]]) -> None:
    of = tiny.family(7)
    network = look_at(tiny.model("llama", torch.float32), of, None)
    found = offload_activations(network)
    assert not found.offload
    assert found.reasons == (
        *network.reasons,
        "activation_offloading has no effect: on a CPU activations are in the host's memory already",
    )
    losses(found, of, 60, backprop=True)
    assert not sent

"""One update: clipping, what is reported, what stops it."""

from __future__ import annotations

import math

import pytest
import torch

from surefoot import SFTConfig
from surefoot.model.network import look_at
from surefoot.train.optim import build
from surefoot.train.step import NotFinite, losses, update
from tests import tiny

LENGTHS = [(5, 4), (9, 12), (1, 3), (17, 6)]


def test_the_losses_of_examples_and_their_mean_are_the_naive_ones() -> None:
    net, of = tiny.model("llama"), tiny.examples(LENGTHS)
    found = losses(look_at(net, of, None), of, 40, backprop=False)
    alone = [tiny.naive_loss(net, [e]).item() for e in of]
    assert [e.loss / e.tokens for e in found.examples] == pytest.approx(alone, rel=1e-6)
    assert found.loss == pytest.approx(sum(e.loss for e in found.examples) / found.supervised, rel=1e-9)
    assert found.tokens == sum(p + c for p, c in LENGTHS)
    assert found.supervised == sum(c for _, c in LENGTHS)
    assert 0 <= found.token_accuracy <= 1
    assert 0 < found.entropy < math.log(tiny.VOCABULARY)
    assert found.micro_batches == 2


def test_weights_of_examples_weigh() -> None:
    net, of = tiny.model("llama"), tiny.examples(LENGTHS)
    heavy = [
        type(e)(e.prompt_ids, e.completion_ids, e.row, e.where, weight=2.0 if i else 0.0)
        for i, e in enumerate(of)
    ]
    network = look_at(net, of, None)
    assert losses(network, heavy, 99, backprop=False).loss == pytest.approx(
        losses(network, of[1:], 99, backprop=False).loss, rel=1e-9
    )


@pytest.mark.parametrize("limit", [0, 0.01, 1e9])
def test_clipping_scales_the_whole_gradient_and_reports_the_unclipped_norm(limit: float) -> None:
    net = tiny.model("llama")
    optimizers = build(net, SFTConfig(optim="sgd", learning_rate=1.0, weight_decay=0.0))
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    tiny.naive_loss(net, tiny.examples(LENGTHS))
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    change = update(optimizers, limit)
    norm, factor = change.grad_norm, change.clip_factor
    moved = before - torch.cat([p.detach().flatten() for p in net.parameters()])
    assert norm == pytest.approx(gradient.norm().item(), rel=1e-12)
    assert factor == pytest.approx(0.01 / norm if limit == 0.01 else 1.0)
    torch.testing.assert_close(moved, gradient * factor, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_update(poison: float) -> None:
    net = tiny.model("llama")
    optimizers = build(net, SFTConfig())
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.full_like(p, poison)
    with pytest.raises(NotFinite):
        update(optimizers, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert optimizers.state() == ({}, {})


def test_dropout_is_a_function_of_the_seed() -> None:
    net = tiny.model("llama", torch.float32)
    net.config.attention_dropout = 0.5
    for layer in net.model.layers:
        layer.self_attn.attention_dropout = 0.5
    of = tiny.examples(LENGTHS)
    network = look_at(net, of, None)
    assert network.packed  # the check is without dropout
    net.train()
    one, same, other = (losses(network, of, 99, backprop=True, seed=s).loss for s in (1, 1, 2))
    assert one == same != other

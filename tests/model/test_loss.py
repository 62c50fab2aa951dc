"""target_loss against its definition: loss, every gradient, every statistic, in any chunking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.model.loss import Head, naive_loss, naive_stats, target_loss

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.0625},
    "softcapped": {"softcap": 3.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 2.0},
}


def setting(kind: str, targets: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple:
    torch.manual_seed(seed)
    how = dict(HEADS[kind])
    hidden = torch.randn(targets, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(53, 16, dtype=dtype, requires_grad=True)
    bias = torch.randn(53, dtype=dtype, requires_grad=True) if how.pop("bias", False) else None
    labels, weights = torch.randint(53, (targets,)), torch.rand(targets, dtype=torch.float64) + 0.1
    return hidden, Head(weight, bias, **how), labels, weights


def gradients(loss: torch.Tensor, hidden: torch.Tensor, head: Head) -> list[torch.Tensor]:
    wanted = [hidden, head.weight_VD, *([head.bias_V] if head.bias_V is not None else [])]
    return list(torch.autograd.grad(loss, wanted))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_equals_the_definition(kind: str, chunk: int) -> None:
    hidden, head, labels, weights = setting(kind, 7)
    logits = head.logits(hidden)
    want, stats = naive_loss(logits, labels, weights), naive_stats(logits, labels)
    got, found = target_loss(hidden, head, labels, weights, chunk=chunk)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=0)
    for one, other in zip(gradients(got, hidden, head), gradients(want, hidden, head), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found.nll_N, stats.nll_N, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.entropy_N, stats.entropy_N, rtol=1e-9, atol=1e-11)
    assert torch.equal(found.correct_N, stats.correct_N)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 12),
    st.sampled_from(sorted(HEADS)),
    st.integers(0, 99),
    st.floats(0.01, 50),
)
def test_equals_the_definition_for_any_shape_and_scale(
    targets: int, chunk: int, kind: str, seed: int, scale: float
) -> None:
    hidden, head, labels, weights = setting(kind, targets, seed=seed)
    hidden = (hidden.detach() * scale).requires_grad_()
    want = naive_loss(head.logits(hidden), labels, weights)
    got, _ = target_loss(hidden, head, labels, weights, chunk=chunk)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    for one, other in zip(gradients(got, hidden, head), gradients(want, hidden, head), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_the_incoming_gradient_scales_it() -> None:
    hidden, head, labels, weights = setting("all", 5)
    once = gradients(target_loss(hidden, head, labels, weights)[0], hidden, head)
    thrice = gradients(3 * target_loss(hidden, head, labels, weights)[0], hidden, head)
    for one, other in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * one, other)


def test_each_head_row_gets_error_times_hidden_state() -> None:
    """The lesson of the microscope: row v of the head's gradient is the sum of (p_v − y_v) · h."""
    hidden, head, labels, weights = setting("plain", 4)
    _, grad_weight = gradients(target_loss(hidden, head, labels, weights)[0], hidden, head)
    error = head.logits(hidden).softmax(-1)
    error[range(4), labels] -= 1
    torch.testing.assert_close(grad_weight, (weights[:, None] * error).T @ hidden)
    torch.testing.assert_close(error.sum(-1), torch.zeros(4, dtype=torch.float64), atol=1e-14, rtol=0)


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_do() -> None:
    hidden, head, labels, weights = setting("plain", 4)
    frozen = Head(head.weight_VD.detach())
    target_loss(hidden, frozen, labels, weights)[0].backward()
    assert hidden.grad is not None
    assert frozen.weight_VD.grad is None


def test_without_gradients_nothing_is_kept_for_backward() -> None:
    hidden, head, labels, weights = setting("plain", 4)
    with torch.no_grad():
        loss, _ = target_loss(hidden, head, labels, weights)
    assert not loss.requires_grad


def test_extreme_logits_stay_finite() -> None:
    hidden, head, labels, weights = setting("plain", 4, torch.float32)
    hidden = (hidden.detach() * 1e4).requires_grad_()
    loss, stats = target_loss(hidden, head, labels, weights)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(stats.entropy_N).all()
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("seed", range(3))
def test_bf16_products_stay_within_the_naive_paths_error(seed: int) -> None:
    exact = setting("plain", 40, torch.float64, seed)
    want = gradients(target_loss(*exact)[0], exact[0], exact[1])
    hidden = exact[0].detach().float().requires_grad_()
    head = Head(exact[1].weight_VD.detach().float().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        naive = gradients(naive_loss(head.logits(hidden), *exact[2:]), hidden, head)
    ours = gradients(
        target_loss(hidden, head, *exact[2:], product_dtype=torch.bfloat16, chunk=16)[0], hidden, head
    )
    for one, other, true in zip(ours, naive, want, strict=True):
        assert (one - true).norm() <= 1.1 * (other - true).norm()

"""Faults planted in the fast path: each is found, and the fastest path without it is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from surefoot.model import attention, network
from surefoot.model.network import Network, head_of
from surefoot.train import selfcheck
from tests import tiny
from tests.train.test_selfcheck import family, fastest

Attend = Callable[..., tuple[torch.Tensor, Any]]


@contextmanager
def faulty_attention(monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]) -> Iterator[None]:
    """`fault(attend, module, query, ...)` in the place of the forest's attention."""
    attending = network.attending_forests

    @contextmanager
    def attending_faultily(*args: Any, **kwargs: Any) -> Iterator[None]:
        with attending(*args, **kwargs):
            attend = AttentionInterface()[attention.NAME]
            AttentionInterface.register(attention.NAME, lambda *a, **k: fault(attend, *a, **k))
            try:
                yield
            finally:
                AttentionInterface.register(attention.NAME, attend)

    with monkeypatch.context() as patch:
        patch.setattr(network, "attending_forests", attending_faultily)
        yield


def leak(attend: Attend, module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
    """The first slot of each later tree sees a little of the slot before it."""
    out, _ = attend(module, query, key, value, *rest, **more)
    starts = [start for start, _ in more["forest"].trees[1:]]
    into = torch.zeros_like(out)
    for start in starts:
        into[:, start] = 0.05 * out[:, start - 1]
    return out + into, None


def sibling(attend: Attend, module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
    """The first slot of each later branch sees a little of the branch before it."""
    out, _ = attend(module, query, key, value, *rest, **more)
    position_T = more["forest"].position_T
    later_T = torch.zeros_like(position_T, dtype=torch.bool)
    later_T[1:] = (position_T[1:] > 0) & (position_T[1:] != position_T[:-1] + 1)
    return out + 0.05 * out.roll(1, dims=1) * later_T[None, :, None, None], None


def wide(attend: Attend, *args: Any, **more: Any) -> Any:
    if more.get("sliding_window"):
        more["sliding_window"] += 1
    return attend(*args, **more)


def uncapped(attend: Attend, *args: Any, **more: Any) -> Any:
    return attend(*args, **{**more, "softcap": None})


class Stretched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * 1.001


def stretched(attend: Attend, module: Any, *args: Any, **more: Any) -> Any:
    out, weights = attend(module, *args, **more)
    return (Stretched.apply(out) if module.layer_idx == 1 else out), weights


FAULTS = {
    "a leak across trees": ("llama", leak),
    "a window off by one": ("mistral", wide),
    "a window off by one in half of the layers": ("gemma2", wide),
    "a softcap missing": ("gemma2", uncapped),
    "a gradient 1.001 times too large in one layer": ("llama", stretched),
}


@pytest.mark.parametrize("products", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_attention_is_found_by_both_forms_and_left_out(
    fault: str, products: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, planted = FAULTS[fault]
    net = tiny.model(architecture, torch.float32)
    if fault == "a softcap missing":
        net.config.attn_logit_softcapping = 5.0
        for layer in net.model.layers:
            layer.self_attn.attn_logit_softcapping = 5.0
    found = fastest(net, products)
    assert found.merged and found.packed
    with faulty_attention(monkeypatch, planted):
        for verdict in (selfcheck.quick(found, family()), selfcheck.check(found, family())):
            assert verdict.exact
            assert not verdict.network.packed
            assert verdict.network.head is not None
            assert verdict.refused[-1].startswith("rows run one at a time, as side by side")
            assert verdict.network.reasons == (*found.reasons, *verdict.refused)


def test_a_leak_between_branches_costs_only_the_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fastest(tiny.model("llama", torch.float32), torch.bfloat16)
    assert found.merged
    with faulty_attention(monkeypatch, sibling):
        for verdict in (selfcheck.quick(found, family()), selfcheck.check(found, family())):
            assert verdict.exact
            assert (verdict.network.merged, verdict.network.packed) == (False, True)
            (said,) = verdict.refused
            assert said.startswith("common prefixes are not shared, as with sharing ")


def test_without_its_faults_the_same_models_stay_packed() -> None:
    for architecture in {architecture for architecture, _ in FAULTS.values()}:
        found = fastest(tiny.model(architecture, torch.float32), torch.bfloat16)
        assert selfcheck.quick(found, family()).network.packed


@pytest.mark.parametrize(("architecture", "jump"), [("gpt2", False), ("llama", True)])
def test_positions_off_by_one_are_found(architecture: str, jump: bool) -> None:
    """Rotary positions are relative: all of them one too far are right. A jump in the middle is not."""
    found = fastest(tiny.model(architecture, torch.float32))

    def shift(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("position_ids") is not None:
            position = kwargs["position_ids"]
            kwargs["position_ids"] = position + (position > 3 if jump else 1)
        return args, kwargs

    found.core.base_model.register_forward_pre_hook(shift, with_kwargs=True)
    for verdict in (selfcheck.quick(found, family()), selfcheck.check(found, family())):
        assert verdict.exact and not verdict.network.packed


@pytest.mark.parametrize("head", [{"scale": 1.0}, {"scale": 1.001 / 3}])
def test_a_head_scale_ignored_is_found(head: dict[str, float]) -> None:
    found = fastest(tiny.model("granite", torch.float32), torch.bfloat16)
    assert found.head is not None
    lying = replace(found, head=replace(found.head, **head))
    for verdict in (selfcheck.quick(lying, family()), selfcheck.check(lying, family())):
        assert verdict.exact and verdict.network.head is None
        assert "by the head's formula" in verdict.refused[-1]


def test_a_head_without_its_softcap_is_found() -> None:
    found = fastest(tiny.model("gemma2", torch.float32))
    assert found.head is not None
    verdict = selfcheck.quick(replace(found, head=replace(found.head, softcap=None)), family())
    assert verdict.exact and verdict.network.head is None


def test_a_wrong_gradient_of_the_head_is_found_by_the_full_form_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form does not ask for the head's own gradient, which nothing else depends on."""
    found = fastest(tiny.model("llama", torch.float32))
    target_loss = network.target_loss

    def scaled(hidden: torch.Tensor, head: Any, *rest: Any) -> Any:
        return target_loss(hidden, replace(head, weight_VD=Stretched.apply(head.weight_VD)), *rest)

    monkeypatch.setattr(network, "target_loss", scaled)
    assert selfcheck.quick(found, family()).network.head is not None
    verdict = selfcheck.check(found, family())
    assert verdict.exact and verdict.network.head is None
    assert "lm_head.weight" in verdict.refused[-1]


@pytest.mark.parametrize("architecture", ["lfm2", "llama"])
def test_a_layer_that_mixes_positions_outside_attention_is_found(architecture: str) -> None:
    net = tiny.model(architecture, torch.float32)
    if architecture == "llama":
        mlp = net.model.layers[1].mlp
        forward = mlp.forward
        mlp.forward = lambda x: forward(x + 0.02 * x.roll(1, dims=1).index_fill(1, torch.tensor([0]), 0))
    trusting = Network(net, torch.bfloat16, head=head_of(net))
    for verdict in (selfcheck.quick(trusting, family()), selfcheck.check(trusting, family())):
        assert verdict.exact and not verdict.network.packed


def test_a_path_that_raises_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fastest(tiny.model("llama", torch.float32))

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no kernel for this")

    with faulty_attention(monkeypatch, broken):
        verdict = selfcheck.quick(found, family())
    assert verdict.exact and not verdict.network.packed
    assert "a few short rows end in RuntimeError: no kernel for this" in verdict.refused[-1]

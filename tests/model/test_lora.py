"""The short way through LoRA's layers against PEFT's own forward."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from surefoot.model.lora import fast_adapters, fast_layers
from tests import tiny

IDS = torch.tensor([[5, 9, 13, 40, 41, 42, 3]])


def adapted(dtype: torch.dtype = torch.float64, **options: Any) -> peft.PeftModel:
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", **options)
    net = peft.get_peft_model(tiny.model("llama", dtype), config)
    torch.manual_seed(1)
    for name, parameter in net.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide half of the formula
            parameter.data = torch.randn_like(parameter) * 0.1
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    return net.train()


def gradients(net: peft.PeftModel) -> dict[str, torch.Tensor]:
    net.zero_grad()
    net(input_ids=IDS).logits.square().mean().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def test_forward_and_every_gradient_are_pefts() -> None:
    net = adapted(use_rslora=True)
    want_logits, want = net(input_ids=IDS).logits, gradients(net)
    assert len(fast_layers(net)) == 3 * 7
    with fast_adapters(net, None):
        got_logits, got = net(input_ids=IDS).logits, gradients(net)
    torch.testing.assert_close(got_logits, want_logits, rtol=1e-12, atol=1e-12)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-13)
    assert all("forward" not in vars(layer) for layer in fast_layers(net))


def test_in_bf16_the_error_is_not_above_pefts() -> None:
    exact = gradients(adapted())
    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients(adapted(torch.float32))
        net = adapted(torch.float32)
        with fast_adapters(net, torch.bfloat16):
            fast = gradients(net)

    def off(found: dict[str, torch.Tensor]) -> float:
        return sum((found[name] - exact[name]).square().sum().item() for name in exact) ** 0.5

    assert off(fast) <= 1.1 * off(plain)


def test_a_frozen_weight_that_was_changed_is_rounded_anew() -> None:
    net = adapted(torch.float32)
    with fast_adapters(net, torch.bfloat16):
        before = net(input_ids=IDS).logits
        with torch.no_grad():
            for layer in fast_layers(net):
                layer.base_layer.weight.mul_(1.5)
        assert (net(input_ids=IDS).logits - before).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.2}, {"use_dora": True}, {"lora_bias": True}], ids=lambda o: next(iter(o))
)
def test_what_is_not_the_plain_formula_is_left_to_peft(options: dict[str, Any]) -> None:
    assert fast_layers(adapted(**options)) == []


def test_layers_with_hooks_merged_ones_and_several_adapters_are_left_to_peft() -> None:
    net = adapted()
    count = len(fast_layers(net))
    layer = fast_layers(net)[0]
    handle = layer.base_layer.register_forward_hook(lambda *_: None)
    assert len(fast_layers(net)) == count - 1
    handle.remove()
    layer.merge()
    assert len(fast_layers(net)) == count - 1
    layer.unmerge()
    net.add_adapter("other", peft.LoraConfig(r=2, target_modules="all-linear"))
    net.base_model.set_adapter(["default", "other"])
    assert fast_layers(net) == []

"""LoRA's linear layers in fewer passes over memory: y = x Wᵀ + s · (x Aᵀ) Bᵀ, W frozen (arXiv:2106.09685).

PEFT's own forward defines it; it makes a tensor as large as the output for each of the product with B, the
scaling and the sum, and casts the same input anew for every layer that reads it. Here the small products are
added in place, forward and backward.

Shapes: T slots, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        dtype = x_TI.dtype
        with torch.autocast(x_TI.device.type, enabled=False):
            small_TR = x_TI @ a_RI.to(dtype).T
            y_TO = F.linear(x_TI, weight_OI, bias_O.to(dtype) if bias_O is not None else None)
            y_TO.addmm_(small_TR, b_OR.to(dtype).T, alpha=scaling)
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, small_TR)
        ctx.scaling = scaling
        return y_TO

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, weight_OI, a_RI, b_OR, small_TR = ctx.saved_tensors
        scaling, dtype = ctx.scaling, x_TI.dtype
        d_y_TO = gradients[0]
        d_x_TI = d_a_RI = d_b_OR = None
        d_small_TR = d_y_TO @ b_OR.to(dtype)
        if ctx.needs_input_grad[0]:
            d_x_TI = d_y_TO @ weight_OI
            d_x_TI.addmm_(d_small_TR, a_RI.to(dtype), alpha=scaling)
        if ctx.needs_input_grad[3]:
            d_a_RI = (d_small_TR.T @ x_TI).to(a_RI.dtype) * scaling
        if ctx.needs_input_grad[4]:
            d_b_OR = (d_y_TO.T @ small_TR).to(b_OR.dtype) * scaling
        return d_x_TI, None, None, d_a_RI, d_b_OR, None


class _LastCast:
    """The last input in the products' type: queries, keys and values read the same one."""

    def __init__(self) -> None:
        self.given: torch.Tensor | None = None
        self.version = -1
        self.cast: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if x.dtype == dtype:
            return x
        if self.given is not x or self.version != x._version or self.cast is None or self.cast.dtype != dtype:
            self.given, self.version, self.cast = x, x._version, x.to(dtype)
        return self.cast


def _rounded(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """A frozen weight in the products' type, made once for all steps: two bytes a weight for a pass over all of
    them in each step."""
    weight = base.weight
    if weight.dtype == dtype:
        return weight
    made_of = (weight.data_ptr(), weight._version, weight.device, dtype)
    kept = vars(base).get("_rounded")
    if kept is None or kept[0] != made_of:
        vars(base)["_rounded"] = kept = (made_of, weight.detach().to(dtype))
    return kept[1]


def fast_layers(model: torch.nn.Module) -> list[Any]:
    """PEFT's LoRA layers in `model` that are the formula above: one plain adapter, no dropout, W frozen."""
    layers = getattr(sys.modules.get("peft.tuners.lora.layer"), "Linear", None)
    if layers is None:
        return []
    return [module for module in model.modules() if type(module) is layers and _is_plain(module)]


def _is_plain(layer: Any) -> bool:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    base = layer.base_layer
    if len(names) != 1 or layer.disable_adapters or layer.merged or type(base) is not torch.nn.Linear:
        return False
    (name,) = names
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    return (
        name not in layer.lora_variant
        and type(a) is type(b) is torch.nn.Linear
        and a.bias is b.bias is None
        and (isinstance(dropout, torch.nn.Identity) or not dropout.training)
        and not any(p.requires_grad for p in base.parameters())
        and not any(vars(m)[hooks] for m in (layer, base, a, b) for hooks in HOOKS)
    )


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""What a user may have hung on a layer; it is called only by the layer's own forward."""


@contextmanager
def fast_adapters(model: torch.nn.Module, product_dtype: torch.dtype | None) -> Iterator[None]:
    """While open, the plain LoRA layers of `model` take the short way. Closed, they are PEFT's again."""
    cast, changed = _LastCast(), fast_layers(model)
    for layer in changed:
        vars(layer)["forward"] = _forward(layer, cast, product_dtype)
    try:
        yield
    finally:
        for layer in changed:
            del vars(layer)["forward"]


def _forward(layer: Any, cast: _LastCast, product_dtype: torch.dtype | None) -> Callable[..., torch.Tensor]:
    (name,) = [name for name in layer.active_adapters if name in layer.lora_A]
    a, b, scaling, base = layer.lora_A[name], layer.lora_B[name], layer.scaling[name], layer.base_layer

    def forward(x: torch.Tensor) -> torch.Tensor:
        dtype = product_dtype or base.weight.dtype
        x_TI = cast(x, dtype).flatten(0, -2)
        y_TO = _Product.apply(x_TI, _rounded(base, dtype), base.bias, a.weight, b.weight, scaling)
        return y_TO.view(*x.shape[:-1], -1)

    return forward

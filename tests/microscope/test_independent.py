"""Stepping one tensor at a time ends with the bits of stepping all at once, for every optimizer that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from transformers.optimization import Adafactor

from surefoot.microscope.independent import INDEPENDENT, refusal

SHAPES = [(7, 5), (64, 33), (40, 130), (3, 4, 6), (5,), (1,), (257,)]

ONE_BY_ONE: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True}),
    (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}),
    (torch.optim.AdamW, {"lr": torch.tensor(1e-2)}),
    (torch.optim.RMSprop, {"lr": 1e-2, "momentum": 0.5, "centered": True}),
    (torch.optim.Adagrad, {"lr": 1e-2, "lr_decay": 0.1, "weight_decay": 0.1}),
    (torch.optim.Adadelta, {"lr": 1e-1, "weight_decay": 0.1}),
    (torch.optim.Adamax, {"lr": 1e-2}),
    (torch.optim.NAdam, {"lr": 1e-2, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.RAdam, {"lr": 1e-2, "weight_decay": 0.1}),
    (torch.optim.Rprop, {"lr": 1e-2}),
    (torch.optim.ASGD, {"lr": 1e-2, "t0": 1.0, "weight_decay": 0.1}),
    (torch.optim.Adafactor, {"lr": 1e-2}),
    (Adafactor, {"lr": 1e-2, "relative_step": False, "beta1": 0.9, "weight_decay": 0.1}),
    (Adafactor, {"warmup_init": True}),
    (torch.optim.Muon, {"lr": 1e-2}),
]
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
SINGLE = (torch.optim.Muon, Adafactor)
CASES = [
    (cls, {**options, **mode})
    for cls, options in ONE_BY_ONE
    for mode in (
        [{}]
        if cls in SINGLE
        else [{"foreach": False}, {"foreach": True}, *([{"fused": True}] if cls in FUSED else [])]
    )
    if not (mode.get("foreach") and isinstance(options.get("lr"), torch.Tensor))
]


def wrong(cls: type[Optimizer], options: dict[str, Any], dtype: torch.dtype) -> bool:
    """torch's own step is not the same twice, or not all at once what it is one by one: refused, see below."""
    half = cls is torch.optim.SGD and "momentum" in options and dtype == torch.bfloat16
    return half and bool(options.get("fused"))


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def one_by_one(optimizer: Optimizer) -> None:
    groups = optimizer.param_groups
    kept = [group["params"] for group in groups]
    for group, weights in zip(groups, kept, strict=True):
        for weight in weights:
            for other in groups:
                other["params"] = [weight] if other is group else []
            optimizer.step()
    for group, weights in zip(groups, kept, strict=True):
        group["params"] = weights


def trajectory(
    cls: type[Optimizer],
    options: dict[str, Any],
    dtype: torch.dtype,
    device: str,
    go: Callable[[Optimizer], Any],
) -> list[torch.Tensor]:
    """Weights, gradients and state after four steps in two groups; a tensor has no gradient at first."""
    torch.manual_seed(0)
    shapes = [shape for shape in SHAPES if len(shape) == 2 or cls is not torch.optim.Muon]
    weights = [torch.nn.Parameter(torch.randn(shape).to(device, dtype)) for shape in shapes]
    groups = [{"params": weights[:2]}, {"params": weights[2:], "lr": options.get("lr")}]
    optimizer = cls(groups, **options)
    assert refusal(optimizer) is None
    for step in range(4):
        for index, weight in enumerate(weights):
            gradient = (torch.randn(weight.shape) * 0.1).to(device, dtype)
            # Fused SGD expects that all tensors have their first gradient together; so does foreach in bf16.
            late = cls is not torch.optim.SGD or options.get("foreach") is False
            weight.grad = None if step == index == 0 and late else gradient
        go(optimizer)
    found: list[torch.Tensor] = []
    for weight in weights:
        state = [optimizer.state[weight][key] for key in sorted(optimizer.state[weight])]
        found += [weight.detach(), weight.grad, *(torch.as_tensor(value) for value in state)]  # type: ignore[list-item]
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("cls", "options"), CASES, ids=[f"{c.__name__}-{i}" for i, (c, _) in enumerate(CASES)]
)
def test_one_tensor_at_a_time_is_the_same_step(
    cls: type[Optimizer], options: dict[str, Any], dtype: torch.dtype, device: str
) -> None:
    if wrong(cls, options, dtype):
        assert "fused SGD" in str(refusal(cls([torch.nn.Parameter(torch.ones(3, dtype=dtype))], **options)))
        return
    together = trajectory(cls, options, dtype, device, lambda optimizer: optimizer.step())
    apart = trajectory(cls, options, dtype, device, one_by_one)
    assert len(together) == len(apart) > 2 * len(SHAPES[:3])
    for a, b in zip(together, apart, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_every_allowed_optimizer_was_tried() -> None:
    assert {cls for cls, _ in CASES} == {*INDEPENDENT, Adafactor}


class Own(torch.optim.SGD):
    """A user's, of which nothing is known."""


def test_others_are_refused_and_the_reason_is_said() -> None:
    weights = [torch.nn.Parameter(torch.ones(3))]
    assert "all weights together" in str(refusal(torch.optim.LBFGS(weights)))
    assert "SparseAdam is not among" in str(refusal(torch.optim.SparseAdam(weights)))
    assert "Own is not among" in str(refusal(Own(weights)))


def test_whatever_is_hung_on_a_step_is_refused() -> None:
    weights = [torch.nn.Parameter(torch.ones(3))]
    for register in ("register_step_pre_hook", "register_step_post_hook"):
        optimizer = torch.optim.SGD(weights)
        handle = getattr(optimizer, register)(lambda *_: None)
        assert "hooks" in str(refusal(optimizer))
        handle.remove()
        assert refusal(optimizer) is None
    handle = register_optimizer_step_post_hook(lambda *_: None)
    try:
        assert "hooks" in str(refusal(torch.optim.SGD(weights)))
    finally:
        handle.remove()
    optimizer = torch.optim.SGD(weights)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    assert refusal(optimizer) is None, "a scheduler only counts"
    optimizer.step = lambda *_: None  # type: ignore[method-assign]
    assert "replaced" in str(refusal(optimizer))


def test_sgd_is_refused_where_foreach_takes_another_way() -> None:
    weights = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights, momentum=0.9, foreach=True)
    weights[0].grad = torch.ones(3, dtype=torch.bfloat16)
    optimizer.step()
    assert refusal(optimizer) is None
    weights[1].grad = weights[0].grad
    assert "first gradient later" in str(refusal(optimizer))
    optimizer.step()
    assert refusal(optimizer) is None


def test_sparse_and_complex_are_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3).to_sparse()
    assert "sparse" in str(refusal(torch.optim.SGD([weight])))
    assert "complex" in str(refusal(torch.optim.SGD([torch.nn.Parameter(torch.ones(3) * 1j)])))

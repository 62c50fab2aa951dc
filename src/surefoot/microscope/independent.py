"""Which optimizers can be stepped one weight tensor at a time, and end with the same bits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim.optimizer import Optimizer, _global_optimizer_post_hooks, _global_optimizer_pre_hooks

INDEPENDENT = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Muon, torch.optim.Adafactor),
    *(torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax, torch.optim.NAdam),
    *(torch.optim.RAdam, torch.optim.Rprop, torch.optim.ASGD),
)
"""Whose update of a tensor depends on that tensor's gradient, values and state alone. A class derived from one of
these may do anything."""


def refused(parts: Iterable[Optimizer]) -> str | None:
    """Why the weights of these optimizers cannot be stepped one at a time, now; None if they can. Asked at each
    step: hooks, state and gradients come and go."""
    return next((why for part in parts if (why := refusal(part))), None)


def refusal(optimizer: Optimizer) -> str | None:
    """Why this optimizer's tensors cannot be stepped one at a time with the same result; None if they can."""
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        return "LBFGS updates all weights together: its direction comes from products over all of them"
    if type(optimizer) not in INDEPENDENT and not is_transformers_adafactor(optimizer):
        return f"{name} is not among the optimizers known to update each tensor by itself"
    step = vars(optimizer).get("step")
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        return f"{name}.step has been replaced, and what it does now is not known"
    own = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    if any([*own, _global_optimizer_pre_hooks, _global_optimizer_post_hooks]):
        return f"{name} has step hooks, which would be called once a tensor"
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if any(weight.is_complex() for weight in weights):
        return "some weights are complex numbers"
    if any(weight.grad is not None and weight.grad.is_sparse for weight in weights):
        return "some gradients are sparse"
    return _sgd_refusal(optimizer) if type(optimizer) is torch.optim.SGD else None


def _sgd_refusal(optimizer: Optimizer) -> str | None:
    for group in optimizer.param_groups:
        if not group["momentum"]:
            continue
        half = [weight for weight in group["params"] if weight.dtype.itemsize == 2]
        if group["fused"] and any(weight.device.type == "cpu" for weight in half):
            # Seen with torch 2.13: off by whole updates, and not by the same twice.
            return "torch's fused SGD with momentum is wrong for 16-bit weights on a CPU: use fused=false"
        # Until all have a buffer, foreach multiplies it by the momentum itself, later by its 16-bit rounding.
        begun = {"momentum_buffer" in optimizer.state.get(w, ()) for w in half if w.grad is not None}
        if len(begun) == 2 and not group["fused"] and group["foreach"] is not False:
            return "SGD with momentum, where some 16-bit weights have their first gradient later than others"
    return None


def is_transformers_adafactor(optimizer: Optimizer) -> bool:
    """Told by name: importing transformers takes seconds."""
    cls = type(optimizer)
    return (cls.__module__, cls.__name__) == ("transformers.optimization", "Adafactor")

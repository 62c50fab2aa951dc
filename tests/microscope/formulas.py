"""What the optimizers do, written down once more from the papers, in numpy, and steps of the optimizers themselves.

Each oracle yields, update by update, every line of the arithmetic by its name in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import Optimizer
from transformers.optimization import Adafactor

from surefoot.microscope.arithmetic import TensorStep

Array = np.ndarray
Oracle = Callable[..., Iterator[dict[str, Array]]]
CLIP = 0.37


def sgd(
    theta: Array,
    grads: list[Array],
    *,
    lr: float,
    momentum=0.0,
    dampening=0.0,
    nesterov=False,
    weight_decay=0.0,
):
    b = None
    for g in grads:
        out = {"g": g / CLIP, "clipped g": g}
        d = g
        if weight_decay:
            out["λθ"] = weight_decay * theta
            out["g + λθ"] = d = g + weight_decay * theta
        if momentum:
            out["b"] = b = d if b is None else momentum * b + (1 - dampening) * d
            if nesterov:
                out["g + μb"] = d = d + momentum * b
            else:
                d = b
        out["Δ"] = -lr * d
        theta = theta + out["Δ"]
        yield out


def adam(
    theta: Array, grads: list[Array], *, lr: float, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False,
    decoupled=False,
):  # fmt: skip
    m, v, top = 0 * theta, 0 * theta, 0 * theta
    for t, g in enumerate(grads, 1):
        out = {"g": g / CLIP, "clipped g": g}
        if weight_decay and not decoupled:
            out["λθ"] = weight_decay * theta
            out["g + λθ"] = g = g + weight_decay * theta
        out["m"] = m = betas[0] * m + (1 - betas[0]) * g
        out["v"] = v = betas[1] * v + (1 - betas[1]) * g**2
        if amsgrad:
            out["max v"] = top = np.maximum(top, v)
        out["m̂"] = m / (1 - betas[0] ** t)
        out["v̂"] = (top if amsgrad else v) / (1 - betas[1] ** t)
        out["−η·m̂/(√v̂+ε)"] = delta = -lr * out["m̂"] / (np.sqrt(out["v̂"]) + eps)
        if weight_decay and decoupled:
            out["−ηλθ"] = -lr * weight_decay * theta
            delta = delta + out["−ηλθ"]
        out["Δ"] = delta
        theta = theta + delta
        yield out


def adamw(theta: Array, grads: list[Array], **options: Any):
    return adam(theta, grads, decoupled=True, **options)


def adafactor(
    theta: Array, grads: list[Array], *, lr=0.0, eps=(1e-30, 1e-3), clip_threshold=1.0, decay_rate=-0.8,
    beta1: float | None = None, weight_decay=0.0, scale_parameter=True, relative_step=True, warmup_init=False,
):  # fmt: skip
    """Algorithm 4 and section 8 of the paper, with decay and, before it, momentum as transformers has them."""
    row = column = v = m = 0.0
    for t, g in enumerate(grads, 1):
        out = {"g": g / CLIP, "clipped g": g}
        rate = min(1e-6 * t if warmup_init else 1e-2, t**-0.5) if relative_step else lr
        rate = rate * max(eps[1], np.sqrt((theta**2).mean())) if scale_parameter else rate
        beta2 = 1 - t**decay_rate
        square = g**2 + eps[0]
        if g.ndim >= 2:
            row = beta2 * row + (1 - beta2) * square.mean(-1, keepdims=True)
            column = beta2 * column + (1 - beta2) * square.mean(-2, keepdims=True)
            v = row * column / row.mean(-2, keepdims=True)
        else:
            v = beta2 * v + (1 - beta2) * square
        out["v̂"] = v + 0 * g
        out["g/√v̂"] = u = g / np.sqrt(v)
        out["u"] = u = u / max(1.0, np.sqrt((u**2).mean()) / clip_threshold)
        if beta1 is None:
            out["−η·u"] = delta = -rate * u
        else:
            out["m"] = m = beta1 * m + (1 - beta1) * rate * u
            out["−m"] = delta = -m
        if weight_decay:
            out["−ηλθ"] = -rate * weight_decay * theta
            delta = delta + out["−ηλθ"]
        out["Δ"] = delta
        theta = theta + delta
        yield out


def muon(
    theta: Array,
    grads: list[Array],
    *,
    lr: float,
    weight_decay=0.1,
    momentum=0.95,
    nesterov=True,
    adjust=None,
):
    """The quintic acts on the singular values alone: here it does so in float64, for the optimizer in bf16."""
    b = 0 * theta
    for g in grads:
        out = {"g": g / CLIP, "clipped g": g}
        out["b"] = b = momentum * b + (1 - momentum) * g
        if nesterov:
            out["(1−μ)·g + μ·b"] = (1 - momentum) * g + momentum * b
        left, s, right = np.linalg.svd(out.get("(1−μ)·g + μ·b", b), full_matrices=False)
        s = s / np.sqrt((s**2).sum())
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        out["O"] = left * s @ right
        rows, columns = g.shape
        ratio = math.sqrt(max(1, rows / columns)) if adjust is None else 0.2 * math.sqrt(max(rows, columns))
        out["−η'·O"] = delta = -lr * ratio * out["O"]
        if weight_decay:
            out["−ηλθ"] = -lr * weight_decay * theta
            delta = delta + out["−ηλθ"]
        out["Δ"] = delta
        theta = theta + delta
        yield out


MATCH_RMS = {"adjust_lr_fn": "match_rms_adamw"}
Mode = dict[str, Any]
CASES: list[tuple[type[Optimizer], Oracle, dict[str, Any], dict[str, Any]]] = [
    (torch.optim.SGD, sgd, {"lr": 0.1}, {}),
    (torch.optim.SGD, sgd, {"lr": 0.1, "weight_decay": 0.3}, {}),
    (torch.optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.3}, {}),
    (torch.optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3}, {}),
    (torch.optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"foreach": False}),
    (torch.optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"foreach": True}),
    (torch.optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"fused": True}),
    (torch.optim.Adam, adam, {"lr": 0.01}, {}),
    (torch.optim.Adam, adam, {"lr": 0.01, "weight_decay": 0.3, "betas": (0.8, 0.95), "eps": 1e-3}, {}),
    (torch.optim.Adam, adam, {"lr": 0.01, "amsgrad": True}, {"foreach": True}),
    (torch.optim.AdamW, adamw, {"lr": 0.01, "weight_decay": 0.3}, {"fused": True}),
    (torch.optim.AdamW, adamw, {"lr": 0.01, "weight_decay": 0.3}, {"foreach": True}),
    (torch.optim.AdamW, adamw, {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}, {"foreach": False}),
    (Adafactor, adafactor, {}, {}),
    (Adafactor, adafactor, {"warmup_init": True, "weight_decay": 0.3, "beta1": 0.9}, {}),
    (Adafactor, adafactor, {"lr": 0.01, "relative_step": False, "scale_parameter": False, "weight_decay": 0.3}, {}),
    (Adafactor, adafactor, {"lr": 0.01, "relative_step": False, "clip_threshold": 0.5, "decay_rate": -0.5}, {}),
    (torch.optim.Muon, muon, {"lr": 0.01, "weight_decay": 0.3}, {}),
    (torch.optim.Muon, muon, {"lr": 0.01, "nesterov": False, "weight_decay": 0.0}, MATCH_RMS),
]  # fmt: skip
IDS = [f"{cls.__name__}-{index}" for index, (cls, *_) in enumerate(CASES)]
SHAPES: dict[type[Optimizer], list[tuple[int, ...]]] = {torch.optim.Muon: [(12, 20), (20, 12)]}


def steps(
    cls: type[Optimizer], options: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype, count: int = 4
) -> tuple[Array, list[Array], Iterator[TensorStep]]:
    """Weights, clipped gradients, and the optimizer's steps with them, one after the other."""
    torch.manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype))
    grads = [(torch.randn(shape, dtype=torch.float64) * 10**-i).to(dtype) for i in range(count)]
    grads[1].view(-1)[::3] = 0
    optimizer = cls([weight], **options)

    def go() -> Iterator[TensorStep]:
        for g in grads:
            weight.grad = g.clone()
            old = weight.detach().clone()
            optimizer.step()
            yield TensorStep(optimizer, optimizer.param_groups[0], weight, old, CLIP)

    return weight.detach().double().numpy().copy(), [g.double().numpy() for g in grads], go()

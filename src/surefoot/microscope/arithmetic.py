"""The optimizers' arithmetic, line by line, from what is there after a weight tensor was stepped.

Nothing is copied before the step but the old weights: momentum, m, v and Adafactor's rows and columns are read as
the step left them, and what it made of them follows. All of it in float64, so what the optimizer rounded shows.

`lines_of` gives a function from entries to the lines of their arithmetic, the last of which is Δ.

SGD as torch writes it; Adam, Kingma and Ba 2015; AdamW, Loshchilov and Hutter 2019; Adafactor, Shazeer and Stern
2018, as transformers writes it; Muon, Jordan 2024, as torch writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, _default_to_fused_or_foreach

from surefoot.microscope.independent import is_transformers_adafactor
from surefoot.microscope.parts import numbers_over_parts
from surefoot.train.distributed import local

PIECE = 1 << 18
"""Entries looked at together on a CPU, 2 MB a line: with fewer, counting them costs more than the cache saves."""
WHOLE = 1 << 20
"""The same on a GPU."""

Pick = slice | torch.Tensor
"""Entries of a flattened tensor: a piece, or int64 indices."""


@dataclass(frozen=True)
class TensorStep:
    """A weight tensor just after its step. Sharded tensors stand for their local parts."""

    part: Optimizer
    group: Mapping[str, Any]
    weight: torch.Tensor
    """As stored now; `.grad` is the clipped gradient it was stepped with."""
    old: torch.Tensor
    """Its values before."""
    clip_factor: float = 1.0
    """What the gradient was multiplied by."""


@dataclass(frozen=True)
class Line:
    """One line of the arithmetic, for the entries picked."""

    name: str
    value: torch.Tensor
    """float64 [entries]."""
    formula: str


Lines = Callable[[Pick], list[Line]]


def lines_of(step: TensorStep) -> Lines | None:
    """The arithmetic of the optimizer; None where it is not written down here.

    All ranks call this for the same tensors in the same order: Muon needs the whole matrix, Adafactor its RMS.
    """
    kind = type(step.part)
    if kind is torch.optim.SGD:
        return _sgd(step)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        return _adam(step)
    if kind is torch.optim.Muon:
        return _muon(step)
    if is_transformers_adafactor(step.part):
        return _adafactor(step)
    return None


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The local part of a tensor, in one dimension."""
    return local(tensor).reshape(-1)


def gradient_lines(step: TensorStep, clipped: torch.Tensor) -> list[Line]:
    """The first two lines of every optimizer."""
    if step.clip_factor == 1:
        return [Line("g", clipped, "∂ loss / ∂ θ"), Line("clipped g", clipped, "g, not clipped")]
    return [
        Line("g", clipped / step.clip_factor, "∂ loss / ∂ θ"),
        Line("clipped g", clipped, f"{number(step.clip_factor)} · g"),
    ]


def number(x: float) -> str:
    """As formulas write it."""
    return f"{x:.6g}"


def _one(name: str) -> str:
    """A name as a factor."""
    return f"({name})" if "+" in name else name


@dataclass
class _Ledger:
    """Lines as they are written, and the number that the next one goes on with."""

    lines: list[Line]
    at: torch.Tensor
    name: str

    def write(self, name: str, value: torch.Tensor, formula: str) -> torch.Tensor:
        self.lines.append(Line(name, value, formula))
        self.at, self.name = value, name
        return value


def _begin(step: TensorStep, clipped: torch.Tensor) -> _Ledger:
    """The gradient's lines, its sign turned where the optimizer climbs."""
    ledger = _Ledger(gradient_lines(step, clipped), clipped, "clipped g")
    if step.group.get("maximize"):
        ledger.write("−g", -clipped, "−clipped g: the optimizer maximizes")
    return ledger


def _add_decay(ledger: _Ledger, decay: float, old: torch.Tensor) -> None:
    """Weight decay as a part of the gradient."""
    if decay:
        gradient, name = ledger.at, ledger.name
        term = ledger.write("λθ", decay * old, f"{number(decay)} · θ")
        ledger.write("g + λθ", gradient + term, f"{name} + λθ")


def _end(ledger: _Ledger, lr: float, decay: float, old: torch.Tensor) -> list[Line]:
    """Weight decay beside the gradient, and Δ."""
    update, name = ledger.at, ledger.name
    if decay:
        term = ledger.write("−ηλθ", -lr * decay * old, f"−{number(lr)} · {number(decay)} · θ")
        ledger.write("Δ", update + term, f"{name} − ηλθ")
    else:
        ledger.write("Δ", update, name)
    return ledger.lines


def state_of(step: TensorStep) -> Mapping[str, Any]:
    # Not by [], which would make an entry where there is none.
    return step.part.state.get(step.weight, {})


def _sgd(step: TensorStep) -> Lines:
    group = step.group
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    momentum, dampening, nesterov = group["momentum"], group["dampening"], group["nesterov"]
    old, grad = flat(step.old), flat(_gradient(step))
    buffer = flat(state_of(step)["momentum_buffer"]) if momentum else None
    overwritten = nesterov and not decay and not group["maximize"] and _foreach(step)

    def lines(pick: Pick) -> list[Line]:
        theta, clipped = old[pick].double(), grad[pick].double()
        b = None if buffer is None else buffer[pick].double()
        if overwritten:
            # torch's foreach adds the momentum to the gradient in place.
            assert b is not None
            clipped = clipped - momentum * b
        ledger = _begin(step, clipped)
        _add_decay(ledger, decay, theta)
        if b is not None:
            direction, name = ledger.at, ledger.name
            new = f"{number(1 - dampening)} · {_one(name)} (the first time {name})" if dampening else name
            ledger.write("b", b, f"{number(momentum)} · b + {new}")
            if nesterov:
                ledger.write("g + μb", direction + momentum * b, f"{name} + {number(momentum)} · b")
        ledger.write("Δ", -lr * ledger.at, f"−{number(lr)} · {_one(ledger.name)}")
        return ledger.lines

    return lines


def _foreach(step: TensorStep) -> bool:
    """Whether the step was taken by torch's foreach, which it chooses by itself on a GPU."""
    group = step.group
    if group.get("fused") or group.get("foreach") is not None:
        return bool(group.get("foreach"))
    weights = [step.weight]
    return _default_to_fused_or_foreach(weights, group["differentiable"])[1]


def _gradient(step: TensorStep) -> torch.Tensor:
    assert step.weight.grad is not None, "the weight had no gradient, so it was not stepped"
    return step.weight.grad


def _adam(step: TensorStep) -> Lines:
    group, state = step.group, state_of(step)
    lr, decay, eps = float(group["lr"]), float(group["weight_decay"]), float(group["eps"])
    beta1, beta2 = map(float, group["betas"])
    count = round(float(state["step"]))
    correction1, correction2 = 1 - beta1**count, 1 - beta2**count
    decoupled = decouples(step)
    old, grad = flat(step.old), flat(_gradient(step))
    first, second = flat(state["exp_avg"]), flat(state["exp_avg_sq"])
    largest = flat(state["max_exp_avg_sq"]) if group["amsgrad"] else None

    def lines(pick: Pick) -> list[Line]:
        theta = old[pick].double()
        ledger = _begin(step, grad[pick].double())
        _add_decay(ledger, 0.0 if decoupled else decay, theta)
        g = ledger.name
        m, v = first[pick].double(), second[pick].double()
        ledger.write("m", m, f"{number(beta1)} · m + {number(1 - beta1)} · {_one(g)}")
        ledger.write("v", v, f"{number(beta2)} · v + {number(1 - beta2)} · ({g})²")
        if largest is not None:
            v = ledger.write("max v", largest[pick].double(), "max(max v, v)")
        m = ledger.write("m̂", m / correction1, f"m / (1 − {number(beta1)}^{count})")
        name = "v" if largest is None else "max v"
        v = ledger.write("v̂", v / correction2, f"{name} / (1 − {number(beta2)}^{count})")
        update = -lr * m / (v.sqrt() + eps)
        ledger.write("−η·m̂/(√v̂+ε)", update, f"−{number(lr)} · m̂ / (√v̂ + {number(eps)})")
        return _end(ledger, lr, decay if decoupled else 0.0, theta)

    return lines


def decouples(step: TensorStep) -> bool:
    """Whether Adam's weight decay is AdamW's: beside the gradient, not in it."""
    return bool(step.group.get("decoupled_weight_decay", isinstance(step.part, torch.optim.AdamW)))


def _adafactor(step: TensorStep) -> Lines:
    group, state = step.group, state_of(step)
    decay, threshold, beta1 = float(group["weight_decay"]), group["clip_threshold"], group["beta1"]
    lr, scaled = adafactor_rate(group, state)
    beta2 = 1 - math.pow(state["step"], group["decay_rate"])
    old, grad = flat(step.old), flat(_gradient(step))
    factored = step.weight.ndim >= 2
    if factored:
        columns, matrix = step.weight.shape[-1], math.prod(step.weight.shape[-2:])
        row_R = state["exp_avg_sq_row"].double()
        row_R = flat(row_R / row_R.mean(dim=-1, keepdim=True))
        column_C = flat(state["exp_avg_sq_col"]).double()
        v_is = "row · column / mean of the rows"
    else:
        columns = matrix = 1
        row_R = column_C = flat(state["exp_avg_sq"]).double()
        v_is = f"{number(beta2)} · v̂ + {number(1 - beta2)} · (g² + {number(group['eps'][0])})"

    def second(pick: Pick, device: torch.device) -> torch.Tensor:
        if not factored:
            return row_R[pick]
        index = torch.arange(pick.start, pick.stop, device=device) if isinstance(pick, slice) else pick
        return row_R[index // columns] * column_C[index // matrix * columns + index % columns]

    total = 0.0
    for piece in pieces(grad):
        g = grad[piece].double()
        total += (g / second(piece, g.device).sqrt()).square().sum().item()
    (total,) = numbers_over_parts([total], step.weight)
    rms = math.sqrt(total / max(1, step.weight.numel()))
    clip = max(1.0, rms / threshold)

    def lines(pick: Pick) -> list[Line]:
        theta = old[pick].double()
        ledger = _begin(step, grad[pick].double())
        g = ledger.at
        v = ledger.write("v̂", second(pick, g.device), v_is)
        relative = ledger.write("g/√v̂", g / v.sqrt(), "clipped g / √v̂")
        over = f"{number(rms)} / {number(threshold)}"
        u = ledger.write("u", relative / clip, f"g/√v̂ / max(1, {over}): its RMS over the tensor's threshold")
        if beta1 is not None:
            m = flat(state["exp_avg"])[pick].double()
            ledger.write("m", m, f"{number(beta1)} · m + {number(1 - beta1)} · {scaled} · u")
            ledger.write("−m", -m, "−m")
        else:
            ledger.write("−η·u", -lr * u, f"−{scaled} · u")
        return _end(ledger, lr, decay, theta)

    return lines


def adafactor_rate(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[float, str]:
    """Adafactor's learning rate at this step for this tensor, and how it comes about."""
    lr, why = group["lr"], ""
    if group["relative_step"]:
        least = 1e-6 * state["step"] if group["warmup_init"] else 1e-2
        lr = min(least, 1 / math.sqrt(state["step"]))
    text = number(float(lr))
    if group["scale_parameter"]:
        rms = state["RMS"]
        scale = max(float(group["eps"][1]), float(rms.full_tensor() if isinstance(rms, DTensor) else rms))
        lr, why = scale * lr, f" · {number(scale)} (RMS of θ)"
    return float(lr), f"{text}{why}"


def _muon(step: TensorStep) -> Lines:
    # torch's own, so that the matrix comes out with the optimizer's bits: it is made of bf16 products.
    from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

    group = step.group
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    momentum, nesterov = group["momentum"], group["nesterov"]
    adjusted = _adjust_lr(lr, group["adjust_lr_fn"], step.weight.shape)
    grad, buffer = _gradient(step), state_of(step)["momentum_buffer"]
    old, whole_grad, whole_buffer = flat(step.old), flat(grad), flat(buffer)
    with torch.no_grad():
        update = grad.lerp(buffer, momentum) if nesterov else buffer
        update = _zeropower_via_newtonschulz(
            update, group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
    orthogonal = flat(update)

    def lines(pick: Pick) -> list[Line]:
        theta, b = old[pick].double(), whole_buffer[pick].double()
        ledger = _begin(step, whole_grad[pick].double())
        g, mu, rest = ledger.at, number(momentum), number(1 - momentum)
        ledger.write("b", b, f"{mu} · b + {rest} · clipped g")
        if nesterov:
            mixed = (1 - momentum) * g + momentum * b
            ledger.write("(1−μ)·g + μ·b", mixed, f"{rest} · clipped g + {mu} · b")
        name = ledger.name
        o = ledger.write("O", orthogonal[pick].double(), f"the matrix {name}, made orthogonal")
        ratio = number(adjusted / lr) if lr else "its ratio"
        ledger.write("−η'·O", -adjusted * o, f"−{number(lr)} · {ratio} · O, {ratio} for the matrix's shape")
        return _end(ledger, lr, decay, theta)

    return lines


def pieces(tensor: torch.Tensor) -> list[slice]:
    """A flat tensor in pieces of bounded size; one, empty, of an empty tensor."""
    size = PIECE if tensor.device.type == "cpu" else WHOLE
    count = tensor.numel()
    return [slice(start, min(start + size, count)) for start in range(0, max(1, count), size)]

"""How far off a way of computing is, and how far off it may be.

`Budget` holds the numbers and why they are what they are; `compared` measures one way against the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from surefoot.train.textbook import Found

ROUNDINGS = 8
"""Roundings of a decoder layer that do not cancel: norm, q/k, scores, values, output, norm, two of the MLP."""
SUMMED = 8
"""What a product adds when it is summed in the type it rounds to (fp32), in roundings: measured 5-6."""
SLIGHT = 1e-3
"""A weight whose gradient is less than this share of the whole is measured against this share of the whole: the
true gradient of a key's bias is zero."""


@dataclass(frozen=True)
class Budget:
    """How far off a path may be: 1.1 × what the definition is off by at the same precision, and a floor.

    The floor is in units of `noise`, what rounding adds up to on the way through the model: half a unit in the
    last place × √(8 × layers). SmolLM2-135M, 30 layers: 3e-02 in bf16, where 3-5e-02 is measured; 7e-06 in fp32,
    where 4-5e-06 is measured. Two sound paths are independent draws of that size, so on a hundred tokens one may
    well be off by half as much again as the other, and a single weight by several times.
    """

    noise: float
    loss: float
    gradient: float
    weight: float
    factor: float = 1.1

    @classmethod
    def of_formula(cls, dtype: torch.dtype, layers: int) -> Budget:
        """Both paths in float32 or float64 weights. Models compute norms and rotary angles in float32 even when
        their weights are float64, so that float64 has float32's noise, less what its products would add."""
        noise = rounding(torch.float32, layers) / (SUMMED if dtype == torch.float64 else 1)
        return cls(noise, 4 * noise, 4 * noise, 32 * noise)

    @classmethod
    def of_arithmetic(cls, dtype: torch.dtype, layers: int) -> Budget:
        """At the run's own precision."""
        noise = rounding(dtype, layers)
        return cls(noise, noise, noise, 4 * noise)


def rounding(dtype: torch.dtype, layers: int) -> float:
    """Relative error that rounding to `dtype` leaves behind after so many layers."""
    exact = torch.finfo(dtype).bits >= 32
    return torch.finfo(dtype).eps / 2 * math.sqrt(ROUNDINGS * layers) * (SUMMED if exact else 1)


@dataclass(frozen=True)
class Comparison:
    """One number that was compared with the reference; errors are relative."""

    case: str
    level: str
    """"formula" or "arithmetic"."""
    what: str
    """"loss", "gradient" (of all weights looked at, as one vector) or "weight" (the worst of them)."""
    error: float
    naive: float | None
    """What the definition itself is off by at the same precision; None for the formula."""
    budget: float
    weight: str | None = None
    """Name of the worst weight."""

    @property
    def ok(self) -> bool:
        return self.error <= self.budget  # false for a NaN

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "ok": self.ok}

    def __str__(self) -> str:
        named = {"loss": "the loss", "gradient": "the gradient"}.get(
            self.what, f"the gradient of {self.weight}"
        )
        return f"{named} on {self.case} is off by {self.error:.1e} ({self.budget:.1e} allowed)"


def compared(
    case: str, level: str, budget: Budget, want: Found, got: Found, naive: Found | None
) -> list[Comparison]:
    """Loss, gradient and the worst weight of `got` (and of `naive`, for the budget) against the reference."""

    def comparison(
        what: str, error: float, own: float, floor: float, weight: str | None = None
    ) -> Comparison:
        known = None if naive is None else own
        return Comparison(case, level, what, error, known, budget.factor * own + floor, weight)

    off, own_off = (_loss_error(want, found) for found in (got, naive or want))
    errors, own = (_distances(want, found) for found in (got, naive or want))
    size = {name: gradient.norm().double().item() for name, gradient in want.gradients.items()}
    whole = math.hypot(*size.values())
    # Rounding noise comes from the whole model: at the run's own precision a slight gradient drowns in it.
    least = whole * (SLIGHT if level == "formula" else 1 / math.sqrt(len(size)))
    weights = []
    for name in errors:
        scale = max(size.get(name, 0.0), least)
        weights.append(comparison("weight", errors[name] / scale, own[name] / scale, budget.weight, name))
    return [
        comparison("loss", off, own_off, budget.loss),
        comparison(
            "gradient",
            math.hypot(*errors.values()) / whole,
            math.hypot(*own.values()) / whole,
            budget.gradient,
        ),
        max(weights, key=lambda c: c.error / c.budget if math.isfinite(c.error) else math.inf),
    ]


def _loss_error(want: Found, got: Found) -> float:
    return ((got.nll_E - want.nll_E).norm() / want.nll_E.norm()).item()


def _distances(want: Found, got: Found) -> dict[str, float]:
    """By weight, the norm of the difference; a gradient that is not there is zero."""
    out = {}
    for name, gradient in want.gradients.items():
        other = got.gradients.get(name)
        difference = gradient if other is None else other.to(gradient.dtype) - gradient
        out[name] = difference.norm().double().item()
    missing = got.gradients.keys() - want.gradients.keys()
    return out | {name: got.gradients[name].norm().double().item() for name in missing}

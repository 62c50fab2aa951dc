"""What every N-th update tells of each tensor: norms of gradient, weight and update, measured as it happens.

The optimizer goes one tensor at a time, so the weights of one tensor are all that is ever held twice, and each
tensor is read in pieces that stay in the processor's cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from surefoot.events import TensorsEvent
from surefoot.microscope.parts import over_parts
from surefoot.train.distributed import local
from surefoot.train.optim import Turn
from surefoot.train.step import Change

PIECE = 1 << 18
"""Entries of a tensor that are looked at together on a CPU: 1 MB in float32."""
WHOLE = 1 << 26
"""The same on a GPU."""


@dataclass(frozen=True)
class TensorNumbers:
    """One tensor at one update. The gradient is not clipped."""

    grad_norm: float
    zero_share: float
    weight_norm: float
    """Before the update."""
    update_norm: float
    lost_share: float
    """Of the entries that the update would move, those that are the same in bf16 after as before."""


class Recorder:
    """Steps each weight in its turn (a `Stepping`), and keeps `TensorNumbers` of it."""

    def __init__(self) -> None:
        self.found: dict[str, TensorNumbers] = {}
        self.narrow = (0.0, 0.0)
        """Of bf16 weights: entries that an update would move, and those of them that it did not."""
        self.seconds = 0.0

    def __call__(self, turn: Turn, change: Change) -> None:
        started = time.perf_counter()
        old, gradient = local(turn.weight).clone(), turn.gradient
        copied = time.perf_counter()
        turn.step()
        stepped = time.perf_counter()
        self.add(turn, change, old, gradient)
        self.seconds += time.perf_counter() - stepped + copied - started

    def add(self, turn: Turn, change: Change, old: torch.Tensor, gradient: torch.Tensor) -> None:
        """Compare a tensor that has had its turn with its `old` values; `gradient` is the clipped one."""
        rate = float(turn.group["lr"])
        found, asked, lost = numbers(old, turn.weight, gradient, change.clip_factor, rate)
        self.found[turn.name] = found
        if turn.weight.dtype == torch.bfloat16:
            self.narrow = self.narrow[0] + asked, self.narrow[1] + lost

    def event(self, step: int, names: Sequence[str]) -> TensorsEvent:
        """The numbers of the tensors `names`, a list of each; 0 for one that had no gradient."""
        none = TensorNumbers(0.0, 1.0, 0.0, 0.0, 0.0)
        rows = [self.found.get(name, none) for name in names]
        return TensorsEvent(
            step=step,
            grad_norm=[row.grad_norm for row in rows],
            zero_share=[row.zero_share for row in rows],
            weight_norm=[row.weight_norm for row in rows],
            update_norm=[row.update_norm for row in rows],
            lost_share=[row.lost_share for row in rows],
        )


@torch.no_grad()
def numbers(
    old: torch.Tensor, new: torch.Tensor, grad: torch.Tensor, clip_factor: float, learning_rate: float
) -> tuple[TensorNumbers, float, float]:
    """Compare a tensor before and after, of which `old` is the local part; sums go over all ranks that hold one.

    Also returns how many entries the update would move, and how many of these are the same in bf16.

    The update moves a weight whose gradient is not 0 even if its stored value is the same, unless the learning rate
    is 0: what rounding lost left no other trace.
    """
    size = PIECE if old.device.type == "cpu" else WHOLE
    exact = torch.float64 if old.dtype == torch.float64 else torch.float32
    sums = torch.zeros(7, dtype=torch.float64, device=old.device)
    flat = (old.flatten(), local(new).flatten(), local(grad).flatten())
    for start in range(0, old.numel(), size):
        a, b, g = (part[start : start + size] for part in flat)
        asked = (a != b) | (g != 0) if learning_rate > 0 else a != b
        lost = asked & (a.to(torch.bfloat16) == b.to(torch.bfloat16))
        a, b, g = a.to(exact), b.to(exact), g.to(exact)
        step = b - a
        counted = (torch.count_nonzero(g), torch.count_nonzero(asked), torch.count_nonzero(lost))
        squares = (torch.dot(g, g), torch.dot(a, a), torch.dot(step, step))
        sums[:6] += torch.stack([*(x.double() for x in squares), *(x.double() for x in counted)])
    sums[6] = old.numel()
    g2, a2, d2, nonzero, asked, lost, entries = over_parts(sums, new).tolist()
    found = TensorNumbers(
        grad_norm=g2**0.5 / clip_factor,
        zero_share=1 - nonzero / max(1, entries),
        weight_norm=a2**0.5,
        update_norm=d2**0.5,
        lost_share=lost / max(1, asked),
    )
    return found, asked, lost


@torch.no_grad()
def square(tensor: torch.Tensor) -> float:
    """Squared norm of a tensor's local part, added up piece by piece in float64."""
    size = PIECE if tensor.device.type == "cpu" else WHOLE
    exact = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    total = torch.zeros((), dtype=torch.float64, device=tensor.device)
    for piece in tensor.flatten().split(size):
        piece = piece.to(exact)
        total += torch.dot(piece, piece)
    return total.item()

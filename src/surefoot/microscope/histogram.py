"""All weights before and after an update, counted exactly, without a copy of the model and without a min/max pass.

1. `Counts.add` takes a tensor, or a part of one, and counts its values by the top 16 bits of their float32 form:
   sign, exponent and 7 bits of mantissa, the bits of a bf16. |Δ| = |new − old|, as stored, is counted likewise.
2. Counts of several shards are added up: they are integers, so the sum is exact (`integers`, `reals`).
3. `Counts.weights` bins them anew for a picture. Its edges are borders of the fine bins, so no count is split or
   guessed: each picture bin is a sum of fine ones.

A fine bin of positive values is [border, next border) and of negative ones the mirror image of that. The picture's
bins are the same: an edge belongs to the bin farther from 0. (numpy's histogram gives a negative edge to the bin
nearer to 0; nothing else is different.) Both zeros and all else within half a bin of 0 are in the middle bin.
Infinities and NaN are counted, by their bits, and are `outside` of every picture. float64 is rounded to float32
to be counted. Subnormals are values like any others.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np
import torch

from surefoot.microscope.panels import Histogram, Weights

KEYS = 1 << 16
PIECE = 1 << 18
"""Entries counted together on a CPU: they stay in its cache."""
WHOLE = 1 << 22
"""The same on a GPU."""
CENTRAL = 0.999
"""Share of the values that a picture's axis holds; the rest is `outside`."""
BINS = 120

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_INFINITY = 0x7F80
_BORDERS = (np.arange(_INFINITY, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
_BORDERS = np.append(_BORDERS, 2.0**128)
"""Lower border of the fine bins of positive values, and where float32 ends."""


@dataclass(frozen=True)
class Moved:
    """What became of a tensor's entries, or of a part's. Parts are added with +."""

    count: int = 0
    asked: int = 0
    """Δ ≠ 0 before it was rounded, where that is known; else the stored value changed."""
    lost: int = 0
    """Of these, the same in bf16 after as before."""
    stored_lost: int = 0
    """Of these, the stored value is the same."""
    still: int = 0
    """The stored value is the same, asked or not."""
    weight_square: float = 0.0
    """Σθ² before the update."""
    update_square: float = 0.0
    """ΣΔ², Δ = new − old as stored."""

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            self.count + other.count,
            self.asked + other.asked,
            self.lost + other.lost,
            self.stored_lost + other.stored_lost,
            self.still + other.still,
            self.weight_square + other.weight_square,
            self.update_square + other.update_square,
        )


class Counts:
    """Adds up weights before and after, tensor by tensor or part by part.

    `device` is where the tensors are; 1.5 MB are held there.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.moved = Moved()
        self.by_dtype = [0] * len(DTYPES)
        self._keys = torch.zeros(3, KEYS, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, old: torch.Tensor, new: torch.Tensor, asked: torch.Tensor | None = None) -> Moved:
        """Count `old` and `new`, of one shape and dtype, and return what this call alone found.

        `asked`, bool of the same shape: entries that the update was to move, known from the optimizer's arithmetic.
        Without it they are those whose stored value changed, which for bf16 weights hides what was lost.
        """
        assert old.shape == new.shape and old.dtype == new.dtype, "not the same weight"
        flat = [old.flatten(), new.flatten(), *(() if asked is None else (asked.flatten(),))]
        size = PIECE if old.device.type == "cpu" else WHOLE
        found = Moved()
        for start in range(0, old.numel(), size):
            found += self._piece(*(part[start : start + size] for part in flat))
        self.moved += found
        self.by_dtype[DTYPES.index(old.dtype)] += found.count
        return found

    def _piece(self, old: torch.Tensor, new: torch.Tensor, asked: torch.Tensor | None = None) -> Moved:
        changed = old != new
        asked = changed if asked is None else asked
        lost = asked & (old.to(torch.bfloat16) == new.to(torch.bfloat16))
        before, after = old.double(), new.double()
        update = after - before
        for row, values in enumerate((old, new, update.abs())):
            key = (values.float().view(torch.int32) >> 16) & 0xFFFF
            self._keys[row] += torch.bincount(key, minlength=KEYS)
        counts = [torch.count_nonzero(x) for x in (asked, lost, asked & ~changed, ~changed)]
        squares = [torch.dot(before, before), torch.dot(update, update)]
        # expensive on a GPU: one wait per piece
        asked_, lost_, stored, still = torch.stack(counts).tolist()
        return Moved(old.numel(), asked_, lost_, stored, still, *torch.stack(squares).tolist())

    def integers(self) -> torch.Tensor:
        """int64 [3 · 65536 + 9]: everything that is a count. Those of shards add up exactly."""
        counts = astuple(self.moved)[:5]
        scalars = torch.tensor([*counts, *self.by_dtype], dtype=torch.int64, device=self._keys.device)
        return torch.cat([self._keys.flatten(), scalars])

    def reals(self) -> torch.Tensor:
        """float64 [2]: the sums of squares. Those of shards add up."""
        squares = [self.moved.weight_square, self.moved.update_square]
        return torch.tensor(squares, dtype=torch.float64, device=self._keys.device)

    @classmethod
    def of(cls, integers: torch.Tensor, reals: torch.Tensor) -> Counts:
        """The inverse of `integers` and `reals`, for sums over shards."""
        made = cls(integers.device)
        made._keys = integers[: 3 * KEYS].reshape(3, KEYS).clone()
        scalars = integers[3 * KEYS :].tolist()
        made.moved = Moved(*scalars[:5], *reals.tolist())
        made.by_dtype = scalars[5:]
        return made

    def weights(self, prefix: str = "weights") -> tuple[Weights, dict[str, np.ndarray]]:
        """Panel 7, and the exact counts as arrays int64 [65536] that it names."""
        moved = self.moved
        before, after, change = self._keys.cpu().numpy()
        edges = linear_edges(before + after)
        weight, update = math.sqrt(moved.weight_square), math.sqrt(moved.update_square)
        names = f"{prefix}_before", f"{prefix}_after"
        panel = Weights(
            count=moved.count,
            dtype=" and ".join(_name(d) for d, n in zip(DTYPES, self.by_dtype, strict=True) if n),
            asked=moved.asked,
            lost=moved.lost,
            lost_share=moved.lost / max(1, moved.asked),
            lost_means=self._lost_means(),
            stored_lost=moved.stored_lost,
            weight_norm=weight,
            update_norm=update,
            update_ratio=update / weight if weight else (math.inf if update else 0.0),
            before=rebin(before, edges),
            after=rebin(after, edges),
            change=log_histogram(change, moved.still),
            counts_before=names[0],
            counts_after=names[1],
        )
        return panel, {names[0]: before.copy(), names[1]: after.copy()}

    def _lost_means(self) -> str:
        kept = [_name(d) for d, n in zip(DTYPES, self.by_dtype, strict=True) if n and d != torch.bfloat16]
        if not kept:
            return "lost: the weights are bf16"
        copies = f"the weights are {' and '.join(kept)}; only their bf16 copies are unchanged"
        return (
            f"lost in the bf16 weights; kept in the others: {copies}"
            if self.by_dtype[0]
            else f"kept: {copies}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def linear_edges(counts: np.ndarray) -> np.ndarray:
    """Edges float64 [88 to 172], symmetric around a middle bin, that hold 99.9 % of the finite values.

    They are odd multiples, up to 171, of a power of two: 8 bits, so each is a border of fine bins.
    """
    size = (counts[: KEYS // 2] + counts[KEYS // 2 :])[:_INFINITY]
    reach = 1.0
    if size.sum():
        reach = _BORDERS[_first_reaching(size, CENTRAL) + 1]
    exponent = min(120, max(-133, math.ceil(math.log2(reach / 170))))
    half = 2.0**exponent
    n = max(0, math.ceil((min(reach / half, 170.0) - 1) / 2))
    positive = half * np.arange(1, 2 * n + 2, 2)
    assert np.isin(positive, _BORDERS).all(), "an edge is no border"
    return np.concatenate([-positive[::-1], positive])


def _first_reaching(size: np.ndarray, share: float) -> int:
    """The first fine bin at which `share` of all is counted."""
    total = np.cumsum(size)
    return int(np.searchsorted(total, max(1, math.ceil(share * int(total[-1])))))


def rebin(counts: np.ndarray, edges: np.ndarray) -> Histogram:
    """Counts [65536] between `edges` from `linear_edges`: sums of fine bins."""
    bins = len(edges) - 1
    place = np.searchsorted(edges, _BORDERS[:_INFINITY], side="right") - 1
    inside = place < bins
    found = np.zeros(bins, np.int64)
    np.add.at(found, place[inside], counts[:_INFINITY][inside])
    negative = counts[KEYS // 2 : KEYS // 2 + _INFINITY]
    np.add.at(found, bins - 1 - place[inside], negative[inside])
    outside = int(counts.sum()) - int(found.sum())
    return Histogram(edges=edges.tolist(), counts=found.tolist(), outside=outside)


def log_histogram(counts: np.ndarray, zeros: int) -> Histogram:
    """log10 of positive values, counts [65536], of which `zeros` are exactly 0.

    From where 0.1 % lie below to the largest that is finite, at least a decade. Edges are fine borders, so they
    are not quite evenly spaced: off by at most 0.2 % of the value. Below 2⁻¹³³ is outside.
    """
    size = counts[:_INFINITY].copy()
    size[0] = 0
    log = np.log10(_BORDERS[1:])
    low, high = -12.0, 0.0
    if size.sum():
        low, high = log[_first_reaching(size, 1 - CENTRAL) - 1], log[np.flatnonzero(size)[-1]]
        wider = max(0.0, 1.0 - (high - low)) / 2
        low, high = max(log[0], low - wider), min(log[-1], high + wider)
    wanted = np.linspace(low, high, BINS + 1)
    above = np.clip(np.searchsorted(log, wanted), 1, len(log) - 1)
    nearest = above - (wanted - log[above - 1] < log[above] - wanted)
    keys = np.unique(nearest) + 1
    total = np.concatenate([[0], np.cumsum(size)])
    found = total[keys[1:]] - total[keys[:-1]]
    outside = int(counts.sum()) - zeros - int(found.sum())
    return Histogram(edges=log[keys - 1].tolist(), counts=found.tolist(), zeros=zeros, outside=outside)

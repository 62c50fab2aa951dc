"""Weights of which each rank has a part, or all: what is added up over a weight's entries goes over both alike.

Sums over what passes through the model are another matter: examples are always divided among the ranks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor

from surefoot.ranks import add_up, add_up_numbers, told


def in_parts(weight: torch.Tensor) -> bool:
    """Whether each rank has only some rows of the weight. Else each has all, and computes what the others do."""
    return isinstance(weight, DTensor)


def over_parts(sums: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Sums over the entries of `local(of)`, made those over all entries. All ranks must call it."""
    return add_up(sums) if in_parts(of) else sums


def numbers_over_parts(sums: Iterable[float], of: torch.Tensor) -> list[float]:
    """The same of numbers."""
    return add_up_numbers(sums) if in_parts(of) else list(sums)


def said_of_parts(text: str, of: torch.Tensor) -> str:
    """What the rank says that has the entry of `of` in question; the others say "". All ranks must call it."""
    return told(text) if in_parts(of) else text

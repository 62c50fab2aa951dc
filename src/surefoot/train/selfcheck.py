"""This model, these rows: is the path that training takes the textbook one?

1. Cases are chosen from the rows, such as can tell one path from another: side by side, sharing a prefix, beyond
   the sliding window, one token long.
2. The reference is the definition (`textbook.by_the_book`) in higher precision.
3. The formula: the fast path at the reference's precision. Only the order of sums may differ, so a fault of a
   thousandth shows, which bf16's own noise would cover.
4. The arithmetic: the fast path as training runs it. Its error may exceed that of the definition at the same
   precision by a tenth, and the floor of `Budget`.
5. Where a path exceeds its budget, the next slower one is tried: prefixes not shared, rows one at a time, logits
   by the model itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from surefoot.data.rows import Example
from surefoot.errors import UserError
from surefoot.model.network import Network, embedding_rows
from surefoot.train.budget import Budget, Comparison, compared
from surefoot.train.cases import Case, brief_case, cases
from surefoot.train.hardware import free_bytes
from surefoot.train.textbook import (
    Found,
    as_trained,
    by_the_book,
    weights_in,
    without_dropout,
)

LOOKED_AT = 1_000
"""Examples that the short form chooses from."""


@dataclass(frozen=True)
class Verdict:
    """What a check found, and the path to train with."""

    network: Network
    """The fastest path that is within its budget; its reasons say what was given up. The one given, if none is."""
    exact: bool
    comparisons: tuple[Comparison, ...]
    """Of `network`."""
    refused: tuple[str, ...]
    """Why faster paths are not taken, a sentence each."""
    reference: str
    """Type that the reference was computed in."""
    rows: int
    tokens: int
    dropout: bool
    """There is dropout, and it was off for the comparison."""
    seconds: float

    def worst(self, what: str) -> Comparison:
        """The comparison of `what` that comes nearest to its budget, at the run's own precision if it has one."""
        found = [c for c in self.comparisons if c.what == what]
        own = [c for c in found if c.level == "arithmetic"] or found
        return max(own, key=lambda c: c.error / c.budget)

    @property
    def line(self) -> str:
        """For the terminal."""

        def said(what: str) -> str:
            found = self.worst(what)
            naive = "" if found.naive is None else f" (the plain path: {found.naive:.1e})"
            return f"{what} off by {found.error:.1e}{naive}"

        off = ", dropout off" if self.dropout else ""
        return f"checked on {self.rows} rows: {said('loss')}, {said('gradient')}{off}"

    def to_dict(self) -> dict[str, Any]:
        """For run.json: every number."""
        plain = ("exact", "reference", "rows", "tokens", "dropout", "seconds")
        path = {"merged": self.network.merged, "packed": self.network.packed}
        return {
            **{name: getattr(self, name) for name in plain},
            "path": {**path, "head": self.network.head is not None},
            "refused": list(self.refused),
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
        }


# The two forms ---------------------------------------------------------------------------------------------


def quick(network: Network, examples: Sequence[Example]) -> Verdict:
    """The short form, at the start of every run: a few short rows, cut to 60 tokens in all.

    It asks for the gradients of the embedded tokens, of all 1-D weights (norms, biases), and of the matrices of
    an adapter, or else of one matrix in the first layer and one in the last. The other weight products, half
    of a backward pass, are never computed. They need not be: the gradient of a layer's matrix is the product of
    its input, which the loss vouches for, and of what flows back into its output. That flows on to the layers
    below, and comes to the embeddings last: their gradient is right only if every layer's backward is. What the
    short form does not see is the head's own gradient, and windows longer than its rows: `check` does.

    The reference is the definition in float32, its loss in float64. Where rows nearly cancel each other, what is
    left of their gradient drowns in float32's noise, so nothing is given up before float64 has confirmed it, if
    that fits in memory. Raises UserError when no path is within its budget.
    """
    case = brief_case(examples[:LOOKED_AT], _window(network))
    free = free_bytes(network.device)
    whole = sum(p.numel() for p in network.model.parameters())
    copied = sum(p.numel() for p in network.model.parameters() if p.element_size() < 4)
    reference = torch.float32 if 4 * copied * 1.2 < free or not copied else None
    doubled = 8 * whole * 1.2 < free and network.device.type != "mps"
    verdict = _judged(network, [case], reference, few_weights=True, slower=not doubled)
    if verdict.refused and doubled:
        verdict = _judged(network, [case], torch.float64, few_weights=True)
    if not verdict.exact:
        raise UserError(
            "the loss and gradient of this model are not those of its own forward pass, by whichever path: "
            f"{'; '.join(verdict.refused)}. If the model draws random numbers or keeps state between calls, "
            "switch that off; else report this, please, with what `surefoot check --json` prints"
        )
    return verdict


def check(network: Network, examples: Sequence[Example], rows: int = 4) -> Verdict:
    """The full form: every trained weight, all cases, against float64 if it fits in memory, else float32.

    `rows` are those of a whole step, which is also split into micro-batches. What is found is never raised: see
    `Verdict.exact`. Raises UserError when the model's own loss is not finite.
    """
    parameters = list(network.model.parameters())
    whole = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    # In float64: the weights, two gradients to compare, and the same again for a step's activations.
    fits = 8 * (whole + 4 * trained) < free_bytes(network.device) and network.device.type != "mps"
    reference = torch.float64 if fits else torch.float32
    return _judged(network, cases(examples, _window(network), rows), reference, few_weights=False)


def _judged(
    network: Network,
    chosen: Sequence[Case],
    reference: torch.dtype | None,
    *,
    few_weights: bool,
    slower: bool = True,
) -> Verdict:
    """Tries the given path, and with `slower` those below it, until one is within its budget."""
    started = time.perf_counter()
    if reference is not None and any(p.dtype == torch.float64 for p in network.model.parameters()):
        reference = torch.float64
    refused: list[str] = []
    shown: list[Comparison] = []
    taken = None
    with without_dropout(network) as dropout:
        if few_weights:
            _freeze_most(network)
        for tried, without in _slower(network):
            comparisons, failed = _try(tried, chosen, reference, to_the_end=not few_weights and not refused)
            if failed is None or not refused:
                shown = comparisons
            if failed is None:
                taken = tried
                break
            refused.append(without + failed)
            if not slower:
                break
    reasons = (*network.reasons, *refused)
    return Verdict(
        network=network if taken is None else replace(taken, reasons=reasons),
        exact=taken is not None,
        comparisons=tuple(shown),
        refused=tuple(refused),
        reference="the run's own precision" if reference is None else str(reference).removeprefix("torch."),
        rows=len({id(example) for case in chosen for example in case.examples}),
        tokens=sum(example.tokens for case in chosen for example in case.examples),
        dropout=dropout,
        seconds=time.perf_counter() - started,
    )


def _freeze_most(network: Network) -> None:
    """Train only what the short form looks at; `without_dropout` puts the others back."""
    parameters = list(network.model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    if sum(p.numel() for p in trained) < sum(p.numel() for p in parameters) / 5:
        return  # an adapter
    rows = embedding_rows(network.model)
    inner = [p for p in trained if p.ndim == 2 and rows not in p.shape]
    kept = {id(p) for p in (*inner[:1], *inner[-1:])}
    for parameter in trained:
        parameter.requires_grad_(parameter.ndim == 1 or id(parameter) in kept)


def _slower(network: Network) -> Iterator[tuple[Network, str]]:
    """`network` and the paths below it, each with what is said when it is not exact."""
    below: list[tuple[dict[str, Any], str]] = []
    if network.merged:
        below.append(({"merged": False}, "common prefixes are not shared, as with sharing "))
    if network.packed:
        below.append(({"packed": False}, "rows run one at a time, as side by side "))
    if network.head is not None:
        below.append(({"head": None}, "the model computes its own logits, as by the head's formula "))
    for change, without in below:
        yield network, without
        network = replace(network, **change)
    yield network, "even by the model's own forward, row by row, "


# Comparing -------------------------------------------------------------------------------------------------


def _try(
    network: Network, chosen: Sequence[Case], reference: torch.dtype | None, *, to_the_end: bool
) -> tuple[list[Comparison], str | None]:
    """What one path comes to, and what is wrong with it; `to_the_end` goes on after a failure."""
    comparisons: list[Comparison] = []
    failed = None
    for case in chosen:
        try:
            found = _compare(network, case, reference)
        except _PathFails as error:
            return comparisons, str(error)
        comparisons += found
        # What names a weight says more than the gradient as a whole.
        off = sorted(
            (c for c in found if not c.ok), key=lambda c: ("loss", "weight", "gradient").index(c.what)
        )
        failed = failed or (str(off[0]) if off else None)
        if failed is not None and not to_the_end:
            break
    return comparisons, failed


class _PathFails(Exception):  # noqa: N818
    """The fast path raised an error on rows that the definition had just computed."""


def _compare(network: Network, case: Case, reference: torch.dtype | None) -> list[Comparison]:
    layers = getattr(network.core.config.get_text_config(), "num_hidden_layers", None) or 1
    weights = {p.dtype for p in network.model.parameters()}
    own_dtype = network.product_dtype or min(weights, key=lambda dtype: torch.finfo(dtype).bits)
    arithmetic = Budget.of_arithmetic(own_dtype, layers)
    out = []
    if reference is None:
        want = _definition(network, case)
        for way in case.ways:
            out += compared(way[0], "arithmetic", arithmetic, want, _path(network, case, way), None)
        return out
    plain, formula = replace(network, product_dtype=None), Budget.of_formula(reference, layers)
    with weights_in(network, reference):
        want = _definition(plain, case)
        for way in case.ways:
            out += compared(way[0], "formula", formula, want, _path(plain, case, way), None)
    if own_dtype == reference:
        return out
    naive = by_the_book(network, case.examples)
    for way in case.ways:
        out += compared(way[0], "arithmetic", arithmetic, want, _path(network, case, way), naive)
    return out


def _definition(network: Network, case: Case) -> Found:
    found = by_the_book(network, case.examples, exact_loss=True)
    if not math.isfinite(found.loss):
        where = ", ".join(dict.fromkeys(example.where for example in case.examples))
        raise UserError(
            f"{where}: the model's own loss is {found.loss} there, before any training: its weights or its "
            "positions are broken, or the precision is too low for it (try --precision fp32)"
        )
    return found


def _path(network: Network, case: Case, way: tuple[str, int]) -> Found:
    name, budget = way
    try:
        return as_trained(network, case.examples, budget)
    except Exception as error:
        raise _PathFails(f"{name} end in {type(error).__name__}: {error}") from error


def _window(network: Network) -> int | None:
    return getattr(network.core.config.get_text_config(), "sliding_window", None)

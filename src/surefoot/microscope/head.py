"""Panel 4 for a whole step: the gradient of the head's row v is Σ_t e_t[v] · h_t, against what autograd made.

Shapes: D width, V vocabulary, C rows of a chunk of it, R rows that are shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from surefoot.microscope.capture import Targets
from surefoot.microscope.panels import Head as HeadPanel
from surefoot.microscope.panels import HeadRow, Histogram
from surefoot.microscope.spell import Speller
from surefoot.microscope.vocabulary import own_ids, own_rows, row_gradients, rows_of
from surefoot.model.loss import CHUNK_ELEMENTS, Head
from surefoot.model.network import Network
from surefoot.train.distributed import joined, rows

TOP = 10
"""Rows of the largest gradient that are named."""


def is_tied(network: Network) -> bool:
    """The head's weight is the embeddings' weight too."""
    return network.head is not None and network.core.get_input_embeddings().weight is network.head.weight_VD


def shown_rows(examples: Sequence, watched: Sequence[int], most: int = 256) -> list[int]:
    """Rows of the head whose gradient is followed through the step: watched tokens, then labels, first tokens
    of the completions before the rest."""
    firsts = [int(e.completion_ids[len(e.completion_ids) - e.targets]) for e in examples if e.targets]
    rest = [int(token) for e in examples for token in e.completion_ids[len(e.completion_ids) - e.targets :]]
    return list(dict.fromkeys([*watched, *firsts, *rest]))[:most]


@torch.no_grad()
def head_panel(
    network: Network,
    targets: Targets,
    divisor: float,
    shown: Sequence[int],
    by_autograd_RD: torch.Tensor | None,
    speller: Speller,
) -> HeadPanel:
    """The step's head panel, before the update, while the weight's whole gradient is there, not clipped.

    Args:
        shown: ids of the rows to show.
        by_autograd_RD: their gradient by the head alone, as the backward pass handed it over.
    """
    head = network.head
    if head is None or targets.hidden_ND is None:
        unknown = "the head's formula is not known: the model computes its own logits"
        return HeadPanel(
            trained=False,
            tied=False,
            scale=1.0,
            softcap=None,
            bias=False,
            unknown=unknown,
            rows=[],
            top_rows=[],
            norms=None,
        )
    trained, tied = head.weight_VD.requires_grad, is_tied(network)
    of_shown, of_top, norms = [], [], None
    if trained:
        norm_V = _all_norms(head, targets, divisor, network.product_dtype)
        norms = _log_histogram(norm_V)
        top = norm_V.topk(min(TOP, len(norm_V))).indices.tolist()
        grad = head.weight_VD.grad
        for ids, kept_RD, found in ((list(shown), by_autograd_RD, of_shown), (top, None, of_top)):
            ids_R = torch.tensor(ids, device=norm_V.device)
            formula_RD = row_gradients(rows_of(head, ids_R), ids_R, targets, divisor, network.product_dtype)
            whole_RD = rows(grad, ids_R).double() if grad is not None else [None] * len(ids)
            if kept_RD is None:  # where nothing else adds to the weight, the head's gradient is the whole
                kept_RD = whole_RD if not tied else [None] * len(ids)
            for token, formula_D, kept_D, whole_D in zip(ids, formula_RD, kept_RD, whole_RD, strict=True):
                found.append(_row(token, formula_D, kept_D, whole_D, tied, speller))
    return HeadPanel(
        trained=trained,
        tied=tied,
        scale=head.scale,
        softcap=head.softcap,
        bias=head.bias_V is not None,
        rows=of_shown,
        top_rows=of_top,
        norms=norms,
    )


def _row(
    token: int,
    formula_D: torch.Tensor,
    autograd_D: torch.Tensor | None,
    whole_D: torch.Tensor | None,
    tied: bool,
    speller: Speller,
) -> HeadRow:
    input_norm = None
    if tied and whole_D is not None and autograd_D is not None:
        input_norm = float((whole_D.double() - autograd_D).norm())
    return HeadRow(
        token=speller.one(token),
        id=token,
        norm=float(formula_D.double().norm()),
        max_abs_difference_from_autograd=float((formula_D - autograd_D).abs().max())
        if autograd_D is not None
        else None,
        largest=float(formula_D.abs().max()),
        input_norm=input_norm,
        total_norm=float(whole_D.double().norm()) if whole_D is not None else None,
    )


def _all_norms(head: Head, targets: Targets, divisor: float, product: torch.dtype | None) -> torch.Tensor:
    """float64 [V], norm of every row's gradient; each rank makes those of its rows, a chunk of them at a time."""
    own, ids = own_rows(head), own_ids(head)
    size = max(256, CHUNK_ELEMENTS // (2 * max(own.weight_VD.shape[1], len(targets.label_N))))
    norms = [
        row_gradients(rows_of(own, part - ids[:1]), part, targets, divisor, product).double().norm(dim=1)
        for part in ids.split(size)
    ]
    return joined(torch.cat(norms), head.weight_VD)


def _log_histogram(values: torch.Tensor, bins: int = 60) -> Histogram | None:
    """Of log10 of the values that are not 0."""
    known = values[torch.isfinite(values) & (values > 0)].log10()
    if not len(known):
        return None
    low, high = math.floor(float(known.min())), math.ceil(float(known.max()) + 1e-9)
    edges = np.linspace(low, max(high, low + 1), bins + 1)
    counts, _ = np.histogram(known.cpu().numpy(), edges)
    return Histogram(edges=edges.tolist(), counts=counts.tolist(), zeros=int((values == 0).sum()))

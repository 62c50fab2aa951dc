"""The head where each rank has its own rows of it: predictions, errors and gradients without all of W on any rank.

Between ranks go the V products of a place, the D numbers that flow back from it, and the rows of tokens that are
shown by name. With one rank, or all of W on each, rows are where they always were.

Shapes: N targets of the step, K targets looked at, D width, V vocabulary, C rows of the head.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from surefoot.microscope.capture import Targets
from surefoot.microscope.parts import in_parts
from surefoot.model.loss import Head, TargetErrors, loss_dtype, product_errors, target_errors
from surefoot.ranks import add_up
from surefoot.train.distributed import first_row, joined, local, rows


def own_ids(head: Head) -> torch.Tensor:
    """int64 [C]: the tokens whose rows this rank has."""
    mine, first = local(head.weight_VD), first_row(head.weight_VD)
    return torch.arange(first, first + len(mine), device=mine.device)


def own_rows(head: Head) -> Head:
    """The head with this rank's rows alone."""
    bias_V = local(head.bias_V) if head.bias_V is not None else None
    return replace(head, weight_VD=local(head.weight_VD), bias_V=bias_V)


def rows_of(head: Head, ids_C: torch.Tensor) -> Head:
    """The head with some rows alone, the same on every rank, which must all ask."""
    bias_V = rows(head.bias_V, ids_C) if head.bias_V is not None else None
    return replace(head, weight_VD=rows(head.weight_VD, ids_C), bias_V=bias_V)


def errors(
    hidden_KD: torch.Tensor,
    head: Head,
    label_K: torch.Tensor,
    weight_K: torch.Tensor,
    product: torch.dtype | None,
) -> TargetErrors:
    """`target_errors`, the products W h put together from the ranks' rows of W."""
    if not in_parts(head.weight_VD):
        return target_errors(hidden_KD, head, label_K, weight_K, product)
    own = own_rows(head)
    product = product or hidden_KD.dtype
    with torch.no_grad(), torch.autocast(hidden_KD.device.type, enabled=False):
        z_KC = hidden_KD.to(product) @ own.weight_VD.to(product).T
        z_KV = joined(z_KC, head.weight_VD)
    bias_V = joined(own.bias_V, head.weight_VD) if own.bias_V is not None else None
    exact = loss_dtype(hidden_KD.dtype)
    return product_errors(z_KV, replace(own, bias_V=bias_V), label_K, weight_K, exact)


@torch.no_grad()
def flows_back(error_V: torch.Tensor, head: Head) -> torch.Tensor:
    """Wᵀe [D]."""
    mine, first = local(head.weight_VD), first_row(head.weight_VD)
    back_D = error_V[first : first + len(mine)].to(mine.dtype) @ mine
    if in_parts(head.weight_VD):
        back_D = add_up(back_D.to(loss_dtype(back_D.dtype)))
    return back_D


@torch.no_grad()
def error_products(
    targets: Targets, error_KV: torch.Tensor, head: Head, divisor: float, product: torch.dtype | None
) -> torch.Tensor:
    """⟨e_s, e_t⟩ [N, K] of all `targets` and the errors d loss / d (W h) of some; each rank adds up its rows."""
    assert targets.hidden_ND is not None
    if not in_parts(head.weight_VD):
        weight_N = targets.weight_N / divisor
        found = target_errors(targets.hidden_ND, head, targets.label_N, weight_N, product)
        return found.product_error_CV @ error_KV.T
    ids_C = own_ids(head)
    error_NC = row_errors(own_rows(head), ids_C, targets, divisor, product)
    return add_up(error_NC @ error_KV[:, ids_C].T)


@torch.no_grad()
def row_errors(
    some: Head, ids_C: torch.Tensor, targets: Targets, divisor: float, product: torch.dtype | None
) -> torch.Tensor:
    """d loss / d (W h) [N, C] of all targets of the step, at the rows `ids_C` that are all that `some` has.

    The step left each target's log Σ exp, so no other row of the vocabulary is needed.
    """
    assert targets.hidden_ND is not None
    exact = loss_dtype(targets.hidden_ND.dtype)
    h_ND = targets.hidden_ND.to(product or targets.hidden_ND.dtype)
    z_NC = (h_ND @ some.weight_VD.detach().to(h_ND.dtype).T).to(exact)
    z_NC = some.shaped(z_NC if some.bias_V is None else z_NC + some.bias_V.detach().to(exact))
    slope_NC = 1 - (z_NC / some.softcap).square() if some.softcap is not None else None
    error_NC = (z_NC - targets.log_sum_N[:, None]).exp_()
    error_NC -= (ids_C[None] == targets.label_N[:, None]).to(exact)
    error_NC *= (targets.weight_N / divisor * some.scale).to(exact)[:, None]
    if slope_NC is not None:
        error_NC *= slope_NC
    return error_NC


def row_gradients(
    some: Head, ids_C: torch.Tensor, targets: Targets, divisor: float, product: torch.dtype | None
) -> torch.Tensor:
    """The formula, [C, D]: Σ_t e_t[v] · h_t for the rows `ids_C` that `some` has, over all targets of the step."""
    assert targets.hidden_ND is not None
    error_NC = row_errors(some, ids_C, targets, divisor, product)
    return error_NC.T @ targets.hidden_ND.to(error_NC.dtype)

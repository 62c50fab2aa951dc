"""Panels 2, 3, 4 and 9: what the model predicted at some targets, what was off, and what it predicts after.

1. `look` before the update: logits from the step's own hidden states, and the errors by the loss's own code.
2. `look` after it, with the new hidden states and head; and with one of the two old, to tell their parts apart.
3. `positions` puts both together.

Shapes: K targets looked at, D width, V vocabulary, R rows of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from surefoot.data.rows import Example
from surefoot.microscope.panels import Candidate, HeadRow, Position, Rest
from surefoot.microscope.spell import Speller
from surefoot.microscope.vocabulary import errors, flows_back, rows_of
from surefoot.model.loss import Head, TargetErrors, loss_dtype, naive_stats
from surefoot.model.network import Network

LIKELIEST = 20
"""Candidates of a position by their probability before."""
LIKELIEST_AFTER = 10


@dataclass(frozen=True)
class Place:
    """A target that is looked at."""

    example: int
    target: int
    """Which of the example's targets, from 0."""


@dataclass(frozen=True)
class Look:
    """Predictions at K targets."""

    hidden_KD: torch.Tensor | None
    """None where the model computes its own logits."""
    label_K: torch.Tensor
    weight_K: torch.Tensor
    """Normalised: over the step's divisor."""
    errors: TargetErrors

    @cached_property
    def log_p_KV(self) -> torch.Tensor:
        return self.errors.logits_CV.log_softmax(-1)


def look(
    network: Network,
    examples: Sequence[Example],
    places: Sequence[Place],
    hidden_KD: torch.Tensor | None,
    divisor: float,
    head: Head | None = None,
) -> Look:
    """Logits and errors of the targets at `places`, from their hidden states as the step left them.

    `head` stands in for the network's own (its old weight, say). Where the head is unknown, the model runs once
    for each place.
    """
    label = [int(label_of(examples[place.example], place.target)) for place in places]
    weight = [examples[place.example].weight / divisor for place in places]
    label_K = torch.tensor(label, device=network.device)
    weight_K = torch.tensor(weight, dtype=torch.float64, device=network.device)
    head = head or network.head
    if head is not None and hidden_KD is not None:
        found = errors(hidden_KD, head, label_K, weight_K, network.product_dtype)
        return Look(hidden_KD, label_K, weight_K, found)
    logits_KV = _own_logits(network, examples, places)
    error_KV = logits_KV.softmax(-1)
    error_KV[torch.arange(len(places), device=error_KV.device), label_K] -= 1
    error_KV *= weight_K[:, None].to(error_KV.dtype)
    return Look(None, label_K, weight_K, TargetErrors(logits_KV, error_KV, error_KV))


def label_of(example: Example, target: int) -> int:
    """The token that the example's target number `target` should predict."""
    return int(example.completion_ids[len(example.completion_ids) - example.targets + target])


def seen_before(example: Example, target: int) -> np.ndarray:
    """The tokens before that target."""
    whole = np.concatenate([example.prompt_ids, example.completion_ids])
    return whole[: len(whole) - example.targets + target]


@torch.no_grad()
def _own_logits(network: Network, examples: Sequence[Example], places: Sequence[Place]) -> torch.Tensor:
    """Logits [K, V] by the model's own forward, of the places' tokens alone."""
    rows = []
    with network.open():
        for place in places:
            example = examples[place.example]
            last = np.array([label_of(example, place.target)], np.int32)
            alone = replace(example, prompt_ids=seen_before(example, place.target), completion_ids=last)
            forest = network.plant([alone])
            logits_NV = network.gathered(partial(network.logits, forest))
            rows.append(logits_NV.to(loss_dtype(logits_NV.dtype)))
    return torch.cat(rows)


def autograd_rows(look: Look, k: int, head: Head, ids_R: torch.Tensor) -> torch.Tensor:
    """Gradient [R, D] of rows of the head at target `k` alone, by autograd through softmax and cross-entropy.

    Independent of the formula: the rows are made leaves, the logits go through the head's own operations and
    torch's cross-entropy. Only one vocabulary of logits and R rows exist.
    """
    assert look.hidden_KD is not None
    exact = look.errors.logits_CV.dtype
    hidden_D = look.hidden_KD[k].to(exact)
    with torch.enable_grad(), torch.autocast(hidden_D.device.type, enabled=False):
        rows_RD = rows_of(head, ids_R).weight_VD.to(exact).requires_grad_()
        z_R = rows_RD @ hidden_D
        product_V = _unshaped(look.errors.logits_CV[k], head)
        # The value is that of the step's own product, the gradient that of the rows.
        product_V = product_V.index_put((ids_R,), z_R - z_R.detach() + product_V[ids_R])
        loss = F.cross_entropy(head.shaped(product_V)[None], look.label_K[k : k + 1])
        (rows,) = torch.autograd.grad(loss * look.weight_K[k].to(exact), rows_RD)
    return rows


def _unshaped(logits_V: torch.Tensor, head: Head) -> torch.Tensor:
    """Products W h + b whose logits these are."""
    if head.softcap is not None:
        logits_V = torch.atanh(logits_V / head.softcap) * head.softcap
    return logits_V / head.scale


def positions(
    examples: Sequence[Example],
    places: Sequence[Place],
    before: Look,
    after: Look | None,
    parts: tuple[Look, Look] | None,
    network: Network,
    old_head: Head | None,
    watched: Sequence[int],
    speller: Speller,
) -> tuple[list[Position], dict[str, np.ndarray]]:
    """The panel of every place, and its arrays. `parts`: new head on old hidden states, old head on new ones.

    `old_head` is the head as it was, None where its formula is not known.
    """
    stats = naive_stats(before.errors.logits_CV, before.label_K)
    later = naive_stats(after.errors.logits_CV, after.label_K) if after is not None else None
    log_p_KV = before.log_p_KV
    log_q_KV = after.log_p_KV if after is not None else None
    trained = old_head is not None and network.head is not None and network.head.weight_VD.requires_grad
    found, arrays = [], {}
    for k, place in enumerate(places):
        example = examples[place.example]
        label = int(before.label_K[k])
        shown = _shown(log_p_KV[k], log_q_KV[k] if log_q_KV is not None else None, label, watched)
        candidates = _candidates(k, shown, label, watched, before, after, parts, speller)
        hidden_D, back_D = None, None
        if before.hidden_KD is not None and old_head is not None:
            hidden_D = before.hidden_KD[k]
            back_D = flows_back(before.errors.product_error_CV[k], old_head)
            arrays[f"position{k}/hidden"] = hidden_D.float().cpu().numpy()
            arrays[f"position{k}/flows_back"] = back_D.float().cpu().numpy()
        rows = [label, *(token for token in watched if token != label)]
        error_sum = float(before.errors.error_CV[k].sum(dtype=torch.float64))
        kl = None
        if log_q_KV is not None:
            kl = float((log_p_KV[k].exp() * (log_p_KV[k] - log_q_KV[k])).sum(dtype=torch.float64))
        found.append(
            Position(
                where=example.where,
                index=place.target,
                token=speller.one(int(seen_before(example, place.target)[-1])),
                target=speller.one(label),
                target_id=label,
                weight=float(before.weight_K[k]),
                loss_before=float(stats.nll_N[k]),
                rank_before=_rank(log_p_KV[k], label),
                entropy_before=float(stats.entropy_N[k]),
                loss_after=float(later.nll_N[k]) if later is not None else None,
                rank_after=_rank(log_q_KV[k], label) if log_q_KV is not None else None,
                entropy_after=float(later.entropy_N[k]) if later is not None else None,
                kl=kl,
                candidates=candidates,
                rest=_rest(candidates, len(log_p_KV[k]), error_sum),
                error_sum=error_sum,
                hidden_norm=float(hidden_D.double().norm()) if hidden_D is not None else None,
                hidden=f"position{k}/hidden" if hidden_D is not None else None,
                flows_back=f"position{k}/flows_back" if back_D is not None else None,
                flows_back_norm=float(back_D.double().norm()) if back_D is not None else None,
                head_rows=_head_rows(k, rows, before, old_head, speller) if trained and old_head else [],
            )
        )
    return found, arrays


def _shown(
    log_p_V: torch.Tensor, log_q_V: torch.Tensor | None, label: int, watched: Sequence[int]
) -> list[int]:
    """Ids of the candidates, the likeliest first."""
    ids = log_p_V.topk(min(LIKELIEST, len(log_p_V))).indices.tolist()
    if log_q_V is not None:
        ids += log_q_V.topk(min(LIKELIEST_AFTER, len(log_q_V))).indices.tolist()
    return sorted({*ids, label, *watched}, key=lambda token: (-float(log_p_V[token]), token))


def _rank(log_p_V: torch.Tensor, token: int) -> int:
    return 1 + int((log_p_V > log_p_V[token]).sum())


def _candidates(
    k: int,
    shown: Sequence[int],
    label: int,
    watched: Sequence[int],
    before: Look,
    after: Look | None,
    parts: tuple[Look, Look] | None,
    speller: Speller,
) -> list[Candidate]:
    log_p_V = before.log_p_KV[k]
    later = after.log_p_KV[k] if after is not None else None
    of_head, of_body = (part.log_p_KV[k] for part in parts) if parts is not None else (None, None)
    weight = float(before.weight_K[k])

    def p(log_p: torch.Tensor | None, token: int) -> float | None:
        return float(log_p[token].exp()) if log_p is not None else None

    return [
        Candidate(
            token=speller.one(token),
            id=token,
            is_target=token == label,
            is_watched=token in watched,
            p_before=float(log_p_V[token].exp()),
            rank_before=_rank(log_p_V, token),
            logit_before=float(before.errors.logits_CV[k, token]),
            error=float(before.errors.error_CV[k, token]),
            error_raw=float(before.errors.error_CV[k, token]) / weight if weight else 0.0,
            error_product=float(before.errors.product_error_CV[k, token]),
            p_after=p(later, token),
            rank_after=_rank(later, token) if later is not None else None,
            p_head=p(of_head, token),
            p_body=p(of_body, token),
        )
        for token in shown
    ]


def _rest(candidates: Sequence[Candidate], vocabulary: int, error_sum: float) -> Rest:
    after = [c.p_after for c in candidates if c.p_after is not None]
    return Rest(
        tokens=vocabulary - len(candidates),
        p_before=max(0.0, 1 - sum(c.p_before for c in candidates)),
        error=error_sum - sum(c.error for c in candidates),
        p_after=max(0.0, 1 - sum(after)) if after else None,
    )


def _head_rows(k: int, ids: Sequence[int], before: Look, head: Head, speller: Speller) -> list[HeadRow]:
    assert before.hidden_KD is not None
    ids_R = torch.tensor(ids, device=before.label_K.device)
    error_R = before.errors.product_error_CV[k, ids_R]
    formula_RD = error_R[:, None] * before.hidden_KD[k].to(error_R.dtype)
    autograd_RD = autograd_rows(before, k, head, ids_R)
    return [
        HeadRow(
            token=speller.one(token),
            id=token,
            norm=float(formula_D.double().norm()),
            max_abs_difference_from_autograd=float((formula_D - autograd_D).abs().max()),
            largest=float(formula_D.abs().max()),
        )
        for token, formula_D, autograd_D in zip(ids, formula_RD, autograd_RD, strict=True)
    ]

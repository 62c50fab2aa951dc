"""Panel 10, on request: how noisy the gradient is, and which examples pushed which target.

Shapes: N targets of the step, C of a chunk, K targets looked at, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from surefoot.data.rows import Example
from surefoot.microscope.capture import Targets
from surefoot.microscope.panels import Influence, NoiseScale
from surefoot.microscope.predict import Look
from surefoot.microscope.vocabulary import error_products
from surefoot.model.loss import CHUNK_ELEMENTS
from surefoot.model.network import Network


def noise_scales(norms: Sequence[tuple[float, float]]) -> list[NoiseScale]:
    """Estimates from the gradients of parts of the step (McCandlish et al. 2018, appendix A.1).

    `norms`: (weight b of a part's targets, squared norm of their gradient), the whole step last; gradients are sums
    over the targets divided by the whole step's weight B, so the part's own mean gradient is B/b times that. Each
    part gives |G|² = (B |G_B|² − b |G_b|²) / (B − b) and S = (|G_b|² − |G_B|²) / (1/b − 1/B); they are not
    independent of one another, and each is rough.
    """
    if len(norms) < 2:
        return []
    whole, whole_square = norms[-1]
    found = []
    for part, so_far in norms[:-1]:
        if not 0 < part < whole:
            continue
        part_square = so_far * (whole / part) ** 2
        square = (whole * whole_square - part * part_square) / (whole - part)
        trace = (part_square - whole_square) / (1 / part - 1 / whole)
        scale = trace / square if square > 0 and trace > 0 else None
        found.append(
            NoiseScale(batch=whole, part=part, grad_norm_squared=square, trace=trace, noise_scale=scale)
        )
    return found


@torch.no_grad()
def influence(
    network: Network, look: Look, targets: Targets, divisor: float, examples: Sequence[Example]
) -> list[Influence]:
    """For each target t looked at: −Σ_s ⟨e_s, e_t⟩⟨h_s, h_t⟩ / w_t over each example's targets s.

    That is the change of t's loss, per unit of the learning rate of a plain gradient step on the head alone, that
    the example's part of the gradient makes. Tokens × vocabulary never exist: errors are made in chunks of targets.
    """
    head, hidden_ND = network.head, targets.hidden_ND
    if head is None or hidden_ND is None or look.hidden_KD is None:
        return []
    error_KV = look.errors.product_error_CV
    size = max(1, CHUNK_ELEMENTS // (4 * error_KV.shape[1]))
    pushed = []
    for start in range(0, len(hidden_ND), size):
        part = slice(start, start + size)
        of_errors_CK = error_products(targets.part(part), error_KV, head, divisor, network.product_dtype)
        of_hidden_CK = hidden_ND[part].to(error_KV.dtype) @ look.hidden_KD.to(error_KV.dtype).T
        pushed.append((of_errors_CK * of_hidden_CK).double())
    pushed_NK = torch.cat(pushed) / -look.weight_K.double()
    bounds = [*targets.first_E, len(pushed_NK)]
    by_example_EK = torch.stack([pushed_NK[a:b].sum(0) for a, b in pairwise(bounds)])
    return [
        Influence(
            position=k,
            examples=sorted(
                ((e.where, float(v)) for e, v in zip(examples, by_example_EK[:, k], strict=True)),
                key=lambda pair: pair[1],
            ),
        )
        for k in range(by_example_EK.shape[1])
        if look.weight_K[k] > 0  # of a target that weighs nothing, the loss has no such change
    ]

"""The loss: cross-entropy of the target tokens, and its gradient, in chunks of targets.

`naive_loss` defines it. `target_loss` equals it without ever holding more than a chunk of logits: each chunk's
logits become, in place, the error `weight · (p − y)`, and from it the gradients of hidden states and head.

Shapes: N targets, C targets of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

CHUNK_ELEMENTS = 1 << 26
"""Logits held at once: 1,365 targets of a vocabulary of 49,152, 256 MB in fp32."""
CACHED_ELEMENTS = 1 << 21
"""Logits that go through softmax together on a CPU: 8 MB in fp32, so that its passes stay in the cache."""


@dataclass(frozen=True)
class Head:
    """From a hidden state to logits: `cap(scale · (W h + b))`."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    """Cohere's `logit_scale`, or one over Granite's `logits_scaling`."""
    softcap: float | None = None
    """Gemma's `final_logit_softcapping` c: z becomes c · tanh(z / c)."""
    on_gradient: Callable[[torch.Tensor], None] | None = None
    """Is shown the weight's gradient [V, D] of each backward pass, before other uses of the weight add to it."""

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] by the model's own operations, under whatever autocast is on."""
        return self.shaped(F.linear(hidden_ND, self.weight_VD, self.bias_V))

    def shaped(self, product_NV: torch.Tensor) -> torch.Tensor:
        """Logits of products W h + b: scaled, then soft-capped."""
        logits_NV = product_NV * self.scale
        return logits_NV if self.softcap is None else torch.tanh(logits_NV / self.softcap) * self.softcap


@dataclass(frozen=True)
class TargetStats:
    """What the loss knows of each target, detached."""

    nll_N: torch.Tensor
    """−log p of the label, unweighted; at least float32."""
    correct_N: torch.Tensor
    """bool, the label has the highest logit."""
    entropy_N: torch.Tensor
    """Entropy of the prediction, in nats."""
    log_sum_N: torch.Tensor
    """log Σ exp of the logits: p of any token is exp(logit − log_sum)."""
    hidden_ND: torch.Tensor | None = None
    """The hidden states that predicted; None where the model computes its own logits."""


@dataclass(frozen=True)
class TargetErrors:
    """A prediction and what is off, for a few targets: whole columns of the vocabulary."""

    logits_CV: torch.Tensor
    """As softmax takes them, scaled and soft-capped; at least float32."""
    error_CV: torch.Tensor
    """d loss / d logits: weight · (p − y). A row sums to 0."""
    product_error_CV: torch.Tensor
    """d loss / d (W h): what the gradients of head and hidden states are made of. Differs from `error_CV` where
    the head scales or soft-caps its logits."""


def loss_dtype(dtype: torch.dtype) -> torch.dtype:
    """Softmax and loss are computed in float32, or float64 for a float64 model."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def naive_loss(logits_NV: torch.Tensor, label_N: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """Σ weight · cross_entropy(logits, label): the definition, and the path for heads of unknown form."""
    logits_NV = logits_NV.to(loss_dtype(logits_NV.dtype))
    return (F.cross_entropy(logits_NV, label_N, reduction="none") * weight_N.to(logits_NV.dtype)).sum()


@torch.no_grad()
def naive_stats(logits_NV: torch.Tensor, label_N: torch.Tensor) -> TargetStats:
    """`TargetStats` of given logits."""
    logits_NV = logits_NV.to(loss_dtype(logits_NV.dtype))
    log_p_NV = logits_NV.log_softmax(-1)
    nll_N = -log_p_NV.gather(1, label_N[:, None])[:, 0]
    entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    return TargetStats(nll_N, log_p_NV.argmax(-1) == label_N, entropy_N, logits_NV.logsumexp(-1))


def target_loss(
    hidden_ND: torch.Tensor,
    head: Head,
    label_N: torch.Tensor,
    weight_N: torch.Tensor,
    product_dtype: torch.dtype | None = None,
    chunk: int | None = None,
) -> tuple[torch.Tensor, TargetStats]:
    """Σ weight · cross_entropy(head(hidden), label), equal to `naive_loss(head.logits(hidden), ...)`.

    Args:
        hidden_ND: last hidden states of the target slots.
        head: its weight and bias get a gradient if they require one.
        label_N: int64 token ids.
        weight_N: weights, the normalisation of the step included.
        product_dtype: type of the three matrix products; the hidden states' own by default.
        chunk: targets at once.

    Returns the loss (a scalar with a gradient) and the per-target statistics.
    """
    sources = (hidden_ND, head.weight_VD, head.bias_V)
    grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in sources)
    chunk = chunk or max(64, CHUNK_ELEMENTS // len(head.weight_VD))
    loss, nll_N, correct_N, entropy_N, log_sum_N = _TargetLoss.apply(
        hidden_ND, head.weight_VD, head.bias_V, head, label_N, weight_N, product_dtype, chunk, grad
    )
    return loss, TargetStats(nll_N, correct_N, entropy_N, log_sum_N, hidden_ND.detach())


@torch.no_grad()
def target_errors(
    hidden_CD: torch.Tensor,
    head: Head,
    label_C: torch.Tensor,
    weight_C: torch.Tensor,
    product_dtype: torch.dtype | None = None,
) -> TargetErrors:
    """The errors that `target_loss` multiplies hidden states and head with, by the same code."""
    product = product_dtype or hidden_CD.dtype
    with torch.autocast(hidden_CD.device.type, enabled=False):
        z_CV = hidden_CD.to(product) @ head.weight_VD.detach().to(product).T
    return product_errors(z_CV, head, label_C, weight_C, loss_dtype(hidden_CD.dtype))


@torch.no_grad()
def product_errors(
    z_CV: torch.Tensor, head: Head, label_C: torch.Tensor, weight_C: torch.Tensor, exact: torch.dtype
) -> TargetErrors:
    """`target_errors` of products W h, of `head` without its weight; computed in `exact`."""
    weight_C = weight_C.to(exact)
    with torch.autocast(z_CV.device.type, enabled=False):
        product_error_CV = _error(z_CV.clone(), head.bias_V, head, label_C, weight_C, exact, True)[0]
        plain = Head(head.weight_VD)  # its logits are the products
        logits_CV = head.shaped(z_CV.to(exact) if head.bias_V is None else z_CV.to(exact) + head.bias_V)
        error_CV = _error(logits_CV.clone(), None, plain, label_C, weight_C, exact, True)[0]
    return TargetErrors(logits_CV, error_CV, product_error_CV)


class _TargetLoss(torch.autograd.Function):
    """Loss and gradients in one pass; backward only hands the gradients over."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        head: Head,
        label_N: torch.Tensor,
        weight_N: torch.Tensor,
        product_dtype: torch.dtype | None,
        chunk: int,
        grad: bool,
    ) -> tuple[torch.Tensor, ...]:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            product = product_dtype or hidden_ND.dtype
            exact = loss_dtype(hidden_ND.dtype)
            w_VD = weight_VD.detach().to(product)
            h_ND = hidden_ND.detach().to(product)
            weight_N = weight_N.to(exact)
            nll_N = torch.empty(len(label_N), dtype=exact, device=label_N.device)
            correct_N = torch.empty(len(label_N), dtype=torch.bool, device=label_N.device)
            entropy_N, log_sum_N = torch.empty_like(nll_N), torch.empty_like(nll_N)
            grad_hidden_ND = torch.empty_like(hidden_ND) if grad and ctx.needs_input_grad[0] else None
            grad_weight_VD = None
            grad_bias_V = (
                torch.zeros_like(bias_V) if grad and bias_V is not None and bias_V.requires_grad else None
            )
            for start in range(0, len(label_N), chunk):
                part = slice(start, start + chunk)
                z_CV = h_ND[part] @ w_VD.T
                rows = max(1, CACHED_ELEMENTS // len(w_VD)) if z_CV.device.type == "cpu" else chunk
                for first in range(start, min(start + chunk, len(label_N)), rows):
                    few = slice(first, min(first + rows, start + chunk))
                    error_CV, nll_N[few], correct_N[few], entropy_N[few], log_sum_N[few] = _error(
                        z_CV[few.start - start : few.stop - start],
                        bias_V,
                        head,
                        label_N[few],
                        weight_N[few],
                        exact,
                        grad,
                    )
                    if grad_bias_V is not None:
                        grad_bias_V += error_CV.sum(0).to(grad_bias_V.dtype)
                    if grad:
                        z_CV[few.start - start : few.stop - start] = error_CV
                if grad_hidden_ND is not None:
                    grad_hidden_ND[part] = z_CV @ w_VD
                if grad and weight_VD.requires_grad:
                    of_part_VD = z_CV.T @ h_ND[part]
                    if grad_weight_VD is None:
                        grad_weight_VD = of_part_VD.to(weight_VD.dtype)
                    else:
                        grad_weight_VD += of_part_VD
        ctx.gradients, ctx.on_gradient = (grad_hidden_ND, grad_weight_VD, grad_bias_V), head.on_gradient
        ctx.mark_non_differentiable(nll_N, correct_N, entropy_N, log_sum_N)
        return (nll_N * weight_N).sum(), nll_N, correct_N, entropy_N, log_sum_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = grad_outputs[0]
        gradients, ctx.gradients = ctx.gradients, (None, None, None)
        if not _surely_one(scale):
            gradients = tuple(None if g is None else g * scale.to(g.dtype) for g in gradients)
        if ctx.on_gradient is not None and gradients[1] is not None:
            ctx.on_gradient(gradients[1])
        return (*gradients, None, None, None, None, None, None)


def _surely_one(scale: torch.Tensor) -> bool:
    """Whether it is known without waiting for a device; it saves a pass over the head's gradient."""
    return scale.device.type == "cpu" and bool(scale == 1)


def _error(
    z_CV: torch.Tensor,
    bias_V: torch.Tensor | None,
    head: Head,
    label_C: torch.Tensor,
    weight_C: torch.Tensor,
    exact: torch.dtype,
    grad: bool,
) -> tuple[torch.Tensor, ...]:
    """From products W h: d loss / d (W h + b) [C, V]; −log p, correct, entropy, log Σ exp [C]. Overwrites z_CV."""
    z_CV = z_CV.to(exact)
    if bias_V is not None:
        z_CV += bias_V.to(exact)
    if head.scale != 1.0:
        z_CV *= head.scale
    if head.softcap is not None:
        z_CV = z_CV.div_(head.softcap).tanh_().mul_(head.softcap)
    label_C1 = label_C[:, None]
    label_z_C = z_CV.gather(1, label_C1)[:, 0]
    top_C = z_CV.amax(-1)
    slope_CV = 1 - (z_CV / head.softcap).square() if grad and head.softcap is not None else None
    z_CV -= top_C[:, None]
    p_CV = z_CV.exp()
    sum_C = p_CV.sum(-1)
    entropy_C = sum_C.log() - torch.linalg.vecdot(p_CV, z_CV) / sum_C
    log_sum_C = sum_C.log()
    nll_C = log_sum_C - (label_z_C - top_C)
    if grad:
        scale_C = weight_C * head.scale
        p_CV *= (scale_C / sum_C)[:, None]
        p_CV.scatter_add_(1, label_C1, -scale_C[:, None])
        if slope_CV is not None:
            p_CV *= slope_CV
    return p_CV, nll_C, label_z_C == top_C, entropy_C, log_sum_C + top_C

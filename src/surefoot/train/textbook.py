"""Loss and gradient of some examples twice over: by the textbook, and as a step of training computes them.

1. `by_the_book` is the definition: each example alone, the model's own forward with its own attention, full
   logits, cross-entropy; the weighted sums are added up and divided once.
2. `as_trained` is `step.losses`, nothing else.
3. `without_dropout` puts everything back that either of them could have touched.

Shapes: L slots of an example, V vocabulary, D width, E examples, U distinct token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from surefoot.data.rows import Example
from surefoot.model.loss import loss_dtype
from surefoot.model.network import Network, own_noise
from surefoot.train.restored import restored
from surefoot.train.step import losses

FULL_LOGITS = 1 << 28
"""Logits up to which the definition computes those of every slot; of longer rows, the completion's only."""

EMBEDDED = "the embeddings' output"
"""Name of the gradient that has come down through every layer: that of the embedded tokens, [U, D]."""


@dataclass(frozen=True)
class Found:
    """What one way of computing came to."""

    loss: float
    """Weighted mean over supervised tokens, in nats."""
    nll_E: torch.Tensor
    """float64, for each example the sum of −log p."""
    gradients: dict[str, torch.Tensor]
    """By the weight's name, as they were accumulated."""


def tokens_of(example: Example) -> np.ndarray:
    """int64 ids of prompt and completion."""
    return np.concatenate([example.prompt_ids, example.completion_ids]).astype(np.int64)


def by_the_book(network: Network, examples: Sequence[Example], *, exact_loss: bool = False) -> Found:
    """The definition, at `network.product_dtype`. Call within `without_dropout`.

    `exact_loss`: softmax and loss in float64, for a reference whose weights are float32: cross-entropy in
    float32 over 49,152 logits is off by 2e-05 of the loss, all that comes before it by 3e-06.
    """
    divisor = float(sum(example.weight * example.targets for example in examples))
    products = network.product_dtype
    autocast = nullcontext() if products is None else torch.autocast(network.device.type, products)
    total, sums = 0.0, []
    torch.manual_seed(0)
    with _watching_embeddings(network, examples) as embedded, torch.enable_grad(), autocast:
        for example in examples:
            tokens = torch.from_numpy(tokens_of(example)).to(network.device)
            label_N = tokens[len(tokens) - example.targets :]
            vocabulary = network.core.config.get_text_config().vocab_size
            brief = {"logits_to_keep": example.targets} if len(tokens) * vocabulary > FULL_LOGITS else {}
            logits_LV = network.core(input_ids=tokens[None, :-1], use_cache=False, **brief).logits[0]
            logits_NV = logits_LV[len(logits_LV) - example.targets :]
            logits_NV = logits_NV.to(torch.float64 if exact_loss else loss_dtype(logits_NV.dtype))
            nll = F.cross_entropy(logits_NV, label_N, reduction="sum")
            with torch.autocast(network.device.type, enabled=False):
                (nll * (example.weight / divisor)).backward()
            total += nll.item() * example.weight / divisor
            sums.append(nll.item())
    return Found(total, torch.tensor(sums, dtype=torch.float64), _collect(network, embedded))


def as_trained(network: Network, examples: Sequence[Example], budget: int) -> Found:
    """What training computes, in micro-batches of at most `budget` slots. Call within `without_dropout`."""
    with _watching_embeddings(network, examples) as embedded:
        found = losses(network, examples, budget, backprop=True)
    sums = [example.loss for example in found.examples]
    return Found(found.loss, torch.tensor(sums, dtype=torch.float64), _collect(network, embedded))


def _collect(network: Network, embedded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = dict(embedded)
    for name, parameter in network.model.named_parameters():
        if parameter.grad is not None:
            found[name], parameter.grad = parameter.grad, None
    return found


@contextmanager
def _watching_embeddings(network: Network, examples: Sequence[Example]) -> Iterator[dict[str, torch.Tensor]]:
    """On leaving, the gradient of the embedded tokens, added up by token id, is in the dict.

    By id, because a token that several examples share may have had one slot or many. Nothing is there when the
    embeddings train themselves: then their own gradient tells.
    """
    module = network.core.get_input_embeddings()
    passed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_: torch.nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.is_leaf and given:
            passed.append((given[0], output.requires_grad_()))

    out: dict[str, torch.Tensor] = {}
    handle = module.register_forward_hook(keep)
    try:
        yield out
    finally:
        handle.remove()
    known = np.unique(np.concatenate([tokens_of(example)[:-1] for example in examples]))
    id_U = torch.from_numpy(known).to(network.device)
    for ids, output in passed:
        if output.grad is None:
            continue
        if EMBEDDED not in out:
            out[EMBEDDED] = output.grad.new_zeros(len(id_U), output.shape[-1])
        place = torch.searchsorted(id_U, ids.flatten())
        out[EMBEDDED].index_add_(0, place, output.grad.flatten(0, -2))


@contextmanager
def without_dropout(network: Network) -> Iterator[bool]:
    """While open, the model may be run and differentiated at will, dropout off; then all is `restored`.

    Yields whether there was dropout to be switched off. Then modules are in evaluation mode, but for those that
    recompute activations.
    """
    modules = list(network.model.modules())
    dropout = any(m.training and _drops(m) for m in modules)
    with restored(network):
        for module in modules if dropout else ():
            module.training = bool(getattr(module, "gradient_checkpointing", False)) and not _drops(module)
        yield dropout


def _drops(module: torch.nn.Module) -> bool:
    """Whether `module` draws random numbers when it is in training mode, by itself or by its children."""
    return any(own_noise(part) for part in (module, *module.children()))


@contextmanager
def weights_in(network: Network, dtype: torch.dtype) -> Iterator[None]:
    """While open, all weights and buffers are `dtype`; then the tensors from before are back, untouched.

    In place, not in a copy of the model: whatever hangs on the model, such as hooks, goes on meaning this one.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for tensor in [*network.model.parameters(), *network.model.buffers()]:
            if tensor.is_floating_point() and tensor.dtype != dtype:
                kept.append((tensor, tensor.data))
                tensor.data = tensor.data.to(dtype)
        yield
    finally:
        for tensor, data in kept:
            tensor.grad = None
            tensor.data = data

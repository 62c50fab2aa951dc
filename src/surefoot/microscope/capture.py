"""What a real step's forward and backward passes leave behind: hidden states, losses, what flows back.

Nothing is computed twice and nothing is changed: hooks look at tensors that the step makes anyway.

Shapes: N targets, D width, V vocabulary, R watched rows of the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from surefoot.data.forest import Forest
from surefoot.data.rows import Example
from surefoot.model.loss import TargetStats
from surefoot.model.network import Network
from surefoot.train.recompute import decoder_layers
from surefoot.train.step import Losses, losses

EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class Targets:
    """All targets of some examples, in the order of the examples and of their tokens."""

    hidden_ND: torch.Tensor | None
    """None where the model computes its own logits."""
    nll_N: torch.Tensor
    log_sum_N: torch.Tensor
    """log Σ exp of each target's logits."""
    label_N: torch.Tensor
    weight_N: torch.Tensor
    """float64, not normalised."""
    first_E: list[int]
    """Where the targets of each example begin."""

    def place(self, example: int, target: int) -> int:
        """Index of an example's target."""
        return self.first_E[example] + target


@dataclass
class Capture:
    """Fills as the step goes."""

    examples: Sequence[Example]
    rows_R: torch.Tensor | None = None
    """Rows of the head whose gradient is kept."""
    squares: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By block: sum of squares of d loss / d (its output), and how many numbers that is."""
    head_rows_RD: torch.Tensor | None = None
    """Gradient of these rows by the head alone, as autograd hands it over, in float64."""
    norms: list[tuple[float, float]] = field(default_factory=list)
    """After each micro-batch: weight of the targets so far, squared norm of the gradient so far."""
    _parts: list[tuple[Forest, TargetStats]] = field(default_factory=list)

    def losses(
        self, network: Network, budget: int, *, backprop: bool, seed: int | None, noise: bool = False
    ) -> Losses:
        """`step.losses`, watched. `noise` also keeps the gradient's norm after each micro-batch."""
        self._parts, weight = [], 0.0

        def seen(forest: Forest, stats: TargetStats) -> None:
            nonlocal weight
            # The error of a GPU's hidden states is that of its own memory: they stay there.
            self._parts.append((forest, stats))
            if noise and backprop:
                weight += float(forest.weight_N.sum())
                gradients = [p.grad for p in network.model.parameters() if p.grad is not None]
                self.norms.append((weight, torch.nn.utils.get_total_norm(gradients).item() ** 2))

        if not backprop:
            return losses(network, self.examples, budget, backprop=False, seed=seed, seen=seen)
        if network.head is not None and self.rows_R is not None:
            network = replace(network, head=replace(network.head, on_gradient=self._head_gradient))
        with _watching_blocks(network, self.squares):
            return losses(network, self.examples, budget, backprop=True, seed=seed, seen=seen)

    def _head_gradient(self, grad_VD: torch.Tensor) -> None:
        assert self.rows_R is not None
        rows_RD = grad_VD[self.rows_R].double()
        self.head_rows_RD = rows_RD if self.head_rows_RD is None else self.head_rows_RD + rows_RD

    def targets(self) -> Targets:
        """The targets of all micro-batches, put back in the order of the examples."""
        order = {id(example): index for index, example in enumerate(self.examples)}
        pieces: dict[int, tuple[torch.Tensor | None, ...]] = {}
        for forest, stats in self._parts:
            counts = [example.targets for example in forest.examples]
            columns = [
                [None] * len(counts) if column is None else column.split(counts)
                for column in (
                    stats.hidden_ND,
                    stats.nll_N,
                    stats.log_sum_N,
                    forest.label_N,
                    forest.weight_N,
                )
            ]
            for index, example in enumerate(forest.examples):
                pieces[order[id(example)]] = tuple(column[index] for column in columns)
        whole = [
            None if any(part is None for part in column) else torch.cat([p for p in column if p is not None])
            for column in zip(*(pieces[i] for i in range(len(self.examples))), strict=True)
        ]
        hidden_ND, nll_N, log_sum_N, label_N, weight_N = whole
        assert nll_N is not None and log_sum_N is not None and label_N is not None and weight_N is not None
        first = [0]
        for example in self.examples[:-1]:
            first.append(first[-1] + example.targets)
        return Targets(hidden_ND, nll_N, log_sum_N, label_N, weight_N, first)

    def rms(self) -> dict[str, float]:
        """Root mean square of d loss / d (output) by block, from the last to the first."""
        return {name: (total / count) ** 0.5 for name, (total, count) in reversed(self.squares.items())}


@contextmanager
def _watching_blocks(network: Network, squares: dict[str, tuple[float, int]]) -> Iterator[None]:
    """While open, the gradient of each decoder layer's output, and of the embeddings', is added to `squares`."""
    layers = {id(layer) for layer in decoder_layers(network.model)}
    blocks = {name: m for name, m in network.core.named_modules() if id(m) in layers}
    embeddings = network.core.get_input_embeddings()
    handles = []

    def watch(name: str, module: torch.nn.Module) -> None:
        def forward(_: torch.nn.Module, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if isinstance(hidden, torch.Tensor) and hidden.requires_grad and torch.is_grad_enabled():
                hidden.register_hook(add)

        def add(gradient: torch.Tensor) -> None:
            total, count = squares.get(name, (0.0, 0))
            square = torch.linalg.vector_norm(gradient.detach(), dtype=_exact(gradient)).item() ** 2
            squares[name] = total + square, count + gradient.numel()

        squares.setdefault(name, (0.0, 0))
        handles.append(module.register_forward_hook(forward))

    watch(EMBEDDINGS, embeddings)
    for name, module in blocks.items():
        watch(name, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in [name for name, (_, count) in squares.items() if not count]:
            del squares[name]


def _exact(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32

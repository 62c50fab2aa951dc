"""What a real step's forward and backward passes leave behind: hidden states, losses, what flows back.

Nothing is computed twice and nothing is changed: hooks look at tensors that the step makes anyway.

Shapes: N targets, D width, V vocabulary, R watched rows of the head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch

from surefoot.data.forest import Forest
from surefoot.data.rows import Example
from surefoot.microscope.parts import in_parts, numbers_over_parts
from surefoot.model.loss import TargetStats
from surefoot.model.network import Network
from surefoot.ranks import add_up, add_up_numbers, ranks, texts
from surefoot.train.distributed import total_norm
from surefoot.train.recompute import decoder_layers
from surefoot.train.step import Losses, divisor_of, losses

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

    def part(self, which: slice) -> Targets:
        """Some of them, without their examples."""
        hidden_ND = self.hidden_ND[which] if self.hidden_ND is not None else None
        columns = (self.nll_N, self.log_sum_N, self.label_N, self.weight_N)
        return Targets(hidden_ND, *(column[which] for column in columns), first_E=[])


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
    """Of parts of the step, the last of which is all of it: weight of the targets, squared norm of their gradient.
    The parts are the micro-batches so far, of all ranks; of each rank's own, where each has all weights and adds
    its gradient to the others' only once."""
    _parts: list[tuple[Forest, TargetStats]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # They may be made when asked for, and are told apart by what they are.
        self.examples = list(self.examples)

    def losses(
        self, network: Network, budget: int, *, backprop: bool, seed: int | None, noise: bool = False
    ) -> Losses:
        """`step.losses`, watched. `noise` also keeps the gradient's norm after each micro-batch."""
        self._parts, weight = [], 0.0
        like = next(network.model.parameters())
        apart = ranks() > 1 and not in_parts(like)
        pending: list[tuple[str, float, int]] = []

        def seen(forest: Forest, stats: TargetStats) -> None:
            nonlocal weight
            # The error of a GPU's hidden states is that of its own memory: they stay there.
            self._parts.append((forest, stats))
            if forest.examples:  # the one slot of an empty micro-batch is none of the step's
                for name, square, numbers in pending:
                    total, count = self.squares[name]
                    self.squares[name] = total + square, count + numbers
            pending.clear()
            if noise and (forest.examples or not apart):
                (new,) = numbers_over_parts([float(forest.weight_N.sum())], like)
                weight += new
                self.norms.append((weight, _square(network)))

        noise = noise and backprop
        if not backprop:
            return losses(network, self.examples, budget, backprop=False, seed=seed, seen=seen)
        if network.head is not None and self.rows_R is not None:
            network = replace(network, head=replace(network.head, on_gradient=self._head_gradient))
        with _watching_blocks(network, pending) as names:
            self.squares = dict.fromkeys(names, (0.0, 0))
            found = losses(network, self.examples, budget, backprop=True, seed=seed, seen=seen)
        self._add_up_ranks(network)
        if noise and apart:
            whole = divisor_of(self.examples)
            parts = [
                (part, square) for own in texts(json.dumps(self.norms)) for part, square in json.loads(own)
            ]
            # What one rank has done alone is no part.
            self.norms = [pair for pair in parts if not math.isclose(pair[0], whole)]
            self.norms.append((whole, _square(network)))
        return found

    def _head_gradient(self, grad_VD: torch.Tensor) -> None:
        assert self.rows_R is not None
        rows_RD = grad_VD[self.rows_R].double()
        self.head_rows_RD = rows_RD if self.head_rows_RD is None else self.head_rows_RD + rows_RD

    def _add_up_ranks(self, network: Network) -> None:
        sums = add_up_numbers([number for pair in self.squares.values() for number in pair])
        pairs = zip(self.squares, sums[::2], sums[1::2], strict=True)
        self.squares = {name: (total, int(count)) for name, total, count in pairs if count}
        if self.rows_R is not None and network.head is not None and ranks() > 1:
            if self.head_rows_RD is None:  # no target came to this rank
                shape = len(self.rows_R), network.head.weight_VD.shape[1]
                self.head_rows_RD = torch.zeros(shape, dtype=torch.float64, device=network.device)
            self.head_rows_RD = add_up(self.head_rows_RD)

    def targets(self) -> Targets:
        """The targets of all micro-batches of all ranks, in the order of the examples."""
        *first, count = accumulate((example.targets for example in self.examples), initial=0)
        first_of = {id(example): place for example, place in zip(self.examples, first, strict=True)}
        places = [
            torch.tensor(
                [first_of[id(e)] + target for e in forest.examples for target in range(e.targets)],
                dtype=torch.int64,
                device=forest.label_N.device,
            )
            for forest, _ in self._parts
        ]

        def whole(column: list[torch.Tensor]) -> torch.Tensor:
            made = column[0].new_zeros(count, *column[0].shape[1:])
            for place, part in zip(places, column, strict=True):
                made[place] = part
            return add_up(made)

        hidden = [stats.hidden_ND for _, stats in self._parts if stats.hidden_ND is not None]
        return Targets(
            hidden_ND=whole(hidden) if hidden else None,
            nll_N=whole([stats.nll_N for _, stats in self._parts]),
            log_sum_N=whole([stats.log_sum_N for _, stats in self._parts]),
            label_N=whole([forest.label_N for forest, _ in self._parts]),
            weight_N=whole([forest.weight_N for forest, _ in self._parts]),
            first_E=first,
        )

    def rms(self) -> dict[str, float]:
        """Root mean square of d loss / d (output) by block, from the last to the first."""
        return {name: (total / count) ** 0.5 for name, (total, count) in reversed(self.squares.items())}


@contextmanager
def _watching_blocks(network: Network, seen: list[tuple[str, float, int]]) -> Iterator[list[str]]:
    """While open, of the gradient of each decoder layer's output, and of the embeddings', come to `seen`: the
    block's name, the sum of squares, how many numbers. Yields the names, from the first block to the last."""
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
            square = torch.linalg.vector_norm(gradient.detach(), dtype=_exact(gradient)).item() ** 2
            seen.append((name, square, gradient.numel()))

        handles.append(module.register_forward_hook(forward))

    watch(EMBEDDINGS, embeddings)
    for name, module in blocks.items():
        watch(name, module)
    try:
        yield [EMBEDDINGS, *blocks]
    finally:
        for handle in handles:
            handle.remove()


def _square(network: Network) -> float:
    """Squared norm of the gradient as it is."""
    return total_norm([p.grad for p in network.model.parameters() if p.grad is not None]) ** 2


def _exact(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32

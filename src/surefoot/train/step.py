"""One update: predict, loss, backprop, clip, step. No input, no output, nothing printed.

A step is a fixed set of examples, divided once by the sum of their targets' weights; how it is split into
micro-batches changes neither the loss nor the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from surefoot.data.forest import Forest
from surefoot.data.rows import Example
from surefoot.errors import StoppedError
from surefoot.model.loss import TargetStats
from surefoot.model.network import Network
from surefoot.ranks import add_up_numbers, rank, ranks
from surefoot.train.distributed import costs_of, local, micro_batches, sum_gradients, total_norm
from surefoot.train.optim import Optimizers, Turn


class NotFinite(StoppedError):  # noqa: N818
    """Loss or gradient is not finite. Raised before the update: weights and optimizer are as they were."""


@dataclass(frozen=True)
class ExampleLoss:
    """An example's part of a step: the sum of −log p over its targets."""

    where: str
    loss: float
    tokens: int


@dataclass(frozen=True)
class Losses:
    """The loss of a set of examples, and how good the predictions were."""

    loss: float
    """Mean of −log p over supervised tokens (weighted), in nats."""
    tokens: int
    """Tokens of the examples, prompts included, as the user brought them."""
    supervised: int
    slots: int
    """Tokens that went through the model: fewer than `tokens` where prefixes are shared."""
    micro_batches: int
    token_accuracy: float
    entropy: float
    examples: tuple[ExampleLoss, ...]
    flops: float = 0.0
    """That forward and backward passes of all slots, attending pairs and targets take, on all ranks together."""


Seen = Callable[[Forest, TargetStats], None]
"""Told of each micro-batch of this rank when its forward and backward passes are done; as often on every rank,
so some have no examples."""


def seed_of(seed: int, step: int) -> int:
    """What the random numbers of a run's step (dropout) follow from; `step` is 0 at first."""
    return seed * 1_000_003 + step * 1_009


def divisor_of(examples: Sequence[Example]) -> float:
    """Sum of the targets' weights: what a step's loss is divided by, once."""
    return float(sum(e.weight * e.targets for e in examples))


def losses(
    network: Network,
    examples: Sequence[Example],
    budget: int,
    *,
    backprop: bool,
    seed: int | None = None,
    seen: Seen | None = None,
) -> Losses:
    """Predict, compare, and (with `backprop`) add the gradient of the step's loss to every trained weight.

    `budget` is the most slots of a micro-batch; `seed` makes dropout a function of the step (None leaves the
    random state alone).
    """
    examples = list(examples)  # they may be made when asked for, and are told apart by what they are
    divisor = divisor_of(examples)
    if divisor == 0:
        return _nothing(examples)
    nll = [0.0] * len(examples)
    total = correct = entropy = 0.0
    slots, flops, of = 0, 0.0, costs_of(network)
    done: list[Sequence[Example]] = []
    sums: list[torch.Tensor] = []  # stay on the device: to read one is to wait until it is there
    order = {id(example): index for index, example in enumerate(examples)}
    with network.open(), torch.set_grad_enabled(backprop):
        for number, batch in enumerate(micro_batches(network, examples, budget)):
            if seed is not None:
                torch.manual_seed(seed + number * ranks() + rank())
            forest = network.plant(batch)
            loss, stats = network.loss(forest, divisor)
            if backprop:
                with torch.autocast(network.device.type, enabled=False):
                    loss.backward()
            if seen is not None:
                seen(forest, stats)
            if not batch:  # the other ranks have more to do than this one
                continue
            done.append(batch)
            slots += forest.slots
            flops += of.of_forest(forest)
            sums.append(_sums(loss, stats, forest))
    if backprop:
        sum_gradients(network)
    values = iter(torch.cat(sums).tolist() if sums else ())  # expensive: waits for the device, once a step
    for batch in done:
        total += next(values)
        correct += next(values)
        entropy += next(values)
        for example in batch:
            nll[order[id(example)]] = next(values)
    numbers = add_up_numbers([total, correct, entropy, slots, flops, len(done), *nll])
    total, correct, entropy, slots, flops, micro_batches_done, *nll = numbers
    supervised = sum(example.targets for example in examples)
    return Losses(
        loss=total,
        tokens=sum(example.tokens for example in examples),
        supervised=supervised,
        slots=int(slots),
        micro_batches=int(micro_batches_done),
        token_accuracy=correct / supervised,
        entropy=entropy / supervised,
        examples=tuple(ExampleLoss(e.where, nll[i], e.targets) for i, e in enumerate(examples)),
        flops=flops,
    )


def _nothing(examples: Sequence[Example]) -> Losses:
    """The losses of a step without a target."""
    each = tuple(ExampleLoss(e.where, 0.0, e.targets) for e in examples)
    return Losses(0.0, sum(e.tokens for e in examples), 0, 0, 0, 0.0, 0.0, each)


def _sums(loss: torch.Tensor, stats: TargetStats, forest: Forest) -> torch.Tensor:
    """Of a micro-batch: its loss, right predictions, entropy, then −log p of each example; float64, which holds
    each of them exactly."""
    nll = torch.zeros(len(forest.examples), dtype=stats.nll_N.dtype, device=stats.nll_N.device)
    nll.index_add_(0, forest.target_example_N, stats.nll_N)
    whole = [loss.detach(), stats.correct_N.sum(), stats.entropy_N.sum()]
    return torch.cat([*(x.double().view(1) for x in whole), nll.double()])


@dataclass(frozen=True)
class Change:
    """What the optimizer made of a gradient."""

    learning_rate: float
    """The highest of the optimizer's groups."""
    grad_norm: float
    """Of the whole gradient, before clipping."""
    clip_factor: float
    """What the gradient was multiplied by."""


Stepping = Callable[[Turn, Change], None]
"""Told of each weight when it is its turn, the gradient clipped; must call `turn.step()`."""


def update(optimizers: Optimizers, max_grad_norm: float, stepping: Stepping | None = None) -> Change:
    """Clip, step, clear. `max_grad_norm` 0 does not clip.

    With `stepping` the weights are updated one tensor at a time, each by it: the same bits.
    Raises NotFinite, before anything is changed, when the gradient's norm is not finite.
    """
    turns = optimizers.turns()
    gradients = [turn.weight.grad for turn in turns if turn.weight.grad is not None]
    norm = total_norm(gradients)
    if not math.isfinite(norm):
        raise NotFinite(f"the gradient's norm is {norm}")
    factor = max_grad_norm / norm if 0 < max_grad_norm < norm else 1.0
    if factor < 1.0:
        shards = [local(gradient) for gradient in gradients]
        torch._foreach_mul_(shards, factor)  # pyright: ignore[reportPrivateImportUsage]
    change = Change(optimizers.learning_rate, norm, factor)
    if stepping is None:
        optimizers.step()
    else:
        for turn in sorted(turns, key=lambda turn: turn.weight.numel()):  # the largest last
            stepping(turn, change)
    optimizers.zero_grad()
    return change

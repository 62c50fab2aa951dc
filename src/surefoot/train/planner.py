"""The planner: how a step goes through memory. It never changes the step.

1. How much memory there is, and what this model takes of it by the token: measured once, remembered.
2. The largest micro-batch that fits, and how many layers must recompute their activations for it.
3. Of the sizes that fit, the fastest: measured when the run is long enough to pay for it, remembered too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from surefoot.config import SFTConfig
from surefoot.data.forest import slots
from surefoot.data.rows import Example
from surefoot.errors import UserError
from surefoot.model.network import Network
from surefoot.ranks import local_ranks, most, ranks
from surefoot.train import hardware
from surefoot.train.distributed import local
from surefoot.train.memory import LARGE, Footprint, measure
from surefoot.train.recompute import decoder_layers
from surefoot.train.remembered import Book
from surefoot.train.speed import fastest

MARGIN = 0.1
"""Share of the free memory that stays free: others live on this machine too."""
HEAP = 1.15
"""What glibc's heap takes for each byte that is asked of it at most (measured; see LOG.md)."""
SAMPLE = 1_000
"""Examples whose lengths tell how long a step is."""


@dataclass(frozen=True)
class Plan:
    """How the steps of a run go through memory, and why."""

    micro_batch_tokens: int
    """Most slots of a micro-batch; a longer example stands alone."""
    checkpointed_layers: int
    """How many of the `layers`, from the first, recompute their activations."""
    layers: int
    """Decoder layers that can do so."""
    predicted_peak_bytes: int
    """To be compared with `hardware.peak_bytes` at the end."""
    available_bytes: int
    """What the process holds now, and what it could take besides."""
    reasons: tuple[str, ...]
    """Sentences for the terminal and run.json."""


@dataclass(frozen=True)
class _Work:
    """What the rows ask for."""

    sample: Sequence[Example]
    step: float
    """Slots of a step on average."""
    step_most: int
    """Slots of a large step: three standard deviations above."""
    longest: int
    """Slots of the longest example."""
    share: float
    """Targets among slots."""


@dataclass(frozen=True)
class _Memory:
    """What is there, and what is taken whatever the micro-batch."""

    held: int
    free: int
    lasting: int
    """Optimizer state."""
    update: int
    """What the update takes besides gradients."""
    overhead: float

    @property
    def room(self) -> int:
        return self.held + int(self.free * (1 - MARGIN))

    def peak(self, found: Footprint, work: _Work, budget: int, checkpointed: int) -> int:
        """The most the process will hold with this budget and so many recomputing layers."""
        size = min(budget, work.step_most)
        square = int(math.sqrt(size * min(size, work.longest)))
        activations = found.peak(size, int(size * work.share), checkpointed, square)
        if work.longest > size:
            alone = found.peak(work.longest, int(work.longest * work.share), checkpointed, work.longest)
            activations = max(activations, alone)
        several = work.step_most > budget  # then a micro-batch starts with the gradient of those before it
        step = found.gradients + activations if several else max(found.gradients, activations)
        most = max(found.copies + max(step, found.first_end), found.gradients + self.update)
        return self.held + int((self.lasting + most) * self.overhead)


def choose(
    network: Network,
    examples: Sequence[Example],
    args: SFTConfig,
    optimizers_bytes: int,
    steps: int,
    longest: int | None = None,
) -> Plan:
    """Find the micro-batch budget and how many layers recompute. Weights, gradients, random state stay.

    Args:
        examples: of the training data; may be lazy, a thousand are read.
        optimizers_bytes: size of the optimizer's state once it is there (AdamW: two numbers a trained weight).
        steps: how many the run has; a short run is not worth measuring speed for.
        longest: tokens of the longest example; without it, all examples are passed over.

    Raises UserError, before any step, when the weights or the longest example cannot fit.
    """
    device, layers = network.device, len(decoder_layers(network.model))
    trained = sum(local(p).nbytes for p in network.model.parameters() if p.requires_grad)
    work = _look(network, examples, args, longest)
    if device.type == "cpu":
        hardware.give_back_heap()  # what an earlier run or the loading of the model left would count twice
    held, free = hardware.held_bytes(device), hardware.free_bytes(device)
    if device.type == "cpu":
        free //= local_ranks()
    held, taken = (int(number) for number in most([held, -free]))  # all must choose alike
    memory = _Memory(
        held=held,
        free=-taken,
        lasting=optimizers_bytes,
        update=trained if args.precision == "pure-bf16" else 0,
        overhead=HEAP if device.type == "cpu" else 1.0,
    )
    _weights_fit(memory, trained, args)
    notes: list[str] = []
    book = Book(network)
    found = book.footprint()
    if found is None or (found.square is None and work.longest > LARGE):
        started = time.perf_counter()
        found = _largest(measure(network, work.sample, work.longest))
        notes.append(f"memory by the token measured in {time.perf_counter() - started:.1f} s")
        notes += book.write(footprint=found)
    else:
        notes.append(f"memory by the token remembered from {book.path}")

    def fits(budget: int, count: int) -> bool:
        return memory.peak(found, work, budget, count) <= memory.room

    sizes = [args.micro_batch_tokens] if args.micro_batch_tokens else _sizes(device)
    count = layers if args.gradient_checkpointing else 0
    fitting = [size for size in sizes if fits(size, count)]
    if not fitting:
        count = next((c for c in range(count, layers + 1) if fits(sizes[0], c)), layers)
        if not fits(sizes[0], count):
            raise UserError(_too_long(examples, memory, found, work, sizes[0], layers, args))
        fitting = [sizes[0]]
    default = hardware.micro_batch_tokens(device)
    budget = max((size for size in fitting if size <= default), default=fitting[0])
    if args.micro_batch_tokens:
        why = "as micro_batch_tokens says"
    elif len(fitting) == 1:
        why = "larger ones do not fit in memory"
    elif ranks() > 1:  # one that ran out of memory in the measurement would leave the others waiting
        why = "with several processes others are not measured"
    else:
        budget, why = fastest(
            network,
            work.sample,
            work.step,
            [s for s in fitting if s >= 1024] or fitting,
            budget,
            found,
            steps,
            book,
        )
    peak = max(memory.peak(found, work, budget, count), hardware.peak_bytes(device))
    reasons = (
        f"micro-batches of at most {budget:,} tokens: {why}",
        _recomputed(count, layers, args, work, memory, found, budget),
        f"predicted peak of memory {_gb(peak)}, of {_gb(memory.held + memory.free)} to be had",
        *notes,
    )
    return Plan(budget, count, layers, peak, memory.held + memory.free, reasons)


def _largest(found: Footprint) -> Footprint:
    """On all ranks, what the rank took that took most."""
    numbers, shape = tree_flatten(asdict(found))
    there = [number is not None for number in numbers]
    largest = most([number or 0 for number in numbers])
    return Footprint(**tree_unflatten([n if t else None for n, t in zip(largest, there, strict=True)], shape))


def _sizes(device: torch.device) -> list[int]:
    """Budgets to choose from, the smallest first. Below it layers recompute rather than rows be split more."""
    return [512 << k for k in range(4)] if device.type == "cpu" else [2048 << k for k in range(6)]


def _look(network: Network, examples: Sequence[Example], args: SFTConfig, longest: int | None) -> _Work:
    sample = [examples[i] for i in range(0, len(examples), max(1, len(examples) // SAMPLE))]
    lengths = [slots(e) for e in sample]
    mean = sum(lengths) / len(lengths)
    variance = sum((length - mean) ** 2 for length in lengths) / len(lengths)
    rows = examples[len(examples) - 1].row + 1
    count = min(len(examples), args.step_rows * max(1.0, len(examples) / rows))
    forest = network.plant(_consecutive(examples, math.ceil(count)))
    merging = len(forest.ids_T) / sum(slots(e) for e in forest.examples)
    most = (mean * count + 3 * math.sqrt(variance * count)) * merging
    longest = max(e.tokens for e in examples) if longest is None else longest
    return _Work(
        sample=sample,
        step=mean * count * merging,
        step_most=max(1, min(math.ceil(most), math.ceil(count) * (longest - 1))),
        longest=longest - 1,
        share=len(forest.label_N) / len(forest.ids_T),
    )


def _consecutive(examples: Sequence[Example], count: int) -> list[Example]:
    """At most 64 examples as they stand: rows that share a prefix are seldom far apart."""
    return [examples[i] for i in range(min(count, len(examples), 64))]


# Words -----------------------------------------------------------------------------------------------------


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _recomputed(
    count: int, layers: int, args: SFTConfig, work: _Work, memory: _Memory, found: Footprint, budget: int
) -> str:
    if layers == 0:
        asked = "gradient_checkpointing is without effect: " if args.gradient_checkpointing else ""
        return f"{asked}this model's layers cannot recompute their activations"
    if args.gradient_checkpointing:
        return f"all {layers} layers recompute their activations, as gradient_checkpointing says"
    if count == 0:
        return "activations fit in memory: no layer recomputes them"
    need = memory.peak(found, work, budget, 0)
    return (
        f"{count} of {layers} layers recompute their activations: to keep all, with a longest example of "
        f"{work.longest + 1:,} tokens, {_gb(need)} would be needed and {_gb(memory.room)} can be used"
    )


def _weights_fit(memory: _Memory, trained: int, args: SFTConfig) -> None:
    need = memory.held + memory.lasting + trained
    if need <= memory.room:
        return
    lora = "" if args.use_peft else "; use_peft=true trains a small adapter instead"
    raise UserError(
        f"weights, gradients and optimizer state need {_gb(need)}, and {_gb(memory.room)} can be used: "
        f"take a smaller model, or an optimizer with less state (optim=adafactor){lora}"
    )


def _too_long(
    examples: Sequence[Example],
    memory: _Memory,
    found: Footprint,
    work: _Work,
    budget: int,
    layers: int,
    args: SFTConfig,
) -> str:

    def least(length: int) -> int:
        cut = replace(work, longest=length)
        return min(memory.peak(found, cut, budget, count) for count in range(layers + 1))

    need = least(work.longest)
    recomputing = f", even with up to {layers} layers recomputing their activations" if layers else ""
    lora = "" if args.use_peft else ", or train an adapter (use_peft=true)"
    if work.longest <= budget:
        return (
            f"micro-batches of {budget:,} tokens need {_gb(need)} of memory{recomputing}, and "
            f"{_gb(memory.room)} can be used: set a smaller micro_batch_tokens{lora}"
        )
    long = next((e for e in examples if e.tokens > work.longest), None)
    where = f"{long.where}: " if long is not None else ""
    fitting = 0
    for bit in reversed(range(work.longest.bit_length())):
        fitting += (1 << bit) if least(fitting + (1 << bit)) <= memory.room else 0
    fix = f"set max_length={fitting + 1}" if fitting else "take a smaller model"
    return (
        f"{where}an example of {work.longest + 1:,} tokens needs {_gb(need)} of memory{recomputing}, and "
        f"{_gb(memory.room)} can be used: {fix}{lora}"
    )

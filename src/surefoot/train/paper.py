"""A run on paper: memory of each rank and tokens a second, before there is a machine to measure.

1. `Sizes` has what the model takes, `Rows` what the data asks for, `Place` what a rank has.
2. `memory` adds up a rank's bytes for a way of training: sharded or not, recomputing or not.
3. `speed` is compute, optimizer traffic and communication; which of them takes longest binds.

Weights, gradients and optimizer state are counted, activations are those of training's own forward and backward
passes. What is assumed of speed is in the constants below, and gives a range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from surefoot.config import SFTConfig
from surefoot.data.forest import plant, slots
from surefoot.data.rows import Example
from surefoot.train.planner import HEAP, MARGIN
from surefoot.train.sketch import Sizes

MFU = (0.25, 0.45)
"""Share of a card's peak that training computes with: assumed, not measured by us. Well-tuned training of dense
models of billions of weights is reported at 0.4 to 0.5 on A100 and H100; small models and short rows get less."""
MEMORY_REACHED = 0.8
"""Share of a card's bandwidth that an optimizer's passes reach: assumed."""
LINK_REACHED = (0.5, 0.8)
"""Share of a link that collectives of many megabytes reach: assumed."""
NODE = 8
"""GPUs of a machine, unless --nodes says otherwise."""
CONTEXT = 1.0e9
"""Bytes that CUDA and its libraries take of a card beside tensors: assumed."""
COLLECTIVES = 1.0e9
"""Bytes that NCCL's buffers take when there are several ranks: assumed."""
PASSES = 36
"""Bytes an update moves for each trained fp32 weight: gradient written and read for its norm; AdamW reads weight,
gradient and two moments, and writes weight and moments."""
SUMMED = 4
"""Bytes of a weight's gradient between ranks: fp32, also where weights and gradients are bf16."""
SMALLEST = 512
"""Slots of the smallest micro-batch that is tried; longer rows stand alone."""


@dataclass(frozen=True)
class Rows:
    """What the data asks for. Lengths in slots (tokens but the last)."""

    mean: float
    deviation: float
    longest: int
    share: float
    """Targets among slots."""
    step_rows: int
    """Of each rank."""
    merging: float = 1.0
    """Slots for each slot of the rows apart: less than 1 where prefixes are shared."""

    @property
    def step(self) -> float:
        """Slots of a rank's share of a step."""
        return self.mean * self.step_rows * self.merging

    @property
    def step_most(self) -> int:
        """The same for a large step: three standard deviations above."""
        most = (self.mean * self.step_rows + 3 * self.deviation * math.sqrt(self.step_rows)) * self.merging
        return max(1, min(math.ceil(most), self.step_rows * self.longest))

    @property
    def pairs(self) -> float:
        """Pairs of a step, each row seeing itself only from its beginning to the slot."""
        return self.step_rows * (self.mean**2 + self.deviation**2 + self.mean) / 2


def rows_of(examples: Sequence[Example], args: SFTConfig) -> Rows:
    """As they are."""
    lengths = np.array([slots(example) for example in examples])
    forest = plant(examples[: args.step_rows], args.share_prefixes)
    return Rows(
        mean=float(lengths.mean()),
        deviation=float(lengths.std()),
        longest=int(lengths.max()),
        share=len(forest.label_N) / forest.slots,
        step_rows=args.step_rows,
        merging=forest.slots / sum(slots(example) for example in forest.examples),
    )


def rows_as_said(
    mean: float, longest: float, learned: float | None, args: SFTConfig
) -> tuple[list[Example], Rows]:
    """Rows of which only the mean and the longest are known, in tokens, and how many of them are learned (half, if
    that is not known); with an example of the mean length."""
    mean = max(1.0, min(mean, longest) - 1)
    most = max(1, int(longest) - 1)
    share = 0.5 if learned is None else min(1.0, learned / mean)
    ids = np.zeros(max(2, round(mean) + 1), np.int32)
    # Nothing is known of the lengths between: as if the longest were three deviations away.
    rows = Rows(mean, (most - mean) / 3, most, share, args.step_rows)
    return [Example(ids[:1], ids[1:], 0, "a row as said")], rows


@dataclass(frozen=True)
class Place:
    """What each rank has."""

    name: str
    memory: float
    """Bytes."""
    process: float
    """Of these, what the process takes before it has a model."""
    cuda: bool
    usual: int
    """Slots of a micro-batch when nothing is measured."""
    ranks: int
    nodes: int
    flops: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    """Bytes a second between ranks, in each direction: the slowest on the way."""

    @property
    def room(self) -> float:
        """What may be used: the rest of what is free stays so."""
        return self.process + (self.memory - self.process) * (1 - MARGIN)

    @property
    def overhead(self) -> float:
        return 1.0 if self.cuda else HEAP


@dataclass(frozen=True)
class Way:
    """How a model is trained."""

    peft: bool
    shard: bool
    recompute: bool


@dataclass(frozen=True)
class Memory:
    """A rank's bytes at its fullest moment."""

    micro_batch_tokens: int
    process: float
    weights: float
    gradients: float
    optimizer: float
    copies: float
    """bf16 copies of weights that live as long as a step."""
    gathered: float
    """Whole weights and gradients of units that are at work, where they are sharded."""
    activations: float
    """And what the heap wastes, on a CPU."""

    @property
    def total(self) -> float:
        own = asdict(self)
        return sum(value for name, value in own.items() if name != "micro_batch_tokens")


def memory(found: Sizes, rows: Rows, place: Place, way: Way, budget: int) -> Memory:
    """What a rank holds when micro-batches have at most `budget` slots; the sum is `planner`'s for one rank."""
    pieces = place.ranks if way.shard else 1
    gradients = found.gradients / pieces
    counted = found.layers if way.recompute else 0
    print_ = found.footprint
    copies = float(print_.copies)
    gathered = 0.0
    if pieces > 1:
        # Two layers: the one at work and the next; a gradient, and its copy in fp32 on the way to its owners.
        copy = SUMMED * found.trained_parameters / max(1, found.gradients)
        gathered = found.root + 2 * (found.layer / 2 if found.rounded else found.layer)
        gathered += (1 + copy) * max(found.layer_gradients, found.root_gradients)
        if found.rounded:
            copies = 0.0
        elif way.recompute and not way.peft:  # an adapter's frozen layers are rounded once, and kept
            copies /= max(1, found.layers)
        print_ = replace(print_, end=0, first_end=0)
    if place.cuda:  # there a whole chunk of logits is in fp32 at once, twice
        fixed, each = print_.head
        print_ = replace(print_, head=(fixed, each + 8 * found.vocabulary))

    def activations(size: int, longest: int) -> int:
        return print_.peak(size, int(size * rows.share), counted, longest)

    size = min(budget, rows.step_most)
    most = activations(size, int(math.sqrt(size * min(size, rows.longest))))
    if rows.longest > size:
        most = max(most, activations(rows.longest, rows.longest))
    several = rows.step_most > budget  # then a micro-batch starts with the gradient of those before it
    beside = max(0.0, print_.first_end - gradients, most if several else most - gradients)
    lasting = found.state / pieces
    changing = lasting + gradients + copies + gathered + beside
    return Memory(
        micro_batch_tokens=budget,
        process=place.process,
        weights=found.weights / pieces,
        gradients=gradients,
        optimizer=lasting,
        copies=copies,
        gathered=gathered,
        activations=beside + (place.overhead - 1) * changing,
    )


def largest(found: Sizes, rows: Rows, place: Place, way: Way) -> Memory | None:
    """With the largest micro-batch that fits, up to a whole step; None if the smallest does not."""
    fitting = None
    for budget in _sizes(rows):
        taken = memory(found, rows, place, way, budget)
        if taken.total > place.room:
            break
        fitting = taken
    return fitting


def _sizes(rows: Rows) -> Iterator[int]:
    """Budgets, the smallest first; a step needs no larger one than itself."""
    size = SMALLEST
    while True:
        yield size
        if size >= rows.step_most:
            return
        size += max(SMALLEST, size // 8 // SMALLEST * SMALLEST)


# Speed -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Expected, for all ranks together: the user's tokens a second, and the seconds of a step's parts."""

    low: float
    high: float
    compute: tuple[float, float]
    optimizer: float
    communication: tuple[float, float]
    binds: str
    """"compute", "optimizer" or "communication"."""


def speed(found: Sizes, rows: Rows, place: Place, way: Way, budget: int) -> Speed | None:
    """A step's seconds: compute at `MFU` of the peak, `PASSES` over the weights, collectives over the link.

    At best, gathering and reducing sharded weights hides behind compute; at worst, nothing hides. None where the
    place's peak is not known; what is not known of bandwidth or link is left out.
    """
    if place.flops is None:
        return None
    pairs = rows.pairs * rows.merging
    work = found.costs.flops(rows.step, rows.step * rows.share, pairs)
    if way.recompute and found.recomputing:
        work += found.costs.again(rows.step, pairs)
    pieces = place.ranks if way.shard else 1
    compute = (work / place.flops / MFU[1], work / place.flops / MFU[0])
    update = PASSES / 4 * found.gradients / pieces / ((place.bandwidth or math.inf) * MEMORY_REACHED)
    moved = _moved(found, place, way, max(1, math.ceil(rows.step / budget)))
    talk = (0.0, 0.0)
    if moved and place.link is not None:
        talk = (moved / place.link / LINK_REACHED[1], moved / place.link / LINK_REACHED[0])
    shortest = (max(compute[0], talk[0]) if way.shard else compute[0] + talk[0]) + update
    longest = compute[1] + talk[1] + update
    tokens = rows.mean * rows.step_rows * place.ranks
    middle = {"compute": sum(compute), "optimizer": 2 * update, "communication": sum(talk)}
    return Speed(
        tokens / longest, tokens / shortest, compute, update, talk, max(middle, key=lambda part: middle[part])
    )


def _moved(found: Sizes, place: Place, way: Way, micro_batches: int) -> float:
    """Bytes that a rank sends in a step, rings being used."""
    others = (place.ranks - 1) / place.ranks
    gradients = SUMMED * found.trained_parameters
    if not way.shard:
        return 2 * others * gradients
    # Layers are gathered for the forward and again for the backward pass, in bf16 where they are rounded before;
    # the rest once, in the type it has.
    layers = found.weights - found.root
    gathered = found.root + (layers if found.rounded else 2 * layers)
    return others * micro_batches * (gathered + gradients)


# A whole plan ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A way, and whether a rank can go it."""

    way: Way
    fits: bool
    memory: Memory
    """With the micro-batch that training would begin with; with the smallest, where nothing fits."""
    largest: int | None
    """Slots of the largest micro-batch that fits."""
    speed: Speed | None

    def to_dict(self) -> dict[str, Any]:
        own = asdict(self)
        return {
            **own.pop("way"),
            **own,
            "memory": {**asdict(self.memory), "total": self.memory.total},
        }


def outcome(found: Sizes, rows: Rows, place: Place, way: Way, wanted: int | None = None) -> Outcome:
    """`wanted`: the recipe's micro_batch_tokens."""
    most = largest(found, rows, place, way)
    if most is None:
        tried = wanted or SMALLEST
        return Outcome(way, False, memory(found, rows, place, way, tried), None, None)
    budget = wanted or min(most.micro_batch_tokens, place.usual)
    taken = memory(found, rows, place, way, budget)
    pace = speed(found, rows, place, way, budget)
    return Outcome(way, taken.total <= place.room, taken, most.micro_batch_tokens, pace)

"""Which micro-batch size is fastest: measured on real examples when the run is long enough to pay for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from surefoot.data.forest import slots
from surefoot.data.rows import Example
from surefoot.model.network import Network
from surefoot.train.memory import Footprint
from surefoot.train.remembered import Book
from surefoot.train.restored import restored
from surefoot.train.step import losses

LONG_RUN = 120.0
"""Seconds of training from which on speed is measured."""
SHARE, SECONDS = 0.03, 10.0
"""At most this share of the run, and so many seconds, go into it (the warm-up is no loss: its memory is kept)."""
ROUNDS = 3
GAIN = 0.03
"""A larger micro-batch must be faster by this share."""


def fastest(
    network: Network,
    sample: Sequence[Example],
    step: float,
    sizes: list[int],
    default: int,
    found: Footprint,
    steps: int,
    book: Book,
) -> tuple[int, str]:
    """The fastest of `sizes` (ascending) and why; `default` when measuring does not pay."""
    run = steps * step * found.seconds
    examples = _of_size(sample, min(step, sizes[-1]))
    sizes = _distinct(network, examples, sizes)
    if len(sizes) < 2:
        return default, "a step seldom needs more than one"
    speeds = book.speeds(step)
    if not all(str(size) in speeds for size in sizes):
        if run < LONG_RUN:
            return default, f"a run of about {run:.0f} s is too short to measure others"
        allowed = min(run * SHARE, SECONDS)
        while len(sizes) > 2 and _cost(examples, sizes, found) > allowed:
            sizes = sizes[:-1]
            examples = _of_size(sample, sizes[-1])
        rounds = min(ROUNDS, int(allowed / _cost(examples, sizes, found)))
        if rounds < 1:
            return default, f"measuring others would take more than {allowed:.0f} s"
        with restored(network):
            network.model.train()
            timed = race(sizes, lambda size: _seconds(network, examples, size), rounds)
        speeds = {str(size): seconds / sum(map(slots, examples)) for size, seconds in timed.items()}
        book.write(speeds={**book.all_speeds(), book.length_class(step): speeds})
    known = {size: speeds[str(size)] for size in sizes if str(size) in speeds}
    best = pick(known)
    said = ", ".join(f"{size:,}: {1 / seconds:,.0f} tokens/s" for size, seconds in known.items())
    return best, f"the fastest measured ({said})"


def race(sizes: Sequence[int], seconds: Callable[[int], float], rounds: int) -> dict[int, float]:
    """The least seconds of each size over alternating rounds; sizes from where memory ends are left out."""
    timed: dict[int, float] = {}
    left = list(sizes)
    for number in range(rounds + 1):
        # The first round is not counted: it is the largest alone, to touch the memory that all will use.
        for size in list(left) if number else list(left)[-1:]:
            try:
                took = seconds(size)
            except torch.OutOfMemoryError:
                left = [other for other in left if other < size]
                torch.cuda.empty_cache()
                break
            if number:
                timed[size] = min(took, timed.get(size, math.inf))
    return {size: timed[size] for size in left if size in timed}


def pick(seconds: dict[int, float]) -> int:
    """The fastest size; of sizes within `GAIN` of it the smallest."""
    least = min(seconds.values())
    return min(size for size, took in seconds.items() if took <= least * (1 + GAIN))


def _seconds(network: Network, examples: Sequence[Example], size: int) -> float:
    started = time.perf_counter()
    losses(network, examples, size, backprop=True)
    if network.device.type == "cuda":
        torch.cuda.synchronize(network.device)
    return time.perf_counter() - started


def _of_size(sample: Sequence[Example], size: float) -> list[Example]:
    total, out = 0, []
    for example in sample:
        if out and total + slots(example) > size:
            break
        out.append(example)
        total += slots(example)
    return out


def _distinct(network: Network, examples: Sequence[Example], sizes: Iterable[int]) -> list[int]:
    """The smallest size of each way to split `examples`."""
    ways = {}
    for size in sizes:
        ways.setdefault(tuple(tuple(map(id, batch)) for batch in network.plan(examples, size)), size)
    return list(ways.values())


def _cost(examples: Sequence[Example], sizes: Sequence[int], found: Footprint) -> float:
    return len(sizes) * sum(map(slots, examples)) * found.seconds

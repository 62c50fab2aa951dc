"""Panel 8: the loss on a probe batch along one update and, on request, across it.

Before and after the update come from the ground, which also puts the weights back. Every point is one forward
pass of the probe batch, in evaluation mode and without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from surefoot.data.rows import Example
from surefoot.errors import UserError
from surefoot.microscope.direction import lay_across
from surefoot.microscope.ground import Ground
from surefoot.microscope.panels import Mountain
from surefoot.model.network import Network
from surefoot.train.evaluate import evaluating
from surefoot.train.step import losses

ALONG = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Where the cut is measured, in updates: a little uphill, the update, and as far again."""
STEPS = 21
"""Points of a surface in each of its directions."""
ACROSS = 1.25
"""How far a surface goes to either side, in lengths of the update: as wide as it is long."""
SURFACE = "mountain"
"""Name of the surface's array."""


def cut(
    ground: Ground,
    network: Network,
    examples: Sequence[Example],
    budget: int,
    *,
    slope: float,
    probe: str,
    along: Sequence[float] = ALONG,
    advance: Callable[[], None] = lambda: None,
) -> Mountain:
    """The loss of `examples` at before + a · Δ for each a of `along`, which must hold 0 and 1.

    `budget` is the most slots of a micro-batch, `slope` is g·Δ of the same loss, `probe` says which rows these are.
    `advance` is called after each. Changes nothing for good. Raises NoMountain when the weights could not be kept.
    """
    heights = _heights(ground, network, examples, budget, [(a, 0.0) for a in along], advance)
    return _mountain(ground, "1-D cut", list(along), heights, slope, probe)


def surface(
    ground: Ground,
    network: Network,
    examples: Sequence[Example],
    budget: int,
    *,
    slope: float,
    probe: str,
    steps: int = STEPS,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Mountain, np.ndarray]:
    """The loss on a grid of `steps` × `steps` points along the update and a random direction across it.

    The array is float64 [across, along], to be kept under the name SURFACE; `losses` is its row without anything
    across. Else as `cut`.
    """
    if steps < 3 or steps % 2 == 0:
        raise UserError(f"a mountain's surface has an odd number of steps, 3 or more, so not {steps}")
    along, across = _holding(np.linspace(-0.5, 2.0, steps), 0.0, 1.0), np.linspace(-ACROSS, ACROSS, steps)
    across[steps // 2] = 0.0
    lay_across(ground, seed)
    points = [(a, c) for c in across.tolist() for a in along.tolist()]
    heights = np.array(_heights(ground, network, examples, budget, points, advance)).reshape(steps, steps)
    middle = heights[steps // 2].tolist()
    mountain = _mountain(ground, "2-D slice", along.tolist(), middle, slope, probe)
    across_is = (
        f"a random direction (seed {seed}): each row of a matrix as long as that row of the weights; all of it "
        "at a right angle to this update, and 1 is as far as the update went"
    )
    more = {"across": across.tolist(), "across_is": across_is, "surface": SURFACE}
    return mountain.model_copy(update=more), heights


def _heights(
    ground: Ground,
    network: Network,
    examples: Sequence[Example],
    budget: int,
    points: Sequence[tuple[float, float]],
    advance: Callable[[], None],
) -> list[float]:
    found = []
    with evaluating(network), ground.returning():
        for along, across in points:
            ground.stand(along, across)
            with _whole_or_not_at_all(network):
                found.append(losses(network, examples, budget, backprop=False).loss)
            advance()
    return found


def _mountain(
    ground: Ground, form: str, along: list[float], heights: list[float], slope: float, probe: str
) -> Mountain:
    rise = heights[along.index(1.0)] - heights[along.index(0.0)]
    curvature = 2 * (rise - slope)
    rounded = {str(k.rows.dtype).removeprefix("torch.") for k in ground.kept if k.rows.dtype.itemsize < 4}
    caption = f"a {form} through {ground.dimensions:,} dimensions, on this probe batch"
    if rounded:
        caption += f"; between 0 and 1 and beyond, weights are rounded to {' and '.join(sorted(rounded))}"
    return Mountain(
        probe=probe,
        caption=caption,
        along=along,
        losses=heights,
        slope=slope,
        curvature=curvature,
        lowest_at=-slope / curvature if math.isfinite(curvature) and curvature > 0 else None,
    )


def _holding(grid: np.ndarray, *points: float) -> np.ndarray:
    """The grid with its nearest points moved to `points`, which it then holds exactly."""
    for point in points:
        grid[np.abs(grid - point).argmin()] = point
    return grid


@contextmanager
def _whole_or_not_at_all(network: Network) -> Iterator[None]:
    """A forward pass that stops halfway leaves FSDP with weights that it has gathered, of a place where the model
    stands no longer: they are given up."""
    try:
        yield
    except BaseException:
        reset = getattr(network.root, "reset_iter_state", None)  # since torch 2.13
        if reset is not None:
            reset()
        raise

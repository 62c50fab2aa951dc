"""(seed, epoch, step) → the rows of a step. A pure function: resuming needs no state but the step's number."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Sampler:
    """Which rows make which step.

    A step counts rows, as Hugging Face's batch size does; all examples of a row (every assistant turn of a
    conversation) are in the same step. The last step of an epoch takes what is left.
    """

    rows: int
    rows_per_step: int
    seed: int = 42
    shuffle: bool = True
    _drawn: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The last epoch's order: 8 bytes a row."""

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.rows_per_step)

    def epochs(self, first: int, end: int) -> range:
        """The epochs that steps `first` up to before `end` are in."""
        return range(first // self.steps_per_epoch, math.ceil(end / self.steps_per_epoch))

    def steps(self, epoch: int, first: int, end: int) -> range:
        """The numbers of an epoch's steps, as far as they are from `first` up to before `end`."""
        return range(max(first, epoch * self.steps_per_epoch), min(end, (epoch + 1) * self.steps_per_epoch))

    def step(self, step: int) -> np.ndarray:
        """int64 indices of the rows of step `step`, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[place * self.rows_per_step : (place + 1) * self.rows_per_step]

    def order(self, epoch: int) -> np.ndarray:
        """int64 order of all rows in an epoch, a permutation drawn from (seed, epoch) alone; read only."""
        epoch = epoch if self.shuffle else 0
        if epoch not in self._drawn:
            self._drawn.clear()
            order = self._order(epoch)
            order.flags.writeable = False
            self._drawn[epoch] = order
        return self._drawn[epoch]

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.rows)
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.rows)

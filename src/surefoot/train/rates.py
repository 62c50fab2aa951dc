"""The learning rate of each step: by the options' schedule, or by a scheduler of the user's own."""

from __future__ import annotations

import warnings
from typing import Any

from surefoot.config import SFTConfig
from surefoot.train.optim import Optimizers, schedule


class Rates:
    """Sets the learning rates of a run."""

    def __init__(self, args: SFTConfig, optimizers: Optimizers, own: Any, total_steps: int) -> None:
        """`own`: the user's scheduler, if there is one."""
        self._args, self._optimizers, self._own, self._total = args, optimizers, own, total_steps

    def replay(self, steps: int) -> None:
        """So many steps were taken before. A scheduler of the user's own has its state from having been stepped."""
        if self._own is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch expects the optimizer's steps in between
                for _ in range(1, steps):
                    self._own.step()

    def set(self, step: int) -> None:
        """For the step of this number, which is 0 at first."""
        if self._own is None:
            self._optimizers.set_factor(schedule(self._args, self._total, step))
        elif step > 0:
            self._own.step()

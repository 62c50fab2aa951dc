"""What one of several ranks does before the command, when a test asks for it."""

from __future__ import annotations

import os
import time
from typing import Any


def slow_steps() -> None:
    """A quarter of a second a step, so that a test can strike in the middle of one."""
    from surefoot.train import trainer

    plain = trainer.SFTTrainer._backprop

    def slow(self: Any, *args: Any) -> Any:
        time.sleep(0.25)
        return plain(self, *args)

    trainer.SFTTrainer._backprop = slow  # type: ignore[method-assign]


def other_seed() -> None:
    """The ranks read different recipes."""
    from surefoot.commands import train
    from surefoot.config import SFTConfig

    plain = train._train

    def other(args: SFTConfig, *more: Any, **how: Any) -> int:
        seed = args.seed + int(os.environ["RANK"])
        return plain(args.model_copy(update={"seed": seed}), *more, **how)

    train._train = other


def elsewhere(place: str) -> None:
    """The rank stands on another disk."""
    os.chdir(place)

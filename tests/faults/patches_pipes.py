"""Hooks for children that nobody listens to."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any


def dead_pipes(which: list[int]) -> None:
    """These descriptors are pipes whose readers have gone."""
    for number in which:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, number)
        os.close(writer)


def hung_up_terminal() -> None:
    """stdout and stderr are a terminal that was closed: writing says EIO."""
    master, slave = os.openpty()
    for number in (1, 2):
        os.dup2(slave, number)
    os.close(slave)
    os.close(master)
    try:
        os.write(1, b"x")
    except OSError as error:
        assert error.errno == errno.EIO
    else:
        raise AssertionError("the terminal is still there")


def break_elsewhere(when: str) -> None:
    """A pipe that is neither stdout nor stderr breaks."""

    def broken(*_: Any, **__: Any) -> Any:
        raise BrokenPipeError(errno.EPIPE, "of somebody else")

    if when == "parse":
        train: Any = sys.modules["surefoot.commands.train"]
        train.read_recipe = broken
        return
    from surefoot.microscope.run import Microscope
    from surefoot.train import trainer

    if when == "model":
        trainer.prepare_model = broken
    elif when == "step":
        Microscope.losses = broken  # type: ignore[method-assign]
    else:
        trainer.SFTTrainer.save_model = broken  # type: ignore[method-assign]

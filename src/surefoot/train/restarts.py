"""A run whose processes were started again by their launcher, and one whose ranks have lost each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from surefoot.config import SFTConfig
from surefoot.errors import StoppedError, UserError
from surefoot.ranks import me, ranks

RESTARTS = ("SUREFOOT_RESTARTS", "TORCHELASTIC_RESTART_COUNT")
"""How often the launcher has started the processes again: set by `surefoot train --nproc`, and by torchrun."""
LOST = (
    "connection",
    "closed",
    "peer",
    "timed out",
    "timeout",
    "socket",
    "nccl",
    "gloo",
    "broken pipe",
    "reset by",
)
"""What torch's messages say when another process is gone."""


def restarted(args: SFTConfig) -> SFTConfig:
    """The options as they are to be: after a restart, a run goes on, whatever it was told when it began."""
    if not any(int(os.environ.get(name) or 0) > 0 for name in RESTARTS):
        return args
    return args.model_copy(update={"overwrite_output_dir": False, "resume_from_checkpoint": "auto"})


@contextmanager
def said_of_the_lost() -> Iterator[None]:
    """Turns torch's error when another rank is gone into a sentence; the launcher says which one it was."""
    try:
        yield
    except (UserError, StoppedError):
        raise
    except RuntimeError as error:
        text = str(error).lower()
        if ranks() == 1 or not any(word in text for word in LOST):
            raise
        last = str(error).strip().splitlines()[0]
        raise StoppedError(
            f"{me()} has lost another one: {last}. What was saved is intact: the same command goes on from there"
        ) from error

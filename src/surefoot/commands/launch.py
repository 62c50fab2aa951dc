"""surefoot train --nproc N: the same command in N processes on this machine, by torch's own elastic launcher.

What a process says of the user's input is said once and not tried again. A process that dies is named, and all
begin again, so that the run goes on from its last checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence

from surefoot.errors import UserError

FINAL = (0, 2, 129, 130, 143)
"""Exit statuses after which nothing is tried again: done, wrong input, stopped and saved."""
STEADY_SECONDS = 600.0
"""A run that has lived so long before it lost a process has its restarts back."""


def number(options: dict[str, object], name: str, least: int, default: int) -> int:
    """Take a flag of the launcher out of what the user typed. Raises UserError when it is no such number."""
    text = str(options.pop(name, default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"--{name} {text}: takes a whole number, {least} or more")
    return int(text)


def without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """What the user typed without these flags and their values."""
    out, skip = [], False
    for word in argv:
        name, equals, _ = word.removeprefix("--").partition("=")
        flag = word.startswith("--") and name.replace("-", "_") in names
        if not flag and not skip:
            out.append(word)
        skip = flag and not equals
    return out


def launch(argv: Sequence[str], processes: int, restarts: int, *, use_cpu: bool) -> int:
    """Run `surefoot train ARGV` in so many processes; returns the exit status of the run."""
    _divide_threads(processes, use_cpu)
    tried = 0
    while True:
        os.environ["SUREFOOT_RESTARTS"] = str(tried)
        began = time.monotonic()
        status, said = _once(argv, processes)
        if said:
            print(f"surefoot: {said}", file=sys.stderr, flush=True)
        if status in FINAL:
            return status
        tried = 1 if time.monotonic() - began > STEADY_SECONDS else tried + 1
        if tried > restarts:
            return 1
        print(
            f"surefoot: starting all {processes} processes again, from the last checkpoint ({tried} of {restarts})",
            file=sys.stderr,
            flush=True,
        )


def _divide_threads(processes: int, use_cpu: bool) -> None:
    """On CPUs each process has its part of the cores."""
    import torch

    if use_cpu or not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    elif processes > torch.cuda.device_count():
        raise UserError(
            f"--nproc {processes}: this machine has {torch.cuda.device_count()} GPUs; one process each"
        )


def _once(argv: Sequence[str], processes: int) -> tuple[int, str]:
    """The exit status of one attempt, and what there is to say of it."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from surefoot.commands import loopback

    loopback.register()
    logging.getLogger("torch.distributed.elastic").setLevel(
        logging.CRITICAL
    )  # what it has to say is said here
    with tempfile.TemporaryDirectory(prefix="surefoot-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend=loopback.NAME,
            rdzv_endpoint=loopback.ADDRESS,
            local_addr=loopback.ADDRESS,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "surefoot", "train", *argv)
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            return _status(codes, {rank: failure.pid for rank, failure in error.failures.items()})
        except SignalException as error:
            return 128 + int(error.sigval), ""
    return 0, ""


def _status(codes: dict[int, int], pids: dict[int, int]) -> tuple[int, str]:
    """What of the processes' ends tells why: a signal that killed one before those that lost it."""
    for status in (2, 143, 130, 129):
        if status in codes.values():
            return status, ""
    asked = {-signal.SIGTERM}  # by the launcher, when another one had ended
    killed = [rank for rank, code in codes.items() if code < 0 and code not in asked]
    if killed:
        named = ", ".join(
            f"rank {rank} (process {pids[rank]}) was killed by {signal.Signals(-codes[rank]).name}"
            for rank in killed
        )
        return 1, named
    ended = [rank for rank, code in codes.items() if code not in asked] or list(codes)
    return 1, ", ".join(
        f"rank {rank} (process {pids[rank]}) ended with status {codes[rank]}" for rank in ended
    )

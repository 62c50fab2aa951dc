"""Hooks for children that are to be signalled: they wait at a place until the test has sent its signal.

A child that waits has made the file `waiting` in its folder, and goes on once `go` is there. A signal's handler
runs while it waits.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from surefoot.train import judging
from surefoot.train.checkpoint import Snapshot
from surefoot.train.interrupt import StopRequest
from surefoot.train.storage import Storage

PATIENCE = 60.0


def note_what_is_heard() -> None:
    """`heard` is there once the run has noted that it was asked to stop."""

    def noted(self: StopRequest, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "noted" and value is not None:
            Path("heard").touch()

    StopRequest.__setattr__ = noted  # type: ignore[method-assign]


def wait() -> None:
    """Until the test lets the child go on; once."""
    if Path("waiting").exists():
        return
    Path("waiting").touch()
    deadline = time.monotonic() + PATIENCE
    while not Path("go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("nobody lets this child go on")
        time.sleep(0.002)


def wait_in_step(step: int = 5, micro_batch: int = 1) -> None:
    """Wait before a micro-batch of a step; `micro-batches` lists those that were begun."""
    from surefoot.microscope import run
    from surefoot.model.network import Network

    note_what_is_heard()
    plain, plant = run.Microscope.losses, Network.plant
    at = [0, 0]

    def losses(self: Any, examples: Any, step: int, *rest: Any) -> Any:
        at[:] = step, 0
        try:
            return plain(self, examples, step, *rest)
        finally:
            at[0] = 0

    def noted(self: Any, batch: Any) -> Any:
        at[1] += 1
        if at[0]:
            with Path("micro-batches").open("a") as file:
                print(f"{at[0]}.{at[1]}", file=file)
            if at == [step, micro_batch]:
                wait()
        return plant(self, batch)

    run.Microscope.losses, Network.plant = losses, noted  # type: ignore[method-assign]


def nohup_and_wait_in_step() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    wait_in_step()


def wait_in_evaluation(step: int, where: str) -> None:
    """Wait in the evaluation after `step`, before its first micro-batch or its first written token; `after` has a
    line for each piece of its work that was begun after that."""
    from surefoot.model.network import Network
    from surefoot.train import evaluate

    Path("after").touch()
    at = [0]
    judge, plant, token = judging.Judge.evaluate, Network.plant, evaluate._stopping

    def watched(self: Any, progress: Any) -> Any:
        at[0] = progress.step
        try:
            return judge(self, progress)
        finally:
            at[0] = 0

    def piece() -> None:
        if at[0] == step:
            if Path("waiting").exists():
                with Path("after").open("a") as file:
                    print("a piece", file=file)
            wait()

    def planted(self: Any, batch: Any) -> Any:
        if where == "evaluate":
            piece()
        return plant(self, batch)

    def written(going: Any, *rest: Any, **more: Any) -> Any:
        if where == "answer":
            piece()
        return token(going, *rest, **more)

    judging.Judge.evaluate, Network.plant = watched, planted  # type: ignore[method-assign]
    evaluate._stopping = written


def wait_in_save(step: int) -> None:
    """Wait in the middle of the save of a step, which is done by the thread of saves."""
    files = Snapshot.files

    def slow(self: Any) -> Any:
        for number, file in enumerate(files(self)):
            if self.step == step and number == 1:
                wait()
            yield file

    Snapshot.files = slow  # type: ignore[method-assign]


def never_done_save(step: int, says: str = "waiting") -> None:
    """The disk does not come back from a sync in the save of a step."""
    note_what_is_heard()
    sync, name = Storage.sync, f"step-{step:08d}"

    def stuck(self: Any, handle: int) -> None:
        if name in str(Path(f"/proc/self/fd/{handle}").readlink()):
            Path(says).touch()
            time.sleep(PATIENCE)
        sync(self, handle)

    Storage.sync = stuck  # type: ignore[method-assign]


def wait_in_step_and_last_save(step: int) -> None:
    """`wait_in_step`; and in the save of a run that was asked to stop, with the files `saving` and `go-on`."""
    wait_in_step(step)
    files = Snapshot.files

    def slow(self: Any) -> Any:
        if Path("go").exists():
            Path("saving").touch()
            deadline = time.monotonic() + PATIENCE
            while not Path("go-on").exists() and time.monotonic() < deadline:
                time.sleep(0.002)
        yield from files(self)

    Snapshot.files = slow  # type: ignore[method-assign]


def wait_in_loading() -> None:
    """Wait when the model is about to be read."""
    from surefoot.train import trainer

    prepare = trainer.prepare_model

    def slow(*args: Any) -> Any:
        wait()
        return prepare(*args)

    trainer.prepare_model = slow


def never_done_save_and_wait_in_step(save: int, step: int) -> None:
    """The disk does not come back in a save of the background, and the test waits in a later step."""
    never_done_save(save, "stuck")
    wait_in_step(step)


def killed_after(step: int) -> None:
    """SIGKILL once `step` is told, and every save before it is committed."""
    from surefoot.train.between import Between

    after = Between.after

    def last(self: Any, number: int, *rest: Any) -> None:
        after(self, number, *rest)
        self.keeping.finish()
        if number + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Between.after = last  # type: ignore[method-assign]

"""In a child: a disk that is full from here to there, and one whose syncs fail; and a clock that jumps."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from surefoot.train.storage import Storage
from tests.faults.full import fill, unfill

DAY_SECONDS = 86_400.0


def full_for_saves(disk: str, from_step: int, to_step: int, leave: int, within: bool = False) -> None:
    """Full from before the save of one step (or, `within` it, once its weights are written) to before another's."""
    from surefoot.train.saver import Saver

    save, create, place = Saver.save, Storage.create, Path(disk)

    def saved(self: Saver, snapshot: Any, *rest: Any, **more: Any) -> Any:
        if self._thread is not None:
            self._thread.join()
        if snapshot.step == from_step and not within:
            fill(place, leave)
        if snapshot.step == to_step:
            unfill(place)
        return save(self, snapshot, *rest, **more)

    def created(self: Storage, path: Path) -> int:
        if within and path.name == "optimizer.safetensors" and f"-{from_step:08d}." in path.parent.name:
            fill(place, leave)
        return create(self, path)

    Saver.save, Storage.create = saved, created  # type: ignore[method-assign]


def full_at_the_end(
    disk: str, leave: int, step: int | None = None, unfill_at_wait: int | None = None
) -> None:
    """Full from the last save on (`step`), or from when the model is to be saved; until the n-th wait."""
    from surefoot.train import result, saver, trainer

    saver.WAITS = result.WAITS = (0.01, 0.02, 0.03)
    place, sleep, save, save_result = Path(disk), time.sleep, saver.Saver.save, trainer.save_result
    waits = 0

    def waited(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == unfill_at_wait:
            unfill(place)
        sleep(seconds)

    def saved(self: saver.Saver, snapshot: Any, *rest: Any, **more: Any) -> Any:
        if snapshot.step == step and not waits:
            if self._thread is not None:
                self._thread.join()
            fill(place, leave)
        return save(self, snapshot, *rest, **more)

    def result_saved(*given: Any) -> None:
        if step is None:
            fill(place, leave)
        save_result(*given)

    time.sleep, saver.Saver.save, trainer.save_result = waited, saved, result_saved  # type: ignore[method-assign]


def full_for_the_log(
    disk: str, from_step: int, to_step: int | None = None, kill_at_step: int | None = None
) -> None:
    """Quite full from the record of one step to that of another."""
    from surefoot.runfolder import RunFolder

    append, place = RunFolder.append, Path(disk)

    def appended(self: RunFolder, event: Any) -> None:
        if event.type == "step" and event.step == from_step:
            fill(place)
        if event.type == "step" and event.step == to_step:
            unfill(place)
        append(self, event)
        if event.type == "step" and event.step == kill_at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.append = appended  # type: ignore[method-assign]


def full_until_the_save(disk: str, from_step: int, save: int) -> None:
    """Quite full from the record of one step to just before the state of that step is taken; killed right after."""
    from surefoot.train import saver
    from surefoot.train.keeping import Keeping

    begin, write, place = Keeping.save, saver.write, Path(disk)

    def saved(self: Keeping, *given: Any, **more: Any) -> None:
        if self.progress.step == save:
            unfill(place)
        begin(self, *given, **more)

    def written(storage: Storage, folder: Path, snapshot: Any, *rest: Any) -> Path:
        path = write(storage, folder, snapshot, *rest)
        if snapshot.step == save:
            os.kill(os.getpid(), signal.SIGKILL)
        return path

    full_for_the_log(disk, from_step)
    Keeping.save, saver.write = saved, written  # type: ignore[method-assign]


def failing_sync(
    of: str, step: int, times: int, number: int = errno.EIO, log: str = "", short_waits: bool = False
) -> None:
    """The sync of a file, or of a folder ("partial" or "checkpoints"), fails so often from the save of a step on.

    `log`: names of folders that saves make are appended there.
    """
    from surefoot.train import saver

    if short_waits:
        saver.WAITS = (0.01, 0.02)
    paths: dict[int, Path] = {}
    create, sync, sync_folder, make = Storage.create, Storage.sync, Storage.sync_folder, Storage.make_folder
    begun = False

    def fail(name: str) -> None:
        nonlocal times
        if begun and name == of and times:
            times -= 1
            raise OSError(number, os.strerror(number))

    def created(self: Storage, path: Path) -> int:
        handle = create(self, path)
        paths[handle] = path
        return handle

    def synced(self: Storage, handle: int) -> None:
        fail(paths[handle].name)
        sync(self, handle)

    def folder_synced(self: Storage, path: Path) -> None:
        fail("partial" if ".partial-" in path.name else path.name)
        sync_folder(self, path)

    def made(self: Storage, path: Path) -> None:
        nonlocal begun
        begun = begun or f"-{step:08d}." in path.name
        with Path(log).open("a") as file:
            file.write(path.name + "\n")
        make(self, path)

    Storage.create, Storage.sync, Storage.sync_folder, Storage.make_folder = (  # type: ignore[method-assign]
        *(created, synced),
        *(folder_synced, made),
    )


def log_not_synced(step: int) -> None:
    """The log's sync before the save of a step fails, once."""
    from surefoot.runfolder import RunFolder

    sync, failed = RunFolder.sync_events, False

    def synced(self: RunFolder) -> None:
        nonlocal failed
        if self.last_step() >= step and not failed:
            failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(self)

    RunFolder.sync_events = synced  # type: ignore[method-assign]


def jumping_clock(seed: int, kill_at_step: int | None = None) -> None:
    """Each look at the clock finds another day, before or after the one before."""
    from surefoot.runfolder import RunFolder

    chance, now, append = random.Random(seed), time.time, RunFolder.append

    def jumping() -> float:
        return now() + DAY_SECONDS * chance.uniform(-400.0, 400.0)

    def appended(self: RunFolder, event: Any) -> None:
        object.__setattr__(event, "time", jumping())  # the class holds on to the clock that it was made with
        append(self, event)
        if event.type == "step" and event.step == kill_at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    time.time = jumping
    RunFolder.append = appended  # type: ignore[method-assign]

"""Saving without stopping: the state is copied, and a thread writes the copy while training goes on.

1. `save` asks for room on the disk, copies the state, and hands the copy to the thread. Where memory is short of a
   copy, it writes from the live state instead, and training waits.
2. The thread writes, commits, and deletes what need not be kept.
3. `news` tells what has become of it, in events; `finish` waits for that first.

Of several ranks all save at the same time, each its part. What they have to know of one another beforehand they ask
here; their threads then agree by an `Agreement`. What becomes of a save is the same on all.

A save that fails costs nothing but itself: what was committed stays, training goes on, and it is said.
"""

from __future__ import annotations

import errno
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from surefoot.errors import StoppedError, UserError
from surefoot.events import AlertEvent, CheckpointEvent, Event
from surefoot.ranks import Elsewhere, StoppedElsewhere, by_first, rank, ranks, store, texts
from surefoot.runfolder import RunFolder
from surefoot.train.agreement import Agreement, NotWrittenError, refuse_apart
from surefoot.train.checkpoint import SMALL_FILES_BYTES, Snapshot, retain, tidy, write
from surefoot.train.manifest import name_of
from surefoot.train.storage import Storage

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
TRIES = 3
"""So often a checkpoint is written under another name when the disk says that it did not take it."""
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between attempts to save what is the last chance to save."""


class _GivenUp(Exception):  # noqa: N818
    """The user does not want to wait for this save."""


@dataclass(frozen=True)
class _Plan:
    """What all ranks know of a save before it begins."""

    number: int
    """Of the save, from 1."""
    bytes: int
    tensor_bytes: int
    """On the disk, of all ranks."""
    wait: bool
    there: bool
    """The checkpoint is there already."""
    failed: OSError | None
    """There is no room."""


@dataclass
class _Save:
    """One save on its way."""

    snapshot: Snapshot
    started: float
    plan: _Plan
    stall_seconds: float = 0.0
    commit_seconds: float = 0.0
    failed: Exception | None = None


class Saver:
    """Saves checkpoints of one run, one at a time."""

    def __init__(
        self,
        run: RunFolder,
        *,
        limit: int | None,
        memory_left: Callable[[], int],
        storage: Storage | None = None,
        timeout_seconds: float = 600.0,
    ) -> None:
        """`memory_left`: bytes that a copy may take without harm to training; `timeout_seconds`: so long does the
        first rank wait for the others, once it has written its part."""
        self.run, self.limit, self.memory_left = run, limit, memory_left
        self.storage = storage or Storage()
        self.timeout_seconds = timeout_seconds
        self.sound: set[int] = set()
        """Steps whose checkpoints this process has written whole, or has verified."""
        self._save: _Save | None = None
        self._thread: threading.Thread | None = None
        self._spare: dict[str, mmap | None] = {}
        self._given_up = self._short = False
        self._number = 0
        self._store: Any = None
        self._attempts: list[Agreement] = []

    def begin(self, needed: int) -> None:
        """Make the folder, and take away what a crash has left in it. Of several ranks all must call it.

        Raises UserError when a checkpoint of `needed` bytes (of all ranks) will not fit, nothing can be written, or
        some rank does not see what another writes.
        """
        by_first(lambda: self._begin(needed))
        if ranks() > 1:
            mine = texts(secrets.token_hex(8))[0]  # another saver of this process says other things
            self._store = store(f"save/{mine}")
            refuse_apart(self.storage, self.run.checkpoints, mine)

    def _begin(self, needed: int) -> None:
        folder = self.run.checkpoints
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.storage.sync_folder(self.run.path)
            self.storage.sync_folder(folder)  # a save or removal may have been killed just before it
            tidy(self.storage, folder)
            free = self.storage.free_bytes(folder)
        except OSError as error:
            raise UserError(f"output_dir: {folder} cannot be written: {error.strerror}") from None
        if free < needed:
            raise UserError(
                f"output_dir: a checkpoint in {folder} takes {needed:,} bytes, and {free:,} are free. Make room, "
                "name another folder, or save none (save_strategy=no)"
            )

    # Saving ------------------------------------------------------------------------------------------------

    def save(self, snapshot: Snapshot, best_step: int | None, *, wait: bool = False) -> list[Event]:
        """Save a snapshot of the live state; in the background unless `wait`. Returns what there is to tell.

        Of several ranks all must call it, for the same step. Raises UserError when their optimizers have parted.
        """
        started = time.perf_counter()
        news = self.finish()
        plan = self._planned(snapshot, wait)
        if plan.there:
            return news
        save = _Save(snapshot, started, plan, failed=plan.failed)
        if save.failed is None and not plan.wait:
            news += self._copied(snapshot)
        self._save = save
        if save.failed is None:
            work = threading.Thread(target=self._write, args=(save, best_step), name="save", daemon=True)
            self._thread = work
            work.start()
            if plan.wait or not snapshot.copied:
                work.join()
            if plan.wait:
                self._settle(save)
        save.stall_seconds = time.perf_counter() - started
        return [*news, *self.news()]

    def _planned(self, snapshot: Snapshot, wait: bool) -> _Plan:
        """What the ranks have to know of one another, and what the first one finds on the disk."""
        own = json.dumps([snapshot.tensor_bytes, snapshot.bytes, snapshot.plain, wait])
        tensor_bytes, sizes, plain, waits = zip(*map(json.loads, texts(own)), strict=True)
        if len(set(plain)) > 1:
            raise (UserError if rank() == 0 else Elsewhere)(
                "optimizers: what the optimizer keeps besides tensors is not the same on all ranks, and a "
                "checkpoint holds it once. Let it follow from the step and the gradients alone"
            )
        found = self._look(snapshot.step, sum(sizes)) if rank() == 0 else {}
        first = json.loads(texts(json.dumps(found))[0])
        self.sound = set(first["sound"])
        self._number += 1
        for attempt in self._attempts:  # all have come to an end
            attempt.forget()
        self._attempts.clear()
        return _Plan(
            number=self._number,
            bytes=sum(sizes),
            tensor_bytes=sum(tensor_bytes),
            wait=any(waits),
            there=first["there"],
            failed=None if first["failed"] is None else OSError(*first["failed"]),
        )

    def _look(self, step: int, needed: int) -> dict[str, Any]:
        """What the disk says, for all ranks."""
        there, failed = False, None
        try:
            there = step in self.sound and (self.run.checkpoints / name_of(step)).is_dir()
            free = self.storage.free_bytes(self.run.checkpoints)
            if free < needed + SMALL_FILES_BYTES:
                failed = (errno.ENOSPC, f"No space left on device: {free:,} bytes are free")
        except OSError as error:
            failed = (error.errno, error.strerror)
        return {"there": there, "sound": sorted(self.sound), "failed": failed}

    def _settle(self, save: _Save) -> None:
        """What has become of a save that was waited for is, on all ranks, what the first one knows of it."""
        if ranks() == 1:
            return
        step = save.snapshot.step
        failed = str(save.failed) if save.failed is not None else ""
        first = texts(failed)[0]
        if first and save.failed is None:
            save.failed = NotWrittenError(first)
            self.sound.discard(step)
        elif not first:
            save.failed = None
            self.sound.add(step)

    def _copied(self, snapshot: Snapshot) -> list[Event]:
        """Copy a snapshot, if there is memory for it; returns what there is to tell."""
        held = sum(len(spare) for spare in self._spare.values() if spare is not None)
        if self.memory_left() + held > snapshot.bytes:
            with suppress(MemoryError, OSError):
                snapshot.copy(self._spare)
        if not snapshot.copied or self.memory_left() < snapshot.bytes:
            self._spare = {}  # what is tight is not held on to
        if snapshot.copied or self._short:
            return []
        self._short = True
        said = f"memory is short of a copy of {snapshot.bytes:,} bytes: training stands still while checkpoints are"
        return [AlertEvent(step=snapshot.step, kind="checkpoint", message=f"{said} written")]

    def save_surely(
        self, make: Callable[[], Snapshot], best_step: int | None, emit: Callable[[Event], None]
    ) -> None:
        """Save when there is no later chance: waits for room, and tries again.

        Raises StoppedError when it still cannot; what was committed before is intact.
        """
        for event in self.finish():  # of the save before: what is said of this one is said apart
            emit(event)
        said = ""
        for pause in (*WAITS, None):
            snapshot = make()
            for event in self.save(snapshot, best_step, wait=True):
                if isinstance(event, CheckpointEvent) or not said:
                    emit(event)
                said = event.message if isinstance(event, AlertEvent) else said
            if snapshot.step in self.sound:
                return
            if pause is not None:
                time.sleep(pause)
        stopped = StoppedError if rank() == 0 else StoppedElsewhere
        raise stopped(f"{said}; tried again for {sum(WAITS):.0f} s. {self.left()}")

    def left(self) -> str:
        """What can be gone on from, in words."""
        if not self.sound:
            return "There is no checkpoint to go on from."
        return f"Once that is mended, the same command goes on from the checkpoint of step {max(self.sound)}."

    def _write(self, save: _Save, best_step: int | None) -> None:
        folder, snapshot, unclean = self.run.checkpoints, save.snapshot, False
        try:
            self._sync_events(save)
            for attempt in range(1, TRIES + 1):
                try:
                    write(self.storage, folder, snapshot, self._going, self._agreement(save, attempt))
                    break
                except OSError as error:
                    unclean = True
                    if error.errno in NO_ROOM or attempt == TRIES:
                        raise
            save.commit_seconds = time.perf_counter() - save.started
            self.sound.add(snapshot.step)
            if rank() == 0:
                with suppress(OSError):  # what stays too long harms nobody
                    retain(self.storage, folder, self.limit, best_step, self.sound)
        except Exception as error:
            save.failed = error
            unclean = unclean or isinstance(error, NotWrittenError)
        finally:
            snapshot.forget()
            if unclean and rank() == 0:
                with suppress(OSError):
                    tidy(self.storage, folder)

    def _sync_events(self, save: _Save) -> None:
        """What the checkpoint says they are, they must be."""
        try:
            self.run.sync_events()
        except OSError as error:
            if (agreement := self._agreement(save, 1)) is not None:
                agreement.refuse(error)
            raise

    def _agreement(self, save: _Save, attempt: int) -> Agreement | None:
        """With the other ranks, if there are any."""
        if ranks() == 1:
            return None
        agreement = Agreement(
            self._store,
            f"{save.plan.number}/{attempt}",
            writers=save.snapshot.writers,
            timeout_seconds=self.timeout_seconds,
            going=self._going,
        )
        self._attempts.append(agreement)
        return agreement

    def _going(self) -> None:
        if self._given_up:
            raise _GivenUp

    # What has become of it ---------------------------------------------------------------------------------

    def news(self) -> list[Event]:
        """What has become of the save on its way, if that is known, and was not told."""
        if self._given_up:  # nobody waited for it, and a join that was interrupted takes its thread for ended
            return []
        return list(self._news()) if self._thread is None or not self._thread.is_alive() else []

    def finish(self) -> list[Event]:
        """Wait for the save on its way, unless it was given up; returns what there is to tell."""
        if self._thread is not None and not self._given_up:
            self._thread.join()
        return self.news()

    def give_up(self) -> None:
        """Leave the save on its way where it is: what was committed before it is intact."""
        self._given_up = True
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _news(self) -> Iterator[Event]:
        save, self._save, self._thread = self._save, None, None
        if save is None or isinstance(save.failed, _GivenUp):
            return
        snapshot = save.snapshot
        if save.failed is None:
            yield CheckpointEvent(
                step=snapshot.step,
                path=name_of(snapshot.step),
                because=snapshot.because,
                tensor_bytes=save.plan.tensor_bytes,
                stall_seconds=save.stall_seconds,
                commit_seconds=save.commit_seconds,
            )
            return
        said = save.failed.strerror if isinstance(save.failed, OSError) else None
        known = isinstance(save.failed, NotWrittenError)
        said = said or (str(save.failed) if known else f"{type(save.failed).__name__}: {save.failed}")
        if isinstance(save.failed, OSError) and save.failed.errno in NO_ROOM:
            said += f" (a checkpoint takes {save.plan.bytes:,} bytes)"
        yield AlertEvent(
            step=snapshot.step,
            kind="checkpoint",
            message=f"the checkpoint of step {snapshot.step} could not be saved in {self.run.checkpoints}: {said}",
        )

"""The run folder: the only interface between training and everything that looks at it.

run.json                config as resolved, versions, hashes, the data ledger
events.jsonl            one typed record a line, appended as it happens
events.discarded.jsonl  records of steps that a crash made the run take again
checkpoints/            to resume from
slides/                 steps opened under the microscope
open-next-step          made by the user: open the next step; deleted when that is done
model/                  the result
.lock                   who trains here
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from surefoot.credentials import without_credentials
from surefoot.durable import sync_file, sync_folder
from surefoot.errors import UserError
from surefoot.events import Event
from surefoot.regular import open_regular, text_of

try:
    import fcntl
except ImportError:  # no locks where there is no flock
    fcntl = None

MOST_CONFIG = 1 << 26
"""Bytes of a run.json."""
MOST_RECORD = 1 << 26
"""Bytes of a record: a step's has 60 for each of its examples."""
PROBE_BYTES = 1 << 16
"""Written and taken away again to find out whether a run folder can be written."""
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class RunFolder:
    """A run's folder, as the trainer writes it. Of several ranks one `writes`; the others only look."""

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.checkpoints = self.path / "checkpoints"
        self.slides = self.path / "slides"
        self.model = self.path / "model"
        self.asked_file = self.path / "open-next-step"
        self.config_file = self.path / "run.json"
        self.events_file = self.path / "events.jsonl"
        self.discarded_file = self.path / "events.discarded.jsonl"
        self.lock_file = self.path / ".lock"
        self._waiting: list[str] = []

    # Whose it is -------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While open, nobody else trains here. A process that dies lets go of the folder.

        Raises UserError, naming who has it, when somebody does, and when the folder cannot be written.
        """
        if not self.writes:
            yield
            return
        try:
            self._make()
            handle = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(self._not_writable(error)) from None
        try:
            self._lock(handle)
            with suppress(OSError):  # who it is helps the next one, no more
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
            self._probe(self.path / ".probe")
            yield
        finally:
            os.close(handle)

    def _make(self) -> None:
        """Make the folder, so that it is there after a power failure."""
        whole = self.path.absolute()
        made = [path for path in (whole, *whole.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # a folder above may be somebody else's, not for us to read
            for path in made or [whole]:  # an earlier run may have been killed here
                sync_folder(path.parent)

    def refuse_unwritable(self) -> None:
        """Raises UserError when the folder, or the one that it would be made in, cannot be written; when it is in
        use, too."""
        if not self.writes:
            return
        try:
            begun = self.lock_file.exists()
            place = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        except OSError as error:  # one may not even look
            raise UserError(self._not_writable(error)) from None
        if begun:
            with self.locked():
                return
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise UserError(
                f"output_dir: {self.path} cannot be written: {place} is read-only, not "
                "yours to write in, or no folder. Name another folder"
            )
        self._probe(place / f".surefoot-probe-{os.getpid()}")  # not ours alone

    def _lock(self, handle: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # some network file systems say the latter
            try:
                owner = json.loads(os.pread(handle, 4096, 0))
                who = f"process {owner['pid']} on {owner['host']}"
            except (OSError, ValueError, KeyError, TypeError):
                who = "another process"
            raise UserError(
                f"output_dir: {who} is training in {self.path}. Wait for it, stop it (it saves on SIGTERM), or "
                "name another folder"
            ) from None
        except OSError:
            return  # a file system without locks

    def _probe(self, probe: Path) -> None:
        """Find out now, not at the first save, that nothing can be written: read-only, full, over quota."""
        try:
            handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | _NO_LINK, 0o600)
            try:
                data = memoryview(bytes(PROBE_BYTES))
                while data:
                    data = data[os.write(handle, data) :]
                os.fsync(handle)
            finally:
                os.close(handle)
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(self._not_writable(error)) from None

    def _not_writable(self, error: OSError) -> str:
        return (
            f"output_dir: {self.path} cannot be written: {error.strerror}. Name another folder, or make room and "
            "give yourself the right to write there"
        )

    # What is in it -----------------------------------------------------------------------------------------

    def ended(self) -> str | None:
        """Why the run is over: "finished" or "stopped early"; None if it is not, or none is here."""
        last = next(iter(deque(self.events(), maxlen=1)), None)
        over = last is not None and last.get("type") == "end" and last.get("reason") != "interrupted"
        return str(last["reason"]) if last is not None and over else None

    def begun(self) -> bool:
        """Whether there is a run here, of whatever kind."""
        return next(self.events(), None) is not None or any(self.checkpoints.rglob("*step-*"))

    def last_step(self) -> int:
        """The last step that the events tell of."""
        return max((int(event["step"]) for event in self.events()), default=0)

    def refuse_finished(self) -> None:
        """Raises UserError when the run here is over: it is not silently trained again."""
        if (reason := self.ended()) is not None:
            raise UserError(
                f"output_dir: {self.path} holds a run that {reason} after step {self.last_step()}. Name another "
                "folder, or start over in this one with overwrite_output_dir=true"
            )

    def clear(self) -> None:
        """Take what an earlier run has left away. Raises UserError when that cannot be done."""
        if not self.writes:
            return
        try:
            for old in (self.checkpoints, self.slides, self.model):
                if old.is_dir():
                    shutil.rmtree(old)
            self.discarded_file.unlink(missing_ok=True)
            self.config_file.unlink(missing_ok=True)
            self.events_file.write_bytes(b"")
        except OSError as error:
            raise UserError(self._not_writable(error)) from None

    def write_config(self, content: dict[str, Any]) -> None:
        """Write run.json, whole or not at all, also through a power failure. Raises UserError when it cannot be."""
        if not self.writes:
            return
        partial = self.config_file.with_suffix(".partial")
        text = json.dumps(without_credentials(content), indent=2, ensure_ascii=False) + "\n"
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.config_file)
            sync_folder(self.path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise UserError(self._not_writable(error)) from None

    def config(self) -> dict[str, Any]:
        """What run.json says. Raises UserError when it cannot be read."""
        try:
            content = json.loads(text_of(self.config_file, MOST_CONFIG))
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{self.config_file}: cannot be read ({error}), so it is not known what run this is. Put it "
                "back, or start over with overwrite_output_dir=true"
            ) from None
        if not isinstance(content, dict):
            raise UserError(
                f"{self.config_file}: no run's run.json; start over with overwrite_output_dir=true"
            )
        return content

    # Events ------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[dict[str, Any]]:
        """The records so far; a last line that was cut off by a crash is left out."""
        if not self.events_file.exists():
            return
        with open_regular(self.events_file) as lines:
            # A record is never so long; a file without line breaks, from wherever it comes, fills no memory.
            while line := lines.readline(MOST_RECORD):
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    return
                if (
                    not isinstance(event, dict)
                    or not isinstance(event.get("step"), int)
                    or not isinstance(event.get("type"), str)
                ):
                    return
                yield event

    def append(self, event: Event) -> None:
        """Append a record; it is in the file when this returns.

        When it cannot be written (a full disk), it goes to stderr, and to the file once that can be written again.
        """
        if not self.writes:
            return
        self._waiting.append(json.dumps(event.to_dict(), ensure_ascii=False) + "\n")
        try:
            self._write_waiting()
        except OSError as error:
            with suppress(OSError, ValueError):
                said = f"{self.events_file} cannot be written ({error.strerror}); the record is:"
                print(f"surefoot: {said} {self._waiting[-1]}", end="", file=sys.stderr)

    def _write_waiting(self) -> None:
        """All lines, or none of them."""
        content = "".join(self._waiting).encode("utf-8", "backslashreplace")
        handle = os.open(self.events_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            before = os.fstat(handle).st_size
            if os.write(handle, content) < len(content):
                os.ftruncate(handle, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)
        self._waiting.clear()

    def go_back(self, step: int, events_size: int) -> None:
        """Make the folder what it was when the checkpoint of `step` was saved: the first bytes of the events (the
        rest goes to events.discarded.jsonl), and the slides of the steps so far.

        Raises UserError when there are later checkpoints: they, too, would be of another run; and when the folder
        cannot be written.
        """
        if not self.writes:
            return
        if any(of > step for of, _ in numbered(self.checkpoints)):
            raise UserError(
                f"resume_from_checkpoint: {self.path} has checkpoints after step {step}. Name another output_dir "
                "to go on from that one, or delete the later ones"
            )
        for of, path in numbered(self.slides):
            if of > step:
                shutil.rmtree(path, ignore_errors=True)
        if not self.events_file.is_file():
            return
        try:
            self._discard(events_size)
        except OSError as error:
            raise UserError(self._not_writable(error)) from None

    def _discard(self, events_size: int) -> None:
        """Move what the events hold after their first bytes. Raises OSError."""
        before = self.discarded_file.stat().st_size if self.discarded_file.exists() else 0
        with self.events_file.open("r+b") as events:
            events.seek(events_size)
            try:
                with self.discarded_file.open("ab") as discarded:
                    shutil.copyfileobj(events, discarded)
                    discarded.flush()
                    os.fsync(discarded.fileno())
            except OSError:
                with suppress(OSError):  # each attempt would fill the disk further
                    os.truncate(self.discarded_file, before)
                raise
            if events_size < os.fstat(events.fileno()).st_size:
                events.truncate(events_size)
                os.fsync(events.fileno())

    def events_size(self) -> int:
        """Bytes of the events so far, those that wait for room among them if there is room now."""
        if self._waiting:
            with suppress(OSError):
                self._write_waiting()
        return self.events_file.stat().st_size if self.events_file.is_file() else 0

    def sync_events(self) -> None:
        """Make the events so far survive a power failure. Raises OSError."""
        if self.writes:
            sync_file(self.events_file)


def numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    """Checkpoints or slides of a folder, with their steps, in that order."""
    names = {path: path.name.removeprefix("step-") for path in folder.glob("step-*")}
    yield from sorted((int(n), path) for path, n in names.items() if n.isdecimal() and n.isascii())

"""What a checkpoint does to the disk, one operation a method: tests record it, let it fail, and replay it.

Nothing here is clever, and nothing else writes checkpoints. An operation is in force after a power failure only
once its file, or the folder that holds its name, has been synced.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from surefoot.durable import sync_folder


class Storage:
    """The disk, as checkpoints use it. All methods raise OSError."""

    def make_folder(self, path: Path) -> None:
        """Make a folder that is not there yet."""
        path.mkdir()

    def create(self, path: Path) -> int:
        """Open a file that is not there yet for writing; returns its handle."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, handle: int, data: memoryview) -> None:
        """Append all of `data`."""
        while len(data):
            data = data[os.write(handle, data) :]

    def sync(self, handle: int) -> None:
        """Make a file's content survive a power failure."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder survive a power failure."""
        sync_folder(path)

    def rename(self, path: Path, new: Path) -> None:
        """Give a file or folder another name, which nothing has yet."""
        if new.exists() or new.is_symlink():  # a folder's rename would replace an empty folder
            raise FileExistsError(17, "File exists", str(new))
        path.rename(new)

    def remove(self, path: Path) -> None:
        """Delete a folder and what is in it."""
        shutil.rmtree(path)

    def free_bytes(self, path: Path) -> int:
        """What still fits on the disk."""
        return shutil.disk_usage(path).free

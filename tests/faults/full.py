"""A disk of a test's own, and a way to fill it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

PAGE_BYTES = 4096


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A file system in memory at `place`. The test is skipped, with the reason, where none can be mounted."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        pytest.skip(f"mount cannot be run here: {error}")
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=30)


def small_disk(place: Path) -> AbstractContextManager[Path]:
    """A file system of 8 MB, to fill."""
    return mounted(place, "size=8m")


def fill(disk: Path, leave: int = 0) -> None:
    """Fill it with a file `ballast`, but for some bytes (in whole pages)."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE_BYTES))
        except OSError:
            pass
        file.truncate(max(0, file.tell() // PAGE_BYTES - leave // PAGE_BYTES) * PAGE_BYTES)


def unfill(disk: Path) -> None:
    (disk / "ballast").unlink(missing_ok=True)

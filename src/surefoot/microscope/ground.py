"""The ground an update crossed: the weights before and after it, kept on the disk.

1. While the optimizer steps one tensor at a time, `keep_before` and `keep_after` write each tensor's bytes.
2. `standing(along, across)` puts the model at before + along · Δ + across · direction, with Δ = after − before.
3. Leaving it copies the kept bytes of `after` back: what training goes on with is what the update made.

Files have no name, so that nothing is left behind by a crash, and are read block by block into a small buffer:
there is never a second copy of the model in memory. Each rank keeps and sets what it has: its shards, or all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Self

import numpy as np
import torch

from surefoot.errors import UserError
from surefoot.microscope.parts import in_parts
from surefoot.ranks import add_up_numbers
from surefoot.train.distributed import local, offset

BEFORE, AFTER = 0, 1
BLOCK = 1 << 16
"""Entries that are read, computed and written at once, in the cache; more where a row is longer."""


class NoMountain(UserError):  # noqa: N818
    """There can be no mountain, and why. The weights are what the update made of them."""


class WeightsLost(RuntimeError):  # noqa: N818
    """The weights could not be put back: the model in memory is not the one that was trained."""


@dataclass(frozen=True)
class Kept:
    """What this rank holds of a tensor of which before and after are kept."""

    name: str
    rows: torch.Tensor
    """[rows, entries of the last dimension], the model's own memory; a vector has rows of one entry."""
    matrix: bool
    """It has two dimensions or more."""
    start: int
    """Entries of the whole tensor before these."""
    whole: int
    """Entries of the whole tensor."""
    sharded: bool
    place: int
    """Bytes before it in the files."""
    entry: int
    """Entries before it in the files."""
    complete: bool = False
    """Its `after` is kept too."""


@dataclass(frozen=True)
class Piece:
    """A block of whole rows."""

    kept: Kept
    rows: torch.Tensor
    """[r, entries of the last dimension], a view of `kept.rows`."""
    first: int
    """Entries of `kept` before it."""


@dataclass(frozen=True)
class Across:
    """The other axis: `scale` · (drawn − `towards` · Δ), at a right angle to Δ and as long."""

    file: FileIO
    """What was drawn, float32, an entry for each kept one."""
    towards: float
    scale: float


class Ground:
    """Where the model stood before and after an update. `folder`: where the disk has room for the trained
    weights twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.across: Across | None = None
        """Set by `direction.lay_across`."""
        self._kept: dict[str, Kept] = {}
        self._files: list[FileIO] = []
        self._because: NoMountain | None = None
        self._ready = self._moved = False

    @property
    def dimensions(self) -> int:
        """Weights that the update may have moved, those of all ranks."""
        return sum(kept.whole for kept in self._kept.values())

    @property
    def kept(self) -> tuple[Kept, ...]:
        """The tensors, in the order in which they were kept."""
        return tuple(self._kept.values())

    def file(self) -> FileIO:
        """A new file without a name in the folder, there until `close`. Raises OSError."""
        self._files.append(tempfile.TemporaryFile(dir=self.folder, buffering=0))  # noqa: SIM115
        return self._files[-1]

    def keep_before(self, name: str, tensor: torch.Tensor, start: int = 0, whole: int | None = None) -> None:
        """Keep a weight as it is before its update: all of it, a DTensor, or a shard of whole rows that begins
        `start` entries into the `whole` ones.

        Raises NoMountain when it cannot be kept, once: what was kept is given up, and later calls do nothing until
        `stand`, which says so again. The update itself is unhindered.
        """
        assert name not in self._kept, f"{name} is kept twice"
        last = next(reversed(self._kept.values()), None)
        place = last.place + last.rows.nbytes if last else 0
        entry = last.entry + last.rows.numel() if last else 0
        rows = self._rows(name, tensor)
        if in_parts(tensor):
            start, whole = offset(tensor), tensor.numel()
        sharded, whole = whole is not None, rows.numel() if whole is None else whole
        self._kept[name] = Kept(name, rows, tensor.ndim > 1, start, whole, sharded, place, entry)
        self._write(BEFORE, self._kept[name])

    def keep_after(self, name: str, tensor: torch.Tensor) -> None:
        """Keep the same weight as it is after its update, and remember where it lives. Raises as `keep_before`."""
        kept, rows = self._kept[name], self._rows(name, tensor)
        assert rows.shape == kept.rows.shape and rows.dtype == kept.rows.dtype, name
        self._kept[name] = replace(kept, rows=rows, complete=True)
        self._write(AFTER, self._kept[name])

    @contextmanager
    def standing(self, along: float, across: float = 0.0) -> Iterator[None]:
        """While open, the model stands there; afterwards, and whatever happens, where the update brought it."""
        with self.returning():
            self.stand(along, across)
            yield

    @contextmanager
    def returning(self) -> Iterator[None]:
        """For many calls of `stand`: at the end, whatever happens, the weights are what the update made of them."""
        try:
            yield
        finally:
            self.restore()

    def stand(self, along: float, across: float = 0.0) -> None:
        """Set each weight to before + along · Δ + across · direction, computed in float32 (float64 weights:
        in float64) and rounded to its type.

        (0, 0) and (1, 0) are the kept bits. Only inside `returning`. All ranks must call it, and where one cannot,
        NoMountain is raised on all.
        """
        self.ready()
        other = self.across if across else None
        assert other is not None or not across, "there is no direction across yet"
        self._moved = True
        try:
            for piece in self.pieces():
                if across == 0 and along in (0, 1):
                    piece.rows.copy_(self.read(AFTER if along else BEFORE, piece))
                    continue
                wide = torch.promote_types(piece.rows.dtype, torch.float32)
                before, after = self.read_both(piece, wide)
                delta, steps = after.sub_(before), along
                if other is not None:
                    drawn = self.read_drawn(other, piece).to(wide)
                    before += drawn.mul_(across * other.scale)
                    steps -= across * other.scale * other.towards
                piece.rows.copy_(before.add_(delta.mul_(steps)).to(piece.rows.dtype))
        except OSError as error:
            self.refused(error)
        self.agree()

    def restore(self) -> None:
        """Copy the kept `after` back, bit for bit. Raises WeightsLost when the disk does not give it back."""
        stopped: KeyboardInterrupt | None = None
        while self._moved:
            try:
                for piece in self.pieces():
                    piece.rows.copy_(self.read(AFTER, piece))
                self._moved = False
            except KeyboardInterrupt as error:  # only once everything is back
                stopped = error
            except OSError as error:
                self._moved = False
                raise WeightsLost(f"the weights in {self.folder} cannot be read back: {error}") from error
        if stopped is not None:
            raise stopped

    def pieces(self) -> Iterator[Piece]:
        """All kept weights in blocks of whole rows."""
        for kept in self._kept.values():
            height, width = kept.rows.shape
            step = _height(kept.rows)
            for top in range(0, height, step):
                yield Piece(kept, kept.rows[top : top + step], top * width)

    def read(self, when: int, piece: Piece) -> torch.Tensor:
        """A piece's kept bits, BEFORE or AFTER, on the CPU. Raises OSError."""
        place = piece.kept.place + piece.first * piece.rows.itemsize
        return self._read(self._files[when], place, torch.empty(piece.rows.shape, dtype=piece.rows.dtype))

    def read_drawn(self, across: Across, piece: Piece) -> torch.Tensor:
        """What was drawn for a piece, float32. Raises OSError."""
        return self._read(
            across.file,
            4 * (piece.kept.entry + piece.first),
            torch.empty(piece.rows.shape, dtype=torch.float32),
        )

    def read_both(self, piece: Piece, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """A piece before and after the update, on the CPU. Raises OSError."""
        return self.read(BEFORE, piece).to(dtype), self.read(AFTER, piece).to(dtype)

    def write(self, file: FileIO, values: np.ndarray) -> None:
        """Write where the file stands, all of it. Raises OSError."""
        left = memoryview(values.data).cast("B") if values.size else b""
        while left:
            left = left[file.write(left) :]

    def close(self) -> None:
        """Give the disk its room back. Only where the weights are what the update made of them."""
        assert not self._moved, "restore first"
        for file in self._files:
            file.close()
        self.across = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refused(self, why: OSError | str) -> NoMountain:
        """Why there can be no mountain, from now on."""
        if isinstance(why, OSError):
            why = (
                f"{self.folder}: {why.strerror or why}; the weights before and after the update are kept there, "
                "and a surface takes as much again: free some space, put the run on another disk, or ask for no "
                "mountain"
            )
        self._because = NoMountain(why)
        return self._because

    def agree(self) -> None:
        """Raise NoMountain on all ranks when one of them has come upon why there can be none."""
        found = add_up_numbers([self._because is not None])[0]  # also of whole weights: losses are added up
        if found:
            raise self._because or NoMountain("another rank could not keep its weights")

    def over_ranks(self, sums: Sequence[float]) -> list[float]:
        """Added up over the ranks, where weights are sharded."""
        return add_up_numbers(sums) if any(kept.sharded for kept in self.kept) else list(sums)

    def ready(self) -> None:
        """Before the only copy of `after` is the one on the disk: see that it is there, and right.

        Raises NoMountain, on all ranks, and then nothing has been changed.
        """
        if self._ready:
            return
        missing = [kept.name for kept in self.kept if not kept.complete]
        try:
            if self._because is None:
                assert self.kept and not missing, (
                    f"kept before the update but not after it: {missing or 'nothing'}"
                )
                os.fsync(self._files[AFTER].fileno())  # a disk may refuse late
                for piece in self.pieces():
                    there = self.read(AFTER, piece).view(torch.uint8)
                    if not torch.equal(there, _bytes(piece.rows)):
                        self.refused(f"{piece.kept.name} has changed since the update")
                        break
        except OSError as error:
            self.refused(error)
        self.agree()
        self._ready = True

    def _write(self, when: int, kept: Kept) -> None:
        if self._because is not None:
            return
        try:
            if not self._files:
                self.folder.mkdir(parents=True, exist_ok=True)
                for _ in (BEFORE, AFTER):
                    self.file()
            self._files[when].seek(kept.place)
            for rows in kept.rows.split(_height(kept.rows)):
                self.write(self._files[when], _bytes(rows).numpy())
        except OSError as error:
            self.close()
            raise self.refused(error) from None

    def _read(self, file: FileIO, place: int, into: torch.Tensor) -> torch.Tensor:
        left = memoryview(into.view(-1).view(torch.uint8).numpy().data)
        file.seek(place)
        while left:
            count = file.readinto(left)
            if not count:
                raise OSError(f"{len(left)} bytes are missing")
            left = left[count:]
        return into

    def _rows(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        mine = local(tensor)
        if mine.ndim < 2:
            return mine.view(1, 1) if mine.ndim == 0 else mine.unsqueeze(1)
        width = mine.shape[-1]
        try:
            return mine.view(mine.numel() // width if width else 0, width)
        except RuntimeError:
            self.close()
            raise self.refused(f"{name} does not lie in memory row after row") from None


def _height(rows: torch.Tensor) -> int:
    """Rows of a block."""
    return max(1, BLOCK // max(1, rows.shape[1]))


def _bytes(rows: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, bytes of a row], on the CPU."""
    return rows.cpu().contiguous().view(torch.uint8)

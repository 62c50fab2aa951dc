"""Which rank keeps which rows of a checkpoint's tensors, and any rows of them back, whoever wants them.

One rank, or several that all hold everything: one file of weights, one of optimizer state. Ranks among which the
weights are sharded: a file each, `weights-00001-of-00004.safetensors`. A sharded tensor is the rows in all of them,
one piece after the other; what is not sharded is in the first. `index.json` gives shapes and first rows:

    {"ranks": 4, "weights": {"lm_head.weight": {"shape": [97, 32], "first_rows": [0, 25, 50, 75]}}, "optimizer": {}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor, Replicate, Shard

from surefoot.errors import UserError
from surefoot.ranks import rank, ranks
from surefoot.regular import open_regular, text_of
from surefoot.train.distributed import local
from surefoot.train.manifest import INDEX, LARGEST_STATE_BYTES, OPTIMIZER, WEIGHTS, piece_name
from surefoot.train.optim import Optimizers
from surefoot.train.tensorfile import TYPE_NAMES

KINDS = {WEIGHTS: "weights", OPTIMIZER: "optimizer"}
"""A file's name → what index.json calls it."""

# Writing -----------------------------------------------------------------------------------------------


def settled(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, each either whole or some rows on each rank: what is yet to be added up is (such as norms
    of sharded weights, in an optimizer's state). All ranks must call it."""
    return {
        name: tensor if cut(tensor) or _whole(tensor) else _total(tensor) for name, tensor in tensors.items()
    }


def cut(tensor: torch.Tensor) -> bool:
    """Whether each rank has some rows of a tensor."""
    return isinstance(tensor, DTensor) and tensor.placements == (Shard(0),)


def _whole(tensor: torch.Tensor) -> bool:
    return not isinstance(tensor, DTensor) or tensor.placements == (Replicate(),)


def _total(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor()


def own(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What this rank keeps of sharded tensors: its rows; the first rank all else, too."""
    return {name: local(tensor) for name, tensor in tensors.items() if rank() == 0 or cut(tensor)}


def index(files: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, Any]:
    """What a reader has to know of the pieces. `files`: name → its tensors, whole ones and DTensors."""
    return {"ranks": ranks()} | {
        KINDS[file]: {
            name: {"shape": list(tensor.shape)} | ({"first_rows": _first_rows(tensor)} if cut(tensor) else {})
            for name, tensor in tensors.items()
        }
        for file, tensors in files.items()
    }


def _first_rows(tensor: torch.Tensor) -> list[int]:
    """Of each rank; one past the last of one that has none."""
    size = math.ceil(len(tensor) / ranks())
    return [min(len(tensor), size * number) for number in range(ranks())]


# Reading -----------------------------------------------------------------------------------------------


class Pieces:
    """The weights, or the optimizer state, of a checkpoint, whatever ranks have written it. Open it with `with`.

    Raises UserError when it cannot be read.
    """

    def __init__(self, path: Path, file: str) -> None:
        """`path`: the checkpoint; `file`: WEIGHTS or OPTIMIZER."""
        self.path, self.file = path, file
        self._index: dict[str, Any] | None = None
        self._ranks = 1
        if (path / INDEX).exists():
            try:
                content = json.loads(text_of(path / INDEX, LARGEST_STATE_BYTES, follow=False))
                self._index, self._ranks = content[KINDS[file]], int(content["ranks"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{path / INDEX}: cannot be read: {error}") from None
        self._open: dict[int, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._open.clear()

    def names(self) -> set[str]:
        return set(self._piece(0).keys()) if self._index is None else set(self._index)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor. Raises KeyError for one that is not there."""
        if self._index is not None:
            return tuple(self._index[name]["shape"])
        if name not in self._piece(0).keys():  # noqa: SIM118  # a safetensors file is no mapping
            raise KeyError(name)
        return tuple(self._piece(0).get_slice(name).get_shape())

    def holds(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether the tensor of that name is of the shape and type of this one."""
        said = self._piece(0).get_slice(name).get_dtype()
        return (self.shape(name), said) == (tuple(tensor.shape), TYPE_NAMES.get(tensor.dtype))

    def like(self, name: str, wanted: torch.Tensor | None) -> torch.Tensor:
        """The tensor laid out as `wanted` is, on its device: of a sharded one, this rank's rows are read, no more.
        None: whole, on the CPU."""
        if wanted is None:
            return self.rows(name)
        if not isinstance(wanted, DTensor):
            return self.rows(name).to(wanted.device)
        start, stop = 0, None
        if cut(wanted):
            first = [*_first_rows(wanted), len(wanted)]
            start, stop = first[rank()], first[rank() + 1]
        piece = self.rows(name, start, stop).to(wanted.device)
        return DTensor.from_local(
            piece,
            wanted.device_mesh,
            wanted.placements,
            run_check=False,
            shape=wanted.shape,
            stride=wanted.stride(),
        )

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Some rows of a tensor, or all of it. Raises KeyError for one that is not there."""
        shape = self.shape(name)
        try:
            parts = list(self._parts(name, shape, start, stop))
        except (SafetensorError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{self.path}: {name} cannot be read: {error}") from None
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        want = (stop - start, *shape[1:]) if stop is not None else shape
        if tuple(found.shape) != want:
            raise UserError(
                f"{self.path}: {name} has {tuple(found.shape)}, not the {want} that {INDEX} tells"
            )
        return found

    def _parts(
        self, name: str, shape: tuple[int, ...], start: int, stop: int | None
    ) -> Iterator[torch.Tensor]:
        firsts = None if self._index is None else self._index[name].get("first_rows")
        if firsts is None:
            file = self._piece(0)
            yield file.get_tensor(name) if stop is None else file.get_slice(name)[start:stop]
            return
        stop = shape[0] if stop is None else stop
        ends = [*firsts[1:], shape[0]]
        inside = [
            (n, a) for n, (a, b) in enumerate(zip(firsts, ends, strict=True)) if max(a, start) < min(b, stop)
        ]
        for number, first in inside or [(0, firsts[0])]:  # no rows are wanted: none, of the right type
            slices = self._piece(number).get_slice(name)
            yield (
                slices[max(0, start - first) : max(0, min(stop, ends[number]) - first)]
                if inside
                else slices[0:0]
            )

    def _piece(self, number: int) -> Any:
        if number not in self._open:
            file = self.path / (
                self.file if self._index is None else piece_name(self.file, number, self._ranks)
            )
            try:
                open_regular(file, follow=False).close()
                self._open[number] = self._stack.enter_context(safe_open(file, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file}: cannot be read: {error}") from None
        return self._open[number]


class StateAs(Mapping[str, torch.Tensor]):
    """Optimizer state as this run lays it out: like what is there already, or like its weight."""

    def __init__(self, pieces: Pieces, optimizers: Optimizers) -> None:
        self.pieces, self.optimizers = pieces, optimizers

    def __getitem__(self, place: str) -> torch.Tensor:
        shape = self.pieces.shape(place)
        known = [tensor for tensor in self.optimizers.around(place) if isinstance(tensor, DTensor)]
        return self.pieces.like(place, next((t for t in known if tuple(t.shape) == shape), None))

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces.names())

    def __len__(self) -> int:
        return len(self.pieces.names())

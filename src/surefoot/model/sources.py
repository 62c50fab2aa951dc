"""Where the values of a model's weights are: in which files, under which names, put together how.

1. `on_file` reads the headers of a folder's weight files.
2. `OnFile` stands for a tensor of theirs while the model library loads it: on torch's meta device, without memory.
   `Traced` notes what the library makes of it: that tensor in another type, or several joined to one (experts).
3. `Reader` reads some rows of what was noted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from surefoot.errors import UserError
from surefoot.model.folder import weight_files

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""Types that are read as they are; others belong to quantised models."""
OPEN_FILES = 4
"""A tensor may be put together of several files; the pages of an open file count as this process's memory."""


class NoBlueprint(Exception):  # noqa: N818
    """This model has to be loaded whole, and why."""


@dataclass(frozen=True)
class Source:
    """A tensor of a file."""

    file: Path
    name: str
    """In the file."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Type that the model library gives the values when it loads the whole; not always the file's."""


@dataclass(frozen=True)
class Joined:
    """Several tensors as one."""

    parts: tuple[Source | Joined, ...]
    dim: int
    stacked: bool
    """`torch.stack`, along a dimension of its own; else `torch.cat`."""
    shape: tuple[int, ...]


def first(source: Source | Joined) -> Source:
    """The first tensor of those that are joined."""
    return source if isinstance(source, Source) else first(source.parts[0])


# Finding -----------------------------------------------------------------------------------------------


def on_file(folder: Path) -> dict[str, Source]:
    """Every tensor of the weight files of a folder that was looked at, by its name there."""
    found: dict[str, Source] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # it is no dictionary
                    part = file.get_slice(name)
                    if (kind := part.get_dtype()) not in DTYPES:
                        raise NoBlueprint(f"{path.name}: {name} is of type {kind}, as quantised weights are")
                    if name in found:
                        raise NoBlueprint(f"{name} is in {found[name].file.name} and in {path.name}")
                    found[name] = Source(path, name, tuple(part.get_shape()), DTYPES[kind])
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
    return found


class Traced(TorchFunctionMode):
    """While open, notes where each tensor comes from that is made of `OnFile`s by joining alone."""

    def __init__(self) -> None:
        super().__init__()
        # Tensors are kept, so that no other storage gets the number of theirs.
        self._made: dict[int, tuple[torch.Tensor, Source | Joined]] = {}

    def note(self, tensor: torch.Tensor, source: Source | Joined) -> torch.Tensor:
        self._made[tensor.untyped_storage()._cdata] = (tensor, source)
        return tensor

    def source(self, tensor: torch.Tensor) -> Source | Joined | None:
        """Where all of a tensor comes from, as it is."""
        own, source = self._made.get(tensor.untyped_storage()._cdata, (None, None))
        if own is None or (own.shape, own.stride(), own.dtype) != (
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        ):
            return None
        return source

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in (torch.stack, torch.cat):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % out.ndim
            parts = [self.source(part) for part in (args[0] if args else kwargs["tensors"])]
            known = tuple(part for part in parts if part is not None)
            if len(known) == len(parts):
                self.note(out, Joined(known, dim, func is torch.stack, tuple(out.shape)))
        return out


class OnFile:
    """Stands for a tensor of the weight files while the model library loads them: what it asks of one."""

    def __init__(self, source: Source, traced: Traced) -> None:
        self.source, self.dtype, self._traced = source, source.dtype, traced

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getitem__(self, index: Any) -> OnFile:
        assert index is Ellipsis
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        kind = dtype or self.dtype
        empty = torch.empty(self.source.shape, dtype=kind, device="meta")
        return self._traced.note(empty, Source(self.source.file, self.source.name, self.source.shape, kind))


# Reading -----------------------------------------------------------------------------------------------


class Reader:
    """Reads what is asked for, and keeps a few files open; use it as a context."""

    def __init__(self) -> None:
        self._files: dict[Path, Any] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        while self._files:
            self._close()

    def _close(self) -> None:
        """The file that was opened first."""
        self._files.pop(next(iter(self._files))).__exit__(None, None, None)

    def rows(self, source: Source | Joined, start: int, end: int) -> torch.Tensor:
        """Rows of a tensor on the CPU, in the type that loading the whole gives it. Raises UserError."""
        if isinstance(source, Source):
            return self._read(source, slice(start, end))
        dim, parts = source.dim, source.parts
        if source.stacked:
            if dim == 0:
                return torch.stack([self.whole(part) for part in parts[start:end]])
            return torch.stack([self.rows(part, start, end) for part in parts], dim)
        if dim:
            return torch.cat([self.rows(part, start, end) for part in parts], dim)
        found, before = [], 0
        for part in parts:
            own = slice(max(start - before, 0), min(end - before, part.shape[0]))
            if own.start < own.stop:
                found.append(self.rows(part, own.start, own.stop))
            before += part.shape[0]
        return torch.cat(found)

    def whole(self, source: Source | Joined) -> torch.Tensor:
        """All rows, or the number."""
        return self.rows(source, 0, source.shape[0]) if source.shape else self._read(first(source), ...)

    def _read(self, source: Source, what: Any) -> torch.Tensor:
        try:
            part = self._open(source.file).get_slice(source.name)
            there = tuple(part.get_shape())
            if there == source.shape:
                return part[what].to(source.dtype)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{source.file} cannot be read: {source.name}: {error}") from error
        raise UserError(
            f"{source.file}: {source.name} has the shape {list(there)} now, and had {list(source.shape)}: the file "
            "was changed while it was read"
        )

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            if len(self._files) == OPEN_FILES:
                self._close()
            self._files[path] = safe_open(path, framework="pt")
            self._files[path].__enter__()
        return self._files[path]

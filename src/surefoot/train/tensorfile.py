"""Tensors as the bytes of a safetensors file, in pieces: hashed and written without a second copy of them all.

The library's own writer makes the whole file in memory, or writes it where nobody sees the bytes go by. The format
is its own: 8 bytes of length, a JSON header, the tensors one after the other (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from typing import Any

import torch

PIECE_BYTES = 1 << 24
"""Most bytes handed out at once."""
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TensorFile:
    """The safetensors file of some tensors, which it does not copy until it is told to."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        # Widest first, so that each tensor begins at a multiple of its own width.
        order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
        header, end = {}, 0
        for name in order:
            tensor = tensors[name]
            start, end = end, end + tensor.nbytes
            header[name] = {
                "dtype": TYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        head = json.dumps(header, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)
        self._head = len(head).to_bytes(8, "little") + head
        self._tensors = [tensors[name].detach() for name in order]
        self._map: mmap.mmap | None = None
        self.size = len(self._head) + end

    def copy(self, spare: mmap.mmap | None = None) -> mmap.mmap | None:
        """Copy the tensors, which may then change. Raises MemoryError or OSError when there is no room.

        The copy lies in `spare` if that fits, else in memory mapped anew, apart from the heap; it is returned, for
        the next copy: to touch memory for the first time takes longer than to copy.
        """
        total = self.size - len(self._head)
        if total == 0:
            self._tensors = []
            return None
        if spare is None or len(spare) != total:
            spare = mmap.mmap(-1, total)
            if hasattr(mmap, "MADV_HUGEPAGE"):  # a fault for 2 MiB, not for each 4 KiB
                spare.madvise(mmap.MADV_HUGEPAGE)
        self._map = spare
        copy, start = torch.frombuffer(self._map, dtype=torch.uint8), 0
        for tensor in self._tensors:
            if tensor.numel():
                end = start + tensor.nbytes
                copy[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
                start = end
        self._tensors = []
        return spare

    def pieces(self) -> Iterator[memoryview]:
        """The file's bytes, in order."""
        yield memoryview(self._head)
        if self._map is not None:
            whole = memoryview(self._map)
            yield from (whole[at : at + PIECE_BYTES] for at in range(0, len(whole), PIECE_BYTES))
            return
        for tensor in self._tensors:
            whole = bytes_of(tensor)
            yield from (whole[at : at + PIECE_BYTES] for at in range(0, len(whole), PIECE_BYTES))

    def forget(self) -> None:
        """Let go of the tensors, and of the copy."""
        self._tensors, self._map = [], None


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, in order; of one that lies in order in memory, without a copy."""
    plain: Any = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
    return memoryview(plain)

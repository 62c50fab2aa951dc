"""Activations in the host's memory between the forward and the backward pass: slower, and room for longer rows.

1. `offloaded` goes around a forward pass: of what autograd keeps, large activations go to the host. Weights stay
   where they are, so do small tensors. What lies in the same memory goes together, and once.
2. The backward pass gets each back where it was, the same bits in the same layout, fetched a little before it is
   wanted.

On CUDA the copies run on two streams of their own, from and to page-locked memory, and the host waits for none.
What is on its way out is held on the device, `ON_THE_WAY` bytes at most: with more, the layers wait for the copies.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

LEAST = 1 << 20
"""Bytes of a tensor from which on the way to the host pays."""
ON_THE_WAY = 1 << 29
"""Bytes that may be on their way to the host."""
MOST_TIMES = 8
"""A tensor in memory more than so many times its size stays."""
AHEAD = 1 << 28
"""Bytes that are fetched before they are asked for."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class _Away:
    """Memory of the device that is in the host's, as bytes."""

    number: int
    on_host: torch.Tensor
    arrived: torch.cuda.Event | None
    wanted: int = 0
    """By so many operations."""
    back: torch.Tensor | None = None
    is_back: torch.cuda.Event | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in such memory a tensor is."""

    away: _Away
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]


@contextmanager
def offloaded(model: torch.nn.Module, device: torch.device, least: int | None = None) -> Iterator[None]:
    """While open, what is kept for the backward pass, of at least `least` bytes (default `LEAST`), goes to the
    host's memory. The backward pass may come after it is closed."""
    moves = _Moves(model, device, LEAST if least is None else least)
    with saved_tensors_hooks(moves.pack, moves.unpack):
        try:
            yield
        finally:
            moves.let_go(0)


class _Moves:
    """What one forward pass has put away."""

    def __init__(self, model: torch.nn.Module, device: torch.device, least: int) -> None:
        self.device, self.least = device, least
        weights = list(model.parameters())
        self._weights = {_address(getattr(weight, "_local_tensor", weight)) for weight in weights}
        # Casts of weights (autocast's), and weights gathered from their shards, are known by their shapes.
        self._shapes = {tuple(weight.shape) for weight in weights if weight.ndim > 1}
        self._away: list[weakref.ref[_Away]] = []
        self._known: dict[int, tuple[StorageWeakRef, weakref.ref[_Away]]] = {}
        self._leaving: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        self._leaving_bytes = 0
        if device.type == "cuda":
            # A pass that broke off may have left copies under way, into memory that is free again.
            torch.cuda.current_stream(device).wait_stream(_streams(device)[1])

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | _Place:
        """The tensor itself where it stays, or where it is."""
        shape = tuple(tensor.shape)
        if (
            tensor.nbytes < self.least
            or tensor.device != self.device
            or tensor.layout != torch.strided
            or not {shape, shape[::-1]}.isdisjoint(self._shapes)
            or _address(tensor) in self._weights
        ):
            return tensor
        storage = tensor.untyped_storage()
        if storage.nbytes() > MOST_TIMES * tensor.nbytes:
            return tensor
        # What autograd keeps is not written to any more. While it is referred to, no other storage gets its key.
        reference = StorageWeakRef(storage)
        known = self._known.get(reference.cdata)
        away = known[1]() if known is not None else None
        if away is None:
            away = self._send(torch.empty(0, dtype=torch.uint8, device=self.device).set_(storage))
            self._away.append(weakref.ref(away))
            self._known[reference.cdata] = reference, self._away[-1]
        away.wanted += 1
        return _Place(away, tensor.dtype, int(tensor.storage_offset()), tensor.shape, tensor.stride())

    def unpack(self, given: torch.Tensor | _Place) -> torch.Tensor:
        """The tensor, on its device; what was put away before it is sent for."""
        if isinstance(given, torch.Tensor):
            return given
        away = given.away
        back = away.back if away.back is not None else self._fetch(away)
        if away.is_back is not None:
            torch.cuda.current_stream(self.device).wait_event(away.is_back)
            self._fetch_ahead(away.number)
        away.wanted -= 1
        away.back = back if away.wanted > 0 else None
        whole = torch.empty(0, dtype=given.dtype, device=self.device)
        return whole.set_(back.untyped_storage(), given.offset, given.shape, given.stride)

    def let_go(self, most: int) -> None:
        """Hold no more than `most` bytes that are on their way out."""
        while self._leaving and self._leaving_bytes > most:
            tensor, arrived = self._leaving.popleft()
            self._leaving_bytes -= tensor.nbytes
            torch.cuda.current_stream(self.device).wait_event(arrived)

    def _send(self, held: torch.Tensor) -> _Away:
        number = len(self._away)
        if self.device.type != "cuda":
            return _Away(number, torch.empty_like(held, device="cpu").copy_(held), None)
        out, _ = _streams(self.device)
        on_host = torch.empty_like(held, device="cpu", pin_memory=True)
        out.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(out):
            on_host.copy_(held, non_blocking=True)
            (arrived := torch.cuda.Event()).record(out)
        self._leaving.append((held, arrived))
        self._leaving_bytes += held.nbytes
        self.let_go(ON_THE_WAY)
        return _Away(number, on_host, arrived)

    def _fetch(self, away: _Away) -> torch.Tensor:
        if away.arrived is None:
            return torch.empty_like(away.on_host, device=self.device).copy_(away.on_host)
        _, home = _streams(self.device)
        back = torch.empty_like(
            away.on_host, device=self.device
        )  # of the current stream's memory, so it waits for it
        home.wait_stream(torch.cuda.current_stream(self.device))
        home.wait_event(away.arrived)
        with torch.cuda.stream(home):
            back.copy_(away.on_host, non_blocking=True)
            (is_back := torch.cuda.Event()).record(home)
            away.is_back = is_back
        return back

    def _fetch_ahead(self, number: int) -> None:
        room = AHEAD
        while number > 0 and room > 0:
            number -= 1
            away = self._away[number]()
            if away is None or away.wanted <= 0:
                continue
            room -= away.on_host.nbytes
            if away.back is None:
                away.back = self._fetch(away)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Out, and back."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)

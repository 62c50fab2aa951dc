"""A forest cut into tiles: runs of slots that look at nearly the same keys, so that attention is a few products.

1. `cut` splits the preorder into tiles of at most `TILE` slots, at branches where it can.
2. A tile's keys are its own slots and the ancestors of its first slot (an ancestor of any later slot that
   stands before the tile is one of the first slot too), as far as the sliding window reaches.
3. Tiles of like shape stand side by side in a `Block`; what a query must not see is a bias of −inf.

Shapes: T slots, B tiles of a block, Q query slots of its longest tile, K its most keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from surefoot.data.forest import Forest, branch_starts, sent

TILE = 128
"""Most query slots of a tile."""
ENOUGH = 64
"""A tile with so many slots ends at the next branch."""
CELLS = 1 << 20
"""Most scores of a head in a block of several tiles: what is worked on stays in the cache."""


@dataclass(frozen=True)
class Block:
    """Tiles side by side. Shorter ones are padded with slot 0 on the right."""

    query_BQ: torch.Tensor
    """int64 slots."""
    key_BK: torch.Tensor
    """int64 slots, ascending in each tile but for the padding."""
    open: int
    """The first so many keys are seen by every query of every tile."""
    bias_BQK: torch.Tensor
    """0 where a query sees a key, −inf where it does not, float32, for the keys from `open` on; B is 1 if all
    tiles agree. A padded query sees what its tile's first query sees."""
    ranges: tuple[tuple[int, int, int, int], ...]
    """(tile, column, first slot, one past the last slot) of each run of consecutive key slots."""

    def bias(self, dtype: torch.dtype) -> torch.Tensor:
        """`bias_BQK` in another type, converted once for all layers."""
        kept = vars(self).setdefault("_bias", {})
        if dtype not in kept:
            kept[dtype] = self.bias_BQK.to(dtype)
        return kept[dtype]


@dataclass(frozen=True)
class Layout:
    """All tiles of a forest under one sliding window."""

    blocks: tuple[Block, ...]
    place_T: torch.Tensor
    """int64, where each slot stands in the flattened, concatenated queries of the blocks."""
    once_T: torch.Tensor | None
    """int64, where each slot stands in the flattened, concatenated keys, if every slot is a key of one tile
    only; None if some are keys of several."""


@dataclass(frozen=True)
class _Tile:
    start: int
    end: int
    keys: np.ndarray
    open: int
    """The first so many keys are seen by every query."""
    seen: np.ndarray
    """bool [Q, K − open], of the others."""


def layout(forest: Forest, window: int | None) -> Layout:
    """The tiles of `forest` when slot q sees slot k iff it is on q's path and less than `window` tokens back.

    Kept with the forest: all layers of a micro-batch share it.
    """
    kept: dict[int | None, Layout] = vars(forest).setdefault("_layouts", {})
    if window not in kept:
        kept[window] = _lay_out(forest, window)
    return kept[window]


def _lay_out(forest: Forest, window: int | None) -> Layout:
    device = forest.ids_T.device
    position_T, end_T = forest.host
    tiles = [_tile(start, end, position_T, end_T, window) for start, end in cut(position_T)]
    blocks, place, once = [], np.empty(len(position_T), np.int64), np.full(len(position_T), -1)
    queries = keys = 0
    single = True
    for group in _alike(tiles):
        block = _side_by_side(group)
        for row, tile in enumerate(group):
            place[tile.start : tile.end] = np.arange(tile.end - tile.start) + queries
            queries += block.query_BQ.shape[1]
            single &= bool((once[tile.keys] < 0).all())
            once[tile.keys] = np.arange(len(tile.keys)) + keys + row * block.key_BK.shape[1]
        keys += block.key_BK.numel()
        blocks.append(_to(block, device))
    place_T = sent(torch.from_numpy(place), device)
    return Layout(tuple(blocks), place_T, sent(torch.from_numpy(once), device) if single else None)


def cut(position_T: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first slot, one past the last) of each tile, in order: at every root, at a branch when the tile has
    `ENOUGH` slots or would outgrow `TILE` with what follows, and at `TILE` slots at the latest."""
    starts = branch_starts(position_T).tolist()
    ends = [*starts[1:], len(position_T)]
    begun = 0
    for start, end in zip(starts, ends, strict=True):
        full = start - begun >= ENOUGH or end - begun > TILE
        if start > begun and (position_T[start] == 0 or full):
            yield begun, start
            begun = start
        while end - begun > TILE:
            yield begun, begun + TILE
            begun += TILE
    if begun < len(position_T):
        yield begun, len(position_T)


def _tile(start: int, end: int, position_T: np.ndarray, end_T: np.ndarray, window: int | None) -> _Tile:
    query, depth = np.arange(start, end), position_T[start:end]
    reach = len(position_T) if window is None else window
    keys = np.concatenate([np.flatnonzero(end_T[:start] > start), query])
    keys = keys[position_T[keys] > depth.min() - reach]
    to_all = (keys <= start) & (end_T[keys] >= end) & (position_T[keys] > depth.max() - reach)
    opened = len(keys) if to_all.all() else int(to_all.argmin())
    rest = keys[opened:]
    seen = (rest <= query[:, None]) & (query[:, None] < end_T[rest])
    seen &= depth[:, None] - position_T[rest] < reach
    return _Tile(start, end, keys, opened, seen)


def _alike(tiles: list[_Tile]) -> Iterator[list[_Tile]]:
    """Groups of tiles whose padding wastes little, in a fixed order."""
    group: list[_Tile] = []
    for tile in sorted(tiles, key=lambda tile: (len(tile.keys), tile.end - tile.start)):
        if group and not _fits(group, tile):
            yield group
            group = []
        group.append(tile)
    if group:
        yield group


def _fits(group: list[_Tile], tile: _Tile) -> bool:
    together = [*group, tile]
    width = max(len(t.keys) for t in together)
    height = max(t.end - t.start for t in together)
    cells = len(together) * height * width
    wanted = sum((t.end - t.start) * len(t.keys) for t in together)
    return cells <= CELLS and (cells <= 1.3 * wanted or height * width <= 32 * 32)


def _side_by_side(tiles: list[_Tile]) -> Block:
    height = max(tile.end - tile.start for tile in tiles)
    width = max(len(tile.keys) for tile in tiles)
    opened = min(tile.open for tile in tiles)
    query_BQ = np.zeros((len(tiles), height), np.int64)
    key_BK = np.zeros((len(tiles), width), np.int64)
    seen_BQK = np.zeros((len(tiles), height, width - opened), bool)
    ranges = []
    for row, tile in enumerate(tiles):
        count = tile.end - tile.start
        query_BQ[row, :count] = np.arange(tile.start, tile.end)
        key_BK[row, : len(tile.keys)] = tile.keys
        seen_BQK[row, :count, : tile.open - opened] = True
        seen_BQK[row, :count, tile.open - opened : len(tile.keys) - opened] = tile.seen
        seen_BQK[row, count:] = seen_BQK[row, :1]
        first = np.flatnonzero(np.diff(tile.keys, prepend=-2) != 1)
        stop = np.append(first[1:], len(tile.keys))
        ranges += [
            (row, a, int(tile.keys[a]), int(tile.keys[a]) + b - a)
            for a, b in zip(first.tolist(), stop.tolist(), strict=True)
        ]
    hidden_BQK = ~seen_BQK
    if (hidden_BQK == hidden_BQK[:1]).all():
        hidden_BQK = hidden_BQK[:1]
    bias_BQK = torch.zeros(hidden_BQK.shape).masked_fill_(torch.from_numpy(hidden_BQK), float("-inf"))
    query, key = torch.from_numpy(query_BQ), torch.from_numpy(key_BK)
    return Block(query, key, opened, bias_BQK, tuple(ranges))


def _to(block: Block, device: torch.device) -> Block:
    if device.type == "cpu":
        return block
    query_BQ, key_BK, bias_BQK = (sent(x, device) for x in (block.query_BQ, block.key_BK, block.bias_BQK))
    return Block(query_BQ, key_BK, block.open, bias_BQK, block.ranges)

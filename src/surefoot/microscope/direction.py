"""The mountain's other axis: a seeded random direction, filter-normalised (Li et al. 2018, Visualizing the Loss
Landscape of Neural Nets, section 4), at a right angle to the update and as long as it.

What is drawn for a weight depends on the seed, its tensor's name and its place in the whole tensor, and on nothing
else: however the model is sharded, the direction is the same.
"""

from __future__ import annotations

import math
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch

from surefoot.microscope.ground import Across, Ground, NoMountain, Piece

WORDS = 4
"""64-bit words that the generator gives for each step of its counter."""


def normals(seed: int, name: str, start: int, count: int) -> np.ndarray:
    """Entries `start` to `start + count` of the normal numbers that belong to (seed, name), float32.

    Philox (Salmon et al. 2011) gives each pair of entries a word of its own; Box and Muller make normals of it.
    """
    key = int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "little")
    drawn = np.random.Philox(key=key)
    drawn.advance(start // (2 * WORDS))
    skipped = start % (2 * WORDS)
    steps = -(-(skipped + count) // (2 * WORDS))
    bits = np.asarray(drawn.random_raw(steps * WORDS)).astype("<u8").view("<u4").reshape(-1, 2)
    uniform = (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)  # in (0, 1]
    length = np.sqrt(np.float32(-2.0) * np.log(uniform[:, 0].copy()))
    angle = np.float32(2 * math.pi) * uniform[:, 1]
    pairs = np.stack([length * np.cos(angle), length * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[skipped : skipped + count]


def filter_normalised(before: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Each row of `drawn` made as long as that row of the weights: both [rows, entries], float32 comes back."""
    have = np.sqrt(np.square(drawn.astype(np.float64)).sum(axis=1))
    want = np.sqrt(np.square(before).sum(axis=1))
    factor = np.divide(want, have, out=np.zeros_like(want), where=have > 0)
    return (drawn * factor[:, None]).astype(np.float32)


def lay_across(ground: Ground, seed: int = 0) -> Across:
    """Draw the direction, keep it on the disk beside the weights, and make it the ground's other axis.

    Rows of matrices are scaled to the norm of that row before the update; of tensors with more dimensions, a row is
    along the last. Vectors (biases, norms) stay where they are.
    Raises NoMountain when there is no room, the update is zero, or no matrix gives a direction beside it.
    """
    ground.ready()
    sums, across = [0.0, 0.0, 0.0], None
    try:
        across = Across(ground.file(), 0.0, 0.0)
        entries = sum(kept.rows.numel() for kept in ground.kept)
        across.file.truncate(4 * entries)  # vectors: zeros, which take no room
        for piece in ground.pieces():
            products = _lay(ground, seed, across, piece)
            sums = [s + p for s, p in zip(sums, products, strict=True)]
    except OSError as error:
        ground.refused(error)
    ground.agree()
    assert across is not None
    delta_delta, drawn_delta, drawn_drawn = ground.over_ranks(sums)
    if not delta_delta > 0:
        raise NoMountain("the update changed no weight, so nothing can be drawn beside it")
    towards = drawn_delta / delta_delta
    length_squared = drawn_drawn - towards * drawn_delta
    if not length_squared > 1e-9 * drawn_drawn:
        raise NoMountain("no trained matrix has a direction beside the update")
    ground.across = replace(across, towards=towards, scale=math.sqrt(delta_delta / length_squared))
    return ground.across


def _lay(ground: Ground, seed: int, across: Across, piece: Piece) -> tuple[float, float, float]:
    """Draw for one piece; its part of Δ·Δ, drawn·Δ and drawn·drawn, of the numbers as they are kept."""
    kept = piece.kept
    before, after = (values.numpy() for values in ground.read_both(piece, torch.float64))
    delta = after - before
    delta_delta = float(np.square(delta).sum())
    if not kept.matrix:
        return delta_delta, 0.0, 0.0
    noise = normals(seed, kept.name, kept.start + piece.first, before.size).reshape(before.shape)
    drawn = filter_normalised(before, noise)
    across.file.seek(4 * (kept.entry + piece.first))
    ground.write(across.file, drawn)
    exact = drawn.astype(np.float64)
    return delta_delta, float((exact * delta).sum()), float(np.square(exact).sum())

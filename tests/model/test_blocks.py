"""The blocks of FlexAttention's mask are those that torch finds by trying every pair of slots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from surefoot.data.forest import plant
from surefoot.data.rows import Example
from surefoot.model import attention
from surefoot.model.attention import seen_blocks
from tests import tiny


def long_family() -> list[Example]:
    """Trees over several blocks: a long prefix, tails of many lengths, and a long row that shares nothing."""
    prefix = tiny.examples([(300, 2)])[0].prompt_ids
    tails = tiny.examples([(0, 6), (0, 150), (0, 40), (0, 200), (0, 3)])
    return [
        *(Example(np.append(prefix, [i]), e.completion_ids, e.row, e.where) for i, e in enumerate(tails)),
        *tiny.examples([(290, 20), (7, 5)]),
    ]


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("window", [None, 5, 128, 200])
def test_blocks_are_those_of_all_pairs(merge: bool, window: int | None) -> None:
    forest = plant(long_family(), merge)
    given = attention._block_mask(forest, window)
    want = create_block_mask(given.mask_mod, None, None, forest.slots, forest.slots, device="cpu")
    dense = given.to_dense(), want.to_dense()
    assert ((dense[0] - dense[1]) >= 0).all()  # nothing that is seen is left out
    partly, wholly = seen_blocks(forest, window)
    assert want.full_kv_num_blocks is not None
    assert want.full_kv_indices is not None
    full = torch.zeros_like(torch.from_numpy(wholly))
    for row, (count, columns) in enumerate(
        zip(want.full_kv_num_blocks[0, 0], want.full_kv_indices[0, 0], strict=True)
    ):
        full[row, columns[:count].long()] = True
    assert not (torch.from_numpy(wholly) & ~full).any()  # what is not all seen is looked at
    if window is None:
        assert torch.equal(dense[0], dense[1])
        assert torch.equal(torch.from_numpy(wholly), full)
        assert wholly.any()
    assert not (partly & wholly).any()
    for side in ("q_num_blocks", "full_q_num_blocks"):
        assert getattr(given, side).dtype == torch.int32

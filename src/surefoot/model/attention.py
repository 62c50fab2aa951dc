"""Attention over a forest, plugged into Hugging Face models by `AttentionInterface`.

The whole micro-batch is one sequence [1, H, T, Dh] to the model; here each slot attends to its own path only.

| where | what | kernel |
|---|---|---|
| CUDA, bf16 or fp16 | no branches | `varlen_attn`, one call for all trees |
| CUDA, bf16 or fp16 | branches, or soft-capping | FlexAttention, its block mask made of `subtree_end` |
| anywhere | anything (sinks, dropout, fp32, float64, CPU) | `tiled_attention` |

Shapes: T slots, H query heads, G key/value heads, Dh head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, PreTrainedModel

from surefoot.data.forest import Forest, sent
from surefoot.model.tiled import Scores, tiled_attention

NAME = "surefoot"
FLEX_WIDTH = 16
"""Narrowest head that FlexAttention takes."""
LOOKS_FOR_PADDING = "warn_if_padding_and_no_attention_mask"
BLOCK = 128
"""Slots of a block of FlexAttention's mask."""


class CannotAttend(Exception):  # noqa: N818
    """The model asks of its attention what a forest cannot give; it must run unpacked."""


def forest_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    forest: Forest | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Hugging Face's attention interface: query [1, H, T, Dh], key and value [1, G, T, Dh] → [1, T, H, Dh].

    Raises CannotAttend when the layout did not arrive or the model wants something else than causal
    attention; the caller then runs the model unpacked.
    """
    if forest is None:
        raise CannotAttend("the model does not pass extra arguments on to its attention")
    if query.shape[0] != 1 or query.shape[2] != forest.slots or key.shape[2] != query.shape[2]:
        raise CannotAttend("the model changes the number of positions before its attention")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise CannotAttend("the model's attention is not causal")
    odd = sorted(name for name in ("position_bias", "cache") if others.get(name) is not None)
    if odd or attention_mask is not None:
        raise CannotAttend(f"the model hands its attention {', '.join(odd) or 'a mask of its own'}")
    scores = Scores(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window if sliding_window is not None and sliding_window < forest.longest else None,
        softcap=softcap,
        dropout=dropout,
    )
    half = value.is_cuda and value.dtype in (torch.bfloat16, torch.float16)
    if half and not dropout and s_aux is None and query.shape[-1] == value.shape[-1]:
        # Rotary embeddings in fp32 promote query and key; the kernels want the values' type.
        query, key = query.to(value.dtype), key.to(value.dtype)
        if not forest.branches and softcap is None:
            return _varlen(query, key, value, forest, scores), None
        if query.shape[-1] >= FLEX_WIDTH:
            return _flex(query, key, value, forest, scores), None
    query_THD, key_TGD, value_TGD = (x[0].transpose(0, 1) for x in (query, key, value))
    return tiled_attention(query_THD, key_TGD, value_TGD, forest, scores, s_aux)[None], None


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, forest: Forest, scores: Scores
) -> torch.Tensor:
    """All trees in one kernel, [1, T, H, Dh]; needs CUDA, half precision and no branches."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = _bounds(forest)
    out = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        bounds,
        bounds,
        forest.longest,
        forest.longest,
        scale=scores.scale,
        window_size=(-1 if scores.window is None else scores.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


def _bounds(forest: Forest) -> torch.Tensor:
    """First slot of each tree and the end of the last, int32 on the device; kept for all layers."""
    kept = vars(forest)
    if "_bounds" not in kept:
        bounds = torch.tensor([0, *(end for _, end in forest.trees)], dtype=torch.int32)
        kept["_bounds"] = sent(bounds, forest.ids_T.device)
    return kept["_bounds"]


def _flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, forest: Forest, scores: Scores
) -> torch.Tensor:
    """FlexAttention over the tree, [1, T, H, Dh]; blocks of slots that see nothing of each other are skipped."""
    cap = scores.softcap

    def capped(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        assert cap is not None
        return cap * torch.tanh(score / cap)

    out = _compiled_flex()(
        query,
        key,
        value,
        score_mod=capped if cap is not None else None,
        block_mask=_block_mask(forest, scores.window),
        scale=scores.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def _block_mask(forest: Forest, window: int | None) -> Any:
    """FlexAttention's mask of `forest` under a sliding window (by depth, not by slot); kept with the forest.

    Equals torch's `create_block_mask`, which tries every pair of slots.
    """
    from torch.nn.attention.flex_attention import BlockMask

    kept: dict[int | None, Any] = vars(forest).setdefault("_block_masks", {})
    if window not in kept:
        end_T, depth_T = forest.subtree_end_T, forest.position_T

        def seen(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            on_path = (k <= q) & (q < end_T[k])
            return on_path if window is None else on_path & (depth_T[q] - depth_T[k] < window)

        partly, wholly = (_in_order(blocks, end_T.device) for blocks in seen_blocks(forest, window))
        kept[window] = BlockMask.from_kv_blocks(
            *partly, *wholly, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(forest.slots, forest.slots)
        )
    return kept[window]


def seen_blocks(forest: Forest, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks of `BLOCK` slots see a part, and which see all, of which blocks: two bool arrays [query blocks,
    key blocks]. Under a window a part may be none."""
    depth_T, end_T = forest.host
    start_B = np.arange(0, forest.slots, BLOCK)
    before_BB = start_B[:, None] > start_B
    some_BB = before_BB & (np.maximum.reduceat(end_T, start_B) > start_B[:, None])
    some_BB |= np.eye(len(start_B), dtype=bool)
    all_BB = before_BB & (np.minimum.reduceat(end_T, start_B) >= start_B[:, None] + BLOCK)
    if window is not None:
        low_B, high_B = np.minimum.reduceat(depth_T, start_B), np.maximum.reduceat(depth_T, start_B)
        some_BB &= low_B[:, None] - high_B < window
        all_BB &= high_B[:, None] - low_B < window
    return some_BB & ~all_BB, all_BB


def _in_order(blocks_BB: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each block of queries sees, and which, these first; int32, for all batches and heads."""
    order_BB = np.argsort(~blocks_BB, axis=-1, kind="stable")
    count, order = (torch.from_numpy(x.astype(np.int32)) for x in (blocks_BB.sum(-1), order_BB))
    return sent(count, device)[None, None], sent(order, device)[None, None]


@cache
def _compiled_flex() -> Any:
    """FlexAttention as one kernel on CUDA; on a CPU, where it cannot train, as plain operations (for tests)."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if torch.cuda.is_available() else flex_attention


@cache
def _outside_graphs() -> Any:
    return torch.compiler.disable(forest_attention)


def _no_padding(*args: Any, **kwargs: Any) -> None:
    """A forest has no slot of padding; to look for it would be to wait for the device."""


@contextmanager
def attending_forests(model: PreTrainedModel, compiled: bool = False) -> Iterator[None]:
    """While open, the model's attention is `forest_attention`. Keep it open until backward is through.

    `compiled`: of layers that are, attention stays outside: its layout is another in each micro-batch, and it has
    kernels of its own.

    No mask function goes with it, so no mask of T × T slots is built; with one, transformers would look at the
    positions first, and the host would wait for the device in each forward pass.
    """
    AttentionInterface.register(NAME, _outside_graphs() if compiled else forest_attention)
    configs = {
        id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)
    }
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    warning = [module for module in model.modules() if hasattr(module, LOOKS_FOR_PADDING)]
    try:
        for module in warning:
            vars(module)[LOOKS_FOR_PADDING] = _no_padding
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
        for module in warning:
            vars(module).pop(LOOKS_FOR_PADDING, None)

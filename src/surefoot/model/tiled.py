"""Attention over a forest, tile by tile: the path for every device and dtype without a better kernel.

`visible_attention` defines it: softmax over the slots that a slot sees. `tiled_attention` equals it with work
proportional to what is seen. All heads that share a key/value head are rows of one product. For backward it
keeps queries, keys and values, and the probabilities of tiles with few keys; others are computed again.

Shapes: T slots, H query heads, G key/value heads, R = H / G, Dh head width, B tiles of a block, Q queries and
K keys of its longest tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from surefoot.data.forest import Forest
from surefoot.model.tiles import Block, Layout, layout

KEEP = 256
"""Keys of a tile up to which its probabilities are kept: a quarter less work for an eighth more memory."""


@dataclass(frozen=True)
class Scores:
    """How queries and keys become probabilities."""

    scale: float
    window: int | None = None
    """Slot q sees slot k only if it is less than so many tokens back."""
    softcap: float | None = None
    """c: a score s becomes c · tanh(s / c) (gemma2)."""
    dropout: float = 0.0


def visible_attention(
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    forest: Forest,
    scores: Scores,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition, [T, H, Dh]: every slot looks at every slot, and a mask says which it sees.

    `sinks_H`: one more score for each head that takes probability and gives no value (gpt-oss).
    """
    end_T, depth_T = forest.subtree_end_T, forest.position_T
    slot_T = torch.arange(forest.slots, device=end_T.device)
    seen_TT = (slot_T <= slot_T[:, None]) & (slot_T[:, None] < end_T)
    if scores.window is not None:
        seen_TT &= depth_T[:, None] - depth_T < scores.window
    repeat = query_THD.shape[1] // key_TGD.shape[1]
    key_THD, value_THD = (x.repeat_interleave(repeat, 1) for x in (key_TGD, value_TGD))
    s_HTT = torch.einsum("qhd,khd->hqk", query_THD, key_THD) * scores.scale
    if scores.softcap is not None:
        s_HTT = torch.tanh(s_HTT / scores.softcap) * scores.softcap
    s_HTT = s_HTT.masked_fill(~seen_TT, float("-inf"))
    p_HTT = _softmax(s_HTT, sinks_H[:, None, None] if sinks_H is not None else None)
    return torch.einsum("hqk,khd->qhd", F.dropout(p_HTT, scores.dropout), value_THD)


def _softmax(scores: torch.Tensor, sink: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the last dimension, in float32 inside, with a sink's share left out."""
    if sink is None:
        return scores.softmax(-1)
    sink = sink.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


def tiled_attention(
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    forest: Forest,
    scores: Scores,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """`visible_attention`, [T, H, Dh], in tiles; products in the values' type, softmax in at least float32."""
    plan = layout(forest, scores.window)
    # A product with more digits than bf16 is rounded once, here.
    query_THD = (query_THD * scores.scale).to(value_TGD.dtype)
    key_TGD = key_TGD.to(value_TGD.dtype)
    if scores.dropout:
        return _with_dropout(query_THD, key_TGD, value_TGD, plan, scores, sinks_H)
    return _Tiled.apply(query_THD, key_TGD, value_TGD, sinks_H, plan, scores.softcap)


def _with_dropout(
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    plan: Layout,
    scores: Scores,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    """By autograd's own operations, which keep the probabilities and what was dropped of them."""
    groups, out = key_TGD.shape[1], []
    for block in plan.blocks:
        key, value = (_keys(x, block) for x in (key_TGD, value_TGD))
        query = _queries(query_THD, block, groups)
        p, _, _ = _probabilities(query, key, block, groups, scores.softcap, sinks_H)
        out.append(_slots(F.dropout(p, scores.dropout) @ value, block, groups))
    return torch.cat(out)[plan.place_T]


def _queries(x_THD: torch.Tensor, block: Block, groups: int) -> torch.Tensor:
    """[T, H, Dh] → [B·G, R·Q, Dh]."""
    tiles, length = block.query_BQ.shape
    width = x_THD.shape[-1]
    x_BQGRD = x_THD.index_select(0, block.query_BQ.flatten()).view(tiles, length, groups, -1, width)
    return x_BQGRD.permute(0, 2, 3, 1, 4).reshape(tiles * groups, -1, width)


def _keys(x_TGD: torch.Tensor, block: Block) -> torch.Tensor:
    """[T, G, Dh] → [B·G, K, Dh]."""
    tiles, length = block.key_BK.shape
    x_BKGD = x_TGD.index_select(0, block.key_BK.flatten()).view(tiles, length, *x_TGD.shape[1:])
    return x_BKGD.transpose(1, 2).flatten(0, 1)


def _slots(x: torch.Tensor, block: Block, groups: int) -> torch.Tensor:
    """[B·G, R·Q, Dh] → [B·Q, H, Dh]."""
    tiles, length = block.query_BQ.shape
    x_BGRQD = x.view(tiles, groups, -1, length, x.shape[-1])
    return x_BGRQD.permute(0, 3, 1, 2, 4).reshape(tiles * length, -1, x.shape[-1])


def _probabilities(
    query: torch.Tensor,
    key: torch.Tensor,
    block: Block,
    groups: int,
    softcap: float | None,
    sinks_H: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Probabilities [B·G, R·Q, K], the slope of the soft-cap, and the sinks' share [B·G, R·Q, 1]."""
    tiles, length = block.query_BQ.shape
    s = torch.bmm(query, key.transpose(1, 2))
    slope = None
    if softcap is not None:
        s = torch.tanh(s.to(torch.promote_types(s.dtype, torch.float32)) / softcap)
        slope, s = 1 - s.square(), s * softcap
    if block.open < s.shape[-1]:
        s_BNQK = s.view(tiles, -1, length, s.shape[-1])
        s_BNQK[..., block.open :] += block.bias(s.dtype)[:, None]
    if sinks_H is None:
        return s.softmax(-1).to(query.dtype), slope, None
    sink_GRQ = sinks_H.to(s.dtype).view(groups, -1, 1).expand(-1, -1, length).flatten(1)
    sink = sink_GRQ.repeat(tiles, 1)[..., None]
    p = torch.cat([s, sink], -1).softmax(-1).to(query.dtype)
    return p[..., :-1], slope, p[..., -1:]


class _Tiled(torch.autograd.Function):
    """Queries come scaled."""

    @staticmethod
    def forward(
        ctx: Any,
        query_THD: torch.Tensor,
        key_TGD: torch.Tensor,
        value_TGD: torch.Tensor,
        sinks_H: torch.Tensor | None,
        plan: Layout,
        softcap: float | None,
    ) -> torch.Tensor:
        ctx.plan, ctx.softcap = plan, softcap
        groups, out = key_TGD.shape[1], []
        kept: list[torch.Tensor | None] = []
        for block in plan.blocks:
            key, value = (_keys(x, block) for x in (key_TGD, value_TGD))
            query = _queries(query_THD, block, groups)
            p, _, _ = _probabilities(query, key, block, groups, softcap, sinks_H)
            out.append(_slots(torch.bmm(p, value), block, groups))
            plain = softcap is None and sinks_H is None
            kept.append(p if plain and p.shape[-1] <= KEEP else None)
        ctx.save_for_backward(query_THD, key_TGD, value_TGD, sinks_H, *kept)
        return torch.cat(out).index_select(0, plan.place_T)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_THD, key_TGD, value_TGD, sinks_H, *kept = ctx.saved_tensors
        plan: Layout = ctx.plan
        groups, (for_query, for_key, _) = key_TGD.shape[1], ctx.needs_input_grad[:3]
        d_out_THD = gradients[0].to(value_TGD.dtype)
        d_query: list[torch.Tensor] = []
        d_keys, d_values = _KeySum(key_TGD, plan), _KeySum(value_TGD, plan)
        d_sinks_H = torch.zeros_like(sinks_H) if sinks_H is not None else None
        for block, p in zip(plan.blocks, kept, strict=True):
            key, value = (_keys(x, block) for x in (key_TGD, value_TGD))
            query, d_out = (_queries(x, block, groups) for x in (query_THD, d_out_THD))
            _drop_padding(d_out, block)
            slope = p_sink = None
            if p is None:
                p, slope, p_sink = _probabilities(query, key, block, groups, ctx.softcap, sinks_H)
            d_values.add(torch.bmm(p.transpose(1, 2), d_out), block)
            if not (for_query or for_key or sinks_H is not None):
                continue
            dp = torch.bmm(d_out, value.transpose(1, 2))
            if d_sinks_H is not None:
                assert p_sink is not None
                exact = torch.promote_types(p.dtype, torch.float32)
                mean = torch.linalg.vecdot(p.to(exact), dp.to(exact))[..., None]
                tiles, length = block.query_BQ.shape
                d_sink = (-p_sink.to(exact) * mean).view(tiles, len(d_sinks_H), length)
                d_sinks_H += d_sink.sum((0, 2)).to(d_sinks_H.dtype)
                ds = (p.to(exact) * (dp.to(exact) - mean)).to(p.dtype)
            else:
                ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
            if slope is not None:
                ds = (ds * slope).to(p.dtype)
            if for_key:
                d_keys.add(torch.bmm(ds.transpose(1, 2), query), block)
            if for_query:
                d_query.append(_slots(torch.bmm(ds, key), block, groups))
        d_query_THD = torch.cat(d_query).index_select(0, plan.place_T) if for_query else None
        return d_query_THD, d_keys.total() if for_key else None, d_values.total(), d_sinks_H, None, None


def _drop_padding(d_out: torch.Tensor, block: Block) -> None:
    """No gradient comes from padded queries, which all stand for slot 0; in place."""
    tiles, length = block.query_BQ.shape
    if tiles > 1:
        padded_BQ = F.pad(block.query_BQ[:, 1:] == 0, (1, 0))
        d_out.view(tiles, -1, length, d_out.shape[-1]).masked_fill_(padded_BQ[:, None, :, None], 0)


class _KeySum:
    """Adds up what flows back into each key slot from all tiles that saw it."""

    def __init__(self, of: torch.Tensor, plan: Layout) -> None:
        self.of, self.plan = of, plan
        self.parts: list[torch.Tensor] = []
        exact = torch.promote_types(of.dtype, torch.float32)
        self.sum = torch.zeros_like(of, dtype=exact) if plan.once_T is None else None

    def add(self, gradient: torch.Tensor, block: Block) -> None:
        """gradient: [B·G, K, Dh]."""
        tiles, length = block.key_BK.shape
        x_BKGD = gradient.view(tiles, -1, length, gradient.shape[-1]).transpose(1, 2)
        if self.sum is None:
            self.parts.append(x_BKGD.flatten(0, 1))
            return
        for tile, column, start, stop in block.ranges:
            self.sum[start:stop] += x_BKGD[tile, column : column + stop - start]

    def total(self) -> torch.Tensor:
        """[T, G, Dh], in the type of the keys."""
        if self.sum is not None:
            return self.sum.to(self.of.dtype)
        assert self.plan.once_T is not None
        return torch.cat(self.parts).index_select(0, self.plan.once_T)

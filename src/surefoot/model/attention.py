"""Attention over a forest, plugged into Hugging Face models by `AttentionInterface`.

The whole micro-batch is one sequence [1, H, T, Dh] to the model; here each tree attends only to itself.
CUDA: `varlen_attn`, one call for all trees. CPU: long trees one `scaled_dot_product_attention` each; short
ones, where that kernel is 3-6 times slower than plain products, side by side through `plain_attention`, which
defines the others and does what they cannot (soft-capping, sinks, a window shorter than the tree).

Shapes: T slots, H query heads, G key/value heads, Dh head width, B trees of a block, L slots of its longest tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from surefoot.data.forest import Forest

NAME = "surefoot"
SHORT = 128
"""Slots up to which plain products beat the fused kernel on a CPU (measured; see LOG.md)."""


class CannotAttend(Exception):  # noqa: N818
    """The model asks of its attention what a forest cannot give; it must run unpacked."""


def plain_attention(
    query_BHLD: torch.Tensor,
    key_BGLD: torch.Tensor,
    value_BGLD: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention of trees without branches, [B, H, L, Dh], softmax in at least float32.

    `window` w: slot q sees slot k iff q − w < k <= q. `softcap` c: scores become c · tanh(score / c).
    `sinks_H`: one more score for each head that takes probability and gives no value (gpt-oss).
    Shorter trees are padded on the right: no slot sees what comes after it, so the padding needs no mask.
    """
    batch, heads, length, width = query_BHLD.shape
    groups = key_BGLD.shape[1]
    # Heads that share a key/value head become more rows of one product.
    query_BGRD = query_BHLD.reshape(batch, groups, -1, width)
    scores_BHLL = (query_BGRD @ key_BGLD.transpose(2, 3)).view(batch, heads, length, length)
    exact = torch.float64 if scores_BHLL.dtype == torch.float64 else torch.float32
    scores_BHLL = scores_BHLL.to(exact) * scale
    if softcap is not None:
        scores_BHLL = torch.tanh(scores_BHLL / softcap) * softcap
    place = torch.arange(length, device=query_BHLD.device)
    distance_LL = place[:, None] - place[None, :]
    hidden_LL = distance_LL < 0 if window is None else (distance_LL < 0) | (distance_LL >= window)
    scores_BHLL = scores_BHLL.masked_fill(hidden_LL, float("-inf"))
    if sinks_H is None:
        p_BHLL = scores_BHLL.softmax(-1)
    else:
        sinks_BHL1 = sinks_H.to(exact)[None, :, None, None].expand(batch, heads, length, 1)
        p_BHLL = torch.cat([scores_BHLL, sinks_BHL1], -1).softmax(-1)[..., :-1]
    p_BHLL = F.dropout(p_BHLL, dropout) if dropout else p_BHLL
    p_BGRL = p_BHLL.to(value_BGLD.dtype).reshape(batch, groups, -1, length)
    return (p_BGRL @ value_BGLD).view(batch, heads, length, value_BGLD.shape[-1])


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
    if query.shape[0] != 1 or query.shape[2] != len(forest.ids_T) or key.shape[2] != query.shape[2]:
        raise CannotAttend("the model changes the number of positions before its attention")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise CannotAttend("the model's attention is not causal")
    odd = sorted(name for name in ("position_bias", "cache") if others.get(name) is not None)
    if odd or attention_mask is not None:
        raise CannotAttend(f"the model hands its attention {', '.join(odd) or 'a mask of its own'}")
    # Rotary embeddings in fp32 promote query and key; the products want the values' type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    longest = max(end - start for start, end in forest.trees)
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    plain = softcap is not None or s_aux is not None or query.shape[-1] != value.shape[-1]
    if not plain and not dropout and value.is_cuda and value.dtype in (torch.bfloat16, torch.float16):
        return _varlen(query[0], key[0], value[0], forest, scale, window)[None], None
    short = value.device.type == "cpu" and longest <= SHORT
    out = []
    for slots_BL in forest.blocks:
        block = [x[0][:, slots_BL].transpose(0, 1) for x in (query, key, value)]
        if plain or short or (window is not None and window < slots_BL.shape[1]):
            kwargs = {"window": window, "softcap": softcap, "sinks_H": s_aux, "dropout": dropout}
            out.append(plain_attention(*block, scale=scale, **kwargs))
        else:
            q, k, v = block
            grouped = q.shape[1] != k.shape[1]
            out.append(
                F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, dropout_p=dropout, scale=scale, enable_gqa=grouped
                )
            )
    flat = torch.cat([block_BHLD.transpose(1, 2).flatten(0, 1) for block_BHLD in out])
    return flat[forest.place_T][None], None


def _varlen(
    query_HTD: torch.Tensor,
    key_GTD: torch.Tensor,
    value_GTD: torch.Tensor,
    forest: Forest,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """All trees in one kernel, [T, H, Dh]; needs CUDA and half precision."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = [0, *(end for _, end in forest.trees)]
    longest = max(end - start for start, end in forest.trees)
    cumulative = torch.tensor(bounds, dtype=torch.int32, device=query_HTD.device)
    out = varlen_attn(
        query_HTD.transpose(0, 1),
        key_GTD.transpose(0, 1),
        value_GTD.transpose(0, 1),
        cumulative,
        cumulative,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query_HTD.shape[0] != key_GTD.shape[0],
    )
    assert isinstance(out, torch.Tensor)
    return out


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The layout says what sees what; a mask of T × T slots is never built."""


@contextmanager
def attending_forests(model: PreTrainedModel) -> Iterator[None]:
    """While open, the model's attention is `forest_attention`. Keep it open until backward is through."""
    AttentionInterface.register(NAME, forest_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    configs = {
        id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)
    }
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]

"""Attention over a forest, plugged into Hugging Face models by `AttentionInterface`.

The whole micro-batch is one sequence [1, H, T, Dh] to the model; here each tree attends only to itself.
CPU: one `scaled_dot_product_attention` a tree, straight on the slots. CUDA: `varlen_attn`, one call for all.
What those cannot do (soft-capping, attention sinks, a window shorter than the tree) goes through
`plain_attention`, which defines the others.

Shapes: T slots, H query heads, G key/value heads, Dh head width, L slots of a tree.
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


class CannotAttend(Exception):  # noqa: N818
    """The model asks of its attention what a forest cannot give; it must run unpacked."""


def plain_attention(
    query_HLD: torch.Tensor,
    key_GLD: torch.Tensor,
    value_GLD: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention of one tree without branches, [H, L, Dh], softmax in at least float32.

    `window` w: slot q sees slot k iff q − w < k <= q. `softcap` c: scores become c · tanh(score / c).
    `sinks_H`: one more score for each head that takes probability and gives no value (gpt-oss).
    """
    heads, length = query_HLD.shape[:2]
    groups = heads // key_GLD.shape[0]
    key_HLD, value_HLD = (x.repeat_interleave(groups, dim=0) for x in (key_GLD, value_GLD))
    scores_HLL = query_HLD @ key_HLD.transpose(1, 2) * scale
    if softcap is not None:
        scores_HLL = torch.tanh(scores_HLL / softcap) * softcap
    place = torch.arange(length, device=query_HLD.device)
    distance_LL = place[:, None] - place[None, :]
    hidden_LL = distance_LL < 0 if window is None else (distance_LL < 0) | (distance_LL >= window)
    scores_HLL = scores_HLL.masked_fill(hidden_LL, float("-inf"))
    if scores_HLL.dtype != torch.float64:
        scores_HLL = scores_HLL.float()
    if sinks_H is None:
        p_HLL = scores_HLL.softmax(-1)
    else:
        sinks_HL1 = sinks_H.to(scores_HLL.dtype)[:, None, None].expand(heads, length, 1)
        p_HLL = torch.cat([scores_HLL, sinks_HL1], -1).softmax(-1)[..., :-1]
    p_HLL = F.dropout(p_HLL, dropout) if dropout else p_HLL
    return p_HLL.to(value_HLD.dtype) @ value_HLD


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
    out = []
    for start, end in forest.trees:
        tree = [x[0, :, start:end] for x in (query, key, value)]
        if plain or (window is not None and window < end - start):
            kwargs = {"window": window, "softcap": softcap, "sinks_H": s_aux, "dropout": dropout}
            out.append(plain_attention(*tree, scale=scale, **kwargs))
        else:
            q, k, v = (x[None] for x in tree)
            grouped = q.shape[1] != k.shape[1]
            out.append(
                F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, dropout_p=dropout, scale=scale, enable_gqa=grouped
                )[0]
            )
    return torch.cat(out, dim=1).transpose(0, 1)[None], None


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
        *(x.transpose(0, 1) for x in (query_HTD, key_GTD, value_GTD)),
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

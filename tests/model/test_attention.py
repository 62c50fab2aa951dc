"""Attention over a forest against one mask-based softmax per head over the whole micro-batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.data.forest import plant
from surefoot.model.attention import (
    SHORT,
    CannotAttend,
    _varlen,
    attending_forests,
    forest_attention,
    plain_attention,
)
from tests import tiny


class Module:
    is_causal = True


def by_mask(q, k, v, forest, scale, window=None, softcap=None, sinks=None):
    """The definition: slot q sees slot k iff k <= q < subtree_end[k] (and the window reaches)."""
    slots = torch.arange(len(forest.ids_T))
    sees = (slots[None, :] <= slots[:, None]) & (slots[:, None] < forest.subtree_end_T[None, :])
    if window is not None:
        sees &= forest.position_T[:, None] - forest.position_T[None, :] < window
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * scale
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~sees, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    p = scores.softmax(-1)
    return ((p if sinks is None else p[..., :-1]) @ v).transpose(1, 2)


def compare(
    lengths: list[tuple[int, int]], heads: int = 4, groups: int = 2, sinks: bool = False, **how: object
) -> None:
    forest = plant(tiny.examples(lengths))
    total = len(forest.ids_T)
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, n, total, 8, dtype=torch.float64, requires_grad=True) for n in (heads, groups, groups)
    )
    sink = torch.randn(heads, dtype=torch.float64, requires_grad=True) if sinks else None
    got, _ = forest_attention(
        Module(),  # type: ignore[arg-type]
        q, k, v, None, scaling=0.3, forest=forest, s_aux=sink,
        sliding_window=how.get("window"), softcap=how.get("softcap"),
    )  # fmt: skip
    want = by_mask(q, k, v, forest, 0.3, sinks=sink, **how)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    weigh = torch.randn_like(want)
    wanted = [q, k, v, *([sink] if sinks else [])]
    ours, theirs = (torch.autograd.grad((out * weigh).sum(), wanted) for out in (got, want))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


LENGTHS = [(5, 4), (9, 12), (1, 3), (0, 7), (40, 30), (2, 1)]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_query_heads(groups: int) -> None:
    compare(LENGTHS, groups=groups)


@pytest.mark.parametrize("window", [1, 2, 8, 69, 500])
def test_sliding_window(window: int) -> None:
    compare(LENGTHS, window=window)


def test_soft_capping_and_sinks() -> None:
    compare(LENGTHS, softcap=2.0)
    compare(LENGTHS, sinks=True)
    compare(LENGTHS, softcap=2.0, window=8, sinks=True)


def test_rows_too_long_for_plain_products() -> None:
    compare([(SHORT, 9), (SHORT + 40, 30), (3, 4), (SHORT, 9)])
    compare([(SHORT, 9), (SHORT + 40, 30), (3, 4)], window=SHORT + 20)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(2, 30)), min_size=1, max_size=8))
def test_any_lengths(lengths: list[tuple[int, int]]) -> None:
    compare(lengths)


def test_what_a_forest_cannot_give_is_refused() -> None:
    forest = plant(tiny.examples([(3, 4)]))
    x = torch.randn(1, 2, len(forest.ids_T), 8)

    class Bidirectional:
        is_causal = False

    for module, kwargs in (
        (Module(), {}),
        (Bidirectional(), {"forest": forest}),
        (Module(), {"forest": forest, "position_bias": torch.zeros(1)}),
        (Module(), {"forest": plant(tiny.examples([(3, 9)]))}),
    ):
        with pytest.raises(CannotAttend):
            forest_attention(module, x, x, x, None, **kwargs)  # type: ignore[arg-type]


def test_the_models_own_attention_is_put_back() -> None:
    net = tiny.model("llama")
    before = net.config._attn_implementation
    with pytest.raises(RuntimeError), attending_forests(net):
        assert net.config._attn_implementation == "surefoot"
        raise RuntimeError
    assert net.config._attn_implementation == before


@pytest.mark.parametrize("window", [None, 8])
def test_the_cuda_call_gets_the_right_layout(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`varlen_attn` has no CPU kernel; a plain stand-in with its documented meaning checks what it is given."""

    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert cu_q.dtype == torch.int32
        assert enable_gqa
        left, right = window_size
        assert right == 0
        out = []
        for start, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
            assert end - start <= max_q
            a, b, c = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
            tree = plain_attention(a, b, c, scale=scale, window=None if left < 0 else left + 1)
            out.append(tree[0].transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    forest = plant(tiny.examples(LENGTHS))
    q, k, v = (torch.randn(1, n, len(forest.ids_T), 8, dtype=torch.float64) for n in (4, 2, 2))
    got = _varlen(q[0], k[0], v[0], forest, 0.3, window)[None]
    torch.testing.assert_close(got, by_mask(q, k, v, forest, 0.3, window=window), rtol=1e-10, atol=1e-12)

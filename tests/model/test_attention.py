"""Attention over a forest against one mask-based softmax per head over the whole micro-batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.data.forest import Forest, plant
from surefoot.data.rows import Example
from surefoot.model import tiles
from surefoot.model.attention import (
    CannotAttend,
    _flex,
    _varlen,
    attending_forests,
    forest_attention,
)
from surefoot.model.tiled import Scores, visible_attention
from tests import tiny


class Module:
    is_causal = True


def compare(
    of: list[Example], heads: int = 4, groups: int = 2, sinks: bool = False, merge: bool = True, **how: object
) -> Forest:
    """Attention through Hugging Face's interface against the definition, and so its gradients."""
    forest = plant(of, merge)
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, n, forest.slots, 8, dtype=torch.float64, requires_grad=True)
        for n in (heads, groups, groups)
    )
    sink = torch.randn(heads, dtype=torch.float64, requires_grad=True) if sinks else None
    got, _ = forest_attention(
        Module(),  # type: ignore[arg-type]
        q, k, v, None, scaling=0.3, forest=forest, s_aux=sink,
        sliding_window=how.get("window"), softcap=how.get("softcap"),
    )  # fmt: skip
    q_THD, k_TGD, v_TGD = (x[0].transpose(0, 1) for x in (q, k, v))
    want = visible_attention(q_THD, k_TGD, v_TGD, forest, Scores(0.3, **how), sink)[None]  # type: ignore[arg-type]
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    weigh = torch.randn_like(want)
    wanted = [q, k, v, *([sink] if sinks else [])]
    ours, theirs = (torch.autograd.grad((out * weigh).sum(), wanted) for out in (got, want))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    return forest


LENGTHS = [(5, 4), (9, 12), (1, 3), (0, 7), (40, 30), (2, 1)]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_query_heads(groups: int) -> None:
    compare(tiny.examples(LENGTHS), groups=groups)
    compare(tiny.family(2), groups=groups)


@pytest.mark.parametrize("window", [1, 2, 8, 69, 500])
def test_sliding_window(window: int) -> None:
    compare(tiny.examples(LENGTHS), window=window)
    compare(tiny.family(3), window=window)


def test_soft_capping_and_sinks() -> None:
    for of in (tiny.examples(LENGTHS), tiny.family(4)):
        compare(of, softcap=2.0)
        compare(of, sinks=True)
        compare(of, softcap=2.0, window=8, sinks=True)


@pytest.mark.parametrize(("tile", "enough"), [(1, 1), (7, 3), (16, 16), (64, 8)])
@pytest.mark.parametrize("window", [None, 9])
def test_tiles_of_any_size(
    tile: int, enough: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE", tile)
    monkeypatch.setattr(tiles, "ENOUGH", enough)
    compare(tiny.examples(LENGTHS), window=window)
    compare(tiny.family(5), window=window)


def test_a_row_of_several_tiles_and_a_long_shared_prefix() -> None:
    compare(tiny.examples([(tiles.TILE * 2, 9), (3, 4)]))
    prefix = tiny.examples([(tiles.TILE + 40, 2)])[0].prompt_ids
    tails = tiny.examples([(0, 6)] * 30)
    forest = compare([Example(prefix, e.completion_ids, e.row, e.where) for e in tails])
    assert forest.slots < len(prefix) + 30 * 6
    first, *others = tiles.layout(forest, None).blocks
    assert first.query_BQ.shape[1] == tiles.TILE
    assert min(block.open for block in others) >= tiles.TILE  # no mask over what all tails see


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([None, 1, 5, 40]))
def test_any_forest(seed: int, merge: bool, window: int | None) -> None:
    compare(tiny.family(seed), merge=merge, window=window)


def test_dropout_drops_what_it_says() -> None:
    """With a probability of a half, results are of the right size on average, and not those without."""
    forest = plant(tiny.examples([(60, 4)] * 3))
    q, k, v = (torch.randn(1, 4, forest.slots, 8) for _ in range(3))
    v = v + 3
    torch.manual_seed(1)
    got, _ = forest_attention(Module(), q, k, v, None, dropout=0.5, forest=forest)  # type: ignore[arg-type]
    want, _ = forest_attention(Module(), q, k, v, None, forest=forest)  # type: ignore[arg-type]
    assert (got.mean() - want.mean()).abs() < 0.2
    assert (got - want).abs().mean() > 0.1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_branches_through_flex_attention() -> None:
    """On a CPU FlexAttention runs uncompiled: slow, and enough to check the mask that it is given."""
    for window, softcap in ((None, None), (6, None), (None, 2.0)):
        forest = plant(tiny.family(6), merge=True)
        assert forest.branches
        q, k, v = (torch.randn(1, n, forest.slots, 16) for n in (4, 2, 2))
        scores = Scores(0.3, window, softcap)
        got = _flex(q, k, v, forest, scores)
        want = visible_attention(*(x[0].transpose(0, 1) for x in (q, k, v)), forest, scores)
        torch.testing.assert_close(got[0], want, rtol=1e-4, atol=1e-5)


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
            alone = plant(tiny.examples([(end - start - 1, 2)]))
            scores = Scores(scale, None if left < 0 else left + 1)
            out.append(visible_attention(q[start:end], k[start:end], v[start:end], alone, scores))
        return torch.cat(out)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    forest = plant(tiny.examples(LENGTHS))
    q, k, v = (torch.randn(1, n, forest.slots, 8, dtype=torch.float64) for n in (4, 2, 2))
    scores = Scores(0.3, window)
    want = visible_attention(*(x[0].transpose(0, 1) for x in (q, k, v)), forest, scores)
    torch.testing.assert_close(_varlen(q, k, v, forest, scores)[0], want, rtol=1e-10, atol=1e-12)

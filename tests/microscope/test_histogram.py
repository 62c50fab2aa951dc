"""Counts of weights before and after: against an element-by-element count, for every kind of float."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from surefoot.microscope import histogram
from surefoot.microscope.histogram import Counts, Moved, linear_edges, log_histogram, rebin

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SPECIAL = [
    0.0,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    1e-45,
    -1e-45,
    1e-40,
    -9.2e-41,
    3.4e38,
    -3.4e38,
    2.0**-133,
]


def pair(dtype: torch.dtype, scale: float = 0.02, count: int = 5000) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights before and after a small update that moves most, values that are special among them."""
    torch.manual_seed(0)
    old = torch.cat(
        [torch.randn(count, dtype=torch.float64) * scale, torch.tensor(SPECIAL, dtype=torch.float64)]
    )
    update = torch.randn(len(old), dtype=torch.float64) * scale * 10 ** -(torch.rand(len(old)) * 5).double()
    update[::7] = 0
    new = old.to(dtype).double() + update
    return old.to(dtype), new.to(dtype)


def keys(values: torch.Tensor) -> np.ndarray:
    return np.bincount(values.float().numpy().view(np.uint32) >> 16, minlength=65536)


def bf16(value: float) -> float:
    """Rounded to the nearest bf16, ties to even, by whole numbers."""
    bits = int(np.array(value, np.float32).view(np.uint32))
    if not math.isfinite(value):
        return value
    rest, bits = bits & 0xFFFF, bits & 0xFFFF0000
    if rest > 0x8000 or (rest == 0x8000 and bits & 0x10000):
        bits += 0x10000
    return float(np.array(bits, np.uint32).view(np.float32))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_value_is_counted_by_its_upper_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histogram, "PIECE", 1000)
    old, new = pair(dtype)
    counts = Counts()
    counts.add(old, new)
    before, after, change = counts.integers()[: 3 * 65536].reshape(3, -1).numpy()
    np.testing.assert_array_equal(before, keys(old))
    np.testing.assert_array_equal(after, keys(new))
    np.testing.assert_array_equal(change, keys((new.double() - old.double()).abs()))
    assert before.sum() == after.sum() == change.sum() == len(old)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("known", [False, True])
def test_lost_updates_are_those_a_loop_over_the_weights_finds(dtype: torch.dtype, known: bool) -> None:
    old, new = pair(dtype)
    asked = torch.rand(len(old)) < 0.8 if known else None
    found = Counts().add(old, new, asked)
    want = {"asked": 0, "lost": 0, "stored_lost": 0, "still": 0}
    for i, (a, b) in enumerate(zip(old.double().tolist(), new.double().tolist(), strict=True)):
        moved = a != b if asked is None else bool(asked[i])
        # From float64, torch rounds to bf16 by way of float32: so does `bf16`.
        want["asked"] += moved
        want["lost"] += moved and bf16(a) == bf16(b)
        want["stored_lost"] += moved and a == b
        want["still"] += a == b
    assert {name: getattr(found, name) for name in want} == want
    assert (found.lost > 0) == (known or dtype != torch.bfloat16)
    assert found.lost < found.asked
    assert (found.stored_lost > 0) == known
    assert found.count == len(old)


def test_norms_are_those_of_float64() -> None:
    old, new = (x[:5000] for x in pair(torch.float32))
    counts = Counts()
    counts.add(old, new)
    panel, _ = counts.weights()
    assert panel.weight_norm == pytest.approx(old.double().norm().item(), rel=1e-13)
    assert panel.update_norm == pytest.approx((new.double() - old.double()).norm().item(), rel=1e-13)
    assert panel.update_ratio == pytest.approx(panel.update_norm / panel.weight_norm, rel=1e-13)


@pytest.mark.parametrize("scale", [1e-39, 1e-20, 0.02, 1.0, 3.0, 1e20, 1e37])
def test_a_picture_bin_is_the_sum_of_its_values(scale: float) -> None:
    old, new = pair(torch.float32, scale)
    fine_old, fine_new = keys(old), keys(new)
    edges = linear_edges(fine_old + fine_new)
    np.testing.assert_array_equal(edges, -edges[::-1])
    bins = len(edges) - 1
    # Some values lie exactly on edges.
    on_edges = torch.tensor(edges, dtype=torch.float32)
    values = torch.cat([old, on_edges[:-1]]).double().numpy()
    found = rebin(keys(torch.cat([old, on_edges[:-1]])), edges)
    want, outside = [0] * bins, 0
    for value in values.tolist():
        place = sum(edge <= abs(value) for edge in edges.tolist()) - 1 if math.isfinite(value) else bins
        if place < bins:
            want[place if math.copysign(1, value) > 0 else bins - 1 - place] += 1
        else:
            outside += 1
    assert (found.counts, found.outside) == (want, outside)
    held = np.abs(old.numpy()[:5000]) < edges[-1]
    assert held.mean() > 0.99
    if 1e-30 < scale < 1e30:
        assert 86 <= bins <= 171
        assert np.abs(old.numpy()[:5000]).max() > edges[-1] / 4


def test_away_from_edges_it_is_numpys_histogram() -> None:
    old, _ = pair(torch.float32)
    old = old[:5000]
    edges = linear_edges(keys(old))
    counts, _ = np.histogram(old.double().numpy(), edges)
    assert rebin(keys(old), edges).counts == counts.tolist()


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e30])
def test_changes_are_binned_by_their_logarithm(scale: float) -> None:
    torch.manual_seed(1)
    change = torch.cat([(torch.randn(5000) * 2).exp() * scale, torch.zeros(70)])
    found = log_histogram(keys(change), 70)
    values = change[:5000].double().log10().numpy()
    counts, _ = np.histogram(values, found.edges)
    assert found.counts == counts.tolist()
    assert found.zeros == 70
    assert sum(found.counts) + found.outside == 5000
    assert 0 < found.outside <= 10, "0.1 % below the first edge, and a fine bin"
    assert values.max() <= found.edges[-1]
    widths = np.diff(found.edges)
    assert len(widths) > 100
    assert widths.max() < 2 * widths.min()


def test_a_change_that_is_the_same_everywhere_has_a_picture() -> None:
    """The first update of Adam moves each weight by the learning rate."""
    found = log_histogram(keys(torch.full((100,), 2e-5)), 0)
    assert sum(found.counts) == 100
    assert max(found.counts) == 100
    assert found.edges[-1] - found.edges[0] >= 0.99


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_gets_lost_in_the_pictures(dtype: torch.dtype) -> None:
    old, new = pair(dtype)
    counts = Counts()
    counts.add(old, new)
    panel, arrays = counts.weights("w")
    assert panel.before.edges == panel.after.edges
    for picture in (panel.before, panel.after, panel.change):
        assert sum(picture.counts) + picture.outside + picture.zeros == len(old)
        assert len(picture.edges) == len(picture.counts) + 1
    assert panel.change.zeros == int((old == new).sum())
    assert set(arrays) == {panel.counts_before, panel.counts_after}
    np.testing.assert_array_equal(arrays[panel.counts_after], keys(new))
    assert arrays[panel.counts_before].dtype == np.int64


def test_shards_add_up_to_the_whole() -> None:
    old, new = pair(torch.bfloat16)
    asked = torch.rand(len(old)) < 0.9
    whole, left, right = Counts(), Counts(), Counts()
    parts = whole.add(old, new, asked)
    first = left.add(old[:1234], new[:1234], asked[:1234])
    second = right.add(old[1234:], new[1234:], asked[1234:])
    right.add(old[:0], new[:0])
    added = Counts.of(left.integers() + right.integers(), left.reals() + right.reals())
    assert torch.equal(added.integers(), whole.integers())
    finite = Moved(**{**vars(parts), "weight_square": 0, "update_square": 0})
    assert Moved(**{**vars(first + second), "weight_square": 0, "update_square": 0}) == finite
    assert added.weights()[0].before == whole.weights()[0].before


def test_it_says_whether_lost_means_lost() -> None:
    def means(*dtypes: torch.dtype) -> tuple[str, str]:
        counts = Counts()
        for dtype in dtypes:
            counts.add(torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype))
        panel, _ = counts.weights()
        return panel.dtype, panel.lost_means

    assert means(torch.bfloat16) == ("bfloat16", "lost: the weights are bf16")
    kept = "kept: the weights are float32; only their bf16 copies are unchanged"
    assert means(torch.float32) == ("float32", kept)
    both = means(torch.float32, torch.bfloat16)
    assert both[0] == "bfloat16 and float32"
    assert both[1].startswith("lost in the bf16 weights; kept in the others")


def test_nothing_at_all_is_a_picture_too() -> None:
    panel, _ = Counts().weights()
    assert (panel.count, panel.lost_share, panel.update_ratio) == (0, 0.0, 0.0)
    counts = Counts()
    counts.add(torch.zeros(5), torch.zeros(5))
    panel, _ = counts.weights()
    assert sum(panel.before.counts) == panel.change.zeros == 5
    assert sum(panel.change.counts) == 0

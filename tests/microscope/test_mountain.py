"""The mountain: its values are the naive ones, and nothing of the model is different afterwards."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from surefoot.errors import UserError
from surefoot.microscope import ground as ground_module
from surefoot.microscope import mountain as mountain_module
from surefoot.microscope.direction import filter_normalised, lay_across, normals
from surefoot.microscope.ground import Ground, NoMountain, WeightsLost
from surefoot.microscope.mountain import ALONG, cut, surface
from surefoot.model.network import Network, look_at
from surefoot.train.evaluate import evaluate
from tests import tiny

LENGTHS = [(5, 4), (9, 12), (1, 3), (17, 6)]
OF = tiny.examples(LENGTHS)
BUDGET = 40


def updated(net: torch.nn.Module, folder: Path, rate: float = 0.05) -> tuple[Ground, torch.nn.Module, float]:
    """One step of plain gradient descent, tensor by tensor. The ground, the model as it was, g·Δ."""
    before = copy.deepcopy(net)
    tiny.naive_loss(net, OF)
    ground, slope = Ground(folder), 0.0
    for name, p in net.named_parameters():
        assert p.grad is not None
        ground.keep_before(name, p)
        old = p.detach().double().clone()
        with torch.no_grad():
            p.sub_(p.grad, alpha=rate)
        slope += float((p.grad.double() * (p.detach().double() - old)).sum())
        ground.keep_after(name, p)
        p.grad = None
    return ground, before, slope


def state(net: torch.nn.Module) -> str:
    """Everything that must not change: weights, modes, random state."""
    found = hashlib.sha256(torch.random.get_rng_state().numpy().tobytes())
    for tensor in net.state_dict().values():
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    found.update(bytes(module.training for module in net.modules()))
    return found.hexdigest() + str([p.grad for p in net.parameters()])


def set_naively(
    net: torch.nn.Module, before: torch.nn.Module, after: torch.nn.Module, along: float
) -> torch.nn.Module:
    with torch.no_grad():
        for p, b, a in zip(net.parameters(), before.parameters(), after.parameters(), strict=True):
            wide = torch.promote_types(p.dtype, torch.float32)
            p.copy_(b.to(wide) + along * (a.to(wide) - b.to(wide)))
    return net


class Made:
    """A tiny model after one update."""

    def __init__(self, architecture: str, dtype: torch.dtype, folder: Path, rate: float = 0.05) -> None:
        self.net: Any = tiny.model(architecture, dtype)
        self.ground, self.before, self.slope = updated(self.net, folder, rate)
        self.after = copy.deepcopy(self.net)
        self.network: Network = look_at(self.net, OF, None)
        self.net.train()
        self.probe = {"slope": self.slope, "probe": "the batch itself"}

    def cut(self, **options: Any) -> Any:
        return cut(self.ground, self.network, OF, BUDGET, **{**self.probe, **options})

    def surface(self, **options: Any) -> Any:
        return surface(self.ground, self.network, OF, BUDGET, **{**self.probe, **options})


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    found = Made("llama_tied", torch.float64, tmp_path / "ground")
    yield found
    found.ground.close()
    assert list((tmp_path / "ground").iterdir()) == []


def test_the_cut_is_that_of_a_copied_model_set_point_by_point(made: Made) -> None:
    with tiny.InDouble():
        mountain = made.cut()
        other = copy.deepcopy(made.net)
        for along, loss in zip(mountain.along, mountain.losses, strict=True):
            naive = tiny.naive_loss(set_naively(other, made.before, made.after, along), OF).item()
            assert math.isclose(loss, naive, rel_tol=1e-12), along
    assert mountain.along == list(ALONG)
    assert {0.0, 1.0} <= set(mountain.along)
    weights = sum(p.numel() for p in made.net.parameters())
    assert mountain.caption == f"a 1-D cut through {weights:,} dimensions, on this probe batch"
    assert mountain.probe == "the batch itself"
    assert mountain.surface is None


def test_the_parabola_goes_through_both_ends_with_the_slope(made: Made) -> None:
    mountain = made.cut()
    start, end = mountain.losses[mountain.along.index(0)], mountain.losses[mountain.along.index(1)]
    assert start + mountain.slope + mountain.curvature / 2 == pytest.approx(end, rel=1e-14)
    assert mountain.curvature > 0
    assert mountain.lowest_at == -mountain.slope / mountain.curvature
    bowed = made.cut(slope=abs(end - start) + 1)
    assert bowed.curvature < 0
    assert bowed.lowest_at is None


def test_the_slope_is_that_of_finite_differences_and_the_curvature_that_of_the_second(tmp_path: Path) -> None:
    with tiny.InDouble():
        made = Made("qwen2", torch.float64, tmp_path, rate=1e-4)
        at = (-1e-2, 0.0, 1e-2, 1.0)
        down, here, up, _ = made.cut(along=at).losses
        assert (up - down) / 2e-2 == pytest.approx(made.slope, rel=1e-6)
        made.ground.close()
        # A short step: the parabola through its ends is the second difference.
        small = Made("qwen2", torch.float64, tmp_path, rate=1e-3)
        down, here, up = small.cut(along=(-1.0, 0.0, 1.0)).losses
        assert small.cut().curvature == pytest.approx(up - 2 * here + down, rel=0.1)
        small.ground.close()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_where_the_model_stands(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground_module, "BLOCK", 100)
    made = Made("opt", dtype, tmp_path)
    was = state(made.net)
    for along, want in ((0, made.before), (1, made.after)):
        with made.ground.standing(along):
            for p, w in zip(made.net.parameters(), want.parameters(), strict=True):
                assert torch.equal(p, w)
    with made.ground.standing(0.375):
        naive = set_naively(copy.deepcopy(made.net), made.before, made.after, 0.375)
        assert all(torch.equal(p, w) for p, w in zip(made.net.parameters(), naive.parameters(), strict=True))
        assert state(made.net) != was
    assert state(made.net) == was
    made.ground.close()


def test_types_may_be_mixed_and_bits_are_kept_whatever_they_mean(tmp_path: Path) -> None:
    torch.manual_seed(0)
    odd = torch.randn(3).to(torch.bfloat16)
    strange = torch.tensor([[math.nan, -math.nan, -0.0], [math.inf, 5e-45, 1.0]])
    turned = torch.randn(4, 5).T
    point = torch.tensor(2.0, dtype=torch.float64)
    tensors = {"odd": odd, "strange": strange, "turned": turned, "point": point}
    with Ground(tmp_path) as ground:
        before, after = {}, {}
        for name, tensor in tensors.items():
            before[name] = tensor.clone()
            ground.keep_before(name, tensor)
            tensor.mul_(2)
            ground.keep_after(name, tensor)
            after[name] = tensor.clone()
        for along, want in ((0, before), (1, after)):
            with ground.standing(along):
                for name, tensor in tensors.items():
                    same = tensor.contiguous().view(-1).view(torch.uint8)
                    assert torch.equal(same, want[name].contiguous().view(-1).view(torch.uint8)), name
        with ground.standing(0.5):
            assert point == 3
            torch.testing.assert_close(turned, before["turned"] * 1.5)
        assert point == 4
        assert ground.dimensions == 3 + 6 + 20 + 1


def test_bf16_weights_are_measured_and_the_caption_says_that_they_are_rounded(tmp_path: Path) -> None:
    made = Made("llama", torch.bfloat16, tmp_path)
    was = state(made.net)
    mountain = made.cut()
    for along, loss in zip(mountain.along, mountain.losses, strict=True):
        naive = set_naively(copy.deepcopy(made.net), made.before, made.after, along)
        assert loss == evaluate(look_at(naive, OF, None), OF, BUDGET)["loss"]
    assert len(set(mountain.losses)) > 5
    assert mountain.caption.endswith("weights are rounded to bfloat16")
    assert state(made.net) == was
    made.ground.close()


class Stopped(RuntimeError):  # noqa: N818
    """Made by a test."""


@pytest.mark.parametrize("stop", [Stopped, KeyboardInterrupt])
@pytest.mark.parametrize("what", ["cut", "surface"])
def test_nothing_is_different_afterwards_whatever_happens(
    made: Made, what: str, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 3} if what == "surface" else {}
    was = state(made.net)
    getattr(made, what)(**options)
    assert state(made.net) == was

    calls = []

    def third(*_: Any) -> None:
        calls.append(state(made.net) != was)
        torch.rand(3)
        if len(calls) == 3:
            raise stop

    handle = made.net.model.layers[1].mlp.register_forward_hook(third)
    with pytest.raises(stop):
        getattr(made, what)(**options)
    handle.remove()
    assert calls == [True] * 3
    assert state(made.net) == was


def test_an_interrupt_while_weights_are_set_or_put_back_leaves_none_behind(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    was, read = state(made.net), Ground.read
    made.cut(along=(0.0, 1.0))
    for moment in (5, 60):  # while setting, while putting back
        calls: list[int] = []

        def interrupted(self: Ground, when: int, piece: Any, moment=moment, calls=calls) -> torch.Tensor:
            calls.append(when)
            if len(calls) == moment:
                raise KeyboardInterrupt
            return read(self, when, piece)

        monkeypatch.setattr(Ground, "read", interrupted)
        pieces = len(list(made.ground.pieces()))
        assert 5 < pieces < 60 <= 3 * pieces
        with pytest.raises(KeyboardInterrupt), made.ground.standing(0.5):
            pass
        monkeypatch.undo()
        assert state(made.net) == was


def test_a_surface_holds_the_cut_and_changes_across(made: Made) -> None:
    mountain, heights = made.surface(steps=5, seed=3)
    assert heights.dtype == np.float64
    assert heights.shape == (5, 5) == (len(mountain.across), len(mountain.along))
    assert {0.0, 1.0} <= set(mountain.along)
    assert mountain.across == [-1.25, -0.625, 0.0, 0.625, 1.25]
    assert heights[2].tolist() == mountain.losses == made.cut(along=mountain.along).losses
    assert len(np.unique(heights)) == 25
    assert mountain.surface == "mountain"
    assert mountain.caption.startswith("a 2-D slice through ")
    assert mountain.caption.endswith(" dimensions, on this probe batch")
    assert "seed 3" in mountain.across_is
    _, again = made.surface(steps=5, seed=3)
    _, other = made.surface(steps=5, seed=4)
    assert again.tobytes() == heights.tobytes()
    assert (other[2] == heights[2]).all()
    assert (other[[0, 1, 3, 4]] != heights[[0, 1, 3, 4]]).all()


def test_the_grid_of_21_is_even(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    points: list[tuple[float, float]] = []
    monkeypatch.setattr(Ground, "stand", lambda self, along, across: points.append((along, across)))
    monkeypatch.setattr(mountain_module, "losses", lambda *_, **__: SimpleNamespace(loss=float(len(points))))
    mountain, heights = made.surface()
    assert mountain.along == [-0.5 + i / 8 for i in range(21)]
    assert mountain.across == [-1.25 + i / 8 for i in range(21)]
    assert points == [(a, c) for c in mountain.across for a in mountain.along]
    assert heights.ravel().tolist() == list(range(1, 442))


@pytest.mark.parametrize("steps", [1, 20])
def test_steps_are_odd(made: Made, steps: int) -> None:
    with pytest.raises(UserError, match=f"not {steps}"):
        made.surface(steps=steps)


def test_every_point_is_told_of(made: Made) -> None:
    told: list[int] = []
    made.surface(steps=3, advance=lambda: told.append(1))
    assert len(told) == 9
    made.cut(advance=lambda: told.append(1))
    assert len(told) == 18


def direction(made: Made) -> dict[str, torch.Tensor]:
    """The direction across, as what standing one step across adds to `before`, in float64."""
    found = {}
    with made.ground.standing(0, 1):
        for (name, p), b in zip(made.net.named_parameters(), made.before.parameters(), strict=True):
            found[name] = (p - b).detach()
    return found


def test_the_direction_is_at_a_right_angle_to_the_update_and_as_long(made: Made) -> None:
    across = lay_across(made.ground, seed=1)
    d = torch.cat([t.flatten() for t in direction(made).values()])
    parts = zip(made.after.parameters(), made.before.parameters(), strict=True)
    delta = torch.cat([(a - b).detach().flatten() for a, b in parts])
    assert abs(float(d @ delta)) < 1e-12 * float(delta @ delta)
    assert float(d.norm()) == pytest.approx(float(delta.norm()), rel=1e-12)
    assert across.scale < 1e-1  # filter-normalised it is as long as the weights


def test_rows_are_as_long_as_those_of_the_weights_and_vectors_stay(made: Made) -> None:
    across = lay_across(made.ground, seed=1)
    rows = dict(made.before.named_parameters())
    seen = 0
    for piece in made.ground.pieces():
        drawn = made.ground.read_drawn(across, piece).double()
        weight = rows[piece.kept.name].detach()
        if weight.ndim < 2:
            assert not drawn.any()
            continue
        seen += 1
        torch.testing.assert_close(drawn.norm(dim=1), weight.norm(dim=1), rtol=1e-6, atol=0)
    assert seen > 10


def test_drawn_numbers_are_normal_and_a_function_of_seed_name_and_place() -> None:
    whole = normals(7, "model.layers.0.weight", 0, 100_003)
    for start, count in ((0, 1), (1, 1), (7, 2), (8, 8), (9, 50_001), (50_001, 50_002), (100_002, 1), (3, 0)):
        part = normals(7, "model.layers.0.weight", start, count)
        assert part.tobytes() == whole[start : start + count].tobytes(), (start, count)
    far = normals(7, "x", 3 * 2**40 + 5, 3)
    assert far.tobytes() == normals(7, "x", 3 * 2**40 + 4, 5)[1:4].tobytes()
    others = [
        normals(8, "model.layers.0.weight", 0, 100_003),
        normals(7, "model.layers.1.weight", 0, 100_003),
    ]
    for other in others:
        assert abs(np.corrcoef(whole, other)[0, 1]) < 0.015
    assert abs(np.corrcoef(whole[1:], whole[:-1])[0, 1]) < 0.015
    assert abs(whole.mean()) < 0.015
    assert abs(whole.std() - 1) < 0.01
    assert abs((whole.astype(np.float64) ** 4).mean() - 3) < 0.15
    assert (np.abs(whole) < 1).mean() == pytest.approx(0.6827, abs=0.005)


def test_shards_draw_and_stand_as_the_whole_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves on two grounds, their sums added up as ranks would: the bits of the whole."""
    monkeypatch.setattr(ground_module, "BLOCK", 64)
    torch.manual_seed(0)
    before = {"a": torch.randn(11, 13), "b": torch.randn(6, 2, 5), "c": torch.randn(9)}
    after = {name: t + 0.1 * torch.randn_like(t) for name, t in before.items()}

    def kept(folder: str, cut: Any) -> tuple[Ground, dict[str, torch.Tensor]]:
        ground, live = Ground(tmp_path / folder), {}
        for name, tensor in before.items():
            start, stop = cut(len(tensor))
            live[name] = tensor[start:stop].clone()
            whole = None if stop - start == len(tensor) else tensor.numel()
            ground.keep_before(name, live[name], start * tensor[0].numel(), whole)
            live[name].copy_(after[name][start:stop])
            ground.keep_after(name, live[name])
        return ground, live

    whole, weights = kept("whole", lambda n: (0, n))
    parts = [kept("first", lambda n: (0, n // 3)), kept("second", lambda n: (n // 3, n))]
    lay_across(whole, 5)
    drawn = {p.kept.name: [] for p in whole.pieces()}
    sums: list[list[float]] = []
    for add_up in (lambda s: sums.append(s) or s, lambda s: [sum(x) for x in zip(*sums, strict=True)]):
        for ground, _ in parts:
            monkeypatch.setattr(ground, "agree", lambda: None)
            monkeypatch.setattr(ground, "over_ranks", add_up)
            lay_across(ground, 5)
    for ground, _ in parts:
        assert ground.dimensions == whole.dimensions
        assert ground.across is not None and whole.across is not None
        assert ground.across.scale == pytest.approx(whole.across.scale, rel=1e-13)
        assert ground.across.towards == pytest.approx(whole.across.towards, rel=1e-11)
        for piece in ground.pieces():
            assert ground.across is not None
            drawn[piece.kept.name].append(ground.read_drawn(ground.across, piece))
    for name, tensor in before.items():
        assert whole.across is not None
        all_of_it = [whole.read_drawn(whole.across, p) for p in whole.pieces() if p.kept.name == name]
        assert torch.equal(torch.cat(drawn[name]), torch.cat(all_of_it)), name
        assert torch.cat(all_of_it).numel() == tensor.numel()
    with whole.standing(0.5, 0.25), parts[0][0].standing(0.5, 0.25), parts[1][0].standing(0.5, 0.25):
        for name in before:
            assert torch.equal(torch.cat([live[name] for _, live in parts]), weights[name])
    for ground in (whole, parts[0][0], parts[1][0]):
        ground.close()


def test_a_row_of_zeros_stays() -> None:
    before, drawn = np.array([[0.0, 0.0], [3.0, 4.0]]), np.ones((2, 2), np.float32)
    np.testing.assert_allclose(filter_normalised(before, drawn), [[0, 0], [12.5**0.5, 12.5**0.5]], rtol=1e-7)


def test_there_is_nothing_across_a_step_of_nothing_or_of_one_weight(tmp_path: Path) -> None:
    for tensor, change, why in (
        (torch.ones(2, 2), 0.0, "changed no weight"),
        (torch.ones(1, 1), 1.0, "no trained matrix"),
        (torch.ones(4), 1.0, "no trained matrix"),
    ):
        with Ground(tmp_path) as ground:
            ground.keep_before("weight", tensor)
            tensor += change
            ground.keep_after("weight", tensor)
            with pytest.raises(NoMountain, match=why):
                lay_across(ground)


def full(*_: Any) -> Any:
    return Path("/dev/full").open("r+b", buffering=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_a_full_disk_stops_the_mountain_and_not_the_update(tmp_path: Path, monkeypatch: Any) -> None:
    first, second = torch.ones(4, 4), torch.ones(4)
    files: list[Any] = []
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: files.append(full()) or files[-1])
    ground = Ground(tmp_path / "run" / "ground")
    with pytest.raises(NoMountain, match=r"run/ground: No space left on device; .* free some space"):
        ground.keep_before("first", first)
    assert all(file.closed for file in files)
    first += 1
    ground.keep_after("first", first)  # quiet now
    ground.keep_before("second", second)
    second += 1
    ground.keep_after("second", second)
    for measure in (lambda: ground.standing(0).__enter__(), lambda: lay_across(ground)):
        with pytest.raises(NoMountain, match="No space left"):
            measure()
    assert (first == 2).all()
    assert (second == 2).all()
    ground.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_a_disk_too_full_for_a_surface(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    was = state(made.net)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full())
    monkeypatch.setattr(ground_module.os, "ftruncate", lambda *_: None)
    with pytest.raises(NoMountain):
        made.surface(steps=3)
    assert state(made.net) == was


def test_a_folder_that_cannot_be_made_is_no_mountain(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ground = Ground(tmp_path / "file" / "ground")
    with pytest.raises(NoMountain, match="Not a directory"):
        ground.keep_before("weight", torch.ones(2))


def test_memory_in_another_order_is_no_mountain(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    with pytest.raises(NoMountain, match="experts does not lie in memory row after row"):
        ground.keep_before("experts", torch.ones(2, 3, 4).transpose(0, 1))


def test_weights_that_are_not_those_kept_are_left_alone(made: Made) -> None:
    with torch.no_grad():
        made.net.lm_head.weight[0, 0] += 1
    was = state(made.net)
    with pytest.raises(NoMountain, match=r"embed_tokens.weight has changed since the update"):
        made.cut()
    assert state(made.net) == was


def test_weights_that_cannot_be_read_back_are_not_passed_over(tmp_path: Path) -> None:
    ground, weight = Ground(tmp_path), torch.ones(3)
    ground.keep_before("weight", weight)
    weight += 1
    ground.keep_after("weight", weight)
    with pytest.raises(WeightsLost, match="cannot be read back"), ground.standing(0):
        ground._files[ground_module.AFTER].truncate(0)
    ground.close()


GREEDY = """
import sys, torch
from pathlib import Path
from surefoot.microscope.direction import lay_across
from surefoot.microscope.ground import Ground

torch.set_num_threads(1)
weight = torch.nn.Parameter(torch.ones(4096, int(sys.argv[2])))
warm = torch.nn.Parameter(torch.ones(512, 1024))

def peak():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l).split()[1])

def measure(parameter):
    with Ground(Path(sys.argv[1])) as ground:
        ground.keep_before("weight", parameter)
        with torch.no_grad():
            parameter.mul_(1.001)
        ground.keep_after("weight", parameter)
        lay_across(ground)
        with ground.standing(0.5, 0.5):
            pass

measure(warm)
before = peak()
measure(weight)
print(weight.nbytes >> 20, (peak() - before) >> 10)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read there")
def test_no_second_copy_of_the_weights_is_in_memory(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", GREEDY, str(tmp_path), "4096"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    size, more = int(said[0]), int(said[1])
    assert size == 64
    assert more < 16, f"{more} MB more for weights of {size} MB"

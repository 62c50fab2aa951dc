"""A step opened on several processes, weights sharded or all on each, leaves the slide of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surefoot.microscope.extras import noise_scales
from surefoot.microscope.slide import Opened
from surefoot.ranks import told
from surefoot.train.step import divisor_of, losses
from tests.distributed import ranks, slides
from tests.distributed.ranks import Case
from tests.distributed.slides import CASES, OF_FOUR

RELATIVE, ABSOLUTE = 1e-9, 1e-12


Slides = tuple[list[Opened], dict[str, Any]]


@pytest.fixture(scope="module")
def known() -> dict[Case, Slides]:
    """What one process leaves, each kind once."""
    return {}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each single value of a slide, and where it is."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{path}/{key}")
        yield f"{path}#", len(value)
    else:
        yield path, value


def may_differ(path: str, same_slots: bool) -> bool:
    """What depends on how the step is cut, and so on who shares a prefix with whom. (The noise scale, which is of
    the micro-batches, has a test of its own.)"""
    return path in ("/batch/slots", "/batch/micro_batches") or (
        path.endswith("/hidden_grad_rms") and not same_slots
    )


def compare(one: Opened, two: Opened) -> None:
    want, got = (
        dict(leaves(json.loads(opened.slide.model_dump_json(exclude={"noise", "seconds"}))))
        for opened in (one, two)
    )
    assert want.keys() == got.keys()
    same_slots = want["/batch/slots"] == got["/batch/slots"]
    for path, value in want.items():
        if may_differ(path, same_slots):
            continue
        # Where the parabola is lowest is a ratio of differences of losses.
        relative = 1e-6 if path == "/mountain/lowest_at" else RELATIVE
        close = pytest.approx(value, relative, ABSOLUTE) if isinstance(value, float) else value
        assert got[path] == close, path
    assert one.arrays.keys() == two.arrays.keys()
    for name, array in one.arrays.items():
        assert array.dtype == two.arrays[name].dtype
        # Hidden states and what flows back are kept in float32.
        tolerance = 1e-6 if array.dtype == np.float32 else 0.0
        np.testing.assert_allclose(two.arrays[name], array, tolerance, tolerance)


def check(case: Case, folder: Path, count: int, alone: Slides) -> None:
    folders = [folder / f"slides-{case.name}.{rank}" for rank in range(count)]
    said = [json.loads((folder / "said.json").read_text()) for folder in folders]
    slides_of_one, own = alone
    for found in (*said, own):
        assert [name for name, same in found["same"].items() if not same] == found["left"] == []
        assert not any(found["gradients"])
        assert found["recorded"] == said[0]["recorded"] or found is own
    for got, want in zip(said[0]["recorded"], own["recorded"], strict=True):
        assert got == {name: pytest.approx(numbers, RELATIVE, ABSOLUTE) for name, numbers in want.items()}
    for number, slide in enumerate(slides_of_one):
        first, *others = (Opened.load(folder / str(number)) for folder in folders)
        bare = [one.slide.model_copy(update={"seconds": {}}) for one in (first, *others)]
        assert all(one == bare[0] for one in bare)
        for other in others:
            assert all(np.array_equal(first.arrays[name], other.arrays[name]) for name in first.arrays)
        compare(slide, first)
        one, two = slide.slide, first.slide
        cut = number == 0 and case.architecture != "gptj"
        assert (two.batch.slots > one.batch.slots) == cut
        assert (one.mountain is not None) == (case in slides.MOUNTAINS)
        assert len(one.chosen) >= 3 and len(one.influence) == len(one.positions)
        assert one.backward.clip_factor < 1
        assert sum(layer.hidden_grad_rms is not None for layer in one.layers) >= 3


def of_one(case: Case, known: dict[Case, Slides], folder: Path) -> Slides:
    case = replace(case, shard="full")
    if case not in known:
        known[case] = slides.run(case, folder)
    return known[case]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_two_processes_leave_the_slide_of_one(
    case: Case, two_processes: Path, known: dict[Case, Slides], tmp_path: Path
) -> None:
    check(case, two_processes, 2, of_one(case, known, tmp_path))


@pytest.mark.parametrize("case", OF_FOUR, ids=[case.name for case in OF_FOUR])
def test_four_processes_leave_the_slide_of_one(
    case: Case, four_processes: Path, known: dict[Case, Slides], tmp_path: Path
) -> None:
    check(case, four_processes, 4, of_one(case, known, tmp_path))


@pytest.mark.parametrize("case", CASES[:2], ids=["sharded", "whole"])
def test_the_noise_scale_is_of_the_micro_batches_of_all_processes(case: Case, two_processes: Path) -> None:
    """Sharded: after each round. Whole on each: of each process's own, whose gradients are added up only once."""
    folders = [two_processes / f"slides-{case.name}.{rank}" for rank in range(2)]
    batches = [json.loads((folder / "said.json").read_text())["batches"] for folder in folders]
    rounds = range(1, len(batches[0]) + 1)
    if case.shard == "full":
        parts = [[*batches[0][:count], *batches[1][:count]] for count in rounds]
    else:
        parts = [of[:count] for of in batches for count in rounds if of[count - 1]] + [
            batches[0] + batches[1]
        ]
    of, norms = slides.examples()[0], []
    with slides.in_double():
        network, _ = ranks.prepared(case)
        for plan in parts:
            rows = {row for batch in plan for row in batch}
            part = [example for example in of if example.row in rows]
            network.model.zero_grad()
            losses(network, part, 1000, backprop=True)
            gradients = [p.grad for p in network.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item() * divisor_of(part) / divisor_of(of)
            norms.append((divisor_of(part), norm**2))
    want = [one.model_dump() for one in noise_scales(norms)]
    got = [one.model_dump() for one in Opened.load(folders[0] / "0").slide.noise]
    assert len(want) == len(got) == len(parts) - 1 > 0
    for one, other in zip(want, got, strict=True):
        assert (one.pop("noise_scale") is None) == (other.pop("noise_scale") is None)
        assert other == pytest.approx(one, rel=1e-9)
    # Of a step that one process has done alone there is no part.
    assert Opened.load(folders[0] / "1").slide.noise == []


def test_alone_a_process_hears_itself() -> None:
    assert told("v̂ = 0.5") == "v̂ = 0.5"

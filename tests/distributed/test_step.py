"""A step on several processes, weights sharded or all on each, is the step on one."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surefoot.data.forest import plant
from surefoot.model.network import look_at
from surefoot.train.distributed import divide
from tests import tiny
from tests.distributed import ranks
from tests.distributed.ranks import CASES, OF_FOUR, Case

Results = tuple[dict[str, Any], dict[str, torch.Tensor]]


@cache
def alone(case: Case) -> Results:
    with case.arithmetic:
        return ranks.train(case)


def compare(case: Case, folder: Path, count: int) -> None:
    """What `count` processes found, with one another and with what one finds."""
    results: list[Results] = []
    for index in range(count):
        place = str(folder / f"{case.name}.{index}")
        results.append((json.loads(Path(place + ".json").read_text()), load_file(place + ".safetensors")))
    said, want = alone(replace(case, shard="full"))
    first, weights = results[0]
    assert first["packed"] == (case.architecture != "gptj")
    for number, one in enumerate(said["steps"]):
        of_each = [found["steps"][number] for found, _ in results]
        own = [step.pop("own") for step in of_each]
        both = of_each[0]
        assert all(other == both for other in of_each)  # to the last bit
        assert len(set(map(len, own))) == 1
        assert sum(map(sum, own)) == len(one["examples"])
        idle = sum(not any(batches) for batches in own)
        if len(one["examples"]) == 1:
            assert idle == count - 1
        else:
            assert idle == 0 or count > 2
        assert both.pop("micro_batches") == sum(bool(batch) for part in own for batch in part)
        assert both == {name: pytest.approx(one[name], rel=case.tolerance) for name in both}
        assert both["clip_factor"] < 1
    for got, wanted in zip(first.get("logits", ()), said.get("logits", ()), strict=True):
        assert got == pytest.approx(wanted, abs=100 * case.tolerance)
    for _, others in results:
        assert weights.keys() == want.keys() == others.keys()
        for name, tensor in want.items():
            assert torch.equal(weights[name], others[name])
            assert (weights[name] - tensor).norm() <= case.tolerance * 100 * tensor.norm(), name


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_two_processes_take_the_step_of_one(case: Case, two_processes: Path) -> None:
    compare(case, two_processes, 2)


@pytest.mark.parametrize("case", OF_FOUR, ids=[case.name for case in OF_FOUR])
def test_four_processes_take_the_step_of_one(case: Case, four_processes: Path) -> None:
    compare(case, four_processes, 4)


def test_a_step_is_divided_by_slots_and_nothing_is_lost() -> None:
    of = tiny.family(5, 40)
    order = {id(example): index for index, example in enumerate(of)}
    network = look_at(tiny.model("llama"), of, None)
    for count in (1, 2, 3, 7):
        shares = divide(network, of, count)
        assert sorted(e.row for share in shares for e in share) == sorted(e.row for e in of)
        places = [[order[id(e)] for e in share] for share in shares]
        assert places == [sorted(share) for share in places]
        sizes = [plant(share, merge=True).slots for share in shares]
        assert max(sizes) <= 1.3 * sum(sizes) / count + 5, sizes

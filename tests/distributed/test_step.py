"""A step on two processes, weights sharded, is the step on one."""

from __future__ import annotations

import json
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
from tests.distributed.ranks import CASES, Case

Results = list[tuple[dict[str, Any], dict[str, torch.Tensor]]]


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_two_processes_take_the_step_of_one(case: Case, two_processes: Path) -> None:
    results: Results = []
    for index in range(2):
        place = str(two_processes / f"{case.name}.{index}")
        results.append((json.loads(Path(place + ".json").read_text()), load_file(place + ".safetensors")))
    (first, weights), (second, others) = results
    with case.arithmetic:
        alone, want = ranks.train(case)
    assert first["packed"] == (case.architecture != "gptj")
    for one, both, other in zip(alone["steps"], first["steps"], second["steps"], strict=True):
        own = both.pop("own"), other.pop("own")
        assert both == other  # to the last bit
        assert len(own[0]) == len(own[1])
        assert sum(map(sum, own)) == len(one["examples"])
        assert ([0] in own) == (len(one["examples"]) == 1)  # a rank without examples
        assert both.pop("micro_batches") == sum(bool(batch) for part in own for batch in part)
        assert both == {name: pytest.approx(one[name], rel=case.tolerance) for name in both}
        assert both["clip_factor"] < 1

    for got, wanted in zip(first.get("logits", ()), alone.get("logits", ()), strict=True):
        assert got == pytest.approx(wanted, abs=100 * case.tolerance)
    assert weights.keys() == want.keys() == others.keys()
    for name, tensor in want.items():
        assert torch.equal(weights[name], others[name])
        assert (weights[name] - tensor).norm() <= case.tolerance * 100 * tensor.norm(), name


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

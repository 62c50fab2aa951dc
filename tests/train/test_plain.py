"""Values that a checkpoint keeps besides weights: JSON says them, and where their tensors belong."""

from __future__ import annotations

import json

import pytest
import torch

from surefoot.errors import UserError
from surefoot.train.plain import pack, unpack


def test_what_is_packed_comes_back_with_its_types() -> None:
    value = {"a": [1, 2.5, None, "x", True], 3: (1, [(), {}]), "inf": float("inf")}
    tensors: dict[str, torch.Tensor] = {}
    assert unpack(json.loads(json.dumps(pack(value, "w", None, tensors))), None, tensors) == value
    assert tensors == {}


def test_a_tensor_comes_back_where_it_was() -> None:
    """Files know no device: what was beside its weight is put there, what was on the host stays there."""
    weight, tensors = torch.zeros(2, device="meta"), {}
    value = [torch.ones(2, device="meta"), torch.tensor(3.0)]
    packed = pack(value, "w/both", weight, tensors)
    assert list(tensors) == ["w/both/0", "w/both/1"]
    loaded = {"w/both/0": torch.ones(2), "w/both/1": torch.tensor(3.0)}  # as a file gives them
    beside, host = unpack(packed, weight, loaded)
    assert (beside.device.type, host.device.type) == ("meta", "cpu")
    (again, _) = unpack(packed, torch.zeros(2), loaded)
    assert again.device.type == "cpu"
    again.zero_()
    assert loaded["w/both/0"].sum() == 2, "a copy"


@pytest.mark.parametrize("value", [{1, 2}, object(), [1, {"a": b"x"}], {(1, object()): 2}])
def test_what_cannot_be_kept_is_refused_by_name(value: object) -> None:
    with pytest.raises(UserError, match=r"'layer\.weight/seen.*which a checkpoint cannot hold"):
        pack(value, "layer.weight/seen", None, {})


def test_callbacks_keep_no_tensors() -> None:
    with pytest.raises(UserError, match="'Mine' is a Tensor"):
        pack(torch.zeros(1), "Mine", None, None)


def test_nothing_else_is_unpacked() -> None:
    with pytest.raises(ValueError, match="no kind of value"):
        unpack({"call": "os.system"}, None, {})

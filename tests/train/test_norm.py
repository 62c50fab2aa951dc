"""The gradient's norm, which decides how much is clipped."""

from __future__ import annotations

import pytest
import torch

from surefoot.train.distributed import total_norm


@pytest.mark.parametrize(
    "types", [("bfloat16",), ("bfloat16", "float32"), ("float32",), ("float64",), ("float16",)]
)
def test_the_norm_is_not_rounded_to_the_gradients_type(types: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    tensors = [
        torch.randn(70, 30, dtype=torch.float64).to(getattr(torch, kind)) for kind in types for _ in range(3)
    ]
    exact = sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5
    assert total_norm(tensors) == pytest.approx(exact, rel=1e-12 if types == ("float64",) else 1e-6)


def test_without_gradients_it_is_zero() -> None:
    assert total_norm([]) == 0

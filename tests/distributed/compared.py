"""Whether two runs came to the same, and how far one has come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.faults.children import clock_free, events, last_step

DIVIDED = ("slots", "micro_batches", "lost_share")
"""What depends on how a step's examples were divided; the share of updates that rounding ate is a count of weights
that a last bit may tip."""


def alike(one: Path, other: Path, tolerance: float) -> None:
    """The same events, numbers to `tolerance`, but for clocks, memory, and `DIVIDED`."""
    first, second = (_plain(events(run)) for run in (one, other))
    assert [(e["type"], e["step"]) for e in first] == [(e["type"], e["step"]) for e in second]
    for a, b in zip(first, second, strict=True):
        _compare(a, b, tolerance, f"{a['type']} of step {a['step']}")


def _plain(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    apart = ("path", "tensor_bytes", *DIVIDED)
    return [{key: record[key] for key in record if key not in apart} for record in clock_free(records)]


def _compare(a: Any, b: Any, tolerance: float, where: str) -> None:
    assert type(a) is type(b), (where, a, b)
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _compare(a[key], b[key], tolerance, f"{where}: {key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            _compare(x, y, tolerance, f"{where}[{number}]")
    elif isinstance(a, float):
        assert abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-9), (where, a, b)
    else:
        assert a == b, where


def same_result(one: Path, other: Path) -> None:
    """The same `model/`, to the bit."""
    files = sorted(path.name for path in (one / "model").glob("*.safetensors"))
    assert files == sorted(path.name for path in (other / "model").glob("*.safetensors"))
    for name in files:
        a, b = load_file(one / "model" / name), load_file(other / "model" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def at_step(folder: Path, step: int) -> bool:
    return last_step(folder) >= step


def resumed(folder: Path) -> list[int]:
    """The steps after which the run went on."""
    return [one["step"] for one in json.loads((folder / "run.json").read_text("utf-8")).get("resumed", [])]

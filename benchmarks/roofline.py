"""The limit: how fast this machine could train on these rows if nothing but the arithmetic took time.

    python -m benchmarks.roofline gsm8k

    seconds of a step = FLOPs / R + bytes / B
    ideal tokens/s    = tokens of the rows / seconds

FLOPs and bytes are counted in `work.py`, whose docstring has the formulas. Measured here:

R   rate of matrix products at the model's real shapes: each matrix of a layer with a step's slots (forward, input
    gradient, weight gradient) and the head with its targets, each product as it stands in training; all their
    FLOPs by all their time, that is, the FLOP-weighted harmonic mean. Median of several passes.
B   bytes/s of an AdamW step (torch's fused one): 28 bytes a weight by its time.

Two limits are printed: every row apart (what a trainer without padding has to compute), and with prefixes that
rows of a step share computed once. The first is the one that throughputs are given as a share of; a trainer
that shares can exceed it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks import workloads
from benchmarks.measures import WARM_UP
from benchmarks.tables import median
from benchmarks.work import Shapes, Tokens, apart, ideal_seconds, shared
from benchmarks.workloads import Prepared

ADAMW_BYTES = 28


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call, to its end on the device."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def product_seconds(
    rows: int,
    out: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    weight_gradient: bool,
    passes: int,
) -> tuple[float, float]:
    """FLOPs and median seconds of y = x Wᵀ, dx = dy W and dW = dyᵀ x for x [rows, width] and W [out, width]."""
    x, weight, dy = (
        torch.randn(shape, device=device, dtype=dtype) for shape in ((rows, width), (out, width), (rows, out))
    )
    products: list[Callable[[], torch.Tensor]] = [lambda: x @ weight.T, lambda: dy @ weight]
    if weight_gradient:
        products.append(lambda: dy.T @ x)
    total = 0.0
    for product in products:
        seconds(product, device)
        total += median([seconds(product, device) for _ in range(passes)])
    return 2.0 * rows * out * width * len(products), total


def rate(
    shapes: Shapes,
    slots: int,
    targets: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    lora: bool = False,
    passes: int = 5,
) -> float:
    """R in FLOP/s for a step of so many slots and targets."""
    work, spent = 0.0, 0.0
    for out, width in dict.fromkeys(shapes.linears):
        count = shapes.linears.count((out, width)) * shapes.layers
        flops, took = product_seconds(slots, out, width, dtype, device, not lora, passes)
        work, spent = work + count * flops, spent + count * took
    flops, took = product_seconds(targets, shapes.vocabulary, shapes.hidden, dtype, device, not lora, passes)
    return (work + flops) / (spent + took)


def bandwidth(weights: int, device: torch.device, passes: int = 5) -> float:
    """B in bytes/s of AdamW over so many fp32 weights."""
    parts = [torch.nn.Parameter(torch.randn(weights // 4, device=device)) for _ in range(4)]
    for part in parts:
        part.grad = torch.randn_like(part)
    optimizer = torch.optim.AdamW(parts, lr=1e-4, fused=True)
    optimizer.step()
    took = median([seconds(optimizer.step, device) for _ in range(passes)])
    return ADAMW_BYTES * 4 * (weights // 4) / took


def limit(
    shapes: Shapes,
    steps: list[list[Tokens]],
    rates: dict[str, float],
    width: float,
    lora_r: int,
    precision: str = "bf16",
) -> dict[str, Any]:
    """The ideal for these steps in tokens/s of the rows, at the rate of `precision`.

    `rates`: FLOP/s by precision; `width` in bytes/s.
    """
    tokens = sum(len(row.input_ids) for step in steps for row in step)
    works = {"apart": [apart(step) for step in steps], "shared": [shared(step) for step in steps]}
    return {
        "flops_per_second": rates,
        "bytes_per_second": width,
        "precision": precision,
        "ideal_tokens_per_second": {
            how: tokens / sum(ideal_seconds(shapes, one, rates[precision], width, lora_r) for one in counted)
            for how, counted in works.items()
        },
        "slots": {how: sum(one.slots for one in counted) for how, counted in works.items()},
        "targets": sum(one.targets for one in works["apart"]),
    }


def measure(prepared: Prepared, precision: str, device: torch.device, passes: int = 5) -> dict[str, Any]:
    """Measure R and B for a workload, and the limit of its timed steps.

    R is measured at the mean slots of a step, at most 2,048 (a micro-batch that stays in a CPU's caches), the head
    at most at 1,024 targets.
    """
    shapes = Shapes.read(prepared.model)
    first = min(WARM_UP, prepared.steps - 1)
    steps = [prepared.of_step(step) for step in range(first, prepared.steps)]
    mean = [apart(step) for step in steps]
    slots = min(2048, sum(one.slots for one in mean) // len(mean))
    targets = min(1024, max(1, sum(one.targets for one in mean) // len(mean)))
    lora_r = prepared.workload.lora_r
    torch.manual_seed(0)
    rates = {
        name: rate(shapes, slots, targets, dtype, device, lora=lora_r > 0, passes=passes)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
    width = bandwidth(min(shapes.weights, 2**27), device, passes)
    return limit(shapes, steps, rates, width, lora_r, precision)


def main() -> None:
    """Prepare the workload if need be, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    chosen = workloads.choose(parser)
    parser.add_argument("--prepared", type=Path, help="folder of a prepared workload, instead of one by name")
    parser.add_argument("--model", default="smollm2-135m", help="short name or folder")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (or SUREFOOT_DATA)")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.prepared or Path(temporary)
        if args.prepared is None:
            workload = chosen(args)
            rows = workloads.read_rows(workload, workloads.data_root(args.data_root))
            workloads.prepare(workload, rows, args.model, args.steps or workload.steps, folder)
        found = measure(workloads.read(folder), args.precision, torch.device(args.device))
    if args.json:
        print(json.dumps(found))
        return
    rates, slots, ideal = found["flops_per_second"], found["slots"], found["ideal_tokens_per_second"]
    print(f"R  {', '.join(f'{name} {rate / 1e9:,.0f} GFLOP/s' for name, rate in rates.items())}")
    print(f"B  {found['bytes_per_second'] / 1e9:,.1f} GB/s")
    print(f"slots {slots['apart']:,}, shared {slots['shared']:,}; targets {found['targets']:,}")
    print(
        f"limit in {args.precision}: {ideal['apart']:,.0f} tokens/s, "
        f"with prefixes shared {ideal['shared']:,.0f}"
    )


if __name__ == "__main__":
    main()

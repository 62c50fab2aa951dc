"""What a checkpoint costs a run: how long training stands still, when it is committed, how long resuming takes.

    python -m benchmarks.saving (WORKLOAD | --data FILE) [--rounds 5]

One process trains. Steps without a save, steps beside a save in the background, and saves that are waited for take
turns on the same rows. Prints a table and writes `results/saving.json`, an entry a workload:

- stall: for how long training stands still at a save in the background, nearly all of it the copy.
- commit: from the beginning of such a save until the checkpoint could not be lost any more.
- beside: what steps take while one is written, of a plain step; and seconds that the whole save costs the run.
- waited: a save that training waits for.
- verify, load: reading the checkpoint whole and comparing its hashes, and putting weights and optimizer back.
- identity: hashing the base model's weights, once at the start of a run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, workloads
from benchmarks.tables import draw

from surefoot.events import CheckpointEvent, Event
from surefoot.runfolder import RunFolder
from surefoot.train import hardware
from surefoot.train.checkpoint import Snapshot, load
from surefoot.train.identity import weights_digest
from surefoot.train.loading import prepare_network
from surefoot.train.manifest import Progress, name_of, verify
from surefoot.train.optim import build
from surefoot.train.saver import Saver
from surefoot.train.selfcheck import quick
from surefoot.train.step import losses, update

RESULTS = Path(__file__).resolve().parent / "results" / "saving.json"


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(
    workload: workloads.Workload, model: str, root: Path, rounds: int, keep: Path | None
) -> dict[str, Any]:
    """Seconds of each, in turns."""
    found: dict[str, list[float]] = {
        name: []
        for name in ("plain", "beside", "stall", "commit", "costs", "waited", "verify", "load", "identity")
    }
    with tempfile.TemporaryDirectory(dir=keep) as temporary:
        args, prepared, examples = workloads.one_step(workload, model, root, Path(temporary) / "run")
        network = quick(prepare_network(prepared, examples, args), examples).network
        optimizers, budget = build(prepared.model, args), hardware.micro_batch_tokens(network.device)
        run = RunFolder(args.output_dir)
        run.checkpoints.mkdir(parents=True)
        run.clear()
        saver = Saver(run, limit=2, memory_left=lambda: hardware.free_bytes(network.device))
        saver.begin(0)

        def step() -> None:
            losses(network, examples, budget, backprop=True, seed=1)
            update(optimizers, args.max_grad_norm)

        def save(number: int, *, wait: bool) -> list[Event]:
            snapshot = Snapshot(prepared.model, optimizers, Progress(step=number), "benchmark")
            return saver.save(snapshot, None, wait=wait)

        for _ in range(2):  # fresh memory and the optimizer's state are no part of it
            step()
        number = 0
        for _ in range(rounds):
            plain = timed(step)
            number += 1
            started = time.perf_counter()
            news = save(number, wait=False)
            beside = []
            while not news:
                beside.append(timed(step))
                news = saver.news()
            whole = time.perf_counter() - started
            (event,) = news
            assert isinstance(event, CheckpointEvent), event
            number += 1
            found["plain"].append(plain)
            found["beside"].append(median(beside))
            found["stall"].append(event.stall_seconds)
            found["commit"].append(event.commit_seconds)
            found["costs"].append(whole - len(beside) * plain)
            found["waited"].append(timed(lambda: save(number, wait=True)))  # noqa: B023
            path = run.checkpoints / name_of(number)
            found["verify"].append(timed(lambda: verify(path)))  # noqa: B023
            found["load"].append(timed(lambda: load(path, prepared.model, optimizers)))  # noqa: B023
            found["identity"].append(timed(lambda: weights_digest(prepared.model)))
        size = verify(run.checkpoints / name_of(number)).bytes
    return {
        "bytes": size,
        "seconds": found,
        **{f"{name}_seconds": median(values) for name, values in found.items()},
        "beside_share": median(b / a for a, b in zip(found["plain"], found["beside"], strict=True)),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    chosen = workloads.choose(parser)
    parser.add_argument("--model", default="smollm2-135m", help="short name or folder")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (or SUREFOOT_DATA)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--disk", type=Path, help="where to save; default: the folder for temporary files")
    args = parser.parse_args()
    if args.steps is not None:
        parser.error("--steps: here it is --rounds")
    workload = chosen(args)
    root = workloads.data_root(args.data_root)
    found = measure(workload, args.model, root, args.rounds, args.disk)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    known[workload.name] = {"machine": machine.describe(), "model": args.model, **found}
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    head = [
        "workload",
        "checkpoint",
        "stall",
        "commit",
        "step beside",
        "costs",
        "waited",
        "verify",
        "load",
        "hash",
    ]
    row = [
        workload.name,
        f"{found['bytes'] / 1e6:,.0f} MB",
        f"{found['stall_seconds'] * 1000:,.0f} ms",
        f"{found['commit_seconds']:.1f} s",
        f"{found['beside_share']:.2f} steps",
        f"{found['costs_seconds']:.1f} s",
        *(f"{found[f'{name}_seconds']:.2f} s" for name in ("waited", "verify", "load", "identity")),
    ]
    print(draw(head, [row]))


if __name__ == "__main__":
    main()

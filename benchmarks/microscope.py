"""What the microscope costs a step: what every step writes, what every N-th records, an opened step.

    python -m benchmarks.microscope (WORKLOAD | --data FILE) [--rounds 5]

One process trains; plain, recorded and opened steps take turns, on the same rows, so that a machine's moods fall on
all of them. Prints a table and writes `results/microscope.json`, an entry a workload:

- plain: a step without anything (`tensors_every=0`).
- watching: what asking "is this step to be opened?" and writing its record takes, besides.
- recorded: `tensors` of every tensor (`tensors_every`, 10 by default): besides a plain step, and spread over ten.
- opened: a slide without a mountain, and with the cut of 9 forwards.
- prompts: one look at a watched prompt, the right answer and three others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, workloads
from benchmarks.tables import draw

from surefoot.config import SFTConfig, Watch
from surefoot.data.rows import Example
from surefoot.events import StepEvent
from surefoot.microscope.run import Microscope
from surefoot.runfolder import RunFolder
from surefoot.train import hardware
from surefoot.train.evaluate import probabilities, tokenise_watch
from surefoot.train.loading import Prepared, prepare_network
from surefoot.train.optim import Optimizers, build
from surefoot.train.selfcheck import quick
from surefoot.train.setup import make_renderer
from surefoot.train.step import Change, Losses, losses, update

EVERY = 10
PROMPT = Watch(
    prompt="What is the capital of California?",
    completion="Sacramento",
    alternatives=["San Francisco", "Los Angeles", "Boston"],
)
RESULTS = Path(__file__).resolve().parent / "results" / "microscope.json"
WAYS = ("plain", "recorded", "opened", "opened with a cut")


def step_event(found: Losses, change: Change, seconds: float) -> StepEvent:
    """The record that every step writes."""
    return StepEvent(
        step=1,
        epoch=0.0,
        loss=found.loss,
        learning_rate=change.learning_rate,
        grad_norm=change.grad_norm,
        clip_factor=change.clip_factor,
        token_accuracy=found.token_accuracy,
        entropy=found.entropy,
        tokens=found.tokens,
        supervised=found.supervised,
        num_tokens=found.tokens,
        slots=found.slots,
        micro_batches=found.micro_batches,
        step_seconds=seconds,
        tokens_per_second=found.tokens / seconds,
        memory_bytes=hardware.peak_bytes(hardware.device(True)),
        examples=[(e.where, e.loss, e.tokens) for e in found.examples],
    )


class Bench:
    """A prepared run whose steps can be taken one way or another."""

    def __init__(self, prepared: Prepared, examples: list[Example], args: SFTConfig, folder: Path) -> None:
        self.args, self.examples, self.folder = args, examples, folder
        self.network = quick(prepare_network(prepared, examples, args), examples).network
        self.optimizers: Optimizers = build(prepared.model, args)
        self.tokenizer = prepared.tokenizer
        self.budget = hardware.micro_batch_tokens(self.network.device)
        self.run = RunFolder(folder)
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.run.clear()

    def step(self, way: str) -> tuple[float, float]:
        """Take one; returns its seconds, and those that watching and writing took of a plain one."""
        rows = self.args.step_rows
        examples = self.examples[:rows]
        started = time.perf_counter()
        if way == "plain":
            found = losses(self.network, examples, self.budget, backprop=True, seed=1)
            change = update(self.optimizers, self.args.max_grad_norm)
            seconds = time.perf_counter() - started
            watching = time.perf_counter()
            scope = self._microscope(way)
            scope._asked(7)
            scope.watchman.of_losses(found)
            self.run.append(step_event(found, change, seconds))
            return seconds, time.perf_counter() - watching
        scope = self._microscope(way)
        scope.losses(examples, 5, self.budget, 1)
        scope.update(5)
        scope.tell(self.run.append)
        return time.perf_counter() - started, 0.0

    def _microscope(self, way: str) -> Microscope:
        given: dict[str, Any] = {
            "plain": {"tensors_every": 0},
            "recorded": {"tensors_every": 5},
            "opened": {"tensors_every": 0, "slides": [5], "slide_mountain": "none"},
            "opened with a cut": {"tensors_every": 0, "slides": [5], "slide_mountain": "cut"},
        }[way]
        return Microscope(
            run=self.run,
            args=self.args.model_copy(update=given),
            network=self.network,
            tokenizer=self.tokenizer,
            optimizers=self.optimizers,
            model_name="benchmark",
        )


def measure(workload: workloads.Workload, model: str, root: Path, rounds: int) -> dict[str, Any]:
    """Seconds of each way, in turns."""
    with tempfile.TemporaryDirectory() as temporary:
        args, prepared, examples = workloads.one_step(workload, model, root, Path(temporary) / "run")
        bench = Bench(prepared, examples, args, Path(temporary) / "run")
        for way in ("plain", "recorded", "plain"):  # fresh memory and the optimizer's state are no part of it
            bench.step(way)
        watched = [tokenise_watch(PROMPT, make_renderer(prepared.model, prepared.tokenizer, args))]
        seconds: dict[str, list[float]] = {way: [] for way in [*WAYS, "prompts"]}
        watching = []
        for _ in range(rounds):
            for way in WAYS:
                took, records = bench.step(way)
                seconds[way].append(took)
                if way == "plain":
                    watching.append(records)
            started = time.perf_counter()
            probabilities(bench.network, watched, bench.budget)
            seconds["prompts"].append(time.perf_counter() - started)
    plain = median(seconds["plain"])
    recorded = median(b - a for a, b in zip(seconds["plain"], seconds["recorded"], strict=True))
    return {
        "seconds": seconds,
        "plain_seconds": plain,
        "watching_share": median(watching) / plain,
        "recorded_seconds": recorded,
        "recorded_share_of_ten": recorded / (EVERY * plain),
        "opened_steps": median(seconds["opened"]) / plain,
        "prompts_steps": median(seconds["prompts"]) / plain,
        "opened_with_a_cut_steps": median(seconds["opened with a cut"]) / plain,
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    chosen = workloads.choose(parser)
    parser.add_argument("--model", default="smollm2-135m", help="short name or folder")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (or SUREFOOT_DATA)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.steps is not None:
        parser.error("--steps: here it is --rounds")
    workload = chosen(args)
    found = measure(workload, args.model, workloads.data_root(args.data_root), args.rounds)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    known[workload.name] = {"machine": machine.describe(), "model": args.model, **found}
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    head = ["workload", "plain step", "watching", "recorded, of ten steps", "prompts", "opened", "with a cut"]
    row = [
        workload.name,
        f"{found['plain_seconds']:.2f} s",
        f"{found['watching_share']:.2%}",
        f"{found['recorded_share_of_ten']:.2%}",
        f"{found['prompts_steps']:.2f} steps",
        f"{found['opened_steps']:.1f} steps",
        f"{found['opened_with_a_cut_steps']:.1f} steps",
    ]
    print(draw(head, [row]))


if __name__ == "__main__":
    main()

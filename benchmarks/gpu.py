"""surefoot and TRL on a GPU: models of 0.5 to 8 billion weights (random ones, real shapes), synthetic rows.

    python -m benchmarks.gpu                            every model, workload and mode that fits the card
    python -m benchmarks.gpu --models 1.7b --workloads prefix --modes lora
    python -m benchmarks.gpu --toy                      all of it at toy size on the CPU, to try it out

Workloads, as token ids: `short` (GSM8K-like lengths), `long` (prompts of thousands of tokens, short answers) and
`prefix` (one long beginning in every row, answers of a few tokens). Modes: `full` (fp32 weights and optimizer
state, bf16 products) and `lora` (r 16 on all linear layers, frozen bf16 weights).

TRL runs with its defaults, and with the first of these that works: flash attention without padding (where
flash_attn is installed; else sdpa), its Liger kernels (where liger_kernel is), no activation checkpointing; then
smaller micro-batches; then with checkpointing. Both sides take turns, each run a process of its own.

MFU is the model's FLOPs of the rows apart (`work.py`) by the time and the card's dense bf16 peak; a trainer that
computes shared prefixes once may exceed what it really computes. Peak memory is what torch reserved on the card.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import contenders, gpu_models, machine, measures, run, workloads
from benchmarks.contenders import CONTENDERS, ROOT, Contender, FailedError
from benchmarks.tables import draw, span
from benchmarks.work import NOT_LEARNED, Shapes, Tokens, apart, flops
from benchmarks.workloads import Prepared, Workload

from surefoot import cards

RANK = 16


@dataclass(frozen=True)
class Lengths:
    """Synthetic rows."""

    prefix: int
    """Tokens that all rows begin with."""
    prompt: tuple[int, int]
    completion: tuple[int, int]
    rows_per_step: int

    def scaled(self, by: int) -> Lengths:
        """So many times shorter, and fewer a step."""
        low, high = self.prompt
        first, last = self.completion
        return Lengths(
            self.prefix // by,
            (max(2, low // by), max(3, high // by)),
            (max(2, first // by), max(3, last // by)),
            max(4, self.rows_per_step // by),
        )


LENGTHS = {
    "short": Lengths(0, (40, 160), (60, 220), 64),
    "long": Lengths(0, (2000, 6000), (50, 200), 8),
    "prefix": Lengths(2000, (20, 80), (2, 10), 64),
}


def rows(lengths: Lengths, count: int, vocabulary: int, seed: int = 0) -> list[Tokens]:
    """So many rows of random tokens, the same for the same seed; each ends as a turn does."""
    draw_from = random.Random(seed)

    def tokens(number: int) -> list[int]:
        return [draw_from.randrange(3, vocabulary) for _ in range(number)]

    prefix, made = tokens(lengths.prefix), []
    for _ in range(count):
        prompt = prefix + tokens(draw_from.randint(*lengths.prompt))
        completion = [*tokens(draw_from.randint(*lengths.completion) - 1), gpu_models.END]
        made.append(Tokens(prompt + completion, [NOT_LEARNED] * len(prompt) + completion))
    return made


@dataclass(frozen=True)
class Card:
    """The device, as the driver names it."""

    name: str
    memory: float
    """Bytes."""
    peak: float | None
    """Dense bf16 FLOP/s, if known."""


def card(toy: bool) -> Card:
    """The first GPU. Raises SystemExit when there is none."""
    if toy:
        return Card("CPU, toy size", float(machine.available_bytes() or 0), None)
    ask = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise SystemExit("no GPU here (nvidia-smi finds none); --toy tries this out on the CPU") from None
    name, _, memory = said.rpartition(",")
    known = cards.card(name)
    return Card(name.strip(), float(memory) * 2**20, known.flops if known else None)


def needed(shapes: Shapes, lora_r: int) -> float:
    """Bytes of weights, gradients and optimizer state: a run cannot do with less, and needs activations too."""
    if lora_r:
        return 2.0 * shapes.weights + 16.0 * shapes.adapter_weights(lora_r)
    return 16.0 * shapes.weights


def trl_ways(python: Path, rows_per_step: int) -> list[dict[str, Any]]:
    """TRL's fast settings, fastest first, by what is installed beside it."""
    ask = (
        "import importlib.util as u; "
        "print(*(int(u.find_spec(n) is not None) for n in ('flash_attn', 'liger_kernel')))"
    )
    said = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True)
    flash, liger = (word == "1" for word in said.stdout.split())
    base = {
        "attention": "flash_attention_2" if flash else "sdpa",
        "padding_free": flash,
        **({"liger": True} if liger else {}),
    }
    sizes = [size for size in (64, 32, 16, 8, 4, 2, 1) if rows_per_step % size == 0]
    plain = [{**base, "micro_batch": size, "gradient_checkpointing": False} for size in sizes]
    saving = [{**base, "micro_batch": size, "gradient_checkpointing": True} for size in sizes[-4:]]
    return plain + saving


def first_that_works(
    one: Contender,
    ways: Sequence[dict[str, Any]],
    prepared: Prepared,
    environments: Path,
    folder: Path,
    device: str,
) -> Contender | None:
    """The contender with the first settings that get through two steps."""
    for index, settings in enumerate(ways):
        tried = replace(one, settings=settings)
        try:
            place = folder / f"try-{index}"
            contenders.run(tried, prepared, environments, place, stop_after=2, device=device)
        except FailedError as failure:
            print(f"{one.name} {settings}: {str(failure).strip().splitlines()[-1]}", file=sys.stderr)
            continue
        return tried
    return None


def measure(
    prepared: Prepared, args: argparse.Namespace, folder: Path, device: str, place: Card
) -> dict[str, Any] | None:
    """One model, mode and workload: run in turns, print the table, return what to store."""
    environments = args.environments.absolute()
    ours, defaults = CONTENDERS["surefoot"], CONTENDERS["trl-defaults"]
    who = [ours]
    reason = contenders.missing(environments, defaults, lora=False)
    if reason:
        print(f"trl: {reason}", file=sys.stderr)
    else:
        ways = trl_ways(contenders.interpreter(environments, defaults), prepared.workload.rows_per_step)
        fast = replace(CONTENDERS["trl-best"], name="trl-fast")
        found = first_that_works(fast, ways, prepared, environments, folder, device)
        who += [defaults, *([found] if found else [])]
    done = run.rounds(who, prepared, environments, folder, repeats=args.repeats, device=device)
    if not any(done):
        return None
    summaries = measures.summarise(done, prepared.tokens_of_steps)
    shapes, workload = Shapes.read(prepared.model), prepared.workload
    work = flops(shapes, apart(prepared.rows), workload.lora_r) / sum(prepared.tokens_of_steps)
    lines, stored = [], {}
    for one in summaries:
        mfu = one.steady * work / place.peak if place.peak else None
        differs = one.largest_loss_difference
        lines.append(
            [
                one.contender,
                span([speed.steady for speed in one.speeds]),
                span(one.ratios, 2) + " x" if one.ratios else "-",
                f"{mfu:.1%}" if mfu is not None else "-",
                f"{one.peak_bytes / 1e9:.2f}",
                "-" if differs is None else f"{differs:.3f} %",
            ]
        )
        stored[one.contender] = {**measures.to_dict(one), "mfu": mfu}
    head = ["", "tokens/s", "surefoot is", "MFU", "peak GB", "loss differs"]
    print(f"\n{workload.name} on {place.name}\n{draw(head, lines)}\n", flush=True)
    settings = {one.name: one.settings for one in who}
    versions = {name: one.versions for name, one in done[0].items()}
    return {"summary": stored, "settings": settings, "versions": versions, "flops_a_token": work}


def store(out: Path, place: Card, steps: int, found: dict[str, Any]) -> None:
    """What has been found so far: a card is lent by the hour, and a later combination may fail."""
    about = {"date": run.now(), "device": place.name, "machine": machine.describe(), "steps": steps}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "found": found}, indent=1) + "\n")


def main() -> int:
    """Every combination that fits, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", choices=[*gpu_models.CONFIGS], default=["0.5b", "1.7b", "8b"])
    parser.add_argument("--workloads", nargs="+", choices=[*LENGTHS], default=[*LENGTHS])
    parser.add_argument("--modes", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=run.ENVIRONMENTS)
    parser.add_argument(
        "--folder", type=Path, help="keep the models here (16 GB for 8b) instead of throwing them away"
    )
    parser.add_argument("--out", type=Path, help="default: results/gpu.json; of --toy, nothing is kept")
    parser.add_argument("--toy", action="store_true", help="at toy size on the CPU")
    args = parser.parse_args()
    if args.steps <= measures.WARM_UP:
        parser.error(f"speed is measured after {measures.WARM_UP} steps: run more")
    place, device = card(args.toy), "cpu" if args.toy else "cuda"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-") as temporary:
        out = args.out or (Path(temporary) if args.toy else run.RESULTS) / "gpu.json"
        base = args.folder or Path(temporary)
        for name in ["toy"] if args.toy else args.models:
            shapes = gpu_models.shapes(name)
            folder = base / name
            if not folder.exists():
                command = [sys.executable, "-m", "benchmarks.gpu_models", name, str(folder.absolute())]
                subprocess.run(command, cwd=ROOT, check=True)
            for mode in args.modes:
                lora_r = RANK if mode == "lora" else 0
                least = needed(shapes, lora_r)
                if least > 0.9 * place.memory:
                    print(f"{name} {mode}: {least / 1e9:.0f} GB before any activation, {place.name} has less")
                    continue
                for kind in args.workloads:
                    lengths = LENGTHS[kind].scaled(16) if args.toy else LENGTHS[kind]
                    title = f"{name} {mode} {kind}"
                    work = Path(temporary) / title.replace(" ", "-")
                    workload = Workload(title, "", lengths.rows_per_step, args.steps, lora_r=lora_r)
                    made = rows(lengths, args.steps * lengths.rows_per_step, shapes.vocabulary)
                    given = [
                        {
                            "input_ids": row.input_ids,
                            "completion_mask": [int(label != NOT_LEARNED) for label in row.labels],
                        }
                        for row in made
                    ]
                    workloads.write(workload, given, made, folder.absolute(), work / "rows")
                    result = measure(workloads.read(work / "rows"), args, work, device, place)
                    if result is not None:
                        found[title] = result
                        store(out, place, args.steps, found)
    print(f"{out} written" if found else "nothing could be measured")
    return 0 if found else 1


if __name__ == "__main__":
    contenders.end_on_sigterm()
    sys.exit(main())

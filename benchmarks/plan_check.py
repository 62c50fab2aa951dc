"""Memory that `surefoot plan` says beforehand, and memory that the training then takes.

    python -m benchmarks.plan_check                         one process, CPU
    python -m benchmarks.plan_check --nproc 2 --shard full  as `surefoot train --nproc 2 --shard full`

Rows of random words in a few lengths; full fine-tuning and LoRA, short and long rows, with and without recomputing.
Each case is planned (`--gpu cpu --json`) and trained for a few steps by the same recipe, in processes of their own.
Compared are a rank's bytes on paper and `peak_memory_bytes` of the run's last event: the most the process has held.
Prints a table and adds to `results/plan.json`, an entry for each number of processes and way of sharding.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from benchmarks import machine, run
from benchmarks.tables import draw

RESULTS = Path(__file__).resolve().parent / "results" / "plan.json"
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "two",
    "red",
    "birds",
    "that",
    "sang",
    "in",
    "an",
    "old",
    "tree",
    "by",
    "the",
    "river",
]

ROWS = 4
"""Of a step, for each process."""


@dataclass(frozen=True)
class Case:
    """A recipe whose memory is compared."""

    name: str
    lora: bool
    words: tuple[int, int]
    """Fewest and most of a completion; a word is about a token."""
    micro_batch_tokens: int
    recompute: bool = False


CASES = (
    Case("full, short rows", False, (60, 220), 1024),
    Case("full, long rows", False, (400, 900), 2048),
    Case("full, long rows, recomputing", False, (400, 900), 2048, True),
    Case("LoRA, short rows", True, (60, 220), 1024),
    Case("LoRA, long rows", True, (400, 900), 2048),
)


def rows(case: Case, count: int) -> list[dict[str, str]]:
    """The same for the same case."""
    chosen = random.Random(case.name)

    def text(words: int) -> str:
        return " ".join(chosen.choice(WORDS) for _ in range(words))

    return [{"prompt": text(12), "completion": text(chosen.randint(*case.words))} for _ in range(count)]


def measure(case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Plan, train, compare."""
    folder.mkdir(parents=True)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(case, ROWS * args.steps * args.nproc)))
    recipe = {
        "model_name_or_path": args.model,
        "dataset_name": str(data),
        "output_dir": str(folder / "run"),
        "max_steps": args.steps,
        "per_device_train_batch_size": ROWS,
        "micro_batch_tokens": case.micro_batch_tokens,
        "gradient_checkpointing": case.recompute,
        "use_peft": case.lora,
        "save_strategy": "no",
        "use_cpu": True,
        "learning_rate": 1e-5,
        **({"shard": args.shard} if args.nproc > 1 else {}),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    surefoot = [sys.executable, "-m", "surefoot"]
    plan = [*surefoot, "plan", str(path), "--gpu", "cpu", "--gpus", str(args.nproc), "--json"]
    done = subprocess.run(plan, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(f"{case.name}: surefoot plan ended with {done.returncode}")
    said = json.loads(done.stdout)
    ranks = ["--nproc", str(args.nproc)] if args.nproc > 1 else []
    subprocess.run([*surefoot, "train", str(path), *ranks], check=True, stdout=sys.stderr)
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    end = next(event for event in map(json.loads, reversed(lines)) if event["type"] == "end")
    memory = said["ways"][said["own"]]["memory"]
    measured, planner = end["peak_memory_bytes"], end["predicted_peak_memory_bytes"]
    return {
        "on_paper": memory,
        "measured_bytes": measured,
        "planner_bytes": planner,
        "off": memory["total"] / measured - 1,
        "planner_off": planner / measured - 1,
    }


def main() -> None:
    """Every case, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="short name or folder")
    parser.add_argument("--steps", type=int, default=2, help="the second is the first with optimizer state")
    parser.add_argument("--nproc", type=int, default=1, help="processes of this machine")
    parser.add_argument("--shard", choices=["none", "full"], default="none")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="plan-") as temporary:
        for number, case in enumerate(CASES):
            if args.only is None or args.only in case.name:
                found[case.name] = measure(case, args, Path(temporary) / str(number))
                print(f"{case.name}: {found[case.name]['off']:+.1%}", file=sys.stderr)
    lines = [
        [
            name,
            f"{one['on_paper']['total'] / 1e9:.2f}",
            f"{one['planner_bytes'] / 1e9:.2f}",
            f"{one['measured_bytes'] / 1e9:.2f}",
            f"{one['off']:+.1%}",
            f"{one['planner_off']:+.1%}",
        ]
        for name, one in found.items()
    ]
    print(draw(["GB", "on paper", "planner", "measured", "paper off", "planner off"], lines))
    kind = f"{args.nproc} processes, shard={args.shard}" if args.nproc > 1 else "1 process"
    known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    about = {"date": run.now(), "machine": machine.describe(), "model": args.model, "steps": args.steps}
    known[kind] = {**about, "cases": {**known.get(kind, {}).get("cases", {}), **found}}
    args.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(f"{args.out} written")


if __name__ == "__main__":
    main()

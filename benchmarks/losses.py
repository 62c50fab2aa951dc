"""The loss curve of surefoot against TRL's: same rows, same order, same tokens, same precision, step by step.

    python -m benchmarks.losses

Every run has a process of its own, one after the other, as in `run.py`:

1. surefoot trains in bf16 (fp32 weights, bf16 products) on the rows as they are (GSM8K unless named otherwise).
2. TRL tokenises and trains on the same rows as conversational `prompt` and `completion`: its default. Its chat
   template writes what it writes, and all of it after the prompt is learned. Tokens that only one of the two
   learns are printed; the first steps of this curve are reported, not judged. Rows of question and answer only.
3. TRL trains on surefoot's token ids: like with like. This curve is judged.
4. Runs 1 and 3 once more in fp32, on fewer steps.

Prints the tables, writes `results/losses_WORKLOAD.json`, and exits with status 1 if the loss of any judged step
differs by more than `--tolerance` percent, or if the two did not train on the same tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import contenders, machine, run, workloads
from benchmarks.contenders import CONTENDERS, Outcome
from benchmarks.measures import differences
from benchmarks.tables import draw
from benchmarks.work import NOT_LEARNED, Tokens
from benchmarks.workloads import Prepared


def as_messages(row: dict[str, str]) -> dict[str, Any]:
    """A row as TRL's conversational prompt and completion."""
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


def token_differences(
    ours: list[Tokens], theirs: list[Tokens], text: Callable[[list[int]], str]
) -> dict[str, int]:
    """How rows differ between the trainers, in words, and how many do; empty when none does. `text` decodes."""
    found: Counter[str] = Counter()
    if len(ours) != len(theirs):
        found[f"surefoot has {len(ours)} rows, TRL {len(theirs)}"] += 1
    for mine, other in zip(ours, theirs, strict=False):
        if mine == other:
            continue
        length = len(mine.input_ids)
        if (other.input_ids[:length], other.labels[:length]) == (mine.input_ids, mine.labels):
            more = text(other.input_ids[length:])
            learned = sum(label != NOT_LEARNED for label in other.labels[length:])
            found[f"TRL has {more!r} more at the end, {learned} of it learned"] += 1
        elif mine.input_ids == other.input_ids:
            found["the same tokens, but not the same ones learned"] += 1
        else:
            found["other tokens"] += 1
    return dict(found)


def compare(ours: Outcome, theirs: Outcome) -> dict[str, Any]:
    """Both curves side by side as far as the peer's goes, and the largest differences in percent."""
    apart = differences(ours.loss, theirs.loss)
    rates = zip(ours.learning_rate, theirs.learning_rate, strict=False)
    steps = len(theirs.loss)
    return {
        "surefoot": {"loss": ours.loss[:steps], "grad_norm": ours.grad_norm[:steps]},
        "trl": {"loss": theirs.loss, "grad_norm": theirs.grad_norm},
        "loss_difference_percent": apart,
        "largest_loss_difference_percent": max(map(abs, apart)),
        "largest_grad_norm_difference_percent": max(map(abs, differences(ours.grad_norm, theirs.grad_norm))),
        "same_learning_rates": all(abs(a - b) <= 1e-12 for a, b in rates),
        "remarks": [*ours.remarks, *theirs.remarks],
        "versions": {"surefoot": ours.versions, "trl": theirs.versions},
    }


def show(title: str, found: dict[str, Any]) -> None:
    """Print one comparison as a table."""
    ours, theirs = found["surefoot"], found["trl"]
    columns = (ours["loss"], theirs["loss"], found["loss_difference_percent"])
    norms = (ours["grad_norm"], theirs["grad_norm"])
    rows = [
        [str(step + 1), f"{a:.6f}", f"{b:.6f}", f"{apart:+.4f} %", f"{norm:.4f}", f"{other:.4f}"]
        for step, (a, b, apart, norm, other) in enumerate(zip(*columns, *norms, strict=True))
    ]
    head = ["step", "loss: surefoot", "TRL", "difference", "gradient norm: surefoot", "TRL"]
    print(f"\n{title}\n{draw(head, rows)}")
    print(
        f"largest difference: loss {found['largest_loss_difference_percent']:.6f} %, "
        f"gradient norm {found['largest_grad_norm_difference_percent']:.5f} %; learning rates "
        f"{'the same' if found['same_learning_rates'] else 'DIFFER'}",
        flush=True,
    )


PADDED = replace(CONTENDERS["trl-best"], settings={"micro_batch": 8, "gradient_checkpointing": False})
"""TRL as it pads by default, but without recomputing activations, which changes no loss and costs time."""


def by_default(
    prepared: Prepared, ours: Outcome, environments: Path, folder: Path, steps: int
) -> dict[str, Any]:
    """TRL with its own rendering of the rows: which tokens differ, and the first steps' losses."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared.model / "tokenizer.json"))
    rows = [as_messages(json.loads(line)) for line in prepared.rows_file.read_text().splitlines()]
    theirs = contenders.run(PADDED, prepared, environments, folder, stop_after=steps, rows=rows)
    found = token_differences(
        prepared.rows,
        contenders.trained_on(folder),
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    )
    for words, count in found.items():
        print(f"by default, {count} of {len(rows)} rows differ: {words}")
    if not found:
        print("by default both learn the same tokens")
    return {"token_differences": found, **compare(ours, theirs)}


def arguments() -> tuple[argparse.Namespace, workloads.Workload]:
    """The command line, and the workload it names."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=about)
    chosen = workloads.choose(parser)
    parser.add_argument("--default-steps", type=int, default=3, help="steps of TRL with its own rendering")
    parser.add_argument("--fp32-steps", type=int, default=6, help="steps in fp32; 0 leaves them out")
    parser.add_argument("--tolerance", type=float, default=1.0, help="percent of a step's loss")
    parser.add_argument("--model", default="smollm2-135m", help="short name or folder")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (or SUREFOOT_DATA)")
    parser.add_argument(
        "--environments", type=Path, default=run.ENVIRONMENTS, help="folder of the peers' own"
    )
    parser.add_argument("--out", type=Path, help="JSON of the result (default: results/losses_WORKLOAD.json)")
    args = parser.parse_args()
    if args.workload is None and args.data is None:
        args.workload = "gsm8k"
    return args, chosen(args)


def main() -> int:
    """Run everything, print, write, and return the exit status."""
    args, workload = arguments()
    environments = args.environments.absolute()
    reason = contenders.missing(environments, CONTENDERS["trl-best"], workload.lora_r > 0)
    if reason:
        raise SystemExit(f"trl: {reason}")
    steps = args.steps or workload.steps
    result: dict[str, Any] = {"date": run.now(), "machine": machine.describe(), "workload": workload.name}
    judged: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="losses-") as temporary:
        work = Path(temporary)
        for precision, count in (("bf16", steps), ("fp32", args.fp32_steps)):
            if not count:
                continue
            prepared = run.ready(args, workload, work / f"rows-{precision}", count)
            ours = contenders.run(
                CONTENDERS["surefoot"],
                prepared,
                environments,
                work / f"ours-{precision}",
                precision=precision,
            )
            first = json.loads(prepared.rows_file.read_text().partition("\n")[0])
            if precision == "bf16" and {"question", "answer"} <= set(first) and args.default_steps:
                few = min(args.default_steps, count)
                found = by_default(prepared, ours, environments, work / "default", few)
                result["trl_by_default"] = found
                show("bf16, TRL with its own rendering (not judged)", found)
            theirs = contenders.run(
                PADDED, prepared, environments, work / f"theirs-{precision}", precision=precision
            )
            judged[precision] = compare(ours, theirs)
            show(f"{precision}, the same tokens", judged[precision])

    worst = max(found["largest_loss_difference_percent"] for found in judged.values())
    remarks = [remark for found in judged.values() for remark in found["remarks"]]
    passed = not remarks and worst <= args.tolerance
    result |= {
        "same_tokens": judged,
        "largest_loss_difference_percent": worst,
        "tolerance_percent": args.tolerance,
        "passed": passed,
    }
    out = args.out or run.RESULTS / f"losses_{workload.name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{out} written")
    for remark in remarks:
        print(f"FAILED: {remark}")
    if worst > args.tolerance:
        print(f"FAILED: a step's loss differs by {worst:.3f} %, more than {args.tolerance} %")
    if passed:
        print(f"passed: no step's loss differs by more than {worst:.4f} %")
    return 0 if passed else 1


if __name__ == "__main__":
    contenders.end_on_sigterm()
    sys.exit(main())

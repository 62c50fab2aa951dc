"""The loss curve of surefoot against TRL's: same rows, same order, same tokens, same precision, step by step.

    python benchmarks/losses.py --data gsm8k/train.jsonl --peer-python TRL_ENVIRONMENT/bin/python

`--data` is a JSONL file with the columns question and answer; `--peer-python` the interpreter of an
environment with TRL (trl, torch, datasets). Every run has a process of its own, one after the other:

1. surefoot trains in bf16 (fp32 weights, bf16 products) on the rows as they are.
2. TRL tokenises and trains on the same rows as conversational `prompt` and `completion`: its default. Its chat
   template writes what it writes, and all of it after the prompt is learned. Tokens that only one of the two
   learns are printed; the first steps of this curve are reported, not judged.
3. TRL trains on surefoot's token ids (`input_ids`, `completion_mask`): like with like. This curve is judged.
4. Runs 1 and 3 once more in fp32, on fewer steps.

Both: all weights, AdamW (fused), peak learning rate 1e-4, linear schedule without warm-up, no weight decay,
gradient clipped to norm 1, seed 42, rows not shuffled, CPU, and an allocator that keeps its memory: surefoot
asks for it itself (`mallopt`), TRL gets it through the environment. TRL's activation checkpointing is off; it
pads the batch of 8 rows, as it does by default. So the ratio of their speeds is that of these settings, not of
TRL's best; and the runs follow one another, so on a shared machine it is rough.

Prints the tables, writes `results/losses_gsm8k.json`, and exits with status 1 if the loss of any judged step
differs by more than `--tolerance` percent, or if the two did not train on the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

import surefoot
from surefoot.config import SFTConfig
from surefoot.model.load import load_tokenizer, locate
from surefoot.train.trainer import SFTTrainer

HERE = Path(__file__).resolve().parent
NOT_LEARNED = -100
"""Label of a token without a loss, as in torch."""
KEEP_HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
"""For glibc: what surefoot asks for at run time."""
FIRST_TIMED = 3
"""Speed is measured from this step on: the first two touch fresh memory."""


@dataclass(frozen=True)
class Recipe:
    """What both trainers are told."""

    model: str
    precision: str
    steps: int
    rows_per_step: int = 8
    learning_rate: float = 1e-4
    seed: int = 42


@dataclass(frozen=True)
class Tokens:
    """A row as a trainer sees it."""

    input_ids: list[int]
    labels: list[int]
    """The token ids that are learned, NOT_LEARNED elsewhere."""


@dataclass(frozen=True)
class Curve:
    """What a trainer did."""

    loss: list[float]
    grad_norm: list[float]
    """Before clipping."""
    learning_rate: list[float]
    ended: list[float]
    """When each step ended, in seconds since 1970."""
    rows: list[Tokens]
    threads: int
    versions: dict[str, str]

    def seconds(self) -> float:
        """Duration of the timed steps."""
        return self.ended[-1] - self.ended[FIRST_TIMED - 2]


def train_surefoot(recipe: Recipe, rows: list[dict[str, str]], folder: Path) -> Curve:
    """Train on the rows as they are, and read the run's events."""
    disable_progress_bar()
    trainer = SFTTrainer(
        model=recipe.model,
        args=SFTConfig(
            output_dir=str(folder),
            precision=recipe.precision,  # type: ignore[arg-type]
            per_device_train_batch_size=recipe.rows_per_step,
            max_steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="linear",
            weight_decay=0.0,
            max_grad_norm=1.0,
            seed=recipe.seed,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
        ),
        train_dataset=rows,
    )
    assert trainer.train_data is not None
    tokens = []
    for example in trainer.train_data.examples:
        prompt, completion = example.prompt_ids.tolist(), example.completion_ids.tolist()
        tokens.append(Tokens(prompt + completion, [NOT_LEARNED] * len(prompt) + completion))
    trainer.train()
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    steps = [event for event in events if event["type"] == "step"]
    return Curve(
        loss=[step["loss"] for step in steps],
        grad_norm=[step["grad_norm"] for step in steps],
        learning_rate=[step["learning_rate"] for step in steps],
        ended=[step["time"] for step in steps],
        rows=tokens,
        threads=torch.get_num_threads(),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "surefoot": surefoot.__version__,
        },
    )


def train_trl(
    peer: Path, recipe: Recipe, rows: list[dict[str, Any]], folder: Path, stop_after: int | None = None
) -> Curve:
    """Train in the peer's interpreter, on the recipe's schedule, for `stop_after` steps or to its end.

    Raises RuntimeError with the end of the peer's output when it fails.
    """
    folder.mkdir()
    spec, out = folder / "spec.json", folder / "out.json"
    more = {"rows": rows, "output_dir": str(folder), "stop_after": stop_after or recipe.steps}
    spec.write_text(json.dumps({**asdict(recipe), **more}))
    command = [str(peer), str(HERE / "peer_trl.py"), str(spec), str(out)]
    environment = {**os.environ, **KEEP_HEAP, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{peer} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found = json.loads(out.read_text())
    return Curve(**{**found, "rows": [Tokens(**row) for row in found["rows"]]})


def as_messages(row: dict[str, str]) -> dict[str, Any]:
    """A row as TRL's conversational prompt and completion."""
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


def as_tokens(row: Tokens) -> dict[str, list[int]]:
    """A row as TRL's pre-tokenised form."""
    mask = [int(label != NOT_LEARNED) for label in row.labels]
    return {"input_ids": row.input_ids, "completion_mask": mask}


def token_differences(
    ours: list[Tokens], theirs: list[Tokens], tokenizer: PreTrainedTokenizerBase
) -> dict[str, int]:
    """How rows differ between the trainers, in words, and how many do; empty when none does."""
    found: Counter[str] = Counter()
    if len(ours) != len(theirs):
        found[f"surefoot has {len(ours)} rows, TRL {len(theirs)}"] += 1
    for mine, other in zip(ours, theirs, strict=False):
        if mine == other:
            continue
        length = len(mine.input_ids)
        if (other.input_ids[:length], other.labels[:length]) == (mine.input_ids, mine.labels):
            text = tokenizer.decode(other.input_ids[length:])
            learned = sum(label != NOT_LEARNED for label in other.labels[length:])
            found[f"TRL has {text!r} more at the end, {learned} of it learned"] += 1
        elif mine.input_ids == other.input_ids:
            found["the same tokens, but not the same ones learned"] += 1
        else:
            found["other tokens"] += 1
    return dict(found)


def learned(rows: list[Tokens]) -> int:
    """Supervised tokens of the rows."""
    return sum(label != NOT_LEARNED for row in rows for label in row.labels)


def percent(ours: float, theirs: float) -> float:
    """Difference of ours from theirs, in percent of theirs."""
    return 100 * (ours - theirs) / theirs


def compare(recipe: Recipe, ours: Curve, theirs: Curve) -> dict[str, Any]:
    """Both curves side by side as far as the peer's goes, the largest differences, and, of whole curves, the
    ratio of the speeds."""
    steps = len(theirs.loss)
    differences = [percent(a, b) for a, b in zip(ours.loss[:steps], theirs.loss, strict=True)]
    norms = [percent(a, b) for a, b in zip(ours.grad_norm[:steps], theirs.grad_norm, strict=True)]
    rates = zip(ours.learning_rate[:steps], theirs.learning_rate, strict=True)
    speed: dict[str, Any] = {}
    if steps == recipe.steps:
        speed["timed_steps"] = f"{FIRST_TIMED} to {steps}"
        speed["tokens_per_second_ratio"] = theirs.seconds() / ours.seconds()
    return {
        "recipe": {**asdict(recipe), "model": Path(recipe.model).name},
        "surefoot": {"loss": ours.loss[:steps], "grad_norm": ours.grad_norm[:steps]},
        "trl": {"loss": theirs.loss, "grad_norm": theirs.grad_norm},
        "loss_difference_percent": differences,
        "largest_loss_difference_percent": max(map(abs, differences)),
        "largest_grad_norm_difference_percent": max(map(abs, norms)),
        "same_learning_rates": all(abs(a - b) <= 1e-12 for a, b in rates),
        **speed,
        "supervised_tokens": {"surefoot": learned(ours.rows), "trl": learned(theirs.rows)},
    }


def show(title: str, found: dict[str, Any]) -> None:
    """Print one comparison as a table."""
    ours, theirs = found["surefoot"], found["trl"]
    print(f"\n{title}")
    print("step  loss: surefoot         TRL   difference    gradient norm: surefoot       TRL")
    for step, difference in enumerate(found["loss_difference_percent"]):
        print(
            f"{step + 1:4}{ours['loss'][step]:16.6f}{theirs['loss'][step]:12.6f}{difference:+11.4f} %"
            f"{ours['grad_norm'][step]:27.4f}{theirs['grad_norm'][step]:10.4f}"
        )
    print(
        f"largest difference: loss {found['largest_loss_difference_percent']:.6f} %, "
        f"gradient norm {found['largest_grad_norm_difference_percent']:.5f} %; learning rates "
        f"{'the same' if found['same_learning_rates'] else 'DIFFER'}",
        flush=True,
    )
    if "tokens_per_second_ratio" in found:
        ratio, steps = found["tokens_per_second_ratio"], found["timed_steps"]
        print(f"tokens/s of the rows over steps {steps}: surefoot {ratio:.2f} x TRL", flush=True)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    features = torch.cpu.get_capabilities()
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "bf16_products_in_hardware": bool(features.get("avx512_bf16") or features.get("amx_bf16")),
        "system": platform.platform(),
    }


def alone(recipe: Recipe, rows: list[dict[str, str]], folder: Path) -> Curve:
    """`train_surefoot` in a fresh process, as the peer has one: nothing of it stays in memory here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(train_surefoot, recipe, rows, folder).result()


def main() -> int:
    """Run everything, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="JSONL with question and answer")
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter of TRL's environment")
    parser.add_argument("--model", default="smollm2-135m", help="short name or folder")
    parser.add_argument("--steps", type=int, default=12, help="steps of 8 rows in bf16")
    parser.add_argument("--default-steps", type=int, default=3, help="steps of TRL with its own rendering")
    parser.add_argument("--fp32-steps", type=int, default=6, help="steps in fp32; 0 leaves them out")
    parser.add_argument("--tolerance", type=float, default=1.0, help="percent of a step's loss")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "losses_gsm8k.json")
    args = parser.parse_args()
    if min(args.steps, args.fp32_steps or FIRST_TIMED) < FIRST_TIMED:
        parser.error(f"steps are timed from the third on: at least {FIRST_TIMED}")
    if not 0 < args.default_steps <= args.steps or args.fp32_steps > args.steps:
        parser.error("--default-steps and --fp32-steps go up to --steps")

    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = str(locate(args.model))
    tokenizer = load_tokenizer(folder)
    result: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    judged: dict[str, dict[str, Any]] = {}
    same_tokens = True
    with tempfile.TemporaryDirectory() as temporary, args.data.open() as lines:
        work = Path(temporary)
        recipe = Recipe(folder, "bf16", args.steps)
        rows = [json.loads(line) for line in islice(lines, args.steps * recipe.rows_per_step)]
        if len(rows) < args.steps * recipe.rows_per_step:
            parser.error(f"{args.data}: {len(rows)} rows are too few for {args.steps} steps")

        started = time.time()
        ours = alone(recipe, rows, work / "ours")
        messages = [as_messages(row) for row in rows]
        default = train_trl(args.peer_python, recipe, messages, work / "default", args.default_steps)
        differences = token_differences(ours.rows, default.rows, tokenizer)
        result |= {
            "rows": len(rows),
            "tokens": sum(len(row.input_ids) for row in ours.rows),
            "threads": {"surefoot": ours.threads, "trl": default.threads},
            "versions": {"surefoot": ours.versions, "trl": default.versions},
        }
        print(f"{len(rows)} rows, {result['tokens']} tokens, {learned(ours.rows)} of them learned")
        for words, count in differences.items():
            print(f"by default, {count} of {len(rows)} rows differ: {words}")
        if not differences:
            print("by default both learn the same tokens")
        by_default = compare(recipe, ours, default)
        show("bf16, TRL with its own rendering (not judged)", by_default)
        result["trl_by_default"] = {"token_differences": differences, **by_default}

        theirs = train_trl(args.peer_python, recipe, [as_tokens(row) for row in ours.rows], work / "same")
        same_tokens &= ours.rows == theirs.rows
        judged["bf16"] = compare(recipe, ours, theirs)
        show("bf16, the same tokens", judged["bf16"])
        if args.fp32_steps:
            recipe = Recipe(folder, "fp32", args.fp32_steps)
            few = rows[: args.fp32_steps * recipe.rows_per_step]
            ours = alone(recipe, few, work / "ours32")
            tokens = [as_tokens(row) for row in ours.rows]
            theirs = train_trl(args.peer_python, recipe, tokens, work / "same32")
            same_tokens &= ours.rows == theirs.rows
            judged["fp32"] = compare(recipe, ours, theirs)
            show("fp32, the same tokens", judged["fp32"])

    worst = max(found["largest_loss_difference_percent"] for found in judged.values())
    passed = same_tokens and worst <= args.tolerance
    result |= {
        "same_tokens": judged,
        "largest_loss_difference_percent": worst,
        "tolerance_percent": args.tolerance,
        "passed": passed,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{args.out} written after {time.time() - started:.0f} s")
    if not same_tokens:
        print("FAILED: TRL did not train on the tokens it was given")
    elif not passed:
        print(f"FAILED: a step's loss differs by {worst:.3f} %, more than {args.tolerance} %")
    else:
        print(f"passed: no step's loss differs by more than {worst:.4f} %")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

"""The named workloads: which rows, how many a step, and what of them is learned.

    python -m benchmarks.workloads gsm8k --steps 12 --out FOLDER

writes the rows as surefoot gets them (rows.jsonl) and the same rows as the token ids that surefoot makes of them
(tokens.json), which peers get. A conversation of which every assistant turn is learned is one row of token ids with
several learned spans: every token is there once, which for a peer is many times faster than one row for each turn,
and it learns the same tokens. That holds where a template never rewrites history; else the rows are refused.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.work import NOT_LEARNED, Tokens

if TYPE_CHECKING:
    from surefoot.config import SFTConfig
    from surefoot.data.rows import Example
    from surefoot.train.setup import Prepared as Model

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """What is trained on."""

    name: str
    file: str
    """Below the folder of data sets, or a path of its own."""
    rows_per_step: int
    steps: int
    """How many are run unless the command line says otherwise."""
    lora_r: int = 0
    last_turn_only: bool = False
    chat_template: str | None = None
    """Instead of the model's: a file beside this one."""
    learning_rate: float = 1e-4


ZAVA = "zava_retail_agent/sft_test.jsonl"
TOOLS = "tools.jinja"
"""ChatML with tools and tool calls: SmolLM2's own template does not write them."""
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("gsm8k", "gsm8k/train.jsonl", 8, 12),
        Workload("gsm8k-lora", "gsm8k/train.jsonl", 8, 12, lora_r=16, learning_rate=2e-4),
        Workload("banking77", "banking77/train.csv", 16, 10),
        Workload("zava-last", ZAVA, 4, 6, last_turn_only=True, chat_template=TOOLS),
        Workload("zava-all", ZAVA, 4, 6, chat_template=TOOLS),
        Workload("rasbt", "rasbt_instruct/instruction-data.json", 8, 16),
    )
}


def of_file(file: Path, rows_per_step: int, steps: int, last_turn_only: bool, lora_r: int) -> Workload:
    """Any file of rows in a shape that surefoot knows."""
    return Workload(
        file.stem, str(file.resolve()), rows_per_step, steps, lora_r=lora_r, last_turn_only=last_turn_only
    )


def data_root(given: Path | None = None) -> Path:
    """The folder of data sets: as given, $SUREFOOT_DATA, or ../shared/data beside the repository."""
    if given is not None:
        return given
    return Path(os.environ.get("SUREFOOT_DATA") or HERE.parents[1] / "shared" / "data")


def read_rows(workload: Workload, root: Path) -> list[Row]:
    """All rows of the workload's file, in the order in which they are trained on.

    Raises SystemExit, with what to do, when the file is not there or is of an unknown kind.
    """
    path = root / workload.file
    if not path.is_file():
        raise SystemExit(f"{path}: no such file. Say where the data sets are: --data-root or SUREFOOT_DATA")
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows: list[Row] = list(csv.DictReader(file))
        return banking77(rows) if workload.name == "banking77" else rows
    raise SystemExit(f"{path}: rows come as .jsonl, .json or .csv")


def banking77(rows: Sequence[Row]) -> list[Row]:
    """Conversations with all labels in the system's turn; shuffled, as the file is sorted by label."""
    labels = sorted({row["category"] for row in rows})
    system = "Classify the customer's message. Answer with one of these labels only:\n" + "\n".join(labels)
    order = list(rows)
    random.Random(42).shuffle(order)
    return [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": row["category"]},
            ]
        }
        for row in order
    ]


def one_row(examples: Sequence[tuple[list[int], list[int]]], where: str = "") -> Tokens:
    """The (prompt, completion) examples of one row as one row of token ids with their completions learned.

    Raises ValueError when an example is no beginning of the longest: then the row is not one sequence.
    """
    longest = max((prompt + completion for prompt, completion in examples), key=len)
    labels = [NOT_LEARNED] * len(longest)
    for prompt, completion in examples:
        end = len(prompt) + len(completion)
        if longest[:end] != prompt + completion:
            raise ValueError(
                f"{where}: the chat template rewrites earlier turns, so its turns are not one sequence of tokens "
                "that peers could be given; take --last-turn-only"
            )
        labels[len(prompt) : end] = completion
    return Tokens(longest, labels)


@dataclass(frozen=True)
class Prepared:
    """A workload on disk."""

    workload: Workload
    folder: Path
    model: Path
    rows: list[Tokens]
    """steps x rows_per_step of them."""

    @property
    def steps(self) -> int:
        return len(self.rows) // self.workload.rows_per_step

    @property
    def rows_file(self) -> Path:
        return self.folder / "rows.jsonl"

    def of_step(self, step: int) -> list[Tokens]:
        """The rows of a step, counted from 0."""
        count = self.workload.rows_per_step
        return self.rows[step * count : (step + 1) * count]

    @property
    def tokens_of_steps(self) -> list[int]:
        """Tokens of the rows as the user brought them, by step: no padding, and nothing twice."""
        return [sum(len(row.input_ids) for row in self.of_step(step)) for step in range(self.steps)]


def write(
    workload: Workload, rows: Sequence[Row], tokens: Sequence[Tokens], model: Path, folder: Path
) -> None:
    """Put both forms of the rows into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    found = {"workload": asdict(workload), "model": str(model), "rows": [asdict(row) for row in tokens]}
    (folder / "tokens.json").write_text(json.dumps(found))


def read(folder: Path) -> Prepared:
    """What `write` wrote."""
    found = json.loads((folder / "tokens.json").read_text())
    rows = [Tokens(**row) for row in found["rows"]]
    return Prepared(Workload(**found["workload"]), folder, Path(found["model"]), rows)


def prepare(
    workload: Workload, rows: Sequence[Row], model: str, steps: int, folder: Path, skip: int = 0
) -> None:
    """Let surefoot make token ids of the rows, keep those of which it learns something, and write them.

    `skip` leaves out so many rows first. Raises SystemExit when too few rows are left for the steps.
    """
    import surefoot.model.load as load  # torch: so `python -m benchmarks.run` itself stays small

    wanted = steps * workload.rows_per_step
    place, there = load.locate(model), max(0, len(rows) - skip)
    given, kept, count = [], {}, wanted
    while (
        len(kept) < wanted and len(given) < there
    ):  # rows of which nothing is learned make room for later ones
        given = list(islice(rows, skip, skip + count))
        kept = examples_of(workload, given, place, folder)
        count *= 2
    if len(kept) < wanted:
        raise SystemExit(
            f"{workload.file}: {len(kept)} rows with something to learn are too few for {steps} steps of "
            f"{workload.rows_per_step}; --steps {len(kept) // workload.rows_per_step} fits"
        )
    chosen = sorted(kept)[:wanted]
    tokens = [one_row(kept[index], f"row {index}") for index in chosen]
    write(workload, [given[index] for index in chosen], tokens, place, folder)


def examples_of(
    workload: Workload, rows: list[Row], model: Path, folder: Path
) -> dict[int, list[tuple[list[int], list[int]]]]:
    """Row index → the (prompt ids, completion ids) that surefoot learns of it.

    A tiny model with the real one's vocabulary and positions stands in: token ids do not depend on weights, and
    the trainer tries its paths on the first rows, which takes minutes where these are thousands of tokens long.
    """
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from surefoot import SFTConfig, SFTTrainer

    real = AutoConfig.from_pretrained(model)
    small = LlamaConfig(
        vocab_size=real.vocab_size,
        max_position_embeddings=real.max_position_embeddings,
        eos_token_id=real.eos_token_id,
        bos_token_id=real.bos_token_id,
        pad_token_id=real.pad_token_id,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    options = recipe(replace(workload, lora_r=0), model, folder / "preparing", steps=1, precision="fp32")
    del options["model_name_or_path"], options["dataset_name"], options["max_steps"]
    trainer = SFTTrainer(
        model=LlamaForCausalLM(small),
        args=SFTConfig(**options),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    assert trainer.train_data is not None
    found: dict[int, list[tuple[list[int], list[int]]]] = {}
    for example in trainer.train_data.examples:
        pair = (example.prompt_ids.tolist(), example.completion_ids.tolist())
        found.setdefault(example.row, []).append(pair)
    return found


def recipe(
    workload: Workload,
    model: Path,
    output: Path,
    steps: int,
    precision: str = "bf16",
    seed: int = 42,
    device: str = "cpu",
) -> dict[str, Any]:
    """surefoot's recipe for a workload; `dataset_name` is for the caller to set."""
    template = {"chat_template_path": str(HERE / workload.chat_template)} if workload.chat_template else {}
    lora = {"use_peft": True, "lora_r": workload.lora_r, "lora_alpha": 2 * workload.lora_r}
    return {
        "model_name_or_path": str(model),
        "dataset_name": "",
        "output_dir": str(output),
        "max_steps": steps,
        "per_device_train_batch_size": workload.rows_per_step,
        "learning_rate": workload.learning_rate,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "precision": precision,
        "seed": seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": device == "cpu",
        "last_turn_only": workload.last_turn_only,
        **template,
        **(lora if workload.lora_r else {}),
    }


def one_step(
    workload: Workload, model: str, root: Path, output: Path
) -> tuple[SFTConfig, Model, list[Example]]:
    """What a run on the workload's first rows starts with: its options, the model, and one step's examples."""
    from surefoot.config import SFTConfig
    from surefoot.train.loading import prepare_model
    from surefoot.train.setup import open_data, read_data

    args = SFTConfig(
        output_dir=output,
        model_name_or_path=model,
        per_device_train_batch_size=workload.rows_per_step,
        learning_rate=workload.learning_rate,
        use_peft=workload.lora_r > 0,
        lora_r=workload.lora_r or 16,
        last_turn_only=workload.last_turn_only,
        use_cpu=True,
    )
    prepared = prepare_model(None, args, None)
    rows = open_data(read_rows(workload, root)[: workload.rows_per_step], "train", args)
    return args, prepared, list(read_data(rows, prepared, args, None).examples)


def choose(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Workload]:
    """Add the options that say which workload; the result reads them."""
    parser.add_argument("workload", nargs="?", choices=[*WORKLOADS], help="one of the named workloads")
    parser.add_argument("--data", type=Path, help="any other file of rows, instead of a name")
    parser.add_argument("--rows-per-step", type=int, default=8, help="with --data")
    parser.add_argument("--last-turn-only", action="store_true", help="with --data")
    parser.add_argument(
        "--lora-r", type=int, default=0, help="with --data: rank of an adapter; 0: all weights"
    )
    parser.add_argument("--steps", type=int, help="steps to run (default: the workload's own)")

    def chosen(args: argparse.Namespace) -> Workload:
        if (args.workload is None) == (args.data is None):
            parser.error(f"name a workload ({', '.join(WORKLOADS)}) or a file (--data)")
        if args.data is None:
            return WORKLOADS[args.workload]
        return of_file(args.data, args.rows_per_step, args.steps or 12, args.last_turn_only, args.lora_r)

    return chosen


def main() -> None:
    """Prepare one workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    chosen = choose(parser)
    parser.add_argument("--model", default="smollm2-135m", help="short name or folder")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets")
    parser.add_argument("--skip", type=int, default=0, help="rows to leave out first")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    workload = chosen(args)
    rows = read_rows(workload, data_root(args.data_root))
    prepare(workload, rows, args.model, args.steps or workload.steps, args.out, args.skip)
    done = read(args.out)
    learned = sum(row.learned for row in done.rows)
    print(f"{len(done.rows)} rows, {sum(done.tokens_of_steps)} tokens, {learned} of them learned")


if __name__ == "__main__":
    main()

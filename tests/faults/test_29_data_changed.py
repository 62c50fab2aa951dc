"""Fault 29: rows edited, reordered, added or taken away before a run goes on are an error with both hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import TrainerCallback

from surefoot import SFTConfig, SFTTrainer, UserError
from tests import tiny
from tests.conftest import QUESTIONS, write_rows
from tests.faults.children import Zygote
from tests.faults.conftest import Recipe
from tests.faults.crashes import crashed, outcome, tree

ROWS = [{"prompt": asked, "completion": said, "id": n} for n, (asked, said) in enumerate(QUESTIONS * 4)]
Change = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
CHANGES: dict[str, Change] = {
    "edited": lambda rows: [*rows[:5], {**rows[5], "completion": "Milan."}, *rows[6:]],
    "reordered": lambda rows: [rows[1], rows[0], *rows[2:]],
    "added": lambda rows: [*rows, rows[0]],
    "taken away": lambda rows: rows[:-1],
    "moved from prompt to completion": lambda rows: [
        {"prompt": rows[0]["prompt"][:-1], "completion": "?" + rows[0]["completion"], "id": 0},
        *rows[1:],
    ],
}
"""How the rows of a file may have changed."""


def begin(zygote: Zygote, recipe: Recipe, folder: Path, **options: Any) -> tuple[Path, Path]:
    """A run that was stopped after step 6, and its file of rows."""
    data = write_rows(folder / "rows.jsonl", ROWS)
    whole = folder / "whole"
    done = zygote.run(["train", recipe(output_dir=str(whole), **options)], folder)
    assert done.wait() == 0, done.err
    return crashed(whole, folder / "run", 6), data


def short(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_a_file_of_rows(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    run, data = begin(zygote, recipe, tmp_path)
    then, before = short(data), tree(run)
    for name, change in CHANGES.items():
        write_rows(data, change(ROWS))
        done = zygote.run(["train", recipe()], tmp_path)
        assert (done.wait(), done.out) == (2, ""), name
        assert done.err.count("surefoot: ") == 1 and "Traceback" not in done.err
        assert done.err.endswith(
            f"surefoot: {run}/checkpoints/step-00000006 is of another run than the one asked for:\n"
            f"  the rows of 'train' (edited, or in another order): sha256 {then}… then, {short(data)}… now\n"
            "Change that back, name another output_dir, or start over in this one with overwrite_output_dir=true\n"
        ), (name, done.err)
        assert tree(run) == before, name
    # What nothing is learned of may change, and the file may have another name.
    data.unlink()
    other = write_rows(tmp_path / "other.jsonl", [{**row, "id": -row["id"]} for row in ROWS])
    done = zygote.run(["train", recipe(dataset_name=str(other))], tmp_path)
    assert done.wait() == 0, done.err
    assert outcome(run, 12)["hashes"] == outcome(tmp_path / "whole", 12)["hashes"]


@pytest.mark.parametrize("decides", [True, False])
def test_held_out_rows_count_where_they_decide(
    decides: bool, zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    held_out = write_rows(tmp_path / "held-out.jsonl", ROWS[:3])
    options: dict[str, Any] = {"eval_dataset_name": str(held_out), "eval_strategy": "steps", "eval_steps": 4}
    options["load_best_model_at_end"] = decides
    run, _ = begin(zygote, recipe, tmp_path, **options)
    then, before = short(held_out), tree(run)
    write_rows(held_out, ROWS[:2])
    done = zygote.run(["train", recipe(**options)], tmp_path)
    if decides:
        assert done.wait() == 2
        assert f"the rows of 'eval' (edited, or in another order): sha256 {then}… then, " in done.err
        assert tree(run) == before
    else:
        assert done.wait() == 0, done.err
        assert outcome(run, 12)["hashes"] == outcome(tmp_path / "whole", 12)["hashes"]


LENGTHS = [(5, 4), (9, 12), (1, 3), (17, 6), (3, 20), (12, 2)]
A = tiny.rows(tiny.examples(LENGTHS))


def streamed(rows: list[dict[str, Any]]) -> Any:
    return datasets.Dataset.from_list(rows).to_iterable_dataset()


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (list, "the rows of 'train' (edited, or in another order)"),
        (datasets.Dataset.from_list, "the rows of 'train' (edited, or in another order)"),
        (streamed, "the rows of 'train', or what is learned of them"),
    ],
    ids=["list", "dataset", "stream"],
)
def test_rows_from_python(source: Callable[..., Any], what: str, tmp_path: Path) -> None:
    stopped(tmp_path, source(A))
    with pytest.raises(UserError) as refused:
        trainer(tmp_path, source([*A[1:], A[0]])).train()
    assert what in str(refused.value) and "… then, " in str(refused.value)
    trainer(tmp_path, source(A)).train()


def test_a_formatting_func_of_another_kind(tmp_path: Path) -> None:
    rows = [{"a": f"w{n}", "b": f"w{n + 40}"} for n in range(5, 12)]

    def asked(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": row["a"] + " ", "completion": row["b"]}

    def mirrored(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": row["b"] + " ", "completion": row["a"]}

    stopped(tmp_path, rows, mirrored)
    before = tree(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"what is learned of the rows of 'train' \(they become other tokens\)"
    ):
        trainer(tmp_path, rows, asked).train()
    assert tree(tmp_path / "run") == before
    trainer(tmp_path, rows, mirrored).train()


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 3:
            raise RuntimeError("power cut")


def trainer(folder: Path, rows: Any, formatting: Any = None, **more: Any) -> SFTTrainer:
    args = SFTConfig(
        folder / "run", max_steps=5, per_device_train_batch_size=2, use_cpu=True, precision="fp32", save_steps=1,
        disable_tqdm=True,
    )  # fmt: skip
    tokenizer, net = tiny.tokenizer(), tiny.model("llama")
    return SFTTrainer(net, args, rows, processing_class=tokenizer, formatting_func=formatting, **more)


def stopped(folder: Path, rows: Any, formatting: Any = None) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(folder, rows, formatting, callbacks=[Stop]).train()
    kept = json.loads((folder / "run" / "run.json").read_text("utf-8"))
    assert kept["data"]["train"]["examples"]

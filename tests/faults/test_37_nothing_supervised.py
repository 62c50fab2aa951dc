"""Fault 37: rows without a supervised token. All: an error. Some: counted and listed in the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Surefoot
from tests.faults.refused import GOOD, refusal, says, write

USER, ASSISTANT = GOOD["messages"]
LONG = {"messages": [{"role": "user", "content": "word " * 60}, ASSISTANT]}
UNMARKED = {"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}


@pytest.mark.parametrize(("rows", "flags", "cause", "fix"), [
    ([{"messages": [USER]}] * 2, [], "2 × no assistant turn to learn", "an assistant message follows a user's"),
    ([{"messages": [USER, {**ASSISTANT, "weight": 0}]}], [], "1 × no assistant turn to learn", "Write conv"),
    ([{"messages": [ASSISTANT, USER]}], [], "begins with the answer: nothing asks for it", "Write conversations"),
    ([LONG] * 3, ["--max_length", 40, "--overlength", "cut"], "3 × prompt alone fills max_length 40", "Raise max_"),
    ([UNMARKED], [], "1 × no token to learn", "mark the tokens to learn"),
    ([{"text": ""}], [], "1 × no token to learn", "Write rows with an answer"),
])  # fmt: skip
def test_in_no_row(
    surefoot: Surefoot,
    tiny_folder: Path,
    tmp_path: Path,
    rows: list[Any],
    flags: list[Any],
    cause: str,
    fix: str,
) -> None:
    path = write(tmp_path / "r.jsonl", rows)
    said = refusal(surefoot, tiny_folder, path, *flags)
    says(said, f"{path}: nothing to learn in any of {len(rows)} rows: ", cause, f"({path}:1", fix)


def test_in_some_rows_is_counted_and_listed(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [GOOD, {"messages": [USER]}, LONG, GOOD, {"messages": [USER]}])
    said = surefoot(
        *("train", "--model_name_or_path", tiny_folder, "--dataset_name", path, "--output_dir", "run"),
        *("--use_cpu", "--disable_tqdm", "--max_steps", 1, "--max_length", 40, "--overlength", "cut"),
        *("--save_strategy", "no", "--precision", "fp32"),
    )
    assert said.status == 0, said.err
    says(said.err, f"dropped: 2 × no assistant turn to learn ({path}:2, {path}:5)")
    says(said.err, f"dropped: 1 × prompt alone fills max_length 40 ({path}:3)")
    ledger = json.loads((tmp_path / "run" / "run.json").read_text())["data"]["train"]["ledger"]
    assert (ledger["rows"], ledger["examples"]) == (5, 2)
    assert ledger["dropped"] == {
        "no assistant turn to learn": [f"{path}:2", f"{path}:5"],
        "prompt alone fills max_length 40": [f"{path}:3"],
    }
    assert ledger["counts"]["no assistant turn to learn"] == 2

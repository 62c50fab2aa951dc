"""Fault 38: a token id that the model has no embedding for is an error of its row, before anything is begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surefoot.model.load import Loaded
from tests.conftest import Surefoot
from tests.faults.refused import refusal, says, write

FINE = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}


@pytest.mark.parametrize(("ids", "cause"), [
    ([5, 6, 10_000], "token id 10000 is beyond the model's {} embeddings"),
    ([10_000, 6, 7], "token id 10000 is beyond the model's {} embeddings"),
    ([5, 6, 2**31], "column 'input_ids' has the token id 2147483648"),
    ([5, 6, 10**30], "has the token id 1000000000000000000000000000000"),
    ([5, -1, 7], "has the token id -1"),
])  # fmt: skip
def test_token_ids_of_rows(
    surefoot: Surefoot, tiny_folder: Path, tiny_model: Loaded, tmp_path: Path, ids: list[Any], cause: str
) -> None:
    path = write(tmp_path / "r.jsonl", [FINE, {"input_ids": ids}, FINE])
    said = refusal(surefoot, tiny_folder, path)
    assert said.startswith(f"{path}:2: ")
    count = tiny_model.model.get_input_embeddings().num_embeddings
    says(said, cause.format(count), '"input_ids": [')
    assert "Use the model's own." in said or "Ids are from 0 to what the model has embeddings for." in said

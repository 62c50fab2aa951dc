"""Fault 36: an empty data set, or one of which every row is dropped, is an error before anything is begun."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.conftest import Surefoot
from tests.faults.refused import GOOD, refusal, says, write


@pytest.mark.parametrize(("name", "content", "cause"), [
    ("r.jsonl", b"", "the file is empty"),
    ("r.json", b"", "the file is empty"),
    ("r.csv", b"", "the file is empty"),
    ("r.jsonl.gz", gzip.compress(b"", mtime=0), "the file is empty"),
    ("r.jsonl", b" \n\n\t\r\n", "the file holds no rows"),
    ("r.jsonl", b"\xef\xbb\xbf", "the file holds no rows"),
    ("r.json", b"[]", "the file holds no rows"),
    ("r.json", b'{"data": []}', "the file holds no rows"),
    ("r.csv", b"prompt,completion\n", "the file holds no rows"),
])  # fmt: skip
def test_empty_files(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path, name: str, content: bytes, cause: str
) -> None:
    path = write(tmp_path / name, content)
    assert refusal(surefoot, tiny_folder, path) == f"{path}: {cause}. Write at least one row into it."


def test_an_empty_parquet_file(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "r.parquet"
    parquet.write_table(arrow.table({"text": arrow.array([], arrow.string())}), path)
    assert (
        refusal(surefoot, tiny_folder, path)
        == f"{path}: the file holds no rows. Write at least one row into it."
    )


def test_all_rows_dropped(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [GOOD, GOOD, {"messages": GOOD["messages"][:1]}])
    said = refusal(surefoot, tiny_folder, path, "--max_length", 2)
    says(
        said,
        f"{path}: nothing to learn in any of 3 rows: ",
        f"1 × no assistant turn to learn ({path}:3)",
        f"2 × longer than max_length 2 ({path}:1, ...)",
        "Raise max_length, or shorten the rows.",
    )


def test_all_rows_bad_and_skipped(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", b"{\n" * 30)
    said = refusal(surefoot, tiny_folder, path, "--on-bad-row", "skip")
    says(
        said,
        f"{path}: nothing to learn in any of 30 rows: 30 × not usable JSON ({path}:1, ...)",
        "on_bad_row=stop",
    )

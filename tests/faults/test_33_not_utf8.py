"""Fault 33: bytes that are not UTF-8, NUL bytes and lone surrogates are errors that name the byte's offset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surefoot.data.dataset import read
from surefoot.data.render import Renderer
from surefoot.data.sources import open_source
from surefoot.errors import UserError
from tests import toys
from tests.conftest import Surefoot
from tests.faults.refused import GOOD, LINE, refusal, says, write

CAFE = json.dumps({**GOOD, "note": "é café"}, ensure_ascii=False).encode("utf-8") + b"\n"
LATIN = CAFE.replace("café".encode(), "café".encode("latin-1"))
NUL = CAFE.replace(b"note", b"no\0e")
LONE = CAFE.replace("café".encode(), rb"\ud83d")
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(("content", "byte", "cause", "fix"), [
    (LINE + LATIN + LINE, b"\xe9\"", "not UTF-8 (byte 0xe9: ", "Save the file as UTF-8."),
    (BOM + LATIN + LINE, b"\xe9\"", "not UTF-8 (byte 0xe9: ", "Save the file as UTF-8."),
    (LINE + NUL + LINE, b"\0", "a NUL byte", "write it again."),
    (LINE + LONE + LINE, rb"\ud83d", r"\ud83d is half of a character (a lone surrogate)", "Write each row"),
    (BOM + LONE + LINE, rb"\ud83d", r"\ud83d is half of a character (a lone surrogate)", "Write each row"),
])  # fmt: skip
def test_jsonl(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path, content: bytes, byte: bytes, cause: str, fix: str
) -> None:
    path = write(tmp_path / "r.jsonl", content)
    offset = content.index(byte)
    line = content.count(b"\n", 0, offset) + 1
    before = content[:offset].removeprefix(BOM).rpartition(b"\n")[2]
    said = refusal(surefoot, tiny_folder, path)
    assert said.startswith(f"{path}:{line}:{len(before.decode()) + 1}: ")
    says(said, cause, f"at byte offset {offset}", fix, 'The line begins: {"messages": [{"role": "user"')


@pytest.mark.parametrize(("name", "content", "byte", "parts"), [
    ("r.json", b"[" + LINE + b", " + LATIN + b"]", b"\xe9\"", [":2:", "not UTF-8", "Save the file as UTF-8."]),
    ("r.json", BOM + b"[" + NUL + b"]", b"\0", [":1:", "a NUL byte", "write it again"]),
    ("r.json", BOM + b"[" + LINE + b"," + LONE + b"]", rb"\ud83d", [":2:", "lone surrogate", "Write a list"]),
    ("r.csv", b"prompt,completion\na,b\n\"caf\xe9\nq\",b\nc,d\n", b"\xe9",
     [":3:5: not UTF-8", 'as UTF-8. The record begins: ["caf']),
    ("r.csv", b"prompt,completion\na,b\nc\0,d\n", b"\0", [":3:2: a NUL byte", "write it again"]),
    ("r.csv", b"prompt,caf\xe9\na,b\n", b"\xe9", [":1:11: not UTF-8", "Save the file"]),
])  # fmt: skip
def test_documents_and_tables(
    surefoot: Surefoot,
    tiny_folder: Path,
    tmp_path: Path,
    name: str,
    content: bytes,
    byte: bytes,
    parts: list[str],
) -> None:
    path = write(tmp_path / name, content)
    said = refusal(surefoot, tiny_folder, path)
    assert said.startswith(f"{path}{parts[0]}")
    says(said, *parts[:-1])
    assert f"at byte offset {content.index(byte)}" in said and parts[-1] in said


def test_utf16_is_a_fault_of_the_file(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", LINE.decode().encode("utf-16"))
    said = refusal(surefoot, tiny_folder, path)
    assert said == f"{path}: the file is UTF-16, not UTF-8. Save it as UTF-8."


def test_lone_surrogates_that_python_gives() -> None:
    """A list, a stream's generator and a `formatting_func` can hold them; the tokenizer cannot."""
    renderer = Renderer(toys.byte_level(), max_length=99)
    with pytest.raises(
        UserError, match=r"^dataset\[1\]: a string holds '\\ud800', half of a character .* Remove"
    ):
        read(open_source([{"text": "a b"}, {"text": "\ud800"}]), renderer, columns={})
    datasets = pytest.importorskip("datasets")
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"text": "a b"}, {"text": "a \udfff b"}]))
    with pytest.raises(
        UserError, match=r"^dataset\[1\]: a text holds '\\udfff', half of a character .* Remove"
    ):
        read(open_source(stream), renderer, columns={}, at_most=9)
    with pytest.raises(UserError, match=r"^dataset\[0\]: a text holds '\\ud800'"):
        read(open_source([{"text": "a"}]), renderer, columns={}, formatting=lambda row: "b \ud800")


def test_parquet_strings(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    """Arrow takes any bytes for a string's when it is told to; the rows around are read."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = arrow.array([b"a b", b"caf\xe9", b"c", b"\xff"], arrow.binary()).view(arrow.string())
    path = tmp_path / "r.parquet"
    parquet.write_table(arrow.table({"text": texts}), path)
    said = refusal(surefoot, tiny_folder, path).splitlines()
    says(said[0], f"{path}[1]: a string is not UTF-8 (byte 3 of it: ", "Write it as UTF-8.", "begins: caf")
    says(said[1], f"{path}[3]: a string is not UTF-8 (byte 0 of it: ", "Write it as UTF-8.")
    says(said[2], "2 bad rows; 2 of 4 rows are fine.")
    datasets = pytest.importorskip("datasets")
    with pytest.raises(
        UserError, match=r"^dataset\[1\], or a row soon after: a string is not UTF-8 .* Write it"
    ):
        list(open_source(datasets.Dataset(arrow.table({"text": texts}))))


def test_a_parquet_file_that_is_cut_or_garbled(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "r.parquet"
    parquet.write_table(arrow.table({"text": ["a b"] * 1000}), path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4] + b"\xff" * 40 + whole[44:]):
        said = refusal(surefoot, tiny_folder, write(path, damaged))
        assert said.startswith(f"{path}: not a readable Parquet file: ")
        assert said.endswith("Write or download it again.")

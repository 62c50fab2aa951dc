"""Fault 32: bad JSON is an error that names file, line and column, before anything is begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Surefoot
from tests.faults.refused import LINE, refusal, says, write

ONE_LINE = "Write each row as one whole JSON object on one line."


@pytest.mark.parametrize(("name", "content", "parts"), [
    ("r.jsonl", LINE + b"\n" + b'  {"a": 1,}\n' + LINE,
     [":3:11: not usable JSON: Expecting property name", ONE_LINE, 'The line begins: {"a": 1,}']),
    ("r.jsonl", LINE + b'{"messages": [{"role": "us',
     [":2:24: not usable JSON: Unterminated string", ONE_LINE, 'begins: {"messages": [{"role": "us']),
    ("r.jsonl", LINE + LINE.strip() + LINE,
     [f":2:{len(LINE)}: not usable JSON: Extra data", ONE_LINE, "The line begins: {"]),
    ("r.jsonl", b"[1, 2]\n" + LINE, [":1:1: the line is a list, not an object", 'Write each row as {"column"']),
    ("r.jsonl", b"\x1b[2J\x07\n" + LINE, [":1:1: not usable JSON", ONE_LINE, r"The line begins: \x1b[2J\x07"]),
    ("r.jsonl", b'{"n": ' + b"1" * 5000 + b"}\n" + LINE, [":1:1: not usable JSON: Exceeds the limit", ONE_LINE]),
    ("r.json", b"[" + LINE + b",\n{'a': 1}]",
     [":3:2: not usable JSON", "Write a list of objects, or one object a line", "The line begins: {'a': 1}]"]),
    ("r.json", b"[" + LINE + b", null]", ["[1]: the item is null, not an object", 'Write each row as {"column"']),
])  # fmt: skip
def test_bad_json(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path, name: str, content: bytes, parts: list[str]
) -> None:
    path = write(tmp_path / name, content)
    said = refusal(surefoot, tiny_folder, path)
    says(said, *parts)
    assert said.startswith(f"{path}{parts[0]}") and "\n" not in said

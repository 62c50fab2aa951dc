"""Rows out of files, folders, lists, `datasets` objects and (pretended) hub names."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surefoot.data.rows import Row
from surefoot.data.sources import Source, open_source
from surefoot.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def wheres(source: Source) -> list[str]:
    return [row.where for row in source]


def error_of(data: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(open_source(data, **options))
    return str(caught.value)


def says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, message


def test_jsonl_is_read_by_physical_line_past_bom_and_blank_lines(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "\xc3\xa9 \xe2\x80\xa8"}'
    path = write(tmp_path / "rows.jsonl", content)
    source = open_source(path)
    assert list(source) == [Row({"text": "a"}, f"{path}:1"), Row({"text": "é \u2028"}, f"{path}:4")]
    assert (source.name, source.length) == (str(path), 2)
    assert source.fingerprint == hashlib.sha256(content).hexdigest()
    assert list(source) == list(source)


def test_a_path_may_be_a_string_and_is_named_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "rows.ndjson", '{"a": 1}\n')
    monkeypatch.chdir(tmp_path)
    assert wheres(open_source("rows.ndjson")) == ["rows.ndjson:1"]


def test_gzip_counts_the_lines_within(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    source = open_source(path)
    assert (source.length, wheres(source)) == (2, [f"{path}:1", f"{path}:2"])
    write(path, path.read_bytes()[:-4])
    says(error_of(path), str(path), "not a whole gzip file", "Compress it again")


@pytest.mark.parametrize(
    "content",
    ['[{"a": 1}, {"a": 2}]', '{"data": [{"a": 1}, {"a": 2}], "version": "1"}', '\ufeff[{"a":1},\n{"a":2}]'],
)
def test_json_list_or_object_with_one_list(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "rows.json", content)
    source = open_source(path)
    assert list(source) == [Row({"a": 1}, f"{path}[0]"), Row({"a": 2}, f"{path}[1]")]
    assert source.length == 2


def test_json_lines_under_the_name_of_json(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", '{"a": 1}\n{"a": 2}\n')
    assert wheres(open_source(path)) == [f"{path}:1", f"{path}:2"]


def test_json_of_one_pretty_printed_chat_is_one_row(tmp_path: Path) -> None:
    path = write(
        tmp_path / "row.json", json.dumps({"messages": [{"role": "user", "content": "hi"}]}, indent=2)
    )
    assert wheres(open_source(path)) == [f"{path}[0]"]


def test_csv_records_are_placed_at_their_first_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", '\ufefftext,label\n"two\nlines, ""quoted""",x\n\nlast,y\n')
    source = open_source(path)
    assert list(source) == [
        Row({"text": 'two\nlines, "quoted"', "label": "x"}, f"{path}:2"),
        Row({"text": "last", "label": "y"}, f"{path}:5"),
    ]
    assert source.length == 2


def test_csv_fields_may_be_long_and_tsv_uses_tabs(tmp_path: Path) -> None:
    long = "x" * 200_000
    assert next(iter(open_source(write(tmp_path / "a.csv", f"text\n{long}\n")))).data["text"] == long
    assert next(iter(open_source(write(tmp_path / "a.tsv", "a\tb\n1,2\t3\n")))).data == {"a": "1,2", "b": "3"}


def test_parquet_keys_that_arrow_filled_with_null_are_gone(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"m": [{"role": "user"}, {"role": "tool", "name": "f"}], "n": None}, {"m": [], "n": 1}]
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    source = open_source(path)
    assert list(source) == [Row(rows[0], f"{path}[0]"), Row(rows[1], f"{path}[1]")]
    assert source.length == 2
    assert source.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    says(error_of(write(tmp_path / "bad.parquet", b"PAR1 no")), "bad.parquet", "not a readable Parquet file")


def test_list_of_mappings() -> None:
    source = open_source([{"a": 1}, {"a": 2}])
    assert list(source) == [Row({"a": 1}, "dataset[0]"), Row({"a": 2}, "dataset[1]")]
    assert (source.name, source.length, len(source.fingerprint)) == ("dataset", 2, 64)
    assert source.fingerprint == open_source([{"a": 1}, {"a": 2}]).fingerprint
    assert source.fingerprint != open_source([{"a": 1}, {"a": 3}]).fingerprint


def test_dataset_objects_streams_and_dicts() -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list([{"ids": [1, 2], "m": [{"a": 1}]}, {"ids": [3], "m": [{"b": 2}]}])
    rows = [
        Row({"ids": [1, 2], "m": [{"a": 1}]}, "dataset[0]"),
        Row({"ids": [3], "m": [{"b": 2}]}, "dataset[1]"),
    ]
    source = open_source(dataset)
    assert (list(source), source.length, source.fingerprint) == (rows, 2, dataset._fingerprint)
    assert list(open_source(dataset.with_format("numpy"))) == rows
    stream = open_source(dataset.to_iterable_dataset())
    assert (list(stream), list(stream), stream.length, stream.fingerprint) == (rows, rows, None, "")
    splits = datasets.DatasetDict({"test": dataset, "train": dataset.select([0])})
    assert open_source(splits).length == 1
    assert open_source(splits, split="test").length == 2
    says(error_of(splits, split="tets"), "no split 'tets'", "test, train", "Did you mean 'test'?")
    says(error_of(dataset.select([])), "dataset", "no rows")


def test_a_saved_dataset_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(tmp_path / "saved")
    assert wheres(open_source(tmp_path / "saved")) == [f"{tmp_path / 'saved'}[0]"]


def test_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", '{"n": 2}\n')
    write(tmp_path / "a.jsonl", '{"n": 1}\n')
    write(tmp_path / "README.md", "not rows")
    source = open_source(tmp_path)
    assert wheres(source) == [f"{tmp_path / 'a.jsonl'}:1", f"{tmp_path / 'b.jsonl'}:1"]
    assert (source.length, len(source.fingerprint)) == (2, 64)


def test_folder_of_mixed_kinds_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "rows.csv", "a\n1\n")
    write(tmp_path / "labels.json", "[]")
    says(
        error_of(tmp_path), str(tmp_path), ".csv and .json", "labels.json, rows.csv", "Give one of the files"
    )


def test_folder_with_splits_is_never_read_whole(tmp_path: Path) -> None:
    write(tmp_path / "my_training.jsonl", '{"n": 1}\n')
    write(tmp_path / "my_test.jsonl", '{"n": 2}\n')
    says(error_of(tmp_path), "several splits", "Give one file, or the split (test, train)")
    assert wheres(open_source(tmp_path, split="train")) == [f"{tmp_path / 'my_training.jsonl'}:1"]
    says(error_of(tmp_path, split="validation"), "no file of the split 'validation'", "my_test.jsonl")


def test_folder_without_rows(tmp_path: Path) -> None:
    write(tmp_path / "notes.md", "x")
    says(error_of(tmp_path), str(tmp_path), "no file of rows", "notes.md")


def hub(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))


def test_other_strings_are_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake(list[dict[str, int]]):
        format = {"type": None}  # noqa: RUF012
        _fingerprint = "f00d"

    asked: list[Any] = []

    def load(name: str, config: str | None, *, split: str, streaming: bool) -> Fake:
        asked.append((name, config, split, streaming))
        return Fake([{"a": 1}])

    hub(monkeypatch, load)
    source = open_source("owner/name", config="main")
    assert (wheres(source), source.length, source.fingerprint) == (["owner/name[0]"], 1, "f00d")
    stream = open_source("name", split="test", streaming=True)
    assert (wheres(stream), stream.length, stream.fingerprint) == (["name[0]"], None, "")
    assert asked == [("owner/name", "main", "train", False), ("name", None, "test", True)]


def test_hub_failure_says_what_would_work_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host\nlong trace")

    hub(monkeypatch, load)
    message = error_of("owner/gsm8k")
    says(
        message,
        "owner/gsm8k: neither a file or folder here",
        "ConnectionError: no route to host",
        "./gsm8k.jsonl",
    )
    assert "long trace" not in message


def test_empty_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, lambda *_, **__: [])
    says(error_of("owner/name", streaming=True), "owner/name", "no rows")


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "{}")
    says(error_of(str(tmp_path / "trian.jsonl")), "trian.jsonl: no such file", "Did you mean 'train.jsonl'?")
    says(error_of(str(tmp_path / "zzz.csv")), "The folder has: train.jsonl")
    says(error_of(tmp_path / "no" / "rows.csv"), "rows.csv: no such file", "does not exist either")
    says(error_of("data_that_is_not_there.jsonl"), "no such file")


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    says(error_of(write(tmp_path / "rows.xlsx", "x")), "rows.xlsx", "unknown kind of file '.xlsx'", ".jsonl")


def test_split_of_a_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "{}")
    says(error_of(path, split="test"), str(path), "has no splits", "split='test'")
    assert open_source(path, split="train").length == 1


@pytest.mark.parametrize(("data", "parts"), [
    (iter([{"a": 1}]), ["list_iterator is no source of rows", "Write list(rows)."]),
    (3, ["A int is no source of rows", "Give a path"]),
    ([], ["the list has no rows"]),
    ([{"a": 1}, "text"], ["dataset[1]", "this is a str", "'text'", 'Write {"text": ...}']),
    ([{"a": "\ud800"}], ["dataset[0]", "lone surrogate", "Remove it"]),
])  # fmt: skip
def test_objects_that_are_no_rows(data: Any, parts: list[str]) -> None:
    says(error_of(data), *parts)


DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(("name", "content", "parts"), [
    ("r.jsonl", b'{"a": 1}\n{"a": 1,}\n', ["r.jsonl:2:9: not usable JSON", "one line", 'begins: {"a": 1,}']),
    ("r.jsonl", b'{"a": 1}\n\n{"a": "cut', ["r.jsonl:3:7: not usable JSON: Unterminated string"]),
    ("r.jsonl", b'{\n "a": 1\n}\n', ["r.jsonl:1:2", "name it .json"]),
    ("r.jsonl", b'[{"a": 1}]\n', ["r.jsonl:1:1: the line is a list, not an object", "name it .json"]),
    ("r.jsonl", b'"text"\n', ["r.jsonl:1:1: the line is a string", 'Write each row as {"column": value']),
    ("r.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', ["r.jsonl:2:11: not UTF-8 (byte 0xe9", "offset 19", "Save"]),
    ("r.jsonl", b'{"a": 1}\n{"a\0": 1}\n', ["r.jsonl:2:4: a NUL byte at byte offset 12", "write it again"]),
    ("r.jsonl", '{"a": 1}\n'.encode("utf-16"), ["r.jsonl: the file is UTF-16", "Save it as UTF-8"]),
    ("r.jsonl", rb'{"a": "\\ud800 \ud83d\ude00 \ud83d"}', ["r.jsonl:1:29", r"\ud83d is half of a character"]),
    ("r.jsonl", DEEP, ["r.jsonl:1:1", "nested too deeply", "The line begins"]),
    ("r.jsonl", b"", ["r.jsonl: the file is empty", "Write at least one row"]),
    ("r.jsonl", b"\xef\xbb\xbf\n \n", ["r.jsonl: the file holds no rows"]),
    ("r.json", b'[{"a": 1},\n {"a": }]', ["r.json:2:8: not usable JSON", 'begins:  {"a": }]']),
    ("r.json", b'[\n {"a": "\xff"}]', ["r.json:2:9: not UTF-8", "byte offset 10"]),
    ("r.json", b"[]", ["r.json: the file holds no rows"]),
    ("r.json", b"3", ["r.json: the file holds a number", "Write a list of objects"]),
    ("r.json", b'{"a": 1}', ["r.json: the file is one object that holds no list", '{"data": [...]}']),
    ("r.json", b'{"a": [], "b": []}', ["2 lists (a, b)"]),
    ("r.json", b'{"rows": [{"a": 1}, null]}', ["r.json[1]: the item of 'rows' is null, not an object"]),
    ("r.csv", b"a,b\n1,2\n1,2,3\n", ["r.csv:3: 3 fields where the header has 2 (a, b)", "Quote", '["1"']),
    ("r.csv", b"a,b\n\n1\n", ["r.csv:3: 1 fields where the header has 2"]),
    ("r.csv", b'a,b\n1,2\n"open,2\n3,4\n', ["r.csv:3: not a valid record", "double the quotes"]),
    ("r.csv", b"a,a\n1,2\n", ["r.csv:1: the header names 'a' twice"]),
    ("r.csv", b"a;b\n1;2\n", ["r.csv:1: the header's columns are separated by ';'", "Use commas"]),
    ("r.csv", b"a,b\n", ["r.csv: the file holds no rows"]),
    ("r.csv", b"a\nx\ncaf\xe9\n", ["r.csv:3:4: not UTF-8", "byte offset 7"]),
])  # fmt: skip
def test_broken_files_say_where_what_and_the_fix(
    tmp_path: Path, name: str, content: bytes, parts: list[str]
) -> None:
    says(error_of(write(tmp_path / name, content)), *parts)

"""Rows of a source → examples by row, with the user's columns, function and limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surefoot.data.dataset import Dataset, read
from surefoot.data.render import BATCH, Renderer
from surefoot.data.rows import Row
from surefoot.data.sources import open_source
from surefoot.errors import UserError
from tests import templates, toys
from tests.data.rendered import texts

TOKENIZER = toys.byte_level(template=templates.CHATML)
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Ok"},
    {"role": "assistant", "content": "Bye."},
]
SILENT = {"messages": TURNS[:1]}
CHAT = {"messages": TURNS}


def dataset(rows: list[Any], max_length: int = 4096, **options: Any) -> Dataset:
    options.setdefault("columns", {})
    return read(open_source(rows), Renderer(TOKENIZER, max_length=max_length), **options)


def learned(data: Dataset) -> list[list[str]]:
    return [[texts(TOKENIZER, example)[1] for example in row] for row in data.rows]


def test_examples_stay_with_their_row() -> None:
    data = dataset([CHAT, SILENT, CHAT])
    answers = ["Hello!<|im_end|>", "Bye.<|im_end|>"]
    assert learned(data) == [answers, answers]
    assert [example.row for example in data.examples] == [0, 0, 2, 2]
    assert [example.where for example in data.of_rows([1])] == ["dataset[2]", "dataset[2]"]
    assert [example.row for example in data.of_rows([1, 0])] == [2, 2, 0, 0]
    assert (data.ledger.rows, data.ledger.examples, data.ledger.duplicates) == (3, 4, 2)
    assert data.ledger.shape == "messages (messages)"
    assert data.ledger.dropped == {"no assistant turn to learn": ["dataset[1]"]}


def test_where_and_fingerprint_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n{"prompt": "c", "completion": "d"}\n')
    source = open_source(path)
    data = read(source, Renderer(TOKENIZER, max_length=99), columns={})
    assert [example.where for example in data.examples] == [f"{path}:1", f"{path}:3"]
    assert (data.fingerprint, data.ledger.source) == (source.fingerprint, str(path))


def test_columns_and_text_field() -> None:
    rows = [{"state": "Ohio", "capital": "Columbus"}]
    data = dataset(rows, columns={"prompt": "state", "completion": "capital"})
    assert texts(TOKENIZER, data.examples[0]) == ("Ohio", "Columbus<|im_end|>")
    data = dataset(rows, columns={"user": "state", "assistant": "capital"})
    assert texts(TOKENIZER, data.examples[0]) == (
        "<|im_start|>user\nOhio<|im_end|>\n<|im_start|>assistant\n",
        "Columbus<|im_end|>",
    )
    assert learned(dataset([{"story": "Once."}], text_field="story")) == [["Once.<|im_end|>"]]


def test_formatting_func_may_return_a_text_or_a_row() -> None:
    rows = [{"state": "Ohio", "capital": "Columbus"}]

    def as_text(row: dict[str, str]) -> str:
        return f"{row['state']}: {row['capital']}"

    def as_row(row: dict[str, str]) -> dict[str, str]:
        return {"prompt": row.pop("state"), "completion": row.pop("capital")}

    assert learned(dataset(rows, formatting=as_text)) == [["Ohio: Columbus<|im_end|>"]]
    assert learned(dataset(rows, formatting=as_row)) == [["Columbus<|im_end|>"]]
    assert rows == [{"state": "Ohio", "capital": "Columbus"}]


def test_formatting_func_that_returns_something_else() -> None:
    with pytest.raises(UserError) as caught:
        dataset([{"a": 1}], formatting=lambda row: [row])
    assert str(caught.value) == (
        "dataset[0]: formatting_func returned list; it must return a text or a dict of columns. "
        'The row begins: {"a": 1}'
    )


@pytest.mark.parametrize("wanted", [1, 2, 3, 9])
def test_at_most_reads_no_further_and_the_ledger_knows_of_no_more(wanted: int) -> None:
    rows = [CHAT, SILENT, SILENT, CHAT, CHAT, *[SILENT] * 3]
    taken: list[str] = []

    def stream() -> Iterator[Row]:
        for row in open_source(rows):
            taken.append(row.where)
            yield row

    source = replace(open_source(rows), rows=stream)
    data = read(source, Renderer(TOKENIZER, max_length=99), columns={}, at_most=wanted)
    kept = min(wanted, 3)
    assert [row[0].row for row in data.rows] == [0, 3, 4][:kept]
    assert data.ledger.examples == 2 * kept == len(data.examples)
    assert len(taken) == data.ledger.rows == {1: 1, 2: 4, 3: 5, 9: 8}[wanted]


def test_progress_is_told_in_rows() -> None:
    told: list[int] = []
    dataset([{"text": f"One {i}"} for i in range(BATCH + 2)], seen=told.append)
    assert told == list(range(1, BATCH + 3))


def test_nothing_to_learn_says_why() -> None:
    with pytest.raises(UserError) as caught:
        dataset([CHAT, CHAT, SILENT], max_length=5)
    assert str(caught.value) == (
        "dataset: nothing to learn in any of 3 rows: 1 × no assistant turn to learn (dataset[2]); 4 × longer than "
        "max_length 5 (dataset[0], ...). Write conversations in which an assistant message follows a user's. "
        "Raise max_length, or shorten the rows."
    )


def test_no_rows_at_all() -> None:
    with pytest.raises(UserError, match="there are no rows"):
        read(
            replace(open_source([CHAT]), rows=lambda: iter(())), Renderer(TOKENIZER, max_length=9), columns={}
        )


def test_a_row_of_another_shape_is_named() -> None:
    with pytest.raises(UserError, match=r"^dataset\[1\]: mixed shapes"):
        dataset([CHAT, {"text": "One"}])

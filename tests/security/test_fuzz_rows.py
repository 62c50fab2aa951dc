"""Whatever a file or a list of rows holds, it gives examples or a UserError, and no other exception."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surefoot.data.badrows import OnBadRow
from surefoot.data.dataset import read
from surefoot.data.messages import ROLES
from surefoot.data.render import Renderer
from surefoot.data.shapes import CANONICAL
from surefoot.data.sources import open_source
from surefoot.errors import UserError
from tests import templates, toys

TOKENIZER = toys.byte_level(template=templates.CHATML)
COLUMNS = sorted(
    {
        *CANONICAL,
        "question",
        "answer",
        "response",
        "functions",
        "image",
        "id",
        "tool_calls",
        "role",
        "content",
    }
)
TURNS = [{"role": "user", "content": "Hi"}, {"from": "gpt", "value": "Hello!"}]
RIGHT: list[dict[str, Any]] = [
    {"messages": TURNS},
    {"messages": TURNS, "tools": [{"name": "f"}], "system": "Be kind."},
    {"conversations": TURNS},
    {"prompt": "a", "completion": "b"},
    {"prompt": TURNS[:1], "completion": TURNS[1:]},
    {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]},
    {"question": "a", "answer": "b"},
    {"text": "a b"},
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1]},
]
bounded = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=12)
    | st.sampled_from(
        ["Hi", "[]", "{}", '[{"role": "user", "content": "q"}]', "<|im_end|>", '"\\ud800"', "[[["]
    )
)
parts = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "thinking", "image", "x"]), "text": scalars}
)
calls = st.fixed_dictionaries(
    {},
    optional={
        "name": scalars,
        "arguments": scalars | st.dictionaries(st.text(max_size=3), scalars, max_size=2),
    },
)
called = calls | st.fixed_dictionaries(
    {"function": calls | scalars}, optional={"type": scalars, "name": scalars}
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(sorted(ROLES)) | scalars,
        "from": st.sampled_from(sorted(ROLES)) | scalars,
        "content": scalars | st.lists(parts | scalars, max_size=2),
        "value": scalars,
        "weight": scalars,
        "reasoning_content": scalars,
        "tool_calls": st.lists(called | scalars, max_size=2) | called | scalars,
        "function_call": called | scalars,
    },
)
ids = st.lists(st.integers(0, 99) | scalars, max_size=4)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
values = (
    scalars
    | st.lists(messages | st.sampled_from(TURNS), max_size=3)
    | ids
    | st.lists(called, max_size=2)
    | anything
)

beside = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.lists(called, max_size=2) | scalars,
        "system": scalars,
        "chat_template_kwargs": st.dictionaries(st.text(max_size=3), scalars, max_size=2),
        "history": st.lists(st.lists(scalars, min_size=2, max_size=2), max_size=2),
        "labels": ids,
        "completion_mask": ids,
    },
)
"""Columns that go with those of several shapes."""


@st.composite
def lists_of_rows(draw: st.DrawFn) -> list[Any]:
    """A right row, and others of its shape with some columns that may be wrong; perhaps in another order."""
    right = draw(st.sampled_from(RIGHT))
    wrong = st.dictionaries(st.sampled_from([*right, *COLUMNS]), values, max_size=2) | beside
    others = st.lists(wrong.map(lambda columns: {**right, **columns}), max_size=4)
    return draw(st.permutations([right, *draw(others), *draw(st.lists(anything, max_size=1))]))


def outcome(data: Any, on_bad_row: OnBadRow = "stop", max_length: int = 64) -> str | None:
    """What is refused, or None; whatever else is raised is a fault of ours."""
    renderer = Renderer(TOKENIZER, max_length=max_length, overlength="cut", vocabulary=len(TOKENIZER))
    try:
        found = read(open_source(data), renderer, columns={}, on_bad_row=on_bad_row)
    except UserError as error:
        said = str(error)
        assert said and len(said) < 100_000
        return said
    assert len(found.examples) == found.ledger.examples > 0
    return None


def file_of(content: bytes, name: str) -> tuple[str | None, str | None]:
    """The outcome of a file, stopped at its bad rows and without them."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        stopped, skipped = outcome(path), outcome(path, "skip")
    if stopped is not None and (skipped is None or "nothing to learn" in skipped):
        assert str(path) in stopped  # a fault of rows, each of which is named
    return stopped, skipped


almost = st.lists(
    st.sampled_from(
        [b'{"text": "a b"}\n', b'[{"text": "a b"}]', b"text\na b\n", b'{"prompt": "a", "completion": "b"}\n']
    )
    | st.sampled_from(
        [b'{"text": "a b"}', b"\n", b'"', b",", b"[", b"]", b"{", b"}", b"\0", b"\xff", b"\xef\xbb\xbf", b"\r",
         b"a,b", b"text", b"\\ud800", b'{"messages": [{"role": "user", "content": "q"}, ', b'{"role": "assistant"}',
         b"]}", b'"content"', b": ", b"1e999", b"-", b"NaN", b" ", b"\t", b"prompt,completion\n", b"\x1b[2J"]
    ),
    max_size=24,
).map(b"".join)  # fmt: skip
contents = st.binary(max_size=60) | almost


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.tsv", "r.jsonl.gz", "r.csv.gz"])
@bounded
@given(content=contents)
def test_bytes(name: str, content: bytes) -> None:
    file_of(content, name)
    if name.endswith(".gz"):
        file_of(gzip.compress(content), name)


@bounded
@given(content=contents, cut=st.integers(0, 40), flipped=st.integers(0, 10_000))
def test_damaged_gzip(content: bytes, cut: int, flipped: int) -> None:
    packed = bytearray(gzip.compress(content))
    packed[flipped % len(packed)] ^= 1 << flipped % 8
    file_of(bytes(packed[: max(1, len(packed) - cut)]), "r.jsonl.gz")
    file_of(zlib.compress(content), "r.json.gz")


@bounded
@given(data=lists_of_rows())
def test_rows_of_a_list(data: list[Any]) -> None:
    outcome(data)
    outcome(data, "skip", max_length=20)


@bounded
@given(data=lists_of_rows() | st.lists(anything, min_size=1, max_size=4))
def test_rows_of_json_lines(data: list[Any]) -> None:
    """As `json` writes them: with its escapes, NaN and Infinity."""
    file_of("".join(json.dumps(row) + "\n" for row in data).encode(), "r.jsonl")
    file_of(json.dumps(data).encode(), "r.json")

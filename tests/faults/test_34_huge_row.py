"""Fault 34: a huge or deeply nested row is an error, and memory stays bounded while it is found."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surefoot.data import jsonrows
from surefoot.data.badrows import RowError
from surefoot.data.dataset import read
from surefoot.data.files import open_file
from surefoot.data.lines import LONGEST_ROW
from surefoot.data.render import Renderer
from surefoot.data.rows import Row
from surefoot.data.sources import open_source
from surefoot.errors import UserError
from tests import templates, toys
from tests.conftest import Surefoot
from tests.faults.refused import GOOD, LINE, refusal, says, write

DEPTH = 100_000
OPEN, CLOSED = b"[" * DEPTH, b"]" * DEPTH

READ_IT = """
import resource, sys
from pathlib import Path
from surefoot.data.badrows import RowError
from surefoot.data.files import open_file
from surefoot.errors import UserError

with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[2]), -1))
try:
    for row in open_file(Path(sys.argv[1]), "r").rows():
        print(str(row) if isinstance(row, RowError) else "fine")
except UserError as error:
    print("file:", error)
"""


def read_within(path: Path, more_bytes: int) -> list[str]:
    """What reading `path` comes to, row by row, in a process that may take so much more memory."""
    done = subprocess.run(
        [sys.executable, "-c", READ_IT, str(path), str(more_bytes)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def bomb(before: bytes, unit: bytes, times: int, after: bytes) -> bytes:
    """Compressed, a thousandth: members of a gzip file follow each other."""
    return gzip.compress(before) + gzip.compress(unit, 1) * times + gzip.compress(after)


def test_a_line_beyond_the_bound(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with path.open("wb") as file:
        file.write(LINE + b'{"text": "')
        file.write(b"x" * LONGEST_ROW)
        file.write(b'"}\n' + LINE + b"{\n")
    said = refusal(surefoot, tiny_folder, path).splitlines()
    says(said[0], f"{path}:2: the line has 67,108,877 bytes, more than the 67,108,864 that a row may have. ")
    says(said[0], "Split the row, or take it out.", 'The line begins: {"text": "xxx')
    says(said[1], f"{path}:4:2: not usable JSON")
    says(said[2], "2 bad rows; 2 of 4 rows are fine.")


@pytest.mark.skipif(sys.platform != "linux", reason="address space is counted by Linux")
def test_a_bomb_of_one_line_is_not_unpacked_into_memory(tmp_path: Path) -> None:
    """768 MiB on one line; a quarter of that is enough to read past it."""
    path = write(tmp_path / "r.jsonl.gz", bomb(LINE + b'{"text": "', b"x" * 2**24, 48, b'"}\n' + LINE))
    said = read_within(path, 192 << 20)
    assert (said[0], said[2], len(said)) == ("fine", "fine", 3)
    says(said[1], "r:2: the line has 805,306,381 bytes", 'The line begins: {"text": "xxx')


@pytest.mark.skipif(sys.platform != "linux", reason="address space is counted by Linux")
def test_a_bomb_of_one_field_is_not_unpacked_into_memory(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.csv.gz", bomb(b'prompt,completion\na,"', b"x" * 2**23 + b"\n", 96, b'"\nc,d\n')
    )
    said = read_within(path, 512 << 20)
    says(said[0], "file: r:9: more than 67,108,864 bytes in one record", "Split the record")


def test_a_document_beyond_the_bound(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "r.json", b"[" + LINE)
    os.truncate(
        path, jsonrows.LARGEST_DOCUMENT + 1
    )  # nothing of it is on the disk, and nothing of it is read
    said = refusal(surefoot, tiny_folder, path)
    says(said, f"{path}: a JSON document of more than 2,000,000,000 bytes", "one object a line", ".jsonl")
    monkeypatch.setattr(jsonrows, "LARGEST_DOCUMENT", 2**20)
    path = write(tmp_path / "r.json.gz", bomb(b"[", b" " * 2**20, 3, b"]"))
    says(
        refusal(surefoot, tiny_folder, path),
        f"{path}: a JSON document of more than 1,048,576 bytes",
        ".jsonl",
    )


@pytest.mark.parametrize(("name", "content", "place"), [
    ("r.jsonl", LINE + b'{"text": ' + OPEN + CLOSED + b"}\n", ":2:1: not usable JSON"),
    ("r.jsonl", LINE + OPEN + b"\n", ":2:1: not usable JSON"),
    ("r.jsonl", LINE + b'{"a":' * DEPTH + b"\n", ":2:1: not usable JSON"),
    ("r.json", b"[" + LINE + b"," + OPEN + CLOSED + b"]", ":1:1: not usable JSON"),
    ("r.jsonl", LINE + b'{"messages": "' + OPEN + CLOSED + b'"}\n', ":2: column 'messages' is a string that is no"),
])  # fmt: skip
def test_deep_nesting(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path, name: str, content: bytes, place: str
) -> None:
    path = write(tmp_path / name, content)
    said = refusal(surefoot, tiny_folder, path)
    assert said.startswith(f"{path}{place}") and len(said) < 1_000
    assert "brackets are nested too deeply" in said


@pytest.mark.parametrize("depth", [100, 400, 900])
def test_nesting_that_json_can_bear(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path, depth: int
) -> None:
    """Whatever the depth, the row is learned or an error of its own."""
    deep = LINE.strip().removesuffix(b"}") + b', "tools": [{"name": "f", "parameters": ' + b"[" * depth
    path = write(tmp_path / "r.jsonl", LINE + deep + b"]" * depth + b"}]}\n" + LINE)
    template = tmp_path / "tools.jinja"
    template.write_text(templates.CHATML + "{% if tools %}{{ tools | tojson }}{% endif %}")
    flags = ("--data", path, "--chat_template_path", template, "--on-bad-row", "skip", "--json")
    said = surefoot("preview", tiny_folder, *flags)
    assert said.status == 0, said.err
    wheres = {example["where"] for example in said.json["examples"]}
    dropped = {where for places in said.json["ledger"]["dropped"].values() for where in places}
    assert wheres | dropped == {f"{path}:1", f"{path}:2", f"{path}:3"}
    assert f"{path}:2" in dropped or depth < 900


def nested(inner: Any = "x") -> Any:
    value = inner
    for _ in range(DEPTH):
        value = [value]
    return value


def some_nested() -> Iterator[Any]:
    yield from (GOOD, {"messages": nested()}, 3)


def reads(data: Any, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(
            open_source(data),
            Renderer(toys.byte_level(template=templates.CHATML), max_length=99),
            columns={},
            **how,
        )
    return str(caught.value)


def test_deep_nesting_that_python_gives() -> None:
    says(
        reads([GOOD, {"messages": nested()}]),
        "dataset[1]: the row cannot be written as JSON",
        "not nested too deeply",
        "begins: {",
    )
    datasets = pytest.importorskip("datasets")
    stream = datasets.IterableDataset.from_generator(some_nested)
    said = reads(stream, at_most=9).splitlines()
    says(
        said[0],
        "dataset[1]: the row cannot be written as JSON (nested too deeply)",
        'begins: {"messages": [[[',
    )
    says(said[1], "dataset[2]: a row is a mapping of columns to values, this is a int: 3")
    says(said[2], "2 bad rows; 1 of 3 rows are fine.")


def test_pipes_and_devices_are_refused_at_once(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    pipe, device = tmp_path / "pipe.jsonl", tmp_path / "device.jsonl"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    says(
        refusal(surefoot, tiny_folder, pipe),
        str(pipe),
        "is a pipe (FIFO), not an ordinary file",
        "put a file there",
    )
    says(
        refusal(surefoot, tiny_folder, device),
        str(device),
        "is a device, not an ordinary file",
        "put a file there",
    )


def test_a_long_row_within_the_bound_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", b'{"text": "' + b"x" * (LONGEST_ROW - 13) + b'"}\n{"text": "a"}\n')
    rows = list(open_file(path, "r").rows())
    assert [type(row) for row in rows] == [Row, Row]
    path.write_bytes(path.read_bytes().replace(b'x"', b'xx"', 1))
    assert [type(row) for row in open_file(path, "r").rows()] == [RowError, Row]

"""Examples on disk: the same as in memory, found again by content only, whole or not at all, in flat memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.data import cache as cache_module
from surefoot.data import store as store_module
from surefoot.data.dataset import Dataset, read
from surefoot.data.render import Renderer
from surefoot.data.rows import Example, Record, TokenSpans
from surefoot.data.sources import open_source
from surefoot.data.store import FILES, Writer, open_stored
from surefoot.errors import UserError
from tests import templates, toys
from tests.conftest import write_rows
from tests.data.rendered import assistant, call, chat, system, tool, user

TOKENIZER = toys.byte_level(template=templates.QWEN3)
ROWS = [
    {"messages": [user("Hi <|im_end|>"), assistant("Hello!"), user("Ok"), assistant("Bye.")]},
    {"messages": [user("no answer")]},
    {"messages": [system("é ünï"), user("Hi"), assistant("Hello!")]},
]


def renderer(**options: Any) -> Renderer:
    return Renderer(TOKENIZER, **{"max_length": 512, **options})


def reading(rows: Any, cache: Path, **options: Any) -> Dataset:
    rendering = {name: options.pop(name) for name in ("max_length", "last_turn_only") if name in options}
    options = {"columns": {}, "worth_seconds": 0.0, **options}
    return read(open_source(rows), renderer(**rendering), cache=cache, **options)


def contents(examples: Sequence[Example]) -> list[tuple[Any, ...]]:
    return [
        (e.prompt_ids.tolist(), e.completion_ids.tolist(), e.row, e.where, e.weight, e.prompt_ids.dtype)
        for e in examples
    ]


# The same examples ---------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
RECORDS = st.one_of(
    st.lists(TEXT.filter(bool), min_size=1, max_size=3).map(
        lambda said: chat(*(m for text in said for m in (user(text), assistant(text))))
    ),
    TEXT.map(
        lambda text: chat(user(text), assistant("", tool_calls=[call(text)]), tool(text), assistant("x"))
    ),
    st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=9).map(
        lambda pairs: TokenSpans([i for i, _ in pairs], [learned for _, learned in pairs])
    ),
)


@given(st.lists(RECORDS, min_size=1, max_size=9), st.sampled_from(["", "file.jsonl:", "päth "]))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], name: str
) -> None:
    placed = [(record, f"{name}{number}") for number, record in enumerate(records)]
    expected = list(renderer().examples(placed))
    folder = tmp_path_factory.mktemp("set")
    for writer in (Writer(folder), Writer(None)):
        for example in expected:
            writer.add(example)
        if not expected:
            writer.close()
            continue
        stored = writer.finish(sync=False)
        writer.close()
        assert contents(stored.examples) == contents(expected)
        assert stored.lengths.tolist() == [example.tokens for example in expected]
        by_row = [[e for e in expected if e.row == row] for row in dict.fromkeys(e.row for e in expected)]
        assert [contents(row) for row in stored.rows] == [contents(row) for row in by_row]
    if expected:
        assert contents(open_stored(folder).examples) == contents(expected)
    shutil.rmtree(folder)


def test_weights_are_kept() -> None:
    writer = Writer(None)
    ids = np.arange(4, dtype=np.int32)
    for weight in (0.25, 1 / 3):
        writer.add(Example(ids[:2], ids, 7, "here", weight))
    assert [example.weight for example in writer.finish(sync=False).examples] == [0.25, 1 / 3]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        [{"prompt": "a", "completion": "b"}] * 3,
        [{"text": "One two three"}],
        [{"input_ids": [5, 6, 7, 8], "completion_mask": [0, 1, 0, 1]}],
    ],
    ids=["messages", "prompt", "text", "ids"],
)
def test_a_second_run_finds_what_the_first_has_made(tmp_path: Path, rows: Any) -> None:
    first, second = (reading(rows, tmp_path) for _ in range(2))
    assert (first.from_cache, second.from_cache) == (False, True)
    assert contents(second.examples) == contents(first.examples)
    assert second.ledger == first.ledger
    assert second.ledger.lines() == first.ledger.lines()
    assert second.fingerprint == first.fingerprint
    assert contents(second.of_rows([0])) == contents(first.of_rows([0]))


def test_it_is_a_sequence_and_who_is_held_stays_the_same(tmp_path: Path) -> None:
    data = reading(ROWS, tmp_path)
    examples = data.examples
    assert (len(data.rows), len(examples)) == (2, 3)
    assert examples[-1].where == "dataset[2]"
    assert contents(examples[1:]) == contents(list(examples))[1:]
    assert contents(list(reversed(examples))) == contents(examples[::-1])
    with pytest.raises(IndexError):
        examples[3]
    held = list(examples)
    assert all(one is other for one, other in zip(held, data.examples, strict=True))
    assert data.of_rows([1])[0] is held[2]
    with pytest.raises(ValueError, match="read-only"):
        held[0].prompt_ids[0] = 3


# Found by content ----------------------------------------------------------------------------------------


def test_whatever_decides_the_ids_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    cache = tmp_path / "cache"
    reading(path, cache)
    assert reading(path, cache).from_cache
    assert not reading(path, cache, last_turn_only=True).from_cache
    assert not reading(path, cache, max_length=511).from_cache
    assert not reading(path, cache, at_most=1).from_cache
    assert reading(path, cache, at_most=1).ledger.rows == 1
    with pytest.raises(UserError, match="no column 'story'"):
        reading(path, cache, text_field="story")
    for change in ("template", "token", "code", "library"):
        with monkeypatch.context() as patch:
            if change == "template":
                patch.setattr(TOKENIZER, "chat_template", "{# another #}" + templates.QWEN3)
            elif change == "token":
                other = toys.byte_level(template=templates.QWEN3, sentences=["other words altogether"])
                patch.setattr(sys.modules[__name__], "TOKENIZER", other)
            elif change == "code":
                patch.setattr(cache_module, "_code", lambda: "other")
            else:
                patch.setattr(cache_module.importlib.metadata, "version", lambda name: "0")
            assert not reading(path, cache).from_cache, change
            assert reading(path, cache).from_cache, change
    write_rows(path, [*ROWS, ROWS[0]])
    assert len(reading(path, cache).rows) == 3


def test_a_template_that_writes_the_day_is_of_that_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(cache_module.date):
        @classmethod
        def today(cls) -> Tomorrow:
            return cls(2999, 1, 1)

    dated = "{{ strftime_now('%Y') }}" + templates.CHATML
    for template, found in ((templates.CHATML, True), (dated, False)):
        monkeypatch.setattr(TOKENIZER, "chat_template", template)
        reading(ROWS, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(cache_module, "date", Tomorrow)
            assert reading(ROWS, tmp_path).from_cache is found


def test_streams_and_functions_leave_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    stream = datasets.Dataset.from_list([{"text": f"One {i}"} for i in range(9)]).to_iterable_dataset()
    assert len(reading(stream, cache, at_most=4).rows) == 4
    made = reading(ROWS, cache, formatting=lambda row: row["messages"][0]["content"])
    assert len(made.rows) == 3
    assert reading([{"text": "quick"}], cache, worth_seconds=60).notes == ()
    assert list(cache.iterdir()) == []
    assert len(list(made.examples)) == 3  # still readable: it is mapped


def test_a_tokenizer_with_code_of_its_own_is_not_trusted_to_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TOKENIZER, "__class__", type("Own", (type(TOKENIZER),), {"__module__": "mine"}))
    assert not any(reading(ROWS, tmp_path).from_cache for _ in range(2))


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\[3\]"):
        reading([*ROWS, {"text": "another shape"}], tmp_path)
    with pytest.raises(UserError, match="nothing to learn"):
        reading([ROWS[1]], tmp_path)
    assert list(tmp_path.iterdir()) == []


# Whole or not at all -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, "index.json"])
@pytest.mark.parametrize("damage", ["shorter", "longer", "gone"])
def test_what_is_damaged_is_built_again(tmp_path: Path, name: str, damage: str) -> None:
    expected = contents(reading(ROWS, tmp_path).examples)
    (folder,) = tmp_path.iterdir()
    file = folder / name
    if damage == "gone":
        file.unlink()
    else:
        whole = file.read_bytes()
        file.write_bytes(whole[:-3] if damage == "shorter" else whole + b"123")
    again = reading(ROWS, tmp_path)
    assert not again.from_cache
    assert contents(again.examples) == expected
    assert reading(ROWS, tmp_path).from_cache
    assert list(tmp_path.iterdir()) == [folder]


def test_an_unfinished_set_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(cache_module, "_commit", lambda *_: os._exit(0))  # killed just before the rename
        reading(ROWS, tmp_path)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    (left,) = tmp_path.iterdir()
    assert (left / "index.json").exists()
    assert not reading(ROWS, tmp_path).from_cache
    os.utime(left, (0, 0))
    for file in left.iterdir():
        os.utime(file, (0, 0))
    reading(ROWS, tmp_path, max_length=511)
    assert not left.exists()


def _build(cache: Path, ready: Any, result: Any) -> None:
    def together(path: Path, folder: Path, commit: Any = cache_module._commit) -> None:
        ready.wait(20)
        commit(path, folder)

    cache_module._commit = together
    data = reading(ROWS, cache)
    result.put((data.from_cache, data.notes, [e.prompt_ids.tolist() for e in data.examples]))


def test_two_processes_build_the_same_set(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready, result = fork.Barrier(2), fork.Queue()
    both = [fork.Process(target=_build, args=(tmp_path, ready, result)) for _ in range(2)]
    for process in both:
        process.start()
    one, other = result.get(timeout=30), result.get(timeout=30)
    for process in both:
        process.join()
    assert one == other
    assert one[:2] == (False, ())
    assert reading(ROWS, tmp_path).from_cache
    assert len(list(tmp_path.iterdir())) == 1


def test_the_least_recently_used_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for length in (500, 501, 502):
        reading(ROWS, tmp_path, max_length=length)
    now = time.time()
    for folder in tmp_path.iterdir():
        for file in (folder, *folder.iterdir()):
            os.utime(file, (now - 100, now - 100))
    (folder, *_) = tmp_path.iterdir()
    size = sum(file.stat().st_size for file in folder.iterdir()) + folder.stat().st_size
    assert reading(ROWS, tmp_path, max_length=501).from_cache  # used again
    monkeypatch.setattr(cache_module, "BOUND_BYTES", int(2.5 * size))
    reading(ROWS, tmp_path, max_length=503)
    assert len(list(tmp_path.iterdir())) == 2
    assert [reading(ROWS, tmp_path, max_length=n).from_cache for n in (501, 503)] == [True, True]


# No room -------------------------------------------------------------------------------------------------


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The operating system refuses to make files longer than `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1001, 300_000])
def test_a_full_disk_is_said_once_and_the_run_goes_on(tmp_path: Path, room: int) -> None:
    rows = [{"input_ids": [*range(3, 203), i % 250], "completion_mask": [0] * 200 + [1]} for i in range(900)]
    expected = contents(reading(rows, tmp_path / "roomy").examples)
    with files_up_to(room):
        data = reading(rows, tmp_path / "full")
    assert contents(data.examples) == expected
    assert list((tmp_path / "full").iterdir()) == []
    (note,) = data.notes
    assert note.startswith(f"{tmp_path / 'full'} cannot be written (File too large)")
    assert "in memory" in note


def test_a_cache_that_is_no_folder(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    data = reading(ROWS, place)
    assert len(data.rows) == 2
    assert data.notes == (
        f"{place} cannot be written (File exists): the tokenised rows are held in a temporary folder and not "
        "kept for the next run",
    )


# Flat memory ---------------------------------------------------------------------------------------------

MEASURED = """
import re, sys
from pathlib import Path
from surefoot.data.dataset import read
from surefoot.data.render import Renderer
from surefoot.data.rows import Row
from surefoot.data.sources import Source
from tests import toys

def rows():
    for i in range(count):
        yield Row({"input_ids": [3, i % 200, i // 200, 4], "completion_mask": [0, 0, 1, 1]}, f"rows:{i}")

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

peak = 0.0
def seen(row):
    global peak
    if row % 1000 == 0:
        peak = max(peak, anonymous())

made = Renderer(toys.byte_level(), max_length=99)
for count in (2_000, 60_000):
    made = Renderer(made.tokenizer, max_length=99)
    data = read(Source("rows", count, "1", rows), made, columns={}, seen=seen, cache=Path(sys.argv[1]))
    assert len(data.rows) == count and data.ledger.duplicates == 0
    print(max(peak, anonymous()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path],
        check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    few, many = map(float, said.stdout.split())
    assert many - few < 12, f"{few:.0f} MB for 2,000 rows, {many:.0f} MB for 60,000"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_reading_gives_the_pages_back(tmp_path: Path) -> None:
    def mapped() -> float:
        return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]

    writer, long = Writer(tmp_path), np.arange(16_000, dtype=np.int32)
    for row in range(2_000):
        writer.add(Example(long[: row + 1], long[row + 1 :], row, str(row)))
    stored = writer.finish(sync=False)
    writer.close()
    before, peak = mapped(), 0.0
    for example in stored.examples:
        assert example.prompt_ids.sum() + example.completion_ids.sum() == long.sum()
        peak = max(peak, mapped())
    assert peak - before < 60, (
        f"{stored.tokens.nbytes / 2**20:.0f} MB were read, {peak - before:.0f} MB stayed"
    )


def test_lengths_over_many_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUFFERED", 4)
    writer, ids = Writer(None), np.arange(40, dtype=np.int32)
    wanted = np.random.default_rng(0).integers(1, 40, 23).tolist()
    for row, length in enumerate(wanted):
        writer.add(Example(ids[:0], ids[:length], row, "here"))
    assert writer.finish(sync=False).lengths.tolist() == wanted


def test_the_index_is_plain_json(tmp_path: Path) -> None:
    data = reading(ROWS, tmp_path)
    (folder,) = tmp_path.iterdir()
    index = json.loads((folder / "index.json").read_text())
    assert index["ledger"] == data.ledger.to_dict()
    assert replace(data.ledger, source="other") != data.ledger

"""Rows are read once on each machine, whoever needs them, and all ranks train on the same."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from surefoot.data.dataset import read
from surefoot.data.render import Renderer
from surefoot.data.sharing import runs
from surefoot.data.sources import open_source
from tests.conftest import write_rows
from tests.distributed.readings import BAD, ROWS, SLOW_SECONDS, TOKENIZER
from tests.distributed.started import spawn
from tests.faults.children import Zygote

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readings")


@pytest.fixture(scope="module")
def found(folder: Path, zygote: Zygote) -> list[dict[str, Any]]:
    """What the two ranks got."""
    (folder / "tmp").mkdir()
    for name, rows in (("rows", ROWS), ("bad", BAD), ("own-0", ROWS), ("own-1", ROWS[:-1])):
        write_rows(folder / f"{name}.jsonl", rows)
    spawn(zygote, "tests.distributed.readings:main", 2, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def both(found: list[dict[str, Any]], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return found[0][name], found[1][name]


@pytest.mark.parametrize(
    "name", ["kept", "again", "quick", "nowhere", "formatted", "skipped", "slow", "lines"]
)
def test_one_rank_reads_and_both_have_the_same(found: list[dict[str, Any]], name: str) -> None:
    first, second = both(found, name)
    assert second["rows_read"] == 0
    assert first["rows_read"] == {"again": 0, "skipped": 41, "lines": 2560}.get(name, 40)
    for key in ("examples", "ledger", "notes", "from_cache", "dict", "digest", "left"):
        assert first[key] == second[key], key
    assert len(first["examples"]) == (2560 if name == "lines" else 40)
    assert first["digest"] == first["dict"]["examples"]
    assert first["from_cache"] is (name == "again")
    assert first["notes"] == []


@pytest.mark.parametrize(("name", "file"), [("kept", "rows"), ("again", "rows"), ("skipped", "bad")])
def test_it_is_what_one_process_would_have_read(
    found: list[dict[str, Any]], folder: Path, name: str, file: str
) -> None:
    source = open_source(folder / f"{file}.jsonl")
    alone = read(source, Renderer(TOKENIZER, max_length=512), columns={}, on_bad_row="skip")
    for got in both(found, name):
        assert got["ledger"] == alone.ledger.to_dict()
        assert got["dict"] == alone.to_dict()
        assert got["examples"] == [
            [e.prompt_ids.tolist(), e.completion_ids.tolist(), e.row, e.where, e.weight]
            for e in alone.examples
        ]


def test_what_is_not_kept_is_gone_once_all_have_it(found: list[dict[str, Any]]) -> None:
    (kept,) = found[0]["kept"]["left"]
    assert not kept.startswith(".")
    for name in ("again", "quick", "nowhere", "formatted", "bad"):
        assert [got["left"] for got in both(found, name)] == [[kept], [kept]], name
    for name, got in found[0].items():
        assert not [one for one in got["left"] if one.startswith(".")], name


def test_a_bad_row_is_said_by_one(found: list[dict[str, Any]], folder: Path) -> None:
    (kind, said), (other, heard) = (got["error"] for got in both(found, "bad"))
    assert (kind, other) == ("RowError", "Elsewhere")
    assert said.startswith(f"{folder / 'bad.jsonl'}:8: ")
    assert heard == f"rank 0: {said}"


def test_a_fault_of_the_code_stops_both(found: list[dict[str, Any]]) -> None:
    assert [got["error"] for got in both(found, "fault")] == [
        ["RuntimeError", "a fault of the code"],
        ["StoppedElsewhere", "rank 0: a fault of the code"],
    ]


def test_what_the_other_rank_cannot_read_stops_both(found: list[dict[str, Any]], folder: Path) -> None:
    (kind, heard), (other, said) = (got["error"] for got in both(found, "unreadable"))
    assert (kind, other) == ("Elsewhere", "UserError")
    assert said.startswith(f"{folder / 'not here'}: the tokenised rows that another process on {HOST} has")
    assert "XDG_CACHE_HOME" in said
    assert heard == f"rank 1: {said}"


def test_no_room_for_a_folder_that_both_can_read(found: list[dict[str, Any]], folder: Path) -> None:
    (kind, said), (other, _) = (got["error"] for got in both(found, "no folder"))
    assert (kind, other) == ("UserError", "Elsewhere")
    assert said == (
        f"{folder / 'bad.jsonl'} cannot be written (File exists), and the processes of this machine are to share "
        f"the tokenised rows, from a folder. Make room in {folder / 'bad.jsonl'} (or set XDG_CACHE_HOME), or in "
        f"{folder / 'rows.jsonl'} (or set TMPDIR)."
    )
    (kind, said), (other, _) = (got["error"] for got in both(found, "full"))
    assert (kind, other) == ("UserError", "Elsewhere")
    assert said.startswith(
        f"{folder / 'other'} cannot be written (No space left on device), and the processes"
    )


def test_the_others_wait_longer_than_a_collective_would(found: list[dict[str, Any]]) -> None:
    for got in both(found, "slow"):
        assert got["seconds"] > SLOW_SECONDS
        assert len(got["examples"]) == 40


def test_one_of_a_machine_says_how_far_it_is(found: list[dict[str, Any]]) -> None:
    said, silent = (got["said"] for got in both(found, "lines"))
    assert silent == ""
    lines = said.splitlines()
    assert len(lines) >= 2
    assert lines[0].startswith(f"tokenising dataset on {HOST}: ")
    assert lines[0].endswith(" of 2,560 rows")
    assert all(0 < int(line.split()[-4].replace(",", "")) <= 2560 for line in lines)


def test_each_machine_reads_for_itself_and_waits_for_the_other(found: list[dict[str, Any]]) -> None:
    for got in both(found, "machines"):
        assert got["from_cache"]
    first, second = both(found, "wait")
    assert (first["rows_read"], second["rows_read"]) == (40, 40)
    assert first["seconds"] > SLOW_SECONDS * 0.9
    assert first["digest"] == second["digest"]
    assert second["waits"] == []
    assert len(first["waits"]) >= 2
    told = [
        re.fullmatch(rf"rank 1 on {re.escape(HOST)} has read (\d+) rows", line) for line in first["waits"]
    ]
    rows = [int(line[1]) for line in told if line]
    assert len(rows) == len(told)
    assert rows == sorted(rows)
    assert 0 < rows[-1] <= 40


def test_a_fault_on_one_machine_ends_the_work_of_the_other(found: list[dict[str, Any]]) -> None:
    first, second = both(found, "far")
    kind, said = second["error"]
    assert kind == "RowError"
    assert said.startswith("dataset[7]: ")
    assert first["error"] == ["Elsewhere", f"rank 1: {said}"]
    assert 0 < first["rows_read"] < 40


@pytest.mark.parametrize(
    ("name", "counts"),
    [("differ", ("40 rows, 40 examples", "39 rows, 39 examples")), ("split", ("20 rows",) * 2)],
)
def test_fault_23_ranks_disagree_on_data(
    found: list[dict[str, Any]], folder: Path, name: str, counts: tuple[str, str]
) -> None:
    errors = [got["error"] for got in both(found, name)]
    assert [kind for kind, _ in errors] == ["UserError", "Elsewhere"]
    assert errors[0][1] == errors[1][1]
    begin, *lines, end = errors[0][1].splitlines()
    assert begin.endswith(": the ranks do not have the same rows:")
    assert "the same file on each machine" in end
    for rank, (line, count) in enumerate(zip(lines, counts, strict=True)):
        assert line.startswith(f"  rank {rank} on {HOST}: {count}")
        rows = folder / f"own-{rank}.jsonl" if name == "differ" else ROWS[rank::2]
        source = open_source(rows)
        alone = read(source, Renderer(TOKENIZER, max_length=512), columns={})
        assert line.endswith(f"fingerprint {source.fingerprint}, examples {alone.stored.digest()}")


def test_ranks_for_people() -> None:
    assert [runs(numbers) for numbers in ([3], [0, 1, 2, 3], [9, 0, 1, 4, 5, 7])] == [
        "3",
        "0-3",
        "0-1, 4-5, 7, 9",
    ]

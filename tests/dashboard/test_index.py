"""What is kept of a run's events: grown by what is appended, begun anew when the file is another."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surefoot.dashboard import index as module
from surefoot.dashboard.index import BRIEF_COLUMNS, Index
from surefoot.report.records import FILE
from surefoot.runfolder import RunFolder
from tests.dashboard import real


def state(index: Index) -> dict[str, Any]:
    """All that it knows."""
    return {
        "offset": index.offset,
        "identity": index.identity,
        "columns": {name: index.steps[name].tolist() for name in index.steps.names},
        "known": index.steps.known,
        "others": index.others,
        "tensors": index.tensors,
        "last": index.last,
        "problems": index.all_problems(),
        "config": index.config,
        "since": index.since(0),
    }


def same(one: Index, other: Index) -> None:
    """The same knowledge, NaN and all."""
    assert repr(state(one)) == repr(state(other))


def fresh(folder: Path, **how: bool) -> Index:
    index = Index(folder, **how)
    index.grow()
    return index


@pytest.mark.parametrize("brief", [False, True])
def test_it_grows_by_what_was_appended(brief: bool, tmp_path: Path) -> None:
    whole = (real.run(tmp_path / "whole", 30).path / FILE).read_bytes()
    growing = tmp_path / "growing"
    shutil.copytree(tmp_path / "whole", growing)
    (growing / FILE).write_bytes(b"")
    index, chance, at = fresh(growing, brief=brief), random.Random(3), 0
    while at < len(whole):
        piece = whole[at : at + chance.choice((1, 7, 100, 600, 5_000))]
        with (growing / FILE).open("ab") as file:
            file.write(piece)
        at += len(piece)
        index.grow()
        assert index.offset == whole[:at].rfind(b"\n") + 1
        same(index, fresh(growing, brief=brief))
    assert index.steps.count == 30 and index.problems == []
    assert index.last["step"] == 30 and not index.last.get("examples")


def test_nothing_that_was_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = real.run(tmp_path, 20, ended=None)
    index = fresh(tmp_path)
    began: list[int] = []
    true_lines = module.lines

    def watched(path: Path, problems: list[str], at: int = 0) -> Any:
        began.append(at)
        return true_lines(path, problems, at)

    monkeypatch.setattr(module, "lines", watched)
    assert index.grow() is False and began == [0]  # its first line, which tells the file from another
    before = index.offset
    run.append(real.step(21))
    assert index.grow() is False and began == [0, 0, before]


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    real.run(tmp_path, 3, ended=None)
    line = (json.dumps(real.step(4).to_dict()) + "\n").encode()
    index = fresh(tmp_path)
    before = index.offset
    for cut in (1, len(line) // 2, len(line) - 1):
        with (tmp_path / FILE).open("r+b") as file:
            file.seek(before)
            file.write(line[:cut])
        assert index.grow() is False
        assert (index.offset, index.steps.count, index.all_problems()) == (before, 3, [])
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(before)
        file.write(line)
    index.grow()
    assert (index.offset, index.steps.count) == (before + len(line), 4)


# Another file ------------------------------------------------------------------------------------------------


def test_a_run_that_goes_back_is_read_anew(tmp_path: Path) -> None:
    run = real.run(tmp_path, 12, ended=None)
    index = fresh(tmp_path)
    identity = index.identity
    size = sum(map(len, (tmp_path / FILE).read_bytes().splitlines(keepends=True)[:10]))
    run.go_back(6, size)
    assert index.grow() is True and index.offset == size
    same(index, fresh(tmp_path))
    # Also when it has gone on beyond where it was before anybody looked.
    run.append(real.step(20))
    index.grow()
    run.go_back(6, size)
    real.config(run, 12, resumed=[{"step": 6, "time": 1.0, "notes": []}])
    for number in range(7, 40):
        run.append(real.step(number))
    assert index.grow() is True and index.identity != identity
    same(index, fresh(tmp_path))
    assert index.resumed_after() == [6]
    assert [event["step"] for event in index.events() if event["type"] == "start"] == [0, 6]
    assert index.grow() is False


def test_a_run_begun_anew_in_the_folder_is_noticed(tmp_path: Path) -> None:
    real.run(tmp_path, 5)
    index = fresh(tmp_path)
    before = index.identity
    run = RunFolder(tmp_path)
    run.clear()
    assert index.grow() is True and (index.offset, index.steps.count, index.identity) == (0, 0, "")
    run.append(real.StartEvent(step=0, time=7.0, total_steps=9, steps_per_epoch=1))
    for number in range(1, 30):
        run.append(real.step(number))
    assert index.grow() is True and index.identity not in ("", before)
    assert index.steps.count == 29
    shutil.rmtree(tmp_path)
    assert index.grow() is True and index.steps.count == 0
    assert index.grow() is False


def test_a_copied_folder_is_the_same_run(tmp_path: Path) -> None:
    real.run(tmp_path / "here", 9)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    same(fresh(tmp_path / "here"), fresh(tmp_path / "there"))


# Brief -------------------------------------------------------------------------------------------------------

ODD = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(ODD, ODD, ODD, st.integers(0, 1 << 62), st.text(max_size=9)), max_size=6))
def test_brief_tells_the_same_of_what_it_keeps(rows: list[Any], tmp_path: Path) -> None:
    (tmp_path / FILE).unlink(missing_ok=True)
    run = RunFolder(tmp_path)
    for number, (time, loss, norm, tokens, where) in enumerate(rows, 1):
        named = [(where, 1.0, 3)] if where else []
        run.append(
            real.step(
                number, time=time, loss=loss, grad_norm=norm, num_tokens=tokens, mfu=norm, examples=named
            )
        )
    whole, brief = fresh(tmp_path), fresh(tmp_path, brief=True)
    assert brief.problems == whole.problems == [] and whole.steps.count == len(rows)
    for name in BRIEF_COLUMNS:
        np.testing.assert_array_equal(brief.steps[name], whole.steps[name])
    assert repr(brief.last) == repr(whole.last) and brief.offset == whole.offset


def test_brief_is_read_without_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real.run(tmp_path, 50, ended=None)
    parsed: list[bytes] = []
    true_parsed = module.parsed

    def watched(line: bytes) -> dict[str, Any]:
        parsed.append(line)
        return true_parsed(line)

    monkeypatch.setattr(module, "parsed", watched)
    index = fresh(tmp_path, brief=True)
    steps = [line for line in parsed if line.startswith(module.STEP)]
    assert index.steps.count == 50 and len(steps) == 1  # the last, which is shown
    assert not any(line.startswith(module.TENSORS) for line in parsed)


# Since -------------------------------------------------------------------------------------------------------


def test_since_any_byte_is_what_was_appended_after_it(tmp_path: Path) -> None:
    real.run(tmp_path, 8)
    index = fresh(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    lines = content.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines]).tolist()
    records = [json.loads(line) for line in lines]
    kinds = [record["type"] for record in records]
    for offset in range(len(content) + 3):
        later = [i for i, end in enumerate(ends) if end > offset]
        found = index.since(offset)
        assert found.offset == len(content)
        assert index.steps["step"][found.first_step :].tolist() == [
            records[i]["step"] for i in later if kinds[i] == "step"
        ]
        assert found.others == [records[i] for i in later if kinds[i] not in ("step", "tensors")]
        tensors = [record for record in records if record["type"] == "tensors"]
        wanted = [records[i] for i in later if kinds[i] == "tensors"]
        assert index.tensor_records(found.tensors) == wanted == tensors[len(tensors) - len(wanted) :]


# What no trainer writes --------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_said_once(tmp_path: Path) -> None:
    """However often it is looked at."""
    (tmp_path / FILE).mkdir()
    index = fresh(tmp_path)
    said = index.all_problems()
    for _ in range(5):
        index.grow()
    assert index.all_problems() == said and 0 < len(said) < 4


def test_a_line_without_an_end_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.report.records.MOST_RECORD", 1000)
    real.run(tmp_path, 1, ended=None)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b"x" * 3000)
    index = fresh(tmp_path)
    for _ in range(3):
        index.grow()
    assert index.steps.count == 1
    assert [problem for problem in index.problems if "larger" in problem] == index.problems[:1]
    assert len(index.problems) == 1


def test_steps_are_read_after_too_many_other_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OTHERS", 10)
    run = RunFolder(tmp_path)
    for number in range(1, 201):
        run.append(real.step(number))
        run.append(real.WatchEvent(step=number, time=1.0, prompt="p", p={}))
    index = fresh(tmp_path)
    assert index.steps.count == 200 and len(index.others) == 10
    assert len(index.problems) == 1 and "rest is left out" in index.problems[0]


@pytest.mark.parametrize("brief", [False, True])
@pytest.mark.parametrize(
    "line",
    [
        b'{"type": "step", "step": 2, "time": 1.0, "epoch": 1.0, "loss": 1' + b"0" * 400 + b"}",
        b'{"type": "step", "step": 2'
        + b"0" * 400
        + b', "time": 1.0, "epoch": 1.0, "loss": 1.0, "num_tokens": 3, ',
        b'{"type": "step", "step": 20000000000000000000, "time": 1.0, "epoch": 1.0, "loss": 1.0, "num_tokens": 3, ',
        b'{"type": "step", "step": 2, "time": 1.2.3, "epoch": 1.0, "loss": 1.0, "num_tokens": 3, ',
        b'{"type": "step", "step": 2, "examples": [',
        b'{"type": "step", "step": 2, "examples": ]',
        b'{"type": "step", "step": 1, "loss": 3.0}',
        b'{"type": "step", "step": true}',
        b'{"type": "tensors", "step": ' + b"9" * 5000 + b", ",
        b'{"type": "tensors", "step": 1, nothing',
        b'{"type": [], "step": 3}',
        b'{"type": "eval", "step": 3, "metrics": {"eval_loss": 1' + b"0" * 400 + b"}}",
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b"",
        b"null",
    ],
)
def test_an_odd_line_harms_no_other(line: bytes, brief: bool, tmp_path: Path) -> None:
    real.run(tmp_path, 1, ended=None)
    with (tmp_path / FILE).open("ab") as file:
        file.write(line + b"\n")
    index = fresh(tmp_path, brief=brief)
    RunFolder(tmp_path).append(real.step(9))
    index.grow()
    assert index.steps["step"][-1] == 9 and index.steps["step"][0] == 1
    assert index.offset == (tmp_path / FILE).stat().st_size
    assert math.isfinite(index.steps["step"].sum())
    index.tensor_records(list(range(len(index.tensors))))


def test_records_of_the_tensors_of_another_file_are_left_out(tmp_path: Path) -> None:
    """Between two looks the file may have become another one."""
    real.run(tmp_path, 8)
    index = fresh(tmp_path)
    (tmp_path / FILE).write_bytes(b"x" * 100)
    assert index.tensor_records([0, 1, 2, 3]) == []
    assert index.tensor_records([0, 99]) == []

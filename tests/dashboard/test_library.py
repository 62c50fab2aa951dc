"""Which runs there are, under which ids; what is kept of them; what tells them apart."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surefoot.dashboard import library as module
from surefoot.dashboard.library import DEEPEST, Entry, Library, differing, final_loss, summary
from tests.dashboard import real

SECRET = b"secret"


def run_at(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(config))
    return folder


def names(*folders: Path) -> list[str]:
    return [entry.name for entry in Library(folders, SECRET).look()]


def entry_of(library: Library, name: str) -> Entry:
    return next(entry for entry in library.look() if entry.name == name)


# Finding -----------------------------------------------------------------------------------------------------


def test_runs_are_found_by_either_file_at_any_of_some_depths(tmp_path: Path) -> None:
    run_at(tmp_path / "b")
    run_at(tmp_path / "a" / "x" / "y")
    (tmp_path / "a" / "z").mkdir()
    (tmp_path / "a" / "z" / "events.jsonl").touch()
    (tmp_path / "empty").mkdir()
    deep = tmp_path.joinpath("deep", *map(str, range(DEEPEST - 2)))
    run_at(deep / "just")
    run_at(deep / "too" / "deep")
    deepest = (deep / "just").relative_to(tmp_path)
    assert len(deepest.parts) == DEEPEST
    assert names(tmp_path) == ["a/x/y", "a/z", "b", deepest.as_posix()]


def test_what_is_hidden_linked_or_inside_of_a_run_is_none(tmp_path: Path) -> None:
    run = run_at(tmp_path / "runs" / "one")
    run_at(run / "checkpoints" / "other")
    run_at(tmp_path / "runs" / ".hidden" / "x")
    run_at(tmp_path / "elsewhere" / "two")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "linked-run").symlink_to(tmp_path / "elsewhere" / "two")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path)
    (tmp_path / "runs" / "file").touch()
    assert names(tmp_path / "runs") == ["one"]
    # What was named is looked at, however it is reached.
    assert names(tmp_path / "runs" / "link") == ["two"]
    assert names(tmp_path / "runs" / ".hidden") == ["x"]


def test_a_run_can_be_named_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_at(tmp_path / "one")
    assert names(run) == ["one"]
    monkeypatch.chdir(run)
    assert names(Path()) == ["one"]
    assert names(run, tmp_path) == ["one"], "found twice, shown once"


def test_runs_come_and_go(tmp_path: Path) -> None:
    library = Library([tmp_path], SECRET)
    assert library.look() == [] and library.entry("x") is None
    run = run_at(tmp_path / "one")
    [entry] = library.look()
    index = library.whole(entry)
    library.brief(entry)
    run_at(tmp_path / "two")
    [_, second] = Library([tmp_path], SECRET).look()
    found = library.entry(second.id)
    assert found is not None and found.name == "two", "one that is new is looked for"
    assert library.whole(entry) is index
    shutil.rmtree(run)
    assert [entry.name for entry in library.look()] == ["two"]
    assert library.entry(entry.id) is None
    assert library.whole(second) is library.whole(second)


def test_no_more_are_looked_for_than_can_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        run_at(tmp_path / f"run-{number}")
    monkeypatch.setattr(module, "MOST_RUNS", 4)
    assert len(names(tmp_path)) == 4
    monkeypatch.setattr(module, "MOST_FOLDERS", 3)
    assert len(names(tmp_path)) == 2


# Ids ---------------------------------------------------------------------------------------------------------


def test_an_id_stays_and_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_at(tmp_path / "a" / "one")
    run_at(tmp_path / "b" / "one")
    first = {entry.folder: entry.id for entry in Library([tmp_path], SECRET).look()}
    assert len(set(first.values())) == 2
    assert all(len(run) == 20 and set(run) <= set("0123456789abcdef") for run in first.values())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for folders in ([Path()], [Path("a"), Path("b")], [tmp_path / "b" / ".." / "b", tmp_path / "link"]):
        again = {entry.folder: entry.id for entry in Library(folders, SECRET).look()}
        assert again == first, "by whatever way it is named"
    other = {entry.folder: entry.id for entry in Library([tmp_path], b"another").look()}
    assert not set(other.values()) & set(first.values())


# What is kept ------------------------------------------------------------------------------------------------


def test_whole_indices_not_looked_at_for_longest_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        real.run(tmp_path / f"run-{number}", 30)
    library = Library([tmp_path], SECRET)
    entries = library.look()

    def read(at: int) -> Any:
        index = library.whole(entries[at])
        index.grow()
        return index

    monkeypatch.setattr(module, "KEPT_BYTES", 3 * read(0).nbytes - 1)
    kept = {at: read(at) for at in (0, 1)}
    assert read(0) is kept[0]
    kept[2] = read(2)
    kept[3] = read(3)  # room for two: of 0, 1, 2 the one looked at last
    assert library.whole(entries[3]) is kept[3] and library.whole(entries[2]) is kept[2]
    assert library.whole(entries[1]) is not kept[1] and library.whole(entries[0]) is not kept[0]
    assert library.brief(entries[0]) is library.brief(entries[0])
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    assert read(1) is read(1), "the one that is shown stays, whatever it takes"


# A line of the list ------------------------------------------------------------------------------------------


def line(folder: Path, name: str = "run") -> dict[str, Any]:
    library = Library([folder], SECRET)
    entry = entry_of(library, name)
    index = library.brief(entry)
    index.grow()
    return summary(entry, index)


def test_a_line_tells_what_a_run_came_to(tmp_path: Path) -> None:
    run = real.run(tmp_path / "run", 42)
    real.config(run, 42, model={"name": "tiny"})
    found = line(tmp_path)
    assert (found["name"], found["model"], found["state"]["name"]) == ("run", "tiny", "finished")
    assert found["loss"] == 2.5 / 42 and found["started"] == real.BEGAN
    assert found["best"] == {"loss": 3.0 / 40, "step": 40, "of": "eval"}
    assert found["final"] == {"eval": 3.0 / 40, "train": pytest.approx((2.5 / 41 + 2.5 / 42) / 2)}
    assert (found["alerts"], found["slides"]) == (6, 6)
    assert found["spark"]["y"][0] == 2.5 and found["spark"]["x"][-1] == 42.0
    assert found["read"] == (run.events_file).stat().st_size


def test_a_line_of_a_run_without_anything(tmp_path: Path) -> None:
    run_at(tmp_path / "run")
    found = line(tmp_path)
    assert (found["loss"], found["best"], found["started"]) == (None, None, None)
    assert found["final"] == {"eval": None, "train": None} and found["spark"] == {"x": [], "y": []}


def test_without_evaluations_the_best_is_that_of_training(tmp_path: Path) -> None:
    run = real.RunFolder(run_at(tmp_path / "run"))
    for number, loss in enumerate([3.0, 1.0, math.nan, 0.5, math.inf, 2.0], 1):
        run.append(real.step(number, loss=loss))
    assert line(tmp_path)["best"] == {"loss": 0.5, "step": 4, "of": "train"}


def test_the_last_loss_is_the_mean_of_a_twentieth() -> None:
    for count in (1, 19, 39, 40, 41, 1000):
        losses = np.arange(count, dtype=np.float64)
        last = list(range(count))[-max(1, count // 20) :]
        assert final_loss(losses, [])["train"] == sum(last) / len(last)
    assert final_loss(np.array([1.0, np.nan]), [])["train"] is None
    assert final_loss(np.array([]), [{"type": "eval", "metrics": {"x": 1, "eval_loss": 2}}]) == {
        "eval": 2.0,
        "train": None,
    }


# Telling them apart ------------------------------------------------------------------------------------------


def test_what_differs_between_runs() -> None:
    first = {
        "config": {
            "learning_rate": 1e-4,
            "seed": 7,
            "output_dir": "a",
            "run_name": "a",
            "tags": ["a"],
            "optim": None,
        },
        "model": {"name": "tiny", "parameters": 9},
        "machine": {"device": "cpu"},
        "data": {"train": {"fingerprint": "abcdefghijklmnop"}, "odd": 3},
    }
    second = json.loads(json.dumps(first))
    assert differing({"x": first, "y": second}) == {}
    second["config"] |= {
        "learning_rate": 2e-4,
        "output_dir": "b",
        "run_name": "b",
        "tags": [],
        "optim": "sgd",
    }
    second["config"]["only"] = [1]
    second["model"]["parameters"] = 10
    second["data"]["train"]["fingerprint"] = "another"
    assert differing({"x": first, "y": second}) == {
        "learning_rate": {"x": "0.0001", "y": "0.0002"},
        "optim": {"x": "null", "y": "sgd"},
        "only": {"x": "–", "y": "[1]"},
        "parameters": {"x": "9", "y": "10"},
        "train data": {"x": "abcdefghijkl", "y": "another"},
    }
    assert differing({"x": first, "y": {}}) == {}, "one that tells nothing is not told apart"
    assert differing({}) == {} and differing({"x": first}) == {}

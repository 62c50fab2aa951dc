"""What a page was told first and what it was told since: together the same as the whole page, wherever it began."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from surefoot.dashboard import pages
from surefoot.dashboard.index import Index
from surefoot.dashboard.library import Entry
from surefoot.report import curves
from surefoot.report.parcel import as_json
from surefoot.report.records import FILE
from surefoot.runfolder import RunFolder
from tests.dashboard import real
from tests.dashboard.asking import Client
from tests.report import samples

HEATS = ("grad_norm", "update_ratio", "lost_share")
Page = dict[str, Any]


def add(page: Page, more: Page) -> None:
    """As a page in the browser does it."""
    _add_rows(page, more["rows"])
    page["offset"], page["steps"] = more["offset"], more["steps"]
    for series, part, key in (("evals", "metrics", "name"), ("watches", "p", "prompt")):
        for told in more[series]:
            _add_series(page[series], told, part, key)
    page["samples"] += more["samples"]
    page["events"] += more["events"]
    if more["heat"] is not None:
        page["heat"] = _with_heat(page["heat"], more["heat"])


def _add_rows(page: Page, rows: dict[str, list[Any]]) -> None:
    for name in curves.DRAWN:
        if name in rows:
            before = page["curves"].setdefault(name, {"x": page["all"][:], "y": ["NaN"] * len(page["all"])})
            before["x"] = before["x"] + rows["step"]
            before["y"] = before["y"] + rows[name]
    page["all"] = page["all"] + rows.get("step", [])


def _add_series(known: list[Page], told: Page, part: str, key: str) -> None:
    mine = next((one for one in known if one[key] == told[key]), None)
    if mine is None:
        known.append(mine := {key: told[key], "step": [], part: {}})
    count, new = len(mine["step"]), len(told["step"])
    mine["step"] = mine["step"] + told["step"]
    for name in dict.fromkeys([*mine[part], *told[part]]):
        mine[part][name] = mine[part].get(name, [None] * count) + told[part].get(name, [None] * new)


def _with_heat(before: Page | None, more: Page) -> Page:
    if before is None:
        return more
    fewer = more["every"] // before["every"]

    def thin(values: Sequence[Any]) -> list[Any]:
        return list(values[::fewer])

    rows = {key: [thin(a) + b for a, b in zip(before[key], more[key], strict=True)] for key in HEATS}
    assert before["layers"] == more["layers"]
    return {**more, "step": thin(before["step"]) + more["step"], **rows}


def shown(page: Page) -> Page:
    """What of a page does not depend on when it was asked for."""
    parts = ("steps", "curves", "evals", "watches", "samples", "events", "heat", "offset", "file")
    return {part: page[part] for part in parts}


def told(content: Any) -> Any:
    return json.loads(as_json(content))


def first(entry: Entry, index: Index) -> Page:
    page = told(pages.run_page(entry, index))
    page["all"] = told(index.steps["step"].tolist())
    return page


def feed(folder: Path, lines: Iterable[bytes]) -> None:
    with (folder / FILE).open("ab") as file:
        file.writelines(lines)


@pytest.fixture(params=["sample", "real", "columns that come late"])
def lines(request: pytest.FixtureRequest, tmp_path: Path) -> list[bytes]:
    """The lines of a run; its run.json is in the folder already, its events are not."""
    run = tmp_path / "run"
    if request.param == "sample":
        samples.run_folder(run, steps=120)
    else:
        real.run(run, 40)
    found = (run / FILE).read_bytes().splitlines(keepends=True)
    if request.param == "columns that come late":
        steps = [json.loads(line) for line in found]
        for record in steps[: len(steps) // 2]:
            if record["type"] == "step":
                del record["entropy"], record["learning_rate"]
                record["loss"] = math.nan
        found = [(json.dumps(record) + "\n").encode() for record in steps]
    (run / FILE).write_bytes(b"")
    return found


@pytest.mark.parametrize("most", [1, 7, 60])
@pytest.mark.parametrize("beginning", [1, 2, 37])
def test_pieces_are_the_whole(
    lines: list[bytes], most: int, beginning: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "MOST_COLUMNS", 4)  # so that what is drawn is thinned again and again
    run, chance = tmp_path / "run", random.Random(most)
    entry = Entry("id", run, "run")
    feed(run, lines[:beginning])
    growing = Index(run)
    growing.grow()
    page, at = first(entry, growing), beginning
    while at < len(lines):
        count = chance.randint(1, most)
        feed(run, lines[at : at + count])
        at += count
        assert growing.grow() is False
        more = pages.delta(growing, page["offset"])
        assert more is not None
        add(page, told(more))
    whole = Index(run)
    whole.grow()
    expected = first(entry, whole)
    assert shown(page) == shown(expected)
    assert expected["steps"] == len(expected["all"]) > 30 and len(expected["heat"]["step"]) <= 4 + 1


def test_nothing_new_is_nothing(tmp_path: Path) -> None:
    real.run(tmp_path, 9)
    index = Index(tmp_path)
    index.grow()
    found = pages.delta(index, index.offset)
    assert found is not None and found["heat"] is None
    assert all(values == [] for values in found["rows"].values())
    assert not any(found[part] for part in ("evals", "watches", "samples", "events"))


def test_too_much_is_not_told_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real.run(tmp_path, 30, ended=None)
    index = Index(tmp_path)
    index.grow()
    monkeypatch.setattr(pages, "MOST_DELTA", 30)
    assert pages.delta(index, 0) is not None
    monkeypatch.setattr(pages, "MOST_DELTA", 29)
    assert pages.delta(index, 0) is None


def test_a_page_tells_of_the_bytes_it_names_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when another page reads on meanwhile; else it would be told some of it twice."""
    run = real.run(tmp_path, 10, ended=None)
    index = Index(tmp_path)
    index.grow()
    true_heat = pages.heat_page

    def heat_page(*given: Any) -> Any:
        for event in (real.step(11), real.step(12), *real.others(12)):
            run.append(event)
        index.grow()
        return true_heat(*given)

    monkeypatch.setattr(pages, "heat_page", heat_page)
    page = told(pages.run_page(Entry("id", tmp_path, "run"), index))
    assert page["steps"] == 10 and page["heat"]["step"] == [2, 4, 6, 8, 10]


# Parts of a run ----------------------------------------------------------------------------------------------


def test_a_window_is_as_fine_as_it_is_asked_for(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number in range(1, 501):
        run.append(real.step(number))
    index = Index(tmp_path)
    index.grow()
    found = pages.window(index, ["loss", "step", "nothing"], 100, 120, 600)
    assert set(found["curves"]) == {"loss"}
    assert found["curves"]["loss"]["x"] == [float(step) for step in range(99, 122)]
    assert found["curves"]["loss"]["y"] == [2.5 / step for step in range(99, 122)]
    coarse = pages.window(index, ["loss"], 0, 1e9, 10)["curves"]["loss"]
    assert coarse["x"][0] == 1 and coarse["x"][-1] == 500 and len(coarse["x"]) <= 32
    for low, high in ((math.nan, math.nan), (9, 3), (1e300, -1e300), (math.inf, math.inf), (-5, -1)):
        assert len(pages.window(index, ["loss"], low, high, 10)["curves"]["loss"]["x"]) <= 3


def test_one_layer_has_its_tensors_over_time(tmp_path: Path) -> None:
    real.run(tmp_path, 8)
    index = Index(tmp_path)
    index.grow()
    found = pages.layer_page(index, 1)
    assert found["layer"] == "model.layers.0" and found["step"] == [2, 4, 6, 8]
    assert list(found["tensors"]) == real.TENSORS[1:3]
    down = found["tensors"][real.TENSORS[2]]
    assert down["grad_norm"] == [4.0, 6.0, 8.0, 10.0]
    assert down["update_ratio"] == [0.25 / norm for norm in (4.0, 6.0, 8.0, 10.0)]
    for layer in (3, 99):
        with pytest.raises(ValueError, match=f"no layer {layer}"):
            pages.layer_page(index, layer)


def test_runs_are_laid_over_one_another(browser: Client) -> None:
    [entry] = browser.library.look()
    found = {axis: browser.json(f"/api/compare?runs={entry.id},none&axis={axis}") for axis in pages.AXES}
    [run] = found["step"]["runs"]
    assert run["id"] == entry.id and run["loss"]["x"] == list(range(1, 61))
    assert run["eval"]["x"] == [20.0, 40.0, 60.0]
    [by_time] = found["time"]["runs"]
    assert by_time["loss"]["y"] == run["loss"]["y"]
    assert by_time["loss"]["x"] == sorted(by_time["loss"]["x"]) and by_time["eval"]["y"] == run["eval"]["y"]


def test_a_slide_and_the_worst_rows_are_those_of_the_report(browser: Client, shown: Path) -> None:
    [entry] = browser.library.look()
    assert browser.json(f"/api/runs/{entry.id}")["slides"] == [20, 40]
    found = browser.json(f"/api/runs/{entry.id}/slides/40")
    assert found["slide"]["step"] == 40 and "mountain.surface" in found["arrays"]
    assert browser.json(f"/api/runs/{entry.id}/worst")["worst"][0]["title"] == "Cost most"
    where = "examples/capitals/train.jsonl:12"
    row = browser.json(f"/api/runs/{entry.id}/row?where={where}")
    assert [opened["step"] for opened in row["examples"]] == [40, 20]
    assert row["where"] == where and len(row["visits"]) > 1
    report = browser.ask(f"/api/runs/{entry.id}/report")
    assert report.all("content-type") == ["application/octet-stream"]
    assert report.all("content-disposition") == ['attachment; filename="report.html"']
    assert report.body.startswith(b"<!doctype html>")

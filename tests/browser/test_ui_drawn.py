"""surefoot ui in a browser: a run's page and runs compared show the numbers that the runs' records have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from surefoot.report.runs import read_run
from surefoot.runfolder import RunFolder
from tests.browser.serving import names, run_id, until
from tests.browser.test_report import COLOURS, figure, numbers
from tests.report import samples

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import Open, Serve
    from tests.browser.serving import Served

PARTS = [
    "run",
    "curves",
    "watched",
    "gradient",
    "layers",
    "training",
    "worst",
    "ledger",
    "slides",
    "settings",
    "events",
]
REFUSED = (
    "ERR_CONNECTION_REFUSED",
    "Failed to load resource",
    "ERR_INCOMPLETE_CHUNKED",
    "ERR_CONNECTION_RESET",
)


def option(run: Path, **values: object) -> Path:
    about = json.loads((run / "run.json").read_text())
    about["config"].update(values)
    (run / "run.json").write_text(json.dumps(about))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("drawn")
    samples.with_slides(samples.run_folder(top / "caps", steps=200), samples.full(100), samples.full(120))
    option(samples.run_folder(top / "fast", steps=120), learning_rate=1e-3)
    return top


def page_of(visit: Open, server: Served, name: str, **how: object) -> Page:
    listed = visit(server, allowed=how.get("allowed", ()))  # pyright: ignore[reportArgumentType]
    until(listed, lambda: name in names(listed))
    page = visit(server, f"/run/{run_id(listed, name)}", **how)  # pyright: ignore[reportArgumentType]
    page.locator("#curves canvas").first.wait_for()
    return page


def parts(page: Page) -> list[str]:
    return page.locator("main section[id]").evaluate_all("all => all.map(one => one.id)")


def loss(page: Page) -> list[tuple[int, float]]:
    rows = numbers(page, "Loss by step")
    return [(int(row[0]), float(row[1])) for row in rows if row[1] != "NaN"]


def told(run: Path, kind: str = "step") -> list[dict]:
    return read_run(run).of(kind)


def test_a_runs_page_is_its_records(visit: Open, serve: Serve, runs: Path) -> None:
    page = page_of(visit, serve(runs), "caps")
    assert parts(page) == PARTS
    steps = told(runs / "caps")
    assert loss(page) == [(event["step"], event["loss"]) for event in steps]
    for label, name in (
        ("Gradient norm, before", "grad_norm"),
        ("Clip factor", "clip_factor"),
        ("Learning rate", "learning_rate"),
    ):
        assert [float(row[1]) for row in numbers(page, label)] == [event[name] for event in steps]
    watched = numbers(page, "What is the capital of California?")
    assert [float(row[1]) for row in watched] == [
        event["p"]["Sacramento"] for event in told(runs / "caps", "watch")
    ]
    page.locator("#which").select_option("120")
    page.locator("#noise").wait_for()
    page.locator("#worst button.link").first.wait_for()
    assert {
        "batch",
        "prediction",
        "error",
        "head",
        "backward",
        "optimizer",
        "weights",
        "mountain",
        "after",
    } <= set(parts(page))
    assert page.locator("#landscape canvas").count() == 1
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(200)
        assert min(page.locator("canvas").evaluate_all(COLOURS)) > 3, "no canvas is blank"


def test_smoothing_shows_the_steps_too(visit: Open, serve: Serve, runs: Path) -> None:
    page = page_of(visit, serve(runs), "fast")
    page.get_by_label("Smoothing").select_option("20")
    drawn = figure(page, "Loss by step")
    assert drawn.locator(".legend button").all_inner_texts()[:2] == ["training", "mean of 20 steps"]
    losses = [event["loss"] for event in told(runs / "fast")]
    assert loss(page)[49] == (50, losses[49])
    around = losses[39:60]  # 40 to 60: ten steps on either side of step 50
    assert float(numbers(page, "Loss by step")[49][2]) == pytest.approx(sum(around) / len(around), rel=1e-6)


def test_a_layer_and_a_row_open(visit: Open, serve: Serve, runs: Path) -> None:
    page = page_of(visit, serve(runs), "caps")
    canvas = figure(page, "Gradient norm, layer").locator("canvas")
    canvas.focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.locator("#tensor").wait_for()
    records = told(runs / "caps", "tensors")
    drawn = numbers(page, "‖g‖ of model.embed_tokens.weight")
    assert [float(row[1]) for row in drawn] == [record["grad_norm"][0] for record in records]
    page.locator("#worst").scroll_into_view_if_needed()
    row = page.locator("#worst button.link").first
    row.click()
    box = page.locator("dialog")
    where = box.locator("h2").inner_text()
    visits = numbers(page, "Loss of this row at each visit")
    costs = [
        (event["step"], cost / count)
        for event in told(runs / "caps")
        for place, cost, count in event["examples"]
        if place == where
    ]
    assert [(int(step), float(cost)) for step, cost in visits] == costs
    page.keyboard.press("Escape")
    until(page, lambda: page.locator("dialog").count() == 0)


def test_runs_are_compared(visit: Open, serve: Serve, runs: Path) -> None:
    server = serve(runs)
    listed = visit(server)
    until(listed, lambda: len(names(listed)) == 2)
    both = ",".join(run_id(listed, name) for name in ("caps", "fast"))
    page = visit(server, f"/compare?runs={both}")
    page.locator("#curves canvas").first.wait_for()
    page.get_by_label("Smoothing").select_option("0")
    rows = numbers(page, "Training loss by step")
    for column, name in ((1, "caps"), (2, "fast")):
        assert [float(row[column]) for row in rows if row[column] != "NaN"] == [
            event["loss"] for event in told(runs / name)
        ]
    page.locator("#axis-time").click()
    page.get_by_label("Smoothing").wait_for()
    until(page, lambda: figure(page, "Training loss by time").count() == 1)
    assert page.locator("#options tbody th").all_inner_texts() == ["learning_rate"]
    finals = numbers(page, "Final loss by learning_rate")
    last = [told(runs / name, "eval")[-1]["metrics"]["eval_loss"] for name in ("caps", "fast")]
    assert sorted(float(row[2]) for row in finals) == sorted(last)


def test_a_run_is_watched_from_its_start_to_its_end(visit: Open, serve: Serve, tmp_path: Path) -> None:
    """Also while the server is killed and started again, and while a copy of it lies beside."""
    whole = samples.run_folder(tmp_path / "whole", steps=60)
    lines = (whole / "events.jsonl").read_bytes().splitlines(keepends=True)
    lines_loss = {event["step"]: event["loss"] for event in told(whole)}
    top = tmp_path / "runs"
    run = top / "growing"
    run.mkdir(parents=True)
    shutil.copy(whole / "run.json", run)
    server = serve(top)
    with RunFolder(run).locked(), (run / "events.jsonl").open("ab", buffering=0) as events:
        for line in lines[:12]:
            events.write(line)
        page = page_of(visit, server, "growing", allowed=REFUSED)
        until(page, lambda: page.locator("#run .badge").inner_text() == "Training")
        page.evaluate("window.same = true")
        for number, line in enumerate(lines[12:-1]):
            if number == 20:
                server.stop()
            events.write(line)
            if number == 30:
                server.start()
            if json.loads(line)["type"] == "step" and number not in range(20, 40) and number % 8 == 0:
                step = json.loads(line)["step"]
                # Within a second where the machine is not busy (benchmarks/dashboard.py); in tests it is.
                until(page, lambda step=step: (step, lines_loss[step]) in loss(page)[-1:], 30.0)
        copy = shutil.copytree(run, top / "copied")
        copied = page_of(visit, server, "copied", allowed=REFUSED)
        assert copied.locator("#run .badge").inner_text() == "Stopped"
        assert (copy / ".lock").is_file()
        events.write(lines[-1])
        until(page, lambda: page.locator("#run .badge").inner_text() == "Finished")
    assert page.evaluate("window.same"), "it was never loaded anew"
    assert loss(page) == loss(copied) == [(event["step"], event["loss"]) for event in told(run)]
    page.reload()
    page.locator("#curves canvas").first.wait_for()
    assert loss(page) == loss(copied)


def test_a_run_that_goes_back_is_drawn_anew(visit: Open, serve: Serve, tmp_path: Path) -> None:
    run = samples.run_folder(tmp_path / "runs" / "back", steps=40)
    whole = (run / "events.jsonl").read_bytes()
    page = page_of(visit, serve(tmp_path / "runs"), "back")
    assert len(loss(page)) == 40
    early = [line for line in whole.splitlines(keepends=True) if json.loads(line)["step"] <= 25]
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "resumed": [{"step": 25, "time": 1.0}]}))
    (run / "events.jsonl").write_bytes(b"".join(early))
    until(page, lambda: [step for step, _ in loss(page)[-1:]] == [25])
    assert [step for step, _ in loss(page)] == list(range(1, 26))


def test_no_text_of_a_run_becomes_code(visit: Open, serve: Serve, tmp_path: Path) -> None:
    name = "<img src=x onerror=window.hurt=1>"
    run = samples.run_folder(tmp_path / "runs" / name, steps=30, texts=" ".join(samples.HOSTILE))
    samples.with_slides(run, samples.hostile())
    option(run, tags=samples.HOSTILE, optim=samples.HOSTILE[1])
    samples.run_folder(tmp_path / "runs" / "other", steps=10)
    server = serve(tmp_path / "runs")
    listed = visit(server)
    until(listed, lambda: len(names(listed)) == 2)
    bad = ":is(img, iframe, script, b:not(.chip b), object, embed)"
    ids = [run_id(listed, found) for found in names(listed)]
    page = page_of(visit, server, name)
    page.locator("#which").select_option(index=1)
    page.locator("#batch").wait_for()
    page.locator("#worst").scroll_into_view_if_needed()
    page.locator("#worst button.link").first.click()
    page.locator("dialog p").first.wait_for()
    compared = visit(server, f"/compare?runs={','.join(ids)}")
    compared.locator("#options td").first.wait_for()
    for one in (listed, page, compared):
        one.wait_for_timeout(200)
        assert one.evaluate("window.hurt") is None
        assert one.locator(f"main {bad}, dialog {bad}").count() == 0


@pytest.mark.parametrize("path", ["/", "run", "compare"])
def test_a_phone_shows_all(path: str, visit: Open, serve: Serve, runs: Path) -> None:
    server = serve(runs)
    listed = visit(server, width=390)
    until(listed, lambda: len(names(listed)) == 2)
    ids = [run_id(listed, name) for name in names(listed)]
    page = (
        listed
        if path == "/"
        else visit(
            server, {"run": f"/run/{ids[0]}", "compare": f"/compare?runs={','.join(ids)}"}[path], width=390
        )
    )
    page.locator("main section").first.wait_for()
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") == 390

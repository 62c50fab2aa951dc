"""surefoot report: one HTML file of a run or a slide, or the slide as text."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from surefoot.microscope.slide import Opened
from surefoot.report.page import render
from surefoot.report.runs import read_run
from surefoot.report.terminal import show
from tests.conftest import QUESTIONS, Surefoot
from tests.report.sample_slide import sample
from tests.report.test_page import data_of


@pytest.fixture(scope="module")
def opened() -> Opened:
    return sample(step=10)


@pytest.fixture
def slide(opened: Opened, tmp_path: Path) -> Path:
    return opened.save(tmp_path / "step-00000010")


@pytest.fixture
def run(tiny_run: Path, opened: Opened, tmp_path: Path) -> Path:
    """A real run with two slides."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("model", "checkpoints"))
    for step in (2, 10):
        later = opened.slide.model_copy(update={"step": step, "headline": f"slide of step {step}"})
        Opened(slide=later, arrays=opened.arrays).save(folder / "slides" / f"step-{step:08d}")
    return folder


def test_a_slide_becomes_a_file_beside_it(slide: Path, opened: Opened, surefoot: Surefoot) -> None:
    said = surefoot("report", slide)
    assert (said.status, said.err) == (0, "")
    written = slide / "slide.html"
    assert written.read_text(encoding="utf-8") == render([Opened.load(slide)])
    assert said.out == f"{written}: {written.stat().st_size / 1e6:.2g} MB, 1 slide\n"


def test_the_position_that_a_slide_looks_at_is_shown(
    opened: Opened, surefoot: Surefoot, tmp_path: Path
) -> None:
    second = Opened(slide=opened.slide.model_copy(update={"looked_at": 1}), arrays=opened.arrays)
    folder = second.save(tmp_path / "second")
    shown = [
        surefoot("report", folder, "--terminal", *more).out
        for more in ([], ["--position", 1], ["--position", 0])
    ]
    assert shown[0] == shown[1] != shown[2]


def test_who_reads_needs_no_torch(run: Path) -> None:
    slide = run / "slides" / "step-00000010"
    code = (
        "import sys, surefoot; from surefoot.cli import main\n"
        f"surefoot.open_slide({str(slide)!r})\n"
        f"for argv in (['report'], ['report', '--terminal'], ['worst']): main([argv[0], {str(run)!r}, *argv[1:]])\n"
        "sys.exit(str({'torch', 'transformers'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.stderr.splitlines()[-1:] == ["set()"], said.stderr


def test_a_run_becomes_a_file_with_its_slides(run: Path, surefoot: Surefoot) -> None:
    said = surefoot("report", run, "--json")
    assert (said.status, said.err) == (0, "")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert said.json == {"file": str(run / "report.html"), "bytes": len(page.encode()), "slides": 2}
    slides = [Opened.load(run / "slides" / f"step-{step:08d}") for step in (2, 10)]
    assert page == render(slides, read_run(run))
    assert page.index("slide of step 2") < page.index("slide of step 10")


def test_the_worst_rows_are_told_with_their_words(run: Path, rows_file: Path) -> None:
    found = data_of(render([], read_run(run)))["run"]
    (most, *_) = found["worst"]
    words = {row["where"]: row["text"] for row in most["rows"]}
    assert found["worst_note"] is None
    questions = dict(QUESTIONS)
    for where, text in words.items():
        asked, answer = text.split(" → ")
        assert questions[asked] == answer
        line = rows_file.read_text(encoding="utf-8").splitlines()[int(where.rpartition(":")[2]) - 1]
        assert asked in line
    (run / "run.json").write_text((run / "run.json").read_text().replace(str(rows_file), "org/on-a-hub"))
    found = data_of(render([], read_run(run)))["run"]
    assert found["worst_note"] == "org/on-a-hub is not here, so its rows' text is not shown"
    assert all("text" not in row for row in found["worst"][0]["rows"])


@pytest.mark.parametrize("argv", [["-o", "x.html"], ["-ox.html"], ["-o=x.html"], ["--output", "x.html"]])
def test_the_file_can_be_named(argv: list[str], slide: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    said = surefoot("report", slide, *argv)
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith("x.html: ")
    assert (tmp_path / "x.html").read_text(encoding="utf-8").startswith("<!")
    assert not (slide / "slide.html").exists()


def test_flags_may_stand_before_the_folder(slide: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    assert surefoot("report", "-o", "x.html", slide).status == 0
    assert (tmp_path / "x.html").is_file()


def test_a_slide_is_printed_instead(slide: Path, opened: Opened, surefoot: Surefoot) -> None:
    for position in (0, 1):
        expected = io.StringIO()
        show(opened, Console(file=expected, width=100), position)
        said = surefoot("report", slide, "--terminal", "--position", position)
        assert (said.status, said.out, said.err) == (0, expected.getvalue(), "")
    assert not (slide / "slide.html").exists()


def test_of_a_run_the_newest_slide_is_printed(run: Path, surefoot: Surefoot) -> None:
    said = surefoot("report", "--terminal", run)
    assert "slide of step 10\n" in said.out
    assert "slide of step 2\n" not in said.out


def test_the_numbers_of_a_slide(run: Path, surefoot: Surefoot) -> None:
    found = surefoot("report", run, "--terminal", "--json").json
    assert found == json.loads(Opened.load(run / "slides" / "step-00000010").slide.model_dump_json())


def test_printed_and_written(slide: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    said = surefoot("report", slide, "--terminal", "-o", "x.html")
    assert "11  Promised and obtained" in said.out
    assert said.out.splitlines()[-1].startswith("x.html: ")
    assert surefoot("report", slide, "--terminal", "-o", "x.html", "--json").json["step"] == 10


def test_a_broken_slide_is_left_out_and_named(run: Path, surefoot: Surefoot) -> None:
    broken = run / "slides" / "step-00000002"
    (broken / "slide.json").write_text("{", encoding="utf-8")
    said = surefoot("report", run, "--json")
    assert said.status == 0
    assert said.json["slides"] == 1
    assert said.err.startswith(f"note: {broken}")
    alone = surefoot("report", broken)
    assert alone.status == 2
    assert "not a slide" in alone.err


def test_what_cannot_be_reported(
    slide: Path, run: Path, tiny_run: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for argv, words in (
        (["report"], "surefoot report RUN, or surefoot report SLIDE: which folder?"),
        (["report", "nowhere"], "nowhere is not there. Name a run's folder"),
        (["report", "empty"], "empty is no run (no run.json) and no slide (no slide.json)"),
        (["report", tiny_run, "--terminal"], f"{tiny_run} has no slides. Train with --slides 10,20"),
        (["report", slide, "--terminal", "--position", "3"], "position 3: the slide has no such position"),
        (["report", slide, "--position", "0"], "position: chooses a prediction for --terminal"),
        (["report", slide, "--terminal", "--json", "--position", "0"], "position: chooses a prediction"),
        (["report", slide, "--position", "-1"], "position: Input should be greater than or equal to 0"),
        (["report", slide, "-o", "no/such/x.html"], "no/such/x.html cannot be written: No such file"),
        (["report", slide, "-o", "empty"], "empty cannot be written: Is a directory"),
        (["report", slide, "-o"], "--output needs a value"),
    ):
        said = surefoot(*argv)
        assert (said.status, said.out) == (2, ""), argv
        assert said.err.startswith(f"surefoot: {words}"), said.err


def test_a_run_without_slides_has_a_report_too(tiny_run: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    said = surefoot("report", tiny_run, "-o", tmp_path / "x.html", "--json")
    assert said.json["slides"] == 0
    assert (tmp_path / "x.html").stat().st_size == said.json["bytes"] > 10_000

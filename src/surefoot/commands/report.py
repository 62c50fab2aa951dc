"""surefoot report: a run or a slide as one HTML file, or a slide in the terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from surefoot.commands.options import parse
from surefoot.console import text_console
from surefoot.errors import UserError
from surefoot.microscope.slide import Opened
from surefoot.report.page import render
from surefoot.report.runs import Run, is_run, load_slides, read_run
from surefoot.report.terminal import show
from surefoot.validation import checked

PIPED = 100
"""Columns of a slide that is not printed on a terminal."""


class ReportOptions(BaseModel):
    """Options of `surefoot report`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    output: str | None = None
    """The HTML file to write; -o is short for it. Default: report.html in the run, slide.html in the slide."""
    terminal: bool = False
    """Print the slide here (of a run: its newest) instead of writing a file; with --json, its numbers."""
    position: int | None = Field(None, ge=0)
    """With --terminal: which of the slide's predictions to look at, from 0. Default: the one that it looks at."""


def run(argv: list[str]) -> int:
    """Parse, read, write or print."""
    parsed = parse(
        ReportOptions,
        _spelled_out(argv),
        prog="surefoot report",
        about="A run with its slides, or one slide, as a single HTML file that needs no network.",
        positional={"what": ("?", "a run folder, or a slide's folder in its slides/")},
    )
    options = checked(ReportOptions, parsed.options)
    if options.position is not None and (parsed.json or not options.terminal):
        raise UserError("position: chooses a prediction for --terminal; a file and --json have them all")
    if parsed.positional["what"] is None:
        raise UserError("surefoot report RUN, or surefoot report SLIDE: which folder?")
    folder = Path(parsed.positional["what"]).expanduser()
    slide = (folder / "slide.json").is_file()
    if not slide and not is_run(folder):
        what = "no run (no run.json) and no slide (no slide.json)" if folder.is_dir() else "not there"
        raise UserError(f"{folder} is {what}. Name a run's folder, or one of the folders in its slides/")
    if options.terminal:
        opened = Opened.load(folder) if slide else _newest(read_run(folder))
        with _fitting(folder):
            _print(opened, options.position, as_json=parsed.json)
    if options.output is None and options.terminal:
        return 0
    slides, whole = ([Opened.load(folder)], None) if slide else _read(folder)
    output = folder / ("slide.html" if slide else "report.html")
    with _fitting(folder):
        page = render(slides, whole)
    if options.output is None:
        size = _put(page, output)
    else:
        size = _write(page, output := Path(options.output).expanduser())
    if not parsed.json:
        print(f"{output}: {size / 1e6:.2g} MB, {len(slides)} slide{'s' * (len(slides) != 1)}")
    elif not options.terminal:
        print(json.dumps({"file": str(output), "bytes": size, "slides": len(slides)}))
    return 0


def _spelled_out(argv: Sequence[str]) -> list[str]:
    """-o FILE and -oFILE as --output=FILE, as `parse` knows long names only."""
    words, found = list(argv), []
    while words:
        word = words.pop(0)
        if word == "-o" and words:
            found.append(f"--output={words.pop(0)}")
        elif word.startswith("-o") and len(word) > 2:
            found.append(f"--output={word[2:].removeprefix('=')}")
        else:
            found.append("--output" if word == "-o" else word)
    return found


def _read(folder: Path) -> tuple[list[Opened], Run]:
    whole = read_run(folder)
    slides, problems = load_slides(whole)
    for problem in [*whole.problems, *problems]:
        print(f"note: {problem}", file=sys.stderr)
    return slides, whole


def _newest(whole: Run) -> Opened:
    if not whole.slides:
        raise UserError(
            f"{whole.path} has no slides. Train with --slides 10,20 or --slide-every 100, or, while it runs: "
            f"touch {whole.path / 'open-next-step'}"
        )
    return Opened.load(whole.slides[-1])


def _print(opened: Opened, position: int | None, *, as_json: bool) -> None:
    if as_json:
        print(opened.slide.model_dump_json())
    else:
        show(opened, text_console(width=None if sys.stdout.isatty() else PIPED), position)


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """What was read has the right types, but may be of no run that ever was. Raises UserError when that shows."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        said = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(
            f"{folder}: what is in it does not fit together, so it cannot be drawn: {said}"
        ) from error


def _put(page: str, output: Path) -> int:
    """Write the page in a folder that may be anybody's: what has its name there is replaced, not written through.
    Returns the size in bytes."""
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:  # noqa: PTH123
            size = file.write(page.encode("utf-8"))
        partial.replace(output)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise UserError(f"{output} cannot be written: {error.strerror}") from None
    return size


def _write(page: str, output: Path) -> int:
    """Returns the size in bytes."""
    try:
        return output.write_bytes(page.encode("utf-8"))
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}") from None

"""surefoot checkpoints: what a run has saved, and why each is kept."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.text import Text

from surefoot.commands.options import parse
from surefoot.commands.outlived import outlived
from surefoot.console import text_console
from surefoot.errors import UserError
from surefoot.report.glyphs import clipped, fixed, printable
from surefoot.report.terminal_parts import grid, put
from surefoot.runfolder import RunFolder, numbered
from surefoot.train.manifest import QUARANTINE, manifest_of, progress_of

WIDEST = 160
LONGEST_REASON = 1000
"""Characters; what a checkpoint says of itself may be of any length."""


class CheckpointsOptions(BaseModel):
    """Options of `surefoot checkpoints`: none but --json."""


@dataclass(frozen=True)
class Listed:
    """One checkpoint of a run."""

    step: int
    path: str
    """Under the run's checkpoints/."""
    loss: float | None
    """Of its step, before the update; None where that is not known."""
    bytes: int
    kept: str
    """Why it is kept; of one that cannot be used, what is wrong with it."""
    usable: bool
    """As far as its manifest tells; `surefoot verify` reads all of it."""


def run(argv: list[str]) -> int:
    """Parse, look, print."""
    about = "What a run has saved: step, loss, size, and why it is kept."
    folder, as_json = run_folder(CheckpointsOptions, argv, "checkpoints", about)
    found = listed(folder)
    with outlived():
        if as_json:
            print(json.dumps([asdict(one) for one in found], ensure_ascii=False))
        else:
            _show(folder, found)
    return 0


def _show(folder: RunFolder, found: list[Listed]) -> None:
    table = grid(">step", ">loss", ">size", "kept because")
    for one in found:
        loss = "" if one.loss is None else fixed(one.loss)
        why = Text(clipped(printable(one.kept), LONGEST_REASON), "" if one.usable else "bold")
        table.add_row(f"{one.step:,}", loss, size(one.bytes), why)
    console = text_console()
    count = f"{len(found)} checkpoint{'s' if len(found) != 1 else ''}"
    total = f"{count}, {size(sum(one.bytes for one in found))}, in {printable(str(folder.checkpoints))}"
    parts = [table, Text(), Text(total)]
    if not all(one.usable for one in found):
        parts.append(Text("What cannot be used is told in full by: surefoot verify RUN"))
    put(parts, console, min(WIDEST, console.width))


def run_folder(options: type[BaseModel], argv: list[str], name: str, about: str) -> tuple[RunFolder, bool]:
    """The run folder that the command line names, and whether JSON is wanted. Raises UserError."""
    parsed = parse(
        options,
        argv,
        prog=f"surefoot {name}",
        about=about,
        positional={"run": ("?", "a run folder")},
    )
    if parsed.positional["run"] is None:
        raise UserError(f"surefoot {name} RUN: which run folder?")
    folder = RunFolder(parsed.positional["run"])
    try:
        if not folder.events_file.exists() and not folder.checkpoints.is_dir():
            raise UserError(f"{folder.path} is no run folder (no {folder.events_file.name})")
        if not put_aside(folder) and next(numbered(folder.checkpoints), None) is None:
            raise UserError(
                f"{folder.path}: the run has saved no checkpoint yet (save_strategy, save_steps: when it does)"
            )
    except OSError as error:
        raise UserError(f"{folder.path}: cannot be read: {error.strerror}") from None
    return folder, parsed.json


def put_aside(folder: RunFolder) -> list[Path]:
    """The checkpoints in quarantine, by name."""
    return sorted((folder.checkpoints / QUARANTINE).glob("step-*"))


def listed(folder: RunFolder) -> list[Listed]:
    """The checkpoints by step, those that were put aside as damaged last. One that a live run takes away meanwhile
    is left out."""
    there = list(numbered(folder.checkpoints))
    steps, limit, best = [step for step, _ in there], _limit(folder), _best(there)
    found = []
    for step, path in there:
        try:
            manifest = manifest_of(path)
        except UserError as error:
            if path.exists() or path.is_symlink():
                found.append(Listed(step, path.name, None, bytes_of(path), str(error), usable=False))
            continue
        because = manifest.because
        if because == "the best so far" and best is not None:  # that was said at its time
            because = "" if step == best else "the best until then"
        why = ", ".join(filter(None, [because, *_reasons(step, steps, best, limit)]))
        found.append(Listed(step, path.name, manifest.loss, manifest.bytes, why, usable=True))
    for path in put_aside(folder):
        digits = path.name.split("-")[1]
        step = int(digits) if digits.isdecimal() and digits.isascii() else 0
        name = f"{QUARANTINE}/{path.name}"
        found.append(
            Listed(step, name, None, bytes_of(path), f"damaged: put aside in {QUARANTINE}/", usable=False)
        )
    return found


def _reasons(step: int, steps: list[int], best: int | None, limit: int | None) -> Iterator[str]:
    """Why a checkpoint is still there, the strongest reason first."""
    if step == best:
        yield "the best evaluation"
    if step == steps[-1]:
        yield "the newest"
    elif step in steps[-2:]:
        yield "in case the newest is damaged"
    elif limit is None:
        yield "all are kept"
    elif step in steps[-limit:]:
        yield f"among the newest {limit}"


def size(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while value >= 1000 and (larger := next(units, None)) is not None:
        value, unit = value / 1000, larger
    return f"{value:,.0f} {unit}" if unit in ("B", "kB") else f"{value:,.1f} {unit}"


def _best(there: list[tuple[int, Path]]) -> int | None:
    """The step that the newest readable checkpoint says was best."""
    for _, path in reversed(there):
        try:
            return progress_of(path).best_step
        except UserError:
            continue
    return None


def _limit(folder: RunFolder) -> int | None:
    """The run's save_total_limit; two are kept at least."""
    try:
        config: Any = folder.config().get("config")
    except UserError:
        return None
    limit = config.get("save_total_limit") if isinstance(config, dict) else None
    return max(limit, 2) if isinstance(limit, int) else None


def bytes_of(path: Path) -> int:
    """Of the ordinary files in a folder, whatever else is there."""
    try:
        found = [file.lstat() for file in path.iterdir()]
    except OSError:
        return 0
    return sum(one.st_size for one in found if stat.S_ISREG(one.st_mode))

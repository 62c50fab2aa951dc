"""surefoot checkpoints: what a run has saved, and why each is kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from surefoot.commands.options import parse
from surefoot.errors import UserError
from surefoot.report.glyphs import fixed, printable
from surefoot.report.terminal_parts import grid, put
from surefoot.runfolder import RunFolder, numbered
from surefoot.train.manifest import QUARANTINE, manifest_of, progress_of

WIDEST = 160


class CheckpointsOptions(BaseModel):
    """Options of `surefoot checkpoints`: none but --json."""


@dataclass(frozen=True)
class Listed:
    """One checkpoint of a run."""

    step: int
    path: str
    loss: float | None
    """Of its step, before the update."""
    bytes: int
    kept: str
    """Why it is kept; for a damaged one, what is wrong with it."""
    usable: bool
    """As far as its manifest tells; `surefoot verify` reads all of it."""


def run(argv: list[str]) -> int:
    """Parse, look, print."""
    about = "What a run has saved: step, loss, size, and why it is kept."
    folder, as_json = run_folder(CheckpointsOptions, argv, "checkpoints", about)
    found = listed(folder)
    if as_json:
        print(json.dumps([asdict(one) for one in found], ensure_ascii=False))
        return 0
    table = grid(">step", ">loss", ">size", "kept because")
    for one in found:
        loss = "" if one.loss is None else fixed(one.loss)
        table.add_row(f"{one.step:,}", loss, size(one.bytes), Text(printable(one.kept)))
    console = Console(highlight=False)
    total = size(sum(one.bytes for one in found))
    put(
        [table, Text(f"{total} in {printable(str(folder.checkpoints))}")], console, min(WIDEST, console.width)
    )
    return 0


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
    if not folder.events_file.exists() and not folder.checkpoints.is_dir():
        raise UserError(f"{folder.path} is no run folder (no {folder.events_file.name})")
    put_aside = list((folder.checkpoints / QUARANTINE).glob("step-*"))
    if not put_aside and next(numbered(folder.checkpoints), None) is None:
        raise UserError(f"{folder.path}: the run has saved no checkpoint yet (save_steps says when it does)")
    return folder, parsed.json


def listed(folder: RunFolder) -> list[Listed]:
    """The checkpoints by step, those that were put aside as damaged last."""
    steps = [step for step, _ in numbered(folder.checkpoints)]
    best, limit = _best(folder), _limit(folder)
    found = []
    for step, path in numbered(folder.checkpoints):
        try:
            manifest = manifest_of(path)
        except UserError as error:
            found.append(Listed(step, path.name, None, _bytes(path), str(error), usable=False))
            continue
        why = [manifest.because]
        if step == steps[-1]:
            why.append("the newest")
        elif step in steps[-2:]:
            why.append("in case the newest is damaged")
        if step == best:
            why.append("the best evaluation")
        if limit is None or step in steps[-limit:]:
            why.append("all are kept" if limit is None else f"among the newest {limit}")
        found.append(Listed(step, path.name, manifest.loss, manifest.bytes, ", ".join(why), usable=True))
    for path in sorted((folder.checkpoints / QUARANTINE).glob("step-*")):
        step, name = int(path.name.split("-")[1]), f"{QUARANTINE}/{path.name}"
        found.append(Listed(step, name, None, _bytes(path), "put aside: damaged", usable=False))
    return found


def size(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while value >= 1000 and (larger := next(units, None)) is not None:
        value, unit = value / 1000, larger
    return f"{value:,.0f} {unit}" if unit in ("B", "kB") else f"{value:,.1f} {unit}"


def _best(folder: RunFolder) -> int | None:
    """The step that the newest readable checkpoint says was best."""
    for _, path in reversed(list(numbered(folder.checkpoints))):
        try:
            return progress_of(path).best_step
        except UserError:
            continue
    return None


def _limit(folder: RunFolder) -> int | None:
    try:
        config: Any = folder.config().get("config")
    except UserError:
        return None
    limit = config.get("save_total_limit") if isinstance(config, dict) else None
    return max(limit, 2) if isinstance(limit, int) else None


def _bytes(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.iterdir() if not file.is_symlink() and file.is_file())
